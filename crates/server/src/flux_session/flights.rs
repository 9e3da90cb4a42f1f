//! The requests of a session that are under way.
//!
//! A flight is addressed by its place, so that beginning and ending one costs a push and a pop; only
//! a CANCEL, which is rare, looks through them all.

use flux_env::Instant;
use flux_wire::flux::Op;

use crate::metrics::CommandCount;

/// One request under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flight {
    /// Goes into the reply.
    pub(super) correlation: u64,
    /// Which form the reply has.
    pub(super) op: Op,
    /// Under what it is counted.
    pub(super) counted: CommandCount,
    /// When it arrived.
    pub(super) begun: Instant,
    /// Whether the client no longer waits for the reply.
    pub(super) is_cancelled: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Flights {
    places: Vec<Option<Flight>>,
    free: Vec<usize>,
}

impl Flights {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// How many are under way.
    pub(super) fn count(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Begins a flight; tells its place.
    pub(super) fn begin(&mut self, flight: Flight) -> usize {
        let free = self.free.pop();
        if let Some(place) = free
            && let Some(empty) = self.places.get_mut(place)
        {
            *empty = Some(flight);
            return place;
        }
        self.places.push(Some(flight));
        self.places.len() - 1
    }

    /// Ends the flight of a place.
    pub(super) fn end(&mut self, place: usize) -> Option<Flight> {
        let flight = self.places.get_mut(place)?.take()?;
        self.free.push(place);
        if self.free.len() == self.places.len() {
            // All have landed: an idle session keeps no places.
            self.places.clear();
            self.free.clear();
        }
        Some(flight)
    }

    /// Marks the flights with this correlation id as not waited for.
    pub(super) fn cancel(&mut self, correlation: u64) {
        for flight in self.places.iter_mut().flatten() {
            flight.is_cancelled |= flight.correlation == correlation;
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use flux_env::Instant;
    use flux_types::{Command, ReadCommand};
    use flux_wire::flux::Op;

    use super::{Flight, Flights};
    use crate::metrics::CommandCount;

    fn flight(correlation: u64) -> Flight {
        Flight {
            correlation,
            op: Op::Get,
            counted: CommandCount::of(&Command::Read(ReadCommand::Get { key: Bytes::new() })),
            begun: Instant::default(),
            is_cancelled: false,
        }
    }

    #[test]
    fn places_are_used_again_and_given_back_when_all_have_landed() {
        let mut flights = Flights::new();
        let (first, second) = (flights.begin(flight(1)), flights.begin(flight(2)));
        assert_eq!(flights.count(), 2);
        assert_eq!(flights.end(first).unwrap().correlation, 1);
        assert!(flights.end(first).is_none(), "it has ended");
        assert_eq!(flights.begin(flight(3)), first);
        assert_eq!(flights.end(first).unwrap().correlation, 3);
        assert_eq!(flights.end(second).unwrap().correlation, 2);
        assert_eq!((flights.count(), flights.places.len()), (0, 0));
    }

    #[test]
    fn a_cancel_meets_only_what_is_under_way() {
        let mut flights = Flights::new();
        let place = flights.begin(flight(7));
        flights.cancel(8);
        flights.cancel(7);
        assert!(flights.end(place).unwrap().is_cancelled);
        flights.cancel(7);
        let again = flights.begin(flight(7));
        assert!(
            !flights.end(again).unwrap().is_cancelled,
            "the id is used anew"
        );
    }
}

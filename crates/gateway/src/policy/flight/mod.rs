//! Single flight: identical reads share one call.
//!
//! The rules and why they are right are in `docs/design/0012-single-flight.md`. For each key there
//! is at most one flight that has *departed* last and one that is *boarding*. A read that may not
//! join the departed one boards the other, which departs when the first has landed, or after
//! [`BOARDING_MAX`]: whoever boards arrived before it departed, so that it tells him nothing old.
//!
//! A flight is flown by the read that opened it. If that one goes away or panics, the flight is
//! lost, and those on board look for another.
//!
//! Lock order: none is taken while the table is locked.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use flux_env::Clock;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::surroundings::Activity;

/// How long a boarding flight waits for the one before it.
pub(crate) const BOARDING_MAX: Duration = Duration::from_millis(100);
/// How long a write of unknown outcome may still take effect.
const UNKNOWN_LINGER: Duration = Duration::from_secs(60);

/// The flights of an upstream.
#[derive(Debug)]
pub(crate) struct Flights<K, T> {
    table: Mutex<HashMap<K, Gate<T>>>,
    numbers: AtomicU64,
}

/// The flights of one key.
#[derive(Debug)]
struct Gate<T> {
    departed: Option<Departed<T>>,
    boarding: Option<Flight<T>>,
}

#[derive(Debug)]
struct Departed<T> {
    flight: Flight<T>,
    /// The writes that there had been when it departed; `None` if some were under way.
    writes: Option<u64>,
}

#[derive(Debug)]
struct Flight<T> {
    number: u64,
    landed: watch::Receiver<Option<T>>,
}

/// What a read is to do.
#[derive(Debug)]
pub(crate) enum Boarding<K: Eq + Hash + Clone, T> {
    /// Fly: [`Pilot::depart`], then call, then [`Pilot::land`].
    Fly(Pilot<K, T>),
    /// Wait for somebody else's flight.
    Join(Passenger<T>),
}

/// Whether a read may join a flight that has departed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// Never.
    Strict,
    /// If since before it departed no write was under way. The number is that of
    /// [`Writes::begun`].
    Shared { begun: u64 },
}

/// Flies a flight. Dropped before it has landed, the flight is lost.
#[derive(Debug)]
pub(crate) struct Pilot<K: Eq + Hash + Clone, T> {
    flights: Arc<Flights<K, T>>,
    key: K,
    number: u64,
    landing: watch::Sender<Option<T>>,
    /// The flight to wait for before departing.
    before: Option<watch::Receiver<Option<T>>>,
}

/// Waits for a flight.
#[derive(Debug)]
pub(crate) struct Passenger<T>(watch::Receiver<Option<T>>);

/// The flight was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lost;

impl<K, T> Default for Flights<K, T> {
    fn default() -> Self {
        Self {
            table: Mutex::default(),
            numbers: AtomicU64::new(0),
        }
    }
}

impl<K: Eq + Hash + Clone, T: Clone> Flights<K, T> {
    /// Decides what a read that arrives now is to do.
    pub(crate) fn board(self: &Arc<Self>, key: &K, rule: Rule) -> Boarding<K, T> {
        let mut table = self.table.lock();
        let gate = table.entry(key.clone()).or_insert_with(|| Gate {
            departed: None,
            boarding: None,
        });
        if let (Rule::Shared { begun }, Some(departed)) = (rule, &gate.departed)
            && departed.writes == Some(begun)
        {
            return Boarding::Join(Passenger(departed.flight.landed.clone()));
        }
        if let Some(boarding) = &gate.boarding {
            return Boarding::Join(Passenger(boarding.landed.clone()));
        }
        let (landing, landed) = watch::channel(None);
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        gate.boarding = Some(Flight { number, landed });
        let before = gate.departed.as_ref();
        Boarding::Fly(Pilot {
            flights: Arc::clone(self),
            key: key.clone(),
            number,
            landing,
            before: before.map(|departed| departed.flight.landed.clone()),
        })
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.table.lock().len()
    }
}

impl<K: Eq + Hash + Clone, T> Pilot<K, T> {
    /// Waits until it is time to depart; the call is to be made right after it.
    ///
    /// # Cancellation
    /// Safe to drop: those on board look for another flight when the pilot is dropped.
    pub(crate) async fn depart(&mut self, writes: &Writes) {
        if let Some(mut before) = self.before.take() {
            // However it ended, landed, lost or late, it is no longer waited for.
            drop(tokio::time::timeout(BOARDING_MAX, before.wait_for(Option::is_some)).await);
        }
        // Read before anybody can join: a write that begins later makes the numbers differ.
        let settled = writes.settled();
        let mut table = self.flights.table.lock();
        if let Some(gate) = table.get_mut(&self.key)
            && let Some(flight) = gate.boarding.take_if(|flight| flight.number == self.number)
        {
            gate.departed = Some(Departed {
                flight,
                writes: settled,
            });
        }
    }

    /// Tells those on board what came of the call.
    pub(crate) fn land(self, result: T) {
        self.landing.send_replace(Some(result));
        // Dropping it clears the gate.
    }
}

impl<K: Eq + Hash + Clone, T> Drop for Pilot<K, T> {
    fn drop(&mut self) {
        let mut table = self.flights.table.lock();
        let Some(gate) = table.get_mut(&self.key) else {
            return;
        };
        let boarding = &mut gate.boarding;
        drop(boarding.take_if(|flight| flight.number == self.number));
        let departed = &mut gate.departed;
        drop(departed.take_if(|departed| departed.flight.number == self.number));
        if gate.boarding.is_none() && gate.departed.is_none() {
            table.remove(&self.key);
        }
    }
}

impl<T: Clone> Passenger<T> {
    /// Waits for the result.
    ///
    /// # Errors
    /// The flight was lost: its pilot went away.
    ///
    /// # Cancellation
    /// Safe to drop.
    pub(crate) async fn landed(mut self) -> Result<T, Lost> {
        let landed = self.0.wait_for(Option::is_some).await.map_err(|_| Lost)?;
        landed.clone().ok_or(Lost)
    }
}

/// Writes to an upstream that went through this gateway, and those that went past it if somebody
/// tells of them.
#[derive(Debug)]
pub(crate) struct Writes {
    begun: AtomicU64,
    ended: AtomicU64,
    /// Until when a write of unknown outcome may still take effect.
    unknown_until_nanos: AtomicU64,
    clock: Arc<dyn Clock>,
    activity: Option<Arc<dyn Activity>>,
}

impl Writes {
    pub(crate) fn new(clock: &Arc<dyn Clock>, activity: Option<&Arc<dyn Activity>>) -> Self {
        Self {
            begun: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            unknown_until_nanos: AtomicU64::new(0),
            clock: Arc::clone(clock),
            activity: activity.map(Arc::clone),
        }
    }

    /// Notes that a write begins; it lasts until the guard is dropped.
    pub(crate) fn begin(self: &Arc<Self>) -> Write {
        self.begun.fetch_add(1, Ordering::SeqCst);
        Write {
            writes: Arc::clone(self),
            is_known: false,
        }
    }

    /// The number of writes begun so far. Of two that only grow the sum grows with each.
    pub(crate) fn begun(&self) -> u64 {
        let told = self
            .activity
            .as_ref()
            .map_or(0, |activity| activity.begun());
        self.begun.load(Ordering::SeqCst).wrapping_add(told)
    }

    /// The number of writes begun, if all of them have ended and none can take effect later.
    fn settled(&self) -> Option<u64> {
        // In this order: as `ended` never passes `begun`, equal numbers mean that at the first
        // reading nothing was under way, and that nothing has begun up to the second.
        let told = self
            .activity
            .as_ref()
            .map_or(0, |activity| activity.ended());
        let ended = self.ended.load(Ordering::SeqCst).wrapping_add(told);
        let unknown_until = self.unknown_until_nanos.load(Ordering::SeqCst);
        let begun = self.begun();
        let is_quiet = self.clock.now().as_nanos() >= unknown_until;
        (ended == begun && is_quiet).then_some(begun)
    }
}

/// A write under way. If it is dropped before its outcome is known, it may take effect even later:
/// until it cannot any more, flights are not shared.
#[derive(Debug)]
pub(crate) struct Write {
    writes: Arc<Writes>,
    is_known: bool,
}

impl Write {
    /// It took effect, or never will.
    pub(crate) fn end_known(mut self) {
        self.is_known = true;
    }
}

impl Drop for Write {
    fn drop(&mut self) {
        let writes = &self.writes;
        if !self.is_known {
            let until = (writes.clock.now() + UNKNOWN_LINGER).as_nanos();
            writes
                .unknown_until_nanos
                .fetch_max(until, Ordering::SeqCst);
        }
        writes.ended.fetch_add(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests;

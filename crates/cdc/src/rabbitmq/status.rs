//! What the sink is doing, for readiness, metrics and logs.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use flux_types::UnixMillis;
use parking_lot::Mutex;

use super::{Trouble, TroubleKind};

/// In what state the sink is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// Nobody asked for it.
    #[default]
    Off,
    /// It connects for the first time.
    Connecting,
    /// Events flow.
    Flowing,
    /// The broker takes nothing for now.
    Blocked(String),
    /// Events do not flow.
    Troubled(Trouble),
    /// It has ended in order.
    Stopped,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Connecting => f.write_str("connecting"),
            Self::Flowing => f.write_str("connected"),
            Self::Blocked(reason) => write!(f, "blocked by the broker: {reason}"),
            Self::Troubled(trouble) => trouble.fmt(f),
            Self::Stopped => f.write_str("stopped"),
        }
    }
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// Messages handed to the broker, again after a trouble.
    Published,
    /// Messages that it confirmed.
    Confirmed,
    /// Messages that no queue wanted.
    Returned,
    /// Messages that it refused.
    Refused,
    /// Connections opened.
    Connections,
    /// Attempts that failed, and connections lost.
    Troubles,
    /// Cursors committed.
    Commits,
    /// Gaps told of.
    Gaps,
}

const COUNTS: usize = 8;

/// Shared by the sink with whoever asks.
#[derive(Debug, Default)]
pub struct Status {
    state: Mutex<State>,
    counts: [AtomicU64; COUNTS],
    in_flight: AtomicU64,
    lag_events: AtomicU64,
    /// Unix milliseconds since when there has been something to publish; 0: there is nothing.
    behind_since: AtomicU64,
}

impl Status {
    /// The state.
    #[must_use]
    pub fn state(&self) -> State {
        self.state.lock().clone()
    }

    /// Replaces the state; whether it is another one.
    pub(super) fn set(&self, state: State) -> bool {
        let mut held = self.state.lock();
        let is_other = *held != state;
        *held = state;
        is_other
    }

    /// The trouble, if events do not flow.
    #[must_use]
    pub fn trouble(&self) -> Option<TroubleKind> {
        match &*self.state.lock() {
            State::Troubled(trouble) => Some(trouble.kind),
            State::Off
            | State::Connecting
            | State::Flowing
            | State::Blocked(_)
            | State::Stopped => None,
        }
    }

    /// What was counted.
    #[must_use]
    pub fn count(&self, count: Count) -> u64 {
        self.counts
            .get(count as usize)
            .map_or(0, |cell| cell.load(Ordering::Relaxed))
    }

    pub(super) fn add(&self, count: Count) {
        if let Some(cell) = self.counts.get(count as usize) {
            cell.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Messages published and not confirmed.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    pub(super) fn set_in_flight(&self, count: usize) {
        self.in_flight.store(count as u64, Ordering::Relaxed);
    }

    /// Changes committed and not yet confirmed by the broker.
    #[must_use]
    pub fn lag_events(&self) -> u64 {
        self.lag_events.load(Ordering::Relaxed)
    }

    /// Seconds since when there has been something to publish.
    #[must_use]
    pub fn lag_seconds(&self, now: UnixMillis) -> f64 {
        let since = self.behind_since.load(Ordering::Relaxed);
        if since == 0 {
            return 0.0;
        }
        std::time::Duration::from_millis(now.get().saturating_sub(since)).as_secs_f64()
    }

    /// Notes the lag: how many changes, and when the oldest of them was made, if that is known.
    pub(super) fn set_lag(&self, events: u64, oldest: Option<UnixMillis>, now: UnixMillis) {
        self.lag_events.store(events, Ordering::Relaxed);
        let was = self.behind_since.load(Ordering::Relaxed);
        let since = match (events, oldest) {
            (0, _) => 0,
            (_, Some(oldest)) => oldest.get().max(1),
            (_, None) if was == 0 => now.get().max(1),
            (_, None) => was,
        };
        self.behind_since.store(since, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lag_begins_with_the_oldest_change_and_ends_with_the_last() {
        let status = Status::default();
        let at = UnixMillis::new;
        status.set_lag(3, None, at(5_000));
        assert!((status.lag_seconds(at(7_000)) - 2.0).abs() < 1e-9);
        status.set_lag(4, None, at(7_000));
        assert!((status.lag_seconds(at(7_000)) - 2.0).abs() < 1e-9);
        status.set_lag(2, Some(at(6_500)), at(7_000));
        assert!((status.lag_seconds(at(7_000)) - 0.5).abs() < 1e-9);
        status.set_lag(0, None, at(8_000));
        assert_eq!(
            (status.lag_events(), status.lag_seconds(at(9_000)) > 0.0),
            (0, false)
        );
    }

    #[test]
    fn a_state_is_told_once() {
        let status = Status::default();
        let state = State::Troubled(Trouble::silent("anything"));
        assert!(status.set(state.clone()) && !status.set(state));
        assert_eq!(status.trouble(), Some(TroubleKind::Unreachable));
        assert!(status.set(State::Flowing));
        assert_eq!(status.trouble(), None);
    }
}

//! A clock that is set by hand.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use crate::{Clock, Instant};

/// A clock for tests: it stands still until it is told to move.
#[derive(Debug)]
pub struct SimClock {
    nanos: AtomicU64,
    unix_origin_millis: AtomicU64,
    step_millis: AtomicI64,
}

impl SimClock {
    /// A clock that shows `unix_millis` at instant zero.
    #[must_use]
    pub const fn new(unix_millis: u64) -> Self {
        Self {
            nanos: AtomicU64::new(0),
            unix_origin_millis: AtomicU64::new(unix_millis),
            step_millis: AtomicI64::new(0),
        }
    }

    /// Moves both readings forward.
    pub fn advance(&self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.nanos.fetch_add(nanos, Ordering::SeqCst);
    }

    /// Pretends that somebody stepped the wall clock by this much.
    pub fn set_step_millis(&self, millis: i64) {
        self.step_millis.store(millis, Ordering::SeqCst);
    }
}

impl Clock for SimClock {
    fn now(&self) -> Instant {
        Instant::from_nanos(self.nanos.load(Ordering::SeqCst))
    }

    fn unix_millis(&self) -> u64 {
        let elapsed_millis = self.nanos.load(Ordering::SeqCst) / 1_000_000;
        self.unix_origin_millis.load(Ordering::SeqCst) + elapsed_millis
    }

    fn step_millis(&self) -> i64 {
        self.step_millis.load(Ordering::SeqCst)
    }
}

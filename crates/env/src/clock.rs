//! Time: a monotonic instant for deadlines and leases, and Unix milliseconds for expiry.

use std::fmt;
use std::ops::Add;
use std::time::Duration;

/// A monotonic instant in nanoseconds since boot, counting time spent suspended
/// (`CLOCK_BOOTTIME`). Only comparable on one machine since one boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

impl Instant {
    /// Wraps nanoseconds since boot.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since boot.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Time from `earlier` to this instant; zero if `earlier` is later.
    #[must_use]
    pub const fn saturating_since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    /// This instant `duration` later; saturates after 584 years.
    fn add(self, duration: Duration) -> Self {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(nanos))
    }
}

/// A source of time.
pub trait Clock: fmt::Debug + Send + Sync {
    /// The monotonic instant.
    fn now(&self) -> Instant;

    /// Milliseconds since the Unix epoch: the monotonic clock anchored to wall time when this clock
    /// was made, slewed slowly toward wall time since, and never going backward.
    fn unix_millis(&self) -> u64;

    /// How far wall time is from [`Clock::unix_millis`], in milliseconds. More than a few means
    /// that somebody stepped the wall clock.
    fn step_millis(&self) -> i64;
}

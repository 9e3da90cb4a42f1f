//! How fast a node sends snapshots: all of them together no faster than it was told, so that a shard
//! that moves leaves room for those that are asked.

use std::time::Duration;

use flux_env::Instant;
use parking_lot::Mutex;

/// See the module.
#[derive(Debug)]
pub(super) struct Pace {
    /// 0: no limit.
    bytes_a_second: u64,
    /// When everything that was let go so far has been sent at that rate.
    free_at: Mutex<Option<Instant>>,
}

impl Pace {
    pub(super) const fn new(bytes_a_second: u64) -> Self {
        Self {
            bytes_a_second,
            free_at: Mutex::new(None),
        }
    }

    /// How long to wait before so many bytes are sent.
    pub(super) fn take(&self, now: Instant, bytes: usize) -> Duration {
        if self.bytes_a_second == 0 {
            return Duration::ZERO;
        }
        let nanos = bytes as u128 * 1_000_000_000 / u128::from(self.bytes_a_second);
        let takes = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let mut free_at = self.free_at.lock();
        // What was not sent before is not made up for.
        let begins = free_at.map_or(now, |free_at| free_at.max(now));
        *free_at = Some(begins + takes);
        begins.saturating_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(millis * 1_000_000)
    }

    #[test]
    fn what_is_sent_waits_for_what_was_sent_before_and_idleness_is_not_saved_up() {
        let pace = Pace::new(1000);
        let millis = Duration::from_millis;
        assert_eq!(pace.take(at(0), 100), millis(0));
        assert_eq!(pace.take(at(0), 50), millis(100));
        assert_eq!(pace.take(at(20), 50), millis(130));
        assert_eq!(pace.take(at(10_000), 100), millis(0));
        assert_eq!(pace.take(at(10_000), 100), millis(100));
    }

    #[test]
    fn without_a_rate_nothing_waits() {
        let pace = Pace::new(0);
        for _ in 0..3 {
            assert_eq!(pace.take(at(1), usize::MAX), Duration::ZERO);
        }
    }
}

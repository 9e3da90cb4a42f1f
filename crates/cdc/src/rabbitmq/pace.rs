//! A cap on events for each second, so that a backlog reaches a weak consumer as a steady flow.
//!
//! A token bucket in its arithmetic form (GCRA): one instant is the whole state.

use std::time::Duration;

use flux_env::Instant;

/// How much of the rate may come at once after a rest.
const BURST: Duration = Duration::from_millis(100);

/// Says when the next event may go. Without a rate it may always.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    interval: Duration,
    /// When the bucket would be full again.
    full_at: Instant,
}

impl Pace {
    /// At most `per_second` events each second; 0: no cap.
    #[must_use]
    pub fn new(per_second: u32) -> Self {
        let interval = Duration::from_secs(1).checked_div(per_second);
        Self {
            interval: interval.unwrap_or(Duration::ZERO),
            full_at: Instant::default(),
        }
    }

    /// Takes the right to send one event now, or says how long to wait for it.
    ///
    /// # Errors
    /// The time until an event may go.
    pub fn take(&mut self, now: Instant) -> Result<(), Duration> {
        if self.interval.is_zero() {
            return Ok(());
        }
        let filled = self.full_at.max(now);
        let ahead = filled.saturating_since(now);
        // A slow pace still lets one event go at once.
        let burst = BURST.max(self.interval);
        if ahead + self.interval > burst {
            return Err(ahead + self.interval - burst);
        }
        self.full_at = filled + self.interval;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many events go within `span` if somebody always wants to send.
    fn sent(per_second: u32, span: Duration) -> u64 {
        let mut pace = Pace::new(per_second);
        let begin = Instant::from_nanos(1_000_000_000_000);
        let mut now = begin;
        let mut count = 0;
        while now.saturating_since(begin) < span {
            match pace.take(now) {
                Ok(()) => count += 1,
                Err(wait) => {
                    assert!(!wait.is_zero());
                    now = now + wait;
                }
            }
        }
        count
    }

    #[test]
    fn the_rate_holds_over_time_after_a_short_burst() {
        for rate in [1, 7, 100, 5_000, 1_000_000] {
            let span = Duration::from_secs(10);
            let (count, exact) = (sent(rate, span), u64::from(rate) * 10);
            let burst = u64::from(rate) / 10 + 1;
            assert!((exact..=exact + burst).contains(&count), "{rate}: {count}");
        }
    }

    #[test]
    fn without_a_rate_nothing_waits() {
        let mut pace = Pace::new(0);
        assert!((0..1_000_000).all(|_| pace.take(Instant::from_nanos(5)).is_ok()));
    }

    #[test]
    fn rest_is_not_saved_beyond_the_burst() {
        let mut pace = Pace::new(100);
        let later = Instant::from_nanos(u64::MAX / 2);
        let at_once = (0..1000).take_while(|_| pace.take(later).is_ok()).count();
        assert_eq!(at_once, 10);
    }
}

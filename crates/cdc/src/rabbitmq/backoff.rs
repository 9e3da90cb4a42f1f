//! How long to wait before the next attempt: doubling, bounded, with full jitter, so that many who
//! lost the same broker do not come back at the same moment.

use std::time::Duration;

use flux_env::Rng;

/// Longest pause before the second attempt; doubles with every further one.
const FIRST: Duration = Duration::from_millis(50);
/// Longest pause at all.
const LONGEST: Duration = Duration::from_secs(5);

/// Counts failed attempts in a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Failed attempts since the last success.
    #[must_use]
    pub const fn failures(&self) -> u32 {
        self.failures
    }

    /// Counts a failure and says how long to wait before the next attempt.
    pub fn fail(&mut self, rng: &mut dyn Rng) -> Duration {
        let ceiling = FIRST
            .saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX))
            .min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        let millis = u64::try_from(ceiling.as_millis()).unwrap_or(u64::MAX);
        Duration::from_millis(rng.below(millis.saturating_add(1)))
    }

    /// Forgets the failures.
    pub const fn succeed(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use flux_env::SeededRng;

    use super::*;

    #[test]
    fn pauses_double_up_to_the_limit_and_are_spread_over_the_whole_range() {
        let mut rng = SeededRng::new(7);
        let mut longest = [Duration::ZERO; 12];
        for _ in 0..500 {
            let mut backoff = Backoff::default();
            for longest in &mut longest {
                *longest = backoff.fail(&mut rng).max(*longest);
            }
            assert_eq!(backoff.failures(), 12);
        }
        let bounds = [
            50, 100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000, 5000, 5000,
        ];
        for (longest, bound) in longest.iter().zip(bounds) {
            let bound = Duration::from_millis(bound);
            assert!(
                *longest <= bound && *longest >= bound * 9 / 10,
                "{longest:?} {bound:?}"
            );
        }
    }

    #[test]
    fn success_starts_over_and_any_number_of_failures_is_fine() {
        let mut rng = SeededRng::new(1);
        let mut backoff = Backoff::default();
        for _ in 0..100 {
            assert!(backoff.fail(&mut rng) <= LONGEST);
        }
        backoff.succeed();
        assert!(backoff.fail(&mut rng) <= FIRST);
    }
}

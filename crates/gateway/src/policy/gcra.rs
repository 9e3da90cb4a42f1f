//! Token buckets by the generic cell rate algorithm (ITU-T I.371): one number for each bucket.
//!
//! The number is the *theoretical arrival time*: when the bucket would be full again if nothing
//! more came. A request moves it on by one interval, and is refused if that puts it further ahead
//! of now than the burst reaches. It is the same as a bucket of `burst` tokens into which one drops
//! at every interval, without a timer and without fractions.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use flux_env::Instant;

use crate::config::Rate;

/// How fast and how many at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    interval_nanos: u64,
    burst: u64,
}

/// How a bucket stands after a request, for the `RateLimit-*` headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Quota {
    /// Requests that a full bucket admits at once.
    pub(crate) limit: u64,
    /// Requests that it admits now.
    pub(crate) remaining: u64,
    /// Until it is full.
    pub(crate) reset: Duration,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    Admitted(Quota),
    Refused {
        quota: Quota,
        /// Until one more will be admitted.
        retry_after: Duration,
    },
}

impl Rule {
    /// `None` if there is no limit. A burst of 0 is what the rate gives in a second, at least 1.
    pub(crate) fn new(rate: Rate, burst: u64) -> Option<Self> {
        let (count, per) = rate.get()?;
        let per_nanos = u64::try_from(per.as_nanos()).unwrap_or(u64::MAX);
        let in_a_second = count / per.as_secs().max(1);
        Some(Self {
            interval_nanos: per_nanos.checked_div(count).unwrap_or_default().max(1),
            burst: if burst == 0 {
                in_a_second.max(1)
            } else {
                burst
            },
        })
    }

    /// Decides about one request: what becomes of it, and the bucket's number if it is admitted.
    pub(crate) fn decide(&self, full_at: u64, now: u64) -> (Decision, Option<u64>) {
        let room = self.interval_nanos.saturating_mul(self.burst);
        let base = full_at.max(now);
        let next = base.saturating_add(self.interval_nanos);
        let ahead = next - now;
        let quota = |taken: u64| Quota {
            limit: self.burst,
            remaining: room.saturating_sub(taken) / self.interval_nanos,
            reset: Duration::from_nanos(taken),
        };
        if ahead <= room {
            return (Decision::Admitted(quota(ahead)), Some(next));
        }
        let refused = Decision::Refused {
            quota: quota(base - now),
            retry_after: Duration::from_nanos(ahead - room),
        };
        (refused, None)
    }

    pub(crate) const fn interval_nanos(&self) -> u64 {
        self.interval_nanos
    }
}

/// One bucket, shared by threads.
#[derive(Debug)]
pub(crate) struct Gcra {
    rule: Rule,
    full_at: AtomicU64,
}

impl Gcra {
    pub(crate) const fn new(rule: Rule) -> Self {
        Self {
            rule,
            full_at: AtomicU64::new(0),
        }
    }

    /// Takes a token if there is one.
    pub(crate) fn try_acquire(&self, now: Instant) -> Decision {
        let now = now.as_nanos();
        let mut full_at = self.full_at.load(Ordering::Relaxed);
        loop {
            let (decision, next) = self.rule.decide(full_at, now);
            let Some(next) = next else {
                return decision;
            };
            match self.full_at.compare_exchange_weak(
                full_at,
                next,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => return decision,
                Err(other) => full_at = other,
            }
        }
    }

    /// Gives a token back that was taken for a request which another limit then refused.
    pub(crate) fn refund(&self) {
        let interval = self.rule.interval_nanos;
        // A bucket that has filled up meanwhile is not made fuller than full: the past counts as now.
        let _ = self
            .full_at
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| {
                Some(full_at.saturating_sub(interval))
            });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    fn rule(rate: &str, burst: u64) -> Rule {
        Rule::new(rate.parse().unwrap(), burst).unwrap()
    }

    fn at(nanos: u64) -> Instant {
        Instant::from_nanos(1_000_000_000_000 + nanos)
    }

    /// A bucket with tokens in it, counted in nanoseconds so that nothing is rounded.
    struct Bucket {
        interval: u128,
        burst: u128,
        /// Tokens times the interval.
        level: u128,
        at: u128,
    }

    impl Bucket {
        fn take(&mut self, now: u128) -> bool {
            self.level = (self.level + now - self.at).min(self.interval * self.burst);
            self.at = now;
            if self.level < self.interval {
                return false;
            }
            self.level -= self.interval;
            true
        }
    }

    proptest! {
        #[test]
        fn it_admits_exactly_what_a_bucket_of_tokens_admits(
            count in 1_u64..2_000,
            burst in 1_u64..50,
            gaps in prop::collection::vec(0_u64..30_000_000, 1..300),
        ) {
            let rule = rule(&format!("{count}/s"), burst);
            let gcra = Gcra::new(rule);
            let interval = u128::from(rule.interval_nanos());
            let mut bucket = Bucket {
                interval,
                burst: u128::from(burst),
                level: interval * u128::from(burst),
                at: 0,
            };
            let mut now = 0;
            for gap in gaps {
                now += gap;
                let expected = bucket.take(u128::from(now));
                match gcra.try_acquire(at(now)) {
                    Decision::Admitted(quota) => {
                        prop_assert!(expected);
                        prop_assert_eq!(u128::from(quota.remaining), bucket.level / interval);
                        let missing = interval * u128::from(burst) - bucket.level;
                        prop_assert_eq!(quota.reset.as_nanos(), missing);
                    }
                    Decision::Refused { quota, retry_after } => {
                        prop_assert!(!expected);
                        prop_assert_eq!(quota.remaining, 0);
                        // It is told exactly when to come again: not a nanosecond earlier.
                        prop_assert_eq!(retry_after.as_nanos(), interval - bucket.level);
                    }
                }
            }
        }
    }

    #[test]
    fn a_refund_is_a_token_and_never_more_than_full() {
        let gcra = Gcra::new(rule("1/s", 2));
        let is_admitted = |nanos| matches!(gcra.try_acquire(at(nanos)), Decision::Admitted(_));
        assert!(is_admitted(0) && is_admitted(0) && !is_admitted(0));
        gcra.refund();
        assert!(is_admitted(0) && !is_admitted(0));
        let later = 100_000_000_000;
        for _ in 0..10 {
            gcra.refund();
        }
        assert!(is_admitted(later) && is_admitted(later) && !is_admitted(later));
    }

    #[test]
    fn a_burst_that_is_not_given_is_a_second_of_the_rate() {
        assert_eq!(rule("100/s", 0).burst, 100);
        assert_eq!(rule("600/m", 0).burst, 10);
        assert_eq!(rule("5/h", 0).burst, 1);
        assert_eq!(Rule::new(Rate::NONE, 5), None);
    }

    #[test]
    fn threads_together_take_no_more_than_there_is() {
        let gcra = Arc::new(Gcra::new(rule("1/h", 1_000)));
        let taken: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| {
                    let gcra = Arc::clone(&gcra);
                    scope.spawn(move || {
                        let take = || matches!(gcra.try_acquire(at(0)), Decision::Admitted(_));
                        (0..1_000).filter(|_| take()).count()
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .sum()
        });
        assert_eq!(taken, 1_000);
    }
}

//! Passive health: an endpoint is judged by what calls of it come to.
//!
//! An endpoint is *in* until it cannot be connected to, or fails so many calls in a row; then it is
//! *out*, and passed over for a while that doubles each time. When the while is over, one call goes
//! to it on trial: if that comes back, the endpoint is in again.

use std::time::Duration;

use flux_env::Instant;

use crate::config::HealthConfig;

/// When an endpoint is passed over, and how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rule {
    failures: u32,
    backoff: Duration,
    backoff_max: Duration,
}

/// How an endpoint stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    In,
    /// Out, but a call on trial may go to it.
    Due,
    Out,
}

/// What a call of an endpoint came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The endpoint answered, whatever it said about the request.
    Good,
    Failed,
    NoConnection,
    /// Nothing can be said.
    GivenUp,
}

/// The state machine of one endpoint.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Health {
    failed: u32,
    out: Option<Out>,
}

#[derive(Clone, Copy, Debug)]
struct Out {
    until: Instant,
    /// How long it will be out if it fails again.
    next: Duration,
    on_trial: bool,
    /// Whether the last call found no connection, rather than a failing service.
    is_unreachable: bool,
}

impl Rule {
    pub(crate) fn new(config: &HealthConfig) -> Self {
        Self {
            failures: config.failures,
            backoff: config.backoff.get(),
            backoff_max: config.backoff_max.get(),
        }
    }
}

impl Health {
    pub(crate) fn standing(&self, now: Instant) -> Standing {
        match self.out {
            None => Standing::In,
            Some(out) if now >= out.until && !out.on_trial => Standing::Due,
            Some(_) => Standing::Out,
        }
    }

    /// Whether connecting to it would be in vain as far as is known.
    pub(crate) fn is_unreachable(&self) -> bool {
        self.out.is_some_and(|out| out.is_unreachable)
    }

    /// Takes the trial if it is due. Its verdict must be recorded.
    pub(crate) fn try_acquire(&mut self, now: Instant) -> bool {
        let is_due = self.standing(now) == Standing::Due;
        if let (true, Some(out)) = (is_due, &mut self.out) {
            out.on_trial = true;
        }
        is_due
    }

    /// Records what a call came to; whether the endpoint went out or came back in.
    pub(crate) fn record(
        &mut self,
        rule: &Rule,
        verdict: Verdict,
        was_trial: bool,
        now: Instant,
    ) -> bool {
        match (verdict, self.out) {
            (Verdict::Good, out) => {
                *self = Self::default();
                return out.is_some();
            }
            (Verdict::GivenUp, None) => return false,
            (Verdict::Failed | Verdict::NoConnection, None) => {
                self.failed += 1;
                if verdict == Verdict::Failed && self.failed < rule.failures {
                    return false;
                }
                self.out = Some(Out {
                    until: now + rule.backoff,
                    next: (rule.backoff * 2).min(rule.backoff_max),
                    on_trial: false,
                    is_unreachable: verdict == Verdict::NoConnection,
                });
                return true;
            }
            (Verdict::GivenUp | Verdict::Failed | Verdict::NoConnection, Some(out)) => {
                // What began before it went out says nothing new.
                if was_trial {
                    self.out = Some(Out {
                        until: now + out.next,
                        next: (out.next * 2).min(rule.backoff_max),
                        on_trial: false,
                        is_unreachable: match verdict {
                            Verdict::NoConnection => true,
                            Verdict::Failed | Verdict::Good => false,
                            Verdict::GivenUp => out.is_unreachable,
                        },
                    });
                }
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(millis * 1_000_000)
    }

    fn rule() -> Rule {
        Rule::new(&HealthConfig {
            failures: 3,
            backoff: crate::config::Timeout::millis(100),
            backoff_max: crate::config::Timeout::millis(350),
        })
    }

    #[test]
    fn failures_in_a_row_put_it_out_and_a_success_starts_anew() {
        let mut health = Health::default();
        for verdict in [
            Verdict::Failed,
            Verdict::Failed,
            Verdict::Good,
            Verdict::Failed,
            Verdict::GivenUp,
            Verdict::Failed,
        ] {
            health.record(&rule(), verdict, false, at(0));
            assert_eq!(health.standing(at(0)), Standing::In, "{verdict:?}");
        }
        assert!(health.record(&rule(), Verdict::Failed, false, at(0)));
        assert_eq!(health.standing(at(99)), Standing::Out);
        // It fails, and may all the same be connected to where there is nobody else.
        assert!(!health.is_unreachable());
        assert_eq!(health.standing(at(100)), Standing::Due);
    }

    #[test]
    fn without_a_connection_it_is_out_at_once_and_longer_each_time() {
        let mut health = Health::default();
        assert!(health.record(&rule(), Verdict::NoConnection, false, at(0)));
        assert!(health.is_unreachable());
        let mut now = 0;
        for pause in [100, 200, 350, 350] {
            assert_eq!(health.standing(at(now + pause - 1)), Standing::Out);
            now += pause;
            assert!(health.try_acquire(at(now)), "{now}");
            // One trial, and stragglers change nothing.
            assert!(!health.try_acquire(at(now + 10_000)));
            health.record(&rule(), Verdict::Failed, false, at(now));
            assert!(!health.try_acquire(at(now + 10_000)));
            health.record(&rule(), Verdict::NoConnection, true, at(now));
        }
        assert!(health.try_acquire(at(now + 350)));
        health.record(&rule(), Verdict::GivenUp, true, at(now + 350));
        assert_eq!(health.standing(at(now + 351)), Standing::Out);
        assert!(health.try_acquire(at(now + 700)));
        assert!(health.record(&rule(), Verdict::Good, true, at(now + 700)));
        assert_eq!(health.standing(at(now + 700)), Standing::In);
        // The pause begins small again.
        health.record(&rule(), Verdict::NoConnection, false, at(now + 800));
        assert!(health.try_acquire(at(now + 900)));
    }
}

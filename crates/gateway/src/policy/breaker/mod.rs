//! A circuit breaker that behaves as Hystrix does (`HystrixCircuitBreaker`, version 1.5).
//!
//! Closed, it counts what calls come to in a window of ten buckets, and opens as soon as a failure
//! brings the window to its volume and share of failures. Open, it refuses, until its sleep has
//! passed; then one call goes through on trial while the others are refused still. A success closes
//! it and empties the window; anything else, and a trial that is given up, opens it anew.
//!
//! It differs from Hystrix in three points, each on purpose. It is judged at each record instead of
//! at snapshots every half second. A call that was let through before the last change of state no
//! longer counts, where Hystrix lets a straggler's failure end another call's trial. And a trial
//! whose answer is about the request (not found, say) closes it, since the upstream answered.
//!
//! [`Circuit`] is the state machine; [`Breaker`] is one that threads share.

use std::sync::Arc;
use std::time::Duration;

use flux_env::{Clock, Instant};
use parking_lot::Mutex;

use crate::config::{BreakerConfig, BreakerMode};
use crate::status::Code;

const BUCKETS: usize = 10;

/// When it opens and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    forced: Option<Forced>,
    bucket_nanos: u64,
    volume: u64,
    error_percent: u64,
    sleep: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Forced {
    Open,
    Closed,
}

impl Rule {
    fn new(config: &BreakerConfig) -> Option<Self> {
        let forced = match config.mode {
            BreakerMode::Off => return None,
            BreakerMode::On => None,
            BreakerMode::ForcedOpen => Some(Forced::Open),
            BreakerMode::ForcedClosed => Some(Forced::Closed),
        };
        let window_nanos = u64::try_from(config.window.get().as_nanos()).unwrap_or(u64::MAX);
        Some(Self {
            forced,
            bucket_nanos: (window_nanos / BUCKETS as u64).max(1),
            volume: config.volume,
            error_percent: config.error_percent,
            sleep: config.sleep.get(),
        })
    }
}

/// What a call came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Success,
    Failure,
    /// The upstream answered, but about the request: that counts neither way.
    Answered,
    /// The call was given up before anything could be said of the upstream.
    GivenUp,
}

/// Allows one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket {
    /// The change of state after which it was given.
    change: u64,
}

/// Whether a call may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    Pass(Ticket),
    Refused { retry_after: Duration },
}

/// How a breaker stands, in the order of its metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Closed,
    /// One call is on trial.
    HalfOpen,
    Open,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed,
    HalfOpen,
    Open { since: Instant },
}

/// The state machine.
#[derive(Debug)]
pub(crate) struct Circuit {
    rule: Rule,
    state: State,
    /// Changes of state so far: a ticket of before the last one no longer counts.
    change: u64,
    window: Window,
}

impl Circuit {
    pub(crate) fn new(rule: Rule) -> Self {
        Self {
            rule,
            state: State::Closed,
            change: 0,
            window: Window::default(),
        }
    }

    /// Decides about one call.
    pub(crate) fn try_acquire(&mut self, now: Instant) -> Decision {
        let pass = |change| Decision::Pass(Ticket { change });
        match (self.rule.forced, self.state) {
            (Some(Forced::Open), _) => Decision::Refused {
                retry_after: self.rule.sleep,
            },
            (Some(Forced::Closed), _) | (None, State::Closed) => pass(self.change),
            // When the trial will end is not known; the sleep is a fair guess.
            (None, State::HalfOpen) => Decision::Refused {
                retry_after: self.rule.sleep,
            },
            (None, State::Open { since }) => {
                let asleep = now.saturating_since(since);
                if asleep > self.rule.sleep {
                    self.turn(State::HalfOpen);
                    return pass(self.change);
                }
                Decision::Refused {
                    retry_after: self.rule.sleep - asleep,
                }
            }
        }
    }

    /// Records what a call came to; the new standing, if that changed it.
    pub(crate) fn record(
        &mut self,
        ticket: Ticket,
        verdict: Verdict,
        now: Instant,
    ) -> Option<Standing> {
        if ticket.change != self.change {
            return None;
        }
        match (self.state, verdict) {
            (State::HalfOpen, Verdict::Success | Verdict::Answered) => {
                self.window = Window::default();
                self.turn(State::Closed);
                Some(Standing::Closed)
            }
            (State::HalfOpen, Verdict::Failure | Verdict::GivenUp) => {
                self.turn(State::Open { since: now });
                Some(Standing::Open)
            }
            (State::Closed, Verdict::Success | Verdict::Failure) => {
                let is_failure = verdict == Verdict::Failure;
                self.window.add(self.bucket(now), is_failure);
                let is_free = self.rule.forced.is_none();
                if is_free && self.window.is_bad(self.bucket(now), &self.rule) {
                    self.turn(State::Open { since: now });
                    return Some(Standing::Open);
                }
                None
            }
            (State::Closed, Verdict::Answered | Verdict::GivenUp) | (State::Open { .. }, _) => None,
        }
    }

    pub(crate) const fn standing(&self) -> Standing {
        match (self.rule.forced, self.state) {
            (Some(Forced::Open), _) => Standing::Open,
            (Some(Forced::Closed), _) | (None, State::Closed) => Standing::Closed,
            (None, State::HalfOpen) => Standing::HalfOpen,
            (None, State::Open { .. }) => Standing::Open,
        }
    }

    const fn turn(&mut self, state: State) {
        self.state = state;
        self.change += 1;
    }

    const fn bucket(&self, now: Instant) -> u64 {
        now.as_nanos() / self.rule.bucket_nanos
    }
}

/// Counts of the last ten buckets of time.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    buckets: [Bucket; BUCKETS],
}

#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    /// Which span of time it counts.
    number: u64,
    total: u64,
    failed: u64,
}

impl Window {
    fn add(&mut self, number: u64, is_failure: bool) {
        let place = usize::try_from(number % BUCKETS as u64).unwrap_or_default();
        let Some(bucket) = self.buckets.get_mut(place) else {
            return;
        };
        if bucket.number < number {
            *bucket = Bucket {
                number,
                ..Bucket::default()
            };
        }
        // A record that comes later than one of a younger bucket in the same place is not of this
        // window any more.
        if bucket.number == number {
            bucket.total += 1;
            bucket.failed += u64::from(is_failure);
        }
    }

    fn is_bad(&self, number: u64, rule: &Rule) -> bool {
        let recent = self
            .buckets
            .iter()
            .filter(|bucket| bucket.number + BUCKETS as u64 > number && bucket.number <= number);
        let (total, failed) = recent.fold((0_u64, 0_u64), |(total, failed), bucket| {
            (total + bucket.total, failed + bucket.failed)
        });
        total >= rule.volume
            && failed.saturating_mul(100) >= rule.error_percent.saturating_mul(total)
    }
}

/// A breaker that threads share.
#[derive(Debug)]
pub(crate) struct Breaker {
    /// What it guards, for the log.
    name: String,
    circuit: Mutex<Circuit>,
    failures: Vec<Code>,
    clock: Arc<dyn Clock>,
}

impl Breaker {
    /// `None` if the configuration wants none.
    pub(crate) fn new(name: &str, config: &BreakerConfig, clock: &Arc<dyn Clock>) -> Option<Self> {
        Some(Self {
            name: name.to_owned(),
            circuit: Mutex::new(Circuit::new(Rule::new(config)?)),
            failures: config
                .failures
                .iter()
                .filter_map(|name| Code::from_name(name))
                .collect(),
            clock: Arc::clone(clock),
        })
    }

    /// Lets a call through, or says after what time it may be asked again.
    pub(crate) fn try_acquire(self: &Arc<Self>) -> Result<Permit, Duration> {
        let now = self.clock.now();
        match self.circuit.lock().try_acquire(now) {
            Decision::Pass(ticket) => Ok(Permit {
                breaker: Arc::clone(self),
                ticket: Some(ticket),
            }),
            Decision::Refused { retry_after } => Err(retry_after),
        }
    }

    pub(crate) fn standing(&self) -> Standing {
        self.circuit.lock().standing()
    }

    /// Whether a status is a failure of the upstream.
    pub(crate) fn is_failure(&self, code: Code) -> bool {
        self.failures.contains(&code)
    }
}

/// Allows one call. Dropped without a record, as when the client went away or the call panicked,
/// it was given up.
#[derive(Debug)]
pub(crate) struct Permit {
    breaker: Arc<Breaker>,
    ticket: Option<Ticket>,
}

impl Permit {
    pub(crate) fn breaker(&self) -> &Breaker {
        &self.breaker
    }

    /// Says what the call came to.
    pub(crate) fn record(mut self, verdict: Verdict) {
        self.settle(verdict);
    }

    fn settle(&mut self, verdict: Verdict) {
        let Some(ticket) = self.ticket.take() else {
            return;
        };
        let now = self.breaker.clock.now();
        let changed = self.breaker.circuit.lock().record(ticket, verdict, now);
        match changed {
            Some(Standing::Open) => {
                tracing::warn!(breaker = %self.breaker.name, ?verdict, "breaker has opened");
            }
            Some(Standing::Closed | Standing::HalfOpen) => {
                tracing::info!(breaker = %self.breaker.name, "breaker has closed");
            }
            None => {}
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.settle(Verdict::GivenUp);
    }
}

#[cfg(test)]
mod tests;

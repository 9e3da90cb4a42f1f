//! How much of a processor the readers of changes take while those who serve want it.
//!
//! Readers work behind the writers. While processors are idle they go as fast as they can; once a
//! thread that serves is busy and has to wait for its processor, all readers of the node together
//! are held to a small share of one: what they have not read waits in the log, and is told a little
//! later. The share is never zero, so that readers go on on a machine that is always busy, and it
//! grows for a reader that stays behind, up to a limit, so that its backlog does not grow for ever.

use std::time::Duration;

use flux_env::{Clock, Instant, ThreadMeter, ThreadTimes};
use parking_lot::Mutex;
use std::sync::Arc;

/// All of a processor, in thousandths.
const WHOLE: u32 = 1000;
/// What readers have of one processor at least, in thousandths.
const LEAST: u32 = 30;
/// What they have at most while those who serve have to wait.
const MOST: u32 = 240;
/// How long a reader may be behind before it is given more; from then on twice as much for every
/// further such time.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked whether those who serve have to wait.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// How far a reader may run ahead of its share: rests are few and long rather than many and short.
const AHEAD: Duration = Duration::from_millis(10);
/// Longest rest.
const REST_MAX: Duration = Duration::from_millis(500);

/// See the module. One for all readers of a node.
#[derive(Debug)]
pub struct Share {
    clock: Arc<dyn Clock>,
    /// Of the threads that serve.
    meters: Vec<ThreadMeter>,
    ration: Mutex<Ration>,
}

impl Share {
    /// Watches the threads that serve; without any there is nobody to give way to.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>, meters: Vec<ThreadMeter>) -> Self {
        let now = clock.now();
        Self {
            clock,
            meters,
            ration: Mutex::new(Ration::new(now)),
        }
    }

    /// Notes processor time that a reader has spent, and says how long it is to rest before it
    /// reads on. `behind` is for how long it has not caught up.
    pub fn spend(&self, cost: Duration, behind: Duration) -> Duration {
        let now = self.clock.now();
        let mut ration = self.ration.lock();
        if ration.is_due(now) {
            // One that cannot be read has ended, and waits for nothing.
            let times = self.meters.iter().map(|meter| meter.read());
            let times = times.map(Result::unwrap_or_default).collect();
            ration.look(now, times);
        }
        ration.spend(now, cost, behind)
    }
}

/// The share as it is now.
#[derive(Debug)]
struct Ration {
    thousandths: u32,
    looked_at: Instant,
    times: Vec<ThreadTimes>,
    /// When what was spent is made up for.
    even_at: Instant,
}

impl Ration {
    const fn new(now: Instant) -> Self {
        Self {
            thousandths: WHOLE,
            looked_at: now,
            times: Vec::new(),
            even_at: now,
        }
    }

    fn is_due(&self, now: Instant) -> bool {
        LOOK_INTERVAL <= now.saturating_since(self.looked_at)
    }

    /// Takes in how long each thread that serves has run and waited.
    fn look(&mut self, now: Instant, times: Vec<ThreadTimes>) {
        let passed = now.saturating_since(self.looked_at);
        let mut pairs = times.iter().zip(&self.times);
        let is_crowded = pairs.any(|(now, before)| {
            let ran = now.ran.saturating_sub(before.ran);
            let waited = now.waited.saturating_sub(before.waited);
            // It has no idle time to speak of, and does not run all the time either.
            (ran + waited) * 10 >= passed * 9 && waited * 50 >= passed
        });
        self.thousandths = if is_crowded {
            LEAST
        } else {
            self.thousandths.saturating_mul(2).min(WHOLE)
        };
        self.times = times;
        self.looked_at = now;
    }

    fn spend(&mut self, now: Instant, cost: Duration, behind: Duration) -> Duration {
        let share = self.thousandths.max(least(behind));
        self.even_at = self.even_at.max(now);
        if share < WHOLE {
            self.even_at = self.even_at + cost * WHOLE / share.max(1);
        }
        let ahead = self.even_at.saturating_since(now);
        if ahead < AHEAD {
            return Duration::ZERO;
        }
        ahead.min(REST_MAX)
    }
}

/// What a reader has at least that has been behind for so long.
fn least(behind: Duration) -> u32 {
    let doublings = behind.as_secs() / PATIENCE.as_secs();
    let doublings = u32::try_from(doublings).unwrap_or(u32::MAX);
    let factor = 1_u32.checked_shl(doublings).unwrap_or(u32::MAX);
    LEAST.saturating_mul(factor).min(MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TURN: Duration = Duration::from_millis(1);

    /// A reader that always wants to go on, for a while, on one processor with a thread that serves
    /// and wants `demand` thousandths of it; returns what the reader got of it, in thousandths.
    fn got(
        ration: &mut Ration,
        from: Instant,
        span: Duration,
        demand: u32,
        behind: Duration,
    ) -> u128 {
        let (mut now, mut spent, mut served) = (from, Duration::ZERO, ThreadTimes::default());
        if let Some(before) = ration.times.first() {
            served = *before;
        }
        while now.saturating_since(from) < span {
            let rest = ration.spend(now, TURN, behind);
            spent += TURN;
            now = now + TURN + rest;
            // While the reader runs the other waits; it makes up for that as far as it can.
            let wants = (TURN + rest) * demand / WHOLE;
            let ran = wants.min(rest.max(TURN / 2));
            served.ran += ran;
            served.waited += wants.saturating_sub(ran).max(TURN.min(wants));
            if ration.is_due(now) {
                ration.look(now, vec![served]);
            }
        }
        spent.as_nanos() * u128::from(WHOLE) / now.saturating_since(from).as_nanos()
    }

    fn begin() -> Instant {
        Instant::from_nanos(1_000_000_000)
    }

    #[test]
    fn a_reader_beside_a_saturated_thread_has_its_least_and_no_less() {
        let mut ration = Ration::new(begin());
        let share = got(
            &mut ration,
            begin(),
            Duration::from_secs(20),
            WHOLE,
            Duration::ZERO,
        );
        assert!((28..=36).contains(&share), "{share}");
    }

    #[test]
    fn a_reader_that_stays_behind_has_more_up_to_a_limit() {
        for (behind, expected) in [(59, 30), (60, 60), (125, 120), (200, 240), (1_000_000, 240)] {
            let behind = Duration::from_secs(behind);
            assert_eq!(least(behind), expected);
            let mut ration = Ration::new(begin());
            let share = got(&mut ration, begin(), Duration::from_secs(20), WHOLE, behind);
            let about = expected * 9 / 10..=expected * 11 / 10 + 3;
            assert!(
                about.contains(&u32::try_from(share).unwrap()),
                "{behind:?} {share}"
            );
        }
    }

    #[test]
    fn nobody_rests_while_those_who_serve_have_idle_time_or_processors_of_their_own() {
        let mut ration = Ration::new(begin());
        let mut now = begin();
        let mut served = ThreadTimes::default();
        for (ran, waited) in [(300, 300), (1000, 5), (0, 0), (880, 10)] {
            for _ in 0..1000 {
                assert_eq!(ration.spend(now, TURN, Duration::ZERO), Duration::ZERO);
                now = now + TURN;
                served.ran += TURN * ran / WHOLE;
                served.waited += TURN * waited / WHOLE;
                if ration.is_due(now) {
                    ration.look(now, vec![served]);
                }
            }
        }
    }

    #[test]
    fn when_the_load_ends_readers_go_at_full_speed_within_a_fraction_of_a_second() {
        let mut ration = Ration::new(begin());
        got(
            &mut ration,
            begin(),
            Duration::from_secs(2),
            WHOLE,
            Duration::ZERO,
        );
        assert_eq!(ration.thousandths, LEAST);
        let idle = ration.times.clone();
        let mut now = ration.looked_at;
        for _ in 0..6 {
            now = now + LOOK_INTERVAL;
            ration.look(now, idle.clone());
        }
        assert_eq!(
            ration.spend(now + REST_MAX, TURN, Duration::ZERO),
            Duration::ZERO
        );
        assert_eq!(ration.thousandths, WHOLE);
    }

    #[test]
    fn a_thread_that_is_counted_for_the_first_time_says_nothing_yet() {
        let mut ration = Ration::new(begin());
        let times = ThreadTimes {
            ran: Duration::from_secs(9),
            waited: Duration::from_secs(9),
        };
        ration.look(begin() + LOOK_INTERVAL, vec![times]);
        assert_eq!(ration.thousandths, WHOLE);
    }
}

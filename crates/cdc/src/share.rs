//! How much of a processor the readers of changes take while those who serve want it.
//!
//! Readers work behind the writers. While processors are idle they go as fast as they can; once a
//! thread that serves is busy and has to wait for its processor, all readers of the node together
//! are held to a small share of one: what they have not read waits in the log, and is told a little
//! later. The share is never zero, so that readers go on on a machine that is always busy, and it
//! grows for a reader that stays behind, up to a limit, so that its backlog does not grow for ever.
//!
//! A reader asks before it reads, and again after every rest. While there is not enough for all,
//! each that asks is granted a little, and goes once everything granted before is made up for: they
//! go one after the other, in the order in which they asked, however many they are. What is owed is
//! forgotten once those who serve have time to spare.

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
/// Processor time that a reader is granted at once: rests are few and long rather than many and
/// short.
const GRANT: Duration = Duration::from_millis(3);
/// A rest that would be shorter is none.
const REST_MIN: Duration = Duration::from_millis(10);
/// Longest rest before a reader asks again.
const REST_MAX: Duration = Duration::from_millis(500);
/// Processor time for each reader beyond what it was granted: more is never to be made up for.
const OVERDRAFT_MAX: Duration = Duration::from_millis(100);

/// See the module. One for all readers of a node.
#[derive(Debug)]
pub struct Share {
    clock: Arc<dyn Clock>,
    /// Of the threads that serve.
    meters: Vec<ThreadMeter>,
    ration: Mutex<Ration>,
}

/// One reader among those who share.
#[derive(Debug)]
pub struct Reader {
    share: Arc<Share>,
    turn: Turn,
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

    /// A further reader.
    #[must_use]
    pub fn reader(self: &Arc<Self>) -> Reader {
        self.ration.lock().readers += 1;
        Reader {
            share: Arc::clone(self),
            turn: Turn::default(),
        }
    }

    /// Looks how those who serve are, if it is time to.
    fn look(&self, ration: &mut Ration, now: Instant) {
        ration.pay(now);
        if ration.is_due(now) {
            // One that cannot be read has ended, and waits for nothing.
            let times = self.meters.iter().map(|meter| meter.read());
            let times = times.map(Result::unwrap_or_default).collect();
            ration.look(now, times);
        }
    }
}

impl Reader {
    /// How long this reader is to rest before it asks again; zero: it may read on now. `behind` is
    /// for how long it has not caught up.
    pub fn rest(&mut self, behind: Duration) -> Duration {
        let now = self.share.clock.now();
        let mut ration = self.share.ration.lock();
        self.share.look(&mut ration, now);
        ration.rest(&mut self.turn, behind)
    }

    /// Notes processor time that this reader has spent.
    pub fn spend(&mut self, cost: Duration, behind: Duration) {
        let now = self.share.clock.now();
        let mut ration = self.share.ration.lock();
        ration.pay(now);
        ration.spend(&mut self.turn, cost, behind);
        self.share.look(&mut ration, now);
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.share.ration.lock().leave(&self.turn);
    }
}

/// Where one reader stands.
#[derive(Debug, Default)]
struct Turn {
    /// It waits until so much is made up for.
    waits_for: Option<Duration>,
    /// What it was granted and has not spent.
    allowance: Duration,
    /// What it had of a processor, in thousandths, when that was granted.
    least: u32,
}

/// The share as it is now. Processor time is counted as a reader has it that is not behind; to one
/// that has twice its share, half as much is charged.
#[derive(Debug)]
struct Ration {
    readers: u32,
    thousandths: u32,
    looked_at: Instant,
    times: Vec<ThreadTimes>,
    /// What readers have spent since.
    spent: Duration,
    /// All that was ever charged, and how much of it is made up for: never more than all.
    charged: Duration,
    paid: Duration,
    paid_at: Instant,
}

impl Ration {
    const fn new(now: Instant) -> Self {
        Self {
            readers: 0,
            thousandths: WHOLE,
            looked_at: now,
            times: Vec::new(),
            spent: Duration::ZERO,
            charged: Duration::ZERO,
            paid: Duration::ZERO,
            paid_at: now,
        }
    }

    fn is_due(&self, now: Instant) -> bool {
        LOOK_INTERVAL <= now.saturating_since(self.looked_at)
    }

    /// What has passed makes up for what was charged.
    fn pay(&mut self, now: Instant) {
        let passed = now.saturating_since(self.paid_at);
        self.paid_at = self.paid_at.max(now);
        let pays = passed * self.thousandths / WHOLE;
        self.paid = self.charged.min(self.paid + pays);
    }

    /// Takes in how long each thread that serves has run and waited.
    fn look(&mut self, now: Instant, times: Vec<ThreadTimes>) {
        let passed = now.saturating_since(self.looked_at);
        let (mut is_busy, mut is_crowded) = (false, false);
        for (now, before) in times.iter().zip(&self.times) {
            let ran = now.ran.saturating_sub(before.ran);
            let waited = now.waited.saturating_sub(before.waited);
            // It has no idle time to speak of.
            let is_one_busy = (ran + waited) * 10 >= passed * 9;
            is_busy |= is_one_busy;
            // And does not run all the time either.
            is_crowded |= is_one_busy && waited * 50 >= passed;
        }
        // That nobody waited while no reader ran says nothing of what happens when one does.
        let is_tried = self.spent * 50 >= passed;
        self.thousandths = if is_crowded {
            LEAST
        } else if !is_busy {
            // Twice as much for every interval with idle time.
            let looks = passed.as_nanos() / LOOK_INTERVAL.as_nanos();
            let looks = u32::try_from(looks).unwrap_or(u32::MAX).max(1);
            let factor = 1_u32.checked_shl(looks).unwrap_or(WHOLE);
            self.thousandths.saturating_mul(factor).min(WHOLE)
        } else if is_tried {
            self.thousandths.saturating_mul(2).min(WHOLE)
        } else {
            self.thousandths
        };
        if self.thousandths == WHOLE {
            self.paid = self.charged;
        }
        self.spent = Duration::ZERO;
        self.times = times;
        self.looked_at = now;
    }

    fn rest(&mut self, turn: &mut Turn, behind: Duration) -> Duration {
        if self.thousandths == WHOLE {
            *turn = Turn::default();
            return Duration::ZERO;
        }
        let waits_for = match turn.waits_for {
            Some(waits_for) => waits_for,
            None if !turn.allowance.is_zero() => return Duration::ZERO,
            None => {
                let before = self.charged;
                *turn = Turn {
                    waits_for: Some(before),
                    allowance: GRANT,
                    least: least(behind),
                };
                self.charged += charge(GRANT, turn.least);
                before
            }
        };
        let rest = waits_for.saturating_sub(self.paid) * WHOLE / self.thousandths.max(1);
        if rest < REST_MIN {
            turn.waits_for = None;
            return Duration::ZERO;
        }
        rest.min(REST_MAX)
    }

    fn spend(&mut self, turn: &mut Turn, cost: Duration, behind: Duration) {
        self.spent += cost;
        let over = cost.saturating_sub(turn.allowance);
        turn.allowance = turn.allowance.saturating_sub(cost);
        if self.thousandths == WHOLE {
            return;
        }
        let owed = self.charged.saturating_sub(self.paid);
        let owed_max = (GRANT + OVERDRAFT_MAX) * self.readers;
        let room = owed_max.saturating_sub(owed);
        self.charged += charge(over, least(behind)).min(room);
    }

    /// What a reader was granted and does not spend is nobody's debt.
    fn leave(&mut self, turn: &Turn) {
        self.readers -= 1;
        let unspent = charge(turn.allowance, turn.least.max(LEAST));
        self.paid = self.charged.min(self.paid + unspent);
    }
}

/// What is charged for processor time to a reader that has so many thousandths.
fn charge(cost: Duration, least: u32) -> Duration {
    cost * LEAST / least.max(1)
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

    /// One processor that readers share with a thread that serves.
    struct Processor {
        ration: Ration,
        now: Instant,
        begun: Instant,
        served: ThreadTimes,
        /// Each reader: its turn, when it asks next, what it has spent.
        readers: Vec<(Turn, Instant, Duration)>,
        debt_max: Duration,
    }

    impl Processor {
        fn new(readers: usize) -> Self {
            let begun = Instant::from_nanos(1_000_000_000);
            let reader = || (Turn::default(), begun, Duration::ZERO);
            Self {
                ration: Ration {
                    readers: u32::try_from(readers).unwrap(),
                    ..Ration::new(begun)
                },
                now: begun,
                begun,
                served: ThreadTimes::default(),
                readers: std::iter::repeat_with(reader).take(readers).collect(),
                debt_max: Duration::ZERO,
            }
        }

        /// Time passes, of which the thread that serves wants `demand` thousandths.
        fn pass(&mut self, span: Duration, is_read: bool, demand: u32) {
            let wants = span * demand / WHOLE;
            if is_read {
                self.served.waited += wants;
            } else {
                self.served.ran += wants;
            }
            self.now = self.now + span;
            self.ration.pay(self.now);
        }

        fn look(&mut self) {
            if self.ration.is_due(self.now) {
                self.ration.look(self.now, vec![self.served]);
            }
        }

        /// Readers that always want to go on, for a while; tells what they got in thousandths.
        fn run(&mut self, span: Duration, turn: Duration, demand: u32, behind: Duration) -> u32 {
            let from = self.now;
            let mut spent = Duration::ZERO;
            while self.now.saturating_since(from) < span {
                let next = (0..self.readers.len()).min_by_key(|at| self.readers[*at].1);
                let at = next.expect("there are readers");
                let idle = self.readers[at].1.saturating_since(self.now);
                if !idle.is_zero() {
                    self.pass(idle, false, demand);
                    self.look();
                }
                let rest = self.ration.rest(&mut self.readers[at].0, behind);
                if rest.is_zero() {
                    self.pass(turn, true, demand);
                    self.ration.spend(&mut self.readers[at].0, turn, behind);
                    self.look();
                    self.readers[at].2 += turn;
                    spent += turn;
                }
                self.readers[at].1 = self.now + rest;
                let debt = self.ration.charged - self.ration.paid;
                self.debt_max = self.debt_max.max(debt);
            }
            let share = spent.as_nanos() * 1000 / self.now.saturating_since(from).as_nanos();
            u32::try_from(share).unwrap()
        }
    }

    #[test]
    fn a_reader_beside_a_saturated_thread_has_its_least_and_no_less() {
        let mut processor = Processor::new(1);
        let share = processor.run(Duration::from_secs(20), TURN, WHOLE, Duration::ZERO);
        assert!((28..=36).contains(&share), "{share}");
    }

    #[test]
    fn many_readers_together_have_no_more_than_one_and_each_its_part() {
        for (count, turn) in [
            (50, TURN / 5),
            (50, TURN),
            (50, TURN * 10),
            (300, TURN * 10),
        ] {
            let mut processor = Processor::new(count);
            let share = processor.run(Duration::from_secs(500), turn, WHOLE, Duration::ZERO);
            assert!((28..=36).contains(&share), "{count} {turn:?} {share}");
            let spent = processor.readers.iter().map(|reader| reader.2);
            let (least, most) = (spent.clone().min().unwrap(), spent.max().unwrap());
            assert!(most <= least * 2 + turn, "{turn:?} {least:?} {most:?}");
            let debt_max = (GRANT * 2 + OVERDRAFT_MAX) * processor.ration.readers;
            assert!(processor.debt_max <= debt_max, "{:?}", processor.debt_max);
        }
    }

    #[test]
    fn fifty_readers_that_stay_behind_have_the_most_together() {
        let mut processor = Processor::new(50);
        let behind = Duration::from_secs(1000);
        let share = processor.run(Duration::from_secs(60), TURN, WHOLE, behind);
        assert!((216..=264).contains(&share), "{share}");
    }

    #[test]
    fn a_reader_that_stays_behind_has_more_up_to_a_limit() {
        for (behind, expected) in [(59, 30), (60, 60), (125, 120), (200, 240), (1_000_000, 240)] {
            let behind = Duration::from_secs(behind);
            assert_eq!(least(behind), expected);
            let mut processor = Processor::new(1);
            let share = processor.run(Duration::from_secs(20), TURN, WHOLE, behind);
            let about = expected * 9 / 10..=expected * 11 / 10 + 3;
            assert!(about.contains(&share), "{behind:?} {share}");
        }
    }

    #[test]
    fn nobody_rests_while_those_who_serve_have_idle_time_or_processors_of_their_own() {
        let mut processor = Processor::new(1);
        for (ran, waited) in [(300, 300), (1000, 5), (0, 0), (880, 10)] {
            for _ in 0..1000 {
                let turn = &mut processor.readers[0].0;
                assert_eq!(processor.ration.rest(turn, Duration::ZERO), Duration::ZERO);
                processor.ration.spend(turn, TURN, Duration::ZERO);
                processor.served.waited += TURN * waited / WHOLE;
                processor.pass(TURN, false, ran);
                processor.look();
            }
        }
    }

    #[test]
    fn when_the_load_ends_readers_go_at_full_speed_within_a_fraction_of_a_second() {
        for (count, turn) in [(1, TURN), (50, TURN), (50, TURN * 10)] {
            let mut processor = Processor::new(count);
            processor.run(Duration::from_secs(30), turn, WHOLE, Duration::ZERO);
            assert_eq!(processor.ration.thousandths, LEAST);
            let share = processor.run(Duration::from_secs(1), turn, 0, Duration::ZERO);
            assert!(450 <= share, "{count} {turn:?} {share}");
            assert_eq!(processor.ration.thousandths, WHOLE);
            assert_eq!(processor.ration.charged, processor.ration.paid);
        }
    }

    #[test]
    fn what_one_turn_spends_beyond_all_measure_is_made_up_for_only_in_part() {
        let mut processor = Processor::new(2);
        processor.run(Duration::from_secs(2), TURN, WHOLE, Duration::ZERO);
        let turn = &mut processor.readers[0].0;
        for _ in 0..10 {
            let hour = Duration::from_secs(3600);
            processor.ration.spend(turn, hour, Duration::ZERO);
        }
        let owed = processor.ration.charged - processor.ration.paid;
        assert!(owed <= (GRANT + OVERDRAFT_MAX) * 2, "{owed:?}");
        let share = processor.run(Duration::from_secs(60), TURN, WHOLE, Duration::ZERO);
        assert!((20..=36).contains(&share), "{share}");
    }

    #[test]
    fn a_reader_that_leaves_while_it_waits_holds_up_nobody() {
        let mut processor = Processor::new(2);
        processor.run(Duration::from_secs(2), TURN, WHOLE, Duration::ZERO);
        let before = processor.ration.charged - processor.ration.paid;
        for _ in 0..1000 {
            let mut turn = Turn::default();
            processor.ration.readers += 1;
            processor.ration.rest(&mut turn, Duration::ZERO);
            processor.ration.leave(&turn);
        }
        assert!(processor.ration.charged - processor.ration.paid <= before + GRANT);
    }

    #[test]
    fn a_thread_that_is_counted_for_the_first_time_says_nothing_yet() {
        let mut processor = Processor::new(1);
        let times = ThreadTimes {
            ran: Duration::from_secs(9),
            waited: Duration::from_secs(9),
        };
        let later = processor.begun + LOOK_INTERVAL;
        processor.ration.look(later, vec![times]);
        assert_eq!(processor.ration.thousandths, WHOLE);
    }
}

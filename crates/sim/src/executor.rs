//! Time and tasks of a simulated cluster, on one thread, from one seed.
//!
//! Every task belongs to a node (or to [`OUTSIDE`]: clients, the network, whoever breaks things).
//! Which of the tasks that can run runs next is drawn from the seed; when none can, time jumps to the
//! next timer. A paused node's tasks do not run while time goes on; a crashed one's are dropped
//! where they stand. What ran when is folded into a hash: two runs of one seed must agree on it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use flux_env::world::WorldTask;
use flux_env::{Instant, Rng, SeededRng, World};
use parking_lot::Mutex;

/// The node number of what belongs to no node.
pub(crate) const OUTSIDE: usize = usize::MAX;

/// Polls at one instant after which something is spinning.
const POLLS_AT_ONCE_MAX: u64 = 1_000_000;

/// How often a task that can be kept from its processor is, and for how long at most.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Stalls {
    /// One in so many times; 0 for never.
    pub(crate) one_in: u64,
    pub(crate) micros_max: u64,
}

/// How a node's monotonic clock runs: parts per million faster than true, from an origin.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// What it shows at true time zero, in nanoseconds.
    pub(crate) origin_nanos: u64,
    /// Faster (or slower) by so many parts per million.
    pub(crate) drift_ppm: i64,
}

impl Pace {
    const TRUE: Self = Self {
        origin_nanos: 0,
        drift_ppm: 0,
    };

    fn scale(nanos: u64, numerator: i64, denominator: i64) -> u64 {
        let scaled = i128::from(nanos) * i128::from(numerator) / i128::from(denominator.max(1));
        u64::try_from(scaled).unwrap_or(u64::MAX)
    }

    fn shown(self, truth: u64) -> u64 {
        self.origin_nanos + Self::scale(truth, 1_000_000 + self.drift_ppm, 1_000_000)
    }

    /// The first true time at which it shows at least this.
    fn truth(self, shown: u64) -> u64 {
        let elapsed = shown.saturating_sub(self.origin_nanos);
        let mut truth = Self::scale(elapsed, 1_000_000, 1_000_000 + self.drift_ppm);
        while self.shown(truth) < shown {
            truth += 1;
        }
        truth
    }
}

struct Timer {
    at: u64,
    number: u64,
    waker: Waker,
}

impl PartialEq for Timer {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Timer {}

impl PartialOrd for Timer {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Timer {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

struct Slot {
    node: usize,
    waker: Waker,
    /// Taken while it is polled.
    task: Option<WorldTask>,
}

struct State {
    now: u64,
    rng: SeededRng,
    tasks: BTreeMap<u64, Slot>,
    /// Tasks of paused nodes that could run.
    held: BTreeSet<u64>,
    paused: BTreeSet<usize>,
    paces: BTreeMap<usize, Pace>,
    timers: BinaryHeap<Reverse<Timer>>,
    counted: u64,
    current: usize,
    polls: u64,
    polls_at_once: u64,
    hash: u64,
    /// One in how many times that a task can be kept from its processor it is; 0: never.
    stalls: Stalls,
}

/// Task ids that can run, written to by wakers.
type Ready = Arc<Mutex<BTreeSet<u64>>>;

struct TaskWaker {
    id: u64,
    ready: Ready,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ready.lock().insert(self.id);
    }
}

/// See the module.
pub struct Executor {
    state: Mutex<State>,
    ready: Ready,
}

impl fmt::Debug for Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Executor").finish_non_exhaustive()
    }
}

/// Why a simulation cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stuck {
    /// A task panicked.
    #[error("a task panicked: {text}")]
    Panicked {
        /// Whose task it was; `usize::MAX` for what belongs to no node.
        node: usize,
        /// What it said.
        text: String,
    },
    /// Nothing can run and no timer is set.
    #[error("nothing is left to do")]
    Idle,
    /// Tasks run and time does not.
    #[error("tasks run on and on at one instant")]
    Spinning,
    /// It should have come to its end long ago.
    #[error("no end after {seconds} simulated seconds and {polls} polls")]
    Endless {
        /// Simulated time.
        seconds: u64,
        /// Polls of tasks.
        polls: u64,
    },
}

/// How long a simulation may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Simulated time.
    pub time: Duration,
    /// Polls of tasks.
    pub polls: u64,
}

impl Executor {
    /// A world at time zero.
    #[must_use]
    pub fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                now: 0,
                rng: SeededRng::new(seed),
                tasks: BTreeMap::new(),
                held: BTreeSet::new(),
                paused: BTreeSet::new(),
                paces: BTreeMap::new(),
                timers: BinaryHeap::new(),
                counted: 0,
                current: OUTSIDE,
                polls: 0,
                polls_at_once: 0,
                hash: 0xcbf2_9ce4_8422_2325,
                stalls: Stalls::default(),
            }),
            ready: Ready::default(),
        })
    }

    /// Lets tasks of nodes stall where they can.
    pub(crate) fn set_stalls(&self, stalls: Stalls) {
        self.state.lock().stalls = stalls;
    }

    /// True time since the beginning, in nanoseconds.
    pub(crate) fn true_nanos(&self) -> u64 {
        self.state.lock().now
    }

    /// Sets how a node's clock runs. Before its first task.
    pub(crate) fn set_pace(&self, node: usize, pace: Pace) {
        self.state.lock().paces.insert(node, pace);
    }

    /// What a node's monotonic clock shows.
    pub(crate) fn node_now(&self, node: usize) -> Instant {
        let state = self.state.lock();
        let pace = state.paces.get(&node).copied().unwrap_or(Pace::TRUE);
        Instant::from_nanos(pace.shown(state.now))
    }

    /// A number in `0..bound`.
    pub(crate) fn below(&self, bound: u64) -> u64 {
        self.state.lock().rng.below(bound)
    }

    /// Runs a task on behalf of a node.
    pub(crate) fn spawn_on(
        &self,
        node: usize,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> u64 {
        self.add(node, Box::pin(task))
    }

    fn add(&self, node: usize, task: WorldTask) -> u64 {
        let mut state = self.state.lock();
        state.counted += 1;
        let id = state.counted;
        let waker = Waker::from(Arc::new(TaskWaker {
            id,
            ready: Arc::clone(&self.ready),
        }));
        let slot = Slot {
            node,
            waker,
            task: Some(task),
        };
        state.tasks.insert(id, slot);
        self.ready.lock().insert(id);
        id
    }

    /// Stops a node's tasks from running until [`Executor::resume`].
    pub(crate) fn pause(&self, node: usize) {
        self.state.lock().paused.insert(node);
    }

    /// Lets a node go on.
    pub(crate) fn resume(&self, node: usize) {
        let mut state = self.state.lock();
        state.paused.remove(&node);
        let held = std::mem::take(&mut state.held);
        self.ready.lock().extend(held);
    }

    /// Drops every task of a node where it stands.
    pub(crate) fn kill(&self, node: usize) {
        let mut dead = Vec::new();
        {
            let mut state = self.state.lock();
            let ids: Vec<u64> = state
                .tasks
                .iter()
                .filter(|(_, slot)| slot.node == node)
                .map(|(id, _)| *id)
                .collect();
            for id in ids {
                dead.extend(state.tasks.remove(&id));
            }
            state.paused.remove(&node);
        }
        // Outside the lock: destructors wake others.
        drop(dead);
    }

    /// Folds something into the hash of what happened.
    pub(crate) fn note(&self, what: u64) {
        let mut state = self.state.lock();
        let now = state.now;
        state.fold(what);
        state.fold(now);
    }

    /// The hash of everything that happened so far.
    pub(crate) fn hash(&self) -> u64 {
        self.state.lock().hash
    }

    /// How many polls there were.
    pub(crate) fn polls(&self) -> u64 {
        self.state.lock().polls
    }

    /// Runs until it is done, or cannot go on.
    pub(crate) fn run_until(
        &self,
        bounds: Bounds,
        is_done: impl Fn() -> bool,
    ) -> Result<(), Stuck> {
        while !is_done() {
            match self.next() {
                Some(id) => self.poll(id, bounds.polls)?,
                None => self.advance(bounds.time)?,
            }
        }
        Ok(())
    }

    /// Chooses one of the tasks that can run.
    fn next(&self) -> Option<u64> {
        let mut state = self.state.lock();
        let mut ready = self.ready.lock();
        while !ready.is_empty() {
            let at = state.rng.below(ready.len() as u64);
            let id = ready
                .iter()
                .nth(usize::try_from(at).unwrap_or(0))
                .copied()?;
            ready.remove(&id);
            let Some(slot) = state.tasks.get(&id) else {
                continue;
            };
            if state.paused.contains(&slot.node) {
                state.held.insert(id);
                continue;
            }
            return Some(id);
        }
        None
    }

    fn poll(&self, id: u64, polls_max: u64) -> Result<(), Stuck> {
        let (mut task, node, waker) = {
            let mut state = self.state.lock();
            let Some(slot) = state.tasks.get_mut(&id) else {
                return Ok(());
            };
            let Some(task) = slot.task.take() else {
                return Ok(());
            };
            let (node, waker) = (slot.node, slot.waker.clone());
            state.current = node;
            state.polls += 1;
            state.polls_at_once += 1;
            let now = state.now;
            state.fold(id);
            state.fold(now);
            if POLLS_AT_ONCE_MAX < state.polls_at_once {
                return Err(Stuck::Spinning);
            }
            if polls_max < state.polls {
                return Err(state.endless());
            }
            (task, node, waker)
        };
        let mut context = Context::from_waker(&waker);
        let polled = catch_unwind(AssertUnwindSafe(|| task.as_mut().poll(&mut context)));
        let mut state = self.state.lock();
        state.current = OUTSIDE;
        match polled {
            Ok(poll) if poll.is_pending() => {
                // Gone if it was ended meanwhile; its drop comes after the lock.
                if let Some(slot) = state.tasks.get_mut(&id) {
                    slot.task = Some(task);
                    return Ok(());
                }
            }
            Ok(_) => {
                state.tasks.remove(&id);
            }
            Err(panic) => {
                let text = panic
                    .downcast_ref::<String>()
                    .cloned()
                    .or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string))
                    .unwrap_or_default();
                state.tasks.remove(&id);
                return Err(Stuck::Panicked { node, text });
            }
        }
        drop(state);
        drop(task);
        Ok(())
    }

    /// Lets time pass until the next timer.
    fn advance(&self, time_max: Duration) -> Result<(), Stuck> {
        let mut state = self.state.lock();
        let Some(Reverse(timer)) = state.timers.pop() else {
            return Err(Stuck::Idle);
        };
        if time_max < Duration::from_nanos(timer.at) {
            return Err(state.endless());
        }
        if state.now < timer.at {
            state.now = timer.at;
            state.polls_at_once = 0;
        }
        drop(state);
        timer.waker.wake();
        Ok(())
    }

    /// Drops all tasks, which may hold the executor.
    pub(crate) fn clear(&self) {
        loop {
            let (tasks, timers) = {
                let mut state = self.state.lock();
                (
                    std::mem::take(&mut state.tasks),
                    std::mem::take(&mut state.timers),
                )
            };
            // Destructors may spawn more.
            if tasks.is_empty() && timers.is_empty() {
                break;
            }
        }
    }
}

impl State {
    const fn endless(&self) -> Stuck {
        Stuck::Endless {
            seconds: self.now / 1_000_000_000,
            polls: self.polls,
        }
    }

    fn fold(&mut self, what: u64) {
        self.hash = (self.hash ^ what)
            .wrapping_mul(0x0000_0100_0000_01b3)
            .rotate_left(23);
    }
}

impl World for Executor {
    fn now(&self) -> Instant {
        let node = self.state.lock().current;
        self.node_now(node)
    }

    fn entropy(&self) -> u64 {
        self.state.lock().rng.next_u64()
    }

    fn stall(&self) -> Duration {
        let mut state = self.state.lock();
        let Stalls { one_in, micros_max } = state.stalls;
        if one_in == 0 || state.rng.below(one_in) != 0 {
            return Duration::ZERO;
        }
        Duration::from_micros(state.rng.below(micros_max))
    }

    fn spawn(&self, task: WorldTask) -> u64 {
        let node = self.state.lock().current;
        self.add(node, task)
    }

    fn abort(&self, task: u64) {
        let slot = self.state.lock().tasks.remove(&task);
        drop(slot);
    }

    fn wake_at(&self, at: Instant, waker: Waker) {
        let mut state = self.state.lock();
        let pace = state
            .paces
            .get(&state.current)
            .copied()
            .unwrap_or(Pace::TRUE);
        state.counted += 1;
        let timer = Timer {
            at: pace.truth(at.as_nanos()),
            number: state.counted,
            waker,
        };
        state.timers.push(Reverse(timer));
    }
}

/// Waits for true time to pass.
pub(crate) async fn sleep(executor: &Arc<Executor>, duration: Duration) {
    let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    let until = executor.true_nanos().saturating_add(nanos);
    let mut is_set = false;
    std::future::poll_fn(|context| {
        let mut state = executor.state.lock();
        if until <= state.now {
            return std::task::Poll::Ready(());
        }
        if !is_set {
            is_set = true;
            state.counted += 1;
            let timer = Timer {
                at: until,
                number: state.counted,
                waker: context.waker().clone(),
            };
            state.timers.push(Reverse(timer));
        }
        std::task::Poll::Pending
    })
    .await;
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const BOUNDS: Bounds = Bounds {
        time: Duration::from_secs(60),
        polls: 100_000,
    };

    #[test]
    fn what_never_ends_is_stopped_by_time_and_by_polls() {
        for step in [Duration::from_millis(100), Duration::from_micros(1)] {
            let executor = Executor::new(1);
            let world = Arc::clone(&executor);
            executor.spawn_on(3, async move {
                loop {
                    sleep(&world, step).await;
                }
            });
            let stuck = executor.run_until(BOUNDS, || false);
            assert!(matches!(stuck, Err(Stuck::Endless { .. })), "{stuck:?}");
            executor.clear();
        }
    }

    #[test]
    fn a_panic_is_told_with_its_node_and_the_others_can_go_on() {
        let executor = Executor::new(1);
        let quiet = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| ()));
        executor.spawn_on(3, async { panic!("on purpose") });
        let stuck = executor.run_until(BOUNDS, || false);
        std::panic::set_hook(quiet);
        let text = "on purpose".to_owned();
        assert_eq!(stuck, Err(Stuck::Panicked { node: 3, text }));
        assert_eq!(executor.run_until(BOUNDS, || false), Err(Stuck::Idle));
    }

    #[test]
    fn a_pace_maps_there_and_back() {
        for drift_ppm in [-50_000, -7, 0, 3, 40_000] {
            let pace = Pace {
                origin_nanos: 1_000,
                drift_ppm,
            };
            for truth in [0, 1, 999_999, 1_000_000_007, 86_400_000_000_000] {
                let shown = pace.shown(truth);
                let back = pace.truth(shown);
                assert!(
                    back <= truth && pace.shown(back) == shown,
                    "{drift_ppm} {truth}"
                );
            }
        }
    }

    #[test]
    fn a_paused_node_stands_still_while_time_passes_and_a_killed_one_is_dropped() {
        let executor = Executor::new(1);
        let steps: Arc<[AtomicUsize; 2]> = Arc::default();
        for node in [0, 1] {
            let (world, steps) = (Arc::clone(&executor), Arc::clone(&steps));
            executor.spawn_on(node, async move {
                loop {
                    sleep(&world, Duration::from_millis(10)).await;
                    steps[node].fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        let until = |millis: u64| {
            let done = Arc::new(AtomicUsize::new(0));
            let (world, flag) = (Arc::clone(&executor), Arc::clone(&done));
            executor.spawn_on(OUTSIDE, async move {
                sleep(&world, Duration::from_millis(millis)).await;
                flag.store(1, Ordering::SeqCst);
            });
            executor
                .run_until(BOUNDS, || done.load(Ordering::SeqCst) == 1)
                .unwrap();
        };
        let steps = || {
            (
                steps[0].load(Ordering::SeqCst),
                steps[1].load(Ordering::SeqCst),
            )
        };
        until(105);
        assert_eq!(steps(), (10, 10));
        executor.pause(0);
        until(100);
        assert_eq!(steps().0, 10);
        assert!(19 <= steps().1);
        executor.resume(0);
        executor.kill(1);
        let before = steps();
        until(100);
        assert!(before.0 + 9 <= steps().0);
        assert_eq!(before.1, steps().1);
        executor.clear();
    }
}

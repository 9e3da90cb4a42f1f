//! What runs the tasks of this room, openraft's included, and which clock they read.
//!
//! In the machine's world that is tokio, with instants of `CLOCK_BOOTTIME` (rule 8: leases must not
//! outlive a suspended machine). In a simulated one (`flux_env::world`) it is the simulation: tasks,
//! timers, chance and blocking work are its own, so that a run follows from its seed alone. Nothing
//! of this room calls tokio's clock or spawns by itself.

use std::future::Future;
use std::ops::{Add, AddAssign, Sub, SubAssign};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

pub use flux_env::TaskError;
use flux_env::{Elapsed, Timeout, World, boot_now, world};
pub(crate) use flux_env::{Sleep, blocking, pause, sleep, stall, timeout};
use futures_util::FutureExt;
use openraft::async_runtime::AsyncRuntime;
use openraft::impls::TokioRuntime;
use tokio::sync::oneshot;

use crate::core_task::guarded;

/// A task that was spawned. Dropping it lets the task run on.
#[derive(Debug)]
pub struct Task<T>(TaskKind<T>);

#[derive(Debug)]
enum TaskKind<T> {
    Real(tokio::task::JoinHandle<T>),
    Simulated {
        result: oneshot::Receiver<T>,
        id: u64,
        world: Arc<dyn World>,
    },
}

impl<T> Task<T> {
    /// Ends the task wherever it is.
    pub fn abort(&self) {
        match &self.0 {
            TaskKind::Real(handle) => handle.abort(),
            TaskKind::Simulated { id, world, .. } => world.abort(*id),
        }
    }
}

impl<T> Future for Task<T> {
    type Output = Result<T, TaskError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            TaskKind::Real(handle) => handle.poll_unpin(context).map_err(TaskError::from),
            TaskKind::Simulated { result, .. } => {
                result.poll_unpin(context).map_err(|_| TaskError::Cancelled)
            }
        }
    }
}

/// Runs a task on the current runtime or in the current world.
pub(crate) fn spawn<F>(task: F) -> Task<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    Task(match world() {
        None => TaskKind::Real(tokio::spawn(task)),
        Some(world) => {
            let (done, result) = oneshot::channel();
            let id = world.spawn(Box::pin(async move {
                drop(done.send(task.await));
            }));
            TaskKind::Simulated { result, id, world }
        }
    })
}

/// Where what is dropped may be freed slowly.
pub(crate) fn reclaimer<T: Send + 'static>() -> impl Fn(T) + Send + Sync + 'static {
    let runtime = world().is_none().then(tokio::runtime::Handle::current);
    move |dropped| match &runtime {
        Some(runtime) => drop(runtime.spawn_blocking(move || drop(dropped))),
        None => drop(dropped),
    }
}

/// openraft's instant: the boot clock of the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct CoreInstant(Duration);

impl Add<Duration> for CoreInstant {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }
}

impl AddAssign<Duration> for CoreInstant {
    fn add_assign(&mut self, duration: Duration) {
        *self = *self + duration;
    }
}

impl Sub<Duration> for CoreInstant {
    type Output = Self;

    fn sub(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(duration))
    }
}

impl SubAssign<Duration> for CoreInstant {
    fn sub_assign(&mut self, duration: Duration) {
        *self = *self - duration;
    }
}

impl Sub for CoreInstant {
    type Output = Duration;

    fn sub(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl openraft::Instant for CoreInstant {
    fn now() -> Self {
        Self(Duration::from_nanos(boot_now().as_nanos()))
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct CoreRuntime(TokioRuntime);

type Tokio = TokioRuntime;
/// Makes openraft's random numbers from a seed.
type Seeded = openraft_rt::deterministic_rng::DeterministicRng<Tokio>;

impl AsyncRuntime for CoreRuntime {
    type JoinError = TaskError;
    type JoinHandle<T: Send + 'static> = Task<T>;
    type Sleep = Sleep;
    type Instant = CoreInstant;
    type TimeoutError = Elapsed;
    type Timeout<R, T: Future<Output = R> + Send> = Timeout<T>;
    type ThreadLocalRng = <Seeded as AsyncRuntime>::ThreadLocalRng;
    type Mpsc = <Tokio as AsyncRuntime>::Mpsc;
    type Watch = <Tokio as AsyncRuntime>::Watch;
    type Oneshot = <Tokio as AsyncRuntime>::Oneshot;
    type Mutex<T: Send + 'static> = <Tokio as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + Send + 'static,
        T::Output: Send + 'static,
    {
        spawn(guarded("openraft", future))
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        sleep(deadline - <CoreInstant as openraft::Instant>::now())
    }

    fn timeout<R, F: Future<Output = R> + Send>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        Timeout::new(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + Send>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        Self::timeout(deadline - <CoreInstant as openraft::Instant>::now(), future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        *join_error == TaskError::Panicked
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        // For elections and first ticks. Without entropy the time must do: what matters is that not
        // all nodes campaign at once.
        let seed = flux_env::draw_u64().unwrap_or_else(|_| boot_now().as_nanos());
        let drawn = Seeded::scope(seed, async { Seeded::thread_rng() }).now_or_never();
        drawn.expect("drawing a number waits for nothing")
    }

    fn new(threads: usize) -> Self {
        Self(Tokio::new(threads))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }
}

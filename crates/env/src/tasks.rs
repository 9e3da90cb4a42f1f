//! Waiting, as tasks do it: in the machine's world by tokio, in a simulated one by its own time.
//!
//! Whoever waits here and nowhere else can be simulated. Blocking work is done at once in a
//! simulated world, after a moment of chance.

use std::fmt;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::Instant;
use crate::world::{World, world};

/// Why a task has no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TaskError {
    /// It was ended.
    #[error("the task was cancelled")]
    Cancelled,
    /// It panicked.
    #[error("the task panicked")]
    Panicked,
}

impl From<tokio::task::JoinError> for TaskError {
    fn from(error: tokio::task::JoinError) -> Self {
        if error.is_panic() {
            Self::Panicked
        } else {
            Self::Cancelled
        }
    }
}

/// Waits for time to pass; see [`sleep`].
pub struct Sleep(SleepKind);

enum SleepKind {
    Real(Pin<Box<tokio::time::Sleep>>),
    Simulated {
        until: Instant,
        world: Arc<dyn World>,
        told: Option<Waker>,
    },
}

impl fmt::Debug for Sleep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sleep").finish_non_exhaustive()
    }
}

/// Waits this long. Safe to drop.
///
/// # Panics
/// Outside a tokio runtime, unless in a simulated world.
#[must_use]
pub fn sleep(duration: Duration) -> Sleep {
    Sleep(match world() {
        None => SleepKind::Real(Box::pin(tokio::time::sleep(duration))),
        Some(world) => SleepKind::Simulated {
            until: world.now() + duration,
            world,
            told: None,
        },
    })
}

impl Sleep {
    /// Begins to wait again, this long from now.
    pub fn reset(&mut self, duration: Duration) {
        match &mut self.0 {
            SleepKind::Real(sleep) => {
                let until = tokio::time::Instant::now() + duration;
                sleep.as_mut().reset(until);
            }
            SleepKind::Simulated { until, world, told } => {
                *until = world.now() + duration;
                *told = None;
            }
        }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        match &mut self.0 {
            SleepKind::Real(sleep) => sleep.as_mut().poll(context),
            SleepKind::Simulated { until, world, told } => {
                if *until <= world.now() {
                    return Poll::Ready(());
                }
                let waker = context.waker();
                if !told.as_ref().is_some_and(|told| told.will_wake(waker)) {
                    *told = Some(waker.clone());
                    world.wake_at(*until, waker.clone());
                }
                Poll::Pending
            }
        }
    }
}

/// The time was over first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the time is over")]
pub struct Elapsed;

/// Waits for a future, but no longer than this. Safe to drop if the future is.
///
/// # Errors
/// If the time was over first.
///
/// # Panics
/// As [`sleep`].
pub async fn timeout<F: Future>(duration: Duration, future: F) -> Result<F::Output, Elapsed> {
    let mut future = pin!(future);
    let mut sleep = sleep(duration);
    tokio::select! {
        biased;
        output = &mut future => Ok(output),
        () = &mut sleep => Err(Elapsed),
    }
}

/// A future with a limit, by name.
#[derive(Debug)]
pub struct Timeout<F> {
    future: Pin<Box<F>>,
    sleep: Sleep,
}

impl<F: Future> Timeout<F> {
    /// As [`timeout`].
    ///
    /// # Panics
    /// As [`sleep`].
    pub fn new(duration: Duration, future: F) -> Self {
        Self {
            future: Box::pin(future),
            sleep: sleep(duration),
        }
    }
}

impl<F: Future> Future for Timeout<F> {
    type Output = Result<F::Output, Elapsed>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Poll::Ready(output) = self.future.as_mut().poll(context) {
            return Poll::Ready(Ok(output));
        }
        Pin::new(&mut self.sleep)
            .poll(context)
            .map(|()| Err(Elapsed))
    }
}

/// Does work that waits for a disk or takes long, where that holds nobody up.
///
/// # Errors
/// If it panicked or the runtime has ended.
///
/// # Panics
/// As [`sleep`].
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, TaskError> {
    if world().is_some() {
        pause().await;
        return Ok(work());
    }
    Ok(tokio::task::spawn_blocking(work).await?)
}

/// Lets others go on for a moment of chance in a simulated world; nothing in the machine's.
pub async fn pause() {
    /// Longest pause.
    const MICROS_MAX: u64 = 2_000;
    if let Some(world) = world() {
        sleep(Duration::from_micros(world.entropy() % MICROS_MAX)).await;
    }
}

/// Stands between two steps that nothing keeps together: in a simulated world, now and then, much
/// happens in between; in the machine's nothing.
pub async fn stall() {
    if let Some(world) = world() {
        let stall = world.stall();
        if !stall.is_zero() {
            sleep(stall).await;
        }
    }
}

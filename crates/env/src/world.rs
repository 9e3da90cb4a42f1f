//! The world that a thread lives in: the machine's, or a simulated one.
//!
//! Most of the program is handed its clock and disk. What cannot be handed anything (instants and
//! tasks that a library asks for by a static function) asks here, and gets the machine's unless a
//! simulation has been entered on this thread. A process that never enters one pays one load.

use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Waker;
use std::time::Duration;

use crate::{Instant, real};

/// A task as a world runs it.
pub type WorldTask = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A simulated world: time, tasks and chance of the node whose task runs.
pub trait World: fmt::Debug + Send + Sync {
    /// The node's monotonic instant.
    fn now(&self) -> Instant;

    /// 64 bits of chance, from the seed.
    fn entropy(&self) -> u64;

    /// How long the task that runs is kept from its processor between the two steps that it is at;
    /// mostly not at all.
    fn stall(&self) -> Duration;

    /// Runs a task on behalf of the node; answers its number.
    fn spawn(&self, task: WorldTask) -> u64;

    /// Ends a task wherever it is.
    fn abort(&self, task: u64);

    /// Wakes once the node's clock shows this instant.
    fn wake_at(&self, at: Instant, waker: Waker);
}

static ANY_ENTERED: AtomicBool = AtomicBool::new(false);

thread_local! {
    static WORLD: RefCell<Option<Arc<dyn World>>> = const { RefCell::new(None) };
}

/// The simulated world of this thread; `None` in the machine's.
#[must_use]
pub fn world() -> Option<Arc<dyn World>> {
    if !ANY_ENTERED.load(Ordering::Relaxed) {
        return None;
    }
    WORLD.with_borrow(Clone::clone)
}

/// Makes this thread live in a simulated world until the guard is dropped.
#[must_use]
pub fn enter_world(world: Arc<dyn World>) -> Entered {
    ANY_ENTERED.store(true, Ordering::Relaxed);
    let before = WORLD.replace(Some(world));
    Entered {
        before,
        stays_on_its_thread: PhantomData,
    }
}

/// While it lives, its thread lives in a simulated world.
#[derive(Debug)]
pub struct Entered {
    before: Option<Arc<dyn World>>,
    stays_on_its_thread: PhantomData<*const ()>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        drop(WORLD.replace(self.before.take()));
    }
}

/// The monotonic instant of this thread's world: `CLOCK_BOOTTIME`, or what is simulated.
#[must_use]
pub fn boot_now() -> Instant {
    world().map_or_else(
        || Instant::from_nanos(real::boot_nanos()),
        |world| world.now(),
    )
}

/// 64 bits that nobody can foretell, or in a simulated world the next of its seed.
///
/// # Errors
/// If the machine's entropy cannot be read.
pub fn draw_u64() -> std::io::Result<u64> {
    world().map_or_else(real::entropy_u64, |world| Ok(world.entropy()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Still;

    impl World for Still {
        fn now(&self) -> Instant {
            Instant::from_nanos(7)
        }

        fn entropy(&self) -> u64 {
            11
        }

        fn stall(&self) -> Duration {
            Duration::ZERO
        }

        fn spawn(&self, task: WorldTask) -> u64 {
            drop(task);
            0
        }

        fn abort(&self, _task: u64) {}

        fn wake_at(&self, _at: Instant, waker: Waker) {
            waker.wake();
        }
    }

    #[test]
    fn a_world_lasts_as_long_as_its_guard_and_is_seen_by_its_thread_alone() {
        assert!(7 < boot_now().as_nanos());
        let entered = enter_world(Arc::new(Still));
        assert_eq!(boot_now().as_nanos(), 7);
        assert_eq!(draw_u64().unwrap(), 11);
        let elsewhere = std::thread::spawn(boot_now).join().unwrap();
        assert!(7 < elsewhere.as_nanos());
        drop(entered);
        assert!(7 < boot_now().as_nanos());
    }
}

//! Core tasks: what replication cannot lose. A panic in one of them ends the process.
//!
//! A panic at the edge (one session, one request) ends that request; a panic here would leave a
//! shard that looks alive and answers nothing, or worse, answers from a half-changed state. So
//! every task of this room, openraft's included, is spawned through [`spawn_core`].

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::OnceLock;

use futures_util::FutureExt;

use crate::runtime::{Task, spawn};

/// What happens when a core task panics. Called on the panicking task's thread.
pub type AbortHook = fn();

static ABORT_HOOK: OnceLock<AbortHook> = OnceLock::new();

/// Replaces what a panic in a core task does, once per process; tests count instead of dying.
/// Answers whether this call set it.
pub fn set_abort_hook(hook: AbortHook) -> bool {
    ABORT_HOOK.set(hook).is_ok()
}

/// Runs what [`set_abort_hook`] set, else aborts the process.
fn abort() {
    match ABORT_HOOK.get() {
        Some(hook) => hook(),
        None => std::process::abort(),
    }
}

/// Spawns a task whose panic aborts the process: the panic hook has already printed where.
///
/// # Panics
/// Outside a tokio runtime, unless in a simulated world.
pub fn spawn_core<F>(name: &'static str, task: F) -> Task<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    spawn(guarded(name, task))
}

/// The task, wrapped so that a panic reaches the abort hook before it unwinds further.
pub(crate) async fn guarded<F: Future>(name: &'static str, task: F) -> F::Output {
    match AssertUnwindSafe(task).catch_unwind().await {
        Ok(output) => output,
        Err(panic) => {
            tracing::error!(task = name, "core task panicked: the process ends");
            abort();
            std::panic::resume_unwind(panic)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    static ABORTS: AtomicUsize = AtomicUsize::new(0);

    #[tokio::test]
    async fn a_panicking_core_task_reaches_the_abort_hook() {
        set_abort_hook(|| {
            ABORTS.fetch_add(1, Ordering::SeqCst);
        });
        let quiet = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| ()));
        let joined = spawn_core("test", async {
            if ABORTS.load(Ordering::SeqCst) == 0 {
                panic!("on purpose");
            }
        })
        .await;
        std::panic::set_hook(quiet);
        assert!(joined.is_err());
        assert_eq!(ABORTS.load(Ordering::SeqCst), 1);
    }
}

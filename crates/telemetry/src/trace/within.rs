//! Which trace the code that runs now belongs to, so that a log line can say so.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use crate::context::TraceContext;

thread_local! {
    static CURRENT: Cell<Option<TraceContext>> = const { Cell::new(None) };
}

/// The trace that this thread works for, if it is recorded.
#[must_use]
pub fn current() -> Option<TraceContext> {
    CURRENT.with(Cell::get)
}

/// A future during whose polls [`current`] answers a context.
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct Within<F> {
    context: Option<TraceContext>,
    future: F,
}

/// Lets a future run within a trace; without one it is only passed through. The caller pins it
/// (`std::pin::pin!`), so that nothing is allocated.
///
/// # Cancellation
/// As the future itself.
pub const fn within<F: Future + Unpin>(context: Option<TraceContext>, future: F) -> Within<F> {
    Within { context, future }
}

/// Runs something short within a trace.
pub fn during<T>(context: Option<TraceContext>, work: impl FnOnce() -> T) -> T {
    if context.is_none() {
        return work();
    }
    let _restore = Restore(CURRENT.with(|current| current.replace(context)));
    work()
}

/// Puts the former context back, also when the future panics.
struct Restore(Option<TraceContext>);

impl Drop for Restore {
    fn drop(&mut self) {
        CURRENT.with(|current| current.set(self.0));
    }
}

impl<F: Future + Unpin> Future for Within<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        if self.context.is_none() {
            return Pin::new(&mut self.future).poll(context);
        }
        let _restore = Restore(CURRENT.with(|current| current.replace(self.context)));
        Pin::new(&mut self.future).poll(context)
    }
}

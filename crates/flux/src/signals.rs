//! SIGTERM and SIGINT: the first asks for an orderly end, the second ends the process at once.

use std::future::Future;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Exit code after a second signal, as shells count SIGINT.
const EXIT_CODE: i32 = 130;

/// The two signals.
#[derive(Debug)]
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

/// What ended a wait.
#[derive(Debug)]
pub(crate) enum Waited<T> {
    /// One of the two signals.
    Signal,
    /// What was waited for beside them.
    Other(T),
}

impl Signals {
    /// From now on the signals no longer end the process by themselves.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for one of them.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Waits for one of them or for something else.
    pub(crate) async fn or<T>(&mut self, other: impl Future<Output = T>) -> Waited<T> {
        tokio::select! {
            () = self.next() => Waited::Signal,
            other = other => Waited::Other(other),
        }
    }

    /// Resolves at the first of them; the next then ends the process at once. Both are watched by a
    /// task of its own, so that they are heard even while the caller is busy.
    pub(crate) fn first(mut self) -> impl Future<Output = ()> + use<> {
        let (tell, told) = tokio::sync::oneshot::channel();
        tokio::spawn(async move {
            self.next().await;
            self.exit_on_the_next();
            // Whoever does not wait any more ends by itself.
            let _is_awaited = tell.send(()).is_ok();
        });
        async move {
            let _was_told = told.await.is_ok();
        }
    }

    /// Lets the next signal end the process at once, whatever it is doing.
    pub(crate) fn exit_on_the_next(mut self) {
        tokio::spawn(async move {
            self.next().await;
            // Whoever signals twice wants no destructor to be waited for.
            std::process::exit(EXIT_CODE);
        });
    }
}

//! What a panic says. Whether it ends a session or the process is decided where it is caught.

use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::error;

static COUNT: AtomicU64 = AtomicU64::new(0);

/// How many panics there were since [`install`], of any thread or task, caught or not.
pub(crate) fn count() -> u64 {
    COUNT.load(Ordering::Relaxed)
}

/// Sends panics to the log, with thread and place, instead of plain text to standard error.
pub(crate) fn install() {
    std::panic::set_hook(Box::new(|info: &PanicHookInfo<'_>| {
        COUNT.fetch_add(1, Ordering::Relaxed);
        let thread = std::thread::current();
        let place = info
            .location()
            .map_or_else(String::new, ToString::to_string);
        let message = info.payload_as_str().unwrap_or("no message");
        error!(
            thread = thread.name().unwrap_or("unnamed"),
            place, message, "panic"
        );
    }));
}

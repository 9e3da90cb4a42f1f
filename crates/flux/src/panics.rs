//! What a panic says. Whether it ends a session or the process is decided where it is caught.

use std::panic::PanicHookInfo;

use tracing::error;

/// Sends panics to the log, with thread and place, instead of plain text to standard error.
pub(crate) fn install() {
    std::panic::set_hook(Box::new(|info: &PanicHookInfo<'_>| {
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

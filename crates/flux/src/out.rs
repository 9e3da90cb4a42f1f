//! The two streams of the process. Results go to standard output, everything else to standard
//! error; a reader that has gone away is no error of ours.

use std::io::Write;

/// Writes to standard output.
pub(crate) fn text(text: &str) {
    write(&mut std::io::stdout().lock(), text);
}

/// Writes a line to standard output.
pub(crate) fn line(line: &str) {
    text(&format!("{line}\n"));
}

/// Writes bytes to standard output as they are.
pub(crate) fn bytes(bytes: &[u8]) {
    let mut stdout = std::io::stdout().lock();
    // The reader of a pipe may have seen enough.
    drop(stdout.write_all(bytes).and_then(|()| stdout.flush()));
}

/// Whether the user wants no colors (<https://no-color.org>).
pub(crate) fn is_plain() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

/// Says what went wrong, one line of standard error for each line of `message`.
pub(crate) fn problem(message: &str) {
    let mut text = String::new();
    for line in message.lines() {
        text.push_str(&format!("flux: {line}\n"));
    }
    write(&mut std::io::stderr().lock(), &text);
}

fn write(stream: &mut impl Write, text: &str) {
    // The reader of a pipe may have seen enough.
    drop(
        stream
            .write_all(text.as_bytes())
            .and_then(|()| stream.flush()),
    );
}

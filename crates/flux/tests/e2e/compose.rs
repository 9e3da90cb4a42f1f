//! The stack of `docker-compose.yml`, brought up and used by `deploy/test-compose` as
//! `docs/compose.md` says, with the image around the binary under test.

use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::harness::{FLUX, command, have, repository, skip};

/// What its exit code says where a machine cannot run it.
const SKIPPED: i32 = 77;
/// It takes two minutes on two cores that have nothing else to do, and four when it makes its
/// images first; it has patience of its own for each of its steps.
const PATIENCE: Duration = Duration::from_secs(25 * 60);

#[test]
fn the_stack_does_what_its_page_says() {
    const TEST: &str = "compose";
    if !have("python3", TEST) {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let output = folder.path().join("output.txt");
    let file = std::fs::File::create(&output).expect("a file for its output");
    let mut program = command(repository().join("deploy/test-compose"));
    program
        .args(["--binary", FLUX])
        .stdin(Stdio::null())
        .stdout(file.try_clone().expect("the file opens twice"))
        .stderr(file);
    if let Some(target) = std::env::var_os("CARGO_TARGET_DIR") {
        program.env("CARGO_TARGET_DIR", target);
    }
    let mut child = program.spawn().expect("it starts");
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            break status;
        }
        if Instant::now() > deadline {
            // It takes down what it has brought up.
            let pid = rustix::process::Pid::from_child(&child);
            let _was_there =
                rustix::process::kill_process(pid, rustix::process::Signal::TERM).is_ok();
            break child.wait().expect("a child can be waited for");
        }
        std::thread::park_timeout(Duration::from_millis(100));
    };
    let text = std::fs::read_to_string(&output).expect("it has written text");
    if status.code() == Some(SKIPPED) {
        let reason = text
            .lines()
            .find_map(|line| line.strip_prefix("SKIPPED compose: "));
        skip(TEST, reason.unwrap_or("it does not say why"));
        return;
    }
    assert!(status.success(), "{status}\n{text}");
    eprintln!("{text}");
}

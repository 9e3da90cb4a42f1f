//! A disk whose sync fails: nothing more is acknowledged, and the process ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::harness::resp::Value;
use crate::harness::{Process, Start, have};

/// Keys that were acknowledged, by writer.
type Acknowledged = Vec<Vec<String>>;

const WRITERS: usize = 4;

/// Writes from several connections until each has been refused or cut off, and then a little more.
/// Nothing that was asked after anybody saw the failure may be acknowledged.
fn write_until_refused(process: &Process) -> Acknowledged {
    let has_failed = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let mut connection = process.connect();
            let has_failed = Arc::clone(&has_failed);
            std::thread::spawn(move || {
                let mut acknowledged = Vec::new();
                let mut refusals = 0;
                for number in 0.. {
                    let key = format!("{writer}:{number}");
                    let was_known = has_failed.load(Ordering::SeqCst);
                    match connection.try_command(&["SET", &key, &format!("value of {key}")]) {
                        Ok(Value::Simple(ok)) => {
                            assert_eq!(ok, "OK");
                            assert!(!was_known, "{key} was acknowledged after a failed sync");
                            acknowledged.push(key);
                        }
                        Ok(Value::Error(_)) if refusals < 20 => {
                            has_failed.store(true, Ordering::SeqCst);
                            refusals += 1;
                        }
                        Ok(Value::Error(_)) | Err(_) => {
                            has_failed.store(true, Ordering::SeqCst);
                            return acknowledged;
                        }
                        Ok(other) => panic!("{other:?}"),
                    }
                }
                acknowledged
            })
        })
        .collect();
    writers
        .into_iter()
        .map(|writer| writer.join().expect("no writer is lied to"))
        .collect()
}

#[test]
fn after_a_failed_fsync_nothing_is_acknowledged_and_the_process_ends() {
    let name = "after_a_failed_fsync_nothing_is_acknowledged_and_the_process_ends";
    if !have("strace", name) {
        return;
    }
    // Counted by thread: the log's own is the only one that gets so far. `-D` keeps the process
    // our child.
    let strace = [
        "strace",
        "-D",
        "-f",
        "-qq",
        "-o",
        "strace.txt",
        "-e",
        "trace=fdatasync,fsync",
        "-e",
        "inject=fdatasync,fsync:error=EIO:when=60+",
    ];
    let mut process = Start::node()
        .args(&["--fsync", "always", "--shards", "1"])
        .under(&strace)
        .ready();
    let acknowledged = write_until_refused(&process);
    let count: usize = acknowledged.iter().map(Vec::len).sum();
    assert!(0 < count, "the disk worked for a while");
    let status = process.wait();
    assert_eq!(status.code(), Some(1), "{}", process.stderr());
    let stderr = process.stderr();
    let last = stderr.lines().last().unwrap_or_default();
    assert!(
        last.contains("the node cannot go on: ")
            && last.contains("sync failed: Input/output error"),
        "{stderr}"
    );
    assert!(!process.ready_file().exists(), "it is ready no longer");

    let restarted = Start::node()
        .args(&["--shards", "1"])
        .over(process.into_folder())
        .ready();
    let mut connection = restarted.connect();
    for key in acknowledged.iter().flatten() {
        assert_eq!(
            connection.command(&["GET", key]),
            Value::bulk(&format!("value of {key}")),
            "{key} was acknowledged"
        );
    }
    assert_eq!(connection.line("SET works again"), Value::ok());
}

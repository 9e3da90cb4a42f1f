//! A whole cluster in one process, and its leaders killed.

use std::time::Duration;

use rustix::process::Signal;

use crate::harness::resp::Value;
use crate::harness::{Start, wait_until};

#[test]
fn three_nodes_in_one_process_serve_and_restart_over_their_data() {
    let process = Start::all().args(&["--nodes", "3"]).ready();
    assert_eq!(process.connect().line("SET k v"), Value::ok());
    let ready = std::fs::read_to_string(process.ready_file()).expect("it is ready");
    assert!(ready.contains("\"peer\""), "{ready}");
    let process = Start::all()
        .args(&["--nodes", "3"])
        .over(process.stop())
        .ready();
    assert_eq!(process.connect().line("GET k"), Value::bulk("v"));
    let folder = process.stop();
    // What is several nodes' is not one's.
    let mut process = Start::all().over(folder).spawn();
    assert_eq!(process.wait().code(), Some(2), "{}", process.stderr());
}

#[test]
fn where_one_of_the_nodes_cannot_start_none_does() {
    let folder = tempfile::tempdir().expect("a folder");
    let foreign = folder.path().join("flux-data/node-2");
    std::fs::create_dir_all(&foreign).expect("a folder");
    std::fs::write(foreign.join("letters"), "").expect("a file");
    let mut process = Start::all().args(&["--nodes", "3"]).over(folder).spawn();
    assert_eq!(process.wait().code(), Some(2), "{}", process.stderr());
    let stderr = process.stderr();
    let last = stderr.lines().last().unwrap_or_default();
    assert!(
        last.starts_with("flux: node 2: data directory ") && last.contains("holds `letters`"),
        "{stderr}"
    );
}

#[test]
fn chaos_kills_leaders_loses_nothing_and_fails_where_a_node_does_not_come_back() {
    let mut process = Start::all().args(&["--chaos"]).ready();
    let mut line = String::new();
    wait_until("a leader was killed and the round judged", || {
        line = process.line(Duration::from_secs(30));
        line.contains("acknowledged") && !line.ends_with(" 0 leaders killed")
    });
    assert!(line.contains(" 0 lost · 0 stale · "), "{line}");
    let acknowledged = line
        .split(' ')
        .next()
        .and_then(|count| count.parse::<u64>().ok());
    assert!(100 < acknowledged.unwrap_or(0), "{line}");
    // Over the same folder again, where keys of the first run are left.
    let mut process = Start::all().args(&["--chaos"]).over(process.stop()).ready();
    for node in ["node-2", "node-3"] {
        let member = process.folder().join("flux-data").join(node).join("MEMBER");
        std::fs::write(member, "nonsense").expect("the node has one");
    }
    assert_eq!(process.wait().code(), Some(1), "{}", process.stderr());
    let stderr = process.stderr();
    assert!(!stderr.contains("not linearizable"), "{stderr}");
    let last = stderr.lines().last().unwrap_or_default();
    assert!(
        last.contains(" did not come back after it was killed: "),
        "{stderr}"
    );
}

#[test]
fn chaos_that_judged_nothing_is_no_success() {
    let mut process = Start::all().args(&["--chaos"]).ready();
    process.signal(Signal::TERM);
    assert_eq!(process.wait().code(), Some(1), "{}", process.stderr());
    let stderr = process.stderr();
    let last = stderr.lines().last().unwrap_or_default();
    assert!(
        last.starts_with("flux: ended before the first round was judged: "),
        "{stderr}"
    );
}

//! A whole cluster in one process, and its leaders killed.

use std::time::Duration;

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
fn chaos_kills_leaders_and_loses_nothing() {
    let mut process = Start::all().args(&["--chaos"]).ready();
    let mut line = String::new();
    wait_until("a leader was killed and the round judged", || {
        line = process.line(Duration::from_secs(30));
        line.contains("acknowledged") && !line.ends_with(" 0 leaders killed")
    });
    assert!(line.contains(" 0 lost · 0 stale "), "{line}");
    let acknowledged = line
        .split(' ')
        .next()
        .and_then(|count| count.parse::<u64>().ok());
    assert!(100 < acknowledged.unwrap_or(0), "{line}");
    process.stop();
}

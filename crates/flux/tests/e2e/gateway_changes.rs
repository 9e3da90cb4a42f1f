//! The change stream through the gateway: a route in the shipped configuration, and nothing else.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};

use crate::harness::{PATIENCE, Process, Start, command, have};

/// `curl -N` under way; killed when dropped.
struct Curl {
    child: Child,
    lines: Receiver<String>,
}

impl Curl {
    fn open(address: SocketAddr, path: &str, headers: &[&str]) -> Self {
        let mut command = command("curl");
        command.args(["-sSN", "--fail-with-body"]);
        for header in headers {
            command.args(["-H", header]);
        }
        command.arg(format!("http://{address}{path}"));
        let mut child = command.stdout(Stdio::piped()).spawn().expect("curl starts");
        let stdout = child.stdout.take().expect("standard output is piped");
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                // The test may have stopped listening.
                drop(sender.send(line));
            }
        });
        Self { child, lines }
    }

    /// The next line that is neither empty nor a sign of life.
    fn line(&self) -> String {
        loop {
            let line = self.lines.recv_timeout(PATIENCE).expect("a line in time");
            if !line.is_empty() && !line.starts_with(':') {
                return line;
            }
        }
    }

    /// Cursor, key and value of the next change of a key.
    fn change(&self) -> (String, String, String) {
        loop {
            let id = self.line();
            let cursor = id.strip_prefix("id: ").expect("an id first").to_owned();
            let line = self.line();
            let data = line.strip_prefix("data: ").expect("data then");
            let event: serde_json::Value = serde_json::from_str(data).expect("JSON");
            assert_eq!(event["specversion"], "1.0", "{event}");
            if event["type"] == "io.fluxkv.kv.set.v1" {
                let after = &event["data"]["after"];
                let text = |name: &str| after[name].as_str().unwrap_or_default().to_owned();
                return (cursor, text("key"), text("value"));
            }
        }
    }
}

impl Drop for Curl {
    fn drop(&mut self) {
        let _was_running = self.child.kill().is_ok();
        let _has_ended = self.child.wait().is_ok();
    }
}

fn set(process: &Process, key: &str, value: &str) {
    let reply = process.connect().line(&format!("SET {key} {value}"));
    assert_eq!(reply, crate::harness::resp::Value::Simple("OK".to_owned()));
}

#[test]
fn changes_are_streamed_and_resumed_by_the_id_of_the_last_event() {
    if !have("curl", "the change stream through the gateway") {
        return;
    }
    let process = Start::all().ready();
    set(&process, "user:1", "a");
    let curl = Curl::open(
        process.http(),
        "/api/v1/cdc?from=earliest&prefix=user:",
        &[],
    );
    let (first, key, value) = curl.change();
    assert_eq!((key.as_str(), value.as_str()), ("user:1", "a"));
    set(&process, "other", "x");
    set(&process, "user:2", "b");
    let (_, key, value) = curl.change();
    assert_eq!((key.as_str(), value.as_str()), ("user:2", "b"));
    drop(curl);
    set(&process, "user:3", "c");
    // As a browser does it: the same address, and the id of the last event it has handled.
    let resume = format!("last-event-id: {first}");
    let curl = Curl::open(
        process.http(),
        "/api/v1/cdc?from=earliest&prefix=user:",
        &[&resume],
    );
    let seen: Vec<_> = (0..2).map(|_| curl.change().1).collect();
    assert_eq!(seen, ["user:2", "user:3"]);
    let lines = Curl::open(
        process.http(),
        "/api/v1/cdc?from=earliest&prefix=user:",
        &["accept: application/x-ndjson"],
    );
    let subject = loop {
        let event: serde_json::Value = serde_json::from_str(&lines.line()).expect("JSON");
        if event["type"] == "io.fluxkv.kv.set.v1" {
            break event["subject"].clone();
        }
    };
    assert_eq!(subject, "user:1");
}

#[test]
fn the_gateway_and_the_node_show_the_same_events() {
    if !have("curl", "the change stream through the gateway") {
        return;
    }
    let process = Start::all().ready();
    for number in 0..5 {
        set(&process, &format!("k{number}"), &number.to_string());
    }
    let path = "/api/v1/cdc?from=earliest";
    // Progress events tell the time; changes are the same wherever they are read.
    let changes =
        |curl: &Curl| -> Vec<(String, String, String)> { (0..5).map(|_| curl.change()).collect() };
    let ours = changes(&Curl::open(process.http(), path, &[]));
    let theirs = changes(&Curl::open(process.admin(), path, &[]));
    assert_eq!(ours, theirs);
}

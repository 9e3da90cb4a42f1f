//! The change stream of the real binary: nothing committed is missed over `kill -9`, a follower
//! costs no memory, and `flux cli watch` shows it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::Output;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value as Json;

use crate::harness::resp::{Connection, Value, encode};
use crate::harness::{FLUX, PATIENCE, Process, Start, command, run, shell, stdout, wait_until};

/// Lines of JSON from the admin port, until the node goes away.
pub(crate) struct Lines(BufReader<TcpStream>);

impl Lines {
    pub(crate) fn open(admin: SocketAddr, query: &str) -> std::io::Result<Self> {
        let mut stream = TcpStream::connect(admin)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let request =
            format!("GET /api/v1/cdc?{query} HTTP/1.0\r\naccept: application/x-ndjson\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        assert!(line.is_empty() || line.contains("200"), "{line}");
        while line.trim() != "" {
            line.clear();
            reader.read_line(&mut line)?;
        }
        Ok(Self(reader))
    }

    /// `None`: the node is gone.
    pub(crate) fn next(&mut self) -> Option<Json> {
        let mut line = String::new();
        match self.0.read_line(&mut line) {
            Ok(read) if 0 < read && line.ends_with('\n') => {
                Some(serde_json::from_str(&line).expect("a line is JSON"))
            }
            _ => None,
        }
    }
}

pub(crate) fn word(event: &Json) -> &str {
    let name = event["type"].as_str().expect("a type");
    name.strip_prefix("io.fluxkv.kv.")
        .unwrap_or(name)
        .trim_end_matches(".v1")
}

/// What a consumer of server-sent events keeps: everything it saw, and its last id.
#[derive(Default)]
struct Consumer {
    events: Vec<Json>,
    last_id: String,
}

impl Consumer {
    /// Follows until the node goes away or `enough`.
    fn follow(&mut self, admin: SocketAddr, enough: impl Fn(&Json) -> bool) -> bool {
        let Ok(mut stream) = TcpStream::connect(admin) else {
            return false;
        };
        stream
            .set_read_timeout(Some(PATIENCE))
            .expect("a socket option");
        let resume = if self.last_id.is_empty() {
            String::new()
        } else {
            format!("last-event-id: {}\r\n", self.last_id)
        };
        let request = format!("GET /api/v1/cdc?from=earliest HTTP/1.0\r\n{resume}\r\n");
        if stream.write_all(request.as_bytes()).is_err() {
            return false;
        }
        let mut id = String::new();
        let mut data = String::new();
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            if let Some(cursor) = line.strip_prefix("id: ") {
                cursor.clone_into(&mut id);
            } else if let Some(json) = line.strip_prefix("data: ") {
                json.clone_into(&mut data);
            } else if line.is_empty() && !data.is_empty() {
                let event: Json = serde_json::from_str(&data).expect("data is JSON");
                data.clear();
                // As a consumer that dies now and then does: seen, and not noted as seen.
                if !self.events.len().is_multiple_of(97) {
                    self.last_id.clone_from(&id);
                }
                let is_enough = enough(&event);
                self.events.push(event);
                if is_enough {
                    return true;
                }
            }
        }
        false
    }
}

/// The first so many changes as server-sent events: each with its id.
pub(crate) fn events(address: SocketAddr, headers: &str, count: usize) -> Vec<(String, Json)> {
    let mut stream = TcpStream::connect(address).expect("the port accepts");
    stream
        .set_read_timeout(Some(PATIENCE))
        .expect("a socket option");
    let request = format!(
        "GET /api/v1/cdc?from=earliest HTTP/1.1\r\nhost: x\r\naccept: text/event-stream\r\n{headers}\r\n"
    );
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut id = String::new();
    let mut found = Vec::new();
    // Sizes of chunks stand between, on lines of their own.
    for line in BufReader::new(stream).lines().map_while(Result::ok) {
        if let Some(cursor) = line.strip_prefix("id: ") {
            cursor.clone_into(&mut id);
        } else if let Some(json) = line.strip_prefix("data: ") {
            let event: Json = serde_json::from_str(json).expect("data is JSON");
            if word(&event) != "io.fluxkv.cdc.progress" {
                found.push((id.clone(), event));
            }
        }
        if found.len() == count {
            break;
        }
    }
    found
}

#[test]
fn the_gateway_shows_the_events_that_the_node_shows_and_resumes_them() {
    let process = Start::all().ready();
    let mut connection = process.connect();
    for line in [
        "SET user:1 Anna EX 100",
        "MSET a 1 b 2",
        "APPEND a 3",
        "DEL b",
        "PERSIST user:1",
    ] {
        connection.line(line);
    }
    connection.command(&[b"SET".as_slice(), b"\xff", b"\xfe\r\n"]);
    connection.line("FLUSHALL");
    let (node, gateway) = (process.admin(), process.http());
    let expected = events(node, "", 8);
    assert_eq!(events(gateway, "", 8), expected);
    let (cursor, _) = &expected[4];
    let resume = format!("last-event-id: {cursor}\r\n");
    assert_eq!(events(gateway, &resume, 3), expected[5..]);
    assert_eq!(events(node, &resume, 3), expected[5..]);
}

/// Writes numbered keys until told to stop; each is acknowledged or may have been written.
fn write_until(stop: &AtomicBool, address: SocketAddr, number: &AtomicU64) -> BTreeSet<u64> {
    let mut acknowledged = BTreeSet::new();
    let mut connection = Connection::open(address);
    while !stop.load(Ordering::SeqCst) {
        let first = number.fetch_add(8, Ordering::SeqCst);
        let numbers = first..first + 8;
        let commands = numbers
            .clone()
            .flat_map(|number| encode(&["SET", &format!("n:{number}"), &number.to_string()]));
        let commands: Vec<u8> = commands.collect();
        if connection.send(&commands).is_err() {
            break;
        }
        for number in numbers {
            match connection.reply() {
                Ok(reply) if reply == Value::ok() => acknowledged.insert(number),
                _ => return acknowledged,
            };
        }
    }
    acknowledged
}

#[test]
fn a_follower_misses_nothing_that_was_acknowledged_over_kill_9() {
    let mut process = Start::node().args(&["--shards", "1"]).ready();
    let number = AtomicU64::new(0);
    let mut acknowledged = BTreeSet::new();
    let mut consumer = Consumer::default();
    for round in 0..4 {
        let stop = AtomicBool::new(false);
        let (address, admin) = (process.resp(), process.admin());
        let at_least = 300 * (round + 1);
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| write_until(&stop, address, &number));
            let following = scope.spawn(|| consumer.follow(admin, |_| false));
            wait_until("writes", || at_least < number.load(Ordering::SeqCst));
            process.signal(rustix::process::Signal::KILL);
            acknowledged.extend(writer.join().expect("the writer ends"));
            assert!(!following.join().expect("the follower ends"));
        });
        process.wait();
        process = Start::node().over(process.into_folder()).ready();
    }
    assert_eq!(process.connect().line("SET last 1"), Value::ok());
    while !consumer.follow(process.admin(), |event| event["subject"] == "last") {}
    // In order and without doubles once those that came again are left out.
    let mut seen = BTreeMap::new();
    let mut highest = 0;
    for event in consumer.events.iter().filter(|event| word(event) == "set") {
        let id = event["id"].as_str().expect("an id").to_owned();
        let revision: u64 = event["sequence"]
            .as_str()
            .and_then(|text| text.parse().ok())
            .expect("a number");
        let is_new = seen.insert(id, event["subject"].clone()).is_none();
        assert!(!is_new || highest < revision, "{event}");
        highest = highest.max(revision);
    }
    let told: BTreeSet<&str> = seen.values().filter_map(Json::as_str).collect();
    assert_eq!(
        told.len(),
        seen.len(),
        "each key was written once, so each has one id"
    );
    let missed: Vec<_> = acknowledged
        .iter()
        .filter(|number| !told.contains(format!("n:{number}").as_str()))
        .collect();
    assert!(missed.is_empty(), "{missed:?}");
    // And nothing that is not in the store.
    let mut connection = process.connect();
    for key in told {
        assert_ne!(connection.command(&["GET", key]), Value::Nil, "{key}");
    }
    assert!(acknowledged.len() > 1000, "{}", acknowledged.len());
}

#[test]
fn an_expiry_is_told_when_it_is_due() {
    let process = Start::node().args(&["--shards", "1"]).ready();
    let mut lines = Lines::open(process.admin(), "from=now").expect("a stream");
    assert!(lines.next().is_some(), "the beginning");
    process.connect().line("SET k v PX 300");
    let due = Instant::now() + Duration::from_millis(300);
    loop {
        let event = lines.next().expect("an event");
        if word(&event) == "expired" {
            assert_eq!(event["data"]["before"]["key"], "k");
            assert_eq!(event["data"]["reason"], "expired");
            break;
        }
    }
    // 50 ms at rest; this machine may not be.
    let late = Instant::now().saturating_duration_since(due);
    assert!(late < Duration::from_secs(5), "{late:?}");
}

#[test]
fn a_follower_that_stops_reading_costs_no_memory_and_slows_nobody() {
    let process = Start::node()
        .args(&["--shards", "1", "--fsync", "never"])
        .ready();
    let write = |rounds: usize| {
        let mut connection = process.connect();
        let value = "v".repeat(100);
        for _ in 0..rounds {
            let commands: Vec<u8> = (0..500)
                .flat_map(|_| encode(&["SET", "k", &value]))
                .collect();
            connection.send(&commands).expect("the node reads");
            for _ in 0..500 {
                assert_eq!(connection.reply().expect("a reply"), Value::ok());
            }
        }
    };
    // What recent entries take is taken with or without a follower.
    write(60);
    let before = process.memory_bytes();
    let stopped: Vec<Lines> = (0..4)
        .map(|_| Lines::open(process.admin(), "from=earliest").expect("a stream"))
        .collect();
    write(60);
    let grown = process.memory_bytes().saturating_sub(before);
    assert!(
        grown < 64 * 1024 * 1024,
        "{grown} bytes for 30,000 changes and four that do not read"
    );
    // Whoever begins to read again gets all of it.
    let mut lines = stopped.into_iter().next().expect("four of them");
    let mut changes = 0;
    while changes < 60_000 {
        let event = lines.next().expect("an event");
        changes += usize::from(word(&event) == "set");
    }
}

fn watch(process: &Process, args: &[&str]) -> Output {
    let grpc = process
        .addresses()
        .grpc
        .expect("a node has gRPC")
        .port()
        .to_string();
    let mut command = command(FLUX);
    command
        .args(["cli", "watch", "--grpc-port", &grpc])
        .args(args);
    run(&mut command, b"")
}

#[test]
fn the_command_line_follows_a_prefix_and_ends_after_so_many_changes() {
    let process = Start::node().args(&["--shards", "1"]).ready();
    let mut connection = process.connect();
    for line in [
        "SET user:1 Anna",
        "SET other x",
        "MSET user:2 B user:3 C",
        "DEL user:1",
    ] {
        connection.line(line);
    }
    let text = stdout(&watch(
        &process,
        &["user:", "--from", "earliest", "--count", "4"],
    ));
    let events: Vec<Json> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let short: Vec<String> = events
        .iter()
        .map(|event| {
            format!(
                "{} {}",
                word(event),
                event["subject"].as_str().unwrap_or("-")
            )
        })
        .collect();
    assert_eq!(
        short,
        ["set user:1", "set user:2", "set user:3", "delete user:1"]
    );
    assert_eq!(
        events[1]["data"]["transaction"]["id"],
        events[2]["data"]["transaction"]["id"]
    );
    let snapshot = stdout(&watch(&process, &["--from=snapshot", "--count=3"]));
    assert_eq!(snapshot.lines().count(), 3, "{snapshot}");
    let refused = watch(&process, &["--from", "yesterday"]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let mistake = watch(&process, &["--since", "now"]);
    assert_eq!(mistake.status.code(), Some(2), "{mistake:?}");
}

#[test]
fn history_goes_after_snapshots_as_configured_and_an_old_cursor_is_told_so() {
    let args = [
        "--shards",
        "1",
        "--fsync",
        "never",
        "--segment-size",
        "1MiB",
        "--snapshot-log-size",
        "1MiB",
        "--retention-bytes",
        "2MiB",
        "--pinned-bytes-max",
        "2MiB",
    ];
    let process = Start::node().args(&args).ready();
    let mut lines = Lines::open(process.admin(), "from=now").expect("a stream");
    let begin = lines.next().expect("the beginning");
    let cursor = begin["data"]["cursor"]
        .as_str()
        .expect("a cursor")
        .to_owned();
    drop(lines);
    let mut connection = process.connect();
    let value = "v".repeat(100_000);
    let status = |connection: &mut Connection| {
        for _ in 0..10 {
            assert_eq!(connection.command(&["SET", "k", &value]), Value::ok());
        }
        let mut stream = TcpStream::connect(process.admin()).expect("the port accepts");
        let request = format!("GET /api/v1/cdc?cursor={cursor} HTTP/1.0\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("it reads");
        let mut line = String::new();
        BufReader::new(stream)
            .read_line(&mut line)
            .expect("an answer");
        line
    };
    wait_until("the cursor to be too old", || {
        status(&mut connection).contains("410")
    });
    let metrics = shell(&format!("curl -fsS http://{}/metrics", process.admin()));
    let retained = metrics
        .lines()
        .find_map(|line| line.strip_prefix("flux_log_retained_bytes "));
    let retained: f64 = retained
        .and_then(|text| text.parse().ok())
        .expect("a number");
    assert!(
        0.0 < retained && retained <= 2.0 * 1024.0 * 1024.0,
        "{retained}"
    );
}

//! Stopping: what is in hand is finished, and a second signal ends the waiting.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::harness::resp::{Value, encode};
use crate::harness::{Process, Start};

/// Sends so many large requests, without reading a reply, that the node cannot get rid of them.
fn stuff(process: &Process) -> crate::harness::resp::Connection {
    let mut connection = process.connect();
    let value = "v".repeat(1_000_000);
    assert_eq!(connection.command(&["SET", "large", &value]), Value::ok());
    connection
        .send(&encode(&["GET", "large"]).repeat(50))
        .expect("the node reads");
    // The first bytes of the first reply show that the node is at it.
    connection.peek();
    connection
}

#[test]
fn a_signal_finishes_what_is_in_hand_and_exits_with_success() {
    for signal in [Signal::TERM, Signal::INT] {
        for shards in ["1", "4"] {
            let mut process = Start::all().args(&["--shards", shards]).ready();
            let mut idle = process.connect();
            assert_eq!(idle.line("PING"), Value::Simple("PONG".to_owned()));
            let mut busy = process.connect();
            busy.send(&encode(&["INCR", "n"]).repeat(500))
                .expect("the node reads");
            assert_eq!(busy.reply().expect("the first reply"), Value::Integer(1));
            let begun = Instant::now();
            process.signal(signal);
            // Every request that was read is answered, in order; the rest sees the connection end.
            let mut last = 1;
            while let Ok(Value::Integer(number)) = busy.reply() {
                assert_eq!(number, last + 1);
                last = number;
            }
            assert_eq!(process.wait().code(), Some(0), "{}", process.stderr());
            assert!(
                begun.elapsed() < Duration::from_secs(9),
                "idle connections do not hold it up"
            );
            assert!(idle.rest().is_empty());
            assert!(!process.ready_file().exists());
            assert!(TcpStream::connect(process.resp()).is_err());
            let again = Start::all().over(process.into_folder()).ready();
            let Value::Bulk(found) = again.connect().line("GET n") else {
                panic!("the counter is gone")
            };
            let found: i64 = String::from_utf8_lossy(&found).parse().expect("a number");
            assert!(found >= last, "{found} of {last} acknowledged");
        }
    }
}

#[test]
fn a_second_signal_exits_at_once_with_130() {
    let mut process = Start::all().args(&["--drain-timeout", "1h"]).ready();
    let _connection = stuff(&process);
    process.signal(Signal::TERM);
    // Stopping to accept is the first thing a drain does.
    crate::harness::wait_until("the listener closes", || {
        TcpStream::connect(process.resp()).is_err()
    });
    process.signal(Signal::INT);
    assert_eq!(process.wait().code(), Some(130), "{}", process.stderr());
}

#[test]
fn a_drain_ends_with_its_timeout() {
    let mut process = Start::all().args(&["--drain-timeout", "200ms"]).ready();
    let _connection = stuff(&process);
    process.signal(Signal::TERM);
    assert_eq!(process.wait().code(), Some(0), "{}", process.stderr());
}

#[test]
fn a_signal_while_starting_ends_the_start() {
    let mut process = Start::all().spawn();
    process.signal(Signal::TERM);
    let code = process.wait();
    // Before the handler is there the signal ends the process by itself.
    assert!(
        code.code() == Some(0) || code.code().is_none(),
        "{code}: {}",
        process.stderr()
    );
    assert!(!process.ready_file().exists());
}

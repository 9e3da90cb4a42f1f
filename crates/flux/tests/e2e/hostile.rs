//! Bytes that no honest client sends: a clear error or the end of that connection, bounded memory,
//! and nobody else notices.

use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use flux_wire::flux::frame::write_frame;
use flux_wire::flux::{Header, Kind, Operation, PREFACE_BYTES, Preface};

use crate::harness::resp::{Connection, Value, encode};
use crate::harness::{Process, Start, wait_until};

/// What a node may take more after all of this than before. The bound is on the order of what the
/// bytes sent would justify, far below what they claim.
const GROWTH_BYTES_MAX: u64 = 96 << 20;

/// A client that counts, as a witness that others are unaffected.
struct Witness {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<i64>>,
}

impl Witness {
    fn begin(process: &Process) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut connection = process.connect();
        let flag = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut count = 0;
            while !flag.load(Ordering::Relaxed) {
                count += 1;
                assert_eq!(connection.line("INCR witness"), Value::Integer(count));
            }
            count
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }

    fn end(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("joined once");
        assert!(thread.join().expect("its assertions") > 0);
    }
}

/// Sends bytes; the node must say something that begins so, and close.
fn refused(process: &Process, bytes: &[u8], answer: &str) {
    let mut connection = process.connect();
    // It may close before everything is sent.
    drop(connection.send(bytes));
    let rest = connection.rest();
    let text = String::from_utf8_lossy(&rest);
    let shown: String = String::from_utf8_lossy(bytes).chars().take(40).collect();
    assert!(text.starts_with(answer), "{shown:?}: {text:?}");
}

#[test]
fn resp_from_hell_ends_its_own_connection_only() {
    let process = Start::node().ready();
    let witness = Witness::begin(&process);
    // The process has warmed up once it has answered.
    assert_eq!(process.connect().line("SET a b"), Value::ok());
    let before = process.memory_bytes();

    refused(&process, b"*2147483648\r\n", "-ERR Protocol error");
    refused(&process, b"*1048577\r\n", "-ERR Protocol error");
    refused(&process, b"*x\r\n", "-ERR Protocol error");
    refused(&process, b"*1\r\n$9999999999\r\n", "-ERR Protocol error");
    refused(&process, b"*1\r\n$-2\r\n", "-ERR Protocol error");
    refused(&process, b"*1\r\n:1\r\n", "-ERR Protocol error");
    refused(&process, &b"*1\r\n".repeat(10_000), "-ERR Protocol error");
    refused(&process, b"*1\r\n$4\r\nPINGxx", "-ERR Protocol error");
    refused(&process, &[b'a'; 1 << 20], "-ERR Protocol error");
    refused(&process, b"set \"open\r\n", "-ERR Protocol error");

    // Announcements alone must cost nothing, however many clients make them.
    let announcements: Vec<Connection> = (0..200)
        .map(|number| {
            let mut connection = process.connect();
            let bytes: &[u8] = if number % 2 == 0 {
                b"*1000000\r\n"
            } else {
                b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$8000000\r\nbegun"
            };
            connection.send(bytes).expect("nothing is wrong yet");
            connection
        })
        .collect();
    let mut others = process.connect();
    assert_eq!(others.line("PING"), Value::Simple("PONG".to_owned()));
    let grown = process.memory_bytes().saturating_sub(before);
    assert!(grown < GROWTH_BYTES_MAX, "{grown} bytes for announcements");
    drop(announcements);

    let long = process
        .connect()
        .command(&[&b"SET"[..], b"k", &vec![0; (8 << 20) + 1]]);
    assert!(matches!(long, Value::Error(_)), "{long:?}");
    let long = process
        .connect()
        .command(&[&b"SET"[..], &vec![0; (64 << 10) + 1], b"v"]);
    assert!(matches!(long, Value::Error(_)), "{long:?}");
    witness.end();
}

#[test]
fn one_byte_at_a_time_is_a_request_all_the_same() {
    let process = Start::node().ready();
    let stream = TcpStream::connect(process.resp()).expect("the listener accepts");
    stream
        .set_nodelay(true)
        .expect("an option of every TCP socket");
    let mut connection = Connection::over(stream.try_clone().expect("a second handle"));
    let mut writer = stream;
    let bytes = [
        encode(&["SET", "k", "v w"]),
        b"\r\nGET k\r\n".to_vec(),
        encode(&["DEL", "k"]),
    ];
    for byte in bytes.concat() {
        writer.write_all(&[byte]).expect("the node reads");
    }
    assert_eq!(connection.reply().expect("a reply"), Value::ok());
    assert_eq!(connection.reply().expect("a reply"), Value::bulk("v w"));
    assert_eq!(connection.reply().expect("a reply"), Value::Integer(1));
}

#[test]
fn clients_that_vanish_leave_nothing_behind() {
    let process = Start::node().ready();
    let mut observer = process.connect();
    for number in 0..300 {
        let mut connection = process.connect();
        match number % 3 {
            0 => {}
            1 => connection
                .send(b"*3\r\n$3\r\nSET\r\n")
                .expect("the node reads"),
            _ => connection
                .send(&encode(&["GET", "k"]).repeat(100))
                .expect("the node reads"),
        }
    }
    wait_until("only the observer is connected", || {
        let Value::Bulk(info) = observer.line("INFO clients") else {
            panic!("INFO is text")
        };
        String::from_utf8_lossy(&info).contains("connected_clients:1\r\n")
    });
}

#[test]
fn a_client_that_does_not_read_costs_a_bounded_amount() {
    let process = Start::node()
        .args(&["--output-buffer-size-max", "1MiB"])
        .ready();
    let witness = Witness::begin(&process);
    let value = "v".repeat(100_000);
    assert_eq!(
        process.connect().command(&["SET", "large", &value]),
        Value::ok()
    );
    let before = process.memory_bytes();
    let mut greedy = process.connect();
    // 10 GB of replies are asked for; sending stops when the node has closed.
    let requests = encode(&["GET", "large"]).repeat(1000);
    for _ in 0..100 {
        if greedy.send(&requests).is_err() {
            break;
        }
    }
    assert_eq!(
        process.connect().line("PING"),
        Value::Simple("PONG".to_owned())
    );
    let grown = process.memory_bytes().saturating_sub(before);
    assert!(
        grown < GROWTH_BYTES_MAX,
        "{grown} bytes for one slow reader"
    );
    witness.end();
}

/// A FLUX connection past its preface.
fn flux_connection(process: &Process) -> Connection {
    let mut connection = process.connect();
    connection
        .send(&Preface::announce(1 << 20).encode())
        .expect("the node reads");
    assert_eq!(&connection.exact(PREFACE_BYTES)[..4], b"FLX1");
    connection
}

/// A whole request frame, to be spoiled.
fn request() -> Vec<u8> {
    let mut bytes = bytes::BytesMut::new();
    let operation = Operation::Get { key: "k".into() };
    operation
        .write(&mut bytes, 7, 0, 1 << 20)
        .expect("it is short");
    bytes.to_vec()
}

#[test]
fn flux_from_hell_ends_its_own_connection_only() {
    let process = Start::node().ready();
    let witness = Witness::begin(&process);
    let mut good = flux_connection(&process);
    let before = process.memory_bytes();

    let mut oversize = request();
    oversize[..4].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut checksum = request();
    checksum[20] ^= 1;
    let mut payload = request();
    *payload.last_mut().expect("it is not empty") ^= 1;
    let mut version = request();
    version[4] = 99;
    let mut kind = request();
    kind[5] = 200;
    let cases = [
        (oversize, 2),
        (checksum, 3),
        (payload, 3),
        (version, 1),
        (kind, 1),
        (vec![0xff; 64], 1),
    ];
    for (bytes, code) in cases {
        let mut connection = flux_connection(&process);
        connection.send(&bytes).expect("the node reads");
        // A GOAWAY says why, and the connection ends.
        let rest = connection.rest();
        assert_eq!(rest.get(5), Some(&7), "a GOAWAY: {rest:?}");
        assert_eq!(rest.get(24..26), Some(&[code, 0][..]), "its code: {rest:?}");
    }

    // What is only unknown is answered with an error, and the connection lives.
    let mut unknown = bytes::BytesMut::new();
    let header = Header {
        kind: Kind::Request,
        op: 250,
        correlation: 9,
        carries_request_id: false,
        is_stale: false,
        word: 0,
    };
    write_frame(&mut unknown, header, 1 << 20, |_| {}).expect("it is short");
    good.send(&unknown).expect("the node reads");
    let mut answer = good.exact(24);
    assert_eq!((answer[5], &answer[8..16]), (2, &9_u64.to_le_bytes()[..]));
    assert_ne!(answer[16..20], [0; 4], "an error");
    let length = u32::from_le_bytes([answer[0], answer[1], answer[2], answer[3]]);
    good.exact(length as usize);
    // Split at every byte, and answered all the same.
    for byte in request() {
        good.send(&[byte]).expect("the node reads");
    }
    answer = good.exact(24);
    assert_eq!(
        (answer[5], &answer[8..16], &answer[16..20]),
        (2, &7_u64.to_le_bytes()[..], &[0; 4][..])
    );

    // Half a preface, and a preface with nothing behind it, cost a connection and no more.
    let waiting: Vec<Connection> = (0..100)
        .map(|number| {
            let mut connection = process.connect();
            let preface = Preface::announce(1 << 20).encode();
            let length = if number % 2 == 0 { 7 } else { PREFACE_BYTES };
            connection.send(&preface[..length]).expect("the node reads");
            connection
        })
        .collect();
    assert_eq!(
        process.connect().line("PING"),
        Value::Simple("PONG".to_owned())
    );
    let grown = process.memory_bytes().saturating_sub(before);
    assert!(grown < GROWTH_BYTES_MAX, "{grown} bytes");
    drop(waiting);
    witness.end();
}

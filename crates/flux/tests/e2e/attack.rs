//! Attacks on the HTTP port of the real binary: each gets its status, memory stays bounded, and
//! others are served all the while.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use crate::harness::resp::Value;
use crate::harness::{PATIENCE, Process, Start, wait_until};

/// What all attacks together may cost. Each of the two workers may hold a body of 10 MiB in a buffer
/// that grew by doubling, and the allocator keeps such pages for a while: 55 MiB were measured, and
/// no more after any number of rounds. What the witness's writes cost is there before: see
/// [`fill_log_tail`].
const GROWTH_BYTES_MAX: u64 = 96 << 20;
/// More than the node keeps of its log in memory, so that later writes only replace what is there.
const LOG_TAIL_BYTES: usize = 24 << 20;

fn open(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("the gateway accepts");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

/// Sends bytes and reads until the peer closes.
fn send(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = open(address);
    // The peer may answer and close before it has read everything.
    let _is_sent = stream.write_all(bytes).is_ok();
    let mut answer = Vec::new();
    let _is_whole = stream.read_to_end(&mut answer).is_ok();
    String::from_utf8_lossy(&answer).into_owned()
}

/// Asserts the status of the only answer, which has a `google.rpc.Status` as its body.
fn refused(address: SocketAddr, bytes: &[u8], statuses: &[&str]) {
    let shown = String::from_utf8_lossy(bytes.get(..bytes.len().min(120)).unwrap_or_default());
    let answer = send(address, bytes);
    let status = answer.get(9..12).unwrap_or_default();
    assert!(statuses.contains(&status), "{shown:?}: {answer:?}");
    assert_eq!(
        answer.matches("HTTP/1.1 ").count(),
        1,
        "{shown:?}: {answer}"
    );
    let (_, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let body: serde_json::Value = serde_json::from_str(body).expect("a Status");
    assert!(
        body["code"].is_u64() && body["message"].is_string(),
        "{body}"
    );
}

fn post(path: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Somebody else, who writes and reads all the while.
struct Witness {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Witness {
    fn begin(address: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let rounds = Arc::new(AtomicU64::new(0));
        let thread = std::thread::spawn({
            let (stop, rounds) = (Arc::clone(&stop), Arc::clone(&rounds));
            move || {
                while !stop.load(Ordering::Relaxed) {
                    let round = rounds.load(Ordering::Relaxed);
                    let set = send(
                        address,
                        post("/api/v1/kv", &format!(r#"{{"key":"w","value":"{round}"}}"#))
                            .as_bytes(),
                    );
                    assert!(set.contains(r#"{"success":true}"#), "{set}");
                    let get = send(
                        address,
                        b"GET /api/v1/kv?key=w HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
                    );
                    assert!(
                        get.contains(&format!(r#"{{"value":"{round}","found":true}}"#)),
                        "{get}"
                    );
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Self {
            stop,
            rounds,
            thread: Some(thread),
        }
    }

    /// Waits until it was served once more.
    fn is_served(&self) {
        let before = self.rounds.load(Ordering::Relaxed);
        let thread = self.thread.as_ref().expect("it has not ended");
        wait_until("somebody else to be served", || {
            assert!(!thread.is_finished(), "somebody else was not served");
            self.rounds.load(Ordering::Relaxed) > before + 1
        });
    }

    fn end(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().expect("it ends once").join();
        ended.expect("everything was answered");
    }
}

fn gateway() -> Process {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = folder.path().join("flux.toml");
    std::fs::write(
        &config,
        "[gateway]\nheader-read-timeout = \"2s\"\nworkers = 2\n",
    )
    .expect("it is writable");
    let config = config.to_str().expect("a path is text").to_owned();
    Start::all()
        .args(&["--config", &config])
        .over(folder)
        .ready()
}

/// Writes until the node has in memory what it keeps of its log for readers.
fn fill_log_tail(process: &Process) {
    let mut connection = process.connect();
    let value = vec![b'v'; 64 << 10];
    for _ in 0..LOG_TAIL_BYTES / value.len() {
        let reply =
            connection.command(&[b"SET".as_slice(), b"filling".as_slice(), value.as_slice()]);
        assert_eq!(reply, Value::ok());
    }
}

fn malformed(address: SocketAddr) {
    let smuggled = "GET /health HTTP/1.1\r\nhost: a\r\n\r\n";
    for headers in [
        "content-length: 5\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ncontent-length: 5",
        "content-length: 5\r\ncontent-length: 6",
        "content-length: +5",
        "x: a\r\n content-length: 5",
        "x: a\ncontent-length: 5",
        "content-length : 5",
    ] {
        let bytes =
            format!("POST /api/v1/kv HTTP/1.1\r\nhost: a\r\n{headers}\r\n\r\n0\r\n\r\n{smuggled}");
        refused(address, bytes.as_bytes(), &["400"]);
    }
    let chunked = "POST /api/v1/kv HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
    for chunks in [
        "+5\r\nhello\r\n0\r\n\r\n",
        "fffffffffffffffff\r\n",
        "5\nhello\n0\n\n",
    ] {
        refused(
            address,
            format!("{chunked}{chunks}{smuggled}").as_bytes(),
            &["400", "413"],
        );
    }
    refused(
        address,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 TLS\r\n\r\n",
        &["400"],
    );
    refused(address, b"*1\r\n$4\r\nPING\r\n", &["400"]);
    for path in [
        "/a/%2e%2e%2fb",
        "/a/../b",
        "/a%00b",
        "/flux.kv.v1.Kv/Get/../Set",
        "/v1/kv/%c0%af",
    ] {
        let bytes = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        // A key may be any bytes: what is no UTF-8 in a key is no way out of a path.
        let statuses: &[&str] = if path.contains("%c0") {
            &["200"]
        } else {
            &["400", "404"]
        };
        if statuses == ["200"] {
            assert!(
                send(address, bytes.as_bytes()).starts_with("HTTP/1.1 200"),
                "{path}"
            );
        } else {
            refused(address, bytes.as_bytes(), statuses);
        }
    }
}

fn oversized(address: SocketAddr) {
    for size in [40_000, 200_000, 2_000_000] {
        let long = "a".repeat(size);
        let bytes = format!("GET /health HTTP/1.1\r\nhost: a\r\nx: {long}\r\n\r\n");
        refused(address, bytes.as_bytes(), &["431"]);
        let bytes = format!("GET /{long} HTTP/1.1\r\nhost: a\r\n\r\n");
        refused(address, bytes.as_bytes(), &["400", "404", "414", "431"]);
    }
    let announced = "POST /api/v1/kv HTTP/1.1\r\nhost: a\r\ncontent-length: 99999999999\r\n\r\n";
    refused(address, announced.as_bytes(), &["413"]);
    let chunk = format!("100000\r\n{}\r\n", "a".repeat(0x10_0000));
    let head = "POST /api/v1/kv HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
    refused(
        address,
        format!("{head}{}", chunk.repeat(12)).as_bytes(),
        &["413"],
    );
    let deep = 100_000;
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let value = format!("{}1{}", open.repeat(deep), close.repeat(deep));
        for path in ["/api/v1/kv", "/flux.kv.v1.Kv/Set", "/flux.kv.v1.Kv/Batch"] {
            for body in [
                value.clone(),
                format!("{{\"value\":{value}}}"),
                format!("{{\"operations\":{value}}}"),
            ] {
                refused(address, post(path, &body).as_bytes(), &["400"]);
            }
        }
    }
}

/// 200 clients that never finish their headers, half of them sending a byte now and then.
fn slow(address: SocketAddr, witness: &Witness) {
    let mut streams: Vec<TcpStream> = (0..200)
        .map(|_| {
            let mut stream = open(address);
            stream
                .write_all(b"GET /health HTTP/1.1\r\nx: ")
                .expect("it is read");
            stream.set_nonblocking(true).expect("a socket");
            stream
        })
        .collect();
    witness.is_served();
    let mut buffer = [0; 1_024];
    let mut turn = 0_u32;
    wait_until("slow clients to be let go", || {
        turn += 1;
        streams.retain_mut(|stream| match stream.read(&mut buffer) {
            Ok(0) => false,
            Ok(_) => true,
            Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
        });
        if turn.is_multiple_of(20) {
            for stream in streams.iter_mut().step_by(2) {
                // It may have been closed meanwhile.
                let _is_sent = stream.write_all(b"a").is_ok();
            }
        }
        streams.is_empty()
    });
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// Sends frames until the gateway has had enough, which it must.
fn flood(address: SocketAddr, piece: impl Fn(u32) -> Vec<u8>) {
    let mut stream = open(address);
    let mut reader = stream.try_clone().expect("a socket");
    let reading = std::thread::spawn(move || {
        let mut sink = vec![0; 64 << 10];
        while reader.read(&mut sink).is_ok_and(|count| count > 0) {}
    });
    let mut start = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    start.extend(frame(0x4, 0, 0, b""));
    stream.write_all(&start).expect("it is read");
    let was_refused = (0..1_000_000_u32).any(|number| stream.write_all(&piece(number)).is_err());
    assert!(was_refused, "a million frames were taken");
    reading.join().expect("it ends");
}

/// `GET http://a/health` without indexing.
const HEADERS: &[u8] = b"\x82\x86\x04\x07/health\x01\x01a";

fn http2(address: SocketAddr, witness: &Witness) {
    // Rapid reset: HEADERS with END_STREAM, then CANCEL, on ever new streams.
    flood(address, |number| {
        let id = 2 * number + 1;
        // `POST`, so that the answer waits for a body that never comes.
        let mut both = frame(0x1, 0x4, id, b"\x83\x86\x04\x0b/api/v1/kv/\x01\x01a");
        both.extend(frame(0x3, 0, id, &8_u32.to_be_bytes()));
        both
    });
    witness.is_served();
    // CONTINUATION without end.
    let mut header = b"\x00\x01x\x7f\x80\x1f".to_vec();
    header.extend_from_slice(&[b'a'; 4_000]);
    flood(address, |number| match number {
        0 => frame(0x1, 0x1, 1, HEADERS),
        _ => frame(0x9, 0, 1, &header),
    });
    witness.is_served();
}

#[test]
fn the_gateway_stands_attacks_and_serves_others_meanwhile() {
    let process = gateway();
    let address = process.http();
    fill_log_tail(&process);
    let witness = Witness::begin(address);
    witness.is_served();
    let before = process.memory_bytes();
    malformed(address);
    oversized(address);
    witness.is_served();
    slow(address, &witness);
    http2(address, &witness);
    // What a peak leaves behind in the allocator is not a leak; more rounds must not add to it.
    let settles = || {
        let mut grown = 0;
        wait_until("the memory of the attacks to be given back", || {
            // A worker gives pages back while it works, so each gets something to do.
            refused(
                address,
                b"GET /nothing HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
                &["404"],
            );
            grown = process.memory_bytes().saturating_sub(before);
            grown < GROWTH_BYTES_MAX
        });
        eprintln!("grown by {} KiB", grown / 1024);
    };
    settles();
    for _ in 0..3 {
        oversized(address);
    }
    settles();
    witness.end();
}

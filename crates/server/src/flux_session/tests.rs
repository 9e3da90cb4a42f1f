//! FLUX sessions over real sockets, on an executor in memory.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use flux_env::{Clock as _, SimClock};
use flux_telemetry::Registry;
use flux_types::limits::FLUX_IN_FLIGHT_MAX;
use flux_types::{Compare, Condition, Error, ErrorCode, ExpireCondition, Expiry, Outcome};
use flux_wire::Limits;
use flux_wire::flux::control::{write_cancel, write_ping};
use flux_wire::flux::{
    Asking, Body, Credentials, Frame, FrameDecoder, Goaway, GoawayCode, HEADER_BYTES, Header, Kind,
    Operation, PREFACE_BYTES, Preface, Response,
};
use flux_wire::resp::{SessionCommand, Value, Writer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::{Desk, Parts, run};
use crate::clients::{Clients, Ending};
use crate::execute::memory::{BUSY, LATE, Memory, SLOW};
use crate::metrics::Metrics;
use crate::statistics::Counted;

#[derive(Debug)]
struct TestDesk {
    password: &'static str,
}

impl Desk for TestDesk {
    fn wants_password(&self) -> bool {
        !self.password.is_empty()
    }

    fn is_password(&self, user: &[u8], password: &[u8]) -> bool {
        user.is_empty() && password == self.password.as_bytes()
    }

    fn answer(
        &self,
        command: SessionCommand,
        arguments: &[Bytes],
        writer: &mut Writer<'_>,
    ) -> Result<(), Error> {
        // Something is written before the error, which must not reach the client.
        writer.array(arguments.len());
        for argument in arguments {
            writer.bulk(argument);
        }
        if command == SessionCommand::Echo {
            return Ok(());
        }
        Err(Error::not_done(ErrorCode::Invalid, "not here"))
    }
}

struct Server {
    address: SocketAddr,
    executor: Memory,
    clients: Arc<Clients>,
    clock: Arc<SimClock>,
    metrics: Metrics,
    sessions: tokio::sync::mpsc::Receiver<JoinHandle<()>>,
}

const VALUE_BYTES_MAX: usize = 256 * 1024;

async fn start(password: &'static str) -> Server {
    let executor = Memory::new();
    let clients = Arc::new(Clients::default());
    let clock = Arc::new(SimClock::new(0));
    let metrics = Metrics::new(&Registry::new());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (begun, sessions) = tokio::sync::mpsc::channel(16);
    let server = Server {
        address,
        executor: executor.clone(),
        clients: Arc::clone(&clients),
        clock: Arc::clone(&clock),
        metrics: metrics.clone(),
        sessions,
    };
    tokio::spawn(async move {
        loop {
            let (stream, peer) = listener.accept().await.unwrap();
            let parts = Parts {
                executor: executor.clone(),
                desk: Arc::new(TestDesk { password }),
                clock: Arc::<SimClock>::clone(&clock),
                metrics: metrics.clone(),
                request_timeout: Duration::from_secs(2),
                limits: Limits {
                    value_bytes_max: VALUE_BYTES_MAX,
                },
            };
            let client = clients.register(Some(peer), None, 0);
            let session = tokio::spawn(run(stream, BytesMut::new(), parts, client));
            drop(begun.try_send(session));
        }
    });
    server
}

/// The other end of a session.
struct Peer {
    stream: TcpStream,
    input: BytesMut,
    decoder: FrameDecoder,
}

impl Server {
    async fn connect_raw(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    async fn connect(&self) -> Peer {
        let mut stream = self.connect_raw().await;
        let preface = Preface::announce(1 << 26);
        stream.write_all(&preface.encode()).await.unwrap();
        let mut answer = [0; PREFACE_BYTES];
        stream.read_exact(&mut answer).await.unwrap();
        Preface::decode(&answer).unwrap().agrees().unwrap();
        Peer::new(stream)
    }
}

impl Peer {
    fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            input: BytesMut::new(),
            decoder: FrameDecoder::new(1 << 26),
        }
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// The next frame, or `None` at the end of the connection.
    async fn frame(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.next(&mut self.input).unwrap() {
                return Some(frame);
            }
            if self.stream.read_buf(&mut self.input).await.unwrap() == 0 {
                assert!(self.input.is_empty(), "half a frame");
                return None;
            }
        }
    }

    async fn reply(&mut self) -> (u64, Result<Body, Error>) {
        let frame = self.frame().await.expect("a reply");
        assert_eq!(frame.header.kind, Kind::Response);
        let correlation = frame.header.correlation;
        let response = Response::decode(frame).unwrap();
        (correlation, response.map(|response| response.body))
    }

    async fn call(&mut self, operation: Operation) -> Result<Body, Error> {
        self.send(&encode(7, &operation)).await;
        let (correlation, body) = self.reply().await;
        assert_eq!(correlation, 7);
        body
    }

    async fn goaway(&mut self) -> Goaway {
        let frame = self.frame().await.expect("a GOAWAY");
        assert_eq!(frame.header.kind, Kind::Goaway);
        Goaway::decode(frame.payload).unwrap()
    }
}

fn encode(correlation: u64, operation: &Operation) -> BytesMut {
    encode_until(correlation, operation, 0)
}

fn encode_until(correlation: u64, operation: &Operation, deadline_ms: u32) -> BytesMut {
    let mut out = BytesMut::new();
    operation
        .write(&mut out, correlation, deadline_ms, 1 << 26)
        .unwrap();
    out
}

fn get(key: &'static [u8]) -> Operation {
    Operation::Get {
        key: Bytes::from_static(key),
    }
}

fn set(key: &'static [u8], value: impl Into<Bytes>) -> Operation {
    Operation::Set {
        key: Bytes::from_static(key),
        value: value.into(),
        condition: Condition::Always,
        expiry: Expiry::Clear,
        return_previous: false,
    }
}

fn value(body: Result<Body, Error>) -> Option<Bytes> {
    match body {
        Ok(Body::Entry(entry)) => entry.map(|entry| entry.value),
        other => panic!("{other:?}"),
    }
}

fn applied(body: Result<Body, Error>) -> bool {
    match body {
        Ok(Body::Written(written)) => written.applied,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn every_operation_is_answered() {
    let server = start("").await;
    let mut peer = server.connect().await;
    assert!(applied(peer.call(set(b"k", "v")).await));
    assert_eq!(value(peer.call(get(b"k")).await).unwrap(), "v");
    let swap = Operation::CompareAndSet {
        key: "k".into(),
        expected: Compare::ValueIs("x".into()),
        value: "y".into(),
        expiry: Expiry::Clear,
    };
    assert!(!applied(peer.call(swap).await));
    let increment = Operation::Increment {
        key: "n".into(),
        by: 5,
    };
    assert_eq!(peer.call(increment).await.unwrap(), Body::Integer(5));
    let expire = Operation::Expire {
        key: "n".into(),
        expiry: Expiry::In(50),
        condition: ExpireCondition::default(),
    };
    assert_eq!(peer.call(expire).await.unwrap(), Body::Flag(true));
    let delete = Operation::Delete {
        key: "k".into(),
        expected: Compare::Anything,
        return_previous: true,
    };
    assert!(applied(peer.call(delete).await));
    let ping = Operation::Ping {
        payload: "hi".into(),
    };
    assert_eq!(peer.call(ping).await.unwrap(), Body::Echo("hi".into()));
    let argv = |words: &[&'static str]| Operation::Command {
        argv: words.iter().map(|word| Bytes::from(*word)).collect(),
    };
    let answer = peer.call(argv(&["dbsize"])).await.unwrap();
    assert_eq!(answer, Body::Value(Value::Integer(1)));
    let answer = peer.call(argv(&["echo", "hi"])).await.unwrap();
    assert!(matches!(answer, Body::Value(Value::Array(items)) if items.len() == 1));
    for (words, code) in [
        (&["nonsense"][..], ErrorCode::UnknownCommand),
        (&["get"][..], ErrorCode::WrongArity),
        (&["multi"][..], ErrorCode::Invalid),
    ] {
        let error = peer.call(argv(words)).await.unwrap_err();
        assert_eq!(error.code, code, "{error}");
    }
    assert_eq!(Counted::of(&server.metrics).calls(), 7);
}

#[tokio::test]
async fn errors_carry_their_outcome_and_the_session_goes_on() {
    let server = start("").await;
    let mut peer = server.connect().await;
    let busy = peer.call(set(BUSY, "v")).await.unwrap_err();
    assert_eq!(
        (busy.code, busy.outcome),
        (ErrorCode::Busy, Outcome::NotDone)
    );
    let late = peer.call(set(LATE, "v")).await.unwrap_err();
    assert_eq!(
        (late.code, late.outcome),
        (ErrorCode::Timeout, Outcome::Unknown)
    );
    let empty = peer.call(set(b"k", vec![0; VALUE_BYTES_MAX + 1])).await;
    assert_eq!(empty.unwrap_err().code, ErrorCode::TooLarge);
    assert!(applied(peer.call(set(b"k", "v")).await));
}

#[tokio::test]
async fn an_unknown_operation_and_a_malformed_one_are_answered() {
    let server = start("").await;
    let mut peer = server.connect().await;
    let mut bytes = BytesMut::new();
    for (correlation, op, payload) in [(1, 99, &b""[..]), (2, 1, b"\xff"), (3, 0, b"x")] {
        let header = Header {
            kind: Kind::Request,
            op,
            correlation,
            carries_request_id: false,
            is_stale: false,
            word: 0,
        };
        flux_wire::flux::frame::write_frame(&mut bytes, header, 100, |out| {
            out.extend_from_slice(payload);
        })
        .unwrap();
    }
    peer.send(&bytes).await;
    for (correlation, code) in [
        (1, ErrorCode::UnknownCommand),
        (2, ErrorCode::Invalid),
        (3, ErrorCode::UnknownCommand),
    ] {
        let (answered, body) = peer.reply().await;
        assert_eq!((answered, body.unwrap_err().code), (correlation, code));
    }
    assert!(applied(peer.call(set(b"k", "v")).await));
}

#[tokio::test]
async fn replies_come_as_they_are_ready() {
    let server = start("").await;
    let mut peer = server.connect().await;
    let mut bytes = encode(1, &set(SLOW, "v"));
    bytes.extend_from_slice(&encode(2, &set(b"k", "v")));
    bytes.extend_from_slice(&encode(3, &get(b"k")));
    peer.send(&bytes).await;
    let (second, body) = peer.reply().await;
    assert!(second == 2 && applied(body));
    let (third, body) = peer.reply().await;
    assert_eq!(
        (third, value(body)),
        (3, Some("v".into())),
        "behind its write"
    );
    assert!(
        applied(peer.call(set(b"other", "v")).await),
        "one more turn"
    );
    server.executor.release();
    let (first, body) = peer.reply().await;
    assert!(first == 1 && applied(body));
}

#[tokio::test]
async fn a_cancelled_request_is_not_answered() {
    let server = start("").await;
    let mut peer = server.connect().await;
    let mut bytes = encode(1, &set(SLOW, "v"));
    bytes.extend_from_slice(&encode(2, &get(SLOW)));
    peer.send(&bytes).await;
    while server.executor.deadlines().len() < 2 {
        tokio::task::yield_now().await;
    }
    let mut cancel = BytesMut::new();
    write_cancel(&mut cancel, 1);
    write_cancel(&mut cancel, 99);
    write_ping(&mut cancel, 5, b"still there?");
    peer.send(&cancel).await;
    let pong = peer.frame().await.unwrap();
    assert_eq!((pong.header.kind, pong.header.correlation), (Kind::Pong, 5));
    assert_eq!(pong.payload, "still there?");
    server.executor.release();
    let (answered, body) = peer.reply().await;
    assert_eq!(
        (answered, value(body)),
        (2, Some("v".into())),
        "done all the same"
    );
}

#[tokio::test]
async fn a_deadline_is_the_clients_or_else_ours() {
    let server = start("").await;
    let mut peer = server.connect().await;
    for (correlation, deadline_ms) in [(1, 250), (2, 0)] {
        let request = encode_until(correlation, &get(b"k"), deadline_ms);
        peer.send(&request).await;
        assert_eq!(peer.reply().await.0, correlation);
    }
    let now = server.clock.now();
    assert_eq!(
        server.executor.deadlines(),
        [
            now + Duration::from_millis(250),
            now + Duration::from_secs(2)
        ]
    );
}

/// A preface and requests whose bytes are known, for cutting.
fn conversation() -> BytesMut {
    let mut bytes = BytesMut::from(&Preface::announce(1 << 20).encode()[..]);
    bytes.extend_from_slice(&encode(1, &set(b"k", "value")));
    bytes.extend_from_slice(&encode(2, &get(b"k")));
    write_ping(&mut bytes, 3, b"x");
    bytes
}

async fn check_conversation(stream: TcpStream) {
    let mut peer = Peer::new(stream);
    let mut answer = [0; PREFACE_BYTES];
    peer.stream.read_exact(&mut answer).await.unwrap();
    let mut seen = Vec::new();
    for _ in 0..3 {
        let frame = peer.frame().await.unwrap();
        if frame.header.kind == Kind::Pong {
            seen.push(3);
            continue;
        }
        let correlation = frame.header.correlation;
        let body = Response::decode(frame)
            .unwrap()
            .map(|response| response.body);
        match correlation {
            1 => assert!(applied(body)),
            2 => assert_eq!(value(body).unwrap(), "value"),
            other => panic!("{other}"),
        }
        seen.push(correlation);
    }
    seen.sort_unstable();
    assert_eq!(seen, [1, 2, 3]);
}

#[tokio::test]
async fn frames_may_arrive_glued_or_cut_at_any_byte() {
    let server = start("").await;
    let bytes = conversation();
    let mut glued = server.connect_raw().await;
    glued.write_all(&bytes).await.unwrap();
    check_conversation(glued).await;
    for cut in 1..bytes.len() {
        let mut stream = server.connect_raw().await;
        stream.set_nodelay(true).unwrap();
        let (first, second) = bytes.split_at(cut);
        stream.write_all(first).await.unwrap();
        // The session has taken the first part when it has nothing left to do.
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        stream.write_all(second).await.unwrap();
        check_conversation(stream).await;
    }
    let mut slow = server.connect_raw().await;
    slow.set_nodelay(true).unwrap();
    for byte in &bytes {
        slow.write_all(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    check_conversation(slow).await;
}

#[tokio::test]
async fn broken_frames_end_the_session_with_a_reason_and_nobody_elses() {
    let server = start("").await;
    let mut other = server.connect().await;
    let good = encode(1, &set(b"k", "v"));
    let damaged = |position: usize, change: fn(u8) -> u8| {
        let mut bytes = encode(2, &set(b"k", "w"));
        bytes[position] = change(bytes[position]);
        bytes
    };
    let too_long = {
        let mut bytes = encode(2, &set(b"k", "w"));
        bytes[..4].copy_from_slice(&u32::MAX.to_le_bytes());
        bytes
    };
    let foreign = {
        let mut bytes = BytesMut::new();
        let header = Header {
            kind: Kind::Event,
            op: 0,
            correlation: 2,
            carries_request_id: false,
            is_stale: false,
            word: 0,
        };
        flux_wire::flux::frame::write_frame(&mut bytes, header, 100, |_| {}).unwrap();
        bytes
    };
    for (broken, code) in [
        (
            damaged(HEADER_BYTES, |byte| byte ^ 1),
            GoawayCode::BadChecksum,
        ),
        (damaged(20, |byte| byte ^ 1), GoawayCode::BadChecksum),
        (damaged(4, |_| 9), GoawayCode::Protocol),
        (damaged(5, |_| 200), GoawayCode::Protocol),
        (damaged(7, |_| 4), GoawayCode::Protocol),
        (too_long, GoawayCode::FrameTooLong),
        (foreign, GoawayCode::Protocol),
    ] {
        let mut peer = server.connect().await;
        let mut bytes = good.clone();
        bytes.extend_from_slice(&broken);
        bytes.extend_from_slice(&good);
        peer.send(&bytes).await;
        let (correlation, body) = peer.reply().await;
        assert!(
            correlation == 1 && applied(body),
            "what came before is answered"
        );
        let goaway = peer.goaway().await;
        assert_eq!(goaway.code, code, "{goaway:?}");
        assert!(!goaway.message.is_empty());
        assert_eq!(peer.frame().await, None, "nothing after the goodbye");
    }
    assert_eq!(value(other.call(get(b"k")).await).unwrap(), "v");
}

#[tokio::test]
async fn a_preface_that_does_not_fit_is_answered_with_ours_and_the_end() {
    let server = start("").await;
    let ours = Preface::announce(0).version_max;
    let mut foreign = Preface::announce(1 << 20);
    foreign.version_min = ours + 1;
    foreign.version_max = ours + 3;
    let mut flagged = Preface::announce(1 << 20).encode();
    flagged[6] = 1;
    for bytes in [foreign.encode(), flagged] {
        let mut stream = server.connect_raw().await;
        stream.write_all(&bytes).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let answer = answer.first_chunk::<PREFACE_BYTES>().unwrap();
        assert_eq!(Preface::decode(answer).unwrap().version_max, ours);
    }
    // Half a preface and gone: the session ends, nobody else is affected.
    let mut half = server.connect_raw().await;
    half.write_all(&Preface::announce(1 << 20).encode()[..7])
        .await
        .unwrap();
    half.shutdown().await.unwrap();
    let mut answer = Vec::new();
    half.read_to_end(&mut answer).await.unwrap();
    assert!(answer.is_empty());
    let mut peer = server.connect().await;
    assert!(applied(peer.call(set(b"k", "v")).await));
}

#[tokio::test(start_paused = true)]
async fn who_does_not_greet_or_authenticate_in_time_is_let_go() {
    let mut server = start("sesame").await;
    let _silent = server.connect_raw().await;
    let session = server.sessions.recv().await.unwrap();
    session.await.unwrap();
    let mut peer = server.connect().await;
    let goaway = peer.goaway().await;
    assert_eq!(goaway.code, GoawayCode::Idle);
    assert_eq!(peer.frame().await, None);
}

#[tokio::test]
async fn a_password_is_asked_for_and_frames_are_small_until_then() {
    let server = start("sesame").await;
    let mut peer = server.connect().await;
    let refused = peer.call(get(b"k")).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Unauthenticated);
    let mut authenticate = async |password: &'static str| {
        let credentials = Credentials {
            user: Bytes::new(),
            password: password.into(),
        };
        let mut bytes = BytesMut::new();
        credentials.write(&mut bytes, 4).unwrap();
        peer.send(&bytes).await;
        let (correlation, body) = peer.reply().await;
        assert_eq!(correlation, 4);
        body
    };
    let refused = authenticate("open").await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::WrongPassword);
    assert_eq!(authenticate("sesame").await.unwrap(), Body::Nothing);
    assert!(applied(peer.call(set(b"k", vec![b'x'; 100_000])).await));

    let mut stranger = server.connect().await;
    stranger
        .send(&encode(1, &set(b"k", vec![b'x'; 100_000])))
        .await;
    assert_eq!(stranger.goaway().await.code, GoawayCode::FrameTooLong);
}

#[tokio::test]
async fn beyond_the_limit_of_requests_in_flight_nothing_is_read() {
    let server = start("").await;
    let mut peer = server.connect().await;
    let extra = 10;
    let mut bytes = BytesMut::new();
    for correlation in 0..FLUX_IN_FLIGHT_MAX + extra {
        bytes.extend_from_slice(&encode(correlation as u64, &get(SLOW)));
    }
    peer.send(&bytes).await;
    while server.executor.deadlines().len() < FLUX_IN_FLIGHT_MAX {
        tokio::task::yield_now().await;
    }
    // A ping behind them is not answered, because it is not read.
    let mut ping = BytesMut::new();
    write_ping(&mut ping, 1, b"");
    peer.send(&ping).await;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(server.executor.deadlines().len(), FLUX_IN_FLIGHT_MAX);
    server.executor.release();
    let mut replies = 0;
    let mut pongs = 0;
    while replies < FLUX_IN_FLIGHT_MAX + extra || pongs < 1 {
        let frame = peer.frame().await.unwrap();
        if frame.header.kind == Kind::Pong {
            pongs += 1;
        } else {
            replies += 1;
        }
    }
}

#[tokio::test]
async fn a_peer_that_does_not_read_stops_being_served_and_loses_nothing_when_it_reads() {
    let server = start("").await;
    let mut peer = server.connect().await;
    let long = vec![b'x'; 200_000];
    assert!(applied(peer.call(set(b"k", long.clone())).await));
    let mut bytes = BytesMut::new();
    for correlation in 0..500 {
        bytes.extend_from_slice(&encode(correlation, &get(b"k")));
    }
    peer.send(&bytes).await;
    // 100 MB of replies are far more than sockets hold.
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    let begun = server.executor.deadlines().len();
    assert!(
        begun < 400,
        "{begun} reads were begun for a peer that takes no replies"
    );
    let mut seen = vec![false; 500];
    for _ in 0..500 {
        let (correlation, body) = peer.reply().await;
        assert_eq!(value(body).unwrap().len(), long.len());
        seen[usize::try_from(correlation).unwrap()] = true;
    }
    assert!(seen.iter().all(|seen| *seen));
}

#[tokio::test]
async fn a_drain_says_goodbye_and_finishes_what_is_in_hand() {
    let mut server = start("").await;
    let mut peer = server.connect().await;
    let session = server.sessions.recv().await.unwrap();
    peer.send(&encode(1, &set(SLOW, "v"))).await;
    while server.executor.deadlines().is_empty() {
        tokio::task::yield_now().await;
    }
    server.clients.drain();
    let goaway = peer.goaway().await;
    assert_eq!(goaway.code, GoawayCode::Shutdown);
    server.executor.release();
    let (correlation, body) = peer.reply().await;
    assert!(correlation == 1 && applied(body));
    assert_eq!(peer.frame().await, None);
    session.await.unwrap();
}

#[tokio::test]
async fn a_killed_session_ends_at_once() {
    let mut server = start("").await;
    let mut peer = server.connect().await;
    let session = server.sessions.recv().await.unwrap();
    peer.send(&encode(1, &set(SLOW, "v"))).await;
    while server.executor.deadlines().is_empty() {
        tokio::task::yield_now().await;
    }
    for client in server.clients.all() {
        client.end(Ending::Kill);
    }
    session.await.unwrap();
}

#[tokio::test]
async fn a_client_that_has_said_all_gets_its_replies() {
    let server = start("").await;
    let mut peer = server.connect().await;
    peer.send(&encode(1, &set(SLOW, "v"))).await;
    peer.stream.shutdown().await.unwrap();
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
    server.executor.release();
    let (correlation, body) = peer.reply().await;
    assert!(correlation == 1 && applied(body));
    assert_eq!(peer.frame().await, None);
}

#[tokio::test]
async fn a_request_that_asks_to_be_stale_waits_for_nobody_and_writes_nothing() {
    let server = start("").await;
    let mut peer = server.connect().await;
    assert!(applied(peer.call(set(b"k", "v")).await));
    let encoded = |correlation, operation: &Operation| {
        let asking = Asking {
            correlation,
            deadline_ms: 0,
            request: None,
            is_stale: true,
        };
        let mut bytes = BytesMut::new();
        operation.write_asking(&mut bytes, &asking, 1024).unwrap();
        bytes
    };
    // Whoever asks a shard for this key waits.
    peer.send(&encoded(1, &get(SLOW))).await;
    let (answered, body) = peer.reply().await;
    assert_eq!((answered, value(body)), (1, None));
    peer.send(&encoded(2, &get(b"k"))).await;
    let (answered, body) = peer.reply().await;
    assert_eq!((answered, value(body)), (2, Some("v".into())));
    peer.send(&encoded(3, &set(b"k", "w"))).await;
    let (answered, body) = peer.reply().await;
    assert_eq!((answered, body.unwrap_err().code), (3, ErrorCode::Invalid));
    peer.send(&encoded(4, &get(b"k"))).await;
    let (_, body) = peer.reply().await;
    assert_eq!(value(body), Some("v".into()));
}

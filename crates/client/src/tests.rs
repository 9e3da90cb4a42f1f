//! The client against a node made for the test: one that answers late, in another order, wrongly
//! or not at all.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use flux_types::{
    Entry, Error as NodeError, ErrorCode, Reply, RequestId, Revision, SessionId, UnixMillis,
    Written,
};
use flux_wire::flux::{
    Credentials, FrameDecoder, Goaway, GoawayCode, Kind, Operation, PREFACE_BYTES, Preface,
    response, take_request_id,
};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::{Client, Compare, Config, Error, Outcome, SetOptions, Value};

const PAYLOAD_BYTES_MAX: usize = 8192;

/// What the node does with a request.
enum Action {
    Answer(Reply),
    /// Answers this and all held ones, the latest first, once so many are held.
    HoldUntil(usize, Reply),
    /// Never answers.
    Ignore,
    /// Closes the connection.
    Close,
    /// Sends bytes that are no frame.
    Garbage,
    /// Announces its end, then answers.
    GoAway(Reply),
}

/// What the node has seen.
#[derive(Default)]
struct Seen {
    operations: Mutex<Vec<Operation>>,
    /// The request id of each operation.
    ids: Mutex<Vec<Option<RequestId>>>,
    /// Whether each was asked of this node's own replica.
    stale: Mutex<Vec<bool>>,
    connections: AtomicUsize,
    password: Option<&'static str>,
    /// Whether it draws sessions.
    has_sessions: bool,
    /// The leaders of the two halves of the slots, if it knows of a cluster.
    leaders: Mutex<Option<[String; 2]>>,
}

impl Seen {
    fn count(&self) -> usize {
        self.operations.lock().len()
    }
}

type Script = Arc<dyn Fn(usize, &Operation) -> Action + Send + Sync>;

async fn node(
    script: impl Fn(usize, &Operation) -> Action + Send + Sync + 'static,
) -> (SocketAddr, Arc<Seen>) {
    node_with(None, script).await
}

async fn node_with(
    password: Option<&'static str>,
    script: impl Fn(usize, &Operation) -> Action + Send + Sync + 'static,
) -> (SocketAddr, Arc<Seen>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::new(Seen {
        password,
        ..Seen::default()
    });
    tokio::spawn(accept(listener, Arc::new(script), Arc::clone(&seen)));
    (address, seen)
}

/// A node that draws sessions and describes a cluster, once it is told what.
async fn member(
    script: impl Fn(usize, &Operation) -> Action + Send + Sync + 'static,
) -> (SocketAddr, Arc<Seen>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::new(Seen {
        has_sessions: true,
        ..Seen::default()
    });
    tokio::spawn(accept(listener, Arc::new(script), Arc::clone(&seen)));
    (address, seen)
}

impl Seen {
    fn lead(&self, low: SocketAddr, high: SocketAddr) {
        *self.leaders.lock() = Some([low.to_string(), high.to_string()]);
    }

    /// Answers what the client asks on its own account; `false` if it is none of that.
    fn answers(&self, operation: &Operation, id: u64, out: &mut BytesMut) -> bool {
        let Operation::Command { argv } = operation else {
            return false;
        };
        let refused = NodeError::not_done(ErrorCode::UnknownCommand, "unknown command");
        match argv.first().map(|word| &**word) {
            Some(b"FLUX.SESSION") if self.has_sessions => {
                let session = SessionId::draw(UnixMillis::new(1_700_000_000_000), 5).to_string();
                let max = PAYLOAD_BYTES_MAX;
                response::write_value(out, id, max, |writer| writer.bulk(session.as_bytes()));
            }
            Some(b"FLUX.TOPOLOGY") if self.leaders.lock().is_some() => {
                let leaders = self.leaders.lock().clone().unwrap_or_default();
                response::write_value(out, id, PAYLOAD_BYTES_MAX, |writer| {
                    describe(&leaders, writer);
                });
            }
            Some(b"FLUX.SESSION" | b"FLUX.TOPOLOGY") => {
                response::write_error(out, id, operation.op().number(), &refused);
            }
            _ => return false,
        }
        true
    }
}

/// What a node answers to FLUX.TOPOLOGY.
fn describe(leaders: &[String; 2], writer: &mut flux_wire::resp::Writer<'_>) {
    writer.map(2);
    writer.bulk(b"shards");
    writer.array(2);
    for (leader, first) in leaders.iter().zip([0, 8192]) {
        writer.map(2);
        writer.bulk(b"leader");
        writer.bulk(leader.as_bytes());
        writer.bulk(b"slots");
        writer.array(2);
        writer.integer(first);
        writer.integer(first + 8191);
    }
    writer.bulk(b"nodes");
    writer.array(2);
    for leader in leaders {
        let (host, port) = leader.rsplit_once(':').unwrap();
        writer.map(4);
        writer.bulk(b"id");
        writer.bulk(leader.as_bytes());
        writer.bulk(b"host");
        writer.bulk(host.as_bytes());
        writer.bulk(b"port");
        writer.integer(port.parse().unwrap());
        writer.bulk(b"reachable");
        writer.boolean(true);
    }
}

async fn accept(listener: TcpListener, script: Script, seen: Arc<Seen>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let number = seen.connections.fetch_add(1, Ordering::SeqCst);
        tokio::spawn(serve(
            stream,
            number,
            Arc::clone(&script),
            Arc::clone(&seen),
        ));
    }
}

async fn serve(mut stream: TcpStream, number: usize, script: Script, seen: Arc<Seen>) {
    let mut preface = [0; PREFACE_BYTES];
    stream.read_exact(&mut preface).await.unwrap();
    let preface = Preface::decode(&preface).unwrap();
    let answer = Preface::answer(&preface, PAYLOAD_BYTES_MAX).unwrap();
    stream.write_all(&answer.encode()).await.unwrap();
    let mut decoder = FrameDecoder::new(PAYLOAD_BYTES_MAX);
    let mut received = BytesMut::new();
    let mut held: Vec<(u64, Operation, Reply)> = Vec::new();
    loop {
        let Some(mut frame) = decoder.next(&mut received).unwrap() else {
            if stream.read_buf(&mut received).await.unwrap_or(0) == 0 {
                return;
            }
            continue;
        };
        let id = frame.header.correlation;
        let mut out = BytesMut::new();
        if frame.header.kind == Kind::Auth {
            let credentials = Credentials::decode(frame.payload).unwrap();
            if seen
                .password
                .is_some_and(|password| credentials.password == password)
            {
                response::write_authenticated(&mut out, id);
            } else {
                let error = NodeError::not_done(ErrorCode::WrongPassword, "wrong password");
                response::write_error(&mut out, id, 0, &error);
            }
            stream.write_all(&out).await.unwrap();
            continue;
        }
        assert_eq!(frame.header.kind, Kind::Request);
        assert!(frame.header.word > 0, "every request carries its deadline");
        let request = frame.header.carries_request_id;
        let request = request.then(|| take_request_id(&mut frame.payload).unwrap());
        let operation = Operation::decode(frame.header.op, frame.payload).unwrap();
        if seen.answers(&operation, id, &mut out) {
            drop(stream.write_all(&out).await);
            continue;
        }
        seen.ids.lock().push(request);
        seen.stale.lock().push(frame.header.is_stale);
        seen.operations.lock().push(operation.clone());
        match script(number, &operation) {
            Action::Answer(reply) => put(&mut out, id, &operation, reply),
            Action::HoldUntil(count, reply) => {
                held.push((id, operation, reply));
                if held.len() == count {
                    while let Some((id, operation, reply)) = held.pop() {
                        put(&mut out, id, &operation, reply);
                    }
                }
            }
            Action::Ignore => {}
            Action::Close => return,
            Action::Garbage => out.extend_from_slice(&[0xff; 64]),
            Action::GoAway(reply) => {
                let goaway = Goaway {
                    code: GoawayCode::Shutdown,
                    drain_ms: 1000,
                    message: String::new(),
                };
                goaway.write(&mut out);
                put(&mut out, id, &operation, reply);
            }
        }
        // The client may have gone away with its answer.
        drop(stream.write_all(&out).await);
    }
}

fn put(out: &mut BytesMut, id: u64, operation: &Operation, reply: Reply) {
    let answer = flux_types::Answer {
        reply,
        revision: Revision::new(7),
    };
    response::write_answer(out, id, operation.op(), &answer, PAYLOAD_BYTES_MAX);
}

fn entry(value: &str) -> Entry {
    Entry {
        value: Bytes::from(value.to_owned()),
        revision: Revision::new(3),
        deadline: None,
    }
}

fn found(value: &str) -> Reply {
    Reply::Entry(Some(Box::new(entry(value))))
}

fn written(applied: bool, previous: Option<Entry>) -> Reply {
    Reply::Written(Box::new(Written { applied, previous }))
}

fn config(address: SocketAddr) -> Config {
    Config {
        backoff_min: Duration::from_millis(1),
        ..Config::new(address.to_string())
    }
}

async fn connect(address: SocketAddr) -> Client {
    Client::connect(config(address)).await.unwrap()
}

/// A deadline that passes soon, for what is never answered.
async fn connect_hastily(address: SocketAddr) -> Client {
    let request_timeout = Duration::from_millis(50);
    Client::connect(Config {
        request_timeout,
        ..config(address)
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn every_operation_is_sent_as_asked_and_its_answer_understood() {
    let (address, seen) = node(|_, operation| {
        Action::Answer(match operation {
            Operation::Get { key } if key == "absent" => Reply::Entry(None),
            Operation::Get { .. } => found("v"),
            Operation::Set { .. } => written(true, None),
            Operation::Delete { .. } => written(false, None),
            Operation::CompareAndSet { .. } => written(false, Some(entry("other"))),
            Operation::Increment { by, .. } => Reply::Integer(40 + by),
            Operation::Expire { .. } => Reply::Integer(1),
            Operation::Ping { payload } => Reply::Bulk(payload.clone()),
            Operation::Command { argv } => {
                Reply::Array(argv.iter().cloned().map(Reply::Bulk).collect())
            }
        })
    })
    .await;
    let client = connect(address).await;
    client.ping().await.unwrap();
    assert_eq!(client.get("k").await.unwrap(), Some(Bytes::from("v")));
    assert_eq!(client.get_entry("k").await.unwrap(), Some(entry("v")));
    assert_eq!(client.get("absent").await.unwrap(), None);
    client.set("k", "v").await.unwrap();
    assert!(!client.delete("k").await.unwrap());
    let swap = client
        .compare_and_set("k", Compare::ValueIs("x".into()), "y")
        .await
        .unwrap();
    assert_eq!(
        swap,
        Written {
            applied: false,
            previous: Some(entry("other"))
        }
    );
    assert_eq!(client.increment("n", 2).await.unwrap(), 42);
    assert!(
        client
            .expire("k", Duration::from_millis(1500))
            .await
            .unwrap()
    );
    let words: Vec<Bytes> = vec!["ECHO".into(), "x".into()];
    let answer = client.command(words.clone()).await.unwrap();
    assert_eq!(
        answer,
        Value::Array(words.into_iter().map(Value::Bulk).collect())
    );
    let operations = seen.operations.lock();
    let expected = SetOptions::default();
    assert!(operations.contains(&Operation::Set {
        key: "k".into(),
        value: "v".into(),
        condition: expected.condition,
        expiry: expected.expiry,
        return_previous: false,
    }));
    assert!(operations.contains(&Operation::Expire {
        key: "k".into(),
        expiry: flux_types::Expiry::In(1500),
        condition: flux_types::ExpireCondition::default(),
    }));
}

#[tokio::test]
async fn answers_in_another_order_reach_their_callers() {
    let (address, seen) = node(|_, operation| {
        let Operation::Increment { by, .. } = operation else {
            return Action::Close;
        };
        Action::HoldUntil(100, Reply::Integer(*by))
    })
    .await;
    let client = connect(address).await;
    let tasks: Vec<_> = (0..100)
        .map(|number| {
            let client = client.clone();
            tokio::spawn(async move { client.increment("n", number).await.unwrap() })
        })
        .collect();
    for (number, task) in (0..).zip(tasks) {
        assert_eq!(task.await.unwrap(), number);
    }
    assert_eq!(seen.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn no_more_than_allowed_is_in_flight() {
    // The node answers in groups of five; with a sixth in flight a group could overtake.
    let (address, _) = node(|_, _| Action::HoldUntil(5, Reply::Integer(1))).await;
    let client = Client::connect(Config {
        in_flight_max: 5,
        ..config(address)
    })
    .await
    .unwrap();
    let tasks: Vec<_> = (0..50)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.increment("n", 1).await.unwrap() })
        })
        .collect();
    for task in tasks {
        assert_eq!(task.await.unwrap(), 1);
    }
}

#[tokio::test]
async fn a_write_whose_connection_is_lost_is_unknown_and_never_repeated() {
    let (address, seen) = node(|connection, operation| match (connection, operation) {
        (0, _) => Action::Close,
        (_, Operation::Get { .. }) => Action::Answer(found("v")),
        _ => Action::Answer(written(true, None)),
    })
    .await;
    let client = connect(address).await;
    let error = client.set("k", "v").await.unwrap_err();
    assert!(matches!(error, Error::Lost { .. }), "{error}");
    assert_eq!(error.outcome(), Outcome::Unknown);
    // The connection comes back by itself, and the write was seen once.
    assert_eq!(client.get("k").await.unwrap(), Some(Bytes::from("v")));
    let sets = seen
        .operations
        .lock()
        .iter()
        .filter(|seen| matches!(seen, Operation::Set { .. }))
        .count();
    assert_eq!(sets, 1);
}

#[tokio::test]
async fn a_read_whose_connection_is_lost_is_asked_again() {
    let (address, seen) = node(|connection, _| match connection {
        0 | 1 => Action::Close,
        _ => Action::Answer(found("v")),
    })
    .await;
    let client = connect(address).await;
    assert_eq!(client.get("k").await.unwrap(), Some(Bytes::from("v")));
    assert_eq!(seen.count(), 3);
}

#[tokio::test]
async fn a_read_is_not_asked_for_ever() {
    let (address, seen) = node(|_, _| Action::Close).await;
    let error = connect_hastily(address).await.get("k").await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::NotDone, "{error}");
    assert!(seen.count() > 1);
}

#[tokio::test]
async fn a_write_with_a_request_id_is_sent_again_with_the_same_one() {
    let (address, seen) = member(|connection, _| match connection {
        0 => Action::Close,
        _ => Action::Answer(written(true, None)),
    })
    .await;
    let client = connect(address).await;
    client.set("k", "v").await.unwrap();
    client.set("k", "w").await.unwrap();
    let ids: Vec<(u64, u64)> = seen
        .ids
        .lock()
        .iter()
        .map(|id| id.map(|id| (id.sequence, id.lowest_unanswered)).unwrap())
        .collect();
    assert_eq!(ids, [(1, 1), (1, 1), (2, 2)]);
}

#[tokio::test]
async fn a_read_carries_no_request_id() {
    let (address, seen) = member(|_, _| Action::Answer(found("v"))).await;
    let client = connect(address).await;
    assert!(client.get("k").await.unwrap().is_some());
    assert_eq!(*seen.ids.lock(), [None]);
}

#[tokio::test]
async fn a_write_that_stays_without_an_answer_is_unknown_whatever_failed_last() {
    let (address, seen) = member(|connection, _| match connection {
        0 => Action::Close,
        _ => {
            let error = NodeError::not_done(ErrorCode::Unavailable, "nobody leads");
            Action::Answer(Reply::Error(error))
        }
    })
    .await;
    let client = connect_hastily(address).await;
    let error = client.set("k", "v").await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::Unknown, "{error}");
    assert!(seen.count() > 1, "it was tried again");
}

#[tokio::test]
async fn each_request_goes_to_the_node_that_leads_its_shard() {
    let one = |_: usize, _: &Operation| Action::Answer(Reply::Integer(1));
    let (low, seen_low) = member(one).await;
    let (high, seen_high) = member(one).await;
    seen_low.lead(low, high);
    seen_high.lead(low, high);
    let client = connect(low).await;
    // Slots 5061 and 12182.
    for _ in 0..3 {
        client.increment("bar", 1).await.unwrap();
        client.increment("foo", 1).await.unwrap();
    }
    assert_eq!((seen_low.count(), seen_high.count()), (3, 3));
    let connections = |seen: &Seen| seen.connections.load(Ordering::SeqCst);
    assert_eq!((connections(&seen_low), connections(&seen_high)), (1, 1));
}

#[tokio::test]
async fn a_leader_that_has_moved_is_followed() {
    let (new, seen_new) = member(|_, _| Action::Answer(Reply::Integer(2))).await;
    let (old, seen_old) = member(|_, _| {
        let error = NodeError::not_done(ErrorCode::NotLeader, "another node leads");
        Action::Answer(Reply::Error(error))
    })
    .await;
    seen_old.lead(old, old);
    seen_new.lead(new, new);
    let client = connect(old).await;
    // From here on the old one knows.
    seen_old.lead(new, new);
    assert_eq!(client.increment("n", 1).await.unwrap(), 2);
    assert!(seen_new.count() == 1 && seen_old.count() >= 1);
    let ids = (seen_old.ids.lock()[0], seen_new.ids.lock()[0]);
    assert_eq!(ids.0.map(|id| id.sequence), ids.1.map(|id| id.sequence));
}

#[tokio::test]
async fn one_of_several_addresses_is_enough() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gone = listener.local_addr().unwrap();
    drop(listener);
    let (address, _) = node(|_, _| Action::Answer(found("v"))).await;
    let client = Client::connect(Config {
        address: format!("{gone}, {address}"),
        ..config(address)
    })
    .await
    .unwrap();
    assert!(client.get("k").await.unwrap().is_some());
}

#[tokio::test]
async fn a_deadline_that_passes_leaves_a_write_unknown_and_a_read_not_done() {
    let (address, _) = node(|_, _| Action::Ignore).await;
    let client = connect_hastily(address).await;
    let error = client.increment("n", 1).await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::Timeout {
                outcome: Outcome::Unknown
            }
        ),
        "{error}"
    );
    let error = client.get("k").await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::Timeout {
                outcome: Outcome::NotDone
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn what_was_never_sent_is_not_done_and_says_why() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::new(Seen::default());
    let script: Script = Arc::new(|_, _| Action::Close);
    let node = tokio::spawn(accept(listener, script, Arc::clone(&seen)));
    let client = connect_hastily(address).await;
    node.abort();
    assert!(node.await.unwrap_err().is_cancelled());
    // The first request finds the connection dead, the next finds no node at all.
    assert_eq!(
        client.set("k", "v").await.unwrap_err().outcome(),
        Outcome::Unknown
    );
    let error = client.set("k", "v").await.unwrap_err();
    assert!(matches!(error, Error::Connect { .. }), "{error}");
    assert_eq!(error.outcome(), Outcome::NotDone);
    assert_eq!(seen.count(), 1);
}

#[tokio::test]
async fn without_a_node_connecting_fails_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error = Client::connect(config(address)).await.unwrap_err();
    assert!(matches!(error, Error::Connect { .. }), "{error}");
    assert!(error.to_string().contains(&address.to_string()), "{error}");
}

#[tokio::test]
async fn the_password_is_sent_and_a_wrong_one_refused() {
    let (address, _) = node_with(Some("right"), |_, _| Action::Answer(found("v"))).await;
    let with = |password: &str| Config {
        password: Some(password.to_owned()),
        ..config(address)
    };
    let client = Client::connect(with("right")).await.unwrap();
    assert_eq!(client.get("k").await.unwrap(), Some(Bytes::from("v")));
    let error = Client::connect(with("wrong")).await.unwrap_err();
    let Error::Refused { source, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(source.code, ErrorCode::WrongPassword);
    assert!(!format!("{:?}", with("right")).contains("right"));
}

#[tokio::test]
async fn a_node_that_goes_away_is_left_without_losing_an_answer() {
    let (address, seen) = node(|connection, _| match connection {
        0 => Action::GoAway(Reply::Integer(1)),
        _ => Action::Answer(Reply::Integer(2)),
    })
    .await;
    let client = connect(address).await;
    assert_eq!(client.increment("n", 1).await.unwrap(), 1);
    assert_eq!(client.increment("n", 1).await.unwrap(), 2);
    assert_eq!(seen.connections.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn bytes_that_are_no_frame_end_the_connection() {
    let (address, _) = node(|connection, _| match connection {
        0 => Action::Garbage,
        _ => Action::Answer(found("v")),
    })
    .await;
    let client = connect(address).await;
    let error = client.set("k", "v").await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::Lost {
                outcome: Outcome::Unknown,
                ..
            }
        ),
        "{error}"
    );
    assert!(client.get("k").await.is_ok());
}

#[tokio::test]
async fn errors_of_the_node_keep_their_outcome() {
    let (address, _) = node(|_, operation| {
        Action::Answer(Reply::Error(
            if matches!(operation, Operation::Increment { .. }) {
                NodeError::not_done(ErrorCode::NotAnInteger, "no number")
            } else {
                NodeError::unknown(ErrorCode::Timeout, "too late")
            },
        ))
    })
    .await;
    let client = connect(address).await;
    let error = client.increment("n", 1).await.unwrap_err();
    let Error::Node(node) = &error else {
        panic!("{error}")
    };
    assert_eq!(
        (node.code, error.outcome()),
        (ErrorCode::NotAnInteger, Outcome::NotDone)
    );
    assert_eq!(
        client.set("k", "v").await.unwrap_err().outcome(),
        Outcome::Unknown
    );
}

#[tokio::test]
async fn a_request_longer_than_the_node_accepts_is_not_sent() {
    let (address, seen) = node(|_, _| Action::Answer(written(true, None))).await;
    let client = connect(address).await;
    let error = client
        .set("k", vec![0; PAYLOAD_BYTES_MAX])
        .await
        .unwrap_err();
    assert!(matches!(error, Error::TooLong(_)), "{error}");
    assert_eq!((error.outcome(), seen.count()), (Outcome::NotDone, 0));
    client.set("k", "v").await.unwrap();
}

#[tokio::test]
async fn stale_reads_ask_the_first_address_and_writes_are_never_stale() {
    let (near, seen) = member(|_, operation| {
        let is_read = matches!(operation, Operation::Get { .. });
        let read = || found("old");
        Action::Answer(if is_read { read() } else { written(true, None) })
    })
    .await;
    let (far, seen_far) = member(|_, operation| {
        let is_read = matches!(operation, Operation::Get { .. });
        let read = || found("new");
        Action::Answer(if is_read { read() } else { written(true, None) })
    })
    .await;
    seen.lead(far, far);
    seen_far.lead(far, far);
    let client = Client::connect(Config {
        address: format!("{near},{far}"),
        ..config(near)
    })
    .await
    .unwrap();
    let stale = client.stale_reads();
    assert_eq!(client.get("k").await.unwrap(), Some("new".into()));
    assert_eq!(stale.get("k").await.unwrap(), Some("old".into()));
    stale.set("k", "v").await.unwrap();
    assert_eq!(*seen.stale.lock(), [true]);
    assert_eq!(*seen_far.stale.lock(), [false, false]);
}

#[tokio::test]
async fn several_connections_share_the_work() {
    let (address, seen) = node(|connection, _| {
        Action::Answer(Reply::Integer(i64::try_from(connection).unwrap_or(-1)))
    })
    .await;
    let client = Client::connect(Config {
        connections: 3,
        ..config(address)
    })
    .await
    .unwrap();
    let mut turns = Vec::new();
    for _ in 0..6 {
        turns.push(client.increment("n", 1).await.unwrap());
    }
    turns.sort_unstable();
    assert_eq!(turns, [0, 0, 1, 1, 2, 2]);
    assert_eq!(seen.connections.load(Ordering::SeqCst), 3);
}

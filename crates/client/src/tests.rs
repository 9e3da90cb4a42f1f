//! The client against a node made for the test: one that answers late, in another order, wrongly
//! or not at all.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use flux_types::{Entry, Error as NodeError, ErrorCode, Reply, Revision, Written};
use flux_wire::flux::{
    Credentials, FrameDecoder, Goaway, GoawayCode, Kind, Operation, PREFACE_BYTES, Preface,
    response,
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
    connections: AtomicUsize,
    password: Option<&'static str>,
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
        let Some(frame) = decoder.next(&mut received).unwrap() else {
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
        let operation = Operation::decode(frame.header.op, frame.payload).unwrap();
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
    let error = connect(address).await.get("k").await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::Lost {
                outcome: Outcome::NotDone,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(seen.count(), 3);
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

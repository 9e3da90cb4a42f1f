//! FLUX frames on a whole node.

use bytes::{Bytes, BytesMut};
use flux_types::{Compare, Condition, Error, Expiry};
use flux_wire::flux::{
    Body, Credentials, Frame, FrameDecoder, Kind, Operation, PREFACE_BYTES, Preface, Response,
};
use flux_wire::resp::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::TestNode;

pub(crate) const BYTES_MAX: usize = 1 << 26;

pub(crate) struct Peer {
    stream: TcpStream,
    input: BytesMut,
    decoder: FrameDecoder,
}

impl Peer {
    pub(crate) async fn connect(node: &TestNode) -> Self {
        let mut stream = TcpStream::connect(node.node.addresses().resp)
            .await
            .expect("the node keeps to the protocol");
        let preface = Preface::announce(BYTES_MAX).encode();
        stream
            .write_all(&preface)
            .await
            .expect("the node keeps to the protocol");
        let mut answer = [0; PREFACE_BYTES];
        stream
            .read_exact(&mut answer)
            .await
            .expect("the node keeps to the protocol");
        Preface::decode(&answer)
            .expect("the node keeps to the protocol")
            .agrees()
            .expect("the node keeps to the protocol");
        Self {
            stream,
            input: BytesMut::new(),
            decoder: FrameDecoder::new(BYTES_MAX),
        }
    }

    async fn frame(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self
                .decoder
                .next(&mut self.input)
                .expect("the node keeps to the protocol")
            {
                return Some(frame);
            }
            if self
                .stream
                .read_buf(&mut self.input)
                .await
                .expect("the node keeps to the protocol")
                == 0
            {
                return None;
            }
        }
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        let written = self.stream.write_all(bytes).await;
        written.expect("the node keeps to the protocol");
    }

    pub(crate) async fn reply(&mut self) -> (u64, Result<Body, Error>) {
        let frame = self.frame().await.expect("a reply");
        assert_eq!(frame.header.kind, Kind::Response);
        let correlation = frame.header.correlation;
        let response = Response::decode(frame).expect("the node keeps to the protocol");
        (correlation, response.map(|response| response.body))
    }

    async fn call(&mut self, operation: Operation) -> Result<Body, Error> {
        let mut bytes = BytesMut::new();
        operation
            .write(&mut bytes, 1, 0, BYTES_MAX)
            .expect("the node keeps to the protocol");
        self.stream
            .write_all(&bytes)
            .await
            .expect("the node keeps to the protocol");
        self.reply().await.1
    }
}

fn set(key: &Bytes, value: &'static str) -> Operation {
    Operation::Set {
        key: key.clone(),
        value: value.into(),
        condition: Condition::Always,
        expiry: Expiry::Clear,
        return_previous: false,
    }
}

fn command(words: &[&'static str]) -> Operation {
    Operation::Command {
        argv: words.iter().map(|word| Bytes::from(*word)).collect(),
    }
}

#[tokio::test]
async fn a_pipeline_over_all_shards_is_answered_whole() {
    let node = TestNode::with_shards(4).await;
    let peer = Peer::connect(&node).await;
    let count: u64 = 2000;
    let keys: Vec<Bytes> = (0..count).map(|key| format!("key:{key}").into()).collect();
    let mut bytes = BytesMut::new();
    for (correlation, key) in (0..).zip(&keys) {
        let read = Operation::Get { key: key.clone() };
        set(key, "v")
            .write(&mut bytes, correlation, 0, BYTES_MAX)
            .unwrap();
        read.write(&mut bytes, count + correlation, 0, BYTES_MAX)
            .unwrap();
    }
    let (mut reading, mut writing) = peer.stream.into_split();
    let sending = tokio::spawn(async move {
        writing.write_all(&bytes).await.unwrap();
        writing
    });
    let mut decoder = FrameDecoder::new(BYTES_MAX);
    let mut input = BytesMut::new();
    let mut seen = vec![false; keys.len() * 2];
    let mut missing = seen.len();
    while missing > 0 {
        assert!(
            reading.read_buf(&mut input).await.unwrap() > 0,
            "{missing} are missing"
        );
        while let Some(frame) = decoder.next(&mut input).unwrap() {
            let correlation = frame.header.correlation;
            let body = Response::decode(frame).unwrap().unwrap().body;
            if correlation < count {
                assert!(
                    matches!(&body, Body::Written(written) if written.applied),
                    "{body:?}"
                );
            } else {
                assert!(matches!(&body, Body::Entry(_)), "{body:?}");
            }
            let place = &mut seen[usize::try_from(correlation).unwrap()];
            assert!(!*place, "{correlation} is answered twice");
            *place = true;
            missing -= 1;
        }
    }
    drop(sending.await.unwrap());
}

#[tokio::test]
async fn values_are_compared_and_redis_commands_understood() {
    let node = TestNode::with_shards(1).await;
    let mut peer = Peer::connect(&node).await;
    let key = Bytes::from_static(b"k");
    peer.call(set(&key, "v")).await.unwrap();
    let swap = |expected: &'static str| Operation::CompareAndSet {
        key: key.clone(),
        expected: Compare::ValueIs(expected.into()),
        value: "w".into(),
        expiry: Expiry::Keep,
    };
    for (expected, applied) in [("x", false), ("v", true), ("v", false)] {
        let Body::Written(written) = peer.call(swap(expected)).await.unwrap() else {
            panic!("a CAS answers what was written");
        };
        assert_eq!(written.applied, applied, "{expected}");
    }
    let size = peer.call(command(&["DBSIZE"])).await.unwrap();
    assert_eq!(size, Body::Value(Value::Integer(1)));
    let info = peer.call(command(&["INFO", "server"])).await.unwrap();
    assert!(format!("{info:?}").contains("redis_version"), "{info:?}");
    let error = peer.call(command(&["MULTI"])).await.unwrap_err();
    assert!(!error.message.is_empty());
}

#[tokio::test]
async fn a_password_is_asked_for() {
    let node = TestNode::start_with(|config| config.password = "sesame".to_owned()).await;
    let mut peer = Peer::connect(&node).await;
    let key = Bytes::from_static(b"k");
    peer.call(set(&key, "v")).await.unwrap_err();
    let credentials = Credentials {
        user: Bytes::new(),
        password: "sesame".into(),
    };
    let mut bytes = BytesMut::new();
    credentials.write(&mut bytes, 9).unwrap();
    peer.stream.write_all(&bytes).await.unwrap();
    assert_eq!(peer.reply().await, (9, Ok(Body::Nothing)));
    peer.call(set(&key, "v")).await.unwrap();
}

#[tokio::test]
async fn a_thousand_concurrent_increments_are_a_thousand() {
    let node = TestNode::with_shards(1).await;
    let mut tasks = Vec::new();
    for _ in 0..10 {
        let mut peer = Peer::connect(&node).await;
        tasks.push(tokio::spawn(async move {
            let mut bytes = BytesMut::new();
            let increment = Operation::Increment {
                key: "n".into(),
                by: 1,
            };
            for correlation in 0..100 {
                increment
                    .write(&mut bytes, correlation, 0, BYTES_MAX)
                    .unwrap();
            }
            peer.stream.write_all(&bytes).await.unwrap();
            for _ in 0..100 {
                assert!(matches!(peer.reply().await.1, Ok(Body::Integer(_))));
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let mut peer = Peer::connect(&node).await;
    let Body::Entry(Some(entry)) = peer.call(Operation::Get { key: "n".into() }).await.unwrap()
    else {
        panic!("the counter is there");
    };
    assert_eq!(&entry.value[..], b"1000");
}

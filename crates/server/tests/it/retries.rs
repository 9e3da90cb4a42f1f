//! Writes with request ids, over every protocol of a whole node.

use bytes::{Bytes, BytesMut};
use flux_proto::kv;
use flux_proto::kv::kv_client::KvClient;
use flux_proto::status;
use flux_types::{RequestId, SessionId};
use flux_wire::flux::{Asking, Body, Operation};
use tonic::Code;
use tonic::transport::Endpoint;

use crate::flux::{BYTES_MAX, Peer};
use crate::harness::TestNode;

/// A session that the node draws.
async fn session(node: &TestNode) -> String {
    let shown = node.client().await.show("FLUX.SESSION").await;
    shown.trim_matches('"').to_owned()
}

#[tokio::test]
async fn resp_does_a_write_once_and_tells_its_outcome() {
    let node = TestNode::with_shards(1).await;
    let session = session(&node).await;
    let mut client = node.client().await;
    let id = |sequence: u64| format!("{session} {sequence} 1");
    let once = format!("FLUX.REQUEST {} INCR n", id(1));
    assert_eq!(client.show(&once).await, "1");
    let mut other = node.client().await;
    assert_eq!(other.show(&once).await, "1");
    assert_eq!(other.show("GET n").await, "\"1\"");
    let outcome = |sequence: u64, key: &str| format!("FLUX.OUTCOME {} {key}", id(sequence));
    assert_eq!(other.show(&outcome(1, "")).await, "[done, 1]");
    assert_eq!(other.show(&outcome(2, "n")).await, "[not-done]");
    let late = format!("FLUX.REQUEST {} INCR n", id(2));
    let refused = client.show(&late).await;
    assert!(refused.starts_with("-ERR somebody asked"), "{refused}");
    assert_eq!(client.show("GET n").await, "\"1\"");
    let old = "FLUX.REQUEST 0190a6d4-7c2e-7d3f-8a1b-2c3d4e5f6071 1 1 INCR n";
    let refused = client.show(old).await;
    assert!(refused.starts_with("-UNCERTAIN the session"), "{refused}");
    assert_eq!(client.show("GET n").await, "\"1\"");
    node.end().await;
}

#[tokio::test]
async fn a_transaction_takes_its_request_id_with_exec() {
    let node = TestNode::with_shards(1).await;
    let session = session(&node).await;
    let mut client = node.client().await;
    for _ in 0..2 {
        assert_eq!(client.show("MULTI").await, "OK");
        assert_eq!(client.show("INCR n").await, "QUEUED");
        assert_eq!(client.show("GET n").await, "QUEUED");
        let exec = format!("FLUX.REQUEST {session} 1 1 EXEC");
        assert_eq!(client.show(&exec).await, "[1, \"1\"]");
    }
    assert_eq!(client.show("MULTI").await, "OK");
    let inside = client
        .show(&format!("FLUX.REQUEST {session} 2 1 INCR n"))
        .await;
    assert!(inside.starts_with("-ERR inside MULTI"), "{inside}");
    let exec = client.show("EXEC").await;
    assert!(exec.starts_with("-EXECABORT"), "{exec}");
    node.end().await;
}

#[tokio::test]
async fn a_command_over_several_shards_takes_no_request_id() {
    let node = TestNode::with_shards(4).await;
    let session = session(&node).await;
    let mut client = node.client().await;
    for command in ["MSET foo 1 bar 2", "DEL foo bar", "FLUSHALL"] {
        let reply = client
            .show(&format!("FLUX.REQUEST {session} 1 1 {command}"))
            .await;
        assert!(reply.starts_with("-CROSSSLOT"), "{command}: {reply}");
    }
    let one = format!("FLUX.REQUEST {session} 1 1 MSET {{foo}}a 1 {{foo}}b 2");
    assert_eq!(client.show(&one).await, "OK");
    // All shards are asked, and one has done it.
    let outcome = format!("FLUX.OUTCOME {session} 1 1");
    assert_eq!(client.show(&outcome).await, "[done, OK]");
    let outcome = format!("FLUX.OUTCOME {session} 2 1");
    assert_eq!(client.show(&outcome).await, "[not-done]");
    let late = client
        .show(&format!("FLUX.REQUEST {session} 2 1 INCR bar"))
        .await;
    assert!(late.starts_with("-ERR somebody asked"), "{late}");
    node.end().await;
}

#[tokio::test]
async fn grpc_does_a_write_once_and_tells_its_outcome() {
    let node = TestNode::with_shards(1).await;
    let session = session(&node).await;
    let address = format!("http://{}", node.node.addresses().grpc);
    let endpoint = Endpoint::from_shared(address).expect("an address");
    let mut client = KvClient::new(endpoint.connect().await.expect("the port accepts"));
    let increment = |id: String| {
        let mut request = tonic::Request::new(kv::IncrementRequest {
            key: "n".into(),
            return_revision: true,
            ..kv::IncrementRequest::default()
        });
        let id = id.parse().expect("metadata");
        request.metadata_mut().insert("flux-request-id", id);
        request
    };
    let mut answers = Vec::new();
    for _ in 0..2 {
        let answer = client.increment(increment(format!("{session}/1/1"))).await;
        answers.push(answer.unwrap().into_inner());
    }
    assert_eq!(answers[0], answers[1]);
    assert_eq!(answers[0].value, 1);
    let ask = |sequence| kv::OutcomeRequest {
        session: session.clone(),
        sequence,
        ..kv::OutcomeRequest::default()
    };
    let done = client.outcome(ask(1)).await.unwrap().into_inner();
    assert_eq!(done.outcome(), kv::WriteOutcome::Done);
    assert!(done.reply_kept);
    let never = client.outcome(ask(2)).await.unwrap().into_inner();
    assert_eq!(never.outcome(), kv::WriteOutcome::NotDone);
    // The question has raised what is still waited for.
    let forgotten = client.increment(increment(format!("{session}/1/1"))).await;
    let forgotten = forgotten.unwrap_err();
    let details = status::details(&forgotten).unwrap();
    let detail = status::flux_error(&details).unwrap();
    assert_eq!(
        (detail.code.as_str(), detail.outcome.as_str()),
        ("request-unknown", "unknown")
    );
    let malformed = client.increment(increment("1/1".to_owned())).await;
    assert_eq!(malformed.unwrap_err().code(), Code::InvalidArgument);
    let mut batch = tonic::Request::new(kv::BatchRequest::default());
    let id = format!("{session}/3/3").parse().expect("metadata");
    batch.metadata_mut().insert("flux-request-id", id);
    let refused = client.batch(batch).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    node.end().await;
}

#[tokio::test]
async fn flux_does_a_write_once() {
    let node = TestNode::with_shards(1).await;
    let session = session(&node).await;
    let session = SessionId::parse(session.as_bytes()).expect("a session");
    let increment = Operation::Increment {
        key: Bytes::from_static(b"n"),
        by: 1,
    };
    let mut bytes = BytesMut::new();
    for correlation in 1..=2 {
        let request = Some(RequestId {
            session,
            sequence: 1,
            lowest_unanswered: 1,
        });
        let asking = Asking {
            correlation,
            deadline_ms: 0,
            request,
            is_stale: false,
        };
        let written = increment.write_asking(&mut bytes, &asking, BYTES_MAX);
        written.expect("it is short");
    }
    let mut peer = Peer::connect(&node).await;
    peer.send(&bytes).await;
    for _ in 0..2 {
        let (_, body) = peer.reply().await;
        assert_eq!(body, Ok(Body::Integer(1)));
    }
    node.end().await;
}

//! Stale reads of a node that is left alone.

use std::time::{Duration, Instant};

use flux_client::{Client, Config};
use flux_proto::kv::kv_client::KvClient;
use flux_proto::kv::{
    BatchRequest, GetRequest, Operation, ReadConsistency, ScanRequest, operation,
};

use super::nodes::{Nodes, insist};
use crate::harness::resp::Value;
use crate::harness::{PATIENCE, Start, get, wait_until};

#[test]
fn a_node_left_alone_answers_stale_reads_over_grpc_and_flux_and_no_others() {
    let mut nodes = Nodes::started(3, &["--shards", "2", "--request-timeout", "1s"]);
    let mut connection = nodes.connect(0);
    for number in 0..20 {
        let words = ["SET", &format!("key:{number}"), "v"];
        assert_eq!(insist(&mut connection, &words), Value::ok());
    }
    nodes.assert_equal();
    let grpc = nodes.process(0).addresses().grpc;
    let grpc = grpc.expect("a node has gRPC");
    let gateway = Start::gateway(grpc).ready();
    wait_until("the gateway knows its upstream's services", || {
        get(gateway.http(), "/api/v1/kv?key=key:1").0 == 200
    });
    nodes.kill(1);
    nodes.kill(2);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        over_flux(nodes.address(0).to_string()).await;
        over_grpc(format!("http://{grpc}")).await;
    });
    // Over HTTP, by now without a leader.
    let path = "/api/v1/kv?key=key:1";
    let (status, _) = get(gateway.http(), path);
    assert_ne!(status, 200, "a majority is needed");
    let stale = get(
        gateway.http(),
        &format!("{path}&consistency=READ_CONSISTENCY_STALE"),
    );
    assert_eq!(stale, (200, r#"{"value":"v","found":true}"#.to_owned()));
    gateway.stop();
}

async fn over_flux(address: String) {
    let config = Config {
        request_timeout: Duration::from_secs(1),
        ..Config::new(address)
    };
    let client = Client::connect(config).await.expect("the node is there");
    let stale = client.stale_reads();
    for number in 0..20 {
        let value = stale.get(format!("key:{number}")).await;
        assert_eq!(value.expect("its own replica answers"), Some("v".into()));
    }
    let words = ["MGET", "key:1", "key:2"].map(Into::into).to_vec();
    stale.command(words).await.expect("its own replica answers");
    // It may have led, with a lease that goes on for a moment.
    let deadline = Instant::now() + PATIENCE;
    while client.get("key:1").await.is_ok() {
        assert!(Instant::now() < deadline, "a majority is needed");
    }
    stale
        .set("key:1", "w")
        .await
        .expect_err("a majority is needed");
    let value = stale.get("key:1").await.expect("its own replica answers");
    assert_eq!(value, Some("v".into()));
}

async fn over_grpc(address: String) {
    let mut client = KvClient::connect(address).await.expect("the node is there");
    let get = |consistency: ReadConsistency| GetRequest {
        key: "key:1".into(),
        consistency: consistency.into(),
        ..GetRequest::default()
    };
    let answer = client.get(get(ReadConsistency::Stale)).await;
    assert!(answer.expect("its own replica answers").into_inner().found);
    let refused = client.get(get(ReadConsistency::Unspecified)).await;
    refused.expect_err("a majority is needed");
    let operations = (0..20).map(|number| Operation {
        operation: Some(operation::Operation::Get(GetRequest {
            key: format!("key:{number}").into(),
            ..GetRequest::default()
        })),
    });
    let batch = BatchRequest {
        operations: operations.collect(),
        consistency: ReadConsistency::Stale.into(),
    };
    let answer = client.batch(batch).await.expect("its own replica answers");
    let found = answer.into_inner().results.into_iter().filter(|result| {
        use flux_proto::kv::operation_result::Result as Done;
        matches!(&result.result, Some(Done::Get(get)) if get.found)
    });
    assert_eq!(found.count(), 20);
    let scan = ScanRequest {
        prefix: "key:".into(),
        consistency: ReadConsistency::Stale.into(),
        ..ScanRequest::default()
    };
    let mut messages = client.scan(scan).await.expect("a stream").into_inner();
    let mut count = 0;
    while let Some(message) = messages.message().await.expect("its own replica answers") {
        count += message.entries.len();
    }
    assert_eq!(count, 20);
}

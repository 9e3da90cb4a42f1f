//! gRPC on a whole node.

use std::time::Duration;

use bytes::Bytes;
use flux_proto::kv::kv_client::KvClient;
use flux_proto::original::kv_service_client::KvServiceClient;
use flux_proto::{kv, original, status};
use tonic::Code;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::harness::TestNode;

async fn channel(node: &TestNode) -> Channel {
    let address = format!("http://{}", node.node.addresses().grpc);
    let endpoint = Endpoint::from_shared(address).expect("an address");
    endpoint.connect().await.expect("the port accepts")
}

fn set(key: impl Into<Bytes>, value: &'static str) -> kv::SetRequest {
    kv::SetRequest {
        key: key.into(),
        value: Some(value.into()),
        ..kv::SetRequest::default()
    }
}

fn get(key: impl Into<Bytes>) -> kv::GetRequest {
    kv::GetRequest {
        key: key.into(),
        return_revision: true,
        ..kv::GetRequest::default()
    }
}

#[tokio::test]
async fn keys_are_written_compared_counted_and_expire() {
    let node = TestNode::with_shards(1).await;
    let mut client = KvClient::new(channel(&node).await);
    assert!(
        client
            .set(set("k", "v"))
            .await
            .unwrap()
            .into_inner()
            .success
    );
    let found = client.get(get("k")).await.unwrap().into_inner();
    assert_eq!((&found.value[..], found.found), (&b"v"[..], true));
    let revision = found.revision.unwrap();

    let swap = |expected| kv::CompareAndSetRequest {
        key: "k".into(),
        expected: Some(kv::Compare {
            is: Some(kv::compare::Is::Revision(expected)),
        }),
        value: Some("w".into()),
        return_previous: true,
        return_revision: true,
        ..kv::CompareAndSetRequest::default()
    };
    let swapped = client.compare_and_set(swap(revision)).await.unwrap();
    let swapped = swapped.into_inner();
    assert!(swapped.success && swapped.revision.unwrap() > revision);
    assert_eq!(&swapped.previous.unwrap().value[..], b"v");
    let stale = client.compare_and_set(swap(revision)).await.unwrap();
    assert!(!stale.into_inner().success, "the revision has moved on");

    let increment = kv::IncrementRequest {
        key: "k".into(),
        ..kv::IncrementRequest::default()
    };
    let refused = client.increment(increment).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let details = status::details(&refused).unwrap();
    let detail = status::flux_error(&details).unwrap();
    assert_eq!(
        (detail.code.as_str(), detail.outcome.as_str()),
        ("not-an-integer", "not-done")
    );

    let expire = kv::ExpireRequest {
        key: "k".into(),
        expiry: Some(kv::expire_request::Expiry::ExpiresAtMs(1)),
        ..kv::ExpireRequest::default()
    };
    assert!(client.expire(expire).await.unwrap().into_inner().success);
    let gone = client.get(get("k")).await.unwrap().into_inner();
    assert!(!gone.found, "a deadline in the past deletes");
    let absent = kv::DeleteRequest {
        key: "k".into(),
        return_previous: true,
        ..kv::DeleteRequest::default()
    };
    let deleted = client.delete(absent).await.unwrap().into_inner();
    assert_eq!((deleted.success, deleted.deleted), (true, Some(false)));
}

#[tokio::test]
async fn a_scan_and_a_batch_reach_every_shard() {
    use kv::operation::Operation as Given;
    let node = TestNode::with_shards(4).await;
    let mut client = KvClient::new(channel(&node).await);
    let operation = |given| kv::Operation {
        operation: Some(given),
    };
    let key = |number: usize| format!("key:{number}").into_bytes();
    let operations: Vec<kv::Operation> = (0..1000)
        .map(|number| operation(Given::Set(set(key(number), "v"))))
        .collect();
    let request = kv::BatchRequest {
        operations,
        ..kv::BatchRequest::default()
    };
    let results = client.batch(request).await.unwrap();
    for result in results.into_inner().results {
        let result = result.result.unwrap();
        assert!(
            matches!(&result, kv::operation_result::Result::Set(done) if done.success),
            "{result:?}"
        );
    }
    let request = kv::ScanRequest {
        prefix: "key:".into(),
        ..kv::ScanRequest::default()
    };
    let mut stream = client.scan(request).await.unwrap().into_inner();
    let mut seen = Vec::new();
    while let Some(message) = stream.message().await.unwrap() {
        for entry in message.entries {
            assert_eq!(&entry.value[..], b"v");
            seen.push(entry.key);
        }
    }
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), 1000);
}

#[tokio::test]
async fn clients_of_the_original_interface_work() {
    let node = TestNode::with_shards(1).await;
    let mut client = KvServiceClient::new(channel(&node).await);
    let request = original::SetRequest {
        key: "hello".to_owned(),
        value: "world".to_owned(),
    };
    assert!(client.set(request).await.unwrap().into_inner().success);
    let request = original::GetRequest {
        key: "hello".to_owned(),
    };
    let found = client.get(request).await.unwrap().into_inner();
    assert_eq!((found.value.as_str(), found.found), ("world", true));
    let request = original::DelRequest {
        key: "hello".to_owned(),
    };
    assert!(client.del(request).await.unwrap().into_inner().success);
}

#[tokio::test]
async fn health_serves_and_a_shutdown_lets_go() {
    let node = TestNode::with_shards(2).await;
    let mut health = HealthClient::new(channel(&node).await);
    for service in ["", "flux.kv.v1.Kv", "service.KVService"] {
        let service = service.to_owned();
        let answer = health.check(HealthCheckRequest { service }).await.unwrap();
        assert_eq!(answer.into_inner().status(), ServingStatus::Serving);
    }
    let mut client = KvClient::new(channel(&node).await);
    client.set(set("k", "v")).await.unwrap();
    node.node.shutdown(Duration::from_secs(5)).await;
    let refused = client.set(set("k", "w")).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
}

#[tokio::test]
async fn a_password_guards_keys() {
    let node = TestNode::start_with(|config| config.password = "sesame".to_owned()).await;
    let mut client = KvClient::new(channel(&node).await);
    let refused = client.set(set("k", "v")).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let mut request = tonic::Request::new(set("k", "v"));
    let token = "Bearer sesame".parse().unwrap();
    request.metadata_mut().insert("authorization", token);
    client.set(request).await.unwrap();
}

//! The services over real sockets, on an executor in memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use flux_env::SimClock;
use flux_proto::kv::kv_client::KvClient;
use flux_proto::original::kv_service_client::KvServiceClient;
use flux_proto::{kv, original, status};
use flux_telemetry::Registry;
use flux_types::limits::FRAME_OVERHEAD_BYTES;
use flux_types::{LogIndex, ShardId, Term};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

use super::{Parts, Password, router};
use crate::execute::memory::{BUSY, LATE, Memory, SLOW};
use crate::http_listener::HttpListener;
use crate::metrics::{Metrics, Protocol};
use crate::readiness::{Readiness, ShardReadiness};
use crate::statistics::Counted;

#[derive(Debug, Default)]
struct Switch {
    is_writable: AtomicBool,
    is_draining: AtomicBool,
}

impl Readiness for Switch {
    fn shards(&self) -> Vec<ShardReadiness> {
        vec![ShardReadiness {
            shard: ShardId::new(0),
            is_writable: self.is_writable.load(Ordering::SeqCst),
            is_led_elsewhere: false,
            members: (1, 0),
            role: "leader".to_owned(),
            term: Term::new(1),
            committed: LogIndex::new(1),
            applied: LogIndex::new(1),
            failure: None,
        }]
    }

    fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::SeqCst)
    }
}

/// A running gRPC port.
struct Server {
    address: String,
    executor: Memory,
    readiness: Arc<Switch>,
    metrics: Metrics,
    clock: Arc<SimClock>,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

const VALUE_BYTES_MAX: usize = 64 * 1024;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

async fn start(password: &'static str) -> Server {
    let executor = Memory::new();
    let readiness = Arc::new(Switch::default());
    readiness.is_writable.store(true, Ordering::SeqCst);
    let metrics = Metrics::new(&Registry::new());
    let clock = Arc::new(SimClock::new(0));
    let router = router(Parts {
        executor: executor.clone(),
        clock: Arc::<SimClock>::clone(&clock),
        metrics: metrics.clone(),
        readiness: Arc::<Switch>::clone(&readiness),
        request_timeout: REQUEST_TIMEOUT,
        value_bytes_max: VALUE_BYTES_MAX,
        password: Password::new(move || password.into()),
        changes: None,
        cluster: None,
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let shutdown = CancellationToken::new();
    let http = HttpListener {
        listener,
        router,
        protocol: Protocol::Grpc,
        permits: Arc::new(Semaphore::new(4)),
        metrics: metrics.clone(),
    };
    let task = tokio::spawn(http.serve(shutdown.clone()));
    Server {
        address,
        executor,
        readiness,
        metrics,
        clock,
        shutdown,
        task,
    }
}

impl Server {
    async fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_shared(self.address.clone()).unwrap();
        endpoint.connect().await.unwrap()
    }

    async fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel().await)
    }

    async fn original(&self) -> KvServiceClient<Channel> {
        KvServiceClient::new(self.channel().await)
    }
}

fn set(key: &[u8], value: impl Into<Bytes>) -> kv::SetRequest {
    kv::SetRequest {
        key: Bytes::copy_from_slice(key),
        value: Some(value.into()),
        ..kv::SetRequest::default()
    }
}

fn get(key: &[u8]) -> kv::GetRequest {
    kv::GetRequest {
        key: Bytes::copy_from_slice(key),
        ..kv::GetRequest::default()
    }
}

#[tokio::test]
async fn every_call_answers() {
    let server = start("").await;
    let mut client = server.kv().await;
    let done = client.set(set(b"hello", "world")).await.unwrap();
    assert_eq!(
        done.into_inner(),
        kv::SetResponse {
            success: true,
            ..kv::SetResponse::default()
        }
    );
    let found = client.get(get(b"hello")).await.unwrap().into_inner();
    assert_eq!((&found.value[..], found.found), (&b"world"[..], true));
    let swapped = client
        .compare_and_set(kv::CompareAndSetRequest {
            key: "hello".into(),
            expected: Some(kv::Compare {
                is: Some(kv::compare::Is::Value("nobody".into())),
            }),
            value: Some("x".into()),
            return_previous: true,
            ..kv::CompareAndSetRequest::default()
        })
        .await
        .unwrap()
        .into_inner();
    assert!(!swapped.success);
    assert_eq!(&swapped.previous.unwrap().value[..], b"world");
    let number = client
        .increment(kv::IncrementRequest {
            key: "n".into(),
            by: Some(-2),
            return_revision: true,
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!((number.value, number.revision), (-2, Some(2)));
    let expired = client
        .expire(kv::ExpireRequest {
            key: "n".into(),
            expiry: Some(kv::expire_request::Expiry::TtlMs(50)),
            ..kv::ExpireRequest::default()
        })
        .await
        .unwrap();
    assert!(expired.into_inner().success);
    let gone = client
        .delete(kv::DeleteRequest {
            key: "hello".into(),
            return_previous: true,
            ..kv::DeleteRequest::default()
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!((gone.success, gone.deleted), (true, Some(true)));
    assert_eq!(Counted::of(&server.metrics).calls(), 6);
}

#[tokio::test]
async fn clients_of_the_original_interface_work() {
    let server = start("").await;
    let mut client = server.original().await;
    let key = || "hello".to_owned();
    let request = original::SetRequest {
        key: key(),
        value: "world".to_owned(),
    };
    assert!(client.set(request).await.unwrap().into_inner().success);
    let request = original::GetRequest { key: key() };
    let found = client.get(request.clone()).await.unwrap().into_inner();
    assert_eq!((found.value.as_str(), found.found), ("world", true));
    let delete = original::DelRequest { key: key() };
    assert!(
        client
            .del(delete.clone())
            .await
            .unwrap()
            .into_inner()
            .success
    );
    assert!(client.del(delete).await.unwrap().into_inner().success);
    assert!(!client.get(request).await.unwrap().into_inner().found);
}

#[tokio::test]
async fn a_missing_field_is_named_and_an_empty_value_is_stored() {
    let server = start("").await;
    let mut client = server.kv().await;
    let mut violation = async |request: kv::SetRequest| {
        let refused = client.set(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        let details = status::details(&refused).unwrap();
        let violations = status::bad_request(&details).unwrap().field_violations;
        assert_eq!(status::flux_error(&details).unwrap().outcome, "not-done");
        violations[0].field.clone()
    };
    assert_eq!(violation(set(b"", "v")).await, "key");
    let without_value = kv::SetRequest {
        value: None,
        ..set(b"k", "")
    };
    assert_eq!(violation(without_value).await, "value");
    let too_long = set(b"k", vec![0; VALUE_BYTES_MAX + 1]);
    assert_eq!(violation(too_long).await, "value");
    client.set(set(b"k", "")).await.unwrap();
    assert!(client.get(get(b"k")).await.unwrap().into_inner().found);
}

#[tokio::test]
async fn every_error_tells_whether_the_write_happened() {
    let server = start("").await;
    let mut client = server.kv().await;
    for (key, code, word, outcome) in [
        (BUSY, Code::ResourceExhausted, "busy", "not-done"),
        (LATE, Code::DeadlineExceeded, "timeout", "unknown"),
    ] {
        let refused = client.set(set(key, "v")).await.unwrap_err();
        assert_eq!(refused.code(), code);
        let details = status::details(&refused).unwrap();
        let detail = status::flux_error(&details).unwrap();
        assert_eq!(
            (detail.code.as_str(), detail.outcome.as_str()),
            (word, outcome)
        );
    }
}

#[tokio::test]
async fn a_message_beyond_the_limit_is_refused_and_the_connection_lives() {
    let server = start("").await;
    let mut client = server.kv().await;
    let too_long = set(b"k", vec![0; VALUE_BYTES_MAX + FRAME_OVERHEAD_BYTES + 1]);
    let refused = client.set(too_long).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange);
    let longest = set(b"k", vec![b'x'; VALUE_BYTES_MAX]);
    assert!(client.set(longest).await.unwrap().into_inner().success);
}

#[tokio::test]
async fn the_deadline_is_the_callers_or_else_ours() {
    let server = start("").await;
    let mut client = server.kv().await;
    client.get(get(b"k")).await.unwrap();
    let mut hurried = Request::new(get(b"k"));
    hurried.set_timeout(Duration::from_millis(250));
    client.get(hurried).await.unwrap();
    let now = flux_env::Clock::now(&*server.clock);
    assert_eq!(
        server.executor.deadlines(),
        [now + REQUEST_TIMEOUT, now + Duration::from_millis(250)]
    );
    let mut nonsense = Request::new(get(b"k"));
    let metadata = nonsense.metadata_mut();
    metadata.insert("grpc-timeout", "soon".parse().unwrap());
    let refused = client.get(nonsense).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_batch_has_one_result_for_each_operation() {
    use kv::operation::Operation as Given;
    use kv::operation_result::Result as Done;
    let server = start("").await;
    let mut client = server.kv().await;
    let operations = [
        Given::Set(set(b"a", "1")),
        Given::Set(set(b"", "1")),
        Given::Set(set(BUSY, "1")),
        Given::Increment(kv::IncrementRequest {
            key: "a".into(),
            ..kv::IncrementRequest::default()
        }),
        Given::Get(get(b"absent")),
    ];
    let operations = operations.map(|given| kv::Operation {
        operation: Some(given),
    });
    let request = kv::BatchRequest {
        operations: operations.to_vec(),
        ..kv::BatchRequest::default()
    };
    let results = client.batch(request).await.unwrap().into_inner().results;
    let results: Vec<Done> = results.into_iter().map(|one| one.result.unwrap()).collect();
    assert!(matches!(&results[0], Done::Set(done) if done.success));
    assert!(
        matches!(&results[1], Done::Error(failed) if failed.code == Code::InvalidArgument as i32)
    );
    assert!(
        matches!(&results[2], Done::Error(failed) if failed.code == Code::ResourceExhausted as i32)
    );
    assert!(matches!(&results[3], Done::Increment(done) if done.value == 2));
    assert!(matches!(&results[4], Done::Get(done) if !done.found));

    let request = kv::BatchRequest {
        operations: vec![kv::Operation::default(); 4097],
        ..kv::BatchRequest::default()
    };
    let refused = client.batch(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_batch_of_reads_stops_when_the_response_is_full() {
    use kv::operation_result::Result as Done;
    let server = start("").await;
    let mut client = server.kv().await;
    client
        .set(set(b"k", vec![b'x'; VALUE_BYTES_MAX]))
        .await
        .unwrap();
    let read = kv::Operation {
        operation: Some(kv::operation::Operation::Get(get(b"k"))),
    };
    let operations = vec![read; 1000];
    let request = kv::BatchRequest {
        operations,
        ..kv::BatchRequest::default()
    };
    let answer = client.batch(request).await.unwrap();
    let results = answer.into_inner().results;
    assert_eq!(results.len(), 1000);
    let is_value = |result: &kv::OperationResult| {
        if let Done::Error(failed) = result.result.as_ref().unwrap() {
            assert_eq!(status::flux_error(failed).unwrap().code, "too-large");
            return false;
        }
        true
    };
    let values = results.iter().take_while(|result| is_value(result)).count();
    assert!(values > 10, "{values} values in 1 MiB");
    assert!(!results[values..].iter().any(is_value));
    let read = server.executor.deadlines().len();
    assert!(read < 100, "{read} were run");
}

async fn scanned(
    client: &mut KvClient<Channel>,
    request: kv::ScanRequest,
) -> (Vec<kv::ScanResponse>, Vec<String>) {
    let mut stream = client.scan(request).await.unwrap().into_inner();
    let (mut messages, mut keys) = (Vec::new(), Vec::new());
    while let Some(message) = stream.message().await.unwrap() {
        for entry in &message.entries {
            keys.push(String::from_utf8(entry.key.to_vec()).unwrap());
        }
        messages.push(message);
    }
    (messages, keys)
}

#[tokio::test]
async fn a_scan_streams_every_entry_with_the_prefix_and_can_be_resumed() {
    let server = start("").await;
    let mut client = server.kv().await;
    let value = vec![b'x'; 1000];
    for number in 0..700 {
        let key = format!("user:{number:03}");
        client
            .set(set(key.as_bytes(), value.clone()))
            .await
            .unwrap();
    }
    client.set(set(b"other", "1")).await.unwrap();
    let request = kv::ScanRequest {
        prefix: "user:".into(),
        ..kv::ScanRequest::default()
    };
    let (messages, mut keys) = scanned(&mut client, request.clone()).await;
    assert!(messages.len() > 2, "700 KB come in several messages");
    assert_eq!(messages.last().unwrap().cursor, "");
    assert_eq!(&messages[0].entries[0].value[..], &value[..]);
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), 700);

    // Every message but the last tells where to go on, and going on misses nothing.
    let mut seen: Vec<String> = Vec::new();
    let mut cursor = String::new();
    for _ in 0..100 {
        let request = kv::ScanRequest {
            cursor: cursor.clone(),
            limit: 10,
            keys_only: true,
            ..request.clone()
        };
        let (messages, keys) = scanned(&mut client, request).await;
        assert!(
            messages[0]
                .entries
                .iter()
                .all(|entry| entry.value.is_empty())
        );
        seen.extend(keys);
        cursor.clone_from(&messages.last().unwrap().cursor);
        if cursor.is_empty() {
            break;
        }
    }
    seen.sort_unstable();
    assert_eq!(seen, keys, "pages of ten, resumed, are the whole");

    let request = kv::ScanRequest {
        cursor: "nonsense".to_owned(),
        ..kv::ScanRequest::default()
    };
    let refused = client.scan(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_password_guards_everything_but_health() {
    let server = start("sesame").await;
    let mut client = server.kv().await;
    let refused = client.get(get(b"k")).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let details = status::details(&refused).unwrap();
    assert_eq!(
        status::flux_error(&details).unwrap().code,
        "unauthenticated"
    );
    let with = |token: &str| {
        let mut request = Request::new(get(b"k"));
        let metadata = request.metadata_mut();
        metadata.insert("authorization", token.parse().unwrap());
        request
    };
    let refused = client.get(with("Bearer open")).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    client.get(with("Bearer sesame")).await.unwrap();
    let mut original = server.original().await;
    let request = original::GetRequest {
        key: "k".to_owned(),
    };
    let refused = original.get(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(reflected(&server).await.is_err());
    let mut health = HealthClient::new(server.channel().await);
    health.check(HealthCheckRequest::default()).await.unwrap();
}

async fn reflected(server: &Server) -> Result<Vec<String>, tonic::Status> {
    let mut client = ServerReflectionClient::new(server.channel().await);
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let requests = futures_util::stream::iter([request]);
    let mut answers = client.server_reflection_info(requests).await?.into_inner();
    let Some(ServerReflectionResponse {
        message_response: Some(MessageResponse::ListServicesResponse(list)),
        ..
    }) = answers.message().await?
    else {
        panic!("no list of services");
    };
    Ok(list
        .service
        .into_iter()
        .map(|service| service.name)
        .collect())
}

#[tokio::test]
async fn reflection_lists_both_interfaces() {
    let server = start("").await;
    let services = reflected(&server).await.unwrap();
    for name in [
        "flux.kv.v1.Kv",
        "service.KVService",
        "grpc.health.v1.Health",
    ] {
        assert!(services.iter().any(|listed| listed == name), "{services:?}");
    }
}

#[tokio::test]
async fn health_follows_the_shards_and_the_shutdown() {
    let server = start("").await;
    let mut client = HealthClient::new(server.channel().await);
    let mut status = async |service: &str| {
        let service = service.to_owned();
        let answer = client.check(HealthCheckRequest { service }).await?;
        Ok::<_, tonic::Status>(answer.into_inner().status())
    };
    for service in ["", "flux.kv.v1.Kv", "service.KVService"] {
        assert_eq!(status(service).await.unwrap(), ServingStatus::Serving);
    }
    assert_eq!(status("else").await.unwrap_err().code(), Code::NotFound);
    server.readiness.is_writable.store(false, Ordering::SeqCst);
    assert_eq!(status("").await.unwrap(), ServingStatus::NotServing);
    server.readiness.is_writable.store(true, Ordering::SeqCst);
    server.readiness.is_draining.store(true, Ordering::SeqCst);
    assert_eq!(status("").await.unwrap(), ServingStatus::NotServing);
}

#[tokio::test]
async fn a_watcher_of_health_sees_changes_and_is_let_go_at_shutdown() {
    let server = start("").await;
    server.readiness.is_writable.store(false, Ordering::SeqCst);
    let mut client = HealthClient::new(server.channel().await);
    let mut changes = client
        .watch(HealthCheckRequest::default())
        .await
        .unwrap()
        .into_inner();
    let first = changes.message().await.unwrap().unwrap();
    assert_eq!(first.status(), ServingStatus::NotServing);
    server.readiness.is_writable.store(true, Ordering::SeqCst);
    let second = changes.message().await.unwrap().unwrap();
    assert_eq!(second.status(), ServingStatus::Serving);
    server.readiness.is_draining.store(true, Ordering::SeqCst);
    let last = changes.message().await.unwrap().unwrap();
    assert_eq!(last.status(), ServingStatus::NotServing);
    assert_eq!(changes.message().await.unwrap(), None);
}

#[tokio::test]
async fn a_shutdown_finishes_what_is_in_hand_and_then_closes() {
    let server = start("").await;
    let mut client = server.kv().await;
    let mut slow = server.kv().await;
    client.get(get(b"k")).await.unwrap();
    let in_hand = tokio::spawn(async move { slow.set(set(SLOW, "v")).await });
    while server.executor.deadlines().len() < 2 {
        tokio::task::yield_now().await;
    }
    server.shutdown.cancel();
    // New connections are refused once the listener is closed.
    while tokio::net::TcpStream::connect(server.address.trim_start_matches("http://"))
        .await
        .is_ok()
    {
        tokio::task::yield_now().await;
    }
    assert!(!server.task.is_finished(), "a call is in hand");
    server.executor.release();
    assert!(in_hand.await.unwrap().unwrap().into_inner().success);
    server.task.await.unwrap();
    assert_eq!(server.metrics.connections(), 0);
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed_and_counted() {
    let server = start("").await;
    let mut kept = Vec::new();
    for _ in 0..4 {
        let mut client = server.kv().await;
        client.get(get(b"k")).await.unwrap();
        kept.push(client);
    }
    let endpoint = Endpoint::from_shared(server.address.clone()).unwrap();
    let fifth = KvClient::new(endpoint.connect_lazy()).get(get(b"k")).await;
    fifth.unwrap_err();
    let text = server.metrics.registry().encode();
    assert!(
        !text.contains("flux_server_connections_refused_total{protocol=\"grpc\"} 0"),
        "{text}"
    );
    for mut client in kept {
        client.get(get(b"k")).await.unwrap();
    }
}

#[tokio::test]
async fn a_read_that_asks_to_be_stale_waits_for_nobody() {
    let server = start("").await;
    let mut client = server.kv().await;
    client.set(set(b"k", "v")).await.unwrap();
    let stale = kv::ReadConsistency::Stale.into();
    let asks = |key: &[u8], consistency| kv::GetRequest {
        consistency,
        ..get(key)
    };
    // Whoever asks a shard for this key waits.
    let found = client.get(asks(SLOW, stale)).await.unwrap().into_inner();
    assert!(!found.found);
    let found = client.get(asks(b"k", stale)).await.unwrap().into_inner();
    assert_eq!((&found.value[..], found.found), (&b"v"[..], true));
    let operation = |request: kv::GetRequest| kv::Operation {
        operation: Some(kv::operation::Operation::Get(request)),
    };
    for (whole, one) in [(stale, 0), (0, stale)] {
        let request = kv::BatchRequest {
            operations: vec![operation(asks(SLOW, one)), operation(asks(b"k", one))],
            consistency: whole,
        };
        let results = client.batch(request).await.unwrap().into_inner().results;
        let found: Vec<bool> = results
            .into_iter()
            .map(|result| matches!(result.result, Some(kv::operation_result::Result::Get(get)) if get.found))
            .collect();
        assert_eq!(found, [false, true]);
    }
    // What is not known might ask for more than is given.
    let refused = client.get(asks(b"k", 7)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let scan = kv::ScanRequest {
        consistency: 7,
        ..kv::ScanRequest::default()
    };
    let refused = client.scan(scan).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}

//! The admin port over a real socket.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use flux_telemetry::checks::{Finding, Need};
use flux_telemetry::{Checks, Registry};
use flux_types::{LogIndex, ShardId, Term};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::router;
use crate::http_listener::HttpListener;
use crate::metrics::{Metrics, Protocol};
use crate::readiness::{Readiness, ShardReadiness};

#[derive(Debug, Default)]
struct TwoShards {
    second_is_writable: AtomicBool,
    is_draining: AtomicBool,
}

impl Readiness for TwoShards {
    fn shards(&self) -> Vec<ShardReadiness> {
        let shard = |number, is_writable| ShardReadiness {
            shard: ShardId::new(number),
            is_writable,
            is_led_elsewhere: false,
            members: (1, 0),
            role: if is_writable { "leader" } else { "candidate" }.to_owned(),
            term: Term::new(3),
            committed: LogIndex::new(8),
            applied: LogIndex::new(7),
            failure: None,
        };
        let second = self.second_is_writable.load(Ordering::SeqCst);
        vec![shard(0, true), shard(1, second)]
    }

    fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::SeqCst)
    }
}

struct Server {
    address: std::net::SocketAddr,
    readiness: Arc<TwoShards>,
    checks: Checks,
}

async fn start() -> Server {
    let readiness = Arc::new(TwoShards::default());
    let metrics = Metrics::new(&Registry::new());
    let checks = Checks::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let http = HttpListener {
        listener,
        router: router(
            metrics.clone(),
            Arc::<TwoShards>::clone(&readiness),
            checks.clone(),
        ),
        protocol: Protocol::Admin,
        permits: Arc::new(Semaphore::new(4)),
        metrics,
    };
    tokio::spawn(http.serve(CancellationToken::new()));
    Server {
        address,
        readiness,
        checks,
    }
}

impl Server {
    /// Status line, headers and body of an answer.
    async fn get(&self, path: &str, headers: &str) -> (String, String, String) {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let (status, headers) = head.split_once("\r\n").unwrap();
        (status.to_owned(), headers.to_owned(), body.to_owned())
    }
}

#[tokio::test]
async fn the_process_is_alive_and_ready_when_every_shard_takes_writes() {
    let server = start().await;
    let (status, _, body) = server.get("/healthz", "").await;
    assert_eq!(
        (status.as_str(), body.as_str()),
        ("HTTP/1.1 200 OK", "ok\n")
    );
    let (status, _, body) = server.get("/readyz", "").await;
    assert_eq!(status, "HTTP/1.1 503 Service Unavailable");
    assert_eq!(
        body,
        "not ready\n[-]shard-1 failed: not writable, candidate of term 3, applied 7 of 8\n"
    );
    server
        .readiness
        .second_is_writable
        .store(true, Ordering::SeqCst);
    let (status, _, body) = server.get("/readyz", "").await;
    assert_eq!(
        (status.as_str(), body.as_str()),
        ("HTTP/1.1 200 OK", "ready\n")
    );
    let (_, _, body) = server.get("/readyz?verbose", "").await;
    assert_eq!(
        body,
        "ready\n[+]shard-0 ok: leader of term 3, applied 7 of 8\n\
         [+]shard-1 ok: leader of term 3, applied 7 of 8\n"
    );
    let (_, _, body) = server.get("/readyz", "accept: application/json\r\n").await;
    let json: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(json["status"], "ready");
    assert_eq!(json["shards"][1]["applied_index"], 7);
    server.readiness.is_draining.store(true, Ordering::SeqCst);
    let (status, _, body) = server.get("/readyz", "").await;
    assert_eq!(status, "HTTP/1.1 503 Service Unavailable");
    assert_eq!(body, "shutting down\n");
    let (status, ..) = server.get("/healthz", "").await;
    assert_eq!(status, "HTTP/1.1 200 OK");
}

#[tokio::test]
async fn what_others_have_added_is_shown_and_only_what_is_required_decides() {
    let server = start().await;
    let shards = &server.readiness.second_is_writable;
    shards.store(true, Ordering::SeqCst);
    server.checks.add("etcd", Need::Optional, || {
        Finding::Failed("no answer".to_owned())
    });
    let (status, _, body) = server.get("/readyz?verbose", "").await;
    assert_eq!(status, "HTTP/1.1 200 OK");
    let line = "[-]etcd failed (serving goes on): no answer";
    assert_eq!(body.lines().last(), Some(line), "{body}");
    server.checks.add("sink", Need::Required, || {
        Finding::Failed("gone".to_owned())
    });
    let (status, _, body) = server.get("/readyz", "").await;
    assert_eq!(status, "HTTP/1.1 503 Service Unavailable");
    assert_eq!(body, "not ready\n[-]sink failed: gone\n");
    let (_, _, body) = server.get("/readyz", "accept: application/json\r\n").await;
    let json: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(json["checks"][2]["name"], "etcd");
    assert_eq!(json["checks"][2]["required"], false);
}

#[tokio::test]
async fn metrics_are_well_formed() {
    let server = start().await;
    let (_, headers, classic) = server.get("/metrics", "").await;
    assert!(headers.contains("text/plain; version=0.0.4"), "{headers}");
    assert!(
        classic.contains("# TYPE flux_server_commands_total counter\n"),
        "{classic}"
    );
    let accept = "accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5\r\n";
    let (status, headers, body) = server.get("/metrics", accept).await;
    assert_eq!(status, "HTTP/1.1 200 OK");
    assert!(
        headers.contains("application/openmetrics-text"),
        "{headers}"
    );
    let mut families = Vec::new();
    let mut samples = 0;
    for line in body.lines() {
        if let Some(family) = line.strip_prefix("# TYPE ") {
            families.push(family.split_once(' ').unwrap().0.to_owned());
        } else if !line.starts_with('#') {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let name = series.split('{').next().unwrap();
            let family = families.last().unwrap();
            assert!(name.starts_with(family.as_str()), "{line} under {family}");
            assert_eq!(series.contains('{'), series.ends_with('}'), "{line}");
            value.parse::<f64>().unwrap();
            samples += 1;
        }
    }
    assert!(body.ends_with("# EOF\n"));
    assert!(
        families.len() >= 7 && samples > 100,
        "{families:?} {samples}"
    );
}

#[tokio::test]
async fn the_index_names_what_is_here_and_the_rest_is_not_found() {
    let server = start().await;
    let (_, _, body) = server.get("/", "").await;
    assert!(body.contains("/metrics") && body.contains("/readyz"));
    let (status, ..) = server.get("/nothing", "").await;
    assert_eq!(status, "HTTP/1.1 404 Not Found");
}

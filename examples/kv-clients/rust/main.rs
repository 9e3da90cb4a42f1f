//! The key-value service from Rust, over gRPC: `cargo run --example kv_client [HOST:PORT]`.

use std::error::Error;
use std::time::Duration;

use flux_proto::kv::kv_client::KvClient;
use flux_proto::kv::{
    DeleteRequest, GetRequest, IncrementRequest, ScanRequest, SetRequest, set_request,
};
use tonic::transport::Endpoint;

/// What the client saw, a line each.
///
/// # Errors
/// If a call fails that should not.
pub(crate) async fn run(address: &str) -> Result<Vec<String>, Box<dyn Error>> {
    // Every call has a deadline: without one it may wait for ever.
    let endpoint = Endpoint::try_from(format!("http://{address}"))?;
    let channel = endpoint.timeout(Duration::from_secs(10)).connect().await?;
    let mut kv = KvClient::new(channel);
    let mut lines = Vec::new();

    kv.set(SetRequest {
        key: "rust".into(),
        value: Some("hello".into()),
        expiry: Some(set_request::Expiry::TtlMs(60_000)),
        ..SetRequest::default()
    })
    .await?;
    let request = GetRequest {
        key: "rust".into(),
        ..GetRequest::default()
    };
    let answer = kv.get(request).await?.into_inner();
    lines.push(format!("rust = {}", String::from_utf8_lossy(&answer.value)));

    let mut count = 0;
    for _ in 0..3 {
        let request = IncrementRequest {
            key: "rust:count".into(),
            ..IncrementRequest::default()
        };
        count = kv.increment(request).await?.into_inner().value;
    }
    lines.push(format!("rust:count = {count}"));

    let request = ScanRequest {
        prefix: "rust".into(),
        keys_only: true,
        ..ScanRequest::default()
    };
    let mut scan = kv.scan(request).await?.into_inner();
    let mut keys = Vec::new();
    while let Some(batch) = scan.message().await? {
        keys.extend(batch.entries.into_iter().map(|entry| entry.key));
    }
    keys.sort();
    for key in keys {
        lines.push(format!("found {}", String::from_utf8_lossy(&key)));
    }

    kv.delete(DeleteRequest {
        key: "rust:count".into(),
        ..DeleteRequest::default()
    })
    .await?;
    if let Err(status) = kv.get(GetRequest::default()).await {
        lines.push(format!("without a key: {:?}", status.code()));
    }
    Ok(lines)
}

#[tokio::main(flavor = "current_thread")]
#[expect(clippy::print_stdout, reason = "a program talks")]
async fn main() -> Result<(), Box<dyn Error>> {
    let address = std::env::args().nth(1);
    for line in run(address.as_deref().unwrap_or("127.0.0.1:50052")).await? {
        println!("{line}");
    }
    Ok(())
}

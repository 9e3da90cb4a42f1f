//! A closed loop of gRPC Sets for `scripts/bench-gateway`: `grpc_load HOST:PORT CONNECTIONS SECONDS`.
//!
//! Each connection has one call under way; keys are spread over 100,000. Prints one line of JSON.

use std::error::Error;
use std::time::Duration;

use flux_proto::kv::SetRequest;
use flux_proto::kv::kv_client::KvClient;
use hdrhistogram::Histogram;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::transport::Endpoint;

/// Longest latency that is told apart, in microseconds.
const MICROS_MAX: u64 = 60_000_000;
const KEYS: u64 = 100_000;

type Failure = Box<dyn Error + Send + Sync>;

async fn connection(
    address: String,
    number: u64,
    seconds: Duration,
) -> Result<Histogram<u64>, Failure> {
    let channel = Endpoint::try_from(format!("http://{address}"))?
        .connect()
        .await?;
    let mut client = KvClient::new(channel);
    let mut latencies = Histogram::new_with_max(MICROS_MAX, 3)?;
    let end = Instant::now() + seconds;
    let mut turn = number * 7_919;
    loop {
        let begun = Instant::now();
        if begun >= end {
            return Ok(latencies);
        }
        turn = (turn + 1) % KEYS;
        client
            .set(SetRequest {
                key: format!("bench:{turn:06}").into(),
                value: Some(vec![b'x'; 64].into()),
                ..SetRequest::default()
            })
            .await?;
        let micros = u64::try_from(begun.elapsed().as_micros())?;
        latencies.saturating_record(micros.max(1));
    }
}

#[tokio::main(flavor = "current_thread")]
#[expect(clippy::print_stdout, reason = "a program talks")]
async fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1);
    let mut next = || args.next().ok_or("grpc_load HOST:PORT CONNECTIONS SECONDS");
    let (address, connections, seconds) =
        (next()?, next()?.parse::<u64>()?, next()?.parse::<u64>()?);
    let begun = Instant::now();
    let mut running = JoinSet::new();
    for number in 0..connections {
        let seconds = Duration::from_secs(seconds);
        running.spawn(connection(address.clone(), number, seconds));
    }
    let mut all = Histogram::new_with_max(MICROS_MAX, 3)?;
    while let Some(ended) = running.join_next().await {
        all.add(ended??)?;
    }
    let elapsed = begun.elapsed().as_secs_f64();
    println!(
        "{{\"calls\":{},\"seconds\":{elapsed:.3},\"p50_us\":{},\"p99_us\":{}}}",
        all.len(),
        all.value_at_quantile(0.5),
        all.value_at_quantile(0.99)
    );
    Ok(())
}

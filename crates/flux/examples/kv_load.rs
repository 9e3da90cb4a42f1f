//! A closed loop of linearizable puts or gets, for `scripts/bench-etcd` and `scripts/bench-gateway`:
//! `kv_load etcd|grpc|flux put|get|fill HOST:PORT[,HOST:PORT…] CLIENTS SECONDS [CONNECTIONS [KEYS]]`.
//!
//! Each client has one call under way. As many of them as there are connections, 64 unless it is said
//! otherwise, have one of their own, further ones share those. Clients take the addresses in turn. Keys
//! are spread over 10,000 unless it is said otherwise, values have 64 bytes.
//! Prints one line of JSON. etcd is spoken to with the two calls of its public API that are needed
//! (`etcdserverpb.KV/Put` and `Range`, rpc.proto of etcd 3.4; a range is linearizable unless it says
//! otherwise).

use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use flux_proto::kv::kv_client::KvClient;
use flux_proto::kv::{GetRequest, SetRequest};
use hdrhistogram::Histogram;
use http::uri::PathAndQuery;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

/// Longest latency that is told apart, in microseconds.
const MICROS_MAX: u64 = 60_000_000;
const KEYS: u64 = 10_000;
/// Connections, and how many keys are put at once to fill a store.
const CONNECTIONS: usize = 64;
const USAGE: &str = "kv_load etcd|grpc|flux put|get|fill HOST:PORT[,HOST:PORT...] CLIENTS SECONDS \
                     [CONNECTIONS [KEYS]]";

type Failure = Box<dyn Error + Send + Sync>;

/// etcd's `PutRequest`, as far as it is used.
#[derive(Clone, PartialEq, prost::Message)]
struct EtcdPut {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

/// etcd's `RangeRequest`, as far as it is used.
#[derive(Clone, PartialEq, prost::Message)]
struct EtcdRange {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
}

/// An answer of which nothing but its number of bytes is looked at.
#[derive(Clone, PartialEq, prost::Message)]
struct EtcdAnswer {
    /// `RangeResponse.count`.
    #[prost(int64, tag = "4")]
    count: i64,
}

/// One connection to whatever is measured.
#[derive(Clone, Debug)]
enum Target {
    Etcd(Channel),
    Grpc(KvClient<Channel>),
    Flux(flux_client::Client),
}

impl Target {
    async fn connect(kind: &str, address: &str) -> Result<Self, Failure> {
        if kind == "flux" {
            let config = flux_client::Config {
                request_timeout: Duration::from_secs(10),
                ..flux_client::Config::new(address)
            };
            return Ok(Self::Flux(flux_client::Client::connect(config).await?));
        }
        let endpoint = Endpoint::try_from(format!("http://{address}"))?;
        let channel = endpoint.connect().await?;
        match kind {
            "etcd" => Ok(Self::Etcd(channel)),
            "grpc" => Ok(Self::Grpc(KvClient::new(channel))),
            _ => Err(USAGE.into()),
        }
    }

    async fn put(&mut self, key: String, value: Bytes) -> Result<(), Failure> {
        match self {
            Self::Etcd(channel) => {
                let key = key.into();
                etcd(channel, "/etcdserverpb.KV/Put", EtcdPut { key, value }).await?;
            }
            Self::Grpc(client) => {
                let request = SetRequest {
                    key: key.into(),
                    value: Some(value),
                    ..SetRequest::default()
                };
                client.set(request).await?;
            }
            Self::Flux(client) => client.set(key, value).await?,
        }
        Ok(())
    }

    /// Gets a key that is there.
    async fn get(&mut self, key: String) -> Result<(), Failure> {
        let is_found = match self {
            Self::Etcd(channel) => {
                let request = EtcdRange { key: key.into() };
                etcd(channel, "/etcdserverpb.KV/Range", request)
                    .await?
                    .count
                    == 1
            }
            Self::Grpc(client) => {
                let request = GetRequest {
                    key: key.into(),
                    ..GetRequest::default()
                };
                client.get(request).await?.into_inner().found
            }
            Self::Flux(client) => client.get(key).await?.is_some(),
        };
        is_found
            .then_some(())
            .ok_or_else(|| "a key is absent: run put first".into())
    }
}

async fn etcd<Request>(
    channel: &Channel,
    path: &'static str,
    request: Request,
) -> Result<EtcdAnswer, Failure>
where
    Request: prost::Message + Send + Sync + 'static,
{
    let mut client = Grpc::new(channel.clone());
    client.ready().await?;
    let codec: ProstCodec<Request, EtcdAnswer> = ProstCodec::default();
    let path = PathAndQuery::from_static(path);
    let request = tonic::Request::new(request);
    Ok(client.unary(request, path, codec).await?.into_inner())
}

/// What a client does, until when.
#[derive(Clone, Copy, Debug)]
struct Plan {
    is_put: bool,
    keys: u64,
    end: Instant,
}

async fn client(mut target: Target, number: u64, plan: Plan) -> Result<Histogram<u64>, Failure> {
    let mut latencies = Histogram::new_with_max(MICROS_MAX, 3)?;
    let mut turn = number * 7_919;
    let value = Bytes::from_static(&[b'x'; 64]);
    loop {
        let begun = Instant::now();
        if plan.end <= begun {
            return Ok(latencies);
        }
        turn = (turn + 1) % plan.keys;
        let key = format!("bench:{turn:06}");
        if plan.is_put {
            target.put(key, value.clone()).await?;
        } else {
            target.get(key).await?;
        }
        let micros = u64::try_from(begun.elapsed().as_micros())?;
        latencies.saturating_record(micros.max(1));
    }
}

/// Puts every key once, 64 at a time.
async fn fill(targets: &[Target], keys: u64) -> Result<(), Failure> {
    let mut running = JoinSet::new();
    for (number, target) in targets.iter().cycle().take(CONNECTIONS).enumerate() {
        let mut target = target.clone();
        running.spawn(async move {
            for key in (number as u64..keys).step_by(CONNECTIONS) {
                let value = Bytes::from_static(&[b'x'; 64]);
                target.put(format!("bench:{key:06}"), value).await?;
            }
            Ok::<(), Failure>(())
        });
    }
    while let Some(ended) = running.join_next().await {
        ended??;
    }
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
#[expect(clippy::print_stdout, reason = "a program talks")]
async fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1);
    let mut next = || args.next().ok_or(USAGE);
    let (kind, action, addresses) = (next()?, next()?, next()?);
    let (clients, seconds) = (next()?.parse::<usize>()?, next()?.parse::<u64>()?);
    let connections = next().map_or(Ok(CONNECTIONS), |text| text.parse())?;
    let keys = next().map_or(Ok(KEYS), |text| text.parse())?;
    let mut targets = Vec::new();
    for address in addresses
        .split(',')
        .cycle()
        .take(clients.min(connections).max(1))
    {
        targets.push(Target::connect(&kind, address).await?);
    }
    if action == "fill" {
        return fill(&targets, keys).await;
    }
    let begun = Instant::now();
    let plan = Plan {
        is_put: action == "put",
        keys: keys.max(1),
        end: begun + Duration::from_secs(seconds),
    };
    let mut running = JoinSet::new();
    for (number, target) in (0..).zip(targets.iter().cycle().take(clients)) {
        running.spawn(client(target.clone(), number, plan));
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

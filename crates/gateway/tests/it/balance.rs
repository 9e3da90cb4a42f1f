//! Several endpoints: turns, dead ones, retries and their budget.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use flux_gateway::{DescriptorSource, Gateway, UpstreamConfig};
use flux_telemetry::Registry;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::Lab;
use crate::client::{Http2, PATIENCE, get, post_json};
use crate::config;
use crate::sample::{Reflection, Sample, descriptor_set};

/// A gateway before several samples.
struct Many {
    gateway: Gateway,
    samples: Vec<Sample>,
    registry: Registry,
}

fn start(toml: &str, samples: Vec<Sample>, more: &[SocketAddr]) -> Many {
    let mut config = config(toml, ([127, 0, 0, 1], 1).into());
    let at = samples.iter().map(|sample| sample.address);
    config.upstreams = vec![UpstreamConfig {
        endpoints: at
            .chain(more.iter().copied())
            .map(|at| at.to_string())
            .collect(),
        descriptors: DescriptorSource::Embedded(descriptor_set().into()),
        ..UpstreamConfig::default()
    }];
    let registry = Registry::new();
    Many {
        gateway: Gateway::start_with(config, &registry).unwrap(),
        samples,
        registry,
    }
}

impl Many {
    fn at(&self) -> SocketAddr {
        self.gateway.addresses().http
    }

    fn calls(&self) -> Vec<usize> {
        let calls = |sample: &Sample| sample.state.calls.load(Ordering::SeqCst);
        self.samples.iter().map(calls).collect()
    }

    fn metric(&self, name: &str) -> f64 {
        crate::metric(&self.registry, name)
    }
}

fn samples(count: usize) -> Vec<Sample> {
    (0..count)
        .map(|_| Sample::start(Reflection::None))
        .collect()
}

/// An address on which nothing listens.
async fn nowhere() -> SocketAddr {
    Sample::start(Reflection::None).stop().await
}

/// So many requests over connections to both workers; the statuses.
async fn crowd(at: SocketAddr, path: &'static str, count: usize) -> BTreeMap<u16, usize> {
    let mut asking = JoinSet::new();
    for _ in 0..8 {
        asking.spawn(async move {
            let client = Http2::connect(at).await;
            let mut statuses = Vec::new();
            for _ in 0..count / 8 {
                statuses.push(client.post_json(path, "{}").await.status);
            }
            statuses
        });
    }
    let mut counts = BTreeMap::new();
    for status in timeout(PATIENCE, asking.join_all()).await.unwrap().concat() {
        *counts.entry(status).or_insert(0) += 1;
    }
    counts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_take_turns_over_all_workers() {
    let many = start("", samples(3), &[]);
    assert_eq!(crowd(many.at(), "/v1/echo", 400).await, [(200, 400)].into());
    let calls = many.calls();
    assert_eq!(calls.iter().sum::<usize>(), 400);
    let (most, least) = (calls.iter().max().unwrap(), calls.iter().min().unwrap());
    assert!(most - least <= 1, "{calls:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_endpoint_costs_no_request_and_is_passed_over() {
    let many = start(
        "",
        samples(2),
        &[nowhere().await, nowhere().await, nowhere().await],
    );
    assert_eq!(crowd(many.at(), "/v1/echo", 400).await, [(200, 400)].into());
    let state = |state: &str| {
        let labels = format!("{{upstream=\"default\",state=\"{state}\"}}");
        many.metric(&format!("flux_gateway_endpoints{labels}"))
    };
    assert_eq!((state("in"), state("out")), (2.0, 3.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_dies_under_load_costs_no_idempotent_request_and_comes_back() {
    let mut all = samples(2);
    all.insert(0, Sample::mortal());
    let mut many = start("", all, &[]);
    let at = many.at();
    let load = tokio::spawn(crowd_of_reads(at, 1_200));
    let dying = many.samples.remove(0);
    let begun = async {
        while dying.state.calls.load(Ordering::SeqCst) < 50 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, begun).await.unwrap();
    // As by kill -9: connections break with calls on them.
    let address = dying.kill();
    assert_eq!(
        timeout(PATIENCE, load).await.unwrap().unwrap(),
        [(200, 1_200)].into()
    );
    let again = Sample::start_on(address, Reflection::None);
    let back = async {
        while again.state.calls.load(Ordering::SeqCst) < 10 {
            assert_eq!(get(at, "/v1/echo/a").await.status, 200);
        }
    };
    timeout(PATIENCE, back).await.unwrap();
}

async fn crowd_of_reads(at: SocketAddr, count: usize) -> BTreeMap<u16, usize> {
    crowd(at, "/lab.v1.Lab/Look", count).await
}

#[tokio::test]
async fn only_what_may_be_repeated_is_and_only_while_it_is_unavailable() {
    let lab = Lab::start_with("retry = { attempts-max = 4 }\nbreaker = { mode = \"off\" }");
    let at = lab.address();
    let calls = || lab.sample.state.calls.load(Ordering::SeqCst);
    let mut made = 0;
    // GET may be repeated, POST of an rpc that says nothing may not.
    for (code, method, expected) in [
        (14, "GET", 4),
        (13, "GET", 1),
        (4, "GET", 1),
        (5, "GET", 1),
        (14, "POST", 1),
    ] {
        if method == "GET" {
            get(at, &format!("/v1/fail/{code}")).await;
        } else {
            post_json(at, "/lab.v1.Lab/Fail", &format!("{{\"code\":{code}}}")).await;
        }
        assert_eq!(calls() - made, expected, "{method} {code}");
        made = calls();
    }
}

#[tokio::test]
async fn retries_stop_at_the_budget() {
    let toml = "retry = { attempts-max = 2, budget-percent = 20, budget-per-second = 1 }\n\
        breaker = { mode = \"off\" }";
    let lab = Lab::start_with(toml);
    let at = lab.address();
    for _ in 0..200 {
        assert_eq!(get(at, "/v1/fail/14").await.status, 503);
    }
    let calls = lab.sample.state.calls.load(Ordering::SeqCst);
    // 20 % of 200 and one for each of ten seconds; more only if this took longer than ten.
    assert!((200 + 20..=200 + 60).contains(&calls), "{calls}");
    let made = lab.metric("flux_gateway_retries_total{result=\"made\"}");
    let refused = lab.metric("flux_gateway_retries_total{result=\"over-budget\"}");
    assert_eq!(made + 200.0, calls as f64);
    assert_eq!(made + refused, 200.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn by_load_an_endpoint_that_is_slow_gets_little() {
    let many = start("balance = \"p2c\"", samples(3), &[]);
    let slow = &many.samples[0].state;
    slow.delay_millis.store(50, Ordering::SeqCst);
    let at = many.at();
    assert_eq!(crowd(at, "/v1/echo", 400).await, [(200, 400)].into());
    let calls = many.calls();
    assert!(calls[0] * 3 < calls[1].min(calls[2]), "{calls:?}");
}

#[tokio::test]
async fn failures_in_a_row_put_an_endpoint_out() {
    let toml = "health = { failures = 3, backoff = \"1h\", backoff-max = \"1h\" }\n\
        retry = { attempts-max = 1 }\nbreaker = { mode = \"off\" }";
    let many = start(toml, samples(2), &[]);
    let at = many.at();
    many.samples[0]
        .state
        .is_failing
        .store(true, Ordering::SeqCst);
    let mut failed = 0;
    for _ in 0..40 {
        failed += usize::from(get(at, "/v1/echo/a").await.status != 200);
    }
    assert_eq!(failed, 3);
    // When all are out, all are tried: better than to refuse.
    many.samples[1]
        .state
        .is_failing
        .store(true, Ordering::SeqCst);
    for _ in 0..10 {
        get(at, "/v1/echo/a").await;
    }
    many.samples[0]
        .state
        .is_failing
        .store(false, Ordering::SeqCst);
    many.samples[1]
        .state
        .is_failing
        .store(false, Ordering::SeqCst);
    for _ in 0..10 {
        assert_eq!(get(at, "/v1/echo/a").await.status, 200);
    }
}

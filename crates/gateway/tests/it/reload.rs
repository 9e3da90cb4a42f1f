//! Another configuration without a restart.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use flux_gateway::{DescriptorSource, StartError};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::client::{Http2, PATIENCE, get, post_json};
use crate::sample::{Reflection, Sample, descriptor_set};
use crate::{Lab, config};

impl Lab {
    fn next_config(&self, toml: &str) -> flux_gateway::Config {
        let mut config = config(toml, self.sample.address);
        for upstream in &mut config.upstreams {
            upstream.descriptors = DescriptorSource::Embedded(descriptor_set().into());
        }
        config
    }
}

const ROUTE: &str = "[[routes]]\nhttp = \"GET /new/{text}\"\nrpc = \"lab.v1.Lab/Echo\"\n";

#[tokio::test]
async fn routes_and_limits_change_without_a_restart() {
    let lab = Lab::start();
    let at = lab.address();
    assert_eq!(get(at, "/new/a").await.status, 404);
    let waiting = lab.gateway.reload(lab.next_config(ROUTE)).unwrap();
    assert_eq!(waiting, Vec::<&str>::new());
    assert_eq!(get(at, "/new/a").await.status, 200);
    let limited = format!("limit = {{ rate = \"1/h\", burst = 2 }}\n{ROUTE}");
    lab.gateway.reload(lab.next_config(&limited)).unwrap();
    assert_eq!(get(at, "/new/a").await.headers["ratelimit-remaining"], "1");
    // A change of something else leaves the bucket as it is.
    let other = format!("body-bytes-max = \"1KiB\"\n{limited}");
    lab.gateway.reload(lab.next_config(&other)).unwrap();
    assert_eq!(get(at, "/new/a").await.headers["ratelimit-remaining"], "0");
    assert_eq!(get(at, "/new/a").await.status, 429);
    lab.gateway.reload(lab.next_config("")).unwrap();
    assert_eq!(get(at, "/new/a").await.status, 404);
    let mut waiting = lab.next_config("");
    waiting.workers = 7;
    assert_eq!(lab.gateway.reload(waiting).unwrap(), ["workers"]);
}

#[tokio::test]
async fn a_wrong_configuration_changes_nothing_and_all_its_mistakes_are_told() {
    let lab = Lab::start_with(ROUTE);
    let at = lab.address();
    let wrong = "headers-max = 0\nbreaker = { volume = 0 }\nclient-limit = { key = \"cookie\" }";
    let error = lab.gateway.reload(lab.next_config(wrong)).unwrap_err();
    let text = error.to_string();
    for key in ["headers-max", "breaker.volume", "client-limit.key"] {
        assert!(text.contains(key), "{text}");
    }
    let mut missing = lab.next_config("");
    missing.upstreams[0].descriptors = DescriptorSource::Set("/nowhere/x.pb".to_owned());
    let error = lab.gateway.reload(missing).unwrap_err();
    assert!(matches!(error, StartError::Descriptors { .. }), "{error}");
    assert_eq!(get(at, "/new/a").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_while_everything_changes() {
    let sample = Sample::start(Reflection::V1);
    let other = Sample::start(Reflection::V1);
    let gateway = flux_gateway::Gateway::start(config("", sample.address)).unwrap();
    let at = gateway.addresses().http;
    // Descriptors come by reflection, so that a change must not forget them.
    let known = async {
        while post_json(at, "/v1/echo", "{}").await.status != 200 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, known).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let mut load = JoinSet::new();
    for _ in 0..4 {
        let stop = Arc::clone(&stop);
        load.spawn(async move {
            let client = Http2::connect(at).await;
            let mut count = 0;
            while !stop.load(Ordering::SeqCst) {
                let reply = client.post_json("/v1/echo", "{}").await;
                assert_eq!(reply.status, 200, "{reply:?}");
                count += 1;
            }
            count
        });
    }
    for round in 0..30 {
        let endpoint = if round % 2 == 0 { &other } else { &sample };
        let toml = format!("limit = {{ rate = \"{}/s\" }}\n{ROUTE}", 100_000 + round);
        gateway.reload(config(&toml, endpoint.address)).unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    stop.store(true, Ordering::SeqCst);
    let counts = timeout(PATIENCE, load.join_all()).await.unwrap();
    assert!(counts.iter().all(|count: &usize| *count > 0), "{counts:?}");
    assert!(other.state.calls.load(Ordering::SeqCst) > 0);
    timeout(PATIENCE, gateway.shutdown(PATIENCE)).await.unwrap();
}

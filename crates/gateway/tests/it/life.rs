//! Coming and going: of the upstream, of the gateway, and of many requests at once.

use std::time::Duration;

use flux_gateway::{Config, Gateway, StartError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::client::{Http2, PATIENCE, Reply, get, parse, post_json, send};
use crate::sample::{Reflection, Sample};
use crate::{Lab, config};

/// Asks until the answer is as wanted.
async fn eventually(wanted: u16, ask: impl AsyncFn() -> Reply) -> Reply {
    let asking = async {
        loop {
            let reply = ask().await;
            if reply.status == wanted {
                return reply;
            }
            // There is no event to wait on from outside; this only paces the questions.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, asking)
        .await
        .expect("the wanted status in time")
}

#[tokio::test]
async fn the_gateway_starts_without_its_upstream_and_recovers_by_itself() {
    let free = Sample::start(Reflection::V1).stop().await;
    let gateway = Gateway::start(config("", free)).unwrap();
    let at = gateway.addresses().http;
    assert_eq!(get(at, "/health").await.status, 200);
    let reply = post_json(at, "/v1/echo", "{}").await;
    assert_eq!(
        (reply.status, reply.json()["code"].clone()),
        (503, 14.into())
    );
    assert_eq!(reply.json()["details"][0]["outcome"], "not-done");

    let sample = Sample::start_on(free, Reflection::V1);
    eventually(200, async || {
        post_json(at, "/v1/echo", r#"{"words":"é"}"#).await
    })
    .await;
    let same = sample.stop().await;
    let reply = post_json(at, "/v1/echo", "{}").await;
    assert_eq!(
        (reply.status, reply.json()["code"].clone()),
        (503, 14.into()),
        "{}",
        reply.body
    );
    let _sample = Sample::start_on(same, Reflection::V1);
    eventually(200, async || post_json(at, "/v1/echo", "{}").await).await;
}

#[tokio::test]
async fn descriptors_come_by_reflection_of_both_versions_with_their_options() {
    for reflection in [Reflection::V1, Reflection::V1Alpha] {
        let sample = Sample::start(reflection);
        let gateway = Gateway::start(config("", sample.address)).unwrap();
        let at = gateway.addresses().http;
        let ask = async || post_json(at, "/v1/echo", r#"{"words":"text"}"#).await;
        let reply = eventually(200, ask).await;
        assert_eq!(reply.json()["words"], "text", "{reflection:?}");
    }
}

#[tokio::test]
async fn drain_finishes_what_has_begun_and_refuses_nothing_it_took() {
    let lab = Lab::start();
    let at = lab.address();
    let state = std::sync::Arc::clone(&lab.sample.state);
    let mut slow = Vec::new();
    for _ in 0..8 {
        slow.push(tokio::spawn(async move {
            send(at, "POST /v1/hang", Some(("application/json", "{}"))).await
        }));
    }
    let over_http2 = Http2::connect(at).await;
    slow.push(tokio::spawn(async move {
        over_http2.post_json("/v1/hang", "{}").await
    }));
    let mut idle = TcpStream::connect(at).await.unwrap();
    idle.write_all(b"GET /health HTTP/1.1\r\nhost: lab\r\n\r\n")
        .await
        .unwrap();
    let mut first = [0; 12];
    idle.read_exact(&mut first).await.unwrap();
    timeout(PATIENCE, state.wait_for_hanging(9)).await.unwrap();

    let shutdown = tokio::spawn(lab.gateway.shutdown(PATIENCE));
    // The idle connection is closed although requests are still under way.
    let mut rest = Vec::new();
    timeout(PATIENCE, idle.read_to_end(&mut rest))
        .await
        .unwrap()
        .unwrap();
    assert!(!shutdown.is_finished());
    state.release.add_permits(slow.len());
    for request in slow {
        assert_eq!(
            timeout(PATIENCE, request).await.unwrap().unwrap().status,
            200
        );
    }
    timeout(PATIENCE, shutdown).await.unwrap().unwrap();
    assert!(TcpStream::connect(at).await.is_err());
}

#[tokio::test]
async fn drain_cuts_off_what_outlasts_its_limit() {
    let lab = Lab::start();
    let at = lab.address();
    let slow =
        tokio::spawn(
            async move { send(at, "POST /v1/hang", Some(("application/json", "{}"))).await },
        );
    lab.sample.state.wait_for_hanging(1).await;
    timeout(PATIENCE, lab.gateway.shutdown(Duration::from_millis(50)))
        .await
        .unwrap();
    assert_eq!(slow.await.unwrap().status, 0, "the connection was cut");
}

#[tokio::test]
async fn a_thousand_requests_at_once_are_all_answered() {
    let lab = Lab::start();
    let at = lab.address();
    let mut running = tokio::task::JoinSet::new();
    for worker in 0..10_u32 {
        running.spawn(async move {
            let client = Http2::connect(at).await;
            let mut requests = tokio::task::JoinSet::new();
            for request in 0..100_u32 {
                let client = client.clone();
                requests.spawn(async move {
                    let small = worker * 100 + request;
                    let reply = client
                        .post_json("/v1/echo", &format!("{{\"small\":{small}}}"))
                        .await;
                    assert_eq!(reply.status, 200, "{}", reply.body);
                    assert_eq!(reply.json()["small"], small);
                });
            }
            while let Some(done) = requests.join_next().await {
                done.unwrap();
            }
        });
    }
    while let Some(done) = timeout(PATIENCE, running.join_next()).await.unwrap() {
        done.unwrap();
    }
}

#[tokio::test]
async fn a_restarting_upstream_costs_no_request_that_it_did_not_see() {
    let lab = Lab::start();
    let at = lab.address();
    assert_eq!(post_json(at, "/v1/echo", "{}").await.status, 200);
    let address = lab.sample.stop().await;
    let _sample = Sample::start_on(address, Reflection::None);
    // Both workers still hold, or just lost, their connection to the one that stopped.
    for _ in 0..20 {
        let reply = post_json(at, "/v1/echo", "{}").await;
        assert_eq!(reply.status, 200, "{}", reply.body);
    }
    drop(lab.gateway);
}

#[tokio::test]
async fn one_connection_serves_many_requests_in_order() {
    let lab = Lab::start();
    let mut stream = TcpStream::connect(lab.address()).await.unwrap();
    let one = "GET /v1/echo/one HTTP/1.1\r\nhost: lab\r\n\r\n";
    let last = "GET /v1/echo/two HTTP/1.1\r\nhost: lab\r\nconnection: close\r\n\r\n";
    stream
        .write_all(format!("{one}{one}{last}").as_bytes())
        .await
        .unwrap();
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer))
        .await
        .unwrap()
        .unwrap();
    let texts: Vec<usize> = ["\"one\"", "\"two\""]
        .map(|text| answer.matches(text).count())
        .to_vec();
    assert_eq!(texts, [2, 1], "{answer}");
    assert_eq!(parse(answer.as_bytes()).status, 200);
}

#[tokio::test]
async fn mistakes_stop_the_start() {
    let mut wrong = config("", "127.0.0.1:1".parse().unwrap());
    wrong.upstreams[0].endpoints.clear();
    let error = Gateway::start(wrong).unwrap_err();
    assert!(
        error.to_string().contains("upstreams[0].endpoints"),
        "{error}"
    );
    let first = Gateway::start(Config {
        listen: "127.0.0.1:0".parse().unwrap(),
        ..Config::default()
    });
    let first = first.unwrap();
    let taken = Config {
        listen: first.addresses().http,
        ..Config::default()
    };
    assert!(matches!(
        Gateway::start(taken),
        Err(StartError::Listen { .. })
    ));
}

#[tokio::test]
async fn health_tells_the_time() {
    let lab = Lab::start();
    let reply = get(lab.address(), "/health").await;
    let json = reply.json();
    assert_eq!(json["status"], "ok");
    assert!(
        json["time"].as_str().unwrap().ends_with('Z'),
        "{}",
        reply.body
    );
    assert_eq!(json.as_object().unwrap().len(), 2);
}

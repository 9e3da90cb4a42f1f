//! Rate limits, breakers and bulkheads before a real upstream.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::timeout;

use crate::Lab;
use crate::client::{PATIENCE, Reply, get, post_json, raw, send};

/// `GET path` with further headers.
async fn get_with(at: std::net::SocketAddr, path: &str, headers: &str) -> Reply {
    let request = format!("GET {path} HTTP/1.1\r\nhost: lab\r\nconnection: close\r\n{headers}\r\n");
    raw(at, request.as_bytes()).await
}

fn reason(reply: &Reply) -> String {
    let json = reply.json();
    let details = json.get("details").and_then(serde_json::Value::as_array);
    let details = details.into_iter().flatten();
    let reasons = details.filter_map(|detail| detail.get("reason")?.as_str());
    reasons.collect::<Vec<_>>().join(",")
}

#[tokio::test]
async fn beyond_the_gateways_rate_requests_are_answered_429_and_told_when_to_return() {
    let lab = Lab::start_with("limit = { rate = \"1/m\", burst = 3 }");
    let at = lab.address();
    for remaining in ["2", "1", "0"] {
        let reply = get(at, "/v1/echo/a").await;
        assert_eq!(reply.status, 200);
        assert_eq!(reply.headers["ratelimit-limit"], "3");
        assert_eq!(reply.headers["ratelimit-remaining"], remaining);
    }
    let calls = lab.sample.state.calls.load(Ordering::Relaxed);
    let reply = get(at, "/v1/echo/a").await;
    assert_eq!(
        (reply.status, reply.json()["code"].clone()),
        (429, 8.into())
    );
    assert_eq!(reason(&reply), "RATE_LIMIT");
    assert_eq!(reply.json()["details"][0]["outcome"], "not-done");
    let seconds = |name: &str| reply.headers[name].parse::<u64>().unwrap();
    assert!((55..=60).contains(&seconds("retry-after")), "{reply:?}");
    assert!(
        (170..=180).contains(&seconds("ratelimit-reset")),
        "{reply:?}"
    );
    assert_eq!(seconds("ratelimit-remaining"), 0);
    assert_eq!(lab.sample.state.calls.load(Ordering::Relaxed), calls);
    // The gateway's own health is not a request for an upstream.
    assert_eq!(get(at, "/health").await.status, 200);
}

#[tokio::test]
async fn a_route_and_each_client_have_limits_of_their_own() {
    let toml = r#"
        client-limit = { rate = "1/h", burst = 2, key = "header:x-api-key|ip" }
        [[routes]]
        http = "GET /rare/{text}"
        rpc = "lab.v1.Lab/Echo"
        limit = { rate = "1/h", burst = 3 }
    "#;
    let lab = Lab::start_with(toml);
    let at = lab.address();
    let ask = async |path: &str, client: &str| {
        get_with(at, path, &format!("x-api-key: {client}\r\n"))
            .await
            .status
    };
    assert_eq!(ask("/v1/echo/a", "one").await, 200);
    assert_eq!(ask("/rare/a", "one").await, 200);
    assert_eq!(ask("/v1/echo/a", "one").await, 429);
    assert_eq!(ask("/rare/a", "one").await, 429);
    // What "one" was refused took nothing of the route's three.
    assert_eq!(ask("/rare/a", "two").await, 200);
    assert_eq!(ask("/rare/a", "three").await, 200);
    let reply = get_with(at, "/rare/a", "x-api-key: four\r\n").await;
    assert_eq!((reply.status, reason(&reply).as_str()), (429, "RATE_LIMIT"));
    assert!(reply.body.contains("this route"), "{}", reply.body);
    // The refusal by the route gave the client's token back.
    assert_eq!(ask("/v1/echo/a", "four").await, 200);
    assert_eq!(ask("/v1/echo/a", "four").await, 200);
    // Without the header the address counts.
    assert_eq!(get(at, "/v1/echo/a").await.status, 200);
    assert_eq!(get(at, "/v1/echo/a").await.status, 200);
    assert_eq!(get(at, "/v1/echo/a").await.status, 429);
}

#[tokio::test]
async fn the_breaker_opens_at_half_of_twenty_and_closes_after_one_good_trial() {
    let lab = Lab::start_with("breaker = { sleep = \"300ms\" }");
    let at = lab.address();
    let calls = || lab.sample.state.calls.load(Ordering::Relaxed);
    // Answers about the request are neither failures nor successes.
    for _ in 0..50 {
        assert_eq!(get(at, "/v1/fail/5").await.status, 404);
    }
    for n in 0..20 {
        let path = if n % 2 == 0 {
            "/v1/echo/a"
        } else {
            "/v1/fail/13"
        };
        let expected = if n % 2 == 0 { 200 } else { 500 };
        assert_eq!(get(at, path).await.status, expected);
    }
    let before = calls();
    let reply = get(at, "/v1/echo/a").await;
    assert_eq!(
        (reply.status, reply.json()["code"].clone()),
        (503, 14.into())
    );
    assert_eq!(reason(&reply), "BREAKER_OPEN");
    assert_eq!(reply.headers["retry-after"], "1");
    assert_eq!(calls(), before, "the upstream is left alone");
    // A trial that fails opens it again; one that succeeds closes it.
    let until = async |wanted: fn(&Reply) -> bool, path: &str| loop {
        let reply = get(at, path).await;
        if wanted(&reply) {
            return reply;
        }
        assert_eq!(reply.status, 503, "{reply:?}");
        // Nothing tells a client when the sleep is over; this only paces the questions.
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    let passed = timeout(PATIENCE, until(|reply| reply.status == 500, "/v1/fail/13")).await;
    assert_eq!(reason(&passed.unwrap()), "");
    assert_eq!(reason(&get(at, "/v1/echo/a").await), "BREAKER_OPEN");
    assert_eq!(calls(), before + 1);
    let passed = timeout(PATIENCE, until(|reply| reply.status == 200, "/v1/echo/a")).await;
    passed.unwrap();
    for _ in 0..10 {
        assert_eq!(get(at, "/v1/fail/13").await.status, 500);
        assert_eq!(get(at, "/v1/echo/a").await.status, 200);
    }
}

#[tokio::test]
async fn of_many_callers_one_goes_on_trial_and_a_client_that_leaves_opens_again() {
    let lab = Lab::start_with("breaker = { sleep = \"200ms\", volume = 5 }");
    let at = lab.address();
    for _ in 0..5 {
        assert_eq!(get(at, "/v1/fail/14").await.status, 503);
    }
    let state = Arc::clone(&lab.sample.state);
    let ask = async || send(at, "POST /v1/hang", None).await;
    // Whoever comes when the sleep is over hangs; everybody else is refused at once.
    let mut crowd = tokio::task::JoinSet::new();
    let trial = async {
        loop {
            for _ in 0..8 {
                crowd.spawn(async move { send(at, "POST /v1/hang", None).await });
            }
            let mut refused = 0;
            while refused < 7 {
                let reply = crowd.join_next().await.unwrap().unwrap();
                assert_eq!(reason(&reply), "BREAKER_OPEN");
                refused += 1;
            }
            match timeout(Duration::from_millis(20), crowd.join_next()).await {
                Ok(reply) => assert_eq!(reason(&reply.unwrap().unwrap()), "BREAKER_OPEN"),
                Err(_) => return,
            }
        }
    };
    timeout(PATIENCE, trial).await.unwrap();
    timeout(PATIENCE, state.wait_for_hanging(1)).await.unwrap();
    assert_eq!(crowd.len(), 1, "one on trial");
    assert_eq!(reason(&ask().await), "BREAKER_OPEN");
    // The client of the trial goes away: the next trial is a whole sleep later, and not never.
    crowd.shutdown().await;
    state.release.add_permits(1_000);
    let closes = async {
        loop {
            if ask().await.status == 200 {
                return;
            }
        }
    };
    timeout(PATIENCE, closes).await.unwrap();
}

#[tokio::test]
async fn callers_in_a_hurry_cannot_open_the_breaker_for_others() {
    let lab = Lab::start_with("breaker = { volume = 5 }");
    let at = lab.address();
    for _ in 0..10 {
        let reply = get_with(at, "/v1/hang", "grpc-timeout: 1m\r\n").await;
        // The upstream keeps the deadline too, and may be the first to say so.
        assert_eq!(reply.status, 504, "{reply:?}");
    }
    assert_eq!(get(at, "/v1/echo/a").await.status, 200);
}

#[tokio::test]
async fn an_upstream_that_hangs_opens_the_breaker() {
    let toml = r#"
        breaker = { volume = 5, sleep = "1h" }
        [[routes]]
        http = "POST /slow"
        rpc = "lab.v1.Lab/Hang"
        timeout = "20ms"
    "#;
    let lab = Lab::start_with(toml);
    let at = lab.address();
    for _ in 0..5 {
        let reply = post_json(at, "/slow", "{}").await;
        assert_eq!(reply.status, 504, "{reply:?}");
    }
    let reply = post_json(at, "/slow", "{}").await;
    assert_eq!(reason(&reply), "BREAKER_OPEN", "{reply:?}");
}

#[tokio::test]
async fn a_breaker_can_be_forced_and_a_route_can_have_its_own() {
    let toml = r#"
        [breaker]
        mode = "forced-open"
        [[routes]]
        http = "GET /free/{text}"
        rpc = "lab.v1.Lab/Echo"
        breaker = { mode = "off" }
    "#;
    let lab = Lab::start_with(toml);
    let at = lab.address();
    assert_eq!(reason(&get(at, "/v1/echo/a").await), "BREAKER_OPEN");
    assert_eq!(get(at, "/free/a").await.status, 200);
    let lab = Lab::start_with("breaker = { mode = \"forced-closed\", volume = 1 }");
    for _ in 0..30 {
        assert_eq!(get(lab.address(), "/v1/fail/14").await.status, 503);
    }
    assert_eq!(get(lab.address(), "/v1/echo/a").await.status, 200);
}

#[tokio::test]
async fn a_route_has_a_bulkhead_of_its_own() {
    let toml = r#"
        [[routes]]
        http = "POST /slow"
        rpc = "lab.v1.Lab/Hang"
        in-flight-max = 2
    "#;
    let lab = Lab::start_with(toml);
    let at = lab.address();
    let mut under_way = tokio::task::JoinSet::new();
    for _ in 0..2 {
        under_way.spawn(async move { post_json(at, "/slow", "{}").await });
    }
    timeout(PATIENCE, lab.sample.state.wait_for_hanging(2))
        .await
        .unwrap();
    let reply = post_json(at, "/slow", "{}").await;
    assert_eq!(
        (reply.status, reason(&reply).as_str()),
        (429, "IN_FLIGHT_LIMIT")
    );
    assert_eq!(get(at, "/v1/echo/a").await.status, 200);
    lab.sample.state.release.add_permits(2);
    while let Some(reply) = under_way.join_next().await {
        assert_eq!(reply.unwrap().status, 200);
    }
}

//! Single flight and fallbacks before a real upstream.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::Lab;
use crate::client::{Http2, PATIENCE, Reply, get, post_json, raw};

const ROUTES: &str = r#"
    [[routes]]
    http = "GET /jar"
    rpc = "lab.v1.Lab/Slow"
    coalesce = "MODE"
    [[routes]]
    http = "GET /hang"
    rpc = "lab.v1.Lab/Hang"
    coalesce = "MODE"
    timeout = "10s"
    [[routes]]
    http = "POST /jar"
    rpc = "lab.v1.Lab/Fill"
"#;

fn lab(mode: &str) -> Lab {
    Lab::start_with(&ROUTES.replace("MODE", mode))
}

async fn fill(at: SocketAddr, content: &str) {
    let reply = post_json(
        at,
        "/jar",
        &format!("{{\"jar\":\"j\",\"content\":\"{content}\"}}"),
    )
    .await;
    assert_eq!(reply.status, 200, "{reply:?}");
}

fn calls(lab: &Lab) -> usize {
    lab.sample.state.calls.load(Ordering::SeqCst)
}

/// So many GETs at once, over several connections to both workers.
async fn crowd(at: SocketAddr, path: &'static str, count: usize) -> Vec<Reply> {
    let mut asking = JoinSet::new();
    for _ in 0..10 {
        let client = Http2::connect(at).await;
        for _ in 0..count / 10 {
            let client = client.clone();
            asking.spawn(async move {
                let request = http::Request::get(format!("http://lab{path}"));
                let request = request.body(Full::new(Bytes::new())).unwrap();
                client.send(request).await
            });
        }
    }
    timeout(PATIENCE, asking.join_all()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_identical_reads_make_one_call() {
    let lab = lab("shared");
    let at = lab.address();
    fill(at, "honey").await;
    let state = Arc::clone(&lab.sample.state);
    let before = calls(&lab);
    // The one call is answered when all have arrived, however slow this machine is.
    let asking = tokio::spawn(crowd(at, "/hang?jar=j", 1_000));
    timeout(PATIENCE, state.wait_for_hanging(1)).await.unwrap();
    let arrived = async {
        while lab.metric("flux_gateway_requests_in_flight") < 1_000.0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, arrived).await.unwrap();
    state.release.add_permits(1);
    let replies = timeout(PATIENCE, asking).await.unwrap().unwrap();
    assert_eq!(replies.len(), 1_000);
    for reply in replies {
        assert_eq!(reply.status, 200);
        assert_eq!(reply.json()["content"], "honey");
    }
    assert_eq!(calls(&lab) - before, 1);
    let metric = |role: &str| {
        lab.metric(&format!(
            "flux_gateway_singleflight_total{{role=\"{role}\"}}"
        ))
    };
    assert_eq!((metric("leader"), metric("follower")), (1.0, 999.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strict_reads_share_with_those_that_came_before_the_call() {
    let lab = lab("strict");
    let at = lab.address();
    let state = Arc::clone(&lab.sample.state);
    let first = tokio::spawn(get_owned(at, "/hang?jar=j"));
    timeout(PATIENCE, state.wait_for_hanging(1)).await.unwrap();
    let asking = tokio::spawn(crowd(at, "/hang?jar=j", 500));
    let arrived = async {
        while lab.metric("flux_gateway_requests_in_flight") < 501.0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, arrived).await.unwrap();
    state.release.add_permits(1_000);
    assert_eq!(first.await.unwrap().status, 200);
    let replies = timeout(PATIENCE, asking).await.unwrap().unwrap();
    assert!(replies.iter().all(|reply| reply.status == 200));
    // How many boarded while another waited depends on the machine, but each call took some along.
    let made = calls(&lab);
    assert!((2..50).contains(&made), "{made} calls");
}

async fn get_owned(at: SocketAddr, path: &'static str) -> Reply {
    get(at, path).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_that_starts_after_an_acknowledged_write_sees_it() {
    for mode in ["shared", "strict"] {
        let lab = lab(mode);
        let at = lab.address();
        fill(at, "0").await;
        let mut readers = JoinSet::new();
        let acknowledged = Arc::new(std::sync::atomic::AtomicU64::new(0));
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        for _ in 0..4 {
            let client = Http2::connect(at).await;
            let (acknowledged, stop) = (Arc::clone(&acknowledged), Arc::clone(&stop));
            readers.spawn(async move {
                let mut reads = 0_u64;
                while !stop.load(Ordering::SeqCst) {
                    let least = acknowledged.load(Ordering::SeqCst);
                    let request = http::Request::get("http://lab/jar?jar=j");
                    let request = request.body(Full::new(Bytes::new())).unwrap();
                    let json = client.send(request).await.json();
                    let seen: u64 = json["content"].as_str().unwrap().parse().unwrap();
                    assert!(seen >= least, "{seen} after {least} was acknowledged");
                    reads += 1;
                }
                reads
            });
        }
        for value in 1..=60_u64 {
            fill(at, &value.to_string()).await;
            acknowledged.store(value, Ordering::SeqCst);
        }
        stop.store(true, Ordering::SeqCst);
        let reads = timeout(PATIENCE, readers.join_all()).await.unwrap();
        assert!(reads.iter().all(|reads| *reads > 0), "{mode}: {reads:?}");
    }
}

#[tokio::test]
async fn a_read_after_a_write_does_not_wait_for_the_flight_of_before() {
    let lab = lab("shared");
    let at = lab.address();
    let state = Arc::clone(&lab.sample.state);
    let old = tokio::spawn(get_owned(at, "/hang?jar=j"));
    timeout(PATIENCE, state.wait_for_hanging(1)).await.unwrap();
    fill(at, "new").await;
    let new = tokio::spawn(get_owned(at, "/hang?jar=j"));
    // It does not join the one that hangs: a second call comes.
    timeout(PATIENCE, state.wait_for_hanging(1)).await.unwrap();
    state.release.add_permits(2);
    assert_eq!(new.await.unwrap().json()["content"], "new");
    assert_eq!(old.await.unwrap().status, 200);
}

#[tokio::test]
async fn different_callers_and_requests_have_their_own_calls() {
    let lab = lab("shared");
    let at = lab.address();
    let state = Arc::clone(&lab.sample.state);
    let mut asking = JoinSet::new();
    for (jar, headers) in [
        ("a", "authorization: one\r\n"),
        ("a", "authorization: two\r\n"),
        ("a", ""),
        ("b", ""),
        // These differ only by what says nothing of who asks.
        ("b", "x-request-id: 1\r\n"),
        ("b", "x-request-id: 2\r\n"),
    ] {
        let request = format!(
            "GET /hang?jar={jar} HTTP/1.1\r\nhost: lab\r\nconnection: close\r\n{headers}\r\n"
        );
        asking.spawn(async move { raw(at, request.as_bytes()).await.status });
    }
    timeout(PATIENCE, state.wait_for_hanging(4)).await.unwrap();
    let arrived = async {
        while lab.metric("flux_gateway_singleflight_total{role=\"follower\"}") < 2.0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, arrived).await.unwrap();
    state.release.add_permits(4);
    let replies = asking.join_all().await;
    assert_eq!(replies, [200; 6]);
    assert_eq!(calls(&lab), 4);
}

#[tokio::test]
async fn followers_of_a_client_that_goes_away_are_answered() {
    let lab = lab("shared");
    let at = lab.address();
    let state = Arc::clone(&lab.sample.state);
    let leader = tokio::spawn(get_owned(at, "/hang?jar=j"));
    timeout(PATIENCE, state.wait_for_hanging(1)).await.unwrap();
    let followers: Vec<_> = (0..5)
        .map(|_| tokio::spawn(get_owned(at, "/hang?jar=j")))
        .collect();
    let joined = async {
        while lab.metric("flux_gateway_singleflight_total{role=\"follower\"}") < 5.0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, joined).await.unwrap();
    leader.abort();
    // One of them makes the call anew, for all.
    timeout(PATIENCE, state.wait_for_hanging(1)).await.unwrap();
    let joined = async {
        while lab.metric("flux_gateway_singleflight_total{role=\"follower\"}") < 9.0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, joined).await.unwrap();
    state.release.add_permits(2);
    for follower in followers {
        let reply = timeout(PATIENCE, follower).await.unwrap().unwrap();
        assert_eq!(reply.status, 200, "{reply:?}");
    }
    assert_eq!(calls(&lab), 2);
}

#[tokio::test]
async fn a_follower_with_more_time_than_its_leader_gets_its_answer() {
    let lab = lab("shared");
    let at = lab.address();
    let state = Arc::clone(&lab.sample.state);
    let hasty = "GET /hang?jar=j HTTP/1.1\r\nhost: lab\r\nconnection: close\r\n\
        x-request-timeout: 300ms\r\n\r\n";
    let leader = tokio::spawn(async move { raw(at, hasty.as_bytes()).await.status });
    timeout(PATIENCE, state.wait_for_hanging(1)).await.unwrap();
    let follower = tokio::spawn(get_owned(at, "/hang?jar=j"));
    assert!([499, 504].contains(&leader.await.unwrap()));
    timeout(PATIENCE, state.wait_for_hanging(1)).await.unwrap();
    state.release.add_permits(2);
    let reply = timeout(PATIENCE, follower).await.unwrap().unwrap();
    assert_eq!(reply.status, 200, "{reply:?}");
}

#[tokio::test]
async fn the_last_good_answer_stands_in_for_an_upstream_that_fails() {
    let toml = r#"
        breaker = { volume = 3, sleep = "1h" }
        [[routes]]
        http = "GET /jar"
        rpc = "lab.v1.Lab/Look"
        fallback = { stale = "1m", status = 503, json = { degraded = true } }
        [[routes]]
        http = "GET /never"
        rpc = "lab.v1.Lab/Look"
        fallback = { status = 200, json = { degraded = true } }
        [[routes]]
        http = "POST /jar"
        rpc = "lab.v1.Lab/Fill"
    "#;
    let lab = Lab::start_with(toml);
    let at = lab.address();
    fill(at, "honey").await;
    let good = get(at, "/jar?jar=j").await;
    assert_eq!(good.status, 200);
    assert!(!good.headers.contains_key("x-flux-stale"), "{good:?}");
    lab.sample.stop().await;
    for _ in 0..5 {
        let reply = get(at, "/jar?jar=j").await;
        assert_eq!((reply.status, &reply.body), (200, &good.body));
        assert!(reply.headers["warning"].starts_with("110 "), "{reply:?}");
        assert_eq!(reply.headers["x-flux-stale"], reply.headers["age"]);
    }
    // Nothing was kept for this one; the breaker is open by now, which makes no difference.
    let reply = get(at, "/jar?jar=other").await;
    assert_eq!(reply.line(), "503 {\"degraded\":true}");
    assert_eq!(reply.headers["x-flux-fallback"], "fixed");
    let reply = get(at, "/never?jar=j").await;
    assert_eq!(reply.line(), "200 {\"degraded\":true}");
    // A write has nothing to fall back on.
    let reply = post_json(at, "/jar", "{\"jar\":\"j\"}").await;
    assert_eq!(
        (reply.status, reply.json()["code"].clone()),
        (503, 14.into())
    );
}

#[tokio::test]
async fn a_fallback_is_not_for_requests_that_are_wrong() {
    let toml = r#"
        [[routes]]
        http = "GET /fail/{code}"
        rpc = "lab.v1.Lab/Fail"
        fallback = { status = 299, json = {} }
    "#;
    let lab = Lab::start_with(toml);
    let at = lab.address();
    assert_eq!(get(at, "/fail/5").await.status, 404);
    assert_eq!(get(at, "/fail/x").await.status, 400);
    assert_eq!(get(at, "/fail/13").await.status, 299);
}

//! Limits and hostile input: sizes, times, framing.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::Lab;
use crate::client::{PATIENCE, get, post_json, raw, send};

#[tokio::test]
async fn a_body_beyond_the_limit_is_answered_413() {
    let lab = Lab::start_with("body-bytes-max = \"1KiB\"");
    let at = lab.address();
    let fits = format!("{{\"text\":\"{}\"}}", "a".repeat(1_000));
    assert_eq!(post_json(at, "/v1/echo", &fits).await.status, 200);
    let large = format!("{{\"text\":\"{}\"}}", "a".repeat(1_100));
    let reply = post_json(at, "/v1/echo", &large).await;
    assert_eq!(
        (reply.status, reply.json()["code"].clone()),
        (413, 8.into())
    );
    let announced = "POST /v1/echo HTTP/1.1\r\nhost: lab\r\ncontent-length: 99999999999\r\n\r\n";
    assert_eq!(raw(at, announced.as_bytes()).await.status, 413);
    let chunk = format!("400\r\n{}\r\n", "a".repeat(0x400));
    let chunked = format!(
        "POST /v1/echo HTTP/1.1\r\nhost: lab\r\ntransfer-encoding: chunked\r\n\r\n{chunk}{chunk}0\r\n\r\n"
    );
    assert_eq!(raw(at, chunked.as_bytes()).await.status, 413);
}

#[tokio::test]
async fn headers_beyond_the_limit_are_answered_431() {
    let lab = Lab::start_with("header-bytes-max = \"4KiB\"\nheaders-max = 20");
    let at = lab.address();
    let long = format!(
        "GET /health HTTP/1.1\r\nhost: lab\r\nconnection: close\r\nx-long: {}\r\n\r\n",
        "a".repeat(5_000)
    );
    let reply = raw(at, long.as_bytes()).await;
    assert_eq!(
        (reply.status, reply.json()["code"].clone()),
        (431, 8.into())
    );
    let many: String = (0..25).map(|n| format!("x-{n}: 1\r\n")).collect();
    let many = format!("GET /health HTTP/1.1\r\nhost: lab\r\nconnection: close\r\n{many}\r\n");
    assert_eq!(raw(at, many.as_bytes()).await.status, 431);
    let huge = format!(
        "GET /health HTTP/1.1\r\nx-long: {}\r\n\r\n",
        "a".repeat(100_000)
    );
    assert_eq!(raw(at, huge.as_bytes()).await.status, 431);
}

#[tokio::test]
async fn silence_and_slow_headers_end_the_connection() {
    let lab = Lab::start_with("header-read-timeout = \"100ms\"");
    for start in [
        "",
        "P",
        "PRI * HTTP/2.0\r\n",
        "GET /health HTTP/1.1\r\nx-slow: ",
    ] {
        let mut stream = TcpStream::connect(lab.address()).await.unwrap();
        stream.write_all(start.as_bytes()).await.unwrap();
        let mut rest = Vec::new();
        let closed = timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
        assert!(closed.is_ok(), "{start:?}");
    }
}

#[tokio::test]
async fn a_body_that_does_not_arrive_is_answered_408() {
    let lab = Lab::start_with("body-read-timeout = \"100ms\"");
    let head = "POST /v1/echo HTTP/1.1\r\nhost: lab\r\ncontent-length: 10\r\n\r\n{";
    let reply = raw(lab.address(), head.as_bytes()).await;
    assert_eq!(
        (reply.status, reply.json()["code"].clone()),
        (408, 4.into())
    );
}

#[tokio::test]
async fn ambiguous_framing_is_refused() {
    let lab = Lab::start();
    let at = lab.address();
    let smuggled = "GET /v1/echo/smuggled HTTP/1.1\r\nhost: lab\r\n\r\n";
    for headers in [
        "content-length: 5\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ncontent-length: 5",
        "Transfer-Encoding: chunked\r\nCONTENT-LENGTH: 5",
        "content-length: 5\r\ncontent-length: 6",
        "transfer-encoding: gzip",
        "transfer-encoding: chunked, identity",
        "content-length: +5",
        "x-folded: a\r\n b",
        "content-length : 5",
    ] {
        let request =
            format!("POST /v1/echo HTTP/1.1\r\nhost: lab\r\n{headers}\r\n\r\n0\r\n\r\n{smuggled}");
        let reply = raw(at, request.as_bytes()).await;
        assert!(
            (400..=501).contains(&reply.status),
            "{headers}: {}",
            reply.line()
        );
        assert!(
            !reply.body.contains("smuggled"),
            "{headers}: {}",
            reply.line()
        );
    }
}

#[tokio::test]
async fn deep_json_is_refused_without_harm() {
    let lab = Lab::start();
    let at = lab.address();
    for (open, close) in [("{\"value\":", "}"), ("{\"inner\":", "}")] {
        let deep = format!("{}{}", open.repeat(50_000), close.repeat(50_000));
        assert_eq!(post_json(at, "/v1/echo", &deep).await.status, 400);
    }
    let lists = format!(
        "{{\"value\":{}1{}}}",
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    assert_eq!(post_json(at, "/v1/echo", &lists).await.status, 400);
    assert_eq!(get(at, "/health").await.status, 200);
}

#[tokio::test]
async fn the_callers_deadline_is_kept_and_passed_on() {
    let lab = Lab::start();
    let at = lab.address();
    let hang = |method: &str, timeout: &str| {
        format!(
            "{method} /v1/hang HTTP/1.1\r\nhost: lab\r\nconnection: close\r\n{timeout}\r\n\
             content-length: 0\r\n\r\n"
        )
    };
    let reply = raw(at, hang("POST", "grpc-timeout: 50m").as_bytes()).await;
    assert_eq!(
        (reply.status, reply.json()["code"].clone()),
        (504, 4.into())
    );
    assert_eq!(
        reply.json()["details"][0]["outcome"],
        "unknown",
        "{}",
        reply.body
    );
    let passed = lab.sample.state.metadata.lock()["grpc-timeout"].clone();
    assert!(passed.to_str().unwrap().ends_with('u'), "{passed:?}");
    let reply = raw(at, hang("GET", "x-request-timeout: 50ms").as_bytes()).await;
    assert_eq!(reply.status, 504);
    assert_eq!(
        reply.json()["details"][0].get("outcome"),
        None,
        "a read has no outcome"
    );
    let reply = raw(at, hang("GET", "grpc-timeout: soon").as_bytes()).await;
    assert_eq!(reply.status, 400);
}

#[tokio::test]
async fn the_routes_own_deadline_holds_when_the_caller_has_none() {
    let toml = "[[routes]]\nhttp = \"POST /hang\"\nrpc = \"lab.v1.Lab/Hang\"\ntimeout = \"50ms\"";
    let lab = Lab::start_with(toml);
    let reply = timeout(
        Duration::from_secs(10),
        send(
            lab.address(),
            "POST /hang",
            Some(("application/json", "{}")),
        ),
    );
    assert_eq!(reply.await.unwrap().status, 504);
}

#[tokio::test]
async fn an_answer_beyond_the_limit_is_answered_502() {
    let lab = Lab::start_with("response-bytes-max = \"1KiB\"");
    let large = format!("{{\"text\":\"{}\"}}", "a".repeat(2_000));
    assert_eq!(
        post_json(lab.address(), "/v1/echo", &large).await.status,
        502
    );
}

#[tokio::test]
async fn calls_in_flight_are_limited() {
    let toml = "[[upstreams]]\nin-flight-max = 1";
    let lab = Lab::start_with(toml);
    let at = lab.address();
    let first = tokio::spawn(async move { send(at, "POST /v1/hang", None).await });
    lab.sample.state.wait_for_hanging(1).await;
    let reply = post_json(at, "/v1/echo", "{}").await;
    assert_eq!(
        (reply.status, reply.json()["code"].clone()),
        (429, 8.into())
    );
    lab.sample.state.release.add_permits(1);
    assert_eq!(first.await.unwrap().status, 200);
    assert_eq!(post_json(at, "/v1/echo", "{}").await.status, 200);
}

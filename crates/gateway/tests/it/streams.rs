//! Rpcs that answer with a stream: forms, failures, silence, slow and vanished clients, the drain.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::Lab;
use crate::client::{Http2, PATIENCE, get, post_json, raw};

/// A client that reads an answer line by line, over HTTP/1.0 so that nothing stands between lines.
#[derive(Debug)]
struct Lines {
    stream: BufReader<TcpStream>,
    status: u16,
    headers: BTreeMap<String, String>,
}

impl Lines {
    /// Sends a request and reads the head of its answer.
    async fn open(address: SocketAddr, path: &str, headers: &str) -> Self {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.0\r\nhost: lab\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut lines = Self {
            stream: BufReader::new(stream),
            status: 0,
            headers: BTreeMap::new(),
        };
        let first = lines.line().await;
        lines.status = first.split(' ').nth(1).unwrap().parse().unwrap();
        loop {
            let line = lines.line().await;
            let Some((name, value)) = line.split_once(": ") else {
                break;
            };
            lines.headers.insert(name.to_owned(), value.to_owned());
        }
        lines
    }

    /// The next line; at the end an empty one.
    async fn line(&mut self) -> String {
        let mut line = String::new();
        timeout(PATIENCE, self.stream.read_line(&mut line))
            .await
            .expect("a line in time")
            .unwrap();
        line.trim_end().to_owned()
    }

    /// The lines of the next event.
    async fn event(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            let line = self.line().await;
            if line.is_empty() {
                return lines;
            }
            lines.push(line);
        }
    }

    /// The next event that is no sign of life.
    async fn message(&mut self) -> Vec<String> {
        loop {
            let event = self.event().await;
            if event != [": ping"] {
                return event;
            }
        }
    }
}

const SSE: &str = "accept: text/event-stream\r\n";
const NDJSON: &str = "accept: application/x-ndjson\r\n";

/// A route to `Tail` as the change stream has one.
const TAIL: &str = r#"
    [[routes]]
    http = "GET /tail"
    rpc = "lab.v1.Lab/Tail"
    response-body = "event"
    stream = "sse"
    sse-id = "cursor"
    sse-event = "kind"
    last-event-id = "cursor"
"#;

async fn ask(lab: &Lab, path: &str, accept: &str) -> crate::client::Reply {
    let request = format!("GET {path} HTTP/1.1\r\nhost: lab\r\nconnection: close\r\n{accept}\r\n");
    raw(lab.address(), request.as_bytes()).await
}

#[tokio::test]
async fn a_stream_comes_in_the_form_that_was_asked_for() {
    let lab = Lab::start_with("json = { emit-defaults = false }");
    let reply = ask(&lab, "/v1/count?from=7&count=2", "").await;
    assert_eq!(reply.line(), "200 [\n{\"small\":7},\n{\"small\":8}\n]\n");
    assert_eq!(reply.headers["content-type"], "application/json");
    assert_eq!(reply.headers["x-lab"], "yes", "the upstream's metadata");
    let reply = ask(&lab, "/v1/count?from=7&count=2", NDJSON).await;
    assert_eq!(reply.line(), "200 {\"small\":7}\n{\"small\":8}\n");
    assert_eq!(reply.headers["content-type"], "application/x-ndjson");
    let reply = ask(&lab, "/v1/count?from=7&count=2", SSE).await;
    let expected = "200 data: {\"small\":7}\n\ndata: {\"small\":8}\n\nevent: end\ndata: {}\n\n";
    assert_eq!(reply.line(), expected);
    assert_eq!(reply.headers["content-type"], "text/event-stream");
    assert_eq!(reply.headers["cache-control"], "no-cache");
    assert_eq!(ask(&lab, "/v1/count", "").await.line(), "200 []\n");
    let direct = post_json(
        lab.address(),
        "/lab.v1.Lab/Count",
        r#"{"count":1,"from":3}"#,
    )
    .await;
    assert_eq!(direct.line(), "200 [\n{\"small\":3}\n]\n");
}

#[tokio::test]
async fn many_messages_come_complete_and_in_order_over_both_protocols() {
    let lab = Lab::start_with("json = { emit-defaults = false }");
    let expected: Vec<i64> = (1..=20_000).collect();
    let numbers = |body: &str| -> Vec<i64> {
        let array: Vec<serde_json::Value> = serde_json::from_str(body).unwrap();
        array
            .iter()
            .map(|one| one["small"].as_i64().unwrap())
            .collect()
    };
    let reply = get(lab.address(), "/v1/count?from=1&count=20000").await;
    assert_eq!(numbers(&reply.body), expected);
    let client = Http2::connect(lab.address()).await;
    let body = r#"{"from":1,"count":20000}"#;
    let reply = client.post_json("/lab.v1.Lab/Count", body).await;
    assert_eq!(numbers(&reply.body), expected);
}

#[tokio::test]
async fn a_failure_before_the_first_message_is_an_ordinary_failure() {
    let lab = Lab::start();
    for accept in [SSE, NDJSON, ""] {
        let reply = ask(&lab, "/v1/tail?cursor=nonsense", accept).await;
        assert_eq!(
            (reply.status, &reply.json()["message"]),
            (400, &"no such cursor".into())
        );
        assert_eq!(reply.headers["content-type"], "application/json");
    }
    let reply = ask(&lab, "/v1/tail?nosuch=1", SSE).await;
    assert_eq!(reply.status, 400);
    lab.sample.stop().await;
    let reply = raw(
        lab.gateway.addresses().http,
        b"GET /v1/tail HTTP/1.1\r\nhost: lab\r\nconnection: close\r\n\r\n",
    )
    .await;
    assert_eq!(reply.status, 503);
}

#[tokio::test]
async fn a_failure_after_messages_is_said_at_the_end() {
    let lab = Lab::start_with("json = { emit-defaults = false }");
    let status = r#"{"code":15,"message":"lost count","details":[]}"#;
    let path = "/v1/count?from=1&count=9&fail_after=1";
    let reply = ask(&lab, path, SSE).await;
    let expected = format!("200 data: {{\"small\":1}}\n\nevent: error\ndata: {status}\n\n");
    assert_eq!(reply.line(), expected);
    let reply = ask(&lab, path, NDJSON).await;
    assert_eq!(
        reply.line(),
        format!("200 {{\"small\":1}}\n{{\"error\":{status}}}\n")
    );
    let reply = ask(&lab, path, "").await;
    let expected = format!("200 [\n{{\"small\":1}},\n{{\"error\":{status}}}\n]\n");
    assert_eq!(reply.line(), expected);
}

#[tokio::test]
async fn an_event_stream_is_resumed_where_it_ended() {
    let lab = Lab::start_with(TAIL);
    let state = &lab.sample.state;
    state.events.add_permits(2);
    let mut lines = Lines::open(lab.address(), "/tail?cursor=5", "").await;
    assert_eq!(
        (lines.status, &*lines.headers["content-type"]),
        (200, "text/event-stream")
    );
    for number in [6, 7] {
        let data = format!("data: {{\"text\":\"\",\"number\":\"{number}\"}}");
        let expected = [format!("id: {number}"), "event: tick".to_owned(), data];
        assert_eq!(lines.message().await, expected);
    }
    drop(lines);
    state.wait_for_tails_ended(1).await;
    // As a browser does it: the same address, and the id of the last event.
    state.events.add_permits(1);
    let mut lines = Lines::open(lab.address(), "/tail?cursor=5", "last-event-id: 7\r\n").await;
    assert_eq!(lines.message().await[0], "id: 8");
    let reply = ask(&lab, "/tail", "last-event-id: nonsense\r\n").await;
    assert_eq!((reply.status, &reply.json()["code"]), (400, &3.into()));
}

#[tokio::test]
async fn silence_is_broken_by_signs_of_life_and_no_request_timeout_ends_it() {
    let toml = format!(
        "request-timeout = \"20ms\"\nrequest-timeout-max = \"20ms\"\n\
         stream = {{ open-wait = \"10ms\", ping-interval = \"20ms\" }}\n{TAIL}"
    );
    let lab = Lab::start_with(&toml);
    let mut lines = Lines::open(lab.address(), "/tail", "").await;
    assert_eq!(lines.status, 200, "before any message");
    for _ in 0..5 {
        assert_eq!(lines.event().await, [": ping"]);
    }
    lab.sample.state.events.add_permits(1);
    assert_eq!(lines.message().await[0], "id: 1");
}

#[tokio::test]
async fn a_stream_ends_at_its_deadline_and_says_so() {
    let lab = Lab::start_with(&format!(
        "stream = {{ time-max = \"60ms\", open-wait = \"1ms\" }}\n{TAIL}"
    ));
    for header in ["", "grpc-timeout: 30m\r\n", "grpc-timeout: 1H\r\n"] {
        let mut lines = Lines::open(lab.address(), "/tail", header).await;
        let event = lines.message().await;
        assert_eq!(event[0], "event: error", "{header}");
        assert!(event[1].starts_with("data: {\"code\":4,"), "{event:?}");
        assert_eq!(lines.line().await, "", "the end");
        lab.sample.state.wait_for_tails_ended(1).await;
    }
    let passed = lab.sample.state.metadata.lock()["grpc-timeout"].clone();
    assert!(passed.to_str().unwrap().ends_with('u'), "{passed:?}");
}

#[tokio::test]
async fn a_client_that_goes_takes_its_call_with_it() {
    let lab = Lab::start_with("stream = { open-wait = \"10ms\" }");
    let state = &lab.sample.state;
    // While it waits, with messages under way, and before the answer has begun.
    let lines = Lines::open(lab.address(), "/v1/tail", SSE).await;
    drop(lines);
    state.wait_for_tails_ended(1).await;
    let mut lines = Lines::open(lab.address(), "/v1/tail?size=1000", NDJSON).await;
    lines.line().await;
    drop(lines);
    state.wait_for_tails_ended(1).await;
    let client = Http2::connect(lab.address()).await;
    let asking = tokio::spawn(async move { client.post_json("/lab.v1.Lab/Tail", "{}").await });
    state.wait_for_hanging(3).await;
    asking.abort();
    state.wait_for_tails_ended(1).await;
}

#[tokio::test]
async fn a_slow_client_slows_the_upstream_and_nobody_else() {
    let lab = Lab::start();
    let state = &lab.sample.state;
    // More than fit on one connection, none of them reads.
    let mut slow = Vec::new();
    for _ in 0..70 {
        slow.push(Lines::open(lab.address(), "/v1/tail?size=100000", NDJSON).await);
    }
    // Until the upstream has found all windows full: it produces nothing more.
    let mut before = usize::MAX;
    let full = async {
        while before != state.produced.load(Ordering::Relaxed) {
            before = state.produced.load(Ordering::Relaxed);
            // There is no event to wait on: what is waited for is that nothing happens.
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    timeout(PATIENCE, full)
        .await
        .expect("an end to what is produced");
    // What lies between upstream and client: the sockets' buffers (some MiB in each kernel), windows.
    assert!(before < 70 * 120, "{before} events of 100 kB");
    for _ in 0..10 {
        assert_eq!(post_json(lab.address(), "/v1/echo", "{}").await.status, 200);
    }
    let mut line = slow.pop().unwrap();
    for _ in 0..200 {
        assert!(line.line().await.len() > 100_000);
    }
    drop(slow);
    state.wait_for_tails_ended(69).await;
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_let_go() {
    let lab = Lab::start_with("stall-timeout = \"100ms\"");
    let _lines = Lines::open(lab.address(), "/v1/tail?size=100000", NDJSON).await;
    lab.sample.state.wait_for_tails_ended(1).await;
}

#[tokio::test]
async fn the_drain_ends_streams_in_order_and_says_so() {
    let lab = Lab::start_with(TAIL);
    let mut events = Lines::open(lab.address(), "/tail", "").await;
    let mut lines = Lines::open(lab.address(), "/v1/tail", NDJSON).await;
    lab.sample.state.wait_for_hanging(2).await;
    lab.sample.state.events.add_permits(2);
    assert_eq!(events.message().await[0], "id: 1");
    assert!(lines.line().await.contains("\"number\":\"1\""));
    let stopped = tokio::spawn(lab.gateway.shutdown(PATIENCE));
    let event = events.message().await;
    assert_eq!(event[0], "event: error");
    assert!(
        event[1].contains("\"code\":14") && event[1].contains("DRAINING"),
        "{event:?}"
    );
    assert_eq!(events.line().await, "", "the end");
    let line = lines.line().await;
    assert!(line.starts_with("{\"error\":{\"code\":14,"), "{line}");
    assert_eq!(lines.line().await, "", "the end");
    timeout(PATIENCE, stopped)
        .await
        .expect("streams do not hold up the end")
        .unwrap();
}

#[tokio::test]
async fn raw_bodies_are_poured_out_and_a_broken_one_is_not_taken_for_whole() {
    let lab = Lab::start();
    let reply = ask(&lab, "/v1/pour?from=1&count=3", SSE).await;
    assert_eq!(reply.line(), "200 1\n2\n3\n");
    assert_eq!(reply.headers["content-type"], "text/csv");
    let client = Http2::connect(lab.address()).await;
    let request = http::Request::get("http://lab/v1/pour?from=1&count=3&fail_after=2")
        .body(http_body_util::Full::default())
        .unwrap();
    assert!(
        client.try_send(request).await.is_err(),
        "the stream is reset"
    );
    let head = "GET /v1/pour?from=1&count=3&fail_after=2 HTTP/1.1\r\nhost: lab\r\n\r\n";
    let text = crate::client::raw_text(lab.address(), head.as_bytes()).await;
    assert!(!text.ends_with("0\r\n\r\n"), "no end of the chunks: {text}");
}

#[tokio::test]
async fn routes_that_do_not_fit_a_stream_are_refused() {
    for rule in ["sse-id = \"small\"", "stream = \"ndjson\""] {
        let toml = format!("[[routes]]\nhttp = \"GET /x\"\nrpc = \"lab.v1.Lab/Echo\"\n{rule}");
        let lab = Lab::start_with(&toml);
        let reply = get(lab.address(), "/x").await;
        assert_eq!(reply.json()["details"][0]["reason"], "BAD_ROUTE", "{rule}");
    }
    for rule in [
        "sse-id = \"event\"",
        "sse-event = \"nosuch\"",
        "last-event-id = \"nosuch\"",
    ] {
        let toml = format!("[[routes]]\nhttp = \"GET /x\"\nrpc = \"lab.v1.Lab/Tail\"\n{rule}");
        let lab = Lab::start_with(&toml);
        let reply = get(lab.address(), "/x").await;
        assert_eq!(reply.json()["details"][0]["reason"], "BAD_ROUTE", "{rule}");
    }
}

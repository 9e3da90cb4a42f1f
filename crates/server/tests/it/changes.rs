//! The change stream of a whole node, over gRPC and over the admin port.

use std::collections::BTreeMap;

use flux_proto::cdc::watch_client::WatchClient;
use flux_proto::cdc::{CloudEvent, CursorFailure, WatchRequest, WatchResponse};
use flux_proto::status;
use prost::Message as _;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tonic::transport::Endpoint;
use tonic::{Code, Status, Streaming};

use crate::harness::{PATIENCE, TestNode};

async fn try_watch(node: &TestNode, request: WatchRequest) -> Result<Watching, Status> {
    let address = format!("http://{}", node.node.addresses().grpc);
    let channel = Endpoint::from_shared(address).expect("an address");
    let channel = channel.connect().await.expect("the port accepts");
    let stream = WatchClient::new(channel).watch(request).await?.into_inner();
    Ok(Watching { stream })
}

async fn watch(node: &TestNode, from: &str, prefix: &str) -> Watching {
    let request = WatchRequest {
        from: from.to_owned(),
        prefix: prefix.to_owned(),
        cursor: String::new(),
    };
    let mut watching = try_watch(node, request).await.expect("a watch");
    assert_eq!(
        word(&watching.next().await),
        "progress",
        "the beginning is told"
    );
    watching
}

struct Watching {
    stream: Streaming<WatchResponse>,
}

impl Watching {
    async fn next(&mut self) -> WatchResponse {
        self.try_next().await.expect("no error").expect("no end")
    }

    async fn try_next(&mut self) -> Result<Option<WatchResponse>, Status> {
        let next = tokio::time::timeout(PATIENCE, self.stream.message());
        next.await
            .expect("an event within the patience of the test")
    }

    /// The next so many events that are not about the stream itself, one line each.
    async fn lines(&mut self, count: usize) -> Vec<String> {
        let mut lines = Vec::new();
        while lines.len() < count {
            let response = self.next().await;
            if word(&response) != "progress" {
                lines.push(line(&response));
            }
        }
        lines
    }
}

fn event(response: &WatchResponse) -> &CloudEvent {
    response.event.as_ref().expect("an event")
}

fn word(response: &WatchResponse) -> &str {
    let name = event(response).r#type.as_deref().expect("a type");
    flux_cdc::envelope::word_of_type(name).expect("one of ours")
}

fn line(response: &WatchResponse) -> String {
    let event = event(response);
    let data = event.data.as_ref().expect("data");
    let key = event.subject.as_deref().unwrap_or("-");
    let after = data.after.as_ref().and_then(|after| after.value.as_deref());
    let group = data.transaction.as_ref().map_or_else(String::new, |group| {
        let number = |number: Option<u32>| number.unwrap_or(u32::MAX);
        format!(" {}/{}", number(group.total_order), number(group.count))
    });
    format!("{} {key} {}{group}", word(response), after.unwrap_or("-"))
}

#[tokio::test]
async fn a_watcher_is_told_each_kind_of_change_in_order_and_transactions_as_groups() {
    let node = TestNode::with_shards(1).await;
    let mut client = node.client().await;
    client.ask("SET before 0").await;
    let mut watching = watch(&node, "now", "").await;
    for command in [
        "SET a 1",
        "APPEND a 2",
        "EXPIRE a 100",
        "MULTI",
        "SET b 1",
        "INCR b",
        "DEL a",
        "EXEC",
        "SET c 1 PX 1",
        "FLUSHALL",
    ] {
        client.ask(command).await;
        if command.ends_with("PX 1") {
            // Its expiry is told when it is due, without anyone asking for the key.
            assert_eq!(
                watching.lines(8).await,
                [
                    "set a 1 0/1",
                    "patch a 2 0/1",
                    "expire a - 0/1",
                    "set b 1 0/3",
                    "set b 2 1/3",
                    "delete a - 2/3",
                    "set c 1 0/1",
                    "expired c - 0/1",
                ]
            );
        }
    }
    assert_eq!(watching.lines(1).await, ["flush - - 0/1"]);
    node.end().await;
}

#[tokio::test]
async fn a_watcher_goes_on_after_its_cursor_even_inside_a_transaction_and_over_a_restart() {
    let node = TestNode::with_shards(1).await;
    let mut client = node.client().await;
    let mut watching = watch(&node, "now", "").await;
    client.ask("MSET a 1 b 1 c 1").await;
    let first = watching.next().await;
    assert_eq!(line(&first), "set a 1 0/3");
    client.ask("SET d 1").await;
    let node = node.restart().await;
    let request = WatchRequest {
        // Not looked at, since there is a cursor.
        from: "snapshot".to_owned(),
        cursor: first.cursor.clone(),
        ..WatchRequest::default()
    };
    let mut again = try_watch(&node, request).await.expect("a watch");
    assert_eq!(
        again.lines(3).await,
        ["set b 1 1/3", "set c 1 2/3", "set d 1 0/1"]
    );
    let mut earliest = watch(&node, "earliest", "").await;
    let all = earliest.lines(4).await;
    assert_eq!(
        all,
        ["set a 1 0/3", "set b 1 1/3", "set c 1 2/3", "set d 1 0/1"]
    );
    node.end().await;
}

#[tokio::test]
async fn a_prefix_hides_other_keys_and_their_cursor_moves_on_all_the_same() {
    let node = TestNode::with_shards(1).await;
    let mut client = node.client().await;
    let mut watching = watch(&node, "now", "user:").await;
    client.ask("MSET other:1 x user:1 x other:2 x").await;
    client.ask("FLUSHALL").await;
    assert_eq!(
        watching.lines(2).await,
        ["set user:1 x 1/3", "flush - - 0/1"]
    );
    node.end().await;
}

#[tokio::test]
async fn a_snapshot_and_what_follows_make_the_state_of_all_shards() {
    let node = TestNode::with_shards(4).await;
    let mut client = node.client().await;
    for number in 0..100 {
        client.ask(&format!("SET key:{number} old")).await;
    }
    client.ask("SET gone x PX 1").await;
    let mut watching = watch(&node, "snapshot", "").await;
    for number in 0..50 {
        client.ask(&format!("SET key:{number} new")).await;
    }
    client.ask("DEL key:99").await;
    client.ask("SET last x").await;
    let value = |number: usize| Some(if number < 50 { "new" } else { "old" }.to_owned());
    let mut expected: BTreeMap<String, Option<String>> = (0..99)
        .map(|number| (format!("key:{number}"), value(number)))
        .collect();
    expected.insert("last".to_owned(), Some("x".to_owned()));
    let mut state = BTreeMap::new();
    let mut completed = 0;
    // Between shards there is no order: nothing but the whole state shows that everything came.
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while completed < 4 || state != expected {
        assert!(tokio::time::Instant::now() < deadline, "{state:?}");
        let response = watching.next().await;
        let key = event(&response).subject.clone().unwrap_or_default();
        match word(&response) {
            "set" | "snapshot" => {
                let data = event(&response).data.clone().expect("data");
                state.insert(key, data.after.and_then(|after| after.value));
            }
            "delete" | "expired" => {
                state.remove(&key);
            }
            "snapshot-complete" => completed += 1,
            "progress" => {}
            other => panic!("{other}"),
        }
    }
    node.end().await;
}

fn failure(status: &Status) -> CursorFailure {
    let details = status::details(status).expect("details");
    let detail = details.details.first().expect("a detail");
    assert!(detail.type_url.ends_with("/flux.cdc.v1.CursorFailure"));
    CursorFailure::decode(detail.value.as_slice()).expect("a message")
}

#[tokio::test]
async fn a_cursor_of_another_cluster_and_a_text_that_is_none_are_refused_each_in_its_way() {
    let (node, other) = (
        TestNode::with_shards(1).await,
        TestNode::with_shards(1).await,
    );
    let mut foreign = try_watch(&other, WatchRequest::default())
        .await
        .expect("a watch");
    let cursor = foreign.next().await.cursor;
    for (cursor, code, reason) in [
        (cursor.as_str(), Code::FailedPrecondition, "diverged"),
        ("yesterday", Code::InvalidArgument, "malformed"),
    ] {
        let request = WatchRequest {
            cursor: cursor.to_owned(),
            ..WatchRequest::default()
        };
        let status = try_watch(&node, request).await.err().expect("a refusal");
        assert_eq!(status.code(), code, "{status:?}");
        assert_eq!(failure(&status).reason, reason);
    }
    drop(foreign);
    other.end().await;
    node.end().await;
}

#[tokio::test]
async fn a_stop_tells_the_watcher_its_cursor_and_then_ends_its_stream() {
    let node = TestNode::with_shards(1).await;
    let mut client = node.client().await;
    let mut watching = watch(&node, "now", "").await;
    client.ask("SET a 1").await;
    let set = watching.next().await;
    let TestNode { node, dir } = node;
    let stopping = tokio::spawn(node.shutdown(PATIENCE));
    let last = watching.next().await;
    assert_eq!((word(&last), &last.cursor), ("progress", &set.cursor));
    let status = watching.try_next().await.expect_err("an end with a reason");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    stopping.await.expect("the node ends");
    drop(dir);
}

/// Asks the admin port; gives back the head and what can be read of the body.
async fn ask(node: &TestNode, path: &str, headers: &str) -> (String, BufReader<TcpStream>) {
    let address = node.node.addresses().admin;
    let mut stream = TcpStream::connect(address).await.expect("the port accepts");
    let request = format!("GET {path} HTTP/1.0\r\n{headers}\r\n");
    stream
        .write_all(request.as_bytes())
        .await
        .expect("it reads");
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        let read = tokio::time::timeout(PATIENCE, reader.read_line(&mut head));
        assert_ne!(read.await.expect("an answer").expect("text"), 0, "{head}");
    }
    (head, reader)
}

async fn next_line(reader: &mut BufReader<TcpStream>) -> String {
    let mut line = String::new();
    let read = tokio::time::timeout(PATIENCE, reader.read_line(&mut line));
    read.await.expect("a line in time").expect("text");
    line.trim_end().to_owned()
}

#[tokio::test]
async fn the_admin_port_shows_events_that_a_browser_resumes_by_itself() {
    let node = TestNode::with_shards(1).await;
    let mut client = node.client().await;
    let (head, mut stream) = ask(&node, "/api/v1/cdc?prefix=a", "").await;
    assert!(head.contains("content-type: text/event-stream"), "{head}");
    let mut id = String::new();
    let mut seen = Vec::new();
    client.ask("SET a1 x").await;
    while seen.is_empty() {
        let line = next_line(&mut stream).await;
        if let Some(cursor) = line.strip_prefix("id: ") {
            id = cursor.to_owned();
        }
        if let Some(json) = line.strip_prefix("data: ") {
            let event: serde_json::Value = serde_json::from_str(json).expect("JSON");
            if event["type"] == "io.fluxkv.kv.set.v1" {
                seen.push(event["subject"].clone());
            }
        }
    }
    client.ask("SET a2 x").await;
    drop(stream);
    let accept = "accept: application/x-ndjson\r\n";
    let headers = format!("{accept}last-event-id: {id}\r\n");
    let (head, mut stream) = ask(&node, "/api/v1/cdc?from=earliest", &headers).await;
    assert!(
        head.contains("content-type: application/x-ndjson"),
        "{head}"
    );
    let progress: serde_json::Value =
        serde_json::from_str(&next_line(&mut stream).await).expect("JSON");
    assert_eq!(
        progress["data"]["cursor"],
        id.as_str(),
        "where it begins is told"
    );
    let event: serde_json::Value =
        serde_json::from_str(&next_line(&mut stream).await).expect("JSON");
    assert_eq!(event["subject"], "a2");
    node.end().await;
}

#[tokio::test]
async fn the_admin_port_refuses_with_words_and_asks_for_the_password() {
    let node = TestNode::start_with(|config| config.password = "sesame".to_owned()).await;
    let bearer = "authorization: Bearer sesame\r\n";
    let basic = "authorization: Basic YW55OnNlc2FtZQ==\r\n";
    let wrong = "authorization: Basic YW55Ondyb25n\r\n";
    for (path, headers, status, word) in [
        ("/api/v1/cdc", "", "401", "a password is required"),
        ("/api/v1/cdc", wrong, "401", "a password is required"),
        ("/api/v1/cdc?from=yesterday", bearer, "400", "malformed"),
        ("/api/v1/cdc?since=now", bearer, "400", "since"),
        ("/api/v1/cdc?from=yesterday", basic, "400", "malformed"),
    ] {
        let (head, mut stream) = ask(&node, path, headers).await;
        let mut body = String::new();
        stream.read_to_string(&mut body).await.expect("text");
        assert!(head.contains(status), "{head}");
        assert!(body.contains(word), "{body}");
    }
    let (head, _stream) = ask(&node, "/api/v1/cdc", basic).await;
    assert!(head.contains("200"), "{head}");
    node.end().await;
}

//! Bytes that are not what they should be: an error or a close, bounded memory, nobody else harmed.

use crate::harness::{Client, TestNode, encode, show};

/// Sends bytes and answers all replies until the node closes.
async fn refused(node: &TestNode, bytes: &[u8]) -> Vec<String> {
    let mut client = node.client().await;
    client.send(bytes).await;
    let mut replies = Vec::new();
    while let Some(value) = client.reply().await {
        replies.push(show(&value));
    }
    replies
}

#[tokio::test]
async fn broken_frames_are_answered_and_closed() {
    let node = TestNode::start().await;
    for (bytes, reply) in [
        (
            &b"*1048577\r\n"[..],
            "-ERR Protocol error: invalid multibulk length",
        ),
        (
            b"*99999999999999999999\r\n",
            "-ERR Protocol error: invalid multibulk length",
        ),
        (
            b"*1\r\n+PING\r\n",
            "-ERR Protocol error: expected '$', got '+'",
        ),
        (
            b"*1\r\n$4294967295\r\n",
            "-ERR Protocol error: invalid bulk length",
        ),
        (b"*1\r\n$-1\r\n", "-ERR Protocol error: invalid bulk length"),
        (b"*1\r\n$4\r\nPINGxx", "-ERR Protocol error: expected CRLF"),
        (
            b"SET \"a\r\n",
            "-ERR Protocol error: unbalanced quotes in request",
        ),
    ] {
        assert_eq!(
            refused(&node, bytes).await,
            [reply],
            "{}",
            bytes.escape_ascii()
        );
    }
    // What came before the broken frame is answered first.
    let mut bytes = encode(&["SET", "k", "v"]);
    bytes.extend_from_slice(&encode(&["GET", "k"]));
    bytes.extend_from_slice(b"*x\r\n");
    let replies = refused(&node, &bytes).await;
    assert_eq!(
        replies,
        [
            "OK",
            "\"v\"",
            "-ERR Protocol error: invalid multibulk length"
        ]
    );
    let mut client = node.client().await;
    assert_eq!(client.show("GET k").await, "\"v\"");
    node.end().await;
}

#[tokio::test]
async fn a_megabyte_on_one_line_is_refused() {
    let node = TestNode::start().await;
    let mut client = node.client().await;
    let line = vec![b'x'; 1024 * 1024];
    // The node may close before all of it is sent.
    let sent = tokio::io::AsyncWriteExt::write_all(&mut client.stream, &line).await;
    if sent.is_ok() {
        let reply = client.reply().await;
        if let Some(value) = reply {
            assert_eq!(show(&value), "-ERR Protocol error: too big inline request");
        }
        assert!(client.is_closed().await);
    }
    let mut other = node.client().await;
    assert_eq!(other.show("PING").await, "PONG");
    node.end().await;
}

#[tokio::test]
async fn announced_millions_cost_nothing_until_they_arrive() {
    let node = TestNode::start().await;
    let mut waiting: Vec<Client> = Vec::new();
    for _ in 0..50 {
        let mut client = node.client().await;
        client.send(b"*1048576\r\n$8388608\r\nstart").await;
        waiting.push(client);
    }
    let mut other = node.client().await;
    let memory = other.show("INFO memory").await;
    let resident = memory
        .split("used_memory_rss:")
        .nth(1)
        .and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).next())
        .and_then(|digits| digits.parse::<u64>().ok())
        .expect("INFO tells the resident size");
    assert!(resident < 1024 * 1024 * 1024, "{resident} bytes resident");
    assert_eq!(other.show("PING").await, "PONG");
    drop(waiting);
    node.end().await;
}

#[tokio::test]
async fn empty_lines_and_empty_arrays_are_nothing() {
    let node = TestNode::start().await;
    let mut client = node.client().await;
    client.send(b"\r\n\r\n*0\r\n*-1\r\nPING\r\n").await;
    let reply = client.reply().await.expect("open");
    assert_eq!(show(&reply), "PONG");
    node.end().await;
}

#[tokio::test]
async fn a_value_beyond_the_limit_is_refused_and_the_connection_lives() {
    let node = TestNode::start_with(|config| config.value_size_max = 1000).await;
    let mut client = node.client().await;
    let long = "v".repeat(1001);
    let reply = client.show(&format!("SET k {long}")).await;
    assert!(reply.starts_with("-ERR "), "{reply}");
    assert_eq!(client.show("EXISTS k").await, "0");
    node.end().await;
}

#[tokio::test]
async fn http_is_told_where_it_belongs() {
    let node = TestNode::start().await;
    let mut client = node.client().await;
    client.send(b"GET / HTTP/1.1\r\nhost: here\r\n\r\n").await;
    let mut answer = String::new();
    tokio::io::AsyncReadExt::read_to_string(&mut client.stream, &mut answer)
        .await
        .expect("text");
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    node.end().await;
}

#[tokio::test]
async fn half_a_preface_and_then_nothing_holds_up_nobody() {
    let node = TestNode::start().await;
    let mut half = node.client().await;
    half.send(b"FLX").await;
    let mut client = node.client().await;
    assert_eq!(client.show("PING").await, "PONG");
    // It is closed when the node ends, like any other idle connection.
    node.end().await;
    assert!(half.is_closed().await);
}

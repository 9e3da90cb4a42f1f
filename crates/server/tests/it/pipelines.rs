//! Pipelines: every split of the bytes, order of replies, no reader, bounds.

use std::time::Duration;

use flux_wire::resp::Value;
use tokio::io::AsyncWriteExt;

use crate::harness::{TestNode, encode, show};

/// Commands of all kinds with the replies they must have, in this order, on an empty node.
fn mixed() -> (Vec<u8>, Vec<&'static str>) {
    let script: [(&[&str], &str); 14] = [
        (&["SET", "k", "1"], "OK"),
        (&["GET", "k"], "\"1\""),
        (&["INCR", "k"], "2"),
        (&["GET", "k"], "\"2\""),
        (&["PING"], "PONG"),
        (&["GET", "other"], "nil"),
        (&["MSET", "k", "7", "other", "8", "third", "9"], "OK"),
        (&["MGET", "third", "k", "other"], "[\"9\", \"7\", \"8\"]"),
        (
            &["NOSUCH"],
            "-ERR unknown command 'NOSUCH', with args beginning with: ",
        ),
        (&["MULTI"], "OK"),
        (&["INCR", "k"], "QUEUED"),
        (&["EXEC"], "[8]"),
        (&["DEL", "k", "other", "third"], "3"),
        (&["EXISTS", "k"], "0"),
    ];
    let bytes = script.iter().flat_map(|(words, _)| encode(words)).collect();
    (bytes, script.iter().map(|(_, reply)| *reply).collect())
}

#[tokio::test]
async fn replies_come_in_order_wherever_the_bytes_are_cut() {
    let (bytes, expected) = mixed();
    for shards in [1, 4] {
        let node = TestNode::with_shards(shards).await;
        let mut client = node.client().await;
        for cut in 0..=bytes.len() {
            let (head, tail) = bytes.split_at(cut);
            client.send(head).await;
            // Let the node see the cut: a reply, where one is due, else a turn of its loop.
            tokio::task::yield_now().await;
            client.send(tail).await;
            for reply in &expected {
                let value = client.reply().await.expect("the connection is open");
                assert_eq!(show(&value), *reply, "cut at {cut} with {shards} shards");
            }
        }
        node.end().await;
    }
}

#[tokio::test]
async fn one_byte_at_a_time_is_enough() {
    let (bytes, expected) = mixed();
    let node = TestNode::start().await;
    let mut client = node.client().await;
    for byte in bytes.chunks(1) {
        client.send(byte).await;
        client.stream.flush().await.expect("the node reads");
    }
    for reply in expected {
        let value = client.reply().await.expect("the connection is open");
        assert_eq!(show(&value), reply);
    }
    node.end().await;
}

#[tokio::test]
async fn ten_thousand_commands_without_reading_a_reply() {
    let node = TestNode::with_shards(4).await;
    let mut client = node.client().await;
    let value = "v".repeat(1000);
    let mut bytes = Vec::new();
    for index in 0..5000 {
        let key = format!("key:{index}");
        bytes.extend_from_slice(&encode(&["SET", &key, &value]));
        bytes.extend_from_slice(&encode(&["GET", &key]));
    }
    // Far more than the sockets' buffers hold, both ways.
    client.send(&bytes).await;
    for index in 0..5000 {
        let set = client.reply().await.expect("the connection is open");
        assert_eq!(show(&set), "OK");
        let Some(Value::Bulk(got)) = client.reply().await else {
            panic!("GET {index} answered something else");
        };
        assert_eq!(got.len(), value.len());
    }
    node.end().await;
}

#[tokio::test]
async fn who_never_reads_is_cut_off_and_harms_nobody() {
    let limit = 1024 * 1024;
    let node = TestNode::start_with(|config| config.output_buffer_size_max = limit).await;
    let mut other = node.client().await;
    let value = "v".repeat(100_000);
    assert_eq!(other.show(&format!("SET big {value}")).await, "OK");
    let mut slow = node.client().await;
    let gets: Vec<u8> = (0..1000).flat_map(|_| encode(&["GET", "big"])).collect();
    // 100 MB of replies are asked for and none is read: the node closes, so that writing fails.
    let cut_off = async {
        loop {
            if slow.stream.write_all(&gets).await.is_err() {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), cut_off)
        .await
        .expect("the node closes the connection");
    assert_eq!(other.show("STRLEN big").await, "100000");
    assert_eq!(other.show("PING").await, "PONG");
    node.end().await;
}

#[tokio::test]
async fn a_thousand_concurrent_increments_make_a_thousand() {
    for shards in [1, 4] {
        let node = TestNode::with_shards(shards).await;
        let mut clients = Vec::new();
        for _ in 0..20 {
            clients.push(node.client().await);
        }
        let increments: Vec<u8> = (0..50).flat_map(|_| encode(&["INCR", "n"])).collect();
        for client in &mut clients {
            client.send(&increments).await;
        }
        let mut seen = Vec::new();
        for client in &mut clients {
            let mut last = 0;
            for _ in 0..50 {
                let Some(Value::Integer(number)) = client.reply().await else {
                    panic!("INCR answered something else");
                };
                assert!(number > last, "each sees the numbers grow");
                last = number;
                seen.push(number);
            }
        }
        seen.sort_unstable();
        assert_eq!(seen, (1..=1000).collect::<Vec<i64>>());
        node.end().await;
    }
}

#[tokio::test]
async fn set_nx_twice_in_one_pipeline_has_one_winner() {
    let node = TestNode::start().await;
    let mut client = node.client().await;
    let mut bytes = encode(&["SET", "lock", "a", "NX"]);
    bytes.extend_from_slice(&encode(&["SET", "lock", "b", "NX"]));
    bytes.extend_from_slice(&encode(&["GET", "lock"]));
    client.send(&bytes).await;
    let mut replies = Vec::new();
    for _ in 0..3 {
        replies.push(show(&client.reply().await.expect("open")));
    }
    assert_eq!(replies, ["OK", "nil", "\"a\""]);
    node.end().await;
}

//! Several shards on several threads: what is split, what is refused, what the whole keyspace is.

use std::collections::BTreeSet;

use flux_wire::resp::Value;

use crate::harness::{TestNode, encode, show};

#[tokio::test]
async fn a_scan_sees_every_key_of_every_shard_once() {
    for shards in [1, 4] {
        let node = TestNode::with_shards(shards).await;
        let mut client = node.client().await;
        let keys: BTreeSet<String> = (0..500).map(|index| format!("key:{index}")).collect();
        for key in &keys {
            client.send(&encode(&["SET", key, "v"])).await;
        }
        for _ in &keys {
            client.reply().await.expect("open");
        }
        assert_eq!(client.show("DBSIZE").await, "500");
        let mut seen = BTreeSet::new();
        let mut cursor = "0".to_owned();
        loop {
            let Value::Array(page) = client.ask(&format!("SCAN {cursor} COUNT 50")).await else {
                panic!("SCAN answers an array");
            };
            let [Value::Bulk(next), Value::Array(found)] = page.as_slice() else {
                panic!("a cursor and keys");
            };
            for key in found {
                let Value::Bulk(key) = key else {
                    panic!("keys are strings");
                };
                seen.insert(String::from_utf8_lossy(key).into_owned());
            }
            cursor = String::from_utf8_lossy(next).into_owned();
            if cursor == "0" {
                break;
            }
        }
        assert_eq!(seen, keys, "{shards} shards");
        assert_eq!(client.show("FLUSHALL").await, "OK");
        assert_eq!(client.show("DBSIZE").await, "0");
        node.end().await;
    }
}

#[tokio::test]
async fn what_must_be_of_one_moment_is_refused_across_shards() {
    let node = TestNode::with_shards(4).await;
    let mut client = node.client().await;
    // Slots 12182 and 5061.
    client.ask("MSET foo 1 bar 2").await;
    for command in ["RENAME foo bar", "COPY foo bar", "MSETNX foo 1 bar 2"] {
        let reply = client.show(command).await;
        assert!(reply.starts_with("-CROSSSLOT "), "{command}: {reply}");
    }
    for command in ["MULTI", "SET foo 3", "SET bar 4"] {
        client.ask(command).await;
    }
    let reply = client.show("EXEC").await;
    assert!(reply.starts_with("-CROSSSLOT "), "{reply}");
    assert_eq!(client.show("MGET foo bar").await, "[\"1\", \"2\"]");
    // A watched key elsewhere is another shard too.
    for command in ["WATCH foo", "MULTI", "SET bar 4"] {
        client.ask(command).await;
    }
    let reply = client.show("EXEC").await;
    assert!(reply.starts_with("-CROSSSLOT "), "{reply}");
    for command in ["MULTI", "SET {foo}1 3", "SET {foo}2 4"] {
        client.ask(command).await;
    }
    assert_eq!(client.show("EXEC").await, "[OK, OK]");
    node.end().await;
}

#[tokio::test]
async fn connections_on_every_thread_reach_every_shard() {
    let node = TestNode::start_with(|config| {
        config.shards = Some(3);
        config.threads = 3;
    })
    .await;
    let mut clients = Vec::new();
    for _ in 0..6 {
        clients.push(node.client().await);
    }
    for (index, client) in clients.iter_mut().enumerate() {
        let mut bytes = Vec::new();
        for number in 0..30 {
            let key = format!("{index}:{number}");
            bytes.extend_from_slice(&encode(&["SET", &key, &key]));
            bytes.extend_from_slice(&encode(&["GET", &key]));
        }
        client.send(&bytes).await;
    }
    for (index, client) in clients.iter_mut().enumerate() {
        for number in 0..30 {
            let set = client.reply().await.expect("open");
            let get = client.reply().await.expect("open");
            assert_eq!(show(&set), "OK");
            assert_eq!(show(&get), format!("\"{index}:{number}\""));
        }
    }
    node.end().await;
}

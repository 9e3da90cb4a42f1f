//! Start, stop, restart, and what must not start.

use std::path::Path;

use flux_server::{Config, Fsync, Node, StartError};

use crate::harness::{PATIENCE, TestNode, config, encode, show};

async fn refused(config: Config) -> StartError {
    match Node::start(config).await {
        Ok(_) => panic!("the node started"),
        Err(error) => error,
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("a copy");
        }
    }
}

#[tokio::test]
async fn a_restart_keeps_data_and_deadlines_and_raises_the_term() {
    for shards in [1, 4] {
        let node = TestNode::with_shards(shards).await;
        let mut client = node.client().await;
        for index in 0..100 {
            assert_eq!(client.show(&format!("SET key:{index} {index}")).await, "OK");
        }
        assert_eq!(client.show("SET soon v PXAT 99999999999999").await, "OK");
        assert_eq!(client.show("DEL key:0").await, "1");
        assert!(client.show("INFO flux").await.contains("term=1"));
        drop(client);
        let node = node.restart().await;
        let mut client = node.client().await;
        assert_eq!(client.show("DBSIZE").await, "100");
        assert_eq!(client.show("GET key:99").await, "\"99\"");
        assert_eq!(client.show("GET key:0").await, "nil");
        assert_eq!(client.show("PEXPIRETIME soon").await, "99999999999999");
        assert!(client.show("INFO flux").await.contains("term=2"));
        node.end().await;
    }
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_a_kill() {
    for fsync in [Fsync::Always, Fsync::EverySec, Fsync::Never] {
        let node = TestNode::start_with(|config| config.fsync = fsync).await;
        let mut client = node.client().await;
        let mut bytes = Vec::new();
        for index in 0..200 {
            bytes.extend_from_slice(&encode(&["SET", &format!("key:{index}"), "v"]));
        }
        bytes.extend_from_slice(&encode(&["INCRBY", "n", "5"]));
        client.send(&bytes).await;
        for _ in 0..=200 {
            let reply = show(&client.reply().await.expect("open"));
            assert!(reply == "OK" || reply == "5", "{reply}");
        }
        // What the kernel has been handed is what a killed process leaves behind.
        let after = tempfile::tempdir().expect("a folder");
        copy(node.dir.path(), after.path());
        let killed = TestNode::start_in(after, |_| ()).await;
        let mut client = killed.client().await;
        assert_eq!(client.show("DBSIZE").await, "201", "{fsync:?}");
        assert_eq!(client.show("GET n").await, "\"5\"", "applied once");
        killed.end().await;
        node.end().await;
    }
}

#[tokio::test]
async fn a_second_node_on_the_same_folder_is_refused() {
    let node = TestNode::start().await;
    let error = refused(config(node.dir.path())).await;
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("in use"), "{error}");
    let mut client = node.client().await;
    assert_eq!(client.show("SET k v").await, "OK");
    node.end().await;
}

#[tokio::test]
async fn another_number_of_shards_is_refused_with_both_named() {
    let node = TestNode::with_shards(4).await;
    let TestNode { node, dir } = node;
    node.shutdown(PATIENCE).await;
    let error = refused(Config {
        shards: Some(2),
        ..config(dir.path())
    })
    .await;
    assert_eq!(error.exit_code(), 2);
    let text = error.to_string();
    assert!(text.contains('4') && text.contains('2'), "{text}");
    // Not asking for a number takes what is there.
    let node = TestNode::start_in(dir, |_| ()).await;
    let mut client = node.client().await;
    assert!(client.show("INFO flux").await.contains("shards:4"));
    node.end().await;
}

#[tokio::test]
async fn a_taken_port_leaves_no_trace() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port();
    let dir = tempfile::tempdir().expect("a folder");
    let inside = dir.path().join("data");
    let error = refused(Config {
        port,
        ..config(&inside)
    })
    .await;
    assert_eq!(error.exit_code(), 2);
    assert_eq!(
        error.to_string(),
        format!(
            "port {port} is taken (another process listens on 127.0.0.1:{port}); choose another \
             with --port"
        )
    );
    assert!(!inside.exists());
}

#[tokio::test]
async fn foreign_files_are_left_alone() {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("thesis.tex"), "mine").expect("a file");
    let error = refused(config(dir.path())).await;
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("thesis.tex"), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).expect("a folder").count(), 1);
}

#[tokio::test]
async fn damage_in_the_middle_exits_with_3() {
    let node = TestNode::start().await;
    let mut client = node.client().await;
    for index in 0..200 {
        client.ask(&format!("SET key:{index} value")).await;
    }
    let TestNode { node, dir } = node;
    node.shutdown(PATIENCE).await;
    let log = dir.path().join("log");
    let segment = std::fs::read_dir(&log)
        .expect("the log")
        .map(|entry| entry.expect("an entry").path())
        .min()
        .expect("a segment");
    let mut bytes = std::fs::read(&segment).expect("a segment");
    bytes[8192] ^= 0x10;
    std::fs::write(&segment, bytes).expect("a segment");
    let error = refused(config(dir.path())).await;
    assert_eq!(error.exit_code(), 3, "{error}");
    assert!(error.to_string().contains("flux log inspect"), "{error}");
}

#[tokio::test]
async fn mistakes_in_settings_are_told_all_at_once() {
    let dir = tempfile::tempdir().expect("a folder");
    let error = refused(Config {
        bind: "0.0.0.0".parse().expect("an address"),
        shards: Some(0),
        ..config(dir.path())
    })
    .await;
    assert_eq!(error.exit_code(), 2);
    assert_eq!(error.to_string().lines().count(), 2, "{error}");
}

#[tokio::test]
async fn a_shutdown_answers_what_is_in_hand_and_closes_who_is_idle() {
    let node = TestNode::start().await;
    let mut idle = node.client().await;
    assert_eq!(idle.show("PING").await, "PONG");
    let mut busy = node.client().await;
    let bytes: Vec<u8> = (0..2000).flat_map(|_| encode(&["INCR", "n"])).collect();
    busy.send(&bytes).await;
    // The first answer: the rest is in hand.
    let first = busy.reply().await.expect("open");
    assert_eq!(show(&first), "1");
    let address = node.node.addresses().resp;
    let TestNode { node, dir } = node;
    let ((), answered) = tokio::join!(node.shutdown(PATIENCE), async {
        let mut answered = 1;
        while let Some(value) = busy.reply().await {
            answered += 1;
            assert_eq!(show(&value), answered.to_string());
        }
        answered
    });
    assert!(idle.is_closed().await);
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
    // Every answered increment is there, and none that was refused is.
    let node = TestNode::start_in(dir, |_| ()).await;
    let mut client = node.client().await;
    assert_eq!(client.show("GET n").await, format!("\"{answered}\""));
    node.end().await;
}

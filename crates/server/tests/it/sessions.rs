//! What one connection does to another, and who may do anything at all.

use std::time::Duration;

use crate::harness::{TestNode, encode, show};

#[tokio::test]
async fn without_the_password_nothing_is_answered() {
    let node = TestNode::start_with(|config| config.password = "secret".to_owned()).await;
    let mut client = node.client().await;
    assert_eq!(
        client.show("GET k").await,
        "-NOAUTH Authentication required."
    );
    assert_eq!(
        client.show("PING").await,
        "-NOAUTH Authentication required."
    );
    assert_eq!(
        client.show("MULTI").await,
        "-NOAUTH Authentication required."
    );
    let hello = client.show("HELLO 3").await;
    assert!(hello.starts_with("-NOAUTH HELLO must be called"), "{hello}");
    let wrong = "-WRONGPASS invalid username-password pair or user is disabled.";
    assert_eq!(client.show("AUTH wrong").await, wrong);
    assert_eq!(client.show("AUTH default wrong").await, wrong);
    assert_eq!(client.show("AUTH someone secret").await, wrong);
    assert_eq!(client.show("AUTH secret").await, "OK");
    assert_eq!(client.show("GET k").await, "nil");
    assert_eq!(client.show("RESET").await, "RESET");
    assert_eq!(
        client.show("GET k").await,
        "-NOAUTH Authentication required."
    );
    let mut other = node.client().await;
    assert!(
        other
            .show("HELLO 3 AUTH default secret")
            .await
            .starts_with("Map")
    );
    assert_eq!(other.show("GET k").await, "nil");
    node.end().await;
}

#[tokio::test]
async fn a_stranger_may_not_send_much() {
    let node = TestNode::start_with(|config| config.password = "secret".to_owned()).await;
    let mut client = node.client().await;
    client.send(b"*11\r\n").await;
    let reply = client.reply().await.expect("an answer");
    assert_eq!(
        show(&reply),
        "-ERR Protocol error: unauthenticated multibulk length"
    );
    assert!(client.is_closed().await);
    let mut client = node.client().await;
    client.send(b"*2\r\n$4\r\nAUTH\r\n$16385\r\n").await;
    let reply = client.reply().await.expect("an answer");
    assert_eq!(
        show(&reply),
        "-ERR Protocol error: unauthenticated bulk length"
    );
    assert!(client.is_closed().await);
    node.end().await;
}

#[tokio::test]
async fn a_killed_client_is_closed_and_others_are_not() {
    let node = TestNode::start().await;
    let mut victim = node.client().await;
    let id = victim.show("CLIENT ID").await;
    let mut killer = node.client().await;
    assert_eq!(killer.show(&format!("CLIENT KILL ID {id}")).await, "1");
    assert!(victim.is_closed().await);
    assert_eq!(killer.show("PING").await, "PONG");
    // Its socket is closed a moment before its entry is gone.
    let gone = async {
        while killer
            .show("CLIENT LIST")
            .await
            .contains(&format!("id={id} "))
        {
            tokio::task::yield_now().await;
        }
    };
    let limit = Duration::from_secs(30);
    let is_gone = tokio::time::timeout(limit, gone).await.is_ok();
    assert!(is_gone, "it is still listed");
    // One that kills itself is answered first.
    let own = killer.show("CLIENT ID").await;
    assert_eq!(
        killer
            .show(&format!("CLIENT KILL ID {own} SKIPME no"))
            .await,
        "1"
    );
    assert!(killer.is_closed().await);
    node.end().await;
}

#[tokio::test]
async fn a_pause_holds_writes_back_until_it_is_lifted() {
    let node = TestNode::start().await;
    let mut admin = node.client().await;
    let mut client = node.client().await;
    assert_eq!(client.show("SET k 1").await, "OK");
    assert_eq!(admin.show("CLIENT PAUSE 60000 WRITE").await, "OK");
    assert_eq!(client.show("GET k").await, "\"1\"");
    client.send(&encode(&["SET", "k", "2"])).await;
    assert_eq!(admin.show("GET k").await, "\"1\"");
    assert_eq!(admin.show("CLIENT UNPAUSE").await, "OK");
    assert_eq!(show(&client.reply().await.expect("open")), "OK");
    assert_eq!(admin.show("GET k").await, "\"2\"");
    node.end().await;
}

#[tokio::test]
async fn one_connection_too_many_is_told_so() {
    let node = TestNode::start_with(|config| config.connections_max = 2).await;
    let mut first = node.client().await;
    let mut second = node.client().await;
    assert_eq!(first.show("PING").await, "PONG");
    assert_eq!(second.show("PING").await, "PONG");
    let mut third = node.client().await;
    let reply = third.reply().await.expect("an answer");
    assert_eq!(show(&reply), "-ERR max number of clients reached");
    assert!(third.is_closed().await);
    assert_eq!(first.show("CONFIG SET maxclients 3").await, "OK");
    let mut third = node.client().await;
    assert_eq!(third.show("PING").await, "PONG");
    node.end().await;
}

#[tokio::test]
async fn a_silent_connection_is_closed() {
    let node = TestNode::start_with(|config| config.idle_timeout = Duration::from_millis(1)).await;
    let mut client = node.client().await;
    assert!(client.is_closed().await);
    node.end().await;
}

#[tokio::test]
async fn expired_keys_are_absent_and_their_deadline_is_exact() {
    let node = TestNode::with_shards(4).await;
    let mut client = node.client().await;
    assert_eq!(client.show("SET k v PX 30").await, "OK");
    loop {
        let Ok(left) = client.show("PTTL k").await.parse::<i64>() else {
            panic!("PTTL answers a number");
        };
        if left == -2 {
            break;
        }
        assert!((0..=30).contains(&left), "{left}");
    }
    assert_eq!(client.show("GET k").await, "nil");
    assert_eq!(client.show("EXISTS k").await, "0");
    assert_eq!(client.show("SET k w NX").await, "OK");
    node.end().await;
}

#[tokio::test]
async fn statistics_name_commands_as_redis_does_and_begin_anew_when_told() {
    let node = TestNode::start().await;
    let mut client = node.client().await;
    client.show("MSET a 1 b 2").await;
    client.show("MGET a b").await;
    client.show("INCR a").await;
    client.show("SET only").await;
    client.show("SET text abc").await;
    client.show("INCR text").await;
    let info = client.show("INFO commandstats").await;
    for line in [
        "cmdstat_mset:calls=1,usec=",
        "cmdstat_mget:calls=1,usec=",
        "cmdstat_set:calls=1,usec=",
        "cmdstat_incrby:calls=2,usec=",
        ",rejected_calls=1,failed_calls=0",
        ",rejected_calls=0,failed_calls=1",
    ] {
        assert!(info.contains(line), "{line} is missing in {info}");
    }
    // A write is synced before it is answered, which takes more than a microsecond.
    assert!(!info.contains("cmdstat_mset:calls=1,usec=0,"), "{info}");
    assert_eq!(client.show("CONFIG RESETSTAT").await, "OK");
    let info = client.show("INFO commandstats").await;
    assert!(!info.contains("cmdstat_mset"), "{info}");
    let info = client.show("INFO stats").await;
    assert!(info.contains("total_commands_processed:0"), "{info}");
    client.show("GET a").await;
    let info = client.show("INFO ALL").await;
    assert!(info.contains("cmdstat_get:calls=1,"), "{info}");
    assert!(info.contains("keyspace_hits:1"), "{info}");
    node.end().await;
}

#[tokio::test]
async fn the_slow_log_names_slow_commands_without_keys_and_values() {
    let node = TestNode::start().await;
    let mut client = node.client().await;
    assert_eq!(client.show("SLOWLOG LEN").await, "0");
    assert_eq!(
        client.show("CONFIG SET slowlog-log-slower-than 0").await,
        "OK"
    );
    client.show("SET secret-key secret-value").await;
    client.show("CONFIG SET slowlog-log-slower-than -1").await;
    assert_eq!(client.show("SLOWLOG LEN").await, "1");
    let slow = client.show("SLOWLOG GET").await;
    assert!(slow.contains("\"set\""), "{slow}");
    assert!(!slow.contains("secret"), "{slow}");
    assert_eq!(client.show("SLOWLOG RESET").await, "OK");
    assert_eq!(client.show("SLOWLOG GET 1").await, "[]");
    let refused = client.show("SLOWLOG GET nonsense").await;
    assert!(refused.starts_with("-ERR count should be"), "{refused}");
    assert_eq!(client.show("LATENCY LATEST").await, "[]");
    assert_eq!(client.show("CLIENT TRACKING OFF").await, "OK");
    let refused = client.show("CLIENT TRACKING ON").await;
    assert!(
        refused.starts_with("-ERR client-side caching is not supported"),
        "{refused}"
    );
    node.end().await;
}

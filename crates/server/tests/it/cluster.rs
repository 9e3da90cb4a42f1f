//! What cluster clients ask of one node, which is a cluster of its own.

use flux_server::RespCluster;
use flux_wire::resp::Value;

use crate::harness::TestNode;

async fn in_four_shards(how: RespCluster) -> TestNode {
    TestNode::start_with(move |config| {
        config.shards = Some(4);
        config.resp_cluster = how;
    })
    .await
}

#[tokio::test]
async fn one_node_serves_every_slot() {
    let node = in_four_shards(RespCluster::Auto).await;
    let mut client = node.client().await;
    let id = client.show("CLUSTER MYID").await;
    assert_eq!(id.len(), 42, "40 digits in quotes: {id}");
    let port = node.node.addresses().resp.port();
    let place = format!("[\"127.0.0.1\", {port}, {id}, []]");
    let ranges = [(0, 4095), (4096, 8191), (8192, 12287), (12288, 16383)];
    let ranges = ranges.map(|(first, last)| format!("[{first}, {last}, {place}]"));
    assert_eq!(
        client.show("CLUSTER SLOTS").await,
        format!("[{}]", ranges.join(", "))
    );
    let nodes = client.show("CLUSTER NODES").await;
    assert!(nodes.contains("myself,master - 0 0"), "{nodes}");
    assert!(nodes.contains("connected 0-16383"), "{nodes}");
    let info = client.show("CLUSTER INFO").await;
    assert!(info.contains("cluster_state:ok"), "{info}");
    assert_eq!(client.show("CLUSTER KEYSLOT foo").await, "12182");
    assert_eq!(client.show("CLUSTER KEYSLOT x{foo}y").await, "12182");
    assert_eq!(client.show("CLUSTER LINKS").await, "[]");
    let shards = client.show("CLUSTER SHARDS").await;
    assert!(shards.contains("\"slots\", [0, 16383]"), "{shards}");
    for command in ["READONLY", "ASKING", "READWRITE"] {
        assert_eq!(client.show(command).await, "OK", "{command}");
    }
    let unknown = client.show("CLUSTER MEET 127.0.0.1 1").await;
    assert!(unknown.starts_with("-ERR unknown subcommand"), "{unknown}");
    node.end().await;
}

#[tokio::test]
async fn keys_of_a_slot_are_counted_and_listed() {
    let node = in_four_shards(RespCluster::Auto).await;
    let mut client = node.client().await;
    // More than one page of the shard, and many other keys around.
    for number in 0..1500 {
        client.show(&format!("SET {number} v")).await;
    }
    for number in 0..30 {
        client.show(&format!("SET {{foo}}{number} v")).await;
    }
    let count = client.show("CLUSTER COUNTKEYSINSLOT 12182").await;
    assert_eq!(count, "30");
    let Value::Array(keys) = client.ask("CLUSTER GETKEYSINSLOT 12182 100").await else {
        panic!("keys come as an array");
    };
    assert_eq!(keys.len(), 30);
    let Value::Array(keys) = client.ask("CLUSTER GETKEYSINSLOT 12182 7").await else {
        panic!("keys come as an array");
    };
    assert_eq!(keys.len(), 7);
    assert_eq!(client.show("CLUSTER COUNTKEYSINSLOT 1").await, {
        let keys = (0..1500)
            .filter(|n: &u32| flux_cluster::slot_of_key(n.to_string().as_bytes()).get() == 1);
        keys.count().to_string()
    });
    for wrong in ["16384", "-1", "x"] {
        let reply = client
            .show(&format!("CLUSTER COUNTKEYSINSLOT {wrong}"))
            .await;
        assert_eq!(reply, "-ERR Invalid slot");
    }
    let reply = client.show("CLUSTER GETKEYSINSLOT 1 -1").await;
    assert_eq!(reply, "-ERR Invalid number of keys");
    node.end().await;
}

#[tokio::test]
async fn whether_it_is_a_cluster_is_told_as_configured() {
    for (how, enabled, mode) in [
        (RespCluster::Auto, "cluster_enabled:0", "standalone"),
        (RespCluster::Proxy, "cluster_enabled:0", "standalone"),
        (RespCluster::Moved, "cluster_enabled:1", "cluster"),
    ] {
        let node = in_four_shards(how).await;
        let mut client = node.client().await;
        let info = client.show("INFO cluster").await;
        assert!(info.contains(enabled), "{info}");
        let info = client.show("INFO server").await;
        assert!(info.contains(&format!("redis_mode:{mode}")), "{info}");
        let hello = client.show("HELLO 3").await;
        assert!(hello.contains(mode), "{hello}");
        // Keys of several slots are served where no other node is better.
        assert_eq!(client.show("MSET foo 1 bar 2").await, "OK");
        node.end().await;
    }
}

#[tokio::test]
async fn our_own_clients_are_told_shards_and_nodes() {
    let node = in_four_shards(RespCluster::Auto).await;
    let mut client = node.client().await;
    let topology = client.show("FLUX.TOPOLOGY").await;
    let id = client.show("CLUSTER MYID").await;
    let shard = format!("[\"shard\", 3, \"term\", 1, \"leader\", {id}, \"slots\", [12288, 16383]]");
    assert!(topology.contains(&shard), "{topology}");
    let addresses = node.node.addresses();
    let own = format!(
        "[\"id\", {id}, \"host\", \"127.0.0.1\", \"port\", {}, \"grpc-port\", {}, \"reachable\", 1]",
        addresses.resp.port(),
        addresses.grpc.port()
    );
    assert!(topology.contains(&own), "{topology}");
    node.end().await;
}

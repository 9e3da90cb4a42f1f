//! The cluster map as etcd shows it: a hint, kept by whoever leads shard 0, obeyed by nobody.

use serde_json::Value as Json;

use super::growth::{seen, told};
use super::nodes::{Nodes, insist};
use crate::harness::etcd::Etcd;
use crate::harness::resp::Value;
use crate::harness::{metric, wait_until};

const NAME: &str = "the map in etcd is a hint that nobody obeys";

/// What etcd shows, if that is one map.
fn shown(etcd: &Etcd) -> Option<Json> {
    let text = etcd.try_ctl(&["get", "--prefix", "--print-value-only", "flux/clusters/"]);
    serde_json::from_str(&text).ok()
}

/// The number in a node's id.
fn number(id: &Json) -> Option<u64> {
    u64::from_str_radix(id.as_str()?.get(..8)?, 16).ok()
}

/// Whether etcd shows what a node says: version, pause, leaders; and the leader of shard 0 shows it.
fn is_true(etcd: &Etcd, nodes: &Nodes, asked: usize) -> bool {
    let (Some(shown), Some(seen)) = (shown(etcd), seen(nodes, asked)) else {
        return false;
    };
    let shards = seen["shards"].as_array().into_iter().flatten();
    let leaders: Vec<Option<u64>> = shards.map(|shard| number(&shard["leader"])).collect();
    let told = shown["leaders"].as_array().into_iter().flatten();
    let told: Vec<Option<u64>> = told.map(Json::as_u64).collect();
    shown["cluster"] == seen["cluster"]
        && shown["version"] == seen["map_version"]
        && shown["map"]["version"] == seen["map_version"]
        && shown["map"]["paused"].as_bool().unwrap_or(false) == seen["paused"]
        && !told.is_empty()
        && told == leaders
        && shown["controller"].as_u64() == told[0]
}

fn wait_true(etcd: &Etcd, nodes: &Nodes, asked: usize, what: &str) {
    wait_until(what, || is_true(etcd, nodes, asked));
}

#[test]
fn the_map_in_etcd_is_a_hint_that_nobody_obeys() {
    let Some(mut etcd) = Etcd::start(NAME) else {
        return;
    };
    let address = etcd.address();
    let args = ["--shards", "2", "--etcd", &address, "--registry-ttl", "2s"];
    let mut nodes = Nodes::started(3, &args);
    wait_true(&etcd, &nodes, 0, "the map to be shown");
    let cluster = seen(&nodes, 0).expect("it answers")["cluster"].clone();
    let cluster = cluster.as_str().expect("an id");
    let key = format!("flux/clusters/{cluster}/map");
    assert_eq!(etcd.keys("flux/clusters/"), std::slice::from_ref(&key));
    let version = "flux_discovery_map_version";
    let controller = nodes.leader(0);
    assert!(metric(nodes.process(controller), version) > Some(0.0));

    // An older one, and what is no map, are replaced.
    for text in [r#"{"version":1,"term":0,"count":9}"#, "nonsense"] {
        etcd.ctl(&["put", &key, text]);
        wait_true(&etcd, &nodes, 0, "the true map to be shown again");
    }
    // One that looks newer stays, and nothing is decided by it.
    let newer = r#"{"version":999,"term":999,"count":1,"map":{"version":999,"paused":false}}"#;
    etcd.ctl(&["put", &key, newer]);
    told(&nodes, 1, &["pause"]);
    wait_until("all to have heard of the pause", || {
        (0..3).all(|index| seen(&nodes, index).is_some_and(|seen| seen["paused"] == true))
    });
    let now = seen(&nodes, 0).expect("it answers");
    assert!(now["map_version"].as_u64() < Some(10), "{now}");
    assert_eq!(shown(&etcd).expect("it is there")["version"], 999);
    etcd.ctl(&["del", &key]);
    wait_true(&etcd, &nodes, 2, "the paused map to be shown");

    // Another controller shows it, and the former one, back as a follower, does not.
    let term = |shown: Option<Json>| shown.and_then(|shown| shown["term"].as_u64());
    let before = term(shown(&etcd));
    let controller = nodes.leader(0);
    nodes.kill(controller);
    let asked = (controller + 1) % 3;
    wait_until("another controller to show the map", || {
        before < term(shown(&etcd)) && is_true(&etcd, &nodes, asked)
    });
    nodes.spawn(controller);
    nodes.wait_node(controller);

    // Without etcd everything but this goes on; with an empty one this does as well.
    etcd.kill();
    etcd.wipe();
    let controller = nodes.leader(0);
    wait_until("the controller to miss etcd", || {
        metric(nodes.process(controller), "flux_discovery_connected") == Some(0.0)
    });
    let mut connection = nodes.connect(asked);
    assert_eq!(insist(&mut connection, &["SET", "k", "v"]), Value::ok());
    told(&nodes, asked, &["resume"]);
    etcd.restart();
    wait_true(&etcd, &nodes, asked, "the map to be shown by an empty etcd");
    let shown = shown(&etcd).expect("it is there");
    assert_ne!(shown["map"]["paused"], true, "{shown}");
}

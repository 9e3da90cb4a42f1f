//! What an operator sees of a cluster with `flux admin cluster`, and says about it.

use std::net::SocketAddr;
use std::process::Output;

use serde_json::Value as Json;

use super::load::Load;
use super::nodes::Nodes;
use super::{FAILOVER, SOME};
use crate::harness::{FLUX, command, run, stdout, wait_until};

const PASSWORD: &str = "open sesame";

/// Asks a node; without a password if it has none.
pub(super) fn ask(nodes: &Nodes, index: usize, words: &[&str]) -> Output {
    let grpc: SocketAddr = nodes.process(index).addresses().grpc.expect("it has gRPC");
    let mut flux = command(FLUX);
    flux.args(["admin", "cluster", "--addr", &grpc.to_string()]);
    run(flux.args(words), b"")
}

/// Lets each of three nodes lead something, of four shards.
pub(super) fn spread(nodes: &Nodes) {
    for shard in 0..4 {
        let (shard, node) = (shard.to_string(), (shard % 3 + 1).to_string());
        hand_over(nodes, 0, &shard, &node);
    }
}

/// Lets a node lead a shard, once it is known to be there.
fn hand_over(nodes: &Nodes, asked: usize, shard: &str, node: &str) {
    wait_until(&format!("node {node} to lead shard {shard}"), || {
        let output = ask(nodes, asked, &["transfer", shard, node]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let is_only_early = said.contains("has not been heard of lately");
        assert!(output.status.success() || is_only_early, "{output:?}");
        output.status.success()
    });
}

/// Lets a node lead a shard.
pub(super) fn transfer(nodes: &Nodes, shard: usize, target: usize) {
    let (shard_text, node) = (shard.to_string(), (target + 1).to_string());
    hand_over(nodes, target, &shard_text, &node);
    assert_eq!(nodes.leader(shard), target);
}

/// What a node that wants a password says.
fn told(nodes: &Nodes, index: usize, words: &[&str]) -> String {
    let output = ask(nodes, index, &[&["-a", PASSWORD], words].concat());
    assert!(output.status.success(), "{words:?}: {output:?}");
    stdout(&output)
}

fn status(nodes: &Nodes, index: usize) -> Json {
    serde_json::from_str(&told(nodes, index, &["status", "--json"])).expect("it is JSON")
}

/// How one that refuses says so.
fn refused(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn an_operator_sees_the_cluster_and_lets_any_voter_lead_from_any_node() {
    let mut nodes = Nodes::started(3, &["--shards", "2", "--password", PASSWORD]);
    wait_until("nobody has anything to say", || {
        let seen = status(&nodes, 0);
        seen["problems"].as_array().is_some_and(Vec::is_empty)
            && seen["nodes"]
                .as_array()
                .is_some_and(|nodes| nodes.len() == 3)
    });
    assert!(told(&nodes, 1, &["status"]).contains("3, all reachable"));
    assert_eq!(told(&nodes, 2, &["nodes"]).lines().count(), 4);
    assert_eq!(told(&nodes, 2, &["shards"]).lines().count(), 3);
    // Whoever is asked, whoever leads: the leader is told.
    for asked in 0..3 {
        for target in [1, 2, 0] {
            let number = (target + 1).to_string();
            let said = told(&nodes, asked, &["transfer", "1", &number]);
            assert!(
                said.starts_with(&format!("node {number} leads shard 1")),
                "{said}"
            );
            assert_eq!(nodes.leader(1), target);
        }
    }
    let again = told(&nodes, 1, &["transfer", "1", "1"]);
    assert_eq!(again.trim(), "node 1 leads shard 1 already");
    for (words, problem) in [
        (
            &["transfer", "0", "9"][..],
            "node 9 has no vote in shard 0: choose one of 1, 2, 3",
        ),
        (&["transfer", "7", "1"][..], "there is no shard 7"),
    ] {
        let words = [&["-a", PASSWORD], words].concat();
        let said = refused(&ask(&nodes, 0, &words));
        assert!(said.contains(problem), "{said}");
    }
    for password in [&[][..], &["-a", "wrong"]] {
        for verb in [&["status"][..], &["transfer", "0", "1"]] {
            let said = refused(&ask(&nodes, 0, &[password, verb].concat()));
            assert!(said.contains("password"), "{said}");
        }
    }
    nodes.kill(2);
    wait_until("the others miss it", || {
        let problems = status(&nodes, 0)["problems"].to_string();
        problems.contains("node 3 has not been heard of lately")
    });
    let said = refused(&ask(&nodes, 0, &["-a", PASSWORD, "transfer", "0", "3"]));
    assert!(
        said.contains("node 3 has not been heard of lately"),
        "{said}"
    );
}

#[test]
fn leaders_that_change_under_load_lose_nothing() {
    let nodes = Nodes::started(3, &["--shards", "1"]);
    let load = Load::start(nodes.addresses(), 6);
    load.wait_done(200, FAILOVER);
    for turn in 0..6 {
        let target = (turn + 1) % 3 + 1;
        let output = ask(&nodes, turn % 3, &["transfer", "0", &target.to_string()]);
        assert!(output.status.success(), "{output:?}");
        load.wait_done(50, FAILOVER);
    }
    load.judge(&SOME);
    nodes.assert_equal();
}

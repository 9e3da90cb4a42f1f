//! A cluster that grows, shrinks and heals while it serves.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value as Json;

use super::admin::ask;
use super::load::Load;
use super::nodes::Nodes;
use super::{FAILOVER, SOME};
use crate::harness::etcd::Etcd;
use crate::harness::resp::Value;
use crate::harness::{Random, Start, stdout, wait_until};

/// How long what is asked for may take.
pub(super) const WAIT: &str = "--wait=60s";

/// What a node says; none if it cannot be asked now.
pub(super) fn seen(nodes: &Nodes, index: usize) -> Option<Json> {
    let output = ask(nodes, index, &["status", "--json"]);
    serde_json::from_slice(&output.stdout).ok()
}

/// Lets a node be told something that works.
pub(super) fn told(nodes: &Nodes, index: usize, words: &[&str]) -> String {
    let output = ask(nodes, index, words);
    assert!(output.status.success(), "{words:?}: {output:?}");
    stdout(&output)
}

/// How many replicas with a vote each node has, by its number.
pub(super) fn votes(seen: &Json, number: u64) -> u64 {
    let nodes = seen["nodes"].as_array().cloned().unwrap_or_default();
    let of = nodes.iter().find(|node| node["number"] == number);
    of.and_then(|node| node["votes"].as_u64()).unwrap_or(0)
}

/// Waits until a node carries so many replicas and nothing is on its way.
fn wait_votes(nodes: &Nodes, asked: usize, number: u64, range: std::ops::RangeInclusive<u64>) {
    wait_until(&format!("node {number} to carry {range:?}"), || {
        seen(nodes, asked).is_some_and(|seen| {
            let is_settled = seen["moves"].as_array().is_some_and(Vec::is_empty);
            is_settled && range.contains(&votes(&seen, number))
        })
    });
}

/// What the nodes that run have applied of a shard: those that are to carry it, and the others.
fn applied(nodes: &Nodes, shard: usize, planned: &Json) -> Option<(Vec<u64>, Vec<u64>)> {
    let planned = planned.as_array().into_iter().flatten();
    let planned: BTreeSet<u64> = planned.filter_map(Json::as_u64).collect();
    let (mut carried, mut left) = (Vec::new(), Vec::new());
    for index in (0..nodes.count()).filter(|index| nodes.is_up(*index)) {
        let at = nodes.shards(index)?[shard]["applied_index"].as_u64()?;
        if planned.contains(&(index as u64 + 1)) {
            carried.push(at);
        } else {
            left.push(at);
        }
    }
    Some((carried, left))
}

/// Waits until for every shard, of what carriers and others have applied, this holds.
fn wait_applied(nodes: &Nodes, asked: usize, what: &str, holds: impl Fn(&[u64], &[u64]) -> bool) {
    wait_until(what, || {
        let Some(seen) = seen(nodes, asked) else {
            return false;
        };
        let shards = seen["shards"].as_array().cloned().unwrap_or_default();
        !shards.is_empty()
            && shards.iter().enumerate().all(|(shard, placed)| {
                let found = applied(nodes, shard, &placed["planned"]);
                found.is_some_and(|(carried, left)| holds(&carried, &left))
            })
    });
}

/// Waits until nodes hold nothing of shards that others carry.
pub(super) fn wait_nothing_is_left(nodes: &Nodes, asked: usize) {
    wait_applied(
        nodes,
        asked,
        "nothing to be left where nothing is to be",
        |carried, left| carried.iter().all(|at| *at != 0) && left.iter().all(|at| *at == 0),
    );
}

/// The same when nobody writes, and all who carry a shard have applied the same.
pub(super) fn wait_carriers_agree(nodes: &Nodes, asked: usize) {
    wait_applied(
        nodes,
        asked,
        "those who carry a shard to agree",
        |carried, left| {
            let first = carried.first();
            carried.iter().all(|at| Some(at) == first) && left.iter().all(|at| *at == 0)
        },
    );
}

#[test]
fn a_node_comes_another_is_drained_and_a_dead_one_replaced_and_nobody_is_refused() {
    let mut nodes = Nodes::started(3, &["--shards", "6"]);
    let mut connection = nodes.connect(1);
    for number in 0..500 {
        let key = format!("kept{number}");
        assert_eq!(connection.command(&["SET", &key, &key]), Value::ok());
    }
    let load = Load::start(nodes.addresses(), 6);
    load.wait_done(200, FAILOVER);

    let fourth = nodes.grow();
    nodes.spawn(fourth);
    nodes.wait_node(fourth);
    wait_votes(&nodes, 0, 4, 4..=5);
    wait_nothing_is_left(&nodes, 0);
    load.wait_done(100, FAILOVER);

    let said = told(&nodes, 1, &["drain", "1", WAIT]);
    assert!(said.contains("replicas have to move"), "{said}");
    wait_votes(&nodes, 3, 1, 0..=0);
    wait_nothing_is_left(&nodes, 3);
    assert_eq!(load.failed(), 0, "{:?}", load.problems());
    // It still takes requests.
    assert_eq!(nodes.connect(0).line("GET kept7"), Value::bulk("kept7"));
    load.wait_done(100, FAILOVER);

    // With the first drained three are left: nobody can be spared.
    let refused = ask(&nodes, 0, &["remove", "2"]);
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        why.contains("3 replicas need as many nodes that stay: there are 2"),
        "{why}"
    );
    nodes.kill(1);
    let fifth = nodes.grow();
    nodes.spawn(fifth);
    nodes.wait_node(fifth);
    wait_until("the fifth to be one of them", || {
        seen(&nodes, 2).is_some_and(|seen| votes(&seen, 5) > 0)
    });
    told(&nodes, 3, &["remove", "2", WAIT]);
    wait_votes(&nodes, 3, 5, 6..=6);
    wait_nothing_is_left(&nodes, 3);
    // Another node hears of it a moment later.
    wait_until("the second to be no node of the map", || {
        let known = told(&nodes, 2, &["nodes"]);
        let second = known.lines().find(|line| line.starts_with("2 "));
        second.is_none_or(|line| line.contains(" -  "))
    });

    load.wait_done(100, FAILOVER);
    load.judge(&SOME);
    wait_carriers_agree(&nodes, 3);
    for reader in [0, 2, 3, 4] {
        let mut connection = nodes.connect(reader);
        for number in 0..500 {
            let key = format!("kept{number}");
            assert_eq!(
                connection.command(&["GET", &key]),
                Value::bulk(&key),
                "node {reader}"
            );
        }
    }
    // The life that was removed is not taken in again.
    nodes.spawn(1);
    nodes.wait_node(1);
    nodes.connect(1).line("GET kept1");
    let seen = seen(&nodes, 2).expect("it answers");
    assert_eq!(votes(&seen, 2), 0);
}

#[test]
fn whatever_is_killed_while_shards_move_nothing_is_lost_and_the_moves_end() {
    let mut nodes = Nodes::started(3, &["--shards", "4"]);
    let fourth = nodes.grow();
    nodes.spawn(fourth);
    nodes.wait_node(fourth);
    let load = Load::start(nodes.addresses(), 6);
    load.wait_done(100, FAILOVER);
    wait_until("the map to know the fourth", || {
        seen(&nodes, 0).is_some_and(|seen| seen["nodes"][3]["state"] == "active")
    });
    let mut random = Random::new(20_261_126);
    for round in 0..6_u64 {
        let number = (round % 3 + 1).to_string();
        let asked = (round % 4) as usize;
        told(&nodes, asked, &["drain", &number]);
        load.run_for(Duration::from_millis(random.below(900)));
        if round % 2 == 0 {
            for index in 0..4 {
                nodes.kill(index);
            }
            for index in 0..4 {
                nodes.spawn(index);
            }
            nodes.wait_ready();
        } else {
            let victim = nodes.leader((round % 4) as usize);
            nodes.kill(victim);
            load.run_for(Duration::from_millis(random.below(700)));
            nodes.spawn(victim);
            nodes.wait_node(victim);
        }
        told(&nodes, asked, &["drain", &number, "--undo"]);
    }
    told(&nodes, 0, &["rebalance", WAIT]);
    wait_nothing_is_left(&nodes, 0);
    load.wait_done(100, FAILOVER);
    load.judge(&SOME);
    wait_carriers_agree(&nodes, 0);
}

#[test]
fn shards_that_are_paused_stay_until_they_are_told_to_go_on() {
    let mut nodes = Nodes::started(3, &["--shards", "4"]);
    told(&nodes, 2, &["pause"]);
    let fourth = nodes.grow();
    nodes.spawn(fourth);
    nodes.wait_node(fourth);
    wait_until("the map to know the fourth", || {
        seen(&nodes, 0).is_some_and(|seen| !seen["moves"].as_array().is_none_or(Vec::is_empty))
    });
    wait_until("another node to say so", || {
        told(&nodes, 1, &["status"]).contains("are to move, paused")
    });
    assert_eq!(votes(&seen(&nodes, 0).expect("it answers"), 4), 0);
    let impatient = ask(&nodes, 0, &["status", "--wait=1s"]);
    assert_eq!(impatient.status.code(), Some(1), "{impatient:?}");
    told(&nodes, 3, &["resume", WAIT]);
    wait_votes(&nodes, 0, 4, 3..=3);
    let again = told(&nodes, 0, &["rebalance", "--json"]);
    assert!(again.contains("\"moves\":0"), "{again}");
    for (words, problem) in [
        (&["drain", "9"][..], "the cluster has no node 9"),
        (&["remove", "0"][..], "the cluster has no node 0"),
    ] {
        let refused = ask(&nodes, 0, words);
        let why = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(
            why.contains(problem) && refused.status.code() == Some(1),
            "{why}"
        );
    }
}

#[test]
fn the_folder_of_a_node_that_was_alone_becomes_a_cluster_while_it_serves() {
    let mut alone = Start::node().args(&["--shards", "1"]).spawn();
    alone.wait_ready();
    let mut connection = alone.connect();
    for number in 0..300 {
        let key = format!("alone{number}");
        assert_eq!(connection.command(&["SET", &key, &key]), Value::ok());
    }
    assert_eq!(connection.line("INCR counted"), Value::Integer(1));
    assert_eq!(connection.line("SET passing 1 EX 900"), Value::ok());
    let folder = alone.kill();

    let mut nodes = Nodes::new(3, &[]);
    nodes.give(0, folder);
    // It serves before any other node is there.
    nodes.spawn(0);
    nodes.wait_node(0);
    assert_eq!(nodes.connect(0).line("GET alone7"), Value::bulk("alone7"));
    let load = Load::start(vec![nodes.address(0)], 6);
    load.wait_done(100, FAILOVER);
    for index in [1, 2] {
        nodes.spawn(index);
        nodes.wait_node(index);
    }
    wait_votes(&nodes, 0, 3, 1..=1);
    assert_eq!(nodes.members(0), [(3, 0)]);
    load.wait_done(100, FAILOVER);
    assert_eq!(load.failed(), 0, "{:?}", load.problems());
    load.judge(&SOME);
    nodes.assert_equal();

    nodes.kill(0);
    let mut connection = nodes.connect(2);
    wait_until("the others to go on", || {
        connection.line("INCR counted") == Value::Integer(2)
    });
    for number in 0..300 {
        let key = format!("alone{number}");
        assert_eq!(connection.command(&["GET", &key]), Value::bulk(&key));
    }
    let Value::Integer(left) = connection.line("TTL passing") else {
        panic!("it has a deadline");
    };
    assert!((1..=900).contains(&left), "{left}");
    nodes.spawn(0);
    nodes.wait_node(0);
    nodes.assert_equal();
}

#[test]
fn shards_move_while_etcd_is_gone_and_comes_back_empty() {
    const NAME: &str = "shards move while etcd is gone";
    let Some(mut etcd) = Etcd::start(NAME) else {
        return;
    };
    let mut nodes = Nodes::started(3, &["--shards", "4", "--etcd", &etcd.address()]);
    let fourth = nodes.grow();
    nodes.spawn(fourth);
    nodes.wait_node(fourth);
    let load = Load::start(nodes.addresses(), 6);
    load.wait_done(100, FAILOVER);
    wait_votes(&nodes, 0, 4, 3..=3);
    etcd.kill();
    let said = told(&nodes, 1, &["drain", "1"]);
    assert!(said.contains("3 replicas have to move"), "{said}");
    etcd.wipe();
    told(&nodes, 2, &["status", WAIT]);
    wait_votes(&nodes, 2, 1, 0..=0);
    etcd.restart();
    // Once more, while shards move the other way: gone, and back without anything.
    told(&nodes, 2, &["drain", "1", "--undo"]);
    wait_until("shards to move", || {
        seen(&nodes, 2).is_some_and(|seen| !seen["moves"].as_array().is_none_or(Vec::is_empty))
    });
    etcd.kill();
    etcd.wipe();
    etcd.restart();
    told(&nodes, 2, &["status", WAIT]);
    wait_votes(&nodes, 2, 1, 3..=3);
    wait_nothing_is_left(&nodes, 2);
    wait_until("all four to be registered again", || {
        etcd.keys("flux/services/flux.kv.v1.Kv/").len() == 4
    });
    wait_until("the map to be shown again", || {
        etcd.keys("flux/clusters/").len() == 1
    });
    load.wait_done(100, FAILOVER);
    assert_eq!(load.failed(), 0, "{:?}", load.problems());
    load.judge(&SOME);
    wait_carriers_agree(&nodes, 0);
}

#[test]
fn a_node_that_stays_silent_is_replaced_and_gets_its_share_again_when_it_is_back() {
    let mut nodes = Nodes::started(3, &["--shards", "4", "--replace-after", "5s"]);
    let fourth = nodes.grow();
    nodes.spawn(fourth);
    nodes.wait_node(fourth);
    wait_votes(&nodes, 0, 4, 3..=3);
    let load = Load::start(nodes.addresses(), 4);
    load.wait_done(100, FAILOVER);
    nodes.kill(1);
    wait_votes(&nodes, 0, 2, 0..=0);
    let status = told(&nodes, 3, &["nodes"]);
    let second = status.lines().find(|line| line.starts_with("2 "));
    assert!(second.is_some_and(|line| line.contains("away")), "{status}");
    // Two of the three that are left are enough again.
    nodes.kill(2);
    load.wait_done(50, FAILOVER);
    for index in [1, 2] {
        nodes.spawn(index);
        nodes.wait_node(index);
    }
    wait_votes(&nodes, 0, 2, 3..=3);
    wait_nothing_is_left(&nodes, 0);
    load.judge(&SOME);
    wait_carriers_agree(&nodes, 0);
}

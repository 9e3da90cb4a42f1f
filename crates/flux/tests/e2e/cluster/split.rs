//! Shards that are split while they serve.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value as Json;

use super::admin::ask;
use super::growth::{WAIT, seen, told, votes, wait_carriers_agree, wait_nothing_is_left};
use super::load::Load;
use super::nodes::Nodes;
use super::{FAILOVER, SOME};
use crate::changes::{Lines, word};
use crate::harness::resp::{Connection, Value};
use crate::harness::{PATIENCE, Random, Start, wait_until};

const KEPT: usize = 400;

/// Writes keys that nothing else touches, so many that shards have some of everything.
fn keep(nodes: &Nodes, index: usize) {
    let mut connection = nodes.connect(index);
    for number in 0..KEPT {
        let key = format!("kept{number}");
        assert_eq!(connection.command(&["SET", &key, &key]), Value::ok());
    }
    assert_eq!(connection.line("INCR counted"), Value::Integer(1));
    assert_eq!(connection.line("SET passing 1 EX 900"), Value::ok());
}

/// Every one of them is there, whichever node is asked, and a scan meets each.
fn assert_kept(nodes: &Nodes, readers: &[usize]) {
    for reader in readers {
        let mut connection = nodes.connect(*reader);
        for number in 0..KEPT {
            let key = format!("kept{number}");
            let found = connection.command(&["GET", &key]);
            assert_eq!(found, Value::bulk(&key), "{key} by node {reader}");
        }
        let Value::Integer(left) = connection.line("TTL passing") else {
            panic!("it has a deadline");
        };
        assert!((1..=900).contains(&left), "{left}");
        let met = scan(&mut connection, "0", "kept*");
        assert_eq!(met.len(), KEPT, "by node {reader}");
    }
}

/// A page of keys, and the cursor after it.
fn page(connection: &mut Connection, cursor: &str, pattern: &str) -> (String, Vec<String>) {
    let page = connection.command(&["SCAN", cursor, "MATCH", pattern, "COUNT", "50"]);
    let Value::Array(parts) = page else {
        panic!("a page: {page:?}");
    };
    let [Value::Bulk(next), Value::Array(keys)] = parts.as_slice() else {
        panic!("a cursor and keys: {parts:?}");
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let keys = keys.iter().map(|key| match key {
        Value::Bulk(key) => text(key),
        other => panic!("a key: {other:?}"),
    });
    (text(next), keys.collect())
}

/// The keys that a scan meets from a cursor on.
fn scan(connection: &mut Connection, from: &str, pattern: &str) -> BTreeSet<String> {
    let mut met = BTreeSet::new();
    let mut cursor = from.to_owned();
    loop {
        let (next, keys) = page(connection, &cursor, pattern);
        met.extend(keys);
        if next == "0" {
            return met;
        }
        cursor = next;
    }
}

/// The shards that own slots, as a node says.
fn owning(nodes: &Nodes, index: usize) -> usize {
    let said = told(nodes, index, &["shards", "--json"]);
    let shards: Json = serde_json::from_str(&said).expect("it is JSON");
    let shards = shards.as_array().expect("a list").iter();
    shards
        .filter(|shard| shard["slots"].as_array().is_some_and(|own| !own.is_empty()))
        .count()
}

#[test]
fn the_folder_of_a_node_that_was_alone_is_split_and_spread_while_it_serves() {
    let mut alone = Start::node().args(&["--shards", "1"]).spawn();
    alone.wait_ready();
    let folder = alone.kill();
    let mut nodes = Nodes::new(3, &[]);
    nodes.give(0, folder);
    for index in 0..3 {
        nodes.spawn(index);
    }
    nodes.wait_ready();
    wait_until("all three to carry it", || {
        nodes.members(0).iter().all(|members| *members == (3, 0))
    });
    keep(&nodes, 1);
    // A scan that is under way goes on, and misses nothing.
    let mut scanning = nodes.connect(2);
    let (cursor, first) = page(&mut scanning, "0", "kept*");
    let load = Load::start(nodes.addresses(), 6);
    load.wait_done(200, FAILOVER);
    let said = told(&nodes, 2, &["split", "--into", "4", WAIT]);
    assert!(said.contains("4, all led"), "{said}");
    for index in 0..3 {
        wait_until("every node to know whose slots are whose", || {
            owning(&nodes, index) == 4
        });
    }
    load.wait_done(200, FAILOVER);
    assert_eq!(load.failed(), 0, "{:?}", load.problems());
    let mut met = scan(&mut scanning, &cursor, "kept*");
    met.extend(first);
    let kept = (0..KEPT).map(|number| format!("kept{number}"));
    let missed: Vec<String> = kept.filter(|key| !met.contains(key)).collect();
    assert!(missed.is_empty(), "{missed:?}");

    // What was split moves as any other shard does.
    let fourth = nodes.grow();
    nodes.spawn(fourth);
    nodes.wait_node(fourth);
    wait_until("the fourth to carry its share", || {
        seen(&nodes, 0).is_some_and(|seen| votes(&seen, 4) == 3)
    });
    wait_nothing_is_left(&nodes, 0);
    load.wait_done(100, FAILOVER);
    assert_eq!(load.failed(), 0, "{:?}", load.problems());
    load.judge(&SOME);
    wait_carriers_agree(&nodes, 0);
    assert_kept(&nodes, &[0, 3]);
    for index in 0..4 {
        nodes.kill(index);
    }
    for index in 0..4 {
        nodes.spawn(index);
    }
    nodes.wait_ready();
    assert_kept(&nodes, &[0, 1, 2, 3]);
    let mut connection = nodes.connect(3);
    assert_eq!(connection.line("INCR counted"), Value::Integer(2));
}

#[test]
fn whatever_is_killed_while_shards_are_split_nothing_is_lost() {
    let mut nodes = Nodes::started(3, &["--shards", "1"]);
    keep(&nodes, 0);
    // So much that a split takes a moment.
    let mut connection = nodes.connect(0);
    let value = "x".repeat(4000);
    for number in 0..4000 {
        let key = format!("bulk{number}");
        let sent = connection.send_command(&["SET", &key, &value]);
        sent.expect("the node reads");
        if number % 100 == 99 {
            for _ in 0..100 {
                assert_eq!(connection.reply().expect("an answer"), Value::ok());
            }
        }
    }
    let load = Load::start(nodes.addresses(), 6);
    load.wait_done(100, FAILOVER);
    let mut random = Random::new(20_261_127);
    for (round, shard) in [0, 0, 1, 2].into_iter().enumerate() {
        let shard: &str = &format!("{shard}");
        wait_until("a split to be asked for", || {
            ask(&nodes, round % 3, &["split", shard]).status.success()
        });
        load.run_for(Duration::from_millis(250 + random.below(450)));
        if round % 2 == 0 {
            for index in 0..3 {
                nodes.kill(index);
            }
            for index in 0..3 {
                nodes.spawn(index);
            }
            nodes.wait_ready();
        } else {
            let victim = nodes.leader(shard.parse().expect("a number"));
            nodes.kill(victim);
            load.run_for(Duration::from_millis(random.below(700)));
            nodes.spawn(victim);
            nodes.wait_node(victim);
        }
        told(&nodes, (round + 1) % 3, &["status", WAIT]);
    }
    let status = told(&nodes, 0, &["status"]);
    assert!(status.contains("5, all led"), "{status}");
    load.wait_done(100, FAILOVER);
    load.judge(&SOME);
    wait_carriers_agree(&nodes, 0);
    assert_kept(&nodes, &[0, 1, 2]);
    let mut connection = nodes.connect(1);
    for number in 0..4000 {
        let key = format!("bulk{number}");
        let length = connection.command(&["STRLEN", &key]);
        assert_eq!(length, Value::Integer(4000), "{key}");
    }
    nodes.assert_equal();
}

/// Writes rounds of keys, each with the round's number, until told to stop; answers how many rounds.
fn write_rounds(mut connection: Connection, stop: &AtomicBool) -> u64 {
    let mut round = 0;
    while !stop.load(Ordering::SeqCst) || round < 20 {
        for key in 0..ROUND_KEYS {
            let reply = connection.command(&["SET", &format!("w{key}"), &round.to_string()]);
            assert_eq!(reply, Value::ok());
        }
        round += 1;
    }
    round
}

const ROUND_KEYS: usize = 24;

/// Reads until every key of the last round was told, and checks that each key was told every
/// round, once and in order, with rising revisions.
fn assert_told(changes: &mut Lines, rounds: u64) {
    let mut told: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    let until = Instant::now() + PATIENCE;
    while told.len() < ROUND_KEYS || told.values().any(|(next, _)| *next < rounds) {
        let event = changes.next().expect("the node goes on");
        assert!(Instant::now() < until, "{rounds} rounds, of which {told:?}");
        assert_ne!(word(&event), "cdc.gap", "{event}");
        if word(&event) != "set" {
            continue;
        }
        let subject = event["subject"].as_str().expect("a key").to_owned();
        let Some(_) = subject.strip_prefix('w') else {
            continue;
        };
        let value = event["data"]["after"]["value"].as_str().expect("a value");
        let revision = event["sequence"]
            .as_str()
            .and_then(|text| text.parse().ok());
        let revision: u64 = revision.expect("a number");
        let (next, above) = told.entry(subject).or_insert((0, 0));
        assert_eq!(value.parse(), Ok(*next), "{event}");
        assert!(*above < revision, "{event}");
        (*next, *above) = (*next + 1, revision);
    }
}

#[test]
fn who_follows_changes_goes_on_over_splits_and_who_comes_later_meets_all_of_them() {
    let nodes = Nodes::started(3, &["--shards", "1"]);
    let admin = |index: usize| nodes.process(index).admin();
    let mut live = Lines::open(admin(0), "from=now").expect("the node answers");
    let stop = AtomicBool::new(false);
    let rounds = std::thread::scope(|scope| {
        let (writer, stop) = (nodes.connect(2), &stop);
        let writing = scope.spawn(move || write_rounds(writer, stop));
        let split = ask(&nodes, 1, &["split", "--into", "4", WAIT]);
        stop.store(true, Ordering::SeqCst);
        let rounds = writing.join().expect("the writer ends");
        assert!(split.status.success(), "{split:?}");
        rounds
    });
    assert_told(&mut live, rounds);
    for index in 0..3 {
        let mut later = Lines::open(admin(index), "from=earliest").expect("the node answers");
        assert_told(&mut later, rounds);
    }
}

#[test]
fn a_split_waits_while_shards_are_paused_and_says_what_cannot_be() {
    let nodes = Nodes::started(3, &["--shards", "1"]);
    told(&nodes, 0, &["pause"]);
    told(&nodes, 1, &["split", "0"]);
    wait_until("another node to say so", || {
        told(&nodes, 2, &["status"]).contains("shard 0 is being split, paused")
    });
    for (words, problem) in [
        (&["split", "0"][..], "shard 0 is being split: one at a time"),
        (&["status", "--wait=1s"], "shard 0 is being split"),
        (&["split", "--into", "2"], "resume lets them go on"),
    ] {
        let refused = ask(&nodes, 2, words);
        let why = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(
            why.contains(problem) && refused.status.code() == Some(1),
            "{why}"
        );
    }
    assert_eq!(owning(&nodes, 0), 1);
    told(&nodes, 2, &["resume", WAIT]);
    assert_eq!(owning(&nodes, 2), 2);
    let refused = ask(&nodes, 0, &["split", "2"]);
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(why.contains("there is no shard 2"), "{why}");
    // Keys of one tag stay together, others are of two shards now.
    let mut connection = nodes.connect(1);
    let whole = connection.line("MSET {a}1 x {a}2 y");
    assert_eq!(whole, Value::ok());
    let Value::Error(parted) = connection.line("RENAME foo bar") else {
        panic!("they are in different shards");
    };
    assert!(parted.starts_with("CROSSSLOT"), "{parted}");
}

//! Old changes that only other nodes hold: told by whoever is asked, and missing only when nobody has
//! them.

use std::net::SocketAddr;

use rustix::process::Signal;
use serde_json::Value as Json;

use super::admin::transfer;
use super::nodes::{Nodes, insist};
use crate::changes::{Lines, events, word};
use crate::harness::resp::Value;
use crate::harness::{get_json, metric, wait_until};

/// More entries than a log keeps behind its snapshot, and more bytes than it keeps before one.
const KEYS: usize = 2600;
/// After so many a reader has stopped.
const READ: usize = 100;
const LAST: usize = 2;

/// What does not depend on who tells it.
fn told(event: &Json) -> String {
    let (id, key) = (&event["id"], &event["subject"]);
    let value = event["data"]["after"]["value"].as_str().unwrap_or("none");
    format!("{id} {} {key} {}", word(event), value.len())
}

/// So many changes as a node tells them, and the cursor that its stream began with.
fn changes(admin: SocketAddr, query: &str, count: usize) -> (String, Vec<String>) {
    let mut lines = Lines::open(admin, query).expect("a stream");
    let begin = lines.next().expect("the beginning");
    let cursor = begin["data"]["cursor"]
        .as_str()
        .expect("a cursor")
        .to_owned();
    let mut found = Vec::new();
    while found.len() < count {
        let event = lines.next().expect("the stream goes on");
        assert!(!word(&event).contains("gap"), "{event}");
        if !word(&event).contains("progress") {
            found.push(told(&event));
        }
    }
    (cursor, found)
}

/// A node comes back without its disk, and is sent a snapshot.
fn rebuild(nodes: &mut Nodes, index: usize) {
    nodes.kill(index);
    nodes.wipe(index);
    nodes.spawn(index);
    nodes.wait_node(index);
    wait_until("the new life has the vote of the old", || {
        (0..3).all(|index| nodes.members(index) == [(3, 0)])
    });
    let received = (1..=3).map(|node| {
        let series = format!("flux_peer_snapshots_total{{node=\"{node}\",direction=\"in\"}}");
        metric(nodes.process(index), &series).unwrap_or(0.0)
    });
    assert!(received.sum::<f64>() > 0.0, "it was built from the log");
}

fn fetches(nodes: &Nodes, index: usize, result: &str) -> f64 {
    let series = format!("flux_cdc_fetches_total{{result=\"{result}\"}}");
    metric(nodes.process(index), &series).unwrap_or(0.0)
}

#[test]
fn rule_15_a_leader_built_from_a_snapshot_tells_the_changes_that_others_hold() {
    let args = [
        "--shards=1",
        "--segment-size=1MiB",
        "--snapshot-log-size=1MiB",
        "--fsync=never",
    ];
    let mut nodes = Nodes::started(3, &args);
    let mut connection = nodes.connect(0);
    let value = "v".repeat(1000);
    for number in 0..KEYS {
        let words = ["SET", &format!("key:{number}"), &value];
        assert_eq!(insist(&mut connection, &words), Value::ok());
    }
    nodes.assert_equal();
    let (_, expected) = changes(nodes.process(0).admin(), "from=earliest", KEYS);
    assert!(expected[KEYS - 1].contains(&format!("key:{}", KEYS - 1)));
    let (old, _) = events(nodes.process(0).admin(), "", READ).remove(READ - 1);
    rebuild(&mut nodes, LAST);
    transfer(&nodes, 0, LAST);
    let (_, found) = changes(nodes.process(LAST).admin(), "from=earliest", KEYS);
    assert!(found == expected, "the same changes with the same ids");
    assert!(fetches(&nodes, LAST, "found") > 0.0);
    let entries = metric(nodes.process(LAST), "flux_cdc_fetched_entries_total");
    assert!(entries.is_some_and(|count| count > 1000.0), "{entries:?}");
    let resume = format!("cursor={old}");
    let (_, found) = changes(nodes.process(LAST).admin(), &resume, KEYS - READ);
    assert!(found == expected[READ..], "what comes after the cursor");

    // Those who have them stand still for a moment: it waits for them.
    for other in 0..LAST {
        nodes.process(other).signal(Signal::STOP);
    }
    let admin = nodes.process(LAST).admin();
    let found = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| changes(admin, &resume, KEYS - READ).1);
        wait_until("it has asked in vain", || {
            fetches(&nodes, LAST, "unknown") > 0.0
        });
        for other in 0..LAST {
            nodes.process(other).signal(Signal::CONT);
        }
        waiting.join().expect("a stream")
    });
    assert!(found == expected[READ..], "nothing is missing");

    // And once nobody has them any more, it is said at once, and where to go on.
    for other in 0..LAST {
        nodes.leader(0);
        rebuild(&mut nodes, other);
    }
    let leader = nodes.leader(0);
    let admin = nodes.process(leader).admin();
    let refused = get_json(admin, &format!("/api/v1/cdc?{resume}")).expect("JSON");
    assert_eq!(refused["reason"], "compacted", "{refused}");
    let oldest = refused["oldest"].as_str().expect("a cursor");
    assert!(fetches(&nodes, leader, "missing") > 0.0);
    let words = ["SET", "after", "1"];
    assert_eq!(insist(&mut nodes.connect(leader), &words), Value::ok());
    let (begin, found) = changes(
        nodes.process(leader).admin(),
        &format!("cursor={oldest}"),
        1,
    );
    assert_eq!(begin, oldest);
    let kept = expected.iter().position(|one| *one == found[0]);
    assert!(kept.is_none_or(|kept| READ < kept), "{found:?}");
}

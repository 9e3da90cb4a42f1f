//! A shard that moves: every node is killed when exactly one of the numbered steps of the move
//! (`docs/placement.md`) has been taken, and the move goes on by itself.
//!
//! Nodes are told by `--hold-moves-at` not to go beyond a step, whoever leads: how long it takes to
//! see that it is reached, and to kill all, makes no difference. A build without debug assertions
//! has no such flag.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value as Json;

use super::growth::{seen, told, wait_carriers_agree, wait_nothing_is_left};
use super::load::Load;
use super::nodes::{Nodes, insist};
use super::{FAILOVER, SOME};
use crate::harness::resp::Value;
use crate::harness::{skip, wait_right, wait_until};

const NAME: &str = "a move goes on after everything was killed at any of its steps";
const COUNT: usize = 4;
/// So many bytes under so many keys that each replica has a snapshot.
const LARGE: usize = 64 * 1024;
const LARGE_COUNT: usize = 40;

/// A cluster of one shard on three of four nodes, and everything that was acknowledged.
struct Cluster {
    nodes: Nodes,
    written: Vec<(String, String)>,
}

/// One move: from whom, to whom.
#[derive(Clone, Copy, Debug)]
struct Move {
    leaver: usize,
    comer: usize,
}

/// The numbers of a list of nodes.
fn numbers(list: &Json) -> BTreeSet<u64> {
    let ids = list.as_array().into_iter().flatten();
    ids.filter_map(number).collect()
}

fn number(id: &Json) -> Option<u64> {
    let digits = id.as_str()?.get(..8)?;
    u64::from_str_radix(digits, 16).ok()
}

impl Cluster {
    /// Nodes that let moves rest at a step.
    fn start(step: u8) -> Self {
        let mut cluster = Self {
            nodes: Nodes::new(3, &["--shards", "1", "--snapshot-log-size", "1MiB"]),
            written: Vec::new(),
        };
        let step = step.to_string();
        let hold = ["--hold-moves-at", &step];
        for index in 0..3 {
            cluster.nodes.spawn_with(index, &hold);
        }
        cluster.nodes.wait_ready();
        for number in 0..LARGE_COUNT {
            cluster.write(0, &format!("large{number}"), "x".repeat(LARGE));
        }
        let fourth = cluster.nodes.grow();
        cluster.nodes.spawn_with(fourth, &hold);
        cluster.nodes.wait_node(fourth);
        wait_until("the map to know the fourth", || {
            seen(&cluster.nodes, 0).is_some_and(|seen| seen["nodes"][3]["state"] == "active")
        });
        cluster
    }

    fn write(&mut self, asked: usize, key: &str, value: String) {
        let mut connection = self.nodes.connect(asked);
        let reply = insist(&mut connection, &["SET", key, &value]);
        assert_eq!(reply, Value::ok(), "{key}");
        self.written.push((key.to_owned(), value));
    }

    /// Writes a little through each node.
    fn write_at(&mut self, step: &str) {
        for asked in 0..COUNT {
            for number in 0..5 {
                let key = format!("{step}.{asked}.{number}");
                self.write(asked, &key, key.clone());
            }
        }
    }

    /// Kills everything, and starts it again, resting at another step or at none.
    fn kill_all(&mut self, step: Option<u8>) {
        for index in 0..COUNT {
            self.nodes.kill(index);
        }
        let step = step.map(|step| step.to_string());
        let hold: Vec<&str> = step
            .iter()
            .flat_map(|step| ["--hold-moves-at", step])
            .collect();
        for index in 0..COUNT {
            self.nodes.spawn_with(index, &hold);
        }
        self.nodes.wait_ready();
        self.assert_written();
    }

    /// Everything is there, whichever node is asked.
    fn assert_written(&self) {
        for asked in 0..COUNT {
            let mut connection = self.nodes.connect(asked);
            for (key, value) in &self.written {
                let reply = insist(&mut connection, &["GET", key]);
                assert_eq!(reply, Value::bulk(value), "{key} through node {asked}");
            }
        }
    }

    /// Drains the node that leads.
    fn begin_move(&self) -> Move {
        let leaver = self.nodes.leader(0);
        // Who does not lead may not have heard yet who votes.
        let before = seen(&self.nodes, leaver).expect("it answers");
        let voters = numbers(&before["shards"][0]["voters"]);
        let comer = (0..COUNT).find(|index| !voters.contains(&(*index as u64 + 1)));
        let number = (leaver + 1).to_string();
        told(&self.nodes, leaver, &["drain", &number]);
        Move {
            leaver,
            comer: comer.expect("one of four has nothing"),
        }
    }

    /// Waits until a move rests at a step.
    fn wait_step(&self, moving: Move, step: u8) {
        let asked = moving.comer;
        wait_right(&format!("step {step} of the move"), || {
            let seen = seen(&self.nodes, asked).ok_or("no answer")?;
            let (is_held, shard) = (self.is_held(), &seen["shards"][0]);
            let is_there = is_held && self.is_at(moving, step, shard);
            is_there
                .then_some(())
                .ok_or_else(|| format!("{moving:?}, held: {is_held}, {shard}"))
        });
    }

    /// Whether a node says that it will not go on.
    fn is_held(&self) -> bool {
        let mut up = (0..COUNT).map(|index| self.nodes.process(index).stderr());
        up.any(|said| said.contains("a move is held"))
    }

    /// What must be true of a shard after a step and before the next.
    fn is_at(&self, moving: Move, step: u8, shard: &Json) -> bool {
        let (leaver, comer) = (moving.leaver as u64 + 1, moving.comer as u64 + 1);
        let voters = numbers(&shard["voters"]);
        let learners = numbers(&shard["learners"]);
        let leader = number(&shard["leader"]);
        let only = |number: u64| BTreeSet::from([number]);
        let votes = |comes: bool, goes: bool| {
            let count = 2 + usize::from(comes) + usize::from(goes);
            voters.contains(&comer) == comes
                && voters.contains(&leaver) == goes
                && voters.len() == count
        };
        let has_data = |index: usize| self.applied(index).is_some_and(|index| index != 0);
        let has_nothing = |index: usize| self.applied(index) == Some(0);
        match step {
            1 => votes(false, true) && learners == only(comer) && has_nothing(moving.comer),
            2 => votes(false, true) && learners == only(comer) && has_data(moving.comer),
            3 => {
                let is_led = leader.is_some_and(|leader| leader != moving.leaver as u64 + 1);
                votes(false, true) && learners == only(comer) && is_led
            }
            4 => votes(true, true) && learners.is_empty(),
            5 => votes(true, false) && learners == only(leaver),
            6 | 7 => votes(true, false) && learners.is_empty() && has_data(moving.leaver),
            8 => votes(true, false) && learners.is_empty() && has_nothing(moving.leaver),
            _ => panic!("a move has eight steps"),
        }
    }

    fn applied(&self, index: usize) -> Option<u64> {
        self.nodes.shards(index)?[0]["applied_index"].as_u64()
    }

    /// Waits for the end of a move, and looks at what it left.
    fn wait_moved(&self, moving: Move) {
        told(&self.nodes, moving.comer, &["status", "--wait=60s"]);
        wait_nothing_is_left(&self.nodes, moving.comer);
        let seen = seen(&self.nodes, moving.comer).expect("it answers");
        let shard = &seen["shards"][0];
        assert!(self.is_at(moving, 8, shard), "{shard}");
        wait_until("the leaver's snapshots to be removed", || {
            self.nodes.snapshots(moving.leaver).is_empty()
        });
        self.assert_written();
    }

    /// The same data on all who carry the shard, each asked for its own.
    fn assert_carriers_equal(&self, moving: Move) {
        wait_carriers_agree(&self.nodes, moving.comer);
        for index in (0..COUNT).filter(|index| *index != moving.leaver) {
            let mut connection = self.nodes.connect(index);
            assert_eq!(connection.line("READONLY"), Value::ok());
            for (key, value) in &self.written {
                let held = connection.command(&["GET", key]);
                assert_eq!(held, Value::bulk(value), "{key} on node {index}");
            }
        }
    }
}

#[test]
fn a_move_goes_on_after_everything_was_killed_at_any_of_its_steps() {
    if !cfg!(debug_assertions) {
        skip(
            NAME,
            "only a build with debug assertions can let a move rest",
        );
        return;
    }
    let mut cluster = Cluster::start(1);
    let load = Load::start(cluster.nodes.addresses(), 3);
    load.wait_done(50, FAILOVER);

    let moving = cluster.begin_move();
    for step in [1, 2] {
        cluster.wait_step(moving, step);
        cluster.write_at(&format!("first.{step}"));
        cluster.kill_all((step == 1).then_some(2));
    }
    cluster.wait_moved(moving);
    let number = (moving.leaver + 1).to_string();
    told(&cluster.nodes, 0, &["drain", &number, "--undo"]);

    // Now the leader is not chosen anew before it is to hand over.
    cluster.kill_all(Some(3));
    let moving = cluster.begin_move();
    for step in 3..=7 {
        cluster.wait_step(moving, step);
        cluster.write_at(&format!("second.{step}"));
        if step == 7 {
            let kept = cluster.nodes.snapshots(moving.leaver);
            assert!(!kept.is_empty(), "nothing is removed yet");
        }
        load.run_for(Duration::from_millis(20));
        cluster.kill_all((step < 7).then_some(step + 1));
    }
    cluster.wait_moved(moving);
    cluster.kill_all(None);
    load.wait_done(50, FAILOVER);
    load.judge(&SOME);
    cluster.wait_moved(moving);
    cluster.assert_carriers_equal(moving);
}

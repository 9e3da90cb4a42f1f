//! A cluster as text: tables for people, JSON for programs.

use std::collections::BTreeSet;

use comfy_table::{Table, presets};
use flux_proto::admin::TransferLeadershipResponse;
use flux_proto::admin::change_map_request::Change;
use flux_proto::admin::{ChangeMapResponse, DescribeResponse, Node, NodeState, Shard};
use serde_json::{Value, json};

/// A cluster as one of its nodes sees it.
pub(super) struct Picture(pub(super) DescribeResponse);

impl Picture {
    /// What there is to say in a few lines.
    pub(super) fn status(&self) -> String {
        let Self(seen) = self;
        let reachable = seen.nodes.iter().filter(|node| node.reachable).count();
        let led = seen
            .shards
            .iter()
            .filter(|shard| shard.leader.is_some())
            .count();
        let replicas = |of: fn(&Shard) -> usize| seen.shards.iter().map(of).sum::<usize>();
        let (voters, learners) = (
            replicas(|shard| shard.voters.len()),
            replicas(|shard| shard.learners.len()),
        );
        let mut table = plain();
        table.add_row(["cluster", &hex(seen.cluster)]);
        table.add_row(["seen by", &format!("node {}", self.label(seen.node))]);
        let nodes = of(reachable, seen.nodes.len(), "reachable");
        table.add_row(["nodes", &nodes]);
        table.add_row(["shards", &of(led, seen.shards.len(), "led")]);
        let replicas = format!("{voters} with a vote, {learners} without");
        table.add_row(["replicas", &replicas]);
        if seen.map_version != 0 {
            table.add_row(["map", &self.map_line()]);
        }
        let mut text = lines(&table);
        for line in self.moves().iter().chain(&self.problems()) {
            text.push_str(&format!("\n{line}"));
        }
        text
    }

    /// How far the cluster is from what its map says.
    fn map_line(&self) -> String {
        let Self(seen) = self;
        let pause = if seen.paused { ", paused" } else { "" };
        let moving = self.moves().len();
        let moves = if moving == 0 {
            "every shard is where it is to be".to_owned()
        } else {
            format!("{moving} of {} shards are to move", seen.shards.len())
        };
        let split = match seen.splitting {
            Some(shard) => format!(", shard {shard} is being split"),
            None => String::new(),
        };
        format!("version {}, {moves}{split}{pause}", seen.map_version)
    }

    /// A line for each shard that is not on the nodes that are to carry it.
    pub(super) fn moves(&self) -> Vec<String> {
        let moving = self.0.shards.iter().filter(|shard| !is_settled(shard));
        let line = |shard: &Shard| {
            let planned: Vec<String> = shard.planned.iter().map(u32::to_string).collect();
            let mut line = format!(
                "shard {} goes from {} to {}",
                shard.shard,
                self.labels(&shard.voters),
                planned.join(" ")
            );
            for (learner, permille) in shard.learners.iter().zip(&shard.progress) {
                let label = self.label(*learner);
                line.push_str(&format!(
                    ", node {label} has {}.{} %",
                    permille / 10,
                    permille % 10
                ));
            }
            line
        };
        moving.map(line).collect()
    }

    /// The same for a program.
    pub(super) fn status_json(&self) -> Value {
        json!({
            "cluster": hex(self.0.cluster),
            "seen_by": hex(self.0.node),
            "map_version": self.0.map_version,
            "paused": self.0.paused,
            "splitting": self.0.splitting,
            "moves": self.moves(),
            "nodes": self.nodes_json(),
            "shards": self.shards_json(),
            "problems": self.problems(),
        })
    }

    /// What an operator should look at.
    fn problems(&self) -> Vec<String> {
        let Self(seen) = self;
        let away = seen.nodes.iter().filter(|node| !node.reachable);
        let away = away.map(|node| {
            let label = self.label(node.id);
            format!(
                "node {label} has not been heard of lately ({})",
                address(node)
            )
        });
        let reachable: BTreeSet<u64> = seen
            .nodes
            .iter()
            .filter(|node| node.reachable)
            .map(|node| node.id)
            .collect();
        let weak = seen.shards.iter().filter_map(|shard| {
            let there = shard
                .voters
                .iter()
                .filter(|voter| reachable.contains(voter));
            let (there, all) = (there.count(), shard.voters.len());
            let number = shard.shard;
            if there * 2 <= all && !shard.voters.is_empty() {
                Some(format!(
                    "shard {number} has lost its majority: {there} of {all} voters are reachable"
                ))
            } else if shard.leader.is_none() {
                Some(format!("shard {number} has no leader"))
            } else {
                None
            }
        });
        away.chain(weak).collect()
    }

    /// A row for each node.
    pub(super) fn nodes(&self) -> String {
        let mut table = plain();
        table.set_header([
            "NODE",
            "RESP",
            "GRPC",
            "ADMIN",
            "PEER",
            "REACHABLE",
            "STATE",
            "VOTES",
            "LEARNS",
            "LEADS",
        ]);
        for node in &self.0.nodes {
            let (votes, learns, leads) = self.carried(node);
            let port = |port: u32| {
                if port == 0 {
                    "-".to_owned()
                } else {
                    port.to_string()
                }
            };
            table.add_row([
                self.label(node.id),
                address(node),
                port(node.grpc_port),
                port(node.admin_port),
                port(node.peer_port),
                if node.reachable { "yes" } else { "no" }.to_owned(),
                state(node).unwrap_or("-").to_owned(),
                votes.to_string(),
                learns.to_string(),
                leads.to_string(),
            ]);
        }
        lines(&table)
    }

    /// The same for a program.
    pub(super) fn nodes_json(&self) -> Value {
        let node = |node: &Node| {
            let (votes, learns, leads) = self.carried(node);
            json!({
                "id": hex(node.id),
                "number": node.number,
                "host": node.host,
                "resp_port": node.resp_port,
                "grpc_port": node.grpc_port,
                "admin_port": node.admin_port,
                "peer_port": node.peer_port,
                "reachable": node.reachable,
                "state": state(node),
                "weight": node.weight,
                "zone": node.zone,
                "votes": votes,
                "learns": learns,
                "leads": leads,
            })
        };
        self.0.nodes.iter().map(node).collect()
    }

    /// In how many shards a node votes, follows without a vote, and leads.
    fn carried(&self, node: &Node) -> (usize, usize, usize) {
        let count =
            |has: &dyn Fn(&Shard) -> bool| self.0.shards.iter().filter(|shard| has(shard)).count();
        (
            count(&|shard| shard.voters.contains(&node.id)),
            count(&|shard| shard.learners.contains(&node.id)),
            count(&|shard| shard.leader == Some(node.id)),
        )
    }

    /// A row for each shard.
    pub(super) fn shards(&self) -> String {
        let mut table = plain();
        table.set_header([
            "SHARD", "SLOTS", "LEADER", "TERM", "VOTERS", "LEARNERS", "PLANNED",
        ]);
        for shard in &self.0.shards {
            let slots: Vec<String> = shard
                .slots
                .iter()
                .map(|range| format!("{}-{}", range.first, range.last))
                .collect();
            let leader = shard
                .leader
                .map_or_else(|| "none".to_owned(), |leader| self.label(leader));
            table.add_row([
                shard.shard.to_string(),
                slots.join(","),
                leader,
                shard.term.to_string(),
                self.labels(&shard.voters),
                self.labels(&shard.learners),
                planned(shard),
            ]);
        }
        lines(&table)
    }

    /// The same for a program.
    pub(super) fn shards_json(&self) -> Value {
        let shard = |shard: &Shard| {
            let slots: Vec<[u32; 2]> = shard
                .slots
                .iter()
                .map(|range| [range.first, range.last])
                .collect();
            let ids = |nodes: &[u64]| nodes.iter().copied().map(hex).collect::<Vec<_>>();
            json!({
                "shard": shard.shard,
                "slots": slots,
                "leader": shard.leader.map(hex),
                "term": shard.term,
                "voters": ids(&shard.voters),
                "learners": ids(&shard.learners),
                "progress": shard.progress,
                "planned": shard.planned,
                "planned_leader": (shard.planned_leader != 0).then_some(shard.planned_leader),
            })
        };
        self.0.shards.iter().map(shard).collect()
    }

    /// How people call a node: its number; a life of it that is gone with a mark; one that is alone
    /// by its id.
    fn label(&self, id: u64) -> String {
        match self.0.nodes.iter().find(|node| node.id == id) {
            Some(node) if node.number != 0 => node.number.to_string(),
            Some(_) => hex(id),
            None => format!("{} (gone)", id >> 32),
        }
    }

    fn labels(&self, ids: &[u64]) -> String {
        if ids.is_empty() {
            return "-".to_owned();
        }
        let labels: Vec<String> = ids.iter().map(|id| self.label(*id)).collect();
        labels.join(" ")
    }
}

/// Whether exactly those carry a shard that are to.
pub(super) fn is_settled(shard: &Shard) -> bool {
    let numbers = |ids: &[u64]| ids.iter().map(|id| id >> 32).collect::<BTreeSet<u64>>();
    let planned = shard.planned.iter().copied().map(u64::from);
    let is_known = !shard.planned.is_empty() && !shard.voters.is_empty();
    !is_known || (planned.eq(numbers(&shard.voters)) && shard.learners.is_empty())
}

/// Who is to carry a shard, the one that should lead it first.
fn planned(shard: &Shard) -> String {
    let leader = shard.planned_leader;
    let mut nodes: Vec<u32> = shard.planned.clone();
    nodes.sort_by_key(|node| (*node != leader, *node));
    if nodes.is_empty() {
        return "-".to_owned();
    }
    nodes
        .iter()
        .map(u32::to_string)
        .collect::<Vec<_>>()
        .join(" ")
}

/// What the cluster map says of a node.
fn state(node: &Node) -> Option<&'static str> {
    match node.state() {
        NodeState::Unspecified => None,
        NodeState::Active => Some("active"),
        NodeState::Draining => Some("draining"),
        NodeState::Leaving => Some("leaving"),
        NodeState::Away => Some("away"),
    }
}

/// That the cluster map was changed.
pub(super) fn changed(change: Change, changed: &ChangeMapResponse, is_json: bool) -> String {
    let ChangeMapResponse { version, moves } = *changed;
    if is_json {
        return json!({ "version": version, "moves": moves }).to_string();
    }
    match moves {
        0 if let Change::Split(shard) = change => {
            format!("map version {version}: shard {shard} gives half of its slots to a new one")
        }
        0 => format!("map version {version}: nothing has to move"),
        1 => format!("map version {version}: one replica has to move"),
        _ => format!("map version {version}: {moves} replicas have to move"),
    }
}

/// That a shard is led by whom it should be.
pub(super) fn transferred(shard: u32, led: &TransferLeadershipResponse, is_json: bool) -> String {
    if is_json {
        let (former, leader) = (hex(led.former), hex(led.leader));
        return json!({ "shard": shard, "former": former, "leader": leader }).to_string();
    }
    let (former, leader) = (led.former >> 32, led.leader >> 32);
    if led.former == led.leader {
        format!("node {leader} leads shard {shard} already")
    } else {
        format!("node {leader} leads shard {shard} now, instead of node {former}")
    }
}

fn plain() -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table
}

/// The table's lines without what only fills them up.
fn lines(table: &Table) -> String {
    let text = table.to_string();
    let lines: Vec<&str> = text
        .lines()
        .map(|line| line.strip_prefix(' ').unwrap_or(line).trim_end())
        .collect();
    lines.join("\n")
}

fn of(some: usize, all: usize, what: &str) -> String {
    if some == all {
        format!("{all}, all {what}")
    } else {
        format!("{all}, {some} {what}")
    }
}

fn address(node: &Node) -> String {
    format!("{}:{}", node.host, node.resp_port)
}

fn hex(id: u64) -> String {
    format!("{id:016x}")
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use flux_proto::admin::SlotRange;

    use super::*;

    fn id(number: u64) -> u64 {
        number << 32 | 7
    }

    fn picture() -> Picture {
        let node = |number: u32| Node {
            id: id(u64::from(number)),
            number,
            host: "kv".to_owned() + &number.to_string(),
            resp_port: 7379,
            grpc_port: 50_052,
            admin_port: 9180,
            peer_port: 7390,
            reachable: number != 3,
            state: if number == 4 {
                0
            } else {
                1 + (number / 3) as i32
            },
            weight: 100,
            zone: String::new(),
        };
        let shard = |shard: u32, leader: Option<u64>, voters: [u64; 3]| Shard {
            shard,
            slots: vec![SlotRange {
                first: shard * 8192,
                last: shard * 8192 + 8191,
            }],
            leader: leader.map(id),
            term: 4,
            voters: voters.map(id).to_vec(),
            learners: if shard == 1 { vec![id(1)] } else { Vec::new() },
            progress: if shard == 1 { vec![625] } else { Vec::new() },
            planned: vec![1, 2, 3],
            planned_leader: 2,
        };
        Picture(DescribeResponse {
            cluster: 0xfeed,
            node: id(1),
            nodes: [1, 2, 3, 4].map(node).to_vec(),
            shards: vec![shard(0, Some(1), [1, 2, 3]), shard(1, None, [2, 3, 9])],
            map_version: 4,
            splitting: None,
            paused: true,
        })
    }

    #[test]
    fn the_tables_are_readable() {
        let picture = picture();
        let text = [picture.status(), picture.nodes(), picture.shards()].join("\n\n");
        expect![[r#"
            cluster   000000000000feed
            seen by   node 1
            nodes     4, 3 reachable
            shards    2, 1 led
            replicas  6 with a vote, 1 without
            map       version 4, 1 of 2 shards are to move, paused
            shard 1 goes from 2 3 9 (gone) to 1 2 3, node 1 has 62.5 %
            node 3 has not been heard of lately (kv3:7379)
            shard 1 has lost its majority: 1 of 3 voters are reachable

            NODE  RESP      GRPC   ADMIN  PEER  REACHABLE  STATE     VOTES  LEARNS  LEADS
            1     kv1:7379  50052  9180   7390  yes        active    1      1       1
            2     kv2:7379  50052  9180   7390  yes        active    2      0       0
            3     kv3:7379  50052  9180   7390  no         draining  2      0       0
            4     kv4:7379  50052  9180   7390  yes        -         0      0       0

            SHARD  SLOTS       LEADER  TERM  VOTERS        LEARNERS  PLANNED
            0      0-8191      1       4     1 2 3         -         2 1 3
            1      8192-16383  none    4     2 3 9 (gone)  1         2 1 3"#]]
        .assert_eq(&text);
    }

    #[test]
    fn json_has_everything_that_the_tables_have() {
        let json = picture().status_json();
        assert_eq!(json["cluster"], "000000000000feed");
        assert_eq!(json["nodes"][0]["leads"], 1);
        assert_eq!(json["nodes"][2]["reachable"], false);
        assert_eq!(json["shards"][0]["leader"], "0000000100000007");
        assert_eq!(json["shards"][1]["leader"], Value::Null);
        assert_eq!(json["shards"][1]["slots"], json!([[8192, 16383]]));
        assert_eq!(json["problems"].as_array().map(Vec::len), Some(2));
    }

    #[test]
    fn a_shard_is_settled_when_exactly_those_carry_it_that_are_to() {
        let settled: Vec<bool> = picture().0.shards.iter().map(is_settled).collect();
        assert_eq!(settled, [true, false]);
        let told = |version, moves| {
            let change = Change::Drain(1);
            changed(change, &ChangeMapResponse { version, moves }, false)
        };
        assert_eq!(told(2, 0), "map version 2: nothing has to move");
        assert_eq!(told(3, 6), "map version 3: 6 replicas have to move");
    }

    #[test]
    fn a_transfer_says_who_led_before() {
        let led = |former, leader| TransferLeadershipResponse {
            former: id(former),
            leader: id(leader),
        };
        assert_eq!(
            transferred(2, &led(1, 3), false),
            "node 3 leads shard 2 now, instead of node 1"
        );
        assert_eq!(
            transferred(2, &led(3, 3), false),
            "node 3 leads shard 2 already"
        );
        let json = transferred(2, &led(1, 3), true);
        assert!(json.contains("\"leader\":\"0000000300000007\""), "{json}");
    }
}

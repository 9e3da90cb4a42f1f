//! A cluster as text: tables for people, JSON for programs.

use std::collections::BTreeSet;

use comfy_table::{Table, presets};
use flux_proto::admin::{DescribeResponse, Node, Shard, TransferLeadershipResponse};
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
        let mut text = lines(&table);
        for problem in self.problems() {
            text.push_str(&format!("\n{problem}"));
        }
        text
    }

    /// The same for a program.
    pub(super) fn status_json(&self) -> Value {
        json!({
            "cluster": hex(self.0.cluster),
            "seen_by": hex(self.0.node),
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
        table.set_header(["SHARD", "SLOTS", "LEADER", "TERM", "VOTERS", "LEARNERS"]);
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
            learners: Vec::new(),
        };
        Picture(DescribeResponse {
            cluster: 0xfeed,
            node: id(1),
            nodes: [1, 2, 3, 4].map(node).to_vec(),
            shards: vec![shard(0, Some(1), [1, 2, 3]), shard(1, None, [2, 3, 9])],
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
            replicas  6 with a vote, 0 without
            node 3 has not been heard of lately (kv3:7379)
            shard 1 has lost its majority: 1 of 3 voters are reachable

            NODE  RESP      GRPC   ADMIN  PEER  REACHABLE  VOTES  LEARNS  LEADS
            1     kv1:7379  50052  9180   7390  yes        1      0       1
            2     kv2:7379  50052  9180   7390  yes        2      0       0
            3     kv3:7379  50052  9180   7390  no         2      0       0
            4     kv4:7379  50052  9180   7390  yes        0      0       0

            SHARD  SLOTS       LEADER  TERM  VOTERS        LEARNERS
            0      0-8191      1       4     1 2 3         -
            1      8192-16383  none    4     2 3 9 (gone)  -"#]]
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

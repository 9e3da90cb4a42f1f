//! Places many shards on many nodes, lets nodes come and go, and prints balance, movement and the
//! time that planning takes.
//!
//! `cargo run --profile dist -p flux-cluster --example placement_bench -- NODES SHARDS REPLICAS`
#![expect(clippy::print_stdout, reason = "a benchmark prints")]
#![expect(
    clippy::indexing_slicing,
    reason = "a benchmark may stop at a mistake of its own"
)]

use std::collections::BTreeMap;

use flux_cluster::placement::{self, Member, MemberState, ShardPlacement, Zone};
use flux_cluster::ring::Weight;
use flux_env::{Clock, RealClock};
use flux_types::NodeNumber;

/// What happens, one after the other.
enum Event {
    Comes(Member),
    Goes(u32),
    Drains(u32),
    Weighs(u32, u32),
}

struct Bench {
    clock: RealClock,
    replicas: usize,
    members: Vec<Member>,
    placed: Vec<ShardPlacement>,
}

impl Bench {
    fn plan(&mut self, what: &str, members: Vec<Member>) {
        let bounds =
            placement::bounds(&members, self.replicas, self.placed.len()).expect("nodes enough");
        let began = self.clock.now();
        let planned = placement::plan(&members, self.replicas, &self.placed).expect("a plan");
        let took = self.clock.now().saturating_since(began);
        let moved = placement::moves(&self.placed, &planned).len();
        let (mut loads, mut led) = (BTreeMap::new(), BTreeMap::new());
        for shard in &planned {
            for node in &shard.replicas {
                *loads.entry(*node).or_insert(0_u64) += 1;
            }
            *led.entry(shard.leader).or_insert(0_u64) += 1;
        }
        let beyond = loads
            .iter()
            .filter(|(node, load)| **load > bounds[node])
            .count();
        assert_eq!(beyond, 0, "a node is beyond its bound");
        let mean = (planned.len() * self.replicas) as f64 / bounds.len() as f64;
        println!(
            "| {what} | {} | {mean:.2} | {}–{} | {} | {}–{} | {moved} | {:.1} |",
            bounds.len(),
            loads.values().min().unwrap_or(&0),
            loads.values().max().unwrap_or(&0),
            bounds.values().max().unwrap_or(&0),
            led.values().min().unwrap_or(&0),
            led.values().max().unwrap_or(&0),
            took.as_secs_f64() * 1000.0,
        );
        (self.members, self.placed) = (members, planned);
    }

    fn happens(&mut self, what: &str, event: Event) {
        let mut members = self.members.clone();
        let found = |members: &[Member], number| {
            let at = members
                .iter()
                .position(|member| member.node.get() == number);
            at.expect("it is there")
        };
        match event {
            Event::Comes(member) => members.push(member),
            Event::Goes(number) => drop(members.remove(found(&members, number))),
            Event::Drains(number) => {
                let at = found(&members, number);
                members[at].state = MemberState::Draining;
            }
            Event::Weighs(number, weight) => {
                let at = found(&members, number);
                members[at].weight = Weight::new(weight).expect("within bounds");
            }
        }
        self.plan(what, members);
    }
}

fn member(number: u32, zones: u32) -> Member {
    let zone = (zones > 0).then(|| Zone::new(&format!("z{}", number % zones)).expect("plain"));
    Member {
        zone,
        ..Member::new(NodeNumber::new(number))
    }
}

fn main() {
    let numbers = std::env::args()
        .skip(1)
        .map(|word| word.parse().expect("a number"));
    let numbers: Vec<u32> = numbers.collect();
    let [nodes, shards, replicas] = numbers[..] else {
        println!("usage: placement_bench NODES SHARDS REPLICAS");
        return;
    };
    for zones in [0, 5] {
        println!("\n{nodes} nodes × {shards} shards × {replicas} replicas, {zones} zones\n");
        println!(
            "| what happens | nodes | mean | replicas per node | bound | leads | moved | ms |"
        );
        println!("|---|---|---|---|---|---|---|---|");
        let mut bench = Bench {
            clock: RealClock::new(),
            replicas: replicas as usize,
            members: Vec::new(),
            placed: vec![ShardPlacement::default(); shards as usize],
        };
        let first = (1..=nodes).map(|number| member(number, zones)).collect();
        bench.plan("all placed", first);
        bench.happens("one node comes", Event::Comes(member(nodes + 1, zones)));
        bench.happens("one node goes", Event::Goes(nodes / 2));
        bench.happens("it comes back", Event::Comes(member(nodes / 2, zones)));
        bench.happens("one node drains", Event::Drains(nodes / 3));
        bench.happens("one node's weight doubles", Event::Weighs(nodes / 4, 200));
        for number in 1..=nodes / 10 {
            let what = format!("node {number} goes, one after another");
            let is_last = number == nodes / 10;
            let members = bench.members.clone();
            let left = members
                .into_iter()
                .filter(|member| member.node.get() != number)
                .collect();
            if is_last {
                bench.plan(&what, left);
            } else {
                bench.placed =
                    placement::plan(&left, bench.replicas, &bench.placed).expect("a plan");
                bench.members = left;
            }
        }
        let all = (1..=nodes + 1)
            .map(|number| member(number, zones))
            .collect();
        bench.plan("all of them come back at once", all);
    }
}

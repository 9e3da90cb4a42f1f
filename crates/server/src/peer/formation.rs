//! How nodes that know only a list of addresses become one cluster: a pure decision
//! (`docs/design/0014-formation.md`).
//!
//! A node that belongs to no cluster asks everybody in its list. If any of them belongs to one, it
//! joins that. If all of them are there and none does, the one with the lowest number founds: it
//! draws the cluster's id, and all begin with the same voters. Nobody begins before all are there:
//! two halves that each found a cluster could never be joined again, and a write that one copy
//! acknowledged would be lost with it.

use std::collections::{BTreeMap, BTreeSet};

use flux_types::{ClusterId, NodeId};

use super::news::{Decision, News, Standing};

/// What a node without a cluster does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// It asks again; these are not there, or not so far yet.
    Wait(Vec<String>),
    /// It founds a cluster.
    Found(Decision),
    /// It belongs to this one from now on.
    Adopt(Decision),
    /// It must not go on.
    Refuse(String),
}

/// Decides. `own` is what this node tells; `heard` what each address of its list has answered last,
/// none if nothing yet; `drawn` the id that a new cluster would get.
pub(crate) fn decide(own: &News, heard: &BTreeMap<String, Option<News>>, drawn: ClusterId) -> Step {
    let others = heard
        .iter()
        .filter_map(|(address, news)| Some((address, news.as_ref()?)));
    if let Some(problem) = same_number(own, others.clone()) {
        return Step::Refuse(problem);
    }
    let mut clusters = others.clone().filter_map(|(address, news)| {
        let decision = news.decision.as_ref()?;
        Some((address, decision))
    });
    if let Some((first, decision)) = clusters.next() {
        if let Some((other, _)) = clusters.find(|(_, other)| other.cluster != decision.cluster) {
            return Step::Refuse(format!(
                "{first} and {other} belong to different clusters: --join must name the nodes of one"
            ));
        }
        return Step::Adopt(decision.clone());
    }
    let missing: Vec<String> = heard
        .iter()
        .filter(|(_, news)| news.is_none())
        .map(|(address, _)| address.clone())
        .collect();
    if !missing.is_empty() {
        return Step::Wait(missing);
    }
    if !others
        .clone()
        .any(|(_, news)| news.card.node == own.card.node)
    {
        return Step::Refuse(
            "--join does not name this node: the list must hold the peer addresses of all nodes, \
             this one included, as the others reach them"
                .to_owned(),
        );
    }
    if let Some(problem) = disagreement(own, others.clone()) {
        return Step::Refuse(problem);
    }
    let nodes: BTreeSet<NodeId> = others.clone().map(|(_, news)| news.card.node).collect();
    if nodes.first() != Some(&own.card.node) {
        let founder = others
            .filter(|(_, news)| Some(&news.card.node) == nodes.first())
            .map(|(address, _)| address.clone());
        return Step::Wait(founder.collect());
    }
    Step::Found(Decision {
        cluster: drawn,
        voters: place(&nodes, usize::from(own.replicas), usize::from(own.shards)),
    })
}

/// Two nodes with one number, or one node under two addresses.
fn same_number<'a>(
    own: &News,
    others: impl Iterator<Item = (&'a String, &'a News)>,
) -> Option<String> {
    let mut seen: BTreeMap<u32, (&str, NodeId)> = BTreeMap::new();
    for (address, news) in others {
        let node = news.card.node;
        match seen.insert(node.physical(), (address, node)) {
            Some((other, same)) if same == node => {
                return Some(format!(
                    "{other} and {address} are the same node: --join must name each node once"
                ));
            }
            Some((other, _)) => {
                return Some(format!(
                    "{other} and {address} both have --node-id {}: give each node its own",
                    node.physical()
                ));
            }
            None => {}
        }
        let is_twin = node.physical() == own.card.node.physical() && node != own.card.node;
        let alive = news.cards.iter().find(|card| {
            card.node.physical() == own.card.node.physical() && card.node != own.card.node
        });
        if is_twin {
            return Some(format!(
                "{address} has --node-id {} as well: give each node its own",
                node.physical()
            ));
        }
        if let Some(card) = alive {
            return Some(format!(
                "--node-id {} is in use by a running node at {}: give each node its own, or stop \
                 that one first",
                node_number(card.node),
                card.peer_address()
            ));
        }
    }
    None
}

const fn node_number(node: NodeId) -> u32 {
    node.physical()
}

/// What nodes that would found a cluster together must have been told alike.
fn disagreement<'a>(
    own: &News,
    others: impl Iterator<Item = (&'a String, &'a News)>,
) -> Option<String> {
    let set = |news: &News| news.list.iter().cloned().collect::<BTreeSet<_>>();
    for (address, news) in others {
        if news.standing != Standing::Fresh {
            return Some(format!(
                "{address} belongs to a cluster that it does not name"
            ));
        }
        if set(news) != set(own) {
            return Some(format!(
                "{address} has another list of nodes: --join {} there, {} here; give all the same",
                news.list.join(","),
                own.list.join(",")
            ));
        }
        if news.replicas != own.replicas {
            return Some(format!(
                "{address} has --replicas {}, this node {}: give all the same",
                news.replicas, own.replicas
            ));
        }
        if news.shards != own.shards {
            return Some(format!(
                "{address} has --shards {}, this node {}: give all the same",
                news.shards, own.shards
            ));
        }
    }
    None
}

/// Gives each shard its voters: the nodes in turn, so that all carry the same share.
fn place(nodes: &BTreeSet<NodeId>, replicas: usize, shards: usize) -> Vec<Vec<NodeId>> {
    let nodes: Vec<NodeId> = nodes.iter().copied().collect();
    (0..shards)
        .map(|shard| {
            let turn = nodes.iter().cycle().skip(shard % nodes.len().max(1));
            turn.take(replicas.min(nodes.len())).copied().collect()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::news::Card;
    use super::*;

    const DRAWN: ClusterId = ClusterId::new(99);

    fn node(physical: u32) -> NodeId {
        NodeId::of_incarnation(physical, 7)
    }

    fn fresh(physical: u32) -> News {
        News {
            card: Card {
                node: node(physical),
                host: "h".to_owned(),
                ..Card::default()
            },
            list: ["a", "b", "c"].map(str::to_owned).to_vec(),
            replicas: 3,
            shards: 2,
            ..News::default()
        }
    }

    fn heard(answers: [Option<News>; 3]) -> BTreeMap<String, Option<News>> {
        ["a", "b", "c"]
            .map(str::to_owned)
            .into_iter()
            .zip(answers)
            .collect()
    }

    fn all() -> BTreeMap<String, Option<News>> {
        heard([1, 2, 3].map(|number| Some(fresh(number))))
    }

    fn refused(step: &Step) -> &str {
        let Step::Refuse(problem) = step else {
            panic!("not refused: {step:?}");
        };
        problem
    }

    #[test]
    fn nobody_founds_before_all_are_there() {
        let some = heard([Some(fresh(1)), None, Some(fresh(3))]);
        let missing = vec!["b".to_owned()];
        assert_eq!(decide(&fresh(1), &some, DRAWN), Step::Wait(missing));
    }

    #[test]
    fn the_lowest_number_founds_with_all_as_voters_and_the_others_wait_for_it() {
        let voters: Vec<NodeId> = [1, 2, 3].map(node).to_vec();
        let Step::Found(decision) = decide(&fresh(1), &all(), DRAWN) else {
            panic!("it founds");
        };
        assert_eq!(decision.cluster, DRAWN);
        for shard in &decision.voters {
            assert_eq!(
                shard.iter().collect::<BTreeSet<_>>(),
                voters.iter().collect()
            );
        }
        assert_eq!(
            decide(&fresh(2), &all(), DRAWN),
            Step::Wait(vec!["a".to_owned()])
        );
    }

    #[test]
    fn a_cluster_that_one_knows_is_joined_whoever_else_is_missing() {
        let decision = Decision {
            cluster: ClusterId::new(5),
            voters: vec![vec![node(2)]],
        };
        let member = News {
            standing: Standing::Member,
            decision: Some(decision.clone()),
            ..fresh(2)
        };
        let some = heard([None, Some(member.clone()), None]);
        assert_eq!(
            decide(&fresh(3), &some, DRAWN),
            Step::Adopt(decision.clone())
        );
        let other = News {
            decision: Some(Decision {
                cluster: ClusterId::new(6),
                ..decision
            }),
            ..fresh(1)
        };
        let both = heard([Some(other), Some(member), None]);
        assert!(refused(&decide(&fresh(3), &both, DRAWN)).contains("different clusters"));
    }

    #[test]
    fn two_nodes_with_one_number_are_refused() {
        let twin = News {
            card: Card {
                node: NodeId::of_incarnation(2, 8),
                ..Card::default()
            },
            ..fresh(2)
        };
        let twins = heard([Some(fresh(2)), Some(twin), None]);
        assert!(refused(&decide(&fresh(2), &twins, DRAWN)).contains("--node-id 2"));
        let teller = News {
            cards: vec![Card {
                node: NodeId::of_incarnation(3, 1),
                host: "elsewhere".to_owned(),
                peer: 5,
                ..Card::default()
            }],
            ..fresh(1)
        };
        let told = heard([Some(teller), None, None]);
        assert!(refused(&decide(&fresh(3), &told, DRAWN)).contains("elsewhere:5"));
    }

    #[test]
    fn what_was_told_differently_is_refused() {
        let differs = |change: fn(&mut News), word: &str| {
            let mut news = fresh(2);
            change(&mut news);
            let mixed = heard([Some(fresh(1)), Some(news), Some(fresh(3))]);
            let step = decide(&fresh(1), &mixed, DRAWN);
            assert!(refused(&step).contains(word), "{step:?}");
        };
        differs(|news| news.list.push("d".to_owned()), "--join");
        differs(|news| news.replicas = 1, "--replicas");
        differs(|news| news.shards = 9, "--shards");
        let same = heard([Some(fresh(1)), Some(fresh(1)), Some(fresh(3))]);
        assert!(refused(&decide(&fresh(1), &same, DRAWN)).contains("same node"));
        let stranger = decide(&fresh(9), &all(), DRAWN);
        assert!(refused(&stranger).contains("does not name this node"));
    }

    #[test]
    fn fewer_replicas_than_nodes_are_spread_evenly() {
        let nodes: BTreeSet<NodeId> = (1..=5).map(node).collect();
        let placed = place(&nodes, 3, 10);
        for number in nodes {
            let carried = placed
                .iter()
                .filter(|voters| voters.contains(&number))
                .count();
            assert_eq!(carried, 6);
        }
        assert!(
            placed
                .iter()
                .all(|voters| voters.iter().collect::<BTreeSet<_>>().len() == 3)
        );
    }
}

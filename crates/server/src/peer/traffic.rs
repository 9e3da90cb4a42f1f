//! What goes between this node and each other one, counted for people. Nothing is decided by it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use flux_types::limits;
use parking_lot::Mutex;

/// Which way something goes, or who began a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// From this node to another.
    Out,
    /// From another node to this one.
    In,
}

impl Way {
    /// Both, in the order of [`Both::all`].
    pub(crate) const ALL: [Self; 2] = [Self::Out, Self::In];

    /// The word for it in metrics.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Out => "out",
            Self::In => "in",
        }
    }
}

/// A number for each way.
#[derive(Debug, Default)]
pub(crate) struct Both {
    out: AtomicU64,
    into: AtomicU64,
}

impl Both {
    const fn cell(&self, way: Way) -> &AtomicU64 {
        match way {
            Way::Out => &self.out,
            Way::In => &self.into,
        }
    }

    pub(crate) fn add(&self, way: Way, count: u64) {
        self.cell(way).fetch_add(count, Ordering::Relaxed);
    }

    /// By [`Way::ALL`].
    pub(crate) fn all(&self) -> [u64; 2] {
        Way::ALL.map(|way| self.cell(way).load(Ordering::Relaxed))
    }
}

/// What goes between this node and one other.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    /// Connections there are, by who began them.
    connections: Both,
    bytes: Both,
    frames: Both,
    /// Snapshots that arrived whole.
    pub(crate) snapshots: Both,
    /// Bytes of blocks of snapshots, of those that broke off too.
    pub(crate) snapshot_bytes: Both,
    /// How long the last answer to news took, in microseconds; 0: none came yet.
    round_trip_micros: AtomicU64,
}

impl Traffic {
    /// So many bytes and frames went that way.
    pub(crate) fn carried(&self, way: Way, bytes: usize, frames: u64) {
        self.bytes.add(way, bytes as u64);
        self.frames.add(way, frames);
    }

    /// Notes how long an answer took that needed no disk.
    pub(crate) fn answered_after(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
        self.round_trip_micros.store(micros, Ordering::Relaxed);
    }

    /// How long the last one took.
    fn round_trip(&self) -> Option<Duration> {
        let micros = self.round_trip_micros.load(Ordering::Relaxed);
        (micros != 0).then(|| Duration::from_micros(micros))
    }

    /// A connection is there, for as long as this is held.
    pub(crate) fn connected(self: &Arc<Self>, way: Way) -> Connected {
        self.connections.add(way, 1);
        Connected {
            traffic: Arc::clone(self),
            way,
        }
    }
}

/// Counts a connection while it is held.
#[derive(Debug)]
pub(crate) struct Connected {
    traffic: Arc<Traffic>,
    way: Way,
}

impl Drop for Connected {
    fn drop(&mut self) {
        let cell = self.traffic.connections.cell(self.way);
        cell.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The traffic with all other nodes, by their numbers.
///
/// Lock order: a leaf.
#[derive(Debug, Default)]
pub(crate) struct Traffics {
    nodes: Mutex<BTreeMap<u32, Arc<Traffic>>>,
    /// Handshakes that ended with a refusal, by who began them.
    pub(crate) refused: Both,
}

impl Traffics {
    /// The traffic with one node. Whoever calls says its number itself: there is a limit to how many
    /// are kept, and what goes to and from one beyond it is counted nowhere.
    pub(crate) fn of(&self, number: u32) -> Arc<Traffic> {
        let mut nodes = self.nodes.lock();
        let is_known = nodes.contains_key(&number);
        if !is_known && limits::CLUSTER_NODES_MAX <= nodes.len() {
            return Arc::default();
        }
        Arc::clone(nodes.entry(number).or_default())
    }

    /// What is known of other nodes than this; of each also how long ago it was heard of.
    pub(crate) fn stats(&self, own: u32, heard: &BTreeMap<u32, Duration>) -> PeerStats {
        let traffics = self.nodes.lock();
        let numbers: BTreeSet<u32> = traffics.keys().chain(heard.keys()).copied().collect();
        let others = numbers.into_iter().filter(|number| *number != own);
        let nodes = others.map(|number| {
            let counted = traffics
                .get(&number)
                .map_or_else(NodeStats::default, |traffic| NodeStats {
                    connections: traffic.connections.all(),
                    bytes: traffic.bytes.all(),
                    frames: traffic.frames.all(),
                    snapshots: traffic.snapshots.all(),
                    snapshot_bytes: traffic.snapshot_bytes.all(),
                    round_trip: traffic.round_trip(),
                    heard_age: None,
                });
            let heard_age = heard.get(&number).copied();
            let stats = NodeStats {
                heard_age,
                ..counted
            };
            (number, stats)
        });
        PeerStats {
            nodes: nodes.collect(),
            refused: self.refused.all(),
        }
    }
}

/// What was counted until now.
#[derive(Clone, Debug, Default)]
pub(crate) struct PeerStats {
    /// By the number of the other node.
    pub(crate) nodes: Vec<(u32, NodeStats)>,
    pub(crate) refused: [u64; 2],
}

/// What was counted of one other node; pairs are by [`Way::ALL`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct NodeStats {
    pub(crate) connections: [u64; 2],
    pub(crate) bytes: [u64; 2],
    pub(crate) frames: [u64; 2],
    pub(crate) snapshots: [u64; 2],
    pub(crate) snapshot_bytes: [u64; 2],
    pub(crate) round_trip: Option<Duration>,
    /// How long ago it was heard of by itself.
    pub(crate) heard_age: Option<Duration>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_count_while_they_are_held_and_each_way_for_itself() {
        let traffics = Traffics::default();
        let traffic = traffics.of(2);
        let (first, second) = (traffic.connected(Way::Out), traffic.connected(Way::Out));
        let third = traffics.of(2).connected(Way::In);
        assert_eq!(traffic.connections.all(), [2, 1]);
        drop((first, third));
        assert_eq!(traffic.connections.all(), [1, 0]);
        drop(second);
        assert_eq!(traffic.connections.all(), [0, 0]);
    }

    #[test]
    fn of_more_nodes_than_a_cluster_may_have_none_is_kept() {
        let traffics = Traffics::default();
        let most = u32::try_from(limits::CLUSTER_NODES_MAX).unwrap();
        for number in 1..=2 * most {
            traffics.of(number).carried(Way::In, 1, 1);
        }
        traffics.of(most).carried(Way::In, 1, 1);
        let nodes = traffics.stats(0, &BTreeMap::new()).nodes;
        assert_eq!(nodes.len(), limits::CLUSTER_NODES_MAX);
        assert_eq!(
            nodes.last().map(|(number, node)| (*number, node.bytes)),
            Some((most, [0, 2]))
        );
    }

    #[test]
    fn others_are_told_that_were_talked_to_or_heard_of_and_not_this_node() {
        let traffics = Traffics::default();
        traffics.of(1).carried(Way::Out, 9, 1);
        traffics.of(2).carried(Way::Out, 100, 2);
        traffics.of(2).carried(Way::In, 30, 1);
        traffics.of(2).answered_after(Duration::from_nanos(1));
        traffics.refused.add(Way::In, 1);
        let age = Duration::from_secs(4);
        let stats = traffics.stats(1, &BTreeMap::from([(3, age)]));
        let second = NodeStats {
            bytes: [100, 30],
            frames: [2, 1],
            round_trip: Some(Duration::from_micros(1)),
            ..NodeStats::default()
        };
        let third = NodeStats {
            heard_age: Some(age),
            ..NodeStats::default()
        };
        assert_eq!(stats.nodes, [(2, second), (3, third)]);
        assert_eq!(stats.refused, [0, 1]);
    }
}

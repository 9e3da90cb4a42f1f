//! The consistent-hash ring: in which order a shard likes the nodes.
//!
//! Every node stands on a circle of 2^64 positions in as many copies as its weight, every shard at
//! one position; a shard likes the nodes in the order in which it meets them going up (Karger et
//! al., "Consistent Hashing and Random Trees", STOC 1997). A node that comes or goes changes the
//! order only where its own copies are. Who carries a shard is decided in [`crate::placement`],
//! which bounds how much a node gets.
//!
//! The hash is fixed, with its seeds, for good: `docs/placement.md` publishes vectors of it, and
//! another one would be another [`RING_FORMAT`].

use std::collections::BTreeMap;

use flux_types::limits::WEIGHT_MAX;
use flux_types::{NodeNumber, ShardId};

/// Which hash and which number of copies: part of a stored map.
pub const RING_FORMAT: u32 = 1;

/// So that positions of nodes and of shards come from different hashes.
const NODE_SEED: u64 = u64::from_be_bytes(*b"fluxnode");
const SHARD_SEED: u64 = u64::from_be_bytes(*b"fluxshrd");

/// How much a node can carry beside others, 1 to 1000; also the number of its copies on the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Weight(u16);

/// A weight that no node can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("weight {given}: must be 1 to {WEIGHT_MAX}")]
pub struct WeightError {
    /// What was asked for.
    pub given: u32,
}

impl Weight {
    /// That of a node about which nothing was said.
    pub const STANDARD: Self = Self(100);

    /// Checks a weight.
    ///
    /// # Errors
    /// For 0, and for more than [`WEIGHT_MAX`].
    pub fn new(given: u32) -> Result<Self, WeightError> {
        match u16::try_from(given) {
            Ok(weight @ 1..=WEIGHT_MAX) => Ok(Self(weight)),
            _ => Err(WeightError { given }),
        }
    }

    /// The weight as a number.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl Default for Weight {
    fn default() -> Self {
        Self::STANDARD
    }
}

/// Where a copy of a node stands. No two copies share a position: the hash is a bijection.
#[must_use]
pub const fn node_position(node: NodeNumber, copy: u16) -> u64 {
    mix(NODE_SEED ^ mix((node.get() as u64) << 32 | copy as u64))
}

/// Where a shard stands.
#[must_use]
pub const fn shard_position(shard: ShardId) -> u64 {
    mix(SHARD_SEED ^ mix(shard.get() as u64))
}

/// One step of `SplitMix64` (Steele, Lea, Flood 2014): a bijection in which every bit of the input
/// moves every bit of the output.
const fn mix(input: u64) -> u64 {
    let mut z = input.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// See the module. Its order depends on numbers and weights alone.
#[derive(Clone, Debug, Default)]
pub struct Ring {
    /// Every copy of every node, in order of the positions.
    copies: Vec<(u64, NodeNumber)>,
    /// The positions of each node, ascending.
    positions: BTreeMap<NodeNumber, Vec<u64>>,
}

impl Ring {
    /// A ring of these nodes.
    #[must_use]
    pub fn new(nodes: &BTreeMap<NodeNumber, Weight>) -> Self {
        let positions: BTreeMap<NodeNumber, Vec<u64>> = nodes
            .iter()
            .map(|(node, weight)| {
                let copies = 0..weight.get();
                let mut own: Vec<u64> = copies.map(|copy| node_position(*node, copy)).collect();
                own.sort_unstable();
                (*node, own)
            })
            .collect();
        let mut copies: Vec<(u64, NodeNumber)> = positions
            .iter()
            .flat_map(|(node, own)| own.iter().map(|position| (*position, *node)))
            .collect();
        copies.sort_unstable();
        Self { copies, positions }
    }

    /// The nodes as a shard meets them, a node again at each of its copies.
    pub fn walk(&self, shard: ShardId) -> impl Iterator<Item = NodeNumber> + '_ {
        let start = shard_position(shard);
        let at = self.copies.partition_point(|(found, _)| *found < start);
        let (before, after) = self.copies.split_at(at);
        after.iter().chain(before).map(|(_, node)| *node)
    }

    /// The nodes in the order in which a shard likes them, each once.
    #[must_use]
    pub fn preference(&self, shard: ShardId) -> Vec<NodeNumber> {
        let mut nodes: Vec<NodeNumber> = self.positions.keys().copied().collect();
        nodes.sort_by_key(|node| self.distance(shard, *node));
        nodes
    }

    /// How far a shard walks until it first meets a node; the farthest there is for one that is not
    /// on the ring.
    #[must_use]
    pub fn distance(&self, shard: ShardId, node: NodeNumber) -> u64 {
        let Some(own) = self.positions.get(&node) else {
            return u64::MAX;
        };
        let start = shard_position(shard);
        let at = own.partition_point(|position| *position < start);
        let met = own.get(at).or_else(|| own.first());
        met.map_or(u64::MAX, |position| position.wrapping_sub(start))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn nodes(numbers: impl IntoIterator<Item = u32>) -> BTreeMap<NodeNumber, Weight> {
        let numbers = numbers.into_iter();
        numbers
            .map(|number| (NodeNumber::new(number), Weight::STANDARD))
            .collect()
    }

    #[test]
    fn the_hash_is_that_of_the_published_vectors() {
        // The first outputs of SplitMix64 from seed 0, as its authors publish them.
        assert_eq!(mix(0), 0xe220_a839_7b1d_cdaf);
        assert_eq!(mix(0x9e37_79b9_7f4a_7c15), 0x6e78_9e6a_a1b9_65f4);
    }

    #[test]
    fn a_weight_has_bounds() {
        assert_eq!(Weight::new(0), Err(WeightError { given: 0 }));
        assert_eq!(Weight::new(1).map(Weight::get), Ok(1));
        assert_eq!(Weight::new(1000).map(Weight::get), Ok(1000));
        assert!(Weight::new(1001).is_err());
        assert!(Weight::new(65_537).is_err());
    }

    #[test]
    fn nodes_of_one_weight_are_liked_best_about_as_often_as_each_other() {
        let ring = Ring::new(&nodes(1..=10));
        let mut first: BTreeMap<NodeNumber, u32> = BTreeMap::new();
        for shard in (0..10_000).map(ShardId::new) {
            *first.entry(ring.walk(shard).next().unwrap()).or_default() += 1;
        }
        // 100 copies: a tenth of a node's share is one standard deviation.
        assert_eq!(first.len(), 10);
        for (node, count) in first {
            assert!((700..=1300).contains(&count), "node {node}: {count}");
        }
    }

    proptest! {
        #[test]
        fn the_walk_meets_nodes_in_the_order_of_their_distance(
            numbers in prop::collection::btree_set(1_u32..1000, 1..20), shard in 0_u32..5000
        ) {
            let ring = Ring::new(&nodes(numbers));
            let shard = ShardId::new(shard);
            let mut seen = BTreeSet::new();
            let met: Vec<_> = ring.walk(shard).filter(|node| seen.insert(*node)).collect();
            prop_assert_eq!(met, ring.preference(shard));
        }

        #[test]
        fn a_node_that_comes_leaves_the_order_of_the_others(
            numbers in prop::collection::btree_set(1_u32..1000, 1..20), new in 1000_u32..2000,
            shard in 0_u32..5000
        ) {
            let shard = ShardId::new(shard);
            let before = Ring::new(&nodes(numbers.clone())).preference(shard);
            let with = Ring::new(&nodes(numbers.into_iter().chain([new]))).preference(shard);
            let others: Vec<_> = with.into_iter().filter(|node| node.get() != new).collect();
            prop_assert_eq!(others, before);
        }
    }
}

//! Who may carry a replica, and who may lead.

use flux_types::{NodeNumber, ShardId};

use super::balance::{NodeIndex, PerNode, PerShard, Rule, ShardIndex};
use super::member::Member;
use super::shard_id;
use crate::ring::Ring;

/// A replica may be on any node that has none of the shard, as long as its zone has not too many.
pub(super) struct Replicas<'a> {
    ring: &'a Ring,
    members: &'a [Member],
    zones: &'a PerNode<usize>,
    zone_limit: usize,
}

impl<'a> Replicas<'a> {
    pub(super) const fn new(
        ring: &'a Ring,
        members: &'a [Member],
        zones: &'a PerNode<usize>,
        zone_limit: usize,
    ) -> Self {
        Self {
            ring,
            members,
            zones,
            zone_limit,
        }
    }
}

impl Rule for Replicas<'_> {
    fn allows(
        &self,
        _: ShardIndex,
        holders: &[NodeIndex],
        leaving: Option<NodeIndex>,
        taker: NodeIndex,
    ) -> bool {
        let zone = self.zones[taker];
        let neighbors = holders
            .iter()
            .filter(|holder| Some(**holder) != leaving && self.zones[**holder] == zone);
        neighbors.count() < self.zone_limit && !holders.contains(&taker)
    }

    fn preference(&self, shard: ShardIndex) -> Box<dyn Iterator<Item = NodeIndex> + '_> {
        let met = self.ring.walk(shard_id(shard.0));
        Box::new(met.filter_map(|number| index_of(self.members, number)))
    }

    fn distance(&self, shard: ShardIndex, node: NodeIndex) -> u64 {
        distance(self.ring, self.members, shard_id(shard.0), node)
    }
}

/// Any of a shard's replicas may lead it.
pub(super) struct Leaders<'a> {
    ring: &'a Ring,
    members: &'a [Member],
    replicas: &'a PerShard<Vec<NodeIndex>>,
}

impl<'a> Leaders<'a> {
    pub(super) const fn new(
        ring: &'a Ring,
        members: &'a [Member],
        replicas: &'a PerShard<Vec<NodeIndex>>,
    ) -> Self {
        Self {
            ring,
            members,
            replicas,
        }
    }
}

impl Rule for Leaders<'_> {
    fn allows(
        &self,
        shard: ShardIndex,
        holders: &[NodeIndex],
        leaving: Option<NodeIndex>,
        taker: NodeIndex,
    ) -> bool {
        let is_free = holders.iter().all(|holder| Some(*holder) == leaving);
        is_free && leaving != Some(taker) && self.replicas[shard].contains(&taker)
    }

    fn preference(&self, shard: ShardIndex) -> Box<dyn Iterator<Item = NodeIndex> + '_> {
        let mut nodes = self.replicas[shard].clone();
        nodes.sort_by_key(|node| (self.distance(shard, *node), *node));
        Box::new(nodes.into_iter())
    }

    fn distance(&self, shard: ShardIndex, node: NodeIndex) -> u64 {
        distance(self.ring, self.members, shard_id(shard.0), node)
    }
}

fn index_of(members: &[Member], number: NodeNumber) -> Option<NodeIndex> {
    let found = members.binary_search_by_key(&number, |member| member.node);
    found.ok().map(NodeIndex)
}

fn distance(ring: &Ring, members: &[Member], shard: ShardId, node: NodeIndex) -> u64 {
    let member = members.get(node.0);
    member.map_or(u64::MAX, |member| ring.distance(shard, member.node))
}

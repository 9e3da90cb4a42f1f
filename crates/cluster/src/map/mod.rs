//! The cluster map: which shard owns a slot, which nodes there are, and which of them carry which
//! shard.
//!
//! A map says where everything is *to be*. What is, each shard's own log says; whoever reads a map
//! must bear that it is not reached yet. Its versions count up by one, so that two who change it at
//! once notice.

mod change;
mod json;

use flux_types::limits::{CLUSTER_NODES_MAX, SHARDS_MAX};
use flux_types::{NodeId, NodeNumber, ShardId, SlotMap};

pub use self::change::{ChangeError, Sight, Wishes};
pub use self::json::MapError;

use crate::placement::{self, Member, PlanError, ShardPlacement};

/// Most lives of nodes that are remembered as removed; the oldest are forgotten first.
const GONE_MAX: usize = 128;

/// See the module. What is in it holds together: see [`MapProblem`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterMap {
    version: u64,
    replicas: usize,
    /// In order of their numbers.
    members: Vec<Member>,
    slots: SlotMap,
    /// As many as there are shards.
    shards: Vec<ShardPlacement>,
    /// Whether shards are to stay where they are for now.
    is_paused: bool,
    /// The shard that is to give the upper half of its slots to a new one, if one is.
    splitting: Option<ShardId>,
    /// Lives of nodes that were removed, which are not taken in again.
    gone: Vec<NodeId>,
}

/// What a map must not be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapProblem {
    /// Nodes or replicas that nothing could be placed with.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Too many nodes.
    #[error("{0} nodes: at most {CLUSTER_NODES_MAX} fit into a cluster")]
    TooManyNodes(usize),
    /// More removed nodes than are remembered.
    #[error("{0} nodes are gone: at most {GONE_MAX} are remembered")]
    TooManyGone(usize),
    /// Placements for other shards than there are.
    #[error("{given} shards are placed, but {owners} own slots")]
    ShardCount {
        /// Placements.
        given: usize,
        /// Shards with slots.
        owners: u32,
    },
    /// A shard has another number of replicas.
    #[error("shard {shard} is on {given} nodes instead of {replicas}")]
    ReplicaCount {
        /// Which.
        shard: ShardId,
        /// On how many nodes it is.
        given: usize,
        /// On how many it has to be.
        replicas: usize,
    },
    /// A shard is on one node twice, or its nodes are not in order.
    #[error("shard {0}: its nodes must be distinct and in ascending order")]
    Order(ShardId),
    /// A shard is on a node that is not in the map.
    #[error("shard {shard} is on node {node}, which the map does not know")]
    UnknownNode {
        /// Which shard.
        shard: ShardId,
        /// Which node.
        node: NodeNumber,
    },
    /// A shard is to be split that cannot be.
    #[error(
        "shard {0} cannot be split: there is none, or it has one slot, or there are {SHARDS_MAX} shards"
    )]
    Split(ShardId),
    /// No leader, or one that does not carry the shard.
    #[error("shard {0}: its leader must be one of its nodes")]
    Leader(ShardId),
}

impl ClusterMap {
    /// The first map of a cluster: as few moves as there can be from where its shards are, in
    /// order; those of which nothing is given are placed from scratch.
    ///
    /// # Errors
    /// See [`MapProblem`].
    pub fn found(
        members: Vec<Member>,
        replicas: usize,
        slots: SlotMap,
        mut present: Vec<ShardPlacement>,
    ) -> Result<Self, MapProblem> {
        present.resize(slots.shard_count() as usize, ShardPlacement::default());
        let shards = placement::plan(&members, replicas, &present)?;
        Self::new(1, members, replicas, slots, shards)
    }

    /// A map of these parts.
    ///
    /// # Errors
    /// See [`MapProblem`].
    pub fn new(
        version: u64,
        mut members: Vec<Member>,
        replicas: usize,
        slots: SlotMap,
        shards: Vec<ShardPlacement>,
    ) -> Result<Self, MapProblem> {
        placement::check_replicas(replicas)?;
        placement::check_members(&members)?;
        if members.len() > CLUSTER_NODES_MAX {
            return Err(MapProblem::TooManyNodes(members.len()));
        }
        if shards.len() != slots.shard_count() as usize {
            return Err(MapProblem::ShardCount {
                given: shards.len(),
                owners: slots.shard_count(),
            });
        }
        members.sort_by_key(|member| member.node);
        let map = Self {
            version,
            replicas,
            members,
            slots,
            shards,
            is_paused: false,
            splitting: None,
            gone: Vec::new(),
        };
        for (shard, placement) in (0..).map(ShardId::new).zip(&map.shards) {
            map.check(shard, placement)?;
        }
        Ok(map)
    }

    fn check(&self, shard: ShardId, placement: &ShardPlacement) -> Result<(), MapProblem> {
        let nodes = &placement.replicas;
        if nodes.len() != self.replicas {
            return Err(MapProblem::ReplicaCount {
                shard,
                given: nodes.len(),
                replicas: self.replicas,
            });
        }
        if !nodes.is_sorted_by(|a, b| a < b) {
            return Err(MapProblem::Order(shard));
        }
        if let Some(node) = nodes.iter().find(|node| self.member(**node).is_none()) {
            return Err(MapProblem::UnknownNode { shard, node: *node });
        }
        if placement
            .leader
            .is_none_or(|leader| !nodes.contains(&leader))
        {
            return Err(MapProblem::Leader(shard));
        }
        Ok(())
    }

    /// Counts up by one with every change.
    #[must_use]
    pub const fn version(&self) -> u64 {
        self.version
    }

    /// On how many nodes each shard is.
    #[must_use]
    pub const fn replicas(&self) -> usize {
        self.replicas
    }

    /// The nodes, in order of their numbers.
    #[must_use]
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// A node.
    #[must_use]
    pub fn member(&self, node: NodeNumber) -> Option<&Member> {
        let found = self
            .members
            .binary_search_by_key(&node, |member| member.node);
        self.members.get(found.ok()?)
    }

    /// Who owns which slot.
    #[must_use]
    pub const fn slots(&self) -> &SlotMap {
        &self.slots
    }

    /// Whether shards are to stay where they are for now.
    #[must_use]
    pub const fn is_paused(&self) -> bool {
        self.is_paused
    }

    /// The shard that is to give the upper half of its slots to a new one, and whose every slot is
    /// afterward.
    #[must_use]
    pub fn splitting(&self) -> Option<(ShardId, SlotMap)> {
        let shard = self.splitting?;
        Some((shard, self.slots.divided(shard)?))
    }

    /// Whether this life of a node was removed from the cluster.
    #[must_use]
    pub fn is_gone(&self, node: NodeId) -> bool {
        self.gone.contains(&node)
    }

    /// Where each shard is to be, in order.
    #[must_use]
    pub fn shards(&self) -> &[ShardPlacement] {
        &self.shards
    }

    /// Where a shard is to be.
    #[must_use]
    pub fn shard(&self, shard: ShardId) -> Option<&ShardPlacement> {
        self.shards.get(shard.get() as usize)
    }
}

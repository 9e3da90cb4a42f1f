//! Who leads, who votes and where everybody is, as far as this node knows.
//!
//! A picture, replaced whole whenever something in it changes, so that a reader pays one
//! reference. It may be a moment old: what it is used for (which node to ask, what to tell a
//! client) must bear that a leader has moved meanwhile. Nothing is decided by it: a shard's own
//! log is the authority on its members.

use std::sync::Arc;
use std::time::Duration;

use flux_raft::{Members, Shard};
use flux_types::{NodeId, ShardId, Term};
use tokio::sync::watch;

/// How often the picture is drawn anew.
const REFRESH: Duration = Duration::from_millis(50);

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// The node that tells.
    pub own: NodeId,
    /// Every shard, in order.
    pub shards: Vec<ShardPlace>,
    /// Every node that is known, this one included, in order of their ids.
    pub nodes: Vec<NodePlace>,
}

/// One shard and its replicas.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardPlace {
    /// Which.
    pub shard: ShardId,
    /// The term in which `leader` leads.
    pub term: Term,
    /// Who leads; none while that is not known.
    pub leader: Option<NodeId>,
    /// Who votes.
    pub voters: Vec<NodeId>,
    /// Who follows without a vote.
    pub learners: Vec<NodeId>,
}

/// One node and where it can be reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodePlace {
    /// Which.
    pub node: NodeId,
    /// The host under which others reach it.
    pub host: String,
    /// Port of RESP and FLUX.
    pub resp: u16,
    /// Port of gRPC.
    pub grpc: u16,
    /// Port of the admin pages; 0 if not known.
    pub admin: u16,
    /// Port for other nodes; 0 if it has none.
    pub peer: u16,
    /// Whether it has been heard of in the last moments; always true of this node.
    pub is_reachable: bool,
}

impl Topology {
    /// A shard's place.
    #[must_use]
    pub fn shard(&self, shard: ShardId) -> Option<&ShardPlace> {
        self.shards.get(shard.get() as usize)
    }

    /// A node's place.
    #[must_use]
    pub fn node(&self, node: NodeId) -> Option<&NodePlace> {
        self.nodes.iter().find(|place| place.node == node)
    }

    /// Where the leader of a shard is, if both are known.
    #[must_use]
    pub fn leader_of(&self, shard: ShardId) -> Option<&NodePlace> {
        self.node(self.shard(shard)?.leader?)
    }
}

/// The picture as it is now, and as it changes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct TopologyHandle {
    current: Arc<watch::Sender<Arc<Topology>>>,
}

impl TopologyHandle {
    pub(crate) fn new(topology: Topology) -> Self {
        Self {
            current: Arc::new(watch::Sender::new(Arc::new(topology))),
        }
    }

    /// What is known now.
    #[must_use]
    pub fn current(&self) -> Arc<Topology> {
        Arc::clone(&self.current.borrow())
    }

    /// Tells of every change from now on.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Arc<Topology>> {
        self.current.subscribe()
    }

    /// Waits until it shows a leader of every shard. It is drawn for as long as the node runs, so
    /// that this ends once there are leaders.
    pub(crate) async fn wait_whole(&self) {
        let mut pictures = self.changes();
        let is_whole =
            |picture: &Arc<Topology>| picture.shards.iter().all(|shard| shard.leader.is_some());
        // It fails only without a sender, which is here.
        drop(pictures.wait_for(is_whole).await);
    }

    /// Replaces the picture if it has changed.
    pub(crate) fn publish(&self, topology: Topology) {
        self.current.send_if_modified(|current| {
            let is_new = **current != topology;
            if is_new {
                *current = Arc::new(topology);
            }
            is_new
        });
    }
}

/// The places of a node's shards, as its own replicas see them.
pub(crate) fn of_shards(shards: &[Shard]) -> Vec<ShardPlace> {
    let place = |shard: &Shard| {
        let Members {
            term,
            leader,
            voters,
            learners,
            ..
        } = shard.members();
        ShardPlace {
            shard: shard.id(),
            term,
            leader,
            voters,
            learners,
        }
    };
    shards.iter().map(place).collect()
}

/// Draws the picture again and again, for as long as the runtime lives.
///
/// # Cancellation
/// Safe to drop.
pub(crate) async fn keep(handle: TopologyHandle, draw: impl Fn() -> Topology) {
    loop {
        handle.publish(draw());
        tokio::time::sleep(REFRESH).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_told_once() {
        let handle = TopologyHandle::new(Topology::default());
        let mut changes = handle.changes();
        handle.publish(Topology::default());
        assert!(!changes.has_changed().expect("it lives"));
        let moved = Topology {
            own: NodeId::new(1),
            ..Topology::default()
        };
        handle.publish(moved.clone());
        assert!(changes.has_changed().expect("it lives"));
        assert_eq!(**changes.borrow_and_update(), moved);
        assert_eq!(*handle.current(), moved);
    }
}

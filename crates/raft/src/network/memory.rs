//! Replicas in one process: a message is a function call.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use flux_log::Vote;
use flux_types::{NodeId, ShardId};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;

use super::{
    AppendReply, AppendRequest, Network, Peer, PeerError, PeerHandler, SnapshotTransfer,
    TransferReply, TransferRequest, VoteReply, VoteRequest,
};

/// Carries messages between the nodes of one process. Clones share the same nodes.
#[derive(Clone, Debug, Default)]
pub struct MemoryNetwork {
    nodes: Arc<Mutex<Nodes>>,
}

#[derive(Debug, Default)]
struct Nodes {
    handlers: BTreeMap<(ShardId, NodeId), PeerHandler>,
    cut: BTreeSet<(NodeId, NodeId)>,
    lost: BTreeMap<NodeId, u64>,
}

impl MemoryNetwork {
    /// The network as one node uses it, so that links can be cut by who sends.
    #[must_use]
    pub fn of(&self, node: NodeId) -> Arc<dyn Network> {
        Arc::new(NodeNetwork {
            node,
            nodes: Arc::clone(&self.nodes),
        })
    }

    /// Lets a replica be reached.
    pub fn attach(&self, shard: ShardId, node: NodeId, handler: PeerHandler) {
        self.nodes.lock().handlers.insert((shard, node), handler);
    }

    /// Makes a replica unreachable.
    pub fn detach(&self, shard: ShardId, node: NodeId) {
        self.nodes.lock().handlers.remove(&(shard, node));
    }

    /// Loses every message from `source` to `target` until [`MemoryNetwork::heal`].
    pub fn cut(&self, source: NodeId, target: NodeId) {
        self.nodes.lock().cut.insert((source, target));
    }

    /// How many messages of a node were lost on cut links.
    #[must_use]
    pub fn lost_from(&self, source: NodeId) -> u64 {
        self.nodes.lock().lost.get(&source).copied().unwrap_or(0)
    }

    /// Mends all links.
    pub fn heal(&self) {
        self.nodes.lock().cut.clear();
    }
}

#[derive(Debug)]
struct NodeNetwork {
    node: NodeId,
    nodes: Arc<Mutex<Nodes>>,
}

impl Network for NodeNetwork {
    fn peer(&self, shard: ShardId, target: NodeId) -> Box<dyn Peer> {
        Box::new(MemoryPeer {
            source: self.node,
            shard,
            target,
            nodes: Arc::clone(&self.nodes),
        })
    }
}

struct MemoryPeer {
    source: NodeId,
    shard: ShardId,
    target: NodeId,
    nodes: Arc<Mutex<Nodes>>,
}

impl fmt::Debug for MemoryPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryPeer")
            .field("source", &self.source)
            .field("target", &self.target)
            .finish_non_exhaustive()
    }
}

impl MemoryPeer {
    fn handler(&self) -> Result<PeerHandler, PeerError> {
        let mut nodes = self.nodes.lock();
        let unreachable = || PeerError::Unreachable(format!("node {} is away", self.target));
        if nodes.cut.contains(&(self.source, self.target)) {
            *nodes.lost.entry(self.source).or_default() += 1;
            return Err(unreachable());
        }
        nodes
            .handlers
            .get(&(self.shard, self.target))
            .cloned()
            .ok_or_else(unreachable)
    }

    /// The way back may be cut while the way there is not.
    fn check_way_back(&self) -> Result<(), PeerError> {
        if self.nodes.lock().cut.contains(&(self.target, self.source)) {
            return Err(PeerError::Broken("the answer got lost".to_owned()));
        }
        Ok(())
    }
}

impl Peer for MemoryPeer {
    fn append(&self, request: AppendRequest) -> BoxFuture<'_, Result<AppendReply, PeerError>> {
        async move {
            let reply = self.handler()?.append(request).await;
            self.check_way_back()?;
            reply
        }
        .boxed()
    }

    fn vote(&self, request: VoteRequest) -> BoxFuture<'_, Result<VoteReply, PeerError>> {
        async move {
            let reply = self.handler()?.vote(request).await;
            self.check_way_back()?;
            reply
        }
        .boxed()
    }

    fn pre_vote(&self, request: VoteRequest) -> BoxFuture<'_, Result<VoteReply, PeerError>> {
        async move {
            let reply = self.handler()?.pre_vote(request).await;
            self.check_way_back()?;
            reply
        }
        .boxed()
    }

    fn snapshot(&self, snapshot: SnapshotTransfer) -> BoxFuture<'_, Result<Vote, PeerError>> {
        async move {
            let reply = self.handler()?.snapshot(snapshot).await;
            self.check_way_back()?;
            reply
        }
        .boxed()
    }

    fn transfer(
        &self,
        request: TransferRequest,
    ) -> BoxFuture<'_, Result<TransferReply, PeerError>> {
        async move {
            let reply = self.handler()?.transfer(request).await;
            self.check_way_back()?;
            reply
        }
        .boxed()
    }
}

//! A node without peers.

use flux_log::Vote;
use flux_types::{NodeId, ShardId};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::{
    AppendReply, AppendRequest, Network, Peer, PeerError, SnapshotTransfer, TransferReply,
    TransferRequest, VoteReply, VoteRequest,
};

/// Reaches nobody: for a node that is alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoNetwork;

impl Network for NoNetwork {
    fn peer(&self, _shard: ShardId, _target: NodeId) -> Box<dyn Peer> {
        Box::new(NoPeer)
    }
}

#[derive(Debug)]
struct NoPeer;

fn unreachable<'a, T: Send + 'a>() -> BoxFuture<'a, Result<T, PeerError>> {
    async {
        Err(PeerError::Unreachable(
            "this node has no network".to_owned(),
        ))
    }
    .boxed()
}

impl Peer for NoPeer {
    fn append(&self, _request: AppendRequest) -> BoxFuture<'_, Result<AppendReply, PeerError>> {
        unreachable()
    }

    fn vote(&self, _request: VoteRequest) -> BoxFuture<'_, Result<VoteReply, PeerError>> {
        unreachable()
    }

    fn pre_vote(&self, _request: VoteRequest) -> BoxFuture<'_, Result<VoteReply, PeerError>> {
        unreachable()
    }

    fn snapshot(&self, _snapshot: SnapshotTransfer) -> BoxFuture<'_, Result<Vote, PeerError>> {
        unreachable()
    }

    fn transfer(
        &self,
        _request: TransferRequest,
    ) -> BoxFuture<'_, Result<TransferReply, PeerError>> {
        unreachable()
    }
}

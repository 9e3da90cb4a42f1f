//! openraft's network over ours: requests out, answers back, errors that say what to do.
//!
//! Appends go one at a time per replica (stop and wait): pipelined acknowledgements would make
//! openraft believe that a quorum answered later than it did, and the lease gate stands on that
//! moment. An append with entries has a deadline of its own that grows with its bytes; heartbeats
//! and votes have openraft's.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use flux_types::{NodeId, ShardId};
use openraft::errors::{
    NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable,
};
use openraft::impls::EmptyNode;
use openraft::network::{RPCOption, RPCTypes, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderError,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest as RaftVoteRequest, VoteResponse,
};

use super::{
    AppendReply, AppendRequest, Network, Peer, PeerError, TransferReply, TransferRequest,
    VoteReply, VoteRequest,
};
use crate::codec::{from_raft_entry, from_raft_id, from_raft_vote, to_raft_id, to_raft_vote};
use crate::config::Timings;
use crate::runtime::timeout;
use crate::snapshot::{self, SnapshotData};
use crate::type_config::{RaftVote, TypeConfig};

type RaftSnapshot = openraft::alias::SnapshotOf<TypeConfig, SnapshotData>;

/// Makes connections for openraft.
#[derive(Clone, Debug)]
pub(crate) struct Connector {
    pub(crate) shard: ShardId,
    pub(crate) node: NodeId,
    pub(crate) network: Arc<dyn Network>,
    pub(crate) timings: Timings,
}

impl RaftNetworkFactory<TypeConfig> for Connector {
    type Network = Connection;

    async fn new_client(&mut self, target: u64, _node: &EmptyNode) -> Connection {
        let target = NodeId::new(target);
        Connection {
            node: self.node,
            target,
            peer: self.network.peer(self.shard, target),
            timings: self.timings,
        }
    }
}

/// One replica as openraft reaches it.
#[derive(Debug)]
pub(crate) struct Connection {
    node: NodeId,
    target: NodeId,
    peer: Box<dyn Peer>,
    timings: Timings,
}

impl Connection {
    /// Waits for a call at most this long, and tells openraft what went wrong.
    async fn within<T>(
        &self,
        limit: Duration,
        action: RPCTypes,
        call: impl Future<Output = Result<T, PeerError>>,
    ) -> Result<T, RPCError<TypeConfig>> {
        let late = || Timeout {
            action,
            id: self.node.get(),
            target: self.target.get(),
            timeout: limit,
        };
        match timeout(limit, call).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(PeerError::Unreachable(reason))) => {
                Err(RPCError::Unreachable(Unreachable::from_string(reason)))
            }
            Ok(Err(PeerError::Broken(reason))) => {
                Err(RPCError::Network(NetworkError::from_string(reason)))
            }
            Err(_) => Err(RPCError::Timeout(late())),
        }
    }
}

fn vote_request(request: &RaftVoteRequest<TypeConfig>) -> VoteRequest {
    VoteRequest {
        vote: from_raft_vote(&request.vote),
        last: request.last_log_id.as_ref().map(from_raft_id),
        is_transfer: request.leadership_transfer,
    }
}

fn vote_response(reply: &VoteReply) -> VoteResponse<TypeConfig> {
    VoteResponse::new(
        to_raft_vote(reply.vote),
        reply.last.map(to_raft_id),
        reply.is_granted,
    )
}

impl RaftNetworkV2<TypeConfig> for Connection {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let request = AppendRequest {
            vote: from_raft_vote(&rpc.vote),
            previous: rpc.prev_log_id.as_ref().map(from_raft_id),
            entries: rpc
                .entries
                .into_iter()
                // A blank entry's time means nothing; zero says so.
                .map(|entry| from_raft_entry(entry, flux_types::UnixMillis::ZERO))
                .collect(),
            committed: rpc.leader_commit.as_ref().map(from_raft_id),
        };
        let limit = if request.entries.is_empty() {
            option.soft_ttl()
        } else {
            self.timings.append_deadline(request.payload_bytes())
        };
        let call = self.peer.append(request);
        match self.within(limit, RPCTypes::AppendEntries, call).await? {
            AppendReply::Success => Ok(AppendEntriesResponse::Success),
            AppendReply::Partial(last) => {
                Ok(AppendEntriesResponse::PartialSuccess(last.map(to_raft_id)))
            }
            AppendReply::Conflict => Ok(AppendEntriesResponse::Conflict),
            AppendReply::HigherVote(vote) => {
                Ok(AppendEntriesResponse::HigherVote(to_raft_vote(vote)))
            }
            AppendReply::NoSpace => Err(RPCError::Network(NetworkError::from_string(
                "the replica's disk is full",
            ))),
        }
    }

    async fn vote(
        &mut self,
        rpc: RaftVoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let call = self.peer.vote(vote_request(&rpc));
        let reply = self.within(option.soft_ttl(), RPCTypes::Vote, call).await?;
        Ok(vote_response(&reply))
    }

    async fn pre_vote(
        &mut self,
        rpc: RaftVoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        // Said explicitly: openraft's default grants without asking anyone.
        let call = self.peer.pre_vote(vote_request(&rpc));
        let reply = self.within(option.soft_ttl(), RPCTypes::Vote, call).await?;
        Ok(vote_response(&reply))
    }

    async fn full_snapshot(
        &mut self,
        vote: RaftVote,
        snapshot: RaftSnapshot,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let transfer = snapshot::transfer(from_raft_vote(&vote), &snapshot.snapshot)
            .map_err(|error| StreamingError::Network(NetworkError::new(&error)))?;
        let limit = self.timings.append_deadline(transfer.bytes);
        let call = self.peer.snapshot(transfer.snapshot);
        tokio::select! {
            biased;
            closed = cancel => Err(StreamingError::Closed(closed)),
            reply = self.within(limit, RPCTypes::InstallSnapshot, call) => {
                Ok(SnapshotResponse::new(to_raft_vote(reply?)))
            }
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let (from, last) = (*request.from_leader(), request.last_log_id().copied());
        let call = self.peer.transfer(TransferRequest {
            from: from_raft_vote(&from),
            to: NodeId::new(*request.to_node_id()),
            last: last.as_ref().map(from_raft_id),
        });
        let limit = option.soft_ttl();
        let reply = self.within(limit, RPCTypes::TransferLeader, call).await?;
        Ok(match reply {
            TransferReply::Accepted => Ok(()),
            TransferReply::VoteChanged(actual) => Err(TransferLeaderError::VoteChanged {
                expected: from,
                actual: to_raft_vote(actual),
            }),
            TransferReply::LogNotFlushed(actual) => Err(TransferLeaderError::LogNotFlushed {
                expected: last,
                actual: actual.map(to_raft_id),
            }),
        })
    }
}

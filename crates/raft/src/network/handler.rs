//! The receiving side: what a node does with another replica's messages.

use std::sync::Arc;

use flux_env::Instant;
use flux_log::{Space, Vote};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderError, TransferLeaderRequest,
    VoteRequest as RaftVoteRequest, VoteResponse,
};

use super::{
    AppendReply, AppendRequest, PeerError, SnapshotTransfer, TransferReply, TransferRequest,
    VoteReply, VoteRequest,
};
use crate::codec::{from_raft_id, from_raft_vote, to_raft_entry, to_raft_id, to_raft_vote};
use crate::replica::Replica;
use crate::runtime::blocking;
use crate::snapshot;
use crate::type_config::TypeConfig;

/// Answers other replicas of one shard. Cheap to clone; calls may come from any runtime.
#[derive(Clone, Debug)]
pub struct PeerHandler {
    replica: Arc<Replica>,
    /// Until then no vote is granted: before its restart this voter may have granted a lease that
    /// somebody still trusts (rule 8).
    refuse_votes_until: Instant,
}

fn broken(error: impl ToString) -> PeerError {
    PeerError::Broken(error.to_string())
}

impl PeerHandler {
    pub(crate) fn new(replica: Arc<Replica>, refuse_votes_until: Instant) -> Self {
        Self {
            replica,
            refuse_votes_until,
        }
    }

    /// Appends entries of the leader, or hears that it lives.
    ///
    /// # Errors
    /// If the replica has stopped or the entries make no sense.
    pub async fn append(&self, request: AppendRequest) -> Result<AppendReply, PeerError> {
        // A storage error inside openraft would be the end of this replica, so what there is no
        // room for never gets there (rule 11). Heartbeats pass.
        if !request.entries.is_empty() && matches!(self.replica.node_log.space(), Space::Full) {
            return Ok(AppendReply::NoSpace);
        }
        let entries: Result<Vec<_>, _> = request.entries.into_iter().map(to_raft_entry).collect();
        let rpc = AppendEntriesRequest {
            vote: to_raft_vote(request.vote),
            prev_log_id: request.previous.map(to_raft_id),
            entries: entries.map_err(broken)?,
            leader_commit: request.committed.map(to_raft_id),
        };
        let response = self
            .replica
            .raft
            .append_entries(rpc)
            .await
            .map_err(broken)?;
        Ok(match response {
            AppendEntriesResponse::Success => AppendReply::Success,
            AppendEntriesResponse::PartialSuccess(last) => {
                AppendReply::Partial(last.as_ref().map(from_raft_id))
            }
            AppendEntriesResponse::Conflict => AppendReply::Conflict,
            AppendEntriesResponse::HigherVote(vote) => {
                AppendReply::HigherVote(from_raft_vote(&vote))
            }
        })
    }

    /// Votes, or refuses to.
    ///
    /// # Errors
    /// If the replica has stopped, or its last lease may still be trusted by somebody.
    pub async fn vote(&self, request: VoteRequest) -> Result<VoteReply, PeerError> {
        self.check_may_vote(&request)?;
        let rpc = vote_rpc(&request);
        let response = self.replica.raft.vote(rpc).await.map_err(broken)?;
        Ok(vote_reply(&response))
    }

    /// Says whether it would vote.
    ///
    /// # Errors
    /// As [`PeerHandler::vote`].
    pub async fn pre_vote(&self, request: VoteRequest) -> Result<VoteReply, PeerError> {
        self.check_may_vote(&request)?;
        let rpc = vote_rpc(&request);
        let response = self.replica.raft.pre_vote(rpc).await.map_err(broken)?;
        Ok(vote_reply(&response))
    }

    fn check_may_vote(&self, request: &VoteRequest) -> Result<(), PeerError> {
        let now = self.replica.clock.now();
        if request.is_transfer || self.refuse_votes_until <= now {
            Ok(())
        } else {
            Err(broken("this voter has just started and gives no votes yet"))
        }
    }

    /// Receives a snapshot and puts it in the place of the store.
    ///
    /// # Errors
    /// If the replica has stopped, or the snapshot cannot be read or kept.
    pub async fn snapshot(&self, transfer: SnapshotTransfer) -> Result<Vote, PeerError> {
        let vote = to_raft_vote(transfer.vote);
        let replica = Arc::clone(&self.replica);
        let receive = move || snapshot::receive(&replica.snapshots, &replica.log, transfer);
        let received = blocking(receive)
            .await
            .map_err(broken)?
            .map_err(broken)?
            .noted()
            .await
            .map_err(broken)?;
        let response = self
            .replica
            .raft
            .install_full_snapshot(vote, received)
            .await
            .map_err(broken)?;
        Ok(from_raft_vote(&response.vote))
    }

    /// Takes over leadership, or says why not.
    ///
    /// # Errors
    /// If the replica has stopped.
    pub async fn transfer(&self, request: TransferRequest) -> Result<TransferReply, PeerError> {
        let rpc: TransferLeaderRequest<TypeConfig> = TransferLeaderRequest::new(
            to_raft_vote(request.from),
            request.to.get(),
            request.last.map(to_raft_id),
        );
        let response = self.replica.raft.handle_transfer_leader(rpc).await;
        Ok(match response.map_err(broken)? {
            Ok(()) => TransferReply::Accepted,
            Err(TransferLeaderError::VoteChanged { actual, .. }) => {
                TransferReply::VoteChanged(from_raft_vote(&actual))
            }
            Err(TransferLeaderError::LogNotFlushed { actual, .. }) => {
                TransferReply::LogNotFlushed(actual.as_ref().map(from_raft_id))
            }
        })
    }
}

fn vote_rpc(request: &VoteRequest) -> RaftVoteRequest<TypeConfig> {
    let mut rpc = RaftVoteRequest::new(to_raft_vote(request.vote), request.last.map(to_raft_id));
    rpc.leadership_transfer = request.is_transfer;
    rpc
}

fn vote_reply(response: &VoteResponse<TypeConfig>) -> VoteReply {
    VoteReply {
        vote: from_raft_vote(&response.vote),
        is_granted: response.vote_granted,
        last: response.last_log_id.as_ref().map(from_raft_id),
    }
}

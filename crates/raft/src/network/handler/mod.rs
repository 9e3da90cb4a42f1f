//! The receiving side: what a node does with another replica's messages.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use flux_env::Instant;
use flux_log::{LogEntry, LogError, LogId, Space, Vote};
use flux_store::batch::{BatchView, FactRef, is_batch};
use flux_types::bug::{self, Bug};
use flux_types::hold::{self, MoveStep};
use openraft::async_runtime::WatchReceiver;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderError, TransferLeaderRequest,
    VoteRequest as RaftVoteRequest, VoteResponse,
};

use super::{
    AppendReply, AppendRequest, PeerError, SnapshotTransfer, TransferReply, TransferRequest,
    VoteReply, VoteRequest,
};
use crate::codec::{from_raft_id, from_raft_vote, to_raft_entry, to_raft_id, to_raft_vote};
use crate::proposer::{SPACE_CHECK, SPACE_CHECKS_MAX};
use crate::replica::Replica;
use crate::runtime::{blocking, sleep};
use crate::snapshot;
use crate::type_config::TypeConfig;

/// Answers other replicas of one shard. Cheap to clone; calls may come from any runtime.
#[derive(Clone, Debug)]
pub struct PeerHandler {
    replica: Arc<Replica>,
}

fn broken(error: impl ToString) -> PeerError {
    PeerError::Broken(error.to_string())
}

impl PeerHandler {
    pub(crate) fn new(replica: Arc<Replica>) -> Self {
        Self { replica }
    }

    /// Refuses everything while the replica forgets what it holds.
    fn check_stays(&self) -> Result<(), PeerError> {
        if self.replica.is_retiring.load(Ordering::Acquire) {
            return Err(broken("this replica is being let go"));
        }
        Ok(())
    }

    /// Refuses leaders that cannot know that this replica was let go: what they believe to be here
    /// is not here any more.
    fn check_knows(&self, leader: Vote) -> Result<(), PeerError> {
        if self.replica.gone_term.load(Ordering::Acquire) <= leader.term.get() {
            return Ok(());
        }
        let vote = self.replica.log.state().vote.unwrap_or_default();
        if leader.term < vote.term {
            // It is told so, and steps down.
            return Ok(());
        }
        let message = "this replica was let go by a leader of a later term";
        Err(broken(message))
    }

    /// Refuses to give a replica that has nothing its first data, where a test says so.
    fn check_may_begin(&self) -> Result<(), PeerError> {
        if hold::is_held(MoveStep::CaughtUp) && self.replica.log.state().last.is_none() {
            return Err(broken("a move is held"));
        }
        Ok(())
    }

    /// Appends entries of the leader, or hears that it lives.
    ///
    /// # Errors
    /// If the replica has stopped or the entries make no sense.
    pub async fn append(&self, mut request: AppendRequest) -> Result<AppendReply, PeerError> {
        // A storage error inside openraft would be the end of this replica, so what there is no
        // room for never gets there (rule 11). Heartbeats pass.
        let taken = self.make_room(&request.entries).await?;
        if taken == 0 && !request.entries.is_empty() {
            return Ok(AppendReply::NoSpace);
        }
        // After the wait for room, and with the engine that runs now.
        self.check_stays()?;
        self.check_knows(request.vote)?;
        if !request.entries.is_empty() {
            self.check_may_begin()?;
        }
        let engine = self.replica.engine();
        let (vote, said) = (request.vote, request.committed);
        let committed = self.committed_here(said, request.previous);
        let is_whole = taken == request.entries.len();
        request.entries.truncate(taken);
        let last = request.entries.last().map(|entry| entry.id);
        let entries: Result<Vec<_>, _> = request.entries.into_iter().map(to_raft_entry).collect();
        let rpc = AppendEntriesRequest {
            vote: to_raft_vote(request.vote),
            prev_log_id: request.previous.map(to_raft_id),
            entries: entries.map_err(broken)?,
            leader_commit: committed.map(to_raft_id),
        };
        let response = engine.raft.append_entries(rpc).await.map_err(broken)?;
        if matches!(response, AppendEntriesResponse::Success) {
            // Only now: what was said of entries that are refused must not be remembered.
            let here = self.committed_here(said, last);
            if committed < here {
                let rpc = AppendEntriesRequest {
                    vote: to_raft_vote(vote),
                    prev_log_id: last.map(to_raft_id),
                    entries: Vec::new(),
                    leader_commit: here.map(to_raft_id),
                };
                // Whatever comes of it, the entries are here.
                engine.raft.append_entries(rpc).await.map_err(broken)?;
            }
        }
        Ok(match response {
            AppendEntriesResponse::Success if is_whole => AppendReply::Success,
            AppendEntriesResponse::Success => AppendReply::Partial(last),
            AppendEntriesResponse::PartialSuccess(last) => {
                AppendReply::Partial(last.as_ref().map(from_raft_id))
            }
            AppendEntriesResponse::Conflict => AppendReply::Conflict,
            AppendEntriesResponse::HigherVote(vote) => {
                AppendReply::HigherVote(from_raft_vote(&vote))
            }
        })
    }

    /// What the leader says is committed, as far as this replica has it: up to an entry of the leader's
    /// log, and nothing if that is not here. openraft remembers the leader's word even of a message that
    /// it refuses, and passes it on if it leads itself later. Where acknowledged entries were lost, and
    /// the loss was accepted, it would come to apply an index that others have filled since, or nobody.
    fn committed_here(&self, said: Option<LogId>, upto: Option<LogId>) -> Option<LogId> {
        let (said, upto) = (said?, upto?);
        let log = &self.replica.log;
        // What is purged was committed anyway.
        let is_here = |id: &LogId| log.id_at(id.index) == Some(*id);
        let known = if said.index <= upto.index { said } else { upto };
        // Terms grow along a log: before an entry of an earlier term there is none of a later one.
        let fits = known <= said && is_here(&upto) && is_here(&known);
        fits.then_some(known)
    }

    /// Makes room for entries in the log; answers for how many of them, from the first on. On a
    /// full disk there is room only for what the group needs and what removes data.
    async fn make_room(&self, entries: &[LogEntry]) -> Result<usize, PeerError> {
        for _ in 0..SPACE_CHECKS_MAX {
            if entries.is_empty() {
                break;
            }
            let is_full = matches!(self.replica.node_log.space(), Space::Full);
            let taken = if is_full {
                let essential = entries.iter().take_while(|entry| is_essential(entry));
                entries.get(..essential.count()).unwrap_or_default()
            } else {
                entries
            };
            let log = &self.replica.log;
            let mut made = log.make_room_for(taken, is_full);
            if matches!(made, Err(LogError::NoSpace)) && !is_full {
                // Right after a segment was filled the next one is only being prepared: the reserve
                // takes its place, and is prepared again.
                made = log.make_room_for(taken, true);
            }
            match made {
                Ok(()) => return Ok(taken.len()),
                Err(LogError::NoSpace) if !is_full => sleep(SPACE_CHECK).await,
                Err(LogError::NoSpace) => break,
                Err(error) => return Err(broken(error)),
            }
        }
        Ok(0)
    }

    /// Votes, or refuses to.
    ///
    /// # Errors
    /// If the replica has stopped, or its last lease may still be trusted by somebody.
    pub async fn vote(&self, request: VoteRequest) -> Result<VoteReply, PeerError> {
        self.check_may_vote(&request)?;
        if let Some(refusal) = self.refusal(&request) {
            return Ok(refusal);
        }
        let rpc = vote_rpc(&request);
        let engine = self.replica.engine();
        let response = engine.raft.vote(rpc).await.map_err(broken)?;
        Ok(vote_reply(&response))
    }

    /// Says whether it would vote.
    ///
    /// # Errors
    /// As [`PeerHandler::vote`].
    pub async fn pre_vote(&self, request: VoteRequest) -> Result<VoteReply, PeerError> {
        self.check_may_vote(&request)?;
        if let Some(refusal) = self.refusal(&request) {
            return Ok(refusal);
        }
        let rpc = vote_rpc(&request);
        let engine = self.replica.engine();
        let response = engine.raft.pre_vote(rpc).await.map_err(broken)?;
        Ok(vote_reply(&response))
    }

    fn check_may_vote(&self, request: &VoteRequest) -> Result<(), PeerError> {
        self.check_stays()?;
        let now = self.replica.clock.now();
        let until = self.replica.refuse_votes_until.load(Ordering::Acquire);
        if request.is_transfer || Instant::from_nanos(until) <= now {
            Ok(())
        } else {
            Err(broken("this voter has just started and gives no votes yet"))
        }
    }

    /// The answer to a candidate that lacks what this replica had before it was let go: as if it
    /// were still there. Its log alone would let anybody win.
    fn refusal(&self, request: &VoteRequest) -> Option<VoteReply> {
        let state = self.replica.log.state();
        let last = state.last_ever();
        let lacks = state.is_behind() && request.last < last;
        if !lacks || bug::is_on(Bug::RetiredVotes) {
            return None;
        }
        Some(VoteReply {
            vote: state.vote.unwrap_or_default(),
            is_granted: false,
            last,
        })
    }

    /// Receives a snapshot and puts it in the place of the store. One of a leader that is deposed,
    /// or of what is here already, is not read.
    ///
    /// # Errors
    /// If the replica has stopped, or the snapshot cannot be read or kept, or another one of this
    /// shard begins to arrive meanwhile.
    pub async fn snapshot(&self, transfer: SnapshotTransfer) -> Result<Vote, PeerError> {
        let (vote, start) = (transfer.vote, transfer.info.start);
        self.check_may_begin()?;
        if let Some(answer) = self.answer_unread(vote, start).await? {
            return Ok(answer);
        }
        let replica = Arc::clone(&self.replica);
        let receive = move || snapshot::receive(&replica.snapshots, &replica.log, transfer);
        let incoming = blocking(receive).await.map_err(broken)?.map_err(broken)?;
        let _one_at_a_time = self.replica.snapshots.placing.lock().await;
        // It may have taken minutes.
        if let Some(answer) = self.answer_unread(vote, start).await? {
            return Ok(answer);
        }
        let replica = Arc::clone(&self.replica);
        let place = move || snapshot::place(&replica.snapshots, &replica.log, incoming);
        let placed = blocking(place).await.map_err(broken)?.map_err(broken)?;
        let received = placed.noted().await.map_err(broken)?;
        let engine = self.replica.engine();
        let response = engine
            .raft
            .install_full_snapshot(to_raft_vote(vote), received)
            .await
            .map_err(broken)?;
        Ok(from_raft_vote(&response.vote))
    }

    /// What to answer to a snapshot that need not be read: the vote that has replaced its sender's,
    /// or the sender's if all of it is committed here.
    async fn answer_unread(&self, vote: Vote, start: LogId) -> Result<Option<Vote>, PeerError> {
        // Nobody takes a snapshot of a leader whom he does not follow.
        let heartbeat = AppendRequest {
            vote,
            previous: None,
            entries: Vec::new(),
            committed: None,
        };
        if let AppendReply::HigherVote(higher) = self.append(heartbeat).await? {
            return Ok(Some(higher));
        }
        let metrics = self.replica.engine().raft.metrics();
        let committed = metrics.borrow_watched().local_committed;
        let committed = committed.as_ref().map(from_raft_id).unwrap_or_default();
        if committed.index < start.index {
            return Ok(None);
        }
        if committed.term < start.term {
            return Err(broken(format!(
                "a snapshot of term {} at index {} contradicts term {} at index {}",
                start.term, start.index, committed.term, committed.index
            )));
        }
        Ok(Some(vote))
    }

    /// Takes over leadership, or says why not.
    ///
    /// # Errors
    /// If the replica has stopped.
    pub async fn transfer(&self, request: TransferRequest) -> Result<TransferReply, PeerError> {
        self.check_stays()?;
        self.check_knows(request.from)?;
        let state = self.replica.log.state();
        if state.is_behind() {
            return Ok(TransferReply::LogNotFlushed(state.last));
        }
        let rpc: TransferLeaderRequest<TypeConfig> = TransferLeaderRequest::new(
            to_raft_vote(request.from),
            request.to.get(),
            request.last.map(to_raft_id),
        );
        let engine = self.replica.engine();
        let response = engine.raft.handle_transfer_leader(rpc).await;
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

/// Whether an entry is taken in on a full disk: no-ops, memberships, and what only removes data.
fn is_essential(entry: &LogEntry) -> bool {
    if !is_batch(&entry.payload) {
        return true;
    }
    BatchView::parse(&entry.payload).is_ok_and(|batch| {
        let removes = |fact: FactRef<'_>| match fact {
            FactRef::Delete { .. }
            | FactRef::Clear
            | FactRef::SystemDelete { .. }
            | FactRef::ForgetSessions { .. }
            // What became of a delete that had a request id.
            | FactRef::Request { .. } => true,
            FactRef::Put { .. }
            | FactRef::SetDeadline { .. }
            | FactRef::Patch { .. }
            | FactRef::SystemPut { .. } => false,
        };
        batch.facts().all(|(_, fact)| removes(fact))
    })
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

#[cfg(test)]
mod tests;

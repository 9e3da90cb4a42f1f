//! openraft's network over ours: requests out, answers back, errors that say what to do.
//!
//! Appends go one at a time per replica (stop and wait): pipelined acknowledgements would make
//! openraft believe that a quorum answered later than it did, and the lease gate stands on that
//! moment. An append with entries has a deadline of its own that grows with its bytes; heartbeats
//! and votes have openraft's.
//!
//! Heartbeats and entries go two ways, so that one answer may overtake another. A replica that was let
//! go and added again may forget its log in between, which openraft bears once: told late that what it
//! sent is there, it would believe what was lost to be there again, and told late that it is not, that
//! it is lost once more. So an answer is dropped, as if it had not come, if another that says the
//! contrary has come since its request was sent; of those to entries only that they were taken.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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
use parking_lot::Mutex;

use super::{
    AppendReply, AppendRequest, Network, Peer, PeerError, TransferReply, TransferRequest,
    VoteReply, VoteRequest,
};
use crate::codec::{from_raft_entry, from_raft_id, from_raft_vote, to_raft_id, to_raft_vote};
use crate::config::Timings;
use crate::runtime::timeout;
use crate::snapshot::{self, SnapshotData};
use crate::type_config::{RaftVote, TypeConfig};

/// What each replica has answered. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answers(Arc<Mutex<BTreeMap<NodeId, Arc<Answered>>>>);

/// What one replica has answered, on all connections to it.
#[derive(Debug, Default)]
struct Answered {
    /// How often it has taken entries or a snapshot.
    taken: AtomicU64,
    /// How often its log did not fit.
    conflicts: AtomicU64,
}

impl Answered {
    fn counts(&self) -> [u64; 2] {
        [&self.taken, &self.conflicts].map(|count| count.load(Ordering::Acquire))
    }

    /// Counts an answer to what was sent when there were so many others; false if one that has come since
    /// says the contrary, unless it is that entries did not fit, which openraft tells by itself.
    fn note(&self, reply: &AppendReply, had_entries: bool, [taken, conflicts]: [u64; 2]) -> bool {
        let [taken_now, conflicts_now] = self.counts();
        let (count, is_valid) = match reply {
            AppendReply::Conflict => (&self.conflicts, had_entries || taken == taken_now),
            AppendReply::Success | AppendReply::Partial(_) => {
                (&self.taken, conflicts == conflicts_now)
            }
            AppendReply::HigherVote(_) | AppendReply::NoSpace => return true,
        };
        if is_valid && (had_entries || *reply == AppendReply::Conflict) {
            count.fetch_add(1, Ordering::AcqRel);
        }
        is_valid
    }
}

type RaftSnapshot = openraft::alias::SnapshotOf<TypeConfig, SnapshotData>;

/// Makes connections for openraft.
#[derive(Clone, Debug)]
pub(crate) struct Connector {
    pub(crate) shard: ShardId,
    pub(crate) node: NodeId,
    pub(crate) network: Arc<dyn Network>,
    pub(crate) timings: Timings,
    pub(crate) answers: Answers,
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
            answered: Arc::clone(self.answers.0.lock().entry(target).or_default()),
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
    answered: Arc<Answered>,
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
        let has_entries = !request.entries.is_empty();
        let limit = if has_entries {
            self.timings.append_deadline(request.payload_bytes())
        } else {
            option.soft_ttl()
        };
        let before = self.answered.counts();
        let call = self.peer.append(request);
        let reply = self.within(limit, RPCTypes::AppendEntries, call).await?;
        if !self.answered.note(&reply, has_entries, before) {
            return Err(RPCError::Network(NetworkError::from_string(
                "the answer was overtaken by another",
            )));
        }
        match reply {
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
                let vote = to_raft_vote(reply?);
                self.answered.taken.fetch_add(1, Ordering::AcqRel);
                Ok(SnapshotResponse::new(vote))
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

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use bytes::Bytes;
    use flux_log::{LogEntry, LogId, Vote};
    use flux_types::{LogIndex, Term, UnixMillis};
    use futures_util::FutureExt;
    use futures_util::future::BoxFuture;
    use tokio::sync::oneshot;

    use super::*;
    use crate::codec::to_raft_entry;
    use crate::network::SnapshotTransfer;

    /// A replica that answers each append when it is told to.
    #[derive(Clone, Debug, Default)]
    struct Slow(Arc<Mutex<VecDeque<oneshot::Receiver<AppendReply>>>>);

    impl Slow {
        fn next(&self) -> oneshot::Sender<AppendReply> {
            let (tell, told) = oneshot::channel();
            self.0.lock().push_back(told);
            tell
        }
    }

    impl Network for Slow {
        fn peer(&self, _: ShardId, _: NodeId) -> Box<dyn Peer> {
            Box::new(self.clone())
        }
    }

    fn never<T>() -> BoxFuture<'static, Result<T, PeerError>>
    where
        T: Send + 'static,
    {
        std::future::pending().boxed()
    }

    impl Peer for Slow {
        fn append(&self, _: AppendRequest) -> BoxFuture<'_, Result<AppendReply, PeerError>> {
            let told = self.0.lock().pop_front().expect("an answer is planned");
            async move { Ok(told.await.expect("it is told")) }.boxed()
        }

        fn vote(&self, _: VoteRequest) -> BoxFuture<'_, Result<VoteReply, PeerError>> {
            never()
        }

        fn pre_vote(&self, _: VoteRequest) -> BoxFuture<'_, Result<VoteReply, PeerError>> {
            never()
        }

        fn snapshot(&self, _: SnapshotTransfer) -> BoxFuture<'_, Result<Vote, PeerError>> {
            never()
        }

        fn transfer(&self, _: TransferRequest) -> BoxFuture<'_, Result<TransferReply, PeerError>> {
            never()
        }
    }

    fn append(count: u64) -> AppendEntriesRequest<TypeConfig> {
        let entry = |index| LogEntry {
            id: LogId {
                term: Term::new(1),
                index: LogIndex::new(index),
            },
            timestamp: UnixMillis::ZERO,
            payload: Bytes::new(),
        };
        let entries = (1..=count).map(|index| to_raft_entry(entry(index)).expect("an entry"));
        AppendEntriesRequest {
            vote: RaftVote::new_committed(1, 1),
            prev_log_id: None,
            entries: entries.collect(),
            leader_commit: None,
        }
    }

    /// What becomes of the answer to a heartbeat that is sent first and answered last.
    async fn overtaken(
        first: AppendReply,
        second: AppendReply,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let slow = Slow::default();
        let mut connector = Connector {
            shard: ShardId::new(0),
            node: NodeId::new(1),
            network: Arc::new(slow.clone()),
            timings: Timings::default(),
            answers: Answers::default(),
        };
        let mut beating = connector.new_client(2, &EmptyNode::new()).await;
        let mut appending = connector.new_client(2, &EmptyNode::new()).await;
        let option = || RPCOption::new(Duration::from_secs(60));
        let (late, soon) = (slow.next(), slow.next());
        let heartbeat = beating.append_entries(append(0), option());
        let entries = async {
            assert!(soon.send(second).is_ok());
            let answer = appending.append_entries(append(2), option()).await;
            assert!(answer.is_ok(), "{answer:?}");
            assert!(late.send(first).is_ok());
        };
        // The heartbeat is sent first.
        let (answer, ()) = tokio::join!(biased; heartbeat, entries);
        answer
    }

    #[tokio::test]
    async fn an_answer_that_one_to_something_later_contradicts_is_dropped() {
        use AppendReply::{Conflict, Success};
        for (first, second) in [(Conflict, Success), (Success, Conflict)] {
            let answer = overtaken(first, second).await;
            assert!(matches!(answer, Err(RPCError::Network(_))), "{answer:?}");
        }
        let answer = overtaken(Success, Success).await;
        assert_eq!(answer, Ok(AppendEntriesResponse::Success));
        let answer = overtaken(Conflict, Conflict).await;
        assert_eq!(answer, Ok(AppendEntriesResponse::Conflict));
    }
}

//! One shard's replica on this node: what its tasks share.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use flux_env::{Clock, Instant};
use flux_log::{Log, LogId, ShardLog};
use flux_store::Store;
use flux_types::{Error, ErrorCode, LogIndex, NodeId, ShardId, Term, UnixMillis};
use openraft::alias::WatchReceiverOf;
use openraft::async_runtime::WatchReceiver;
use openraft::metrics::RaftServerMetrics;
use openraft::{Instant as _, ReadPolicy, ServerState};
use parking_lot::RwLock;
use tokio::sync::{Notify, watch};

use crate::codec::{from_raft_id, from_raft_vote};
use crate::config::ShardConfig;
use crate::engine::Engine;
use crate::gate::{Grant, LeaseGate};
use crate::progress::Progress;
use crate::queue::{Forward, Queue};
use crate::runtime::timeout;
use crate::snapshot::Snapshots;
use crate::split::Ownership;
use crate::status::{Counters, Failure, Members, Role, ShardStatus};
use crate::type_config::{StoredMembership, TypeConfig};

pub(crate) type Watched<T> = WatchReceiverOf<TypeConfig, T>;

/// See the module.
pub(crate) struct Replica {
    pub(crate) id: ShardId,
    pub(crate) node: NodeId,
    pub(crate) config: ShardConfig,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) store: Arc<Store>,
    pub(crate) node_log: Log,
    pub(crate) log: ShardLog,
    /// Replaced when the replica has forgotten what it held.
    pub(crate) engine: RwLock<Arc<Engine>>,
    /// While set, nothing is taken from other nodes and nothing is read.
    pub(crate) is_retiring: AtomicBool,
    /// Until then, in nanoseconds, no vote is granted: before its (re)start this voter may have
    /// granted a lease that somebody still trusts (rule 8).
    pub(crate) refuse_votes_until: AtomicU64,
    /// The term of the membership that let this replica go, once: who leads an earlier term does
    /// not know of it.
    pub(crate) gone_term: AtomicU64,
    pub(crate) progress: Arc<Progress>,
    /// By which maps of the slots it may be asked.
    pub(crate) ownership: Arc<Ownership>,
    pub(crate) gate: LeaseGate,
    pub(crate) snapshots: Arc<Snapshots>,
    pub(crate) queue: Queue,
    pub(crate) counters: Arc<Counters>,
    /// How many ask that nothing be proposed for now.
    pub(crate) pauses: AtomicUsize,
    /// Told when a snapshot is wanted.
    pub(crate) snapshot_wanted: Arc<Notify>,
    /// The way of commands to whoever leads; none where nobody else can.
    pub(crate) forward: Option<Arc<dyn Forward>>,
    /// Set once, when this replica cannot go on.
    pub(crate) failure: watch::Sender<Option<Failure>>,
    /// Counts changes of role, term, leader and membership, as far as the watcher has seen them.
    pub(crate) leadership_changes: watch::Sender<u64>,
}

impl fmt::Debug for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replica")
            .field("id", &self.id)
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

/// Whether this replica may evaluate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leadership {
    /// It leads this term and its own no-op of it is applied (rule 1).
    Leads(Term),
    /// Another node leads.
    Follows(NodeId),
    /// Nobody is known to lead, or this replica has only just begun to.
    Unknown,
    /// It can do nothing any more.
    Failed,
}

impl Replica {
    /// The consensus engine that runs now, or ran last.
    pub(crate) fn engine(&self) -> Arc<Engine> {
        Arc::clone(&self.engine.read())
    }

    /// Grants no vote for as long as somebody may trust a lease that this voter has granted.
    /// Answers until when.
    pub(crate) fn refuse_votes(&self) -> Instant {
        let until = self.clock.now() + self.config.timings.vote_refusal();
        self.refuse_votes_until
            .store(until.as_nanos(), Ordering::Release);
        until
    }

    /// Whether the log lacks what this replica had before it was let go: it must not lead.
    pub(crate) fn is_behind(&self) -> bool {
        self.log.state().is_behind()
    }

    /// Whether this replica may evaluate now.
    pub(crate) fn leadership(&self) -> Leadership {
        if self.failure.borrow().is_some() {
            return Leadership::Failed;
        }
        let engine = self.engine();
        let metrics = engine.server_metrics.borrow_watched();
        let vote = from_raft_vote(&metrics.vote);
        let is_leader =
            metrics.state == ServerState::Leader && vote.committed && vote.node == self.node;
        if is_leader {
            if self.progress.applied_term() == vote.term && self.progress.is_whole() {
                return Leadership::Leads(vote.term);
            }
            return Leadership::Unknown;
        }
        match leader_of(&metrics) {
            Some(leader) if leader != self.node => Leadership::Follows(leader),
            Some(_) | None => Leadership::Unknown,
        }
    }

    /// Whether this replica leads, though it may not evaluate yet.
    pub(crate) fn is_leader(&self) -> bool {
        self.engine().server_metrics.borrow_watched().state == ServerState::Leader
    }

    /// The time of the next batch: the wall clock, never before the last batch (rule 6).
    pub(crate) fn batch_time(&self) -> UnixMillis {
        UnixMillis::new(self.clock.unix_millis()).max(self.store.last_batch_at())
    }

    /// The clock that decides what has expired, for reads outside a batch: never before the last
    /// batch, so that what one reader saw expired stays so.
    pub(crate) fn now(&self) -> UnixMillis {
        self.batch_time()
    }

    /// Notes that this replica cannot go on. The first reason stays.
    pub(crate) fn fail(&self, failure: Failure) {
        self.gate.close();
        self.failure.send_if_modified(|current| {
            let is_first = current.is_none();
            if is_first {
                *current = Some(failure);
            }
            is_first
        });
    }

    /// The disk is full: a snapshot lets old segments go, if this shard holds any and has changed
    /// since the last one.
    pub(crate) fn want_space(&self) {
        let latest = self.snapshots.latest_info();
        let covered = latest.map_or(LogIndex::new(0), |info| info.start.index);
        if covered < self.progress.applied_index() && self.log.pins_old_segments() {
            self.snapshot_wanted.notify_one();
        }
    }

    /// What the lease gate may stand on now.
    pub(crate) fn grant(&self) -> Grant {
        let Leadership::Leads(term) = self.leadership() else {
            return Grant::None;
        };
        if self.is_sole_voter() {
            return Grant::Sole(term);
        }
        if !self.config.lease_reads {
            return Grant::None;
        }
        // Sampled first, so that what passes until the acknowledgement's age is known only makes
        // the deadline earlier.
        let now = self.clock.now();
        let acked = self
            .engine()
            .data_metrics
            .borrow_watched()
            .last_quorum_acked;
        let Some(acked) = acked else {
            return Grant::None;
        };
        let left = self
            .config
            .timings
            .read_lease()
            .checked_sub(acked.elapsed())
            .unwrap_or(Duration::ZERO);
        Grant::Until(term, now + left)
    }

    /// Whether a quorum has answered this leader lately, so that it can still be believed to lead.
    pub(crate) fn has_quorum(&self) -> bool {
        let acked = self
            .engine()
            .data_metrics
            .borrow_watched()
            .last_quorum_acked;
        let limit = self.config.timings.election_max * 2;
        self.is_sole_voter() || acked.is_some_and(|acked| acked.elapsed() < limit)
    }

    /// Whether this replica is the only voter of the effective membership.
    pub(crate) fn is_sole_voter(&self) -> bool {
        let engine = self.engine();
        let metrics = engine.server_metrics.borrow_watched();
        let mut voters = metrics.membership_config.voter_ids();
        voters.next() == Some(self.node.get()) && voters.next().is_none()
    }

    /// Returns once a read of the store sees every write acknowledged before the call.
    ///
    /// # Errors
    /// [`ErrorCode::Timeout`] at the deadline; [`ErrorCode::NotLeader`] or
    /// [`ErrorCode::Unavailable`] if this replica cannot tell, or no majority has answered it lately.
    pub(crate) async fn read_barrier(&self, deadline: Instant) -> Result<(), Error> {
        let left = deadline.saturating_since(self.clock.now());
        let engine = self.engine();
        // One round serves everyone who asks while it runs: openraft coalesces them.
        let round = engine.raft.ensure_linearizable(ReadPolicy::ReadIndex);
        match timeout(left, round).await {
            // Returns after the read index is applied here.
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                tracing::debug!(shard = %self.id, %error, "read barrier failed");
                return Err(match self.leadership() {
                    Leadership::Follows(_) => {
                        Error::not_done(ErrorCode::NotLeader, "another node leads this shard")
                    }
                    Leadership::Leads(_) | Leadership::Unknown | Leadership::Failed => {
                        Error::not_done(ErrorCode::Unavailable, "the shard has no leader now")
                    }
                });
            }
            Err(_) => {
                let code = if self.has_quorum() {
                    ErrorCode::Timeout
                } else {
                    ErrorCode::Unavailable
                };
                let message = "the deadline passed before a quorum confirmed the leader";
                return Err(Error::not_done(code, message));
            }
        }
        if self.progress.is_whole() {
            Ok(())
        } else {
            Err(Error::not_done(
                ErrorCode::Unavailable,
                "the shard has not finished its recovery",
            ))
        }
    }

    /// Who leads and who belongs to the shard.
    pub(crate) fn members(&self) -> Members {
        // Before the borrow: borrowing twice on one thread can wait for itself.
        let has_quorum = self.has_quorum();
        let engine = self.engine();
        let metrics = engine.server_metrics.borrow_watched();
        let effective = &metrics.membership_config;
        let committed = &metrics.committed_membership_config;
        let membership = effective.membership();
        let leader = leader_of(&metrics);
        Members {
            term: from_raft_vote(&metrics.vote).term,
            // A leader that nobody answers may have been replaced.
            leader: leader.filter(|leader| *leader != self.node || has_quorum),
            voters: membership.voter_ids().map(NodeId::new).collect(),
            learners: membership.learner_ids().map(NodeId::new).collect(),
            membership: entry_of(effective),
            is_membership_committed: is_committed(effective, committed),
        }
    }

    /// Who leads, as far as this replica knows.
    fn leader(&self) -> Option<NodeId> {
        let engine = self.engine();
        let metrics = engine.server_metrics.borrow_watched();
        leader_of(&metrics)
    }

    /// A picture of this replica.
    pub(crate) fn status(&self) -> ShardStatus {
        // Not within the picture: what is borrowed there stays so to its end, and borrowing twice on
        // one thread can wait for itself.
        let leader = self.leader();
        let metrics = self.engine().raft.metrics();
        let metrics = metrics.borrow_watched().clone();
        let vote = from_raft_vote(&metrics.vote);
        let index = |id: &Option<_>| {
            id.as_ref()
                .map_or(LogIndex::new(0), |id| from_raft_id(id).index)
        };
        let effective = &metrics.membership_config;
        let committed = &metrics.committed_membership_config;
        let membership = effective.membership();
        let role = match metrics.state {
            ServerState::Leader => Role::Leader,
            ServerState::Candidate => Role::Candidate,
            ServerState::Learner => Role::Learner,
            ServerState::Follower | ServerState::Shutdown => Role::Follower,
        };
        ShardStatus {
            id: self.id,
            node: self.node,
            role,
            term: vote.term,
            leader,
            last: LogIndex::new(metrics.last_log_index.map_or(0, |index| index + 1)),
            committed: index(&metrics.local_committed),
            applied: self.progress.applied_index(),
            snapshot: index(&metrics.snapshot),
            purged: index(&metrics.purged),
            flushed: self.log.state().flushed,
            voters: membership.voter_ids().map(NodeId::new).collect(),
            voters_after: match &**membership.get_joint_config() {
                [_, .., after] => Some(after.iter().copied().map(NodeId::new).collect()),
                [] | [_] => None,
            },
            learners: membership.learner_ids().map(NodeId::new).collect(),
            membership: entry_of(effective),
            is_membership_committed: is_committed(effective, committed),
            replication: metrics
                .replication
                .iter()
                .flatten()
                .map(|(node, id)| (NodeId::new(*node), index(id)))
                .collect(),
            is_writable: matches!(self.leadership(), Leadership::Leads(_)) && self.has_quorum(),
            queue_operations: self.queue.operations(),
            batches: self.counters.batches.load(Ordering::Relaxed),
            operations: self.counters.operations.load(Ordering::Relaxed),
            snapshots: self.counters.snapshots.load(Ordering::Relaxed),
            swept_keys: self.counters.swept_keys.load(Ordering::Relaxed),
            failure: self.failure.borrow().clone(),
        }
    }
}

/// Who leads, as far as a replica knows. One that belongs to no shard, because it was let go or is yet
/// to be added, hears of no leader: the last one that it followed says nothing.
fn leader_of(metrics: &RaftServerMetrics<TypeConfig>) -> Option<NodeId> {
    let membership = metrics.membership_config.membership();
    let is_known = membership.nodes().next().is_some();
    let leader = metrics.current_leader.filter(|_| is_known);
    leader.map(NodeId::new)
}

/// The entry that says who belongs to a shard.
fn entry_of(membership: &StoredMembership) -> Option<LogId> {
    membership.log_id().as_ref().map(from_raft_id)
}

/// Whether the membership in force is the one last known to be committed.
fn is_committed(effective: &StoredMembership, committed: &StoredMembership) -> bool {
    effective.log_id().is_some() && effective.log_id() == committed.log_id()
}

//! What can be seen of a replica from outside.

use std::fmt;
use std::sync::atomic::AtomicU64;

use flux_log::LogId;
use flux_types::{LogIndex, NodeId, ShardId, Term};

/// What a replica does in its shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It decides.
    Leader,
    /// It follows a leader, or waits for one.
    Follower,
    /// It asks to lead.
    Candidate,
    /// It follows without a vote.
    Learner,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Leader => "leader",
            Self::Follower => "follower",
            Self::Candidate => "candidate",
            Self::Learner => "learner",
        })
    }
}

/// Why a replica cannot go on. The process should end: what it holds is safe on disk, and a
/// restart is the only way to be sure of the rest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// A write or fsync of the log failed: nothing more is acknowledged.
    #[error("the log cannot be written any more: {0}")]
    LogPoisoned(String),
    /// The consensus engine stopped.
    #[error("the consensus engine stopped: {0}")]
    Engine(String),
}

/// Who leads a shard and who belongs to it, as one replica sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// The term of its vote.
    pub term: Term,
    /// Who leads, as far as it knows.
    pub leader: Option<NodeId>,
    /// Who votes.
    pub voters: Vec<NodeId>,
    /// Who follows without a vote.
    pub learners: Vec<NodeId>,
    /// The entry that says so; none if the log has none yet.
    pub membership: Option<LogId>,
    /// Whether that entry is known to be committed.
    pub is_membership_committed: bool,
}

/// A picture of one replica at one moment.
#[derive(Clone, Debug)]
pub struct ShardStatus {
    /// The shard.
    pub id: ShardId,
    /// This node.
    pub node: NodeId,
    /// What it does.
    pub role: Role,
    /// The term of its vote.
    pub term: Term,
    /// Who leads, as far as it knows.
    pub leader: Option<NodeId>,
    /// Its last entry; 0 for none, as in all indexes here.
    pub last: LogIndex,
    /// Known committed.
    pub committed: LogIndex,
    /// Applied to the store.
    pub applied: LogIndex,
    /// Covered by its latest snapshot.
    pub snapshot: LogIndex,
    /// No longer in its log.
    pub purged: LogIndex,
    /// Flushed under its fsync policy.
    pub flushed: LogIndex,
    /// Who votes; while a change of voters is under way, those before and after it.
    pub voters: Vec<NodeId>,
    /// While a change of voters is under way, or was left behind: who votes after it.
    pub voters_after: Option<Vec<NodeId>>,
    /// Who follows without a vote.
    pub learners: Vec<NodeId>,
    /// The entry that says who belongs to the shard; none if the log has none yet.
    pub membership: Option<LogId>,
    /// Whether that entry is known to be committed.
    pub is_membership_committed: bool,
    /// On the leader: how far each replica's log is known to reach.
    pub replication: Vec<(NodeId, LogIndex)>,
    /// Whether it leads, has applied all it must before it evaluates, and was answered by a quorum
    /// lately.
    pub is_writable: bool,
    /// Operations waiting for the proposer.
    pub queue_operations: usize,
    /// Batches proposed since the start.
    pub batches: u64,
    /// Operations evaluated since the start, those of batches without facts included.
    pub operations: u64,
    /// Snapshots taken since the start.
    pub snapshots: u64,
    /// Keys removed by the sweeper since the start.
    pub swept_keys: u64,
    /// Why it cannot go on, if so.
    pub failure: Option<Failure>,
}

/// Counts since the start.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) batches: AtomicU64,
    pub(crate) operations: AtomicU64,
    pub(crate) snapshots: AtomicU64,
    pub(crate) swept_keys: AtomicU64,
    /// Bytes of entries appended since the last snapshot began.
    pub(crate) log_bytes: AtomicU64,
    /// After how many of them the next one is wanted: at least what is configured, and at least
    /// the size of the last snapshot, so that large states are not written over and over.
    pub(crate) snapshot_due_bytes: AtomicU64,
    /// For how large a snapshot the log was last asked to keep room.
    pub(crate) snapshot_room_bytes: AtomicU64,
}

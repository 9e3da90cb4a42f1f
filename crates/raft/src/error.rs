//! What can go wrong with a shard, for the code that starts and governs it. What clients see is
//! [`flux_types::Error`].

use flux_log::LogError;
use flux_types::{LogIndex, NodeId, ShardId};

/// Why a shard did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The log could not be read.
    #[error("read the log of shard {shard}: {source}")]
    Log {
        /// The shard.
        shard: ShardId,
        /// Why.
        #[source]
        source: LogError,
    },
    /// A snapshot could not be loaded.
    #[error("load the snapshot of shard {shard}: {source}")]
    Snapshot {
        /// The shard.
        shard: ShardId,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The log begins after what can be recovered without it.
    #[error(
        "recover shard {shard}: its log begins after entry {purged} and no usable snapshot covers \
         what came before"
    )]
    Gap {
        /// The shard.
        shard: ShardId,
        /// The last entry that is no longer in the log.
        purged: LogIndex,
    },
    /// An entry is not what any writer of ours wrote, though its checksum holds.
    #[error("apply entry {index} of shard {shard}: {reason}")]
    Entry {
        /// The shard.
        shard: ShardId,
        /// Its index.
        index: LogIndex,
        /// What is wrong.
        reason: String,
    },
    /// The consensus engine refused to start.
    #[error("start the consensus of shard {shard}: {reason}")]
    Engine {
        /// The shard.
        shard: ShardId,
        /// Why.
        reason: String,
    },
}

/// Why a membership change was not made, or is not known to have been.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// This node does not lead the shard.
    #[error("this node does not lead the shard")]
    NotLeader {
        /// Who does, if known.
        leader: Option<NodeId>,
    },
    /// An earlier change has not finished.
    #[error("an earlier membership change has not finished")]
    InProgress,
    /// A new voter must have followed as a learner first.
    #[error("node {0} does not follow the shard as a learner yet")]
    NotALearner(NodeId),
    /// Only a voter can lead.
    #[error("node {0} does not vote in the shard")]
    NotAVoter(NodeId),
    /// An even number of voters, or none: it tolerates no more failures than one less.
    #[error("{0} voters: choose 1, 3, 5 or 7")]
    VoterCount(usize),
    /// It did not finish in time; it may still.
    #[error("the membership change did not finish in time; it may still")]
    Timeout,
    /// The shard has stopped or lost its leader while the change was made.
    #[error("the membership change was interrupted: {0}")]
    Interrupted(String),
}

/// Why a replica has not forgotten what it holds. It may be asked again.
#[derive(Debug, thiserror::Error)]
pub enum RetireError {
    /// The shard has stopped or failed.
    #[error("the shard has stopped or failed")]
    Stopped,
    /// The log could not be read or written.
    #[error("note it in the log: {0}")]
    Log(#[from] LogError),
    /// An entry of the log could not be read.
    #[error("read the log: {0}")]
    Entry(#[from] std::io::Error),
    /// The consensus engine did not start again: the replica has failed.
    #[error(transparent)]
    Start(#[from] StartError),
}

/// Why a snapshot was not taken. Nothing is lost by it: the one before stays.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Nothing was ever applied, so there is nothing to take.
    #[error("nothing is applied yet")]
    Empty,
    /// The store was replaced while it was walked.
    #[error("the store was replaced while the snapshot was taken")]
    Replaced,
    /// The disk said no.
    #[error("write it: {0}")]
    Log(#[from] LogError),
    /// The task was cancelled: the shard is shutting down.
    #[error("the shard is shutting down")]
    Cancelled,
}

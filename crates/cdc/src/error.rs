//! Why changes cannot be had.

use flux_log::LogError;
use flux_store::BatchError;
use flux_types::{LogIndex, ShardId};

use crate::cursor::{Cursor, CursorError};

/// Why a feed cannot begin, or cannot go on.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CdcError {
    /// The text is no cursor.
    #[error("failed to read the cursor: {0}")]
    Cursor(#[from] CursorError),
    /// The changes after the cursor are not kept any more.
    #[error("the cursor is older than the changes that are kept")]
    Compacted {
        /// Before the oldest change that is.
        oldest: Box<Cursor>,
    },
    /// The cursor is of another cluster, or of a history that was lost.
    #[error("the cursor is not of this history: {what}")]
    Diverged {
        /// What does not fit.
        what: &'static str,
        /// Before the oldest change of this history that is kept.
        oldest: Box<Cursor>,
    },
    /// The cursor names a shard that was split off and is not here yet: to be asked again, or of
    /// another node.
    #[error("the cursor names shard {shard}, which is not known here yet")]
    Behind {
        /// The shard.
        shard: ShardId,
    },
    /// The log does not give back what was written.
    #[error("failed to read the log of shard {shard}: {source}")]
    Log {
        /// The shard.
        shard: ShardId,
        /// Why.
        #[source]
        source: LogError,
    },
    /// An entry of the log holds what no version of this program wrote.
    #[error("entry {index} of shard {shard} holds no batch: {source}")]
    Batch {
        /// The shard.
        shard: ShardId,
        /// The entry.
        index: LogIndex,
        /// Why.
        #[source]
        source: BatchError,
    },
    /// The shard has failed or is shutting down.
    #[error("shard {shard} has stopped")]
    Stopped {
        /// The shard.
        shard: ShardId,
    },
}

//! The log: one append-only stream of records per node, shared by all its shards.
//!
//! This is the only journal there is. Consensus appends entries and votes here, recovery reads them
//! back, the change stream will follow them. What is acknowledged as flushed is never lost and
//! never reordered; a torn tail is cut and reported; damage in the middle is refused, never skipped.
//!
//! Read in this order: [`record`] and [`segment`] are the bytes (`docs/file-format.md`), [`identity`] the
//! directory, [`recovery`] what an open does, [`stream`] the appending half as a plain state machine,
//! [`writer`] the thread around it, [`shard_log`] the handle a shard holds, [`snapshot`] the files that
//! replace the log before them, [`offline`] what `flux log` shows without a node.

mod blocks;
pub mod config;
pub mod error;
mod fields;
pub mod fuzzing;
pub mod identity;
pub mod offline;
mod positions;
pub mod record;
pub mod recovery;
pub mod segment;
pub mod shard_log;
pub mod snapshot;
mod stream;
#[cfg(test)]
mod tests;
mod writer;

pub use config::{FsyncPolicy, LogConfig, Retention};
pub use error::{LogError, OpenError};
pub use identity::{IDENTITY_NAME, Identity, LOCK_NAME, LOST_AND_FOUND_NAME, MEMBER_NAME};
pub use record::{LogEntry, LogId, RecordKind, Tombstone, Vote};
pub use recovery::{Recovery, TornTail};
pub use shard_log::{Flushed, ShardLog, ShardLogState};
pub use snapshot::{SnapshotFooter, SnapshotHeader, SnapshotReader, SnapshotWriter};
pub use stream::{LogStats, Space};
pub use writer::{Log, Seeds};

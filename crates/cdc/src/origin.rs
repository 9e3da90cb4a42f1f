//! What a shard must offer so that its changes can be followed. The node implements it.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use flux_log::{LogId, ShardLog};
use flux_store::Store;
use flux_types::{Error, LogIndex, UnixMillis};
use futures_util::future::BoxFuture;

/// One shard's replica, as far as the change stream needs it.
pub trait Origin: fmt::Debug + Send + Sync {
    /// Its log.
    fn log(&self) -> &ShardLog;

    /// Its state.
    fn store(&self) -> &Arc<Store>;

    /// The clock that decides what has expired.
    fn now(&self) -> UnixMillis;

    /// The last entry applied here, and so committed; `None` if there is none.
    fn applied(&self) -> Option<LogId>;

    /// The last entry applied or being applied.
    fn applying(&self) -> Option<LogId>;

    /// Returns once this index is applied here. Safe to drop. Costs nothing while it waits.
    fn wait_applied(&self, index: LogIndex) -> BoxFuture<'_, ()>;

    /// Returns once the state is one that once was, as it is not while a start replays the end of
    /// a snapshot. Safe to drop.
    fn wait_whole(&self) -> BoxFuture<'_, ()>;

    /// Whether this replica leads its shard, and so is where sinks run.
    fn is_leading(&self) -> bool;

    /// Commits system data of the shard under a name, or their removal. They are no keys: no
    /// client sees them and no change of them is published.
    ///
    /// # Errors
    /// As any write; a failure may have an unknown outcome, and is safe to repeat.
    fn put_system(&self, name: Bytes, value: Option<Bytes>) -> BoxFuture<'_, Result<(), Error>>;
}

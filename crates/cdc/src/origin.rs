//! What a shard must offer so that its changes can be followed. The node implements it.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use flux_log::{LogEntry, LogId, ShardLog};
use flux_store::Store;
use flux_types::{Error, LogIndex, UnixMillis};
use futures_util::future::BoxFuture;
use tokio::sync::oneshot;

/// Entries of a shard's log that its replica here does not hold any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The first; at least 1.
    pub from: LogIndex,
    /// Before which to end.
    pub until: LogIndex,
    /// How many bytes of payloads at most, unless one entry alone is longer.
    pub bytes_max: usize,
}

impl Wanted {
    /// Whether entries are such as were asked for: of this range, one behind the other.
    #[must_use]
    pub fn is_met_by(&self, entries: &[LogEntry]) -> bool {
        let follows = |pair: &[LogEntry]| match pair {
            [one, other] => one.id.index.next() == other.id.index && one.id.term <= other.id.term,
            _ => true,
        };
        let begins = entries
            .first()
            .is_none_or(|first| self.from <= first.id.index);
        let ends = entries.last().is_none_or(|last| last.id.index < self.until);
        begins && ends && entries.windows(2).all(follows)
    }
}

/// What other replicas gave of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fetched {
    /// One behind the other, all of them committed. They begin with the one asked for, or with the
    /// next that anybody who answered has; empty if nobody has one of the range.
    pub entries: Vec<LogEntry>,
    /// Whether everybody who may have them has answered, so that what is not here is gone.
    pub is_complete: bool,
}

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

    /// Returns once this index is applied here, or everything is forgotten because the shard was given
    /// away. Safe to drop. Costs nothing while it waits.
    fn wait_applied(&self, index: LogIndex) -> BoxFuture<'_, ()>;

    /// Returns once the state is one that once was, as it is not while a start replays the end of
    /// a snapshot. Safe to drop.
    fn wait_whole(&self) -> BoxFuture<'_, ()>;

    /// Asks the other replicas for entries. The asking goes on by itself, takes a bounded time, and
    /// ends early when the answer is dropped; an answer that does not come says nothing. A replica
    /// without others has nobody to ask.
    fn fetch(&self, wanted: Wanted) -> oneshot::Receiver<Fetched> {
        let _ = wanted;
        let (tell, answer) = oneshot::channel();
        let nobody = Fetched {
            entries: Vec::new(),
            is_complete: true,
        };
        // The receiver is right here.
        drop(tell.send(nobody));
        answer
    }

    /// Whether the shard was split off another one. Then its log begins with the second entry, and
    /// its revisions go on from the other's.
    fn was_split_off(&self) -> bool {
        false
    }

    /// Whether this replica leads its shard, and so is where sinks run.
    fn is_leading(&self) -> bool;

    /// Commits system data of the shard under a name, or their removal. They are no keys: no
    /// client sees them and no change of them is published.
    ///
    /// # Errors
    /// As any write; a failure may have an unknown outcome, and is safe to repeat.
    fn put_system(&self, name: Bytes, value: Option<Bytes>) -> BoxFuture<'_, Result<(), Error>>;
}

/// The shards with a replica here. They only become more, as some are split off others.
pub trait Origins: fmt::Debug + Send + Sync {
    /// Those that are here now, in order of their shards and without a hole.
    fn list(&self) -> Arc<[Arc<dyn Origin>]>;

    /// Returns once there are more than so many. Safe to drop. Costs nothing while it waits.
    fn wait_more(&self, than: usize) -> BoxFuture<'_, ()>;
}

//! openraft's log storage over the shard's part of the node's log.
//!
//! Nothing here waits for a disk except a vote: openraft awaits it in its core loop, and a vote
//! must be on disk before anybody hears of it. Entries are readable when `append` returns and
//! openraft is told when they are flushed, from whatever thread the log flushes on.
//!
//! Hot path: `append` and the reader, once per batch.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use flux_env::Clock;
use flux_log::{LogError, LogId, ShardLog};
use flux_types::{LogIndex, UnixMillis};
use futures_util::{Stream, stream};
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use tokio::sync::{Notify, oneshot};

use crate::codec::{
    from_raft_entry, from_raft_id, from_raft_vote, to_raft_entry, to_raft_id, to_raft_vote,
};
use crate::status::Counters;
use crate::type_config::{RaftEntry, RaftLogId, RaftVote, TypeConfig};

/// Bytes of entries read at once for apply and for one append to a follower.
const READ_BYTES: usize = 1024 * 1024;
/// How many entries are committed before the log notes it again.
const MARK_ENTRIES: u64 = 256;

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct LogStore {
    pub(crate) log: ShardLog,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) snapshot_wanted: Arc<Notify>,
    /// What openraft last said is committed.
    pub(crate) committed: Option<LogId>,
}

pub(crate) fn to_io(error: LogError) -> io::Error {
    io::Error::other(error)
}

impl LogStore {
    /// Counts what was appended, and asks for a snapshot each time it is enough for one.
    fn count(&self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let before = self.counters.log_bytes.fetch_add(bytes, Ordering::Relaxed);
        let after = before.saturating_add(bytes);
        let due = self.counters.snapshot_due_bytes.load(Ordering::Relaxed);
        if before < due && due <= after {
            self.snapshot_wanted.notify_one();
        }
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogReader;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let state = self.log.state();
        Ok(LogState {
            last_purged_log_id: state.purged.map(to_raft_id),
            last_log_id: state.last.or(state.purged).map(to_raft_id),
        })
    }

    async fn get_log_reader(&mut self) -> LogReader {
        LogReader {
            log: self.log.clone(),
        }
    }

    async fn save_vote(&mut self, vote: &RaftVote) -> io::Result<()> {
        let (done, saved) = oneshot::channel();
        self.log.save_vote(
            from_raft_vote(vote),
            Box::new(move |result| drop(done.send(result))),
        );
        match saved.await {
            Ok(result) => result.map_err(to_io),
            Err(_) => Err(io::Error::other("the log was closed")),
        }
    }

    async fn save_committed(&mut self, committed: Option<RaftLogId>) -> io::Result<()> {
        let Some(committed) = committed.as_ref().map(from_raft_id) else {
            return Ok(());
        };
        self.committed = Some(committed);
        // A hint that lets a start replay more at once; not worth a record per batch.
        let marked = self.log.state().committed.map_or(0, |id| id.index.get());
        if marked.saturating_add(MARK_ENTRIES) <= committed.index.get() {
            self.log.mark_committed(committed);
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<RaftLogId>> {
        Ok(self
            .committed
            .or_else(|| self.log.state().committed)
            .map(to_raft_id))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = RaftEntry> + Send,
        I::IntoIter: Send,
    {
        let now = UnixMillis::new(self.clock.unix_millis());
        let entries: Vec<_> = entries
            .into_iter()
            .map(|entry| from_raft_entry(entry, now))
            .collect();
        self.count(entries.iter().map(|entry| entry.payload.len()).sum());
        // What the log drops must end openraft here and now: it would go on to apply what it
        // believes to be at these indexes.
        let flushed = move |result: Result<_, _>| callback.io_completed(result.map_err(to_io));
        self.log.append(entries, Box::new(flushed)).map_err(to_io)
    }

    async fn truncate_after(&mut self, last: Option<RaftLogId>) -> io::Result<()> {
        let last = last.as_ref().map(|id| from_raft_id(id).index);
        // Ordered before whatever is appended next, which is all that openraft needs.
        self.log
            .truncate_after(last.unwrap_or_default(), Box::new(drop))
            .map_err(to_io)
    }

    async fn purge(&mut self, upto: RaftLogId) -> io::Result<()> {
        self.log
            .purge_to(from_raft_id(&upto), Box::new(drop))
            .map_err(to_io)
    }
}

/// Reads a shard's log for openraft.
#[derive(Clone, Debug)]
pub(crate) struct LogReader {
    log: ShardLog,
}

impl LogReader {
    /// Entries of openraft's range `start..end`, at least one if any is there, at most about
    /// `max_bytes`. What was purged is left out at the beginning, what is not there at the end.
    fn read(&self, start: u64, end: u64, max_bytes: usize) -> io::Result<Vec<RaftEntry>> {
        let state = self.log.state();
        let first = state.purged.map_or(0, |purged| purged.index.get());
        let last = state.last.map_or(0, |last| last.index.get());
        // In openraft's counting `first` is the index after the last purged one, `last` the end.
        let (start, end) = (start.max(first), end.min(last));
        if start >= end {
            return Ok(Vec::new());
        }
        let (from, until) = (LogIndex::new(start + 1), LogIndex::new(end + 1));
        let entries = self.log.entries(from, until, max_bytes).map_err(to_io)?;
        entries.into_iter().map(to_raft_entry).collect()
    }
}

/// A range of openraft's indexes as `start..end`.
fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(end) => end.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

impl RaftLogReader<TypeConfig> for LogReader {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<RaftEntry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + Send,
    {
        // Must not stop early. Only recovery and elections ask for more than one entry this way.
        let (start, end) = bounds(&range);
        let mut entries = self.read(start, end, READ_BYTES)?;
        while let Some(last) = entries.last() {
            let next = last.log_id.index() + 1;
            if next >= end {
                break;
            }
            let more = self.read(next, end, READ_BYTES)?;
            if more.is_empty() {
                break;
            }
            entries.extend(more);
        }
        Ok(entries)
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> io::Result<Vec<RaftEntry>> {
        self.read(start, end, READ_BYTES)
    }

    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = io::Result<RaftEntry>> + Send
    where
        RB: RangeBounds<u64> + Clone + Debug + Send,
    {
        let (start, end) = bounds(&range);
        // In slices: after a restart the whole log may be committed at once.
        let cursor = Cursor {
            reader: self.clone(),
            next: start,
            end,
            slice: Vec::new().into_iter(),
        };
        stream::unfold(cursor, |mut cursor| async move {
            let entry = cursor.next_entry()?;
            Some((entry, cursor))
        })
    }

    async fn read_vote(&mut self) -> io::Result<Option<RaftVote>> {
        Ok(self.log.state().vote.map(to_raft_vote))
    }
}

struct Cursor {
    reader: LogReader,
    next: u64,
    end: u64,
    slice: std::vec::IntoIter<RaftEntry>,
}

impl Cursor {
    fn next_entry(&mut self) -> Option<io::Result<RaftEntry>> {
        if let Some(entry) = self.slice.next() {
            return Some(Ok(entry));
        }
        if self.next >= self.end {
            return None;
        }
        match self.reader.read(self.next, self.end, READ_BYTES) {
            Err(error) => {
                self.next = self.end;
                Some(Err(error))
            }
            Ok(entries) => {
                self.next = entries.last()?.log_id.index() + 1;
                self.slice = entries.into_iter();
                self.slice.next().map(Ok)
            }
        }
    }
}

#[cfg(test)]
mod tests;

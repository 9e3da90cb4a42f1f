//! The handle of one shard on the node's log.
//!
//! Calls are in order: what is appended first is written first. An append is readable when the call
//! returns; its callback comes when it is flushed under the policy. Nothing here waits for a disk
//! except reads of old entries and, without `fsync = always`, the write itself.

use std::sync::Arc;

use bytes::Bytes;
use flux_types::bug::{self, Bug};
use flux_types::{LogIndex, ShardId};

use crate::error::LogError;
use crate::fields::{narrow, widen};
use crate::positions::Position;
use crate::record::{
    LogEntry, LogId, RECORD_HEADER_BYTES, Record, RecordKind, Tombstone, Vote, decode, record_size,
    size_at,
};
use crate::stream::{Readable, Stream};
use crate::writer::Shared;

/// Called once, when what it was given with is flushed or the log has failed, whatever the call
/// itself answers. May be called on any thread, including the caller's before the call returns.
pub type Flushed = Box<dyn FnOnce(Result<(), LogError>) + Send>;

/// Most bytes read from disk at once when old entries are read, unless one entry is longer.
const READ_BLOCK_BYTES: usize = 256 * 1024;
/// Bytes read behind the beginning of the last entry wanted, whose size is not known.
const READ_BEHIND_BYTES: u64 = 4096;
/// A record of at least this size is read into memory of its own, which then is its payload's.
const OWN_BLOCK_BYTES: usize = 64 * 1024;

/// What a shard's log holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShardLogState {
    /// The last entry; the purged id if everything was purged.
    pub last: Option<LogId>,
    /// Entries up to this one are gone.
    pub purged: Option<LogId>,
    /// The last vote.
    pub vote: Option<Vote>,
    /// Known to be committed; a hint that may be old.
    pub committed: Option<LogId>,
    /// The last snapshot that was installed from elsewhere.
    pub installed: Option<LogId>,
    /// What is left of a former life of this replica, if it was let go.
    pub tombstone: Option<Tombstone>,
    /// Index up to which entries are flushed under the policy; 0 for none.
    pub flushed: LogIndex,
}

impl ShardLogState {
    /// The last entry that this replica ever had and must answer for: that of the log, or of a
    /// log that it has forgotten.
    #[must_use]
    pub fn last_ever(&self) -> Option<LogId> {
        let forgotten = self.tombstone.map(|tombstone| tombstone.last);
        self.last.max(forgotten.filter(|last| last.index.get() > 0))
    }

    /// Whether there is nothing of this replica, but perhaps a vote, and never was.
    #[must_use]
    pub const fn is_blank(&self) -> bool {
        self.last.is_none() && self.installed.is_none() && self.tombstone.is_none()
    }

    /// Whether the log does not reach what this replica once had: it must not stand for election.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        self.last < self.last_ever()
    }
}

/// One shard's part of the node's log. Clones share it.
#[derive(Clone, Debug)]
pub struct ShardLog {
    pub(crate) shared: Arc<Shared>,
    pub(crate) shard: usize,
    pub(crate) id: ShardId,
}

impl ShardLog {
    /// The shard.
    #[must_use]
    pub const fn id(&self) -> ShardId {
        self.id
    }

    /// What there is.
    #[must_use]
    pub fn state(&self) -> ShardLogState {
        let stream = self.shared.stream.lock();
        let Some(state) = stream.shards.get(self.shard) else {
            return ShardLogState::default();
        };
        ShardLogState {
            last: state.image.last,
            purged: state.image.purged,
            vote: state.image.vote,
            committed: state.image.committed,
            installed: state.image.installed,
            tombstone: state.image.tombstone,
            flushed: LogIndex::new(state.flushed),
        }
    }

    /// The id of the entry at an index: also of the last purged one.
    #[must_use]
    pub fn id_at(&self, index: LogIndex) -> Option<LogId> {
        let stream = self.shared.stream.lock();
        let image = &stream.shards.get(self.shard)?.image;
        image
            .id_at(index)
            .or_else(|| image.purged.filter(|purged| purged.index == index))
    }

    /// Appends entries, which must follow the last one without a gap.
    ///
    /// # Errors
    /// [`LogError::Poisoned`]: the entries are dropped, or nobody knows whether they are written.
    ///
    /// # Panics
    /// If there is a gap.
    pub fn append(&self, entries: Vec<LogEntry>, flushed: Flushed) -> Result<(), LogError> {
        let shard = self.shard;
        let push = |stream: &mut Stream| stream.push_entries(shard, entries);
        if bug::is_on(Bug::AckBeforeSync) {
            let appended = self.shared.append(Box::new(drop), false, push);
            flushed(Ok(()));
            return appended;
        }
        self.shared.append(flushed, false, push)
    }

    /// Keeps a vote. The callback comes after a sync under every policy, and so does everything
    /// appended before; it alone tells of a failure.
    pub fn save_vote(&self, vote: Vote, flushed: Flushed) {
        let shard = self.shard;
        let flushed = if bug::is_on(Bug::VoteNotSynced) {
            flushed(Ok(()));
            Box::new(drop)
        } else {
            flushed
        };
        let push = |stream: &mut Stream| {
            let id = LogId {
                term: vote.term,
                index: LogIndex::new(vote.node.get()),
            };
            let now = stream.now();
            stream.push(
                shard,
                RecordKind::Vote,
                id,
                now,
                &[u8::from(vote.committed)],
            )?;
            if let Some(state) = stream.shards.get_mut(shard) {
                state.image.vote = Some(vote);
            }
            Ok(())
        };
        let _ = self.shared.append(flushed, true, push).is_ok();
    }

    /// Makes the entries after an index void; 0 voids all.
    ///
    /// # Errors
    /// [`LogError::Poisoned`]: the entries are still there, or nobody knows whether they are.
    pub fn truncate_after(&self, index: LogIndex, flushed: Flushed) -> Result<(), LogError> {
        let shard = self.shard;
        self.shared
            .append(flushed, false, |stream| stream.push_truncate(shard, index))
    }

    /// Gives up the entries up to an id, which a durable snapshot covers. Their segments are deleted
    /// when no shard needs them.
    ///
    /// # Errors
    /// [`LogError::Poisoned`]: the entries are still there, or nobody knows whether they are.
    pub fn purge_to(&self, id: LogId, flushed: Flushed) -> Result<(), LogError> {
        let shard = self.shard;
        self.shared
            .append(flushed, true, |stream| stream.push_purge(shard, id))
    }

    /// Notes up to where entries are committed. Written with whatever is appended next; lost
    /// without harm.
    pub fn mark_committed(&self, id: LogId) {
        let shard = self.shard;
        self.shared.note(|stream| {
            let now = stream.now();
            stream.push(shard, RecordKind::Committed, id, now, &[])?;
            if let Some(state) = stream.shards.get_mut(shard) {
                state.image.committed = Some(id);
            }
            Ok(())
        });
    }

    /// Notes that a snapshot from elsewhere took the place of everything up to an id. The callback
    /// alone tells of a failure.
    pub fn mark_installed(&self, id: LogId, flushed: Flushed) {
        let shard = self.shard;
        let push = |stream: &mut Stream| {
            let now = stream.now();
            stream.push(shard, RecordKind::SnapshotInstalled, id, now, &[])?;
            if let Some(state) = stream.shards.get_mut(shard) {
                state.image.installed = Some(id);
            }
            Ok(())
        };
        let _ = self.shared.append(flushed, true, push).is_ok();
    }

    /// Forgets everything of this shard but the vote: a committed membership at `gone_at` does not
    /// contain this node. What was last is remembered as a [`Tombstone`]. Nothing may be appended
    /// before the callback, which comes after a sync under every policy and alone tells of a
    /// failure; the snapshots are the caller's to remove then
    /// ([`ShardLog::remove_snapshots`]).
    pub fn retire(&self, gone_at: LogId, flushed: Flushed) {
        let shard = self.shard;
        let push = |stream: &mut Stream| stream.push_retired(shard, gone_at);
        let _ = self.shared.append(flushed, true, push).is_ok();
    }

    /// Syncs whatever is appended so far, of all shards, under every policy. The callback alone
    /// tells of a failure.
    pub fn sync(&self, synced: Flushed) {
        let _ = self.shared.append(synced, true, |_| Ok(())).is_ok();
    }

    /// Sees to it that a snapshot of this shard, of at most so many bytes, finds room on a disk that
    /// is full otherwise. While there is no space for that, client writes are refused.
    pub fn keep_snapshot_room(&self, bytes: u64) {
        self.shared.keep_snapshot_room(self.shard, bytes);
    }

    /// Whether a purge of everything that a snapshot taken now would cover could free a segment.
    #[must_use]
    pub fn pins_old_segments(&self) -> bool {
        self.shared.stream.lock().pins_old_segments(self.shard)
    }

    /// Makes sure that a record with this payload can be appended. Essential ones (deletes, the
    /// group's own) may use the reserve when the disk is full.
    ///
    /// # Errors
    /// [`LogError::NoSpace`], or [`LogError::Poisoned`]. Nothing was written.
    pub fn make_room(&self, payload_bytes: usize, essential: bool) -> Result<(), LogError> {
        self.shared
            .make_room(widen(record_size(payload_bytes)), essential)
    }

    /// As [`ShardLog::make_room`], for [`ShardLog::retire`].
    ///
    /// # Errors
    /// As [`ShardLog::make_room`].
    pub fn make_room_to_retire(&self) -> Result<(), LogError> {
        self.make_room(Tombstone::PAYLOAD_BYTES, true)
    }

    /// As [`ShardLog::make_room`], for all of these entries together.
    ///
    /// # Errors
    /// As [`ShardLog::make_room`].
    pub fn make_room_for(&self, entries: &[LogEntry], essential: bool) -> Result<(), LogError> {
        let sizes = entries.iter().map(|entry| record_size(entry.payload.len()));
        self.shared.make_room(sizes.map(widen).sum(), essential)
    }

    /// Entries from index `from` to before `until`, no more than fit `bytes_max`, but at least one if
    /// there is one. From memory if they are recent, else from disk; never from both in one call.
    ///
    /// # Errors
    /// If the disk does not give back what was written.
    pub fn entries(
        &self,
        from: LogIndex,
        until: LogIndex,
        bytes_max: usize,
    ) -> Result<Vec<LogEntry>, LogError> {
        let mut wanted: Vec<(LogIndex, Position)> = Vec::new();
        {
            let stream = self.shared.stream.lock();
            let Some(state) = stream.shards.get(self.shard) else {
                return Ok(Vec::new());
            };
            let last = state.image.last.map_or(0, |last| last.index.get());
            let until = until.get().min(last + 1);
            let tail_from = state
                .tail
                .front()
                .map_or(u64::MAX, |entry| entry.id.index.get());
            if tail_from <= from.get() {
                let skip = narrow(from.get() - tail_from);
                let count = narrow(until.saturating_sub(from.get()));
                let tail = state.tail.iter().skip(skip).take(count).cloned();
                return Ok(take_bytes(tail, bytes_max));
            }
            let Some(skipped) = from.get().checked_sub(state.image.first_index()) else {
                return Ok(Vec::new());
            };
            let indexes = from.get()..until.min(tail_from);
            let positions = state.image.entries.iter_from(narrow(skipped));
            let mut begin = 0;
            for (index, position) in indexes.zip(positions) {
                // Records lie between their offsets, with those of other shards among them.
                let same = wanted
                    .last()
                    .is_some_and(|(_, last)| last.segment == position.segment);
                begin = if same { begin } else { position.offset };
                if widen(bytes_max) < position.offset - begin {
                    break;
                }
                wanted.push((LogIndex::new(index), position));
            }
        }
        self.read(&wanted, bytes_max)
    }

    /// As [`ShardLog::entries`], but also purged entries, as long as their segments are there.
    ///
    /// # Errors
    /// If the disk does not give back what was written, or an entry was deleted meanwhile: then
    /// [`ShardLog::oldest`] has moved beyond it.
    pub fn history(
        &self,
        from: LogIndex,
        until: LogIndex,
        bytes_max: usize,
    ) -> Result<Vec<LogEntry>, LogError> {
        let mut wanted: Vec<(LogIndex, Position)> = Vec::new();
        {
            let stream = self.shared.stream.lock();
            let Some(state) = stream.shards.get(self.shard) else {
                return Ok(Vec::new());
            };
            let first = state.image.first_index();
            if from.get() < first {
                let Some(skipped) = from.get().checked_sub(state.image.oldest_index()) else {
                    return Ok(Vec::new());
                };
                let indexes = from.get()..until.get().min(first);
                let positions = state.image.history.iter_from(narrow(skipped));
                let budget = bytes_max / RECORD_HEADER_BYTES + 1;
                let wanted_now = indexes.zip(positions).take(budget);
                wanted.extend(wanted_now.map(|(index, position)| (LogIndex::new(index), position)));
            }
        }
        if wanted.is_empty() {
            return self.entries(from, until, bytes_max);
        }
        self.read(&wanted, bytes_max)
    }

    /// Index of the oldest entry that [`ShardLog::history`] can give; the next index if none.
    #[must_use]
    pub fn oldest(&self) -> LogIndex {
        let stream = self.shared.stream.lock();
        let state = stream.shards.get(self.shard);
        LogIndex::new(state.map_or(1, |state| state.image.oldest_index()))
    }

    /// The id of an entry that [`ShardLog::history`] can give.
    #[must_use]
    pub fn history_id_at(&self, index: LogIndex) -> Option<LogId> {
        let stream = self.shared.stream.lock();
        let position = stream
            .shards
            .get(self.shard)?
            .image
            .history_position(index)?;
        Some(LogId {
            term: position.term,
            index,
        })
    }

    /// Whether the entry at an index is in memory, so that reading it waits for no disk.
    #[must_use]
    pub fn is_recent(&self, index: LogIndex) -> bool {
        let stream = self.shared.stream.lock();
        let tail = stream
            .shards
            .get(self.shard)
            .and_then(|state| state.tail.front());
        tail.is_some_and(|oldest| oldest.id.index <= index)
    }

    /// Index up to which entries are synced, whatever the policy: a power cut leaves them.
    #[must_use]
    pub fn durable(&self) -> LogIndex {
        let stream = self.shared.stream.lock();
        LogIndex::new(
            stream
                .shards
                .get(self.shard)
                .map_or(0, |state| state.durable),
        )
    }

    /// Asks that history after an index be kept for somebody, beyond what retention keeps, up to
    /// the retention's cap. Replaces what was asked for under that name.
    pub fn pin(&self, name: &str, after: LogIndex) {
        self.shared.stream.lock().pin(self.shard, name, after);
    }

    /// Ends what [`ShardLog::pin`] asked for.
    pub fn unpin(&self, name: &str) {
        self.shared.stream.lock().unpin(self.shard, name);
    }

    fn read(
        &self,
        wanted: &[(LogIndex, Position)],
        bytes_max: usize,
    ) -> Result<Vec<LogEntry>, LogError> {
        let mut entries = Vec::new();
        let mut bytes = 0;
        for run in wanted.chunk_by(|(_, a), (_, b)| a.segment == b.segment) {
            let (Some((_, first)), Some((_, last))) = (run.first(), run.last()) else {
                continue;
            };
            let mut reader = self.shared.block_reader(first.segment)?;
            reader.until = last.offset + READ_BEHIND_BYTES;
            for (index, position) in run {
                let size = reader.size(position.offset)?;
                if bytes_max < bytes + size && !entries.is_empty() {
                    return Ok(entries);
                }
                let entry = reader.entry(position.offset, size, *index)?;
                bytes += entry.payload.len();
                entries.push(entry);
            }
        }
        Ok(entries)
    }
}

fn take_bytes(entries: impl Iterator<Item = LogEntry>, bytes_max: usize) -> Vec<LogEntry> {
    let mut taken = Vec::new();
    let mut bytes = 0;
    for entry in entries {
        bytes += entry.payload.len();
        if bytes_max < bytes && !taken.is_empty() {
            break;
        }
        taken.push(entry);
    }
    taken
}

/// Reads the records of one segment in blocks.
#[derive(Debug)]
pub(crate) struct BlockReader {
    segment: u64,
    readable: Readable,
    /// Where in the segment reading ahead ends.
    until: u64,
    block: Vec<u8>,
    block_offset: u64,
}

impl BlockReader {
    pub(crate) const fn new(segment: u64, readable: Readable) -> Self {
        Self {
            segment,
            readable,
            until: 0,
            block: Vec::new(),
            block_offset: 0,
        }
    }

    const fn damaged(&self, offset: u64) -> LogError {
        LogError::Damaged {
            segment: self.segment,
            offset,
        }
    }

    /// The bytes from `offset` on, if the block holds `size` of them.
    fn held(&self, offset: u64, size: usize) -> Option<&[u8]> {
        let from = narrow(offset.checked_sub(self.block_offset)?);
        self.block.get(from..).filter(|bytes| size <= bytes.len())
    }

    fn read(&self, block: &mut Vec<u8>, offset: u64, size: usize) -> Result<(), LogError> {
        block.resize(size, 0);
        let read = self.readable.file.read_at(block, offset);
        let count = read.map_err(|error| LogError::Read {
            reason: error.to_string(),
        })?;
        block.truncate(count);
        Ok(())
    }

    /// Size of the record at `offset`, by its length field.
    fn size(&self, offset: u64) -> Result<usize, LogError> {
        if let Some(head) = self.held(offset, RECORD_HEADER_BYTES) {
            return Ok(size_at(head));
        }
        let mut head = Vec::new();
        self.read(&mut head, offset, RECORD_HEADER_BYTES)?;
        Ok(size_at(&head))
    }

    /// The entry at `offset`, in a record of `size`.
    fn entry(&mut self, offset: u64, size: usize, index: LogIndex) -> Result<LogEntry, LogError> {
        if self.held(offset, size).is_none() {
            if OWN_BLOCK_BYTES <= size {
                return self.long_entry(offset, size, index);
            }
            let ahead = narrow(self.until.saturating_sub(offset)).min(READ_BLOCK_BYTES);
            let mut block = std::mem::take(&mut self.block);
            self.read(&mut block, offset, ahead.max(size))?;
            (self.block, self.block_offset) = (block, offset);
        }
        let bytes = self
            .held(offset, size)
            .ok_or_else(|| self.damaged(offset))?;
        let record = self.check(bytes, offset, index)?;
        Ok(log_entry(&record, Bytes::copy_from_slice(record.payload)))
    }

    /// An entry whose payload keeps the memory that the record was read into.
    fn long_entry(&self, offset: u64, size: usize, index: LogIndex) -> Result<LogEntry, LogError> {
        let file_size = self.readable.file.size_bytes();
        let file_size = file_size.map_err(|error| LogError::Read {
            reason: error.to_string(),
        })?;
        if file_size < offset + widen(size) {
            // A damaged length is not worth memory.
            return Err(self.damaged(offset));
        }
        let mut bytes = Vec::new();
        self.read(&mut bytes, offset, size)?;
        let bytes = Bytes::from(bytes);
        let record = self.check(&bytes, offset, index)?;
        Ok(log_entry(&record, bytes.slice_ref(record.payload)))
    }

    fn check<'a>(
        &self,
        bytes: &'a [u8],
        offset: u64,
        index: LogIndex,
    ) -> Result<Record<'a>, LogError> {
        decode(bytes, self.readable.salt)
            .ok()
            .filter(|record| record.header.kind == RecordKind::Entry)
            .filter(|record| record.header.index == index.get())
            .ok_or_else(|| self.damaged(offset))
    }
}

fn log_entry(record: &Record<'_>, payload: Bytes) -> LogEntry {
    LogEntry {
        id: record.header.log_id(),
        timestamp: record.header.timestamp,
        payload,
    }
}

//! The handle of one shard on the node's log.
//!
//! Calls are in order: what is appended first is written first. An append is readable when the call
//! returns; its callback comes when it is flushed under the policy. Nothing here waits for a disk
//! except reads of old entries and, without `fsync = always`, the write itself.

use std::sync::Arc;

use bytes::Bytes;
use flux_types::{LogIndex, ShardId, Term};

use crate::error::LogError;
use crate::fields::{narrow, widen};
use crate::record::{LogEntry, LogId, RECORD_HEADER_BYTES, RecordKind, Vote, decode, record_size};
use crate::recovery::Position;
use crate::stream::Readable;
use crate::writer::Shared;

/// Called once, when what it was given with is flushed or the log has failed. May be called on any
/// thread, including the caller's before the call returns.
pub type Flushed = Box<dyn FnOnce(Result<(), LogError>) + Send>;

/// Bytes read from disk at once when old entries are read.
const READ_BLOCK_BYTES: usize = 256 * 1024;

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
    /// Index up to which entries are flushed under the policy; 0 for none.
    pub flushed: LogIndex,
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
    /// # Panics
    /// If there is a gap.
    pub fn append(&self, entries: Vec<LogEntry>, flushed: Flushed) {
        let shard = self.shard;
        self.shared
            .append(flushed, false, |stream| stream.push_entries(shard, entries));
    }

    /// Keeps a vote. The callback comes after a sync under every policy, and so does everything
    /// appended before.
    pub fn save_vote(&self, vote: Vote, flushed: Flushed) {
        let shard = self.shard;
        self.shared.append(flushed, true, |stream| {
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
        });
    }

    /// Makes the entries after an index void; 0 voids all.
    pub fn truncate_after(&self, index: LogIndex, flushed: Flushed) {
        let shard = self.shard;
        self.shared
            .append(flushed, false, |stream| stream.push_truncate(shard, index));
    }

    /// Gives up the entries up to an id, which a durable snapshot covers. Their segments are deleted
    /// when no shard needs them.
    pub fn purge_to(&self, id: LogId, flushed: Flushed) {
        let shard = self.shard;
        self.shared
            .append(flushed, true, |stream| stream.push_purge(shard, id));
    }

    /// Notes up to where entries are committed. Written with whatever is appended next; lost
    /// without harm.
    pub fn mark_committed(&self, id: LogId) {
        let shard = self.shard;
        self.shared.append(Box::new(|_| {}), false, |stream| {
            let now = stream.now();
            stream.push(shard, RecordKind::Committed, id, now, &[])?;
            if let Some(state) = stream.shards.get_mut(shard) {
                state.image.committed = Some(id);
            }
            Ok(())
        });
    }

    /// Notes that a snapshot from elsewhere took the place of everything up to an id.
    pub fn mark_installed(&self, id: LogId, flushed: Flushed) {
        let shard = self.shard;
        self.shared.append(flushed, true, |stream| {
            let now = stream.now();
            stream.push(shard, RecordKind::SnapshotInstalled, id, now, &[])?;
            if let Some(state) = stream.shards.get_mut(shard) {
                state.image.installed = Some(id);
            }
            Ok(())
        });
    }

    /// Syncs whatever is appended so far, of all shards, under every policy.
    pub fn sync(&self, synced: Flushed) {
        self.shared.append(synced, true, |_| Ok(()));
    }

    /// Makes sure that a record with this payload can be appended. Essential ones (deletes, the
    /// group's own) may use the reserve when the disk is full.
    ///
    /// # Errors
    /// [`LogError::NoSpace`], or [`LogError::Poisoned`]. Nothing was written.
    pub fn make_room(&self, payload_bytes: usize, essential: bool) -> Result<(), LogError> {
        self.shared.make_room(payload_bytes, essential)
    }

    /// Entries from index `from` to before `until`, as many as fit `bytes_max`, but at least one if
    /// there is one. From memory if they are recent, else from disk.
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
            // An upper bound on how many records fit; each has a header.
            let count = widen(bytes_max / RECORD_HEADER_BYTES + 1);
            for index in from.get()..until.min(tail_from).min(from.get().saturating_add(count)) {
                let index = LogIndex::new(index);
                let Some(position) = state.image.position(index) else {
                    break;
                };
                wanted.push((index, position));
            }
        }
        self.read(&wanted, bytes_max)
    }

    fn read(
        &self,
        wanted: &[(LogIndex, Position)],
        bytes_max: usize,
    ) -> Result<Vec<LogEntry>, LogError> {
        let mut entries = Vec::new();
        let mut bytes = 0;
        let mut reader: Option<BlockReader> = None;
        for (index, position) in wanted {
            let mut block = match reader.take() {
                Some(block) if block.segment == position.segment => block,
                _ => self.shared.block_reader(position.segment)?,
            };
            let entry = block.entry(position.offset, *index)?;
            reader = Some(block);
            bytes += entry.payload.len();
            if bytes_max < bytes && !entries.is_empty() {
                break;
            }
            entries.push(entry);
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
    pub(crate) segment: u64,
    readable: Readable,
    block: Vec<u8>,
    block_offset: u64,
}

impl BlockReader {
    pub(crate) const fn new(segment: u64, readable: Readable) -> Self {
        Self {
            segment,
            readable,
            block: Vec::new(),
            block_offset: 0,
        }
    }

    /// The bytes from `offset` on, at least `size` of them unless the file ends.
    fn bytes(&mut self, offset: u64, size: usize) -> Result<&[u8], LogError> {
        let inside = offset.checked_sub(self.block_offset).map(narrow);
        let held = inside.is_some_and(|at| at + size <= self.block.len());
        if !held {
            self.block.resize(size.max(READ_BLOCK_BYTES), 0);
            let read = self.readable.file.read_at(&mut self.block, offset);
            let count = read.map_err(|error| LogError::Read {
                reason: error.to_string(),
            })?;
            self.block.truncate(count);
            self.block_offset = offset;
        }
        let at = narrow(offset - self.block_offset);
        Ok(self.block.get(at..).unwrap_or_default())
    }

    fn entry(&mut self, offset: u64, index: LogIndex) -> Result<LogEntry, LogError> {
        let damaged = LogError::Damaged {
            segment: self.segment,
            offset,
        };
        let salt = self.readable.salt;
        let head = self.bytes(offset, RECORD_HEADER_BYTES)?;
        let length: [u8; 4] = head
            .get(..4)
            .and_then(|b| b.try_into().ok())
            .ok_or_else(|| damaged.clone())?;
        let size = record_size(narrow(u64::from(u32::from_le_bytes(length))));
        let record = decode(self.bytes(offset, size)?, salt).map_err(|_| damaged.clone())?;
        if record.header.kind != RecordKind::Entry || record.header.index != index.get() {
            return Err(damaged);
        }
        Ok(LogEntry {
            id: LogId {
                term: Term::new(record.header.term.get()),
                index,
            },
            timestamp: record.header.timestamp,
            payload: Bytes::copy_from_slice(record.payload),
        })
    }
}

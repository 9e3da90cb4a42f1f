//! The appending half of the log as a plain state machine: gives records their place, and says what
//! must be written and synced. It never waits and starts no thread; [`crate::writer`] does.
//!
//! Lock order: the stream's lock is taken alone; no callback runs and no sync happens under it.
//! With `everysec` and `never` the write itself happens under it, inline in the appender's turn.

mod retention;
mod room;
mod work;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use flux_env::{Clock, Disk, File, OpenMode};
use flux_types::bug::{self, Bug};
use flux_types::{LogIndex, ShardId, Term, UnixMillis};

use crate::config::{FsyncPolicy, LogConfig};
use crate::error::{LogError, OpenError};
use crate::fields::widen;
use crate::identity::Identity;
use crate::positions::Position;
use crate::record::{
    LogEntry, LogId, NODE_WIDE, RecordHeader, RecordKind, durable_field, encode, record_size,
};
use crate::recovery::{Image, OpenSegment, ShardImage};
use crate::segment::{SEGMENT_HEADER_BYTES, SegmentHeader, SegmentStart};
use crate::shard_log::Flushed;

pub(crate) use room::give_up;
pub(crate) use work::Work;
use work::{Chunk, recycle};

/// Room that records other than the asked-for one may need around it: votes, markers, a start.
const SLACK_BYTES: u64 = 16 * 1024;

/// Whether the log can take client writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// The next segment and the reserve are there.
    Enough,
    /// The disk is full: only deletes and the group's own records may go on.
    Full,
}

/// Counters and gauges of a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogStats {
    /// Records appended since the open.
    pub records: u64,
    /// Bytes appended since the open, padding included.
    pub appended_bytes: u64,
    /// Write calls.
    pub writes: u64,
    /// Syncs of segments.
    pub syncs: u64,
    /// Time spent in syncs, in nanoseconds.
    pub sync_nanos: u64,
    /// Longest sync, in nanoseconds.
    pub sync_nanos_max: u64,
    /// Segments there are, the active one included.
    pub segments: u64,
    /// Segments deleted since the open.
    pub segments_deleted: u64,
    /// Bytes of segments that only the change stream still needs.
    pub retained_bytes: u64,
    /// Segments given up for want of space or by the retention's cap although somebody asked by
    /// name that they be kept.
    pub pinned_segments_deleted: u64,
}

#[derive(Debug)]
struct Active {
    number: u64,
    salt: u64,
    file: Arc<dyn File>,
    capacity: u64,
    /// Where the next record goes.
    end: u64,
    /// Up to where this segment is synced.
    durable: u64,
}

/// A file with space behind every byte, waiting to become a segment or a snapshot.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// A segment's; one of another number is written over.
    header: Option<SegmentHeader>,
    pub(crate) file: Arc<dyn File>,
    pub(crate) path: PathBuf,
    pub(crate) capacity: u64,
}

/// A segment that can be read.
#[derive(Clone, Debug)]
pub(crate) struct Readable {
    pub(crate) file: Arc<dyn File>,
    pub(crate) salt: u64,
    /// When the segment was prepared: a little before its first record.
    created: UnixMillis,
    /// What it takes on the disk.
    bytes: u64,
}

impl Readable {
    fn recovered((number, segment): (&u64, &OpenSegment)) -> (u64, Self) {
        let readable = Self {
            file: Arc::clone(&segment.file),
            salt: segment.header.salt,
            created: segment.header.created,
            bytes: segment.capacity,
        };
        (*number, readable)
    }
}

#[derive(Debug, Default)]
pub(crate) struct ShardState {
    pub(crate) image: ShardImage,
    /// The newest entries, without gaps, ending with the last one.
    pub(crate) tail: VecDeque<LogEntry>,
    pub(crate) tail_bytes: usize,
    /// Index up to which entries are flushed under the policy.
    pub(crate) flushed: u64,
    /// Index up to which entries are synced.
    pub(crate) durable: u64,
    /// What a snapshot would take at most.
    pub(crate) snapshot_bytes: u64,
}

impl ShardState {
    /// Forgets the oldest entries of the tail beyond a number of bytes, flushed ones only.
    fn trim(&mut self, bytes_max: usize) {
        while bytes_max < self.tail_bytes
            && self
                .tail
                .front()
                .is_some_and(|entry| entry.id.index.get() <= self.flushed)
        {
            let entry = self.tail.pop_front();
            self.tail_bytes -= entry.map_or(0, |entry| entry.payload.len());
        }
    }

    fn keep(&mut self, entry: LogEntry) {
        self.tail_bytes += entry.payload.len();
        self.tail.push_back(entry);
    }

    fn drop_tail(&mut self, goes: impl Fn(u64) -> bool) {
        self.tail.retain(|entry| !goes(entry.id.index.get()));
        self.tail_bytes = self.tail.iter().map(|entry| entry.payload.len()).sum();
    }
}

/// What has a place and waits to be written, synced or called.
#[derive(Default)]
struct Queue {
    /// Where the next record goes.
    open_chunk: Option<Chunk>,
    chunks: Vec<Chunk>,
    dirty: Vec<Arc<dyn File>>,
    dirty_dir: bool,
    /// Each with whether it waits for a sync under every policy.
    callbacks: Vec<(Flushed, bool)>,
    /// By shard, the index up to which entries have been appended.
    appended: BTreeMap<usize, u64>,
    /// By shard, the index up to which entries have been appended and not yet taken for a sync.
    unsynced: BTreeMap<usize, u64>,
}

pub(crate) struct Stream {
    config: LogConfig,
    disk: Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
    identity: Identity,
    boot_id: u128,
    draw: Box<dyn FnMut() -> u64 + Send>,
    active: Active,
    next: Option<Prepared>,
    reserve: Option<Prepared>,
    snapshot_room: Option<Prepared>,
    /// Whether a snapshot that is being written has it.
    is_room_taken: bool,
    /// Whether somebody makes that file larger right now: then no snapshot may take it.
    is_room_growing: bool,
    /// Files prepared so far; their names.
    prepared_count: u64,
    /// Whether the last preparation found no space for one of them. That one of them is missing
    /// says nothing by itself: after each roll the next segment is only about to be prepared.
    is_full: bool,
    readable: BTreeMap<u64, Readable>,
    chain: u32,
    node_sequence: u64,
    pub(crate) shards: Vec<ShardState>,
    queue: Queue,
    spare: Vec<Vec<u8>>,
    earlier_durable: bool,
    /// Segments before this one are needed by nobody, and that is durable.
    durably_needed: u64,
    /// By shard and name, the index after which entries are asked to be kept.
    pins: BTreeMap<(usize, String), u64>,
    opened_at: UnixMillis,
    poison: Option<String>,
    pub(crate) stats: LogStats,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream")
            .field("active", &self.active)
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}

/// What a stream is built from.
pub(crate) struct Parts {
    pub(crate) config: LogConfig,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) identity: Identity,
    pub(crate) boot_id: u128,
    pub(crate) draw: Box<dyn FnMut() -> u64 + Send>,
}

impl Stream {
    /// Continues a log where its image ends, or begins a new one. The torn tail has been cut.
    pub(crate) fn open(parts: Parts, image: Image) -> Result<Self, OpenError> {
        let Parts {
            config,
            disk,
            clock,
            identity,
            boot_id,
            draw,
        } = parts;
        let log_dir = config.log_dir();
        let failed = |source| OpenError::io("prepare segments in", log_dir.clone(), source);
        let readable = image.segments.iter().map(Readable::recovered).collect();
        let fresh = image.segments.is_empty();
        let active = match image.segments.last_key_value() {
            Some((number, segment)) => {
                let file = Arc::clone(&segment.file);
                let (salt, capacity) = (segment.header.salt, segment.capacity);
                let (end, durable) = (image.end, image.end);
                Active {
                    number: *number,
                    salt,
                    file,
                    capacity,
                    end,
                    durable,
                }
            }
            None => placeholder(&*disk, &log_dir).map_err(failed)?,
        };
        let shards = image.shards.into_iter().map(|image| {
            let flushed = image.last.map_or(0, |last| last.index.get());
            ShardState {
                image,
                flushed,
                // Opening has synced whatever an earlier process had not.
                durable: flushed,
                ..ShardState::default()
            }
        });
        let opened_at = UnixMillis::new(clock.unix_millis());
        let mut stream = Self {
            active,
            readable,
            chain: image.chain,
            node_sequence: image.node_sequence,
            shards: shards.collect(),
            config,
            disk,
            clock,
            identity,
            boot_id,
            draw,
            next: None,
            reserve: None,
            snapshot_room: None,
            is_room_taken: false,
            is_room_growing: false,
            prepared_count: 0,
            is_full: false,
            queue: Queue::default(),
            spare: Vec::new(),
            earlier_durable: true,
            durably_needed: 0,
            pins: BTreeMap::new(),
            opened_at,
            poison: None,
            stats: LogStats::default(),
        };
        stream.adopt_snapshot_room().map_err(failed)?;
        stream.begin(fresh).map_err(failed)?;
        Ok(stream)
    }

    /// Prepares files, begins the first segment of a new log, and notes that the log was opened.
    fn begin(&mut self, fresh: bool) -> io::Result<()> {
        self.prepare()?;
        if fresh {
            self.roll()?;
        } else if self.active.end == widen(SEGMENT_HEADER_BYTES) {
            self.push_start();
        }
        self.prepare()?;
        let boot_id = self.boot_id;
        self.push_node(RecordKind::Opened, &boot_id.to_le_bytes())
    }

    pub(crate) const fn poison(&self) -> Option<&String> {
        self.poison.as_ref()
    }

    /// Marks the log as failed and returns what must be told so.
    pub(crate) fn poison_with(&mut self, reason: &str) -> Vec<Flushed> {
        if self.poison.is_none() {
            self.poison = Some(reason.to_owned());
        }
        self.queue
            .callbacks
            .drain(..)
            .map(|(callback, _)| callback)
            .collect()
    }

    pub(crate) fn error(&self) -> Option<LogError> {
        self.poison
            .clone()
            .map(|reason| LogError::Poisoned { reason })
    }

    pub(crate) const fn space(&self) -> Space {
        if self.is_full {
            Space::Full
        } else {
            Space::Enough
        }
    }

    /// Makes room for more shards.
    pub(crate) fn grow(&mut self, shard_count: usize) {
        assert!(self.shards.len() <= shard_count, "shards are never dropped");
        self.shards.resize_with(shard_count, ShardState::default);
    }

    const fn always(&self) -> bool {
        matches!(self.config.fsync, FsyncPolicy::Always)
    }

    fn push_start(&mut self) {
        let numbered = (0_u32..).zip(&self.shards);
        let shards = numbered
            .map(|(shard, state)| state.image.start(ShardId::new(shard)))
            .collect();
        let payload = SegmentStart {
            boot_id: self.boot_id,
            shards,
        }
        .encode();
        self.node_sequence += 1;
        let header = self.header(RecordKind::SegmentStart, NODE_WIDE, self.node_sequence);
        self.place(&header, &payload);
    }

    pub(crate) fn push_node(&mut self, kind: RecordKind, payload: &[u8]) -> io::Result<()> {
        self.fit(payload.len())?;
        self.node_sequence += 1;
        let header = self.header(kind, NODE_WIDE, self.node_sequence);
        self.place(&header, payload);
        Ok(())
    }

    fn header(&self, kind: RecordKind, shard: u32, sequence: u64) -> RecordHeader {
        RecordHeader {
            kind,
            chain: self.chain,
            shard,
            durable: 0,
            earlier_durable: false,
            sequence,
            term: Term::new(0),
            index: 0,
            timestamp: UnixMillis::new(self.clock.unix_millis()),
        }
    }

    /// Rolls if a record with this payload does not fit the active segment.
    fn fit(&mut self, payload_bytes: usize) -> io::Result<()> {
        let size = widen(record_size(payload_bytes));
        if self.active.end + size <= self.active.capacity {
            return Ok(());
        }
        self.roll()?;
        if self.active.end + size <= self.active.capacity {
            return Ok(());
        }
        // Nobody asked for room: extend the segment in place.
        let capacity = self.active.end + size;
        self.active.file.allocate(capacity)?;
        self.active.capacity = capacity;
        Ok(())
    }

    /// Gives a record its place; it has been made to fit. Returns the place.
    fn place(&mut self, header: &RecordHeader, payload: &[u8]) -> Position {
        let mut header = *header;
        header.chain = self.chain;
        header.durable = durable_field(self.active.durable);
        header.earlier_durable = self.earlier_durable;
        let offset = self.active.end;
        let spare = &mut self.spare;
        let file = &self.active.file;
        let chunk = self.queue.open_chunk.get_or_insert_with(|| Chunk {
            file: Arc::clone(file),
            offset,
            bytes: spare.pop().unwrap_or_default(),
        });
        self.chain = encode(&mut chunk.bytes, self.active.salt, &header, payload);
        let size = record_size(payload.len());
        self.active.end += widen(size);
        self.stats.records += 1;
        self.stats.appended_bytes += widen(size);
        Position {
            term: header.term,
            segment: self.active.number,
            offset,
        }
    }

    /// Appends a record of a shard.
    pub(crate) fn push(
        &mut self,
        shard: usize,
        kind: RecordKind,
        id: LogId,
        timestamp: UnixMillis,
        payload: &[u8],
    ) -> io::Result<Position> {
        self.fit(payload.len())?;
        let number = u32::try_from(shard).map_err(io::Error::other)?;
        let state = self
            .shards
            .get_mut(shard)
            .ok_or(io::ErrorKind::InvalidInput)?;
        state.image.sequence += 1;
        let header = RecordHeader {
            term: id.term,
            index: id.index.get(),
            timestamp,
            ..self.header(
                kind,
                number,
                self.shards.get(shard).map_or(0, |s| s.image.sequence),
            )
        };
        Ok(self.place(&header, payload))
    }

    /// Appends entries of a shard.
    pub(crate) fn push_entries(&mut self, shard: usize, entries: Vec<LogEntry>) -> io::Result<()> {
        for entry in entries {
            let position = self.push(
                shard,
                RecordKind::Entry,
                entry.id,
                entry.timestamp,
                &entry.payload,
            )?;
            let Some(state) = self.shards.get_mut(shard) else {
                continue;
            };
            let expected = state.image.last.map_or(1, |last| last.index.get() + 1);
            assert_eq!(
                entry.id.index.get(),
                expected,
                "entries are appended without gaps"
            );
            state.image.entries.push_back(position);
            state.image.last = Some(entry.id);
            state.keep(entry);
        }
        let last = self.shards.get(shard).and_then(|state| state.image.last);
        let index = last.map_or(0, |last| last.index.get());
        self.queue.appended.insert(shard, index);
        self.queue.unsynced.insert(shard, index);
        Ok(())
    }

    /// Makes entries after an index void.
    pub(crate) fn push_truncate(&mut self, shard: usize, index: LogIndex) -> io::Result<()> {
        let id = LogId {
            term: Term::new(0),
            index,
        };
        if !bug::is_on(Bug::TruncateNotWritten) {
            self.push(shard, RecordKind::TruncateAfter, id, self.now(), &[])?;
        }
        if let Some(state) = self.shards.get_mut(shard) {
            state.image.truncate_after(index.get());
            state.drop_tail(|entry| index.get() < entry);
            state.flushed = state.flushed.min(index.get());
            state.durable = state.durable.min(index.get());
            for waiting in [&mut self.queue.appended, &mut self.queue.unsynced] {
                if let Some(appended) = waiting.get_mut(&shard) {
                    *appended = (*appended).min(index.get());
                }
            }
        }
        Ok(())
    }

    /// Drops entries up to an id.
    pub(crate) fn push_purge(&mut self, shard: usize, id: LogId) -> io::Result<()> {
        self.push(shard, RecordKind::PurgeTo, id, self.now(), &[])?;
        if let Some(state) = self.shards.get_mut(shard) {
            state.image.purge_to(id);
            state.drop_tail(|entry| entry <= id.index.get());
            state.flushed = state.flushed.max(id.index.get());
            state.durable = state.durable.max(id.index.get());
        }
        Ok(())
    }

    /// Forgets a shard but for its vote.
    pub(crate) fn push_retired(&mut self, shard: usize, gone_at: LogId) -> io::Result<()> {
        let state = self.shards.get(shard).ok_or(io::ErrorKind::InvalidInput)?;
        let tombstone = state.image.tombstone_at(gone_at);
        let (kind, now) = (RecordKind::Retired, self.now());
        self.push(shard, kind, tombstone.last, now, &tombstone.encode())?;
        if let Some(state) = self.shards.get_mut(shard) {
            state.image.retire(tombstone);
            // All of it, its memory too.
            *state = ShardState {
                image: std::mem::take(&mut state.image),
                ..ShardState::default()
            };
        }
        for waiting in [&mut self.queue.appended, &mut self.queue.unsynced] {
            waiting.remove(&shard);
        }
        self.pins.retain(|(pinned, _), _| *pinned != shard);
        Ok(())
    }

    pub(crate) fn draw_salt(&mut self) -> u64 {
        (self.draw)()
    }

    pub(crate) fn now(&self) -> UnixMillis {
        UnixMillis::new(self.clock.unix_millis())
    }

    fn close_chunk(&mut self) {
        if let Some(chunk) = self.queue.open_chunk.take() {
            if !self
                .queue
                .dirty
                .iter()
                .any(|file| Arc::ptr_eq(file, &chunk.file))
            {
                self.queue.dirty.push(Arc::clone(&chunk.file));
            }
            self.queue.chunks.push(chunk);
        }
    }

    /// Takes note of what is to be called once everything appended so far is flushed; `durably`:
    /// only after a sync, whatever the policy.
    pub(crate) fn call_when_flushed(&mut self, callback: Flushed, durably: bool) {
        self.queue.callbacks.push((callback, durably));
    }

    /// Without `fsync = always`: writes what has been appended, now, and returns the callbacks that
    /// need no sync.
    pub(crate) fn write_inline(&mut self) -> io::Result<Vec<Flushed>> {
        assert!(!self.always(), "with fsync = always the writer writes");
        self.close_chunk();
        self.write_chunks()?;
        for (shard, index) in std::mem::take(&mut self.queue.appended) {
            self.mark_flushed(shard, index);
        }
        let (durable, ready): (Vec<_>, Vec<_>) = std::mem::take(&mut self.queue.callbacks)
            .into_iter()
            .partition(|(_, durably)| *durably);
        self.queue.callbacks = durable;
        Ok(ready.into_iter().map(|(callback, _)| callback).collect())
    }

    fn write_chunks(&mut self) -> io::Result<()> {
        for chunk in self.queue.chunks.drain(..) {
            chunk.file.write_all_at(&chunk.bytes, chunk.offset)?;
            self.stats.writes += 1;
            recycle(&mut self.spare, chunk.bytes);
        }
        Ok(())
    }

    fn mark_flushed(&mut self, shard: usize, index: u64) {
        let bytes_max = self.config.tail_bytes_max;
        if let Some(state) = self.shards.get_mut(shard) {
            let last = state.image.last.map_or(0, |last| last.index.get());
            state.flushed = state.flushed.max(index.min(last));
            state.trim(bytes_max);
        }
    }

    fn mark_durable(&mut self, shard: usize, index: u64) {
        if let Some(state) = self.shards.get_mut(shard) {
            let last = state.image.last.map_or(0, |last| last.index.get());
            state.durable = state.durable.max(index.min(last));
        }
    }

    /// Whether a sync is wanted now: only if somebody waits for one. A mark alone goes with
    /// whatever is synced next.
    pub(crate) const fn wants_sync(&self) -> bool {
        !self.queue.callbacks.is_empty()
    }

    /// Takes everything that must be written and synced, with what waits for it.
    pub(crate) fn take_work(&mut self) -> Work {
        self.close_chunk();
        Work {
            chunks: std::mem::take(&mut self.queue.chunks),
            sync: std::mem::take(&mut self.queue.dirty),
            sync_dir: std::mem::take(&mut self.queue.dirty_dir),
            callbacks: std::mem::take(&mut self.queue.callbacks),
            flushed: std::mem::take(&mut self.queue.appended)
                .into_iter()
                .collect(),
            synced: std::mem::take(&mut self.queue.unsynced)
                .into_iter()
                .collect(),
            active: self.active.number,
            end: self.active.end,
            needed: self.oldest_needed(),
        }
    }

    /// The oldest segment that some shard needs, by what has been appended so far.
    fn oldest_needed(&self) -> u64 {
        let fronts = self
            .shards
            .iter()
            .filter_map(|state| state.image.entries.front());
        let needed = fronts.map(|position| position.segment).min();
        needed.unwrap_or(self.active.number).min(self.active.number)
    }

    /// Whether a shard needs a segment before the active one.
    pub(crate) fn pins_old_segments(&self, shard: usize) -> bool {
        let front = self.shards.get(shard);
        let front = front.and_then(|state| state.image.entries.front());
        front.is_some_and(|position| position.segment < self.active.number)
    }

    /// Takes note that work was done, and returns what may be called now.
    pub(crate) fn complete(&mut self, work: Work, sync_nanos: u64) -> Vec<Flushed> {
        // Only a purge that is durable itself makes a segment superfluous.
        self.durably_needed = self.durably_needed.max(work.needed);
        if work.active == self.active.number {
            self.active.durable = self.active.durable.max(work.end);
            self.earlier_durable = true;
        }
        if work.syncs() {
            self.stats.syncs += 1;
            self.stats.sync_nanos += sync_nanos;
            self.stats.sync_nanos_max = self.stats.sync_nanos_max.max(sync_nanos);
        }
        for chunk in work.chunks {
            self.stats.writes += 1;
            recycle(&mut self.spare, chunk.bytes);
        }
        for (shard, index) in work.flushed {
            self.mark_flushed(shard, index);
        }
        for (shard, index) in work.synced {
            self.mark_durable(shard, index);
        }
        work.callbacks
            .into_iter()
            .map(|(callback, _)| callback)
            .collect()
    }

    pub(crate) fn readable(&self, segment: u64) -> Option<Readable> {
        self.readable.get(&segment).cloned()
    }

    /// Segments before this one are needed by no shard, and that is durable.
    pub(crate) const fn durably_needed(&self) -> u64 {
        self.durably_needed
    }

    pub(crate) fn stats(&self) -> LogStats {
        LogStats {
            segments: widen(self.readable.len()),
            retained_bytes: self.history_bytes(),
            ..self.stats
        }
    }

    /// Bytes of the active segment that are in use, and its number; for tests and tools.
    pub(crate) const fn end(&self) -> (u64, u64) {
        (self.active.number, self.active.end)
    }
}

/// Stands for the segment before the first: it is never written.
fn placeholder(disk: &dyn Disk, log_dir: &std::path::Path) -> io::Result<Active> {
    let path = log_dir.join("none.prepared");
    if disk.exists(&path) {
        disk.remove(&path)?;
    }
    let file = disk.open(&path, OpenMode::CreateNew)?;
    disk.remove(&path)?;
    Ok(Active {
        number: 0,
        salt: 0,
        file,
        capacity: 0,
        end: 0,
        durable: 0,
    })
}

/// Whether an error means that the disk, or a quota on it, is full.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

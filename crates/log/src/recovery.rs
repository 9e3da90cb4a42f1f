//! What an open finds: reads every record once, checks all that can be checked, and decides whether
//! a bad place is a torn tail (cut, and reported) or damage (refused, nothing changed).
//!
//! **Torn or damaged.** A process that dies tears only the end of what it wrote: after the bad
//! place there is no valid record. A machine that loses power may also lose an *earlier* part of
//! what was never synced and keep a later part. Each record therefore says up to where the log was
//! known to be durable when it was written. If the machine has booted since, and no later record
//! claims that the bad place was durable, the bad place is torn; in every other case it is damage.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use flux_env::{Disk, File, OpenMode};
use flux_types::{LogIndex, ShardId, Term};

use crate::blocks::Blocks;
use crate::error::OpenError;
use crate::fields::{narrow, widen};
use crate::positions::{Position, Positions};
use crate::record::{
    LogId, NODE_WIDE, RECORD_ALIGNMENT, RECORD_HEADER_BYTES, Record, RecordError, RecordKind,
    Tombstone, Vote, decode, size_at,
};
use crate::segment::{
    FORMAT_VERSION, SEGMENT_HEADER_BYTES, SegmentHeader, SegmentHeaderError, SegmentStart,
    ShardStart, segment_name, segment_number,
};

/// What the log says of one shard.
#[derive(Clone, Debug, Default)]
pub(crate) struct ShardImage {
    pub(crate) sequence: u64,
    pub(crate) vote: Option<Vote>,
    pub(crate) last: Option<LogId>,
    pub(crate) purged: Option<LogId>,
    pub(crate) committed: Option<LogId>,
    pub(crate) installed: Option<LogId>,
    pub(crate) tombstone: Option<Tombstone>,
    /// Positions of the entries up to `last`, without gaps, the oldest first.
    pub(crate) entries: Positions,
    /// Positions of purged entries whose segments are still there, ending before `entries`.
    pub(crate) history: Positions,
}

impl ShardImage {
    /// Index of the oldest entry with a known position; the next index if there is none.
    pub(crate) fn first_index(&self) -> u64 {
        let last = self.last.map_or(0, |id| id.index.get());
        last + 1 - widen(self.entries.len())
    }

    pub(crate) fn position(&self, index: LogIndex) -> Option<Position> {
        let at = index.get().checked_sub(self.first_index())?;
        self.entries.get(narrow(at))
    }

    /// Index of the oldest entry that can still be read, purged or not; the next index if none.
    pub(crate) fn oldest_index(&self) -> u64 {
        self.first_index() - widen(self.history.len())
    }

    /// Where an entry lies that may have been purged.
    pub(crate) fn history_position(&self, index: LogIndex) -> Option<Position> {
        if self.first_index() <= index.get() {
            return self.position(index);
        }
        let at = index.get().checked_sub(self.oldest_index())?;
        self.history.get(narrow(at))
    }

    /// Forgets purged entries in segments before one.
    pub(crate) fn forget_before(&mut self, segment: u64) {
        self.history.drop_before(segment);
    }

    /// The id of the entry at an index, if it is there.
    pub(crate) fn id_at(&self, index: LogIndex) -> Option<LogId> {
        Some(LogId {
            term: self.position(index)?.term,
            index,
        })
    }

    pub(crate) fn truncate_after(&mut self, index: u64) {
        let Some(gone) = self
            .last
            .and_then(|last| last.index.get().checked_sub(index))
        else {
            return;
        };
        for _ in 0..gone {
            if self.entries.pop_back().is_none() {
                break;
            }
        }
        let index = LogIndex::new(index);
        self.last = match self.entries.back() {
            _ if index.get() == 0 => None,
            Some(position) => Some(LogId {
                term: position.term,
                index,
            }),
            // The entry is not here. Either it was purged, or it will be before this log ends: its
            // segment is gone, and the purge that allowed that says its term.
            None => self
                .purged
                .filter(|purged| purged.index == index)
                .or_else(|| {
                    Some(LogId {
                        term: Term::new(0),
                        index,
                    })
                }),
        };
    }

    pub(crate) fn purge_to(&mut self, id: LogId) {
        if self.last.is_none_or(|last| last.index < id.index) {
            // A snapshot went beyond the log: the log continues after it.
            self.entries.clear();
            self.history.clear();
            self.last = Some(id);
        }
        if self.last.is_some_and(|last| last.index == id.index) {
            self.last = Some(id);
        }
        let purged = (id.index.get() + 1).saturating_sub(self.first_index());
        self.entries.move_front(purged, &mut self.history);
        if self.purged.is_none_or(|purged| purged.index < id.index) {
            self.purged = Some(id);
        }
    }

    /// What would be left of it if a membership without this node allowed it to forget.
    pub(crate) fn tombstone_at(&self, gone_at: LogId) -> Tombstone {
        let before = self.tombstone.unwrap_or_default();
        Tombstone {
            last: before.last.max(self.last.unwrap_or_default()),
            gone_at: before.gone_at.max(gone_at),
        }
    }

    /// Forgets everything but the vote and what was forgotten.
    pub(crate) fn retire(&mut self, tombstone: Tombstone) {
        *self = Self {
            sequence: self.sequence,
            vote: self.vote,
            tombstone: Some(tombstone),
            ..Self::default()
        };
    }

    pub(crate) const fn start(&self, shard: ShardId) -> ShardStart {
        ShardStart {
            shard,
            sequence: self.sequence,
            vote: self.vote,
            last: self.last,
            purged: self.purged,
            committed: self.committed,
            installed: self.installed,
            tombstone: self.tombstone,
        }
    }

    /// Takes in one record of this shard, whose sequence has been checked.
    fn take(&mut self, record: &Record<'_>, segment: u64, offset: u64) -> Result<(), String> {
        let header = &record.header;
        self.sequence = header.sequence;
        let id = header.log_id();
        match header.kind {
            RecordKind::Entry => {
                let expected = self.last.map_or(1, |last| last.index.get() + 1);
                if id.index.get() != expected {
                    return Err(format!("entry {} where {expected} was expected", id.index));
                }
                self.entries.push_back(Position {
                    term: id.term,
                    segment,
                    offset,
                });
                self.last = Some(id);
            }
            RecordKind::Vote => {
                let committed = record.payload.first() == Some(&1);
                let node = flux_types::NodeId::new(header.index);
                self.vote = Some(Vote {
                    term: header.term,
                    node,
                    committed,
                });
            }
            RecordKind::TruncateAfter => self.truncate_after(header.index),
            RecordKind::PurgeTo => self.purge_to(id),
            RecordKind::Committed => self.committed = Some(id),
            RecordKind::SnapshotInstalled => self.installed = Some(id),
            RecordKind::Retired => {
                let tombstone = record.tombstone();
                self.retire(tombstone.ok_or("a tombstone is cut short")?);
            }
            RecordKind::SegmentStart | RecordKind::Opened | RecordKind::Closed => {
                return Err("record of the node under a shard's number".to_owned());
            }
        }
        Ok(())
    }
}

/// A tail that was cut at open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TornTail {
    /// Name of the segment.
    pub segment: String,
    /// Where the valid part ends, in bytes.
    pub offset: u64,
    /// Bytes after it that were not zero, and are gone.
    pub lost_bytes: u64,
}

/// What an open found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// A tail that was cut.
    pub torn: Option<TornTail>,
    /// Whether the log had been closed in order.
    pub clean: bool,
    /// Whether the machine has booted since the log was last written.
    pub rebooted: bool,
    /// Records read.
    pub records: u64,
    /// Bytes read.
    pub bytes: u64,
}

/// A segment that was read.
#[derive(Debug)]
pub(crate) struct OpenSegment {
    pub(crate) header: SegmentHeader,
    pub(crate) file: Arc<dyn File>,
    pub(crate) capacity: u64,
}

/// The whole log as found.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) shards: Vec<ShardImage>,
    pub(crate) node_sequence: u64,
    pub(crate) chain: u32,
    pub(crate) segments: BTreeMap<u64, OpenSegment>,
    /// Where the next record goes in the last segment.
    pub(crate) end: u64,
    /// What was torn off, if anything: the segment to cut, and later ones to drop.
    pub(crate) cut: Option<Cut>,
    pub(crate) recovery: Recovery,
}

/// How a torn tail is to be cut.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cut {
    pub(crate) segment: u64,
    pub(crate) offset: u64,
}

/// Where records stop making sense, and why.
struct BadPlace {
    segment: u64,
    offset: u64,
    what: String,
}

/// Scans records in order and keeps what they say.
struct Scan<'a> {
    dir: &'a Path,
    boot_id: u128,
    image: Image,
    chain_known: bool,
    written_under: Option<u128>,
}

/// Reads the segments of a log directory. Changes nothing.
pub(crate) fn scan(
    disk: &dyn Disk,
    dir: &Path,
    shard_count: u32,
    boot_id: u128,
) -> Result<Image, OpenError> {
    let log_dir = dir.join("log");
    let names = disk
        .read_dir(&log_dir)
        .map_err(|e| OpenError::io("list", log_dir.clone(), e))?;
    let mut numbers: Vec<u64> = names
        .iter()
        .filter_map(|name| segment_number(name))
        .collect();
    numbers.sort_unstable();
    let image = Image {
        shards: vec![ShardImage::default(); narrow(u64::from(shard_count))],
        node_sequence: 0,
        chain: 0,
        segments: BTreeMap::new(),
        end: 0,
        cut: None,
        recovery: Recovery::default(),
    };
    let mut scan = Scan {
        dir,
        boot_id,
        image,
        chain_known: false,
        written_under: None,
    };
    let mut previous = None;
    let mut buffer = Vec::new();
    for number in &numbers {
        if previous.is_some_and(|previous| previous + 1 != *number) {
            let missing = previous.map_or(0, |previous| previous + 1);
            return Err(scan.damaged(missing, 0, "the segment is missing".to_owned(), Vec::new()));
        }
        previous = Some(*number);
        let path = log_dir.join(segment_name(*number));
        let mut blocks = open_segment(disk, &path, &mut scan, *number, buffer)?;
        if let Some((offset, what)) = scan.segment(*number, &mut blocks)? {
            let later: Vec<u64> = numbers
                .iter()
                .copied()
                .filter(|later| number < later)
                .collect();
            let bad = BadPlace {
                segment: *number,
                offset,
                what,
            };
            scan.judge(disk, &blocks.rest(offset)?, &bad, &later)?;
            break;
        }
        buffer = blocks.into_buffer();
    }
    scan.finish()
}

/// Opens a segment and checks its header.
fn open_segment(
    disk: &dyn Disk,
    path: &Path,
    scan: &mut Scan<'_>,
    number: u64,
    buffer: Vec<u8>,
) -> Result<Blocks, OpenError> {
    let file = disk.open(path, OpenMode::ReadWrite);
    let file = file.map_err(|source| OpenError::io("read", path, source))?;
    let mut blocks = Blocks::new(path, file, buffer)?;
    match SegmentHeader::decode(blocks.at(0, SEGMENT_HEADER_BYTES)?) {
        Ok(header) if header.number == number => {
            let (file, capacity) = (Arc::clone(blocks.file()), blocks.size());
            scan.image.segments.insert(
                number,
                OpenSegment {
                    header,
                    file,
                    capacity,
                },
            );
            Ok(blocks)
        }
        Ok(header) => {
            let what = format!(
                "the file says it is segment {}",
                segment_name(header.number)
            );
            Err(scan.damaged(number, 0, what, Vec::new()))
        }
        Err(SegmentHeaderError::Version(found)) => Err(OpenError::Version {
            path: path.to_path_buf(),
            found,
            known: FORMAT_VERSION,
        }),
        Err(error @ SegmentHeaderError::Damaged) => {
            Err(scan.damaged(number, 0, error.to_string(), Vec::new()))
        }
    }
}

impl Scan<'_> {
    fn damaged(&self, segment: u64, offset: u64, what: String, shards: Vec<ShardId>) -> OpenError {
        let dir = self.dir.to_path_buf();
        OpenError::Damaged {
            dir,
            segment: segment_name(segment),
            offset,
            shards,
            what,
        }
    }

    fn salt(&self, number: u64) -> u64 {
        self.image
            .segments
            .get(&number)
            .map_or(0, |segment| segment.header.salt)
    }

    /// Takes in a segment's records. Returns where and why it stopped before the file's end, if a
    /// tail of zeros does not explain it.
    fn segment(
        &mut self,
        number: u64,
        blocks: &mut Blocks,
    ) -> Result<Option<(u64, String)>, OpenError> {
        let salt = self.salt(number);
        let mut offset = widen(SEGMENT_HEADER_BYTES);
        self.image.end = offset;
        loop {
            let size = size_at(blocks.at(offset, RECORD_HEADER_BYTES)?);
            // A length that leads out of the file is not worth reading for.
            let fits = offset + widen(size) <= blocks.size();
            let rest = blocks.at(offset, if fits { size } else { 0 })?;
            let record = match decode(rest, salt) {
                Ok(record) => record,
                Err(RecordError::Kind(kind)) => {
                    let what = format!("record kind {kind} is not known");
                    return Err(self.damaged(number, offset, what, Vec::new()));
                }
                Err(error) => {
                    let first = offset == widen(SEGMENT_HEADER_BYTES);
                    let quiet = !first && blocks.is_zero_from(offset)?;
                    return Ok((!quiet).then(|| (offset, error.to_string())));
                }
            };
            if let Err(what) = self.record(&record, number, offset) {
                return Ok(Some((offset, what)));
            }
            offset += widen(record.size());
            self.image.end = offset;
            self.image.recovery.records += 1;
            self.image.recovery.bytes += widen(record.size());
        }
    }

    /// Takes in one record whose checksum matched, if it follows from those before it.
    fn record(&mut self, record: &Record<'_>, segment: u64, offset: u64) -> Result<(), String> {
        let header = &record.header;
        if self.chain_known && header.chain != self.image.chain {
            return Err("a record before this one is missing".to_owned());
        }
        if header.kind == RecordKind::SegmentStart && !self.chain_known {
            self.begin(record)?;
        }
        self.chain_known = true;
        self.image.recovery.clean = header.kind == RecordKind::Closed;
        if header.shard == NODE_WIDE {
            self.node_record(record)?;
        } else {
            let shard = usize::try_from(header.shard).map_err(|error| error.to_string())?;
            let image = self.image.shards.get_mut(shard).ok_or("no such shard")?;
            if header.sequence != image.sequence + 1 {
                return Err(format!("records of shard {} are missing", header.shard));
            }
            image.take(record, segment, offset)?;
        }
        self.image.chain = record.crc;
        Ok(())
    }

    /// The first record of the oldest segment: everything known of older ones.
    fn begin(&mut self, record: &Record<'_>) -> Result<(), String> {
        let start = SegmentStart::decode(record.payload).ok_or("segment start cut short")?;
        for item in start.shards {
            let shard = usize::try_from(item.shard.get()).map_err(|error| error.to_string())?;
            let image = self.image.shards.get_mut(shard).ok_or("no such shard")?;
            image.sequence = item.sequence;
            image.vote = item.vote;
            image.last = item.last;
            image.purged = item.purged;
            image.committed = item.committed;
            image.installed = item.installed;
            image.tombstone = item.tombstone;
        }
        self.image.node_sequence = record.header.sequence - 1;
        Ok(())
    }

    fn node_record(&mut self, record: &Record<'_>) -> Result<(), String> {
        if record.header.sequence != self.image.node_sequence + 1 {
            return Err("records of the node are missing".to_owned());
        }
        self.image.node_sequence = record.header.sequence;
        match record.header.kind {
            RecordKind::SegmentStart => {
                let start =
                    SegmentStart::decode(record.payload).ok_or("segment start cut short")?;
                self.written_under = Some(start.boot_id);
            }
            RecordKind::Opened => {
                let bytes = record.payload.try_into().map_err(|_| "boot id cut short")?;
                self.written_under = Some(u128::from_le_bytes(bytes));
            }
            RecordKind::Closed => {}
            RecordKind::Entry
            | RecordKind::Vote
            | RecordKind::TruncateAfter
            | RecordKind::PurgeTo
            | RecordKind::Committed
            | RecordKind::SnapshotInstalled
            | RecordKind::Retired => {
                return Err("record of a shard under the node's number".to_owned());
            }
        }
        Ok(())
    }

    /// Decides what a bad place is, given the bytes from it on. Damage is an error; a torn tail is
    /// noted as a cut.
    fn judge(
        &mut self,
        disk: &dyn Disk,
        after: &[u8],
        bad: &BadPlace,
        later: &[u64],
    ) -> Result<(), OpenError> {
        let BadPlace {
            segment,
            offset,
            ref what,
        } = *bad;
        let salt = self.salt(segment);
        // The bad place itself may hold a valid record that does not follow from those before it.
        let here = decode(after, salt).is_ok();
        let mut survivors: Vec<Survivor> =
            resynchronize(after, salt, if here { 0 } else { RECORD_ALIGNMENT });
        let mut claimed = survivors.iter().any(|record| offset < record.durable_bytes);
        // A bad first record means that the end of the segment before it may be gone.
        let first = offset == widen(SEGMENT_HEADER_BYTES);
        claimed |= first && survivors.iter().any(|record| record.earlier_durable);
        for number in later {
            let path = self.dir.join("log").join(segment_name(*number));
            let blocks = open_segment(disk, &path, self, *number, Vec::new())?;
            let more = blocks.rest(widen(SEGMENT_HEADER_BYTES))?;
            let found = resynchronize(&more, self.salt(*number), 0);
            claimed |= found.iter().any(|record| record.earlier_durable);
            survivors.extend(found);
        }
        let rebooted = self.written_under.is_some_and(|boot| boot != self.boot_id);
        let torn = (survivors.is_empty() && later.is_empty())
            || (rebooted && !claimed && !survivors.is_empty() && later.len() <= 1)
            || (rebooted && survivors.is_empty() && later.len() <= 1);
        if !torn {
            let what = format!("{what}, and there are valid records after it");
            let shards = self.suspects(&survivors);
            return Err(self.damaged(segment, offset, what, shards));
        }
        let lost_bytes = after
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |at| widen(at) + 1);
        self.image.cut = Some(Cut { segment, offset });
        self.image.end = offset;
        let segment = segment_name(segment);
        self.image.recovery.torn = Some(TornTail {
            segment,
            offset,
            lost_bytes,
        });
        self.image.recovery.clean = false;
        Ok(())
    }

    /// Shards whose sequence does not continue after the bad place; if all that were seen again
    /// continue, those that were not seen again.
    fn suspects(&self, survivors: &[Survivor]) -> Vec<ShardId> {
        let mut first_seen: BTreeMap<u32, u64> = BTreeMap::new();
        for survivor in survivors
            .iter()
            .filter(|survivor| survivor.shard != NODE_WIDE)
        {
            first_seen
                .entry(survivor.shard)
                .or_insert(survivor.sequence);
        }
        let shards = (0_u32..).zip(&self.image.shards);
        let broken: Vec<ShardId> = shards
            .clone()
            .filter(|(shard, image)| {
                first_seen
                    .get(shard)
                    .is_some_and(|sequence| *sequence != image.sequence + 1)
            })
            .map(|(shard, _)| ShardId::new(shard))
            .collect();
        if !broken.is_empty() {
            return broken;
        }
        shards
            .filter(|(shard, _)| !first_seen.contains_key(shard))
            .map(|(shard, _)| ShardId::new(shard))
            .collect()
    }

    fn finish(mut self) -> Result<Image, OpenError> {
        self.image.recovery.rebooted = self.written_under.is_some_and(|boot| boot != self.boot_id);
        for (number, shard) in (0_u32..).zip(&self.image.shards) {
            let needed = shard.purged.map_or(1, |purged| purged.index.get() + 1);
            if needed < shard.first_index() {
                let oldest = self.image.segments.keys().next().copied().unwrap_or(1);
                let what = format!("entries from {needed} on are in a segment that is missing");
                let missing = oldest.saturating_sub(1);
                return Err(self.damaged(missing, 0, what, vec![ShardId::new(number)]));
            }
        }
        Ok(self.image)
    }
}

/// A valid record found after a bad place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Survivor {
    pub(crate) shard: u32,
    pub(crate) sequence: u64,
    pub(crate) durable_bytes: u64,
    pub(crate) earlier_durable: bool,
}

/// Finds the valid records in `bytes`, trying each aligned place from `from` on.
pub(crate) fn resynchronize(bytes: &[u8], salt: u64, from: usize) -> Vec<Survivor> {
    let mut found = Vec::new();
    let mut at = from;
    while at + RECORD_HEADER_BYTES <= bytes.len() {
        let rest = bytes.get(at..).unwrap_or_default();
        // The kind alone rules out nearly every place, zeros above all, without a checksum.
        let plausible = rest
            .get(8)
            .is_some_and(|byte| RecordKind::from_byte(*byte).is_some());
        match plausible.then(|| decode(rest, salt)) {
            Some(Ok(record)) => {
                found.push(Survivor {
                    shard: record.header.shard,
                    sequence: record.header.sequence,
                    durable_bytes: u64::from(record.header.durable) * widen(RECORD_ALIGNMENT),
                    earlier_durable: record.header.earlier_durable,
                });
                at += record.size();
            }
            Some(Err(_)) | None => at += RECORD_ALIGNMENT,
        }
    }
    found
}

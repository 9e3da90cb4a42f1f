//! Snapshot files: a shard's state that replaces the log before it. See `docs/file-format.md`.
//!
//! A snapshot is taken while writes go on. Its footer names S, the entry that was applied when the
//! walk began, and E, the last one applied or being applied when it ended; the state is right once
//! everything up to E has been replayed over it. The file is written under a temporary name and
//! gets its final one only when the log is flushed through E: an older snapshot and the log after
//! it stay until then.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use flux_env::{File, OpenMode};
use flux_types::bug::{self, Bug};
use flux_types::{LogIndex, ShardId, Term, UnixMillis};

use crate::config::LogConfig;
use crate::error::{LogError, OpenError};
use crate::fields::{Fields, length_u32, narrow, widen};
use crate::record::LogId;
use crate::recovery::ShardImage;
use crate::shard_log::ShardLog;
use crate::writer::Shared;

/// First bytes of a snapshot file.
pub const SNAPSHOT_MAGIC: [u8; 8] = *b"FLUXSNP1";
/// Last bytes of a snapshot file.
pub const SNAPSHOT_END: [u8; 8] = *b"FLUXSNPE";
/// Version of snapshot files that this program reads and writes.
pub const SNAPSHOT_VERSION: u32 = 1;
/// Size of the header at the front of a snapshot file, in bytes.
pub const SNAPSHOT_HEADER_BYTES: usize = 64;
const BLOCK_HEADER_BYTES: usize = 24;
const TRAILER_BYTES: usize = 16;
const KIND_BLOCK: u32 = 1;
const KIND_FOOTER: u32 = 2;
/// Longest block, in bytes.
pub const BLOCK_BYTES_MAX: usize = 512 * 1024 * 1024;

/// What a snapshot says of itself at its front.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotHeader {
    /// Whose state it is.
    pub shard: ShardId,
    /// When it was begun.
    pub created: UnixMillis,
    /// S: the entry that was applied when the walk began; index 0 for none.
    pub begin: LogId,
    salt: u64,
}

/// What a snapshot says of itself at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotFooter {
    /// E: the last entry applied or being applied when the walk ended.
    pub end: LogId,
    /// What the room above needs besides the blocks: membership, revision. Opaque here.
    pub meta: Bytes,
    /// Number of blocks. Filled in by the writer.
    pub blocks: u64,
    /// Bytes in all blocks. Filled in by the writer.
    pub bytes: u64,
}

impl SnapshotFooter {
    /// A footer for a walk that ended at `end`.
    #[must_use]
    pub const fn new(end: LogId, meta: Bytes) -> Self {
        Self {
            end,
            meta,
            blocks: 0,
            bytes: 0,
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for number in [
            self.end.term.get(),
            self.end.index.get(),
            self.blocks,
            self.bytes,
        ] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&length_u32(&self.meta).to_le_bytes());
        out.extend_from_slice(&self.meta);
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields::new(bytes);
        let term = Term::new(fields.u64()?);
        let end = LogId {
            term,
            index: LogIndex::new(fields.u64()?),
        };
        let blocks = fields.u64()?;
        let bytes = fields.u64()?;
        let meta_bytes = narrow(u64::from(fields.u32()?));
        let meta = Bytes::copy_from_slice(fields.take(meta_bytes)?);
        fields.rest().is_empty().then_some(Self {
            end,
            meta,
            blocks,
            bytes,
        })
    }
}

impl SnapshotHeader {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(SNAPSHOT_HEADER_BYTES);
        out.extend_from_slice(&SNAPSHOT_MAGIC);
        out.extend_from_slice(&SNAPSHOT_VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.salt.to_le_bytes());
        out.extend_from_slice(&self.shard.get().to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        for number in [
            self.created.get(),
            self.begin.term.get(),
            self.begin.index.get(),
            0,
        ] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        let crc = crc32c::crc32c(&out);
        if let Some(field) = out.get_mut(12..16) {
            field.copy_from_slice(&crc.to_le_bytes());
        }
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..SNAPSHOT_HEADER_BYTES)?;
        let mut zeroed = bytes.to_vec();
        zeroed.get_mut(12..16)?.fill(0);
        let mut fields = Fields::new(bytes);
        let magic = fields.take(8)?;
        let version = fields.u32()?;
        let crc = fields.u32()?;
        if magic != SNAPSHOT_MAGIC || version != SNAPSHOT_VERSION || crc32c::crc32c(&zeroed) != crc
        {
            return None;
        }
        let salt = fields.u64()?;
        let shard = ShardId::new(fields.u32()?);
        fields.take(4)?;
        let created = UnixMillis::new(fields.u64()?);
        let term = Term::new(fields.u64()?);
        let begin = LogId {
            term,
            index: LogIndex::new(fields.u64()?),
        };
        Some(Self {
            shard,
            created,
            begin,
            salt,
        })
    }
}

/// File name of a snapshot.
#[must_use]
pub fn snapshot_name(shard: ShardId, end: LogId) -> String {
    format!(
        "{:08x}-{:016x}-{:016x}.fsnap",
        shard.get(),
        end.index.get(),
        end.term.get()
    )
}

/// Shard and E of a snapshot by its file name.
#[must_use]
pub fn parse_snapshot_name(name: &str) -> Option<(ShardId, LogId)> {
    let mut parts = name.strip_suffix(".fsnap")?.split('-');
    let shard = u32::from_str_radix(parts.next()?, 16).ok()?;
    let index = u64::from_str_radix(parts.next()?, 16).ok()?;
    let term = u64::from_str_radix(parts.next()?, 16).ok()?;
    parts.next().is_none().then_some((
        ShardId::new(shard),
        LogId {
            term: Term::new(term),
            index: LogIndex::new(index),
        },
    ))
}

fn block_checksum(salt: u64, header: &[u8], payload: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&salt.to_le_bytes());
    let crc = crc32c::crc32c_append(crc, header.get(..16).unwrap_or_default());
    crc32c::crc32c_append(crc, payload)
}

fn block_header(salt: u64, kind: u32, number: u64, payload: &[u8]) -> Vec<u8> {
    let mut header = Vec::with_capacity(BLOCK_HEADER_BYTES);
    header.extend_from_slice(&kind.to_le_bytes());
    header.extend_from_slice(&length_u32(payload).to_le_bytes());
    header.extend_from_slice(&number.to_le_bytes());
    let crc = block_checksum(salt, &header, payload);
    header.extend_from_slice(&crc.to_le_bytes());
    header.extend_from_slice(&[0; 4]);
    header
}

/// Writes a snapshot block by block. Dropped before [`SnapshotWriter::finish`], it removes what it
/// has written; a file that a crash leaves is removed at the next open.
#[derive(Debug)]
pub struct SnapshotWriter {
    shared: Arc<Shared>,
    log: ShardLog,
    header: SnapshotHeader,
    draft: Draft,
    offset: u64,
    blocks: u64,
    bytes: u64,
}

/// The file of a snapshot that has no final name yet.
#[derive(Debug)]
struct Draft {
    shared: Arc<Shared>,
    path: PathBuf,
    file: Arc<dyn File>,
    /// Bytes that were allocated for it beforehand, if it has the room kept for snapshots.
    kept: Option<u64>,
    is_published: bool,
}

impl Draft {
    /// In the room kept for snapshots if nobody else has it; there a full disk is no obstacle.
    fn begin(shared: &Arc<Shared>, path: PathBuf) -> io::Result<Self> {
        if shared.disk.exists(&path) {
            shared.disk.remove(&path)?;
        }
        let room = shared.stream.lock().take_snapshot_room();
        let draft = |file, kept| Self {
            shared: Arc::clone(shared),
            path: path.clone(),
            file,
            kept,
            is_published: false,
        };
        let Some(room) = room else {
            let file = shared.disk.open(&path, OpenMode::CreateNew)?;
            return Ok(draft(file, None));
        };
        let draft = draft(room.file, Some(room.capacity));
        shared.disk.rename(&room.path, &draft.path)?;
        Ok(draft)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.is_published {
            // It may never have got its name.
            let _ = self.shared.disk.remove(&self.path).is_ok();
        }
        if self.kept.is_some() {
            self.shared.return_snapshot_room();
        }
    }
}

fn write_error(error: &io::Error) -> LogError {
    if crate::stream::is_full(error) {
        LogError::NoSpace
    } else {
        LogError::SnapshotWrite {
            reason: error.to_string(),
        }
    }
}

impl ShardLog {
    /// Begins a snapshot of a walk that starts with everything up to `begin` applied.
    ///
    /// # Errors
    /// If the file cannot be created.
    pub fn begin_snapshot(&self, begin: LogId) -> Result<SnapshotWriter, LogError> {
        let shared = Arc::clone(&self.shared);
        let (salt, created) = shared.draw_salt();
        let header = SnapshotHeader {
            shard: self.id,
            created,
            begin,
            salt,
        };
        // Of its own: another of the same entry may be under way.
        let (shard, index) = (self.id.get(), begin.index.get());
        let name = format!("{shard:08x}-{index:016x}-{salt:016x}.tmp");
        let temporary = shared.config.snapshot_dir().join(name);
        let create = || -> io::Result<Draft> {
            let draft = Draft::begin(&shared, temporary)?;
            draft.file.write_all_at(&header.encode(), 0)?;
            Ok(draft)
        };
        let draft = create().map_err(|error| write_error(&error))?;
        let offset = widen(SNAPSHOT_HEADER_BYTES);
        let log = self.clone();
        Ok(SnapshotWriter {
            shared,
            log,
            header,
            draft,
            offset,
            blocks: 0,
            bytes: 0,
        })
    }

    /// Removes this shard's snapshots before one that counts. A failure costs space and nothing else.
    /// Blocks on the disk.
    pub fn remove_snapshots_before(&self, end: LogId) {
        let dir = self.shared.config.snapshot_dir();
        for name in self.shared.disk.read_dir(&dir).unwrap_or_default() {
            let older = parse_snapshot_name(&name)
                .is_some_and(|(shard, other)| shard == self.id && other.index < end.index);
            if older && let Err(error) = self.shared.disk.remove(&dir.join(&name)) {
                tracing::warn!(name, %error, "cannot remove an old snapshot");
            }
        }
    }

    /// Removes all of this shard's snapshots, as after [`ShardLog::retire`]. A failure costs space
    /// until the next open and nothing else. Blocks on the disk.
    pub fn remove_snapshots(&self) {
        self.remove_snapshots_before(LogId {
            term: Term::new(u64::MAX),
            index: LogIndex::new(u64::MAX),
        });
    }

    /// The newest snapshot that the log reaches, if there is one.
    ///
    /// # Errors
    /// If its front or end is damaged, or it cannot be read. If the log before it is gone, that is
    /// damage which nothing here can repair.
    pub fn latest_snapshot(&self) -> Result<Option<SnapshotReader>, LogError> {
        let dir = self.shared.config.snapshot_dir();
        let names = self.shared.disk.read_dir(&dir);
        let names = names.map_err(|error| LogError::Read {
            reason: error.to_string(),
        })?;
        let state = self.state();
        let reached = state
            .last
            .max(state.purged)
            .max(state.installed)
            .unwrap_or_default();
        let newest = names
            .iter()
            .filter_map(|name| Some((parse_snapshot_name(name)?, name)))
            .filter(|((shard, end), _)| *shard == self.id && end.index <= reached.index)
            .max_by_key(|((_, end), _)| end.index);
        match newest {
            Some((_, name)) => SnapshotReader::open(&self.shared, name).map(Some),
            None if state.purged.is_some() => Err(LogError::DamagedSnapshot {
                name: format!("of shard {}", self.id),
                what: "the log before the snapshot is gone, and there is no snapshot",
            }),
            None => Ok(None),
        }
    }
}

impl SnapshotWriter {
    /// Appends a block.
    ///
    /// # Errors
    /// If the disk refuses; the writer is then useless.
    pub fn block(&mut self, payload: &[u8]) -> Result<(), LogError> {
        self.put(KIND_BLOCK, payload)?;
        self.blocks += 1;
        self.bytes += widen(payload.len());
        Ok(())
    }

    fn put(&mut self, kind: u32, payload: &[u8]) -> Result<(), LogError> {
        let mut bytes = block_header(self.header.salt, kind, self.blocks, payload);
        bytes.extend_from_slice(payload);
        self.draft
            .file
            .write_all_at(&bytes, self.offset)
            .map_err(|error| write_error(&error))?;
        self.offset += widen(bytes.len());
        Ok(())
    }

    /// Bytes written so far.
    #[must_use]
    pub const fn size_bytes(&self) -> u64 {
        self.offset
    }

    /// Completes the file and gives it its final name, durably. Snapshots before it are removed.
    ///
    /// # Errors
    /// If the disk refuses.
    ///
    /// # Panics
    /// If the log is not flushed through the footer's `end`: the file would describe a state that a
    /// crash can take back.
    pub fn finish(self, footer: SnapshotFooter) -> Result<SnapshotReader, LogError> {
        let flushed = self.log.state().flushed;
        assert!(
            footer.end.index <= flushed,
            "the log must be flushed through the snapshot's end"
        );
        let (log, end) = (self.log.clone(), footer.end);
        let reader = self.complete(footer)?;
        log.remove_snapshots_before(end);
        Ok(reader)
    }

    /// Like [`SnapshotWriter::finish`], for a snapshot that came from a leader: the log need not
    /// reach it. The caller notes it with [`ShardLog::mark_installed`] afterward: only then it counts,
    /// and may older ones go ([`ShardLog::remove_snapshots_before`]).
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn finish_installed(self, footer: SnapshotFooter) -> Result<SnapshotReader, LogError> {
        self.complete(footer)
    }

    fn complete(mut self, footer: SnapshotFooter) -> Result<SnapshotReader, LogError> {
        let footer = SnapshotFooter {
            blocks: self.blocks,
            bytes: self.bytes,
            ..footer
        };
        let footer_offset = self.offset;
        self.put(KIND_FOOTER, &footer.encode())?;
        let mut trailer = footer_offset.to_le_bytes().to_vec();
        trailer.extend_from_slice(&SNAPSHOT_END);
        let name = snapshot_name(self.header.shard, footer.end);
        let dir = self.shared.config.snapshot_dir();
        let mut publish = || -> io::Result<()> {
            let file = &self.draft.file;
            file.write_all_at(&trailer, self.offset)?;
            let size = self.offset + widen(trailer.len());
            if self.draft.kept.is_some_and(|kept| size < kept) {
                file.set_size(size)?;
            }
            file.sync_all()?;
            self.shared
                .disk
                .rename(&self.draft.path, &dir.join(&name))?;
            self.draft.is_published = true;
            if bug::is_on(Bug::NoDirectorySync) {
                return Ok(());
            }
            self.shared.disk.sync_dir(&dir)
        };
        publish().map_err(|error| write_error(&error))?;
        SnapshotReader::open(&self.shared, &name)
    }
}

/// Reads a snapshot block by block, checking each.
#[derive(Debug)]
pub struct SnapshotReader {
    name: String,
    header: SnapshotHeader,
    footer: SnapshotFooter,
    file: Arc<dyn File>,
    offset: u64,
    next_block: u64,
    bytes: u64,
}

impl SnapshotReader {
    fn open(shared: &Shared, name: &str) -> Result<Self, LogError> {
        let path = shared.config.snapshot_dir().join(name);
        let file = shared.disk.open(&path, OpenMode::Read);
        let file = file.map_err(|error| LogError::Read {
            reason: error.to_string(),
        })?;
        Self::from_file(name, file)
    }

    /// Opens a snapshot file: checks its front and its end.
    ///
    /// # Errors
    /// If either is damaged or cannot be read.
    pub fn from_file(name: &str, file: Arc<dyn File>) -> Result<Self, LogError> {
        let damaged = |what| LogError::DamagedSnapshot {
            name: name.to_owned(),
            what,
        };
        let read = |offset: u64, count: usize| -> Result<Vec<u8>, LogError> {
            let mut bytes = vec![0; count];
            let got = file.read_at(&mut bytes, offset);
            let got = got.map_err(|error| LogError::Read {
                reason: error.to_string(),
            })?;
            bytes.truncate(got);
            Ok(bytes)
        };
        let size = file.size_bytes().map_err(|e| LogError::Read {
            reason: e.to_string(),
        })?;
        let header = SnapshotHeader::decode(&read(0, SNAPSHOT_HEADER_BYTES)?);
        let header = header.ok_or_else(|| damaged("its header does not match its checksum"))?;
        let trailer_at = size.checked_sub(widen(TRAILER_BYTES));
        let trailer_at = trailer_at.ok_or_else(|| damaged("it is cut short"))?;
        let trailer = read(trailer_at, TRAILER_BYTES)?;
        let mut fields = Fields::new(&trailer);
        let footer_at = fields.u64().filter(|at| *at < trailer_at);
        let footer_at = footer_at.ok_or_else(|| damaged("its end is damaged"))?;
        if fields.rest() != SNAPSHOT_END {
            return Err(damaged("its end is damaged"));
        }
        let bytes = read(footer_at, narrow(trailer_at - footer_at))?;
        let parsed = parse_block(header.salt, &bytes);
        let footer = match parsed {
            Some((KIND_FOOTER, _, payload)) => SnapshotFooter::decode(payload),
            Some(_) | None => None,
        };
        let footer = footer.ok_or_else(|| damaged("its footer does not match its checksum"))?;
        let offset = widen(SNAPSHOT_HEADER_BYTES);
        Ok(Self {
            name: name.to_owned(),
            header,
            footer,
            file,
            offset,
            next_block: 0,
            bytes: 0,
        })
    }

    /// The front.
    #[must_use]
    pub const fn header(&self) -> &SnapshotHeader {
        &self.header
    }

    /// The end.
    #[must_use]
    pub const fn footer(&self) -> &SnapshotFooter {
        &self.footer
    }

    /// The file's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The next block; `None` after the last one.
    ///
    /// # Errors
    /// If the block is damaged, out of order or missing.
    pub fn next_block(&mut self) -> Result<Option<Vec<u8>>, LogError> {
        if self.next_block == self.footer.blocks {
            let whole = self.bytes == self.footer.bytes;
            return if whole {
                Ok(None)
            } else {
                Err(self.damaged("blocks are missing"))
            };
        }
        let head = self.read(self.offset, BLOCK_HEADER_BYTES)?;
        let mut fields = Fields::new(&head);
        let length = fields
            .u32()
            .and_then(|_| fields.u32())
            .map(|length| narrow(u64::from(length)));
        let length = length.filter(|length| *length <= BLOCK_BYTES_MAX);
        let length = length.ok_or_else(|| self.damaged("a block has an impossible length"))?;
        let mut bytes = self.read(self.offset, BLOCK_HEADER_BYTES + length)?;
        match parse_block(self.header.salt, &bytes) {
            Some((KIND_BLOCK, number, _)) if number == self.next_block => {}
            Some(_) | None => return Err(self.damaged("a block does not match its checksum")),
        }
        self.offset += widen(bytes.len());
        self.next_block += 1;
        self.bytes += widen(length);
        Ok(Some(bytes.split_off(BLOCK_HEADER_BYTES)))
    }

    fn read(&self, offset: u64, count: usize) -> Result<Vec<u8>, LogError> {
        let mut bytes = vec![0; count];
        let got = self.file.read_at(&mut bytes, offset);
        let got = got.map_err(|error| LogError::Read {
            reason: error.to_string(),
        })?;
        bytes.truncate(got);
        Ok(bytes)
    }

    fn damaged(&self, what: &'static str) -> LogError {
        LogError::DamagedSnapshot {
            name: self.name.clone(),
            what,
        }
    }
}

/// Kind, number and payload of the block that `bytes` are, if it is whole and its checksum matches.
fn parse_block(salt: u64, bytes: &[u8]) -> Option<(u32, u64, &[u8])> {
    let (header, rest) = bytes.split_at_checked(BLOCK_HEADER_BYTES)?;
    let mut fields = Fields::new(header);
    let kind = fields.u32()?;
    let length = narrow(u64::from(fields.u32()?));
    let number = fields.u64()?;
    let crc = fields.u32()?;
    let payload = rest.get(..length)?;
    let reserved = fields.u32()?;
    (reserved == 0 && block_checksum(salt, header, payload) == crc)
        .then_some((kind, number, payload))
}

/// Removes snapshots whose E the log does not reach: they were never published as far as the log
/// knows, and another history may take their place.
pub(crate) fn remove_superseded(
    disk: &dyn flux_env::Disk,
    config: &LogConfig,
    shards: &[ShardImage],
) -> Result<(), OpenError> {
    let dir = config.snapshot_dir();
    let names = disk
        .read_dir(&dir)
        .map_err(|e| OpenError::io("list", dir.clone(), e))?;
    for name in names {
        let Some((shard, end)) = parse_snapshot_name(&name) else {
            continue;
        };
        let image = shards.get(narrow(u64::from(shard.get())));
        let reached = image.and_then(|image| image.last.max(image.purged).max(image.installed));
        if reached.unwrap_or_default().index < end.index {
            let path = dir.join(&name);
            tracing::warn!(name, "removing a snapshot that the log does not reach");
            disk.remove(&path)
                .map_err(|e| OpenError::io("remove", path, e))?;
        }
    }
    Ok(())
}

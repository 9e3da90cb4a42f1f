//! Looking at a data directory without a node: `flux log verify`, `inspect` and `dump`.
//!
//! Everything here only reads, works on damaged directories, and never stops at the first fault.

use std::fmt;
use std::io;
use std::path::Path;

use flux_env::{Disk, OpenMode};
use flux_types::ShardId;

use crate::blocks::is_zero;
use crate::error::OpenError;
use crate::fields::{narrow, widen};
use crate::identity::Identity;
use crate::record::{NODE_WIDE, RECORD_ALIGNMENT, Record, RecordError, RecordKind, decode};
use crate::recovery::scan;
use crate::segment::{SEGMENT_HEADER_BYTES, SegmentHeader, segment_name, segment_number};
use crate::snapshot::{SnapshotReader, parse_snapshot_name};

/// A place that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The file.
    pub file: String,
    /// Where in it, in bytes.
    pub offset: u64,
    /// What is wrong.
    pub what: String,
    /// The bytes around the place, in hexadecimal.
    pub context: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at offset {}: {}", self.file, self.offset, self.what)?;
        if !self.context.is_empty() {
            write!(f, "\n{}", self.context)?;
        }
        Ok(())
    }
}

/// One shard's records in one segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShardRange {
    /// Records of every kind.
    pub records: u64,
    /// Bytes, padding included.
    pub bytes: u64,
    /// Index of the first entry; 0 if there is none.
    pub first_index: u64,
    /// Index of the last entry.
    pub last_index: u64,
    /// Highest term seen.
    pub term: u64,
}

/// What one segment holds.
#[derive(Clone, Debug)]
pub struct SegmentReport {
    /// The file.
    pub name: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Up to where it holds valid records.
    pub used_bytes: u64,
    /// By shard number; [`NODE_WIDE`] for the node's own.
    pub shards: std::collections::BTreeMap<u32, ShardRange>,
    /// What is wrong in it.
    pub findings: Vec<Finding>,
}

/// What one snapshot holds.
#[derive(Clone, Debug)]
pub struct SnapshotReport {
    /// The file.
    pub name: String,
    /// Shard, S and E as text; empty if the file is damaged.
    pub summary: String,
    /// What is wrong in it.
    pub findings: Vec<Finding>,
}

/// What a data directory holds.
#[derive(Debug)]
pub struct Report {
    /// Whose directory it is.
    pub identity: Option<Identity>,
    /// The segments in order.
    pub segments: Vec<SegmentReport>,
    /// The snapshots by name.
    pub snapshots: Vec<SnapshotReport>,
    /// Whether a node would start from it, and if not, why; `Ok` holds a note on a torn tail.
    pub verdict: Result<Option<String>, String>,
}

impl Report {
    /// All findings in all files.
    pub fn findings(&self) -> impl Iterator<Item = &Finding> {
        let segments = self.segments.iter().flat_map(|segment| &segment.findings);
        segments.chain(
            self.snapshots
                .iter()
                .flat_map(|snapshot| &snapshot.findings),
        )
    }
}

/// A record on its way to a reader of a dump.
#[derive(Clone, Copy, Debug)]
pub struct DumpedRecord<'a> {
    /// The segment's number.
    pub segment: u64,
    /// Where in it, in bytes.
    pub offset: u64,
    /// The record.
    pub record: Record<'a>,
}

fn read_file(disk: &dyn Disk, path: &Path) -> io::Result<Vec<u8>> {
    let file = disk.open(path, OpenMode::Read)?;
    let mut bytes = vec![0; narrow(file.size_bytes()?)];
    let count = file.read_at(&mut bytes, 0)?;
    bytes.truncate(count);
    Ok(bytes)
}

fn context(bytes: &[u8], offset: usize) -> String {
    let mut lines = Vec::new();
    let from = offset.saturating_sub(16) / 16 * 16;
    for at in (from..offset.saturating_add(48)).step_by(16) {
        let Some(row) = bytes
            .get(at..bytes.len().min(at + 16))
            .filter(|row| !row.is_empty())
        else {
            break;
        };
        let hex: Vec<String> = row.iter().map(|byte| format!("{byte:02x}")).collect();
        lines.push(format!("  {at:08x}  {}", hex.join(" ")));
    }
    lines.join("\n")
}

/// Names of the segments of a data directory, in order.
fn segments(disk: &dyn Disk, dir: &Path) -> Result<Vec<u64>, OpenError> {
    let log_dir = dir.join("log");
    let names = disk
        .read_dir(&log_dir)
        .map_err(|e| OpenError::io("list", log_dir, e))?;
    let mut numbers: Vec<u64> = names
        .iter()
        .filter_map(|name| segment_number(name))
        .collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// Walks the valid records of a segment, skipping bad places; returns where the last valid one
/// ended and what was found between.
fn walk(
    name: &str,
    bytes: &[u8],
    salt: u64,
    visit: &mut dyn FnMut(u64, &Record<'_>),
) -> (u64, Vec<Finding>) {
    let mut findings = Vec::new();
    let mut used = SEGMENT_HEADER_BYTES;
    let mut at = SEGMENT_HEADER_BYTES;
    let mut bad: Option<(usize, RecordError)> = None;
    while at < bytes.len() {
        let rest = bytes.get(at..).unwrap_or_default();
        match decode(rest, salt) {
            Ok(record) => {
                if let Some((from, error)) = bad.take() {
                    let what = format!("{error}; {} bytes up to the next valid record", at - from);
                    findings.push(Finding {
                        file: name.to_owned(),
                        offset: widen(from),
                        what,
                        context: context(bytes, from),
                    });
                }
                visit(widen(at), &record);
                at += record.size();
                used = at;
            }
            Err(error) => {
                if bad.is_none() {
                    if is_zero(rest) {
                        break;
                    }
                    bad = Some((at, error));
                }
                at += RECORD_ALIGNMENT;
            }
        }
    }
    if let Some((from, error)) = bad {
        let what = format!("{error}; no valid record after it (a torn tail, or damage at the end)");
        let context = context(bytes, from);
        findings.push(Finding {
            file: name.to_owned(),
            offset: widen(from),
            what,
            context,
        });
    }
    (widen(used), findings)
}

fn segment_report(name: String, bytes: &[u8]) -> SegmentReport {
    let size_bytes = widen(bytes.len());
    let header = match SegmentHeader::decode(bytes) {
        Ok(header) => header,
        Err(error) => {
            let what = error.to_string();
            let finding = Finding {
                file: name.clone(),
                offset: 0,
                what,
                context: context(bytes, 0),
            };
            let shards = std::collections::BTreeMap::new();
            return SegmentReport {
                name,
                size_bytes,
                used_bytes: 0,
                shards,
                findings: vec![finding],
            };
        }
    };
    let mut shards: std::collections::BTreeMap<u32, ShardRange> = std::collections::BTreeMap::new();
    let (used_bytes, findings) = walk(&name, bytes, header.salt, &mut |_, record| {
        let range = shards.entry(record.header.shard).or_default();
        range.records += 1;
        range.bytes += widen(record.size());
        range.term = range.term.max(record.header.term.get());
        if record.header.kind == RecordKind::Entry {
            if range.first_index == 0 {
                range.first_index = record.header.index;
            }
            range.last_index = record.header.index;
        }
    });
    SegmentReport {
        name,
        size_bytes,
        used_bytes,
        shards,
        findings,
    }
}

fn snapshot_report(disk: &dyn Disk, dir: &Path, name: &str) -> SnapshotReport {
    let read = || -> Result<String, String> {
        let file = disk
            .open(&dir.join("snap").join(name), OpenMode::Read)
            .map_err(|e| e.to_string())?;
        let mut reader = SnapshotReader::from_file(name, file).map_err(|e| e.to_string())?;
        while reader.next_block().map_err(|e| e.to_string())?.is_some() {}
        let (header, footer) = (reader.header(), reader.footer());
        Ok(format!(
            "shard {}, from entry {} to {}, {} blocks, {} bytes",
            header.shard, header.begin.index, footer.end.index, footer.blocks, footer.bytes
        ))
    };
    let name = name.to_owned();
    match read() {
        Ok(summary) => SnapshotReport {
            name,
            summary,
            findings: Vec::new(),
        },
        Err(what) => {
            let file = name.clone();
            let finding = Finding {
                file,
                offset: 0,
                what,
                context: String::new(),
            };
            SnapshotReport {
                name,
                summary: String::new(),
                findings: vec![finding],
            }
        }
    }
}

/// Looks at everything in a data directory.
///
/// # Errors
/// If the directory is not ours or cannot be read at all.
pub fn inspect(disk: &dyn Disk, dir: &Path, boot_id: u128) -> Result<Report, OpenError> {
    let (identity, broken) = match Identity::read(disk, dir) {
        Ok(identity) => (identity, None),
        Err(error @ OpenError::Damaged { .. }) => (None, Some(error.to_string())),
        Err(error) => return Err(error),
    };
    if identity.is_none() && broken.is_none() {
        let source = io::Error::new(io::ErrorKind::NotFound, "it is not a flux data directory");
        return Err(OpenError::io("inspect", dir, source));
    }
    let mut reports = Vec::new();
    for number in segments(disk, dir)? {
        let path = dir.join("log").join(segment_name(number));
        let bytes = read_file(disk, &path).map_err(|e| OpenError::io("read", path, e))?;
        reports.push(segment_report(segment_name(number), &bytes));
    }
    let snapshots = disk.read_dir(&dir.join("snap")).unwrap_or_default();
    let snapshots = snapshots
        .iter()
        .filter(|name| parse_snapshot_name(name).is_some());
    let snapshots = snapshots
        .map(|name| snapshot_report(disk, dir, name))
        .collect();
    let verdict = match (broken, identity) {
        (Some(broken), _) => Err(broken),
        (None, identity) => {
            let shard_count = identity.map_or(1, |identity| identity.shard_count);
            match scan(disk, dir, shard_count, boot_id) {
                Ok(image) => Ok(image.recovery.torn.map(|torn| {
                    let (segment, offset) = (torn.segment, torn.offset);
                    format!("torn tail in segment {segment} at offset {offset}: a start cuts it")
                })),
                Err(error) => Err(error.to_string()),
            }
        }
    };
    Ok(Report {
        identity,
        segments: reports,
        snapshots,
        verdict,
    })
}

/// Hands each valid record of the log to `visit`, in order, of one shard or of all.
///
/// # Errors
/// If the directory cannot be read.
pub fn dump(
    disk: &dyn Disk,
    dir: &Path,
    shard: Option<ShardId>,
    visit: &mut dyn FnMut(DumpedRecord<'_>),
) -> Result<Vec<Finding>, OpenError> {
    let mut findings = Vec::new();
    for number in segments(disk, dir)? {
        let path = dir.join("log").join(segment_name(number));
        let bytes = read_file(disk, &path).map_err(|e| OpenError::io("read", path, e))?;
        let Ok(header) = SegmentHeader::decode(&bytes) else {
            let what = "segment header damaged; its records cannot be read".to_owned();
            let context = context(&bytes, 0);
            findings.push(Finding {
                file: segment_name(number),
                offset: 0,
                what,
                context,
            });
            continue;
        };
        let (_, found) = walk(
            &segment_name(number),
            &bytes,
            header.salt,
            &mut |offset, record| {
                let wanted = shard.is_none_or(|shard| record.header.shard == shard.get());
                if wanted && (shard.is_none() || record.header.shard != NODE_WIDE) {
                    visit(DumpedRecord {
                        segment: number,
                        offset,
                        record: *record,
                    });
                }
            },
        );
        findings.extend(found);
    }
    Ok(findings)
}

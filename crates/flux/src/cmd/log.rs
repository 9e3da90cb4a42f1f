//! `flux log`: looks at the log of a node that is not running, and changes nothing.
//!
//! Exit code 0: a node would start from it (a torn tail is cut by a start and said here); 3: damage;
//! 2: there is no log to look at, or a running node has it.

use std::path::Path;

use flux_env::{Disk, LockGuard, RealDisk, boot_id};
use flux_log::identity::LOCK_NAME;
use flux_log::offline::{self, DumpedRecord, Report, SegmentReport};
use flux_log::record::NODE_WIDE;
use flux_log::{Identity, OpenError};

use super::cli::quoted;
use crate::args::LogTask;
use crate::{Failure, out};

/// How much of a payload a dump shows.
const PAYLOAD_BYTES_SHOWN: usize = 256;

/// Runs one of the three.
///
/// # Errors
/// Damage, or a folder without a log.
pub(crate) fn run(task: LogTask, dir: &Path) -> Result<(), Failure> {
    let disk = RealDisk;
    let _lock = hold(&disk, dir)?;
    match task {
        LogTask::Verify => verify(&inspect(&disk, dir)?),
        LogTask::Inspect => {
            let report = inspect(&disk, dir)?;
            out::text(&describe(dir, &report));
            verdict(&report)
        }
        LogTask::Dump => dump(&disk, dir),
    }
}

/// Keeps a node from writing meanwhile: beside a writer, a record half written looks like damage.
fn hold(disk: &RealDisk, dir: &Path) -> Result<Option<Box<dyn LockGuard>>, Failure> {
    let at = dir.display();
    match Identity::read(disk, dir) {
        Ok(Some(_)) | Err(OpenError::Damaged { .. }) => {}
        Ok(None) => {
            return Err(Failure::Mistake(format!(
                "{at}: this is no data directory of flux"
            )));
        }
        Err(error) => return Err(Failure::Mistake(error.to_string())),
    }
    match disk.lock(&dir.join(LOCK_NAME)) {
        Ok(Some(lock)) => Ok(Some(lock)),
        Ok(None) => Err(Failure::Mistake(format!(
            "{at} is in use by a running node; stop it first"
        ))),
        // A folder that may only be read can be looked at all the same.
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Ok(None),
        Err(error) if error.kind() == std::io::ErrorKind::ReadOnlyFilesystem => Ok(None),
        Err(error) => Err(Failure::Mistake(format!("{at}: {error}"))),
    }
}

fn inspect(disk: &RealDisk, dir: &Path) -> Result<Report, Failure> {
    // The boot is only compared with that of the last writer; 0 is none's.
    let boot = boot_id().unwrap_or(0);
    offline::inspect(disk, dir, boot).map_err(|error| Failure::Mistake(error.to_string()))
}

fn verify(report: &Report) -> Result<(), Failure> {
    verdict(report)?;
    let records: u64 = report
        .segments
        .iter()
        .flat_map(|segment| segment.shards.values())
        .map(|range| range.records)
        .sum();
    out::line(&format!(
        "sound: {records} records in {}, {}",
        counted(report.segments.len(), "segment"),
        counted(report.snapshots.len(), "snapshot"),
    ));
    Ok(())
}

/// What a start would make of it.
fn verdict(report: &Report) -> Result<(), Failure> {
    match &report.verdict {
        Ok(None) => Ok(()),
        Ok(Some(note)) => {
            out::line(note);
            Ok(())
        }
        Err(problem) => Err(Failure::Damage(problem.clone())),
    }
}

fn describe(dir: &Path, report: &Report) -> String {
    let mut text = format!("{}\n", dir.display());
    if let Some(identity) = &report.identity {
        text.push_str(&format!(
            "  cluster {:016x}, node {:016x}, {}\n",
            identity.cluster.get(),
            identity.node.get(),
            counted(usize::try_from(identity.shard_count).unwrap_or(0), "shard"),
        ));
    }
    for segment in &report.segments {
        text.push_str(&describe_segment(segment));
    }
    for snapshot in &report.snapshots {
        text.push_str(&format!(
            "\nsnapshot {}: {}\n",
            snapshot.name, snapshot.summary
        ));
    }
    for finding in report.findings() {
        text.push_str(&format!("\n{finding}\n"));
    }
    text
}

fn describe_segment(segment: &SegmentReport) -> String {
    let SegmentReport {
        name,
        size_bytes,
        used_bytes,
        ..
    } = segment;
    let mut text = format!("\nsegment {name}: {used_bytes} of {size_bytes} bytes used\n");
    for (shard, range) in &segment.shards {
        if *shard == NODE_WIDE {
            text.push_str(&format!("  node     {} records\n", range.records));
            continue;
        }
        text.push_str(&format!(
            "  shard {shard:<2} {} records, {} bytes, entries {} to {}, term {}\n",
            range.records, range.bytes, range.first_index, range.last_index, range.term,
        ));
    }
    text
}

fn dump(disk: &RealDisk, dir: &Path) -> Result<(), Failure> {
    let mut show = |record: DumpedRecord<'_>| out::line(&describe_record(&record));
    let findings = offline::dump(disk, dir, None, &mut show)
        .map_err(|error| Failure::Mistake(error.to_string()))?;
    match findings.first() {
        None => Ok(()),
        Some(finding) => Err(Failure::Damage(finding.to_string())),
    }
}

fn describe_record(dumped: &DumpedRecord<'_>) -> String {
    let DumpedRecord {
        segment,
        offset,
        record,
    } = dumped;
    let header = &record.header;
    let shown = record
        .payload
        .get(..PAYLOAD_BYTES_SHOWN)
        .unwrap_or(record.payload);
    let more = if shown.len() < record.payload.len() {
        "…"
    } else {
        ""
    };
    format!(
        "{segment}:{offset} shard={} {:?} term={} index={} bytes={} {}{more}",
        header.shard,
        header.kind,
        header.term,
        header.index,
        record.payload.len(),
        quoted(shown),
    )
}

fn counted(count: usize, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

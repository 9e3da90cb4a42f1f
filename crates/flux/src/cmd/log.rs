//! `flux log`: looks at the log of a node that is not running, and changes nothing.
//!
//! Exit code 0: a node would start from it (a torn tail is cut by a start and said here); 3: damage;
//! 2: there is no log to look at, or a running node has it.

use std::path::Path;

use flux_env::{Disk, LockGuard, RealDisk, boot_id};
use flux_log::identity::LOCK_NAME;
use flux_log::offline::{self, DumpedRecord, Report, SegmentReport};
use flux_log::record::NODE_WIDE;
use flux_log::{Identity, OpenError, RecordKind};
use flux_store::batch::{MEMBERSHIP_MARK, effective};
use flux_store::{FactRef, Kept};
use flux_types::{DeleteCause, RequestId, Term, UnixMillis};

use super::cli::quoted;
use crate::args::LogTask;
use crate::{Failure, out};

/// How much of a value, or of a payload that is no batch, a dump shows.
const BYTES_SHOWN: usize = 256;

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
    let whose = if header.shard == NODE_WIDE {
        "node".to_owned()
    } else {
        format!("shard={}", header.shard)
    };
    let mut text = format!(
        "{segment}:{offset} {whose} {:?} term={} index={} bytes={}",
        header.kind,
        header.term,
        header.index,
        record.payload.len(),
    );
    if header.kind == RecordKind::Entry {
        text.push_str(&describe_entry(header.term, record.payload));
    } else if let Some(tombstone) = record.tombstone() {
        let gone_at = tombstone.gone_at;
        text.push_str(&format!(
            " everything before is forgotten but the vote; let go by term={} index={}",
            gone_at.term, gone_at.index
        ));
    } else if !record.payload.is_empty() {
        text.push_str(&format!(" {}", shortened(record.payload)));
    }
    text
}

/// What an entry carries: each fact of a batch on a line of its own, with its revision.
fn describe_entry(term: Term, payload: &[u8]) -> String {
    match payload.first() {
        None => return " no-op".to_owned(),
        Some(&MEMBERSHIP_MARK) => return format!(" membership {}", shortened(payload)),
        Some(_) => {}
    }
    match effective(term, payload) {
        Ok(Some(batch)) => {
            let mut text = format!(" batch at={}", batch.at().get());
            for (revision, fact) in batch.facts() {
                text.push_str(&format!("\n  {revision} {}", describe_fact(&fact)));
            }
            text
        }
        Ok(None) => " void batch: evaluated in another term".to_owned(),
        Err(error) => format!(" {error}: {}", shortened(payload)),
    }
}

fn describe_fact(fact: &FactRef<'_>) -> String {
    let until = |deadline: Option<UnixMillis>| match deadline {
        Some(deadline) => format!(" until {}", deadline.get()),
        None => String::new(),
    };
    match *fact {
        FactRef::Put {
            key,
            value,
            deadline,
        } => format!(
            "put {} = {}{}",
            quoted(key),
            shortened(value),
            until(deadline)
        ),
        FactRef::Delete { key, cause } => {
            let cause = match cause {
                DeleteCause::Deleted => "deleted",
                DeleteCause::Expired => "expired",
                DeleteCause::Evicted => "evicted",
            };
            format!("delete {} ({cause})", quoted(key))
        }
        FactRef::SetDeadline { key, deadline } => match deadline {
            Some(_) => format!("expire {}{}", quoted(key), until(deadline)),
            None => format!("persist {}", quoted(key)),
        },
        FactRef::Patch { key, offset, bytes } => {
            format!("patch {} at {offset} = {}", quoted(key), shortened(bytes))
        }
        FactRef::Clear => "clear".to_owned(),
        FactRef::SystemPut { name, value } => {
            format!("system put {} = {}", quoted(name), shortened(value))
        }
        FactRef::SystemDelete { name } => format!("system delete {}", quoted(name)),
        FactRef::Request {
            request,
            expires_at,
            outcome,
        } => {
            let outcome = match Kept::parse(outcome) {
                Some(Kept::Done { reply: Some(_), .. }) => "done, reply kept",
                Some(Kept::Done { reply: None, .. }) => "done",
                Some(Kept::NotDone) => "never done",
                None => "unreadable",
            };
            let RequestId {
                session,
                sequence,
                lowest_unanswered,
            } = request;
            format!(
                "request {session} {sequence} (lowest unanswered {lowest_unanswered}): \
                 {outcome}{}",
                until(Some(expires_at))
            )
        }
        FactRef::ForgetSessions { until } => {
            format!("forget sessions that expire until {}", until.get())
        }
    }
}

/// Bytes in quotes, cut after [`BYTES_SHOWN`].
fn shortened(bytes: &[u8]) -> String {
    match bytes.get(..BYTES_SHOWN) {
        Some(shown) if shown.len() < bytes.len() => {
            format!("{}… ({} bytes)", quoted(shown), bytes.len())
        }
        _ => quoted(bytes),
    }
}

fn counted(count: usize, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

#[cfg(test)]
mod tests {
    use flux_store::BatchWriter;
    use flux_types::Revision;

    use super::*;

    #[test]
    fn entries_are_described_by_what_they_change() {
        let mut writer = BatchWriter::new(Term::new(3), UnixMillis::new(1000), Revision::new(7));
        let (key, value) = (b"k".as_slice(), [b'v'; 300].as_slice());
        let deadline = Some(UnixMillis::new(5000));
        writer.push(FactRef::Put {
            key,
            value: b"\x00v",
            deadline,
        });
        writer.push(FactRef::Put {
            key,
            value,
            deadline: None,
        });
        writer.push(FactRef::Patch {
            key,
            offset: 2,
            bytes: b"xy",
        });
        writer.push(FactRef::SetDeadline {
            key,
            deadline: None,
        });
        writer.push(FactRef::Delete {
            key,
            cause: DeleteCause::Expired,
        });
        writer.push(FactRef::Clear);
        let batch = writer.finish().unwrap();
        let long = "v".repeat(BYTES_SHOWN);
        let expected = format!(
            " batch at=1000\n  7 put \"k\" = \"\\x00v\" until 5000\n  \
             8 put \"k\" = \"{long}\"… (300 bytes)\n  9 patch \"k\" at 2 = \"xy\"\n  \
             10 persist \"k\"\n  11 delete \"k\" (expired)\n  12 clear"
        );
        assert_eq!(describe_entry(Term::new(3), &batch), expected);
        assert!(describe_entry(Term::new(4), &batch).contains("void"));
        assert_eq!(describe_entry(Term::new(4), b""), " no-op");
        assert!(describe_entry(Term::new(4), b"M\x01").starts_with(" membership"));
        assert!(describe_entry(Term::new(4), b"??").contains("version"));
    }
}

//! Looking at a directory offline, and the golden bytes.

#[path = "../../../../fuzz/replay.rs"]
mod replay;

use super::*;
use replay::replay;

#[test]
fn inspection_finds_the_damage_that_an_open_refuses() {
    let (disk, _) = sample(50);
    let report = offline::inspect(&disk, Path::new(DIR), 1).unwrap();
    assert_eq!(report.findings().count(), 0);
    assert_eq!(report.verdict, Ok(None));
    disk.damage(&segment_path(1), |bytes| bytes[700] ^= 1)
        .unwrap();
    let report = offline::inspect(&disk, Path::new(DIR), 1).unwrap();
    let finding = report.findings().next().unwrap();
    assert_eq!(finding.file, segment::segment_name(1));
    assert!(finding.to_string().contains("checksum"), "{finding}");
    assert!(report.verdict.unwrap_err().contains("damaged"));
    let mut entries = 0;
    let findings = offline::dump(&disk, Path::new(DIR), None, &mut |dumped| {
        entries += usize::from(dumped.record.header.kind == RecordKind::Entry);
    });
    assert_eq!((entries, findings.unwrap().len()), (49, 1));
}

/// A history of a replica that is let go and begins again.
fn push_retired(log: &Log, handle: &ShardLog) {
    append(log, handle, vec![entry(1, b"let go")]);
    handle.retire(entry(7, b"").id, Box::new(|result| result.unwrap()));
    log.pump();
    append(log, handle, vec![entry(1, b"again")]);
}

/// The bytes that a fixed history leaves. If this changes, files of users stop opening: raise the
/// format version and keep reading the old one.
#[test]
fn format_is_the_golden_one() {
    let disk = SimDisk::new();
    let (log, _) = open_with(&disk, config(2, FsyncPolicy::EverySecond), 0xb007).unwrap();
    let handle = shard(&log);
    let vote = Vote {
        term: Term::new(1),
        node: NodeId::new(2),
        committed: true,
    };
    handle.save_vote(vote, Box::new(|result| result.unwrap()));
    log.pump();
    append(&log, &handle, vec![entry(1, b"first"), entry(2, b"second")]);
    handle
        .truncate_after(LogIndex::new(1), Box::new(|_| {}))
        .unwrap();
    append(&log, &handle, vec![entry(2, b"other")]);
    handle.mark_committed(entry(2, b"").id);
    write_small_snapshot(&handle);
    handle.purge_to(entry(1, b"").id, Box::new(|_| {})).unwrap();
    handle.mark_installed(entry(1, b"").id, Box::new(|_| {}));
    push_retired(&log, &log.shard(ShardId::new(1)));
    log.close();
    let mut bytes = read_segment(&disk, 1);
    bytes.truncate(end_of(&bytes).next_multiple_of(8));
    golden("segment.hex", &bytes);
    let snap_dir = Path::new(DIR).join("snap");
    let name = disk.read_dir(&snap_dir).unwrap().remove(0);
    let file = disk.open(&snap_dir.join(name), OpenMode::Read).unwrap();
    let mut bytes = vec![0; file.size_bytes().unwrap() as usize];
    file.read_at(&mut bytes, 0).unwrap();
    golden("snapshot.hex", &bytes);
}

/// Segments of version 1 say nothing of tombstones; all else is the same.
#[test]
fn segments_of_the_version_before_are_read() {
    let text = include_str!("../../testdata/segment-1.hex");
    let bytes = text.split_whitespace();
    let bytes: Vec<u8> = bytes
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect();
    let (disk, dir) = (SimDisk::new(), Path::new(DIR));
    disk.create_dir_all(&dir.join("log")).unwrap();
    let file = disk.open(&segment_path(1), OpenMode::CreateNew).unwrap();
    file.write_all_at(&bytes, 0).unwrap();
    let image = recovery::scan(&disk, dir, 2, 0xb007).unwrap();
    assert_eq!(image.shards[0].last, Some(entry(2, b"").id));
    assert_eq!(image.shards[0].purged, Some(entry(1, b"").id));
    assert_eq!(image.shards[0].tombstone, None);
    assert!(image.shards[0].vote.is_some() && image.recovery.clean);
}

fn write_small_snapshot(handle: &ShardLog) {
    let mut writer = handle.begin_snapshot(entry(1, b"").id).unwrap();
    writer.block(b"block").unwrap();
    let footer = SnapshotFooter::new(entry(2, b"").id, Bytes::from_static(b"meta"));
    writer.finish(footer).unwrap();
}

fn golden(name: &str, bytes: &[u8]) {
    let rows = bytes.chunks(16).map(|row| {
        let hex: Vec<String> = row.iter().map(|byte| format!("{byte:02x}")).collect();
        hex.join(" ") + "\n"
    });
    let text: String = rows.collect();
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("testdata")
        .join(name);
    expect_test::expect_file![path].assert_eq(&text);
}

#[test]
fn the_corpus_of_the_fuzz_target_holds() {
    replay("log_record", 8, fuzzing::log_record);
}

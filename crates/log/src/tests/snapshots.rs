//! Snapshot files.

use super::*;

/// A log with ten entries.
fn ten_entries(disk: &SimDisk) -> (Log, ShardLog) {
    let (log, _) = open(disk);
    let handle = shard(&log);
    let entries = (1..=10).map(|index| entry(index, b"x")).collect();
    append(&log, &handle, entries);
    (log, handle)
}

fn snapshot_files(disk: &SimDisk) -> Vec<String> {
    disk.read_dir(&Path::new(DIR).join("snap")).unwrap()
}

fn write_snapshot(handle: &ShardLog, begin: u64, end: u64) -> SnapshotReader {
    let mut writer = handle.begin_snapshot(entry(begin, b"").id).unwrap();
    for block in 0..5_u8 {
        writer.block(&vec![block; 10_000]).unwrap();
    }
    let meta = Bytes::from_static(b"membership");
    writer
        .finish(SnapshotFooter::new(entry(end, b"").id, meta))
        .unwrap()
}

#[test]
fn a_snapshot_is_read_back_block_by_block_and_replaces_older_ones() {
    let disk = SimDisk::new();
    let (log, handle) = ten_entries(&disk);
    assert!(handle.latest_snapshot().unwrap().is_none());
    write_snapshot(&handle, 3, 4);
    write_snapshot(&handle, 6, 8);
    assert_eq!(snapshot_files(&disk).len(), 1);
    log.close();
    let (log, _) = open(&disk);
    let mut reader = shard(&log).latest_snapshot().unwrap().unwrap();
    assert_eq!(reader.header().begin.index.get(), 6);
    assert_eq!(reader.footer().end.index.get(), 8);
    assert_eq!(&reader.footer().meta[..], b"membership");
    for block in 0..5_u8 {
        assert_eq!(reader.next_block().unwrap().unwrap(), vec![block; 10_000]);
    }
    assert!(reader.next_block().unwrap().is_none());
}

#[test]
fn a_snapshot_beyond_the_durable_log_is_not_used() {
    let disk = SimDisk::new();
    let (log, handle) = ten_entries(&disk);
    write_snapshot(&handle, 2, 4);
    // A later one is published through the door for installed ones, without the mark that it was.
    let mut writer = handle.begin_snapshot(entry(8, b"").id).unwrap();
    writer.block(b"future").unwrap();
    writer
        .finish_installed(SnapshotFooter::new(entry(12, b"").id, Bytes::new()))
        .unwrap();
    assert_eq!(
        handle
            .latest_snapshot()
            .unwrap()
            .map(|r| r.footer().end.index.get()),
        Some(4)
    );
    // The log before the older one is gone: without it nothing would be left to begin with.
    handle.purge_to(entry(3, b"").id, Box::new(drop)).unwrap();
    handle.sync(Box::new(drop));
    drop((log, handle));
    disk.crash(CrashLoss::Nothing, &mut SeededRng::new(1));
    let (log, _) = open(&disk);
    let latest = shard(&log).latest_snapshot().unwrap().unwrap();
    assert_eq!(latest.footer().end.index.get(), 4);
    assert_eq!(snapshot_files(&disk).len(), 1);
}

#[test]
fn a_received_snapshot_takes_the_place_of_older_ones_once_it_is_noted() {
    let disk = SimDisk::new();
    let (_log, handle) = ten_entries(&disk);
    write_snapshot(&handle, 2, 4);
    let mut writer = handle.begin_snapshot(entry(8, b"").id).unwrap();
    writer.block(b"future").unwrap();
    let end = entry(12, b"").id;
    writer
        .finish_installed(SnapshotFooter::new(end, Bytes::new()))
        .unwrap();
    assert_eq!(snapshot_files(&disk).len(), 2);
    handle.mark_installed(end, Box::new(drop));
    handle.remove_snapshots_before(end);
    let latest = handle.latest_snapshot().unwrap().unwrap();
    assert_eq!(latest.footer().end, end);
    assert_eq!(snapshot_files(&disk).len(), 1);
}

#[test]
fn every_flipped_byte_of_a_snapshot_is_noticed() {
    let disk = SimDisk::new();
    let (_log, handle) = ten_entries(&disk);
    let mut writer = handle.begin_snapshot(entry(5, b"").id).unwrap();
    writer.block(b"some state").unwrap();
    writer.block(b"more state").unwrap();
    let footer = SnapshotFooter::new(entry(6, b"").id, Bytes::from_static(b"meta"));
    let name = writer.finish(footer).unwrap().name().to_owned();
    let path = Path::new(DIR).join("snap").join(&name);
    let size = disk
        .open(&path, OpenMode::Read)
        .unwrap()
        .size_bytes()
        .unwrap();
    for at in 0..size as usize {
        let copy = disk.duplicate();
        copy.damage(&path, |bytes| bytes[at] ^= 0x10).unwrap();
        let file = copy.open(&path, OpenMode::Read).unwrap();
        let read = || -> Result<usize, LogError> {
            let mut reader = SnapshotReader::from_file(&name, Arc::clone(&file))?;
            let mut blocks = 0;
            while reader.next_block()?.is_some() {
                blocks += 1;
            }
            Ok(blocks)
        };
        assert!(read().is_err(), "byte {at} of {size}");
    }
}

#[test]
fn unfinished_snapshots_and_prepared_files_are_swept_at_open() {
    let disk = SimDisk::new();
    let (log, handle) = ten_entries(&disk);
    let mut writer = handle.begin_snapshot(entry(1, b"").id).unwrap();
    writer.block(b"half").unwrap();
    // A process that dies drops nothing.
    let _writer = std::mem::ManuallyDrop::new(writer);
    assert_eq!(snapshot_files(&disk).len(), 1);
    drop((log, handle));
    disk.crash(CrashLoss::Nothing, &mut SeededRng::new(1));
    let (log, _) = open(&disk);
    assert!(snapshot_files(&disk).is_empty());
    log.close();
}

#[test]
fn a_snapshot_that_is_given_up_leaves_nothing_behind() {
    let disk = SimDisk::new();
    let (log, handle) = ten_entries(&disk);
    let used = disk.used_bytes();
    let mut writer = handle.begin_snapshot(entry(1, b"").id).unwrap();
    writer.block(&[1; 100_000]).unwrap();
    drop(writer);
    assert!(snapshot_files(&disk).is_empty());
    assert_eq!(disk.used_bytes(), used);
    log.close();
}

/// Bytes of the snapshots that [`write_snapshot`] writes.
const SNAPSHOT_BYTES: u64 = 51_000;

/// Fills segments, then the disk, until client writes are refused.
fn fill(disk: &SimDisk, log: &Log, handle: &ShardLog) -> u64 {
    let mut index = handle.state().last.map_or(0, |last| last.index.get());
    for round in 0.. {
        if round == 60 {
            disk.set_capacity_bytes(Some(disk.used_bytes()));
        }
        if handle.make_room(20_000, false).is_err() {
            break;
        }
        index += 1;
        append(log, handle, vec![entry(index, &[1; 20_000])]);
    }
    assert_eq!(log.space(), Space::Full);
    index
}

#[test]
fn rule_11_a_snapshot_finds_room_on_a_full_disk_and_what_it_frees_is_used() {
    let disk = SimDisk::new();
    let (log, _) = open(&disk);
    let handle = shard(&log);
    handle.keep_snapshot_room(SNAPSHOT_BYTES);
    log.pump();
    let last = fill(&disk, &log, &handle);
    assert!(handle.pins_old_segments());
    write_snapshot(&handle, last, last);
    handle
        .purge_to(entry(last, b"").id, Box::new(|result| result.unwrap()))
        .unwrap();
    log.pump();
    log.pump();
    assert_eq!(log.space(), Space::Enough, "segments were freed");
    handle.make_room(20_000, false).unwrap();
    append(&log, &handle, vec![entry(last + 1, b"after")]);
    // There is room for the next one too.
    let last = fill(&disk, &log, &handle);
    write_snapshot(&handle, last, last);
    log.close();
    let (log, _) = open(&disk);
    let mut reader = shard(&log).latest_snapshot().unwrap().unwrap();
    assert_eq!(reader.footer().end.index.get(), last);
    let mut blocks = 0;
    while reader.next_block().unwrap().is_some() {
        blocks += 1;
    }
    assert_eq!(blocks, 5);
}

#[test]
fn rule_11_without_space_for_a_snapshot_of_the_largest_shard_the_disk_is_full() {
    let disk = SimDisk::new();
    let (log, _) = open_with(&disk, config(2, FsyncPolicy::Always), 1).unwrap();
    let (small, large) = (log.shard(ShardId::new(0)), log.shard(ShardId::new(1)));
    small.keep_snapshot_room(1000);
    log.pump();
    assert_eq!(log.space(), Space::Enough);
    // A step of room is there; the large shard outgrows it.
    disk.set_capacity_bytes(Some(disk.used_bytes() + 100_000));
    large.keep_snapshot_room(3_000_000);
    log.pump();
    assert_eq!(log.space(), Space::Full);
    assert!(matches!(small.make_room(1, false), Err(LogError::NoSpace)));
    small.make_room(1, true).unwrap();
    disk.set_capacity_bytes(Some(disk.used_bytes() + 2_100_000));
    log.pump();
    assert_eq!(log.space(), Space::Enough, "what is needed is enough");
}

#[test]
fn rule_11_the_room_for_a_snapshot_survives_a_restart_on_a_full_disk() {
    let disk = SimDisk::new();
    let (log, _) = open(&disk);
    let handle = shard(&log);
    handle.keep_snapshot_room(SNAPSHOT_BYTES);
    log.pump();
    let last = fill(&disk, &log, &handle);
    drop((log, handle));
    disk.crash(CrashLoss::Nothing, &mut SeededRng::new(1));
    let (log, _) = open(&disk);
    // Somebody else takes what little is left.
    disk.set_capacity_bytes(Some(disk.used_bytes()));
    let handle = shard(&log);
    handle.keep_snapshot_room(SNAPSHOT_BYTES);
    write_snapshot(&handle, last, last);
    assert_eq!(snapshot_files(&disk).len(), 1);
}

#[test]
fn a_snapshot_that_begins_while_the_room_for_it_grows_stays_whole() {
    let disk = SimDisk::new();
    let (log, handle) = ten_entries(&disk);
    handle.keep_snapshot_room(SNAPSHOT_BYTES);
    log.pump();
    handle.keep_snapshot_room(3_000_000);
    let shared = &handle.shared;
    let growing = shared.stream.lock().preparation().unwrap();
    write_snapshot(&handle, 10, 10);
    let grown = growing.perform(&*shared.disk).unwrap();
    assert_eq!(shared.stream.lock().prepared(&growing, grown), None);
    let mut reader = handle.latest_snapshot().unwrap().unwrap();
    for block in 0..5_u8 {
        assert_eq!(reader.next_block().unwrap().unwrap(), vec![block; 10_000]);
    }
    assert!(reader.next_block().unwrap().is_none());
    // What has grown is room for the next one, whatever else the disk holds.
    disk.set_capacity_bytes(Some(disk.used_bytes()));
    let mut writer = handle.begin_snapshot(entry(10, b"").id).unwrap();
    writer.block(&vec![1; 2_000_000]).unwrap();
}

//! Snapshot files.

use super::*;

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
    let (log, _) = open(&disk);
    let handle = shard(&log);
    append(
        &log,
        &handle,
        (1..=10).map(|index| entry(index, b"x")).collect(),
    );
    assert!(handle.latest_snapshot().unwrap().is_none());
    write_snapshot(&handle, 3, 4);
    write_snapshot(&handle, 6, 8);
    assert_eq!(
        disk.read_dir(&Path::new(DIR).join("snap")).unwrap().len(),
        1
    );
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
    let (log, _) = open(&disk);
    let handle = shard(&log);
    append(
        &log,
        &handle,
        (1..=10).map(|index| entry(index, b"x")).collect(),
    );
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
        None
    );
    drop((log, handle));
    disk.crash(CrashLoss::Nothing, &mut SeededRng::new(1));
    let (log, _) = open(&disk);
    assert!(shard(&log).latest_snapshot().unwrap().is_none());
    assert!(
        disk.read_dir(&Path::new(DIR).join("snap"))
            .unwrap()
            .is_empty()
    );
}

#[test]
fn every_flipped_byte_of_a_snapshot_is_noticed() {
    let disk = SimDisk::new();
    let (log, _) = open(&disk);
    let handle = shard(&log);
    append(
        &log,
        &handle,
        (1..=10).map(|index| entry(index, b"x")).collect(),
    );
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
    let (log, _) = open(&disk);
    append(&log, &shard(&log), vec![entry(1, b"x")]);
    let mut writer = shard(&log).begin_snapshot(entry(1, b"").id).unwrap();
    writer.block(b"half").unwrap();
    drop((log, writer));
    disk.crash(CrashLoss::Nothing, &mut SeededRng::new(1));
    let (log, _) = open(&disk);
    assert!(
        disk.read_dir(&Path::new(DIR).join("snap"))
            .unwrap()
            .is_empty()
    );
    log.close();
}

//! Tests of the whole log, through its public face.
#![expect(clippy::cast_possible_truncation, reason = "test sizes are small")]

mod crash;
mod damage;
mod format;
mod grown;
mod reading;
mod retired;
mod snapshots;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use flux_env::{Clock, CrashLoss, Disk, OpenMode, Rng, SeededRng, SimClock, SimDisk};
use flux_types::{ClusterId, LogIndex, NodeId, ShardId, Term, UnixMillis};
use parking_lot::Mutex;

use crate::*;

const DIR: &str = "/data";

fn seeds(boot_id: u128) -> Seeds {
    let mut rng = SeededRng::new(7);
    Seeds {
        cluster: ClusterId::new(1),
        node: NodeId::new(2),
        boot_id,
        draw: Box::new(move || rng.next_u64()),
    }
}

fn config(shard_count: u32, fsync: FsyncPolicy) -> LogConfig {
    LogConfig {
        fsync,
        segment_bytes: 256 * 1024,
        own_thread: false,
        ..LogConfig::new(DIR, shard_count)
    }
}

fn open_with(disk: &SimDisk, config: LogConfig, boot: u128) -> Result<(Log, Recovery), OpenError> {
    let clock = Arc::new(SimClock::new(1_000_000));
    Log::open(Arc::new(disk.as_process()), clock, config, seeds(boot))
}

fn open(disk: &SimDisk) -> (Log, Recovery) {
    open_with(disk, config(1, FsyncPolicy::Always), 1).unwrap()
}

fn entry(index: u64, payload: &[u8]) -> LogEntry {
    LogEntry {
        id: LogId {
            term: Term::new(1),
            index: LogIndex::new(index),
        },
        timestamp: UnixMillis::new(index),
        payload: Bytes::copy_from_slice(payload),
    }
}

fn shard(log: &Log) -> ShardLog {
    log.shard(ShardId::new(0))
}

fn append(log: &Log, shard: &ShardLog, entries: Vec<LogEntry>) {
    let done = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&done);
    shard
        .append(
            entries,
            Box::new(move |result| {
                result.unwrap();
                seen.fetch_add(1, Ordering::SeqCst);
            }),
        )
        .unwrap();
    log.pump();
    assert_eq!(done.load(Ordering::SeqCst), 1);
}

fn all(shard: &ShardLog) -> Vec<LogEntry> {
    let state = shard.state();
    let mut entries = Vec::new();
    let mut from = state.purged.map_or(1, |purged| purged.index.get() + 1);
    let last = state.last.map_or(0, |last| last.index.get());
    while from <= last {
        let got = shard
            .entries(LogIndex::new(from), LogIndex::new(last + 1), 10_000)
            .unwrap();
        assert!(!got.is_empty());
        from += got.len() as u64;
        entries.extend(got);
    }
    entries
}

fn segment_path(number: u64) -> PathBuf {
    Path::new(DIR)
        .join("log")
        .join(segment::segment_name(number))
}

fn read_segment(disk: &SimDisk, number: u64) -> Vec<u8> {
    let file = disk.open(&segment_path(number), OpenMode::Read).unwrap();
    let mut bytes = vec![0; file.size_bytes().unwrap() as usize];
    file.read_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn entries_votes_and_marks_are_there_after_a_reopen() {
    for policy in [
        FsyncPolicy::Always,
        FsyncPolicy::EverySecond,
        FsyncPolicy::Never,
    ] {
        let disk = SimDisk::new();
        let (log, _) = open_with(&disk, config(2, policy), 1).unwrap();
        let (first, second) = (log.shard(ShardId::new(0)), log.shard(ShardId::new(1)));
        let vote = Vote {
            term: Term::new(3),
            node: NodeId::new(9),
            committed: true,
        };
        first.save_vote(vote, Box::new(|result| result.unwrap()));
        for index in 1..=20 {
            append(
                &log,
                &first,
                vec![entry(index, &vec![7; index as usize * 100])],
            );
            append(&log, &second, vec![entry(index, b"other")]);
        }
        let id = LogId {
            term: Term::new(1),
            index: LogIndex::new(20),
        };
        first.mark_committed(id);
        let before = (all(&first), all(&second));
        log.close();
        let (log, recovery) = open_with(&disk, config(2, policy), 1).unwrap();
        assert!(recovery.clean);
        assert_eq!(recovery.torn, None);
        let (first, second) = (log.shard(ShardId::new(0)), log.shard(ShardId::new(1)));
        assert_eq!((all(&first), all(&second)), before);
        let state = first.state();
        assert_eq!((state.vote, state.committed), (Some(vote), Some(id)));
        assert_eq!(state.flushed, id.index);
    }
}

#[test]
fn log_rolls_over_many_segments_and_deletes_the_purged_ones() {
    let disk = SimDisk::new();
    let (log, _) = open(&disk);
    let handle = shard(&log);
    for index in 1..=60 {
        append(&log, &handle, vec![entry(index, &[index as u8; 20_000])]);
    }
    assert!(4 < log.stats().segments, "{:?}", log.stats());
    let written = all(&handle);
    handle
        .purge_to(entry(50, b"").id, Box::new(|result| result.unwrap()))
        .unwrap();
    log.pump();
    log.pump();
    assert!(log.stats().segments <= 3);
    assert!(!disk.exists(&segment_path(1)));
    drop(log);
    disk.crash(CrashLoss::Everything, &mut SeededRng::new(1));
    let (log, recovery) = open(&disk);
    assert!(!recovery.clean);
    assert_eq!(all(&shard(&log)), written[50..]);
}

#[test]
fn truncation_is_remembered_and_the_log_goes_on_after_it() {
    let disk = SimDisk::new();
    let (log, _) = open(&disk);
    let handle = shard(&log);
    append(
        &log,
        &handle,
        (1..=10).map(|index| entry(index, b"old")).collect(),
    );
    handle
        .truncate_after(LogIndex::new(4), Box::new(|result| result.unwrap()))
        .unwrap();
    append(&log, &handle, vec![entry(5, b"new")]);
    let written = all(&handle);
    assert_eq!(written.len(), 5);
    assert_eq!(&written[4].payload[..], b"new");
    log.close();
    assert_eq!(all(&shard(&open(&disk).0)), written);
}

#[test]
fn a_truncation_that_reaches_below_the_oldest_segment_is_remembered() {
    for below in 1..4 {
        let disk = SimDisk::new();
        let (log, _) = open(&disk);
        let shard = shard(&log);
        let mut last = 0;
        while log.end().0 == 1 {
            last += 1;
            append(&log, &shard, vec![entry(last, &[7; 40_000])]);
        }
        // The second segment holds the last entry only; the truncation takes others with it.
        let kept = last - 1 - below;
        shard
            .truncate_after(LogIndex::new(kept), Box::new(|result| result.unwrap()))
            .unwrap();
        for index in kept + 1..=last {
            append(&log, &shard, vec![entry(index, b"anew")]);
        }
        let id = entry(kept, b"").id;
        shard
            .purge_to(id, Box::new(|result| result.unwrap()))
            .unwrap();
        log.pump();
        log.pump();
        assert_eq!(log.stats().segments_deleted, 1);
        let (state, before) = (shard.state(), all(&shard));
        log.close();
        let (log, _) = open(&disk);
        let shard = log.shard(ShardId::new(0));
        assert_eq!(all(&shard), before);
        assert_eq!(shard.state().last, state.last);
        assert_eq!(shard.state().purged, Some(id));
    }
}

#[test]
fn a_full_truncation_leaves_an_empty_log() {
    let disk = SimDisk::new();
    let (log, _) = open(&disk);
    let handle = shard(&log);
    append(&log, &handle, vec![entry(1, b"a"), entry(2, b"b")]);
    handle
        .truncate_after(LogIndex::new(0), Box::new(|result| result.unwrap()))
        .unwrap();
    assert_eq!(handle.state().last, None);
    append(&log, &handle, vec![entry(1, b"c")]);
    log.close();
    assert_eq!(all(&shard(&open(&disk).0)), vec![entry(1, b"c")]);
}

#[test]
fn a_purge_beyond_the_log_moves_it_there() {
    let disk = SimDisk::new();
    let (log, _) = open(&disk);
    let handle = shard(&log);
    append(&log, &handle, vec![entry(1, b"a")]);
    handle
        .purge_to(entry(100, b"").id, Box::new(|result| result.unwrap()))
        .unwrap();
    append(&log, &handle, vec![entry(101, b"b")]);
    log.close();
    let (log, _) = open(&disk);
    assert_eq!(all(&shard(&log)), vec![entry(101, b"b")]);
    assert_eq!(shard(&log).state().purged.unwrap().index.get(), 100);
}

#[test]
fn appends_that_wait_together_share_one_sync() {
    let disk = SimDisk::new();
    let (log, _) = open(&disk);
    let handle = shard(&log);
    let before = disk.sync_count();
    let done = Arc::new(AtomicUsize::new(0));
    for index in 1..=100 {
        let done = Arc::clone(&done);
        handle
            .append(
                vec![entry(index, b"x")],
                Box::new(move |result| {
                    result.unwrap();
                    done.fetch_add(1, Ordering::SeqCst);
                }),
            )
            .unwrap();
    }
    assert_eq!(
        done.load(Ordering::SeqCst),
        0,
        "nothing is acknowledged before the sync"
    );
    log.pump();
    assert_eq!(done.load(Ordering::SeqCst), 100);
    assert_eq!(disk.sync_count() - before, 1);
}

#[test]
fn own_thread_flushes_what_many_threads_append() {
    let dir = tempfile::tempdir().unwrap();
    let disk: Arc<dyn Disk> = Arc::new(flux_env::RealDisk);
    let config = LogConfig {
        segment_bytes: 256 * 1024,
        ..LogConfig::new(dir.path(), 4)
    };
    let clock = Arc::new(flux_env::RealClock::new());
    let (log, _) = Log::open(
        Arc::clone(&disk),
        Arc::<flux_env::RealClock>::clone(&clock),
        config.clone(),
        seeds(1),
    )
    .unwrap();
    std::thread::scope(|scope| {
        for number in 0..4 {
            let handle = log.shard(ShardId::new(number));
            scope.spawn(move || {
                for index in 1..=200 {
                    let (told, done) = std::sync::mpsc::channel();
                    handle
                        .append(
                            vec![entry(index, &[number as u8; 500])],
                            Box::new(move |result| told.send(result.is_ok()).unwrap()),
                        )
                        .unwrap();
                    assert!(done.recv().unwrap());
                }
            });
        }
    });
    assert!(log.stats().syncs <= 802);
    log.close();
    let (log, recovery) = Log::open(disk, clock, config, seeds(1)).unwrap();
    assert!(recovery.clean);
    for number in 0..4 {
        assert_eq!(all(&log.shard(ShardId::new(number))).len(), 200);
    }
    log.close();
}

#[test]
fn failed_sync_poisons_the_log_for_good() {
    let disk = SimDisk::new();
    let (log, _) = open(&disk);
    let handle = shard(&log);
    append(&log, &handle, vec![entry(1, b"kept")]);
    let told = Arc::new(Mutex::new(Vec::new()));
    let reasons = Arc::clone(&told);
    log.on_poison(Box::new(move |reason| {
        reasons.lock().push(reason.to_owned())
    }));
    disk.fail_sync_after(0);
    let results = Arc::new(Mutex::new(Vec::new()));
    for index in 2..=3 {
        let (results, told) = (Arc::clone(&results), Arc::clone(&told));
        let note = move |result: Result<(), LogError>| {
            results.lock().push(result.is_ok());
            assert_eq!(told.lock().len(), 1, "whoever must stop learns of it first");
        };
        let told = handle.append(vec![entry(index, b"lost")], Box::new(note));
        // What is dropped is said so at once.
        assert_eq!(told.is_ok(), index == 2);
        // The disk would say yes the second time; nobody may ask it.
        log.pump();
    }
    assert_eq!(*results.lock(), [false, false]);
    assert_eq!(told.lock().len(), 1);
    assert!(log.poison_reason().unwrap().contains("injected"));
    let truncated = handle.truncate_after(LogIndex::new(1), Box::new(drop));
    assert!(matches!(truncated, Err(LogError::Poisoned { .. })));
    let purged = handle.purge_to(entry(1, b"").id, Box::new(drop));
    assert!(matches!(purged, Err(LogError::Poisoned { .. })));
    assert_eq!(handle.state().last.unwrap().index.get(), 2);
    drop((log, handle));
    disk.crash(CrashLoss::Everything, &mut SeededRng::new(3));
    assert_eq!(all(&shard(&open(&disk).0)), vec![entry(1, b"kept")]);
}

#[test]
fn failed_inline_write_poisons_too() {
    let disk = SimDisk::new();
    let (log, _) = open_with(&disk, config(1, FsyncPolicy::EverySecond), 1).unwrap();
    disk.fail_write_after(0);
    let failed = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&failed);
    let note = move |result: Result<(), LogError>| {
        assert!(result.is_err());
        seen.fetch_add(1, Ordering::SeqCst);
    };
    let told = shard(&log).append(vec![entry(1, b"x")], Box::new(note));
    assert!(matches!(told, Err(LogError::Poisoned { .. })));
    assert_eq!(failed.load(Ordering::SeqCst), 1);
    assert!(log.poison_reason().is_some());
}

#[test]
fn full_disk_is_known_before_the_log_runs_out_and_heals() {
    let disk = SimDisk::new();
    let (log, _) = open(&disk);
    let handle = shard(&log);
    disk.set_capacity_bytes(Some(disk.used_bytes()));
    let mut index = 0;
    while log.space() == Space::Enough {
        assert!(handle.make_room(10_000, false).is_ok());
        index += 1;
        append(&log, &handle, vec![entry(index, &[1; 10_000])]);
    }
    assert!(matches!(
        handle.make_room(10, false),
        Err(LogError::NoSpace)
    ));
    // What is essential goes on for at least another segment, out of the reserve.
    for _ in 0..20 {
        handle.make_room(10_000, true).unwrap();
        index += 1;
        append(&log, &handle, vec![entry(index, &[2; 10_000])]);
    }
    assert_eq!(log.poison_reason(), None);
    disk.set_capacity_bytes(None);
    log.pump();
    assert_eq!(log.space(), Space::Enough);
    handle.make_room(10_000, false).unwrap();
    let written = all(&handle);
    log.close();
    assert_eq!(all(&shard(&open(&disk).0)), written);
}

/// A disk on which new files appear only while the gate is open.
#[derive(Debug)]
struct GatedDisk {
    disk: SimDisk,
    is_open: Mutex<bool>,
    opened: parking_lot::Condvar,
    waiting: AtomicUsize,
}

impl GatedDisk {
    /// Returns when somebody waits at the gate.
    fn wait_for_a_waiter(&self) {
        let clock = flux_env::RealClock::new();
        let deadline = clock.now() + std::time::Duration::from_secs(60);
        while self.waiting.load(Ordering::SeqCst) == 0 {
            assert!(clock.now() < deadline, "nobody makes a file");
            std::thread::yield_now();
        }
    }
}

impl Disk for GatedDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> std::io::Result<Arc<dyn flux_env::File>> {
        if mode == OpenMode::CreateNew {
            let mut is_open = self.is_open.lock();
            while !*is_open {
                self.waiting.fetch_add(1, Ordering::SeqCst);
                self.opened.wait(&mut is_open);
            }
        }
        self.disk.open(path, mode)
    }

    fn create_dir_all(&self, path: &Path) -> std::io::Result<()> {
        self.disk.create_dir_all(path)
    }

    fn read_dir(&self, path: &Path) -> std::io::Result<Vec<String>> {
        self.disk.read_dir(path)
    }

    fn exists(&self, path: &Path) -> bool {
        self.disk.exists(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> std::io::Result<()> {
        self.disk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> std::io::Result<()> {
        self.disk.remove(path)
    }

    fn sync_dir(&self, path: &Path) -> std::io::Result<()> {
        self.disk.sync_dir(path)
    }

    fn lock(&self, path: &Path) -> std::io::Result<Option<Box<dyn flux_env::LockGuard>>> {
        self.disk.lock(path)
    }

    fn free_bytes(&self, path: &Path) -> std::io::Result<u64> {
        self.disk.free_bytes(path)
    }
}

#[test]
fn no_append_and_no_sync_waits_for_a_file_to_be_prepared() {
    for policy in [FsyncPolicy::Always, FsyncPolicy::Never] {
        let disk = Arc::new(GatedDisk {
            disk: SimDisk::new(),
            is_open: Mutex::new(true),
            opened: parking_lot::Condvar::new(),
            waiting: AtomicUsize::new(0),
        });
        let config = LogConfig {
            own_thread: true,
            ..config(1, policy)
        };
        let clock = Arc::new(flux_env::RealClock::new());
        let shared: Arc<dyn Disk> = Arc::<GatedDisk>::clone(&disk);
        let (log, _) = Log::open(shared, clock, config, seeds(1)).unwrap();
        *disk.is_open.lock() = false;
        let handle = shard(&log);
        let first = log.end().0;
        for index in 1.. {
            let (told, done) = std::sync::mpsc::channel();
            handle
                .append(
                    vec![entry(index, &[1; 20_000])],
                    Box::new(move |result| told.send(result).unwrap()),
                )
                .unwrap();
            let flushed = done.recv_timeout(std::time::Duration::from_secs(60));
            flushed
                .expect("flushed while a file is being made")
                .unwrap();
            // Once over the segment prepared at the open, and once over the reserve.
            if first + 2 <= log.end().0 {
                break;
            }
            if first < log.end().0 {
                disk.wait_for_a_waiter();
            }
        }
        *disk.is_open.lock() = true;
        disk.opened.notify_all();
        log.close();
    }
}

#[test]
fn a_mark_of_what_is_committed_costs_no_sync_of_its_own() {
    for policy in [FsyncPolicy::Always, FsyncPolicy::EverySecond] {
        let disk = SimDisk::new();
        let (log, _) = open_with(&disk, config(1, policy), 1).unwrap();
        let handle = shard(&log);
        append(&log, &handle, vec![entry(1, b"a"), entry(2, b"b")]);
        let before = (disk.sync_count(), disk.write_count());
        let id = entry(2, b"").id;
        handle.mark_committed(id);
        if policy == FsyncPolicy::Always {
            log.pump();
        }
        assert_eq!((disk.sync_count(), disk.write_count()), before);
        // It goes with whatever is flushed next.
        append(&log, &handle, vec![entry(3, b"c")]);
        drop((log, handle));
        disk.crash(CrashLoss::Nothing, &mut SeededRng::new(1));
        let (log, _) = open_with(&disk, config(1, policy), 1).unwrap();
        assert_eq!(shard(&log).state().committed, Some(id));
    }
}

#[test]
fn what_one_append_writes_over_two_rolls_is_all_synced() {
    let disk = SimDisk::new();
    let (log, _) = open_with(&disk, config(1, FsyncPolicy::EverySecond), 1).unwrap();
    let handle = shard(&log);
    // No sync in between: the second roll must sync what the first one left behind.
    let entries = (1..=30).map(|index| entry(index, &[index as u8; 20_000]));
    append(&log, &handle, entries.collect());
    assert!(2 < log.end().0, "it has rolled twice");
    let written = all(&handle);
    handle.sync(Box::new(|result| result.unwrap()));
    log.pump();
    drop((log, handle));
    disk.crash(CrashLoss::Everything, &mut SeededRng::new(1));
    let (log, _) = open_with(&disk, config(1, FsyncPolicy::EverySecond), 1).unwrap();
    assert_eq!(all(&shard(&log)), written);
}

#[test]
fn a_record_longer_than_a_segment_gets_a_segment_of_its_own_size() {
    let disk = SimDisk::new();
    let (log, _) = open(&disk);
    let handle = shard(&log);
    handle.make_room(1_000_000, false).unwrap();
    append(&log, &handle, vec![entry(1, &vec![5; 1_000_000])]);
    append(&log, &handle, vec![entry(2, b"after")]);
    let written = all(&handle);
    log.close();
    assert_eq!(all(&shard(&open(&disk).0)), written);
}

#[test]
fn directories_that_are_not_ours_are_refused_and_left_alone() {
    let disk = SimDisk::new();
    disk.create_dir_all(Path::new(DIR)).unwrap();
    disk.open(&Path::new(DIR).join("thesis.tex"), OpenMode::CreateNew)
        .unwrap();
    let error = open_with(&disk, config(1, FsyncPolicy::Always), 1).unwrap_err();
    assert!(error.to_string().contains("thesis.tex"), "{error}");
    assert_eq!(disk.read_dir(Path::new(DIR)).unwrap(), ["thesis.tex"]);
}

#[test]
fn rule_12_a_log_that_a_power_cut_may_have_shortened_is_told_from_one_that_is_whole() {
    let asking = || LogConfig {
        refuse_power_loss: true,
        ..config(1, FsyncPolicy::Never)
    };
    let disk = SimDisk::new();
    let (log, _) = open_with(&disk, asking(), 1).expect("a new folder lacks nothing");
    append(&log, &shard(&log), vec![entry(1, b"a")]);
    log.abandon();
    // The process died, the machine lives: nothing is missing.
    let (log, _) = open_with(&disk, asking(), 1).expect("the same boot");
    assert_eq!(all(&shard(&log)).len(), 1);
    log.close();
    let (log, _) = open_with(&disk, asking(), 2).expect("it had ended in order");
    append(&log, &shard(&log), vec![entry(2, b"b")]);
    log.abandon();
    let refused = open_with(&disk, asking(), 3).expect_err("power may have failed");
    assert!(matches!(refused, OpenError::PowerLoss { .. }), "{refused}");
    // Nothing was changed by asking: it is refused again, and opens for whoever does not ask.
    assert!(open_with(&disk, asking(), 3).is_err());
    let (log, recovery) = open_with(&disk, config(1, FsyncPolicy::Never), 3).expect("not asked");
    assert!(recovery.rebooted && !recovery.clean);
    log.close();
}

#[test]
fn a_directory_has_one_owner_and_one_shard_count() {
    let disk = SimDisk::new();
    let (log, _) = open(&disk);
    let error = open_with(&disk, config(1, FsyncPolicy::Always), 1).unwrap_err();
    assert!(matches!(error, OpenError::InUse { .. }));
    log.close();
    let error = open_with(&disk, config(4, FsyncPolicy::Always), 1).unwrap_err();
    assert!(matches!(
        error,
        OpenError::ShardCount {
            found: 1,
            asked: 4,
            ..
        }
    ));
    open(&disk);
}

/// A log with `count` entries of mixed sizes on a disk of its own, not closed in order.
fn sample(count: u64) -> (SimDisk, Vec<LogEntry>) {
    let disk = SimDisk::new();
    let (log, _) = open(&disk);
    let handle = shard(&log);
    let mut rng = SeededRng::new(count);
    for index in 1..=count {
        let size = rng.below(300) as usize;
        append(&log, &handle, vec![entry(index, &vec![index as u8; size])]);
    }
    let entries = all(&handle);
    drop((log, handle));
    disk.crash(CrashLoss::Nothing, &mut rng);
    (disk, entries)
}

/// Where the records of a segment end.
fn end_of(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1
}

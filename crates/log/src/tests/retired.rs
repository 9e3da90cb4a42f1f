//! Replicas that are let go and forget everything but their vote.

use super::*;

const VOTE: Vote = Vote {
    term: Term::new(5),
    node: NodeId::new(3),
    committed: true,
};

fn gone_at() -> LogId {
    LogId {
        term: Term::new(5),
        index: LogIndex::new(40),
    }
}

fn two_shards(segment_bytes: u64) -> LogConfig {
    LogConfig {
        segment_bytes,
        ..config(2, FsyncPolicy::Always)
    }
}

fn retire(log: &Log, handle: &ShardLog) {
    handle.retire(gone_at(), Box::new(|result| result.unwrap()));
    log.pump();
}

/// Whether nothing but the vote and the tombstone is left.
fn assert_forgotten(handle: &ShardLog, last: LogId) {
    let state = handle.state();
    let tombstone = Tombstone {
        last,
        gone_at: gone_at(),
    };
    let expected = ShardLogState {
        vote: Some(VOTE),
        tombstone: Some(tombstone),
        ..ShardLogState::default()
    };
    assert_eq!(state, expected);
    assert_eq!(state.last_ever(), Some(last));
    assert!(state.is_behind());
    assert_eq!(all(handle), Vec::new());
    assert_eq!(handle.oldest(), LogIndex::new(1));
    assert_eq!(handle.durable(), LogIndex::new(0));
    assert!(handle.latest_snapshot().unwrap().is_none());
}

#[test]
fn a_replica_let_go_keeps_its_vote_and_remembers_what_it_had() {
    let disk = SimDisk::new();
    let (log, _) = open_with(&disk, two_shards(256 * 1024), 1).unwrap();
    let (handle, other) = (shard(&log), log.shard(ShardId::new(1)));
    handle.save_vote(VOTE, Box::new(|result| result.unwrap()));
    let ten = (1..=10).map(|index| entry(index, b"x")).collect();
    append(&log, &handle, ten);
    append(&log, &other, vec![entry(1, b"stays")]);
    let writer = handle.begin_snapshot(entry(6, b"").id).unwrap();
    let footer = SnapshotFooter::new(entry(8, b"").id, Bytes::new());
    writer.finish(footer).unwrap();
    handle.purge_to(entry(6, b"").id, Box::new(drop)).unwrap();
    handle.mark_committed(entry(9, b"").id);
    handle.pin("somebody", LogIndex::new(2));

    retire(&log, &handle);
    assert_forgotten(&handle, entry(10, b"").id);
    assert_eq!(all(&other), vec![entry(1, b"stays")]);
    log.abandon();

    // The snapshot was not removed any more: an open does.
    let (log, _) = open_with(&disk, two_shards(256 * 1024), 1).unwrap();
    let (handle, other) = (shard(&log), log.shard(ShardId::new(1)));
    assert_forgotten(&handle, entry(10, b"").id);
    assert_eq!(all(&other), vec![entry(1, b"stays")]);
    let snapshots = disk.read_dir(&Path::new(DIR).join("snap")).unwrap();
    assert_eq!(snapshots, Vec::<String>::new());

    // It begins again, and is itself again once it has reached what it had.
    append(&log, &handle, vec![entry(1, b"anew"), entry(2, b"anew")]);
    assert!(handle.state().is_behind());
    append(&log, &handle, (3..=10).map(|at| entry(at, b"y")).collect());
    assert!(!handle.state().is_behind());
    log.close();
    let (log, _) = open_with(&disk, two_shards(256 * 1024), 2).unwrap();
    assert_eq!(all(&shard(&log)).len(), 10);
    assert!(!shard(&log).state().is_behind());
}

#[test]
fn a_replica_let_go_twice_remembers_the_last_it_ever_had() {
    let disk = SimDisk::new();
    let (log, _) = open(&disk);
    let handle = shard(&log);
    handle.save_vote(VOTE, Box::new(|result| result.unwrap()));
    append(&log, &handle, (1..=10).map(|at| entry(at, b"x")).collect());
    retire(&log, &handle);
    append(&log, &handle, vec![entry(1, b"anew")]);
    retire(&log, &handle);
    assert_forgotten(&handle, entry(10, b"").id);
}

#[test]
fn a_tombstone_outlives_the_segments_and_gives_them_back() {
    let disk = SimDisk::new();
    let (log, _) = open_with(&disk, two_shards(32 * 1024), 1).unwrap();
    let (handle, other) = (shard(&log), log.shard(ShardId::new(1)));
    handle.save_vote(VOTE, Box::new(|result| result.unwrap()));
    for index in 1..=20 {
        append(&log, &handle, vec![entry(index, &[1; 5000])]);
    }
    let held = log.stats().segments;
    retire(&log, &handle);
    // Of the other shard, so that the segment with the record goes as well.
    for index in 1..=20 {
        append(&log, &other, vec![entry(index, &[2; 5000])]);
    }
    other.purge_to(entry(19, b"").id, Box::new(drop)).unwrap();
    log.pump();
    log.pump();
    assert!(held < log.stats().segments_deleted, "{:?}", log.stats());
    log.close();
    let (log, _) = open_with(&disk, two_shards(32 * 1024), 2).unwrap();
    assert_forgotten(&shard(&log), entry(20, b"").id);
}

#[test]
fn a_crash_at_any_write_or_sync_leaves_all_or_the_vote_and_the_tombstone() {
    let (mut before, mut after) = (0, 0);
    for (stop_after, fails_sync) in (0..6).flat_map(|count| [(count, false), (count, true)]) {
        for policy in [FsyncPolicy::Always, FsyncPolicy::Never] {
            let disk = SimDisk::new();
            let (log, _) = open_with(&disk, config(1, policy), 1).unwrap();
            let handle = shard(&log);
            handle.save_vote(VOTE, Box::new(|result| result.unwrap()));
            append(&log, &handle, (1..=5).map(|at| entry(at, b"x")).collect());
            handle.sync(Box::new(|result| result.unwrap()));
            log.pump();
            if fails_sync {
                disk.fail_sync_after(stop_after);
            } else {
                disk.fail_write_after(stop_after);
            }
            let told = Arc::new(AtomicUsize::new(0));
            let tell = Arc::clone(&told);
            let note = move |result: Result<(), LogError>| {
                tell.store(usize::from(result.is_ok()), Ordering::SeqCst);
            };
            handle.retire(gone_at(), Box::new(note));
            log.pump();
            drop((handle, log));
            disk.fail_write_after(u64::MAX);
            disk.fail_sync_after(u64::MAX);
            let mut rng = SeededRng::new(stop_after);
            disk.crash(CrashLoss::Everything, &mut rng);
            let (log, _) = open_with(&disk, config(1, policy), 2).unwrap();
            let handle = shard(&log);
            if handle.state().tombstone.is_none() {
                assert_eq!(told.load(Ordering::SeqCst), 0);
                assert_eq!(handle.state().vote, Some(VOTE));
                assert_eq!(all(&handle).len(), 5);
                before += 1;
            } else {
                assert_forgotten(&handle, entry(5, b"").id);
                after += 1;
            }
        }
    }
    assert!(0 < before && 0 < after, "{before} {after}");
}

//! Directories that get room for more shards while they are open.

use super::*;

fn grown_config(asked: u32) -> LogConfig {
    LogConfig {
        may_have_grown: true,
        ..config(asked, FsyncPolicy::Always)
    }
}

#[test]
fn a_shard_that_came_later_is_there_after_a_restart_and_a_power_cut() {
    let disk = SimDisk::new();
    let (log, _) = open(&disk);
    append(&log, &shard(&log), vec![entry(1, b"first")]);
    log.grow(3).unwrap();
    log.grow(2).unwrap();
    assert_eq!(log.identity().shard_count, 3, "never fewer");
    let later = log.shard(ShardId::new(2));
    append(&log, &later, vec![entry(1, b"later"), entry(2, b"more")]);
    disk.crash(CrashLoss::Everything, &mut SeededRng::new(1));
    log.abandon();
    let (log, _) = open_with(&disk, grown_config(1), 2).unwrap();
    assert_eq!(log.identity().shard_count, 3);
    let state = log.shard(ShardId::new(2)).state();
    assert_eq!(state.last.map(|last| last.index.get()), Some(2));
    assert_eq!(log.shard(ShardId::new(1)).state().last, None);
    assert_eq!(
        shard(&log).state().last.map(|last| last.index.get()),
        Some(1)
    );
}

#[test]
fn the_segments_after_it_know_of_it_too() {
    let disk = SimDisk::new();
    let (log, _) = open(&disk);
    log.grow(2).unwrap();
    let later = log.shard(ShardId::new(1));
    let payload = vec![7; 60 * 1024];
    for index in 1..=20 {
        append(&log, &later, vec![entry(index, &payload)]);
    }
    assert!(1 < log.stats().segments, "it rolled");
    log.close();
    let (log, _) = open_with(&disk, grown_config(1), 1).unwrap();
    let state = log.shard(ShardId::new(1)).state();
    assert_eq!(state.last.map(|last| last.index.get()), Some(20));
}

#[test]
fn who_did_not_expect_more_shards_is_told_how_many_there_are() {
    let disk = SimDisk::new();
    let (log, _) = open(&disk);
    log.grow(2).unwrap();
    log.close();
    let refused = open_with(&disk, config(1, FsyncPolicy::Always), 1).unwrap_err();
    assert!(
        matches!(
            refused,
            OpenError::ShardCount {
                found: 2,
                asked: 1,
                ..
            }
        ),
        "{refused}"
    );
    let fewer = open_with(&disk, grown_config(3), 1).unwrap_err();
    assert!(
        matches!(
            fewer,
            OpenError::ShardCount {
                found: 2,
                asked: 3,
                ..
            }
        ),
        "{fewer}"
    );
}

#[test]
fn a_crash_while_it_grows_leaves_the_old_number_or_the_new_one() {
    for step in 0..6 {
        let disk = SimDisk::new();
        let (log, _) = open(&disk);
        append(&log, &shard(&log), vec![entry(1, b"first")]);
        disk.fail_sync_after(step);
        let grown = log.grow(2);
        disk.crash(CrashLoss::Random, &mut SeededRng::new(step));
        log.abandon();
        disk.fail_sync_after(u64::MAX);
        let (log, _) = open_with(&disk, grown_config(1), 2).unwrap();
        let count = log.identity().shard_count;
        assert!(count == 2 || grown.is_err() && count == 1, "{count}");
        assert_eq!(
            shard(&log).state().last.map(|last| last.index.get()),
            Some(1)
        );
    }
}

//! Random histories against crashes of every kind.

use super::*;

/// Runs a random history against a crash, and checks what must be left of it.
fn crash_run(seed: u64, policy: FsyncPolicy, loss: CrashLoss) -> (bool, bool) {
    let mut rng = SeededRng::new(seed);
    let disk = SimDisk::new();
    let small = LogConfig {
        segment_bytes: 32 * 1024,
        ..config(2, policy)
    };
    let acknowledged: Arc<Mutex<[u64; 2]>> = Arc::default();
    let mut rolled = false;
    let mut torn = false;
    for life in 0..4 {
        let (log, recovery) = open_with(&disk, small.clone(), life)
            .unwrap_or_else(|error| panic!("seed {seed}, life {life}: {error}"));
        torn |= recovery.torn.is_some();
        for number in 0..2 {
            let handle = log.shard(ShardId::new(number));
            let entries = all(&handle);
            let promised = acknowledged.lock()[number as usize];
            let kept = entries.last().map_or(0, |entry| entry.id.index.get());
            let durable = policy == FsyncPolicy::Always || loss == CrashLoss::Nothing;
            assert!(
                !durable || promised <= kept,
                "seed {seed}: {promised} promised, {kept} kept"
            );
            for (expected, entry) in (1..).zip(&entries) {
                assert_eq!(entry.id.index.get(), expected);
                assert_eq!(entry.payload[..], payload(seed, number, expected)[..]);
            }
            acknowledged.lock()[number as usize] = kept;
        }
        let steps = 20 + rng.below(60);
        for _ in 0..steps {
            let number = rng.below(2) as u32;
            let handle = log.shard(ShardId::new(number));
            let next = handle.state().last.map_or(0, |id| id.index.get()) + 1;
            let count = 1 + rng.below(3);
            let entries = (next..next + count)
                .map(|index| entry(index, &payload(seed, number, index)))
                .collect();
            let acknowledged = Arc::clone(&acknowledged);
            let note = move |result: Result<(), LogError>| {
                if result.is_ok() {
                    acknowledged.lock()[number as usize] = next + count - 1;
                }
            };
            handle.append(entries, Box::new(note)).unwrap();
            if rng.one_in(3) {
                log.pump();
            }
        }
        rolled |= 1 < log.stats().segments;
        drop(log);
        disk.crash(loss, &mut rng);
    }
    (rolled, torn)
}

fn payload(seed: u64, shard: u32, index: u64) -> Vec<u8> {
    let size = (seed ^ index.wrapping_mul(0x9E37)) % 900;
    vec![(index as u8).wrapping_add(shard as u8); size as usize]
}

#[test]
fn what_was_acknowledged_survives_every_kind_of_crash() {
    let mut rolled = 0;
    let mut torn = 0;
    for seed in 0..150 {
        for policy in [
            FsyncPolicy::Always,
            FsyncPolicy::EverySecond,
            FsyncPolicy::Never,
        ] {
            for loss in [CrashLoss::Nothing, CrashLoss::Everything, CrashLoss::Random] {
                let (did_roll, did_tear) = crash_run(seed, policy, loss);
                rolled += usize::from(did_roll);
                torn += usize::from(did_tear);
            }
        }
    }
    assert!(
        100 < rolled && 50 < torn,
        "the runs must be worth something: {rolled} {torn}"
    );
}

#[test]
fn a_crash_at_any_write_of_a_roll_and_a_purge_opens_again() {
    for stop_after in 0..60 {
        let disk = SimDisk::new();
        let small = LogConfig {
            segment_bytes: 16 * 1024,
            ..config(1, FsyncPolicy::Always)
        };
        let (log, _) = open_with(&disk, small.clone(), 1).unwrap();
        disk.fail_write_after(stop_after);
        let kept = Arc::new(AtomicUsize::new(0));
        for index in 1..=30 {
            let kept = Arc::clone(&kept);
            let note = move |result: Result<(), LogError>| {
                if result.is_ok() {
                    kept.store(index as usize, Ordering::SeqCst);
                }
            };
            let told = shard(&log).append(vec![entry(index, &[3; 2000])], Box::new(note));
            assert_eq!(told.is_err(), log.poison_reason().is_some());
            log.pump();
            if index == 20 {
                let told = shard(&log).purge_to(entry(15, b"").id, Box::new(|_| {}));
                assert_eq!(told.is_err(), log.poison_reason().is_some());
                log.pump();
            }
        }
        drop(log);
        disk.fail_write_after(u64::MAX);
        disk.crash(CrashLoss::Random, &mut SeededRng::new(stop_after));
        let (log, _) = open_with(&disk, small, 2).unwrap();
        let last = shard(&log).state().last.map_or(0, |id| id.index.get());
        assert!(kept.load(Ordering::SeqCst) as u64 <= last);
        assert!(
            all(&shard(&log))
                .iter()
                .all(|entry| entry.payload.len() == 2000)
        );
    }
}

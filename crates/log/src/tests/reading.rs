//! Reading old entries back from disk.

use super::*;

/// A log of two shards, reopened so that nothing of it is in memory, with entries from none to
/// longer than any read, over several segments.
fn reopened() -> (SimDisk, Log, Vec<LogEntry>) {
    let disk = SimDisk::new();
    let (log, _) = open_with(&disk, config(2, FsyncPolicy::Always), 1).unwrap();
    let other = log.shard(ShardId::new(1));
    let mut rng = SeededRng::new(3);
    let entries: Vec<LogEntry> = (1..=120)
        .map(|index| {
            let size = match index % 6 {
                0 => 0,
                1 => 70_000 + rng.below(200_000),
                _ => rng.below(3000),
            };
            entry(index, &vec![index as u8; size as usize])
        })
        .collect();
    for (index, entry_of_first) in (1..).zip(&entries) {
        append(&log, &shard(&log), vec![entry_of_first.clone()]);
        append(&log, &other, vec![entry(index, &[9; 500])]);
    }
    drop((log, other));
    disk.crash(CrashLoss::Nothing, &mut rng);
    let (log, _) = open_with(&disk, config(2, FsyncPolicy::Always), 1).unwrap();
    (disk, log, entries)
}

#[test]
fn any_range_is_read_in_order_within_its_bytes() {
    let (_disk, log, entries) = reopened();
    let handle = shard(&log);
    for from in [1, 2, 7, 60, 119, 120] {
        for until in [from + 1, from + 5, 121, 500] {
            for bytes_max in [0, 1000, 100_000, 10_000_000] {
                let got = handle
                    .entries(LogIndex::new(from), LogIndex::new(until), bytes_max)
                    .unwrap();
                let wanted = &entries[from as usize - 1..(until as usize - 1).min(120)];
                assert!(!got.is_empty());
                assert_eq!(got[..], wanted[..got.len()]);
                let bytes: usize = got.iter().map(|entry| entry.payload.len()).sum();
                assert!(bytes <= bytes_max || got.len() == 1);
                assert!(got.len() == wanted.len() || bytes_max < 10_000_000);
            }
        }
    }
    assert!(
        handle
            .entries(LogIndex::new(121), LogIndex::new(200), 1000)
            .unwrap()
            .is_empty()
    );
}

#[test]
fn an_entry_that_rots_after_the_open_is_refused_not_served() {
    let (disk, log, entries) = reopened();
    let handle = shard(&log);
    let last = log.stats().segments;
    for number in 1..=last {
        let path = segment_path(number);
        let mut rng = SeededRng::new(number);
        for _ in 0..40 {
            let at = rng.below(200_000) as usize;
            disk.damage(&path, |bytes| bytes[at] ^= 0x40).unwrap();
            for index in 1..=120 {
                let got = handle.entries(LogIndex::new(index), LogIndex::new(index + 1), 0);
                match got {
                    Ok(got) => assert_eq!(got, [entries[index as usize - 1].clone()]),
                    Err(LogError::Damaged { segment, offset }) => {
                        assert_eq!(segment, number);
                        assert!(offset as usize <= at);
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            disk.damage(&path, |bytes| bytes[at] ^= 0x40).unwrap();
        }
    }
}

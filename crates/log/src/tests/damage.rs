//! Damaged logs: cuts, flipped bits, missing pieces. Never a wrong entry, never a silent loss.

use super::*;

#[test]
fn missing_segments_are_damage() {
    let disk = SimDisk::new();
    let (log, _) = open(&disk);
    for index in 1..=40 {
        append(&log, &shard(&log), vec![entry(index, &[1; 20_000])]);
    }
    log.close();
    for number in [1, 2] {
        let copy = disk.duplicate();
        copy.remove(&segment_path(number)).unwrap();
        let error = open_with(&copy, config(1, FsyncPolicy::Always), 1).unwrap_err();
        assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
    }
}

#[test]
fn cut_anywhere_the_log_opens_with_what_was_whole() {
    let (disk, entries) = sample(300);
    let bytes = read_segment(&disk, 1);
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    for cut in segment::SEGMENT_HEADER_BYTES + 1..end {
        let image = recovery_of(&bytes[..cut]);
        let (count, torn) = image.unwrap_or_else(|error| panic!("cut at {cut}: {error}"));
        assert!(count <= entries.len());
        let whole = torn.is_none_or(|torn| torn <= cut as u64);
        assert!(whole);
    }
}

/// Scans one segment's bytes as if they were the whole log; the number of entries, and where a torn
/// tail was cut.
fn recovery_of(bytes: &[u8]) -> Result<(usize, Option<u64>), OpenError> {
    let disk = SimDisk::new();
    let log_dir = Path::new(DIR).join("log");
    disk.create_dir_all(&log_dir).unwrap();
    let file = disk.open(&segment_path(1), OpenMode::CreateNew).unwrap();
    file.write_all_at(bytes, 0).unwrap();
    let image = recovery::scan(&disk, Path::new(DIR), 1, 1)?;
    let torn = image.recovery.torn.map(|torn| torn.offset);
    Ok((image.shards[0].entries.len(), torn))
}

/// Flips every bit of a range of a log, one at a time, and scans the whole log each time.
fn flip_every_bit(bytes: &[u8], bits: std::ops::Range<usize>, entries: usize, last_record: usize) {
    let disk = SimDisk::new();
    disk.create_dir_all(&Path::new(DIR).join("log")).unwrap();
    let file = disk.open(&segment_path(1), OpenMode::CreateNew).unwrap();
    file.write_all_at(bytes, 0).unwrap();
    file.sync_data().unwrap();
    for bit in bits {
        let at = bit / 8;
        file.write_all_at(&[bytes[at] ^ 1 << (bit % 8)], at as u64)
            .unwrap();
        match recovery::scan(&disk, Path::new(DIR), 1, 1) {
            Ok(image) => {
                assert!(
                    last_record <= at,
                    "bit {bit} would be taken for a torn tail"
                );
                assert_eq!(image.recovery.torn.unwrap().offset, last_record as u64);
                assert_eq!(image.shards[0].entries.len(), entries - 1);
            }
            Err(OpenError::Damaged { offset, .. }) => assert!(offset <= at as u64, "bit {bit}"),
            Err(error) => panic!("bit {bit}: {error}"),
        }
        file.write_all_at(&[bytes[at]], at as u64).unwrap();
        if bit % 4096 == 0 {
            file.sync_data().unwrap();
        }
    }
}

#[test]
fn every_flipped_bit_is_refused_or_cut_and_loses_nothing_before_it() {
    let (disk, entries) = sample(310);
    let mut bytes = read_segment(&disk, 1);
    let end = end_of(&bytes).next_multiple_of(record::RECORD_ALIGNMENT);
    assert!((64 * 1024..72 * 1024).contains(&end), "{end}");
    bytes.truncate(end);
    let salt = segment::SegmentHeader::decode(&bytes).unwrap().salt;
    let (mut at, mut last_record) = (segment::SEGMENT_HEADER_BYTES, 0);
    while at < end {
        last_record = at;
        at += record::decode(&bytes[at..], salt).unwrap().size();
    }
    let (bits, parts) = (end * 8, 4);
    std::thread::scope(|scope| {
        for part in 0..parts {
            let (bytes, count) = (&bytes, entries.len());
            let range = bits * part / parts..bits * (part + 1) / parts;
            scope.spawn(move || flip_every_bit(bytes, range, count, last_record));
        }
    });
}

#[test]
fn flipped_bits_through_the_whole_open_name_the_place_and_change_nothing() {
    let (disk, entries) = sample(40);
    let bytes = read_segment(&disk, 1);
    let end = end_of(&bytes);
    let mut rng = SeededRng::new(5);
    for _ in 0..400 {
        let bit = rng.below(end as u64 * 8) as usize;
        let copy = disk.duplicate();
        copy.damage(&segment_path(1), |bytes| bytes[bit / 8] ^= 1 << (bit % 8))
            .unwrap();
        let before = read_segment(&copy, 1);
        match open_with(&copy, config(1, FsyncPolicy::Always), 1) {
            Ok((log, recovery)) => {
                let kept = all(&shard(&log));
                assert_eq!(kept[..], entries[..kept.len()]);
                let torn = recovery.torn.expect("a flipped bit is never unnoticed");
                assert!(torn.offset as usize <= bit / 8);
                assert!(
                    entries.len() - kept.len() <= 1,
                    "only the last record can look torn"
                );
            }
            Err(error) => {
                let text = error.to_string();
                assert!(text.contains("0000000000000001.flog at offset "), "{text}");
                assert!(text.contains("flux log inspect /data"), "{text}");
                assert_eq!(read_segment(&copy, 1), before);
            }
        }
    }
}

#[test]
fn damage_names_the_shard_whose_records_are_missing() {
    let disk = SimDisk::new();
    let (log, _) = open_with(&disk, config(3, FsyncPolicy::Always), 1).unwrap();
    for index in 1..=10 {
        for number in 0..3 {
            append(
                &log,
                &log.shard(ShardId::new(number)),
                vec![entry(index, &[9; 64])],
            );
        }
    }
    let offset = {
        let bytes = read_segment(&disk, 1);
        let salt = segment::SegmentHeader::decode(&bytes).unwrap().salt;
        let mut at = segment::SEGMENT_HEADER_BYTES;
        loop {
            let record = record::decode(&bytes[at..], salt).unwrap();
            if record.header.shard == 1 && record.header.index == 5 {
                break at;
            }
            at += record.size();
        }
    };
    log.close();
    disk.damage(&segment_path(1), |bytes| bytes[offset + 60] ^= 1)
        .unwrap();
    let error = open_with(&disk, config(3, FsyncPolicy::Always), 1).unwrap_err();
    let OpenError::Damaged {
        offset: found,
        shards,
        ..
    } = error
    else {
        panic!("{error}")
    };
    assert_eq!((found as usize, shards), (offset, vec![ShardId::new(1)]));
}

#[test]
fn garbage_duplicates_and_swaps_are_never_taken_for_records() {
    let (disk, entries) = sample(60);
    let bytes = read_segment(&disk, 1);
    let end = end_of(&bytes).next_multiple_of(8);
    let mut rng = SeededRng::new(11);
    for case in 0..200 {
        let mut damaged = bytes.clone();
        match case % 4 {
            // Zeros over the tail, of any length.
            0 => {
                let from = end - rng.below(4096.min(end as u64 - 64)) as usize;
                damaged[from..end].fill(0);
            }
            // The last part again behind the end, as if old bytes had been left there.
            1 => {
                let length = rng.below(1024) as usize;
                damaged.copy_within(end - length..end, end);
            }
            // Two sectors changed places.
            2 => {
                let sectors = end / 512;
                let (a, b) = (
                    rng.below(sectors as u64) as usize,
                    rng.below(sectors as u64) as usize,
                );
                for at in 0..512 {
                    damaged.swap(a * 512 + at, b * 512 + at);
                }
            }
            // Noise behind the end.
            _ => {
                for byte in &mut damaged[end..end + 2048] {
                    *byte = rng.next_u64() as u8;
                }
            }
        }
        let copy = disk.duplicate();
        copy.damage(&segment_path(1), |bytes| *bytes = damaged)
            .unwrap();
        if let Ok((log, _)) = open_with(&copy, config(1, FsyncPolicy::Always), 1) {
            let kept = all(&shard(&log));
            assert_eq!(kept[..], entries[..kept.len()], "case {case}");
            // What was opened once opens the same again, and takes new entries.
            let next = kept.len() as u64 + 1;
            append(&log, &shard(&log), vec![entry(next, b"next")]);
            log.close();
            let (log, recovery) = open_with(&copy, config(1, FsyncPolicy::Always), 1).unwrap();
            assert_eq!(recovery.torn, None);
            assert_eq!(all(&shard(&log)).len(), kept.len() + 1);
        }
    }
}

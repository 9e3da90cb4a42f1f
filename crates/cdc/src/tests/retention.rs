//! Rule 15: what is purged stays readable as long as its segments are kept, and what is gone is said
//! to be gone.

use super::*;
use crate::OnGap;

/// A value of which a few fill a segment.
fn filler() -> String {
    "v".repeat(10_000)
}

fn open(disk: &SimDisk, retention: Retention) -> Arc<TestShard> {
    TestShard::open(disk, log_config(FsyncPolicy::Always, retention), 1)
}

pub(super) fn keep(bytes_max: u64) -> Retention {
    Retention {
        bytes_max,
        age_max_ms: u64::MAX,
        pinned_bytes_max: bytes_max,
        settle_ms: 0,
    }
}

/// Commits so many values, then purges them all but the last, as a snapshot does.
pub(super) fn fill_and_purge(shard: &TestShard, count: usize) {
    for number in 0..count {
        shard.set(&format!("key{number}"), &filler());
    }
    let applied = shard.applied().expect("entries");
    let purged = LogIndex::new(applied.index.get() - 1);
    let id = shard.shard.id_at(purged).expect("an entry");
    shard
        .shard
        .purge_to(id, Box::new(|result| result.unwrap()))
        .unwrap();
    shard.log.pump();
    shard.log.pump();
}

#[tokio::test]
async fn purged_changes_are_told_while_retention_keeps_them_and_after_a_restart() {
    let disk = SimDisk::new();
    let shard = open(&disk, keep(u64::MAX));
    fill_and_purge(&shard, 40);
    let mut feed = shard.feed(Start::Earliest).await;
    let told = shard.told(&mut feed, 40).await;
    assert_eq!((&*told[0], &*told[39]), ("set key0 0/1", "set key39 0/1"));
    assert!(shard.log.stats().retained_bytes > 0);
    shard.log.close();
    let again = open(&disk, keep(u64::MAX));
    let mut feed = again.feed(Start::Earliest).await;
    assert_eq!(again.told(&mut feed, 40).await, told);
}

#[tokio::test]
async fn a_cursor_from_before_what_is_kept_is_refused_and_told_where_to_go_on() {
    let shard = open(&SimDisk::new(), keep(2 * 64 * 1024));
    shard.set("first", "1");
    let cursor = shard.feed(Start::Now).await.cursor();
    fill_and_purge(&shard, 40);
    assert!(shard.log.stats().retained_bytes <= 2 * 64 * 1024);
    let refused = shard.try_feed(Request::from(at(&cursor))).await;
    let Err(CdcError::Compacted { oldest }) = refused else {
        panic!("{refused:?}");
    };
    let mut feed = shard.feed(at(&oldest)).await;
    let told = shard.told(&mut feed, 1).await;
    assert!(told[0].starts_with("set key"), "{told:?}");
    // A sink would rather say it and go on.
    let request = Request {
        on_gap: OnGap::Report,
        ..Request::from(at(&cursor))
    };
    let mut feed = shard.try_feed(request).await.expect("a feed");
    let reported = shard.told(&mut feed, 2).await;
    assert!(reported[0].starts_with("gap 1.."), "{reported:?}");
    assert_eq!(reported[1], told[0]);
}

#[tokio::test]
async fn a_reader_that_falls_behind_retention_is_told_of_the_gap() {
    let shard = open(&SimDisk::new(), keep(64 * 1024));
    shard.set("first", "1");
    let mut feed = shard.feed(Start::Now).await;
    fill_and_purge(&shard, 40);
    let told = shard.told_until(&mut feed, "set key39 0/1").await;
    assert!(told[0].starts_with("gap 1.."), "{told:?}");
    let next: u64 = told[0]
        .rsplit("..")
        .next()
        .and_then(|next| next.parse().ok())
        .expect("one");
    // Revision 1 was `first`, so key N has revision N + 2.
    let rest: Vec<String> = (next - 2..40)
        .map(|number| format!("set key{number} 0/1"))
        .collect();
    assert_eq!(told[1..], rest);
}

#[tokio::test]
async fn a_pin_keeps_history_up_to_its_cap() {
    let retention = |pinned_bytes_max| Retention {
        bytes_max: 0,
        age_max_ms: u64::MAX,
        pinned_bytes_max,
        settle_ms: 0,
    };
    for (cap, is_kept) in [(u64::MAX, true), (64 * 1024, false)] {
        let shard = open(&SimDisk::new(), retention(cap));
        shard.set("first", "1");
        let cursor = shard.feed(Start::Now).await.cursor();
        shard
            .shard
            .pin("sink", shard.applied().expect("an entry").index);
        fill_and_purge(&shard, 40);
        let feed = shard.try_feed(Request::from(at(&cursor))).await;
        assert_eq!(feed.is_ok(), is_kept, "{feed:?}");
        assert_eq!(shard.log.stats().pinned_segments_deleted > 0, !is_kept);
        shard.shard.unpin("sink");
        shard.log.pump();
        assert_eq!(shard.log.stats().retained_bytes, 0);
    }
}

#[tokio::test]
async fn after_a_start_history_waits_for_those_who_will_ask_for_it() {
    let disk = SimDisk::new();
    let shard = open(&disk, keep(u64::MAX));
    fill_and_purge(&shard, 40);
    let kept = shard.log.stats().retained_bytes;
    shard.log.close();
    let retention = Retention {
        bytes_max: 0,
        settle_ms: 60_000,
        ..keep(u64::MAX)
    };
    let again = open(&disk, retention);
    again.set("after", "1");
    again.log.pump();
    assert!(kept <= again.log.stats().retained_bytes);
    again.shard.pin("sink", LogIndex::new(30));
    again.clock.advance(Duration::from_secs(61));
    again.log.pump();
    let pinned = again.log.stats().retained_bytes;
    assert!(0 < pinned && pinned < kept, "{pinned} of {kept}");
    again.shard.unpin("sink");
    again.log.pump();
    assert_eq!(again.log.stats().retained_bytes, 0);
}

#[tokio::test]
async fn history_goes_by_age() {
    let retention = Retention {
        age_max_ms: 60_000,
        ..keep(u64::MAX)
    };
    let shard = open(&SimDisk::new(), retention);
    fill_and_purge(&shard, 40);
    let before = shard.log.stats().retained_bytes;
    assert!(before > 0);
    shard.clock.advance(Duration::from_secs(59));
    shard.log.pump();
    assert_eq!(shard.log.stats().retained_bytes, before);
    shard.clock.advance(Duration::from_secs(2));
    shard.log.pump();
    assert_eq!(shard.log.stats().retained_bytes, 0);
}

/// A full disk comes before retention: the oldest history goes before a write is refused.
#[tokio::test]
async fn a_full_disk_takes_history_before_it_refuses_writes() {
    let disk = SimDisk::new();
    let shard = open(&disk, keep(u64::MAX));
    shard.set("first", "1");
    let cursor = shard.feed(Start::Now).await.cursor();
    shard.shard.pin("sink", LogIndex::new(1));
    fill_and_purge(&shard, 40);
    disk.set_capacity_bytes(Some(disk.used_bytes()));
    for round in 0..5 {
        fill_and_purge(&shard, 40);
        assert_eq!(shard.log.space(), flux_log::Space::Enough, "round {round}");
    }
    let refused = shard.try_feed(Request::from(at(&cursor))).await;
    assert!(
        matches!(refused, Err(CdcError::Compacted { .. })),
        "{refused:?}"
    );
}

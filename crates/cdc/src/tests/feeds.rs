//! What a feed tells, in which order, and what it must not tell.

use flux_env::CrashLoss;
use flux_store::BatchWriter;
use flux_types::{Revision, TraceParent};
use futures_util::FutureExt as _;

use super::*;

#[tokio::test]
async fn changes_come_in_order_with_their_groups_and_a_cursor_goes_on_after_each() {
    let shard = TestShard::new();
    let mut feed = shard.feed(Start::Now).await;
    shard.set("a", "1");
    shard.commit(&[set("b", "1"), delete("a")]);
    let expected = ["set a 0/1", "set b 0/1", "delete a 0/1"];
    let mut cursors = Vec::new();
    let mut told = Vec::new();
    while told.len() < expected.len() {
        let batch = shard.next(&mut feed).await;
        for event in &batch.events {
            cursors.push(batch.cursor_at(event));
            told.push(short(event));
        }
        assert_eq!(batch.cursor(), cursors.last().expect("an event"));
    }
    assert_eq!(told, expected);
    for (done, cursor) in (1..).zip(&cursors) {
        let mut again = shard.feed(at(cursor)).await;
        let left = &expected[done..];
        assert_eq!(shard.told(&mut again, left.len()).await, left);
    }
}

#[tokio::test]
async fn lag_is_what_a_feed_has_not_read_whatever_its_prefix() {
    let shard = TestShard::new();
    let mut feed = shard.feed(Start::Now).await;
    let reach = Arc::clone(feed.reach());
    assert_eq!(reach.lag_events(), 0);
    shard.set("a", "1");
    shard.commit(&[set("b", "1"), delete("a")]);
    assert_eq!(reach.lag_events(), 3);
    assert_eq!(shard.told(&mut feed, 3).await.len(), 3);
    assert_eq!(reach.lag_events(), 0);
    let mut request = Request::from(Start::Earliest);
    request.prefix = b"nothing begins so".to_vec();
    let mut feed = Feed::open(CLUSTER, &shard.origins(), request)
        .await
        .expect("it begins");
    let reach = Arc::clone(feed.reach());
    assert_eq!(reach.lag_events(), 3);
    // It begins by saying where, and then finds nothing to tell.
    feed.next().await.expect("a progress event");
    let silent = tokio::time::timeout(SILENCE, feed.next()).await;
    assert!(silent.is_err());
    assert_eq!(reach.lag_events(), 0);
}

#[tokio::test]
async fn facts_of_one_group_say_which_of_how_many_they_are_wherever_one_resumes() {
    let shard = TestShard::new();
    let mut writer = BatchWriter::new(Term::new(1), UnixMillis::new(1), Revision::new(1));
    let trace = TraceParent::new(7, 8, true);
    writer.begin_traced_group(trace);
    for key in [b"a", b"b", b"c"] {
        let (value, deadline) = (b"v".as_slice(), None);
        writer.push(flux_store::FactRef::Put {
            key,
            value,
            deadline,
        });
        // System data are no event, and in no count of events.
        writer.push(flux_store::FactRef::SystemPut { name: b"s", value });
    }
    writer.end_group();
    let entry = LogEntry {
        payload: writer.finish().expect("facts"),
        ..shard.evaluate(&[set("x", "x")])
    };
    shard.append(entry.clone());
    shard.log.pump();
    shard.apply(&entry);
    let mut feed = shard.feed(Start::Earliest).await;
    let batch = shard.next(&mut feed).await;
    let told: Vec<String> = batch.events.iter().map(short).collect();
    assert_eq!(told, ["set a 0/3", "set b 1/3", "set c 2/3"]);
    assert!(batch.events.iter().all(|event| event.trace == trace));
    let mut again = shard.feed(at(&batch.cursor_at(&batch.events[0]))).await;
    assert_eq!(shard.told(&mut again, 2).await, ["set b 1/3", "set c 2/3"]);
}

/// Rule 2: a batch whose header names another term than its log id is void for every reader.
#[tokio::test]
async fn a_void_batch_is_not_told() {
    let shard = TestShard::new();
    let stale = shard.evaluate(&[set("void", "1")]);
    shard.state.lock().term = Term::new(2);
    let id = LogId {
        term: Term::new(2),
        ..stale.id
    };
    let void = LogEntry { id, ..stale };
    assert_ne!(parse(&void).term(), id.term);
    shard.append(void.clone());
    shard.log.pump();
    shard.apply(&void);
    shard.set("b", "1");
    let mut feed = shard.feed(Start::Earliest).await;
    let batch = shard.next(&mut feed).await;
    let told: Vec<String> = batch.events.iter().map(short).collect();
    assert_eq!(told, ["set b 0/1"]);
    let ids: Vec<String> = batch.events.iter().map(crate::Event::id).collect();
    assert_eq!(
        ids,
        ["0:2:1"],
        "the revision was not used up by what is void"
    );
}

#[tokio::test]
async fn what_is_in_the_log_and_not_committed_is_not_told() {
    let shard = TestShard::new();
    let mut feed = shard.feed(Start::Now).await;
    let entry = shard.evaluate(&[set("a", "1")]);
    shard.append(entry.clone());
    shard.log.pump();
    assert!(tokio::time::timeout(SILENCE, feed.next()).await.is_err());
    shard.apply(&entry);
    assert_eq!(shard.told(&mut feed, 1).await, ["set a 0/1"]);
}

/// Appends and applies a change without a sync; a feed that was there before must stay silent.
async fn commit_unsynced(shard: &Arc<TestShard>) -> (Feed, LogEntry) {
    shard.set("before", "1");
    let mut feed = shard.feed(Start::Now).await;
    let entry = shard.evaluate(&[set("a", "1")]);
    shard.append(entry.clone());
    shard.apply(&entry);
    assert!(
        shard.shard.durable() < entry.id.index,
        "written, not synced"
    );
    let told = tokio::time::timeout(SILENCE, feed.next()).await;
    assert!(told.is_err(), "{told:?}");
    (feed, entry)
}

/// Rule 12: what a power cut could take back is told to nobody, whatever the policy.
#[tokio::test]
async fn what_is_not_synced_here_is_not_told_and_a_sync_is_asked_for() {
    for policy in [FsyncPolicy::Never, FsyncPolicy::EverySecond] {
        let config = log_config(policy, Retention::default());
        let shard = TestShard::open(&SimDisk::new(), config, 1);
        let (mut feed, _) = commit_unsynced(&shard).await;
        // Nothing but the feed asks for the sync after which it is told.
        assert_eq!(shard.told(&mut feed, 1).await, ["set a 0/1"]);
    }
}

/// Rule 12: and so a power cut contradicts nothing that was told.
#[tokio::test]
async fn after_a_power_cut_a_reader_goes_on_and_a_place_that_was_lost_is_refused() {
    let disk = SimDisk::new();
    let config = || log_config(FsyncPolicy::Never, Retention::default());
    let shard = TestShard::open(&disk, config(), 1);
    let (feed, lost) = commit_unsynced(&shard).await;
    let place = feed.cursor();
    disk.crash(CrashLoss::Everything, &mut SeededRng::new(1));
    drop((feed, shard));
    let after = TestShard::open(&disk, config(), 2);
    assert_eq!(after.store.len(), 1, "the power cut took it back");
    after.set("other", "1");
    let mut feed = after.feed(at(&place)).await;
    assert_eq!(after.told(&mut feed, 1).await, ["set other 0/1"]);
    // Had anybody been told, they would notice: the place was taken by something else.
    let told = crate::Place::After {
        term: lost.id.term,
        index: lost.id.index,
        revision: parse(&lost).last_revision(),
    };
    let told = place.with(ShardId::new(0), told);
    let refused = after.try_feed(Request::from(at(&told))).await;
    assert!(
        matches!(refused, Err(CdcError::Diverged { .. })),
        "{refused:?}"
    );
    let ahead = crate::Place::After {
        term: Term::new(2),
        index: LogIndex::new(99),
        revision: Revision::new(99),
    };
    let refused = after
        .try_feed(Request::from(at(&place.with(ShardId::new(0), ahead))))
        .await;
    assert!(
        matches!(refused, Err(CdcError::Diverged { .. })),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_cursor_of_another_cluster_is_refused_and_one_without_a_place_begins_at_the_beginning() {
    let shard = TestShard::new();
    shard.set("a", "1");
    let here = shard.feed(Start::Now).await.cursor();
    let foreign = Cursor {
        cluster: ClusterId::new(2),
        ..here.clone()
    };
    let refused = shard.try_feed(Request::from(at(&foreign))).await;
    let Err(CdcError::Diverged { oldest, .. }) = refused else {
        panic!("{refused:?}");
    };
    let mut feed = shard.feed(Start::At(*oldest)).await;
    assert_eq!(shard.told(&mut feed, 1).await, ["set a 0/1"]);
    // A shard that the cursor does not know of begins at its beginning.
    let mut feed = shard.feed(Start::At(Cursor::new(CLUSTER))).await;
    assert_eq!(shard.told(&mut feed, 1).await, ["set a 0/1"]);
}

#[tokio::test]
async fn a_prefix_hides_keys_and_the_cursor_passes_them() {
    let shard = TestShard::new();
    let request = Request {
        prefix: b"user:".to_vec(),
        progress_interval: Duration::from_millis(50),
        ..Request::from(Start::Now)
    };
    let mut feed = shard.try_feed(request).await.expect("a feed");
    shard.set("other", "1");
    let progress = shard.next(&mut feed).await;
    assert_eq!(short(&progress.events[0]), "progress ");
    shard.set("user:1", "1");
    let mut rest = shard.feed(at(progress.cursor())).await;
    assert_eq!(
        shard.told(&mut rest, 1).await,
        ["set user:1 0/1"],
        "not the other one"
    );
}

#[tokio::test]
async fn system_data_are_never_told() {
    let shard = TestShard::new();
    let mut feed = shard.feed(Start::Now).await;
    shard
        .put_system("cdc/sink".into(), Some("x".into()))
        .await
        .expect("committed");
    shard.set("a", "1");
    let batch = shard.next(&mut feed).await;
    assert_eq!(
        batch.events[0].id(),
        "0:1:2",
        "the revision before it was the system's"
    );
    let mut snapshot = shard.feed(Start::Snapshot).await;
    let told = shard.told(&mut snapshot, 2).await;
    assert_eq!(told, ["snapshot a", "snapshot-complete "]);
}

/// A reader elsewhere goes on; one here would wait for ever.
#[tokio::test]
async fn a_reader_of_a_replica_that_was_let_go_is_told_that_it_has_stopped() {
    let shard = TestShard::new();
    shard.set("a", "1");
    let mut feed = shard.feed(Start::Now).await;
    shard.set("b", "1");
    assert_eq!(shard.told(&mut feed, 1).await.len(), 1);
    let last = shard.shard.state().last.unwrap();
    let (done, forgotten) = oneshot::channel();
    let note = Box::new(move |result| drop(done.send(result)));
    let reading = async {
        shard.shard.retire(last, note);
        shard.log.pump();
        forgotten.await.expect("told").expect("forgotten");
        shard.state.lock().applied = None;
        shard.state.lock().is_forgotten = true;
        shard.changed.notify_waiters();
    };
    let (read, ()) = tokio::join!(shard.pumping(feed.next()), reading);
    assert!(matches!(read, Err(CdcError::Stopped { .. })), "{read:?}");
}

/// Rule 4: while the end of a snapshot is being replayed the store holds no state that ever was.
#[tokio::test]
async fn a_snapshot_begins_only_once_the_state_is_whole() {
    let shard = TestShard::new();
    shard.set("a", "1");
    shard.state.lock().is_whole = false;
    let origins = shard.origins();
    let mut open = Box::pin(Feed::open(
        CLUSTER,
        &origins,
        Request::from(Start::Snapshot),
    ));
    assert!(tokio::time::timeout(SILENCE, &mut open).await.is_err());
    shard.set("b", "1");
    shard.state.lock().is_whole = true;
    shard.changed.notify_waiters();
    let mut feed = shard.pumping(open).await.expect("a feed");
    let mut told = shard.told(&mut feed, 4).await;
    told[1..3].sort();
    assert_eq!(
        told,
        [
            "progress ",
            "snapshot a",
            "snapshot b",
            "snapshot-complete "
        ]
    );
}

/// Rule 4: what changed during the walk comes before the snapshot is said to be complete.
#[tokio::test]
async fn a_snapshot_is_complete_only_with_what_changed_during_its_walk() {
    let shard = TestShard::new();
    let value = "v".repeat(40_000);
    for number in 0..20 {
        shard.set(&format!("key{number}"), &value);
    }
    let mut feed = shard.feed(Start::Snapshot).await;
    let mut items = shard.next(&mut feed).await.events.len();
    assert!(items < 20, "the walk is not over");
    let in_walk = feed.cursor();
    shard.set("during", "1");
    let mut told = Vec::new();
    while told.last().is_none_or(|last| last != "snapshot-complete ") {
        for event in shard.next(&mut feed).await.events {
            if matches!(event.change, Change::Item { .. }) {
                items += 1;
            } else {
                told.push(short(&event));
            }
        }
    }
    assert_eq!(told, ["set during 0/1", "snapshot-complete "]);
    assert!((20..=21).contains(&items), "{items}");
    shard.set("after", "1");
    assert_eq!(shard.told(&mut feed, 1).await, ["set after 0/1"]);
    // A consumer that got lost within the walk gets all of it again.
    let mut again = shard.feed(at(&in_walk)).await;
    let first = shard.next(&mut again).await;
    assert!(matches!(first.events[0].change, Change::Item { .. }));
}

#[tokio::test]
async fn a_feed_that_is_dropped_while_it_waits_has_lost_nothing() {
    let shard = TestShard::new();
    let mut feed = shard.feed(Start::Now).await;
    for number in 0..50 {
        let mut next = Box::pin(feed.next());
        assert!((&mut next).now_or_never().is_none());
        drop(next);
        shard.set(&format!("key{number}"), "v");
        let told = shard.told(&mut feed, 1).await;
        assert_eq!(told, [format!("set key{number} 0/1")]);
    }
}

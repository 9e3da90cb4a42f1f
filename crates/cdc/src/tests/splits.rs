//! A feed follows the shards that are split off those it follows.

use std::collections::BTreeMap;

use flux_store::KeyFilter;
use flux_types::slots::SLOTS_NAME;
use flux_types::{Revision, SlotMap};

use super::retention::{fill_and_purge, keep};
use super::*;
use crate::{OnGap, Place};

/// A key of each half of the slots.
pub(crate) const LOW: &str = "hello";
pub(crate) const HIGH: &str = "foo";

/// Before the first entry of a shard that was split off.
const BIRTH: LogId = LogId {
    term: Term::new(0),
    index: LogIndex::new(1),
};

impl TestShard {
    /// Splits the upper half off the only shard; answers the other, of which nobody knows yet.
    pub(crate) fn split(&self) -> Arc<Self> {
        let one = SlotMap::even(1).expect("a map");
        self.split_by(&one.divided(self.shard.id()).expect("it can be split"))
    }

    /// Splits the last shard of a map off this one, as [`flux_types::slots`] says.
    fn split_by(&self, slots: &SlotMap) -> Arc<Self> {
        let shard = ShardId::new(slots.shard_count() - 1);
        let map = slots.clone();
        let goes = KeyFilter::new(move |key| map.shard_of_key(key) == shard);
        let put = WriteCommand::PutSystem {
            name: Bytes::from_static(SLOTS_NAME),
            value: Some(slots.to_string().into()),
        };
        let entry = self.evaluate(&[Command::Write(put)]);
        self.append(entry.clone());
        self.log.pump();
        let child = Self::of(shard);
        child.state.lock().was_split_off = true;
        child.state.lock().applied = Some(BIRTH);
        let purged = child.shard.purge_to(BIRTH, Box::new(drop));
        purged.expect("a log that is well");
        child.log.pump();
        let mut loader = child.store.loader();
        let mut walk = self.store.walk_part(goes.clone());
        while let Some(block) = walk.next_block(1 << 20).expect("nothing aborts it") {
            loader.load_block(&block).expect("a block");
        }
        let at = self.store.last_batch_at();
        child.store.install(loader, self.store.revision(), at);
        for stripe in 0..self.store.stripe_count() {
            self.store.take_out(stripe, &goes);
        }
        self.apply(&entry);
        child
    }

    /// Commits an entry without facts, as a leader does that begins.
    fn commit_blank(&self) {
        let entry = LogEntry {
            payload: Bytes::new(),
            ..self.evaluate(&[set("x", "x")])
        };
        self.append(entry.clone());
        self.log.pump();
        self.state.lock().applied = Some(entry.id);
        self.changed.notify_waiters();
    }
}

fn of(shards: &[&Arc<TestShard>]) -> (Arc<TestOrigins>, Arc<dyn Origins>) {
    let origins = TestOrigins::of(shards);
    (Arc::clone(&origins), origins)
}

/// What a consumer has of each key, in the order in which it came: where it is from, and the value.
type Seen = BTreeMap<String, Vec<String>>;

fn see(seen: &mut Seen, event: &crate::Event) {
    let Some(key) = event.change.key() else {
        return;
    };
    let key = String::from_utf8_lossy(key).into_owned();
    let value = if let Change::Set { value, .. } = &event.change {
        let value = String::from_utf8_lossy(value);
        value.trim_end_matches('v').to_owned()
    } else {
        event.change.word().to_owned()
    };
    let from = event.position.shard;
    seen.entry(key).or_default().push(format!("{from}:{value}"));
}

/// Reads until so many changes of keys are seen in all, without a gap. Answers how much was seen at
/// each cursor on the way.
async fn read(
    shard: &TestShard,
    feed: &mut Feed,
    seen: &mut Seen,
    count: usize,
) -> Vec<(Cursor, Seen)> {
    let mut steps = Vec::new();
    while seen.values().map(Vec::len).sum::<usize>() < count {
        let batch = shard.next(feed).await;
        for event in &batch.events {
            assert!(!event.change.is_control(), "{event:?}");
            see(seen, event);
            steps.push((batch.cursor_at(event), seen.clone()));
        }
        steps.push((batch.cursor().clone(), seen.clone()));
    }
    steps
}

/// Nothing comes any more.
async fn assert_silent(shard: &TestShard, feed: &mut Feed) {
    let more = tokio::time::timeout(SILENCE, shard.pumping(feed.next())).await;
    assert!(more.is_err(), "{more:?}");
}

fn seen(keys: &[(&str, &[&str])]) -> Seen {
    let one = |(key, values): &(&str, &[&str])| {
        let values = values.iter().map(|value| (*value).to_owned());
        ((*key).to_owned(), values.collect())
    };
    keys.iter().map(one).collect()
}

fn filler(number: usize) -> String {
    format!("{number}{}", "v".repeat(30_000))
}

#[test]
fn the_keys_of_these_tests_are_in_two_halves() {
    let map = SlotMap::even(2).expect("a map");
    let shards = [LOW, HIGH].map(|key| map.shard_of_key(key.as_bytes()).get());
    assert_eq!(shards, [0, 1]);
}

#[tokio::test]
async fn a_feed_passes_a_split_and_tells_each_key_in_order_from_wherever_it_resumes() {
    let parent = TestShard::new();
    let (known, origins) = of(&[&parent]);
    let start = Request::from(Start::Now);
    let feed = parent.feed_of(Arc::clone(&origins), start).await;
    let mut feed = feed.expect("a feed");
    parent.set(LOW, "1");
    parent.set(HIGH, "1");
    let child = parent.split();
    known.come(&child);
    child.commit_blank();
    child.set(HIGH, "2");
    parent.set(LOW, "2");
    child.set(HIGH, "3");
    let all = seen(&[(LOW, &["0:1", "0:2"]), (HIGH, &["0:1", "1:2", "1:3"])]);
    let mut told = Seen::new();
    let steps = read(&parent, &mut feed, &mut told, 5).await;
    assert_eq!(told, all);
    assert_silent(&parent, &mut feed).await;
    assert_eq!(feed.reach().lag_events(), 0);
    parent.set(LOW, "3");
    child.set(HIGH, "4");
    assert_eq!(feed.reach().lag_events(), 2);
    let all = seen(&[
        (LOW, &["0:1", "0:2", "0:3"]),
        (HIGH, &["0:1", "1:2", "1:3", "1:4"]),
    ]);
    for (cursor, before) in steps {
        let resume = Request::from(at(&cursor));
        let feed = parent.feed_of(Arc::clone(&origins), resume).await;
        let (mut feed, mut told) = (feed.expect("a feed"), before);
        read(&parent, &mut feed, &mut told, 7).await;
        assert_eq!(told, all, "{cursor:?}");
    }
    let last = child.store.revision();
    assert_eq!(last.get(), 5, "it went on from the two of its parent");
}

#[tokio::test]
async fn a_shard_that_comes_late_holds_up_nobody_and_loses_nothing() {
    let parent = TestShard::new();
    let (known, origins) = of(&[&parent]);
    let feed = parent.feed_of(origins, Request::from(Start::Now)).await;
    let mut feed = feed.expect("a feed");
    parent.set(HIGH, "1");
    let child = parent.split();
    child.set(HIGH, "2");
    parent.set(LOW, "1");
    let mut told = Seen::new();
    read(&parent, &mut feed, &mut told, 2).await;
    assert_eq!(told, seen(&[(LOW, &["0:1"]), (HIGH, &["0:1"])]));
    let place = feed.cursor().place(ShardId::new(1));
    let birth = Place::After {
        term: BIRTH.term,
        index: BIRTH.index,
        revision: Revision::new(1),
    };
    assert_eq!(place, Some(birth), "a cursor knows of it already");
    let waiting = tokio::time::timeout(PATIENCE, feed.next());
    let coming = async {
        tokio::time::sleep(Duration::from_millis(5)).await;
        known.come(&child);
    };
    let (batch, ()) = tokio::join!(waiting, coming);
    let batch = batch.expect("it wakes").expect("no error");
    assert_eq!(batch.shard, ShardId::new(1));
    assert_eq!(short(&batch.events[0]), format!("set {HIGH} 0/1"));
}

#[tokio::test]
async fn a_cursor_from_before_a_split_tells_the_parents_part_before_the_childs() {
    let parent = TestShard::new();
    parent.set(LOW, "0");
    let before = parent.feed(Start::Now).await.cursor();
    // Far more than one read.
    let mut expected = Vec::new();
    for number in 0..40 {
        parent.set(HIGH, &filler(number));
        expected.push(format!("0:{number}"));
    }
    let child = parent.split();
    child.commit_blank();
    for number in 0..40 {
        child.set(HIGH, &filler(number));
        expected.push(format!("1:{number}"));
    }
    let grandchild = {
        let map = SlotMap::even(2).expect("a map");
        child.split_by(&map.divided(child.shard.id()).expect("it can be split"))
    };
    let (_, origins) = of(&[&parent, &child, &grandchild]);
    for (from, is_earliest) in [(at(&before), false), (Start::Earliest, true)] {
        let feed = parent
            .feed_of(Arc::clone(&origins), Request::from(from))
            .await;
        let (mut feed, mut told) = (feed.expect("a feed"), Seen::new());
        let count = 80 + usize::from(is_earliest);
        let steps = read(&parent, &mut feed, &mut told, count).await;
        assert_eq!(told.get(HIGH), Some(&expected));
        // In the midst of the parent's part, and of the child's.
        for (cursor, before) in steps.into_iter().step_by(11) {
            let resume = Request::from(at(&cursor));
            let feed = parent.feed_of(Arc::clone(&origins), resume).await;
            let (mut feed, mut told) = (feed.expect("a feed"), before);
            read(&parent, &mut feed, &mut told, count).await;
            assert_eq!(told.get(HIGH), Some(&expected), "{cursor:?}");
        }
    }
}

#[tokio::test]
async fn a_feed_opened_at_now_behind_a_split_tells_what_comes_of_both() {
    let parent = TestShard::new();
    parent.set(HIGH, "1");
    let child = parent.split();
    let (known, origins) = of(&[&parent]);
    let now = || Request::from(Start::Now);
    // Not here yet: all that happens in it is new.
    let feed = parent.feed_of(Arc::clone(&origins), now()).await;
    let mut early = feed.expect("a feed");
    assert!(early.cursor().place(ShardId::new(1)).is_some());
    known.come(&child);
    child.set(HIGH, "2");
    let feed = parent.feed_of(Arc::clone(&origins), now()).await;
    let mut late = feed.expect("a feed");
    child.set(HIGH, "3");
    parent.set(LOW, "1");
    for (feed, high) in [
        (&mut early, &["1:2", "1:3"] as &[&str]),
        (&mut late, &["1:3"]),
    ] {
        let mut told = Seen::new();
        read(&parent, feed, &mut told, 1 + high.len()).await;
        assert_eq!(told, seen(&[(LOW, &["0:1"]), (HIGH, high)]));
        assert_silent(&parent, feed).await;
    }
}

/// Takes in what comes until so many snapshots are complete.
async fn take_in(
    shard: &TestShard,
    feed: &mut Feed,
    state: &mut BTreeMap<Bytes, Bytes>,
    snapshots: usize,
) {
    let mut complete = 0;
    while complete < snapshots {
        for event in shard.next(feed).await.events {
            let is_complete = matches!(
                event.change,
                Change::Control(Control::SnapshotComplete { .. })
            );
            complete += usize::from(is_complete);
            assert!(is_complete || !event.change.is_control(), "{event:?}");
            if let Change::Set { key, value, .. } | Change::Item { key, value, .. } = event.change {
                state.insert(key, value);
            }
        }
    }
}

fn state_in(shards: &[&TestShard]) -> BTreeMap<Bytes, Bytes> {
    let mut state = BTreeMap::new();
    for shard in shards {
        let mut walk = shard.store.walk();
        while let Some(block) = walk.next_block(1 << 20).expect("nothing aborts it") {
            for entry in flux_store::block_entries(&block).expect("a block") {
                if entry.about == flux_store::About::Key {
                    let own = Bytes::copy_from_slice;
                    state.insert(own(entry.key), own(entry.value));
                }
            }
        }
    }
    state
}

#[tokio::test]
async fn a_snapshot_within_which_a_shard_is_split_twice_has_all_keys() {
    for comes_late in [false, true] {
        let parent = TestShard::new();
        for number in 0..30 {
            parent.set(&format!("key{number}"), &filler(number));
        }
        let (known, origins) = of(&[&parent]);
        let open = |start| parent.feed_of(Arc::clone(&origins), Request::from(start));
        let mut feed = open(Start::Snapshot).await.expect("a feed");
        let first = parent.next(&mut feed).await;
        assert!(first.events.len() < 30, "the walk is not over");
        let in_walk = feed.cursor();
        let child = parent.split();
        let map = SlotMap::even(2).expect("a map");
        let second = map.divided(parent.shard.id()).expect("it can be split");
        let second = parent.split_by(&second);
        child.set(HIGH, "1");
        let expected = state_in(&[&parent, &child, &second]);
        assert_eq!(expected.len(), 31);
        let mut state = BTreeMap::new();
        for event in first.events {
            if let Change::Item { key, value, .. } = event.change {
                state.insert(key, value);
            }
        }
        let mut left = 3;
        if comes_late {
            take_in(&parent, &mut feed, &mut state, 1).await;
            left -= 1;
        }
        known.come(&child);
        known.come(&second);
        take_in(&parent, &mut feed, &mut state, left).await;
        assert!(state == expected, "{:?}", state.keys());
        // Who broke off within it gets all of it again, of all.
        let (mut feed, mut state) = (open(at(&in_walk)).await.expect("a feed"), BTreeMap::new());
        take_in(&parent, &mut feed, &mut state, 3).await;
        assert!(state == expected, "{:?}", state.keys());
    }
}

#[tokio::test]
async fn a_snapshot_that_begins_before_the_child_is_here_has_its_keys_as_well() {
    let parent = TestShard::new();
    parent.set(LOW, "1");
    parent.set(HIGH, "1");
    let child = parent.split();
    let (known, origins) = of(&[&parent]);
    let start = Request::from(Start::Snapshot);
    let feed = parent.feed_of(Arc::clone(&origins), start).await;
    let mut feed = feed.expect("a feed");
    let told = parent.told(&mut feed, 2).await;
    assert_eq!(
        told,
        [format!("snapshot {LOW}"), "snapshot-complete ".to_owned()]
    );
    let cursor = feed.cursor();
    known.come(&child);
    let resume = Request::from(at(&cursor));
    let again = parent.feed_of(origins, resume).await.expect("a feed");
    for mut feed in [feed, again] {
        let told = parent.told(&mut feed, 2).await;
        let expected = [format!("snapshot {HIGH}"), "snapshot-complete ".to_owned()];
        assert_eq!(told, expected);
    }
}

#[tokio::test]
async fn a_cursor_that_knows_more_shards_than_the_node_waits_a_moment_and_may_be_tried_again() {
    let parent = TestShard::new();
    parent.set(HIGH, "1");
    let child = parent.split();
    child.set(HIGH, "2");
    let (_, ahead) = of(&[&parent, &child]);
    let feed = parent.feed_of(ahead, Request::from(Start::Now)).await;
    let cursor = feed.expect("a feed").cursor();
    child.set(HIGH, "3");
    let (known, origins) = of(&[&parent]);
    let impatient = Request {
        patience: SILENCE,
        ..Request::from(at(&cursor))
    };
    let refused = parent.feed_of(Arc::clone(&origins), impatient).await;
    let is_behind = matches!(refused, Err(CdcError::Behind { shard }) if shard.get() == 1);
    assert!(is_behind, "{refused:?}");
    let opening = parent.feed_of(Arc::clone(&origins), Request::from(at(&cursor)));
    let coming = async {
        tokio::time::sleep(Duration::from_millis(5)).await;
        known.come(&child);
    };
    let (feed, ()) = tokio::join!(opening, coming);
    let (mut feed, mut told) = (feed.expect("a feed"), Seen::new());
    read(&parent, &mut feed, &mut told, 1).await;
    assert_eq!(told, seen(&[(HIGH, &["1:3"])]));
}

#[tokio::test]
async fn a_split_that_a_gap_has_swallowed_is_found_out_and_the_child_told_from_its_beginning() {
    let config = log_config(FsyncPolicy::Always, keep(64 * 1024));
    let parent = TestShard::open(&SimDisk::new(), config, 1);
    parent.set(LOW, "1");
    let (known, origins) = of(&[&parent]);
    let feed = parent.feed_of(origins, Request::from(Start::Now)).await;
    let mut feed = feed.expect("a feed");
    let child = parent.split();
    child.commit_blank();
    child.set(HIGH, "1");
    known.come(&child);
    fill_and_purge(&parent, 40);
    let (mut gaps, mut high) = (0, Vec::new());
    while high.is_empty() {
        for event in parent.next(&mut feed).await.events {
            let is_gap = matches!(event.change, Change::Control(Control::Gap { .. }));
            gaps += usize::from(is_gap);
            assert!(!is_gap || event.position.shard == ShardId::new(0));
            if event
                .change
                .key()
                .is_some_and(|key| &**key == HIGH.as_bytes())
            {
                high.push(event.id());
            }
        }
    }
    assert_eq!((gaps, high), (1, vec!["1:1:2".to_owned()]));
}

/// A child of which one replica holds all, and another no beginning; both then have one entry more.
fn rebuilt_child() -> (Arc<TestShard>, Arc<TestShard>, Arc<TestShard>) {
    let parent = TestShard::new();
    parent.set(HIGH, "1");
    let whole = parent.split();
    whole.commit_blank();
    whole.set(HIGH, "2");
    let rebuilt = TestShard::of(ShardId::new(1));
    rebuilt.state.lock().was_split_off = true;
    let applied = whole.applied().expect("entries");
    let loader = rebuilt.store.loader();
    let (revision, at) = (whole.store.revision(), whole.store.last_batch_at());
    rebuilt.store.install(loader, revision, at);
    let purged = rebuilt.shard.purge_to(applied, Box::new(drop));
    purged.expect("a log that is well");
    rebuilt.log.pump();
    let last = whole.evaluate(&[set(HIGH, "3")]);
    for replica in [&whole, &rebuilt] {
        replica.append(last.clone());
        replica.log.pump();
        replica.apply(&last);
    }
    (parent, whole, rebuilt)
}

#[tokio::test]
async fn a_childs_beginning_comes_from_another_replica_and_is_missing_only_if_none_has_it() {
    let (parent, whole, rebuilt) = rebuilt_child();
    let before = Cursor::new(CLUSTER).with(ShardId::new(0), Place::BEGINNING);
    let (_, origins) = of(&[&parent, &rebuilt]);
    let request = |on_gap| Request {
        on_gap,
        patience: SILENCE,
        ..Request::from(at(&before))
    };
    let refused = parent
        .feed_of(Arc::clone(&origins), request(OnGap::Refuse))
        .await;
    let is_compacted = matches!(refused, Err(CdcError::Compacted { .. }));
    assert!(is_compacted, "{refused:?}");
    let feed = parent
        .feed_of(Arc::clone(&origins), request(OnGap::Report))
        .await;
    let mut feed = feed.expect("a feed");
    let told = parent.told(&mut feed, 3).await;
    let expected = [
        format!("set {HIGH} 0/1"),
        "gap 1..3".to_owned(),
        format!("set {HIGH} 0/1"),
    ];
    assert_eq!(told, expected, "the parent knows where it begins");
    rebuilt.others.lock().replicas.push(whole);
    for on_gap in [OnGap::Refuse, OnGap::Report] {
        let feed = parent.feed_of(Arc::clone(&origins), request(on_gap)).await;
        let (mut feed, mut told) = (feed.expect("a feed"), Seen::new());
        read(&parent, &mut feed, &mut told, 3).await;
        assert_eq!(told, seen(&[(HIGH, &["0:1", "1:2", "1:3"])]));
    }
    let earliest = parent
        .feed_of(origins, Request::from(Start::Earliest))
        .await;
    let mut told = Seen::new();
    read(&parent, &mut earliest.expect("a feed"), &mut told, 3).await;
    assert_eq!(told, seen(&[(HIGH, &["0:1", "1:2", "1:3"])]));
}

/// A cursor behind a split that does not name the shard which was split off.
async fn cursor_without_child(parent: &Arc<TestShard>) -> Cursor {
    let origin: Arc<dyn Origin> = Arc::<TestShard>::clone(parent);
    let feed = Feed::of_shard(CLUSTER, &origin, Request::from(Start::Now)).await;
    feed.expect("a feed").cursor()
}

#[tokio::test]
async fn a_child_in_which_nothing_happens_is_no_lag_and_its_cursor_stays_good() {
    let parent = TestShard::new();
    parent.set(HIGH, "1");
    let child = parent.split();
    child.commit_blank();
    parent.commit_blank();
    let mut cursor = cursor_without_child(&parent).await;
    let (_, origins) = of(&[&parent, &child]);
    let resume = |cursor: &Cursor| parent.feed_of(Arc::clone(&origins), Request::from(at(cursor)));
    for _ in 0..2 {
        let mut feed = resume(&cursor).await.expect("a feed");
        assert_silent(&parent, &mut feed).await;
        assert_eq!(feed.reach().lag_events(), 0);
        cursor = feed.cursor();
    }
    let mut feed = resume(&cursor).await.expect("a feed");
    assert_silent(&parent, &mut feed).await;
    child.set(HIGH, "2");
    assert_eq!(feed.reach().lag_events(), 1);
    let mut told = Seen::new();
    read(&parent, &mut feed, &mut told, 1).await;
    assert_eq!(told, seen(&[(HIGH, &["1:2"])]));
    assert_eq!(feed.reach().lag_events(), 0);
}

#[tokio::test]
async fn a_child_that_a_cursor_lacks_is_let_go_once_its_parent_has_read_what_it_had() {
    let parent = TestShard::new();
    parent.set(HIGH, "1");
    let child = parent.split();
    child.commit_blank();
    child.set(HIGH, "2");
    parent.commit_blank();
    let cursor = cursor_without_child(&parent).await;
    // Nothing of it is told.
    parent.commit_blank();
    let (_, origins) = of(&[&parent, &child]);
    let feed = parent.feed_of(origins, Request::from(at(&cursor))).await;
    let (mut feed, mut told) = (feed.expect("a feed"), Seen::new());
    read(&parent, &mut feed, &mut told, 1).await;
    assert_eq!(told, seen(&[(HIGH, &["1:2"])]));
}

#[tokio::test]
async fn a_reader_of_a_child_that_was_let_go_before_its_first_entry_is_told_that_it_has_stopped() {
    let parent = TestShard::new();
    let child = parent.split();
    let (_, origins) = of(&[&parent, &child]);
    let feed = parent.feed_of(origins, Request::from(Start::Now)).await;
    let mut feed = feed.expect("a feed");
    let (read, ()) = tokio::join!(parent.pumping(feed.next()), async {
        tokio::task::yield_now().await;
        child.state.lock().is_forgotten = true;
        child.changed.notify_waiters();
    });
    let is_stopped = matches!(read, Err(CdcError::Stopped { shard }) if shard.get() == 1);
    assert!(is_stopped, "{read:?}");
}

#[tokio::test]
async fn a_feed_of_one_shard_ignores_what_is_split_off_it_and_tells_where_that_begins() {
    let parent = TestShard::new();
    let origin: Arc<dyn Origin> = Arc::<TestShard>::clone(&parent);
    let feed = Feed::of_shard(CLUSTER, &origin, Request::from(Start::Now)).await;
    let mut feed = feed.expect("a feed");
    parent.next(&mut feed).await;
    parent.set(HIGH, "1");
    drop(parent.split());
    parent.set(LOW, "1");
    let mut told = Seen::new();
    read(&parent, &mut feed, &mut told, 2).await;
    assert_eq!(told, seen(&[(LOW, &["0:1"]), (HIGH, &["0:1"])]));
    assert_eq!(feed.cursor().places.len(), 1);
    let born: Vec<_> = feed.split_off().keys().map(|shard| shard.get()).collect();
    assert_eq!(born, [1]);
}

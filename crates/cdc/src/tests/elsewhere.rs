//! Rule 15: what a log holds no more is told from other replicas, and is missing only if none has it.

use flux_env::boot_now;
use flux_types::Revision;

use super::*;
use crate::{OnGap, Place};

/// How long to hope for others, where a test waits for the end of it.
const PATIENCE: Duration = Duration::from_millis(300);

/// The other replicas, as a test has them.
#[derive(Default)]
pub(super) struct Others {
    pub(super) replicas: Vec<Arc<TestShard>>,
    /// Somebody else is a member, and not there.
    lacks_one: bool,
    /// What comes in the place of what was read.
    spoil: Option<fn(&mut Vec<LogEntry>)>,
    asked: usize,
}

impl Others {
    pub(super) fn answer(&mut self, wanted: Wanted) -> oneshot::Receiver<Fetched> {
        assert!(wanted.from < wanted.until, "{wanted:?}");
        self.asked += 1;
        let mut entries = Vec::new();
        for replica in &self.replicas {
            let from = wanted.from.max(replica.shard.oldest());
            let found = replica.shard.history(from, wanted.until, wanted.bytes_max);
            let found = found.expect("a log that is whole");
            let first = |entries: &[LogEntry]| entries.first().map(|entry| entry.id.index);
            let is_better = first(&entries).is_none_or(|best| Some(best) > first(&found));
            if !found.is_empty() && is_better {
                entries = found;
            }
        }
        if let Some(spoil) = self.spoil {
            spoil(&mut entries);
        }
        let (tell, answer) = oneshot::channel();
        let is_complete = !self.lacks_one;
        let fetched = Fetched {
            entries,
            is_complete,
        };
        tell.send(fetched).expect("it is asked for");
        answer
    }
}

/// A shard with so many keys, several to an entry, and a replica that was built from a snapshot of
/// it. Both then hold one entry more.
fn rebuilt(keys: usize) -> (Arc<TestShard>, Arc<TestShard>) {
    rebuilt_of(ShardId::new(0), keys)
}

fn rebuilt_of(shard: ShardId, keys: usize) -> (Arc<TestShard>, Arc<TestShard>) {
    let (whole, rebuilt) = (TestShard::of(shard), TestShard::of(shard));
    for number in (0..keys).step_by(2) {
        let values = [number, number + 1].map(|number| set(&format!("key{number}"), &filler()));
        whole.commit(&values);
    }
    let applied = whole.applied().expect("entries");
    let mut from = LogIndex::new(1);
    while from <= applied.index {
        let entries = whole.shard.entries(from, applied.index.next(), usize::MAX);
        for entry in entries.expect("it is whole") {
            rebuilt.apply(&entry);
            from = entry.id.index.next();
        }
    }
    let purged = rebuilt.shard.purge_to(applied, Box::new(drop));
    purged.expect("a log that is well");
    rebuilt.log.pump();
    assert_eq!(rebuilt.shard.oldest(), applied.index.next());
    let last = whole.evaluate(&[set("last", "1")]);
    for replica in [&whole, &rebuilt] {
        replica.append(last.clone());
        replica.log.pump();
        replica.apply(&last);
    }
    rebuilt.others.lock().replicas.push(Arc::clone(&whole));
    (whole, rebuilt)
}

/// A value of which a fetch holds a few.
fn filler() -> String {
    "v".repeat(30_000)
}

const KEYS: usize = 40;
/// Changes of a shard that [`rebuilt`] has made.
const CHANGES: usize = KEYS + 1;

/// The ids of so many events.
async fn ids(shard: &TestShard, feed: &mut Feed, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    while ids.len() < count {
        let batch = shard.next(feed).await;
        let told = batch.events.iter();
        ids.extend(told.map(|event| format!("{} {}", event.id(), short(event))));
    }
    ids
}

fn report(start: Start) -> Request {
    Request {
        on_gap: OnGap::Report,
        patience: PATIENCE,
        ..Request::from(start)
    }
}

fn place(term: u64, index: u64, revision: u64) -> Start {
    let place = Place::After {
        term: Term::new(term),
        index: LogIndex::new(index),
        revision: Revision::new(revision),
    };
    Start::At(Cursor::new(CLUSTER).with(ShardId::new(0), place))
}

#[tokio::test]
async fn a_replica_built_from_a_snapshot_tells_what_others_hold_as_they_would() {
    let (whole, rebuilt) = rebuilt(KEYS);
    let mut feed = whole.feed(Start::Earliest).await;
    let expected = ids(&whole, &mut feed, CHANGES).await;
    assert_eq!(rebuilt.others.lock().asked, 0);
    let mut feed = rebuilt.feed(Start::Earliest).await;
    assert_eq!(ids(&rebuilt, &mut feed, CHANGES).await, expected);
    let asked = rebuilt.others.lock().asked;
    assert!((4..12).contains(&asked), "in bounded parts: {asked}");
    let silent = tokio::time::timeout(SILENCE, rebuilt.pumping(feed.next())).await;
    assert!(silent.is_err(), "{silent:?}");
    assert_eq!(
        rebuilt.others.lock().asked,
        asked,
        "there is nothing to ask"
    );
}

#[tokio::test]
async fn a_cursor_from_before_the_snapshot_goes_on_wherever_it_lies() {
    let (whole, rebuilt) = rebuilt(KEYS);
    let mut feed = whole.feed(Start::Earliest).await;
    let (mut cursors, mut expected) = (vec![feed.cursor()], Vec::new());
    while expected.len() < CHANGES {
        let batch = whole.next(&mut feed).await;
        for event in &batch.events {
            cursors.push(batch.cursor_at(event));
            expected.push(format!("{} {}", event.id(), short(event)));
        }
    }
    for (done, cursor) in cursors.iter().enumerate().take(CHANGES) {
        let left = expected.split_at(done).1;
        let mut feed = rebuilt.feed(at(cursor)).await;
        assert_eq!(ids(&rebuilt, &mut feed, left.len()).await, left);
        let mut feed = rebuilt.try_feed(report(at(cursor))).await.expect("a feed");
        assert_eq!(ids(&rebuilt, &mut feed, left.len()).await, left);
    }
    let other_term = rebuilt.try_feed(Request::from(place(9, 3, 5))).await;
    let is_diverged = matches!(other_term, Err(CdcError::Diverged { .. }));
    assert!(is_diverged, "{other_term:?}");
}

#[tokio::test]
async fn what_nobody_holds_is_missing_at_once_and_the_rest_is_told() {
    let (whole, rebuilt) = rebuilt(KEYS);
    let old = place(1, 2, 4);
    // The other holds the second half.
    let half = LogIndex::new(10);
    let forgetful = TestShard::new();
    let before = whole.shard.id_at(half).expect("an entry");
    forgetful
        .shard
        .purge_to(before, Box::new(drop))
        .expect("a log that is well");
    let rest = whole
        .shard
        .entries(half.next(), LogIndex::new(u64::MAX), usize::MAX);
    for entry in rest.expect("it is whole") {
        forgetful.append(entry);
    }
    forgetful.log.pump();
    rebuilt.others.lock().replicas = vec![forgetful];
    let refused = rebuilt.try_feed(Request::from(old.clone())).await;
    let Err(CdcError::Compacted { oldest }) = refused else {
        panic!("{refused:?}");
    };
    let mut feed = rebuilt.feed(at(&oldest)).await;
    let left = KEYS - 20;
    let expected: Vec<String> = (20..KEYS).map(|key| format!("set key{key} 0/1")).collect();
    assert_eq!(rebuilt.told(&mut feed, left).await, expected);
    let asked = rebuilt.others.lock().asked;
    let mut feed = rebuilt.try_feed(report(old.clone())).await.expect("a feed");
    let batch = rebuilt.next(&mut feed).await;
    assert_eq!(
        batch.events.first().map(short).as_deref(),
        Some("gap 4..21")
    );
    let again = rebuilt.others.lock().asked - asked;
    assert_eq!(again, 2, "everybody has said so: to begin, and to go on");
    // Who has read of the gap has all that is left before it.
    let cursor = batch.cursor_at(batch.events.first().expect("the gap"));
    let mut feed = rebuilt.feed(at(&cursor)).await;
    assert_eq!(rebuilt.told(&mut feed, left).await, expected);
    // And with nobody left, only what is here.
    rebuilt.others.lock().replicas.clear();
    let mut feed = rebuilt.try_feed(report(old)).await.expect("a feed");
    let told = rebuilt.told(&mut feed, 2).await;
    assert_eq!(
        told,
        [format!("gap 4..{CHANGES}"), "set last 0/1".to_owned()]
    );
}

#[tokio::test]
async fn a_node_that_may_have_it_is_hoped_for_without_asking_all_the_time() {
    let (whole, rebuilt) = rebuilt(KEYS);
    {
        let mut others = rebuilt.others.lock();
        others.lacks_one = true;
        others.replicas.clear();
    }
    let begun = boot_now();
    let request = Request {
        patience: Duration::from_secs(60),
        ..report(place(1, 2, 4))
    };
    let mut feed = rebuilt.try_feed(request).await.expect("a feed");
    let silent = tokio::time::timeout(SILENCE, rebuilt.pumping(feed.next())).await;
    assert!(silent.is_err(), "{silent:?}");
    let quarters = boot_now().saturating_since(begun).as_millis() / 250;
    let asked = rebuilt.others.lock().asked as u128;
    assert!(asked <= 3 + quarters, "a pause lies between: {asked}");
    rebuilt.others.lock().replicas.push(Arc::clone(&whole));
    let told = rebuilt.told(&mut feed, 2).await;
    assert_eq!(told[..2], ["set key4 0/1", "set key5 0/1"]);
    // One that does not come within the patience is given up.
    rebuilt.others.lock().replicas.clear();
    let mut feed = rebuilt
        .try_feed(report(place(1, 2, 4)))
        .await
        .expect("a feed");
    let begun = boot_now();
    assert_eq!(
        rebuilt.told(&mut feed, 1).await,
        [format!("gap 4..{CHANGES}")]
    );
    assert!(PATIENCE <= boot_now().saturating_since(begun));
    let refuse = Request {
        on_gap: OnGap::Refuse,
        ..report(place(1, 2, 4))
    };
    let begun = boot_now();
    let refused = rebuilt.try_feed(refuse).await;
    assert!(
        matches!(refused, Err(CdcError::Compacted { .. })),
        "{refused:?}"
    );
    assert!(PATIENCE <= boot_now().saturating_since(begun));
}

#[tokio::test]
async fn what_does_not_fit_this_log_is_not_told() {
    let (_whole, rebuilt) = rebuilt(8);
    let spoils: [fn(&mut Vec<LogEntry>); 6] = [
        |entries| drop(entries.remove(1)),
        |entries| entries.swap(0, 1),
        |entries| entries.push(entries[0].clone()),
        |entries| entries[0].id.term = Term::new(7),
        |entries| entries[0].id.index = LogIndex::new(0),
        // Of another history: the log here goes on behind term 1.
        |entries| {
            entries
                .iter_mut()
                .for_each(|entry| entry.id.term = Term::new(2))
        },
    ];
    for (number, spoil) in spoils.into_iter().enumerate() {
        rebuilt.others.lock().spoil = Some(spoil);
        let mut feed = rebuilt
            .try_feed(report(place(0, 0, 0)))
            .await
            .expect("a feed");
        let told = rebuilt.told(&mut feed, 2).await;
        assert_eq!(told, ["gap 0..9", "set last 0/1"], "spoil {number}");
    }
    rebuilt.others.lock().spoil = None;
    let mut feed = rebuilt
        .try_feed(report(place(0, 0, 0)))
        .await
        .expect("a feed");
    let told = rebuilt.told(&mut feed, 9).await;
    assert_eq!((&*told[0], &*told[8]), ("set key0 0/1", "set last 0/1"));
}

/// A consumer that does not go on keeps at most one answer, and one shard's silence is not
/// another's.
#[tokio::test]
async fn of_several_shards_one_asks_at_a_time() {
    let (_, first) = rebuilt(KEYS);
    let (_, second) = rebuilt_of(ShardId::new(1), KEYS);
    let origins: Arc<dyn Origins> = TestOrigins::of(&[&first, &second]);
    let open = Feed::open(CLUSTER, &origins, report(Start::Earliest));
    let mut feed = open.await.expect("a feed");
    let asked = || [&first, &second].map(|shard| shard.others.lock().asked);
    assert_eq!(asked(), [1, 1], "for the beginning");
    let mut told = [0, 0];
    while told != [CHANGES, CHANGES] {
        let batch = first.pumping(feed.next()).await.expect("no error");
        let changes = batch
            .events
            .iter()
            .filter(|event| event.change.key().is_some());
        let count = changes.count();
        if told == [0, 0] && count > 0 {
            assert_eq!(asked(), [2, 1], "no answer lies about unused");
        }
        told[usize::from(batch.shard.get() != 0)] += count;
    }
}

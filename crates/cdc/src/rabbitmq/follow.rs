//! Which shards a sink follows, and where it begins.
//!
//! Each shard that is led here has a feed of its own, which goes on at the shard's cursor. A shard that
//! was split off another has none at first: if the sink was there already it begins with everything
//! that happened in it, whatever a sink without a cursor is to begin with, for its parent's changes were
//! followed. Of those that are led here it begins once the others have read what they had by then, so
//! that for each key all that the parent told is published first.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use flux_types::{LogIndex, ShardId};
use tracing::warn;

use super::session::End;
use super::sink::{CURSOR_NAME, Sink, ended};
use crate::cursor::{Cursor, Place, Start};
use crate::error::CdcError;
use crate::feed::{Feed, OnGap, Request};
use crate::origin::Origin;

/// Under which the log is kept for a sink.
const PIN_NAME: &str = "rabbitmq";
/// Behind which a shard that was split off begins.
const BIRTH: LogIndex = LogIndex::new(1);

/// One shard that is followed.
pub(super) struct Followed {
    pub(super) shard: ShardId,
    pub(super) feed: Feed,
    /// Up to where others are to be read before it.
    waits_for: Vec<(ShardId, LogIndex)>,
}

impl Followed {
    /// Whether it may be read.
    pub(super) const fn is_free(&self) -> bool {
        self.waits_for.is_empty()
    }

    /// Lets those go that need not wait any more.
    pub(super) fn release(followed: &mut [Self]) {
        for at in 0..followed.len() {
            let Some((before, [one, ..])) = followed.split_at_mut_checked(at) else {
                continue;
            };
            // They come in order of the shards, and wait for those before them only.
            one.waits_for.retain(|(shard, head)| {
                let other = before.iter().find(|other| other.shard == *shard);
                other.is_some_and(|other| !other.is_free() || !other.feed.has_read(*shard, *head))
            });
        }
    }
}

/// What a sink knows of shards that have no cursor yet.
#[derive(Debug, Default)]
pub(super) struct Births {
    /// How many shards are known.
    known: usize,
    /// Those that came while it ran.
    came: BTreeSet<ShardId>,
    /// Where those begin of which a feed has read that they were split off.
    places: BTreeMap<ShardId, Place>,
    /// The revisions that they had when they were first seen.
    least: BTreeMap<ShardId, u64>,
}

impl Births {
    /// A revision before which there is nothing to publish, as far as that is known.
    pub(super) fn least_of(&self, shard: ShardId) -> Option<u64> {
        self.least.get(&shard).copied()
    }

    /// Takes in what feeds have read.
    pub(super) fn note(&mut self, followed: &[Followed]) {
        for one in followed {
            self.places.extend(one.feed.split_off());
        }
    }
}

impl Sink {
    /// Keeps the log from forgetting what was not published, whether or not there is a broker.
    pub(super) async fn pin_all(&mut self) {
        let list = self.origins.list();
        self.births.known = list.len();
        for origin in list.iter() {
            origin.wait_whole().await;
            let shard = origin.log().id();
            let saved = self.saved(origin, shard);
            match saved.and_then(|saved| saved.place(shard)) {
                Some(place) => pin(origin, place),
                None if self.is_all_wanted(origin, shard) => self.keep_all(origin, shard),
                // It has never published: what comes from now on is kept for it.
                None => {
                    let applied = origin.applied().unwrap_or_default();
                    origin.log().pin(PIN_NAME, applied.index);
                }
            }
        }
    }

    /// Takes in shards that have come, and keeps their logs.
    pub(super) fn take_in(&mut self) {
        let list = self.origins.list();
        for origin in list.iter().skip(self.births.known) {
            let shard = origin.log().id();
            self.births.came.insert(shard);
            self.keep_all(origin, shard);
        }
        self.births.known = list.len();
    }

    fn keep_all(&mut self, origin: &Arc<dyn Origin>, shard: ShardId) {
        origin.log().pin(PIN_NAME, BIRTH);
        let revision = origin.store().revision().get();
        self.births.least.insert(shard, revision);
    }

    /// Begins to follow the shards that are led here, each where it was left.
    pub(super) async fn follow(&mut self) -> Result<Vec<Followed>, End> {
        let mut followed: Vec<Followed> = Vec::new();
        let list = self.origins.list();
        for origin in list.iter() {
            if !origin.is_leading() {
                continue;
            }
            origin.wait_whole().await;
            let shard = origin.log().id();
            let start = self.start(origin, shard);
            let begins = is_beginning(&start, origin, shard);
            let feed = self.open_feed(origin, shard, start).await.map_err(ended)?;
            let others = followed.iter().map(|other| other.shard);
            let waits_for = if begins {
                others
                    .filter_map(|other| Some((other, self.head(other)?)))
                    .collect()
            } else {
                Vec::new()
            };
            followed.push(Followed {
                shard,
                feed,
                waits_for,
            });
        }
        Ok(followed)
    }

    /// The last entry of a shard that is applied here.
    fn head(&self, shard: ShardId) -> Option<LogIndex> {
        let applied = self.origin(shard)?.applied();
        applied.map(|id| id.index)
    }

    async fn open_feed(
        &mut self,
        origin: &Arc<dyn Origin>,
        shard: ShardId,
        start: Start,
    ) -> Result<Feed, CdcError> {
        let request = |start| Request {
            on_gap: OnGap::Report,
            ..Request::from(start)
        };
        match Feed::of_shard(self.cluster, origin, request(start)).await {
            Err(CdcError::Diverged { what, .. }) => {
                warn!(
                    shard = shard.get(),
                    what, "the cursor of the RabbitMQ sink does not fit the log; it begins anew"
                );
                self.settled.remove(&shard);
                Feed::of_shard(self.cluster, origin, request(Start::Earliest)).await
            }
            opened => opened,
        }
    }

    /// Where a shard is to be followed from.
    fn start(&self, origin: &Arc<dyn Origin>, shard: ShardId) -> Start {
        if let Some(saved) = self.saved(origin, shard) {
            return Start::At(saved);
        }
        if !self.is_all_wanted(origin, shard) {
            return self.config.start.clone();
        }
        let place = self.births.places.get(&shard).copied();
        let place = place.unwrap_or_else(|| {
            if self.is_in_snapshot(shard) {
                Place::Snapshot
            } else {
                Place::BIRTH
            }
        });
        Start::At(Cursor::new(self.cluster).with(shard, place))
    }

    /// Whether a shard that has no cursor was split off while there was a sink, here or elsewhere.
    fn is_all_wanted(&self, origin: &Arc<dyn Origin>, shard: ShardId) -> bool {
        if !origin.was_split_off() {
            return false;
        }
        let has_cursor =
            |(other, place): (ShardId, Option<Place>)| other < shard && place.is_some();
        self.births.came.contains(&shard) || self.all_saved().into_iter().any(has_cursor)
    }

    /// Whether the shard that it was split off may be within a snapshot, which it then is a part
    /// of.
    fn is_in_snapshot(&self, shard: ShardId) -> bool {
        let mut before = self
            .all_saved()
            .into_iter()
            .filter(|(other, _)| *other < shard);
        before.any(|(_, place)| match place {
            Some(place) => place == Place::Snapshot,
            None => self.config.start == Start::Snapshot,
        })
    }

    fn all_saved(&self) -> Vec<(ShardId, Option<Place>)> {
        let list = self.origins.list();
        let saved = list.iter().map(|origin| {
            let shard = origin.log().id();
            let saved = self.saved(origin, shard);
            (shard, saved.and_then(|saved| saved.place(shard)))
        });
        saved.collect()
    }

    /// The cursor of a shard: what has settled in this process, or was committed by an earlier one.
    pub(super) fn saved(&self, origin: &Arc<dyn Origin>, shard: ShardId) -> Option<Cursor> {
        if let Some(place) = self.settled.get(&shard) {
            return Some(Cursor::new(self.cluster).with(shard, *place));
        }
        let bytes = origin.store().system(CURSOR_NAME)?;
        match Cursor::decode(&bytes) {
            Ok(cursor) => Some(cursor),
            Err(error) => {
                warn!(shard = shard.get(), %error, "the cursor of the RabbitMQ sink is unreadable");
                None
            }
        }
    }
}

/// Whether a shard that was split off is followed from before everything that happened in it.
fn is_beginning(start: &Start, origin: &Arc<dyn Origin>, shard: ShardId) -> bool {
    let Start::At(cursor) = start else {
        return false;
    };
    let is_early = |place| match place {
        Place::After { index, .. } => index <= BIRTH,
        Place::Snapshot => true,
    };
    origin.was_split_off() && cursor.place(shard).is_some_and(is_early)
}

/// Keeps the log behind a place.
pub(super) fn pin(origin: &Arc<dyn Origin>, place: Place) {
    if let Place::After { index, .. } = place {
        origin.log().pin(PIN_NAME, index);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use flux_env::{Clock, SeededRng, SimClock};
    use flux_types::{ClusterId, NodeId};
    use tokio::time::timeout;

    use super::*;
    use crate::envelope::Envelope;
    use crate::rabbitmq::{Address, SinkConfig, SinkParts, Status};
    use crate::share::Share;
    use crate::tests::splits::{HIGH, LOW};
    use crate::tests::{CLUSTER, SILENCE, TestOrigins, TestShard};

    const PARENT: ShardId = ShardId::new(0);
    const CHILD: ShardId = ShardId::new(1);

    fn sink(origins: &Arc<TestOrigins>, start: Start) -> Sink {
        let clock: Arc<dyn Clock> = Arc::new(SimClock::new(1_000_000));
        let address = Address::parse("amqp://u:p@h/").expect("an address");
        Sink::new(SinkParts {
            config: SinkConfig {
                start,
                ..SinkConfig::new(address)
            },
            cluster: CLUSTER,
            origins: Arc::<TestOrigins>::clone(origins),
            envelope: Envelope::new(ClusterId::new(1), NodeId::new(2), 1024),
            share: Arc::new(Share::new(Arc::clone(&clock), Vec::new())),
            clock,
            rng: Box::new(SeededRng::new(1)),
            status: Arc::new(Status::default()),
        })
    }

    /// What is read of the shards that are followed, in the order in which a session would.
    async fn read(sink: &mut Sink, followed: &mut [Followed]) -> Vec<String> {
        let mut told = Vec::new();
        loop {
            Followed::release(followed);
            let mut is_more = false;
            // The last first: nothing but what they wait for puts them in order.
            for one in followed.iter_mut().rev().filter(|one| one.is_free()) {
                let Ok(batch) = timeout(SILENCE, one.feed.next()).await else {
                    continue;
                };
                is_more = true;
                let batch = batch.expect("no error");
                for event in &batch.events {
                    if let Some(key) = event.change.key() {
                        let key = String::from_utf8_lossy(key);
                        told.push(format!("{} {key} {}", event.change.word(), event.id()));
                    }
                    if let Some(place) = batch.place_at(event) {
                        sink.settled.insert(one.shard, place);
                    }
                }
            }
            sink.births.note(followed);
            if !is_more && followed.iter().all(Followed::is_free) {
                return told;
            }
        }
    }

    fn place(sink: &Sink, shard: ShardId) -> Option<Place> {
        sink.settled.get(&shard).copied()
    }

    #[tokio::test]
    async fn all_of_a_child_is_published_behind_its_parents_part_wherever_a_sink_is_to_begin() {
        for (start, has_begun) in [(Start::Now, true), (Start::Earliest, false)] {
            let parent = TestShard::new();
            let origins = TestOrigins::of(&[&parent]);
            let mut sink = sink(&origins, start);
            sink.pin_all().await;
            let mut followed = sink.follow().await.expect("feeds");
            parent.set(HIGH, "1");
            let child = parent.split();
            child.set(HIGH, "2");
            parent.set(LOW, "1");
            origins.come(&child);
            sink.take_in();
            assert_eq!(sink.led(), BTreeSet::from([PARENT, CHILD]));
            let mut told = Vec::new();
            // Else the connection broke before anything was sent.
            if has_begun {
                told = read(&mut sink, &mut followed).await;
            }
            let mut followed = sink.follow().await.expect("feeds");
            assert!(followed.iter().any(|one| !one.is_free()));
            told.extend(read(&mut sink, &mut followed).await);
            let expected = [
                format!("set {HIGH} 0:1:1"),
                format!("set {LOW} 0:1:3"),
                format!("set {HIGH} 1:1:2"),
            ];
            assert_eq!(told, expected);
            assert!(place(&sink, CHILD).is_some());
        }
    }

    #[tokio::test]
    async fn a_sink_that_starts_behind_a_split_begins_a_child_at_its_beginning_if_there_was_one() {
        for (was_there, expected) in [(true, 1), (false, 0)] {
            let parent = TestShard::new();
            let origins = TestOrigins::of(&[&parent]);
            parent.set(HIGH, "1");
            if was_there {
                let sink = sink(&origins, Start::Now);
                let feed = sink.origin(PARENT).expect("it is here");
                let applied = feed.applied().expect("an entry");
                let place = Place::After {
                    term: applied.term,
                    index: applied.index,
                    revision: parent.store.revision(),
                };
                assert!(sink.commit(PARENT, place).await.is_done);
            }
            let child = parent.split();
            child.set(HIGH, "2");
            origins.come(&child);
            let mut sink = sink(&origins, Start::Now);
            sink.pin_all().await;
            let mut followed = sink.follow().await.expect("feeds");
            let told = read(&mut sink, &mut followed).await;
            assert_eq!(told.len(), expected, "{told:?}");
            // From its cursor on it goes as any other.
            child.set(HIGH, "3");
            let told = read(&mut sink, &mut followed).await;
            assert_eq!(told.len(), 1, "{told:?}");
            let mut followed = sink.follow().await.expect("feeds");
            assert!(followed.iter().all(Followed::is_free));
            let told = read(&mut sink, &mut followed).await;
            assert_eq!(told, [""; 0]);
        }
    }

    #[tokio::test]
    async fn a_child_is_a_part_of_the_snapshot_within_which_it_was_split_off() {
        let parent = TestShard::new();
        parent.set(LOW, "1");
        parent.set(HIGH, "1");
        let origins = TestOrigins::of(&[&parent]);
        let mut sink = sink(&origins, Start::Snapshot);
        sink.pin_all().await;
        let followed = sink.follow().await.expect("feeds");
        let child = parent.split();
        child.set(HIGH, "2");
        origins.come(&child);
        sink.take_in();
        // The connection broke before anything was sent.
        drop(followed);
        let mut followed = sink.follow().await.expect("feeds");
        let told = read(&mut sink, &mut followed).await;
        let expected = [
            format!("snapshot {LOW} 0:snapshot:1"),
            format!("snapshot {HIGH} 1:snapshot:3"),
        ];
        assert_eq!(told, expected);
    }

    #[tokio::test]
    async fn a_child_is_a_part_of_a_snapshot_that_was_complete_before_it_is_followed() {
        let parent = TestShard::new();
        for number in 0..20 {
            parent.set(&format!("key{number}"), &"v".repeat(30_000));
        }
        let origins = TestOrigins::of(&[&parent]);
        let mut sink = sink(&origins, Start::Snapshot);
        sink.pin_all().await;
        let mut followed = sink.follow().await.expect("feeds");
        // The walk has begun, and is not over.
        let feed = &mut followed.first_mut().expect("the parent").feed;
        for _ in 0..2 {
            feed.next().await.expect("no error");
        }
        assert_eq!(feed.cursor().place(PARENT), Some(Place::Snapshot));
        let child = parent.split();
        origins.come(&child);
        sink.take_in();
        drop(read(&mut sink, &mut followed).await);
        let is_complete = matches!(place(&sink, PARENT), Some(Place::After { .. }));
        assert!(is_complete);
        let mut followed = sink.follow().await.expect("feeds");
        let told = read(&mut sink, &mut followed).await;
        assert_eq!(told.len(), child.store.len(), "{told:?}");
        assert!(told.iter().all(|told| told.starts_with("snapshot ")));
    }

    #[tokio::test]
    async fn what_a_child_has_to_publish_is_no_more_than_happened_in_it() {
        let parent = TestShard::new();
        for number in 0..100 {
            parent.set(HIGH, &number.to_string());
        }
        let origins = TestOrigins::of(&[&parent]);
        let mut sink = sink(&origins, Start::Now);
        sink.pin_all().await;
        let child = parent.split();
        origins.come(&child);
        sink.take_in();
        child.set(HIGH, "new");
        parent.stop_leading();
        sink.note_lag(None);
        assert_eq!(sink.status.lag_events(), 1);
    }
}

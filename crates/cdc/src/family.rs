//! The shards of a feed that come while it goes on, because others are split.
//!
//! For each key everything that a shard told of it comes before what is told by the one that was
//! split off it. So a tail that has read of a split says so, and only then a tail of the other shard
//! begins, at its beginning; until its replica is here it is awaited, and nothing else waits for it.
//! A shard that turns up otherwise (a gap has swallowed the split, or the feed began with a cursor
//! that does not name it, or names its beginning) is held until all shards before it have read what
//! they had by then: a shard comes after the one it was split off, and no replica of it before the
//! split is known.

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use flux_types::{LogIndex, ShardId};
use futures_util::future::BoxFuture;

use crate::cursor::Place;
use crate::origin::Origins;
use crate::tail::{Born, Tail};

/// See the module.
#[derive(Debug)]
pub(crate) struct Family {
    /// Whose shards a feed follows; `None`: it follows one, whatever becomes of that.
    origins: Option<Arc<dyn Origins>>,
    /// Of their tails.
    patience: Duration,
    /// Split off, and not here yet: where each is to begin.
    awaited: BTreeMap<ShardId, Place>,
    /// Not read before others have read up to an entry.
    held: BTreeMap<ShardId, Vec<(ShardId, LogIndex)>>,
}

impl Family {
    /// That of a feed which begins with these tails.
    pub(crate) fn of(
        origins: Option<Arc<dyn Origins>>,
        patience: Duration,
        tails: &mut [Tail],
    ) -> Self {
        let mut family = Self {
            origins,
            patience,
            awaited: BTreeMap::new(),
            held: BTreeMap::new(),
        };
        for (at, tail) in tails.iter().enumerate() {
            if tail.is_at_birth() {
                family.hold(tail.shard(), tails.get(..at).unwrap_or_default());
            }
        }
        family.note_all(tails);
        family.release(tails);
        family
    }

    /// Whether a shard is not to be read yet.
    pub(crate) fn holds(&self, shard: ShardId) -> bool {
        self.held.contains_key(&shard)
    }

    /// The shards that a tail has read to be split off and that are not here yet, and where each
    /// is to begin.
    pub(crate) const fn awaited(&self) -> &BTreeMap<ShardId, Place> {
        &self.awaited
    }

    /// Whether the feed goes on with what is split off.
    pub(crate) const fn is_followed(&self) -> bool {
        self.origins.is_some()
    }

    /// Returns once there are more shards than so many. Safe to drop.
    pub(crate) fn wait_more(&self, than: usize) -> BoxFuture<'static, ()> {
        let origins = self.origins.clone();
        Box::pin(async move {
            match origins {
                Some(origins) => origins.wait_more(than).await,
                None => pending().await,
            }
        })
    }

    /// Notes that a shard was split off another, all of which was told before that.
    pub(crate) fn note(&mut self, tails: &mut [Tail], born: Born) {
        let Born { shard, place } = born;
        let Some(tail) = tails.iter_mut().find(|tail| tail.shard() == shard) else {
            let known = self.awaited.entry(shard).or_insert(place);
            if place == Place::Snapshot {
                // Its keys are to be told once more.
                *known = place;
            }
            return;
        };
        let was_held = self.held.remove(&shard).is_some();
        if was_held && place == Place::Snapshot {
            tail.walk_later();
        }
        tail.learn_birth(place);
    }

    /// Takes in shards that have come, and lets go those that need not wait any more.
    pub(crate) fn meet(&mut self, tails: &mut Vec<Tail>) {
        self.note_all(tails);
        self.take_in(tails);
        self.release(tails);
    }

    fn note_all(&mut self, tails: &mut [Tail]) {
        let born: Vec<Born> = tails.iter_mut().filter_map(Tail::take_born).collect();
        for born in born {
            self.note(tails, born);
        }
    }

    fn take_in(&mut self, tails: &mut Vec<Tail>) {
        let Some(origins) = &self.origins else {
            return;
        };
        let list = origins.list();
        for origin in list.iter().skip(tails.len()) {
            let shard = origin.log().id();
            let awaited = self.awaited.remove(&shard);
            let place = awaited.unwrap_or_else(|| {
                // What was walked of its parent may have been without its keys.
                let has_walked = tails.iter().any(Tail::has_walked);
                if has_walked {
                    Place::Snapshot
                } else {
                    Place::BIRTH
                }
            });
            if awaited.is_none() {
                self.hold(shard, tails);
            }
            let tail = Tail::open_at(Arc::clone(origin), place);
            tails.push(tail.with_patience(self.patience));
        }
    }

    fn hold(&mut self, shard: ShardId, before: &[Tail]) {
        let heads = before.iter().map(|tail| (tail.shard(), tail.head()));
        self.held.insert(shard, heads.collect());
    }

    fn release(&mut self, tails: &[Tail]) {
        // In order of the shards: who waits for one that is let go may go too.
        let held: Vec<ShardId> = self.held.keys().copied().collect();
        for shard in held {
            let has_read = |(other, head): &(ShardId, LogIndex)| {
                let tail = tails.iter().find(|tail| tail.shard() == *other);
                !self.holds(*other) && tail.is_none_or(|tail| tail.has_reached(*head))
            };
            let heads = self.held.get(&shard);
            if heads.is_some_and(|heads| heads.iter().all(has_read)) {
                self.held.remove(&shard);
            }
        }
    }
}

//! A feed: the changes of all shards of a node for one consumer, with a cursor.
//!
//! A feed is pulled. It holds one read of one shard at most, so a consumer that does not ask costs
//! nothing but the log that is kept for it. It goes on with the shards that are split off those it
//! follows ([`crate::family`]).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use flux_env::{Instant, Timeout, boot_now};
use flux_store::Store;
use flux_types::{ClusterId, LogIndex, Revision, ShardId};
use futures_util::future::{FutureExt as _, select_all};
use parking_lot::RwLock;

use crate::cursor::{Cursor, Place, Start};
use crate::error::CdcError;
use crate::event::{Change, Control, Event};
use crate::family::Family;
use crate::origin::{Origin, Origins};
use crate::tail::{self, Begin, Refused, Tail};

/// How long a consumer hears nothing at most.
pub const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);

/// For how long a feed hopes for nodes that may hold what this one holds no more, and cannot be
/// asked now, before it says that changes are missing.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// For how long a shard is waited for that a cursor names and that is not here yet.
const ARRIVAL_PATIENCE: Duration = Duration::from_secs(3);

/// What a consumer asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Where to begin.
    pub start: Start,
    /// Only keys that begin with this; empty: all.
    pub prefix: Vec<u8>,
    /// What to do with a cursor whose changes are not kept any more.
    pub on_gap: OnGap,
    /// How long to be silent at most.
    pub progress_interval: Duration,
    /// How long to hope for changes that only nodes may have which cannot be asked now.
    pub patience: Duration,
}

/// What a feed does with a cursor that is too old.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnGap {
    /// It does not begin: the consumer decides what to do about it.
    Refuse,
    /// It says so with a gap event, and goes on with the oldest change that is kept.
    Report,
}

impl Request {
    /// All changes from a start.
    #[must_use]
    pub const fn from(start: Start) -> Self {
        Self {
            start,
            prefix: Vec::new(),
            on_gap: OnGap::Refuse,
            progress_interval: PROGRESS_INTERVAL,
            patience: PATIENCE,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Feed {
    tails: Vec<Tail>,
    family: Family,
    reach: Arc<Reach>,
    cluster: ClusterId,
    request: Request,
    /// Which tail is asked first.
    turn: usize,
    /// When something was handed out last; `None`: nothing yet.
    told_at: Option<Instant>,
}

/// How far a feed has read, as others may see it: who watches the feed from elsewhere holds this,
/// and what it costs is one store for each read.
#[derive(Debug)]
pub struct Reach {
    /// In the order of the feed's tails. Written as shards come; a leaf in the order of locks.
    shards: RwLock<Vec<(Arc<Store>, AtomicU64)>>,
}

impl Reach {
    fn of(tails: &[Tail]) -> Self {
        let reach = Self {
            shards: RwLock::default(),
        };
        reach.take_in(tails);
        reach
    }

    /// Looks at further shards.
    fn take_in(&self, tails: &[Tail]) {
        let mut shards = self.shards.write();
        let known = shards.len();
        shards.extend(tails.iter().skip(known).map(|tail| {
            let revision = tail.revision().get();
            (Arc::clone(tail.store()), AtomicU64::new(revision))
        }));
    }

    fn note(&self, at: usize, tail: &Tail) {
        if let Some((_, read)) = self.shards.read().get(at) {
            read.store(tail.revision().get(), Ordering::Relaxed);
        }
    }

    /// Changes that are applied here and that the feed has not read, of all keys.
    #[must_use]
    pub fn lag_events(&self) -> u64 {
        let behind = |(store, read): &(Arc<Store>, AtomicU64)| {
            let read = read.load(Ordering::Relaxed);
            store.revision().get().saturating_sub(read)
        };
        self.shards.read().iter().map(behind).sum()
    }
}

/// Some events of one shard, in order.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The shard.
    pub shard: ShardId,
    /// At least one.
    pub events: Vec<Event>,
    before: Cursor,
    after: Cursor,
}

impl Batch {
    /// The cursor of a consumer that has taken these events in.
    #[must_use]
    pub const fn cursor(&self) -> &Cursor {
        &self.after
    }

    /// The cursor of a consumer that has taken them in up to one of them.
    #[must_use]
    pub fn cursor_at(&self, event: &Event) -> Cursor {
        match self.place_at(event) {
            Some(place) => self.before.with(self.shard, place),
            None => self.after.clone(),
        }
    }

    /// The place of that consumer in the shard; `None`: where the whole batch ends.
    #[must_use]
    pub const fn place_at(&self, event: &Event) -> Option<Place> {
        let position = event.position;
        match event.change {
            Change::Item { .. } => Some(Place::Snapshot),
            Change::Control(Control::Progress) => None,
            Change::Set { .. }
            | Change::Patch { .. }
            | Change::Delete { .. }
            | Change::Expire { .. }
            | Change::Flush
            | Change::Control(_) => Some(Place::After {
                term: position.term,
                index: position.index,
                revision: position.revision,
            }),
        }
    }
}

impl Feed {
    /// Begins a feed over the shards of a node, and those that are split off them.
    ///
    /// # Errors
    /// [`CdcError::Compacted`] and [`CdcError::Diverged`] about a cursor; [`CdcError::Behind`] if it
    /// names a shard that is not here after a moment; others if the log cannot be read.
    ///
    /// # Cancellation
    /// Safe to drop.
    pub async fn open(
        cluster: ClusterId,
        origins: &Arc<dyn Origins>,
        request: Request,
    ) -> Result<Self, CdcError> {
        let mut list = origins.list();
        vet(cluster, &list, &request).await?;
        let begun_at = boot_now();
        let mut tails = open_tails(cluster, &list, 0, &request).await?;
        while let Some(shard) = unknown(&list, &request) {
            let waited = boot_now().saturating_since(begun_at);
            let left = request.patience.min(ARRIVAL_PATIENCE);
            let more = origins.wait_more(list.len());
            let more = Timeout::new(left.saturating_sub(waited), more).await;
            if more.is_err() {
                return Err(CdcError::Behind { shard });
            }
            list = origins.list();
            let further = open_tails(cluster, &list, tails.len(), &request).await?;
            tails.extend(further);
        }
        Ok(Self::of(cluster, tails, Some(Arc::clone(origins)), request))
    }

    /// Begins a feed over one shard, which ignores what is split off it.
    ///
    /// # Errors
    /// As [`Feed::open`].
    ///
    /// # Cancellation
    /// Safe to drop.
    pub async fn of_shard(
        cluster: ClusterId,
        origin: &Arc<dyn Origin>,
        request: Request,
    ) -> Result<Self, CdcError> {
        let list = std::slice::from_ref(origin);
        vet(cluster, list, &request).await?;
        if let Some(shard) = unknown(list, &request) {
            return Err(CdcError::Behind { shard });
        }
        let tails = open_tails(cluster, list, 0, &request).await?;
        Ok(Self::of(cluster, tails, None, request))
    }

    fn of(
        cluster: ClusterId,
        mut tails: Vec<Tail>,
        origins: Option<Arc<dyn Origins>>,
        request: Request,
    ) -> Self {
        Self {
            reach: Arc::new(Reach::of(&tails)),
            family: Family::of(origins, request.patience, &mut tails),
            tails,
            cluster,
            request,
            turn: 0,
            told_at: None,
        }
    }

    /// How far the consumer has got with what was handed out.
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        let mut places = BTreeMap::new();
        if self.family.is_followed() {
            places.extend(self.family.awaited());
        }
        places.extend(self.tails.iter().map(|tail| (tail.shard(), tail.place())));
        Cursor {
            cluster: self.cluster,
            places,
        }
    }

    /// What was split off the shard of [`Feed::of_shard`] as far as it has read, and where a feed of
    /// that is to begin.
    #[must_use]
    pub const fn split_off(&self) -> &BTreeMap<ShardId, Place> {
        self.family.awaited()
    }

    /// Whether it has read a shard up to an entry.
    #[must_use]
    pub fn has_read(&self, shard: ShardId, index: LogIndex) -> bool {
        self.tail(shard).is_some_and(|tail| tail.has_reached(index))
    }

    /// Up to which revision it has read a shard, unless it is within a snapshot.
    #[must_use]
    pub fn revision(&self, shard: ShardId) -> Option<Revision> {
        let tail = self.tail(shard).filter(|tail| !tail.is_walking());
        tail.map(Tail::revision)
    }

    fn tail(&self, shard: ShardId) -> Option<&Tail> {
        self.tails.iter().find(|tail| tail.shard() == shard)
    }

    /// How far it has read, to be looked at from elsewhere.
    #[must_use]
    pub const fn reach(&self) -> &Arc<Reach> {
        &self.reach
    }

    /// The next events. The first is a progress event with the cursor of the beginning; another
    /// comes whenever nothing else came for the interval asked for.
    ///
    /// # Errors
    /// If the log cannot be read or a shard has stopped.
    ///
    /// # Cancellation
    /// Safe to drop: nothing is lost.
    pub async fn next(&mut self) -> Result<Batch, CdcError> {
        loop {
            let Some(told_at) = self.told_at else {
                return Ok(self.progress());
            };
            self.meet();
            if let Some(batch) = self.read().await? {
                self.told_at = Some(boot_now());
                return Ok(batch);
            }
            // What was read may have let others go.
            self.meet();
            let silent = boot_now().saturating_since(told_at);
            let left = self.request.progress_interval.saturating_sub(silent);
            match Timeout::new(left, self.ready()).await {
                Ok(ready) => ready?,
                Err(_) => return Ok(self.progress()),
            }
        }
    }

    /// Takes in shards that have come.
    fn meet(&mut self) {
        let before = self.tails.len();
        self.family.meet(&mut self.tails);
        if before < self.tails.len() {
            self.reach.take_in(&self.tails);
        }
    }

    /// Returns once there may be something to read, or a shard has come. Safe to drop.
    async fn ready(&mut self) -> Result<(), CdcError> {
        let asks = self.asks();
        let mut waits = vec![self.family.wait_more(self.tails.len()).map(Ok).boxed()];
        for (at, tail) in self.tails.iter_mut().enumerate() {
            if !self.family.holds(tail.shard()) {
                waits.push(tail.ready(asks == Some(at)).boxed());
            }
        }
        select_all(waits).await.0
    }

    /// A progress event out of turn, for a consumer that will hear nothing more.
    pub fn last_progress(&mut self) -> Batch {
        self.progress()
    }

    /// The tail that may ask other nodes for what the log here holds no more: one at a time, so
    /// that a consumer which does not go on keeps the answer to one at most.
    fn asks(&self) -> Option<usize> {
        let count = self.tails.len();
        let is_read = |tail: &&Tail| !self.family.holds(tail.shard());
        let tail = |at: &usize| self.tails.get(*at).filter(is_read);
        let asking = (0..count).find(|at| tail(at).is_some_and(Tail::is_asking));
        let mut turns = (0..count).map(|step| (self.turn + step) % count);
        asking.or_else(|| turns.find(|at| tail(at).is_some_and(Tail::wants_to_ask)))
    }

    /// Asks each shard once, another one first each time.
    async fn read(&mut self) -> Result<Option<Batch>, CdcError> {
        let count = self.tails.len();
        for step in 0..count {
            let at = (self.turn + step) % count.max(1);
            let before = self.cursor();
            let family = &self.family;
            let tail = self.tails.get_mut(at);
            let Some(tail) = tail.filter(|tail| !family.holds(tail.shard())) else {
                continue;
            };
            let read = tail.read(&self.request.prefix).await?;
            self.reach.note(at, tail);
            let shard = tail.shard();
            if let Some(born) = read.born {
                self.family.note(&mut self.tails, born);
            }
            if read.events.is_empty() {
                continue;
            }
            self.turn = at + 1;
            return Ok(Some(Batch {
                shard,
                events: read.events,
                before,
                after: self.cursor(),
            }));
        }
        Ok(None)
    }

    fn progress(&mut self) -> Batch {
        self.told_at = Some(boot_now());
        let cursor = self.cursor();
        let first = self.tails.first();
        let read = first.map(|tail| tail.control(Control::Progress));
        Batch {
            shard: first.map_or(ShardId::new(0), Tail::shard),
            events: read.map(|read| read.events).unwrap_or_default(),
            before: cursor.clone(),
            after: cursor,
        }
    }
}

/// Refuses a cursor that cannot be of this cluster.
async fn vet(
    cluster: ClusterId,
    origins: &[Arc<dyn Origin>],
    request: &Request,
) -> Result<(), CdcError> {
    if origins.is_empty() {
        let shard = ShardId::new(0);
        return Err(CdcError::Stopped { shard });
    }
    if let Start::At(cursor) = &request.start
        && cursor.cluster != cluster
    {
        let what = "it is of another cluster";
        let oldest = Box::new(tail::oldest(cluster, origins).await?);
        return Err(CdcError::Diverged { what, oldest });
    }
    Ok(())
}

/// A shard that the cursor names and that is not here.
fn unknown(origins: &[Arc<dyn Origin>], request: &Request) -> Option<ShardId> {
    let Start::At(cursor) = &request.start else {
        return None;
    };
    let is_known = |shard: &ShardId| origins.iter().any(|origin| origin.log().id() == *shard);
    let mut shards = cursor.places.keys().copied();
    shards.find(|shard| !is_known(shard))
}

/// Tails of all shards but those that have one.
async fn open_tails(
    cluster: ClusterId,
    origins: &[Arc<dyn Origin>],
    known: usize,
    request: &Request,
) -> Result<Vec<Tail>, CdcError> {
    let mut tails = Vec::with_capacity(origins.len());
    for origin in origins.iter().skip(known) {
        tails.push(open_tail(cluster, origins, origin, request).await?);
    }
    Ok(tails)
}

/// Where a shard goes on by a cursor.
fn place_in(cursor: &Cursor, origin: &dyn Origin) -> Place {
    let is_in_snapshot = || {
        cursor
            .places
            .values()
            .any(|place| *place == Place::Snapshot)
    };
    match cursor.place(origin.log().id()) {
        Some(place) => place,
        // The walk that the cursor was taken in begins anew, without the keys that went.
        None if origin.was_split_off() && is_in_snapshot() => Place::Snapshot,
        // It has come into being after the cursor.
        None => Place::BEGINNING,
    }
}

async fn open_tail(
    cluster: ClusterId,
    origins: &[Arc<dyn Origin>],
    origin: &Arc<dyn Origin>,
    request: &Request,
) -> Result<Tail, CdcError> {
    let begin = match &request.start {
        Start::Now => Begin::Now,
        Start::Earliest => Begin::Earliest,
        Start::Snapshot => Begin::Snapshot,
        Start::At(cursor) => Begin::at(place_in(cursor, &**origin)),
    };
    let patience = match request.on_gap {
        OnGap::Refuse => request.patience,
        OnGap::Report => Duration::ZERO,
    };
    match Tail::open(Arc::clone(origin), begin, patience).await? {
        Ok(tail) => Ok(tail.with_patience(request.patience)),
        Err(Refused::Compacted) if request.on_gap == OnGap::Report => {
            // Whether they are gone for all, or only for now, reading will tell.
            let place = match begin {
                Begin::After(place) => place.place(),
                Begin::Now | Begin::Earliest | Begin::Snapshot => Place::BEGINNING,
            };
            Ok(Tail::open_at(Arc::clone(origin), place).with_patience(request.patience))
        }
        Err(refused) => {
            let oldest = Box::new(tail::oldest(cluster, origins).await?);
            Err(match refused {
                Refused::Compacted => CdcError::Compacted { oldest },
                Refused::Diverged(what) => CdcError::Diverged { what, oldest },
            })
        }
    }
}

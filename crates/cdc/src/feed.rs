//! A feed: the changes of all shards of a node for one consumer, with a cursor.
//!
//! A feed is pulled. It holds one read of one shard at most, so a consumer that does not ask costs
//! nothing but the log that is kept for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use flux_env::{Instant, Timeout, boot_now};
use flux_store::Store;
use flux_types::{ClusterId, ShardId};
use futures_util::future::{FutureExt as _, select_all};

use crate::cursor::{Cursor, Place, Start};
use crate::error::CdcError;
use crate::event::{Change, Control, Event};
use crate::origin::Origin;
use crate::tail::{self, Begin, Refused, Tail};

/// How long a consumer hears nothing at most.
pub const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);

/// For how long a feed hopes for nodes that may hold what this one holds no more, and cannot be
/// asked now, before it says that changes are missing.
pub const PATIENCE: Duration = Duration::from_secs(10);

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
    shards: Vec<(Arc<Store>, AtomicU64)>,
}

impl Reach {
    fn of(tails: &[Tail]) -> Self {
        let shard = |tail: &Tail| {
            let revision = tail.position().revision.get();
            (Arc::clone(tail.store()), AtomicU64::new(revision))
        };
        Self {
            shards: tails.iter().map(shard).collect(),
        }
    }

    fn note(&self, at: usize, tail: &Tail) {
        if let Some((_, read)) = self.shards.get(at) {
            read.store(tail.position().revision.get(), Ordering::Relaxed);
        }
    }

    /// Changes that are applied here and that the feed has not read, of all keys.
    #[must_use]
    pub fn lag_events(&self) -> u64 {
        let behind = |(store, read): &(Arc<Store>, AtomicU64)| {
            let read = read.load(Ordering::Relaxed);
            store.revision().get().saturating_sub(read)
        };
        self.shards.iter().map(behind).sum()
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
    /// Begins a feed over the shards of a node.
    ///
    /// # Errors
    /// [`CdcError::Compacted`] and [`CdcError::Diverged`] about a cursor; others if the log cannot
    /// be read.
    ///
    /// # Cancellation
    /// Safe to drop.
    pub async fn open(
        cluster: ClusterId,
        origins: &[Arc<dyn Origin>],
        request: Request,
    ) -> Result<Self, CdcError> {
        if origins.is_empty() {
            let shard = ShardId::new(0);
            return Err(CdcError::Stopped { shard });
        }
        if let Start::At(cursor) = &request.start {
            vet(cluster, origins, cursor).await?;
        }
        let mut tails = Vec::with_capacity(origins.len());
        for origin in origins {
            tails.push(open_tail(cluster, origins, origin, &request).await?);
        }
        Ok(Self {
            reach: Arc::new(Reach::of(&tails)),
            tails,
            cluster,
            request,
            turn: 0,
            told_at: None,
        })
    }

    /// How far the consumer has got with what was handed out.
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        let places = self.tails.iter().map(|tail| (tail.shard(), tail.place()));
        Cursor {
            cluster: self.cluster,
            places: places.collect(),
        }
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
            if let Some(batch) = self.read().await? {
                self.told_at = Some(boot_now());
                return Ok(batch);
            }
            let silent = boot_now().saturating_since(told_at);
            let left = self.request.progress_interval.saturating_sub(silent);
            let asks = self.asks();
            let tails = self.tails.iter_mut().enumerate();
            let waits = tails.map(|(at, tail)| tail.ready(asks == Some(at)).boxed());
            let any = select_all(waits).map(|(ready, _, _)| ready);
            match Timeout::new(left, any).await {
                Ok(ready) => ready?,
                Err(_) => return Ok(self.progress()),
            }
        }
    }

    /// A progress event out of turn, for a consumer that will hear nothing more.
    pub fn last_progress(&mut self) -> Batch {
        self.progress()
    }

    /// The tail that may ask other nodes for what the log here holds no more: one at a time, so
    /// that a consumer which does not go on keeps the answer to one at most.
    fn asks(&self) -> Option<usize> {
        let count = self.tails.len();
        let tail = |at: &usize| self.tails.get(*at);
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
            let Some(tail) = self.tails.get_mut(at) else {
                continue;
            };
            let read = tail.read(&self.request.prefix).await?;
            self.reach.note(at, tail);
            if read.events.is_empty() {
                continue;
            }
            self.turn = at + 1;
            let shard = tail.shard();
            let after = before.with(shard, tail.place());
            return Ok(Some(Batch {
                shard,
                events: read.events,
                before,
                after,
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
    cursor: &Cursor,
) -> Result<(), CdcError> {
    let is_known = |shard: &ShardId| origins.iter().any(|origin| origin.log().id() == *shard);
    let what = if cursor.cluster != cluster {
        "it is of another cluster"
    } else if !cursor.places.keys().all(is_known) {
        "it names a shard that is not here"
    } else {
        return Ok(());
    };
    let oldest = Box::new(tail::oldest(cluster, origins).await?);
    Err(CdcError::Diverged { what, oldest })
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
        Start::At(cursor) => {
            // A shard that the cursor does not name has come into being after it.
            let place = cursor.place(origin.log().id());
            Begin::at(place.unwrap_or(Place::BEGINNING))
        }
    };
    let patience = match request.on_gap {
        OnGap::Refuse => request.patience,
        OnGap::Report => Duration::ZERO,
    };
    match Tail::open(Arc::clone(origin), begin, patience).await? {
        Ok(tail) => Ok(tail.with_patience(request.patience)),
        Err(Refused::Compacted) if request.on_gap == OnGap::Report => {
            // Whether they are gone for all, or only for now, reading will tell.
            Ok(Tail::open_at(Arc::clone(origin), begin).with_patience(request.patience))
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

//! The changes of one shard, read from its log by offset.
//!
//! A tail holds a place and nothing else: what it has not read yet lies in the log. It reads only
//! entries that are applied, and so committed, and that are synced here under every policy (an
//! entry that a power cut could take back is not told to anyone). It waits by being woken, never by
//! asking again and again, and no commit waits for it. What the log here holds no more it asks of
//! other nodes ([`elsewhere`]). Where a shard was split off this one a read ends, and says so
//! ([`birth`]).

mod birth;
mod decode;
mod elsewhere;
mod snapshot;

use std::sync::Arc;
use std::time::Duration;

use flux_env::{Instant, blocking, boot_now, sleep};
use flux_log::{LogEntry, LogError, LogId};
use flux_store::{Store, batch};
use flux_types::{LogIndex, Revision, ShardId, Term};
use tokio::sync::oneshot;

pub(crate) use self::birth::Born;
use self::elsewhere::Elsewhere;
use self::snapshot::Walking;
use crate::cursor::{Cursor, Place};
use crate::error::CdcError;
use crate::event::{Change, Control, Event, Position};
use crate::origin::Origin;

/// Most bytes of entries read at once, unless one is longer.
const READ_BYTES: usize = 256 * 1024;
/// How long a tail that was woken a moment ago lets changes gather, so that under load it costs one
/// wake for many commits.
const GATHER: Duration = Duration::from_millis(1);
/// How often a tail asks for a sync, where commits do not.
const SYNC_PAUSE: Duration = Duration::from_millis(20);

/// See the module.
#[derive(Debug)]
pub(crate) struct Tail {
    origin: Arc<dyn Origin>,
    shard: ShardId,
    /// Up to where everything was handed out.
    place: Progress,
    /// The entry to read next: that of the place itself if some of it may be left.
    next: LogIndex,
    /// Nothing is read yet of a shard that was split off at a revision that is not known: its first
    /// change will tell.
    is_unborn: bool,
    /// What was split off before the place, if that was found out otherwise than by reading.
    born: Option<Born>,
    /// A snapshot is to be walked.
    wants_walk: bool,
    /// Whether one ever was.
    has_walked: bool,
    /// A snapshot that is being walked.
    walking: Option<Walking>,
    /// A snapshot that was walked and is whole once this entry was read, and its items.
    completing: Option<(LogIndex, u64)>,
    /// What is asked of others.
    elsewhere: Elsewhere,
    gather: bool,
    /// The shard was given away while its first entry was waited for.
    is_gone: bool,
    synced_at: Option<Instant>,
}

/// The index of the first entry there ever was.
const FIRST: LogIndex = LogIndex::new(1);
/// The first of a shard that was split off.
const SECOND: LogIndex = LogIndex::new(2);
/// What comes before that.
const BIRTH: LogId = LogId {
    term: Term::new(0),
    index: FIRST,
};
/// What does not fit of a cursor to a log without its entry.
const REPLACED: &str = "its entry was replaced by another";

/// A place in the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) id: LogId,
    pub(crate) revision: Revision,
}

impl Progress {
    pub(crate) const fn place(self) -> Place {
        Place::After {
            term: self.id.term,
            index: self.id.index,
            revision: self.revision,
        }
    }
}

/// What a tail read.
#[derive(Debug, Default)]
pub(crate) struct Read {
    pub(crate) events: Vec<Event>,
    /// What was split off behind the last of them.
    pub(crate) born: Option<Born>,
}

/// Where a tail is to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begin {
    Now,
    Earliest,
    Snapshot,
    After(Progress),
}

impl Begin {
    pub(crate) const fn at(place: Place) -> Self {
        match place {
            Place::Snapshot => Self::Snapshot,
            Place::After {
                term,
                index,
                revision,
            } => Self::After(Progress {
                id: LogId { term, index },
                revision,
            }),
        }
    }
}

/// Why a tail cannot begin at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    Compacted,
    Diverged(&'static str),
}

impl Tail {
    /// Begins; the outer result says that the log cannot be read. Of a place whose changes nobody
    /// has who can be asked now, it is not said for so long that they are gone.
    pub(crate) async fn open(
        origin: Arc<dyn Origin>,
        begin: Begin,
        patience: Duration,
    ) -> Result<Result<Self, Refused>, CdcError> {
        let mut tail = Self::at(origin, Progress::default());
        match begin {
            Begin::Now => {
                // The entry first: a revision that is ahead of it only skips what was committed
                // before this call returns.
                let id = tail.origin.applied().unwrap_or_default();
                let revision = tail.origin.store().revision();
                tail.begin_at(Progress { id, revision });
                tail.note_children(Place::BEGINNING);
                tail.wait_durable(id.index).await?;
            }
            Begin::Earliest => {
                let oldest = tail.oldest().await?;
                tail.begin_at(oldest);
            }
            Begin::Snapshot => tail.begin_walk().await,
            Begin::After(place) => match tail.check(place, patience).await? {
                Ok(next) => {
                    tail.begin_at(place);
                    tail.next = next;
                }
                Err(refused) => return Ok(Err(refused)),
            },
        }
        Ok(Ok(tail))
    }

    /// Begins at a place whatever is there: if it is too old for all, the first thing read is a gap.
    pub(crate) fn open_at(origin: Arc<dyn Origin>, place: Place) -> Self {
        let mut tail = Self::at(origin, Progress::default());
        match Begin::at(place) {
            Begin::After(place) => {
                tail.begin_at(place);
                if !tail.is_birth(place) {
                    // Some of the entry of the place itself may be left.
                    tail.next = place.id.index.max(FIRST);
                }
            }
            Begin::Now | Begin::Earliest | Begin::Snapshot => tail.walk_later(),
        }
        tail
    }

    fn at(origin: Arc<dyn Origin>, place: Progress) -> Self {
        Self {
            shard: origin.log().id(),
            origin,
            place,
            next: place.id.index.next(),
            is_unborn: false,
            born: None,
            wants_walk: false,
            has_walked: false,
            walking: None,
            completing: None,
            elsewhere: Elsewhere::default(),
            gather: false,
            is_gone: false,
            synced_at: None,
        }
    }

    const fn go_to(&mut self, place: Progress) {
        self.place = place;
        self.next = place.id.index.next();
    }

    /// Goes to a place that was found or given rather than read up to.
    fn begin_at(&mut self, place: Progress) {
        self.go_to(place);
        if self.is_birth(place) {
            self.go_to(Progress { id: BIRTH, ..place });
            self.is_unborn = place.revision == Revision::new(0);
        }
    }

    pub(crate) fn store(&self) -> &Arc<Store> {
        self.origin.store()
    }

    pub(crate) const fn shard(&self) -> ShardId {
        self.shard
    }

    /// Up to where everything was handed out, as a cursor says it.
    pub(crate) const fn place(&self) -> Place {
        if self.is_walking() {
            return Place::Snapshot;
        }
        if self.is_unborn {
            // Only from there the first change can be told from one behind a gap.
            return Place::BIRTH;
        }
        self.place.place()
    }

    /// Whether a snapshot is being walked, or about to be.
    pub(crate) const fn is_walking(&self) -> bool {
        self.wants_walk || self.walking.is_some()
    }

    pub(crate) const fn position(&self) -> Position {
        Position {
            shard: self.shard,
            term: self.place.id.term,
            index: self.place.id.index,
            revision: self.place.revision,
        }
    }

    /// Before the oldest change that is kept, here or by others who can be asked now.
    pub(crate) async fn oldest(&self) -> Result<Progress, CdcError> {
        let (place, first) = self.search(FIRST).await?;
        let first = first.unwrap_or_else(|| self.origin.log().oldest());
        Ok(self.at_birth_if_whole(place, first))
    }

    /// Before the first change that is kept of an entry or those behind it.
    async fn before_change(&self, from: LogIndex) -> Result<Progress, CdcError> {
        Ok(self.search(from).await?.0)
    }

    /// The same, and the first entry that is kept.
    async fn search(&self, mut from: LogIndex) -> Result<(Progress, Option<LogIndex>), CdcError> {
        let mut first = None;
        loop {
            let kept = self.origin.log().oldest();
            let entries = if from < kept {
                self.ask(from, kept).await.entries
            } else {
                self.entries(from, LogIndex::new(u64::MAX)).await?
            };
            first = first.or_else(|| entries.first().map(|entry| entry.id.index));
            if let Some(place) = self.before_facts(&entries)? {
                return Ok((place, first));
            }
            match entries.last() {
                Some(last) => from = last.id.index.next(),
                None if from < kept => from = kept,
                None => {
                    // Nothing is kept but what is to come.
                    let id = self.origin.log().state().last.unwrap_or_default();
                    let revision = self.origin.store().revision();
                    return Ok((Progress { id, revision }, first));
                }
            }
        }
    }

    /// Before the first facts of some entries.
    fn before_facts(&self, entries: &[LogEntry]) -> Result<Option<Progress>, CdcError> {
        for entry in entries {
            if let Some(view) = self.effective(entry)? {
                return Ok(Some(Progress {
                    id: before(entry.id),
                    revision: before_first(&view),
                }));
            }
        }
        Ok(None)
    }

    /// The entry to read next behind a place, if that is of this history and what comes after it
    /// is kept.
    async fn check(
        &self,
        place: Progress,
        patience: Duration,
    ) -> Result<Result<LogIndex, Refused>, CdcError> {
        let log = self.origin.log();
        let oldest = log.oldest();
        if self.is_birth(place) {
            // Only what comes behind it can be missing.
            return if oldest <= SECOND {
                Ok(Ok(SECOND))
            } else {
                let id = BIRTH;
                self.check_elsewhere(Progress { id, ..place }, patience)
                    .await
            };
        }
        let last = log.state().last.unwrap_or_default();
        if last.index < place.id.index {
            return Ok(Err(Refused::Diverged("it is ahead of the log")));
        }
        if oldest <= place.id.index {
            let here = log.history_id_at(place.id.index);
            if here.is_none_or(|here| here.term != place.id.term) {
                return Ok(Err(Refused::Diverged(REPLACED)));
            }
            return Ok(Ok(place.id.index));
        }
        let next = place.id.index.next();
        if oldest <= next && self.before_change(oldest).await?.revision <= place.revision {
            return Ok(Ok(next));
        }
        self.check_elsewhere(place, patience).await
    }

    /// Returns once [`Tail::read`] is worth calling; whether others may be asked for that is the
    /// caller's to say. Safe to drop.
    pub(crate) async fn ready(&mut self, may_ask: bool) -> Result<(), CdcError> {
        if self.wants_walk {
            self.begin_walk().await;
        }
        if self.walking.is_some() || self.is_completed() {
            return Ok(());
        }
        let next = self.next;
        let applied =
            |origin: &dyn Origin| origin.applied().map_or(LogIndex::new(0), |id| id.index);
        if applied(&*self.origin) < next {
            self.origin.wait_applied(next).await;
            self.is_gone = applied(&*self.origin) < next;
            if self.gather {
                sleep(GATHER).await;
            }
            self.gather = true;
        } else {
            self.gather = false;
        }
        if self.is_forgotten() {
            return Ok(());
        }
        if self.is_elsewhere() {
            self.wait_for_others(may_ask).await;
            return Ok(());
        }
        self.wait_durable(next).await
    }

    /// Whether this node has given the shard away, and what it had of it: what was told already is
    /// not in its log any more.
    fn is_forgotten(&self) -> bool {
        let last = self.origin.log().state().last.unwrap_or_default();
        self.is_gone || (last.index < self.place.id.index && !self.is_birth(self.place))
    }

    const fn is_completed(&self) -> bool {
        matches!(self.completing, Some((end, _)) if end.get() <= self.place.id.index.get())
    }

    /// Reads what comes next; nothing if there is nothing yet. Safe to drop: what was not handed
    /// out is read again.
    pub(crate) async fn read(&mut self, prefix: &[u8]) -> Result<Read, CdcError> {
        if self.is_walking() {
            return self.walk(prefix).await;
        }
        if let Some((_, items)) = self.completing.filter(|_| self.is_completed()) {
            self.completing = None;
            return Ok(self.control(Control::SnapshotComplete { items }));
        }
        if self.is_forgotten() {
            return Err(CdcError::Stopped { shard: self.shard });
        }
        if self.is_elsewhere() {
            return self.read_elsewhere(prefix).await;
        }
        let next = self.next;
        let until = self.readable_until();
        if until < next {
            return Ok(Read::default());
        }
        let entries = match self.entries(next, until.next()).await {
            Ok(entries) => entries,
            // Deleted while it was being read.
            Err(_) if self.is_elsewhere() => return Ok(Read::default()),
            Err(error) => return Err(error),
        };
        self.take(&entries, prefix)
    }

    /// Hands out what entries say that follow the place, and moves it behind them.
    fn take(&mut self, entries: &[LogEntry], prefix: &[u8]) -> Result<Read, CdcError> {
        let mut read = Read::default();
        let mut place = self.place;
        for entry in entries {
            let Some(view) = self.effective(entry)? else {
                place.id = entry.id;
                continue;
            };
            if std::mem::take(&mut self.is_unborn) {
                place.revision = before_first(&view);
            }
            read.events.extend(self.gap_before(place, &view));
            decode::facts(self.shard, entry, &view, place.revision, |event| {
                if event.change.concerns(prefix) {
                    read.events.push(event);
                }
            });
            place.revision = place.revision.max(view.last_revision());
            place.id = entry.id;
            read.born = self.born_of(&view);
            if read.born.is_some() {
                // What is told from here on may be told together with the other shard's.
                break;
            }
        }
        self.go_to(place);
        Ok(read)
    }

    /// The last entry that may be told: applied, synced, and not beyond the end of a snapshot that
    /// is not yet said to be complete.
    fn readable_until(&self) -> LogIndex {
        self.tellable_until().min(self.origin.log().durable())
    }

    /// The same, but for whether it is synced here.
    fn tellable_until(&self) -> LogIndex {
        let applied = self.origin.applied();
        let until = applied.map_or(LogIndex::new(0), |id| id.index);
        self.completing.map_or(until, |(end, _)| until.min(end))
    }

    /// The changes after this place are not kept any more: says so, and goes on with the oldest.
    async fn skip_gap(&mut self) -> Result<Read, CdcError> {
        let after = self.place.revision;
        let oldest = self.before_change(self.origin.log().oldest()).await?;
        self.is_unborn = false;
        self.go_to(Progress {
            revision: oldest.revision.max(after),
            ..oldest
        });
        if oldest.revision <= after {
            // Only entries without facts are gone.
            return Ok(Read::default());
        }
        let next = oldest.revision.next();
        Ok(self.control(Control::Gap { after, next }))
    }

    /// Revisions are dense: one that is not continues from before changes that are not here.
    fn gap_before(&self, place: Progress, view: &batch::BatchView<'_>) -> Option<Event> {
        let (after, next) = (place.revision, view.first_revision());
        if next <= after.next() {
            return None;
        }
        let mut event = self.control_event(Control::Gap { after, next });
        event.position.term = place.id.term;
        event.position.index = place.id.index;
        event.position.revision = Revision::new(next.get() - 1);
        Some(event)
    }

    /// A control event at this place.
    pub(crate) fn control(&self, control: Control) -> Read {
        Read {
            events: vec![self.control_event(control)],
            born: None,
        }
    }

    fn control_event(&self, control: Control) -> Event {
        Event {
            position: self.position(),
            at: self.origin.now(),
            change: Change::Control(control),
            group: None,
            trace: None,
        }
    }

    /// Entries from memory, or from disk on a thread that may wait for it.
    async fn entries(&self, from: LogIndex, until: LogIndex) -> Result<Vec<LogEntry>, CdcError> {
        let log = self.origin.log();
        let entries = if log.is_recent(from) {
            log.history(from, until, READ_BYTES)
        } else {
            let log = log.clone();
            let read = move || log.history(from, until, READ_BYTES);
            match blocking(read).await {
                Ok(entries) => entries,
                Err(_) => return Err(CdcError::Stopped { shard: self.shard }),
            }
        };
        entries.map_err(|source| CdcError::Log {
            shard: self.shard,
            source,
        })
    }

    fn effective<'a>(&self, entry: &'a LogEntry) -> Result<Option<batch::BatchView<'a>>, CdcError> {
        if !batch::is_batch(&entry.payload) {
            return Ok(None);
        }
        batch::effective(entry.id.term, &entry.payload).map_err(|source| CdcError::Batch {
            shard: self.shard,
            index: entry.id.index,
            source,
        })
    }

    /// Returns once an entry is synced here. Safe to drop.
    async fn wait_durable(&mut self, index: LogIndex) -> Result<(), CdcError> {
        let shard = self.shard;
        while self.origin.log().durable() < index {
            if let Some(at) = self.synced_at {
                let waited = boot_now().saturating_since(at);
                sleep(SYNC_PAUSE.saturating_sub(waited)).await;
            }
            self.synced_at = Some(boot_now());
            if index <= self.origin.log().durable() {
                break;
            }
            let (done, synced) = oneshot::channel();
            let callback = move |result: Result<(), LogError>| drop(done.send(result));
            self.origin.log().sync(Box::new(callback));
            match synced.await {
                Ok(Ok(())) => {}
                Ok(Err(source)) => return Err(CdcError::Log { shard, source }),
                Err(_) => return Err(CdcError::Stopped { shard }),
            }
        }
        Ok(())
    }
}

/// The revision before a batch.
fn before_first(view: &batch::BatchView<'_>) -> Revision {
    Revision::new(view.first_revision().get().saturating_sub(1))
}

/// The place before an entry, whoever led then.
fn before(id: LogId) -> LogId {
    LogId {
        term: id.term,
        index: LogIndex::new(id.index.get().saturating_sub(1)),
    }
}

/// A cursor for every shard at the oldest change that is kept.
pub(crate) async fn oldest(
    cluster: flux_types::ClusterId,
    origins: &[Arc<dyn Origin>],
) -> Result<Cursor, CdcError> {
    let mut cursor = Cursor::new(cluster);
    for origin in origins {
        let tail = Tail::at(Arc::clone(origin), Progress::default());
        let place = tail.oldest().await?.place();
        cursor.places.insert(tail.shard, place);
    }
    Ok(cursor)
}

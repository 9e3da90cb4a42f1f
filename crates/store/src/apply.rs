//! Taking a committed batch in: infallible, and atomic for each group of facts.
//!
//! Hot path: single facts are taken sixteen at a time; all their keys are hashed, then all their
//! buckets and entries asked for, and only then is anything touched, so that the processor waits
//! for memory once instead of sixteen times.
//!
//! Every fact is absolute, and an entry remembers the revision that made it: a fact that is not
//! newer than the entry it meets changes nothing. So a batch may be applied again, alone or with
//! all that follow it, and over a snapshot that has already seen some of them.

use std::sync::atomic::Ordering;

use flux_types::bug::{self, Bug};
use flux_types::{DeleteCause, Revision, UnixMillis};

use crate::batch::{BatchView, FactRef};
use crate::hash::{Hasher, KeyHash};
use crate::raw::{Entry, Parts};
use crate::store::{Dropped, LockedStripes, Store};
use crate::table::{Table, Totals};
use crate::wheel::{Item, stamp_of};

/// Facts hashed and asked for together.
pub(crate) const LOOKAHEAD: usize = 16;

/// What the applier carries from fact to fact.
#[derive(Debug, Default)]
pub(crate) struct Applier {
    /// Items for the wheel, added when no stripe is locked.
    items: Vec<Item>,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Counts {
    puts: u64,
    deletes: u64,
    expired: u64,
    evicted: u64,
}

/// A fact and what is known of its key.
#[derive(Clone, Copy)]
pub(crate) struct Ready<'a> {
    pub(crate) hash: KeyHash,
    pub(crate) key: &'a [u8],
    pub(crate) revision: Revision,
    pub(crate) fact: FactRef<'a>,
}

impl Store {
    /// Applies a committed batch. Infallible; looks at no clock. A batch that was applied before
    /// does no harm.
    ///
    /// # Panics
    /// Never for a batch from [`BatchView::parse`].
    pub fn apply(&self, batch: &BatchView<'_>) {
        let mut applier = self.applier.lock();
        if bug::is_on(Bug::ApplyOutOfOrder) && self.counters.puts.load(Ordering::Relaxed) % 2 == 1 {
            self.apply_backward(&mut applier, batch);
            return;
        }
        let mut pending: Vec<Ready<'_>> = Vec::with_capacity(LOOKAHEAD);
        let mut group: Vec<(Revision, FactRef<'_>)> = Vec::new();
        let mut facts = batch.facts();
        while let Some((revision, fact, more)) = facts.step() {
            if let Some(key) = fact.key()
                && !more
                && group.is_empty()
            {
                let hash = self.hash(key);
                self.prefetch(hash);
                pending.push(Ready {
                    hash,
                    key,
                    revision,
                    fact,
                });
                if pending.len() == LOOKAHEAD {
                    self.apply_singles(&mut applier, &mut pending);
                }
                continue;
            }
            group.push((revision, fact));
            if !more {
                self.apply_singles(&mut applier, &mut pending);
                self.apply_group(&mut applier, &group);
                group.clear();
            }
        }
        self.apply_singles(&mut applier, &mut pending);
        self.finish_batch(&mut applier, batch);
    }

    /// The facts of a batch in an order of its own ([`Bug::ApplyOutOfOrder`]).
    #[cold]
    fn apply_backward(&self, applier: &mut Applier, batch: &BatchView<'_>) {
        let mut facts = Vec::new();
        let mut steps = batch.facts();
        while let Some((revision, fact, _)) = steps.step() {
            facts.push((revision, fact));
        }
        for fact in facts.into_iter().rev() {
            self.apply_group(applier, &[fact]);
        }
        self.finish_batch(applier, batch);
    }

    /// The first facts of a batch, which is then applied whole ([`Bug::GroupNotAtomic`]). Whether
    /// there are more.
    #[cold]
    pub fn apply_partly(&self, batch: &BatchView<'_>, count: usize) -> bool {
        let mut applier = self.applier.lock();
        let mut steps = batch.facts();
        for _ in 0..count {
            let Some((revision, fact, _)) = steps.step() else {
                return false;
            };
            self.apply_group(&mut applier, &[(revision, fact)]);
        }
        steps.step().is_some()
    }

    fn apply_singles(&self, applier: &mut Applier, pending: &mut Vec<Ready<'_>>) {
        if pending.len() > 1 {
            for ready in &*pending {
                self.prefetch_entry(ready.hash);
            }
        }
        for ready in pending.drain(..) {
            let stripe = self.stripe(self.stripe_of(ready.hash));
            let mut table = stripe.lock();
            let before = table.totals();
            let replaced = change(&mut table, &ready, applier, &self.hasher);
            self.totals.adjust(before, table.totals());
            stripe.publish(&table);
            drop(table);
            drop(replaced);
        }
    }

    /// All facts of a group become visible together: all their stripes are locked first.
    fn apply_group(&self, applier: &mut Applier, group: &[(Revision, FactRef<'_>)]) {
        let mut ready = Vec::with_capacity(group.len());
        let mut clears = false;
        for (revision, fact) in group {
            if let Some(key) = fact.key() {
                let hash = self.hash(key);
                self.prefetch(hash);
                ready.push(Ready {
                    hash,
                    key,
                    revision: *revision,
                    fact: *fact,
                });
            } else if fact.is_system() {
                self.apply_system(*revision, fact);
            } else {
                clears = true;
            }
        }
        let mut locked = if clears {
            self.lock_all()
        } else {
            self.lock_stripes(ready.iter().map(|r| self.stripe_of(r.hash)).collect())
        };
        for ready in &ready {
            if let Some(table) = locked.table(self.stripe_of(ready.hash)) {
                table.prefetch_entries(ready.hash);
            }
        }
        let mut dropped = None;
        let mut replaced = Vec::new();
        let mut ready = ready.into_iter();
        let before = sum(&locked);
        for (revision, fact) in group {
            if *fact == FactRef::Clear {
                let is_repeated = *revision <= self.revision();
                dropped = Some(self.clear(*revision, is_repeated, &mut locked, applier));
            } else if fact.key().is_some()
                && let Some(ready) = ready.next()
                && let Some(table) = locked.table_mut(self.stripe_of(ready.hash))
            {
                replaced.extend(change(table, &ready, applier, &self.hasher));
            }
        }
        self.totals.adjust(before, sum(&locked));
        for (number, table) in locked.iter() {
            self.stripe(number).publish(table);
        }
        drop(locked);
        drop(replaced);
        if let Some(tables) = dropped {
            let wheel = std::mem::take(&mut *self.wheel.lock());
            self.reclaim(Dropped { tables, wheel });
        }
    }

    /// Empties the locked tables. A repeated Clear leaves what is newer.
    pub(crate) fn clear(
        &self,
        revision: Revision,
        is_repeated: bool,
        locked: &mut LockedStripes<'_>,
        applier: &mut Applier,
    ) -> Vec<Table> {
        applier.items.clear();
        let mut taken = Vec::new();
        for (_, table) in locked.iter_mut() {
            let mut old = std::mem::replace(table, Table::new(self.stripe_bits()));
            if is_repeated {
                old.drain(&mut |entry| {
                    if revision < entry.revision() {
                        applier.items.extend(item_of(&entry, &self.hasher));
                        table.insert(self.hasher.hash(entry.key()), entry, &self.hasher);
                    }
                });
            }
            taken.push(old);
        }
        taken
    }

    fn finish_batch(&self, applier: &mut Applier, batch: &BatchView<'_>) {
        self.settle(applier);
        self.advance(batch);
    }

    /// Lets the store's time and revision reach a batch's.
    pub(crate) fn advance(&self, batch: &BatchView<'_>) {
        self.revision
            .fetch_max(batch.last_revision().get(), Ordering::Release);
        self.last_batch_at
            .fetch_max(batch.at().get(), Ordering::Release);
    }

    /// Hands the wheel and the counters what an applier has gathered.
    pub(crate) fn settle(&self, applier: &mut Applier) {
        if !applier.items.is_empty() {
            let mut wheel = self.wheel.lock();
            let added = applier.items.len();
            for item in applier.items.drain(..) {
                wheel.add(item);
            }
            wheel.scrub(self.deadlines(), added, |item| self.item_is_current(item));
        }
        let counts = std::mem::take(&mut applier.counts);
        for (counter, count) in [
            (&self.counters.puts, counts.puts),
            (&self.counters.deletes, counts.deletes),
            (&self.counters.expired, counts.expired),
            (&self.counters.evicted, counts.evicted),
        ] {
            if count != 0 {
                counter.fetch_add(count, Ordering::Relaxed);
            }
        }
    }
}

pub(crate) fn sum(locked: &LockedStripes<'_>) -> Totals {
    let mut sum = Totals::default();
    for (_, table) in locked.iter() {
        sum.add(table.totals());
    }
    sum
}

/// The wheel's item for an entry as it is.
pub(crate) fn item_of(entry: &Entry, hasher: &Hasher) -> Option<Item> {
    Item::new(hasher.hash(entry.key()), entry.deadline()?, entry.stamp())
}

/// Makes one fact true in its key's table. Gives back an entry that was replaced or removed, to be
/// freed when the lock is gone.
#[inline]
pub(crate) fn change(
    table: &mut Table,
    ready: &Ready<'_>,
    applier: &mut Applier,
    hasher: &Hasher,
) -> Option<Entry> {
    let Ready {
        hash,
        key,
        revision,
        fact,
    } = *ready;
    match fact {
        FactRef::Put {
            value, deadline, ..
        } => {
            applier.counts.puts += 1;
            let parts = Parts {
                key,
                value,
                revision,
                deadline,
            };
            put(table, hash, parts, applier, hasher)
        }
        FactRef::Patch { offset, bytes, .. } => {
            applier.counts.puts += 1;
            patch(table, ready, offset as usize, bytes, hasher);
            None
        }
        FactRef::Delete { cause, .. } => {
            match cause {
                DeleteCause::Deleted => applier.counts.deletes += 1,
                DeleteCause::Expired => applier.counts.expired += 1,
                DeleteCause::Evicted => applier.counts.evicted += 1,
            }
            if revision <= table.get(hash, key)?.revision() {
                return None;
            }
            table.remove(hash, key, hasher)
        }
        FactRef::SetDeadline { deadline, .. } => {
            set_deadline(table, ready, deadline, applier);
            None
        }
        // These have no key, and never come here.
        FactRef::Clear
        | FactRef::SystemPut { .. }
        | FactRef::SystemDelete { .. }
        | FactRef::Request { .. }
        | FactRef::ForgetSessions { .. } => None,
    }
}

fn put(
    table: &mut Table,
    hash: KeyHash,
    parts: Parts<'_>,
    applier: &mut Applier,
    hasher: &Hasher,
) -> Option<Entry> {
    let Parts {
        key,
        value,
        revision,
        deadline,
    } = parts;
    let replaced = table.update(hash, key, |entry| {
        if revision <= entry.revision() {
            return None;
        }
        let stamp = stamp_for(entry, hash, deadline, revision, applier);
        let replaced = if entry.overwrite(value, revision, deadline) {
            None
        } else {
            Some(std::mem::replace(entry, Entry::new(parts)))
        };
        entry.set_stamp(stamp);
        replaced
    });
    if let Some(replaced) = replaced {
        return replaced;
    }
    let mut entry = Entry::new(parts);
    if let Some(deadline) = deadline {
        entry.set_stamp(stamp_of(revision));
        applier
            .items
            .extend(Item::new(hash, deadline, stamp_of(revision)));
    }
    table.insert(hash, entry, hasher);
    None
}

/// The stamp of an entry that is to have `deadline`: its present one if the deadline stays, for
/// then its item in the wheel stays good; else a new one, with an item.
fn stamp_for(
    entry: &Entry,
    hash: KeyHash,
    deadline: Option<UnixMillis>,
    revision: Revision,
    applier: &mut Applier,
) -> u32 {
    if entry.deadline() == deadline {
        return entry.stamp();
    }
    let stamp = stamp_of(revision);
    if let Some(deadline) = deadline {
        applier.items.extend(Item::new(hash, deadline, stamp));
    }
    stamp
}

fn patch(table: &mut Table, ready: &Ready<'_>, offset: usize, bytes: &[u8], hasher: &Hasher) {
    let revision = ready.revision;
    let updated = table.update(ready.hash, ready.key, |entry| {
        if entry.revision() < revision {
            entry.patch(offset, bytes, revision);
        }
    });
    if updated.is_none() {
        let mut entry = Entry::new(Parts {
            key: ready.key,
            value: &[],
            revision,
            deadline: None,
        });
        entry.patch(offset, bytes, revision);
        table.insert(ready.hash, entry, hasher);
    }
}

fn set_deadline(
    table: &mut Table,
    ready: &Ready<'_>,
    deadline: Option<UnixMillis>,
    applier: &mut Applier,
) {
    let revision = ready.revision;
    // An absent key stays absent.
    table.update(ready.hash, ready.key, |entry| {
        if entry.revision() < revision {
            let stamp = stamp_for(entry, ready.hash, deadline, revision, applier);
            entry.set_deadline(deadline, revision);
            entry.set_stamp(stamp);
        }
    });
}

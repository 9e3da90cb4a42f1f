//! Applying the log at a start: many batches, by several threads, before anyone reads.
//!
//! Facts about one key must stay in order; facts about different keys need not, while nobody looks.
//! So each thread goes through all batches and applies the facts of its own stripes. What remains
//! is what [`Store::apply`] of each batch in turn would have left.

use flux_types::Revision;

use crate::apply::{Applier, LOOKAHEAD, Ready, change, sum};
use crate::batch::BatchView;
use crate::store::{Dropped, Store};
use crate::table::Totals;
use crate::wheel::Wheel;

/// One thread's share of a replay. Every share must be given the same batches, in the same order;
/// until all have taken the last one, nothing else may read or change the store.
#[derive(Debug)]
pub struct Replayer<'s> {
    store: &'s Store,
    index: usize,
    count: usize,
    applier: Applier,
    /// Totals of the tables that were changed, before and after each change.
    before: Totals,
    after: Totals,
    /// Up to where this share's stripes have got.
    revision: Revision,
}

impl Store {
    /// The shares of a replay by `count` threads: at least one, at most one for each stripe.
    #[must_use]
    pub fn replayers(&self, count: usize) -> Vec<Replayer<'_>> {
        let count = count.clamp(1, self.stripes().len());
        let share = |index| Replayer {
            store: self,
            index,
            count,
            applier: Applier::default(),
            before: Totals::default(),
            after: Totals::default(),
            revision: self.revision(),
        };
        (0..count).map(share).collect()
    }
}

impl Replayer<'_> {
    /// Applies the facts of this share. Batches that do not count must have been left out.
    pub fn take(&mut self, batches: &[BatchView<'_>]) {
        let mut pending: Vec<Ready<'_>> = Vec::with_capacity(LOOKAHEAD);
        for batch in batches {
            let mut facts = batch.facts();
            while let Some((revision, fact, _)) = facts.step() {
                let Some(key) = fact.key() else {
                    if !fact.is_system() {
                        self.apply(&mut pending);
                        self.clear(revision);
                    } else if self.index == 0 {
                        self.store.apply_system(revision, &fact);
                    }
                    continue;
                };
                let hash = self.store.hash(key);
                if !self.owns(self.store.stripe_of(hash)) {
                    continue;
                }
                self.store.prefetch(hash);
                pending.push(Ready {
                    hash,
                    key,
                    revision,
                    fact,
                });
                if pending.len() == LOOKAHEAD {
                    self.apply(&mut pending);
                }
            }
            self.revision = self.revision.max(batch.last_revision());
        }
        self.apply(&mut pending);
        // Totals and counters have one writer at a time, and this lock says who.
        let _turn = self.store.applier.lock();
        let (before, after) = (
            std::mem::take(&mut self.before),
            std::mem::take(&mut self.after),
        );
        self.store.totals.adjust(before, after);
        self.store.settle(&mut self.applier);
        for batch in batches {
            self.store.advance(batch);
        }
    }

    fn apply(&mut self, pending: &mut Vec<Ready<'_>>) {
        for ready in &*pending {
            self.store.prefetch_entry(ready.hash);
        }
        for ready in pending.drain(..) {
            let stripe = self.store.stripe(self.store.stripe_of(ready.hash));
            let mut table = stripe.lock();
            self.before.add(table.totals());
            drop(change(
                &mut table,
                &ready,
                &mut self.applier,
                &self.store.hasher,
            ));
            self.after.add(table.totals());
            stripe.publish(&table);
        }
    }

    /// Whether a stripe is this share's: the stripes are dealt out in runs of equal length.
    const fn owns(&self, stripe: usize) -> bool {
        (stripe * self.count) >> self.store.stripe_bits() == self.index
    }

    /// A Clear of the stripes of this share. Items of cleared entries stay in the wheel, and are
    /// found stale there.
    fn clear(&mut self, revision: Revision) {
        let stripes = 0..self.store.stripes().len();
        let own = stripes.filter(|stripe| self.owns(*stripe)).collect();
        let mut locked = self.store.lock_stripes(own);
        self.before.add(sum(&locked));
        let is_repeated = revision <= self.revision;
        let tables = self
            .store
            .clear(revision, is_repeated, &mut locked, &mut self.applier);
        self.after.add(sum(&locked));
        for (number, table) in locked.iter() {
            self.store.stripe(number).publish(table);
        }
        drop(locked);
        let wheel = Wheel::default();
        self.store.reclaim(Dropped { tables, wheel });
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use flux_types::{DeleteCause, Term, UnixMillis};
    use proptest::prelude::*;

    use super::*;
    use crate::{BatchWriter, FactRef, StoreConfig};

    const START: u64 = 1_700_000_000_000;

    /// Batches of facts about few keys, grouped and not, drawn from numbers.
    fn batches(draws: &[Vec<(u8, u8, u16)>]) -> Vec<Bytes> {
        let mut revision = Revision::new(1);
        let mut out = Vec::new();
        for (at, draws) in (START..).zip(draws) {
            let mut writer = BatchWriter::new(Term::new(1), UnixMillis::new(at), revision);
            for (kind, key, number) in draws {
                let key = format!("key{}", key % 64);
                let (key, value) = (key.as_bytes(), number.to_le_bytes());
                let deadline = (number % 3 == 0).then(|| UnixMillis::new(at + u64::from(*number)));
                if number % 5 == 0 {
                    writer.begin_group();
                }
                revision = writer.push(match kind % 32 {
                    0..16 => FactRef::Put {
                        key,
                        value: &value,
                        deadline,
                    },
                    16..22 => FactRef::Delete {
                        key,
                        cause: DeleteCause::Deleted,
                    },
                    22..26 => FactRef::SetDeadline { key, deadline },
                    26 => FactRef::SystemPut {
                        name: key,
                        value: &value,
                    },
                    27 => FactRef::SystemDelete { name: key },
                    28..31 => FactRef::Patch {
                        key,
                        offset: u32::from(number % 40),
                        bytes: &value,
                    },
                    _ => FactRef::Clear,
                });
                revision = revision.next();
                if number % 7 == 0 {
                    writer.end_group();
                }
            }
            writer.end_group();
            out.extend(writer.finish());
        }
        out
    }

    fn store() -> Store {
        Store::new(StoreConfig {
            stripes: 16,
            ..StoreConfig::default()
        })
    }

    fn replay(store: &Store, batches: &[BatchView<'_>], count: usize, chunk: usize) {
        std::thread::scope(|scope| {
            for mut replayer in store.replayers(count) {
                scope.spawn(move || {
                    for batches in batches.chunks(chunk) {
                        replayer.take(batches);
                    }
                });
            }
        });
    }

    /// Everything of a store that does not depend on how it came about.
    fn state(store: &Store) -> impl PartialEq + std::fmt::Debug {
        let stats = store.stats();
        let mut due = store.due(UnixMillis::new(START + 100_000), usize::MAX);
        due.sort_unstable();
        due.dedup();
        (
            store.digest(),
            (store.revision(), store.last_batch_at()),
            (stats.keys, stats.keys_with_deadline, stats.entry_bytes),
            (stats.puts, stats.deletes),
            due,
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn shares_together_leave_what_applying_in_turn_leaves(
            draws: Vec<Vec<(u8, u8, u16)>>, count in 1..20_usize, chunk in 1..9_usize
        ) {
            let bytes = batches(&draws);
            let batches: Vec<BatchView<'_>> =
                bytes.iter().map(|bytes| BatchView::parse(bytes).unwrap()).collect();
            let plain = store();
            batches.iter().for_each(|batch| plain.apply(batch));
            let shared = store();
            replay(&shared, &batches, count, chunk);
            prop_assert_eq!(state(&shared), state(&plain));
            // Once more over what is already there, as over a snapshot that saw some of it.
            replay(&shared, &batches, count, chunk);
            prop_assert_eq!(shared.digest(), plain.digest());
        }
    }
}

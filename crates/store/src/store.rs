//! The store: stripes under their locks, and what is counted over all of them.
//!
//! Hot path: `get`. One hash, one uncontended lock, one bucket, one entry.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use flux_types::limits::{VALUE_BYTES_DEFAULT, VALUE_BYTES_MAX};
use flux_types::{Revision, Term, UnixMillis};
use parking_lot::{Mutex, MutexGuard};

use crate::apply::Applier;
use crate::evaluate::Evaluation;
use crate::hash::{Hasher, KeyHash};
use crate::raw::Entry;
use crate::requests::Requests;
use crate::system::System;
use crate::table::{Bucket, Table, Totals, prefetch_bucket};
use crate::wheel::Wheel;

/// Most stripes of one store.
const STRIPES_MAX: usize = 1 << 16;

/// How a store is built.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// Lock stripes; rounded up to a power of two, 1 to 65,536. Each costs about 320 bytes.
    pub stripes: usize,
    /// Seed of the hash: random and secret, or clients can choose keys that collide. Replicas may
    /// differ, but a scan's cursor is only good where the seed is the same.
    pub hash_seed: u64,
    /// Bytes of entries and tables above which writes that grow are refused; `None`: no limit.
    /// See [`Store::set_memory_bytes_max`].
    pub memory_bytes_max: Option<u64>,
    /// Longest value accepted, at most [`VALUE_BYTES_MAX`].
    pub value_bytes_max: usize,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            stripes: 256,
            hash_seed: 0,
            memory_bytes_max: None,
            value_bytes_max: VALUE_BYTES_DEFAULT,
        }
    }
}

/// One lock and its table, on cache lines of its own.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Stripe {
    table: Mutex<Table>,
    /// The table's buckets and mask, for prefetching without the lock. May be out of date: a
    /// prefetch of a freed address is wasted, not wrong.
    buckets: AtomicPtr<Bucket>,
    mask: AtomicUsize,
}

impl Stripe {
    fn new(table: Table) -> Self {
        let stripe = Self {
            buckets: AtomicPtr::new(std::ptr::null_mut()),
            mask: AtomicUsize::new(0),
            table: Mutex::new(table),
        };
        stripe.publish(&stripe.lock());
        stripe
    }

    #[inline]
    pub(crate) fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock()
    }

    /// Tells prefetchers where the buckets are now.
    #[inline]
    pub(crate) fn publish(&self, table: &Table) {
        let (base, mask) = table.hint();
        if self.mask.load(Ordering::Relaxed) != mask
            || self.buckets.load(Ordering::Relaxed).cast_const() != base
        {
            self.buckets.store(base.cast_mut(), Ordering::Relaxed);
            self.mask.store(mask, Ordering::Relaxed);
        }
    }
}

/// Counts over all stripes. Written by the applier alone, while it holds the stripes concerned,
/// so plain loads and stores are enough and nobody sees half of a group.
#[derive(Debug, Default)]
pub(crate) struct SharedTotals {
    len: AtomicU64,
    deadlines: AtomicU64,
    entry_bytes: AtomicU64,
    table_bytes: AtomicU64,
}

fn shift(total: &AtomicU64, before: u64, after: u64) {
    if before != after {
        let sum = total.load(Ordering::Relaxed).wrapping_add(after);
        total.store(sum.wrapping_sub(before), Ordering::Release);
    }
}

impl SharedTotals {
    pub(crate) fn adjust(&self, before: Totals, after: Totals) {
        shift(&self.len, before.len, after.len);
        shift(&self.deadlines, before.deadlines, after.deadlines);
        shift(&self.entry_bytes, before.entry_bytes, after.entry_bytes);
        shift(&self.table_bytes, before.table_bytes, after.table_bytes);
    }
}

/// Running counts since the store was made.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) puts: AtomicU64,
    pub(crate) deletes: AtomicU64,
    pub(crate) expired: AtomicU64,
    pub(crate) evicted: AtomicU64,
    pub(crate) expired_active: AtomicU64,
    pub(crate) expired_lazy: AtomicU64,
    pub(crate) refused_memory: AtomicU64,
}

/// Figures of a store. Counters run from its creation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Keys, including those past their deadline and not yet deleted.
    pub keys: u64,
    /// Keys with a deadline.
    pub keys_with_deadline: u64,
    /// Bytes of entries: header, key and value.
    pub entry_bytes: u64,
    /// Bytes of hash tables.
    pub table_bytes: u64,
    /// Bytes of the expiry index.
    pub expiry_index_bytes: u64,
    /// Put and patch facts applied.
    pub puts: u64,
    /// Delete facts applied whose cause is a client.
    pub deletes: u64,
    /// Delete facts applied whose cause is a passed deadline.
    pub expired: u64,
    /// Delete facts applied whose cause is want of memory.
    pub evicted: u64,
    /// Keys whose expiry was decided here by the sweeper.
    pub expired_active: u64,
    /// Keys whose expiry was decided here because a command met them.
    pub expired_lazy: u64,
    /// Writes refused here for want of memory.
    pub refused_memory: u64,
}

/// What [`Store::get`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup<'a> {
    /// No such key.
    Absent,
    /// A key whose deadline has passed and whose expiry is not yet committed: the command must go
    /// through the proposer.
    Expired,
    /// A key.
    Live(EntryRef<'a>),
}

/// A key's state, borrowed under its stripe's lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryRef<'a> {
    /// Its value.
    pub value: &'a [u8],
    /// The revision of the fact that last changed it.
    pub revision: Revision,
    /// When it expires, if ever.
    pub deadline: Option<UnixMillis>,
}

/// Tables that were swapped out. Dropping it frees their entries, which takes a while for
/// millions: see [`Store::set_reclaimer`].
#[derive(Debug)]
pub struct Dropped {
    pub(crate) tables: Vec<Table>,
    pub(crate) wheel: Wheel,
}

type Reclaimer = Box<dyn Fn(Dropped) + Send + Sync>;

/// One shard's data. Any number of readers, one applier; share it as `Arc<Store>`.
pub struct Store {
    pub(crate) config: StoreConfig,
    pub(crate) hasher: Hasher,
    stripe_bits: u32,
    stripes: Box<[Stripe]>,
    pub(crate) applier: Mutex<Applier>,
    pub(crate) wheel: Mutex<Wheel>,
    pub(crate) system: Mutex<System>,
    pub(crate) requests: Mutex<Requests>,
    pub(crate) totals: SharedTotals,
    pub(crate) counters: Counters,
    pub(crate) revision: AtomicU64,
    pub(crate) last_batch_at: AtomicU64,
    /// Counts installs; a walk that began before one must end.
    pub(crate) epoch: AtomicU64,
    /// See [`Self::set_memory_bytes_max`]; `u64::MAX`: no limit.
    memory_bytes_max: AtomicU64,
    /// State of the generator behind RANDOMKEY.
    random: AtomicU64,
    reclaimer: OnceLock<Reclaimer>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("keys", &self.len())
            .field("revision", &self.revision())
            .finish_non_exhaustive()
    }
}

impl Store {
    /// An empty store at revision 0.
    #[must_use]
    pub fn new(mut config: StoreConfig) -> Self {
        config.stripes = config.stripes.clamp(1, STRIPES_MAX).next_power_of_two();
        config.value_bytes_max = config.value_bytes_max.min(VALUE_BYTES_MAX);
        let stripe_bits = config.stripes.trailing_zeros();
        let stripes: Box<[Stripe]> =
            std::iter::repeat_with(|| Stripe::new(Table::new(stripe_bits)))
                .take(config.stripes)
                .collect();
        let totals = SharedTotals::default();
        for stripe in &stripes {
            totals.adjust(Totals::default(), stripe.lock().totals());
        }
        Self {
            hasher: Hasher::new(config.hash_seed),
            stripe_bits,
            stripes,
            applier: Mutex::new(Applier::default()),
            wheel: Mutex::new(Wheel::default()),
            system: Mutex::new(System::default()),
            requests: Mutex::new(Requests::default()),
            totals,
            counters: Counters::default(),
            revision: AtomicU64::new(0),
            last_batch_at: AtomicU64::new(0),
            epoch: AtomicU64::new(0),
            memory_bytes_max: AtomicU64::new(config.memory_bytes_max.unwrap_or(u64::MAX)),
            random: AtomicU64::new(config.hash_seed),
            reclaimer: OnceLock::new(),
            config,
        }
    }

    /// From the next batch on, refuses writes that grow above so many bytes of entries and tables.
    /// What is there stays. Replicas may differ: only who evaluates refuses.
    pub fn set_memory_bytes_max(&self, limit: Option<u64>) {
        self.memory_bytes_max
            .store(limit.unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(crate) fn memory_bytes_max(&self) -> u64 {
        self.memory_bytes_max.load(Ordering::Relaxed)
    }

    /// Where tables go that were swapped out by Clear or [`Self::install`]: for example to a
    /// thread that drops them. Without one they are dropped in place, outside all locks. Only the
    /// first call counts.
    pub fn set_reclaimer(&self, reclaimer: impl Fn(Dropped) + Send + Sync + 'static) {
        // A second reclaimer is refused by the cell; the first stays.
        drop(self.reclaimer.set(Box::new(reclaimer)));
    }

    pub(crate) fn reclaim(&self, dropped: Dropped) {
        match self.reclaimer.get() {
            Some(reclaimer) => reclaimer(dropped),
            None => drop(dropped),
        }
    }

    /// The configuration, with what was rounded.
    #[must_use]
    pub const fn config(&self) -> &StoreConfig {
        &self.config
    }

    /// The hash of a key, to be computed once and passed along.
    #[inline]
    #[must_use]
    pub fn hash(&self, key: &[u8]) -> KeyHash {
        self.hasher.hash(key)
    }

    /// Asks the processor for the bucket of a hash. First step of a batched execution.
    #[inline]
    pub fn prefetch(&self, hash: KeyHash) {
        let stripe = self.stripe(self.stripe_of(hash));
        let base = stripe.buckets.load(Ordering::Relaxed).cast_const();
        let mask = stripe.mask.load(Ordering::Relaxed);
        prefetch_bucket(base, mask, hash, self.stripe_bits);
    }

    /// Asks the processor for the entries that may be a hash's, once its bucket is near. Second
    /// step of a batched execution.
    #[inline]
    pub fn prefetch_entry(&self, hash: KeyHash) {
        self.lock_hash(hash).prefetch_entries(hash);
    }

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "the mask keeps 16 bits")]
    pub(crate) const fn stripe_of(&self, hash: KeyHash) -> usize {
        hash.get() as usize & (self.stripes.len() - 1)
    }

    #[inline]
    #[expect(
        clippy::indexing_slicing,
        reason = "numbers come from stripe_of, whose mask keeps them in range"
    )]
    pub(crate) const fn stripe(&self, index: usize) -> &Stripe {
        &self.stripes[index]
    }

    pub(crate) const fn stripes(&self) -> &[Stripe] {
        &self.stripes
    }

    pub(crate) const fn stripe_bits(&self) -> u32 {
        self.stripe_bits
    }

    #[inline]
    pub(crate) fn lock_hash(&self, hash: KeyHash) -> MutexGuard<'_, Table> {
        self.stripe(self.stripe_of(hash)).lock()
    }

    /// Locks the given stripes, in rising order.
    pub(crate) fn lock_stripes(&self, mut numbers: Vec<usize>) -> LockedStripes<'_> {
        numbers.sort_unstable();
        numbers.dedup();
        let tables = numbers
            .iter()
            .map(|number| self.stripe(*number).lock())
            .collect();
        LockedStripes { numbers, tables }
    }

    /// Locks every stripe, in rising order.
    pub(crate) fn lock_all(&self) -> LockedStripes<'_> {
        self.lock_stripes((0..self.stripes.len()).collect())
    }

    /// Looks a key up and hands what is there to `found`, under the stripe's lock: it must be
    /// quick and must not call the store.
    #[inline]
    pub fn get<R>(&self, key: &[u8], now: UnixMillis, found: impl FnOnce(Lookup<'_>) -> R) -> R {
        self.get_hashed(self.hash(key), key, now, found)
    }

    /// [`Self::get`] for a key whose hash is known.
    #[inline]
    pub fn get_hashed<R>(
        &self,
        hash: KeyHash,
        key: &[u8],
        now: UnixMillis,
        found: impl FnOnce(Lookup<'_>) -> R,
    ) -> R {
        let table = self.lock_hash(hash);
        found(lookup(table.get(hash, key), now))
    }

    /// Starts evaluating a batch for the leader of `term`, at a time that is not before
    /// [`Self::last_batch_at`]. No batch may be applied while it lives.
    #[must_use]
    pub fn evaluation(&self, at: UnixMillis, term: Term) -> Evaluation<'_> {
        Evaluation::new(self, at.max(self.last_batch_at()), term)
    }

    /// The revision of the last fact applied; 0 if none was.
    #[must_use]
    pub fn revision(&self) -> Revision {
        Revision::new(self.revision.load(Ordering::Acquire))
    }

    /// The time of the last batch applied: the floor of the shard's expiry clock.
    #[must_use]
    pub fn last_batch_at(&self) -> UnixMillis {
        UnixMillis::new(self.last_batch_at.load(Ordering::Acquire))
    }

    /// Number of keys, counting those past their deadline and not yet deleted, as DBSIZE does.
    #[must_use]
    pub fn len(&self) -> usize {
        usize::try_from(self.totals.len.load(Ordering::Acquire)).unwrap_or(usize::MAX)
    }

    /// Whether there are no keys.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of keys with a deadline.
    #[must_use]
    pub fn deadlines(&self) -> usize {
        usize::try_from(self.totals.deadlines.load(Ordering::Acquire)).unwrap_or(usize::MAX)
    }

    /// Bytes of entries and tables, as allocated (without the allocator's own overhead). What is
    /// kept of requests has a limit of its own.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.totals.entry_bytes.load(Ordering::Acquire)
            + self.totals.table_bytes.load(Ordering::Acquire)
    }

    /// What a snapshot of this store would take on disk, at most.
    #[must_use]
    pub fn snapshot_bytes_at_most(&self) -> u64 {
        /// A snapshot spells sizes out that an entry packs into its head.
        const ENTRY_EXTRA: u64 = 8;
        /// What a snapshot needs besides its entries: headers, footer, a part of a page.
        const AROUND: u64 = 64 * 1024;
        let entries = self.totals.entry_bytes.load(Ordering::Acquire);
        let bytes = entries + self.totals.len.load(Ordering::Acquire) * ENTRY_EXTRA;
        let bytes = bytes + self.request_bytes() as u64;
        // Headers of blocks are a two-thousandth.
        bytes + bytes / 1024 + AROUND
    }

    /// All figures.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let counters = &self.counters;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            keys: count(&self.totals.len),
            keys_with_deadline: count(&self.totals.deadlines),
            entry_bytes: count(&self.totals.entry_bytes),
            table_bytes: count(&self.totals.table_bytes),
            expiry_index_bytes: self.wheel.lock().bytes() as u64,
            puts: count(&counters.puts),
            deletes: count(&counters.deletes),
            expired: count(&counters.expired),
            evicted: count(&counters.evicted),
            expired_active: count(&counters.expired_active),
            expired_lazy: count(&counters.expired_lazy),
            refused_memory: count(&counters.refused_memory),
        }
    }

    /// The next number of a generator that is seeded with the hash (splitmix64). Only replies of
    /// RANDOMKEY depend on it, never facts.
    pub(crate) fn next_random(&self) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let state = self
            .random
            .fetch_add(STEP, Ordering::Relaxed)
            .wrapping_add(STEP);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// Several stripes under lock.
pub(crate) struct LockedStripes<'a> {
    numbers: Vec<usize>,
    tables: Vec<MutexGuard<'a, Table>>,
}

impl LockedStripes<'_> {
    /// The table of a stripe that is among the locked ones.
    pub(crate) fn table(&self, number: usize) -> Option<&Table> {
        let index = self.numbers.binary_search(&number).ok()?;
        self.tables.get(index).map(|guard| &**guard)
    }

    /// As [`Self::table`], to change it.
    pub(crate) fn table_mut(&mut self, number: usize) -> Option<&mut Table> {
        let index = self.numbers.binary_search(&number).ok()?;
        self.tables.get_mut(index).map(|guard| &mut **guard)
    }

    /// The locked tables, by rising stripe number.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, &Table)> {
        let tables = self.tables.iter().map(|guard| &**guard);
        self.numbers.iter().copied().zip(tables)
    }

    /// As [`Self::iter`], to change them.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (usize, &mut Table)> {
        let tables = self.tables.iter_mut().map(|guard| &mut **guard);
        self.numbers.iter().copied().zip(tables)
    }
}

/// Whether a deadline has passed: a key lives while `now < deadline`.
#[inline]
pub(crate) fn is_past(deadline: Option<UnixMillis>, now: UnixMillis) -> bool {
    deadline.is_some_and(|deadline| deadline <= now)
}

#[inline]
pub(crate) fn lookup(entry: Option<&Entry>, now: UnixMillis) -> Lookup<'_> {
    match entry {
        None => Lookup::Absent,
        Some(entry) if is_past(entry.deadline(), now) => Lookup::Expired,
        Some(entry) => Lookup::Live(EntryRef {
            value: entry.value(),
            revision: entry.revision(),
            deadline: entry.deadline(),
        }),
    }
}

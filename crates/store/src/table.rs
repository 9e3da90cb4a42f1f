//! One stripe's hash table: cache-line buckets of seven thin pointers, and what spills over.
//!
//! Hot path: one line to find the bucket, one to reach the entry. A key's place follows from one
//! 64-bit hash: the lowest bits choose the stripe, the next bits the bucket, the top seven the tag
//! that filters slots before any entry is touched.
//!
//! **Order.** The *position* of a key is its hash with the bits reversed. It never changes, while
//! buckets double and halve; since a bucket holds the keys whose hash ends in the bucket's bits,
//! it holds a contiguous range of positions, whatever the table's size. Scans, snapshot walks and
//! cursors therefore go by position: everything before the cursor has been visited, everything at
//! or after it has not, and resizing changes nothing about either. (Redis gets its guarantee from
//! the same reversal, but its cursor is a bucket and repeats keys when tables shrink; hashbrown's
//! iteration order does not survive growth at all, which is why the table is our own.)
//!
//! A bucket that is full spills into a small side table keyed by the bucket's number: at the
//! density where tables double, one entry in fifteen.

use hashbrown::HashTable;

use crate::hash::{Hasher, KeyHash};
use crate::raw::{Entry, prefetch};

const SLOTS: usize = 7;
/// The flag byte of a bucket: set while some of its entries are in the side table.
const SPILL: usize = 7;
const LOW: u64 = 0x0101_0101_0101_0101;
/// The high bit of each tag byte; not of the flag byte.
const HIGH: u64 = 0x0080_8080_8080_8080;

#[repr(align(64))]
#[derive(Default)]
pub(crate) struct Bucket {
    /// Seven tags (0 = free, else the high bit is set) and the spill flag.
    tags: [u8; 8],
    slots: [Option<Entry>; SLOTS],
}

const _: () = assert!(size_of::<Bucket>() == 64);

impl Bucket {
    /// One bit (the high bit of byte i) for each slot i whose tag is `tag`; now and then one too
    /// many, so the key is always compared.
    #[inline]
    const fn matches(&self, tag: u8) -> u64 {
        let x = u64::from_le_bytes(self.tags) ^ (LOW * tag as u64);
        x.wrapping_sub(LOW) & !x & HIGH
    }

    const fn spilled(&self) -> bool {
        self.tags[SPILL] != 0
    }

    fn free_slot(&self) -> Option<usize> {
        self.slots.iter().position(Option::is_none)
    }

    fn put(&mut self, index: usize, tag: u8, entry: Entry) {
        if let (Some(slot), Some(mark)) = (self.slots.get_mut(index), self.tags.get_mut(index)) {
            debug_assert!(slot.is_none());
            *slot = Some(entry);
            *mark = tag;
        }
    }
}

struct Spilled {
    bucket: usize,
    entry: Entry,
}

/// Where an entry is.
#[derive(Clone, Copy)]
enum Place {
    Slot(usize, usize),
    Spill(usize),
}

/// One stripe's table with its totals.
pub(crate) struct Table {
    buckets: Box<[Bucket]>,
    spill: HashTable<Spilled>,
    stripe_bits: u32,
    len: usize,
    deadlines: usize,
    entry_bytes: u64,
    table_bytes: u64,
}

/// What a table holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    /// Entries, expired ones included.
    pub(crate) len: u64,
    /// Entries with a deadline.
    pub(crate) deadlines: u64,
    /// Bytes of all entries.
    pub(crate) entry_bytes: u64,
    /// Bytes of buckets and side table.
    pub(crate) table_bytes: u64,
}

impl Totals {
    pub(crate) const fn add(&mut self, other: Self) {
        self.len += other.len;
        self.deadlines += other.deadlines;
        self.entry_bytes += other.entry_bytes;
        self.table_bytes += other.table_bytes;
    }
}

/// Mixes a bucket number for the side table.
const fn spread(bucket: usize) -> u64 {
    (bucket as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn new_buckets(count: usize) -> Box<[Bucket]> {
    std::iter::repeat_with(Bucket::default)
        .take(count)
        .collect()
}

impl Table {
    /// An empty table of a store with `1 << stripe_bits` stripes.
    pub(crate) fn new(stripe_bits: u32) -> Self {
        Self {
            buckets: new_buckets(1),
            spill: HashTable::new(),
            stripe_bits,
            len: 0,
            deadlines: 0,
            entry_bytes: 0,
            table_bytes: size_of::<Bucket>() as u64,
        }
    }

    /// What the table holds.
    #[inline]
    pub(crate) const fn totals(&self) -> Totals {
        Totals {
            len: self.len as u64,
            deadlines: self.deadlines as u64,
            entry_bytes: self.entry_bytes,
            table_bytes: self.table_bytes,
        }
    }

    fn refresh_table_bytes(&mut self) {
        self.table_bytes =
            (self.buckets.len() * size_of::<Bucket>() + self.spill.allocation_size()) as u64;
    }

    /// The address of the first bucket and the mask of bucket numbers, for prefetching without
    /// the lock.
    pub(crate) const fn hint(&self) -> (*const Bucket, usize) {
        (self.buckets.as_ptr(), self.buckets.len() - 1)
    }

    #[inline]
    const fn bucket_of(&self, hash: KeyHash) -> usize {
        bucket_of(hash, self.stripe_bits, self.buckets.len() - 1)
    }

    #[inline]
    fn find(&self, hash: KeyHash, key: &[u8]) -> Option<Place> {
        let index = self.bucket_of(hash);
        let bucket = self.buckets.get(index)?;
        let mut matches = bucket.matches(hash.tag());
        while matches != 0 {
            let slot = (matches.trailing_zeros() / 8) as usize;
            if let Some(Some(entry)) = bucket.slots.get(slot)
                && entry.key() == key
            {
                return Some(Place::Slot(index, slot));
            }
            matches &= matches - 1;
        }
        if bucket.spilled() {
            return self
                .spill
                .find_bucket_index(spread(index), |spilled| {
                    spilled.bucket == index && spilled.entry.key() == key
                })
                .map(Place::Spill);
        }
        None
    }

    /// The entry of a key.
    #[inline]
    pub(crate) fn get(&self, hash: KeyHash, key: &[u8]) -> Option<&Entry> {
        match self.find(hash, key)? {
            Place::Slot(bucket, slot) => self.buckets.get(bucket)?.slots.get(slot)?.as_ref(),
            Place::Spill(index) => self.spill.get_bucket(index).map(|spilled| &spilled.entry),
        }
    }

    fn get_mut(&mut self, hash: KeyHash, key: &[u8]) -> Option<&mut Entry> {
        match self.find(hash, key)? {
            Place::Slot(bucket, slot) => {
                self.buckets.get_mut(bucket)?.slots.get_mut(slot)?.as_mut()
            }
            Place::Spill(index) => self
                .spill
                .get_bucket_mut(index)
                .map(|spilled| &mut spilled.entry),
        }
    }

    /// Asks for the first lines of all entries that may be `hash`'s.
    #[inline]
    pub(crate) fn prefetch_entries(&self, hash: KeyHash) {
        let Some(bucket) = self.buckets.get(self.bucket_of(hash)) else {
            return;
        };
        let mut matches = bucket.matches(hash.tag());
        while matches != 0 {
            let slot = (matches.trailing_zeros() / 8) as usize;
            if let Some(Some(entry)) = bucket.slots.get(slot) {
                entry.prefetch();
            }
            matches &= matches - 1;
        }
    }

    /// Changes the entry of a key through `change` and keeps the totals right; `None` if the key
    /// is absent. The closure may replace the entry, and may not change its key.
    pub(crate) fn update<R>(
        &mut self,
        hash: KeyHash,
        key: &[u8],
        change: impl FnOnce(&mut Entry) -> R,
    ) -> Option<R> {
        let entry = self.get_mut(hash, key)?;
        let (bytes, deadline) = (entry.bytes() as u64, entry.deadline().is_some());
        let result = change(entry);
        let (new_bytes, new_deadline) = (entry.bytes() as u64, entry.deadline().is_some());
        debug_assert!(entry.key() == key);
        self.entry_bytes = self.entry_bytes - bytes + new_bytes;
        self.deadlines = self.deadlines - usize::from(deadline) + usize::from(new_deadline);
        Some(result)
    }

    /// Adds an entry whose key is absent.
    pub(crate) fn insert(&mut self, hash: KeyHash, entry: Entry, hasher: &Hasher) {
        debug_assert!(self.get(hash, entry.key()).is_none());
        if (self.len + 1) * 4 > self.buckets.len() * 21 {
            self.resize(self.buckets.len() * 2, hasher);
        }
        self.len += 1;
        self.entry_bytes += entry.bytes() as u64;
        self.deadlines += usize::from(entry.deadline().is_some());
        self.place(hash, entry);
    }

    fn place(&mut self, hash: KeyHash, entry: Entry) {
        let index = self.bucket_of(hash);
        let Some(bucket) = self.buckets.get_mut(index) else {
            return;
        };
        if let Some(slot) = bucket.free_slot() {
            bucket.put(slot, hash.tag(), entry);
            return;
        }
        bucket.tags[SPILL] = 1;
        let spilled = Spilled {
            bucket: index,
            entry,
        };
        self.spill
            .insert_unique(spread(index), spilled, |other| spread(other.bucket));
        self.refresh_table_bytes();
    }

    /// Takes a key's entry out.
    pub(crate) fn remove(&mut self, hash: KeyHash, key: &[u8], hasher: &Hasher) -> Option<Entry> {
        let entry = match self.find(hash, key)? {
            Place::Slot(index, slot) => self.remove_slot(index, slot, hasher)?,
            Place::Spill(index) => {
                let spilled = self.spill.get_bucket_entry(index).ok()?.remove().0;
                self.refresh_spill_flag(spilled.bucket);
                spilled.entry
            }
        };
        self.len -= 1;
        self.entry_bytes -= entry.bytes() as u64;
        self.deadlines -= usize::from(entry.deadline().is_some());
        if self.buckets.len() > 1 && self.len < self.buckets.len() {
            self.resize(self.buckets.len() / 2, hasher);
        }
        Some(entry)
    }

    fn remove_slot(&mut self, index: usize, slot: usize, hasher: &Hasher) -> Option<Entry> {
        let bucket = self.buckets.get_mut(index)?;
        let entry = bucket.slots.get_mut(slot)?.take()?;
        *bucket.tags.get_mut(slot)? = 0;
        if bucket.spilled() {
            // A spilled entry moves home, so that the side table stays small.
            if let Ok(home) = self
                .spill
                .find_entry(spread(index), |spilled| spilled.bucket == index)
            {
                let (spilled, _) = home.remove();
                let tag = hasher.hash(spilled.entry.key()).tag();
                bucket.put(slot, tag, spilled.entry);
            }
            self.refresh_spill_flag(index);
        }
        Some(entry)
    }

    fn refresh_spill_flag(&mut self, index: usize) {
        let still = self
            .spill
            .find(spread(index), |spilled| spilled.bucket == index)
            .is_some();
        if let Some(bucket) = self.buckets.get_mut(index) {
            bucket.tags[SPILL] = u8::from(still);
        }
    }

    /// Rebuilds with `count` buckets, a power of two. One stripe pauses, the others do not.
    fn resize(&mut self, count: usize, hasher: &Hasher) {
        debug_assert!(count.is_power_of_two());
        let mut old = std::mem::replace(&mut self.buckets, new_buckets(count));
        let mut spill = std::mem::take(&mut self.spill);
        for index in 0..old.len() {
            // Rehashing reads every key: ask for the entries of the bucket after the next.
            if let Some(ahead) = old.get(index + 2) {
                ahead.slots.iter().flatten().for_each(Entry::prefetch);
            }
            let Some(bucket) = old.get_mut(index) else {
                break;
            };
            for entry in std::mem::take(&mut bucket.slots).into_iter().flatten() {
                self.place(hasher.hash(entry.key()), entry);
            }
        }
        for spilled in spill.drain() {
            self.place(hasher.hash(spilled.entry.key()), spilled.entry);
        }
        self.refresh_table_bytes();
    }

    /// Visits all entries of the bucket that holds `position`, from that position on, and gives
    /// back the first position after the bucket (`None` past the end of the stripe).
    pub(crate) fn visit_bucket<'a>(
        &'a self,
        position: u64,
        hasher: &Hasher,
        visit: &mut dyn FnMut(u64, &'a Entry),
    ) -> Option<u64> {
        let width = self.stripe_bits + (self.buckets.len() - 1).count_ones();
        let hash = KeyHash::from_position(position);
        let index = self.bucket_of(hash);
        let bucket = self.buckets.get(index)?;
        let mut show = |entry: &'a Entry| {
            let at = hasher.hash(entry.key()).position();
            if position <= at {
                visit(at, entry);
            }
        };
        bucket.slots.iter().flatten().for_each(&mut show);
        if bucket.spilled() {
            self.spill
                .iter_hash(spread(index))
                .filter(|spilled| spilled.bucket == index)
                .for_each(|spilled| show(&spilled.entry));
        }
        next_boundary(position, width, self.stripe_bits)
    }

    /// Takes out the entries that are picked; the others stay where they are.
    pub(crate) fn extract(&mut self, picks: &dyn Fn(&[u8]) -> bool, hasher: &Hasher) -> Vec<Entry> {
        let mut gone = Vec::new();
        for index in 0..self.buckets.len() {
            // Picking reads every key: ask for the entries of the bucket after the next.
            if let Some(ahead) = self.buckets.get(index + 2) {
                ahead.slots.iter().flatten().for_each(Entry::prefetch);
            }
            let Some(bucket) = self.buckets.get_mut(index) else {
                break;
            };
            for (slot, tag) in bucket.slots.iter_mut().zip(&mut bucket.tags) {
                if let Some(entry) = slot.take_if(|entry| picks(entry.key())) {
                    gone.push(entry);
                    *tag = 0;
                }
            }
            bucket.tags[SPILL] = 0;
        }
        // What stays of the side table may find a place at home now.
        for spilled in std::mem::take(&mut self.spill).drain() {
            if picks(spilled.entry.key()) {
                gone.push(spilled.entry);
            } else {
                self.place(hasher.hash(spilled.entry.key()), spilled.entry);
            }
        }
        self.len -= gone.len();
        self.entry_bytes -= gone.iter().map(|entry| entry.bytes() as u64).sum::<u64>();
        self.deadlines -= gone
            .iter()
            .filter(|entry| entry.deadline().is_some())
            .count();
        if self.buckets.len() > 1 && self.len < self.buckets.len() {
            let count = self.len.next_power_of_two().max(2) / 2;
            self.resize(count.min(self.buckets.len()), hasher);
        }
        self.refresh_table_bytes();
        gone
    }

    /// Takes every entry out.
    pub(crate) fn drain(&mut self, take: &mut dyn FnMut(Entry)) {
        let mut old = std::mem::replace(self, Self::new(self.stripe_bits));
        for bucket in &mut old.buckets {
            for slot in &mut bucket.slots {
                slot.take().into_iter().for_each(&mut *take);
            }
        }
        for spilled in old.spill.drain() {
            take(spilled.entry);
        }
    }

    /// Visits every entry, in no particular order.
    pub(crate) fn for_each(&self, visit: &mut dyn FnMut(&Entry)) {
        for bucket in &self.buckets {
            bucket.slots.iter().flatten().for_each(&mut *visit);
        }
        self.spill.iter().for_each(|spilled| visit(&spilled.entry));
    }

    /// Visits the live-deadline candidates of a hash: entries whose whole hash is `hash`.
    pub(crate) fn for_each_of_hash(
        &self,
        hash: KeyHash,
        hasher: &Hasher,
        visit: &mut dyn FnMut(&Entry),
    ) {
        let index = self.bucket_of(hash);
        let Some(bucket) = self.buckets.get(index) else {
            return;
        };
        let mut matches = bucket.matches(hash.tag());
        while matches != 0 {
            let slot = (matches.trailing_zeros() / 8) as usize;
            if let Some(Some(entry)) = bucket.slots.get(slot)
                && hasher.hash(entry.key()) == hash
            {
                visit(entry);
            }
            matches &= matches - 1;
        }
        if bucket.spilled() {
            self.spill
                .iter_hash(spread(index))
                .filter(|spilled| {
                    spilled.bucket == index && hasher.hash(spilled.entry.key()) == hash
                })
                .for_each(|spilled| visit(&spilled.entry));
        }
    }
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Table")
            .field("len", &self.len)
            .field("buckets", &self.buckets.len())
            .field("spilled", &self.spill.len())
            .finish_non_exhaustive()
    }
}

/// The number of the bucket that holds `hash`.
#[inline]
const fn bucket_of(hash: KeyHash, stripe_bits: u32, mask: usize) -> usize {
    #[expect(clippy::cast_possible_truncation, reason = "the mask keeps what fits")]
    let shifted = (hash.get() >> stripe_bits) as usize;
    shifted & mask
}

/// Asks for the bucket line of `hash`, given a [`Table::hint`] that may be out of date.
#[inline]
pub(crate) fn prefetch_bucket(base: *const Bucket, mask: usize, hash: KeyHash, stripe_bits: u32) {
    prefetch(
        base.wrapping_add(bucket_of(hash, stripe_bits, mask))
            .cast::<u8>(),
    );
}

/// The first position after the bucket of `position`, in a table whose buckets are told apart by
/// the top `width` bits; `None` if that is in another stripe.
const fn next_boundary(position: u64, width: u32, stripe_bits: u32) -> Option<u64> {
    if width == 0 {
        return None;
    }
    let shift = u64::BITS - width;
    let next = (position >> shift) + 1;
    let in_stripe = width - stripe_bits;
    if next & ((1 << in_stripe) - 1) == 0 {
        return None;
    }
    Some(next << shift)
}

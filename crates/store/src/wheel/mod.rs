//! The expiry index: a hierarchical timing wheel over the keys that have a deadline.
//!
//! Four levels of 256, 64, 64 and 64 slots with a tick of 1 ms reach 18.6 hours ahead; what is
//! later waits in an overflow map by stretches of that length. An item is 16 bytes (hash, and
//! deadline with a stamp) and is never searched for: changing a deadline adds an item and leaves
//! the old one behind as *stale*, which is noticed when it fires, or sooner by the scrub. Keys
//! without deadline cost nothing here.
//!
//! The wheel knows no keys and no table. Whoever asks passes a check that says whether an item
//! still stands for a key's present deadline.

use std::collections::{BTreeMap, VecDeque};

use flux_types::{Revision, UnixMillis};

use crate::hash::KeyHash;
use crate::raw::STAMP_BITS;

#[cfg(test)]
mod tests;

/// First bit and slot count of each level.
const LEVELS: [(u32, usize); 4] = [(0, 256), (8, 64), (14, 64), (20, 64)];
/// Bits of a deadline that the levels tell apart.
const REACH_BITS: u32 = 26;
/// Deadlines from here on (the year 144,000) never fire.
const DEADLINE_END: u64 = 1 << (u64::BITS - STAMP_BITS);
/// Stale items that are tolerated besides as many as there are live ones.
const SLACK: usize = 1024;
/// Items looked at for each one added, while there are too many stale ones. More than two, so
/// that the scrub gains on whoever makes them.
const SCRUB_STEP: usize = 4;

/// One promise to look at a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Item {
    /// Deadline in the high bits, stamp in the low ones, so that items sort by deadline.
    due: u64,
    hash: u64,
}

impl Item {
    /// An item for a key whose deadline was set by the fact with `revision`; `None` if the
    /// deadline is beyond all time.
    pub(crate) const fn new(hash: KeyHash, deadline: UnixMillis, stamp: u32) -> Option<Self> {
        if deadline.get() >= DEADLINE_END {
            return None;
        }
        Some(Self {
            due: (deadline.get() << STAMP_BITS) | (stamp as u64 & ((1 << STAMP_BITS) - 1)),
            hash: hash.get(),
        })
    }

    pub(crate) const fn hash(self) -> KeyHash {
        KeyHash::from_raw(self.hash)
    }

    const fn tick(self) -> u64 {
        self.due >> STAMP_BITS
    }

    pub(crate) const fn deadline(self) -> UnixMillis {
        UnixMillis::new(self.tick())
    }

    pub(crate) const fn stamp(self) -> u32 {
        (self.due & ((1 << STAMP_BITS) - 1)) as u32
    }
}

/// The stamp of a deadline set by the fact with this revision: enough to tell apart the items of
/// one key that is given the same deadline again and again.
pub(crate) const fn stamp_of(revision: Revision) -> u32 {
    (revision.get() & ((1 << STAMP_BITS) - 1)) as u32
}

/// The wheel.
#[derive(Debug)]
pub(crate) struct Wheel {
    /// Slots of all levels, one after the other. An item of level l lies in the slot named by its
    /// deadline's bits of that level; all higher bits are those of `now`, and the slot is later
    /// than `now`'s.
    slots: Vec<Vec<Item>>,
    /// One bit for each slot that has items.
    occupied: [[u64; 4]; 4],
    overflow: BTreeMap<u64, Vec<Item>>,
    /// Items whose deadline is not after `now`, in order of firing.
    ripe: VecDeque<Item>,
    now: u64,
    len: usize,
    scrub: Scrub,
}

impl Default for Wheel {
    fn default() -> Self {
        let count = LEVELS.iter().map(|level| level.1).sum();
        Self {
            slots: std::iter::repeat_with(Vec::new).take(count).collect(),
            occupied: [[0; 4]; 4],
            overflow: BTreeMap::new(),
            ripe: VecDeque::new(),
            now: 0,
            len: 0,
            scrub: Scrub::default(),
        }
    }
}

/// Where the scrub goes on.
#[derive(Clone, Copy, Debug, Default)]
struct Scrub {
    /// The slot; past the last one, the overflow.
    slot: usize,
    /// The stretch of the overflow.
    stretch: u64,
    /// The item there.
    index: usize,
}

/// First slot of a level in `slots`.
const fn base(level: usize) -> usize {
    match level {
        0 => 0,
        1 => 256,
        2 => 320,
        _ => 384,
    }
}

impl Wheel {
    /// Items, stale ones included.
    #[cfg(test)]
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// Bytes held by items.
    pub(crate) const fn bytes(&self) -> usize {
        self.len * size_of::<Item>()
    }

    /// Adds an item; O(1).
    pub(crate) fn add(&mut self, item: Item) {
        self.len += 1;
        self.place(item);
    }

    fn place(&mut self, item: Item) {
        let tick = item.tick();
        if tick <= self.now {
            self.ripe.push_back(item);
            return;
        }
        let differing = u64::BITS - (tick ^ self.now).leading_zeros();
        let level = match differing {
            0..=8 => 0,
            9..=14 => 1,
            15..=20 => 2,
            21..=REACH_BITS => 3,
            _ => {
                self.overflow
                    .entry(tick >> REACH_BITS)
                    .or_default()
                    .push(item);
                return;
            }
        };
        let slot = slot_index(tick, level);
        if let Some(items) = self.slots.get_mut(base(level) + slot) {
            items.push(item);
        }
        self.mark(level, slot, true);
    }

    fn mark(&mut self, level: usize, slot: usize, occupied: bool) {
        if let Some(word) = self
            .occupied
            .get_mut(level)
            .and_then(|words| words.get_mut(slot / 64))
        {
            let bit = 1_u64 << (slot % 64);
            *word = if occupied { *word | bit } else { *word & !bit };
        }
    }

    /// The earliest tick at which something must be done: an item fires, or moves a level down.
    /// Items of a lower level are all earlier than those of a higher one.
    fn next_event(&self) -> Option<(u64, Event)> {
        for (level, (words, (shift, count))) in self.occupied.iter().zip(LEVELS).enumerate() {
            for (index, word) in words.iter().enumerate() {
                if *word != 0 {
                    let slot = index * 64 + word.trailing_zeros() as usize;
                    let span = shift + count.trailing_zeros();
                    let start = (self.now >> span << span) | ((slot as u64) << shift);
                    return Some((start, Event::Slot(level, slot)));
                }
            }
        }
        let (stretch, _) = self.overflow.first_key_value()?;
        Some((stretch << REACH_BITS, Event::Overflow(*stretch)))
    }

    /// Moves time to `to`; items that become due are then ripe. Costs the events on the way, not
    /// the ticks.
    pub(crate) fn advance(&mut self, to: u64) {
        while let Some((tick, event)) = self.next_event() {
            if to < tick {
                break;
            }
            // A slot emptied by the scrub and filled again may lie at or before now.
            self.now = self.now.max(tick);
            let items = match event {
                Event::Slot(level, slot) => {
                    self.mark(level, slot, false);
                    self.slots
                        .get_mut(base(level) + slot)
                        .map(std::mem::take)
                        .unwrap_or_default()
                }
                Event::Overflow(stretch) => self.overflow.remove(&stretch).unwrap_or_default(),
            };
            for item in items {
                self.place(item);
            }
        }
        self.now = self.now.max(to);
    }

    /// The items that are due at `now` and pass `check`, oldest first, at most `limit` of them.
    /// They stay, and are given again until `check` refuses them; refused ones are forgotten.
    pub(crate) fn due(
        &mut self,
        now: UnixMillis,
        limit: usize,
        mut check: impl FnMut(Item) -> bool,
    ) -> Vec<Item> {
        self.advance(now.get().min(DEADLINE_END - 1));
        let mut found = Vec::new();
        while found.len() < limit {
            let Some(item) = self.ripe.pop_front() else {
                break;
            };
            if check(item) {
                found.push(item);
            } else {
                self.len -= 1;
            }
        }
        for item in found.iter().rev() {
            self.ripe.push_front(*item);
        }
        found
    }

    /// When to look again: not later than the next deadline, now and then earlier.
    pub(crate) fn next_due(&self) -> Option<UnixMillis> {
        if let Some(item) = self.ripe.front() {
            return Some(item.deadline());
        }
        self.next_event().map(|(tick, _)| UnixMillis::new(tick))
    }

    /// Forgets some stale items if there are more than `live` and a constant: a few steps of work
    /// for each of the `added` items, so that no call takes long.
    pub(crate) fn scrub(&mut self, live: usize, added: usize, mut check: impl FnMut(Item) -> bool) {
        let mut budget = added * SCRUB_STEP;
        let mut lists_seen = 0;
        while budget > 0 && self.len > 2 * live + SLACK && lists_seen <= self.slots.len() {
            let Scrub {
                slot,
                stretch,
                index,
            } = self.scrub;
            let in_slots = slot < self.slots.len();
            let list = if in_slots {
                self.slots.get_mut(slot)
            } else {
                let next = self.overflow.range_mut(stretch..).next();
                next.map(|(at, items)| {
                    self.scrub.stretch = *at;
                    items
                })
            };
            let Some(items) = list else {
                self.scrub = Scrub::default();
                lists_seen += 1;
                continue;
            };
            let Some(item) = items.get(index) else {
                let is_empty = items.is_empty();
                self.leave_list(is_empty, in_slots);
                lists_seen += 1;
                continue;
            };
            budget -= 1;
            if check(*item) {
                self.scrub.index += 1;
            } else {
                items.swap_remove(index);
                self.len -= 1;
            }
        }
    }

    /// Moves the scrub from the end of a list to the next one.
    fn leave_list(&mut self, is_empty: bool, in_slots: bool) {
        let Scrub { slot, stretch, .. } = self.scrub;
        self.scrub.index = 0;
        if in_slots {
            if is_empty && let Some((level, offset)) = level_of(slot) {
                self.mark(level, offset, false);
            }
            self.scrub.slot += 1;
            self.scrub.stretch = 0;
        } else {
            if is_empty {
                self.overflow.remove(&stretch);
            }
            self.scrub.stretch = stretch + 1;
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Slot(usize, usize),
    Overflow(u64),
}

fn slot_index(tick: u64, level: usize) -> usize {
    let (shift, count) = LEVELS.get(level).copied().unwrap_or((0, 1));
    #[expect(clippy::cast_possible_truncation, reason = "the mask keeps 8 bits")]
    let bits = (tick >> shift) as usize;
    bits & (count - 1)
}

/// Level of a slot, and its number there.
const fn level_of(slot: usize) -> Option<(usize, usize)> {
    match slot {
        0..256 => Some((0, slot)),
        256..320 => Some((1, slot - 256)),
        320..384 => Some((2, slot - 320)),
        384..448 => Some((3, slot - 384)),
        _ => None,
    }
}

//! What a batch has made so far, laid over applied state.
//!
//! Keys and values are not copied: the overlay points into the batch's own bytes, where each fact
//! has just put them. Only values that were patched and are then read are built up here.

use flux_types::bug::{self, Bug};
use flux_types::{Revision, UnixMillis};
use hashbrown::HashTable;

use crate::batch::{BatchWriter, Span};
use crate::hash::KeyHash;
use crate::raw::Entry;
use crate::store::{Lookup, Store};

/// Where a value is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Body {
    /// In the store, as applied.
    Stored,
    /// In the batch.
    Span(Span),
    /// Patched in this batch: number of the [`Patched`] value.
    Patched(usize),
}

/// A live key as this batch sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Live {
    pub(crate) revision: Revision,
    pub(crate) deadline: Option<UnixMillis>,
    pub(crate) len: usize,
    pub(crate) body: Body,
}

impl Live {
    /// Bytes its entry takes.
    pub(crate) const fn bytes(&self, key: &[u8]) -> usize {
        Entry::bytes_for(key.len(), self.len, self.deadline.is_some())
    }
}

#[derive(Debug)]
struct Slot {
    hash: KeyHash,
    key: Span,
    live: Option<Live>,
    /// What the key adds to the number of keys: 1, 0 or -1.
    counts: i8,
}

/// A value with patches, put together only when it is read.
#[derive(Debug)]
struct Patched {
    base: Body,
    /// Offset in the value, and where the bytes lie in the batch.
    patches: Vec<(usize, Span)>,
    /// The whole value, once it was wanted; patches are then made to it at once.
    whole: Option<Vec<u8>>,
}

/// The overlay of one batch.
#[derive(Debug, Default)]
pub(crate) struct Overlay {
    slots: HashTable<Slot>,
    patched: Vec<Patched>,
    /// A Clear hides what the store holds.
    pub(crate) cleared: bool,
    /// How many keys there are more (or fewer) than in the store, or than none after a Clear.
    count: i64,
    /// How many more bytes of entries.
    bytes: i64,
}

/// What the overlay knows of a key.
pub(crate) enum Known {
    /// Nothing: the store's state holds.
    Untouched,
    /// Its state.
    Is(Option<Live>),
}

impl Overlay {
    pub(crate) fn find(&self, hash: KeyHash, key: &[u8], writer: &BatchWriter) -> Known {
        if bug::is_on(Bug::OverlayOff) {
            return Known::Untouched;
        }
        let found = self.slots.find(hash.get(), |slot| {
            slot.hash == hash && writer.slice(slot.key) == key
        });
        match found {
            Some(slot) => Known::Is(slot.live),
            None if self.cleared => Known::Is(None),
            None => Known::Untouched,
        }
    }

    /// Notes the state of a key after a fact. `was` is its state before, expired ones included
    /// as live: what the store still counts.
    pub(crate) fn set(
        &mut self,
        at: (KeyHash, Span),
        live: Option<Live>,
        was: Option<Live>,
        writer: &BatchWriter,
    ) {
        let (hash, span) = at;
        let key = writer.slice(span);
        let step = i8::from(live.is_some()) - i8::from(was.is_some());
        self.count += i64::from(step);
        let size = |live: Option<Live>| {
            let bytes = live.map_or(0, |live| live.bytes(key));
            i64::try_from(bytes).unwrap_or(i64::MAX)
        };
        self.bytes += size(live) - size(was);
        let found = self.slots.find_mut(hash.get(), |slot| {
            slot.hash == hash && writer.slice(slot.key) == key
        });
        if let Some(slot) = found {
            slot.live = live;
            slot.counts += step;
            return;
        }
        let slot = Slot {
            hash,
            key: span,
            live,
            counts: step,
        };
        self.slots
            .insert_unique(hash.get(), slot, |slot| slot.hash.get());
    }

    /// Forgets everything: the store is empty from here on.
    pub(crate) fn clear(&mut self) {
        self.slots.clear();
        self.patched.clear();
        self.cleared = true;
        self.count = 0;
        self.bytes = 0;
    }

    pub(crate) const fn count(&self) -> i64 {
        self.count
    }

    pub(crate) const fn bytes(&self) -> i64 {
        self.bytes
    }

    /// The keys that are live and were touched here, with their positions.
    pub(crate) fn live_keys<'a>(
        &'a self,
        writer: &'a BatchWriter,
    ) -> impl Iterator<Item = (u64, &'a [u8])> {
        self.slots
            .iter()
            .filter(|slot| slot.live.is_some())
            .map(|slot| (slot.hash.position(), writer.slice(slot.key)))
    }

    /// Whether the overlay says anything of a key.
    pub(crate) fn touches(&self, hash: KeyHash, key: &[u8], writer: &BatchWriter) -> bool {
        matches!(self.find(hash, key, writer), Known::Is(_))
    }

    /// The body of a value after one more patch, whose bytes the batch already holds.
    pub(crate) fn patch(
        &mut self,
        base: Body,
        offset: usize,
        bytes: Span,
        writer: &BatchWriter,
    ) -> Body {
        let number = match base {
            Body::Patched(number) => number,
            Body::Stored | Body::Span(_) => {
                self.patched.push(Patched {
                    base,
                    patches: Vec::new(),
                    whole: None,
                });
                self.patched.len() - 1
            }
        };
        if let Some(patched) = self.patched.get_mut(number) {
            match &mut patched.whole {
                Some(whole) => write_at(whole, offset, writer.slice(bytes)),
                None => patched.patches.push((offset, bytes)),
            }
        }
        Body::Patched(number)
    }

    /// Hands the value of a live key to `found`.
    pub(crate) fn with_value<R>(
        &mut self,
        live: &Live,
        key: (KeyHash, &[u8]),
        context: (&Store, &BatchWriter),
        found: impl FnOnce(&[u8]) -> R,
    ) -> R {
        let (store, writer) = context;
        match live.body {
            Body::Stored => stored(store, key, found),
            Body::Span(span) => found(writer.slice(span)),
            Body::Patched(number) => {
                let Some(patched) = self.patched.get_mut(number) else {
                    return found(&[]);
                };
                let base = patched.base;
                let patches = &mut patched.patches;
                let whole = patched.whole.get_or_insert_with(|| {
                    let mut whole = match base {
                        Body::Span(span) => writer.slice(span).to_vec(),
                        // A patched value is never the base of another.
                        Body::Stored | Body::Patched(_) => stored(store, key, <[u8]>::to_vec),
                    };
                    for (offset, bytes) in patches.drain(..) {
                        write_at(&mut whole, offset, writer.slice(bytes));
                    }
                    whole
                });
                found(whole)
            }
        }
    }
}

/// The store does not change while a batch is evaluated, so what was there is there.
fn stored<R>(store: &Store, key: (KeyHash, &[u8]), found: impl FnOnce(&[u8]) -> R) -> R {
    store.get_hashed(key.0, key.1, UnixMillis::ZERO, |lookup| match lookup {
        Lookup::Live(entry) => found(entry.value),
        Lookup::Absent | Lookup::Expired => found(&[]),
    })
}

fn write_at(value: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if value.len() < end {
        value.resize(end, 0);
    }
    if let Some(target) = value.get_mut(offset..end) {
        target.copy_from_slice(bytes);
    }
}

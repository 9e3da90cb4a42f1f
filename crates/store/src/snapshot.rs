//! Walks over a store while writes go on, blocks of entries, building a store beside, digests.
//!
//! A walk goes by scan position (see `table`), a slice at a time: it meets every key that is not
//! touched between its begin and its end exactly once, however the tables grow and shrink. A key
//! that is touched meanwhile is met in one of its states, or not at all; replaying the facts from
//! the walk's begin on repairs that.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use flux_types::bug::{self, Bug};
use flux_types::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX};
use flux_types::{Revision, SessionId, UnixMillis};

use crate::apply::item_of;
use crate::hash::Hasher;
use crate::kept::Kept;
use crate::part::KeyFilter;
use crate::raw::{Entry, Parts, REVISION_BITS};
use crate::requests::{Requests, Session};
use crate::store::{Dropped, Store};
use crate::system::{System, SystemEntry};
use crate::table::{Table, Totals};
use crate::wheel::{Wheel, stamp_of};

/// Version 1 had neither system data nor sessions, version 2 no sessions; both are read too.
const BLOCK_VERSION: u8 = 3;
const BLOCK_VERSION_1: u8 = 1;
const BLOCK_VERSION_2: u8 = 2;
const BLOCK_HEADER_BYTES: usize = 8;
const HAS_DEADLINE: u8 = 1;
const IS_SYSTEM: u8 = 2;
/// Of a session, which always expires.
const IS_SESSION: u8 = 4 | HAS_DEADLINE;

/// The store was replaced under a walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the store was replaced during the walk")]
pub struct WalkAborted;

/// Why bytes are not a block of entries.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// Written by a later version of the program, or not a block.
    #[error("block has version {version}, this program reads 1 to {BLOCK_VERSION}")]
    Version {
        /// What the first byte says.
        version: u8,
    },
    /// It ends before its last entry does.
    #[error("block ends early")]
    Short,
    /// It goes on after its last entry.
    #[error("block has {bytes} bytes after its last entry")]
    Trailing {
        /// How many.
        bytes: usize,
    },
    /// A reserved bit is set, or a key, value or revision is beyond its limit.
    #[error("block has a malformed entry, number {index}")]
    Malformed {
        /// Which, from 0.
        index: u32,
    },
}

/// A walk over all entries in slices.
#[derive(Debug)]
pub struct Walk {
    store: Arc<Store>,
    epoch: u64,
    /// Which keys are met; all if nothing is said.
    only: Option<KeyFilter>,
    /// Everything before it has been met; `None` at the end.
    position: Option<u64>,
    entries: u64,
    /// Whether the system data, which come first, have been met.
    system_met: bool,
    /// Up to where the sessions, which come next, have been met.
    session_met: Option<SessionId>,
    sessions_met: bool,
}

impl Walk {
    /// The same over some keys only, and without system data.
    pub(crate) fn over(self, only: KeyFilter) -> Self {
        Self {
            only: Some(only),
            system_met: true,
            ..self
        }
    }

    /// The next block, of about `bytes_max` bytes (more only if one entry alone is larger), or
    /// `None` when every entry has been met.
    ///
    /// # Errors
    /// [`WalkAborted`] when the store was replaced since the walk began.
    pub fn next_block(&mut self, bytes_max: usize) -> Result<Option<Vec<u8>>, WalkAborted> {
        let mut block = vec![BLOCK_VERSION, 0, 0, 0, 0, 0, 0, 0];
        let mut count: u32 = 0;
        if !std::mem::replace(&mut self.system_met, true) {
            for (name, entry) in self.store.system.lock().iter() {
                write_system(&mut block, name, entry);
                count += 1;
            }
        }
        if !self.sessions_met {
            count += self.write_sessions(&mut block, bytes_max);
        }
        while self.sessions_met
            && let Some(position) = self.position
            && (count == 0 || block.len() < bytes_max)
        {
            let number = self.store.stripe_of_position(position);
            let table = self.store.stripe(number).lock();
            // Asked under the lock, which an install must take: no entry of a new epoch is met.
            if self.store.epoch.load(Ordering::Acquire) != self.epoch {
                return Err(WalkAborted);
            }
            let mut next = Some(position);
            while let Some(at) = next
                && (count == 0 || block.len() < bytes_max)
            {
                let only = self.only.as_ref();
                next = table.visit_bucket(at, &self.store.hasher, &mut |_, entry| {
                    if only.is_none_or(|only| only.picks(entry.key())) {
                        write_entry(&mut block, entry);
                        count += 1;
                    }
                });
            }
            self.position = next.or_else(|| self.store.next_stripe_position(position));
        }
        if count == 0 {
            return Ok(None);
        }
        self.entries += u64::from(count);
        if let Some(field) = block.get_mut(4..8) {
            field.copy_from_slice(&count.to_le_bytes());
        }
        Ok(Some(block))
    }

    /// Entries met so far.
    #[must_use]
    pub const fn entries(&self) -> u64 {
        self.entries
    }

    /// The next sessions, until the block is full; answers how many. If the store was replaced
    /// meanwhile, the walk over the keys, which comes behind, notices.
    fn write_sessions(&mut self, block: &mut Vec<u8>, bytes_max: usize) -> u32 {
        if bug::is_on(Bug::RequestsNotInSnapshot) {
            self.sessions_met = true;
            return 0;
        }
        let requests = self.store.requests.lock();
        let mut count = 0;
        for (id, session) in requests.after(self.session_met) {
            if count > 0 && bytes_max <= block.len() {
                return count;
            }
            write_session(block, *id, session);
            self.session_met = Some(*id);
            count += 1;
        }
        self.sessions_met = true;
        count
    }
}

/// A session: as an entry, marked as what it is.
fn write_session(block: &mut Vec<u8>, id: SessionId, session: &Session) {
    let head_at = block.len();
    block.extend_from_slice(&[IS_SESSION, 16, 0, 0, 0, 0, 0, 0]);
    block.extend_from_slice(&0_u64.to_le_bytes());
    block.extend_from_slice(&session.expires_at().get().to_le_bytes());
    block.extend_from_slice(&id.get().to_le_bytes());
    let value_at = block.len();
    block.extend_from_slice(&session.lowest_unanswered().to_le_bytes());
    for (sequence, kept) in session.iter() {
        block.extend_from_slice(&sequence.to_le_bytes());
        let kept_len = u32::try_from(kept.len()).unwrap_or(u32::MAX);
        block.extend_from_slice(&kept_len.to_le_bytes());
        block.extend_from_slice(kept);
    }
    let value_len = u32::try_from(block.len() - value_at).unwrap_or(u32::MAX);
    if let Some(field) = block.get_mut(head_at + 4..head_at + 8) {
        field.copy_from_slice(&value_len.to_le_bytes());
    }
}

/// Reads a session from the key and value of its entry; `None` if they are malformed.
fn read_session(entry: &BlockEntry<'_>) -> Option<(SessionId, Session)> {
    let id = SessionId::new(u128::from_le_bytes(entry.key.try_into().ok()?))?;
    let (lowest, mut rest) = entry.value.split_first_chunk::<8>()?;
    let lowest = u64::from_le_bytes(*lowest);
    let mut session = Session::new(lowest, entry.deadline?);
    let mut above = lowest;
    while !rest.is_empty() {
        let (sequence, after) = rest.split_first_chunk::<8>()?;
        let (kept_len, after) = after.split_first_chunk::<4>()?;
        let kept_len = u32::from_le_bytes(*kept_len) as usize;
        let (kept, after) = after.split_at_checked(kept_len)?;
        let sequence = u64::from_le_bytes(*sequence);
        Kept::parse(kept).filter(|_| above <= sequence)?;
        session.keep(sequence, kept);
        above = sequence.checked_add(1)?;
        rest = after;
    }
    Some((id, session))
}

/// System data: as an entry, marked as what they are.
fn write_system(block: &mut Vec<u8>, name: &[u8], entry: &SystemEntry) {
    let [k0, k1, k2, _] = u32::try_from(name.len()).unwrap_or(u32::MAX).to_le_bytes();
    block.extend_from_slice(&[IS_SYSTEM, k0, k1, k2]);
    let value_len = u32::try_from(entry.value.len()).unwrap_or(u32::MAX);
    block.extend_from_slice(&value_len.to_le_bytes());
    block.extend_from_slice(&entry.revision.get().to_le_bytes());
    block.extend_from_slice(name);
    block.extend_from_slice(&entry.value);
}

/// One entry: flags u8, key length u24, value length u32, revision u64, deadline u64 if flagged,
/// key, value.
fn write_entry(block: &mut Vec<u8>, entry: &Entry) {
    let flags = if entry.deadline().is_some() {
        HAS_DEADLINE
    } else {
        0
    };
    let key_len = u32::try_from(entry.key().len()).unwrap_or(u32::MAX);
    let value_len = u32::try_from(entry.value_len()).unwrap_or(u32::MAX);
    let [k0, k1, k2, _] = key_len.to_le_bytes();
    block.extend_from_slice(&[flags, k0, k1, k2]);
    block.extend_from_slice(&value_len.to_le_bytes());
    block.extend_from_slice(&entry.revision().get().to_le_bytes());
    if let Some(deadline) = entry.deadline() {
        block.extend_from_slice(&deadline.get().to_le_bytes());
    }
    block.extend_from_slice(entry.key());
    block.extend_from_slice(entry.value());
}

/// Builds a whole store beside the one that serves, from blocks.
#[derive(Debug)]
pub struct Loader {
    tables: Vec<Table>,
    hasher: Hasher,
    wheel: Wheel,
    system: System,
    requests: Requests,
    entries: u64,
}

impl Loader {
    /// Takes the entries of a block in.
    ///
    /// # Errors
    /// Whenever the bytes are not exactly a block; the loader is then of no further use. Never
    /// panics.
    pub fn load_block(&mut self, block: &[u8]) -> Result<(), BlockError> {
        read_block(block, |entry| match entry.about {
            About::System => self.system.put(entry.revision, entry.key, entry.value),
            About::Session => {
                if let Some((id, session)) = read_session(&entry) {
                    self.requests.put(id, session);
                }
            }
            About::Key => self.insert(Parts {
                key: entry.key,
                value: entry.value,
                revision: entry.revision,
                deadline: entry.deadline,
            }),
        })
    }

    fn insert(&mut self, parts: Parts<'_>) {
        let hash = self.hasher.hash(parts.key);
        let mask = self.tables.len() - 1;
        #[expect(clippy::cast_possible_truncation, reason = "the mask keeps 16 bits")]
        let number = hash.get() as usize & mask;
        let Some(table) = self.tables.get_mut(number) else {
            return;
        };
        if let Some(present) = table.get(hash, parts.key) {
            // A key comes twice only from blocks of two walks; the newer state wins.
            if parts.revision <= present.revision() {
                return;
            }
            table.remove(hash, parts.key, &self.hasher);
        }
        let mut entry = Entry::new(parts);
        entry.set_stamp(stamp_of(parts.revision));
        if let Some(item) = item_of(&entry, &self.hasher) {
            self.wheel.add(item);
        }
        table.insert(hash, entry, &self.hasher);
        self.entries += 1;
    }

    /// Entries taken in so far.
    #[must_use]
    pub const fn entries(&self) -> u64 {
        self.entries
    }
}

/// What an entry of a block is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum About {
    /// A key.
    Key,
    /// System data.
    System,
    /// A client's session, and what is known of its requests.
    Session,
}

/// An entry of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockEntry<'a> {
    /// Its key, or the name of system data, or the bytes of a session's id.
    pub key: &'a [u8],
    /// Its value.
    pub value: &'a [u8],
    /// The revision of the fact that last changed it.
    pub revision: Revision,
    /// When it expires, if ever.
    pub deadline: Option<UnixMillis>,
    /// What it is about.
    pub about: About,
}

/// The entries of a block, in its order.
///
/// # Errors
/// Whenever the bytes are not exactly a block. Never panics.
pub fn block_entries(block: &[u8]) -> Result<Vec<BlockEntry<'_>>, BlockError> {
    let mut entries = Vec::new();
    read_block(block, |entry| entries.push(entry))?;
    Ok(entries)
}

fn read_block<'a>(
    block: &'a [u8],
    mut found: impl FnMut(BlockEntry<'a>),
) -> Result<(), BlockError> {
    let (header, mut rest) = block
        .split_first_chunk::<BLOCK_HEADER_BYTES>()
        .ok_or(BlockError::Short)?;
    let [version, r0, r1, r2, c0, c1, c2, c3] = *header;
    if !(BLOCK_VERSION_1..=BLOCK_VERSION).contains(&version) {
        return Err(BlockError::Version { version });
    }
    if [r0, r1, r2] != [0; 3] {
        return Err(BlockError::Malformed { index: 0 });
    }
    for index in 0..u32::from_le_bytes([c0, c1, c2, c3]) {
        let (entry, after) = read_entry(rest, index)?;
        let since = match entry.about {
            About::Key => BLOCK_VERSION_1,
            About::System => BLOCK_VERSION_2,
            About::Session => BLOCK_VERSION,
        };
        let is_malformed = entry.about == About::Session && read_session(&entry).is_none();
        if version < since || is_malformed {
            return Err(BlockError::Malformed { index });
        }
        rest = after;
        found(entry);
    }
    if !rest.is_empty() {
        return Err(BlockError::Trailing { bytes: rest.len() });
    }
    Ok(())
}

fn read_entry(rest: &[u8], index: u32) -> Result<(BlockEntry<'_>, &[u8]), BlockError> {
    let (head, rest) = rest.split_first_chunk::<16>().ok_or(BlockError::Short)?;
    let [flags, k0, k1, k2, v0, v1, v2, v3, r @ ..] = *head;
    let key_len = u32::from_le_bytes([k0, k1, k2, 0]) as usize;
    let value_len = u32::from_le_bytes([v0, v1, v2, v3]) as usize;
    let revision = u64::from_le_bytes(r);
    let in_limits =
        key_len <= KEY_BYTES_MAX && value_len <= VALUE_BYTES_MAX && revision >> REVISION_BITS == 0;
    let about = match flags {
        0 | HAS_DEADLINE => About::Key,
        IS_SYSTEM => About::System,
        IS_SESSION if revision == 0 => About::Session,
        _ => return Err(BlockError::Malformed { index }),
    };
    if !in_limits {
        return Err(BlockError::Malformed { index });
    }
    let (deadline, rest) = if flags & HAS_DEADLINE != 0 {
        let (raw, rest) = rest.split_first_chunk::<8>().ok_or(BlockError::Short)?;
        (Some(UnixMillis::new(u64::from_le_bytes(*raw))), rest)
    } else {
        (None, rest)
    };
    let (key, rest) = rest.split_at_checked(key_len).ok_or(BlockError::Short)?;
    let (value, rest) = rest.split_at_checked(value_len).ok_or(BlockError::Short)?;
    let entry = BlockEntry {
        key,
        value,
        revision: Revision::new(revision),
        deadline,
        about,
    };
    Ok((entry, rest))
}

impl Store {
    /// Begins a walk over all entries. [`Self::revision`] before this call is what the walk's
    /// snapshot must be installed with: it may hold newer facts, and lacks none up to there.
    #[must_use]
    pub fn walk(self: &Arc<Self>) -> Walk {
        Walk {
            store: Arc::clone(self),
            epoch: self.epoch.load(Ordering::Acquire),
            only: None,
            position: Some(0),
            entries: 0,
            system_met: false,
            session_met: None,
            sessions_met: false,
        }
    }

    /// Begins building a store beside this one.
    #[must_use]
    pub fn loader(&self) -> Loader {
        Loader {
            tables: self
                .stripes()
                .iter()
                .map(|_| Table::new(self.stripe_bits()))
                .collect(),
            hasher: self.hasher.clone(),
            wheel: Wheel::default(),
            system: System::default(),
            requests: Requests::default(),
            entries: 0,
        }
    }

    /// Replaces everything by what the loader holds, at once for every reader, and aborts running
    /// walks. `revision` and `last_batch_at` are those of the state *when the walk began*: facts
    /// from there on must follow through [`Self::apply`].
    pub fn install(&self, loader: Loader, revision: Revision, last_batch_at: UnixMillis) {
        let applier = self.applier.lock();
        let mut wheel = self.wheel.lock();
        let mut locked = self.lock_all();
        let mut dropped = Dropped {
            tables: loader.tables,
            wheel: loader.wheel,
        };
        std::mem::swap(&mut *wheel, &mut dropped.wheel);
        let (mut before, mut after) = (Totals::default(), Totals::default());
        for ((number, table), new) in locked.iter_mut().zip(&mut dropped.tables) {
            before.add(table.totals());
            after.add(new.totals());
            std::mem::swap(table, new);
            self.stripe(number).publish(table);
        }
        self.totals.adjust(before, after);
        *self.system.lock() = loader.system;
        *self.requests.lock() = loader.requests;
        self.revision.store(revision.get(), Ordering::Release);
        self.last_batch_at
            .store(last_batch_at.get(), Ordering::Release);
        self.epoch.fetch_add(1, Ordering::AcqRel);
        drop(locked);
        drop(wheel);
        drop(applier);
        self.reclaim(dropped);
    }

    /// A digest of key, value, deadline and revision of every entry, of system data and sessions,
    /// and of nothing else: equal on replicas with equal contents, whatever their seeds and tables. Locks the whole store.
    #[must_use]
    pub fn digest(&self) -> u128 {
        // A fixed seed: digests are compared between replicas, and decide nothing.
        let low = Hasher::new(0x666c_7578_6b76_0001);
        let high = Hasher::new(0x666c_7578_6b76_0002);
        let mut sum: u128 = 0;
        let mut line = Vec::new();
        let mut add = |line: &[u8]| {
            let (low, high) = (low.hash(line).get(), high.hash(line).get());
            sum = sum.wrapping_add((u128::from(high) << 64) | u128::from(low));
        };
        let locked = self.lock_all();
        for (_, table) in locked.iter() {
            table.for_each(&mut |entry| {
                line.clear();
                write_entry(&mut line, entry);
                add(&line);
            });
        }
        for (name, entry) in self.system.lock().iter() {
            line.clear();
            write_system(&mut line, name, entry);
            add(&line);
        }
        for (id, session) in self.requests.lock().after(None) {
            line.clear();
            write_session(&mut line, *id, session);
            add(&line);
        }
        sum
    }

    pub(crate) const fn stripe_of_position(&self, position: u64) -> usize {
        self.stripe_of(crate::hash::KeyHash::from_position(position))
    }

    /// The first position after the stripe of `position`.
    pub(crate) const fn next_stripe_position(&self, position: u64) -> Option<u64> {
        let bits = self.stripe_bits();
        if bits == 0 {
            return None;
        }
        let shift = u64::BITS - bits;
        let next = (position >> shift) + 1;
        if next >> bits == 0 {
            Some(next << shift)
        } else {
            None
        }
    }
}

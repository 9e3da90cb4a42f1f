//! Reading commands against applied state.
//!
//! A read that meets a key whose deadline has passed does not decide by itself that the key is
//! gone: it answers [`Read::Expired`], and the command goes through the proposer, so that what one
//! reader saw expired stays expired for everyone, whatever the next leader's clock says.
//!
//! A command with several keys locks all their stripes first, in order, so that it sees a group of
//! facts whole or not at all.

use bytes::Bytes;
use flux_types::bug::{self, Bug};
use flux_types::{Entry as EntryReply, ReadCommand, Reply, ScanPage, TtlForm, UnixMillis};

use crate::glob;
use crate::hash::KeyHash;
use crate::store::{EntryRef, Lookup, Store, is_past, lookup};

/// Low bits of a position that cursors leave out: buckets are never that fine, and what remains,
/// 46 bits, leaves room for a shard number below 2^53, where some clients' numbers end.
pub(crate) const CURSOR_SHIFT: u32 = 18;
/// Most keys that one SCAN looks at, whatever its COUNT.
const SCAN_COUNT_MAX: usize = 1 << 20;
/// Buckets looked at under one lock.
const SLICE: usize = 64;

/// What came of a read.
#[derive(Clone, Debug, PartialEq)]
pub enum Read {
    /// The reply.
    Reply(Reply),
    /// A passed deadline was met: the command must go through the proposer.
    Expired,
}

/// Is shown position, key and deadline of each entry of a page.
pub(crate) type PageVisitor<'v> = dyn FnMut(u64, &[u8], Option<UnixMillis>) + 'v;

impl From<Reply> for Read {
    fn from(reply: Reply) -> Self {
        Self::Reply(reply)
    }
}

impl Store {
    /// Answers a reading command at the time `now`.
    #[must_use]
    pub fn read(&self, command: &ReadCommand, now: UnixMillis) -> Read {
        match command {
            ReadCommand::Get { key } => {
                self.read_one(key, now, Reply::Nil, |entry| bulk(entry.value))
            }
            ReadCommand::GetEntry { key } => self.read_one(key, now, Reply::Entry(None), |entry| {
                Reply::Entry(Some(Box::new(entry_reply(entry))))
            }),
            ReadCommand::Length { key } => self.read_one(key, now, Reply::Integer(0), |entry| {
                integer(entry.value.len())
            }),
            ReadCommand::GetRange { key, start, end } => {
                self.read_one(key, now, bulk(&[]), |entry| {
                    bulk(range(entry.value, *start, *end))
                })
            }
            ReadCommand::Type { key } => {
                self.read_one(key, now, Reply::Simple("none"), |_| Reply::Simple("string"))
            }
            ReadCommand::Ttl { key, form } => {
                self.read_one(key, now, Reply::Integer(-2), |entry| {
                    Reply::Integer(ttl(entry.deadline, *form, now))
                })
            }
            ReadCommand::GetMany { keys } => self.read_many(keys, now, |found| {
                Reply::Array(
                    found
                        .map(|entry| entry.map_or(Reply::Nil, |entry| bulk(entry.value)))
                        .collect(),
                )
            }),
            ReadCommand::Exists { keys } | ReadCommand::Touch { keys } => {
                self.read_many(keys, now, |found| integer(found.flatten().count()))
            }
            ReadCommand::RandomKey => self.random_key(now),
            ReadCommand::Scan(page) => self.scan(page, now),
            ReadCommand::Keys { pattern } => self.keys(pattern, now),
            ReadCommand::Count => integer(self.len()).into(),
        }
    }

    fn read_one(
        &self,
        key: &[u8],
        now: UnixMillis,
        absent: Reply,
        live: impl FnOnce(EntryRef<'_>) -> Reply,
    ) -> Read {
        self.get(key, now, |found| match found {
            Lookup::Absent => Read::Reply(absent),
            Lookup::Expired if bug::is_on(Bug::ExpiredHidden) => Read::Reply(absent),
            Lookup::Expired => Read::Expired,
            Lookup::Live(entry) => Read::Reply(live(entry)),
        })
    }

    fn read_many(
        &self,
        keys: &[Bytes],
        now: UnixMillis,
        reply: impl FnOnce(&mut dyn Iterator<Item = Option<EntryRef<'_>>>) -> Reply,
    ) -> Read {
        let hashes: Vec<KeyHash> = keys.iter().map(|key| self.hash(key)).collect();
        for hash in &hashes {
            self.prefetch(*hash);
        }
        let locked = self.lock_stripes(hashes.iter().map(|hash| self.stripe_of(*hash)).collect());
        let find = |(hash, key): (&KeyHash, &Bytes)| {
            locked
                .table(self.stripe_of(*hash))
                .and_then(|table| table.get(*hash, key))
        };
        let mut expired = false;
        let mut found = hashes
            .iter()
            .zip(keys)
            .map(|pair| match lookup(find(pair), now) {
                Lookup::Live(entry) => Some(entry),
                Lookup::Absent => None,
                Lookup::Expired => {
                    expired = true;
                    None
                }
            });
        let reply = reply(&mut found);
        if expired { Read::Expired } else { reply.into() }
    }

    fn scan(&self, page: &ScanPage, now: UnixMillis) -> Read {
        let mut keys = Vec::new();
        let mut expired = false;
        let start = cursor_position(page.cursor);
        let next = self.page(start, page.count, &mut |_, key, deadline| {
            if is_past(deadline, now) {
                expired = true;
            } else if in_page(page, key) {
                keys.push(Bytes::copy_from_slice(key));
            }
        });
        if expired {
            return Read::Expired;
        }
        Read::Reply(Reply::Page {
            cursor: next.map_or(0, |position| position >> CURSOR_SHIFT),
            keys,
        })
    }

    /// Visits about `count` entries (whole buckets) from `position` on, with their positions and
    /// deadlines, and gives back where to go on, or `None` at the end.
    pub(crate) fn page(
        &self,
        position: u64,
        count: usize,
        visit: &mut PageVisitor<'_>,
    ) -> Option<u64> {
        let count = count.clamp(1, SCAN_COUNT_MAX);
        let mut looked = 0;
        let mut position = position;
        loop {
            let number = self.stripe_of_position(position);
            let table = self.stripe(number).lock();
            let mut next = Some(position);
            let mut slice = 0;
            while let Some(at) = next
                && looked < count
                && slice < SLICE
            {
                slice += 1;
                next = table.visit_bucket(at, &self.hasher, &mut |position, entry| {
                    looked += 1;
                    visit(position, entry.key(), entry.deadline());
                });
            }
            drop(table);
            position = match next {
                Some(next) => next,
                None => self.next_stripe_position(position)?,
            };
            if count <= looked {
                return Some(position);
            }
        }
    }

    fn keys(&self, pattern: &[u8], now: UnixMillis) -> Read {
        let mut keys = Vec::new();
        let mut expired = false;
        self.for_each_key(&mut |key, deadline| {
            if is_past(deadline, now) {
                expired = true;
            } else if glob::matches(pattern, key) {
                keys.push(Reply::Bulk(Bytes::copy_from_slice(key)));
            }
        });
        if expired {
            return Read::Expired;
        }
        Reply::Array(keys).into()
    }

    /// Visits all keys at one moment: every stripe stays locked until the end, as Redis stands
    /// still for KEYS.
    pub(crate) fn for_each_key(&self, visit: &mut dyn FnMut(&[u8], Option<UnixMillis>)) {
        for (_, table) in self.lock_all().iter() {
            table.for_each(&mut |entry| visit(entry.key(), entry.deadline()));
        }
    }

    fn random_key(&self, now: UnixMillis) -> Read {
        let mut expired = false;
        let found = self.pick_random(&mut |_, deadline| {
            expired |= is_past(deadline, now);
            !is_past(deadline, now)
        });
        match found {
            _ if expired => Read::Expired,
            Some(key) => Reply::Bulk(key).into(),
            None => Reply::Nil.into(),
        }
    }

    /// A key drawn about evenly from those that `accept` takes: one of the first bucket that has
    /// any, going round from a random position.
    pub(crate) fn pick_random(
        &self,
        accept: &mut dyn FnMut(&[u8], Option<UnixMillis>) -> bool,
    ) -> Option<Bytes> {
        let start = self.next_random();
        let mut from = start;
        for round in 0..2 {
            let mut position = Some(from);
            while let Some(at) = position {
                let mut keys: Vec<Bytes> = Vec::new();
                position = self.page(at, 1, &mut |_, key, deadline| {
                    if accept(key, deadline) {
                        keys.push(Bytes::copy_from_slice(key));
                    }
                });
                if !keys.is_empty() {
                    let count = keys.len() as u64;
                    let index = usize::try_from(self.next_random() % count).unwrap_or(0);
                    return keys.get(index).cloned();
                }
                if round == 1 && start <= at {
                    break;
                }
            }
            from = 0;
        }
        None
    }
}

/// The position at which a client's cursor begins; a cursor that was never given begins somewhere.
pub(crate) const fn cursor_position(cursor: u64) -> u64 {
    cursor << CURSOR_SHIFT
}

/// Whether a key belongs into the answer to a SCAN that met it.
pub(crate) fn in_page(page: &ScanPage, key: &[u8]) -> bool {
    page.type_matches
        && page
            .pattern
            .as_ref()
            .is_none_or(|pattern| glob::matches(pattern, key))
}

pub(crate) fn entry_reply(entry: EntryRef<'_>) -> EntryReply {
    EntryReply {
        value: Bytes::copy_from_slice(entry.value),
        revision: entry.revision,
        deadline: entry.deadline,
    }
}

pub(crate) fn bulk(value: &[u8]) -> Reply {
    Reply::Bulk(Bytes::copy_from_slice(value))
}

pub(crate) fn integer(count: usize) -> Reply {
    Reply::Integer(i64::try_from(count).unwrap_or(i64::MAX))
}

/// GETRANGE: offsets from the start, or from the end if negative; both ends included.
pub(crate) fn range(value: &[u8], start: i64, end: i64) -> &[u8] {
    let len = i64::try_from(value.len()).unwrap_or(i64::MAX);
    if start < 0 && end < 0 && start > end {
        return &[];
    }
    let from_end = |offset: i64| {
        if offset < 0 {
            len.saturating_add(offset).max(0)
        } else {
            offset
        }
    };
    let (start, end) = (from_end(start), from_end(end).min(len - 1));
    if start > end || len == 0 {
        return &[];
    }
    let (Ok(start), Ok(end)) = (usize::try_from(start), usize::try_from(end)) else {
        return &[];
    };
    value.get(start..=end).unwrap_or(&[])
}

/// What TTL and its relatives answer for a live key, with Redis's rounding to the nearest second.
pub(crate) fn ttl(deadline: Option<UnixMillis>, form: TtlForm, now: UnixMillis) -> i64 {
    let Some(deadline) = deadline else {
        return -1;
    };
    let left = deadline.saturating_since(now);
    let answer = match form {
        TtlForm::Seconds => left.saturating_add(500) / 1000,
        TtlForm::Millis => left,
        TtlForm::AbsoluteSeconds => deadline.get().saturating_add(500) / 1000,
        TtlForm::AbsoluteMillis => deadline.get(),
    };
    i64::try_from(answer).unwrap_or(i64::MAX)
}

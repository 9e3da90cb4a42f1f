//! What is kept of a write with a request id: whether it was done, and its reply if that is short.
//! Documented byte by byte in `docs/batch-format.md`.
//!
//! Decoding trusts no length and goes no deeper than encoding does.

use std::borrow::Cow;

use bytes::Bytes;
use flux_types::limits::REQUEST_REPLY_BYTES_MAX;
use flux_types::{Entry, Error, ErrorCode, Outcome, Reply, Revision, UnixMillis, Written};

/// Bytes before a reply: what became of it, and a revision.
pub(crate) const OUTCOME_HEAD_BYTES: usize = 9;
/// Longest outcome: with the longest reply that is kept.
pub(crate) const OUTCOME_BYTES_MAX: usize = OUTCOME_HEAD_BYTES + REQUEST_REPLY_BYTES_MAX;
/// How deep replies nest: a transaction's reply holds replies, of which some hold strings.
const DEPTH_MAX: usize = 4;

const NOT_DONE: u8 = 0;
const NOT_KEPT: u8 = 1;
const DONE: u8 = 2;

const OK: u8 = 0;
const NIL: u8 = 1;
const INTEGER: u8 = 2;
const BULK: u8 = 3;
const ARRAY: u8 = 4;
const ABORTED: u8 = 5;
const NO_ENTRY: u8 = 6;
const ENTRY: u8 = 7;
const WRITTEN: u8 = 8;
const ERROR: u8 = 9;
const SIMPLE: u8 = 10;
const PAGE: u8 = 11;

/// Words that replies consist of. Their place is their number.
const WORDS: [&str; 2] = ["string", "none"];

/// What became of a write.
#[derive(Clone, Debug, PartialEq)]
pub enum Kept {
    /// Somebody asked before it came: it never will be done.
    NotDone,
    /// It was done.
    Done {
        /// The shard's revision after it.
        revision: Revision,
        /// Its reply, unless that was too long to be kept.
        reply: Option<Reply>,
    },
}

impl Kept {
    /// The bytes that say that a write was done, with its reply if that is short enough.
    pub(crate) fn encode_done(revision: Revision, reply: &Reply) -> Vec<u8> {
        let mut out = vec![DONE];
        out.extend_from_slice(&revision.get().to_le_bytes());
        if write_reply(&mut out, reply, DEPTH_MAX).is_none() {
            out.truncate(OUTCOME_HEAD_BYTES);
            if let Some(first) = out.first_mut() {
                *first = NOT_KEPT;
            }
        }
        out
    }

    /// The bytes that say that a write never will be done.
    pub(crate) fn encode_not_done() -> Vec<u8> {
        vec![NOT_DONE]
    }

    /// Reads the bytes; `None` if they are not exactly what was written.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut cursor = Cursor { rest: bytes };
        let kept = match cursor.u8()? {
            NOT_DONE => Self::NotDone,
            NOT_KEPT => Self::Done {
                revision: Revision::new(cursor.u64()?),
                reply: None,
            },
            DONE => Self::Done {
                revision: Revision::new(cursor.u64()?),
                reply: Some(cursor.reply(DEPTH_MAX)?),
            },
            _ => return None,
        };
        cursor.rest.is_empty().then_some(kept)
    }
}

/// Appends a reply; `None` if it gets too long or cannot be said.
fn write_reply(out: &mut Vec<u8>, reply: &Reply, depth: usize) -> Option<()> {
    let depth = depth.checked_sub(1)?;
    match reply {
        Reply::Ok => out.push(OK),
        Reply::Nil => out.push(NIL),
        Reply::Aborted => out.push(ABORTED),
        Reply::Integer(number) => {
            out.push(INTEGER);
            out.extend_from_slice(&number.to_le_bytes());
        }
        Reply::Bulk(bytes) => {
            out.push(BULK);
            write_bytes(out, bytes)?;
        }
        Reply::Array(items) => {
            out.push(ARRAY);
            write_count(out, items.len())?;
            for item in items {
                write_reply(out, item, depth)?;
            }
        }
        Reply::Entry(None) => out.push(NO_ENTRY),
        Reply::Entry(Some(entry)) => {
            out.push(ENTRY);
            write_entry(out, entry)?;
        }
        Reply::Written(written) => {
            out.extend_from_slice(&[WRITTEN, u8::from(written.applied)]);
            out.push(u8::from(written.previous.is_some()));
            if let Some(entry) = &written.previous {
                write_entry(out, entry)?;
            }
        }
        Reply::Error(error) => {
            out.push(ERROR);
            out.extend_from_slice(&error.code.number().to_le_bytes());
            out.push(error.outcome.number());
            write_bytes(out, error.message.as_bytes())?;
        }
        Reply::Simple(word) => {
            let number = WORDS.iter().position(|known| known == word)?;
            out.extend_from_slice(&[SIMPLE, u8::try_from(number).ok()?]);
        }
        Reply::Page { cursor, keys } => {
            out.push(PAGE);
            out.extend_from_slice(&cursor.to_le_bytes());
            write_count(out, keys.len())?;
            for key in keys {
                write_bytes(out, key)?;
            }
        }
        // Who asks for an outcome asks again instead.
        Reply::Outcome(_) => return None,
    }
    fits(out, 0)
}

/// Whether so many bytes more are within the limit.
fn fits(out: &[u8], more: usize) -> Option<()> {
    let bytes = out.len().checked_add(more)?;
    (bytes <= OUTCOME_BYTES_MAX).then_some(())
}

fn write_count(out: &mut Vec<u8>, count: usize) -> Option<()> {
    // Each takes at least a byte.
    fits(out, count)?;
    out.extend_from_slice(&u32::try_from(count).ok()?.to_le_bytes());
    Some(())
}

fn write_bytes(out: &mut Vec<u8>, bytes: &[u8]) -> Option<()> {
    write_count(out, bytes.len())?;
    out.extend_from_slice(bytes);
    Some(())
}

fn write_entry(out: &mut Vec<u8>, entry: &Entry) -> Option<()> {
    out.extend_from_slice(&entry.revision.get().to_le_bytes());
    // No deadline is 0, which is none that a key can have.
    let deadline = entry.deadline.unwrap_or(UnixMillis::ZERO);
    out.extend_from_slice(&deadline.get().to_le_bytes());
    write_bytes(out, &entry.value)
}

struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        Some(*head)
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn flag(&mut self) -> Option<bool> {
        match self.u8()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    /// A count of things that take at least a byte each.
    fn count(&mut self) -> Option<usize> {
        let count = self.array().map(u32::from_le_bytes)? as usize;
        (count <= self.rest.len()).then_some(count)
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let count = self.count()?;
        let (bytes, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(bytes)
    }

    fn entry(&mut self) -> Option<Entry> {
        let revision = Revision::new(self.u64()?);
        let deadline = Some(UnixMillis::new(self.u64()?));
        Some(Entry {
            revision,
            deadline: deadline.filter(|deadline| *deadline != UnixMillis::ZERO),
            value: Bytes::copy_from_slice(self.bytes()?),
        })
    }

    fn error(&mut self) -> Option<Error> {
        let code = ErrorCode::from_number(self.array().map(u16::from_le_bytes)?);
        let outcome = Outcome::from_number(self.u8()?);
        let message = std::str::from_utf8(self.bytes()?).ok()?;
        Some(Error {
            code,
            message: Cow::Owned(message.to_owned()),
            outcome,
        })
    }

    fn reply(&mut self, depth: usize) -> Option<Reply> {
        let depth = depth.checked_sub(1)?;
        Some(match self.u8()? {
            OK => Reply::Ok,
            NIL => Reply::Nil,
            ABORTED => Reply::Aborted,
            INTEGER => Reply::Integer(self.array().map(i64::from_le_bytes)?),
            BULK => Reply::Bulk(Bytes::copy_from_slice(self.bytes()?)),
            ARRAY => {
                let items = (0..self.count()?).map(|_| self.reply(depth));
                Reply::Array(items.collect::<Option<_>>()?)
            }
            NO_ENTRY => Reply::Entry(None),
            ENTRY => Reply::Entry(Some(Box::new(self.entry()?))),
            WRITTEN => {
                let applied = self.flag()?;
                let previous = if self.flag()? {
                    Some(self.entry()?)
                } else {
                    None
                };
                Reply::Written(Box::new(Written { applied, previous }))
            }
            ERROR => Reply::Error(self.error()?),
            SIMPLE => Reply::Simple(WORDS.get(usize::from(self.u8()?))?),
            PAGE => {
                let cursor = self.u64()?;
                let keys = (0..self.count()?).map(|_| self.bytes().map(Bytes::copy_from_slice));
                Reply::Page {
                    cursor,
                    keys: keys.collect::<Option<_>>()?,
                }
            }
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes() -> impl Strategy<Value = Bytes> {
        prop::collection::vec(any::<u8>(), 0..64).prop_map(Bytes::from)
    }

    fn entry() -> impl Strategy<Value = Entry> {
        (bytes(), any::<u64>(), prop::option::of(1..u64::MAX)).prop_map(
            |(value, revision, deadline)| Entry {
                value,
                revision: Revision::new(revision),
                deadline: deadline.map(UnixMillis::new),
            },
        )
    }

    fn reply() -> impl Strategy<Value = Reply> {
        let leaf = prop_oneof![
            Just(Reply::Ok),
            Just(Reply::Nil),
            Just(Reply::Aborted),
            Just(Reply::Simple("none")),
            any::<i64>().prop_map(Reply::Integer),
            bytes().prop_map(Reply::Bulk),
            prop::option::of(entry()).prop_map(|entry| Reply::Entry(entry.map(Box::new))),
            (any::<bool>(), prop::option::of(entry())).prop_map(|(applied, previous)| {
                Reply::Written(Box::new(Written { applied, previous }))
            }),
            (any::<u64>(), prop::collection::vec(bytes(), 0..4))
                .prop_map(|(cursor, keys)| Reply::Page { cursor, keys }),
            ".{0,40}".prop_map(|text| Reply::Error(Error::not_done(ErrorCode::NotAnInteger, text))),
        ];
        leaf.prop_recursive(2, 16, 6, |inner| {
            prop::collection::vec(inner, 0..6).prop_map(Reply::Array)
        })
    }

    proptest! {
        #[test]
        fn a_short_reply_is_kept_and_a_long_one_is_said_to_be_done(
            reply in reply(), revision: u64
        ) {
            let revision = Revision::new(revision);
            let bytes = Kept::encode_done(revision, &reply);
            prop_assert!(bytes.len() <= OUTCOME_HEAD_BYTES + REQUEST_REPLY_BYTES_MAX);
            let Some(Kept::Done { revision: read, reply: kept }) = Kept::parse(&bytes) else {
                panic!("what was written is read");
            };
            prop_assert_eq!(read, revision);
            match kept {
                Some(kept) => prop_assert_eq!(kept, reply),
                None => prop_assert_eq!(bytes.len(), OUTCOME_HEAD_BYTES),
            }
        }

        #[test]
        fn every_byte_counts(reply in reply(), cut in any::<prop::sample::Index>()) {
            let bytes = Kept::encode_done(Revision::new(1), &reply);
            prop_assert_eq!(Kept::parse(&bytes[..cut.index(bytes.len())]), None);
            let longer = [&bytes[..], &[0]].concat();
            prop_assert_eq!(Kept::parse(&longer), None);
        }

        #[test]
        fn anything_is_read_without_a_panic_and_only_what_was_written_is_accepted(
            bytes in prop::collection::vec(any::<u8>(), 0..80)
        ) {
            if let Some(Kept::Done { revision, reply: Some(reply) }) = Kept::parse(&bytes) {
                let again = Kept::parse(&Kept::encode_done(revision, &reply));
                prop_assert_eq!(again, Some(Kept::Done { revision, reply: Some(reply) }));
            }
        }
    }

    #[test]
    fn the_longest_kept_reply_has_so_many_bytes_and_one_more_is_not_kept() {
        // A bulk string takes its kind and length besides.
        let longest = REQUEST_REPLY_BYTES_MAX - 5;
        for (len, is_kept) in [(longest, true), (longest + 1, false)] {
            let reply = Reply::Bulk(vec![b'x'; len].into());
            let kept = Kept::parse(&Kept::encode_done(Revision::new(3), &reply)).unwrap();
            let expected = Kept::Done {
                revision: Revision::new(3),
                reply: is_kept.then_some(reply),
            };
            assert_eq!(kept, expected);
        }
    }

    #[test]
    fn replies_nested_deeper_than_any_command_answers_are_not_followed() {
        let mut bytes = Kept::encode_done(Revision::new(1), &Reply::Array(Vec::new()));
        bytes.truncate(OUTCOME_HEAD_BYTES);
        for _ in 0..200 {
            bytes.extend_from_slice(&[ARRAY, 1, 0, 0, 0]);
        }
        bytes.push(OK);
        assert_eq!(Kept::parse(&bytes), None);
    }
}

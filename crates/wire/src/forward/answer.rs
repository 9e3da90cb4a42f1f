//! Replies as they go from node to node.

use std::borrow::Cow;

use bytes::{BufMut, BytesMut};
use flux_types::{
    Answer, Entry, Error, ErrorCode, Outcome, Reply, RequestOutcome, Revision, UnixMillis, Written,
};

use super::{Malformed, put_count, read_count};
use crate::flux::field::{Reader, put_bytes};

/// Deepest array of arrays: a transaction's answer holds arrays of values.
const DEPTH_MAX: usize = 8;

const OK: u8 = 0;
const SIMPLE: u8 = 1;
const NIL: u8 = 2;
const INTEGER: u8 = 3;
const BULK: u8 = 4;
const ARRAY: u8 = 5;
const ABORTED: u8 = 6;
const PAGE: u8 = 7;
const ENTRY: u8 = 8;
const WRITTEN: u8 = 9;
const ERROR: u8 = 10;
const OUTCOME: u8 = 11;

/// The words that replies are made of.
const WORDS: &[&str] = &["none", "string"];

pub(super) fn put(out: &mut BytesMut, reply: &Reply) {
    match reply {
        Reply::Ok => out.put_u8(OK),
        Reply::Simple(word) => match WORDS.iter().position(|known| known == word) {
            Some(number) => {
                out.put_u8(SIMPLE);
                out.put_u8(u8::try_from(number).unwrap_or(u8::MAX));
            }
            // No command answers with another word; a string of bytes shows the same.
            None => put(out, &Reply::Bulk(word.as_bytes().into())),
        },
        Reply::Nil => out.put_u8(NIL),
        Reply::Integer(number) => {
            out.put_u8(INTEGER);
            out.put_i64_le(*number);
        }
        Reply::Bulk(bytes) => {
            out.put_u8(BULK);
            put_bytes(out, bytes);
        }
        Reply::Array(items) => {
            out.put_u8(ARRAY);
            put_count(out, items.len());
            items.iter().for_each(|item| put(out, item));
        }
        Reply::Aborted => out.put_u8(ABORTED),
        Reply::Page { cursor, keys } => {
            out.put_u8(PAGE);
            out.put_u64_le(*cursor);
            put_count(out, keys.len());
            keys.iter().for_each(|key| put_bytes(out, key));
        }
        Reply::Entry(entry) => {
            out.put_u8(ENTRY);
            put_entry(out, entry.as_deref());
        }
        Reply::Written(written) => {
            out.put_u8(WRITTEN);
            out.put_u8(u8::from(written.applied));
            put_entry(out, written.previous.as_ref());
        }
        Reply::Outcome(outcome) => {
            out.put_u8(OUTCOME);
            out.put_u8(outcome.outcome.number());
            out.put_u8(u8::from(outcome.reply.is_some()));
            if let Some(reply) = &outcome.reply {
                put(out, reply);
            }
        }
        Reply::Error(error) => {
            out.put_u8(ERROR);
            out.put_u16_le(error.code.number());
            out.put_u8(error.outcome.number());
            put_bytes(out, error.message.as_bytes());
        }
    }
}

fn put_entry(out: &mut BytesMut, entry: Option<&Entry>) {
    let Some(entry) = entry else {
        return out.put_u8(0);
    };
    out.put_u8(1);
    out.put_u64_le(entry.revision.get());
    out.put_u64_le(entry.deadline.map_or(0, UnixMillis::get));
    put_bytes(out, &entry.value);
}

pub(super) fn read_answer(reader: &mut Reader) -> Result<Answer, Malformed> {
    let revision = Revision::new(reader.u64("revision")?);
    let reply = read(reader, 0)?;
    Ok(Answer { reply, revision })
}

/// Nesting is bounded by [`DEPTH_MAX`], which is why this may call itself.
fn read(reader: &mut Reader, depth: usize) -> Result<Reply, Malformed> {
    Ok(match reader.u8("reply")? {
        OK => Reply::Ok,
        SIMPLE => {
            let word = WORDS.get(usize::from(reader.u8("word")?));
            Reply::Simple(word.ok_or(Malformed::UnknownValue("word"))?)
        }
        NIL => Reply::Nil,
        INTEGER => Reply::Integer(reader.i64("integer")?),
        BULK => Reply::Bulk(reader.bytes("bulk")?),
        ARRAY if depth < DEPTH_MAX => {
            let count = read_count(reader, 1, "array")?;
            let mut items = Vec::new();
            for _ in 0..count {
                items.push(read(reader, depth + 1)?);
            }
            Reply::Array(items)
        }
        ABORTED => Reply::Aborted,
        PAGE => {
            let cursor = reader.u64("cursor")?;
            let count = read_count(reader, 4, "keys")?;
            let keys = (0..count)
                .map(|_| reader.bytes("key"))
                .collect::<Result<_, _>>()?;
            Reply::Page { cursor, keys }
        }
        ENTRY => Reply::Entry(reader.entry()?.map(Box::new)),
        WRITTEN => Reply::Written(Box::new(Written {
            applied: reader.flag("applied")?,
            previous: reader.entry()?,
        })),
        OUTCOME if depth < DEPTH_MAX => {
            let outcome = Outcome::from_number(reader.u8("outcome")?);
            let is_kept = reader.flag("kept reply")?;
            let reply = is_kept.then(|| read(reader, depth + 1)).transpose()?;
            Reply::Outcome(Box::new(RequestOutcome { outcome, reply }))
        }
        ERROR => Reply::Error(Error {
            code: ErrorCode::from_number(reader.u16("code")?),
            outcome: Outcome::from_number(reader.u8("outcome")?),
            message: Cow::Owned(String::from_utf8_lossy(&reader.bytes("message")?).into_owned()),
        }),
        _ => return Err(Malformed::UnknownValue("reply")),
    })
}

//! Responses: an answer becomes the payload its operation promises, and back (`docs/wire.md`,
//! "Responses").

use std::borrow::Cow;

use bytes::{BufMut, Bytes, BytesMut};
use flux_types::{Answer, Entry, Error, ErrorCode, Outcome, Reply, Revision, UnixMillis, Written};

use super::code::{code_of_number, number_of_code, number_of_outcome, outcome_of_number};
use super::field::{Malformed, Reader, put_bytes};
use super::frame::{Frame, Header, Kind, TooLong, write_frame};
use super::operation::Op;
use crate::resp::error::parse_error;
use crate::resp::{Value, ValueDecoder, Version, Writer};

/// A response as a client reads it.
#[derive(Clone, Debug, PartialEq)]
pub struct Response {
    /// The shard's revision after the operation; 0 where none was asked.
    pub revision: Revision,
    /// What the operation answers.
    pub body: Body,
}

/// What an operation answers.
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// Of GET: the key's state, if it exists.
    Entry(Option<Entry>),
    /// Of SET, DELETE and CAS.
    Written(Written),
    /// Of INCR: the new number.
    Integer(i64),
    /// Of EXPIRE: whether a deadline was set or removed.
    Flag(bool),
    /// Of PING: what was sent.
    Echo(Bytes),
    /// Of COMMAND.
    Value(Value),
    /// Of AUTH: it succeeded.
    Nothing,
}

/// A key's state where it lies, so that a read is written without a copy in between.
#[derive(Clone, Copy, Debug)]
pub struct EntryRef<'a> {
    /// Its value.
    pub value: &'a [u8],
    /// The revision of the fact that last changed it.
    pub revision: Revision,
    /// When it expires, if ever.
    pub deadline: Option<UnixMillis>,
}

impl<'a> From<&'a Entry> for EntryRef<'a> {
    fn from(entry: &'a Entry) -> Self {
        Self {
            value: &entry.value,
            revision: entry.revision,
            deadline: entry.deadline,
        }
    }
}

/// Appends the response to a request of operation `op`. `payload_bytes_max` is what the client
/// announced in its preface; an answer longer than that becomes an error which says so.
pub fn write_answer(
    out: &mut BytesMut,
    correlation: u64,
    op: Op,
    answer: &Answer,
    payload_bytes_max: usize,
) {
    let mut misfit = false;
    let fill = |out: &mut BytesMut| misfit = !put_reply(out, op, &answer.reply);
    if let Reply::Error(error) = &answer.reply {
        return write_error(out, correlation, op.number(), error);
    }
    let start = out.len();
    let written = write_success(
        out,
        correlation,
        op.number(),
        answer.revision,
        payload_bytes_max,
        fill,
    );
    if misfit {
        out.truncate(start);
        let error = Error {
            code: ErrorCode::Internal,
            message: Cow::Borrowed("the reply does not fit the operation"),
            outcome: Outcome::Done,
        };
        write_error(out, correlation, op.number(), &error);
    } else if let Err(too_long) = written {
        write_error(out, correlation, op.number(), &answer_too_long(too_long));
    }
}

/// Appends the response to a GET.
pub fn write_entry(
    out: &mut BytesMut,
    correlation: u64,
    revision: Revision,
    entry: Option<EntryRef<'_>>,
    payload_bytes_max: usize,
) {
    let op = Op::Get.number();
    let fill = |out: &mut BytesMut| put_entry(out, entry);
    if let Err(too_long) = write_success(out, correlation, op, revision, payload_bytes_max, fill) {
        write_error(out, correlation, op, &answer_too_long(too_long));
    }
}

/// Appends the response to a PING operation.
pub fn write_echo(out: &mut BytesMut, correlation: u64, echo: &[u8], payload_bytes_max: usize) {
    let op = Op::Ping.number();
    let fill = |out: &mut BytesMut| out.put_slice(echo);
    let revision = Revision::new(0);
    if let Err(too_long) = write_success(out, correlation, op, revision, payload_bytes_max, fill) {
        write_error(out, correlation, op, &answer_too_long(too_long));
    }
}

/// Appends the response to a COMMAND that a session answers: `fill` writes one RESP3 value. An
/// error that it writes reaches the client as an error.
pub fn write_value(
    out: &mut BytesMut,
    correlation: u64,
    payload_bytes_max: usize,
    fill: impl FnOnce(&mut Writer<'_>),
) {
    let op = Op::Command.number();
    let revision = Revision::new(0);
    let fill = |out: &mut BytesMut| fill(&mut Writer::new(out, Version::Resp3));
    if let Err(too_long) = write_success(out, correlation, op, revision, payload_bytes_max, fill) {
        write_error(out, correlation, op, &answer_too_long(too_long));
    }
}

/// Appends the response to an AUTH frame that succeeded; a failed one gets [`write_error`] with
/// op 0.
pub fn write_authenticated(out: &mut BytesMut, correlation: u64) {
    let bytes_max = flux_types::limits::FRAME_BYTES_MAX;
    let written = write_success(out, correlation, 0, Revision::new(0), bytes_max, |_| {});
    debug_assert!(written.is_ok(), "eight bytes fit every frame");
}

/// Appends the response that reports an error. `op` is repeated from the request, known or not.
/// A long message is cut, so that the response fits every client.
pub fn write_error(out: &mut BytesMut, correlation: u64, op: u8, error: &Error) {
    let number = number_of_code(error.code);
    let header = Header {
        kind: Kind::Response,
        op,
        correlation,
        carries_request_id: false,
        is_stale: false,
        word: u32::from(number),
    };
    let message = error.message.as_bytes();
    let message = message.get(..MESSAGE_BYTES_MAX).unwrap_or(message);
    let written = write_frame(out, header, flux_types::limits::FRAME_BYTES_MAX, |out| {
        out.put_u16_le(number);
        out.put_u8(number_of_outcome(error.outcome));
        put_bytes(out, message);
    });
    debug_assert!(written.is_ok(), "the message was cut to fit every frame");
}

/// Longest message of an error, in bytes: with its surroundings it fits
/// [`super::preface::PAYLOAD_BYTES_MIN`].
const MESSAGE_BYTES_MAX: usize = 2048;

const _: () = assert!(MESSAGE_BYTES_MAX + 64 <= super::preface::PAYLOAD_BYTES_MIN as usize);

fn answer_too_long(too_long: TooLong) -> Error {
    Error {
        code: ErrorCode::TooLarge,
        message: Cow::Owned(format!(
            "the answer takes {} bytes, the client accepts {}",
            too_long.length, too_long.bytes_max
        )),
        outcome: Outcome::Done,
    }
}

fn write_success(
    out: &mut BytesMut,
    correlation: u64,
    op: u8,
    revision: Revision,
    payload_bytes_max: usize,
    fill: impl FnOnce(&mut BytesMut),
) -> Result<(), TooLong> {
    let header = Header {
        kind: Kind::Response,
        op,
        correlation,
        carries_request_id: false,
        is_stale: false,
        word: 0,
    };
    write_frame(out, header, payload_bytes_max, |out| {
        out.put_u64_le(revision.get());
        fill(out);
    })
}

/// Writes the body of a reply that is no error. Answers whether it is one that `op` can have.
fn put_reply(out: &mut BytesMut, op: Op, reply: &Reply) -> bool {
    match (op, reply) {
        (Op::Command, reply) => Writer::new(out, Version::Resp3).reply(reply),
        (Op::Get, Reply::Entry(entry)) => {
            put_entry(out, entry.as_deref().map(EntryRef::from));
        }
        (Op::Set | Op::Delete | Op::CompareAndSet, Reply::Written(written)) => {
            out.put_u8(u8::from(written.applied));
            put_entry(out, written.previous.as_ref().map(EntryRef::from));
        }
        (Op::Set, Reply::Ok) => put_applied(out, true),
        (Op::Set, Reply::Nil) => put_applied(out, false),
        (Op::Delete, Reply::Integer(deleted)) => put_applied(out, *deleted > 0),
        (Op::Increment, Reply::Integer(number)) => out.put_i64_le(*number),
        (Op::Expire, Reply::Integer(changed)) => out.put_u8(u8::from(*changed > 0)),
        (Op::Ping, Reply::Bulk(echo)) => out.put_slice(echo),
        _ => return false,
    }
    true
}

fn put_applied(out: &mut BytesMut, applied: bool) {
    out.put_u8(u8::from(applied));
    put_entry(out, None);
}

fn put_entry(out: &mut BytesMut, entry: Option<EntryRef<'_>>) {
    let Some(entry) = entry else {
        return out.put_u8(0);
    };
    out.reserve(entry.value.len() + 32);
    out.put_u8(1);
    out.put_u64_le(entry.revision.get());
    out.put_u64_le(entry.deadline.map_or(0, UnixMillis::get));
    put_bytes(out, entry.value);
}

impl Response {
    /// Reads a response frame: what the server answers, or the error it reports.
    ///
    /// # Errors
    /// The server broke the protocol; nothing else it says can be relied on.
    pub fn decode(frame: Frame) -> Result<Result<Self, Error>, Malformed> {
        let mut reader = Reader::new(frame.payload);
        if frame.header.word != 0 {
            let error = Error {
                code: code_of_number(reader.u16("code")?),
                outcome: outcome_of_number(reader.u8("outcome")?),
                message: Cow::Owned(
                    String::from_utf8_lossy(&reader.bytes("message")?).into_owned(),
                ),
            };
            reader.end()?;
            return Ok(Err(error));
        }
        let revision = Revision::new(reader.u64("revision")?);
        let body = match Op::of_number(frame.header.op) {
            Some(Op::Get) => Body::Entry(reader.entry()?),
            Some(Op::Set | Op::Delete | Op::CompareAndSet) => Body::Written(Written {
                applied: reader.flag("applied")?,
                previous: reader.entry()?,
            }),
            Some(Op::Increment) => Body::Integer(reader.i64("number")?),
            Some(Op::Expire) => Body::Flag(reader.flag("changed")?),
            Some(Op::Ping) => Body::Echo(reader.rest()),
            Some(Op::Command) => {
                let value = read_value(&mut reader)?;
                if let Value::Error(text) = &value {
                    return Ok(Err(parse_error(&String::from_utf8_lossy(text))));
                }
                Body::Value(value)
            }
            None if frame.header.op == 0 => Body::Nothing,
            None => return Err(Malformed::UnknownValue("op")),
        };
        reader.end()?;
        Ok(Ok(Self { revision, body }))
    }
}

fn read_value(reader: &mut Reader) -> Result<Value, Malformed> {
    let bytes = reader.rest();
    let bulk_bytes_max = bytes.len();
    // A payload is usually the only owner of its bytes, so this copies nothing then.
    let mut buffer = BytesMut::from(bytes);
    let value = ValueDecoder::new(bulk_bytes_max)
        .next(&mut buffer)
        .map_err(|_| Malformed::NoValue)?
        .ok_or(Malformed::NoValue)?;
    if buffer.is_empty() {
        Ok(value)
    } else {
        Err(Malformed::Long(buffer.len()))
    }
}

//! Commands as they go from node to node: one byte for the kind, then its fields in the order of
//! their declaration.

use bytes::{BufMut, Bytes, BytesMut};
use flux_types::{
    Command, ReadCommand, RequestId, Revision, ScanPage, SessionId, Set, SetReply, Transaction,
    TtlForm, UnixMillis, Watch, WriteCommand,
};

use super::{Malformed, put_count, read_count};
use crate::flux::field::{Reader, put_bytes, put_compare, put_condition, put_expiry};
use crate::flux::operation::{number_of_expire_condition, read_expire_condition};

/// Writes begin here; what is below reads.
const WRITES: u8 = 64;

mod kind {
    use super::WRITES;

    pub(super) const GET: u8 = 1;
    pub(super) const GET_ENTRY: u8 = 2;
    pub(super) const GET_MANY: u8 = 3;
    pub(super) const LENGTH: u8 = 4;
    pub(super) const GET_RANGE: u8 = 5;
    pub(super) const EXISTS: u8 = 6;
    pub(super) const TOUCH: u8 = 7;
    pub(super) const TYPE: u8 = 8;
    pub(super) const TTL: u8 = 9;
    pub(super) const RANDOM_KEY: u8 = 10;
    pub(super) const SCAN: u8 = 11;
    pub(super) const KEYS: u8 = 12;
    pub(super) const COUNT: u8 = 13;

    pub(super) const SET: u8 = WRITES;
    pub(super) const COMPARE_AND_SET: u8 = WRITES + 1;
    pub(super) const COMPARE_AND_DELETE: u8 = WRITES + 2;
    pub(super) const GET_DELETE: u8 = WRITES + 3;
    pub(super) const GET_EXPIRE: u8 = WRITES + 4;
    pub(super) const SET_MANY: u8 = WRITES + 5;
    pub(super) const APPEND: u8 = WRITES + 6;
    pub(super) const SET_RANGE: u8 = WRITES + 7;
    pub(super) const INCREMENT: u8 = WRITES + 8;
    pub(super) const INCREMENT_FLOAT: u8 = WRITES + 9;
    pub(super) const DELETE: u8 = WRITES + 10;
    pub(super) const EXPIRE: u8 = WRITES + 11;
    pub(super) const PERSIST: u8 = WRITES + 12;
    pub(super) const RENAME: u8 = WRITES + 13;
    pub(super) const COPY: u8 = WRITES + 14;
    pub(super) const CLEAR: u8 = WRITES + 15;
    pub(super) const TRANSACTION: u8 = WRITES + 16;
    pub(super) const SWEEP_EXPIRED: u8 = WRITES + 17;
    pub(super) const PUT_SYSTEM: u8 = WRITES + 18;
    pub(super) const ONCE: u8 = WRITES + 19;
    pub(super) const QUERY_OUTCOME: u8 = WRITES + 20;
    pub(super) const FORGET_SESSIONS: u8 = WRITES + 21;
    pub(super) const REPLACE_SYSTEM: u8 = WRITES + 22;
}

pub(super) fn put(out: &mut BytesMut, command: &Command) {
    match command {
        Command::Read(read) => put_read(out, read),
        Command::Write(write) => put_write(out, write),
    }
}

fn put_key(out: &mut BytesMut, kind: u8, key: &[u8]) {
    out.put_u8(kind);
    put_bytes(out, key);
}

fn put_keys(out: &mut BytesMut, kind: u8, keys: &[Bytes]) {
    out.put_u8(kind);
    put_count(out, keys.len());
    keys.iter().for_each(|key| put_bytes(out, key));
}

fn put_optional(out: &mut BytesMut, bytes: Option<&Bytes>) {
    out.put_u8(u8::from(bytes.is_some()));
    if let Some(bytes) = bytes {
        put_bytes(out, bytes);
    }
}

fn put_flag(out: &mut BytesMut, flag: bool) {
    out.put_u8(u8::from(flag));
}

fn put_read(out: &mut BytesMut, read: &ReadCommand) {
    match read {
        ReadCommand::Get { key } => put_key(out, kind::GET, key),
        ReadCommand::GetEntry { key } => put_key(out, kind::GET_ENTRY, key),
        ReadCommand::GetMany { keys } => put_keys(out, kind::GET_MANY, keys),
        ReadCommand::Length { key } => put_key(out, kind::LENGTH, key),
        ReadCommand::GetRange { key, start, end } => {
            put_key(out, kind::GET_RANGE, key);
            out.put_i64_le(*start);
            out.put_i64_le(*end);
        }
        ReadCommand::Exists { keys } => put_keys(out, kind::EXISTS, keys),
        ReadCommand::Touch { keys } => put_keys(out, kind::TOUCH, keys),
        ReadCommand::Type { key } => put_key(out, kind::TYPE, key),
        ReadCommand::Ttl { key, form } => {
            put_key(out, kind::TTL, key);
            out.put_u8(match form {
                TtlForm::Seconds => 0,
                TtlForm::Millis => 1,
                TtlForm::AbsoluteSeconds => 2,
                TtlForm::AbsoluteMillis => 3,
            });
        }
        ReadCommand::RandomKey => out.put_u8(kind::RANDOM_KEY),
        ReadCommand::Scan(page) => {
            out.put_u8(kind::SCAN);
            out.put_u64_le(page.cursor);
            put_optional(out, page.pattern.as_ref());
            out.put_u64_le(page.count as u64);
            put_flag(out, page.type_matches);
        }
        ReadCommand::Keys { pattern } => put_key(out, kind::KEYS, pattern),
        ReadCommand::Count => out.put_u8(kind::COUNT),
    }
}

#[expect(clippy::too_many_lines, reason = "one arm for each command")]
fn put_write(out: &mut BytesMut, write: &WriteCommand) {
    match write {
        WriteCommand::Set(set) => put_set(out, set),
        WriteCommand::CompareAndSet {
            key,
            expected,
            value,
            expiry,
        } => {
            put_key(out, kind::COMPARE_AND_SET, key);
            put_compare(out, expected);
            put_bytes(out, value);
            put_expiry(out, *expiry);
        }
        WriteCommand::CompareAndDelete { key, expected } => {
            put_key(out, kind::COMPARE_AND_DELETE, key);
            put_compare(out, expected);
        }
        WriteCommand::GetDelete { key } => put_key(out, kind::GET_DELETE, key),
        WriteCommand::GetExpire { key, expiry } => {
            put_key(out, kind::GET_EXPIRE, key);
            put_expiry(out, *expiry);
        }
        WriteCommand::SetMany {
            pairs,
            if_none_exists,
        } => {
            out.put_u8(kind::SET_MANY);
            put_flag(out, *if_none_exists);
            put_count(out, pairs.len());
            for (key, value) in pairs {
                put_bytes(out, key);
                put_bytes(out, value);
            }
        }
        WriteCommand::Append { key, value } => {
            put_key(out, kind::APPEND, key);
            put_bytes(out, value);
        }
        WriteCommand::SetRange { key, offset, value } => {
            put_key(out, kind::SET_RANGE, key);
            out.put_u64_le(*offset);
            put_bytes(out, value);
        }
        WriteCommand::Increment { key, by } => {
            put_key(out, kind::INCREMENT, key);
            out.put_i64_le(*by);
        }
        WriteCommand::IncrementFloat { key, by } => {
            put_key(out, kind::INCREMENT_FLOAT, key);
            out.put_u64_le(by.to_bits());
        }
        WriteCommand::Delete { keys } => put_keys(out, kind::DELETE, keys),
        WriteCommand::SweepExpired { keys } => put_keys(out, kind::SWEEP_EXPIRED, keys),
        WriteCommand::Expire {
            key,
            expiry,
            condition,
        } => {
            put_key(out, kind::EXPIRE, key);
            put_expiry(out, *expiry);
            out.put_u8(number_of_expire_condition(*condition));
        }
        WriteCommand::Persist { key } => put_key(out, kind::PERSIST, key),
        WriteCommand::Rename {
            source,
            target,
            if_absent,
        } => put_two(out, kind::RENAME, source, target, *if_absent),
        WriteCommand::Copy {
            source,
            target,
            replace,
        } => put_two(out, kind::COPY, source, target, *replace),
        WriteCommand::Clear => out.put_u8(kind::CLEAR),
        WriteCommand::Transaction(transaction) => put_transaction(out, transaction),
        WriteCommand::Once(once) => {
            out.put_u8(kind::ONCE);
            put_request(out, once.request());
            put(out, once.command());
        }
        WriteCommand::QueryOutcome { request, key } => {
            out.put_u8(kind::QUERY_OUTCOME);
            put_request(out, request);
            put_optional(out, key.as_ref());
        }
        WriteCommand::ForgetSessions => out.put_u8(kind::FORGET_SESSIONS),
        WriteCommand::PutSystem { name, value } => {
            put_key(out, kind::PUT_SYSTEM, name);
            put_optional(out, value.as_ref());
        }
        WriteCommand::ReplaceSystem {
            name,
            expected,
            value,
        } => {
            put_key(out, kind::REPLACE_SYSTEM, name);
            put_optional(out, expected.as_ref());
            put_bytes(out, value);
        }
    }
}

fn put_request(out: &mut BytesMut, request: &RequestId) {
    out.put_u128_le(request.session.get());
    out.put_u64_le(request.sequence);
    out.put_u64_le(request.lowest_unanswered);
}

fn put_set(out: &mut BytesMut, set: &Set) {
    put_key(out, kind::SET, &set.key);
    put_bytes(out, &set.value);
    put_condition(out, &set.condition);
    put_expiry(out, set.expiry);
    out.put_u8(match set.reply {
        SetReply::Status => 0,
        SetReply::Flag => 1,
        SetReply::Previous => 2,
        SetReply::Written => 3,
    });
}

fn put_two(out: &mut BytesMut, kind: u8, source: &[u8], target: &[u8], flag: bool) {
    put_key(out, kind, source);
    put_bytes(out, target);
    put_flag(out, flag);
}

fn put_transaction(out: &mut BytesMut, transaction: &Transaction) {
    out.put_u8(kind::TRANSACTION);
    put_count(out, transaction.watches.len());
    for watch in &transaction.watches {
        put_bytes(out, &watch.key);
        put_flag(out, watch.revision.is_some());
        out.put_u64_le(watch.revision.map_or(0, Revision::get));
        out.put_u64_le(watch.since.get());
    }
    put_count(out, transaction.commands.len());
    transaction
        .commands
        .iter()
        .for_each(|command| put(out, command));
}

pub(super) fn read(reader: &mut Reader) -> Result<Command, Malformed> {
    match reader.u8("command")? {
        kind::TRANSACTION => read_transaction(reader),
        kind::ONCE => {
            let request = read_request(reader)?;
            // Only a write has a request id, and only one.
            let command = match reader.u8("command")? {
                kind::TRANSACTION => read_transaction(reader)?,
                kind if kind < WRITES => return Err(Malformed::UnknownValue("command")),
                kind => read_simple(kind, reader)?,
            };
            Ok(command.once(request))
        }
        kind => read_simple(kind, reader),
    }
}

fn read_request(reader: &mut Reader) -> Result<RequestId, Malformed> {
    let session = SessionId::new(reader.u128("session")?);
    Ok(RequestId {
        session: session.ok_or(Malformed::UnknownValue("session"))?,
        sequence: reader.u64("sequence")?,
        lowest_unanswered: reader.u64("lowest unanswered")?,
    })
}

/// A command that is no transaction.
fn read_simple(kind: u8, reader: &mut Reader) -> Result<Command, Malformed> {
    if kind < WRITES {
        read_read(kind, reader).map(Command::Read)
    } else {
        read_write(kind, reader).map(Command::Write)
    }
}

/// Transactions do not nest: what would need another inside is refused.
fn read_transaction(reader: &mut Reader) -> Result<Command, Malformed> {
    let count = read_count(reader, 21, "watches")?;
    let mut watches = Vec::with_capacity(count);
    for _ in 0..count {
        let key = reader.bytes("key")?;
        let is_known = reader.flag("revision")?;
        let revision = Revision::new(reader.u64("revision")?);
        if !is_known && revision.get() != 0 {
            return Err(Malformed::UnknownValue("revision"));
        }
        watches.push(Watch {
            key,
            revision: is_known.then_some(revision),
            since: UnixMillis::new(reader.u64("since")?),
        });
    }
    let count = read_count(reader, 1, "commands")?;
    let mut commands = Vec::new();
    for _ in 0..count {
        let kind = reader.u8("command")?;
        commands.push(read_simple(kind, reader)?);
    }
    Ok(Command::Write(WriteCommand::Transaction(Transaction {
        watches,
        commands,
    })))
}

fn read_keys(reader: &mut Reader) -> Result<Vec<Bytes>, Malformed> {
    let count = read_count(reader, 4, "keys")?;
    (0..count).map(|_| reader.bytes("key")).collect()
}

fn read_optional(reader: &mut Reader, field: &'static str) -> Result<Option<Bytes>, Malformed> {
    if reader.flag(field)? {
        reader.bytes(field).map(Some)
    } else {
        Ok(None)
    }
}

fn read_read(kind: u8, reader: &mut Reader) -> Result<ReadCommand, Malformed> {
    Ok(match kind {
        kind::GET => ReadCommand::Get {
            key: reader.bytes("key")?,
        },
        kind::GET_ENTRY => ReadCommand::GetEntry {
            key: reader.bytes("key")?,
        },
        kind::GET_MANY => ReadCommand::GetMany {
            keys: read_keys(reader)?,
        },
        kind::LENGTH => ReadCommand::Length {
            key: reader.bytes("key")?,
        },
        kind::GET_RANGE => ReadCommand::GetRange {
            key: reader.bytes("key")?,
            start: reader.i64("start")?,
            end: reader.i64("end")?,
        },
        kind::EXISTS => ReadCommand::Exists {
            keys: read_keys(reader)?,
        },
        kind::TOUCH => ReadCommand::Touch {
            keys: read_keys(reader)?,
        },
        kind::TYPE => ReadCommand::Type {
            key: reader.bytes("key")?,
        },
        kind::TTL => ReadCommand::Ttl {
            key: reader.bytes("key")?,
            form: match reader.u8("form")? {
                0 => TtlForm::Seconds,
                1 => TtlForm::Millis,
                2 => TtlForm::AbsoluteSeconds,
                3 => TtlForm::AbsoluteMillis,
                _ => return Err(Malformed::UnknownValue("form")),
            },
        },
        kind::RANDOM_KEY => ReadCommand::RandomKey,
        kind::SCAN => ReadCommand::Scan(ScanPage {
            cursor: reader.u64("cursor")?,
            pattern: read_optional(reader, "pattern")?,
            count: usize::try_from(reader.u64("count")?)
                .map_err(|_| Malformed::UnknownValue("count"))?,
            type_matches: reader.flag("type")?,
        }),
        kind::KEYS => ReadCommand::Keys {
            pattern: reader.bytes("pattern")?,
        },
        kind::COUNT => ReadCommand::Count,
        _ => return Err(Malformed::UnknownValue("command")),
    })
}

#[expect(clippy::too_many_lines, reason = "one arm for each command")]
fn read_write(kind: u8, reader: &mut Reader) -> Result<WriteCommand, Malformed> {
    Ok(match kind {
        kind::SET => WriteCommand::Set(read_set(reader)?),
        kind::COMPARE_AND_SET => WriteCommand::CompareAndSet {
            key: reader.bytes("key")?,
            expected: reader.compare()?,
            value: reader.bytes("value")?,
            expiry: reader.expiry()?,
        },
        kind::COMPARE_AND_DELETE => WriteCommand::CompareAndDelete {
            key: reader.bytes("key")?,
            expected: reader.compare()?,
        },
        kind::GET_DELETE => WriteCommand::GetDelete {
            key: reader.bytes("key")?,
        },
        kind::GET_EXPIRE => WriteCommand::GetExpire {
            key: reader.bytes("key")?,
            expiry: reader.expiry()?,
        },
        kind::SET_MANY => read_pairs(reader)?,
        kind::APPEND => WriteCommand::Append {
            key: reader.bytes("key")?,
            value: reader.bytes("value")?,
        },
        kind::SET_RANGE => WriteCommand::SetRange {
            key: reader.bytes("key")?,
            offset: reader.u64("offset")?,
            value: reader.bytes("value")?,
        },
        kind::INCREMENT => WriteCommand::Increment {
            key: reader.bytes("key")?,
            by: reader.i64("by")?,
        },
        kind::INCREMENT_FLOAT => WriteCommand::IncrementFloat {
            key: reader.bytes("key")?,
            by: f64::from_bits(reader.u64("by")?),
        },
        kind::DELETE => WriteCommand::Delete {
            keys: read_keys(reader)?,
        },
        kind::SWEEP_EXPIRED => WriteCommand::SweepExpired {
            keys: read_keys(reader)?,
        },
        kind::EXPIRE => WriteCommand::Expire {
            key: reader.bytes("key")?,
            expiry: reader.expiry()?,
            condition: read_expire_condition(reader)?,
        },
        kind::PERSIST => WriteCommand::Persist {
            key: reader.bytes("key")?,
        },
        kind::RENAME => WriteCommand::Rename {
            source: reader.bytes("source")?,
            target: reader.bytes("target")?,
            if_absent: reader.flag("if absent")?,
        },
        kind::COPY => WriteCommand::Copy {
            source: reader.bytes("source")?,
            target: reader.bytes("target")?,
            replace: reader.flag("replace")?,
        },
        kind::CLEAR => WriteCommand::Clear,
        kind::QUERY_OUTCOME => WriteCommand::QueryOutcome {
            request: read_request(reader)?,
            key: read_optional(reader, "key")?,
        },
        kind::FORGET_SESSIONS => WriteCommand::ForgetSessions,
        kind::PUT_SYSTEM => WriteCommand::PutSystem {
            name: reader.bytes("name")?,
            value: read_optional(reader, "value")?,
        },
        kind::REPLACE_SYSTEM => WriteCommand::ReplaceSystem {
            name: reader.bytes("name")?,
            expected: read_optional(reader, "expected")?,
            value: reader.bytes("value")?,
        },
        _ => return Err(Malformed::UnknownValue("command")),
    })
}

fn read_pairs(reader: &mut Reader) -> Result<WriteCommand, Malformed> {
    let if_none_exists = reader.flag("if none exists")?;
    let count = read_count(reader, 8, "pairs")?;
    let mut pairs = Vec::with_capacity(count);
    for _ in 0..count {
        pairs.push((reader.bytes("key")?, reader.bytes("value")?));
    }
    Ok(WriteCommand::SetMany {
        pairs,
        if_none_exists,
    })
}

fn read_set(reader: &mut Reader) -> Result<Set, Malformed> {
    Ok(Set {
        key: reader.bytes("key")?,
        value: reader.bytes("value")?,
        condition: reader.condition()?,
        expiry: reader.expiry()?,
        reply: match reader.u8("reply")? {
            0 => SetReply::Status,
            1 => SetReply::Flag,
            2 => SetReply::Previous,
            3 => SetReply::Written,
            _ => return Err(Malformed::UnknownValue("reply")),
        },
    })
}

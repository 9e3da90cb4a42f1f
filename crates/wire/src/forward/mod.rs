//! Commands and answers between nodes: what one node forwards to the leader of a shard, and what
//! comes back (`docs/replication.md`, "Forwarding").
//!
//! Unlike the client protocols this encoding is lossless: whatever a command or an answer holds
//! arrives as it was. Both ends are nodes that have authenticated each other, yet nothing that is
//! read is trusted: counts are checked against the bytes that are there, nesting has a depth, and
//! what is not assigned is an error.

mod answer;
mod command;
#[cfg(test)]
mod tests;

use bytes::{BufMut, Bytes, BytesMut};
use flux_types::{Answer, Command, TraceParent, limits};

pub use crate::flux::Malformed;
use crate::flux::field::Reader;

/// Commands of one turn of one or several sessions, on their way to another node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Forwarded {
    /// How long answers are of use, in milliseconds.
    pub timeout_ms: u32,
    /// By how many shards the sender has chosen this one: see `flux_raft::Submission`.
    pub routing: u32,
    /// The commands, in order.
    pub commands: Vec<Command>,
    /// Which of them belong to a traced request, by their number, rising.
    pub traces: Vec<(usize, TraceParent)>,
}

impl Forwarded {
    /// Appends all of it.
    pub fn write(&self, out: &mut BytesMut) {
        out.put_u32_le(self.timeout_ms);
        out.put_u32_le(self.routing);
        put_count(out, self.commands.len());
        for command in &self.commands {
            command::put(out, command);
        }
        put_count(out, self.traces.len());
        for (number, trace) in &self.traces {
            put_count(out, *number);
            out.put_u128_le(trace.trace_id());
            out.put_u64_le(trace.span_id());
            out.put_u8(u8::from(trace.is_sampled()));
        }
    }

    /// The reverse of [`Forwarded::write`].
    ///
    /// # Errors
    /// Anything that function does not write.
    pub fn read(payload: Bytes) -> Result<Self, Malformed> {
        let mut reader = Reader::new(payload);
        let timeout_ms = reader.u32("timeout")?;
        let routing = reader.u32("routing")?;
        let count = read_count(&mut reader, 1, "commands")?;
        if count > limits::PROPOSER_QUEUE_OPERATIONS_MAX {
            return Err(Malformed::UnknownValue("commands"));
        }
        let mut commands = Vec::with_capacity(count);
        for _ in 0..count {
            commands.push(command::read(&mut reader)?);
        }
        let traces = read_numbered(&mut reader, count, 29, "traces", |reader| {
            let (trace, span) = (reader.u128("trace")?, reader.u64("span")?);
            let sampled = reader.flag("sampled")?;
            TraceParent::new(trace, span, sampled).ok_or(Malformed::UnknownValue("trace"))
        })?;
        reader.end()?;
        Ok(Self {
            timeout_ms,
            routing,
            commands,
            traces,
        })
    }
}

/// Items that belong to some of the commands, by rising number.
fn read_numbered<T>(
    reader: &mut Reader,
    commands: usize,
    item_bytes: usize,
    field: &'static str,
    read: impl Fn(&mut Reader) -> Result<T, Malformed>,
) -> Result<Vec<(usize, T)>, Malformed> {
    let count = read_count(reader, item_bytes, field)?;
    let mut items: Vec<(usize, T)> = Vec::with_capacity(count);
    for _ in 0..count {
        let number = reader.u32(field)? as usize;
        let is_rising = items.last().is_none_or(|(last, _)| *last < number);
        if !is_rising || commands <= number {
            return Err(Malformed::UnknownValue(field));
        }
        items.push((number, read(reader)?));
    }
    Ok(items)
}

/// Appends answers.
pub fn write_answers(out: &mut BytesMut, answers: &[Answer]) {
    put_count(out, answers.len());
    for answer in answers {
        out.put_u64_le(answer.revision.get());
        answer::put(out, &answer.reply);
    }
}

/// The reverse of [`write_answers`].
///
/// # Errors
/// Anything that function does not write.
pub fn read_answers(payload: Bytes) -> Result<Vec<Answer>, Malformed> {
    let mut reader = Reader::new(payload);
    let count = read_count(&mut reader, 9, "answers")?;
    let mut answers = Vec::with_capacity(count);
    for _ in 0..count {
        answers.push(answer::read_answer(&mut reader)?);
    }
    reader.end()?;
    Ok(answers)
}

fn put_count(out: &mut BytesMut, count: usize) {
    // A count beyond 32 bits makes a payload that no frame holds.
    out.put_u32_le(u32::try_from(count).unwrap_or(u32::MAX));
}

/// A count of items of at least so many bytes each, which the rest must have room for.
fn read_count(
    reader: &mut Reader,
    item_bytes: usize,
    field: &'static str,
) -> Result<usize, Malformed> {
    let count = reader.u32(field)? as usize;
    if count > reader.remaining() / item_bytes.max(1) {
        return Err(Malformed::UnknownValue(field));
    }
    Ok(count)
}

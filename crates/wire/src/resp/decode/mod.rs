//! Requests as bytes to requests as values, however the bytes were split on their way.
//!
//! Hot path: a complete plain `GET` or `SET` becomes a command without a table lookup and without
//! an argument vector; arguments are slices of the read buffer, never copies. Nothing is consumed
//! before the whole command has arrived, and what was understood of a partial one is kept, so
//! that a command which arrives byte by byte is still read in linear time.
//!
//! Memory of a partial command: its bytes in the read buffer, and 8 bytes for each argument that
//! has completely arrived (an argument is at least 6 bytes). A header that announces a million
//! arguments allocates nothing. A complete command costs 32 bytes per argument on top.

use bytes::{Buf, Bytes, BytesMut};
use flux_types::{Command, Error, ErrorCode, ReadCommand, Set, WriteCommand, limits};

use super::inline;
use super::parse::{Decoded, Request, parse};
use super::spec::Spec;
use super::table;
use crate::Limits;
use crate::number::parse_i64;

/// Bytes that are not RESP. Fatal for the connection: what follows cannot be told apart from the
/// inside of an argument. The texts are Redis's, as its clients and tests look for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// The number after `*` is none, or too large.
    #[error("Protocol error: invalid multibulk length")]
    InvalidMultibulkLength,
    /// More arguments than a connection may send before it has authenticated.
    #[error("Protocol error: unauthenticated multibulk length")]
    UnauthenticatedMultibulkLength,
    /// No line end where the number after `*` should have ended.
    #[error("Protocol error: too big mbulk count string")]
    TooBigMultibulkCount,
    /// An argument does not begin with `$`.
    #[error("Protocol error: expected '$', got '{}'", .got.escape_ascii())]
    ExpectedBulk {
        /// What it begins with.
        got: u8,
    },
    /// The number after `$` is none, negative, or too large.
    #[error("Protocol error: invalid bulk length")]
    InvalidBulkLength,
    /// A longer argument than a connection may send before it has authenticated.
    #[error("Protocol error: unauthenticated bulk length")]
    UnauthenticatedBulkLength,
    /// No line end where the number after `$` should have ended.
    #[error("Protocol error: too big bulk count string")]
    TooBigBulkCount,
    /// A length or an argument is not followed by CR LF.
    #[error("Protocol error: expected CRLF")]
    ExpectedLineEnd,
    /// All arguments together are too long.
    #[error(
        "Protocol error: command is longer than {} bytes",
        limits::COMMAND_BYTES_MAX
    )]
    TooBigCommand,
    /// An inline command with a quote that does not end, or does not end its argument.
    #[error("Protocol error: unbalanced quotes in request")]
    UnbalancedQuotes,
    /// An inline command without an end.
    #[error("Protocol error: too big inline request")]
    TooBigInline,
}

impl From<ProtocolError> for Error {
    fn from(error: ProtocolError) -> Self {
        Self::not_done(ErrorCode::Invalid, error.to_string())
    }
}

/// Where an argument lies in the read buffer, counted from the beginning of its command. A
/// command is shorter than 4 GiB, so half the size does.
#[derive(Clone, Copy, Debug)]
struct Span {
    start: u32,
    end: u32,
}

const _: () = assert!(limits::COMMAND_BYTES_MAX <= u32::MAX as usize / 2);

/// Spans kept allocated between commands; more are given back.
const SPANS_KEPT: usize = 1024;

/// The decoder of one connection. See the module for what it allocates.
#[derive(Debug)]
pub struct Decoder {
    limits: Limits,
    is_authenticated: bool,
    /// Arguments of the command in hand; 0 between commands.
    arguments: usize,
    /// Those that have arrived.
    spans: Vec<Span>,
    /// Bytes of the buffer that have been understood (multibulk) or searched in vain for a line
    /// end (inline).
    seen: usize,
    /// Bytes known to be missing.
    wanted: usize,
}

/// What a step of decoding came to.
enum Step<T> {
    Done(T),
    NeedMore,
}

impl Decoder {
    /// A decoder for a connection that has not authenticated.
    #[must_use]
    pub const fn new(limits: Limits) -> Self {
        Self {
            limits,
            is_authenticated: false,
            arguments: 0,
            spans: Vec::new(),
            seen: 0,
            wanted: 0,
        }
    }

    /// Lifts the limits that hold before authentication, or, after RESET, puts them back. Call it
    /// at once when there is no password.
    pub const fn set_authenticated(&mut self, is_authenticated: bool) {
        self.is_authenticated = is_authenticated;
    }

    /// The limits this decoder was made with.
    #[must_use]
    pub const fn limits(&self) -> Limits {
        self.limits
    }

    /// How many more bytes the command in hand is known to need; for
    /// [`crate::reserve_for_read`].
    #[must_use]
    pub const fn wanted(&self) -> usize {
        self.wanted
    }

    /// Takes the next request from the front of `buffer`, or `None` if it is not all there yet.
    /// A well-framed command that is not valid comes as [`Request::Invalid`]: the connection
    /// lives.
    ///
    /// # Errors
    /// The bytes are not RESP: answer the error and close. Nothing more can be decoded.
    pub fn next(&mut self, buffer: &mut BytesMut) -> Result<Option<Decoded>, ProtocolError> {
        if self.is_authenticated
            && self.arguments == 0
            && let Some(decoded) = plain(buffer, self.limits)
        {
            self.wanted = 0;
            return Ok(Some(decoded));
        }
        Ok(self.next_argv(buffer)?.map(|argv| parse(argv, self.limits)))
    }

    /// Takes the next command as its arguments, the name first. Never empty.
    ///
    /// # Errors
    /// As [`Decoder::next`].
    pub fn next_argv(
        &mut self,
        buffer: &mut BytesMut,
    ) -> Result<Option<Vec<Bytes>>, ProtocolError> {
        loop {
            if self.arguments > 0 {
                return self.multibulk(buffer);
            }
            match buffer.first() {
                None => return Ok(None),
                Some(b'*') => match self.multibulk_header(buffer)? {
                    Step::Done(()) => {}
                    Step::NeedMore => return Ok(None),
                },
                Some(_) => match self.inline(buffer)? {
                    Step::Done(argv) if argv.is_empty() => {}
                    Step::Done(argv) => return Ok(Some(argv)),
                    Step::NeedMore => return Ok(None),
                },
            }
        }
    }

    /// Reads `*n`. An `n` of 0 or less is a command of nothing, which is skipped.
    fn multibulk_header(&mut self, buffer: &mut BytesMut) -> Result<Step<()>, ProtocolError> {
        let (text, length) = match line(buffer, 0, ProtocolError::TooBigMultibulkCount)? {
            Step::Done(line) => line,
            Step::NeedMore => {
                self.wanted = 1;
                return Ok(Step::NeedMore);
            }
        };
        let count = parse_i64(text).ok_or(ProtocolError::InvalidMultibulkLength)?;
        let Ok(count) = usize::try_from(count) else {
            buffer.advance(length);
            return Ok(Step::Done(()));
        };
        if count > limits::ARGUMENTS_MAX {
            return Err(ProtocolError::InvalidMultibulkLength);
        }
        if !self.is_authenticated && count > limits::UNAUTHENTICATED_ARGUMENTS_MAX {
            return Err(ProtocolError::UnauthenticatedMultibulkLength);
        }
        if count == 0 {
            buffer.advance(length);
        } else {
            self.arguments = count;
            self.seen = length;
        }
        Ok(Step::Done(()))
    }

    /// Reads the arguments of the command in hand and, once all are there, takes them.
    fn multibulk(&mut self, buffer: &mut BytesMut) -> Result<Option<Vec<Bytes>>, ProtocolError> {
        while self.spans.len() < self.arguments {
            match self.bulk(buffer)? {
                Step::Done(span) => {
                    self.seen = span.end as usize + 2;
                    self.spans.push(span);
                }
                Step::NeedMore => return Ok(None),
            }
        }
        let whole = buffer.split_to(self.seen).freeze();
        let argv = self
            .spans
            .iter()
            .map(|span| whole.slice(span.start as usize..span.end as usize))
            .collect();
        self.arguments = 0;
        self.seen = 0;
        self.wanted = 0;
        self.spans.clear();
        self.spans.shrink_to(SPANS_KEPT);
        Ok(Some(argv))
    }

    /// Reads one argument, from the first byte not yet understood.
    fn bulk(&mut self, buffer: &BytesMut) -> Result<Step<Span>, ProtocolError> {
        let Some(&first) = buffer.get(self.seen) else {
            self.wanted = (self.arguments - self.spans.len()) * SMALLEST_BULK_BYTES;
            return Ok(Step::NeedMore);
        };
        if first != b'$' {
            return Err(ProtocolError::ExpectedBulk { got: first });
        }
        let (text, header) = match line(buffer, self.seen, ProtocolError::TooBigBulkCount)? {
            Step::Done(line) => line,
            Step::NeedMore => {
                self.wanted = 1;
                return Ok(Step::NeedMore);
            }
        };
        let length = parse_i64(text)
            .and_then(|length| usize::try_from(length).ok())
            .filter(|&length| length <= self.limits.frame_bytes_max())
            .ok_or(ProtocolError::InvalidBulkLength)?;
        if !self.is_authenticated && length > limits::UNAUTHENTICATED_BULK_BYTES_MAX {
            return Err(ProtocolError::UnauthenticatedBulkLength);
        }
        let start = self.seen + header;
        let end = start + length;
        if end > limits::COMMAND_BYTES_MAX {
            return Err(ProtocolError::TooBigCommand);
        }
        if !ends_line(buffer, end)? {
            self.wanted = (end + 2).saturating_sub(buffer.len());
            return Ok(Step::NeedMore);
        }
        Ok(Step::Done(Span {
            start: offset(start),
            end: offset(end),
        }))
    }

    /// Reads a command written as one line.
    fn inline(&mut self, buffer: &mut BytesMut) -> Result<Step<Vec<Bytes>>, ProtocolError> {
        let line_bytes_max = if self.is_authenticated {
            limits::INLINE_BYTES_MAX
        } else {
            limits::UNAUTHENTICATED_BULK_BYTES_MAX
        };
        let searched = buffer.get(self.seen..).unwrap_or_default();
        let end = memchr::memchr(b'\n', searched).map(|at| self.seen + at);
        if end.unwrap_or(buffer.len()) > line_bytes_max {
            return Err(ProtocolError::TooBigInline);
        }
        let Some(end) = end else {
            self.seen = buffer.len();
            self.wanted = 1;
            return Ok(Step::NeedMore);
        };
        // The line stays in the buffer until it is known to be good, so that a bad one is
        // reported however often it is looked at.
        let argv = inline::split(buffer.get(..end).unwrap_or_default())?;
        if !self.is_authenticated && argv.len() > limits::UNAUTHENTICATED_ARGUMENTS_MAX {
            return Err(ProtocolError::UnauthenticatedMultibulkLength);
        }
        buffer.advance(end + 1);
        self.seen = 0;
        self.wanted = 0;
        Ok(Step::Done(argv))
    }
}

/// `$0`, its line end, and that of nothing.
const SMALLEST_BULK_BYTES: usize = 6;

/// Longest line that holds a length: a sign, 19 digits, and room to say what is wrong with it.
const LENGTH_LINE_BYTES_MAX: usize = 32;

/// The text between the type byte at `at` and its line end, and the length of the whole line.
fn line(
    buffer: &BytesMut,
    at: usize,
    too_long: ProtocolError,
) -> Result<Step<(&[u8], usize)>, ProtocolError> {
    let rest = buffer.get(at + 1..).unwrap_or_default();
    let window = rest.get(..LENGTH_LINE_BYTES_MAX).unwrap_or(rest);
    let Some(end) = memchr::memchr(b'\r', window) else {
        return if window.len() == LENGTH_LINE_BYTES_MAX {
            Err(too_long)
        } else {
            Ok(Step::NeedMore)
        };
    };
    match rest.get(end + 1) {
        None => Ok(Step::NeedMore),
        Some(b'\n') => Ok(Step::Done((rest.get(..end).unwrap_or_default(), end + 3))),
        Some(_) => Err(ProtocolError::ExpectedLineEnd),
    }
}

/// Whether CR LF is at `at`; `false` if they have not both arrived.
fn ends_line(buffer: &[u8], at: usize) -> Result<bool, ProtocolError> {
    match (buffer.get(at), buffer.get(at + 1)) {
        (None, _) | (Some(b'\r'), None) => Ok(false),
        (Some(b'\r'), Some(b'\n')) => Ok(true),
        (Some(_), _) => Err(ProtocolError::ExpectedLineEnd),
    }
}

fn offset(at: usize) -> u32 {
    u32::try_from(at).expect("a command is shorter than COMMAND_BYTES_MAX, which fits (asserted)")
}

static GET: &Spec = table::must_find("get");
static SET: &Spec = table::must_find("set");

/// The direct way for `GET key` and `SET key value`, whole and in the shape that every client
/// library sends. Anything else is left, untouched, to the general way.
fn plain(buffer: &mut BytesMut, limits: Limits) -> Option<Decoded> {
    let head = buffer.first_chunk::<13>()?;
    let is_get = head.starts_with(b"*2\r\n$3\r\n");
    if !is_get && !head.starts_with(b"*3\r\n$3\r\n") {
        return None;
    }
    let name = head.last_chunk::<5>()?;
    let key = plain_bulk(buffer, head.len(), limits::KEY_BYTES_MAX)?;
    if is_get {
        if !name.eq_ignore_ascii_case(b"get\r\n") {
            return None;
        }
        let key = take(buffer, 0, key);
        buffer.advance(2);
        return Some(Decoded {
            spec: Some(GET),
            request: Request::Data(Command::Read(ReadCommand::Get { key })),
        });
    }
    if !name.eq_ignore_ascii_case(b"set\r\n") {
        return None;
    }
    let value = plain_bulk(buffer, key.1 + 2, limits.value_bytes_max)?;
    let key_bytes = take(buffer, 0, key);
    let value = take(buffer, key.1, value);
    buffer.advance(2);
    Some(Decoded {
        spec: Some(SET),
        request: Request::Data(Command::Write(WriteCommand::Set(Set::plain(
            key_bytes, value,
        )))),
    })
}

/// Where the bulk whose header is at `at` starts and ends, if all of it and its line end are
/// there and it is at most `bytes_max` long.
fn plain_bulk(buffer: &[u8], at: usize, bytes_max: usize) -> Option<(usize, usize)> {
    let (&first, mut rest) = buffer.get(at..)?.split_first()?;
    if first != b'$' {
        return None;
    }
    let mut length = 0_usize;
    let mut digits = 0_usize;
    loop {
        let (&byte, tail) = rest.split_first()?;
        rest = tail;
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            if byte != b'\r' {
                return None;
            }
            break;
        }
        // Eight digits hold every length that is allowed and cannot overflow. A zero in front
        // is an error, which the general way reports.
        if digits == 8 || (digits == 1 && length == 0) {
            return None;
        }
        length = length * 10 + usize::from(digit);
        digits += 1;
    }
    if digits == 0 || length > bytes_max || rest.first() != Some(&b'\n') {
        return None;
    }
    let start = at + digits + 3;
    let end = start + length;
    if buffer.get(end..end + 2)? != b"\r\n" {
        return None;
    }
    Some((start, end))
}

/// Takes the bytes `from..to` as a slice of the buffer, whose first `consumed` bytes are gone, and
/// drops what is before them.
fn take(buffer: &mut BytesMut, consumed: usize, (from, to): (usize, usize)) -> Bytes {
    buffer.advance(from - consumed);
    buffer.split_to(to - from).freeze()
}

#[cfg(test)]
mod tests;

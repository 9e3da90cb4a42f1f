//! Replies as bytes to replies as values: the client's half of RESP2 and RESP3.
//!
//! Nothing is allocated for what a header announces: an aggregate grows with the elements that
//! have arrived. There is no recursion; nesting is limited to
//! [`flux_types::limits::NESTING_MAX`].

use bytes::{Buf, Bytes, BytesMut};
use flux_types::limits;

use crate::number::{parse_f64, parse_i64};

/// Any reply.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `+`: a short text.
    Simple(Bytes),
    /// `-` and RESP3's `!`: an error, its code word first.
    Error(Bytes),
    /// `:`.
    Integer(i64),
    /// `$`: a string of bytes.
    Bulk(Bytes),
    /// `_`, and RESP2's `$-1` and `*-1`.
    Null,
    /// `*`.
    Array(Vec<Value>),
    /// `%`, in the order sent.
    Map(Vec<(Value, Value)>),
    /// `~`, in the order sent.
    Set(Vec<Value>),
    /// `>`: it answers no request.
    Push(Vec<Value>),
    /// `,`.
    Double(f64),
    /// `#`.
    Boolean(bool),
    /// `(`: its digits.
    BigNumber(Bytes),
    /// `=`: text and its format, such as `txt`.
    Verbatim {
        /// Three letters.
        format: Bytes,
        /// The text.
        text: Bytes,
    },
}

/// Bytes that are not a RESP reply. Fatal for the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// No type begins with this byte.
    #[error("no reply begins with '{}'", .0.escape_ascii())]
    UnknownType(u8),
    /// What should be a number is none.
    #[error("malformed number in a reply")]
    InvalidNumber,
    /// A length is negative, malformed or too large.
    #[error("invalid length in a reply")]
    InvalidLength,
    /// A line end is missing.
    #[error("expected CRLF in a reply")]
    ExpectedLineEnd,
    /// A line is too long.
    #[error("line of more than {LINE_BYTES_MAX} bytes in a reply")]
    TooLongLine,
    /// Aggregates are nested too deeply.
    #[error("reply nested more than {} deep", limits::NESTING_MAX)]
    TooDeep,
}

/// Longest simple string, error or number.
const LINE_BYTES_MAX: usize = limits::INLINE_BYTES_MAX;

/// An aggregate whose elements are still arriving.
#[derive(Debug)]
struct Open {
    kind: Aggregate,
    /// Elements missing; a pair of a map is two.
    missing: u64,
    elements: Vec<Value>,
}

#[derive(Clone, Copy, Debug)]
enum Aggregate {
    Array,
    Map,
    Set,
    Push,
    /// Read and dropped: the value it belongs to follows.
    Attribute,
}

impl Open {
    fn close(self) -> Option<Value> {
        Some(match self.kind {
            Aggregate::Array => Value::Array(self.elements),
            Aggregate::Set => Value::Set(self.elements),
            Aggregate::Push => Value::Push(self.elements),
            Aggregate::Map => {
                let mut pairs = Vec::with_capacity(self.elements.len() / 2);
                let mut elements = self.elements.into_iter();
                while let (Some(key), Some(value)) = (elements.next(), elements.next()) {
                    pairs.push((key, value));
                }
                Value::Map(pairs)
            }
            Aggregate::Attribute => return None,
        })
    }
}

/// What the front of the buffer holds.
enum Token {
    Scalar(Value),
    Open(Aggregate, u64),
}

/// The reply decoder of one connection.
#[derive(Debug)]
pub struct ValueDecoder {
    bulk_bytes_max: usize,
    open: Vec<Open>,
    /// Bytes of the buffer already searched for a line end.
    searched: usize,
    wanted: usize,
}

impl ValueDecoder {
    /// A decoder that refuses strings longer than `bulk_bytes_max`, of which more than
    /// [`limits::COMMAND_BYTES_MAX`] is not heard.
    #[must_use]
    pub const fn new(bulk_bytes_max: usize) -> Self {
        // The bound keeps the sums of lengths far from overflow.
        let bulk_bytes_max = if bulk_bytes_max < limits::COMMAND_BYTES_MAX {
            bulk_bytes_max
        } else {
            limits::COMMAND_BYTES_MAX
        };
        Self {
            bulk_bytes_max,
            open: Vec::new(),
            searched: 0,
            wanted: 0,
        }
    }

    /// How many more bytes the reply in hand is known to need; for [`crate::reserve_for_read`].
    #[must_use]
    pub const fn wanted(&self) -> usize {
        self.wanted
    }

    /// Takes the next reply from the front of `buffer`, or `None` if it is not all there yet.
    /// Parts of a reply are consumed as they arrive.
    ///
    /// # Errors
    /// The bytes are not RESP; nothing more can be decoded.
    pub fn next(&mut self, buffer: &mut BytesMut) -> Result<Option<Value>, ValueError> {
        loop {
            let Some(token) = self.token(buffer)? else {
                return Ok(None);
            };
            let mut done = match token {
                Token::Scalar(value) => Some(value),
                Token::Open(kind, missing) => {
                    if self.open.len() >= limits::NESTING_MAX {
                        return Err(ValueError::TooDeep);
                    }
                    self.open.push(Open {
                        kind,
                        missing,
                        elements: Vec::new(),
                    });
                    None
                }
            };
            // Closes what is complete: an element may complete its aggregate, and that its own.
            loop {
                if let Some(value) = done.take() {
                    let Some(open) = self.open.last_mut() else {
                        return Ok(Some(value));
                    };
                    open.elements.push(value);
                    open.missing -= 1;
                }
                match self.open.pop_if(|open| open.missing == 0) {
                    Some(complete) => done = complete.close(),
                    None => break,
                }
                if done.is_none() {
                    break;
                }
            }
        }
    }

    /// Takes one token, or nothing if it is not all there.
    fn token(&mut self, buffer: &mut BytesMut) -> Result<Option<Token>, ValueError> {
        let Some(&kind) = buffer.first() else {
            return Ok(None);
        };
        if !b"+-:$*_,#(!=%~>|".contains(&kind) {
            return Err(ValueError::UnknownType(kind));
        }
        let Some(end) = self.line_end(buffer)? else {
            self.wanted = 1;
            return Ok(None);
        };
        let text = buffer.get(1..end).unwrap_or_default();
        let token = match kind {
            b'$' | b'!' | b'=' => return self.string(kind, end, buffer),
            b'*' | b'~' | b'>' | b'%' | b'|' => aggregate(kind, text)?,
            b':' => Token::Scalar(Value::Integer(
                parse_i64(text).ok_or(ValueError::InvalidNumber)?,
            )),
            b',' => Token::Scalar(Value::Double(double(text)?)),
            b'#' => Token::Scalar(Value::Boolean(match text {
                b"t" => true,
                b"f" => false,
                _ => return Err(ValueError::InvalidNumber),
            })),
            b'_' => Token::Scalar(Value::Null),
            _ => {
                let mut line = self.take(buffer, end + 2);
                line.truncate(end);
                line.advance(1);
                return Ok(Some(Token::Scalar(match kind {
                    b'+' => Value::Simple(line),
                    b'-' => Value::Error(line),
                    _ => Value::BigNumber(line),
                })));
            }
        };
        self.take(buffer, end + 2);
        Ok(Some(token))
    }

    /// Where the line at the front of the buffer ends.
    fn line_end(&mut self, buffer: &BytesMut) -> Result<Option<usize>, ValueError> {
        let rest = buffer.get(self.searched..).unwrap_or_default();
        let end = memchr::memchr(b'\r', rest).map(|at| self.searched + at);
        if end.unwrap_or(buffer.len()) > LINE_BYTES_MAX {
            return Err(ValueError::TooLongLine);
        }
        let Some(end) = end else {
            self.searched = buffer.len();
            return Ok(None);
        };
        // Until the token is taken the search starts again here.
        self.searched = end;
        match buffer.get(end + 1) {
            None => Ok(None),
            Some(b'\n') => Ok(Some(end)),
            Some(_) => Err(ValueError::ExpectedLineEnd),
        }
    }

    /// Takes a string whose header line ends at `end`.
    fn string(
        &mut self,
        kind: u8,
        end: usize,
        buffer: &mut BytesMut,
    ) -> Result<Option<Token>, ValueError> {
        let length =
            parse_i64(buffer.get(1..end).unwrap_or_default()).ok_or(ValueError::InvalidLength)?;
        if length == -1 && kind == b'$' {
            self.take(buffer, end + 2);
            return Ok(Some(Token::Scalar(Value::Null)));
        }
        let length = usize::try_from(length)
            .ok()
            .filter(|&length| length <= self.bulk_bytes_max)
            .ok_or(ValueError::InvalidLength)?;
        let start = end + 2;
        let total = start + length + 2;
        let Some(tail) = buffer.get(start + length..total) else {
            self.wanted = total - buffer.len();
            return Ok(None);
        };
        if tail != b"\r\n" {
            return Err(ValueError::ExpectedLineEnd);
        }
        let mut whole = self.take(buffer, total);
        whole.truncate(start + length);
        whole.advance(start);
        let value = match kind {
            b'$' => Value::Bulk(whole),
            b'!' => Value::Error(whole),
            _ => {
                if whole.get(3) != Some(&b':') {
                    return Err(ValueError::InvalidLength);
                }
                let format = whole.split_to(3);
                whole.advance(1);
                Value::Verbatim {
                    format,
                    text: whole,
                }
            }
        };
        Ok(Some(Token::Scalar(value)))
    }

    fn take(&mut self, buffer: &mut BytesMut, length: usize) -> Bytes {
        self.searched = 0;
        self.wanted = 0;
        buffer.split_to(length).freeze()
    }
}

fn aggregate(kind: u8, text: &[u8]) -> Result<Token, ValueError> {
    let count = parse_i64(text).ok_or(ValueError::InvalidLength)?;
    if count == -1 && kind == b'*' {
        return Ok(Token::Scalar(Value::Null));
    }
    let count = u64::try_from(count).map_err(|_| ValueError::InvalidLength)?;
    let pairs = || count.checked_mul(2).ok_or(ValueError::InvalidLength);
    Ok(match kind {
        b'*' => Token::Open(Aggregate::Array, count),
        b'~' => Token::Open(Aggregate::Set, count),
        b'>' => Token::Open(Aggregate::Push, count),
        b'%' => Token::Open(Aggregate::Map, pairs()?),
        _ => Token::Open(Aggregate::Attribute, pairs()?),
    })
}

fn double(text: &[u8]) -> Result<f64, ValueError> {
    if text.eq_ignore_ascii_case(b"nan") {
        return Ok(f64::NAN);
    }
    parse_f64(text).ok_or(ValueError::InvalidNumber)
}

#[cfg(test)]
mod tests;

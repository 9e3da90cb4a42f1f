//! Replies as values to replies as bytes.
//!
//! Hot path: everything is appended to the connection's buffer; no reply allocates by itself.

use bytes::{BufMut, BytesMut};
use flux_types::{Error, Reply, Slot};

use super::error::code_word;

/// Which RESP a connection speaks: 2 until `HELLO 3`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    /// What every client understands: five types.
    #[default]
    Resp2,
    /// Adds maps, sets, doubles, booleans, null, verbatim text and pushes.
    Resp3,
}

impl Version {
    /// The number in HELLO.
    #[must_use]
    pub const fn number(self) -> i64 {
        match self {
            Self::Resp2 => 2,
            Self::Resp3 => 3,
        }
    }
}

/// Appends replies to a buffer. What RESP2 has no type for, it writes in the form Redis uses
/// there: a map as a flat array, a double and verbatim text as bulk, a boolean as 1 or 0.
#[derive(Debug)]
pub struct Writer<'a> {
    out: &'a mut BytesMut,
    version: Version,
}

impl<'a> Writer<'a> {
    /// Writes to the end of `out`.
    #[must_use]
    pub const fn new(out: &'a mut BytesMut, version: Version) -> Self {
        Self { out, version }
    }

    /// What this writer speaks.
    #[must_use]
    pub const fn version(&self) -> Version {
        self.version
    }

    /// `+OK`.
    pub fn ok(&mut self) {
        self.out.put_slice(b"+OK\r\n");
    }

    /// A short word. Line ends in it become spaces.
    pub fn simple(&mut self, text: &str) {
        self.out.put_u8(b'+');
        self.one_line(text);
        self.out.put_slice(b"\r\n");
    }

    /// An error, with its code word in front. Line ends in its message become spaces.
    pub fn error(&mut self, error: &Error) {
        self.out.put_u8(b'-');
        self.out.put_slice(code_word(error).as_bytes());
        if !error.message.is_empty() {
            self.out.put_u8(b' ');
            self.one_line(&error.message);
        }
        self.out.put_slice(b"\r\n");
    }

    /// That another node serves a slot, as cluster clients expect it.
    pub fn moved(&mut self, slot: Slot, host: &str, port: u16) {
        self.out.put_slice(b"-MOVED ");
        self.one_line(&format!("{slot} {host}:{port}"));
        self.out.put_slice(b"\r\n");
    }

    /// A whole number.
    pub fn integer(&mut self, number: i64) {
        match number {
            0 => self.out.put_slice(b":0\r\n"),
            1 => self.out.put_slice(b":1\r\n"),
            _ => {
                let mut digits = itoa::Buffer::new();
                self.line(b':', digits.format(number).as_bytes());
            }
        }
    }

    /// A string of bytes.
    pub fn bulk(&mut self, bytes: &[u8]) {
        self.out.reserve(bytes.len() + HEADER_BYTES_MAX);
        self.header(b'$', bytes.len());
        self.out.put_slice(bytes);
        self.out.put_slice(b"\r\n");
    }

    /// Nothing there.
    pub fn nil(&mut self) {
        self.out.put_slice(match self.version {
            Version::Resp2 => b"$-1\r\n",
            Version::Resp3 => b"_\r\n",
        });
    }

    /// Nothing, where an array was expected: an EXEC that was not run.
    pub fn nil_array(&mut self) {
        self.out.put_slice(match self.version {
            Version::Resp2 => b"*-1\r\n",
            Version::Resp3 => b"_\r\n",
        });
    }

    /// An array; `count` replies follow.
    pub fn array(&mut self, count: usize) {
        self.header(b'*', count);
    }

    /// A map; `count` pairs of replies follow.
    pub fn map(&mut self, count: usize) {
        match self.version {
            Version::Resp2 => self.header(b'*', count * 2),
            Version::Resp3 => self.header(b'%', count),
        }
    }

    /// A set; `count` replies follow.
    pub fn set(&mut self, count: usize) {
        match self.version {
            Version::Resp2 => self.header(b'*', count),
            Version::Resp3 => self.header(b'~', count),
        }
    }

    /// A message that answers no request; `count` replies follow, the first naming its kind.
    pub fn push(&mut self, count: usize) {
        match self.version {
            Version::Resp2 => self.header(b'*', count),
            Version::Resp3 => self.header(b'>', count),
        }
    }

    /// Text for people (INFO, CLIENT LIST), marked as such.
    pub fn verbatim(&mut self, text: &str) {
        match self.version {
            Version::Resp2 => self.bulk(text.as_bytes()),
            Version::Resp3 => {
                self.out.reserve(text.len() + 4 + HEADER_BYTES_MAX);
                self.header(b'=', text.len() + 4);
                self.out.put_slice(b"txt:");
                self.out.put_slice(text.as_bytes());
                self.out.put_slice(b"\r\n");
            }
        }
    }

    /// A float, as short as it can be read back exactly.
    pub fn double(&mut self, number: f64) {
        let mut digits = ryu::Buffer::new();
        let text = if number.is_nan() {
            "nan"
        } else if number.is_infinite() {
            if number > 0.0 { "inf" } else { "-inf" }
        } else {
            let text = digits.format_finite(number);
            text.strip_suffix(".0").unwrap_or(text)
        };
        match self.version {
            Version::Resp2 => self.bulk(text.as_bytes()),
            Version::Resp3 => self.line(b',', text.as_bytes()),
        }
    }

    /// Yes or no.
    pub fn boolean(&mut self, truth: bool) {
        match self.version {
            Version::Resp2 => self.integer(i64::from(truth)),
            Version::Resp3 => self
                .out
                .put_slice(if truth { b"#t\r\n" } else { b"#f\r\n" }),
        }
    }

    /// The reply to a command.
    pub fn reply(&mut self, reply: &Reply) {
        match reply {
            Reply::Ok => self.ok(),
            Reply::Simple(text) => self.simple(text),
            Reply::Nil => self.nil(),
            Reply::Integer(number) => self.integer(*number),
            Reply::Bulk(bytes) => self.bulk(bytes),
            Reply::Array(replies) => {
                self.array(replies.len());
                for reply in replies {
                    self.reply(reply);
                }
            }
            Reply::Aborted => self.nil_array(),
            Reply::Page { cursor, keys } => {
                self.array(2);
                let mut digits = itoa::Buffer::new();
                self.bulk(digits.format(*cursor).as_bytes());
                self.array(keys.len());
                for key in keys {
                    self.bulk(key);
                }
            }
            Reply::Entry(entry) => self.entry(entry.as_deref()),
            Reply::Written(written) => {
                self.map(2);
                self.bulk(b"applied");
                self.boolean(written.applied);
                self.bulk(b"previous");
                self.entry(written.previous.as_ref());
            }
            Reply::Outcome(outcome) => {
                // A reply that was not kept is left out, for one that was may be nil.
                self.array(1 + usize::from(outcome.reply.is_some()));
                self.simple(outcome.outcome.as_str());
                if let Some(reply) = &outcome.reply {
                    self.reply(reply);
                }
            }
            Reply::Error(error) => self.error(error),
        }
    }

    /// A key's whole state, as a map, or nil. No Redis command answers it; other protocols that
    /// carry RESP3 values do.
    fn entry(&mut self, entry: Option<&flux_types::Entry>) {
        let Some(entry) = entry else {
            return self.nil();
        };
        self.map(3);
        self.bulk(b"value");
        self.bulk(&entry.value);
        self.bulk(b"revision");
        self.unsigned(entry.revision.get());
        self.bulk(b"deadline");
        match entry.deadline {
            Some(deadline) => self.unsigned(deadline.get()),
            None => self.nil(),
        }
    }

    /// A counter. One beyond the range of RESP's integers is written at its end.
    fn unsigned(&mut self, number: u64) {
        self.integer(i64::try_from(number).unwrap_or(i64::MAX));
    }

    fn header(&mut self, kind: u8, count: usize) {
        let mut digits = itoa::Buffer::new();
        self.line(kind, digits.format(count).as_bytes());
    }

    fn line(&mut self, kind: u8, text: &[u8]) {
        self.out.reserve(text.len() + 3);
        self.out.put_u8(kind);
        self.out.put_slice(text);
        self.out.put_slice(b"\r\n");
    }

    fn one_line(&mut self, text: &str) {
        for piece in text.split_inclusive(['\r', '\n']) {
            match piece.strip_suffix(['\r', '\n']) {
                Some(piece) => {
                    self.out.put_slice(piece.as_bytes());
                    self.out.put_u8(b' ');
                }
                None => self.out.put_slice(piece.as_bytes()),
            }
        }
    }
}

/// Type byte, length and both line ends of a bulk.
const HEADER_BYTES_MAX: usize = 32;

/// Appends a request as a client sends it: an array of bulk strings.
pub fn encode_command<A: AsRef<[u8]>>(out: &mut BytesMut, argv: &[A]) {
    let mut writer = Writer::new(out, Version::Resp2);
    writer.array(argv.len());
    for argument in argv {
        writer.bulk(argument.as_ref());
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use expect_test::{Expect, expect};
    use flux_types::{Answer, Entry, ErrorCode, Revision, UnixMillis, Written};

    use super::*;

    fn both(write: impl Fn(&mut Writer<'_>), expected: &Expect) {
        let mut text = String::new();
        for version in [Version::Resp2, Version::Resp3] {
            let mut out = BytesMut::new();
            write(&mut Writer::new(&mut out, version));
            text.push_str(&out.escape_ascii().to_string());
            text.push('\n');
        }
        expected.assert_eq(&text);
    }

    #[test]
    fn replies_have_the_form_of_each_version() {
        let entry = Entry {
            value: Bytes::from_static(b"v"),
            revision: Revision::new(7),
            deadline: Some(UnixMillis::new(9)),
        };
        let replies = Reply::Array(vec![
            Reply::Ok,
            Reply::Simple("string"),
            Reply::Nil,
            Reply::Integer(-12),
            Reply::Bulk(Bytes::from_static(b"a\r\nb")),
            Reply::Aborted,
        ]);
        both(
            |w| w.reply(&replies),
            &expect![[r"
            *6\r\n+OK\r\n+string\r\n$-1\r\n:-12\r\n$4\r\na\r\nb\r\n*-1\r\n
            *6\r\n+OK\r\n+string\r\n_\r\n:-12\r\n$4\r\na\r\nb\r\n_\r\n
        "]],
        );
        let page = Reply::Page {
            cursor: 17,
            keys: vec![Bytes::from_static(b"k")],
        };
        both(
            |w| w.reply(&page),
            &expect![[r"
            *2\r\n$2\r\n17\r\n*1\r\n$1\r\nk\r\n
            *2\r\n$2\r\n17\r\n*1\r\n$1\r\nk\r\n
        "]],
        );
        let written = Reply::Written(Box::new(Written {
            applied: true,
            previous: Some(entry),
        }));
        both(
            |w| w.reply(&written),
            &expect![[r"
            *4\r\n$7\r\napplied\r\n:1\r\n$8\r\nprevious\r\n*6\r\n$5\r\nvalue\r\n$1\r\nv\r\n$8\r\nrevision\r\n:7\r\n$8\r\ndeadline\r\n:9\r\n
            %2\r\n$7\r\napplied\r\n#t\r\n$8\r\nprevious\r\n%3\r\n$5\r\nvalue\r\n$1\r\nv\r\n$8\r\nrevision\r\n:7\r\n$8\r\ndeadline\r\n:9\r\n
        "]],
        );
    }

    #[test]
    fn richer_types_fall_back_in_resp2() {
        both(
            |w| {
                w.map(1);
                w.set(1);
                w.push(1);
                w.verbatim("hi");
                w.double(1.5);
                w.double(3.0);
                w.double(1e300);
                w.double(f64::NEG_INFINITY);
                w.boolean(false);
            },
            &expect![[r"
                *2\r\n*1\r\n*1\r\n$2\r\nhi\r\n$3\r\n1.5\r\n$1\r\n3\r\n$5\r\n1e300\r\n$4\r\n-inf\r\n:0\r\n
                %1\r\n~1\r\n>1\r\n=6\r\ntxt:hi\r\n,1.5\r\n,3\r\n,1e300\r\n,-inf\r\n#f\r\n
            "]],
        );
    }

    #[test]
    fn errors_begin_with_their_word_and_stay_on_one_line() {
        let errors = [
            Error::not_done(ErrorCode::Invalid, "syntax error"),
            Error::not_done(ErrorCode::UnknownCommand, "unknown command 'a\r\nb'"),
            Error::unknown(ErrorCode::Timeout, "the write may have happened"),
            Error::not_done(ErrorCode::Unavailable, ""),
        ];
        both(
            |w| {
                for error in &errors {
                    w.reply(&Answer::error(error.clone()).reply);
                }
            },
            &expect![[r#"
                -ERR syntax error\r\n-ERR unknown command \'a  b\'\r\n-UNCERTAIN the write may have happened\r\n-CLUSTERDOWN\r\n
                -ERR syntax error\r\n-ERR unknown command \'a  b\'\r\n-UNCERTAIN the write may have happened\r\n-CLUSTERDOWN\r\n
            "#]],
        );
    }

    #[test]
    fn a_reply_allocates_nothing_where_the_buffer_has_room() {
        let mut out = BytesMut::with_capacity(4096);
        let before = out.as_ptr();
        let mut writer = Writer::new(&mut out, Version::Resp3);
        for number in 0..64 {
            writer.integer(number);
            writer.bulk(b"value");
        }
        assert_eq!(out.as_ptr(), before);
        assert_eq!(out.capacity(), 4096);
    }
}

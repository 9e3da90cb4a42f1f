//! A RESP connection written for the tests alone, so that what is tested does not test itself.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use super::PATIENCE;

/// A reply as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Simple(String),
    Error(String),
    Integer(i64),
    Bulk(Vec<u8>),
    Nil,
    Array(Vec<Value>),
}

impl Value {
    /// A bulk string.
    pub(crate) fn bulk(text: &str) -> Self {
        Self::Bulk(text.as_bytes().to_vec())
    }

    /// `+OK`.
    pub(crate) fn ok() -> Self {
        Self::Simple("OK".to_owned())
    }
}

/// A connection on which a test sees every byte.
pub(crate) struct Connection {
    reader: BufReader<TcpStream>,
}

impl Connection {
    pub(crate) fn open(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).expect("the listener accepts"))
    }

    /// Reads and writes an open stream.
    pub(crate) fn over(stream: TcpStream) -> Self {
        stream
            .set_nodelay(true)
            .expect("an option of every TCP socket");
        stream
            .set_read_timeout(Some(PATIENCE))
            .expect("an option of every socket");
        stream
            .set_write_timeout(Some(PATIENCE))
            .expect("an option of every socket");
        Self {
            reader: BufReader::new(stream),
        }
    }

    /// Sends bytes as they are.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.reader.get_mut().write_all(bytes)
    }

    /// Sends a command without waiting for its reply.
    pub(crate) fn send_command<A: AsRef<[u8]>>(&mut self, words: &[A]) -> std::io::Result<()> {
        self.send(&encode(words))
    }

    /// Sends a command and reads its reply.
    pub(crate) fn command<A: AsRef<[u8]>>(&mut self, words: &[A]) -> Value {
        self.try_command(words).expect("a reply arrives")
    }

    /// Sends a command and reads its reply, unless the connection breaks.
    pub(crate) fn try_command<A: AsRef<[u8]>>(&mut self, words: &[A]) -> std::io::Result<Value> {
        self.send_command(words)?;
        self.reply()
    }

    /// A command written as people write it.
    pub(crate) fn line(&mut self, line: &str) -> Value {
        self.command(&line.split_whitespace().collect::<Vec<_>>())
    }

    /// A session of requests.
    pub(crate) fn draw_session(&mut self) -> String {
        match self.line("FLUX.SESSION") {
            Value::Bulk(bytes) => String::from_utf8(bytes).expect("a UUID is text"),
            other => panic!("{other:?}"),
        }
    }

    /// Reads one reply.
    pub(crate) fn reply(&mut self) -> std::io::Result<Value> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let line = line.strip_suffix("\r\n").expect("a line ends with CR LF");
        let (kind, rest) = line.split_at_checked(1).expect("a reply has a type");
        let number = || rest.parse::<i64>().expect("a number");
        Ok(match kind {
            "+" => Value::Simple(rest.to_owned()),
            "-" => Value::Error(rest.to_owned()),
            ":" => Value::Integer(number()),
            "_" => Value::Nil,
            "$" | "*" if number() < 0 => Value::Nil,
            "$" => {
                let length = usize::try_from(number()).expect("not negative");
                let mut bytes = vec![0; length + 2];
                self.reader.read_exact(&mut bytes)?;
                bytes.truncate(length);
                Value::Bulk(bytes)
            }
            "*" => {
                let mut values = Vec::new();
                for _ in 0..number() {
                    values.push(self.reply()?);
                }
                Value::Array(values)
            }
            _ => return Err(std::io::Error::other(format!("unexpected reply: {line}"))),
        })
    }

    /// Reads so many bytes.
    pub(crate) fn exact(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.reader
            .read_exact(&mut bytes)
            .expect("so many bytes arrive");
        bytes
    }

    /// Waits until something has arrived.
    pub(crate) fn peek(&mut self) {
        assert!(
            !self
                .reader
                .fill_buf()
                .expect("something arrives")
                .is_empty()
        );
    }

    /// Everything until the peer closes.
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        // A reset is an end as well.
        drop(self.reader.read_to_end(&mut bytes));
        bytes
    }
}

/// A command as an array of bulk strings.
pub(crate) fn encode<A: AsRef<[u8]>>(words: &[A]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        let word = word.as_ref();
        bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        bytes.extend_from_slice(word);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

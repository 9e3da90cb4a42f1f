//! Requests: what each operation carries, and the command it becomes (`docs/wire.md`,
//! "Operations").

use bytes::{BufMut, Bytes, BytesMut};
use flux_types::{
    Command, Compare, Condition, Error, ErrorCode, ExpireCondition, Expiry, ReadCommand, RequestId,
    Set, SetReply, WriteCommand, limits,
};

use super::field::{
    Malformed, Reader, put_bytes, put_compare, put_condition, put_expiry, put_request_id,
};
use super::frame::{Header, Kind, TooLong, write_frame};
use crate::Limits;
use crate::resp;
use crate::resp::parse::{check_expire_condition, check_key, check_value};

/// An operation that version 1 knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// Value, revision and deadline of a key.
    Get,
    /// Sets a value.
    Set,
    /// Deletes a key.
    Delete,
    /// Sets a value if the key is as expected.
    CompareAndSet,
    /// Adds to an integer.
    Increment,
    /// Sets or removes a deadline.
    Expire,
    /// Answers what it was sent.
    Ping,
    /// Any Redis command, as its arguments.
    Command,
}

impl Op {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 8] = [
        Self::Get,
        Self::Set,
        Self::Delete,
        Self::CompareAndSet,
        Self::Increment,
        Self::Expire,
        Self::Ping,
        Self::Command,
    ];

    /// Its number in a header.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Get => 1,
            Self::Set => 2,
            Self::Delete => 3,
            Self::CompareAndSet => 4,
            Self::Increment => 5,
            Self::Expire => 6,
            Self::Ping => 7,
            Self::Command => 8,
        }
    }

    /// The operation of a number, if it is assigned.
    #[must_use]
    pub const fn of_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Get,
            2 => Self::Set,
            3 => Self::Delete,
            4 => Self::CompareAndSet,
            5 => Self::Increment,
            6 => Self::Expire,
            7 => Self::Ping,
            8 => Self::Command,
            _ => return None,
        })
    }
}

/// One operation with what it carries: what a client encodes and a server decodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// See [`Op::Get`].
    Get {
        /// The key.
        key: Bytes,
    },
    /// See [`Op::Set`].
    Set {
        /// The key.
        key: Bytes,
        /// The new value.
        value: Bytes,
        /// When it may be written.
        condition: Condition,
        /// What becomes of the deadline.
        expiry: Expiry,
        /// Whether the answer holds what was there before.
        return_previous: bool,
    },
    /// See [`Op::Delete`].
    Delete {
        /// The key.
        key: Bytes,
        /// What must hold now.
        expected: Compare,
        /// Whether the answer holds what was there before.
        return_previous: bool,
    },
    /// See [`Op::CompareAndSet`]. The answer holds what was there before.
    CompareAndSet {
        /// The key.
        key: Bytes,
        /// What must hold now.
        expected: Compare,
        /// The new value.
        value: Bytes,
        /// What becomes of the deadline.
        expiry: Expiry,
    },
    /// See [`Op::Increment`].
    Increment {
        /// The key.
        key: Bytes,
        /// The signed step.
        by: i64,
    },
    /// See [`Op::Expire`].
    Expire {
        /// The key.
        key: Bytes,
        /// `In` or `At` sets the deadline, `Clear` removes it.
        expiry: Expiry,
        /// On what condition; none with `Clear`.
        condition: ExpireCondition,
    },
    /// See [`Op::Ping`].
    Ping {
        /// What is sent back.
        payload: Bytes,
    },
    /// See [`Op::Command`].
    Command {
        /// The command's name and arguments.
        argv: Vec<Bytes>,
    },
}

/// What is said about a request beside its operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asking {
    /// Repeated in the answer.
    pub correlation: u64,
    /// How long an answer is of use, in milliseconds; 0 for the server's default.
    pub deadline_ms: u32,
    /// What makes a write be done once, however often it is sent.
    pub request: Option<RequestId>,
    /// Whether the node that is asked answers a read from its own replica, which may be behind.
    pub is_stale: bool,
}

/// What a server is asked by an operation.
#[derive(Debug)]
pub enum Request {
    /// An operation on data.
    Data(Command),
    /// To send this back.
    Ping(Bytes),
    /// A Redis command, parsed as if it had come over RESP.
    Command(resp::Decoded),
}

impl Operation {
    /// Which operation it is.
    #[must_use]
    pub const fn op(&self) -> Op {
        match self {
            Self::Get { .. } => Op::Get,
            Self::Set { .. } => Op::Set,
            Self::Delete { .. } => Op::Delete,
            Self::CompareAndSet { .. } => Op::CompareAndSet,
            Self::Increment { .. } => Op::Increment,
            Self::Expire { .. } => Op::Expire,
            Self::Ping { .. } => Op::Ping,
            Self::Command { .. } => Op::Command,
        }
    }

    /// Appends the request frame. `deadline_ms` is how long an answer is of use, 0 for the
    /// server's default; `payload_bytes_max` is what the server announced in its preface.
    ///
    /// # Errors
    /// The server would not accept it; nothing was written.
    pub fn write(
        &self,
        out: &mut BytesMut,
        correlation: u64,
        deadline_ms: u32,
        payload_bytes_max: usize,
    ) -> Result<(), TooLong> {
        let asking = Asking {
            correlation,
            deadline_ms,
            request: None,
            is_stale: false,
        };
        self.write_asking(out, &asking, payload_bytes_max)
    }

    /// As [`Operation::write`], with all that can be said about the request. A request id may only
    /// be sent to a server that says in its preface that it understands them, and so may the wish for a
    /// stale read.
    ///
    /// # Errors
    /// The server would not accept it; nothing was written.
    pub fn write_asking(
        &self,
        out: &mut BytesMut,
        asking: &Asking,
        payload_bytes_max: usize,
    ) -> Result<(), TooLong> {
        let header = Header {
            kind: Kind::Request,
            op: self.op().number(),
            correlation: asking.correlation,
            carries_request_id: asking.request.is_some(),
            is_stale: asking.is_stale,
            word: asking.deadline_ms,
        };
        write_frame(out, header, payload_bytes_max, |out| {
            if let Some(request) = &asking.request {
                put_request_id(out, request);
            }
            self.put(out);
        })
    }

    fn put(&self, out: &mut BytesMut) {
        match self {
            Self::Get { key } => put_bytes(out, key),
            Self::Set {
                key,
                value,
                condition,
                expiry,
                return_previous,
            } => {
                put_bytes(out, key);
                put_bytes(out, value);
                put_condition(out, condition);
                put_expiry(out, *expiry);
                out.put_u8(u8::from(*return_previous));
            }
            Self::Delete {
                key,
                expected,
                return_previous,
            } => {
                put_bytes(out, key);
                put_compare(out, expected);
                out.put_u8(u8::from(*return_previous));
            }
            Self::CompareAndSet {
                key,
                expected,
                value,
                expiry,
            } => {
                put_bytes(out, key);
                put_compare(out, expected);
                put_bytes(out, value);
                put_expiry(out, *expiry);
            }
            Self::Increment { key, by } => {
                put_bytes(out, key);
                out.put_i64_le(*by);
            }
            Self::Expire {
                key,
                expiry,
                condition,
            } => {
                put_bytes(out, key);
                put_expiry(out, *expiry);
                out.put_u8(number_of_expire_condition(*condition));
            }
            Self::Ping { payload } => out.put_slice(payload),
            Self::Command { argv } => {
                out.put_u32_le(u32::try_from(argv.len()).unwrap_or(u32::MAX));
                for argument in argv {
                    put_bytes(out, argument);
                }
            }
        }
    }

    /// Reads the payload of a request frame whose header has this `op`.
    ///
    /// # Errors
    /// The operation is not known, or the payload is not its: answer the error, the connection
    /// lives.
    pub fn decode(op: u8, payload: Bytes) -> Result<Self, Error> {
        let op = Op::of_number(op).ok_or_else(|| {
            Error::not_done(
                ErrorCode::UnknownCommand,
                format!("operation {op} is not supported"),
            )
        })?;
        Self::read(op, payload)
            .map_err(|malformed| Error::not_done(ErrorCode::Invalid, malformed.to_string()))
    }

    fn read(op: Op, payload: Bytes) -> Result<Self, Malformed> {
        let mut reader = Reader::new(payload);
        let operation = match op {
            Op::Get => Self::Get {
                key: reader.bytes("key")?,
            },
            Op::Set => Self::Set {
                key: reader.bytes("key")?,
                value: reader.bytes("value")?,
                condition: reader.condition()?,
                expiry: reader.expiry()?,
                return_previous: reader.flag("return_previous")?,
            },
            Op::Delete => Self::Delete {
                key: reader.bytes("key")?,
                expected: reader.compare()?,
                return_previous: reader.flag("return_previous")?,
            },
            Op::CompareAndSet => Self::CompareAndSet {
                key: reader.bytes("key")?,
                expected: reader.compare()?,
                value: reader.bytes("value")?,
                expiry: reader.expiry()?,
            },
            Op::Increment => Self::Increment {
                key: reader.bytes("key")?,
                by: reader.i64("by")?,
            },
            Op::Expire => Self::Expire {
                key: reader.bytes("key")?,
                expiry: reader.expiry()?,
                condition: read_expire_condition(&mut reader)?,
            },
            Op::Ping => Self::Ping {
                payload: reader.rest(),
            },
            Op::Command => Self::Command {
                argv: read_argv(&mut reader)?,
            },
        };
        reader.end()?;
        Ok(operation)
    }

    /// What the server has to do.
    ///
    /// # Errors
    /// A key or value is too long, or options do not fit together.
    pub fn into_request(self, limits: Limits) -> Result<Request, Error> {
        Ok(Request::Data(match self {
            Self::Get { key } => {
                check_key(&key)?;
                Command::Read(ReadCommand::GetEntry { key })
            }
            Self::Set {
                key,
                value,
                condition,
                expiry,
                return_previous,
            } => {
                check_key(&key)?;
                check_value(&value, limits)?;
                let reply = if return_previous {
                    SetReply::Written
                } else {
                    SetReply::Status
                };
                Command::Write(WriteCommand::Set(Set {
                    key,
                    value,
                    condition,
                    expiry,
                    reply,
                }))
            }
            Self::Delete {
                key,
                expected,
                return_previous,
            } => {
                check_key(&key)?;
                if expected == Compare::Anything && !return_previous {
                    Command::Write(WriteCommand::Delete { keys: vec![key] })
                } else {
                    Command::Write(WriteCommand::CompareAndDelete { key, expected })
                }
            }
            Self::CompareAndSet {
                key,
                expected,
                value,
                expiry,
            } => {
                check_key(&key)?;
                check_value(&value, limits)?;
                Command::Write(WriteCommand::CompareAndSet {
                    key,
                    expected,
                    value,
                    expiry,
                })
            }
            Self::Increment { key, by } => {
                check_key(&key)?;
                Command::Write(WriteCommand::Increment { key, by })
            }
            Self::Expire {
                key,
                expiry,
                condition,
            } => expire(key, expiry, condition)?,
            Self::Ping { payload } => return Ok(Request::Ping(payload)),
            Self::Command { argv } => return Ok(Request::Command(resp::parse(argv, limits))),
        }))
    }
}

fn expire(key: Bytes, expiry: Expiry, condition: ExpireCondition) -> Result<Command, Error> {
    check_key(&key)?;
    check_expire_condition(condition)?;
    match expiry {
        Expiry::In(_) | Expiry::At(_) => Ok(Command::Write(WriteCommand::Expire {
            key,
            expiry,
            condition,
        })),
        Expiry::Clear if condition == ExpireCondition::default() => {
            Ok(Command::Write(WriteCommand::Persist { key }))
        }
        Expiry::Clear => Err(Error::not_done(
            ErrorCode::Invalid,
            "a deadline is removed without conditions",
        )),
        Expiry::Keep => Err(Error::not_done(
            ErrorCode::Invalid,
            "EXPIRE sets or removes a deadline, it does not keep it",
        )),
    }
}

pub(crate) const fn number_of_expire_condition(condition: ExpireCondition) -> u8 {
    condition.if_none as u8
        | (condition.if_some as u8) << 1
        | (condition.if_later as u8) << 2
        | (condition.if_earlier as u8) << 3
}

pub(crate) fn read_expire_condition(reader: &mut Reader) -> Result<ExpireCondition, Malformed> {
    let bits = reader.u8("condition")?;
    if bits > 0b1111 {
        return Err(Malformed::UnknownValue("condition"));
    }
    Ok(ExpireCondition {
        if_none: bits & 1 != 0,
        if_some: bits & 2 != 0,
        if_later: bits & 4 != 0,
        if_earlier: bits & 8 != 0,
    })
}

fn read_argv(reader: &mut Reader) -> Result<Vec<Bytes>, Malformed> {
    let count = reader.u32("count")? as usize;
    // Each argument takes at least its length field, so a count that the payload cannot hold is
    // known before anything is allocated for it.
    if count > limits::ARGUMENTS_MAX || count > reader.remaining() / 4 {
        return Err(Malformed::UnknownValue("count"));
    }
    let mut argv = Vec::with_capacity(count);
    for _ in 0..count {
        argv.push(reader.bytes("argument")?);
    }
    Ok(argv)
}

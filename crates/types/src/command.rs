//! Commands: parsed requests for data, the same from every protocol.
//!
//! A command says what a client wants; `store::evaluate` turns it into facts and a reply on the
//! leader. Redis has many spellings of one operation (SETNX, SETEX, GETSET …): they become one
//! command with options, so that the meaning is written once. Commands about the *connection*
//! (HELLO, CLIENT, MULTI …) never come here: sessions answer them.
//!
//! Arguments are `Bytes`: slices of the buffer they were read into, shared without a copy. A
//! decoder has already checked keys and values against [`crate::limits`].

use std::fmt;

use bytes::Bytes;

use crate::{RequestId, Revision, UnixMillis};

/// One operation on data, of which the type says whether it may change any.
#[derive(Clone, PartialEq)]
pub enum Command {
    /// It changes nothing, and may be answered from memory while the lease gate is open.
    Read(ReadCommand),
    /// It may change data, and so must pass a proposer.
    Write(WriteCommand),
}

/// A command that changes nothing.
#[derive(Clone, Debug, PartialEq)]
pub enum ReadCommand {
    /// GET, and GET of the FLUX and gRPC protocols: the value, or nil.
    Get {
        /// The key.
        key: Bytes,
    },
    /// Value, revision and deadline of a key, as [`crate::Reply::Entry`].
    GetEntry {
        /// The key.
        key: Bytes,
    },
    /// MGET: one bulk or nil for each key.
    GetMany {
        /// The keys, in reply order.
        keys: Vec<Bytes>,
    },
    /// STRLEN.
    Length {
        /// The key.
        key: Bytes,
    },
    /// GETRANGE and SUBSTR, with Redis's negative offsets.
    GetRange {
        /// The key.
        key: Bytes,
        /// First offset.
        start: i64,
        /// Last offset, included.
        end: i64,
    },
    /// EXISTS: how many of the keys (counted with repetition) exist.
    Exists {
        /// The keys.
        keys: Vec<Bytes>,
    },
    /// TOUCH: like EXISTS, and marks them used.
    Touch {
        /// The keys.
        keys: Vec<Bytes>,
    },
    /// TYPE: `string` or `none`, as a simple string.
    Type {
        /// The key.
        key: Bytes,
    },
    /// TTL, PTTL, EXPIRETIME, PEXPIRETIME: -2 if the key is absent, -1 if it has no deadline.
    Ttl {
        /// The key.
        key: Bytes,
        /// Which of the four.
        form: TtlForm,
    },
    /// RANDOMKEY.
    RandomKey,
    /// SCAN: a cursor and a page of keys.
    Scan(ScanPage),
    /// KEYS.
    Keys {
        /// A glob pattern.
        pattern: Bytes,
    },
    /// DBSIZE.
    Count,
}

/// A command that may change data. A transaction is one even when it only reads, because its reads
/// must be of one moment.
#[derive(Clone, Debug, PartialEq)]
pub enum WriteCommand {
    /// SET and its relatives.
    Set(Set),
    /// Value is replaced only where the key is as expected; answered with [`crate::Reply::Written`].
    CompareAndSet {
        /// The key.
        key: Bytes,
        /// What must hold now.
        expected: Compare,
        /// The new value.
        value: Bytes,
        /// The new expiry.
        expiry: Expiry,
    },
    /// Deletes a key, if `expected` holds; answered with [`crate::Reply::Written`] (previous value included).
    CompareAndDelete {
        /// The key.
        key: Bytes,
        /// What must hold now.
        expected: Compare,
    },
    /// GETDEL: the value, which is then deleted.
    GetDelete {
        /// The key.
        key: Bytes,
    },
    /// GETEX with an option: the value, and its expiry changed. Without one it is a `Get`.
    GetExpire {
        /// The key.
        key: Bytes,
        /// The change.
        expiry: Expiry,
    },
    /// MSET and MSETNX (`if_none_exists`): all or nothing, as one group. MSET answers OK, MSETNX 1 or 0.
    SetMany {
        /// Keys and values; a later pair wins over an earlier one with its key.
        pairs: Vec<(Bytes, Bytes)>,
        /// MSETNX: only if no key exists.
        if_none_exists: bool,
    },
    /// APPEND: answers the new length. An existing key keeps its deadline.
    Append {
        /// The key.
        key: Bytes,
        /// What is added.
        value: Bytes,
    },
    /// SETRANGE: overwrites from `offset`, padding with zeros; answers the new length.
    SetRange {
        /// The key.
        key: Bytes,
        /// Where writing starts, in bytes.
        offset: u64,
        /// What is written; empty changes nothing.
        value: Bytes,
    },
    /// INCR, DECR, INCRBY, DECRBY. Answers the new number.
    Increment {
        /// The key.
        key: Bytes,
        /// The signed step.
        by: i64,
    },
    /// INCRBYFLOAT. Answers the new number as a bulk string.
    IncrementFloat {
        /// The key.
        key: Bytes,
        /// The step, finite.
        by: f64,
    },
    /// DEL and UNLINK: the number of keys deleted.
    Delete {
        /// The keys.
        keys: Vec<Bytes>,
    },
    /// EXPIRE, PEXPIRE, EXPIREAT, PEXPIREAT: 1 if the deadline was set. A deadline in the past deletes.
    Expire {
        /// The key.
        key: Bytes,
        /// When (`In` or `At`).
        expiry: Expiry,
        /// NX, XX, GT, LT.
        condition: ExpireCondition,
    },
    /// PERSIST: 1 if a deadline was removed.
    Persist {
        /// The key.
        key: Bytes,
    },
    /// RENAME and RENAMENX (`if_absent`). The deadline moves along.
    Rename {
        /// From.
        source: Bytes,
        /// To.
        target: Bytes,
        /// RENAMENX: answers 1 or 0 instead of OK.
        if_absent: bool,
    },
    /// COPY: 1 if copied. The deadline is copied too.
    Copy {
        /// From.
        source: Bytes,
        /// To.
        target: Bytes,
        /// Whether an existing target is replaced.
        replace: bool,
    },
    /// FLUSHALL and FLUSHDB.
    Clear,
    /// MULTI … EXEC: all commands as one group, or nil if a watched key has changed.
    Transaction(Transaction),
    /// Deletes those of the keys whose deadline has passed, each with cause *expired*. Comes from
    /// the node itself (the sweeper, or a read that met a passed deadline), never from a client.
    /// Answers the number deleted.
    SweepExpired {
        /// Keys whose deadline is believed to have passed.
        keys: Vec<Bytes>,
    },
    /// Keeps system data of the shard under a name, or removes them. Comes from the node itself (a
    /// sink's cursor), never from a client.
    PutSystem {
        /// The name.
        name: Bytes,
        /// The data; `None` removes them.
        value: Option<Bytes>,
    },
    /// Keeps system data of the shard under a name, if those that are there are as expected, so that
    /// of several who change them at once one does. Comes from the node itself, never from a client.
    /// Answers OK, or else what is there: its bytes, or nil.
    ReplaceSystem {
        /// The name.
        name: Bytes,
        /// What has to be there; `None`: nothing.
        expected: Option<Bytes>,
        /// The data.
        value: Bytes,
    },
    /// A write that is applied once, however often it is asked for: a further attempt is answered
    /// as the first was.
    Once(Box<Once>),
    /// FLUX.OUTCOME: what became of a write with a request id, as [`crate::Reply::Outcome`]. One
    /// that was not done until then is never done: it is a write because that is written down.
    QueryOutcome {
        /// The write.
        request: RequestId,
        /// A key of the write, which says which shard to ask.
        key: Option<Bytes>,
    },
    /// Forgets the sessions that were idle for too long. Comes from the node itself, never from a
    /// client. Answers how many there were.
    ForgetSessions,
}

/// SET with its options.
#[derive(Clone, Debug, PartialEq)]
pub struct Set {
    /// The key.
    pub key: Bytes,
    /// The new value.
    pub value: Bytes,
    /// When it may be written.
    pub condition: Condition,
    /// What becomes of the deadline. Redis's default (no option) is [`Expiry::Clear`].
    pub expiry: Expiry,
    /// What is answered.
    pub reply: SetReply,
}

impl Set {
    /// A plain `SET key value`.
    #[must_use]
    pub const fn plain(key: Bytes, value: Bytes) -> Self {
        Self {
            key,
            value,
            condition: Condition::Always,
            expiry: Expiry::Clear,
            reply: SetReply::Status,
        }
    }
}

/// When a SET may be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// In any case.
    Always,
    /// NX: only if the key is absent.
    Absent,
    /// XX: only if the key exists.
    Exists,
    /// IFEQ: only if the key exists and has this value.
    ValueIs(Bytes),
}

/// What a SET answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetReply {
    /// SET: OK, or nil if the condition did not hold.
    Status,
    /// SETNX: 1 or 0.
    Flag,
    /// SET … GET and GETSET: the previous value or nil, whether or not it was written.
    Previous,
    /// gRPC and FLUX: [`crate::Reply::Written`].
    Written,
}

/// What must hold of a key before a compare-and-set changes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compare {
    /// Nothing.
    Anything,
    /// The key is absent.
    Absent,
    /// The key exists.
    Exists,
    /// The key exists with this revision.
    RevisionIs(Revision),
    /// The key exists with this value.
    ValueIs(Bytes),
}

/// What becomes of a key's deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// It stays (KEEPTTL).
    Keep,
    /// It is removed (the default of SET; PERSIST of GETEX).
    Clear,
    /// It is this many milliseconds from the time of the batch (EX, PX). Not positive: already past.
    In(i64),
    /// It is this many milliseconds after the epoch (EXAT, PXAT). Not after now: already past.
    At(i64),
}

/// NX, XX, GT, LT of the EXPIRE family. A key without deadline counts as infinitely late.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExpireCondition {
    /// NX: only a key without deadline.
    pub if_none: bool,
    /// XX: only a key with a deadline.
    pub if_some: bool,
    /// GT: only if the new deadline is later.
    pub if_later: bool,
    /// LT: only if the new deadline is earlier.
    pub if_earlier: bool,
}

/// What a TTL command answers in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TtlForm {
    /// TTL: seconds left, rounded to the nearest.
    Seconds,
    /// PTTL: milliseconds left.
    Millis,
    /// EXPIRETIME: the deadline in Unix seconds.
    AbsoluteSeconds,
    /// PEXPIRETIME: the deadline in Unix milliseconds.
    AbsoluteMillis,
}

/// One page of a SCAN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanPage {
    /// 0 to begin; then what the last page answered, until that is 0.
    pub cursor: u64,
    /// MATCH: a glob pattern, or everything.
    pub pattern: Option<Bytes>,
    /// COUNT: about how many keys to look at.
    pub count: usize,
    /// TYPE: false means that a type was asked for of which there are no keys.
    pub type_matches: bool,
}

/// The commands of one EXEC and the keys they depend on.
#[derive(Clone, Debug, PartialEq)]
pub struct Transaction {
    /// What must be unchanged.
    pub watches: Vec<Watch>,
    /// The commands in order. None is itself a transaction.
    pub commands: Vec<Command>,
}

/// A key as WATCH saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watch {
    /// The key.
    pub key: Bytes,
    /// Its revision when watched; `None` if it was absent.
    pub revision: Option<Revision>,
    /// When it was watched. As in Redis, a key that has expired since counts as changed; one that
    /// had already expired does not, as long as nobody writes it.
    pub since: UnixMillis,
}

/// A write that carries a request id, made by [`Command::once`].
#[derive(Clone, Debug, PartialEq)]
pub struct Once {
    request: RequestId,
    command: Command,
}

impl Once {
    /// What tells a retry from another write.
    #[must_use]
    pub const fn request(&self) -> &RequestId {
        &self.request
    }

    /// What is done once: always a write, and never one with a request id.
    #[must_use]
    pub const fn command(&self) -> &Command {
        &self.command
    }
}

impl From<ReadCommand> for Command {
    fn from(read: ReadCommand) -> Self {
        Self::Read(read)
    }
}

impl From<WriteCommand> for Command {
    fn from(write: WriteCommand) -> Self {
        Self::Write(write)
    }
}

/// Shown as the operation itself: which half it belongs to follows from its name.
impl fmt::Debug for Command {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(read) => read.fmt(formatter),
            Self::Write(write) => write.fmt(formatter),
        }
    }
}

/// The keys of a command, for routing: none for commands on the whole keyspace.
impl Command {
    /// Calls `visit` with each key that the command names, in order.
    pub fn for_each_key<'a>(&'a self, visit: &mut dyn FnMut(&'a Bytes)) {
        match self {
            Self::Read(read) => read.for_each_key(visit),
            Self::Write(write) => write.for_each_key(visit),
        }
    }

    /// The command with a request id, so that it is done once. A read needs none and stays as it
    /// is; a command that has one keeps it.
    #[must_use]
    pub fn once(self, request: RequestId) -> Self {
        match self {
            Self::Read(_) | Self::Write(WriteCommand::Once(_)) => self,
            Self::Write(_) => {
                let command = self;
                Self::Write(WriteCommand::Once(Box::new(Once { request, command })))
            }
        }
    }

    /// Whether the command may change data.
    #[must_use]
    pub const fn is_write(&self) -> bool {
        matches!(self, Self::Write(_))
    }
}

impl ReadCommand {
    /// Calls `visit` with each key that the command names, in order.
    pub fn for_each_key<'a>(&'a self, visit: &mut dyn FnMut(&'a Bytes)) {
        match self {
            Self::Get { key }
            | Self::GetEntry { key }
            | Self::Length { key }
            | Self::GetRange { key, .. }
            | Self::Type { key }
            | Self::Ttl { key, .. } => visit(key),
            Self::GetMany { keys } | Self::Exists { keys } | Self::Touch { keys } => {
                keys.iter().for_each(visit);
            }
            Self::RandomKey | Self::Scan(_) | Self::Keys { .. } | Self::Count => {}
        }
    }
}

impl WriteCommand {
    /// Calls `visit` with each key that the command names, in order.
    pub fn for_each_key<'a>(&'a self, visit: &mut dyn FnMut(&'a Bytes)) {
        match self {
            Self::Set(Set { key, .. })
            | Self::CompareAndSet { key, .. }
            | Self::CompareAndDelete { key, .. }
            | Self::GetDelete { key }
            | Self::GetExpire { key, .. }
            | Self::Append { key, .. }
            | Self::SetRange { key, .. }
            | Self::Increment { key, .. }
            | Self::IncrementFloat { key, .. }
            | Self::Expire { key, .. }
            | Self::Persist { key } => visit(key),
            Self::Delete { keys } | Self::SweepExpired { keys } => keys.iter().for_each(visit),
            Self::SetMany { pairs, .. } => pairs.iter().for_each(|(key, _)| visit(key)),
            Self::Rename { source, target, .. } | Self::Copy { source, target, .. } => {
                visit(source);
                visit(target);
            }
            Self::Transaction(transaction) => {
                let watches = transaction.watches.iter();
                watches.for_each(|watch| visit(&watch.key));
                for command in &transaction.commands {
                    command.for_each_key(visit);
                }
            }
            Self::Once(once) => once.command.for_each_key(visit),
            Self::QueryOutcome { key, .. } => key.iter().for_each(visit),
            Self::Clear
            | Self::PutSystem { .. }
            | Self::ReplaceSystem { .. }
            | Self::ForgetSessions => {}
        }
    }
}

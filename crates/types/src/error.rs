//! Errors as a client meets them: what, whose fault, whether to retry, and whether it happened.
//!
//! Each room has its own error enum for its own callers; at an edge it becomes one of these. The
//! tables to RESP, gRPC and HTTP live at those edges, each one exhaustive `match`.

use std::borrow::Cow;

/// What went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// The request makes no sense as written.
    Invalid,
    /// The command or operation is not known.
    UnknownCommand,
    /// A command with the wrong number of arguments.
    WrongArity,
    /// A number was expected.
    NotAnInteger,
    /// A float was expected.
    NotAFloat,
    /// The result of arithmetic does not fit.
    Overflow,
    /// Key, value, frame or batch is longer than the limit.
    TooLarge,
    /// The key does not exist and the command needs it.
    NoSuchKey,
    /// Keys of one command belong to different shards.
    CrossShard,
    /// Something named already exists, or a condition did not hold.
    Conflict,
    /// A transaction was discarded because of earlier errors.
    TransactionAborted,
    /// The connection has not authenticated.
    Unauthenticated,
    /// User name or password are wrong.
    WrongPassword,
    /// The user may not do this.
    Forbidden,
    /// The queue is full; nothing was done.
    Busy,
    /// The deadline of the request passed.
    Timeout,
    /// Memory limit reached.
    OutOfMemory,
    /// The disk is full: writes are refused, reads and deletes go on.
    NoSpace,
    /// This node is not the leader of the shard.
    NotLeader,
    /// The keys belong to another shard since a split; nothing was done, and they can be asked for
    /// there.
    Resharded,
    /// The shard has no quorum or has not finished its recovery.
    Unavailable,
    /// The node is shutting down.
    ShuttingDown,
    /// A bug or a broken component here.
    Internal,
    /// A retry of a write that was done, but whose reply was too long to be kept.
    ReplyNotKept,
    /// Nothing is known of a request id: what became of its write is unknown, and it is not
    /// carried out again.
    RequestUnknown,
}

/// Error codes as numbers, for every format that needs them. A number, once given, keeps its
/// meaning for ever.
impl ErrorCode {
    /// The number of an error code. 0 is given to none: it means success.
    #[must_use]
    pub const fn number(self) -> u16 {
        match self {
            Self::Invalid => 1,
            Self::UnknownCommand => 2,
            Self::WrongArity => 3,
            Self::NotAnInteger => 4,
            Self::NotAFloat => 5,
            Self::Overflow => 6,
            Self::TooLarge => 7,
            Self::NoSuchKey => 8,
            Self::CrossShard => 9,
            Self::Conflict => 10,
            Self::TransactionAborted => 11,
            Self::Unauthenticated => 12,
            Self::WrongPassword => 13,
            Self::Forbidden => 14,
            Self::Busy => 15,
            Self::Timeout => 16,
            Self::OutOfMemory => 17,
            Self::NoSpace => 18,
            Self::NotLeader => 19,
            Self::Unavailable => 20,
            Self::ShuttingDown => 21,
            Self::Internal => 22,
            Self::ReplyNotKept => 23,
            Self::RequestUnknown => 24,
            Self::Resharded => 25,
        }
    }

    /// The error code of a number. A number that a later server may use is
    /// [`ErrorCode::Internal`]: nothing is known about it but that the request failed.
    #[must_use]
    pub const fn from_number(number: u16) -> Self {
        match number {
            1 => Self::Invalid,
            2 => Self::UnknownCommand,
            3 => Self::WrongArity,
            4 => Self::NotAnInteger,
            5 => Self::NotAFloat,
            6 => Self::Overflow,
            7 => Self::TooLarge,
            8 => Self::NoSuchKey,
            9 => Self::CrossShard,
            10 => Self::Conflict,
            11 => Self::TransactionAborted,
            12 => Self::Unauthenticated,
            13 => Self::WrongPassword,
            14 => Self::Forbidden,
            15 => Self::Busy,
            16 => Self::Timeout,
            17 => Self::OutOfMemory,
            18 => Self::NoSpace,
            19 => Self::NotLeader,
            20 => Self::Unavailable,
            21 => Self::ShuttingDown,
            23 => Self::ReplyNotKept,
            24 => Self::RequestUnknown,
            25 => Self::Resharded,
            _ => Self::Internal,
        }
    }
}

/// Whose fault an error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The caller's: the same request will fail again.
    Client,
    /// Ours.
    Server,
    /// Neither's: a disk, a network, an overload.
    Environment,
}

/// Whether trying again can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// It cannot.
    No,
    /// The same request to the same node may succeed later.
    Same,
    /// Another node may answer.
    Elsewhere,
}

/// Whether a failed write happened. A timed-out write is `Unknown`, never "failed".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It did not and will not happen.
    NotDone,
    /// It happened, though something after it failed.
    Done,
    /// It may have happened, or may yet.
    Unknown,
}

impl Outcome {
    /// The word used in every protocol.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotDone => "not-done",
            Self::Done => "done",
            Self::Unknown => "unknown",
        }
    }
}

/// Outcomes as numbers, for every format that needs them.
impl Outcome {
    /// The number of an outcome.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::NotDone => 0,
            Self::Done => 1,
            Self::Unknown => 2,
        }
    }

    /// The outcome of a number; what is not assigned is unknown in every sense.
    #[must_use]
    pub const fn from_number(number: u8) -> Self {
        match number {
            0 => Self::NotDone,
            1 => Self::Done,
            _ => Self::Unknown,
        }
    }
}

/// An error on its way to a client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// What went wrong.
    pub code: ErrorCode,
    /// A sentence without a code word: what was wrong, where, what was expected.
    pub message: Cow<'static, str>,
    /// Whether the write happened.
    pub outcome: Outcome,
}

impl Error {
    /// An error after which the write is known not to have happened.
    #[must_use]
    pub fn not_done(code: ErrorCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code,
            message: message.into(),
            outcome: Outcome::NotDone,
        }
    }

    /// An error that leaves open whether the write happened.
    #[must_use]
    pub fn unknown(code: ErrorCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code,
            message: message.into(),
            outcome: Outcome::Unknown,
        }
    }

    /// Whose fault it is.
    #[must_use]
    pub const fn blame(&self) -> Blame {
        match self.code {
            ErrorCode::Invalid
            | ErrorCode::UnknownCommand
            | ErrorCode::WrongArity
            | ErrorCode::NotAnInteger
            | ErrorCode::NotAFloat
            | ErrorCode::Overflow
            | ErrorCode::TooLarge
            | ErrorCode::NoSuchKey
            | ErrorCode::CrossShard
            | ErrorCode::Conflict
            | ErrorCode::TransactionAborted
            | ErrorCode::Unauthenticated
            | ErrorCode::WrongPassword
            | ErrorCode::Forbidden
            | ErrorCode::ReplyNotKept
            | ErrorCode::RequestUnknown => Blame::Client,
            ErrorCode::Internal => Blame::Server,
            ErrorCode::Busy
            | ErrorCode::Timeout
            | ErrorCode::OutOfMemory
            | ErrorCode::NoSpace
            | ErrorCode::NotLeader
            | ErrorCode::Resharded
            | ErrorCode::Unavailable
            | ErrorCode::ShuttingDown => Blame::Environment,
        }
    }

    /// Whether a retry can help. A write whose outcome is unknown is not safe to repeat without a
    /// request id, whatever this says.
    #[must_use]
    pub const fn retry(&self) -> Retry {
        match self.code {
            ErrorCode::Busy
            | ErrorCode::Timeout
            | ErrorCode::OutOfMemory
            | ErrorCode::NoSpace
            | ErrorCode::Resharded => Retry::Same,
            ErrorCode::NotLeader | ErrorCode::Unavailable | ErrorCode::ShuttingDown => {
                Retry::Elsewhere
            }
            ErrorCode::Invalid
            | ErrorCode::UnknownCommand
            | ErrorCode::WrongArity
            | ErrorCode::NotAnInteger
            | ErrorCode::NotAFloat
            | ErrorCode::Overflow
            | ErrorCode::TooLarge
            | ErrorCode::NoSuchKey
            | ErrorCode::CrossShard
            | ErrorCode::Conflict
            | ErrorCode::TransactionAborted
            | ErrorCode::Unauthenticated
            | ErrorCode::WrongPassword
            | ErrorCode::Forbidden
            | ErrorCode::ReplyNotKept
            | ErrorCode::RequestUnknown
            | ErrorCode::Internal => Retry::No,
        }
    }
}

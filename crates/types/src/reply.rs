//! Replies: what a command answers, before any protocol has put it into bytes.

use bytes::Bytes;

use crate::{Error, Outcome, Revision, UnixMillis};

/// The answer to one command.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// `+OK`.
    Ok,
    /// A short fixed word, such as `string`.
    Simple(&'static str),
    /// Nothing there.
    Nil,
    /// A whole number.
    Integer(i64),
    /// A string of bytes.
    Bulk(Bytes),
    /// Several answers in order.
    Array(Vec<Reply>),
    /// A transaction that was not run because a watched key had changed.
    Aborted,
    /// One page of a scan: the next cursor (0 at the end) and keys.
    Page {
        /// What the next SCAN must bring.
        cursor: u64,
        /// The keys of this page.
        keys: Vec<Bytes>,
    },
    /// What `GetEntry` found.
    Entry(Option<Box<Entry>>),
    /// What a conditional write did.
    Written(Box<Written>),
    /// What became of a write with a request id.
    Outcome(Box<RequestOutcome>),
    /// It failed.
    Error(Error),
}

/// A key's whole state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its value.
    pub value: Bytes,
    /// The revision of the fact that last changed it.
    pub revision: Revision,
    /// When it expires, if ever.
    pub deadline: Option<UnixMillis>,
}

/// The outcome of a write that reports what was there before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Whether the condition held and the write was made.
    pub applied: bool,
    /// What was there before; `None` if absent.
    pub previous: Option<Entry>,
}

/// What is known of a write with a request id.
#[derive(Clone, Debug, PartialEq)]
pub struct RequestOutcome {
    /// Whether it was done. *Not done* is final: it never will be.
    pub outcome: Outcome,
    /// What it was answered, if it was done and its reply was short enough to be kept.
    pub reply: Option<Reply>,
}

/// A reply together with the shard's revision after the command: the revision of its last fact if
/// it made one, else that of the state it was evaluated on.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The reply.
    pub reply: Reply,
    /// The revision.
    pub revision: Revision,
}

impl Answer {
    /// An error, at no revision.
    #[must_use]
    pub const fn error(error: Error) -> Self {
        Self {
            reply: Reply::Error(error),
            revision: Revision::new(0),
        }
    }
}

impl From<Error> for Reply {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

//! Facts: the absolute effects that the log holds.
//!
//! A fact says what *is* from now on, never how to get there, so replaying any suffix of a log
//! twice, or over a newer state, ends in the same state. Every replica consumes the same facts in
//! the same order; the change stream publishes them.

use bytes::Bytes;

use crate::{RequestId, UnixMillis};

/// One absolute effect on a shard's state. Each takes one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// The key has this value, and this deadline or none.
    Put {
        /// The key.
        key: Bytes,
        /// The whole value.
        value: Bytes,
        /// When it expires.
        deadline: Option<UnixMillis>,
    },
    /// The key is absent.
    Delete {
        /// The key.
        key: Bytes,
        /// Why it went.
        cause: DeleteCause,
    },
    /// The key, if it exists, has this deadline or none.
    SetDeadline {
        /// The key.
        key: Bytes,
        /// When it expires.
        deadline: Option<UnixMillis>,
    },
    /// The key's value has these bytes from `offset` on, is at least that long (zeros in any gap),
    /// and keeps its deadline. An absent key counts as empty.
    Patch {
        /// The key.
        key: Bytes,
        /// Where the bytes go.
        offset: u32,
        /// The bytes.
        bytes: Bytes,
    },
    /// No key exists.
    Clear,
    /// The shard has these system data under this name. System data are no keys: clients do not
    /// see them, a clear spares them, and no change of them is published.
    SystemPut {
        /// The name.
        name: Bytes,
        /// The data.
        value: Bytes,
    },
    /// The shard has no system data under this name.
    SystemDelete {
        /// The name.
        name: Bytes,
    },
    /// The shard knows what became of a write with a request id. Like system data, what is known
    /// of requests is no key, is spared by a clear and is not published.
    Request {
        /// The write. What is below its lowest unanswered sequence is forgotten.
        request: RequestId,
        /// When its session is forgotten, if nothing more comes of it.
        expires_at: UnixMillis,
        /// What became of it, as the store encodes it.
        outcome: Bytes,
    },
    /// Sessions that expire then or before are forgotten.
    ForgetSessions {
        /// The time.
        until: UnixMillis,
    },
}

/// Why a key was deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeleteCause {
    /// A client asked for it.
    Deleted,
    /// Its deadline passed.
    Expired,
    /// Memory was needed.
    Evicted,
}

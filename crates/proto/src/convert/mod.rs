//! Messages to commands, and answers to messages.
//!
//! A request becomes a [`Command`] together with what its response shall hold ([`Asked`]); the
//! answer to that command becomes the response. Everything a message can say is checked here, so
//! that behind this border a command is within its limits.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "an answer that is not of the call's command is one case, whatever it is"
)]

mod batch;
mod calls;
mod original;
mod scan;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

use bytes::Bytes;
use flux_types::limits::KEY_BYTES_MAX;
use flux_types::{Answer, Command, Compare, Error, ErrorCode, Expiry, Reply, Revision, UnixMillis};

use crate::kv;

pub use batch::{OPERATIONS_MAX, Planned, plan_operation};
pub use scan::{entry_without_value, scan_entry, scan_pattern};

/// A call with one request and one response.
pub trait Call: Sized {
    /// What answers it.
    type Response;

    /// The command to execute, and what the response shall hold.
    ///
    /// # Errors
    /// If a field is missing, too long, or contradicts another.
    fn command(self, limits: Limits) -> Result<(Command, Asked), InvalidField>;

    /// The response to an answer of that command.
    ///
    /// # Errors
    /// The command's own error; or `Internal` if the answer is of another command.
    fn response(asked: Asked, answer: Answer) -> Result<Self::Response, Error>;
}

/// What requests are checked against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest value, in bytes.
    pub value_bytes_max: usize,
}

/// What a response shall hold beyond the result itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// The revision.
    pub revision: bool,
    /// What was there before.
    pub previous: bool,
    /// Whether the replica of the node that is asked answers, whatever it has applied.
    pub stale: bool,
    /// Whether `success` means that a condition held, and not merely that nothing went wrong.
    conditional: bool,
}

/// A field of a request that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {description}")]
pub struct InvalidField {
    /// Its path in the request.
    pub field: Cow<'static, str>,
    /// What is wrong with it.
    pub description: Cow<'static, str>,
}

impl InvalidField {
    /// Names a field and what is wrong with it.
    #[must_use]
    pub fn new(
        field: impl Into<Cow<'static, str>>,
        description: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            field: field.into(),
            description: description.into(),
        }
    }

    /// The same field, seen from the message that holds this one at `path`.
    #[must_use]
    pub fn within(self, path: &str) -> Self {
        Self {
            field: format!("{path}.{}", self.field).into(),
            description: self.description,
        }
    }
}

/// Whether a read asks to be stale.
///
/// # Errors
/// If it asks for what is not known here: it might be more than is given.
pub fn is_stale(consistency: i32) -> Result<bool, InvalidField> {
    match kv::ReadConsistency::try_from(consistency) {
        Ok(kv::ReadConsistency::Unspecified) => Ok(false),
        Ok(kv::ReadConsistency::Stale) => Ok(true),
        Err(_) => Err(InvalidField::new("consistency", "is not known")),
    }
}

fn checked_key(key: Bytes) -> Result<Bytes, InvalidField> {
    if key.is_empty() {
        return Err(InvalidField::new("key", "must not be empty"));
    }
    if key.len() > KEY_BYTES_MAX {
        let description = format!(
            "must be at most {KEY_BYTES_MAX} bytes, and is {}",
            key.len()
        );
        return Err(InvalidField::new("key", description));
    }
    Ok(key)
}

fn checked_value(value: Option<Bytes>, limits: Limits) -> Result<Bytes, InvalidField> {
    let Some(value) = value else {
        return Err(InvalidField::new(
            "value",
            "must be there (an empty value is allowed)",
        ));
    };
    if value.len() > limits.value_bytes_max {
        let description = format!(
            "must be at most {} bytes, and is {}",
            limits.value_bytes_max,
            value.len()
        );
        return Err(InvalidField::new("value", description));
    }
    Ok(value)
}

/// What becomes of a deadline, as several messages spell it.
enum Deadline {
    TtlMs(u64),
    ExpiresAtMs(u64),
    Keep(bool),
}

fn checked_expiry(deadline: Option<Deadline>) -> Result<Expiry, InvalidField> {
    match deadline {
        None | Some(Deadline::Keep(false)) => Ok(Expiry::Clear),
        Some(Deadline::Keep(true)) => Ok(Expiry::Keep),
        Some(Deadline::TtlMs(0)) => Err(InvalidField::new("ttl_ms", "must be more than 0")),
        Some(Deadline::TtlMs(millis)) => Ok(Expiry::In(checked_millis("ttl_ms", millis)?)),
        Some(Deadline::ExpiresAtMs(millis)) => {
            Ok(Expiry::At(checked_millis("expires_at_ms", millis)?))
        }
    }
}

fn checked_millis(field: &'static str, millis: u64) -> Result<i64, InvalidField> {
    let description = "must be at most 9223372036854775807";
    i64::try_from(millis).map_err(|_| InvalidField::new(field, description))
}

fn checked_compare(compare: kv::Compare, limits: Limits) -> Result<Compare, InvalidField> {
    use kv::compare::Is;
    match compare.is {
        Some(Is::Absent(true)) => Ok(Compare::Absent),
        Some(Is::Exists(true)) => Ok(Compare::Exists),
        Some(Is::Revision(revision)) => Ok(Compare::RevisionIs(Revision::new(revision))),
        Some(Is::Value(value)) => checked_value(Some(value), limits)
            .map(Compare::ValueIs)
            .map_err(|invalid| invalid.within("expected")),
        Some(Is::Absent(false)) => Err(InvalidField::new("expected.absent", "must be true")),
        Some(Is::Exists(false)) => Err(InvalidField::new("expected.exists", "must be true")),
        None => Err(InvalidField::new(
            "expected",
            "must be one of absent, exists, revision, value",
        )),
    }
}

/// An entry of the store as a message.
fn entry(key: Bytes, entry: flux_types::Entry) -> kv::Entry {
    kv::Entry {
        key,
        value: entry.value,
        revision: entry.revision.get(),
        expires_at_ms: entry.deadline.map(UnixMillis::get),
    }
}

/// What was there before, without its key: the caller named it.
fn previous(asked: Asked, previous: Option<flux_types::Entry>) -> Option<kv::Entry> {
    previous
        .filter(|_| asked.previous)
        .map(|previous| entry(Bytes::new(), previous))
}

fn revision_of_write(asked: Asked, is_written: bool, answer: Revision) -> Option<u64> {
    (asked.revision && is_written).then(|| answer.get())
}

/// The reply is not one that the command can have: a bug, after which nothing is known.
fn unexpected(reply: Reply) -> Error {
    match reply {
        Reply::Error(error) => error,
        _ => Error::unknown(
            ErrorCode::Internal,
            "the answer does not belong to the request",
        ),
    }
}

//! Errors as gRPC statuses.
//!
//! Every status carries a `google.rpc.Status` in its details trailer, and in it a
//! [`FluxError`] that says whether the write happened. The table from [`ErrorCode`] is one
//! exhaustive match; a new code does not compile until it has a place here.

use bytes::Bytes;
use flux_types::{Error, ErrorCode, Outcome, Retry};
use prost::Message as _;
use prost_types::{Any, Duration};
use tonic::Code;

use crate::convert::InvalidField;
use crate::error::FluxError;
use crate::rpc::bad_request::FieldViolation;
use crate::rpc::{BadRequest, RetryInfo, Status};

/// How long a client should wait before it tries again where a queue was full: about the time in
/// which a full proposer queue empties.
const RETRY_DELAY_BUSY_MS: i32 = 50;
/// The same where memory or disk space is missing, which takes longer to change.
const RETRY_DELAY_SPACE_MS: i32 = 1000;

/// The gRPC status code of an error code, and the word by which [`FluxError`] names it.
#[must_use]
pub const fn code(code: ErrorCode) -> (Code, &'static str) {
    match code {
        ErrorCode::Invalid => (Code::InvalidArgument, "invalid"),
        ErrorCode::UnknownCommand => (Code::Unimplemented, "unknown-command"),
        ErrorCode::WrongArity => (Code::InvalidArgument, "wrong-arity"),
        // Not the argument is wrong but what the key holds, so the caller must change that first.
        ErrorCode::NotAnInteger => (Code::FailedPrecondition, "not-an-integer"),
        ErrorCode::NotAFloat => (Code::FailedPrecondition, "not-a-float"),
        ErrorCode::Overflow => (Code::OutOfRange, "overflow"),
        ErrorCode::TooLarge => (Code::InvalidArgument, "too-large"),
        ErrorCode::NoSuchKey => (Code::NotFound, "no-such-key"),
        ErrorCode::CrossShard => (Code::InvalidArgument, "cross-shard"),
        ErrorCode::Conflict => (Code::FailedPrecondition, "conflict"),
        ErrorCode::TransactionAborted => (Code::Aborted, "transaction-aborted"),
        ErrorCode::Unauthenticated => (Code::Unauthenticated, "unauthenticated"),
        ErrorCode::WrongPassword => (Code::Unauthenticated, "wrong-password"),
        ErrorCode::Forbidden => (Code::PermissionDenied, "forbidden"),
        ErrorCode::Busy => (Code::ResourceExhausted, "busy"),
        ErrorCode::Timeout => (Code::DeadlineExceeded, "timeout"),
        ErrorCode::OutOfMemory => (Code::ResourceExhausted, "out-of-memory"),
        ErrorCode::NoSpace => (Code::ResourceExhausted, "no-space"),
        ErrorCode::NotLeader => (Code::Unavailable, "not-leader"),
        ErrorCode::Resharded => (Code::Unavailable, "resharded"),
        ErrorCode::Unavailable => (Code::Unavailable, "unavailable"),
        ErrorCode::ShuttingDown => (Code::Unavailable, "shutting-down"),
        ErrorCode::Internal => (Code::Internal, "internal"),
        // It was done: whoever only wants that has it, and the outcome says so.
        ErrorCode::ReplyNotKept => (Code::AlreadyExists, "reply-not-kept"),
        ErrorCode::RequestUnknown => (Code::Aborted, "request-unknown"),
    }
}

/// An error as the message that carries its details.
#[must_use]
pub fn from_error(error: &Error) -> Status {
    let (code, _) = code(error.code);
    let mut details = vec![any("flux.error.v1.FluxError", &detail(error))];
    if let Some(delay) = retry_delay(error) {
        details.push(any("google.rpc.RetryInfo", &delay));
    }
    Status {
        code: code.into(),
        message: error.message.clone().into_owned(),
        details,
    }
}

/// A request that cannot be understood, with the field at fault.
#[must_use]
pub fn from_invalid_field(invalid: &InvalidField) -> Status {
    let mut status = from_error(&Error::not_done(ErrorCode::Invalid, invalid.to_string()));
    let bad_request = BadRequest {
        field_violations: vec![FieldViolation {
            field: invalid.field.to_string(),
            description: invalid.description.to_string(),
        }],
    };
    status
        .details
        .push(any("google.rpc.BadRequest", &bad_request));
    status
}

/// A failure that a service describes by a detail of its own.
#[must_use]
pub fn with_detail(code: Code, message: &str, name: &str, detail: &impl prost::Message) -> Status {
    Status {
        code: code.into(),
        message: message.to_owned(),
        details: vec![any(name, detail)],
    }
}

/// The status as tonic sends it, details included.
#[must_use]
pub fn to_tonic(status: &Status) -> tonic::Status {
    tonic::Status::with_details(
        Code::from_i32(status.code),
        status.message.clone(),
        Bytes::from(status.encode_to_vec()),
    )
}

/// Reads the details back: of a status that a client has received. `None` where there are none, as
/// in a status that a proxy made up.
#[must_use]
pub fn details(status: &tonic::Status) -> Option<Status> {
    if status.details().is_empty() {
        return None;
    }
    Status::decode(status.details()).ok()
}

/// The [`FluxError`] among the details of a status.
#[must_use]
pub fn flux_error(status: &Status) -> Option<FluxError> {
    let is_ours = |any: &&Any| any.type_url.ends_with("/flux.error.v1.FluxError");
    let any = status.details.iter().find(is_ours)?;
    FluxError::decode(any.value.as_slice()).ok()
}

/// The [`BadRequest`] among the details of a status.
#[must_use]
pub fn bad_request(status: &Status) -> Option<BadRequest> {
    let is_it = |any: &&Any| any.type_url.ends_with("/google.rpc.BadRequest");
    let any = status.details.iter().find(is_it)?;
    BadRequest::decode(any.value.as_slice()).ok()
}

fn detail(error: &Error) -> FluxError {
    let (_, word) = code(error.code);
    let retry = match error.retry() {
        Retry::No => "no",
        Retry::Same => "same",
        Retry::Elsewhere => "elsewhere",
    };
    FluxError {
        code: word.to_owned(),
        outcome: error.outcome.as_str().to_owned(),
        message: error.message.clone().into_owned(),
        retry: retry.to_owned(),
    }
}

/// When to try again: told only where nothing was done and the same node may take it later, because
/// gateways and clients repeat by themselves what carries this detail.
fn retry_delay(error: &Error) -> Option<RetryInfo> {
    if error.outcome != Outcome::NotDone || error.retry() != Retry::Same {
        return None;
    }
    let millis = if error.code == ErrorCode::Busy || error.code == ErrorCode::Timeout {
        RETRY_DELAY_BUSY_MS
    } else {
        RETRY_DELAY_SPACE_MS
    };
    Some(RetryInfo {
        retry_delay: Some(Duration {
            seconds: i64::from(millis / 1000),
            nanos: millis % 1000 * 1_000_000,
        }),
    })
}

fn any(name: &str, message: &impl prost::Message) -> Any {
    Any {
        type_url: format!("type.googleapis.com/{name}"),
        value: message.encode_to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use flux_types::{Error, ErrorCode};
    use prost::Message as _;
    use tonic::Code;

    use super::{bad_request, details, flux_error, from_error, from_invalid_field, to_tonic};
    use crate::convert::InvalidField;
    use crate::rpc::RetryInfo;

    #[test]
    fn the_outcome_survives_the_way_through_the_details_trailer() {
        let error = Error::unknown(ErrorCode::Timeout, "the deadline passed");
        let sent = to_tonic(&from_error(&error));
        assert_eq!(sent.code(), Code::DeadlineExceeded);
        assert_eq!(sent.message(), "the deadline passed");
        let received = details(&sent).unwrap();
        assert_eq!(received.code, i32::from(Code::DeadlineExceeded));
        let detail = flux_error(&received).unwrap();
        assert_eq!(
            [
                detail.code.as_str(),
                detail.outcome.as_str(),
                detail.retry.as_str(),
                detail.message.as_str()
            ],
            ["timeout", "unknown", "same", "the deadline passed"]
        );
    }

    #[test]
    fn only_what_was_not_done_says_when_to_try_again() {
        let delay = |error: &Error| {
            let status = from_error(error);
            let any = status.details.get(1)?;
            let info = RetryInfo::decode(any.value.as_slice()).unwrap();
            info.retry_delay
        };
        let busy = delay(&Error::not_done(ErrorCode::Busy, "full")).unwrap();
        assert_eq!((busy.seconds, busy.nanos), (0, 50_000_000));
        let space = delay(&Error::not_done(ErrorCode::NoSpace, "full")).unwrap();
        assert_eq!((space.seconds, space.nanos), (1, 0));
        assert_eq!(delay(&Error::unknown(ErrorCode::Timeout, "late")), None);
        assert_eq!(delay(&Error::not_done(ErrorCode::Invalid, "bad")), None);
    }

    #[test]
    fn an_invalid_field_is_named_in_a_bad_request() {
        let status = from_invalid_field(&InvalidField::new("key", "must not be empty"));
        assert_eq!(status.code, i32::from(Code::InvalidArgument));
        assert_eq!(status.message, "key: must not be empty");
        let violations = bad_request(&status).unwrap().field_violations;
        assert_eq!(violations[0].field, "key");
        assert_eq!(violations[0].description, "must not be empty");
        assert_eq!(flux_error(&status).unwrap().outcome, "not-done");
    }

    #[test]
    fn a_status_without_details_has_none() {
        assert_eq!(details(&tonic::Status::unavailable("no route")), None);
        let garbage = tonic::Status::with_details(Code::Internal, "", vec![0xff; 3].into());
        assert_eq!(details(&garbage), None);
    }
}

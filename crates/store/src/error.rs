//! The error texts of commands: Redis's own, word for word, since clients match on them.

use flux_types::{Error, ErrorCode, Outcome, SessionId, UnixMillis};

pub(crate) fn not_an_integer() -> Error {
    Error::not_done(
        ErrorCode::NotAnInteger,
        "value is not an integer or out of range",
    )
}

pub(crate) fn would_overflow() -> Error {
    Error::not_done(ErrorCode::Overflow, "increment or decrement would overflow")
}

pub(crate) fn not_a_float() -> Error {
    Error::not_done(ErrorCode::NotAFloat, "value is not a valid float")
}

pub(crate) fn not_finite() -> Error {
    Error::not_done(
        ErrorCode::Overflow,
        "increment would produce NaN or Infinity",
    )
}

pub(crate) fn no_such_key() -> Error {
    Error::not_done(ErrorCode::NoSuchKey, "no such key")
}

pub(crate) fn too_long() -> Error {
    Error::not_done(
        ErrorCode::TooLarge,
        "string exceeds maximum allowed size (proto-max-bulk-len)",
    )
}

pub(crate) fn no_place_for_system_data() -> Error {
    Error::not_done(ErrorCode::TooLarge, "no place for these system data")
}

pub(crate) fn key_too_long() -> Error {
    Error::not_done(ErrorCode::TooLarge, "key exceeds maximum allowed size")
}

pub(crate) fn batch_too_large() -> Error {
    Error::not_done(
        ErrorCode::TooLarge,
        "command does not fit in one batch; use fewer or smaller arguments",
    )
}

pub(crate) fn same_object() -> Error {
    Error::not_done(
        ErrorCode::Invalid,
        "source and destination objects are the same",
    )
}

pub(crate) fn out_of_memory() -> Error {
    Error::not_done(
        ErrorCode::OutOfMemory,
        "command not allowed when used memory > 'maxmemory'.",
    )
}

pub(crate) fn invalid_expiry(command: &'static str) -> Error {
    Error::not_done(
        ErrorCode::Invalid,
        format!("invalid expire time in '{command}' command"),
    )
}

pub(crate) fn incompatible_conditions() -> Error {
    Error::not_done(
        ErrorCode::Invalid,
        "NX and XX, GT or LT options at the same time are not compatible",
    )
}

pub(crate) fn nested_transaction() -> Error {
    Error::not_done(ErrorCode::Internal, "a transaction inside a transaction")
}

pub(crate) fn nested_request() -> Error {
    Error::not_done(
        ErrorCode::Invalid,
        "a request id belongs to a whole transaction, not to a command in it",
    )
}

pub(crate) fn request_out_of_order() -> Error {
    Error::not_done(
        ErrorCode::Invalid,
        "a request's sequence must be at least its lowest unanswered one, and that at least 1",
    )
}

pub(crate) fn request_above_window() -> Error {
    Error::not_done(
        ErrorCode::Invalid,
        "a request's sequence is too far above the lowest unanswered one of its session",
    )
}

pub(crate) fn too_many_requests_kept() -> Error {
    Error::not_done(
        ErrorCode::Busy,
        "what is kept of requests with ids is at its limit; try again",
    )
}

pub(crate) fn request_given_up() -> Error {
    Error::not_done(
        ErrorCode::Conflict,
        "somebody asked for the outcome of this request before it came; it is never carried out",
    )
}

pub(crate) fn reply_not_kept() -> Error {
    Error {
        code: ErrorCode::ReplyNotKept,
        message: "the request was carried out before; its reply was too long to be kept".into(),
        outcome: Outcome::Done,
    }
}

pub(crate) fn request_below_window(lowest_unanswered: u64) -> Error {
    Error::unknown(
        ErrorCode::RequestUnknown,
        format!(
            "the request is forgotten, since its session's lowest unanswered one is \
             {lowest_unanswered}; not carried out again"
        ),
    )
}

pub(crate) fn session_unknown(session: SessionId, now: UnixMillis) -> Error {
    let (began, now) = (session.began_at(), now);
    let (millis, side) = if began <= now {
        (now.saturating_since(began), "before")
    } else {
        (began.saturating_since(now), "after")
    };
    Error::unknown(
        ErrorCode::RequestUnknown,
        format!(
            "the session is not known, and began {millis} ms {side} now, too far for a new one; \
             not carried out"
        ),
    )
}

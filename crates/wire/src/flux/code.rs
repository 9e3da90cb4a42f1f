//! Error codes and outcomes as numbers. A number, once given, keeps its meaning for ever.

use flux_types::{ErrorCode, Outcome};

/// The number of an error code. 0 is given to none: it means success.
#[must_use]
pub const fn number_of_code(code: ErrorCode) -> u16 {
    match code {
        ErrorCode::Invalid => 1,
        ErrorCode::UnknownCommand => 2,
        ErrorCode::WrongArity => 3,
        ErrorCode::NotAnInteger => 4,
        ErrorCode::NotAFloat => 5,
        ErrorCode::Overflow => 6,
        ErrorCode::TooLarge => 7,
        ErrorCode::NoSuchKey => 8,
        ErrorCode::CrossShard => 9,
        ErrorCode::Conflict => 10,
        ErrorCode::TransactionAborted => 11,
        ErrorCode::Unauthenticated => 12,
        ErrorCode::WrongPassword => 13,
        ErrorCode::Forbidden => 14,
        ErrorCode::Busy => 15,
        ErrorCode::Timeout => 16,
        ErrorCode::OutOfMemory => 17,
        ErrorCode::NoSpace => 18,
        ErrorCode::NotLeader => 19,
        ErrorCode::Unavailable => 20,
        ErrorCode::ShuttingDown => 21,
        ErrorCode::Internal => 22,
    }
}

/// The error code of a number. A number that a later server may use is [`ErrorCode::Internal`]:
/// nothing is known about it but that the request failed.
#[must_use]
pub const fn code_of_number(number: u16) -> ErrorCode {
    match number {
        1 => ErrorCode::Invalid,
        2 => ErrorCode::UnknownCommand,
        3 => ErrorCode::WrongArity,
        4 => ErrorCode::NotAnInteger,
        5 => ErrorCode::NotAFloat,
        6 => ErrorCode::Overflow,
        7 => ErrorCode::TooLarge,
        8 => ErrorCode::NoSuchKey,
        9 => ErrorCode::CrossShard,
        10 => ErrorCode::Conflict,
        11 => ErrorCode::TransactionAborted,
        12 => ErrorCode::Unauthenticated,
        13 => ErrorCode::WrongPassword,
        14 => ErrorCode::Forbidden,
        15 => ErrorCode::Busy,
        16 => ErrorCode::Timeout,
        17 => ErrorCode::OutOfMemory,
        18 => ErrorCode::NoSpace,
        19 => ErrorCode::NotLeader,
        20 => ErrorCode::Unavailable,
        21 => ErrorCode::ShuttingDown,
        _ => ErrorCode::Internal,
    }
}

/// The number of an outcome.
pub(super) const fn number_of_outcome(outcome: Outcome) -> u8 {
    match outcome {
        Outcome::NotDone => 0,
        Outcome::Done => 1,
        Outcome::Unknown => 2,
    }
}

/// The outcome of a number; what is not assigned is unknown in every sense.
pub(super) const fn outcome_of_number(number: u8) -> Outcome {
    match number {
        0 => Outcome::NotDone,
        1 => Outcome::Done,
        _ => Outcome::Unknown,
    }
}

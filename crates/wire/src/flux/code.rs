//! Error codes and outcomes as numbers, under the names by which this room is known for them. The
//! numbers are given in `flux_types`.

use flux_types::{ErrorCode, Outcome};

/// The number of an error code. 0 is given to none: it means success.
#[must_use]
pub const fn number_of_code(code: ErrorCode) -> u16 {
    code.number()
}

/// The error code of a number. A number that a later server may use is [`ErrorCode::Internal`]:
/// nothing is known about it but that the request failed.
#[must_use]
pub const fn code_of_number(number: u16) -> ErrorCode {
    ErrorCode::from_number(number)
}

/// The number of an outcome.
pub(super) const fn number_of_outcome(outcome: Outcome) -> u8 {
    outcome.number()
}

/// The outcome of a number; what is not assigned is unknown in every sense.
pub(super) const fn outcome_of_number(number: u8) -> Outcome {
    Outcome::from_number(number)
}

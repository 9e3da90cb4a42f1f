//! Whether an attempt that failed is made again. Pure.
//!
//! Again is only what is safe: what was not done, and what is done once however often it is sent.
//! In all other cases the caller is told, and that the outcome is unknown if it is.

use flux_types::{ErrorCode, Outcome, Retry};

use crate::error::Error;

/// What is known of a request besides its last failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    /// It changes nothing, or carries a request id: it may be sent again whatever became of it.
    pub(crate) is_repeatable: bool,
    /// It is the first attempt.
    pub(crate) is_first: bool,
}

/// What follows a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Another attempt, after a pause, to whoever is said to lead then.
    Again,
    /// Another attempt with a new session: this one is not known, and nothing was done in it.
    AgainInNewSession,
    /// The caller is told.
    Tell,
}

pub(crate) fn after(error: &Error, known: Known) -> Next {
    let is_safe = error.outcome() == Outcome::NotDone || known.is_repeatable;
    match error {
        Error::Node(node) if node.code == ErrorCode::RequestUnknown => {
            // Nobody has used the number before, so nothing can have been forgotten of it.
            if known.is_first {
                Next::AgainInNewSession
            } else {
                Next::Tell
            }
        }
        Error::Node(node) => {
            let may_help = match node.retry() {
                Retry::Elsewhere => true,
                // Space and memory do not come back within a deadline.
                Retry::Same => matches!(
                    node.code,
                    ErrorCode::Busy | ErrorCode::Resharded | ErrorCode::Timeout
                ),
                Retry::No => false,
            };
            if is_safe && may_help {
                Next::Again
            } else {
                Next::Tell
            }
        }
        Error::Connect { .. } | Error::Lost { .. } if is_safe => Next::Again,
        Error::Connect { .. }
        | Error::Lost { .. }
        | Error::Refused { .. }
        | Error::Timeout { .. }
        | Error::TooLong(_)
        | Error::Unexpected { .. }
        | Error::Closed => Next::Tell,
    }
}

#[cfg(test)]
mod tests {
    use flux_types::Error as NodeError;

    use super::*;

    const WRITE: Known = Known {
        is_repeatable: false,
        is_first: true,
    };
    const ONCE: Known = Known {
        is_repeatable: true,
        is_first: true,
    };

    fn lost(outcome: Outcome) -> Error {
        Error::Lost {
            address: String::new(),
            problem: String::new(),
            outcome,
        }
    }

    #[test]
    fn only_what_is_safe_is_sent_again() {
        let not_done = |code| Error::Node(NodeError::not_done(code, "x"));
        let unknown = |code| Error::Node(NodeError::unknown(code, "x"));
        for (error, write, once) in [
            (lost(Outcome::Unknown), Next::Tell, Next::Again),
            (lost(Outcome::NotDone), Next::Again, Next::Again),
            (not_done(ErrorCode::NotLeader), Next::Again, Next::Again),
            (not_done(ErrorCode::Resharded), Next::Again, Next::Again),
            (not_done(ErrorCode::Unavailable), Next::Again, Next::Again),
            (not_done(ErrorCode::Busy), Next::Again, Next::Again),
            (not_done(ErrorCode::Timeout), Next::Again, Next::Again),
            (unknown(ErrorCode::Unavailable), Next::Tell, Next::Again),
            (unknown(ErrorCode::Timeout), Next::Tell, Next::Again),
            (not_done(ErrorCode::OutOfMemory), Next::Tell, Next::Tell),
            (not_done(ErrorCode::NotAnInteger), Next::Tell, Next::Tell),
            (not_done(ErrorCode::ReplyNotKept), Next::Tell, Next::Tell),
            (
                Error::Timeout {
                    outcome: Outcome::Unknown,
                },
                Next::Tell,
                Next::Tell,
            ),
        ] {
            assert_eq!(after(&error, WRITE), write, "{error}");
            assert_eq!(after(&error, ONCE), once, "{error}");
        }
    }

    #[test]
    fn a_forgotten_session_is_replaced_only_if_it_was_never_used_for_this() {
        let forgotten = Error::Node(NodeError::unknown(ErrorCode::RequestUnknown, "x"));
        assert_eq!(after(&forgotten, ONCE), Next::AgainInNewSession);
        let again = Known {
            is_first: false,
            ..ONCE
        };
        assert_eq!(after(&forgotten, again), Next::Tell);
    }
}

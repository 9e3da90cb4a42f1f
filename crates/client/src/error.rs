//! What can go wrong with a request, and whether it happened all the same.

use std::sync::Arc;

use flux_types::Outcome;
use flux_wire::flux::TooLong;

/// Why there is no reply, or which error the reply was.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The node answered with an error, which says by itself whether the write happened.
    #[error("{}", .0.message)]
    Node(flux_types::Error),
    /// No connection to the node can be had.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// Where it was tried.
        address: String,
        /// What was said.
        source: Arc<std::io::Error>,
    },
    /// The node refused the password, or asks for one.
    #[error("{address} refuses this client: {}", .source.message)]
    Refused {
        /// Which node.
        address: String,
        /// What it said.
        source: flux_types::Error,
    },
    /// The connection was lost while the request was on its way.
    #[error("the connection to {address} was lost: {problem}")]
    Lost {
        /// Which node.
        address: String,
        /// Why.
        problem: String,
        /// Whether the write happened.
        outcome: Outcome,
    },
    /// The deadline passed first.
    #[error("no reply before the deadline")]
    Timeout {
        /// Whether the write happened.
        outcome: Outcome,
    },
    /// The request is longer than the node accepts.
    #[error(transparent)]
    TooLong(#[from] TooLong),
    /// The node answered with something that this request cannot have as its answer.
    #[error("the answer makes no sense here: {answer}")]
    Unexpected {
        /// What came.
        answer: String,
    },
    /// The client has been closed.
    #[error("the client is closed")]
    Closed,
}

impl Error {
    /// Whether a failed write happened. For reads the answer has no meaning.
    #[must_use]
    pub const fn outcome(&self) -> Outcome {
        match self {
            Self::Node(error) => error.outcome,
            Self::Lost { outcome, .. } | Self::Timeout { outcome } => *outcome,
            Self::Connect { .. } | Self::Refused { .. } | Self::TooLong(_) | Self::Closed => {
                Outcome::NotDone
            }
            // The node did something and said so, in words that we do not know.
            Self::Unexpected { .. } => Outcome::Unknown,
        }
    }
}

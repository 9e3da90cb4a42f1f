//! Why a gateway could not start.

use std::fmt;
use std::io;
use std::net::SocketAddr;

use thiserror::Error;

use crate::config::Mistake;

/// Why a gateway could not start. Nothing is left running or bound after it.
#[derive(Debug, Error)]
pub enum StartError {
    /// The configuration is wrong.
    #[error("the configuration has mistakes:{}", Lines(mistakes))]
    Config {
        /// All of them.
        mistakes: Vec<Mistake>,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// An upstream is to be discovered, and there is no registry to look into.
    #[error("upstream {upstream:?} is to be discovered, but the gateway was given no registry")]
    WithoutRegistry {
        /// Name of the upstream.
        upstream: String,
    },
    /// A descriptor file is not usable.
    #[error("the descriptors of upstream {upstream:?} cannot be used: {problem}")]
    Descriptors {
        /// Name of the upstream.
        upstream: String,
        /// Why.
        problem: String,
    },
    /// A thread or its runtime cannot be created.
    #[error("cannot create a worker: {source}")]
    Worker {
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

struct Lines<'a>(&'a [Mistake]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .try_for_each(|mistake| write!(f, "\n  {mistake}"))
    }
}

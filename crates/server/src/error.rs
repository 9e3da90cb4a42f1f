//! Why a node did not start, and what its process should exit with.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::config::Mistake;

/// Why a node did not start. Nothing was left behind that was not there before, except where the
/// variant says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Settings that cannot stand, all of them.
    #[error("{}", lines(.0))]
    Config(Vec<Mistake>),
    /// A port cannot be had.
    #[error("{}", port_taken(*address, key, source))]
    Port {
        /// Where it should have been.
        address: SocketAddr,
        /// The setting that changes it.
        key: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The data folder cannot be used: not writable, in use, of another kind, or with another
    /// number of shards.
    #[error("{problem}")]
    DataDir {
        /// The folder.
        path: PathBuf,
        /// What is wrong, and what would help.
        problem: String,
    },
    /// The nodes of a cluster were told what does not fit together.
    #[error("{problem}")]
    Cluster {
        /// What, and what would be right.
        problem: String,
    },
    /// The data is damaged in a way that must not be guessed away.
    #[error("{problem}")]
    Damaged {
        /// Segment, offset, shard if known, and how to look at it.
        problem: String,
    },
    /// Something of the machine failed: a thread, a socket, a disk.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What was said.
        source: std::io::Error,
    },
    /// A shard did not start.
    #[error("{problem}")]
    Shard {
        /// What it said.
        problem: String,
    },
}

impl StartError {
    /// What the process should exit with: 2 when a setting or the surroundings must change, 3 when
    /// data is damaged, 1 for the rest.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Port { .. } | Self::DataDir { .. } | Self::Cluster { .. } => 2,
            Self::Damaged { .. } => 3,
            Self::System { .. } | Self::Shard { .. } => 1,
        }
    }
}

fn lines(mistakes: &[Mistake]) -> String {
    let lines: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

fn port_taken(address: SocketAddr, key: &str, source: &std::io::Error) -> String {
    if source.kind() == std::io::ErrorKind::AddrInUse {
        format!(
            "port {} is taken (another process listens on {address}); choose another with --{key}",
            address.port()
        )
    } else {
        format!("cannot listen on {address}: {source}; choose another with --{key} or --bind")
    }
}

/// Why a running node cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct NodeFailure {
    /// The shard that noticed; `None` if it was the log itself.
    pub shard: Option<u32>,
    /// What it said.
    pub problem: String,
}

//! What can go wrong with a log, while it is opened and after.

use std::io;
use std::path::PathBuf;

use flux_types::ShardId;

/// Why a log did not open. Nothing was created or changed, except where the variant says so.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory holds files that are not ours.
    #[error(
        "data directory {} holds `{found}`, which flux did not write; choose an empty directory",
        dir.display()
    )]
    ForeignFiles {
        /// The data directory.
        dir: PathBuf,
        /// One of the foreign names.
        found: String,
    },
    /// Another process has the directory.
    #[error("data directory {} is in use by another process", dir.display())]
    InUse {
        /// The data directory.
        dir: PathBuf,
    },
    /// The directory was made with another number of shards.
    #[error(
        "data directory {} was created with {found} shard(s), but {asked} were asked for; \
         the number of shards is fixed at the first start",
        dir.display()
    )]
    ShardCount {
        /// The data directory.
        dir: PathBuf,
        /// What it holds.
        found: u32,
        /// What was asked for.
        asked: u32,
    },
    /// The files carry a format version that this program does not know.
    #[error("{}: format version {found} is not known; this program reads version {known}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// A file of the log is damaged where it cannot be a torn tail. Nothing was changed.
    #[error(
        "log damaged in segment {segment} at offset {offset}: {what} ({}); nothing was changed; \
         look at it with: flux log inspect {}", suspects(shards), dir.display()
    )]
    Damaged {
        /// The data directory.
        dir: PathBuf,
        /// Name of the damaged file.
        segment: String,
        /// Where in it, in bytes.
        offset: u64,
        /// Shards that may have lost records; empty if that is not known.
        shards: Vec<ShardId>,
        /// What is wrong there.
        what: String,
    },
    /// The machine has booted since the log was last written, and the log had not been closed: its
    /// end may be missing. Told only if that is asked for.
    #[error(
        "data directory {} was in use when the machine went down; without fsync = always its log \
         may lack what was acknowledged last", dir.display()
    )]
    PowerLoss {
        /// The data directory.
        dir: PathBuf,
    },
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

fn suspects(shards: &[ShardId]) -> String {
    match shards {
        [] => "shard unknown".to_owned(),
        [one] => format!("shard {one}"),
        many => {
            let names: Vec<String> = many.iter().map(ToString::to_string).collect();
            format!("shards {}", names.join(", "))
        }
    }
}

impl OpenError {
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::Io {
            action,
            path: path.into(),
            source,
        }
    }
}

/// Why an operation on an open log failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LogError {
    /// A write or sync failed earlier: nothing is acknowledged anymore, and the process must stop.
    #[error("log poisoned by an earlier failure: {reason}")]
    Poisoned {
        /// The first failure.
        reason: String,
    },
    /// There is no room for what was asked; nothing was written.
    #[error("no space left for the log")]
    NoSpace,
    /// A record read back does not match its checksum.
    #[error("damaged record in segment {segment} at offset {offset}")]
    Damaged {
        /// The segment's number.
        segment: u64,
        /// Where in it, in bytes.
        offset: u64,
    },
    /// A snapshot is damaged or not in the form expected.
    #[error("damaged snapshot {name}: {what}")]
    DamagedSnapshot {
        /// The file.
        name: String,
        /// What is wrong.
        what: &'static str,
    },
    /// The operating system refused to read.
    #[error("cannot read the log: {reason}")]
    Read {
        /// What it said.
        reason: String,
    },
    /// What the directory says of itself could not be changed.
    #[error("{reason}")]
    Identity {
        /// What the operating system said.
        reason: String,
    },
    /// The operating system refused a snapshot write.
    #[error("cannot write snapshot: {reason}")]
    SnapshotWrite {
        /// What it said.
        reason: String,
    },
}

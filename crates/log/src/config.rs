//! How a log is opened.

use std::path::PathBuf;

use flux_types::limits::{SEGMENT_BYTES_DEFAULT, SHARDS_MAX};

/// When an append counts as flushed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FsyncPolicy {
    /// After `fdatasync`. Survives a power cut.
    #[default]
    Always,
    /// After the write reached the kernel; `fdatasync` follows within a second. Survives the death
    /// of the process; a power cut may lose the last second.
    EverySecond,
    /// After the write reached the kernel, which flushes when it likes.
    Never,
}

/// How long entries are kept that replication needs no more, for those who read the change stream.
/// They go by whole segments, the oldest first. A full disk comes before all of it: then the oldest
/// go until there is room for writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// Most bytes of segments kept for this alone.
    pub bytes_max: u64,
    /// How long after the last record of a segment it is kept at most, in milliseconds.
    pub age_max_ms: u64,
    /// Most bytes kept for those who asked by name ([`crate::ShardLog::pin`]).
    pub pinned_bytes_max: u64,
    /// How long after an open everything counts as asked for, in milliseconds: who asks by name
    /// must come back first.
    pub settle_ms: u64,
}

/// Where and how a log is kept.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// The node's data directory. Segments go to `log/`, snapshots to `snap/` in it.
    pub dir: PathBuf,
    /// When an append counts as flushed.
    pub fsync: FsyncPolicy,
    /// Size of a segment in bytes.
    pub segment_bytes: u64,
    /// Entries kept in memory per shard, in payload bytes; older ones are read from disk.
    pub tail_bytes_max: usize,
    /// What is kept beyond what replication needs; nothing unless set.
    pub retention: Retention,
    /// Shards of a new directory. One that was opened before has as many as then, or more.
    pub shard_count: u32,
    /// Whether a directory may have more shards, since some were split ([`crate::Log::grow`]).
    pub may_have_grown: bool,
    /// Whether a thread of its own writes and syncs. Without, [`crate::Log::pump`] does; for
    /// simulations, where the order of everything comes from one seed.
    pub own_thread: bool,
    /// Refuses a log that was not closed in order before the machine booted again: its end may be
    /// missing, and one replica of several must then not speak for what it has forgotten.
    pub refuse_power_loss: bool,
}

impl LogConfig {
    /// The defaults, for a directory and a number of shards.
    ///
    /// # Panics
    /// If `shard_count` is 0 or above [`SHARDS_MAX`].
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>, shard_count: u32) -> Self {
        assert!(
            0 < shard_count && shard_count <= SHARDS_MAX,
            "shard count out of range"
        );
        Self {
            dir: dir.into(),
            fsync: FsyncPolicy::Always,
            segment_bytes: crate::fields::widen(SEGMENT_BYTES_DEFAULT),
            tail_bytes_max: 16 * 1024 * 1024,
            retention: Retention::default(),
            shard_count,
            may_have_grown: false,
            own_thread: true,
            refuse_power_loss: false,
        }
    }

    pub(crate) fn log_dir(&self) -> PathBuf {
        self.dir.join("log")
    }

    pub(crate) fn snapshot_dir(&self) -> PathBuf {
        self.dir.join("snap")
    }
}

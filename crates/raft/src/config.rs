//! What can be tuned about a shard, with its defaults and bounds.

use std::time::Duration;

use flux_types::bug::{self, Bug};
use flux_types::limits;

/// Settings of one shard's replica.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    /// Most operations that may wait for the proposer; more are given back as busy.
    pub queue_operations_max: usize,
    /// Most operations in one batch.
    pub batch_operations_max: usize,
    /// Bytes of facts after which a batch takes no further command.
    pub batch_bytes_max: usize,
    /// Bytes of log entries after which a snapshot is taken.
    pub snapshot_log_bytes: u64,
    /// About how large a block of a snapshot is: what the walk copies under one lock.
    pub snapshot_block_bytes: usize,
    /// Entries before a snapshot that are kept, so that a replica that was away for a moment
    /// catches up from the log instead of from the snapshot.
    pub log_entries_kept: u64,
    /// Most keys in one sweep of expired keys.
    pub sweep_keys_max: usize,
    /// Longest sleep of the sweeper while any key has a deadline: bounds how late it notices a
    /// deadline that came nearer by a step of the clock.
    pub sweep_pause_max: Duration,
    /// A step of the clock beyond this pauses active expiry.
    pub clock_step_max: Duration,
    /// Whether a leader of several voters answers reads while its lease is open; else each read
    /// asks a quorum.
    pub lease_reads: bool,
    /// Elections and heartbeats.
    pub timings: Timings,
}

/// Raft's timings. All replicas of a shard must agree on them.
#[derive(Clone, Copy, Debug)]
pub struct Timings {
    /// Shortest election timeout.
    pub election_min: Duration,
    /// Longest election timeout; also the length of the leader lease.
    pub election_max: Duration,
    /// Pause between heartbeats.
    pub heartbeat: Duration,
    /// A heartbeat is left out if an acknowledgement is younger than this.
    pub heartbeat_min: Duration,
    /// Deadline of an append with entries, before what its bytes add.
    pub append_timeout: Duration,
    /// Bytes per second that an append may count on; slower links are treated as broken.
    pub append_bytes_per_second: u64,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            election_min: Duration::from_millis(300),
            election_max: Duration::from_millis(600),
            heartbeat: Duration::from_millis(100),
            heartbeat_min: Duration::from_millis(80),
            append_timeout: Duration::from_secs(2),
            append_bytes_per_second: 4 * 1024 * 1024,
        }
    }
}

impl Timings {
    /// How long an append of this many bytes may take.
    #[must_use]
    pub fn append_deadline(&self, bytes: usize) -> Duration {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let rate = self.append_bytes_per_second.max(1);
        self.append_timeout
            .saturating_add(Duration::from_millis(bytes.saturating_mul(1000) / rate))
    }

    /// How long after its start a voter refuses votes: a leader it has forgotten may still trust
    /// the lease it was granted (1.2 times the longest election timeout).
    #[must_use]
    pub fn vote_refusal(&self) -> Duration {
        self.election_max.saturating_mul(6) / 5
    }

    /// How much of the lease reads trust: 0.7, the rest is for clocks that run apart.
    #[must_use]
    pub fn read_lease(&self) -> Duration {
        if bug::is_on(Bug::LeaseWithoutMargin) {
            return self.election_max.saturating_mul(6) / 5;
        }
        self.election_max.saturating_mul(7) / 10
    }
}

impl Default for ShardConfig {
    fn default() -> Self {
        Self {
            queue_operations_max: limits::PROPOSER_QUEUE_OPERATIONS_MAX,
            batch_operations_max: limits::BATCH_OPERATIONS_MAX,
            batch_bytes_max: limits::BATCH_BYTES_MAX,
            snapshot_log_bytes: 256 * 1024 * 1024,
            snapshot_block_bytes: 64 * 1024,
            log_entries_kept: 1024,
            sweep_keys_max: 512,
            sweep_pause_max: Duration::from_millis(500),
            clock_step_max: Duration::from_millis(500),
            lease_reads: true,
            timings: Timings::default(),
        }
    }
}

//! What the replicas of the shards tell of themselves, read at every scrape.

use flux_raft::{Role, ShardStatus};
use flux_telemetry::{Kind, Registry, Value};

/// A family of one number for each shard.
struct PerShard {
    name: &'static str,
    help: &'static str,
    kind: Kind,
    value: fn(&ShardStatus) -> Value,
}

const FAMILIES: [PerShard; 13] = [
    PerShard {
        name: "flux_raft_writable",
        help: "1 if the shard takes writes here",
        kind: Kind::Gauge,
        value: |status| status.is_writable.into(),
    },
    PerShard {
        name: "flux_raft_leader",
        help: "1 if this node leads the shard",
        kind: Kind::Gauge,
        value: |status| (status.role == Role::Leader).into(),
    },
    PerShard {
        name: "flux_raft_failed",
        help: "1 if the replica cannot go on",
        kind: Kind::Gauge,
        value: |status| status.failure.is_some().into(),
    },
    PerShard {
        name: "flux_raft_term",
        help: "Term of the shard",
        kind: Kind::Gauge,
        value: |status| status.term.get().into(),
    },
    PerShard {
        name: "flux_raft_last_index",
        help: "Last entry of the log",
        kind: Kind::Gauge,
        value: |status| status.last.get().into(),
    },
    PerShard {
        name: "flux_raft_flushed_index",
        help: "Last entry flushed under the fsync policy",
        kind: Kind::Gauge,
        value: |status| status.flushed.get().into(),
    },
    PerShard {
        name: "flux_raft_committed_index",
        help: "Last entry known committed",
        kind: Kind::Gauge,
        value: |status| status.committed.get().into(),
    },
    PerShard {
        name: "flux_raft_applied_index",
        help: "Last entry applied to the store",
        kind: Kind::Gauge,
        value: |status| status.applied.get().into(),
    },
    PerShard {
        name: "flux_raft_queue_operations",
        help: "Operations waiting for the proposer",
        kind: Kind::Gauge,
        value: |status| status.queue_operations.into(),
    },
    PerShard {
        name: "flux_raft_batches",
        help: "Batches proposed",
        kind: Kind::Counter,
        value: |status| status.batches.into(),
    },
    PerShard {
        name: "flux_raft_batch_operations",
        help: "Operations evaluated; divided by flux_raft_batches: the mean size of a batch",
        kind: Kind::Counter,
        value: |status| status.operations.into(),
    },
    PerShard {
        name: "flux_raft_snapshots",
        help: "Snapshots taken",
        kind: Kind::Counter,
        value: |status| status.snapshots.into(),
    },
    PerShard {
        name: "flux_raft_swept_keys",
        help: "Expired keys removed by the sweeper",
        kind: Kind::Counter,
        value: |status| status.swept_keys.into(),
    },
];

/// Adds what the replicas tell. `read` gives the state of every shard and must not block.
pub(crate) fn register_raft(
    registry: &Registry,
    read: impl Fn() -> Vec<ShardStatus> + Clone + Send + Sync + 'static,
) {
    for family in FAMILIES {
        let PerShard {
            name,
            help,
            kind,
            value,
        } = family;
        let read = read.clone();
        registry.collect(name, help, kind, &["shard"], move |samples| {
            for status in read() {
                samples.push(&[&status.id.to_string()], value(&status));
            }
        });
    }
}

/// Adds how far this node's clock is ahead of the others', if they have told. `read` must not block.
pub(crate) fn register_clock(
    registry: &Registry,
    read: impl Fn() -> Option<f64> + Send + Sync + 'static,
) {
    registry.collect(
        "flux_raft_clock_ahead_seconds",
        "How far this node's clock is ahead of the middle of the other nodes'; a leader beyond half a second hands its shards over",
        Kind::Gauge,
        &[],
        move |samples| {
            if let Some(seconds) = read() {
                samples.push(&[], seconds);
            }
        },
    );
}

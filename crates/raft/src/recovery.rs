//! What a start does before openraft sees anything: the latest snapshot into the store, then the
//! log after it, as far as it is known to be committed.
//!
//! All of it is plain reading and applying on a blocking thread, so several shards recover side by
//! side. What lies beyond the committed mark is applied later, once a leader has committed it; a
//! sole voter does that at its first election.

use std::io;
use std::sync::atomic::Ordering;

use flux_log::LogId;
use flux_types::{LogIndex, ShardId};

use crate::codec::to_raft_entry;
use crate::error::StartError;
use crate::state_machine::StateMachine;

/// Bytes of entries read at once.
const READ_BYTES: usize = 4 * 1024 * 1024;

/// Fills the machine's store. Blocks on the disk.
pub(crate) fn recover(shard: ShardId, machine: &StateMachine) -> Result<(), StartError> {
    let in_snapshot = |source| StartError::Snapshot { shard, source };
    let state = machine.log.state();
    let last = state.last.map_or(LogIndex::new(0), |last| last.index);
    let purged = state.purged.map_or(LogIndex::new(0), |purged| purged.index);
    let mut start = LogIndex::new(0);
    let mut end = LogIndex::new(0);
    // The log offers only a snapshot that it reaches: whose end is in it, or was received whole.
    let snapshot = machine.snapshots.open(&machine.log).map_err(in_snapshot)?;
    if let Some(snapshot) = snapshot {
        let info = snapshot.snapshot.info();
        (start, end) = (info.start.index, info.end.index);
        machine
            .install(&snapshot.meta, &snapshot.snapshot)
            .map_err(in_snapshot)?;
    }
    if start < purged {
        return Err(StartError::Gap { shard, purged });
    }
    // What the snapshot saw applied was committed, whatever the mark says.
    let committed = state.committed.map_or(LogIndex::new(0), |id| id.index);
    replay(shard, machine, start, committed.max(end).min(last))
}

/// Applies the entries after `from`, up to and with `to`.
fn replay(
    shard: ShardId,
    machine: &StateMachine,
    from: LogIndex,
    to: LogIndex,
) -> Result<(), StartError> {
    let in_log = |source| StartError::Log { shard, source };
    let mut next = from.next();
    while next <= to {
        let entries = machine
            .log
            .entries(next, to.next(), READ_BYTES)
            .map_err(in_log)?;
        let Some(last) = entries.last().map(|entry| entry.id.index) else {
            return Err(StartError::Gap {
                shard,
                purged: next,
            });
        };
        for entry in entries {
            let (id, bytes) = (entry.id, entry.payload.len());
            apply(machine, id, to_raft_entry(entry)).map_err(|error| StartError::Entry {
                shard,
                index: id.index,
                reason: error.to_string(),
            })?;
            let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
            machine
                .counters
                .log_bytes
                .fetch_add(bytes, Ordering::Relaxed);
        }
        next = last.next();
    }
    Ok(())
}

fn apply(
    machine: &StateMachine,
    id: LogId,
    entry: io::Result<crate::type_config::RaftEntry>,
) -> io::Result<()> {
    machine.apply_entry(id, &entry?.payload).map(drop)
}

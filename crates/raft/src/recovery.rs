//! What a start does before openraft sees anything: the latest snapshot into the store, then the
//! log after it, as far as it is known to be committed.
//!
//! All of it is plain reading and applying on blocking threads, so several shards recover side by
//! side, and each on several cores. What lies beyond the committed mark is applied later, once a
//! leader has committed it; a sole voter does that at its first election.

use std::num::NonZero;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;

use bytes::Bytes;
use flux_log::LogId;
use flux_store::Replayer;
use flux_store::batch::{effective, is_single};
use flux_types::{LogIndex, ShardId};
use openraft::entry::EntryPayload;

use crate::codec::{to_raft_entry, to_raft_id};
use crate::error::StartError;
use crate::split::{self, Split};
use crate::state_machine::StateMachine;
use crate::type_config::StoredMembership;

/// Bytes of entries read at once.
const READ_BYTES: usize = 4 * 1024 * 1024;
/// Reads that may wait for the threads that apply them.
const CHUNKS_AHEAD: usize = 2;
/// Threads that apply one shard's log. More would wait for memory together.
const THREADS_MAX: usize = 8;

/// Fills the machine's store. Blocks on the disk.
pub(crate) fn recover(shard: ShardId, machine: &StateMachine) -> Result<(), StartError> {
    let in_snapshot = |source| StartError::Snapshot { shard, source };
    let state = machine.log.state();
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
    give_up_void(shard, machine)?;
    // What the snapshot saw applied was committed, whatever the mark says.
    let committed = state.committed.map_or(LogIndex::new(0), |id| id.index);
    let last = machine.log.state().last;
    let last = last.map_or(LogIndex::new(0), |last| last.index);
    let to = committed.max(end).min(last);
    while let Some((id, batch)) = replay(shard, machine, start, to)? {
        divide(shard, machine, id, &batch)?;
        start = id.index;
    }
    machine.ownership.follow(&machine.store);
    Ok(())
}

/// Splits the shard once more, as an entry says. Everything before it is applied.
fn divide(
    shard: ShardId,
    machine: &StateMachine,
    id: LogId,
    batch: &Bytes,
) -> Result<(), StartError> {
    let view = effective(id.term, batch).map_err(|error| in_entry(shard, id, &error))?;
    if let Some(view) = view
        && let Some(slots) = split::of_batch(&view)
    {
        let divided = machine.divide_again(id, &Split::new(slots), &view);
        divided.map_err(|error| in_entry(shard, id, &error))?;
    }
    Ok(())
}

/// Whether an entry splits the shard.
fn is_split(id: LogId, batch: &Bytes) -> bool {
    if !is_single(batch) {
        return false;
    }
    // What cannot be read is said by whoever applies it.
    let view = effective(id.term, batch).ok().flatten();
    view.is_some_and(|view| split::of_batch(&view).is_some())
}

/// Gives up a log that does not hold the entry which the loaded snapshot begins with. The snapshot
/// was received, and the end came before the log was put behind it: what the log holds may be what
/// a former leader never had committed.
fn give_up_void(shard: ShardId, machine: &StateMachine) -> Result<(), StartError> {
    let Some(start) = machine.progress.applied_id() else {
        return Ok(());
    };
    let log = &machine.log;
    if log.id_at(start.index) == Some(start) {
        return Ok(());
    }
    let in_log = |source| StartError::Log { shard, source };
    let before = LogIndex::new(start.index.get().saturating_sub(1));
    if log
        .state()
        .last
        .is_some_and(|last| start.index <= last.index)
    {
        log.truncate_after(before, Box::new(drop)).map_err(in_log)?;
    }
    log.purge_to(start, Box::new(drop)).map_err(in_log)
}

/// Applies the entries after `from`, up to and with `to`: this thread reads, others apply what it
/// has read, each to its own part of the store. Ends before an entry that splits the shard, and
/// answers it.
fn replay(
    shard: ShardId,
    machine: &StateMachine,
    from: LogIndex,
    to: LogIndex,
) -> Result<Option<(LogId, Bytes)>, StartError> {
    if to <= from {
        return Ok(None);
    }
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let (memberships, split) = thread::scope(|scope| {
        let mut outlets = Vec::new();
        let mut appliers = Vec::new();
        let replayers = machine.store.replayers(threads.min(THREADS_MAX));
        for (number, replayer) in replayers.into_iter().enumerate() {
            let (outlet, inlet) = mpsc::sync_channel(CHUNKS_AHEAD);
            outlets.push(outlet);
            // Every thread meets every void batch; one of them says so.
            let tells = number == 0;
            appliers.push(scope.spawn(move || apply(shard, replayer, &inlet, tells)));
        }
        let read = read(shard, machine, from, to, &outlets);
        drop(outlets);
        for applier in appliers {
            // A thread that gave up has the reason; that the reader met a closed channel is none.
            applier
                .join()
                .unwrap_or_else(|panic| resume_unwind(panic))?;
        }
        read
    })?;
    for (id, membership) in memberships {
        machine.progress.finish(id, membership);
    }
    Ok(split)
}

/// Batches with the ids of their entries, in the order of the log.
type Chunk = Arc<Vec<(LogId, Bytes)>>;

/// What there was beside facts: the entries that change the membership, in order, and the last entry;
/// and the entry at which reading ended because it splits the shard.
type ReadOut = (
    Vec<(LogId, Option<StoredMembership>)>,
    Option<(LogId, Bytes)>,
);

/// Reads entries and hands their batches to every outlet.
fn read(
    shard: ShardId,
    machine: &StateMachine,
    from: LogIndex,
    to: LogIndex,
    outlets: &[SyncSender<Chunk>],
) -> Result<ReadOut, StartError> {
    let in_log = |source| StartError::Log { shard, source };
    let mut memberships = Vec::new();
    let mut next = from.next();
    while next <= to {
        let entries = machine.log.entries(next, to.next(), READ_BYTES);
        let entries = entries.map_err(in_log)?;
        let Some(last) = entries.last().map(|entry| entry.id) else {
            return Err(StartError::Gap {
                shard,
                purged: next,
            });
        };
        let mut batches = Vec::with_capacity(entries.len());
        let mut bytes = 0;
        let mut split = None;
        let mut before = None;
        for entry in entries {
            let id = entry.id;
            bytes += entry.payload.len();
            match to_raft_entry(entry)
                .map_err(|error| in_entry(shard, id, &error))?
                .payload
            {
                EntryPayload::Blank => {}
                EntryPayload::Normal(batch) if is_split(id, &batch.bytes) => {
                    split = Some((id, batch.bytes));
                    break;
                }
                EntryPayload::Normal(batch) => batches.push((id, batch.bytes)),
                EntryPayload::Membership(new) => {
                    let stored = StoredMembership::new(Some(to_raft_id(id)), new);
                    memberships.push((id, Some(stored)));
                }
            }
            before = Some(id);
        }
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        machine
            .counters
            .log_bytes
            .fetch_add(bytes, Ordering::Relaxed);
        let chunk = Arc::new(batches);
        if outlets
            .iter()
            .any(|outlet| outlet.send(Arc::clone(&chunk)).is_err())
        {
            return Ok((memberships, None));
        }
        if split.is_some() {
            memberships.extend(before.map(|id| (id, None)));
            return Ok((memberships, split));
        }
        next = last.index.next();
        if to < next {
            memberships.push((last, None));
        }
    }
    Ok((memberships, None))
}

/// Applies one share of every chunk, until there is none left.
fn apply(
    shard: ShardId,
    mut replayer: Replayer<'_>,
    chunks: &Receiver<Chunk>,
    tells: bool,
) -> Result<(), StartError> {
    for chunk in chunks {
        let mut views = Vec::with_capacity(chunk.len());
        for (id, bytes) in chunk.iter() {
            match effective(id.term, bytes) {
                Ok(Some(view)) => views.push(view),
                Ok(None) if tells => {
                    tracing::info!(term = %id.term, index = %id.index, "skipped a void batch");
                }
                Ok(None) => {}
                Err(error) => return Err(in_entry(shard, *id, &error)),
            }
        }
        replayer.take(&views);
    }
    Ok(())
}

fn in_entry(shard: ShardId, id: LogId, reason: &dyn std::fmt::Display) -> StartError {
    StartError::Entry {
        shard,
        index: id.index,
        reason: reason.to_string(),
    }
}

//! A replica that was let go gives back memory and disk, and stands ready to be added again.
//!
//! It forgets everything but two things ([`flux_log::Tombstone`]). Its *vote*: it must not vote twice
//! in a term. And the *last entry that it ever had*: as long as its log does not reach that again, it
//! gives no vote to a candidate that lacks it, and does not stand for election itself
//! ([`crate::network`], [`crate::engine`]). With both it takes part in elections exactly as if it had
//! forgotten nothing, so whatever was committed with its help stays safe.
//!
//! What it must never forget is what somebody still counts on: entries of a membership that contains
//! it *again*. So whoever leads is refused first, then the consensus engine ends, and only then it is
//! looked whether it was added again. `docs/design/0019-letting-go.md` has the whole argument.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use flux_log::{LogId, ShardLog};
use flux_store::batch::MEMBERSHIP_MARK;
use flux_types::hold::{self, MoveStep};
use flux_types::{LogIndex, NodeId, Revision, UnixMillis};
use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;
use tokio::sync::oneshot;

use crate::codec::{decode_membership, from_raft_id, from_raft_vote, to_raft_id};
use crate::core_task::spawn_core;
use crate::engine::Engine;
use crate::error::RetireError;
use crate::replica::Replica;
use crate::runtime::blocking;
use crate::shard::{Inner, Shard};
use crate::state_machine::StateMachine;
use crate::type_config::StoredMembership;

/// Bytes of entries read at once when the membership is looked up.
const READ_BYTES: usize = 1024 * 1024;

impl Shard {
    /// Forgets everything this replica holds but its vote, because a *committed* membership at
    /// `gone_at` does not contain this node. It then is an empty learner that can be added again.
    ///
    /// Answers `false`, and changes nothing, if it has been added again by what it knows, if it
    /// leads (and is not deposed by a leader of `gone_at`'s term), or if there is nothing to forget.
    ///
    /// # Errors
    /// See [`RetireError`].
    ///
    /// # Cancellation
    /// Safe to drop; it goes on.
    pub async fn retire(&self, gone_at: LogId) -> Result<bool, RetireError> {
        let task = spawn_core("retire", run(Arc::clone(&self.inner), gone_at));
        task.await.unwrap_or(Err(RetireError::Stopped))
    }
}

/// While it lives, nothing is taken from other nodes and nothing is read.
pub(crate) struct Retiring(Arc<Replica>);

impl Retiring {
    pub(crate) fn new(replica: &Arc<Replica>) -> Self {
        replica.is_retiring.store(true, Ordering::Release);
        Self(Arc::clone(replica))
    }
}

impl Drop for Retiring {
    fn drop(&mut self) {
        self.0.is_retiring.store(false, Ordering::Release);
    }
}

async fn run(inner: Arc<Inner>, gone_at: LogId) -> Result<bool, RetireError> {
    let _alone = inner.changing.lock().await;
    let (replica, machine) = (&inner.replica, &inner.maker.machine);
    if replica.queue.is_closed() || replica.failure.borrow().is_some() {
        return Err(RetireError::Stopped);
    }
    if gone_at.index.get() == 0 || is_empty(machine) || stays(replica, &replica.engine(), gone_at) {
        return Ok(false);
    }
    // Neither a snapshot that is being taken nor one that arrives may get its name afterward.
    let _taking = machine.snapshots.turn.lock().await;
    let _placing = machine.snapshots.placing.lock().await;
    let _retiring = Retiring::new(replica);
    let old = replica.engine();
    if stays(replica, &old, gone_at) {
        return Ok(false);
    }
    inner.halt().await;
    // Nothing changes any more. What was acknowledged until now is in the log, and what the engine
    // has heard in what it said last.
    let forgotten = if stays(replica, &old, gone_at) {
        Ok(false)
    } else {
        forget(replica, machine, gone_at).await
    };
    inner.start_anew().await?;
    if matches!(forgotten, Ok(true)) {
        let (shard, term, index) = (replica.id, gone_at.term, gone_at.index);
        tracing::info!(%shard, %term, %index, "forgot a replica that was let go");
    }
    forgotten
}

/// Whether there is nothing to forget.
fn is_empty(machine: &StateMachine) -> bool {
    machine.log.state().last.is_none() && machine.snapshots.latest_info().is_none()
}

/// Whether by what the engine knows this replica leads in the term of `gone_at` or later, or has been
/// added again after it.
fn stays(replica: &Replica, engine: &Engine, gone_at: LogId) -> bool {
    let heard = {
        let metrics = engine.data_metrics.borrow_watched();
        metrics.cluster_committed.as_ref().map(from_raft_id)
    };
    let metrics = engine.server_metrics.borrow_watched();
    let vote = from_raft_vote(&metrics.vote);
    let is_followed = vote.committed && vote.node != replica.node;
    // A leader that has committed `gone_at`, as every one of a later term has, replicates only to
    // members: by its membership this replica is one.
    let is_added = is_followed && (gone_at.term < vote.term || heard >= Some(gone_at));
    // One of an earlier term than `gone_at`'s is deposed, though nobody may tell it any more.
    let leads = metrics.state == ServerState::Leader && gone_at.term <= vote.term;
    leads || is_added || contains(&metrics.membership_config, replica.node, gone_at)
}

/// Whether a membership after `gone_at` contains a node.
fn contains(membership: &StoredMembership, node: NodeId, gone_at: LogId) -> bool {
    let at = membership.log_id().as_ref().map(from_raft_id);
    Some(gone_at) < at && membership.membership().get_node(&node.get()).is_some()
}

/// Forgets; the engine has ended.
async fn forget(
    replica: &Replica,
    machine: &StateMachine,
    gone_at: LogId,
) -> Result<bool, RetireError> {
    // What the engine says may be older than what it has acknowledged; the log is not.
    let reading = machine.clone();
    let effective = blocking(move || effective(&reading)).await;
    let effective = effective.map_err(|_| RetireError::Stopped)??;
    if contains(&effective, replica.node, gone_at) {
        return Ok(false);
    }
    // A full disk inside the log would be the end of it.
    machine.log.make_room_to_retire()?;
    let (done, noted) = oneshot::channel();
    let note = Box::new(move |result| drop(done.send(result)));
    machine.log.retire(gone_at, note);
    noted.await.map_err(|_| RetireError::Stopped)??;
    // From here on a crash finds it forgotten.
    if hold::is_held(MoveStep::Forgotten) {
        tracing::warn!(before = ?MoveStep::Forgotten, "a move is held");
        std::future::pending::<()>().await;
    }
    replica
        .gone_term
        .fetch_max(gone_at.term.get(), Ordering::AcqRel);
    machine.progress.forget(gone_at);
    let (store, revision) = (&machine.store, Revision::new(0));
    store.install(store.loader(), revision, UnixMillis::ZERO);
    machine.ownership.follow(store);
    let counters = &machine.counters;
    counters.log_bytes.store(0, Ordering::Relaxed);
    counters.snapshot_room_bytes.store(0, Ordering::Relaxed);
    counters
        .snapshot_due_bytes
        .store(replica.config.snapshot_log_bytes, Ordering::Relaxed);
    let (snapshots, log) = (Arc::clone(&machine.snapshots), machine.log.clone());
    let removed = blocking(move || snapshots.forget(&log)).await;
    removed.map_err(|_| RetireError::Stopped)?;
    machine.keep_snapshot_room();
    Ok(true)
}

/// The membership in force by what is applied and in the log. Blocks on the disk.
fn effective(machine: &StateMachine) -> Result<StoredMembership, RetireError> {
    let (applied, mut membership) = machine.progress.applied();
    let mut next = applied.map_or(LogIndex::new(0), |id| id.index).next();
    while let Some(last) = last_after(&machine.log, next) {
        let entries = machine.log.entries(next, last.next(), READ_BYTES)?;
        let Some(end) = entries.last().map(|entry| entry.id.index) else {
            break;
        };
        let changes = entries.iter();
        let changes = changes.filter(|entry| entry.payload.first() == Some(&MEMBERSHIP_MARK));
        for entry in changes {
            let found = decode_membership(&entry.payload)?;
            let at = Some(to_raft_id(entry.id));
            membership = StoredMembership::new(at, found.membership().clone());
        }
        next = end.next();
    }
    Ok(membership)
}

/// The last index of the log, if it is not before `next`.
fn last_after(log: &ShardLog, next: LogIndex) -> Option<LogIndex> {
    log.state()
        .last
        .map(|last| last.index)
        .filter(|last| next <= *last)
}

//! How far this replica has got: what is applied, what is being applied, what must be.
//!
//! Written by apply alone, read by everyone else: the proposer (may it evaluate?), the lease gate,
//! snapshots (where do they begin and end?), status.

use std::sync::atomic::{AtomicU64, Ordering};

use flux_log::LogId;
use flux_types::bug::{self, Bug};
use flux_types::{LogIndex, NodeId, Term};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::codec::from_raft_id;
use crate::type_config::StoredMembership;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    state: Mutex<State>,
    /// Copies for those who must not wait for the lock.
    applied_index: AtomicU64,
    applied_term: AtomicU64,
    /// Until this index is applied, the store holds no state that ever was (rule 4's E).
    needed_index: AtomicU64,
    /// How often everything was forgotten.
    forgotten: AtomicU64,
    /// Told after every change of what is applied.
    changed: Notify,
    /// Told when an entry of another term than the one before is applied.
    term_changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    applied: Option<LogId>,
    /// Set while a batch changes the store; equals `applied` otherwise.
    applying: Option<LogId>,
    membership: StoredMembership,
    /// The membership that let this replica go, once; older ones are of its former life.
    gone_at: Option<LogId>,
}

impl Progress {
    /// Called before there is anything, if this replica was let go once.
    pub(crate) fn remember(&self, gone_at: Option<LogId>) {
        self.state.lock().gone_at = gone_at;
    }

    /// Called after everything was forgotten.
    pub(crate) fn forget(&self, gone_at: LogId) {
        *self.state.lock() = State {
            gone_at: Some(gone_at),
            ..State::default()
        };
        self.needed_index.store(0, Ordering::Release);
        self.forgotten.fetch_add(1, Ordering::AcqRel);
        self.publish(None);
    }

    /// Whether what is applied says that a node belongs to the shard, in its present life.
    pub(crate) fn includes(&self, node: NodeId) -> bool {
        let state = self.state.lock();
        let at = state.membership.log_id().as_ref().map(from_raft_id);
        state.gone_at < at
            && state
                .membership
                .membership()
                .get_node(&node.get())
                .is_some()
    }

    /// Called before an entry changes the store.
    pub(crate) fn begin(&self, id: LogId) {
        self.state.lock().applying = Some(id);
    }

    /// Called after an entry has changed the store.
    pub(crate) fn finish(&self, id: LogId, membership: Option<StoredMembership>) {
        let mut state = self.state.lock();
        state.applied = Some(id);
        state.applying = Some(id);
        if let Some(membership) = membership {
            state.membership = membership;
        }
        drop(state);
        self.publish(Some(id));
    }

    /// Called after the whole store was replaced by a snapshot, or loaded from one.
    pub(crate) fn install(&self, start: LogId, end: LogIndex, membership: StoredMembership) {
        {
            let mut state = self.state.lock();
            *state = State {
                applied: Some(start),
                applying: Some(start),
                membership,
                gone_at: state.gone_at,
            };
        }
        self.needed_index.fetch_max(end.get(), Ordering::AcqRel);
        self.publish(Some(start));
    }

    fn publish(&self, id: Option<LogId>) {
        let term = id.map_or(0, |id| id.term.get());
        self.applied_index
            .store(id.map_or(0, |id| id.index.get()), Ordering::Release);
        self.changed.notify_waiters();
        if self.applied_term.swap(term, Ordering::AcqRel) != term {
            self.term_changed.notify_one();
        }
    }

    /// The last entry applied and the membership it left.
    pub(crate) fn applied(&self) -> (Option<LogId>, StoredMembership) {
        let state = self.state.lock();
        (state.applied, state.membership.clone())
    }

    /// The last entry applied.
    pub(crate) fn applied_id(&self) -> Option<LogId> {
        self.state.lock().applied
    }

    /// The last entry applied or being applied.
    pub(crate) fn applying(&self) -> Option<LogId> {
        self.state.lock().applying
    }

    pub(crate) fn applied_index(&self) -> LogIndex {
        LogIndex::new(self.applied_index.load(Ordering::Acquire))
    }

    /// The term of the last entry applied: once it is a leader's own term, its no-op is applied.
    pub(crate) fn applied_term(&self) -> Term {
        Term::new(self.applied_term.load(Ordering::Acquire))
    }

    /// Whether the store holds a state that once was, so that it may be served (rule 4).
    pub(crate) fn is_whole(&self) -> bool {
        if bug::is_on(Bug::SnapshotBeforeEnd) {
            return true;
        }
        self.needed_index.load(Ordering::Acquire) <= self.applied_index.load(Ordering::Acquire)
    }

    /// Waits until this index is applied, or everything is forgotten. Safe to drop.
    pub(crate) async fn wait_applied(&self, index: LogIndex) {
        let before = self.forgotten.load(Ordering::Acquire);
        let is_forgotten = || self.forgotten.load(Ordering::Acquire) != before;
        self.wait_until(|| index <= self.applied_index() || is_forgotten())
            .await;
    }

    /// Waits until the store holds a state that once was. Safe to drop.
    pub(crate) async fn wait_whole(&self) {
        self.wait_until(|| self.is_whole()).await;
    }

    /// Waits until something holds that can begin to hold when an entry is applied. Safe to drop.
    pub(crate) async fn wait_until(&self, holds: impl Fn() -> bool) {
        loop {
            let changed = self.changed.notified();
            if holds() {
                return;
            }
            changed.await;
        }
    }

    /// Waits until the term of what is applied has changed since the last call. Safe to drop.
    pub(crate) async fn wait_term_changed(&self) {
        self.term_changed.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(term: u64, index: u64) -> LogId {
        LogId {
            term: Term::new(term),
            index: LogIndex::new(index),
        }
    }

    #[test]
    fn a_loaded_snapshot_is_whole_only_once_its_end_is_applied() {
        let progress = Progress::default();
        assert!(progress.is_whole());
        progress.install(id(1, 5), LogIndex::new(7), StoredMembership::default());
        assert!(!progress.is_whole());
        progress.finish(id(1, 6), None);
        assert!(!progress.is_whole());
        progress.finish(id(1, 7), None);
        assert!(progress.is_whole());
    }

    #[test]
    fn what_is_being_applied_counts_for_the_end_of_a_walk_and_not_for_its_start() {
        let progress = Progress::default();
        progress.finish(id(1, 1), None);
        progress.begin(id(1, 2));
        assert_eq!(progress.applied().0, Some(id(1, 1)));
        assert_eq!(progress.applying(), Some(id(1, 2)));
    }
}

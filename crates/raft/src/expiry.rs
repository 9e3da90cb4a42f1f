//! Active expiry: keys whose deadline has passed are removed without anyone asking for them.
//!
//! Only the leader sweeps, and a sweep is a command like any other: it goes through the proposer
//! and becomes facts, so replicas and the change stream see the same removals in the same order.
//! The sweeper sleeps until the earliest deadline and is woken when an earlier one is applied.
//! After a step of the wall clock it stays still: what the clock now calls past may not be.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use flux_store::Store;
use flux_types::{Command, Reply, UnixMillis, WriteCommand};
use tokio::sync::{Notify, oneshot};

use crate::queue::{Refused, Submission};
use crate::replica::{Leadership, Replica};

/// Pause after a sweep that could not be proposed.
const RETRY: Duration = Duration::from_millis(20);
/// How long a sweep may wait for its batch before the sweeper looks again.
const SWEEP_TIMEOUT: Duration = Duration::from_secs(2);

/// Lets apply wake a sweeper that sleeps too long for what was just applied.
#[derive(Debug)]
pub(crate) struct SweepAlarm {
    /// When the sweeper wakes by itself, in Unix milliseconds; 0 while it is awake.
    armed_for: AtomicU64,
    earlier: Notify,
    is_leading: AtomicBool,
}

impl Default for SweepAlarm {
    fn default() -> Self {
        Self {
            armed_for: AtomicU64::new(0),
            earlier: Notify::new(),
            is_leading: AtomicBool::new(false),
        }
    }
}

impl SweepAlarm {
    /// Called after a batch was applied: wakes the sweeper if a deadline now comes before the
    /// moment it sleeps until.
    pub(crate) fn applied(&self, store: &Store) {
        if !self.is_leading.load(Ordering::Relaxed) {
            return;
        }
        let Some(due) = store.next_due() else { return };
        if due.get() < self.armed_for.load(Ordering::Acquire) {
            self.earlier.notify_one();
        }
    }

    /// Tells whether this replica leads, and so sweeps.
    pub(crate) fn set_leading(&self, is_leading: bool) {
        if self.is_leading.swap(is_leading, Ordering::AcqRel) != is_leading {
            self.earlier.notify_one();
        }
    }
}

/// Sweeps until the replica's queue is closed. Safe to drop: a sweep under way is then committed
/// or not, and due keys are found again.
pub(crate) async fn run(replica: Arc<Replica>, alarm: Arc<SweepAlarm>) {
    while !replica.queue.is_closed() {
        let now = replica.now();
        let is_leading = matches!(replica.leadership(), Leadership::Leads(_));
        let due = if is_leading && !is_clock_stepped(&replica) {
            replica.store.due(now, replica.config.sweep_keys_max)
        } else {
            Vec::new()
        };
        if due.is_empty() {
            sleep(&replica, &alarm, now).await;
        } else if !sweep(&replica, due).await {
            tokio::time::sleep(RETRY).await;
        }
    }
}

fn is_clock_stepped(replica: &Replica) -> bool {
    let step = replica.clock.step_millis().unsigned_abs();
    u128::from(step) > replica.config.clock_step_max.as_millis()
}

/// Sleeps until the earliest deadline, an earlier one, or the longest pause.
async fn sleep(replica: &Replica, alarm: &SweepAlarm, now: UnixMillis) {
    let earlier = alarm.earlier.notified();
    // Armed before the deadlines are read: what is applied after that sees the armed value.
    alarm.armed_for.store(u64::MAX, Ordering::Release);
    let pause_max = replica.config.sweep_pause_max;
    let pause = match replica.store.next_due() {
        // Nothing has a deadline: only an applied one, or leadership, changes that.
        None if alarm.is_leading.load(Ordering::Relaxed) => None,
        None => Some(pause_max),
        Some(due) => {
            alarm.armed_for.store(due.get(), Ordering::Release);
            // A deadline that is already past means that sweeping is paused.
            let left = Duration::from_millis(due.saturating_since(now).max(1));
            Some(if due <= now {
                RETRY
            } else {
                left.min(pause_max)
            })
        }
    };
    match pause {
        None => earlier.await,
        Some(pause) => {
            tokio::select! {
                () = earlier => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }
    alarm.armed_for.store(0, Ordering::Release);
}

/// Proposes the removal of these keys; answers whether it was applied.
async fn sweep(replica: &Replica, keys: Vec<Bytes>) -> bool {
    let (reply, answers) = oneshot::channel();
    let submission = Submission::new(
        vec![Command::Write(WriteCommand::SweepExpired { keys })],
        replica.clock.now() + SWEEP_TIMEOUT,
        reply,
    );
    match replica.queue.push(submission) {
        Ok(()) => {}
        Err(Refused::Busy(_) | Refused::Closed(_)) => return false,
    }
    let Ok(answers) = answers.await else {
        return false;
    };
    match answers.first().map(|answer| &answer.reply) {
        Some(Reply::Integer(count)) => {
            let count = u64::try_from(*count).unwrap_or(0);
            replica
                .counters
                .swept_keys
                .fetch_add(count, Ordering::Relaxed);
            // Nothing removed of what was due: the batch's time was before the deadlines.
            count > 0
        }
        _ => false,
    }
}

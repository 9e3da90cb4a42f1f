//! Active expiry: keys whose deadline has passed are removed without anyone asking for them, and so
//! are sessions of which nothing has come for long.
//!
//! Only the leader sweeps, and a sweep is a command like any other: it goes through the proposer
//! and becomes facts, so replicas and the change stream see the same removals in the same order.
//! The sweeper sleeps until the earliest deadline and is woken when an earlier one is applied.
//! After a step of the wall clock it stays still: what the clock now calls past may not be.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use flux_store::Store;
use flux_types::{Command, Reply, UnixMillis, WriteCommand};
use tokio::sync::{Notify, oneshot};

use crate::queue::{Refused, Submission};
use crate::replica::{Leadership, Replica};
use crate::runtime;

/// Pause after a sweep that could not be proposed.
const RETRY: Duration = Duration::from_millis(20);
/// How long a session may stay beyond its time, so that many go with one fact.
const SESSION_SLACK_MS: u64 = 1000;
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
        let Some(due) = next_due(store) else { return };
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

/// When something is next to be removed: a key, or a session and those soon after it.
fn next_due(store: &Store) -> Option<UnixMillis> {
    let session = store.next_session_expiry();
    let session = session.and_then(|at| at.checked_add(SESSION_SLACK_MS));
    match (store.next_due(), session) {
        (Some(key), Some(session)) => Some(key.min(session)),
        (key, session) => key.or(session),
    }
}

/// Sweeps until the replica's queue is closed. Safe to drop: a sweep under way is then committed
/// or not, and due keys are found again.
pub(crate) async fn run(replica: Arc<Replica>, alarm: Arc<SweepAlarm>) {
    while !replica.queue.is_closed() {
        let now = replica.now();
        let is_leading = matches!(replica.leadership(), Leadership::Leads(_));
        let sweep = if is_leading && !is_clock_stepped(&replica) {
            due(&replica, now)
        } else {
            None
        };
        match sweep {
            None => sleep(&replica, &alarm, now).await,
            Some(write) => {
                if !propose(&replica, write).await {
                    runtime::sleep(RETRY).await;
                }
            }
        }
    }
}

/// What is to be removed now: keys first, then sessions.
fn due(replica: &Replica, now: UnixMillis) -> Option<WriteCommand> {
    let keys = replica.store.due(now, replica.config.sweep_keys_max);
    if !keys.is_empty() {
        return Some(WriteCommand::SweepExpired { keys });
    }
    let session = replica.store.next_session_expiry()?;
    let is_due = session.checked_add(SESSION_SLACK_MS)? <= now;
    is_due.then_some(WriteCommand::ForgetSessions)
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
    let pause = match next_due(&replica.store) {
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
                biased;
                () = earlier => {}
                () = runtime::sleep(pause) => {}
            }
        }
    }
    alarm.armed_for.store(0, Ordering::Release);
}

/// Proposes a removal; answers whether something was removed.
async fn propose(replica: &Replica, write: WriteCommand) -> bool {
    let are_keys = matches!(write, WriteCommand::SweepExpired { .. });
    let (reply, answers) = oneshot::channel();
    let submission = Submission {
        is_forwarded: true,
        ..Submission::new(
            vec![Command::Write(write)],
            replica.clock.now() + SWEEP_TIMEOUT,
            reply,
        )
    };
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
            if are_keys {
                let swept = &replica.counters.swept_keys;
                swept.fetch_add(count, Ordering::Relaxed);
            }
            // Nothing removed of what was due: the batch's time was before the deadlines.
            count > 0
        }
        _ => false,
    }
}

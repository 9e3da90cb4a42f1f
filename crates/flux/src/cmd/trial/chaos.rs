//! Clients that write and read while leaders are killed, and the judge of what they saw.
//!
//! Time is cut into rounds. In each, clients work on keys of their own that the linearizability
//! checker judges (*stale*: no order explains what was read), and write keys once that are looked
//! for at the round's end (*lost*: acknowledged and not there). A leader is killed in the middle.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use flux_history::{Action, Options, Outcome, Recorder, check};
use flux_server::{Executor, Leaderships, Node};
use flux_types::{Command, Outcome as Fate, ReadCommand, Reply, Set, WriteCommand};
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use super::{Slot, Trial};
use crate::out;

/// Length of a round, and the part of it before the kill.
const ROUND: Duration = Duration::from_secs(10);
const BEFORE: Duration = Duration::from_secs(3);
/// Clients, and keys that they share.
const CLIENTS: u64 = 6;
const KEYS: u64 = 6;
/// Pause between a client's requests: the checker's work grows with what overlaps.
const PAUSE: Duration = Duration::from_millis(4);
/// How often a read at the end of a round is tried.
const TRIES: u32 = 20;

/// Chaos under way; ends when it is stopped.
#[derive(Debug)]
pub(crate) struct Chaos {
    task: JoinHandle<()>,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    acknowledged: AtomicU64,
    lost: AtomicU64,
    stale: AtomicU64,
    killed: AtomicU64,
    is_over: AtomicBool,
}

impl Counts {
    fn line(&self) -> String {
        let [acknowledged, lost, stale, killed] =
            [&self.acknowledged, &self.lost, &self.stale, &self.killed]
                .map(|count| count.load(Ordering::Relaxed));
        format!(
            "{acknowledged} acknowledged · {lost} lost · {stale} stale · {killed} leaders killed"
        )
    }
}

impl Chaos {
    /// Starts to work on the cluster through its first node, which is never killed: it has the
    /// ports that people know.
    pub(crate) fn start(first: &Node, trial: &Trial) -> Self {
        let counts = Arc::new(Counts::default());
        let rounds = Rounds {
            executor: first.executor().clone(),
            leaderships: first.leaderships(),
            others: Arc::clone(&trial.others),
            counts: Arc::clone(&counts),
        };
        Self {
            task: tokio::spawn(rounds.run()),
            counts,
        }
    }

    /// Ends it; answers what was found, if that was bad.
    pub(crate) async fn stop(self) -> Option<String> {
        self.counts.is_over.store(true, Ordering::SeqCst);
        // A panic in it was printed.
        drop(self.task.await);
        let line = self.counts.line();
        let is_bad = 0 < self.counts.lost.load(Ordering::Relaxed)
            || 0 < self.counts.stale.load(Ordering::Relaxed);
        is_bad.then_some(line)
    }
}

struct Rounds {
    executor: Executor,
    leaderships: Leaderships,
    others: Arc<Vec<Slot>>,
    counts: Arc<Counts>,
}

impl Rounds {
    async fn run(self) {
        let mut number = 0_u64;
        while !self.counts.is_over.load(Ordering::SeqCst) {
            number += 1;
            self.round(number).await;
            out::line(&self.counts.line());
        }
    }

    async fn round(&self, number: u64) {
        let round = Arc::new(Round {
            number,
            executor: self.executor.clone(),
            recorder: Mutex::new(Recorder::new()),
            began: tokio::time::Instant::now(),
            is_over: AtomicBool::new(false),
            written: Mutex::new(BTreeSet::new()),
            counts: Arc::clone(&self.counts),
        });
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| tokio::spawn(Arc::clone(&round).client(client)))
            .collect();
        self.wait(round.began + BEFORE).await;
        if !self.counts.is_over.load(Ordering::SeqCst) {
            self.kill_a_leader().await;
        }
        self.wait(round.began + ROUND).await;
        round.is_over.store(true, Ordering::SeqCst);
        for client in clients {
            // A panic in it was printed.
            drop(client.await);
        }
        round.judge().await;
    }

    /// Waits until then, or until it is over.
    async fn wait(&self, until: tokio::time::Instant) {
        while tokio::time::Instant::now() < until && !self.counts.is_over.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn kill_a_leader(&self) {
        let mut most: Option<(&Slot, usize)> = None;
        for slot in self.others.iter() {
            let leads = slot.leads().await;
            if most.is_none_or(|(_, others)| others < leads) {
                most = Some((slot, leads));
            }
        }
        let Some((slot, leads)) = most else { return };
        if leads == 0 {
            // All shards are led by the node that is spared: others shall, for the next round.
            self.leaderships.give_away().await;
            return;
        }
        if slot.kill_and_restart().await {
            self.counts.killed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

struct Round {
    number: u64,
    executor: Executor,
    recorder: Mutex<Recorder>,
    began: tokio::time::Instant,
    is_over: AtomicBool,
    /// Keys written once, and acknowledged.
    written: Mutex<BTreeSet<String>>,
    counts: Arc<Counts>,
}

impl Round {
    fn nanos(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    async fn ask(&self, command: impl Into<Command>) -> Reply {
        let deadline = self.executor.deadline(None);
        self.executor.execute(command.into(), deadline).await.reply
    }

    async fn client(self: Arc<Self>, client: u64) {
        let mut sequence = 0_u64;
        while !self.is_over.load(Ordering::SeqCst) {
            sequence += 1;
            if sequence.is_multiple_of(4) {
                self.write_once(client, sequence).await;
            } else {
                self.recorded(client, sequence).await;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Writes a key that nobody else touches.
    async fn write_once(&self, client: u64, sequence: u64) {
        let key = format!("chaos:{}:once:{client}:{sequence}", self.number);
        let set = Set::plain(Bytes::from(key.clone()), Bytes::from_static(b"1"));
        if self.ask(WriteCommand::Set(set)).await == Reply::Ok {
            self.counts.acknowledged.fetch_add(1, Ordering::Relaxed);
            self.written.lock().insert(key);
        }
    }

    /// Reads or writes a shared key, recorded for the checker.
    async fn recorded(&self, client: u64, sequence: u64) {
        let lot = sequence.wrapping_mul(7).wrapping_add(client * 3);
        let name = format!("chaos:{}:{}", self.number, lot % KEYS);
        let key = Bytes::from(name.clone());
        let value = format!("{client}.{sequence}");
        let (command, action): (Command, Action) = if sequence % 2 == client % 2 {
            (ReadCommand::Get { key }.into(), Action::Get)
        } else {
            let set = Set::plain(key, Bytes::from(value.clone()));
            let action = Action::Set {
                value: value.into_bytes().into(),
                ttl_millis: None,
            };
            (WriteCommand::Set(set).into(), action)
        };
        let now = self.nanos();
        let id = self
            .recorder
            .lock()
            .call(client, name.as_bytes(), action, now);
        let reply = self.ask(command).await;
        let outcome = outcome(&reply);
        if outcome == Outcome::Done {
            self.counts.acknowledged.fetch_add(1, Ordering::Relaxed);
        }
        self.recorder.lock().finish(id, outcome, self.nanos());
    }

    /// Looks for what was lost, and lets the checker judge the rest.
    async fn judge(&self) {
        let written = std::mem::take(&mut *self.written.lock());
        for key in written {
            if self.is_gone(&key).await {
                self.counts.lost.fetch_add(1, Ordering::Relaxed);
                out::problem(&format!("lost: {key} was acknowledged and is not there"));
            }
        }
        let history = std::mem::take(&mut *self.recorder.lock()).history();
        let judged = tokio::task::spawn_blocking(move || check(&history, &Options::default()));
        if let Ok(Err(fault)) = judged.await {
            self.counts.stale.fetch_add(1, Ordering::Relaxed);
            out::problem(&fault.to_string());
        }
    }

    /// Whether a key is not there; what cannot be read is asked for again.
    async fn is_gone(&self, key: &str) -> bool {
        for _ in 0..TRIES {
            let key = Bytes::copy_from_slice(key.as_bytes());
            let reply = self.ask(ReadCommand::Get { key }).await;
            if !matches!(reply, Reply::Error(_)) {
                return reply == Reply::Nil;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        // Nobody could tell: that is no proof of a loss.
        false
    }
}

/// What a reply says of the request.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "whatever else is answered says nothing of a GET or a SET"
)]
fn outcome(reply: &Reply) -> Outcome {
    match reply {
        Reply::Ok => Outcome::Done,
        Reply::Bulk(value) => Outcome::Value(Some(value.as_ref().into())),
        Reply::Nil => Outcome::Value(None),
        Reply::Error(error) if error.outcome == Fate::NotDone => Outcome::Failed,
        _ => Outcome::Unknown,
    }
}

//! Clients that write and read while leaders are killed, and what they saw.
//!
//! Time is cut into rounds. In each, clients work on keys of their own that the linearizability
//! checker judges (*stale*: no order explains what was read), and write keys once that are looked
//! for at the round's end (*lost*: acknowledged and not there). A leader is killed in the middle.
//! What the rounds come to is counted in [`super::tally`].

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use flux_env::{Rng, SeededRng};
use flux_history::{Action, Outcome, Recorder};
use flux_server::{Executor, Leaderships, Node};
use flux_types::{Command, Outcome as Fate, ReadCommand, Reply, Set, WriteCommand};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::tally::{Finding, Tally, judge};
use super::{Slot, Trial};
use crate::{Failure, out, panics};

/// Length of a round, and the part of it before the kill.
const ROUND: Duration = Duration::from_secs(10);
const BEFORE: Duration = Duration::from_secs(3);
/// Clients, and keys that they share.
const CLIENTS: u64 = 6;
const KEYS: u64 = 6;
/// Pause between a client's requests: the checker's work grows with what overlaps.
const PAUSE: Duration = Duration::from_millis(4);
/// How often a read at the end of a round is tried, and the pause before the next time.
const TRIES: u32 = 20;
const RETRY: Duration = Duration::from_millis(100);

/// Chaos under way; ends when it is stopped.
#[derive(Debug)]
pub(crate) struct Chaos {
    task: JoinHandle<Result<Tally, String>>,
    over: watch::Sender<bool>,
}

impl Chaos {
    /// Starts to work on the cluster through its first node, which is never killed: it has the
    /// ports that people know.
    ///
    /// # Errors
    /// When the system gives no random bits.
    pub(crate) fn start(first: &Node, trial: &Trial) -> Result<Self, Failure> {
        let run = flux_env::entropy_u64()
            .map_err(|error| Failure::Failed(format!("cannot draw random bits: {error}")))?;
        let over = watch::Sender::new(false);
        let rounds = Rounds {
            run,
            executor: first.executor().clone(),
            leaderships: first.leaderships(),
            others: Arc::clone(&trial.others),
            over: over.subscribe(),
        };
        let rounds = tokio::spawn(rounds.run());
        let failure = trial.failure.clone();
        let task = tokio::spawn(async move {
            let ended = rounds.await;
            let ended = ended.unwrap_or_else(|error| Err(format!("chaos itself: {error}")));
            if let Err(problem) = &ended {
                failure.tell(problem.clone());
            }
            ended
        });
        Ok(Self { task, over })
    }

    /// Ends it.
    ///
    /// # Errors
    /// What was found, if that was bad or proves nothing.
    pub(crate) async fn stop(self) -> Result<(), String> {
        self.over.send_replace(true);
        let ended = self.task.await;
        let mut tally = ended.unwrap_or_else(|error| Err(format!("chaos itself: {error}")))?;
        tally.panics = panics::count();
        tally.verdict()
    }
}

struct Rounds {
    /// Tells the keys of this run from those of earlier ones.
    run: u64,
    executor: Executor,
    leaderships: Leaderships,
    others: Arc<Vec<Slot>>,
    over: watch::Receiver<bool>,
}

impl Rounds {
    async fn run(self) -> Result<Tally, String> {
        let mut tally = Tally::default();
        let mut number = 0;
        while !self.is_over() {
            number += 1;
            self.round(number, &mut tally).await?;
            tally.panics = panics::count();
            out::line(&tally.line());
        }
        Ok(tally)
    }

    async fn round(&self, number: u64, tally: &mut Tally) -> Result<(), String> {
        let round = Arc::new(Round {
            prefix: format!("chaos:{:016x}:{number}", self.run),
            executor: self.executor.clone(),
            recorder: Mutex::new(Recorder::new()),
            began: Instant::now(),
            is_over: AtomicBool::new(false),
            written: Mutex::new(BTreeSet::new()),
        });
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let random = SeededRng::new(self.run ^ (number << 8) ^ client);
                tokio::spawn(Arc::clone(&round).client(client, random))
            })
            .collect();
        self.wait(round.began + BEFORE).await;
        let killed = self.kill_a_leader().await;
        if matches!(killed, Ok(true)) {
            tally.killed += 1;
        }
        self.wait(round.began + ROUND).await;
        round.is_over.store(true, Ordering::SeqCst);
        for client in clients {
            // A panic in it was counted.
            drop(client.await);
        }
        let is_whole = !self.is_over();
        round.judge(is_whole, tally).await;
        if is_whole {
            tally.rounds += 1;
        }
        killed.map(drop)
    }

    fn is_over(&self) -> bool {
        *self.over.borrow()
    }

    /// Resolves when it is over.
    async fn over(&self) {
        let mut over = self.over.clone();
        if over.wait_for(|is_over| *is_over).await.is_err() {
            // Nobody is left who could stop it: the process ends.
            std::future::pending::<()>().await;
        }
    }

    /// Waits until then, or until it is over.
    async fn wait(&self, until: Instant) {
        tokio::select! {
            () = tokio::time::sleep_until(until) => {}
            () = self.over() => {}
        }
    }

    /// Kills the node that leads most and brings it back; whether that was done before it was over.
    async fn kill_a_leader(&self) -> Result<bool, String> {
        let killing = async {
            let slot = loop {
                if let Some(slot) = self.most_leading().await {
                    break slot;
                }
                // All shards are led by the node that is spared: others shall.
                self.leaderships.give_away().await;
                tokio::time::sleep(RETRY).await;
            };
            slot.kill_and_restart().await
        };
        tokio::select! {
            killed = killing => killed.map(|()| true),
            () = self.over() => Ok(false),
        }
    }

    /// The node beside the first that leads most shards, if any leads one.
    async fn most_leading(&self) -> Option<&Slot> {
        let mut most = (0, None);
        for slot in self.others.iter() {
            let leads = slot.leads().await;
            if most.0 < leads {
                most = (leads, Some(slot));
            }
        }
        most.1
    }
}

/// What a client does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    /// Writes a key that nobody else touches.
    WriteOnce,
    /// Reads this shared key.
    Read(u64),
    /// Writes this shared key.
    Write(u64),
}

/// Draws a step; which key has no part in what is done to it, so that reads and writes meet.
fn step(random: &mut impl Rng) -> Step {
    let key = random.below(KEYS);
    match random.below(8) {
        0..2 => Step::WriteOnce,
        2..5 => Step::Read(key),
        _ => Step::Write(key),
    }
}

struct Round {
    /// Begins every key.
    prefix: String,
    executor: Executor,
    recorder: Mutex<Recorder>,
    began: Instant,
    is_over: AtomicBool,
    /// Keys written once, and acknowledged.
    written: Mutex<BTreeSet<String>>,
}

impl Round {
    fn nanos(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    async fn ask(&self, command: impl Into<Command>) -> Reply {
        let deadline = self.executor.deadline(None);
        self.executor.execute(command.into(), deadline).await.reply
    }

    async fn client(self: Arc<Self>, client: u64, mut random: SeededRng) {
        let mut sequence = 0_u64;
        while !self.is_over.load(Ordering::SeqCst) {
            sequence += 1;
            let value = format!("{client}.{sequence}");
            match step(&mut random) {
                Step::WriteOnce => self.write_once(&value).await,
                Step::Read(key) => self.recorded(client, key, Action::Get).await,
                Step::Write(key) => {
                    let action = Action::Set {
                        value: value.into_bytes().into(),
                        ttl_millis: None,
                    };
                    self.recorded(client, key, action).await;
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn write_once(&self, name: &str) {
        let key = format!("{}:once:{name}", self.prefix);
        let set = Set::plain(Bytes::from(key.clone()), Bytes::from_static(b"1"));
        if self.ask(WriteCommand::Set(set)).await == Reply::Ok {
            self.written.lock().insert(key);
        }
    }

    /// Reads or writes a shared key, recorded for the checker.
    async fn recorded(&self, client: u64, key: u64, action: Action) {
        let name = format!("{}:{key}", self.prefix);
        let key = Bytes::from(name.clone());
        let command: Command = match &action {
            Action::Set { value, .. } => {
                WriteCommand::Set(Set::plain(key, Bytes::copy_from_slice(value))).into()
            }
            Action::Get
            | Action::CompareAndSet { .. }
            | Action::Increment { .. }
            | Action::Delete => ReadCommand::Get { key }.into(),
        };
        let now = self.nanos();
        let id = {
            let mut recorder = self.recorder.lock();
            recorder.call(client, name.as_bytes(), action, now)
        };
        let outcome = outcome(&self.ask(command).await);
        self.recorder.lock().finish(id, outcome, self.nanos());
    }

    /// Looks for what was lost, and lets the checker judge the rest. Of a round that was cut short
    /// nothing is demanded.
    async fn judge(&self, is_whole: bool, tally: &mut Tally) {
        let written = std::mem::take(&mut *self.written.lock());
        let history = std::mem::take(&mut *self.recorder.lock()).history();
        let operations = history.operations().iter();
        let acknowledged = operations.filter(|operation| operation.outcome == Outcome::Done);
        tally.acknowledged += (written.len() + acknowledged.count()) as u64;
        for key in written {
            let found = self.look_for(&key).await;
            if let Reply::Error(error) = found {
                tally.unreadable += 1;
                out::problem(&format!("unreadable: {key}: {error}"));
            } else if found == Reply::Nil {
                tally.lost += 1;
                out::problem(&format!("lost: {key} was acknowledged and is not there"));
            }
        }
        let judging = tokio::task::spawn_blocking(move || judge(&history, is_whole));
        let finding = judging.await;
        let finding = finding.unwrap_or_else(|error| Finding::Undecided(error.to_string()));
        let (count, problem) = match finding {
            Finding::Good => return,
            Finding::Stale(problem) => (&mut tally.stale, problem),
            Finding::Undecided(problem) => (&mut tally.undecided, problem),
            Finding::Idle(problem) => (&mut tally.idle, format!("proves nothing: {problem}")),
        };
        *count += 1;
        out::problem(&format!("{}: {problem}", self.prefix));
    }

    /// What is found under a key; what cannot be read is asked for again.
    async fn look_for(&self, key: &str) -> Reply {
        let mut tries = 0;
        loop {
            let key = Bytes::copy_from_slice(key.as_bytes());
            let reply = self.ask(ReadCommand::Get { key }).await;
            tries += 1;
            if !matches!(reply, Reply::Error(_)) || TRIES <= tries {
                return reply;
            }
            tokio::time::sleep(RETRY).await;
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shared_key_is_read_and_written() {
        let mut random = SeededRng::new(1);
        let steps: BTreeSet<Step> = (0..1000).map(|_| step(&mut random)).collect();
        let expected = (0..KEYS).flat_map(|key| [Step::Read(key), Step::Write(key)]);
        let expected: BTreeSet<Step> = expected.chain([Step::WriteOnce]).collect();
        assert_eq!(steps, expected);
    }
}

//! Clients: each asks for one thing after another, follows the leader, and writes down what it saw.
//!
//! A client never guesses: what was refused before anything was appended may be asked again
//! elsewhere, what got lost after it was sent has an unknown outcome.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use flux_history::{Action, Outcome, Recorder, Value};
use flux_types::{
    Answer, Command, Compare, Condition, Expiry, ReadCommand, Reply, Set, SetReply, ShardId,
    Transaction, WriteCommand,
};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::executor::{Executor, OUTSIDE, sleep};
use crate::machine::{Machine, SHARDS};

/// How long a client tries to get one thing done.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long it waits for one node.
const WAIT: Duration = Duration::from_millis(1200);

/// What is worked on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Plain keys, counters and groups, without deadlines.
    Lasting,
    /// Keys with deadlines.
    Expiring,
}

/// What all clients of a run share.
pub(crate) struct Shared {
    pub(crate) executor: Arc<Executor>,
    pub(crate) machines: Vec<Arc<Machine>>,
    pub(crate) lasting: Mutex<Recorder>,
    pub(crate) expiring: Mutex<Recorder>,
    pub(crate) stop: AtomicBool,
    values: AtomicU64,
}

impl Shared {
    pub(crate) fn new(executor: &Arc<Executor>, machines: &[Arc<Machine>]) -> Arc<Self> {
        Arc::new(Self {
            executor: Arc::clone(executor),
            machines: machines.to_vec(),
            lasting: Mutex::new(Recorder::new()),
            expiring: Mutex::new(Recorder::new()),
            stop: AtomicBool::new(false),
            values: AtomicU64::new(0),
        })
    }

    const fn recorder(&self, phase: Phase) -> &Mutex<Recorder> {
        match phase {
            Phase::Lasting => &self.lasting,
            Phase::Expiring => &self.expiring,
        }
    }
}

/// A key as the histories know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Subject {
    Plain(u64),
    Counter(u64),
    /// Two keys that always change together.
    Group(u64),
    Deadline(u64),
}

const PLAIN_KEYS: u64 = 6;
const COUNTERS: u64 = 2;
const GROUPS: u64 = 2;
const DEADLINE_KEYS: u64 = 4;

impl Subject {
    /// Everything that there is in a phase.
    pub(crate) fn all(phase: Phase) -> Vec<Self> {
        match phase {
            Phase::Lasting => (0..PLAIN_KEYS)
                .map(Self::Plain)
                .chain((0..COUNTERS).map(Self::Counter))
                .chain((0..GROUPS).map(Self::Group))
                .collect(),
            Phase::Expiring => (0..DEADLINE_KEYS).map(Self::Deadline).collect(),
        }
    }

    fn name(self) -> String {
        match self {
            Self::Plain(number) => format!("plain-{number}"),
            Self::Counter(number) => format!("counter-{number}"),
            Self::Group(number) => format!("group-{number}"),
            Self::Deadline(number) => format!("deadline-{number}"),
        }
    }

    pub(crate) fn shard(self) -> ShardId {
        let (Self::Plain(number)
        | Self::Counter(number)
        | Self::Group(number)
        | Self::Deadline(number)) = self;
        ShardId::new(u32::try_from(number % u64::from(SHARDS)).unwrap_or(0))
    }

    fn keys(self) -> Vec<Bytes> {
        match self {
            Self::Group(_) => ["a", "b", "c"]
                .iter()
                .map(|part| Bytes::from(format!("{}-{part}", self.name())))
                .collect(),
            Self::Plain(_) | Self::Counter(_) | Self::Deadline(_) => {
                vec![Bytes::from(self.name())]
            }
        }
    }
}

/// The command that does an action.
fn command(subject: Subject, action: &Action) -> Command {
    let keys = subject.keys();
    let key = keys.first().cloned().unwrap_or_default();
    match action {
        Action::Get if keys.len() == 1 => Command::Read(ReadCommand::Get { key }),
        Action::Get => Command::Read(ReadCommand::GetMany { keys }),
        Action::Set { value, ttl_millis } => {
            let set = |key: Bytes| {
                Command::Write(WriteCommand::Set(Set {
                    key,
                    value: Bytes::copy_from_slice(value),
                    condition: Condition::Always,
                    expiry: ttl_millis.map_or(Expiry::Clear, |millis| {
                        Expiry::In(i64::try_from(millis).unwrap_or(i64::MAX))
                    }),
                    reply: SetReply::Status,
                }))
            };
            if keys.len() == 1 {
                return set(key);
            }
            Command::Write(WriteCommand::Transaction(Transaction {
                watches: Vec::new(),
                commands: keys.into_iter().map(set).collect(),
            }))
        }
        Action::CompareAndSet { expected, value } => Command::Write(WriteCommand::CompareAndSet {
            key,
            expected: expected.as_ref().map_or(Compare::Absent, |expected| {
                Compare::ValueIs(Bytes::copy_from_slice(expected))
            }),
            value: Bytes::copy_from_slice(value),
            expiry: Expiry::Clear,
        }),
        Action::Increment { by } => Command::Write(WriteCommand::Increment { key, by: *by }),
        Action::Delete => Command::Write(WriteCommand::Delete { keys: vec![key] }),
    }
}

/// What a node's answer means to a client.
enum Said {
    Outcome(Outcome),
    /// Nothing was done: ask again, elsewhere.
    NotHere,
}

fn value(reply: &Reply) -> Option<Option<Value>> {
    if let Reply::Bulk(bytes) = reply {
        Some(Some(bytes.as_ref().into()))
    } else {
        (*reply == Reply::Nil).then_some(None)
    }
}

fn meaning(action: &Action, answer: &Answer) -> Said {
    let outcome = match (&answer.reply, action) {
        (Reply::Error(error), _) => match error.outcome {
            flux_types::Outcome::NotDone => return Said::NotHere,
            flux_types::Outcome::Done | flux_types::Outcome::Unknown => Outcome::Unknown,
        },
        (Reply::Array(replies), Action::Get) => {
            let values: Option<Vec<_>> = replies.iter().map(value).collect();
            let values = values.unwrap_or_default();
            match values.first() {
                Some(first) if values.iter().all(|value| value == first) => {
                    Outcome::Value(first.clone())
                }
                _ => Outcome::Torn(values),
            }
        }
        (Reply::Array(_), Action::Set { .. }) | (Reply::Ok, Action::Set { .. }) => Outcome::Done,
        (Reply::Written(written), Action::CompareAndSet { .. }) => {
            Outcome::Applied(written.applied)
        }
        (Reply::Integer(number), Action::Increment { .. }) => Outcome::Number(*number),
        (Reply::Integer(number), Action::Delete) => Outcome::Applied(*number == 1),
        (reply, Action::Get) => match value(reply) {
            Some(value) => Outcome::Value(value),
            None => Outcome::Torn(Vec::new()),
        },
        // No answer that fits: nothing explains it.
        _ => Outcome::Torn(Vec::new()),
    };
    Said::Outcome(outcome)
}

/// One client.
pub(crate) struct Client {
    number: u64,
    shared: Arc<Shared>,
    phase: Phase,
    /// Which machine led each shard when last heard of.
    leaders: BTreeMap<ShardId, usize>,
    /// What was last seen of each subject, for compare-and-set.
    seen: BTreeMap<Subject, Option<Value>>,
    /// Longest pause between two operations, in microseconds.
    think_micros: u64,
}

impl Client {
    pub(crate) fn new(number: u64, shared: &Arc<Shared>, phase: Phase, think_micros: u64) -> Self {
        Self {
            number,
            shared: Arc::clone(shared),
            phase,
            leaders: BTreeMap::new(),
            seen: BTreeMap::new(),
            think_micros,
        }
    }

    /// Asks for one thing after another until it is told to stop.
    pub(crate) async fn run(mut self) {
        while !self.shared.stop.load(Ordering::SeqCst) {
            let think = self.shared.executor.below(self.think_micros) + 100;
            sleep(&self.shared.executor, Duration::from_micros(think)).await;
            let (subject, action) = self.draw();
            self.perform(subject, action).await;
        }
    }

    /// Does one thing and writes it down.
    pub(crate) async fn perform(&mut self, subject: Subject, action: Action) -> Outcome {
        let executor = Arc::clone(&self.shared.executor);
        let name = subject.name().into_bytes();
        let now = executor.true_nanos();
        let id =
            self.shared
                .recorder(self.phase)
                .lock()
                .call(self.number, name, action.clone(), now);
        let outcome = self.ask_until_answered(subject, &action).await;
        if let (Outcome::Value(value), Action::Get) = (&outcome, &action) {
            self.seen.insert(subject, value.clone());
        }
        let now = executor.true_nanos();
        self.shared
            .recorder(self.phase)
            .lock()
            .finish(id, outcome.clone(), now);
        outcome
    }

    fn fresh(&self) -> Value {
        let number = self.shared.values.fetch_add(1, Ordering::Relaxed);
        format!("v{number}").into_bytes().into()
    }

    fn draw(&self) -> (Subject, Action) {
        let below = |bound| self.shared.executor.below(bound);
        let dice = below(100);
        if self.phase == Phase::Expiring {
            let subject = Subject::Deadline(below(DEADLINE_KEYS));
            let action = match dice {
                0..30 => Action::Set {
                    value: self.fresh(),
                    ttl_millis: Some(100 + below(900)),
                },
                30..36 => Action::Delete,
                _ => Action::Get,
            };
            return (subject, action);
        }
        match below(10) {
            0..2 => {
                let subject = Subject::Counter(below(COUNTERS));
                let action = match dice {
                    0..70 => Action::Increment {
                        by: 1 + i64::try_from(below(3)).unwrap_or(0),
                    },
                    70..73 => Action::Delete,
                    _ => Action::Get,
                };
                (subject, action)
            }
            2..4 => {
                let subject = Subject::Group(below(GROUPS));
                let action = if dice < 50 {
                    Action::Set {
                        value: self.fresh(),
                        ttl_millis: None,
                    }
                } else {
                    Action::Get
                };
                (subject, action)
            }
            _ => {
                // One key is hot.
                let number = below(2) * below(PLAIN_KEYS);
                let subject = Subject::Plain(number);
                let action = match dice {
                    0..45 => Action::Get,
                    45..70 => Action::Set {
                        value: self.fresh(),
                        ttl_millis: None,
                    },
                    70..94 => Action::CompareAndSet {
                        expected: self.seen.get(&subject).cloned().flatten(),
                        value: self.fresh(),
                    },
                    _ => Action::Delete,
                };
                (subject, action)
            }
        }
    }

    async fn ask_until_answered(&mut self, subject: Subject, action: &Action) -> Outcome {
        let executor = Arc::clone(&self.shared.executor);
        let count = self.shared.machines.len() as u64;
        let shard = subject.shard();
        let give_up = executor.true_nanos() + u64::try_from(PATIENCE.as_nanos()).unwrap_or(0);
        loop {
            let target = match self.leaders.get(&shard) {
                Some(leader) if executor.below(20) != 0 => *leader,
                _ => usize::try_from(executor.below(count)).unwrap_or(0),
            };
            let said = self.ask(target, shard, subject, action).await;
            match said {
                Said::Outcome(outcome) => {
                    if outcome != Outcome::Unknown {
                        self.leaders.insert(shard, target);
                    }
                    return outcome;
                }
                Said::NotHere => {
                    let hint = self.leader_known_to(target, shard);
                    match hint {
                        Some(leader) => self.leaders.insert(shard, leader),
                        None => self.leaders.remove(&shard),
                    };
                }
            }
            if give_up < executor.true_nanos() {
                return Outcome::Failed;
            }
            let micros = 2_000 + executor.below(20_000);
            sleep(&executor, Duration::from_micros(micros)).await;
        }
    }

    /// Which machine a node says leads.
    fn leader_known_to(&self, target: usize, shard: ShardId) -> Option<usize> {
        let node = self.shared.machines.get(target)?.node()?;
        let leader = node.shard(shard)?.status().leader?;
        let mut machines = self.shared.machines.iter();
        machines.position(|machine| machine.id() == leader)
    }

    /// Sends one request and waits for its answer, for a while.
    async fn ask(&self, target: usize, shard: ShardId, subject: Subject, action: &Action) -> Said {
        let executor = Arc::clone(&self.shared.executor);
        let Some(machine) = self.shared.machines.get(target).cloned() else {
            return Said::NotHere;
        };
        let way = |executor: &Executor| Duration::from_micros(50 + executor.below(1_000));
        sleep(&executor, way(&executor)).await;
        if !machine.is_up() {
            return Said::NotHere;
        }
        let (done, answer) = oneshot::channel();
        let request = command(subject, action);
        let by_lease = executor.below(8) != 0;
        let session = Arc::clone(&machine);
        executor.spawn_on(machine.number, async move {
            let answer = session.answer(shard, request, WAIT, by_lease).await;
            drop(done.send(answer));
        });
        let alarm = Arc::clone(&executor);
        let (late, timeout) = oneshot::channel::<()>();
        let timer = executor.spawn_on(OUTSIDE, async move {
            sleep(&alarm, WAIT + Duration::from_millis(100)).await;
            drop(late);
        });
        let answer = tokio::select! {
            biased;
            answer = answer => answer.ok(),
            _ = timeout => None,
        };
        flux_env::World::abort(&*executor, timer);
        sleep(&executor, way(&executor)).await;
        match answer {
            Some(answer) => meaning(action, &answer),
            None => Said::Outcome(Outcome::Unknown),
        }
    }
}

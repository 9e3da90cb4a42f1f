//! Clients: each asks for one thing after another, follows the leader, and writes down what it saw.
//!
//! A client never guesses: what was refused before anything was appended may be asked again
//! elsewhere, what got lost after it was sent has an unknown outcome. Most clients give their writes
//! request ids, and then ask again: such a write is done once, and what it is answered late must be
//! what it was answered first.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use flux_history::{Action, OperationId, Outcome, Recorder, Value};
use flux_types::{
    Answer, Command, Compare, Condition, ErrorCode, Expiry, ReadCommand, Reply, RequestId,
    SessionId, Set, SetReply, ShardId, Transaction, UnixMillis, WriteCommand,
};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::clock::EPOCH_MILLIS;
use crate::executor::{Executor, OUTSIDE, sleep};
use crate::failure::Failure;
use crate::machine::{Machine, SHARDS};
use crate::splits::Splits;

/// How long a client tries to get one thing done.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long it waits for one node.
const WAIT: Duration = Duration::from_millis(1300);
/// The same of one that has no patience, and can ask again.
const WAIT_IMPATIENT: Duration = Duration::from_millis(60);
/// How long a node may take.
const NODE_PATIENCE: Duration = Duration::from_millis(1200);
/// How long it tries to learn what became of a write that has a request id.
const PERSISTENCE: Duration = Duration::from_secs(6);
/// After how many of its writes, at most, a client asks again for one that was answered.
const HELD_WRITES_MAX: u64 = 200;
/// How long a round of keys with deadlines takes, in nanoseconds, and for how long of it they are
/// written: then they are only read, until after their deadlines.
const ROUND_NANOS: u64 = 1_000_000_000;
const ROUND_WRITES_NANOS: u64 = 150_000_000;

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
    /// In runs whose shards are split.
    pub(crate) splits: Option<Arc<Splits>>,
    pub(crate) lasting: Mutex<Recorder>,
    pub(crate) expiring: Mutex<Recorder>,
    pub(crate) stop: AtomicBool,
    /// What clients and readers saw that no history is needed to judge.
    pub(crate) complaint: Mutex<Option<Failure>>,
    /// Whether acknowledged writes may be lost: syncs come later, and the power is cut once.
    pub(crate) is_relaxed: bool,
    /// Whether clients that can ask again soon do.
    is_impatient: bool,
    /// Whether keys with deadlines are written and read in rounds.
    pub(crate) has_rounds: AtomicBool,
    /// Which machines believe to lead a shard, and since which term: as of a few milliseconds ago.
    pub(crate) leading: Mutex<BTreeMap<(ShardId, u64), usize>>,
    values: AtomicU64,
}

impl Shared {
    pub(crate) fn new(
        executor: &Arc<Executor>,
        machines: &[Arc<Machine>],
        is_relaxed: bool,
        is_impatient: bool,
    ) -> Arc<Self> {
        Arc::new(Self {
            executor: Arc::clone(executor),
            machines: machines.to_vec(),
            splits: machines.first().and_then(|machine| machine.splits.clone()),
            is_relaxed,
            is_impatient,
            has_rounds: AtomicBool::new(false),
            lasting: Mutex::new(Recorder::new()),
            expiring: Mutex::new(Recorder::new()),
            stop: AtomicBool::new(false),
            complaint: Mutex::new(None),
            leading: Mutex::default(),
            values: AtomicU64::new(0),
        })
    }

    /// Notes what must not be; the first stays.
    pub(crate) fn complain(&self, failure: Failure) {
        self.complaint.lock().get_or_insert(failure);
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

    /// The shard by the map of so many shards, in runs whose shards are split.
    fn shard_by(self, splits: Option<&Splits>, routing: u32) -> ShardId {
        let keys = self.keys();
        match (splits, keys.first()) {
            (Some(splits), Some(key)) => splits.shard(self.shard(), key, routing),
            _ => self.shard(),
        }
    }

    /// The subject of a history's key.
    pub(crate) fn of_name(name: &[u8]) -> Option<Self> {
        let (kind, number) = std::str::from_utf8(name).ok()?.split_once('-')?;
        let number = number.parse().ok()?;
        match kind {
            "plain" => Some(Self::Plain(number)),
            "counter" => Some(Self::Counter(number)),
            "group" => Some(Self::Group(number)),
            "deadline" => Some(Self::Deadline(number)),
            _ => None,
        }
    }

    pub(crate) fn keys(self) -> Vec<Bytes> {
        match self {
            // Of one slot, as what is written in one transaction must be.
            Self::Group(_) => ["a", "b", "c"]
                .iter()
                .map(|part| Bytes::from(format!("{{{}}}-{part}", self.name())))
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
    /// Nothing was done: ask again, by a later map.
    Resharded,
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
            flux_types::Outcome::NotDone if error.code == ErrorCode::Resharded => {
                return Said::Resharded;
            }
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

/// A write that was answered, and for whose answer its client pretends to wait.
struct Held {
    request: RequestId,
    subject: Subject,
    action: Action,
    outcome: Outcome,
    until_nanos: u64,
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
    /// The session of its request ids; `None`: its writes have none.
    session: Option<SessionId>,
    /// Of its last write.
    sequence: u64,
    held: Option<Held>,
    /// How many shards it knows of.
    routing: u32,
}

impl Client {
    pub(crate) fn new(number: u64, shared: &Arc<Shared>, phase: Phase, think_micros: u64) -> Self {
        let executor = &shared.executor;
        let now = EPOCH_MILLIS.unsigned_abs() + executor.true_nanos() / 1_000_000;
        let random = (u128::from(number) << 64) | u128::from(executor.below(u64::MAX));
        let session = SessionId::draw(UnixMillis::new(now), random);
        Self {
            number,
            shared: Arc::clone(shared),
            phase,
            leaders: BTreeMap::new(),
            seen: BTreeMap::new(),
            think_micros,
            session: Some(session).filter(|_| !number.is_multiple_of(4)),
            sequence: 0,
            held: None,
            routing: SHARDS,
        }
    }

    /// Asks for one thing after another until it is told to stop.
    pub(crate) async fn run(mut self) {
        while !self.shared.stop.load(Ordering::SeqCst) {
            let think = self.shared.executor.below(self.think_micros) + 100;
            sleep(&self.shared.executor, Duration::from_micros(think)).await;
            let (subject, action) = self.draw();
            self.perform(subject, action).await;
            let now = self.shared.executor.true_nanos();
            if self.held.as_ref().is_some_and(|held| {
                held.until_nanos <= now || held.request.sequence + HELD_WRITES_MAX < self.sequence
            }) {
                self.ask_for_held().await;
            }
        }
        self.ask_for_held().await;
    }

    /// Asks whoever believes to lead although another leads by now: writes there and reads here,
    /// again and again while there are two.
    pub(crate) async fn probe(self) {
        while !self.shared.stop.load(Ordering::SeqCst) {
            let micros = 500 + self.shared.executor.below(4_000);
            sleep(&self.shared.executor, Duration::from_micros(micros)).await;
            for number in 0..SHARDS {
                let shard = ShardId::new(number);
                let leaders: Vec<usize> = {
                    let leading = self.shared.leading.lock();
                    let of_shard = leading.range((shard, 0)..=(shard, u64::MAX));
                    of_shard.map(|(_, machine)| *machine).collect()
                };
                let (Some(old), Some(new)) = (leaders.first(), leaders.last()) else {
                    continue;
                };
                if old == new {
                    continue;
                }
                let subject = Subject::Plain(number.into());
                let (value, ttl_millis) = (self.fresh(), None);
                let set = Action::Set { value, ttl_millis };
                self.perform_at(*new, subject, set).await;
                self.perform_at(*old, subject, Action::Get).await;
            }
        }
    }

    /// Asks one machine, once, and writes it down.
    async fn perform_at(&self, target: usize, subject: Subject, action: Action) {
        let id = self.call(subject, &action);
        let (shard, asked) = (subject.shard(), command(subject, &action));
        let said = self.ask(target, (shard, SHARDS), &action, asked).await;
        self.finish(
            id,
            match said {
                Said::Outcome(outcome) => outcome,
                Said::NotHere | Said::Resharded => Outcome::Failed,
            },
        );
    }

    /// Sends a write again that was answered long ago: nothing must happen, and the answer is the same.
    async fn ask_for_held(&mut self) {
        let Some(held) = self.held.take() else {
            return;
        };
        let again = self
            .ask_until_answered(held.subject, &held.action, Some(held.request))
            .await;
        let is_answer = !matches!(again, Outcome::Failed | Outcome::Unknown);
        if is_answer && again != held.outcome && !self.shared.is_relaxed {
            self.shared.complain(Failure::AnsweredOtherwise {
                subject: held.subject.name(),
                action: held.action.to_string(),
                first: format!("{:?}", held.outcome),
                again: format!("{again:?}"),
            });
        }
    }

    /// Does one thing and writes it down.
    pub(crate) async fn perform(&mut self, subject: Subject, action: Action) -> Outcome {
        let request = self.request(&action);
        let id = self.call(subject, &action);
        let outcome = self.ask_until_answered(subject, &action, request).await;
        if let (Outcome::Value(value), Action::Get) = (&outcome, &action) {
            self.seen.insert(subject, value.clone());
        }
        self.finish(id, outcome.clone());
        let is_known = !matches!(outcome, Outcome::Failed | Outcome::Unknown);
        if let Some(request) = request
            && is_known
            && self.held.is_none()
            && self.shared.executor.below(8) == 0
        {
            let executor = &self.shared.executor;
            let wait = executor.below(3_000_000_000);
            self.held = Some(Held {
                request,
                subject,
                action,
                outcome: outcome.clone(),
                until_nanos: executor.true_nanos() + wait,
            });
        }
        outcome
    }

    /// The request id of a new operation, if it is a write of a client that has them.
    fn request(&mut self, action: &Action) -> Option<RequestId> {
        let session = self.session.filter(|_| action.is_write())?;
        self.sequence += 1;
        Some(RequestId {
            session,
            sequence: self.sequence,
            lowest_unanswered: self
                .held
                .as_ref()
                .map_or(self.sequence, |held| held.request.sequence),
        })
    }

    fn call(&self, subject: Subject, action: &Action) -> OperationId {
        let now = self.shared.executor.true_nanos();
        let name = subject.name().into_bytes();
        let mut recorder = self.shared.recorder(self.phase).lock();
        recorder.call(self.number, name, action.clone(), now)
    }

    fn finish(&self, id: OperationId, outcome: Outcome) {
        let now = self.shared.executor.true_nanos();
        let mut recorder = self.shared.recorder(self.phase).lock();
        recorder.finish(id, outcome, now);
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
                _ if self.shared.has_rounds.load(Ordering::SeqCst) => self.draw_in_round(),
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

    /// In rounds: written at their beginning, so that nothing but reads meets the deadlines.
    fn draw_in_round(&self) -> Action {
        let executor = &self.shared.executor;
        let is_first = executor.true_nanos() % ROUND_NANOS < ROUND_WRITES_NANOS;
        if is_first && executor.below(3) == 0 {
            Action::Set {
                value: self.fresh(),
                ttl_millis: Some(250 + executor.below(500)),
            }
        } else {
            Action::Get
        }
    }

    async fn ask_until_answered(
        &mut self,
        subject: Subject,
        action: &Action,
        request: Option<RequestId>,
    ) -> Outcome {
        let executor = Arc::clone(&self.shared.executor);
        let count = self.shared.machines.len() as u64;
        let splits = self.shared.splits.clone();
        let began = executor.true_nanos();
        // Whether some attempt may have done it.
        let mut is_open = false;
        loop {
            let shard = subject.shard_by(splits.as_deref(), self.routing);
            let target = match self.leaders.get(&shard) {
                Some(leader) if executor.below(20) != 0 => *leader,
                _ => usize::try_from(executor.below(count)).unwrap_or(0),
            };
            let mut asked = command(subject, action);
            if let Some(request) = request {
                asked = asked.once(request);
            }
            let place = (shard, self.routing);
            let said = self.ask(target, place, action, asked).await;
            match said {
                Said::Outcome(Outcome::Unknown) => {
                    self.leaders.remove(&shard);
                    is_open = true;
                    if request.is_none() {
                        return Outcome::Unknown;
                    }
                }
                Said::Outcome(outcome) => {
                    self.leaders.insert(shard, target);
                    return outcome;
                }
                Said::Resharded => {
                    // It hears of the map after, not at once of the last.
                    self.routing += 1;
                }
                Said::NotHere => {
                    let hint = self.leader_known_to(target, shard);
                    match hint {
                        Some(leader) => self.leaders.insert(shard, leader),
                        None => self.leaders.remove(&shard),
                    };
                }
            }
            let patience = if is_open { PERSISTENCE } else { PATIENCE };
            let spent = Duration::from_nanos(executor.true_nanos() - began);
            if patience < spent {
                return if is_open {
                    Outcome::Unknown
                } else {
                    Outcome::Failed
                };
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
    async fn ask(
        &self,
        target: usize,
        (shard, routing): (ShardId, u32),
        action: &Action,
        request: Command,
    ) -> Said {
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
        let by_lease = executor.below(8) != 0;
        let session = Arc::clone(&machine);
        executor.spawn_on(machine.number, async move {
            let answer = session
                .answer(shard, request, NODE_PATIENCE, (by_lease, routing))
                .await;
            drop(done.send(answer));
        });
        let alarm = Arc::clone(&executor);
        let (late, timeout) = oneshot::channel::<()>();
        // At the end of a run there is time.
        let is_over = self.shared.stop.load(Ordering::SeqCst);
        let is_impatient = self.shared.is_impatient && self.session.is_some() && !is_over;
        let wait = if is_impatient { WAIT_IMPATIENT } else { WAIT };
        let timer = executor.spawn_on(OUTSIDE, async move {
            sleep(&alarm, wait).await;
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

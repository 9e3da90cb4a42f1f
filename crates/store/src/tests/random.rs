//! Random commands in random batches against the model, with restarts, replays and snapshots.

use std::sync::Arc;

use bytes::Bytes;
use flux_types::{
    Command, Compare, Condition, ExpireCondition, Expiry, ReadCommand, Reply, Revision, Set,
    SetReply, Term, Transaction, TtlForm, UnixMillis, Watch, WriteCommand,
};
use proptest::prelude::*;

use super::model::Model;
use crate::{BatchView, Read, Store, StoreConfig};

const START: u64 = 1_700_000_000_000;

fn key() -> impl Strategy<Value = Bytes> {
    (0..12_u8).prop_map(|number| Bytes::from(format!("key{number}")))
}

fn value() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        (-20_i64..20).prop_map(|number| Bytes::from(number.to_string())),
        Just(Bytes::from("9223372036854775800")),
        Just(Bytes::new()),
        (1..90_usize, any::<u8>()).prop_map(|(len, byte)| Bytes::from(vec![byte; len])),
    ]
}

fn expiry() -> impl Strategy<Value = Expiry> {
    prop_oneof![
        3 => Just(Expiry::Clear),
        1 => Just(Expiry::Keep),
        3 => (-5_i64..400).prop_map(Expiry::In),
        1 => Just(Expiry::In(i64::MAX)),
        1 => Just(Expiry::In(100_000_000_000)),
        1 => Just(Expiry::At(i64::MAX)),
        2 => (-5_i64..2000).prop_map(|ahead| Expiry::At(1_700_000_000_000 + ahead)),
        1 => Just(Expiry::At(-1)),
    ]
}

fn compare() -> impl Strategy<Value = Compare> {
    prop_oneof![
        Just(Compare::Anything),
        Just(Compare::Absent),
        Just(Compare::Exists),
        (0..60_u64).prop_map(|raw| Compare::RevisionIs(Revision::new(raw))),
        value().prop_map(Compare::ValueIs),
    ]
}

fn set() -> impl Strategy<Value = Command> {
    let condition = prop_oneof![
        3 => Just(Condition::Always),
        1 => Just(Condition::Absent),
        1 => Just(Condition::Exists),
        1 => value().prop_map(Condition::ValueIs),
    ];
    let reply = prop_oneof![
        Just(SetReply::Status),
        Just(SetReply::Flag),
        Just(SetReply::Previous),
        Just(SetReply::Written)
    ];
    (key(), value(), condition, expiry(), reply).prop_map(
        |(key, value, condition, expiry, reply)| {
            Command::Write(WriteCommand::Set(Set {
                key,
                value,
                condition,
                expiry,
                reply,
            }))
        },
    )
}

fn condition() -> impl Strategy<Value = ExpireCondition> {
    prop_oneof![
        Just((false, false, false, false)),
        Just((true, false, false, false)),
        Just((false, true, false, false)),
        Just((false, false, true, false)),
        Just((false, false, false, true)),
        Just((false, true, true, false)),
    ]
    .prop_map(|(if_none, if_some, if_later, if_earlier)| ExpireCondition {
        if_none,
        if_some,
        if_later,
        if_earlier,
    })
}

fn write() -> impl Strategy<Value = Command> {
    let expire_at = expiry().prop_filter("EXPIRE has a time", |expiry| {
        matches!(expiry, Expiry::In(_) | Expiry::At(_))
    });
    prop_oneof![
        6 => set(),
        2 => (key(), compare(), value(), expiry()).prop_map(|(key, expected, value, expiry)| {
            Command::Write(WriteCommand::CompareAndSet { key, expected, value, expiry })
        }),
        1 => (key(), compare()).prop_map(|(key, expected)| {
            Command::Write(WriteCommand::CompareAndDelete { key, expected })
        }),
        1 => key().prop_map(|key| Command::Write(WriteCommand::GetDelete { key })),
        2 => (key(), expiry()).prop_map(|(key, expiry)| Command::Write(WriteCommand::GetExpire { key, expiry })),
        2 => (proptest::collection::vec((key(), value()), 1..5), any::<bool>()).prop_map(
            |(pairs, if_none_exists)| Command::Write(WriteCommand::SetMany { pairs, if_none_exists })
        ),
        3 => (key(), value()).prop_map(|(key, value)| Command::Write(WriteCommand::Append { key, value })),
        3 => (key(), 0..150_u64, value()).prop_map(|(key, offset, value)| {
            Command::Write(WriteCommand::SetRange { key, offset, value })
        }),
        3 => (key(), -3..20_i64).prop_map(|(key, by)| Command::Write(WriteCommand::Increment { key, by })),
        2 => proptest::collection::vec(key(), 1..4).prop_map(|keys| Command::Write(WriteCommand::Delete { keys })),
        3 => (key(), expire_at, condition()).prop_map(|(key, expiry, condition)| {
            Command::Write(WriteCommand::Expire { key, expiry, condition })
        }),
        1 => key().prop_map(|key| Command::Write(WriteCommand::Persist { key })),
        2 => (key(), key(), any::<bool>()).prop_map(|(source, target, if_absent)| {
            Command::Write(WriteCommand::Rename { source, target, if_absent })
        }),
        2 => (key(), key(), any::<bool>()).prop_map(|(source, target, replace)| {
            Command::Write(WriteCommand::Copy { source, target, replace })
        }),
        1 => Just(Command::Write(WriteCommand::Clear)),
        1 => proptest::collection::vec(key(), 1..4).prop_map(|keys| Command::Write(WriteCommand::SweepExpired { keys })),
    ]
}

fn read() -> impl Strategy<Value = ReadCommand> {
    let keys = || proptest::collection::vec(key(), 1..5);
    let form = prop_oneof![
        Just(TtlForm::Seconds),
        Just(TtlForm::Millis),
        Just(TtlForm::AbsoluteSeconds),
        Just(TtlForm::AbsoluteMillis)
    ];
    prop_oneof![
        3 => key().prop_map(|key| ReadCommand::Get { key }),
        1 => key().prop_map(|key| ReadCommand::GetEntry { key }),
        1 => keys().prop_map(|keys| ReadCommand::GetMany { keys }),
        1 => key().prop_map(|key| ReadCommand::Length { key }),
        1 => (key(), -30..30_i64, -30..30_i64).prop_map(|(key, start, end)| {
            ReadCommand::GetRange { key, start, end }
        }),
        1 => keys().prop_map(|keys| ReadCommand::Exists { keys }),
        1 => key().prop_map(|key| ReadCommand::Type { key }),
        1 => (key(), form).prop_map(|(key, form)| ReadCommand::Ttl { key, form }),
        1 => Just(ReadCommand::Count),
        1 => Just(ReadCommand::Keys { pattern: Bytes::from("*") }),
    ]
}

fn command() -> impl Strategy<Value = Command> {
    let plain = || prop_oneof![3 => write(), 2 => read().prop_map(Command::Read)];
    let watch = (key(), proptest::option::of(0..60_u64)).prop_map(|(key, revision)| Watch {
        key,
        revision: revision.map(Revision::new),
        since: UnixMillis::new(START - 1),
    });
    let transaction = (
        proptest::collection::vec(watch, 0..2),
        proptest::collection::vec(plain(), 0..5),
    )
        .prop_map(|(watches, commands)| {
            Command::Write(WriteCommand::Transaction(Transaction { watches, commands }))
        });
    prop_oneof![8 => plain(), 1 => transaction]
}

#[derive(Clone, Debug)]
enum Step {
    /// Time passes, then one batch.
    Batch(u64, Vec<Command>),
    /// A read past the proposer; if it meets a passed deadline it goes through it.
    Read(ReadCommand),
    /// Everything that is due is swept.
    Sweep,
    /// A new process replays the log.
    Restart,
    /// The log from some batch on is applied again, twice.
    Replay(prop::sample::Index),
    /// A walk begins here, if none runs.
    BeginWalk,
    /// It goes on for some bytes.
    Walk(usize),
    /// It ends; a new process starts from it and the tail of the log.
    EndWalk,
}

fn step() -> impl Strategy<Value = Step> {
    let batch = (0..150_u64, proptest::collection::vec(command(), 1..10));
    prop_oneof![
        10 => batch.prop_map(|(ahead, commands)| Step::Batch(ahead, commands)),
        4 => read().prop_map(Step::Read),
        1 => Just(Step::Sweep),
        1 => Just(Step::Restart),
        1 => any::<prop::sample::Index>().prop_map(Step::Replay),
        2 => Just(Step::BeginWalk),
        2 => (1..200_usize).prop_map(Step::Walk),
        1 => Just(Step::EndWalk),
    ]
}

struct Walking {
    walk: crate::Walk,
    blocks: Vec<Vec<u8>>,
    revision: Revision,
    at: UnixMillis,
    log_len: usize,
}

/// A store, its log, and the model beside it.
struct World {
    store: Arc<Store>,
    log: Vec<Bytes>,
    model: Model,
    walking: Option<Walking>,
    seeds: u64,
}

/// Replies with keys in no particular order, put in order.
fn sorted(reply: Reply) -> Reply {
    let Reply::Array(mut replies) = reply else {
        return reply;
    };
    if replies.iter().all(|reply| matches!(reply, Reply::Bulk(_))) {
        replies.sort_by(|a, b| match (a, b) {
            (Reply::Bulk(a), Reply::Bulk(b)) => a.cmp(b),
            _ => std::cmp::Ordering::Equal,
        });
        return Reply::Array(replies);
    }
    Reply::Array(replies.into_iter().map(sorted).collect())
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            store: Arc::new(Store::new(StoreConfig::default())),
            log: Vec::new(),
            model: Model {
                now: START,
                ..Model::default()
            },
            walking: None,
            seeds: 0,
        };
        world.store = world.empty_store();
        world
    }

    /// Each process has another seed and another number of stripes.
    fn empty_store(&mut self) -> Arc<Store> {
        self.seeds += 1;
        Arc::new(Store::new(StoreConfig {
            stripes: 1 << (self.seeds % 4),
            hash_seed: self.seeds,
            ..StoreConfig::default()
        }))
    }

    fn batch(&mut self, commands: &[Command]) {
        let now = UnixMillis::new(self.model.now);
        let mut evaluation = self.store.evaluation(now, Term::new(1));
        for command in commands {
            let answer = evaluation.command(command);
            let expected = self.model.run(command);
            assert_eq!(sorted(answer.reply), sorted(expected), "{command:?}");
            assert_eq!(answer.revision.get(), self.model.revision, "{command:?}");
        }
        if let Some(batch) = evaluation.finish() {
            self.store.apply(&BatchView::parse(&batch).unwrap());
            self.log.push(batch);
        }
    }

    fn read(&mut self, read: ReadCommand) {
        let now = UnixMillis::new(self.model.now);
        let reply = self.store.read(&read, now);
        let command = &Command::Read(read);
        match reply {
            Read::Expired => self.batch(std::slice::from_ref(command)),
            Read::Reply(reply) => {
                let revision = self.model.revision;
                let expected = self.model.run(command);
                assert_eq!(sorted(reply), sorted(expected), "{command:?}");
                assert_eq!(self.model.revision, revision, "a read has no effect");
            }
        }
    }

    fn replay(store: &Store, log: &[Bytes]) {
        for batch in log {
            store.apply(&BatchView::parse(batch).unwrap());
        }
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Batch(ahead, commands) => {
                self.model.now += ahead;
                self.batch(&commands);
            }
            Step::Read(command) => self.read(command),
            Step::Sweep => {
                let now = UnixMillis::new(self.model.now);
                let keys = self.store.due(now, 1000);
                let expired = self.model.items.values();
                let expected = expired
                    .filter(|item| item.deadline.is_some_and(|at| at <= self.model.now))
                    .count();
                assert_eq!(keys.len(), expected);
                assert_eq!(self.store.expiry_lag(now) > 0, {
                    let deadlines = self.model.items.values().filter_map(|i| i.deadline);
                    deadlines.min().is_some_and(|at| at < self.model.now)
                });
                self.batch(&[Command::Write(WriteCommand::SweepExpired { keys })]);
                assert_eq!(self.store.due(now, 1000), Vec::<Bytes>::new());
            }
            Step::Restart => {
                let digest = self.store.digest();
                self.store = self.empty_store();
                Self::replay(&self.store, &self.log);
                assert_eq!(self.store.digest(), digest);
                self.walking = None;
            }
            Step::Replay(index) => {
                let digest = self.store.digest();
                let from = index.index(self.log.len() + 1);
                Self::replay(&self.store, &self.log[from..]);
                Self::replay(&self.store, &self.log[from..]);
                assert_eq!(self.store.digest(), digest);
            }
            Step::BeginWalk if self.walking.is_none() => {
                self.walking = Some(Walking {
                    revision: self.store.revision(),
                    at: self.store.last_batch_at(),
                    walk: self.store.walk(),
                    blocks: Vec::new(),
                    log_len: self.log.len(),
                });
            }
            Step::BeginWalk => {}
            Step::Walk(bytes) => {
                if let Some(walking) = &mut self.walking
                    && let Some(block) = walking.walk.next_block(bytes).unwrap()
                {
                    walking.blocks.push(block);
                }
            }
            Step::EndWalk => self.end_walk(),
        }
    }

    fn end_walk(&mut self) {
        let Some(mut walking) = self.walking.take() else {
            return;
        };
        while let Some(block) = walking.walk.next_block(100).unwrap() {
            walking.blocks.push(block);
        }
        let digest = self.store.digest();
        let restored = self.empty_store();
        let mut loader = restored.loader();
        for block in &walking.blocks {
            loader.load_block(block).unwrap();
        }
        restored.install(loader, walking.revision, walking.at);
        Self::replay(&restored, &self.log[walking.log_len..]);
        assert_eq!(restored.digest(), digest);
        assert_eq!(restored.revision(), self.store.revision());
        assert_eq!(restored.last_batch_at(), self.store.last_batch_at());
        assert_eq!(restored.len(), self.store.len());
        self.store = restored;
    }

    fn check(&self) {
        assert_eq!(self.store.revision().get(), self.model.revision);
        assert_eq!(self.store.len(), self.model.items.len());
        let deadlines = self.model.items.values().filter(|i| i.deadline.is_some());
        assert_eq!(self.store.deadlines(), deadlines.count());
        for (key, item) in &self.model.items {
            self.store.get(key, UnixMillis::ZERO, |found| {
                let crate::Lookup::Live(entry) = found else {
                    panic!("{key:?} is absent");
                };
                assert_eq!(entry.value, item.value);
                assert_eq!(entry.revision.get(), item.revision);
                assert_eq!(entry.deadline.map(UnixMillis::get), item.deadline);
            });
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, max_shrink_iters: 4000, ..ProptestConfig::default() })]

    #[test]
    fn random_histories_equal_the_model(steps in proptest::collection::vec(step(), 1..60)) {
        let mut world = World::new();
        for step in steps {
            world.run(step);
            world.check();
        }
        world.run(Step::BeginWalk);
        world.end_walk();
        world.check();
        world.batch(&[Command::Write(WriteCommand::Clear)]);
        world.check();
        let fresh = Store::new(world.store.config().clone());
        prop_assert_eq!(world.store.memory_bytes(), fresh.memory_bytes());
    }
}

//! An executor for the tests of protocols: a map in memory, with keys that misbehave on purpose.
//!
//! What commands mean is tested where they are evaluated; this one knows just enough of them for
//! requests and responses to be told apart.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use flux_env::Instant;
use flux_types::{
    Answer, Command, Compare, Condition, Entry, Error, ErrorCode, ReadCommand, Reply, Revision,
    SetReply, ShardId, WriteCommand, Written,
};
use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::Execute;

/// Commands on this key are answered when [`Memory::release`] is called.
pub(crate) const SLOW: &[u8] = b"slow";
/// Commands on this key are refused as busy.
pub(crate) const BUSY: &[u8] = b"busy";
/// Commands on this key time out with an unknown outcome.
pub(crate) const LATE: &[u8] = b"late";

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Memory {
    state: Arc<Mutex<State>>,
    gate: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct State {
    entries: BTreeMap<Bytes, Entry>,
    revision: u64,
    deadlines: Vec<Instant>,
}

impl Memory {
    pub(crate) fn new() -> Self {
        Self {
            state: Arc::default(),
            gate: watch::Sender::new(false),
        }
    }

    /// Lets commands on [`SLOW`] go on.
    pub(crate) fn release(&self) {
        self.gate.send_replace(true);
    }

    /// The deadlines that commands came with, in order.
    pub(crate) fn deadlines(&self) -> Vec<Instant> {
        self.state.lock().deadlines.clone()
    }
}

impl Execute for Memory {
    fn execute(
        &self,
        command: Command,
        deadline: Instant,
    ) -> impl Future<Output = Answer> + Send + 'static {
        let mut key = None;
        command.for_each_key(&mut |named| key = Some(named.clone()));
        let (state, mut gate) = (Arc::clone(&self.state), self.gate.subscribe());
        let answer: Pin<Box<dyn Future<Output = Answer> + Send>> = Box::pin(async move {
            state.lock().deadlines.push(deadline);
            match key.as_deref() {
                Some(BUSY) => Answer::error(Error::not_done(ErrorCode::Busy, "the queue is full")),
                Some(LATE) => Answer::error(Error::unknown(ErrorCode::Timeout, "too late")),
                Some(SLOW) => {
                    // The sender lives in every clone of the executor, and so in the test.
                    drop(gate.wait_for(|is_open| *is_open).await);
                    state.lock().run(command)
                }
                _ => state.lock().run(command),
            }
        });
        answer
    }

    fn execute_all(
        &self,
        commands: Vec<Command>,
        deadline: Instant,
    ) -> impl Future<Output = Vec<Answer>> + Send + 'static {
        let answers: Vec<_> = commands
            .into_iter()
            .map(|command| self.execute(command, deadline))
            .collect();
        join_all(answers)
    }

    /// Stale reads are of revision 0, so that they are told from others.
    fn read_stale(&self, command: Command) -> Answer {
        let Command::Read(_) = command else {
            return Answer::error(Error::not_done(ErrorCode::Invalid, "no read"));
        };
        Answer {
            revision: Revision::new(0),
            ..self.state.lock().run(command)
        }
    }

    /// Misbehaving keys have shards of their own, so that they hold up nobody else.
    fn shard(&self, command: &Command) -> Option<ShardId> {
        let mut shards = Vec::new();
        command.for_each_key(&mut |key| {
            let misbehaving = [SLOW, BUSY, LATE];
            let position = misbehaving.iter().position(|name| name == key);
            shards.push(position.map_or(0, |position| position + 1));
        });
        match shards.as_slice() {
            [shard] => Some(ShardId::new(u32::try_from(*shard).unwrap())),
            _ => None,
        }
    }
}

impl State {
    fn run(&mut self, command: Command) -> Answer {
        let reply = self.reply(command);
        Answer {
            reply,
            revision: Revision::new(self.revision),
        }
    }

    fn put(&mut self, key: Bytes, value: Bytes) {
        self.revision += 1;
        let entry = Entry {
            value,
            revision: Revision::new(self.revision),
            deadline: None,
        };
        self.entries.insert(key, entry);
    }

    fn remove(&mut self, key: &Bytes) -> Option<Entry> {
        let removed = self.entries.remove(key);
        self.revision += u64::from(removed.is_some());
        removed
    }

    fn holds(&self, key: &Bytes, expected: &Compare) -> bool {
        let entry = self.entries.get(key);
        match expected {
            Compare::Anything => true,
            Compare::Absent => entry.is_none(),
            Compare::Exists => entry.is_some(),
            Compare::RevisionIs(revision) => entry.is_some_and(|entry| entry.revision == *revision),
            Compare::ValueIs(value) => entry.is_some_and(|entry| entry.value == *value),
        }
    }

    #[expect(
        clippy::too_many_lines,
        clippy::wildcard_enum_match_arm,
        reason = "a flat match over what tests use"
    )]
    fn reply(&mut self, command: Command) -> Reply {
        match command {
            Command::Read(ReadCommand::Get { key }) => match self.entries.get(&key) {
                Some(entry) => Reply::Bulk(entry.value.clone()),
                None => Reply::Nil,
            },
            Command::Read(ReadCommand::GetEntry { key }) => {
                Reply::Entry(self.entries.get(&key).cloned().map(Box::new))
            }
            Command::Write(WriteCommand::Set(set)) => {
                let previous = self.entries.get(&set.key).cloned();
                let applied = match set.condition {
                    Condition::Absent => previous.is_none(),
                    Condition::Exists => previous.is_some(),
                    Condition::Always | Condition::ValueIs(_) => true,
                };
                if applied {
                    self.put(set.key, set.value);
                }
                match (set.reply, applied) {
                    (SetReply::Written, _) => {
                        Reply::Written(Box::new(Written { applied, previous }))
                    }
                    (_, true) => Reply::Ok,
                    (_, false) => Reply::Nil,
                }
            }
            Command::Write(WriteCommand::CompareAndSet {
                key,
                expected,
                value,
                ..
            }) => {
                let previous = self.entries.get(&key).cloned();
                let applied = self.holds(&key, &expected);
                if applied {
                    self.put(key, value);
                }
                Reply::Written(Box::new(Written { applied, previous }))
            }
            Command::Write(WriteCommand::CompareAndDelete { key, expected }) => {
                let previous = self.entries.get(&key).cloned();
                let applied = self.holds(&key, &expected);
                if applied {
                    self.remove(&key);
                }
                Reply::Written(Box::new(Written { applied, previous }))
            }
            Command::Write(WriteCommand::Delete { keys }) => {
                let removed = keys.iter().filter(|key| self.remove(key).is_some());
                Reply::Integer(i64::try_from(removed.count()).unwrap())
            }
            Command::Write(WriteCommand::Increment { key, by }) => {
                let text = self.entries.get(&key).map(|entry| entry.value.clone());
                let text = text.unwrap_or_else(|| Bytes::from_static(b"0"));
                let Some(number) = str::from_utf8(&text).unwrap().parse::<i64>().ok() else {
                    return Error::not_done(ErrorCode::NotAnInteger, "not an integer").into();
                };
                self.put(key, (number + by).to_string().into());
                Reply::Integer(number + by)
            }
            Command::Write(WriteCommand::Expire { key, .. } | WriteCommand::Persist { key }) => {
                Reply::Integer(i64::from(self.entries.contains_key(&key)))
            }
            Command::Read(ReadCommand::Scan(page)) => {
                let begin = usize::try_from(page.cursor).unwrap();
                let prefix = page.pattern.unwrap_or_else(|| Bytes::from_static(b"*"));
                let prefix = &prefix[..prefix.len() - 1];
                let keys = self.entries.keys().skip(begin).take(page.count);
                let end = begin + page.count;
                Reply::Page {
                    cursor: if end < self.entries.len() {
                        end as u64
                    } else {
                        0
                    },
                    keys: keys
                        .filter(|key| key.starts_with(prefix))
                        .cloned()
                        .collect(),
                }
            }
            Command::Read(ReadCommand::Count) => {
                Reply::Integer(i64::try_from(self.entries.len()).unwrap())
            }
            other => Error::not_done(ErrorCode::UnknownCommand, format!("{other:?}")).into(),
        }
    }
}

//! The store in its simplest form: one ordered map, one command after the other.

use std::collections::BTreeMap;

use bytes::Bytes;
use flux_types::{
    Command, Compare, Condition, Entry, Error, ErrorCode, ExpireCondition, Expiry, ReadCommand,
    Reply, Revision, Set, SetReply, Transaction, TtlForm, UnixMillis, Watch, WriteCommand, Written,
};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) value: Vec<u8>,
    pub(super) deadline: Option<u64>,
    pub(super) revision: u64,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Model {
    pub(super) items: BTreeMap<Bytes, Item>,
    pub(super) revision: u64,
    pub(super) now: u64,
}

fn error(code: ErrorCode, message: &'static str) -> Reply {
    Reply::Error(Error::not_done(code, message))
}

fn bulk(value: &[u8]) -> Reply {
    Reply::Bulk(Bytes::copy_from_slice(value))
}

fn int(number: usize) -> Reply {
    Reply::Integer(i64::try_from(number).unwrap())
}

enum Due {
    Never,
    At(u64),
    Past,
}

impl Model {
    fn step(&mut self) -> u64 {
        self.revision += 1;
        self.revision
    }

    fn put(&mut self, key: &Bytes, value: &[u8], deadline: Option<u64>) {
        let revision = self.step();
        let value = value.to_vec();
        self.items.insert(
            key.clone(),
            Item {
                value,
                deadline,
                revision,
            },
        );
    }

    fn remove(&mut self, key: &Bytes) -> bool {
        let was = self.items.remove(key).is_some();
        if was {
            self.step();
        }
        was
    }

    fn is_expired(&self, key: &Bytes) -> bool {
        let deadline = self.items.get(key).and_then(|item| item.deadline);
        deadline.is_some_and(|deadline| deadline <= self.now)
    }

    /// The key as a command meets it; an expired one is removed by that.
    fn meet(&mut self, key: &Bytes) -> Option<Item> {
        if self.is_expired(key) {
            self.remove(key);
        }
        self.items.get(key).cloned()
    }

    fn due(&self, expiry: Expiry, present: Option<u64>, positive: bool) -> Option<Due> {
        let deadline = match expiry {
            Expiry::Keep => return Some(present.map_or(Due::Never, Due::At)),
            Expiry::Clear => return Some(Due::Never),
            Expiry::In(millis) if positive && millis <= 0 => return None,
            Expiry::At(millis) if positive && millis <= 0 => return None,
            Expiry::In(millis) => i64::try_from(self.now).unwrap().checked_add(millis)?,
            Expiry::At(millis) => millis,
        };
        Some(match u64::try_from(deadline) {
            Ok(deadline) if deadline > self.now => Due::At(deadline),
            _ => Due::Past,
        })
    }

    fn write(&mut self, key: &Bytes, value: &[u8], due: &Due) {
        match due {
            Due::Never => self.put(key, value, None),
            Due::At(deadline) => self.put(key, value, Some(*deadline)),
            Due::Past => {
                self.remove(key);
            }
        }
    }

    fn entry(item: &Item) -> Entry {
        Entry {
            value: Bytes::copy_from_slice(&item.value),
            revision: Revision::new(item.revision),
            deadline: item.deadline.map(UnixMillis::new),
        }
    }

    fn set(&mut self, set: &Set) -> Reply {
        let invalid = error(ErrorCode::Invalid, "invalid expire time in 'set' command");
        if self.due(set.expiry, None, true).is_none() {
            return invalid;
        }
        let was = self.meet(&set.key);
        let holds = match &set.condition {
            Condition::Always => true,
            Condition::Absent => was.is_none(),
            Condition::Exists => was.is_some(),
            Condition::ValueIs(value) => was.as_ref().is_some_and(|item| item.value == *value),
        };
        if holds {
            let present = was.as_ref().and_then(|item| item.deadline);
            let due = self.due(set.expiry, present, true).unwrap();
            self.write(&set.key, &set.value, &due);
        }
        match set.reply {
            SetReply::Status => {
                if holds {
                    Reply::Ok
                } else {
                    Reply::Nil
                }
            }
            SetReply::Flag => Reply::Integer(i64::from(holds)),
            SetReply::Previous => was.map_or(Reply::Nil, |item| bulk(&item.value)),
            SetReply::Written => Reply::Written(Box::new(Written {
                applied: holds,
                previous: was.as_ref().map(Self::entry),
            })),
        }
    }

    fn compare(was: Option<&Item>, expected: &Compare) -> bool {
        match expected {
            Compare::Anything => true,
            Compare::Absent => was.is_none(),
            Compare::Exists => was.is_some(),
            Compare::RevisionIs(revision) => was.is_some_and(|i| i.revision == revision.get()),
            Compare::ValueIs(value) => was.is_some_and(|i| i.value == *value),
        }
    }

    fn expire(&mut self, key: &Bytes, expiry: Expiry, condition: ExpireCondition) -> Reply {
        let Some(due) = self.due(expiry, None, false) else {
            return error(
                ErrorCode::Invalid,
                "invalid expire time in 'expire' command",
            );
        };
        let Some(was) = self.meet(key) else {
            return Reply::Integer(0);
        };
        // Redis: a missing deadline counts as infinitely late.
        let old = was.deadline.unwrap_or(u64::MAX);
        let new = match due {
            Due::At(deadline) => deadline,
            Due::Past => 0,
            Due::Never => u64::MAX,
        };
        let refused = condition.if_none && was.deadline.is_some()
            || condition.if_some && was.deadline.is_none()
            || condition.if_later && new <= old
            || condition.if_earlier && new >= old;
        if refused {
            return Reply::Integer(0);
        }
        self.set_deadline(key, &due);
        Reply::Integer(1)
    }

    fn set_deadline(&mut self, key: &Bytes, due: &Due) {
        let deadline = match due {
            Due::Past => {
                self.remove(key);
                return;
            }
            Due::Never => None,
            Due::At(deadline) => Some(*deadline),
        };
        let revision = self.step();
        let item = self.items.get_mut(key).unwrap();
        item.deadline = deadline;
        item.revision = revision;
    }

    fn patch(&mut self, key: &Bytes, offset: usize, bytes: &[u8]) -> Reply {
        let Some(mut item) = self.meet(key) else {
            let mut value = vec![0; offset];
            value.extend_from_slice(bytes);
            self.put(key, &value, None);
            return int(value.len());
        };
        let end = offset + bytes.len();
        item.value.resize(end.max(item.value.len()), 0);
        item.value[offset..end].copy_from_slice(bytes);
        self.put(key, &item.value, item.deadline);
        int(item.value.len())
    }

    fn changed(&self, watch: &Watch) -> bool {
        let live = self
            .items
            .get(&watch.key)
            .filter(|_| !self.is_expired(&watch.key));
        live.map(|item| item.revision) != watch.revision.map(Revision::get)
    }

    fn transaction(&mut self, transaction: &Transaction) -> Reply {
        if transaction.watches.iter().any(|watch| self.changed(watch)) {
            return Reply::Aborted;
        }
        Reply::Array(transaction.commands.iter().map(|c| self.run(c)).collect())
    }

    fn live_keys(&mut self) -> Vec<Reply> {
        let expired: Vec<Bytes> = self.items.keys().cloned().collect();
        for key in expired {
            self.meet(&key);
        }
        self.items.keys().cloned().map(Reply::Bulk).collect()
    }

    /// Carries out one command at the time `now`.
    pub(super) fn run(&mut self, command: &Command) -> Reply {
        match command {
            Command::Write(WriteCommand::Set(set)) => self.set(set),
            Command::Write(WriteCommand::CompareAndSet {
                key,
                expected,
                value,
                expiry,
            }) => {
                if self.due(*expiry, None, true).is_none() {
                    return error(ErrorCode::Invalid, "invalid expire time in 'set' command");
                }
                let was = self.meet(key);
                let applied = Self::compare(was.as_ref(), expected);
                if applied {
                    let present = was.as_ref().and_then(|item| item.deadline);
                    let due = self.due(*expiry, present, true).unwrap();
                    self.write(key, value, &due);
                }
                let previous = was.as_ref().map(Self::entry);
                Reply::Written(Box::new(Written { applied, previous }))
            }
            Command::Write(WriteCommand::CompareAndDelete { key, expected }) => {
                let was = self.meet(key);
                let applied = was.is_some() && Self::compare(was.as_ref(), expected);
                if applied {
                    self.remove(key);
                }
                let previous = was.as_ref().map(Self::entry);
                Reply::Written(Box::new(Written { applied, previous }))
            }
            Command::Write(WriteCommand::GetDelete { key }) => {
                let was = self.meet(key);
                self.remove(key);
                was.map_or(Reply::Nil, |item| bulk(&item.value))
            }
            Command::Write(WriteCommand::GetExpire { key, expiry }) => {
                if self.due(*expiry, None, true).is_none() {
                    return error(ErrorCode::Invalid, "invalid expire time in 'getex' command");
                }
                let Some(was) = self.meet(key) else {
                    return Reply::Nil;
                };
                let due = self.due(*expiry, was.deadline, true).unwrap();
                let same = match due {
                    Due::Never => was.deadline.is_none(),
                    Due::At(deadline) => was.deadline == Some(deadline),
                    Due::Past => false,
                };
                if !same {
                    self.set_deadline(key, &due);
                }
                bulk(&was.value)
            }
            Command::Write(WriteCommand::SetMany {
                pairs,
                if_none_exists,
            }) => {
                if *if_none_exists {
                    for (key, _) in pairs {
                        if self.meet(key).is_some() {
                            return Reply::Integer(0);
                        }
                    }
                }
                for (key, value) in pairs {
                    self.meet(key);
                    self.put(key, value, None);
                }
                if *if_none_exists {
                    Reply::Integer(1)
                } else {
                    Reply::Ok
                }
            }
            Command::Write(WriteCommand::Append { key, value }) => match self.meet(key) {
                Some(was) if value.is_empty() => int(was.value.len()),
                Some(was) => self.patch(key, was.value.len(), value),
                None => self.patch(key, 0, value),
            },
            Command::Write(WriteCommand::SetRange { key, offset, value }) => {
                let was = self.meet(key);
                if value.is_empty() {
                    return int(was.map_or(0, |item| item.value.len()));
                }
                self.patch(key, usize::try_from(*offset).unwrap(), value)
            }
            Command::Write(WriteCommand::Increment { key, by }) => {
                let was = self.meet(key);
                let text = was.as_ref().map_or(b"0".as_slice(), |item| &item.value);
                let text = std::str::from_utf8(text).unwrap_or("x");
                let number = text.parse::<i64>().ok().filter(|n| n.to_string() == text);
                let Some(number) = number else {
                    let message = "value is not an integer or out of range";
                    return error(ErrorCode::NotAnInteger, message);
                };
                let Some(sum) = number.checked_add(*by) else {
                    let message = "increment or decrement would overflow";
                    return error(ErrorCode::Overflow, message);
                };
                let deadline = was.and_then(|item| item.deadline);
                self.put(key, sum.to_string().as_bytes(), deadline);
                Reply::Integer(sum)
            }
            Command::Write(WriteCommand::Delete { keys }) => {
                let mut count = 0;
                for key in keys {
                    self.meet(key);
                    count += usize::from(self.remove(key));
                }
                int(count)
            }
            Command::Write(WriteCommand::Expire {
                key,
                expiry,
                condition,
            }) => self.expire(key, *expiry, *condition),
            Command::Write(WriteCommand::Persist { key }) => {
                let has = self.meet(key).is_some_and(|item| item.deadline.is_some());
                if has {
                    self.set_deadline(key, &Due::Never);
                }
                Reply::Integer(i64::from(has))
            }
            Command::Write(WriteCommand::Rename {
                source,
                target,
                if_absent,
            }) => {
                let Some(moved) = self.meet(source) else {
                    return error(ErrorCode::NoSuchKey, "no such key");
                };
                let done = if *if_absent {
                    Reply::Integer(1)
                } else {
                    Reply::Ok
                };
                let not_done = if *if_absent {
                    Reply::Integer(0)
                } else {
                    Reply::Ok
                };
                if source == target || self.meet(target).is_some() && *if_absent {
                    return not_done;
                }
                self.remove(source);
                self.put(target, &moved.value, moved.deadline);
                done
            }
            Command::Write(WriteCommand::Copy {
                source,
                target,
                replace,
            }) => {
                if source == target {
                    let message = "source and destination objects are the same";
                    return error(ErrorCode::Invalid, message);
                }
                let Some(copied) = self.meet(source) else {
                    return Reply::Integer(0);
                };
                if self.meet(target).is_some() && !replace {
                    return Reply::Integer(0);
                }
                self.put(target, &copied.value, copied.deadline);
                Reply::Integer(1)
            }
            Command::Write(WriteCommand::Clear) => {
                self.step();
                self.items.clear();
                Reply::Ok
            }
            Command::Write(WriteCommand::Transaction(transaction)) => self.transaction(transaction),
            Command::Write(WriteCommand::SweepExpired { keys }) => {
                let mut count = 0;
                for key in keys {
                    let expired = self.is_expired(key);
                    self.meet(key);
                    count += usize::from(expired);
                }
                int(count)
            }
            command => self.read(command),
        }
    }

    fn read(&mut self, command: &Command) -> Reply {
        let item = |model: &mut Self, key: &Bytes| model.meet(key);
        match command {
            Command::Read(ReadCommand::Get { key }) => {
                item(self, key).map_or(Reply::Nil, |i| bulk(&i.value))
            }
            Command::Read(ReadCommand::GetEntry { key }) => {
                Reply::Entry(item(self, key).map(|i| Box::new(Self::entry(&i))))
            }
            Command::Read(ReadCommand::GetMany { keys }) => Reply::Array(
                keys.iter()
                    .map(|key| item(self, key).map_or(Reply::Nil, |i| bulk(&i.value)))
                    .collect(),
            ),
            Command::Read(ReadCommand::Length { key }) => {
                int(item(self, key).map_or(0, |i| i.value.len()))
            }
            Command::Read(ReadCommand::GetRange { key, start, end }) => {
                let value = item(self, key).map_or_else(Vec::new, |i| i.value);
                let len = i64::try_from(value.len()).unwrap();
                let fix = |offset: i64| if offset < 0 { len + offset } else { offset };
                if *start < 0 && *end < 0 && start > end {
                    return bulk(&[]);
                }
                // An end before the first byte is the first byte: so does Redis.
                let (start, end) = (fix(*start).max(0), fix(*end).max(0).min(len - 1));
                let picked = (0_i64..)
                    .zip(&value)
                    .filter(|(i, _)| start <= *i && *i <= end);
                bulk(&picked.map(|(_, byte)| *byte).collect::<Vec<u8>>())
            }
            Command::Read(ReadCommand::Exists { keys } | ReadCommand::Touch { keys }) => {
                int(keys.iter().filter(|key| item(self, key).is_some()).count())
            }
            Command::Read(ReadCommand::Type { key }) => {
                Reply::Simple(if item(self, key).is_some() {
                    "string"
                } else {
                    "none"
                })
            }
            Command::Read(ReadCommand::Ttl { key, form }) => {
                let now = i64::try_from(self.now).unwrap();
                let Some(item) = item(self, key) else {
                    return Reply::Integer(-2);
                };
                let Some(deadline) = item.deadline else {
                    return Reply::Integer(-1);
                };
                let deadline = i64::try_from(deadline).unwrap();
                Reply::Integer(match form {
                    TtlForm::Seconds => (deadline - now + 500) / 1000,
                    TtlForm::Millis => deadline - now,
                    TtlForm::AbsoluteSeconds => deadline / 1000 + (deadline % 1000 + 500) / 1000,
                    TtlForm::AbsoluteMillis => deadline,
                })
            }
            Command::Read(ReadCommand::Count) => int(self.items.len()),
            Command::Read(ReadCommand::Keys { .. }) => Reply::Array(self.live_keys()),
            other => panic!("the model does not know {other:?}"),
        }
    }
}

//! The calls of `flux.kv.v1.Kv` with one response.

use flux_types::{
    Answer, Command, Compare, Condition, Error, ExpireCondition, Expiry, Outcome, ReadCommand,
    Reply, RequestId, SessionId, Set, SetReply, UnixMillis, WriteCommand, Written,
};

use super::{
    Asked, Call, Deadline, InvalidField, Limits, checked_compare, checked_expiry, checked_key,
    checked_millis, checked_value, is_stale, previous, revision_of_write, unexpected,
};
use crate::kv;

impl Call for kv::GetRequest {
    type Response = kv::GetResponse;

    fn command(self, _limits: Limits) -> Result<(Command, Asked), InvalidField> {
        let asked = Asked {
            revision: self.return_revision,
            stale: is_stale(self.consistency)?,
            ..Asked::default()
        };
        let key = checked_key(self.key)?;
        let command = if asked.revision {
            Command::Read(ReadCommand::GetEntry { key })
        } else {
            Command::Read(ReadCommand::Get { key })
        };
        Ok((command, asked))
    }

    fn response(_asked: Asked, answer: Answer) -> Result<kv::GetResponse, Error> {
        match answer.reply {
            Reply::Bulk(value) => Ok(kv::GetResponse {
                value,
                found: true,
                ..kv::GetResponse::default()
            }),
            Reply::Entry(Some(entry)) => Ok(kv::GetResponse {
                value: entry.value,
                found: true,
                revision: Some(entry.revision.get()),
                expires_at_ms: entry.deadline.map(UnixMillis::get),
            }),
            Reply::Nil | Reply::Entry(None) => Ok(kv::GetResponse::default()),
            other => Err(unexpected(other)),
        }
    }
}

impl Call for kv::SetRequest {
    type Response = kv::SetResponse;

    fn command(self, limits: Limits) -> Result<(Command, Asked), InvalidField> {
        use kv::set_request::Expiry as Given;
        let condition = match kv::SetCondition::try_from(self.condition) {
            Ok(kv::SetCondition::Unspecified) => Condition::Always,
            Ok(kv::SetCondition::Absent) => Condition::Absent,
            Ok(kv::SetCondition::Exists) => Condition::Exists,
            Err(_) => return Err(InvalidField::new("condition", "is not a known condition")),
        };
        let asked = Asked {
            revision: self.return_revision,
            previous: self.return_previous,
            conditional: condition != Condition::Always,
            ..Asked::default()
        };
        let set = Set {
            key: checked_key(self.key)?,
            value: checked_value(self.value, limits)?,
            condition,
            expiry: checked_expiry(self.expiry.map(|given| match given {
                Given::TtlMs(millis) => Deadline::TtlMs(millis),
                Given::ExpiresAtMs(millis) => Deadline::ExpiresAtMs(millis),
                Given::KeepTtl(keep) => Deadline::Keep(keep),
            }))?,
            // The previous value costs a copy of it in the reply, so only who wants it gets it.
            reply: if asked.previous {
                SetReply::Written
            } else {
                SetReply::Status
            },
        };
        Ok((Command::Write(WriteCommand::Set(set)), asked))
    }

    fn response(asked: Asked, answer: Answer) -> Result<kv::SetResponse, Error> {
        let (success, before) = match answer.reply {
            Reply::Ok => (true, None),
            Reply::Nil => (false, None),
            Reply::Written(written) => (written.applied, written.previous),
            other => return Err(unexpected(other)),
        };
        Ok(kv::SetResponse {
            success,
            revision: revision_of_write(asked, success, answer.revision),
            previous: previous(asked, before),
        })
    }
}

impl Call for kv::DeleteRequest {
    type Response = kv::DeleteResponse;

    fn command(self, limits: Limits) -> Result<(Command, Asked), InvalidField> {
        let asked = Asked {
            revision: self.return_revision,
            previous: self.return_previous,
            conditional: self.expected.is_some(),
            ..Asked::default()
        };
        let key = checked_key(self.key)?;
        let expected = match self.expected {
            Some(expected) => checked_compare(expected, limits)?,
            None => Compare::Anything,
        };
        let command = if asked.conditional || asked.previous {
            Command::Write(WriteCommand::CompareAndDelete { key, expected })
        } else {
            Command::Write(WriteCommand::Delete { keys: vec![key] })
        };
        Ok((command, asked))
    }

    fn response(asked: Asked, answer: Answer) -> Result<kv::DeleteResponse, Error> {
        let (held, deleted, before) = match answer.reply {
            Reply::Integer(count) => (true, count > 0, None),
            Reply::Written(written) => {
                let Written { applied, previous } = *written;
                (applied, applied && previous.is_some(), previous)
            }
            other => return Err(unexpected(other)),
        };
        Ok(kv::DeleteResponse {
            // Without a condition the key is gone now, whether or not it was there.
            success: held || !asked.conditional,
            revision: revision_of_write(asked, deleted, answer.revision),
            deleted: (asked.revision || asked.previous).then_some(deleted),
            previous: previous(asked, before),
        })
    }
}

impl Call for kv::CompareAndSetRequest {
    type Response = kv::CompareAndSetResponse;

    fn command(self, limits: Limits) -> Result<(Command, Asked), InvalidField> {
        use kv::compare_and_set_request::Expiry as Given;
        let asked = Asked {
            revision: self.return_revision,
            previous: self.return_previous,
            conditional: true,
            ..Asked::default()
        };
        let command = Command::Write(WriteCommand::CompareAndSet {
            key: checked_key(self.key)?,
            expected: checked_compare(self.expected.unwrap_or_default(), limits)?,
            value: checked_value(self.value, limits)?,
            expiry: checked_expiry(self.expiry.map(|given| match given {
                Given::TtlMs(millis) => Deadline::TtlMs(millis),
                Given::ExpiresAtMs(millis) => Deadline::ExpiresAtMs(millis),
                Given::KeepTtl(keep) => Deadline::Keep(keep),
            }))?,
        });
        Ok((command, asked))
    }

    fn response(asked: Asked, answer: Answer) -> Result<kv::CompareAndSetResponse, Error> {
        match answer.reply {
            Reply::Written(written) => Ok(kv::CompareAndSetResponse {
                success: written.applied,
                revision: revision_of_write(asked, written.applied, answer.revision),
                previous: previous(asked, written.previous),
            }),
            other => Err(unexpected(other)),
        }
    }
}

impl Call for kv::IncrementRequest {
    type Response = kv::IncrementResponse;

    fn command(self, _limits: Limits) -> Result<(Command, Asked), InvalidField> {
        let asked = Asked {
            revision: self.return_revision,
            ..Asked::default()
        };
        let command = Command::Write(WriteCommand::Increment {
            key: checked_key(self.key)?,
            by: self.by.unwrap_or(1),
        });
        Ok((command, asked))
    }

    fn response(asked: Asked, answer: Answer) -> Result<kv::IncrementResponse, Error> {
        match answer.reply {
            Reply::Integer(value) => Ok(kv::IncrementResponse {
                value,
                revision: revision_of_write(asked, true, answer.revision),
            }),
            other => Err(unexpected(other)),
        }
    }
}

impl Call for kv::ExpireRequest {
    type Response = kv::ExpireResponse;

    fn command(self, _limits: Limits) -> Result<(Command, Asked), InvalidField> {
        use kv::expire_request::Expiry as Given;
        let asked = Asked {
            revision: self.return_revision,
            ..Asked::default()
        };
        let key = checked_key(self.key)?;
        let condition = checked_condition(self.condition)?;
        let expiry = match self.expiry {
            Some(Given::TtlMs(millis)) => Expiry::In(checked_millis("ttl_ms", millis)?),
            Some(Given::ExpiresAtMs(millis)) => {
                Expiry::At(checked_millis("expires_at_ms", millis)?)
            }
            Some(Given::Persist(true)) if condition == ExpireCondition::default() => {
                return Ok((Command::Write(WriteCommand::Persist { key }), asked));
            }
            Some(Given::Persist(true)) => {
                return Err(InvalidField::new("condition", "must be unset with persist"));
            }
            Some(Given::Persist(false)) => {
                return Err(InvalidField::new("persist", "must be true"));
            }
            None => {
                return Err(InvalidField::new(
                    "expiry",
                    "must be one of ttl_ms, expires_at_ms, persist",
                ));
            }
        };
        let command = Command::Write(WriteCommand::Expire {
            key,
            expiry,
            condition,
        });
        Ok((command, asked))
    }

    fn response(asked: Asked, answer: Answer) -> Result<kv::ExpireResponse, Error> {
        match answer.reply {
            Reply::Integer(changed) => Ok(kv::ExpireResponse {
                success: changed > 0,
                revision: revision_of_write(asked, changed > 0, answer.revision),
            }),
            other => Err(unexpected(other)),
        }
    }
}

fn checked_condition(condition: i32) -> Result<ExpireCondition, InvalidField> {
    let mut checked = ExpireCondition::default();
    match kv::ExpireCondition::try_from(condition) {
        Ok(kv::ExpireCondition::Unspecified) => {}
        Ok(kv::ExpireCondition::None) => checked.if_none = true,
        Ok(kv::ExpireCondition::Some) => checked.if_some = true,
        Ok(kv::ExpireCondition::Later) => checked.if_later = true,
        Ok(kv::ExpireCondition::Earlier) => checked.if_earlier = true,
        Err(_) => return Err(InvalidField::new("condition", "is not a known condition")),
    }
    Ok(checked)
}

impl Call for kv::OutcomeRequest {
    type Response = kv::OutcomeResponse;

    fn command(self, _limits: Limits) -> Result<(Command, Asked), InvalidField> {
        let session = SessionId::parse(self.session.as_bytes())
            .ok_or_else(|| InvalidField::new("session", "must be a UUID of version 7"))?;
        let key = if self.key.is_empty() {
            None
        } else {
            Some(checked_key(self.key)?)
        };
        let request = RequestId {
            session,
            sequence: self.sequence,
            lowest_unanswered: self.lowest_unanswered.unwrap_or(self.sequence),
        };
        let command = Command::Write(WriteCommand::QueryOutcome { request, key });
        Ok((command, Asked::default()))
    }

    fn response(_asked: Asked, answer: Answer) -> Result<kv::OutcomeResponse, Error> {
        let Reply::Outcome(known) = answer.reply else {
            return Err(unexpected(answer.reply));
        };
        let outcome = match known.outcome {
            Outcome::NotDone => kv::WriteOutcome::NotDone,
            Outcome::Done => kv::WriteOutcome::Done,
            Outcome::Unknown => kv::WriteOutcome::Unknown,
        };
        Ok(kv::OutcomeResponse {
            outcome: outcome.into(),
            reply_kept: known.reply.is_some(),
        })
    }
}

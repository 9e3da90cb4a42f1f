//! Commands that write values.

use bytes::Bytes;
use flux_types::{
    Compare, Condition, DeleteCause, Entry as EntryReply, Expiry, Reply, Set, SetReply, Written,
};

use super::{Evaluation, Hashed, Live, Outcome, When};
use crate::error;
use crate::number::{Extended, parse_integer};
use crate::read::integer;

impl Evaluation<'_> {
    pub(super) fn set(&mut self, set: &Set) -> Outcome {
        self.check_len(set.value.len())?;
        let at = self.hashed(&set.key);
        // Checked before the key is looked at: a refused command does nothing at all.
        self.when(set.expiry, None, "set", true)?;
        let was = self.find(at);
        let holds = match &set.condition {
            Condition::Always => true,
            Condition::Absent => was.is_none(),
            Condition::Exists => was.is_some(),
            Condition::ValueIs(value) => self.value_is(at, was.as_ref(), value),
        };
        let reply = match set.reply {
            SetReply::Status if holds => Reply::Ok,
            SetReply::Status => Reply::Nil,
            SetReply::Flag => Reply::Integer(i64::from(holds)),
            SetReply::Previous => match &was {
                Some(live) => Reply::Bulk(self.value(at, live)),
                None => Reply::Nil,
            },
            SetReply::Written => self.written(at, was, holds),
        };
        if holds {
            self.write(at, was, &set.value, set.expiry, "set")?;
        }
        Ok(reply)
    }

    fn written(&mut self, at: Hashed<'_>, was: Option<Live>, applied: bool) -> Reply {
        let previous = was.map(|live| EntryReply {
            value: self.value(at, &live),
            revision: live.revision,
            deadline: live.deadline,
        });
        Reply::Written(Box::new(Written { applied, previous }))
    }

    fn value_is(&mut self, at: Hashed<'_>, live: Option<&Live>, value: &[u8]) -> bool {
        live.is_some_and(|live| {
            live.len == value.len() && self.with_value(at, live, |present| present == value)
        })
    }

    /// Puts a value, or deletes the key if its deadline would already have passed.
    fn write(
        &mut self,
        at: Hashed<'_>,
        was: Option<Live>,
        value: &[u8],
        expiry: Expiry,
        command: &'static str,
    ) -> Result<(), flux_types::Error> {
        let present = was.and_then(|live| live.deadline);
        let when = self.when(expiry, present, command, true)?;
        self.write_at(at, was, value, when);
        Ok(())
    }

    fn write_at(&mut self, at: Hashed<'_>, was: Option<Live>, value: &[u8], when: When) {
        match when {
            When::Deadline(deadline) => {
                self.push_put(at, was, value, deadline);
            }
            When::Past => {
                if let Some(was) = was {
                    self.push_delete(at, was, DeleteCause::Deleted);
                }
            }
        }
    }

    fn holds(&mut self, at: Hashed<'_>, was: Option<Live>, expected: &Compare) -> bool {
        match expected {
            Compare::Anything => true,
            Compare::Absent => was.is_none(),
            Compare::Exists => was.is_some(),
            Compare::RevisionIs(revision) => was.is_some_and(|live| live.revision == *revision),
            Compare::ValueIs(value) => self.value_is(at, was.as_ref(), value),
        }
    }

    pub(super) fn compare_and_set(
        &mut self,
        key: &[u8],
        expected: &Compare,
        value: &[u8],
        expiry: Expiry,
    ) -> Outcome {
        self.check_len(value.len())?;
        self.when(expiry, None, "set", true)?;
        let at = self.hashed(key);
        let was = self.find(at);
        let holds = self.holds(at, was, expected);
        let reply = self.written(at, was, holds);
        if holds {
            self.write(at, was, value, expiry, "set")?;
        }
        Ok(reply)
    }

    pub(super) fn compare_and_delete(&mut self, key: &[u8], expected: &Compare) -> Outcome {
        let at = self.hashed(key);
        let was = self.find(at);
        let holds = self.holds(at, was, expected);
        let reply = self.written(at, was, holds && was.is_some());
        if let Some(was) = was
            && holds
        {
            self.push_delete(at, was, DeleteCause::Deleted);
        }
        Ok(reply)
    }

    pub(super) fn get_delete(&mut self, key: &[u8]) -> Reply {
        let at = self.hashed(key);
        let Some(was) = self.find(at) else {
            return Reply::Nil;
        };
        let value = self.value(at, &was);
        self.push_delete(at, was, DeleteCause::Deleted);
        Reply::Bulk(value)
    }

    pub(super) fn get_expire(&mut self, key: &[u8], expiry: Expiry) -> Outcome {
        self.when(expiry, None, "getex", true)?;
        let at = self.hashed(key);
        let Some(was) = self.find(at) else {
            return Ok(Reply::Nil);
        };
        let value = self.value(at, &was);
        match self.when(expiry, was.deadline, "getex", true)? {
            When::Past => self.push_delete(at, was, DeleteCause::Deleted),
            When::Deadline(deadline) if deadline != was.deadline => {
                self.push_deadline(at, was, deadline);
            }
            When::Deadline(_) => {}
        }
        Ok(Reply::Bulk(value))
    }

    pub(super) fn set_many(&mut self, pairs: &[(Bytes, Bytes)], if_none_exists: bool) -> Outcome {
        for (_, value) in pairs {
            self.check_len(value.len())?;
        }
        if if_none_exists {
            for (key, _) in pairs {
                let at = self.hashed(key);
                if self.find(at).is_some() {
                    return Ok(Reply::Integer(0));
                }
            }
        }
        for (key, value) in pairs {
            let at = self.hashed(key);
            let was = self.find(at);
            self.push_put(at, was, value, None);
        }
        Ok(if if_none_exists {
            Reply::Integer(1)
        } else {
            Reply::Ok
        })
    }

    pub(super) fn append(&mut self, key: &[u8], value: &[u8]) -> Outcome {
        let at = self.hashed(key);
        let Some(was) = self.find(at) else {
            self.check_len(value.len())?;
            self.push_put(at, None, value, None);
            return Ok(integer(value.len()));
        };
        self.check_len(was.len + value.len())?;
        if !value.is_empty() {
            self.push_patch(at, was, was.len, value);
        }
        Ok(integer(was.len + value.len()))
    }

    pub(super) fn set_range(&mut self, key: &[u8], offset: u64, value: &[u8]) -> Outcome {
        let at = self.hashed(key);
        let was = self.find(at);
        if value.is_empty() {
            return Ok(integer(was.map_or(0, |live| live.len)));
        }
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = offset.saturating_add(value.len());
        self.check_len(end)?;
        let Some(was) = was else {
            let mut whole = vec![0; offset];
            whole.extend_from_slice(value);
            self.push_put(at, None, &whole, None);
            return Ok(integer(end));
        };
        self.push_patch(at, was, offset, value);
        Ok(integer(was.len.max(end)))
    }

    pub(super) fn increment(&mut self, key: &[u8], by: i64) -> Outcome {
        let at = self.hashed(key);
        let was = self.find(at);
        let present = match &was {
            None => 0,
            Some(live) => self
                .with_value(at, live, parse_integer)
                .ok_or_else(error::not_an_integer)?,
        };
        let sum = present.checked_add(by).ok_or_else(error::would_overflow)?;
        let deadline = was.and_then(|live| live.deadline);
        let mut text = itoa::Buffer::new();
        self.push_put(at, was, text.format(sum).as_bytes(), deadline);
        Ok(Reply::Integer(sum))
    }

    pub(super) fn increment_float(&mut self, key: &[u8], by: f64) -> Outcome {
        let at = self.hashed(key);
        let was = self.find(at);
        let present = match &was {
            None => Some(Extended::default()),
            Some(live) => self
                .with_value(at, live, |text| match text {
                    text if is_infinity(text) => Some(None),
                    text => Extended::parse(text).map(Some),
                })
                .ok_or_else(error::not_a_float)?,
        };
        if !by.is_finite() {
            return Err(error::not_finite());
        }
        // The shortest digits that make this number are, as a rule, those the client sent.
        let mut digits = ryu::Buffer::new();
        let step = Extended::parse(digits.format(by).as_bytes()).ok_or_else(error::not_a_float)?;
        let sum = present
            .and_then(|present| present.add(step))
            .ok_or_else(error::not_finite)?;
        let text = sum.to_text();
        self.check_len(text.len())?;
        let deadline = was.and_then(|live| live.deadline);
        self.push_put(at, was, &text, deadline);
        Ok(Reply::Bulk(Bytes::from(text)))
    }
}

/// `strtold` reads these, and Redis then refuses the sum.
fn is_infinity(text: &[u8]) -> bool {
    let unsigned = match text.split_first() {
        Some((b'-' | b'+', rest)) => rest,
        _ => text,
    };
    unsigned.eq_ignore_ascii_case(b"inf") || unsigned.eq_ignore_ascii_case(b"infinity")
}

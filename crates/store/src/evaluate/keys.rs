//! Commands that delete, move and time keys.

use bytes::Bytes;
use flux_types::limits::{SYSTEM_ENTRIES_MAX, SYSTEM_NAME_BYTES_MAX, SYSTEM_VALUE_BYTES_MAX};
use flux_types::{DeleteCause, ExpireCondition, Expiry, Reply};

use super::{Evaluation, Outcome, When};
use crate::batch::FactRef;
use crate::error;
use crate::read::integer;
use crate::store::is_past;

impl Evaluation<'_> {
    pub(super) fn delete_all(&mut self, keys: &[Bytes]) -> Reply {
        let mut deleted = 0;
        for key in keys {
            let at = self.hashed(key);
            if let Some(was) = self.find(at) {
                self.push_delete(at, was, DeleteCause::Deleted);
                deleted += 1;
            }
        }
        integer(deleted)
    }

    pub(super) fn expire(
        &mut self,
        key: &[u8],
        expiry: Expiry,
        condition: ExpireCondition,
    ) -> Outcome {
        let is_ordered = condition.if_later || condition.if_earlier;
        if condition.if_none && (condition.if_some || is_ordered)
            || condition.if_later && condition.if_earlier
        {
            return Err(error::incompatible_conditions());
        }
        self.when(expiry, None, "expire", false)?;
        let at = self.hashed(key);
        let Some(was) = self.find(at) else {
            return Ok(Reply::Integer(0));
        };
        let when = self.when(expiry, was.deadline, "expire", false)?;
        // No deadline is later than any; a past one is earlier than any that a live key has.
        let is_later = match (when, was.deadline) {
            (_, None) | (When::Past, Some(_)) => false,
            (When::Deadline(None), Some(_)) => true,
            (When::Deadline(Some(new)), Some(present)) => present < new,
        };
        let is_earlier = match (when, was.deadline) {
            (When::Deadline(None), _) => false,
            (_, None) | (When::Past, Some(_)) => true,
            (When::Deadline(Some(new)), Some(present)) => new < present,
        };
        let refused = condition.if_none && was.deadline.is_some()
            || condition.if_some && was.deadline.is_none()
            || condition.if_later && !is_later
            || condition.if_earlier && !is_earlier;
        if refused {
            return Ok(Reply::Integer(0));
        }
        match when {
            When::Past => self.push_delete(at, was, DeleteCause::Deleted),
            When::Deadline(deadline) => self.push_deadline(at, was, deadline),
        }
        Ok(Reply::Integer(1))
    }

    pub(super) fn persist(&mut self, key: &[u8]) -> Reply {
        let at = self.hashed(key);
        match self.find(at) {
            Some(was) if was.deadline.is_some() => {
                self.push_deadline(at, was, None);
                Reply::Integer(1)
            }
            _ => Reply::Integer(0),
        }
    }

    pub(super) fn rename(&mut self, source: &[u8], target: &[u8], if_absent: bool) -> Outcome {
        let from = self.hashed(source);
        let moved = self.find(from).ok_or_else(error::no_such_key)?;
        let (done, not_done) = if if_absent {
            (Reply::Integer(1), Reply::Integer(0))
        } else {
            (Reply::Ok, Reply::Ok)
        };
        if source == target {
            return Ok(not_done);
        }
        let to = self.hashed(target);
        let was = self.find(to);
        if if_absent && was.is_some() {
            return Ok(not_done);
        }
        let value = self.value(from, &moved);
        self.push_delete(from, moved, DeleteCause::Deleted);
        self.push_put(to, was, &value, moved.deadline);
        Ok(done)
    }

    pub(super) fn copy(&mut self, source: &[u8], target: &[u8], replace: bool) -> Outcome {
        if source == target {
            return Err(error::same_object());
        }
        let from = self.hashed(source);
        let Some(copied) = self.find(from) else {
            return Ok(Reply::Integer(0));
        };
        let to = self.hashed(target);
        let was = self.find(to);
        if was.is_some() && !replace {
            return Ok(Reply::Integer(0));
        }
        let value = self.value(from, &copied);
        self.push_put(to, was, &value, copied.deadline);
        Ok(Reply::Integer(1))
    }

    pub(super) fn clear(&mut self) -> Reply {
        self.writer.push(FactRef::Clear);
        self.overlay.clear();
        Reply::Ok
    }

    /// Keeps or removes system data. Not refused when memory is full: they are few, and bounded.
    pub(super) fn put_system(&mut self, name: &Bytes, value: Option<&Bytes>) -> Outcome {
        let Some(value) = value else {
            self.writer.push(FactRef::SystemDelete { name });
            self.system.insert(name.clone(), None);
            return Ok(Reply::Ok);
        };
        let is_new = self.system(name).is_none();
        let is_crowded = is_new && SYSTEM_ENTRIES_MAX <= self.store.system_len();
        let is_long = SYSTEM_NAME_BYTES_MAX < name.len() || SYSTEM_VALUE_BYTES_MAX < value.len();
        if is_crowded || is_long || name.is_empty() {
            return Err(error::no_place_for_system_data());
        }
        self.writer.push(FactRef::SystemPut { name, value });
        self.system.insert(name.clone(), Some(value.clone()));
        Ok(Reply::Ok)
    }

    /// Keeps system data if those that are there are as expected; else answers what is there.
    pub(super) fn replace_system(
        &mut self,
        name: &Bytes,
        expected: Option<&Bytes>,
        value: &Bytes,
    ) -> Outcome {
        let present = self.system(name);
        if present.as_ref() != expected {
            return Ok(present.map_or(Reply::Nil, Reply::Bulk));
        }
        self.put_system(name, Some(value))
    }

    /// The system data under a name, as the commands of this batch before this one left them.
    fn system(&self, name: &Bytes) -> Option<Bytes> {
        let changed = self.system.get(name).cloned();
        changed.unwrap_or_else(|| self.store.system(name))
    }

    /// Deletes what is past its deadline, and only that: a key that was written meanwhile stays.
    pub(super) fn sweep(&mut self, keys: &[Bytes]) -> Reply {
        self.sweeping = true;
        let before = self.expired_active;
        for key in keys {
            let at = self.hashed(key);
            // Finding an expired key deletes it.
            let live = self.find(at);
            debug_assert!(live.is_none_or(|live| !is_past(live.deadline, self.at)));
        }
        self.sweeping = false;
        let swept = self.expired_active - before;
        Reply::Integer(i64::try_from(swept).unwrap_or(i64::MAX))
    }
}

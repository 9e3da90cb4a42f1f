//! Deciding on the leader: commands in, replies and one batch of facts out.
//!
//! An [`Evaluation`] is a batch in the making. Each command sees applied state with everything the
//! batch has made so far laid over it, so two INCR in one batch count twice and of two SET NX one
//! wins. All of a batch happens at one time. Whoever meets a key whose deadline has passed says so
//! with a fact first: a write over an expired key is *expired*, then *put*.
//!
//! Facts of one command are one group; so are those of a whole transaction.

mod keys;
mod overlay;
mod reads;
mod requests;
mod strings;

#[cfg(test)]
#[expect(
    clippy::wildcard_enum_match_arm,
    clippy::too_many_lines,
    reason = "a test names the outcome it wants and refuses all others; tables are long"
)]
mod tests;

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use flux_types::bug::{self, Bug};
use flux_types::limits::KEY_BYTES_MAX;
use flux_types::{
    Answer, Command, DeleteCause, Error, Expiry, Reply, Revision, Term, TraceParent, Transaction,
    UnixMillis, Watch, WriteCommand,
};

use crate::batch::{BATCH_BYTES_MAX, BatchWriter, FactRef};
use crate::error;
use crate::hash::KeyHash;
use crate::raw::Entry;
use crate::store::{Lookup, Store};
use overlay::{Body, Known, Live, Overlay};
use requests::Asked;

/// One batch being evaluated.
#[derive(Debug)]
pub struct Evaluation<'a> {
    store: &'a Store,
    at: UnixMillis,
    writer: BatchWriter,
    overlay: Overlay,
    /// System data that this batch has changed.
    system: BTreeMap<Bytes, Option<Bytes>>,
    asked: Asked,
    /// The revision to answer with, where it is not that of the last fact.
    answer_revision: Option<Revision>,
    /// Whether the command in hand is the sweeper's.
    sweeping: bool,
    expired_active: u64,
    expired_lazy: u64,
    refused_memory: u64,
}

/// A key with its hash.
#[derive(Clone, Copy)]
pub(crate) struct Hashed<'k> {
    pub(crate) hash: KeyHash,
    pub(crate) key: &'k [u8],
}

/// What a new deadline amounts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    /// The key goes on with this deadline, or none.
    Deadline(Option<UnixMillis>),
    /// The deadline has passed already: the key goes.
    Past,
}

/// Most keys asked for together.
const PREFETCH_MAX: usize = 32;

type Outcome = Result<Reply, Error>;

impl<'a> Evaluation<'a> {
    pub(crate) fn new(store: &'a Store, at: UnixMillis, term: Term) -> Self {
        Self {
            store,
            at,
            writer: BatchWriter::new(term, at, store.revision().next()),
            overlay: Overlay::default(),
            system: BTreeMap::new(),
            asked: Asked::default(),
            answer_revision: None,
            sweeping: false,
            expired_active: 0,
            expired_lazy: 0,
            refused_memory: 0,
        }
    }

    /// Evaluates one command. A command that fails leaves no facts, except that a key it met may
    /// have been said to be expired.
    pub fn command(&mut self, command: &Command) -> Answer {
        self.traced_command(command, None)
    }

    /// As [`Self::command`], and notes in the log which request the command belongs to.
    pub fn traced_command(&mut self, command: &Command, trace: Option<TraceParent>) -> Answer {
        // The sweeper's deletions need not take effect together; small groups lock less.
        let grouped = !matches!(command, Command::Write(WriteCommand::SweepExpired { .. }));
        if grouped {
            self.writer.begin_traced_group(trace);
        }
        let reply = self.reply(command);
        if grouped {
            self.writer.end_group();
        }
        let revision = self.answer_revision.take();
        Answer {
            reply,
            revision: revision.unwrap_or_else(|| self.writer.last_revision()),
        }
    }

    /// Asks the processor for what some commands will touch, of which 16 are a good number: to be
    /// called before they are evaluated one by one, so that it waits for memory once.
    pub fn prefetch_all(&self, commands: &[Command]) {
        let mut hashes = [KeyHash::from_raw(0); PREFETCH_MAX];
        let mut count = 0;
        for command in commands {
            command.for_each_key(&mut |key| {
                if let Some(hash) = hashes.get_mut(count) {
                    *hash = self.store.hash(key);
                    self.store.prefetch(*hash);
                    count += 1;
                }
            });
        }
        for hash in hashes.iter().take(count) {
            self.store.prefetch_entry(*hash);
        }
    }

    /// The time of the batch.
    #[must_use]
    pub const fn at(&self) -> UnixMillis {
        self.at
    }

    /// Bytes of the batch so far, its header included.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.writer.bytes()
    }

    /// Facts so far.
    #[must_use]
    pub const fn facts(&self) -> usize {
        self.writer.fact_count() as usize
    }

    /// The finished batch, or `None` if nothing changes.
    #[must_use]
    pub fn finish(self) -> Option<Bytes> {
        for (counter, count) in [
            (&self.store.counters.expired_active, self.expired_active),
            (&self.store.counters.expired_lazy, self.expired_lazy),
            (&self.store.counters.refused_memory, self.refused_memory),
        ] {
            if count != 0 {
                counter.fetch_add(count, Ordering::Relaxed);
            }
        }
        self.writer.finish()
    }

    fn reply(&mut self, command: &Command) -> Reply {
        let outcome = match self.admit(command) {
            Ok(()) => self.dispatch(command),
            Err(error) => Err(error),
        };
        outcome.unwrap_or_else(Reply::Error)
    }

    /// Refuses what is too large for any batch, and writes that may grow while memory is full.
    fn admit(&mut self, command: &Command) -> Result<(), Error> {
        if let Command::Write(WriteCommand::Transaction(transaction)) = command {
            // Each of its commands is admitted by itself, but if memory is short it does not
            // begin at all.
            if self.is_full() && transaction.commands.iter().any(may_grow) {
                self.refused_memory += 1;
                return Err(error::out_of_memory());
            }
            return Ok(());
        }
        if let Command::Write(WriteCommand::Once(_)) = command {
            // What it does is admitted by itself.
            return Ok(());
        }
        if BATCH_BYTES_MAX - self.writer.bytes().min(BATCH_BYTES_MAX) < self.bytes_at_most(command)
        {
            return Err(error::batch_too_large());
        }
        if may_grow(command) && self.is_full() {
            self.refused_memory += 1;
            return Err(error::out_of_memory());
        }
        let mut key_is_too_long = false;
        command.for_each_key(&mut |key| key_is_too_long |= key.len() > KEY_BYTES_MAX);
        if key_is_too_long {
            return Err(error::key_too_long());
        }
        Ok(())
    }

    /// A bound on the facts of one command: each key said to be expired, and then written.
    fn bytes_at_most(&self, command: &Command) -> usize {
        const FACT_BYTES: usize = 32;
        if let Command::Write(WriteCommand::Set(set)) = command {
            return 2 * (set.key.len() + FACT_BYTES) + set.value.len();
        }
        let mut bytes = FACT_BYTES;
        command.for_each_key(&mut |key| bytes += 2 * (key.len() + FACT_BYTES));
        bytes + self.value_bytes_at_most(command)
    }

    fn value_bytes_at_most(&self, command: &Command) -> usize {
        if let Command::Write(WriteCommand::SetMany { pairs, .. }) = command {
            return pairs.iter().map(|(_, value)| value.len()).sum();
        }
        if let Command::Write(
            WriteCommand::CompareAndSet { value, .. } | WriteCommand::Append { value, .. },
        ) = command
        {
            return value.len();
        }
        // These write a value that is not among their arguments, or longer than what is.
        let carries = matches!(
            command,
            Command::Write(
                WriteCommand::SetRange { .. }
                    | WriteCommand::IncrementFloat { .. }
                    | WriteCommand::Rename { .. }
                    | WriteCommand::Copy { .. }
            )
        );
        if carries {
            self.store.config.value_bytes_max
        } else {
            0
        }
    }

    /// Whether entries, tables and this batch are beyond the limit.
    fn is_full(&self) -> bool {
        let limit = self.store.memory_bytes_max();
        if limit == u64::MAX {
            return false;
        }
        let stored = if self.overlay.cleared {
            0
        } else {
            self.store.memory_bytes()
        };
        limit < stored.saturating_add_signed(self.overlay.bytes())
    }

    fn dispatch(&mut self, command: &Command) -> Outcome {
        match command {
            Command::Read(read) => Ok(self.read(read)),
            Command::Write(write) => self.change(write),
        }
    }

    fn change(&mut self, write: &WriteCommand) -> Outcome {
        match write {
            WriteCommand::Set(set) => self.set(set),
            WriteCommand::CompareAndSet {
                key,
                expected,
                value,
                expiry,
            } => self.compare_and_set(key, expected, value, *expiry),
            WriteCommand::CompareAndDelete { key, expected } => {
                self.compare_and_delete(key, expected)
            }
            WriteCommand::GetDelete { key } => Ok(self.get_delete(key)),
            WriteCommand::GetExpire { key, expiry } => self.get_expire(key, *expiry),
            WriteCommand::SetMany {
                pairs,
                if_none_exists,
            } => self.set_many(pairs, *if_none_exists),
            WriteCommand::Append { key, value } => self.append(key, value),
            WriteCommand::SetRange { key, offset, value } => self.set_range(key, *offset, value),
            WriteCommand::Increment { key, by } => self.increment(key, *by),
            WriteCommand::IncrementFloat { key, by } => self.increment_float(key, *by),
            WriteCommand::Delete { keys } => Ok(self.delete_all(keys)),
            WriteCommand::Expire {
                key,
                expiry,
                condition,
            } => self.expire(key, *expiry, *condition),
            WriteCommand::Persist { key } => Ok(self.persist(key)),
            WriteCommand::Rename {
                source,
                target,
                if_absent,
            } => self.rename(source, target, *if_absent),
            WriteCommand::Copy {
                source,
                target,
                replace,
            } => self.copy(source, target, *replace),
            WriteCommand::Clear => Ok(self.clear()),
            WriteCommand::Transaction(transaction) => self.transaction(transaction),
            WriteCommand::SweepExpired { keys } => Ok(self.sweep(keys)),
            WriteCommand::PutSystem { name, value } => self.put_system(name, value.as_ref()),
            WriteCommand::ReplaceSystem {
                name,
                expected,
                value,
            } => self.replace_system(name, expected.as_ref(), value),
            WriteCommand::Once(once) => self.once(once),
            WriteCommand::QueryOutcome { request, .. } => self.query_outcome(request),
            WriteCommand::ForgetSessions => Ok(self.forget_sessions()),
        }
    }

    fn transaction(&mut self, transaction: &Transaction) -> Outcome {
        for watch in &transaction.watches {
            if self.has_changed(watch) {
                return Ok(Reply::Aborted);
            }
        }
        let mut replies = Vec::with_capacity(transaction.commands.len());
        for command in &transaction.commands {
            replies.push(match command {
                Command::Write(WriteCommand::Transaction(_)) => {
                    Reply::Error(error::nested_transaction())
                }
                Command::Write(
                    WriteCommand::Once(_)
                    | WriteCommand::QueryOutcome { .. }
                    | WriteCommand::ForgetSessions,
                ) => Reply::Error(error::nested_request()),
                Command::Read(_) | Command::Write(_) => self.reply(command),
            });
        }
        Ok(Reply::Array(replies))
    }

    /// Whether a watched key is not as it was. As in Redis from 6.0.9 on, a key that has expired
    /// since counts as changed; one that was watched when it had already expired does not, as long
    /// as nobody wrote it.
    fn has_changed(&mut self, watch: &Watch) -> bool {
        let hashed = self.hashed(&watch.key);
        let Known::Untouched = self.overlay.find(hashed.hash, hashed.key, &self.writer) else {
            return self.find(hashed).map(|live| live.revision) != watch.revision;
        };
        let (store, at) = (self.store, self.at);
        store.get_hashed(hashed.hash, hashed.key, UnixMillis::ZERO, |found| {
            let Lookup::Live(entry) = found else {
                return watch.revision.is_some();
            };
            let is_past = |now| crate::store::is_past(entry.deadline, now);
            match watch.revision {
                None => !is_past(at),
                Some(revision) if revision == entry.revision => {
                    is_past(at) && !is_past(watch.since)
                }
                Some(_) => true,
            }
        })
    }

    fn hashed<'k>(&self, key: &'k [u8]) -> Hashed<'k> {
        Hashed {
            hash: self.store.hash(key),
            key,
        }
    }

    /// The key as the batch sees it. A key that is past its deadline is said to be expired first.
    fn find(&mut self, at: Hashed<'_>) -> Option<Live> {
        if let Known::Is(live) = self.overlay.find(at.hash, at.key, &self.writer) {
            return live;
        }
        let found = self.stored(at)?;
        if !crate::store::is_past(found.deadline, self.at) {
            return Some(found);
        }
        if bug::is_on(Bug::ExpiredWithoutFact) {
            return None;
        }
        self.note_expired(1);
        self.push_delete(at, found, DeleteCause::Expired);
        None
    }

    const fn note_expired(&mut self, count: u64) {
        if self.sweeping {
            self.expired_active += count;
        } else {
            self.expired_lazy += count;
        }
    }

    /// The key as the store has it, expired or not.
    fn stored(&self, at: Hashed<'_>) -> Option<Live> {
        self.store
            .get_hashed(at.hash, at.key, UnixMillis::ZERO, |found| match found {
                Lookup::Live(entry) => Some(Live {
                    revision: entry.revision,
                    deadline: entry.deadline,
                    len: entry.value.len(),
                    body: Body::Stored,
                }),
                Lookup::Absent | Lookup::Expired => None,
            })
    }

    fn with_value<R>(&mut self, at: Hashed<'_>, live: &Live, found: impl FnOnce(&[u8]) -> R) -> R {
        self.overlay
            .with_value(live, (at.hash, at.key), (self.store, &self.writer), found)
    }

    fn value(&mut self, at: Hashed<'_>, live: &Live) -> Bytes {
        self.with_value(at, live, Bytes::copy_from_slice)
    }

    /// The key has this value from here on.
    fn push_put(
        &mut self,
        at: Hashed<'_>,
        was: Option<Live>,
        value: &[u8],
        deadline: Option<UnixMillis>,
    ) -> Revision {
        let (revision, key, span) = self.writer.push_spanned(FactRef::Put {
            key: at.key,
            value,
            deadline,
        });
        let live = Live {
            revision,
            deadline,
            len: value.len(),
            body: Body::Span(span),
        };
        self.overlay
            .set((at.hash, key), Some(live), was, &self.writer);
        revision
    }

    fn push_delete(&mut self, at: Hashed<'_>, was: Live, cause: DeleteCause) {
        let (_, key, _) = self
            .writer
            .push_spanned(FactRef::Delete { key: at.key, cause });
        self.overlay
            .set((at.hash, key), None, Some(was), &self.writer);
    }

    fn push_deadline(&mut self, at: Hashed<'_>, was: Live, deadline: Option<UnixMillis>) {
        let (revision, key, _) = self.writer.push_spanned(FactRef::SetDeadline {
            key: at.key,
            deadline,
        });
        let live = Live {
            revision,
            deadline,
            ..was
        };
        self.overlay
            .set((at.hash, key), Some(live), Some(was), &self.writer);
    }

    fn push_patch(&mut self, at: Hashed<'_>, was: Live, offset: usize, bytes: &[u8]) {
        let (revision, key, span) = self.writer.push_spanned(FactRef::Patch {
            key: at.key,
            offset: u32::try_from(offset).unwrap_or(u32::MAX),
            bytes,
        });
        let live = Live {
            revision,
            len: was.len.max(offset + bytes.len()),
            body: self.overlay.patch(was.body, offset, span, &self.writer),
            ..was
        };
        self.overlay
            .set((at.hash, key), Some(live), Some(was), &self.writer);
    }

    /// What an expiry option amounts to at the time of this batch. `must_be_positive`: SET and
    /// GETEX refuse zero and less, where EXPIRE deletes.
    fn when(
        &self,
        expiry: Expiry,
        present: Option<UnixMillis>,
        command: &'static str,
        must_be_positive: bool,
    ) -> Result<When, Error> {
        let (millis, is_relative) = match expiry {
            Expiry::Keep => return Ok(When::Deadline(present)),
            Expiry::Clear => return Ok(When::Deadline(None)),
            Expiry::In(millis) => (millis, true),
            Expiry::At(millis) => (millis, false),
        };
        if must_be_positive && millis <= 0 {
            return Err(error::invalid_expiry(command));
        }
        let absolute = if is_relative {
            let now = i64::try_from(self.at.get()).unwrap_or(i64::MAX);
            now.checked_add(millis)
                .ok_or_else(|| error::invalid_expiry(command))?
        } else {
            millis
        };
        match u64::try_from(absolute) {
            Ok(deadline) if self.at.get() < deadline => {
                Ok(When::Deadline(Some(UnixMillis::new(deadline))))
            }
            _ => Ok(When::Past),
        }
    }

    fn check_len(&self, len: usize) -> Result<(), Error> {
        if self.store.config.value_bytes_max < len {
            return Err(error::too_long());
        }
        Ok(())
    }
}

/// Whether Redis would refuse the command when memory is full.
const fn may_grow(command: &Command) -> bool {
    matches!(
        command,
        Command::Write(
            WriteCommand::Set(_)
                | WriteCommand::CompareAndSet { .. }
                | WriteCommand::SetMany { .. }
                | WriteCommand::Append { .. }
                | WriteCommand::SetRange { .. }
                | WriteCommand::Increment { .. }
                | WriteCommand::IncrementFloat { .. }
                | WriteCommand::Copy { .. }
        )
    )
}

const _: () = assert!(Entry::bytes_for(0, 0, true) < BATCH_BYTES_MAX);

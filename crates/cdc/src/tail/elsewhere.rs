//! What this node's log holds no more, from other replicas (rule 15 of the design).
//!
//! A replica that was built from a snapshot has no log before it, and retention is each node's own:
//! what is gone here may be there. The asking is the node's ([`Origin::fetch`](crate::Origin::fetch));
//! here is when to ask, what to believe, and when to say that changes are missing: at once if
//! everybody has said so, and after the feed's patience if somebody who may have them cannot be
//! asked.

use std::time::Duration;

use flux_env::{Instant, boot_now, sleep};
use flux_log::LogEntry;
use flux_types::{LogIndex, Revision};
use tokio::sync::oneshot;

use super::{CdcError, FIRST, Progress, READ_BYTES, REPLACED, Read, Refused, Tail, before};
use crate::origin::{Fetched, Wanted};

/// Pause before others are asked again.
const PAUSE: Duration = Duration::from_millis(250);

/// Where a tail is with asking.
#[derive(Debug, Default)]
pub(super) struct Elsewhere {
    step: Step,
    /// How long to hope for nodes that cannot be asked.
    patience: Duration,
    /// Since when what comes next has not been had.
    missed_at: Option<Instant>,
}

#[derive(Debug, Default)]
enum Step {
    #[default]
    Idle,
    Asked(Wanted, oneshot::Receiver<Fetched>),
    Came(Fetched),
    /// Until then nobody is asked.
    Paused(Instant),
}

impl Tail {
    pub(crate) const fn with_patience(mut self, patience: Duration) -> Self {
        self.elsewhere.patience = patience;
        self
    }

    /// Whether what is to be read next is not in the log here.
    pub(super) fn is_elsewhere(&self) -> bool {
        !self.is_walking() && self.next < self.origin.log().oldest()
    }

    /// Whether it would ask if it may.
    pub(crate) fn wants_to_ask(&self) -> bool {
        matches!(self.elsewhere.step, Step::Idle) && self.is_elsewhere()
    }

    /// Whether it has asked, and not used the answer.
    pub(crate) const fn is_asking(&self) -> bool {
        matches!(self.elsewhere.step, Step::Asked(..) | Step::Came(_))
    }

    /// Returns once there is an answer, or time to ask. Safe to drop: an answer is kept.
    pub(super) async fn wait_for_others(&mut self, may_ask: bool) {
        loop {
            match &mut self.elsewhere.step {
                Step::Came(_) => return,
                Step::Asked(wanted, answer) => {
                    let fetched = answer.await.unwrap_or_default();
                    let wanted = *wanted;
                    self.elsewhere.step = Step::Came(self.believed(wanted, fetched));
                }
                Step::Idle if may_ask => {
                    let wanted = self.wanted(self.next, self.tellable_until().next());
                    let answer = self.origin.fetch(wanted);
                    self.elsewhere.step = Step::Asked(wanted, answer);
                }
                // Whoever else is asking ends this wait.
                Step::Idle => std::future::pending().await,
                Step::Paused(until) => {
                    sleep(until.saturating_since(boot_now())).await;
                    self.elsewhere.step = Step::Idle;
                    return;
                }
            }
        }
    }

    /// Reads what others gave, or says that nobody has what comes next.
    pub(super) async fn read_elsewhere(&mut self, prefix: &[u8]) -> Result<Read, CdcError> {
        let fetched = match std::mem::take(&mut self.elsewhere.step) {
            Step::Came(fetched) => fetched,
            step @ (Step::Idle | Step::Asked(..) | Step::Paused(_)) => {
                self.elsewhere.step = step;
                return Ok(Read::default());
            }
        };
        let first = fetched.entries.first().map(|entry| entry.id);
        let place = self.place.id;
        let follows = |first: &flux_log::LogId| {
            // Some of the entry of the place may be left, if it is still the one it was.
            let is_same = first.index == place.index && first.term == place.term;
            is_same || (first.index == place.index.next() && place.term <= first.term)
        };
        if first.as_ref().is_some_and(follows) {
            self.elsewhere.missed_at = None;
            return self.take(&fetched.entries, prefix);
        }
        let now = boot_now();
        let missed_at = *self.elsewhere.missed_at.get_or_insert(now);
        if !fetched.is_complete && now.saturating_since(missed_at) < self.elsewhere.patience {
            self.elsewhere.step = Step::Paused(now + PAUSE);
            return Ok(Read::default());
        }
        self.elsewhere.missed_at = None;
        match first {
            Some(first) if place.index < first.index => {
                // The gap is said before its first change: revisions are dense.
                self.place.id = before(first);
                self.is_unborn = false;
                self.take(&fetched.entries, prefix)
            }
            Some(_) | None => self.skip_gap().await,
        }
    }

    /// The rest of [`Tail::check`] for a place whose entry is not here.
    pub(super) async fn check_elsewhere(
        &self,
        place: Progress,
        patience: Duration,
    ) -> Result<Result<LogIndex, Refused>, CdcError> {
        let begun_at = boot_now();
        let is_unborn = self.is_birth(place) && place.revision == Revision::new(0);
        let (from, next) = (place.id.index.max(FIRST), place.id.index.next());
        loop {
            let fetched = self.ask(from, self.origin.log().oldest()).await;
            match fetched.entries.first().map(|first| first.id) {
                Some(first) if first.index == place.id.index => {
                    let is_same = first.term == place.id.term;
                    let refused = Err(Refused::Diverged(REPLACED));
                    return Ok(if is_same { Ok(first.index) } else { refused });
                }
                Some(first) if first.index == next => {
                    let before = self.before_facts(&fetched.entries)?;
                    if is_unborn || before.is_none_or(|before| before.revision <= place.revision) {
                        return Ok(Ok(next));
                    }
                }
                Some(_) | None => {}
            }
            if fetched.is_complete || patience <= boot_now().saturating_since(begun_at) {
                return Ok(Err(Refused::Compacted));
            }
            sleep(PAUSE).await;
        }
    }

    /// Asks others once for entries. Safe to drop.
    pub(super) async fn ask(&self, from: LogIndex, until: LogIndex) -> Fetched {
        let wanted = self.wanted(from, until);
        if wanted.until <= wanted.from {
            return Fetched {
                entries: Vec::new(),
                is_complete: true,
            };
        }
        let fetched = self.origin.fetch(wanted).await;
        self.believed(wanted, fetched.unwrap_or_default())
    }

    /// What to ask for: nothing that is here, and a bounded part of what is not.
    fn wanted(&self, from: LogIndex, until: LogIndex) -> Wanted {
        Wanted {
            from,
            until: until.min(self.origin.log().oldest()),
            bytes_max: READ_BYTES,
        }
    }

    /// What came, if it is what was asked for and can be of the history that goes on here.
    fn believed(&self, wanted: Wanted, fetched: Fetched) -> Fetched {
        if wanted.is_met_by(&fetched.entries) && self.connects(&fetched.entries) {
            return fetched;
        }
        tracing::warn!(shard = %self.shard, from = wanted.from.get(), "other nodes gave entries that do not fit this log");
        Fetched::default()
    }

    /// Whether the log here can follow entries: it knows at least the term of what it begins
    /// with, and often the id of what came before.
    fn connects(&self, entries: &[LogEntry]) -> bool {
        let Some(last) = entries.last().map(|entry| entry.id) else {
            return true;
        };
        let log = self.origin.log();
        let known = log
            .id_at(last.index)
            .or_else(|| log.history_id_at(last.index));
        let begins = log.history_id_at(log.oldest());
        known.is_none_or(|known| known == last)
            && begins.is_none_or(|begins| begins.index <= last.index || last.term <= begins.term)
    }
}

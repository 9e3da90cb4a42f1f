//! Writes with request ids: done once, and answered the same way again.
//!
//! A write is looked up in what the batch has decided and in the applied state. If it was done, it
//! is answered from there. If nothing says that it was, and the session is one of which nothing
//! can have been forgotten, it is carried out, and a fact of the same group says so. In every other
//! case it is not carried out and its outcome is called unknown.
//!
//! When may an unknown session begin? A session says when it began. A shard forgets one only after
//! it was idle for longer than the time in which a session may begin (`types::limits`, where
//! that is asserted), so one that may still begin was never forgotten.

use std::collections::BTreeMap;

use flux_types::limits::{
    REQUEST_BYTES_MAX, REQUEST_SESSION_AHEAD_MS, REQUEST_SESSION_BEGIN_MS, REQUEST_SESSION_IDLE_MS,
    REQUEST_SESSIONS_MAX, REQUEST_WINDOW,
};
use flux_types::{
    Error, Once, Outcome as Done, Reply, RequestId, RequestOutcome, SessionId, UnixMillis,
};

use super::{Evaluation, Outcome};
use crate::batch::FactRef;
use crate::error;
use crate::kept::Kept;
use crate::requests::{Requests, Session, cost_of_kept, cost_of_session};

/// What a batch has decided about requests.
#[derive(Debug, Default)]
pub(super) struct Asked {
    /// What is new in each session.
    sessions: BTreeMap<SessionId, Session>,
    /// Sessions that are new with this batch.
    begun: usize,
    /// About how many bytes more are kept.
    bytes: usize,
    /// Whether the batch forgets what has expired.
    forgets: bool,
}

/// What is known of a request.
enum Known {
    /// It was done, or it never will be.
    Decided(Kept),
    /// It was not done: it may be, and takes part in the session.
    Open,
    /// Nothing, and that cannot change.
    Forgotten(Error),
}

impl Evaluation<'_> {
    /// A write with a request id.
    pub(super) fn once(&mut self, once: &Once) -> Outcome {
        let request = once.request();
        match self.known(request)? {
            Known::Decided(kept) => self.answer_again(kept),
            Known::Forgotten(error) => Err(error),
            Known::Open => {
                self.check_room(request)?;
                let reply = self.reply(once.command());
                if let Reply::Error(error) = reply {
                    // It was not done, so it may be tried again.
                    return Err(error);
                }
                let revision = self.writer.last_revision();
                self.note(request, &Kept::encode_done(revision, &reply));
                self.answer_revision = Some(revision);
                Ok(reply)
            }
        }
    }

    /// What became of a write; if it was not done until now, it never will be.
    pub(super) fn query_outcome(&mut self, request: &RequestId) -> Outcome {
        let (outcome, reply) = match self.known(request)? {
            Known::Decided(Kept::NotDone) => (Done::NotDone, None),
            Known::Decided(Kept::Done { reply, .. }) => (Done::Done, reply),
            Known::Forgotten(_) => (Done::Unknown, None),
            Known::Open => {
                self.check_room(request)?;
                self.note(request, &Kept::encode_not_done());
                (Done::NotDone, None)
            }
        };
        Ok(Reply::Outcome(Box::new(RequestOutcome { outcome, reply })))
    }

    /// Forgets the sessions that have expired.
    pub(super) fn forget_sessions(&mut self) -> Reply {
        let expired = self.store.requests.lock().expired(self.at);
        if expired > 0 {
            self.asked.forgets = true;
            self.writer.push(FactRef::ForgetSessions { until: self.at });
        }
        Reply::Integer(i64::try_from(expired).unwrap_or(i64::MAX))
    }

    fn answer_again(&mut self, kept: Kept) -> Outcome {
        match kept {
            Kept::NotDone => Err(error::request_given_up()),
            Kept::Done { revision, reply } => {
                self.answer_revision = Some(revision);
                reply.ok_or_else(error::reply_not_kept)
            }
        }
    }

    fn known(&self, request: &RequestId) -> Result<Known, Error> {
        check_form(request)?;
        let id = request.session;
        let requests = self.store.requests.lock();
        let sessions = [
            self.asked.sessions.get(&id),
            self.stored_session(&requests, id),
        ];
        let known = || sessions.iter().flatten();
        let Some(lowest) = known().map(|session| session.lowest_unanswered()).max() else {
            return Ok(if may_begin(id, self.at) {
                Known::Open
            } else {
                Known::Forgotten(error::session_unknown(id, self.at))
            });
        };
        if request.sequence < lowest {
            return Ok(Known::Forgotten(error::request_below_window(lowest)));
        }
        let Some(kept) = known().find_map(|session| session.kept(request.sequence)) else {
            return Ok(Known::Open);
        };
        // What was applied was checked when it was read.
        Ok(Kept::parse(kept).map_or_else(
            || Known::Forgotten(error::request_below_window(lowest)),
            Known::Decided,
        ))
    }

    /// A session as applied, unless this batch forgets it.
    fn stored_session<'r>(&self, requests: &'r Requests, id: SessionId) -> Option<&'r Session> {
        let session = requests.session(id)?;
        let is_forgotten = self.asked.forgets && session.expires_at() <= self.at;
        (!is_forgotten).then_some(session)
    }

    /// Refuses what would make the table too large; the write is then not done.
    fn check_room(&self, request: &RequestId) -> Result<(), Error> {
        let requests = self.store.requests.lock();
        let begins = !self.asked.sessions.contains_key(&request.session)
            && requests.session(request.session).is_none();
        let sessions = requests.len() + self.asked.begun + usize::from(begins);
        let longest = cost_of_session() + cost_of_kept(&[]) + crate::kept::OUTCOME_BYTES_MAX;
        let bytes = requests.bytes() + self.asked.bytes + longest;
        if REQUEST_SESSIONS_MAX < sessions || REQUEST_BYTES_MAX < bytes {
            return Err(error::too_many_requests_kept());
        }
        Ok(())
    }

    /// What became of a request, as a fact and for the rest of the batch.
    fn note(&mut self, request: &RequestId, outcome: &[u8]) {
        let expires_at = self.at.checked_add(REQUEST_SESSION_IDLE_MS);
        let expires_at = expires_at.unwrap_or(UnixMillis::MAX);
        self.writer.push(FactRef::Request {
            request: *request,
            expires_at,
            outcome,
        });
        let id = request.session;
        if !self.asked.sessions.contains_key(&id) {
            let requests = self.store.requests.lock();
            if self.stored_session(&requests, id).is_none() {
                self.asked.begun += 1;
                self.asked.bytes += cost_of_session();
            }
        }
        let session = self.asked.sessions.entry(id);
        let session = session.or_insert_with(|| Session::new(1, expires_at));
        session.raise(request.lowest_unanswered);
        session.keep(request.sequence, outcome);
        self.asked.bytes += cost_of_kept(outcome);
    }
}

/// Whether a session that is not known was never known, so that it may begin.
fn may_begin(id: SessionId, now: UnixMillis) -> bool {
    let began = id.began_at();
    now.saturating_since(began) <= REQUEST_SESSION_BEGIN_MS
        && began.saturating_since(now) <= REQUEST_SESSION_AHEAD_MS
}

/// Refuses a request id that makes no sense.
fn check_form(request: &RequestId) -> Result<(), Error> {
    let RequestId {
        sequence,
        lowest_unanswered,
        ..
    } = *request;
    if lowest_unanswered == 0 || sequence < lowest_unanswered {
        return Err(error::request_out_of_order());
    }
    if REQUEST_WINDOW <= sequence - lowest_unanswered {
        return Err(error::request_above_window());
    }
    Ok(())
}

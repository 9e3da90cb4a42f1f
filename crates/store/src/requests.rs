//! What a shard knows of the writes that carry request ids: for each session a window of sequences,
//! and what became of each.
//!
//! It is replicated state: only facts change it, snapshots hold it, a clear spares it, and it is
//! never published. Facts about it are absolute and need no revision to be applied again: the
//! lowest unanswered sequence and the time of expiry only rise, and what became of a sequence is
//! said once. A session that was forgotten cannot come back, since it is then too old to begin
//! (see the evaluation), so replaying its facts and its end leaves nothing of it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use bytes::Bytes;
use flux_types::{RequestId, SessionId, UnixMillis};

use crate::batch::FactRef;
use crate::store::Store;

/// About what a session costs besides what is kept.
const SESSION_BYTES: usize = 192;
/// About what a kept outcome costs besides its bytes.
const KEPT_BYTES: usize = 64;

/// All sessions of a shard. One lock is enough: only the applier and the proposer come here. It is
/// taken last.
#[derive(Clone, Debug, Default)]
pub(crate) struct Requests {
    sessions: BTreeMap<SessionId, Session>,
    expiries: BTreeSet<(UnixMillis, SessionId)>,
    bytes: usize,
}

/// One client's session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Session {
    lowest_unanswered: u64,
    expires_at: UnixMillis,
    /// What became of each sequence, as [`crate::kept`] encodes it.
    kept: BTreeMap<u64, Bytes>,
    bytes: usize,
}

impl Session {
    /// A session of which nothing is kept.
    pub(crate) const fn new(lowest_unanswered: u64, expires_at: UnixMillis) -> Self {
        Self {
            lowest_unanswered,
            expires_at,
            kept: BTreeMap::new(),
            bytes: SESSION_BYTES,
        }
    }

    /// Below it everything is forgotten.
    pub(crate) const fn lowest_unanswered(&self) -> u64 {
        self.lowest_unanswered
    }

    pub(crate) const fn expires_at(&self) -> UnixMillis {
        self.expires_at
    }

    /// What became of a sequence.
    pub(crate) fn kept(&self, sequence: u64) -> Option<&Bytes> {
        self.kept.get(&sequence)
    }

    /// All sequences that something is kept of.
    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = (u64, &Bytes)> {
        self.kept.iter().map(|(sequence, kept)| (*sequence, kept))
    }

    /// Forgets what is below a sequence.
    pub(crate) fn raise(&mut self, lowest_unanswered: u64) {
        if lowest_unanswered <= self.lowest_unanswered {
            return;
        }
        self.lowest_unanswered = lowest_unanswered;
        while let Some(first) = self.kept.first_entry()
            && *first.key() < lowest_unanswered
        {
            self.bytes -= cost_of_kept(&first.remove());
        }
    }

    /// Keeps what became of a sequence, if it is not forgotten.
    pub(crate) fn keep(&mut self, sequence: u64, outcome: &[u8]) {
        if sequence < self.lowest_unanswered {
            return;
        }
        self.bytes += cost_of_kept(outcome);
        let outcome = Bytes::copy_from_slice(outcome);
        if let Some(replaced) = self.kept.insert(sequence, outcome) {
            self.bytes -= cost_of_kept(&replaced);
        }
    }
}

/// What one more session costs.
pub(crate) const fn cost_of_session() -> usize {
    SESSION_BYTES
}

/// What keeping an outcome costs.
pub(crate) const fn cost_of_kept(kept: &[u8]) -> usize {
    KEPT_BYTES + kept.len()
}

impl Requests {
    /// Makes a fact about requests true.
    pub(crate) fn apply(&mut self, fact: &FactRef<'_>) {
        if let FactRef::Request {
            request,
            expires_at,
            outcome,
        } = fact
        {
            self.note(request, *expires_at, outcome);
        } else if let FactRef::ForgetSessions { until } = fact {
            self.forget(*until);
        }
    }

    fn note(&mut self, request: &RequestId, expires_at: UnixMillis, outcome: &[u8]) {
        let mut session = self
            .take(request.session)
            .unwrap_or_else(|| Session::new(1, expires_at));
        session.expires_at = session.expires_at.max(expires_at);
        session.raise(request.lowest_unanswered);
        session.keep(request.sequence, outcome);
        self.put(request.session, session);
    }

    /// Removes a session from all books.
    fn take(&mut self, id: SessionId) -> Option<Session> {
        let session = self.sessions.remove(&id)?;
        self.expiries.remove(&(session.expires_at, id));
        self.bytes -= session.bytes;
        Some(session)
    }

    /// Puts a session in the place of what is there.
    pub(crate) fn put(&mut self, id: SessionId, session: Session) {
        self.take(id);
        self.bytes += session.bytes;
        self.expiries.insert((session.expires_at, id));
        self.sessions.insert(id, session);
    }

    fn forget(&mut self, until: UnixMillis) {
        while let Some(&(expires_at, id)) = self.expiries.first()
            && expires_at <= until
        {
            self.take(id);
        }
    }

    pub(crate) fn session(&self, id: SessionId) -> Option<&Session> {
        self.sessions.get(&id)
    }

    pub(crate) fn len(&self) -> usize {
        self.sessions.len()
    }

    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many sessions expire then or before.
    pub(crate) fn expired(&self, until: UnixMillis) -> usize {
        let expired = self.expiries.iter();
        expired
            .take_while(|(expires_at, _)| *expires_at <= until)
            .count()
    }

    /// The sessions behind one, in their order; all of them without one.
    pub(crate) fn after(
        &self,
        id: Option<SessionId>,
    ) -> impl Iterator<Item = (&SessionId, &Session)> {
        let from = id.map_or(Bound::Unbounded, Bound::Excluded);
        self.sessions.range((from, Bound::Unbounded))
    }
}

/// What the node asks about requests.
impl Store {
    /// How many sessions with request ids are known.
    #[must_use]
    pub fn request_sessions(&self) -> usize {
        self.requests.lock().len()
    }

    /// About how many bytes are kept of requests.
    #[must_use]
    pub fn request_bytes(&self) -> usize {
        self.requests.lock().bytes()
    }

    /// When the next session is to be forgotten, if there is any.
    #[must_use]
    pub fn next_session_expiry(&self) -> Option<UnixMillis> {
        let requests = self.requests.lock();
        let (expires_at, _) = requests.expiries.first()?;
        Some(*expires_at)
    }
}

//! Numbers for writes: request ids, so that a write may be sent again.
//!
//! A client draws a session from a node and counts its writes. It draws another before the first
//! is too old to begin in a shard that has not seen it, or when one slow write holds back the window.
//! Each write keeps its number, in its session, until its caller has an answer or gives up.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use flux_types::limits::{REQUEST_SESSION_BEGIN_MS, REQUEST_WINDOW};
use flux_types::{RequestId, SessionId};
use parking_lot::Mutex;
use tokio::time::Instant;

/// When a session is replaced: half of the time in which it may come to a shard for the first
/// time, so that what it numbered last still has the other half for its retries.
const AGE_MAX: Duration = Duration::from_millis(REQUEST_SESSION_BEGIN_MS / 2);

/// One session's books.
#[derive(Debug)]
pub(crate) struct Session {
    id: SessionId,
    drawn_at: Instant,
    books: Mutex<Books>,
}

#[derive(Debug)]
struct Books {
    next: u64,
    unanswered: BTreeSet<u64>,
}

impl Books {
    fn lowest(&self) -> u64 {
        self.unanswered.first().copied().unwrap_or(self.next)
    }
}

/// A write's number, which is given back when dropped.
#[derive(Debug)]
pub(crate) struct Ticket {
    session: Arc<Session>,
    sequence: u64,
}

impl Session {
    /// A session that a node has drawn just now.
    pub(crate) fn new(id: SessionId, drawn_at: Instant) -> Arc<Self> {
        Arc::new(Self {
            id,
            drawn_at,
            books: Mutex::new(Books {
                next: 1,
                unanswered: BTreeSet::new(),
            }),
        })
    }

    /// A number for one more write; `None` if it is time for another session.
    pub(crate) fn ticket(self: &Arc<Self>, now: Instant) -> Option<Ticket> {
        if AGE_MAX <= now.saturating_duration_since(self.drawn_at) {
            return None;
        }
        let mut books = self.books.lock();
        if REQUEST_WINDOW <= books.next - books.lowest() {
            return None;
        }
        let sequence = books.next;
        books.next += 1;
        books.unanswered.insert(sequence);
        drop(books);
        Some(Ticket {
            session: Arc::clone(self),
            sequence,
        })
    }
}

impl Ticket {
    /// The request id as it is now: what is answered meanwhile may be forgotten.
    pub(crate) fn request_id(&self) -> RequestId {
        RequestId {
            session: self.session.id,
            sequence: self.sequence,
            lowest_unanswered: self.session.books.lock().lowest(),
        }
    }

    /// Whether it is of this session.
    pub(crate) fn is_of(&self, session: &Arc<Session>) -> bool {
        Arc::ptr_eq(&self.session, session)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.session.books.lock().unanswered.remove(&self.sequence);
    }
}

#[cfg(test)]
mod tests {
    use flux_types::UnixMillis;

    use super::*;

    fn session(now: Instant) -> Arc<Session> {
        Session::new(SessionId::draw(UnixMillis::new(1), 1), now)
    }

    #[test]
    fn what_is_answered_raises_the_lowest_unanswered() {
        let now = Instant::now();
        let session = session(now);
        let numbers = |ticket: &Ticket| {
            let id = ticket.request_id();
            (id.sequence, id.lowest_unanswered)
        };
        let first = session.ticket(now).expect("young");
        let second = session.ticket(now).expect("young");
        let third = session.ticket(now).expect("young");
        assert_eq!(numbers(&third), (3, 1));
        drop(second);
        assert_eq!(numbers(&third), (3, 1));
        drop(first);
        assert_eq!(numbers(&third), (3, 3));
        drop(third);
        assert_eq!(numbers(&session.ticket(now).expect("young")), (4, 4));
    }

    #[test]
    fn a_session_that_is_old_or_held_back_by_a_slow_write_gives_no_more_numbers() {
        let now = Instant::now();
        let old = session(now);
        assert!(old.ticket(now + AGE_MAX).is_none());
        let session = session(now);
        let slow = session.ticket(now).expect("young");
        for _ in 1..REQUEST_WINDOW {
            drop(session.ticket(now).expect("within the window"));
        }
        assert!(session.ticket(now).is_none());
        drop(slow);
        assert!(session.ticket(now).is_some());
    }
}

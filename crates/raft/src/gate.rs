//! The lease gate: whether this replica may answer reads from its store without asking anyone.
//!
//! One atomic deadline per shard, in nanoseconds of the environment's boot clock, and the term that
//! it was granted in. A read is linearizable if the gate was open before it, and the clock, sampled
//! *after* the value was read, is still before the deadline of the *same* term: writes are
//! acknowledged only after they are applied here, the gate opens only once the leader's own no-op of
//! its term is applied, and until the deadline no other leader can exist. A lease of a later term says
//! nothing about what was read before it.
//!
//! A sole voter cannot be deposed, so its gate has no deadline; before a second voter is added the
//! gate is put back on deadlines ([`SoleForgotten`]), so that it never outlives the
//! certainty it stands on.
//!
//! Hot path: [`LeaseGate::lease`] is two loads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flux_env::Instant;
use flux_types::Term;
use flux_types::bug::{self, Bug};
use parking_lot::Mutex;

use crate::replica::Replica;

/// Closed: before every instant.
const CLOSED: u64 = 0;
/// Open without a deadline.
const ALWAYS: u64 = u64::MAX;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct LeaseGate {
    deadline_nanos: AtomicU64,
    /// The term of the deadline. Changed only while the gate is closed, so that whoever sees a new
    /// deadline sees its term.
    term: AtomicU64,
    /// Serializes who opens with who closes; never held across anything slow.
    control: Mutex<Control>,
}

#[derive(Debug, Default)]
struct Control {
    /// How many membership changes are under way: while any is, no voter counts as sole.
    changes: usize,
    /// In this term leadership was given away: the gate stays closed for the rest of it.
    handed_over: Option<Term>,
}

/// What is known about leadership when the gate is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Grant {
    /// Not the leader, or its own no-op is not applied yet.
    None,
    /// The leader of this term is the only voter.
    Sole(Term),
    /// The leader of this term, its quorum granted until the instant.
    Until(Term, Instant),
}

impl LeaseGate {
    /// The term whose lease is open at `now`. A value may be answered if this was the same before it
    /// was read and is for a `now` sampled after.
    pub(crate) fn lease(&self, now: Instant) -> Option<Term> {
        // The deadline first: one that is old comes with its own term or, too late, with a newer one,
        // which is not the one that the reader began with.
        let is_open = now.as_nanos() < self.deadline_nanos.load(Ordering::Acquire);
        is_open.then(|| Term::new(self.term.load(Ordering::Acquire)))
    }

    /// Sets the gate to what is known now.
    pub(crate) fn set(&self, grant: Grant) {
        let control = self.control.lock();
        let deadline = match grant {
            Grant::None => CLOSED,
            Grant::Sole(term) if control.handed_over == Some(term) => CLOSED,
            Grant::Until(term, _) if control.handed_over == Some(term) => CLOSED,
            Grant::Sole(_) if control.changes > 0 => CLOSED,
            Grant::Sole(_) => ALWAYS,
            Grant::Until(_, deadline) => deadline.as_nanos(),
        };
        if let Grant::Sole(term) | Grant::Until(term, _) = grant
            && self.term.load(Ordering::Relaxed) != term.get()
        {
            self.deadline_nanos.store(CLOSED, Ordering::Release);
            self.term.store(term.get(), Ordering::Release);
        }
        self.deadline_nanos.store(deadline, Ordering::Release);
    }

    /// Closes the gate at once.
    pub(crate) fn close(&self) {
        self.set(Grant::None);
    }

    /// Takes away the certainty of a sole voter; called before a membership change is proposed,
    /// and undone by [`LeaseGate::end_change`].
    fn begin_change(&self) {
        let mut control = self.control.lock();
        control.changes += 1;
        // A deadline of the time-based kind stays right; only "always" does not.
        if self.deadline_nanos.load(Ordering::Relaxed) == ALWAYS {
            self.deadline_nanos.store(CLOSED, Ordering::Release);
        }
    }

    fn end_change(&self) {
        self.control.lock().changes -= 1;
    }

    /// Closes the gate for the rest of a term whose leadership is being handed over.
    pub(crate) fn hand_over(&self, term: Term) {
        if !bug::is_on(Bug::GateReopened) {
            self.control.lock().handed_over = Some(term);
        }
        self.close();
    }
}

/// While it lives, the gate does not take this replica for a sole voter.
#[derive(Debug)]
pub(crate) struct SoleForgotten(Arc<Replica>);

impl SoleForgotten {
    pub(crate) fn new(replica: Arc<Replica>) -> Self {
        replica.gate.begin_change();
        Self(replica)
    }
}

impl Drop for SoleForgotten {
    fn drop(&mut self) {
        self.0.gate.end_change();
        // By now the effective membership shows what the change did, if it did anything.
        self.0.gate.set(self.0.grant());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERM: Term = Term::new(3);

    #[test]
    fn the_gate_closes_at_its_deadline() {
        let gate = LeaseGate::default();
        assert_eq!(gate.lease(Instant::from_nanos(0)), None);
        gate.set(Grant::Until(TERM, Instant::from_nanos(100)));
        assert!(gate.lease(Instant::from_nanos(99)).is_some());
        assert_eq!(gate.lease(Instant::from_nanos(100)), None);
    }

    #[test]
    fn a_sole_voter_loses_its_certainty_while_its_membership_changes() {
        let gate = LeaseGate::default();
        gate.set(Grant::Sole(TERM));
        assert!(gate.lease(Instant::from_nanos(u64::MAX - 1)).is_some());
        gate.begin_change();
        assert_eq!(gate.lease(Instant::from_nanos(1)), None);
        gate.set(Grant::Sole(TERM));
        assert_eq!(gate.lease(Instant::from_nanos(1)), None);
        gate.end_change();
        gate.set(Grant::Sole(TERM));
        assert!(gate.lease(Instant::from_nanos(1)).is_some());
    }

    #[test]
    fn after_a_hand_over_the_gate_stays_closed_for_the_rest_of_the_term() {
        let gate = LeaseGate::default();
        gate.hand_over(TERM);
        gate.set(Grant::Until(TERM, Instant::from_nanos(100)));
        assert_eq!(gate.lease(Instant::from_nanos(1)), None);
        gate.set(Grant::Until(Term::new(4), Instant::from_nanos(100)));
        assert!(gate.lease(Instant::from_nanos(1)).is_some());
    }

    #[test]
    fn a_lease_of_another_term_is_told_from_the_one_that_a_read_began_under() {
        let gate = LeaseGate::default();
        gate.set(Grant::Until(TERM, Instant::from_nanos(100)));
        let began = gate.lease(Instant::from_nanos(50));
        assert_eq!(began, Some(TERM));
        // Deposed, and leader again two terms later, while the reader stood still.
        gate.set(Grant::None);
        gate.set(Grant::Until(Term::new(5), Instant::from_nanos(900)));
        let ended = gate.lease(Instant::from_nanos(500));
        assert_eq!(ended, Some(Term::new(5)));
        assert_ne!(began, ended);
    }
}

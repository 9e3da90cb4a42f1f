//! Gathers operations as they are called and answered, and counts what came together.

use std::collections::BTreeMap;
use std::fmt;

use crate::operation::{Action, Operation, Outcome, Value};

/// Names an operation that has been called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OperationId(usize);

/// Notes calls and returns. Their order is the order of the calls to it: call [`Recorder::call`]
/// before the request leaves, and [`Recorder::finish`] after its answer has come. Several threads
/// share one behind a lock.
#[derive(Clone, Debug, Default)]
pub struct Recorder {
    operations: Vec<Operation>,
    events: u64,
}

impl Recorder {
    /// Nothing recorded yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            operations: Vec::new(),
            events: 0,
        }
    }

    fn next(&mut self) -> u64 {
        self.events += 1;
        self.events
    }

    /// A client is about to ask for something. Until it is finished its outcome is unknown.
    pub fn call(
        &mut self,
        client: u64,
        key: impl Into<Value>,
        action: Action,
        now_nanos: u64,
    ) -> OperationId {
        let called = self.next();
        self.operations.push(Operation {
            client,
            key: key.into(),
            action,
            outcome: Outcome::Unknown,
            called,
            returned: u64::MAX,
            called_nanos: now_nanos,
            returned_nanos: u64::MAX,
        });
        OperationId(self.operations.len() - 1)
    }

    /// The client has its answer, or has given up waiting ([`Outcome::Unknown`]).
    pub fn finish(&mut self, id: OperationId, outcome: Outcome, now_nanos: u64) {
        let returned = self.next();
        if let Some(operation) = self.operations.get_mut(id.0) {
            operation.outcome = outcome;
            operation.returned = returned;
            operation.returned_nanos = now_nanos;
        }
    }

    /// How many operations were called.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.operations.len()
    }

    /// Whether nothing was called.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    /// What came together. An operation without a return is open.
    #[must_use]
    pub fn history(self) -> History {
        History {
            operations: self.operations,
        }
    }
}

/// Operations of many clients, in the order of their calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    operations: Vec<Operation>,
}

impl History {
    /// Takes operations from anywhere.
    #[must_use]
    pub fn new(mut operations: Vec<Operation>) -> Self {
        operations.sort_by_key(|operation| operation.called);
        Self { operations }
    }

    /// The operations in the order of their calls.
    #[must_use]
    pub fn operations(&self) -> &[Operation] {
        &self.operations
    }

    /// The operations by key.
    pub(crate) fn by_key(&self) -> BTreeMap<&Value, Vec<&Operation>> {
        let mut keys: BTreeMap<&Value, Vec<&Operation>> = BTreeMap::new();
        for operation in &self.operations {
            keys.entry(&operation.key).or_default().push(operation);
        }
        keys
    }

    /// What is in it.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let mut summary = Summary::default();
        for operation in &self.operations {
            summary.called += 1;
            match &operation.outcome {
                Outcome::Unknown => summary.unknown += 1,
                Outcome::Failed => summary.failed += 1,
                Outcome::Value(Some(_)) => {
                    summary.completed += 1;
                    summary.values_read += 1;
                }
                Outcome::Value(None)
                | Outcome::Done
                | Outcome::Applied(_)
                | Outcome::Number(_)
                | Outcome::Torn(_) => summary.completed += 1,
            }
        }
        summary.overlapping = self.overlapping();
        summary
    }

    /// How many answered operations overlapped one of another client on their key, where one of the
    /// two was a write.
    fn overlapping(&self) -> usize {
        let is_answered = |operation: &&&Operation| {
            !matches!(operation.outcome, Outcome::Unknown | Outcome::Failed)
        };
        let mut count = 0;
        for (_, operations) in self.by_key() {
            let answered: Vec<&Operation> =
                operations.iter().filter(is_answered).copied().collect();
            let mut has_met = vec![false; answered.len()];
            // In the order of the calls: whoever is called before the return of one overlaps it.
            for (place, one) in answered.iter().enumerate() {
                let later = answered.iter().enumerate().skip(place + 1);
                for (other_place, other) in later.take_while(|(_, it)| it.called < one.returned) {
                    let meet = one.client != other.client
                        && (one.action.is_write() || other.action.is_write());
                    for place in [place, other_place] {
                        if let Some(has_met) = has_met.get_mut(place).filter(|_| meet) {
                            *has_met = true;
                        }
                    }
                }
            }
            count += has_met.iter().filter(|has_met| **has_met).count();
        }
        count
    }

    /// Whether enough happened for a verdict to mean something.
    ///
    /// # Errors
    /// What there was too little or too much of.
    pub fn meets(&self, demands: &Demands) -> Result<Summary, Vacuous> {
        let summary = self.summary();
        if summary.completed < demands.completed_min {
            return Err(Vacuous::Completed {
                completed: summary.completed,
                wanted: demands.completed_min,
            });
        }
        if summary.values_read < demands.values_read_min {
            return Err(Vacuous::ValuesRead {
                values_read: summary.values_read,
                wanted: demands.values_read_min,
            });
        }
        if summary.overlapping < demands.overlapping_min {
            return Err(Vacuous::Overlapping {
                overlapping: summary.overlapping,
                wanted: demands.overlapping_min,
            });
        }
        let allowed = summary.called * demands.unknown_percent_max / 100;
        if allowed < summary.unknown {
            return Err(Vacuous::Unknown {
                unknown: summary.unknown,
                allowed,
            });
        }
        Ok(summary)
    }
}

/// One operation a line, in the order of the calls.
impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut operations = self.operations.iter();
        operations.try_for_each(|operation| writeln!(f, "{operation}"))
    }
}

/// Counts of a history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Operations called.
    pub called: usize,
    /// Of them, answered with an outcome other than *not done* and *unknown*.
    pub completed: usize,
    /// Reads that found a value.
    pub values_read: usize,
    /// Answered operations that overlapped one of another client on their key, where one of the two
    /// was a write.
    pub overlapping: usize,
    /// Not done.
    pub failed: usize,
    /// Unknown.
    pub unknown: usize,
}

/// What a history must contain before its verdict counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demands {
    /// Completed operations.
    pub completed_min: usize,
    /// Reads that found a value.
    pub values_read_min: usize,
    /// Answered operations that overlapped one of another client on their key, where one of the two
    /// was a write: without them any order that was ever seen explains itself.
    pub overlapping_min: usize,
    /// Most operations with an unknown outcome, in percent of all.
    pub unknown_percent_max: usize,
}

impl Default for Demands {
    fn default() -> Self {
        Self {
            completed_min: 1000,
            values_read_min: 300,
            overlapping_min: 100,
            unknown_percent_max: 20,
        }
    }
}

/// Why a history proves nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Vacuous {
    /// Hardly anything was answered.
    #[error("{completed} operations completed, at least {wanted} are wanted")]
    Completed {
        /// Completed operations.
        completed: usize,
        /// How many it takes.
        wanted: usize,
    },
    /// Hardly any read found anything.
    #[error("{values_read} reads found a value, at least {wanted} are wanted")]
    ValuesRead {
        /// Reads that found a value.
        values_read: usize,
        /// How many it takes.
        wanted: usize,
    },
    /// Hardly any operations were under way at once on a key.
    #[error("{overlapping} operations overlapped on a key, at least {wanted} are wanted")]
    Overlapping {
        /// Operations that overlapped another's.
        overlapping: usize,
        /// How many it takes.
        wanted: usize,
    },
    /// Too much is allowed to have happened or not.
    #[error("{unknown} operations have an unknown outcome, at most {allowed} may")]
    Unknown {
        /// Operations with an unknown outcome.
        unknown: usize,
        /// How many may.
        allowed: usize,
    },
}

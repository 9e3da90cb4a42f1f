//! What clients saw, and whether one order explains it: histories and the linearizability checker.
//!
//! A [`Recorder`] notes when each operation was called and what it answered; [`check`] looks, key by
//! key, for one order of the operations that respects real time and explains every answer (Wing and
//! Gong 1993, with Lowe's memoization). An operation whose outcome nobody knows may have happened at
//! any time after its call, or never. What it must never do: call a history good because nothing
//! happened in it ([`Demands`]), or because the search was given up ([`Fault::Undecided`]).
//!
//! Pure: no clock, no runtime, no files. Instants come in as nanoseconds of any one clock.

mod check;
mod model;
mod operation;
mod record;
mod report;
mod search;

pub use check::{Checked, Fault, Options, check};
pub use operation::{Action, Operation, Outcome, Value};
pub use record::{Demands, History, OperationId, Recorder, Summary, Vacuous};
pub use report::Violation;

#[cfg(test)]
mod tests;

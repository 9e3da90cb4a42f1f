//! Says what is wrong with a history in as few operations as carry it.

use std::fmt;

use crate::check::{Options, search};
use crate::model::State;
use crate::operation::{Operation, Outcome, Shown};
use crate::search::Found;

/// Operations of one key that no order explains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// All operations of the key that can tell anything.
    pub operations: usize,
    /// The operation at whose return the contradiction became complete.
    pub last: Operation,
    /// Those that contradict one another, in the order of their calls: with any of the earliest left
    /// out, and whatever was there before, there would be an order.
    pub window: Vec<Operation>,
}

/// Steps that may be spent on making a report short.
const EXPLAIN_STEPS_MAX: u64 = 500_000;

/// Finds the window of a violation.
pub(crate) fn explain(operations: &[&Operation], options: &Options) -> Violation {
    let options = Options {
        steps_max: options.steps_max.min(EXPLAIN_STEPS_MAX),
        ..*options
    };
    let is_bad = |operations: &[Operation], begin| {
        matches!(search(operations, &options, begin).0, Found::None)
    };
    let mut returns: Vec<u64> = operations
        .iter()
        .filter(|operation| !operation.is_open())
        .map(|operation| operation.returned)
        .collect();
    returns.sort_unstable();
    // The first return up to which there is no order; up to the last there is none.
    let (mut good, mut bad) = (0, returns.len());
    while good + 1 < bad {
        let middle = usize::midpoint(good, bad);
        let until = returns.get(middle - 1).copied().unwrap_or(u64::MAX);
        if is_bad(&before(operations, until), State::ABSENT) {
            bad = middle;
        } else {
            good = middle;
        }
    }
    let until = returns.get(bad.saturating_sub(1)).copied().unwrap_or(0);
    let prefix = before(operations, until);
    let last = prefix
        .iter()
        .find(|operation| operation.returned == until)
        .or_else(|| prefix.last());
    let last = last.cloned().unwrap_or_else(|| missing(operations));
    // As many of the earliest as can go, whatever they left behind.
    let (mut kept, mut lost) = (0, returns.len());
    while kept + 1 < lost {
        let middle = usize::midpoint(kept, lost);
        let from = returns.get(middle - 1).copied().unwrap_or(0);
        if is_bad(&after(&prefix, from), State::ANY) {
            kept = middle;
        } else {
            lost = middle;
        }
    }
    let from = kept
        .checked_sub(1)
        .and_then(|at| returns.get(at).copied())
        .unwrap_or(0);
    let window = if is_bad(&after(&prefix, from), State::ANY) {
        after(&prefix, from)
    } else {
        prefix
    };
    Violation {
        operations: operations.len(),
        last,
        window: trimmed(window, &is_bad),
    }
}

/// Without what does not carry the contradiction; for small windows only.
fn trimmed(
    mut window: Vec<Operation>,
    is_bad: &impl Fn(&[Operation], State) -> bool,
) -> Vec<Operation> {
    const TRIMMED_MAX: usize = 64;
    if TRIMMED_MAX < window.len() || !is_bad(&window, State::ANY) {
        return window;
    }
    // An open operation that is not needed only confuses. One with an answer stays: without it the
    // reader could not see why the others had to be as they were.
    let mut at = 0;
    while let Some(operation) = window.get(at) {
        if operation.is_open() {
            let mut without = window.clone();
            without.remove(at);
            if is_bad(&without, State::ANY) {
                window = without;
                continue;
            }
        }
        at += 1;
    }
    window
}

fn missing(operations: &[&Operation]) -> Operation {
    let first = operations.first().map(|operation| (*operation).clone());
    first.unwrap_or_else(|| Operation {
        client: 0,
        key: [].into(),
        action: crate::Action::Get,
        outcome: Outcome::Unknown,
        called: 0,
        returned: u64::MAX,
        called_nanos: 0,
        returned_nanos: u64::MAX,
    })
}

/// What was known when the return at this place had come: later returns are still open.
fn before(operations: &[&Operation], until: u64) -> Vec<Operation> {
    let called = operations
        .iter()
        .filter(|operation| operation.called < until)
        .map(|operation| (*operation).clone());
    called
        .filter_map(|mut operation| {
            if until < operation.returned && !operation.is_open() {
                if !operation.action.is_write() {
                    return None;
                }
                operation.outcome = Outcome::Unknown;
                operation.returned = u64::MAX;
                operation.returned_nanos = u64::MAX;
            }
            Some(operation)
        })
        .collect()
}

/// Without what had returned by this place.
fn after(operations: &[Operation], from: u64) -> Vec<Operation> {
    operations
        .iter()
        .filter(|operation| operation.is_open() || from < operation.returned)
        .cloned()
        .collect()
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "key {}: of its {} operations these {} cannot be put in order, whatever was there before; \
             complete with the return of #{}:",
            Shown(&self.last.key),
            self.operations,
            self.window.len(),
            self.last.called
        )?;
        for operation in &self.window {
            let mark = if operation.called == self.last.called {
                "=>"
            } else {
                "  "
            };
            writeln!(f, "{mark} {operation}")?;
        }
        Ok(())
    }
}

//! Judges a history, key by key.

use crate::model::{Model, State};
use crate::operation::{Operation, Outcome};
use crate::record::History;
use crate::report::{self, Violation};
use crate::search::{Found, Search};

/// Settings of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Steps of the search per key after which it is given up.
    pub steps_max: u64,
    /// How far any clock that decides about expiry may be from the recorder's, in nanoseconds.
    pub clock_error_nanos: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            steps_max: 20_000_000,
            clock_error_nanos: 0,
        }
    }
}

/// What was found good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Keys.
    pub keys: usize,
    /// Operations that were put in order.
    pub operations: usize,
    /// Steps of the search.
    pub steps: u64,
}

/// Why a history is not known to be good.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// No order explains the answers.
    #[error("not linearizable: {0}")]
    Violation(Box<Violation>),
    /// The search took too long: nothing is known.
    #[error("undecided after {steps} steps over the {operations} operations of key {key:?}")]
    Undecided {
        /// The key.
        key: String,
        /// Its operations.
        operations: usize,
        /// Steps taken.
        steps: u64,
    },
}

/// Looks for an order of each key's operations that explains every answer.
///
/// # Errors
/// See [`Fault`].
pub fn check(history: &History, options: &Options) -> Result<Checked, Fault> {
    let mut checked = Checked::default();
    for (key, operations) in history.by_key() {
        let operations = relevant(&operations);
        let (found, steps) = search(&operations, options, State::ABSENT);
        checked.keys += 1;
        checked.operations += operations.len();
        checked.steps += steps;
        match found {
            Found::Order => {}
            Found::None => {
                let violation = report::explain(&operations, options);
                return Err(Fault::Violation(Box::new(violation)));
            }
            Found::GivenUp => {
                return Err(Fault::Undecided {
                    key: String::from_utf8_lossy(key).into_owned(),
                    operations: operations.len(),
                    steps,
                });
            }
        }
    }
    Ok(checked)
}

/// What can tell anything: not what never happened, nor reads without an answer.
fn relevant<'a>(operations: &[&'a Operation]) -> Vec<&'a Operation> {
    let tells = |operation: &&&Operation| match operation.outcome {
        Outcome::Failed => false,
        Outcome::Unknown => operation.action.is_write(),
        Outcome::Value(_)
        | Outcome::Done
        | Outcome::Applied(_)
        | Outcome::Number(_)
        | Outcome::Torn(_) => true,
    };
    operations.iter().filter(tells).copied().collect()
}

/// Searches the operations of one key; also the number of steps.
pub(crate) fn search<O: std::borrow::Borrow<Operation>>(
    operations: &[O],
    options: &Options,
    begin: State,
) -> (Found, u64) {
    let mut model = Model::new(options.clock_error_nanos);
    let events: Vec<_> = operations
        .iter()
        .map(|operation| model.event(operation.borrow()))
        .collect();
    let mut search = Search::new(&model, &events, options.steps_max);
    let found = search.run(begin);
    (found, search.steps)
}

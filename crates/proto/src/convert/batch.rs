//! Batches: many calls in one message, each with its own result.

use flux_types::{Answer, Command, Error};

use super::{Asked, Call, InvalidField, Limits};
use crate::kv::operation::Operation as Given;
use crate::kv::operation_result::Result as Outcome;
use crate::kv::{self, Operation, OperationResult};
use crate::status;

/// Most operations of one batch.
pub const OPERATIONS_MAX: usize = flux_types::limits::BATCH_OPERATIONS_MAX;

/// An operation on its way: which call it was, and what its result shall hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planned {
    call: Which,
    asked: Asked,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    Get,
    Set,
    Delete,
    CompareAndSet,
    Increment,
    Expire,
}

/// The command of one operation, and how to answer it.
///
/// # Errors
/// If the operation is empty or one of its fields cannot be used. The field's path begins within
/// the operation.
pub fn plan_operation(
    operation: Operation,
    limits: Limits,
) -> Result<(Command, Planned), InvalidField> {
    let Some(given) = operation.operation else {
        return Err(InvalidField::new("operation", "must be there"));
    };
    let (call, name, planned) = match given {
        Given::Get(request) => (Which::Get, "get", request.command(limits)),
        Given::Set(request) => (Which::Set, "set", request.command(limits)),
        Given::Delete(request) => (Which::Delete, "delete", request.command(limits)),
        Given::CompareAndSet(request) => (
            Which::CompareAndSet,
            "compare_and_set",
            request.command(limits),
        ),
        Given::Increment(request) => (Which::Increment, "increment", request.command(limits)),
        Given::Expire(request) => (Which::Expire, "expire", request.command(limits)),
    };
    let (command, asked) = planned.map_err(|invalid| invalid.within(name))?;
    Ok((command, Planned { call, asked }))
}

impl Planned {
    /// Whether the replica of the node that is asked answers it.
    #[must_use]
    pub const fn is_stale(self) -> bool {
        self.asked.stale
    }

    /// The result of the operation.
    #[must_use]
    pub fn result(self, answer: Answer) -> OperationResult {
        fn response<C: Call>(asked: Asked, answer: Answer) -> Result<C::Response, Error> {
            C::response(asked, answer)
        }
        let asked = self.asked;
        let result = match self.call {
            Which::Get => response::<kv::GetRequest>(asked, answer).map(Outcome::Get),
            Which::Set => response::<kv::SetRequest>(asked, answer).map(Outcome::Set),
            Which::Delete => response::<kv::DeleteRequest>(asked, answer).map(Outcome::Delete),
            Which::CompareAndSet => {
                response::<kv::CompareAndSetRequest>(asked, answer).map(Outcome::CompareAndSet)
            }
            Which::Increment => {
                response::<kv::IncrementRequest>(asked, answer).map(Outcome::Increment)
            }
            Which::Expire => response::<kv::ExpireRequest>(asked, answer).map(Outcome::Expire),
        };
        result.map_or_else(|error| OperationResult::from(&error), OperationResult::from)
    }
}

impl From<Outcome> for OperationResult {
    fn from(outcome: Outcome) -> Self {
        Self {
            result: Some(outcome),
        }
    }
}

impl From<&Error> for OperationResult {
    fn from(error: &Error) -> Self {
        Outcome::Error(status::from_error(error)).into()
    }
}

impl From<&InvalidField> for OperationResult {
    fn from(invalid: &InvalidField) -> Self {
        Outcome::Error(status::from_invalid_field(invalid)).into()
    }
}

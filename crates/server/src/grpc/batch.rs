//! Batch: many operations in one call, each with its own result.
//!
//! Operations are independent, so writes go to all shards at once, together for each shard, and
//! reads beside them. Reads are run a few at a time and no further once the response is full:
//! thousands of short requests for long values would otherwise be answered from memory that
//! nobody bounds.

use flux_env::Instant;
use flux_proto::convert::{Limits, Planned, plan_operation};
use flux_proto::kv::{Operation, OperationResult};
use flux_types::{Answer, Command, Error, ErrorCode, Outcome};
use futures_util::future::{join, join_all};
use prost::Message as _;

use super::KvApi;
use crate::execute::Execute;
use crate::groups::{Asked, Group, groups};
use crate::metrics::{CommandCount, Protocol};

/// Reads that are run together.
const READS_TOGETHER: usize = 32;
/// What an operation's result costs in a message beyond its own bytes: tag and length.
const RESULT_OVERHEAD_BYTES: usize = 8;
/// What the error costs that takes the place of a result without room.
const ERROR_BYTES: usize = 192;

/// The operations of one call.
pub(super) struct Batch {
    results: Vec<Option<OperationResult>>,
    reads: Vec<Item>,
    /// Reads that this node's own replicas answer.
    stale: Vec<Item>,
    writes: Vec<Item>,
}

/// An operation that is to be run.
struct Item {
    /// Where its result goes.
    index: usize,
    command: Command,
    planned: Planned,
}

/// What an operation's result needs while its command is under way.
#[derive(Clone, Copy, Debug)]
struct Ticket {
    index: usize,
    planned: Planned,
    counted: CommandCount,
}

impl Batch {
    /// Sorts operations into reads and writes. One that cannot be used fails alone. `is_stale`: so
    /// are all reads.
    pub(super) fn plan(operations: Vec<Operation>, limits: Limits, is_stale: bool) -> Self {
        let mut batch = Self {
            results: Vec::with_capacity(operations.len()),
            reads: Vec::new(),
            stale: Vec::new(),
            writes: Vec::new(),
        };
        for (index, operation) in operations.into_iter().enumerate() {
            let (command, planned) = match plan_operation(operation, limits) {
                Ok(planned) => planned,
                Err(invalid) => {
                    batch.results.push(Some(OperationResult::from(&invalid)));
                    continue;
                }
            };
            batch.results.push(None);
            let items = if command.is_write() {
                &mut batch.writes
            } else if is_stale || planned.is_stale() {
                &mut batch.stale
            } else {
                &mut batch.reads
            };
            items.push(Item {
                index,
                command,
                planned,
            });
        }
        batch
    }

    /// Runs the operations. One result for each, in order.
    pub(super) async fn run<E: Execute>(
        mut self,
        api: &KvApi<E>,
        deadline: Instant,
    ) -> Vec<OperationResult> {
        let reads = std::mem::take(&mut self.reads);
        let writes = std::mem::take(&mut self.writes);
        let written = async {
            let asked = writes
                .into_iter()
                .map(|item| asked(item, deadline))
                .collect();
            let groups = groups(asked, |command| api.executor.shard(command));
            join_all(groups.into_iter().map(|group| run_group(api, group))).await
        };
        let (mut read, written) = join(run_reads(api, reads, deadline), written).await;
        read.extend(run_stale(api, std::mem::take(&mut self.stale)));
        let mut room = Room::new(api.message_bytes_max, self.results.len());
        for refused in self.results.iter_mut().flatten() {
            let result = std::mem::take(refused);
            *refused = room.take(result, Outcome::NotDone);
        }
        // Writes first: what they did must be told even if values of reads fill the message.
        for (index, result) in written.into_iter().flatten() {
            let result = room.take(result, Outcome::Done);
            self.put(index, result);
        }
        for (index, result) in read {
            let result = room.take(result, Outcome::NotDone);
            self.put(index, result);
        }
        self.results
            .into_iter()
            .map(|result| result.unwrap_or_else(|| OperationResult::from(&lost())))
            .collect()
    }

    fn put(&mut self, index: usize, result: OperationResult) {
        if let Some(place) = self.results.get_mut(index) {
            *place = Some(result);
        }
    }
}

fn asked(item: Item, deadline: Instant) -> Asked<Ticket> {
    Asked {
        ticket: Ticket {
            index: item.index,
            planned: item.planned,
            counted: CommandCount::of(&item.command),
        },
        command: item.command,
        deadline,
    }
}

/// Runs reads a few at a time, until their results no longer fit into a message.
async fn run_reads<E: Execute>(
    api: &KvApi<E>,
    reads: Vec<Item>,
    deadline: Instant,
) -> Vec<(usize, OperationResult)> {
    let mut results = Vec::with_capacity(reads.len());
    let mut bytes = 0;
    let bytes_max = api.message_bytes_max;
    let mut reads = reads.into_iter().peekable();
    while reads.peek().is_some() {
        if bytes >= bytes_max {
            let unread = reads.map(|item| (item.index, too_long(Outcome::NotDone)));
            results.extend(unread);
            break;
        }
        let some = reads.by_ref().take(READS_TOGETHER);
        let some = some.map(|item| asked(item, deadline)).collect();
        // Each shard's reads are a group; all of them together are few.
        for group in groups(some, |command| api.executor.shard(command)) {
            let read = run_group(api, group).await;
            bytes += read.iter().map(|(_, result)| cost(result)).sum::<usize>();
            results.extend(read);
        }
    }
    results
}

/// Answers reads from this node's own replicas, until their results no longer fit into a message.
fn run_stale<E: Execute>(api: &KvApi<E>, reads: Vec<Item>) -> Vec<(usize, OperationResult)> {
    let mut bytes = 0;
    let results = reads.into_iter().map(|item| {
        if bytes >= api.message_bytes_max {
            return (item.index, too_long(Outcome::NotDone));
        }
        let result = item.planned.result(api.read_stale(item.command));
        bytes += cost(&result);
        (item.index, result)
    });
    results.collect()
}

async fn run_group<E: Execute>(
    api: &KvApi<E>,
    group: Group<Ticket>,
) -> Vec<(usize, OperationResult)> {
    let begun = api.clock.now();
    let answers = api.executor.execute_all(group.commands, group.deadline);
    let answers = answers.await;
    let took = api.clock.now().saturating_since(begun);
    let result = |(ticket, answer): (Ticket, Answer)| {
        api.metrics.latency(Protocol::Grpc, ticket.counted, took);
        api.metrics.command(ticket.counted, &answer.reply);
        (ticket.index, ticket.planned.result(answer))
    };
    group.tickets.into_iter().zip(answers).map(result).collect()
}

/// What is left of a response, when every operation has what an error takes.
struct Room {
    bytes: usize,
}

impl Room {
    fn new(message_bytes_max: usize, operations: usize) -> Self {
        let errors = operations.saturating_mul(ERROR_BYTES);
        Self {
            bytes: message_bytes_max.saturating_sub(errors),
        }
    }

    /// The result, or in its place an error that says what became of the operation, so that the
    /// others arrive.
    fn take(&mut self, result: OperationResult, outcome: Outcome) -> OperationResult {
        match self
            .bytes
            .checked_sub(cost(&result).saturating_sub(ERROR_BYTES))
        {
            Some(left) => {
                self.bytes = left;
                result
            }
            None => too_long(outcome),
        }
    }
}

fn cost(result: &OperationResult) -> usize {
    result.encoded_len() + RESULT_OVERHEAD_BYTES
}

fn too_long(outcome: Outcome) -> OperationResult {
    OperationResult::from(&Error {
        code: ErrorCode::TooLarge,
        message: "no room is left in the response".into(),
        outcome,
    })
}

/// An executor gives one answer for each command; without one nothing is known.
fn lost() -> Error {
    Error::unknown(ErrorCode::Internal, "the operation was not answered")
}

#[cfg(test)]
mod tests {
    use flux_proto::kv::operation_result::Result as Done;
    use flux_proto::kv::{GetResponse, OperationResult};
    use flux_proto::status::flux_error;
    use flux_types::Outcome;

    use super::{ERROR_BYTES, Room, cost};

    #[test]
    fn a_result_that_does_not_fit_is_replaced_and_says_what_was_done() {
        let get = |size: usize| {
            OperationResult::from(Done::Get(GetResponse {
                value: vec![b'x'; size].into(),
                found: true,
                ..GetResponse::default()
            }))
        };
        let mut room = Room::new(500 + ERROR_BYTES, 1);
        assert_eq!(room.take(get(10), Outcome::NotDone), get(10));
        for (outcome, word) in [(Outcome::NotDone, "not-done"), (Outcome::Done, "done")] {
            let Some(Done::Error(status)) = room.take(get(1000), outcome).result else {
                panic!("it does not fit");
            };
            assert_eq!(flux_error(&status).unwrap().outcome, word);
            let error = OperationResult::from(Done::Error(status));
            assert!(cost(&error) <= ERROR_BYTES, "{}", cost(&error));
        }
        assert_eq!(room.take(get(600), Outcome::NotDone), get(600));
    }
}

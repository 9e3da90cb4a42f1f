//! The seam between protocols and the execution of commands: sessions need no more than this, and
//! their tests put an executor in its place that answers when the test wants.

use std::fmt;
use std::future::Future;

use flux_env::Instant;
use flux_types::{Answer, Command, ShardId};

/// Runs commands on whatever shards they concern.
pub(crate) trait Execute: Clone + fmt::Debug + Send + Sync + 'static {
    /// Runs one command. Answers at the latest shortly after `deadline`; an answer after that says
    /// whether the command was done.
    ///
    /// # Cancellation
    /// The command may run all the same.
    fn execute(
        &self,
        command: Command,
        deadline: Instant,
    ) -> impl Future<Output = Answer> + Send + 'static;

    /// Runs commands as one pipeline: each sees what those before it did, as far as they concern
    /// one shard. One answer for each, in order, all together.
    ///
    /// # Cancellation
    /// The commands may run all the same.
    fn execute_all(
        &self,
        commands: Vec<Command>,
        deadline: Instant,
    ) -> impl Future<Output = Vec<Answer>> + Send + 'static;

    /// Answers a read from what this node's replicas have applied, without asking anybody: what it
    /// tells was true once.
    fn read_stale(&self, command: Command) -> Answer;

    /// The shard that the command concerns, if it is known to be only one.
    fn shard(&self, command: &Command) -> Option<ShardId>;
}

#[cfg(test)]
pub(crate) mod memory;

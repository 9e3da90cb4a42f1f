//! The seam between protocols and the execution of commands: sessions need no more than this, and
//! their tests put an executor in its place that answers when the test wants.

use std::fmt;
use std::future::Future;

use flux_env::Instant;
use flux_types::{Answer, Command};

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
}

#[cfg(test)]
pub(crate) mod memory;

//! The subcommands, one file each.

pub(crate) mod admin;
#[cfg(feature = "rabbitmq")]
pub(crate) mod cdc_consumer;
#[cfg(not(feature = "rabbitmq"))]
#[path = "no_cdc_consumer.rs"]
pub(crate) mod cdc_consumer;
pub(crate) mod cli;
pub(crate) mod config;
pub(crate) mod health;
pub(crate) mod log;
pub(crate) mod register;
mod reload;
pub(crate) mod run;
pub(crate) mod trial;

use tokio::runtime::{Builder, Runtime};

use crate::Failure;

/// A runtime on this thread, for commands that wait for little.
///
/// # Errors
/// When the system refuses what it needs.
pub(crate) fn runtime() -> Result<Runtime, Failure> {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Failed(format!("the runtime: {error}")))
}

/// The innermost reason, which is what a person can do something about.
pub(crate) fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// Runs a program to its end, and does not wait for what still blocks a thread then: such as looking
/// up the name of a machine that is gone, which takes seconds and matters to nobody any more.
pub(crate) fn finish<T>(runtime: Runtime, program: impl Future<Output = T>) -> T {
    let output = runtime.block_on(program);
    runtime.shutdown_background();
    output
}

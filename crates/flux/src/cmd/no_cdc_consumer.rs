//! `flux cdc-consumer` in a program that was built without RabbitMQ: it says so.

use clap::Command;

use crate::Failure;

/// The subcommand.
pub(crate) fn command() -> Command {
    Command::new("cdc-consumer").about("Follow changes through RabbitMQ (not part of this build)")
}

/// Says what is missing.
///
/// # Errors
/// Always.
pub(crate) fn run(_: &clap::ArgMatches) -> Result<(), Failure> {
    Err(Failure::Mistake(
        "cdc-consumer: this flux was built without RabbitMQ (feature rabbitmq)".to_owned(),
    ))
}

//! Commands about the node, answered to any session of any protocol: TIME, ROLE, WAIT, COMMAND,
//! CONFIG, INFO, MEMORY.

use bytes::Bytes;
use flux_types::{Error, ErrorCode};
use flux_wire::number::parse_u64;
use flux_wire::resp::{SessionCommand, Writer, error, introspect};

use super::{info, parameters};
use crate::context::Context;

/// Answers a command about the node; writes nothing if it fails.
///
/// # Errors
/// If the command is not about the node, or its arguments are wrong.
pub(crate) fn answer(
    node: &Context,
    command: SessionCommand,
    arguments: &[Bytes],
    writer: &mut Writer<'_>,
) -> Result<(), Error> {
    use SessionCommand as C;
    if introspect::answer(command, arguments, writer) {
        return Ok(());
    }
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "all others are about a connection or a key"
    )]
    match command {
        C::ConfigGet => parameters::get(node, arguments, writer),
        C::ConfigSet => parameters::set(node, arguments, writer)?,
        C::ConfigResetStat => writer.ok(),
        C::ConfigRewrite => {
            return Err(Error::not_done(
                ErrorCode::Invalid,
                "The server is running without a config file",
            ));
        }
        C::ConfigHelp => introspect::help("config", writer),
        C::Info => writer.verbatim(&info::render(node, arguments)),
        C::Time => time(node, writer),
        C::Role => {
            writer.array(3);
            writer.bulk(b"master");
            writer.integer(0);
            writer.array(0);
        }
        C::Wait => wait(arguments, writer)?,
        C::Lolwut => {
            let text = format!("Flux-KV ver. {}\n", env!("CARGO_PKG_VERSION"));
            writer.verbatim(&text);
        }
        C::MemoryDoctor => {
            writer.verbatim("No issue detected: memory is what the entries take.");
        }
        C::MemoryStats => memory_stats(node, writer),
        C::MemoryHelp => introspect::help("memory", writer),
        C::ObjectHelp => introspect::help("object", writer),
        C::DebugHelp => introspect::help("debug", writer),
        _ => {
            return Err(Error::not_done(
                ErrorCode::UnknownCommand,
                "the command is not available here",
            ));
        }
    }
    Ok(())
}

fn time(node: &Context, writer: &mut Writer<'_>) {
    let millis = node.now_millis();
    let (seconds, micros) = (millis / 1000, millis % 1000 * 1000);
    writer.array(2);
    writer.bulk(seconds.to_string().as_bytes());
    writer.bulk(micros.to_string().as_bytes());
}

/// A write is answered when it is on a quorum already, so there is nothing to wait for: the number
/// of further replicas is the answer.
fn wait(arguments: &[Bytes], writer: &mut Writer<'_>) -> Result<(), Error> {
    for argument in arguments {
        parse_u64(argument).ok_or_else(error::not_an_integer)?;
    }
    writer.integer(0);
    Ok(())
}

fn memory_stats(node: &Context, writer: &mut Writer<'_>) {
    let stats = info::Stats::collect(node);
    writer.map(3);
    for (key, value) in [
        ("total.allocated", stats.resident_bytes),
        ("dataset.bytes", stats.data_bytes),
        ("keys.count", stats.keys),
    ] {
        writer.bulk(key.as_bytes());
        writer.integer(i64::try_from(value).unwrap_or(i64::MAX));
    }
}

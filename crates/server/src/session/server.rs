//! Commands about the node, answered to any session of any protocol: TIME, ROLE, WAIT, COMMAND,
//! CONFIG, INFO, MEMORY.

use bytes::Bytes;
use flux_types::{Error, ErrorCode, SessionId};
use flux_wire::number::{parse_i64, parse_u64};
use flux_wire::resp::{SessionCommand, Writer, error, introspect};

use super::connection::timeout_millis;
use super::{cluster, info, parameters};
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
    if introspect::answer(command, arguments, writer)
        || cluster::answer(node, None, command, arguments, writer)
    {
        return Ok(());
    }
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "all others are about a connection or a key"
    )]
    match command {
        C::ConfigGet => parameters::get(node, arguments, writer),
        C::ConfigSet => parameters::set(node, arguments, writer)?,
        C::ConfigResetStat => {
            node.statistics.reset(&info::counted(node));
            writer.ok();
        }
        C::ConfigRewrite => {
            return Err(Error::not_done(
                ErrorCode::Invalid,
                "The server is running without a config file",
            ));
        }
        C::ConfigHelp => introspect::help("config", writer),
        C::Info => writer.verbatim(&info::render(node, arguments)),
        C::Time => time(node, writer),
        C::FluxSession => flux_session(node, writer)?,
        C::Role => {
            writer.array(3);
            writer.bulk(b"master");
            writer.integer(0);
            writer.array(0);
        }
        C::Wait => wait(arguments, writer)?,
        C::Lolwut => {
            if let [option, version, ..] = arguments
                && option.eq_ignore_ascii_case(b"version")
            {
                parse_i64(version).ok_or_else(error::not_an_integer)?;
            }
            let text = format!("Flux-KV ver. {}\n", env!("CARGO_PKG_VERSION"));
            writer.verbatim(&text);
        }
        C::MemoryDoctor => {
            writer.verbatim("No issue detected: memory is what the entries take.");
        }
        C::MemoryStats => memory_stats(node, writer),
        C::SlowLogGet => slow_log(node, arguments, writer)?,
        C::SlowLogLen => writer.integer(size(node.statistics.slow_turn_count())),
        C::SlowLogReset => {
            node.statistics.forget_slow_turns();
            writer.ok();
        }
        C::SlowLogHelp => introspect::help("slowlog", writer),
        // There is no latency monitor: `/metrics` has histograms of every command's latency.
        C::LatencyLatest | C::LatencyHistory => writer.array(0),
        C::LatencyReset => writer.integer(0),
        C::LatencyHelp => introspect::help("latency", writer),
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

fn size(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// FLUX.SESSION: a session that begins now, by the clock that shards judge it with.
fn flux_session(node: &Context, writer: &mut Writer<'_>) -> Result<(), Error> {
    let draw = || flux_env::entropy_u64().map(u128::from);
    let random = draw().and_then(|high| Ok((high << 64) | draw()?));
    let random = random
        .map_err(|error| Error::not_done(ErrorCode::Internal, format!("no entropy: {error}")))?;
    let now = node.home.shards().first().map(flux_raft::Shard::now);
    let session = SessionId::draw(now.unwrap_or_default(), random);
    writer.bulk(session.to_string().as_bytes());
    Ok(())
}

/// SLOWLOG GET: ten entries, or as many as asked for; -1 means all. What stands where Redis shows
/// arguments is the command's name, and how many commands the turn had that took so long.
fn slow_log(node: &Context, arguments: &[Bytes], writer: &mut Writer<'_>) -> Result<(), Error> {
    const SHOWN: usize = 10;
    let count = match arguments {
        [] => SHOWN,
        [count] if &**count == b"-1" => usize::MAX,
        [count, ..] => parse_u64(count)
            .and_then(|count| usize::try_from(count).ok())
            .ok_or_else(|| {
                let message = "count should be greater than or equal to -1";
                Error::not_done(ErrorCode::Invalid, message)
            })?,
    };
    let turns = node.statistics.slow_turns(count);
    writer.array(turns.len());
    for turn in turns {
        writer.array(6);
        writer.integer(turn.id.cast_signed());
        writer.integer(turn.at_seconds.cast_signed());
        writer.integer(turn.micros.cast_signed());
        writer.array(2);
        writer.bulk(turn.command.as_bytes());
        writer.bulk(format!("... ({} commands in this turn)", turn.commands).as_bytes());
        writer.bulk(turn.client.as_bytes());
        writer.bulk(turn.client_name.as_bytes());
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
    let [replicas, timeout] = arguments else {
        return Err(error::wrong_arity("wait"));
    };
    parse_i64(replicas).ok_or_else(error::not_an_integer)?;
    timeout_millis(timeout)?;
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

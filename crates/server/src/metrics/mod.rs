//! What a node measures about itself.
//!
//! Hot path: recording goes to cells of the calling thread (see `flux_telemetry::metrics`); no lock
//! and no allocation. All names, with what they mean, are listed in `docs/metrics.md`, which a test
//! compares with what is registered here.

mod changes;
mod command;
mod log;
mod peer;
#[cfg(feature = "rabbitmq")]
mod rabbitmq;
mod raft;
mod store;

use std::time::Duration;

use flux_telemetry::{Counter, Counters, Gauges, Histograms, Labels, Registry, Scale};
use flux_types::{Command, Error, Outcome, Reply};
use flux_wire::resp::error;

pub(crate) use changes::{ChangesMetrics, EventKind, FetchResult};
pub(crate) use command::COMMANDS;
use command::{command_names, command_row};
pub(crate) use log::{LogState, register_log};
pub(crate) use peer::register_peers;
#[cfg(feature = "rabbitmq")]
pub(crate) use rabbitmq::register_rabbitmq;
pub(crate) use raft::{register_clock, register_raft};
pub(crate) use store::register_stores;

use crate::statistics::CommandTotals;

/// What a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// RESP2 and RESP3.
    Resp,
    /// FLUX frames.
    Flux,
    /// gRPC.
    Grpc,
    /// HTTP of the admin port.
    Admin,
}

impl Protocol {
    const NAMES: [&'static str; 4] = ["resp", "flux", "grpc", "admin"];

    const fn row(self) -> usize {
        match self {
            Self::Resp => 0,
            Self::Flux => 1,
            Self::Grpc => 2,
            Self::Admin => 3,
        }
    }
}

/// How a command ended.
const RESULTS: [&str; 3] = ["ok", "error", "unknown"];
const KINDS: [&str; 2] = ["read", "write"];

/// The node's own metrics. Cheap to clone; all clones count into the same cells.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    connections: Gauges,
    connections_opened: Counters,
    connections_refused: Counters,
    commands: Counters,
    commands_rejected: Counters,
    errors: Counters,
    command_micros: Counters,
    latency: Histograms,
    protocol_errors: Counters,
    panics: Counter,
}

impl Metrics {
    /// Registers the node's metrics in `registry`.
    pub(crate) fn new(registry: &Registry) -> Self {
        let protocols = || Labels::one("protocol", Protocol::NAMES);
        Self {
            connections: registry.gauges(
                "flux_server_connections",
                "Connections open now",
                protocols(),
            ),
            connections_opened: registry.counters(
                "flux_server_connections_opened",
                "Connections accepted",
                protocols(),
            ),
            connections_refused: registry.counters(
                "flux_server_connections_refused",
                "Connections closed at once because too many were open",
                protocols(),
            ),
            commands: registry.counters(
                "flux_server_commands",
                "Commands answered, by name and result",
                Labels::one("command", command_names()).and("result", RESULTS),
            ),
            commands_rejected: registry.counters(
                "flux_server_commands_rejected",
                "Commands refused before they were looked at, by name",
                Labels::one("command", command_names()),
            ),
            errors: registry.counters(
                "flux_server_errors",
                "Errors answered, by their first word in RESP",
                Labels::one("word", error::WORDS),
            ),
            // For INFO's commandstats alone, which Redis has in microseconds: what is exported is the
            // histogram below.
            command_micros: Registry::new().counters(
                "flux_server_command_microseconds",
                "Time from arrival to answer on RESP, shared evenly among the commands of a turn",
                Labels::one("command", command_names()),
            ),
            latency: registry.histograms(
                "flux_server_command_duration_seconds",
                "Time from a command's arrival to its answer",
                Scale::Seconds,
                protocols().and("kind", KINDS),
            ),
            protocol_errors: registry.counters(
                "flux_server_protocol_errors",
                "Connections closed because their bytes broke the protocol",
                protocols(),
            ),
            panics: registry.counter("flux_server_panics", "Sessions and requests ended by a bug"),
            registry: registry.clone(),
        }
    }

    /// Where these metrics are registered.
    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Counts a connection as open until the guard is dropped.
    pub(crate) fn connection(&self, protocol: Protocol) -> impl Drop + Send + Sync + use<> {
        self.connections_opened.increment(protocol.row());
        self.connections.at(protocol.row()).enter()
    }

    /// Connections open now, of all protocols.
    pub(crate) fn connections(&self) -> u64 {
        let open = |row| u64::try_from(self.connections.get(row)).unwrap_or(0);
        (0..Protocol::NAMES.len()).map(open).sum()
    }

    /// Connections accepted since the start, of all protocols.
    pub(crate) fn connections_opened(&self) -> u64 {
        (0..Protocol::NAMES.len())
            .map(|row| self.connections_opened.get(row))
            .sum()
    }

    /// Counts a connection that found no room.
    pub(crate) fn connection_refused(&self, protocol: Protocol) {
        self.connections_refused.increment(protocol.row());
    }

    /// Counts an answered command. For a command whose reply is not at hand any more, keep what
    /// [`CommandCount::of`] says while it is.
    pub(crate) fn command(&self, counted: CommandCount, reply: &Reply) {
        let result = match reply {
            Reply::Error(error) => {
                self.error(error);
                match error.outcome {
                    Outcome::Unknown => 2,
                    Outcome::NotDone | Outcome::Done => 1,
                }
            }
            Reply::Ok
            | Reply::Simple(_)
            | Reply::Nil
            | Reply::Integer(_)
            | Reply::Bulk(_)
            | Reply::Array(_)
            | Reply::Aborted
            | Reply::Page { .. }
            | Reply::Entry(_)
            | Reply::Written(_)
            | Reply::Outcome(_) => 0,
        };
        self.commands
            .increment(counted.row * RESULTS.len() + result);
    }

    /// Counts a command that was answered well without a [`Reply`] being made.
    pub(crate) fn command_ok(&self, counted: CommandCount) {
        self.commands.increment(counted.row * RESULTS.len());
    }

    /// Counts a command that was refused before it was looked at, by Redis's name for it.
    pub(crate) fn command_rejected(&self, redis_name: &str) {
        let row = COMMANDS.iter().position(|(_, name)| *name == redis_name);
        if let Some(row) = row {
            self.commands_rejected.increment(row);
        }
    }

    /// Counts an error that is not the reply to a command on data, which counts itself.
    pub(crate) fn error(&self, error: &Error) {
        self.error_word(error::code_word(error));
    }

    /// Counts an error by its word alone.
    pub(crate) fn error_word(&self, word: &str) {
        let row = error::WORDS.iter().position(|known| *known == word);
        self.errors.increment(row.unwrap_or(0));
    }

    /// Errors answered since the start, by the index of their word in [`error::WORDS`].
    pub(crate) fn error_totals(&self) -> [u64; error::WORDS.len()] {
        std::array::from_fn(|row| self.errors.get(row))
    }

    /// Adds the time of a turn's commands of one kind.
    pub(crate) fn command_took(&self, counted: CommandCount, micros: u64) {
        self.command_micros.add(counted.row, micros);
    }

    /// What was counted since the start of one of [`COMMANDS`].
    pub(crate) fn command_totals(&self, row: usize) -> CommandTotals {
        let count = |result| self.commands.get(row * RESULTS.len() + result);
        CommandTotals {
            ok: count(0),
            failed: count(1) + count(2),
            rejected: self.commands_rejected.get(row),
            micros: self.command_micros.get(row),
        }
    }

    /// Records how long a command took.
    pub(crate) fn latency(&self, protocol: Protocol, counted: CommandCount, took: Duration) {
        let row = protocol.row() * KINDS.len() + usize::from(counted.is_write);
        self.latency.record_duration(row, took);
    }

    /// Counts a connection that broke the protocol.
    pub(crate) fn protocol_error(&self, protocol: Protocol) {
        self.protocol_errors.increment(protocol.row());
    }

    /// Counts a session or request that ended by a panic.
    pub(crate) fn panicked(&self) {
        self.panics.increment();
    }
}

/// What is counted of a command: kept while the command itself is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CommandCount {
    row: usize,
    is_write: bool,
}

impl CommandCount {
    /// Of this command.
    pub(crate) fn of(command: &Command) -> Self {
        Self {
            row: command_row(command),
            is_write: command.is_write(),
        }
    }

    /// The name under which it is counted.
    pub(crate) fn name(self) -> &'static str {
        COMMANDS.get(self.row).map_or("other", |(name, _)| name)
    }
}

#[cfg(test)]
mod tests;

//! Counting, and the document that lists what is counted.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flux_env::{SimClock, SimDisk};
use flux_log::{LogStats, Space};
use flux_telemetry::{Checks, Family, Kind, Registry};
use flux_types::{Command, Error, ErrorCode, ReadCommand, Reply, Set, UnixMillis, WriteCommand};

use super::{
    COMMANDS, ChangesMetrics, CommandCount, LogState, Metrics, Protocol, command_names,
    command_row, register_log, register_raft, register_stores,
};

use crate::statistics::{CommandTotals, Counted};

fn set() -> Command {
    Command::Write(WriteCommand::Set(Set::plain(
        Bytes::from_static(b"k"),
        Bytes::new(),
    )))
}

#[test]
fn commands_are_counted_by_name_and_result() {
    let metrics = Metrics::new(&Registry::new());
    let counted = CommandCount::of(&set());
    metrics.command(counted, &Reply::Ok);
    metrics.command_ok(counted);
    let late = Error::unknown(ErrorCode::Timeout, "late");
    metrics.command(counted, &Reply::Error(late));
    let full = Error::not_done(ErrorCode::Busy, "full");
    metrics.command(counted, &Reply::Error(full));
    metrics.latency(Protocol::Flux, counted, Duration::from_micros(3));
    let text = metrics.registry().encode();
    for line in [
        r#"flux_server_commands_total{command="set",result="ok"} 2"#,
        r#"flux_server_commands_total{command="set",result="unknown"} 1"#,
        r#"flux_server_commands_total{command="set",result="error"} 1"#,
        r#"flux_server_commands_total{command="get",result="ok"} 0"#,
        r#"flux_server_command_duration_seconds_count{protocol="flux",kind="write"} 1"#,
        r#"flux_server_command_duration_seconds_count{protocol="flux",kind="read"} 0"#,
    ] {
        assert!(text.contains(line), "{line} is missing in\n{text}");
    }
    metrics.command_rejected("set");
    metrics.command_rejected("what nobody knows");
    metrics.command_took(counted, 30);
    let totals = Counted::of(&metrics);
    assert_eq!((totals.calls(), totals.error_count()), (4, 2));
    let row = command_row(&set());
    assert_eq!(COMMANDS[row], ("set", "set"));
    let expected = CommandTotals {
        ok: 2,
        failed: 2,
        rejected: 1,
        micros: 30,
    };
    assert_eq!(totals.commands[row], expected);
}

#[test]
fn names_are_distinct_and_rows_are_where_the_names_say() {
    for names in [command_names(), COMMANDS.map(|(_, redis)| redis)] {
        let distinct = std::collections::BTreeSet::from(names);
        assert_eq!(distinct.len(), COMMANDS.len(), "{names:?}");
    }
    let key = Bytes::from_static(b"k");
    for (command, name) in [
        (Command::Read(ReadCommand::Get { key: key.clone() }), "get"),
        (set(), "set"),
        (
            Command::Write(WriteCommand::Increment {
                key: key.clone(),
                by: 1,
            }),
            "increment",
        ),
        (
            Command::Write(WriteCommand::Persist { key: key.clone() }),
            "persist",
        ),
        (
            Command::Read(ReadCommand::Exists {
                keys: vec![key.clone()],
            }),
            "exists",
        ),
        (Command::Read(ReadCommand::Count), "count"),
        (
            Command::Write(WriteCommand::SweepExpired { keys: vec![key] }),
            "sweep_expired",
        ),
    ] {
        assert_eq!(COMMANDS[command_row(&command)].0, name);
    }
}

#[test]
fn a_connection_is_open_until_its_guard_is_dropped() {
    let metrics = Metrics::new(&Registry::new());
    let first = metrics.connection(Protocol::Grpc);
    let second = metrics.connection(Protocol::Resp);
    assert_eq!(metrics.connections(), 2);
    drop(first);
    drop(second);
    assert_eq!(
        (metrics.connections(), metrics.connections_opened()),
        (0, 2)
    );
}

/// A row of the table in `docs/metrics.md`.
fn row(family: &Family) -> String {
    let (kind, suffix) = match family.kind {
        Kind::Counter => ("counter", "_total"),
        Kind::Gauge => ("gauge", ""),
        Kind::Histogram => ("histogram", ""),
        Kind::Info => ("info", "_info"),
    };
    let labels: Vec<String> = family
        .labels
        .iter()
        .map(|name| format!("`{name}`"))
        .collect();
    format!(
        "| `{}{suffix}` | {kind} | {} | {} |",
        family.name,
        labels.join(" "),
        family.help
    )
}

#[tokio::test]
async fn every_family_is_in_the_document_as_it_is_exported() {
    let registry = Registry::new();
    let services = flux_cluster::registry::Registry::open(
        flux_cluster::registry::Config::default(),
        flux_cluster::registry::Parts {
            clock: Arc::new(SimClock::new(0)),
            disk: Arc::new(SimDisk::new()),
            seed: 1,
            metrics: registry.clone(),
            checks: Checks::new(),
        },
    );
    assert!(services.is_ok());
    drop(Metrics::new(&registry));
    drop(ChangesMetrics::new(&registry));
    register_log(&registry, || LogState {
        stats: LogStats::default(),
        space: Space::Enough,
        is_poisoned: false,
    });
    register_raft(&registry, Vec::new);
    register_stores(&registry, Vec::new, || UnixMillis::ZERO);
    #[cfg(feature = "rabbitmq")]
    {
        let clock: Arc<dyn flux_env::Clock> = Arc::new(flux_env::RealClock::new());
        super::register_rabbitmq(&registry, &Arc::default(), &clock);
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/metrics.md");
    let document = std::fs::read_to_string(path).unwrap();
    let missing: Vec<String> = registry
        .families()
        .iter()
        .map(row)
        .filter(|row| !document.lines().any(|line| line == row))
        .collect();
    assert!(
        missing.is_empty(),
        "add to docs/metrics.md:\n{}",
        missing.join("\n")
    );
}

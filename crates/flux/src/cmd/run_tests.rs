//! What a process exports, beside the document that lists it.

use std::collections::BTreeSet;

use flux_telemetry::{Family, Kind};

use super::{Part, Reload, Run, read_layers, start};
use crate::settings::resolve;

/// A row of the table in `docs/metrics.md`.
fn row(family: &Family) -> String {
    let (kind, suffix) = match family.kind {
        Kind::Counter => ("counter", "_total"),
        Kind::Gauge => ("gauge", ""),
        Kind::Histogram => ("histogram", ""),
        Kind::Info => ("info", "_info"),
    };
    let labels = family.labels.iter().map(|name| format!("`{name}`"));
    let labels = labels.collect::<Vec<_>>().join(" ");
    format!(
        "| `{}{suffix}` | {kind} | {labels} | {} |",
        family.name, family.help
    )
}

/// Everything that can be registered, in one process: whoever adds a part that registers metrics
/// only when it is configured configures it here.
const FLAGS: [(&str, &str); 7] = [
    ("port", "0"),
    ("grpc-port", "0"),
    ("http-port", "0"),
    ("admin-port", "0"),
    ("amqp", "amqp://127.0.0.1:9/"),
    // Nobody listens there, and nothing is sampled.
    ("otlp", "http://127.0.0.1:9"),
    ("trace-sample", "0%"),
];

#[tokio::test(flavor = "multi_thread")]
async fn the_document_of_metrics_lists_what_is_exported_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let mut flags: std::collections::BTreeMap<&'static str, std::ffi::OsString> =
        FLAGS.map(|(flag, value)| (flag, value.into())).into();
    flags.insert("data-dir", folder.path().join("data").into());
    let parts: &'static [Part] = &[Part::Node, Part::Gateway];
    let run = Run {
        parts,
        config: None,
        flags: flags.clone(),
        nodes: 1,
        has_chaos: false,
        moves_held_at: None,
    };
    let settings = resolve(&read_layers(None, flags).unwrap(), parts).unwrap();
    let running = start(&settings.settings, parts, 1).await.unwrap();
    // It registers its own when the process is up.
    let (registry, checks) = (&running.registry, &running.checks);
    let reload = Reload::watch(run, None, &settings.settings, registry, checks);
    assert!(reload.is_ok());
    // The consumer is a process of its own.
    let consumer = crate::cmd::cdc_consumer::families();
    let families = running.registry.families();
    let exported: BTreeSet<String> = families.iter().chain(&consumer).map(row).collect();
    running.shutdown(&settings.settings).await;
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/metrics.md");
    let document = std::fs::read_to_string(path).unwrap();
    let listed = document.lines().filter(|line| line.starts_with("| `"));
    let listed: BTreeSet<String> = listed.map(str::to_owned).collect();
    let missing: Vec<&str> = exported.difference(&listed).map(String::as_str).collect();
    let unknown: Vec<&str> = listed.difference(&exported).map(String::as_str).collect();
    assert!(
        missing.is_empty() && unknown.is_empty(),
        "docs/metrics.md lacks:\n{}\nand lists, though it is not exported:\n{}",
        missing.join("\n"),
        unknown.join("\n")
    );
}

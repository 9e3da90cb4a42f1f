//! The registry as a scraper sees it.

use std::thread;
use std::time::Duration;

use super::{Exposition, Kind, Labels, Registry, Scale};
use crate::context::TraceContext;

#[test]
fn every_kind_is_written_with_help_type_labels_and_value() {
    let registry = Registry::new();
    let commands = registry.counters(
        "flux_server_commands",
        "Commands executed",
        Labels::one("command", ["get", "set"]).and("result", ["ok", "error"]),
    );
    commands.increment(0);
    commands.add(3, 5);
    let connections = registry.gauge("flux_server_connections", "Open connections");
    connections.set(-2);
    registry.info(
        "flux_server_build",
        "What runs here",
        &[("version", "1.2.3")],
    );
    registry.collect(
        "flux_store_keys",
        "Keys held",
        Kind::Gauge,
        &["shard"],
        |samples| {
            samples.push(&["0"], 17_u64);
            samples.push(&["1"], 0.5);
        },
    );
    let text = registry.encode();
    for line in [
        "# HELP flux_server_commands Commands executed",
        "# TYPE flux_server_commands counter",
        r#"flux_server_commands_total{command="get",result="ok"} 1"#,
        r#"flux_server_commands_total{command="get",result="error"} 0"#,
        r#"flux_server_commands_total{command="set",result="error"} 5"#,
        "# TYPE flux_server_connections gauge",
        "flux_server_connections -2",
        r#"flux_server_build_info{version="1.2.3"} 1"#,
        r#"flux_store_keys{shard="0"} 17"#,
        r#"flux_store_keys{shard="1"} 0.5"#,
        "# EOF",
    ] {
        assert!(
            text.lines().any(|written| written == line),
            "{line:?} is missing in\n{text}"
        );
    }
}

#[test]
fn a_histogram_is_cumulative_and_sums_in_the_exported_unit() {
    let registry = Registry::new();
    let latency = registry.histogram("flux_log_fsync_seconds", "Time of an fsync", Scale::Seconds);
    latency.record_duration(Duration::from_nanos(1024));
    latency.record_duration(Duration::from_nanos(1025));
    latency.record_duration(Duration::from_secs(60));
    assert_eq!(latency.count(), 3);
    let text = registry.encode();
    assert!(text.contains("flux_log_fsync_seconds_count 3"), "{text}");
    assert!(
        text.contains("flux_log_fsync_seconds_sum 60.00000204"),
        "{text}"
    );
    let counts: Vec<u64> = text
        .lines()
        .filter(|line| line.starts_with("flux_log_fsync_seconds_bucket"))
        .map(|line| line.rsplit_once(' ').unwrap().1.parse().unwrap())
        .collect();
    assert_eq!(&counts[..3], [1, 2, 2]);
    assert_eq!(counts.last(), Some(&3), "the last bucket holds all");
    assert!(text.contains(r#"le="+Inf""#), "{text}");
}

#[test]
fn additions_of_many_threads_are_all_counted() {
    let registry = Registry::new();
    let counter = registry.counter("flux_test_things", "Things");
    thread::scope(|scope| {
        for _ in 0..40 {
            scope.spawn(|| (0..1000).for_each(|_| counter.increment()));
        }
    });
    assert_eq!(counter.get(), 40_000);
}

#[test]
fn a_gauge_entered_is_left_when_the_guard_is_dropped() {
    let gauge = Registry::new().gauge("flux_test_guests", "Guests");
    let first = gauge.enter();
    let second = gauge.enter();
    assert_eq!(gauge.get(), 2);
    drop(first);
    assert_eq!(gauge.get(), 1);
    drop(second);
    assert_eq!(gauge.get(), 0);
}

#[test]
fn label_values_from_configuration_cannot_break_the_exposition() {
    let registry = Registry::new();
    let routes = registry.counters(
        "flux_gateway_requests",
        "Requests",
        Labels::one("route", vec!["a\"} 1\nevil 2 \\".to_owned()]),
    );
    routes.increment(0);
    let text = registry.encode();
    assert!(
        text.contains(r#"flux_gateway_requests_total{route="a\"} 1\nevil 2 \\"} 1"#),
        "{text}"
    );
    assert_eq!(text.lines().count(), 4, "{text}");
}

#[test]
fn families_are_listed_in_order_with_their_labels() {
    let registry = Registry::new();
    drop(registry.counter("flux_b_second", "b"));
    drop(registry.gauges("flux_a_first", "a", Labels::one("shard", ["0"])));
    let families = registry.families();
    let names: Vec<&str> = families.iter().map(|family| family.name.as_str()).collect();
    assert_eq!(names, ["flux_b_second", "flux_a_first"]);
    assert_eq!(families[1].labels, ["shard"]);
}

#[test]
fn names_outside_the_pattern_are_recognised() {
    for name in [
        "server_commands",
        "flux_server",
        "flux_Server_commands",
        "flux__commands",
        "flux_server_commands_total",
        "",
    ] {
        assert!(!super::is_metric_name(name), "{name}");
    }
    for name in [
        "flux_log_bytes",
        "flux_raft_batch_bytes",
        "process_open_fds",
    ] {
        assert!(super::is_metric_name(name), "{name}");
    }
}

#[test]
fn a_scraper_gets_open_metrics_when_it_asks_and_classic_text_otherwise() {
    let prometheus = "application/openmetrics-text;version=1.0.0;q=0.75,text/plain;q=0.5,*/*;q=0.1";
    for (accept, form) in [
        (None, Exposition::Classic),
        (Some("*/*"), Exposition::Classic),
        (Some("text/plain; version=0.0.4"), Exposition::Classic),
        (
            Some("application/openmetrics-text; q=0"),
            Exposition::Classic,
        ),
        (Some(prometheus), Exposition::OpenMetrics),
    ] {
        assert_eq!(Exposition::negotiate(accept), form, "{accept:?}");
    }
}

#[test]
fn the_classic_form_names_families_as_their_samples() {
    let registry = Registry::new();
    registry.counter("flux_x_things", "Things").increment();
    registry.info("flux_build", "What runs here", &[("version", "1")]);
    registry.gauge("flux_x_level", "Level").set(3);
    let text = registry.encode_as(Exposition::Classic);
    let expected = "\
# HELP flux_x_things_total Things
# TYPE flux_x_things_total counter
flux_x_things_total 1
# HELP flux_build_info What runs here
# TYPE flux_build_info gauge
flux_build_info{version=\"1\"} 1
# HELP flux_x_level Level
# TYPE flux_x_level gauge
flux_x_level 3
";
    assert_eq!(text, expected);
}

#[test]
fn a_bucket_names_the_last_recorded_request_in_it_and_only_in_open_metrics() {
    let registry = Registry::new();
    let latency = registry.histograms(
        "flux_x_request_duration_seconds",
        "Time",
        Scale::Seconds,
        Labels::one("route", ["a", "b"]),
    );
    let second = Duration::from_secs(1);
    let trace = |id, sampled| TraceContext::new(id, 1, sampled);
    latency.record_traced(0, second, None);
    latency.record_traced(1, second, trace(7, true));
    latency.record_traced(1, second, trace(8, true));
    latency.record_traced(1, second, trace(9, false));
    let text = registry.encode();
    let named: Vec<&str> = text.lines().filter(|line| line.contains(" # ")).collect();
    let [line] = named.as_slice() else {
        panic!("{text}");
    };
    assert!(line.contains(r#"route="b""#), "{line}");
    let exemplar = r#" 3 # {trace_id="00000000000000000000000000000008"} 1"#;
    assert!(line.ends_with(exemplar), "{line}");
    let classic = registry.encode_as(Exposition::Classic);
    assert!(!classic.contains("trace_id"), "{classic}");
}

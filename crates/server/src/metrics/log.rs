//! What the log counts itself, read at every scrape.

use flux_log::{LogStats, Space};
use flux_telemetry::{Kind, Registry, Value};

/// What is read of a log at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogState {
    /// Its counters.
    pub(crate) stats: LogStats,
    /// Whether it has room.
    pub(crate) space: Space,
    /// Whether it has failed.
    pub(crate) is_poisoned: bool,
}

const NANOS: f64 = 1e-9;

/// Takes one number out of a log's state.
type Read = fn(&LogState) -> Value;

/// Adds what the log tells. `read` must not block for long.
pub(crate) fn register_log(
    registry: &Registry,
    read: impl Fn() -> LogState + Clone + Send + Sync + 'static,
) {
    register_fsync(registry, read.clone());
    let families: [(&str, &str, Kind, Read); 9] = [
        (
            "flux_log_records",
            "Records appended",
            Kind::Counter,
            |log| log.stats.records.into(),
        ),
        (
            "flux_log_appended_bytes",
            "Bytes appended, padding included",
            Kind::Counter,
            |log| log.stats.appended_bytes.into(),
        ),
        (
            "flux_log_writes",
            "Write calls: fewer than records, because what waits is written together",
            Kind::Counter,
            |log| log.stats.writes.into(),
        ),
        (
            "flux_log_segments",
            "Segment files there are",
            Kind::Gauge,
            |log| log.stats.segments.into(),
        ),
        (
            "flux_log_segments_deleted",
            "Segments deleted because snapshots cover them",
            Kind::Counter,
            |log| log.stats.segments_deleted.into(),
        ),
        (
            "flux_log_retained_bytes",
            "Bytes of segments kept for the change stream alone",
            Kind::Gauge,
            |log| log.stats.retained_bytes.into(),
        ),
        (
            "flux_log_pinned_segments_deleted",
            "Segments deleted although a sink still needed them: it gets a gap",
            Kind::Counter,
            |log| log.stats.pinned_segments_deleted.into(),
        ),
        (
            "flux_log_full",
            "1 while the disk has no room and writes are refused",
            Kind::Gauge,
            |log| (log.space == Space::Full).into(),
        ),
        (
            "flux_log_failed",
            "1 after a failed write or fsync: nothing more is acknowledged",
            Kind::Gauge,
            |log| log.is_poisoned.into(),
        ),
    ];
    for (name, help, kind, value) in families {
        let read = read.clone();
        registry.collect(name, help, kind, &[], move |samples| {
            samples.push(&[], value(&read()));
        });
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "nanoseconds beyond 2^53 lose digits that nobody reads"
)]
fn register_fsync(
    registry: &Registry,
    read: impl Fn() -> LogState + Clone + Send + Sync + 'static,
) {
    let stats = read.clone();
    registry.collect(
        "flux_log_fsync_duration_seconds",
        "Time of an fsync of segments (count and sum)",
        Kind::Histogram,
        &[],
        move |samples| {
            let LogState { stats, .. } = stats();
            let all = [(f64::INFINITY, stats.syncs)];
            samples.push_histogram(&[], &all, stats.sync_nanos as f64 * NANOS);
        },
    );
    registry.collect(
        "flux_log_fsync_duration_seconds_max",
        "Longest fsync since the start",
        Kind::Gauge,
        &[],
        move |samples| samples.push(&[], read().stats.sync_nanos_max as f64 * NANOS),
    );
}

#[cfg(test)]
mod tests {
    use flux_log::{LogStats, Space};
    use flux_telemetry::Registry;

    use super::{LogState, register_log};

    #[test]
    fn the_log_is_read_at_the_scrape() {
        let registry = Registry::new();
        register_log(&registry, || LogState {
            stats: LogStats {
                records: 7,
                syncs: 2,
                sync_nanos: 3_000_000,
                sync_nanos_max: 2_000_000,
                ..LogStats::default()
            },
            space: Space::Full,
            is_poisoned: false,
        });
        let text = registry.encode();
        for line in [
            "flux_log_records_total 7",
            "flux_log_fsync_duration_seconds_count 2",
            "flux_log_fsync_duration_seconds_sum 0.003",
            "flux_log_fsync_duration_seconds_bucket{le=\"+Inf\"} 2",
            "flux_log_fsync_duration_seconds_max 0.002",
            "flux_log_full 1",
            "flux_log_failed 0",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
    }
}

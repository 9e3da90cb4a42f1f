//! What is counted of the change stream.

use std::sync::{Arc, Weak};

use flux_cdc::Reach;
use flux_telemetry::metrics::Entered;
use flux_telemetry::{Counter, Counters, Gauge, Kind, Labels, Registry};
use parking_lot::Mutex;

/// The kinds of events that are counted apart.
const KINDS: [&str; 4] = ["change", "snapshot", "control", "gap"];

/// What comes of asking other nodes for old log.
const FETCH_RESULTS: [&str; 3] = ["found", "missing", "unknown"];

/// Counts of the change stream. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct ChangesMetrics {
    watchers: Gauge,
    events: Counters,
    fetches: Counters,
    fetched_entries: Counter,
    /// Of those who watch now, and of some who did.
    reaches: Arc<Mutex<Vec<Weak<Reach>>>>,
}

impl ChangesMetrics {
    /// Registers them.
    pub(crate) fn new(registry: &Registry) -> Self {
        let reaches: Arc<Mutex<Vec<Weak<Reach>>>> = Arc::default();
        let read = Arc::clone(&reaches);
        registry.collect(
            "flux_cdc_watchers_lag_events_max",
            "Changes applied that the watcher furthest behind has not read",
            Kind::Gauge,
            &[],
            move |samples| {
                let lags = read.lock();
                let lags = lags.iter().filter_map(Weak::upgrade);
                let most = lags.map(|reach| reach.lag_events()).max();
                samples.push(&[], most.unwrap_or(0));
            },
        );
        Self {
            reaches,
            watchers: registry.gauge("flux_cdc_watchers", "Who follows changes now"),
            events: registry.counters(
                "flux_cdc_events",
                "Events handed to watchers, by kind",
                Labels::one("kind", KINDS),
            ),
            fetches: registry.counters(
                "flux_cdc_fetches",
                "Times that other nodes were asked for log which this one holds no more, by what came of it",
                Labels::one("result", FETCH_RESULTS),
            ),
            fetched_entries: registry.counter(
                "flux_cdc_fetched_entries",
                "Log entries that came from other nodes for readers of changes",
            ),
        }
    }

    /// Counts whoever watches.
    pub(crate) fn watcher(&self) -> Entered {
        self.watchers.enter()
    }

    /// Looks at a watcher's lag for as long as it is there.
    pub(crate) fn follow(&self, reach: &Arc<Reach>) {
        let mut reaches = self.reaches.lock();
        reaches.retain(|reach| reach.strong_count() > 0);
        reaches.push(Arc::downgrade(reach));
    }

    /// Counts an event of a kind.
    pub(crate) fn event(&self, kind: EventKind) {
        self.events.increment(kind as usize);
    }

    /// Counts what came of asking other nodes for old log.
    pub(crate) fn fetched(&self, result: FetchResult, entries: usize) {
        self.fetches.increment(result as usize);
        self.fetched_entries.add(entries as u64);
    }
}

/// See [`ChangesMetrics::event`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EventKind {
    /// A committed change.
    Change = 0,
    /// A key of a snapshot.
    Snapshot = 1,
    /// About the stream itself.
    Control = 2,
    /// Changes are missing.
    Gap = 3,
}

/// See [`ChangesMetrics::fetched`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FetchResult {
    /// Entries came.
    Found = 0,
    /// Everybody has said that they are gone.
    Missing = 1,
    /// Nobody had them, and somebody could not be asked.
    Unknown = 2,
}

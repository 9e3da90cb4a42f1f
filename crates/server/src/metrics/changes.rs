//! What is counted of the change stream.

use std::sync::{Arc, Weak};

use flux_cdc::Reach;
use flux_telemetry::metrics::Entered;
use flux_telemetry::{Counters, Gauge, Kind, Labels, Registry};
use parking_lot::Mutex;

/// The kinds of events that are counted apart.
const KINDS: [&str; 4] = ["change", "snapshot", "control", "gap"];

/// Counts of the change stream. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct ChangesMetrics {
    watchers: Gauge,
    events: Counters,
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

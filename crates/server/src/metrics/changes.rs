//! What is counted of the change stream.

use flux_telemetry::metrics::Entered;
use flux_telemetry::{Counters, Gauge, Labels, Registry};

/// The kinds of events that are counted apart.
const KINDS: [&str; 4] = ["change", "snapshot", "control", "gap"];

/// Counts of the change stream. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct ChangesMetrics {
    watchers: Gauge,
    events: Counters,
}

impl ChangesMetrics {
    /// Registers them.
    pub(crate) fn new(registry: &Registry) -> Self {
        Self {
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

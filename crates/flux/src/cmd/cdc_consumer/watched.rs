//! What the consumer shows of itself on its admin port: whether it reads, and how much it has read.
//!
//! There is a port only where one is asked for, so that consumers run side by side without a thought.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use flux_cdc::consumer::{Notice, Summary};
use flux_telemetry::checks::{Finding, Need};
use flux_telemetry::metrics::{Counter, Gauge};
use flux_telemetry::{Checks, Registry};

use crate::Failure;
use crate::admin::Admin;
use crate::settings::reason;

/// Where the admin port listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Listen {
    pub(super) bind: IpAddr,
    pub(super) port: Option<u16>,
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            bind: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: None,
        }
    }
}

/// The numbers, kept up by what the consumer tells.
#[derive(Debug)]
pub(super) struct Watched {
    registry: Registry,
    checks: Checks,
    is_reading: Arc<AtomicBool>,
    connected: Gauge,
    events: Counter,
    duplicates: Counter,
    rejected: Counter,
    told: Summary,
}

impl Watched {
    pub(super) fn new() -> Self {
        let registry = Registry::new();
        flux_telemetry::process::register(&registry);
        let is_reading = Arc::new(AtomicBool::new(false));
        let checks = Checks::new();
        let read = Arc::clone(&is_reading);
        checks.add("rabbitmq", Need::Required, move || {
            if read.load(Ordering::Relaxed) {
                Finding::Ok(String::new())
            } else {
                Finding::Failed("nothing can be read; the log says why".to_owned())
            }
        });
        Self {
            connected: registry.gauge(
                "flux_cdc_consumer_connected",
                "Whether the consumer can read: 1 or 0",
            ),
            events: registry.counter("flux_cdc_consumer_events", "Events handed to the output"),
            duplicates: registry.counter(
                "flux_cdc_consumer_duplicates",
                "Events skipped because they had been before",
            ),
            rejected: registry.counter(
                "flux_cdc_consumer_rejected",
                "Messages that are no events, given to the dead-letter queue",
            ),
            registry,
            checks,
            is_reading,
            told: Summary::default(),
        }
    }

    #[cfg(test)]
    pub(super) fn families(&self) -> Vec<flux_telemetry::Family> {
        self.registry.families()
    }

    /// Begins to answer, if a port is wanted; it ends when dropped.
    ///
    /// # Errors
    /// When the port cannot be had.
    pub(super) async fn serve(&self, listen: Listen) -> Result<Option<Admin>, Failure> {
        let Some(port) = listen.port else {
            return Ok(None);
        };
        let address = SocketAddr::new(listen.bind, port);
        let admin = Admin::start(address, self.registry.clone(), self.checks.clone()).await;
        admin.map(Some).map_err(|error| {
            Failure::Mistake(format!(
                "--admin-port {port}: cannot listen on {address}: {}",
                reason(&error)
            ))
        })
    }

    pub(super) fn note(&mut self, notice: &Notice<'_>) {
        match notice {
            Notice::Connected => self.reading(true),
            Notice::Lost { .. } => self.reading(false),
            Notice::Rejected { .. } => self.rejected.increment(),
            Notice::Read(summary) => self.read(summary),
        }
    }

    fn reading(&self, is_reading: bool) {
        self.is_reading.store(is_reading, Ordering::Relaxed);
        self.connected.set(i64::from(is_reading));
    }

    fn read(&mut self, summary: &Summary) {
        self.events
            .add(summary.events.saturating_sub(self.told.events));
        self.duplicates
            .add(summary.duplicates.saturating_sub(self.told.duplicates));
        self.told = *summary;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_is_counted_once() {
        let mut watched = Watched::new();
        watched.note(&Notice::Connected);
        for events in [2, 2, 5] {
            let summary = Summary {
                events,
                duplicates: 1,
                rejected: 0,
            };
            watched.note(&Notice::Read(summary));
        }
        assert_eq!((watched.events.get(), watched.duplicates.get()), (5, 1));
        assert_eq!(watched.connected.get(), 1);
    }

    #[test]
    fn it_is_ready_while_it_can_read() {
        let mut watched = Watched::new();
        let is_ready =
            |watched: &Watched| watched.checks.reports().iter().all(|report| report.is_ok());
        assert!(!is_ready(&watched));
        watched.note(&Notice::Connected);
        assert!(is_ready(&watched));
        let trouble = flux_cdc::rabbitmq::Trouble::silent("a heartbeat");
        watched.note(&Notice::Lost {
            trouble: &trouble,
            attempt: 1,
            wait: std::time::Duration::ZERO,
        });
        assert!(!is_ready(&watched));
    }
}

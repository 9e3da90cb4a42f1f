//! Upstreams: the endpoints that serve a set of services, and calling them.
//!
//! [`Upstream`] is shared by all workers and holds what must be counted once; each worker has its
//! own [`client::Client`] with its own connections, so that no request changes threads.

pub(crate) mod client;

mod frame;

pub(crate) mod members;

pub(crate) mod messages;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use flux_cluster::registry::{self, Endpoint, Registry};
use flux_env::Clock;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::config::{Config, UpstreamConfig};
use crate::metrics::Metrics;
use crate::policy::budget::Budget;
use members::Members;

/// What all workers share about one upstream.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) name: String,
    /// Where it can be called.
    pub(crate) members: Members,
    pub(crate) connect_timeout: Duration,
    pub(crate) response_bytes_max: usize,
    /// What every call carries unless it brings its own under that name.
    pub(crate) metadata: HeaderMap,
    /// Times a call is tried.
    attempts_max: usize,
    budget: Mutex<Budget>,
    metrics: Arc<Metrics>,
    clock: Arc<dyn Clock>,
    /// Told when a connection was lost: what is behind it may not be the same again.
    pub(crate) connection_lost: Notify,
}

impl Upstream {
    /// An upstream that is discovered is looked for in `services`; without a registry, or if its
    /// endpoints are written down, they stay as they are.
    pub(crate) fn new(
        config: &UpstreamConfig,
        common: &Config,
        metrics: &Arc<Metrics>,
        clock: &Arc<dyn Clock>,
        services: Option<&Registry>,
    ) -> Self {
        let retry = config.retry.as_ref().unwrap_or(&common.retry);
        let endpoints = match services {
            Some(services) if !config.service.is_empty() => services.watch(&config.service),
            Some(_) | None => registry::fixed(config.endpoints.iter().map(Endpoint::at).collect()),
        };
        Self {
            name: config.name.clone(),
            members: Members::new(
                &config.name,
                endpoints,
                config.balance.unwrap_or(common.balance),
                config.health.as_ref().unwrap_or(&common.health),
                clock,
            ),
            connect_timeout: config.connect_timeout.get(),
            metadata: metadata(&config.metadata),
            response_bytes_max: common.response_bytes_max.get(),
            attempts_max: retry.attempts_max,
            budget: Mutex::new(Budget::new(retry)),
            metrics: Arc::clone(metrics),
            clock: Arc::clone(clock),
            connection_lost: Notify::new(),
        }
    }

    /// Notes a call, which earns its share of a retry.
    fn deposit(&self) {
        self.budget.lock().deposit(self.clock.now());
    }

    /// Takes a retry of the budget if there is one.
    fn may_retry(&self) -> bool {
        let is_allowed = self.budget.lock().try_withdraw(self.clock.now());
        if is_allowed {
            self.metrics.retried();
        } else {
            self.metrics.retry_refused();
        }
        is_allowed
    }
}

/// The configured metadata as headers, kept out of debug output. Validation has refused the rest.
fn metadata(config: &BTreeMap<String, String>) -> HeaderMap {
    let pairs = config.iter().filter_map(|(name, value)| {
        let name: HeaderName = name.parse().ok()?;
        let mut value = HeaderValue::from_str(value).ok()?;
        value.set_sensitive(true);
        Some((name, value))
    });
    pairs.collect()
}

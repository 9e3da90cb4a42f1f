//! The policies of the configuration, put together: the gateway's, those of each upstream and of
//! each configured route.

use std::sync::Arc;

use flux_env::Clock;

use super::breaker::Breaker;
use super::bulkhead::Bulkhead;
use super::limit::Limits;
use crate::config::{Config, RouteConfig, UpstreamConfig};

/// Everything that holds for requests beyond their own content.
#[derive(Debug)]
pub(crate) struct Policies {
    pub(crate) limits: Limits,
    /// In the order of the configuration.
    pub(crate) upstreams: Vec<UpstreamPolicy>,
    /// In the order of the configuration.
    pub(crate) routes: Vec<RoutePolicy>,
}

/// What holds for every call of an upstream.
#[derive(Debug)]
pub(crate) struct UpstreamPolicy {
    pub(crate) name: String,
    pub(crate) breaker: Option<Arc<Breaker>>,
    pub(crate) bulkhead: Bulkhead,
}

/// What a configured route has of its own.
#[derive(Debug)]
pub(crate) struct RoutePolicy {
    pub(crate) limits: Limits,
    /// Whether it has a breaker setting of its own, which then replaces the upstream's.
    pub(crate) has_own_breaker: bool,
    pub(crate) breaker: Option<Arc<Breaker>>,
    pub(crate) bulkhead: Option<Bulkhead>,
}

impl Policies {
    pub(crate) fn new(config: &Config, clock: &Arc<dyn Clock>) -> Self {
        Self {
            limits: Limits::new(&config.limit, &config.client_limit),
            upstreams: config
                .upstreams
                .iter()
                .map(|upstream| UpstreamPolicy::new(upstream, config, clock))
                .collect(),
            routes: config
                .routes
                .iter()
                .map(|route| RoutePolicy::new(route, clock))
                .collect(),
        }
    }
}

impl UpstreamPolicy {
    fn new(upstream: &UpstreamConfig, config: &Config, clock: &Arc<dyn Clock>) -> Self {
        let breaker = upstream.breaker.as_ref().unwrap_or(&config.breaker);
        Self {
            name: upstream.name.clone(),
            breaker: Breaker::new(&upstream.name, breaker, clock).map(Arc::new),
            bulkhead: Bulkhead::new(upstream.in_flight_max),
        }
    }
}

impl RoutePolicy {
    fn new(route: &RouteConfig, clock: &Arc<dyn Clock>) -> Self {
        let breaker = route.breaker.as_ref();
        Self {
            limits: Limits::new(&route.limit, &route.client_limit),
            has_own_breaker: breaker.is_some(),
            breaker: breaker
                .and_then(|config| Breaker::new(&route.http, config, clock))
                .map(Arc::new),
            bulkhead: route.in_flight_max.map(Bulkhead::new),
        }
    }
}

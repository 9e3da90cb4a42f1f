//! The policies of the configuration, put together: the gateway's, those of each upstream and of
//! each configured route.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flux_env::Clock;
use http::StatusCode;
use parking_lot::Mutex;

use super::breaker::Breaker;
use super::bulkhead::Bulkhead;
use super::flight::{Flights, Writes};
use super::limit::Limits;
use super::stale::LastGood;
use crate::config::{CoalesceConfig, Config, RouteConfig, UpstreamConfig};
use crate::descriptor::route::RpcRoute;
use crate::status::Failure;
use crate::surroundings::Activity;
use crate::upstream::client::Answer;

/// What two calls have in common that have the same answer.
pub(crate) type CallKey = Arc<[u8]>;

/// Everything that holds for requests beyond their own content.
#[derive(Debug)]
pub(crate) struct Policies {
    pub(crate) limits: Arc<Limits>,
    /// Of routes that say nothing of it.
    pub(crate) coalesce: CoalesceConfig,
    pub(crate) last_good: Arc<Mutex<LastGood<CallKey, Answer>>>,
    /// In the order of the configuration.
    pub(crate) upstreams: Vec<UpstreamPolicy>,
    /// In the order of the configuration.
    routes: Vec<RoutePolicy>,
}

/// What holds for every call of an upstream.
#[derive(Debug)]
pub(crate) struct UpstreamPolicy {
    pub(crate) name: String,
    pub(crate) breaker: Option<Arc<Breaker>>,
    pub(crate) bulkhead: Bulkhead,
    pub(crate) flights: Arc<Flights<CallKey, Result<Answer, Failure>>>,
    pub(crate) writes: Arc<Writes>,
}

/// What a configured route has of its own.
#[derive(Debug)]
pub(crate) struct RoutePolicy {
    pub(crate) limits: Arc<Limits>,
    /// Whether it has a breaker setting of its own, which then replaces the upstream's.
    pub(crate) has_own_breaker: bool,
    pub(crate) breaker: Option<Arc<Breaker>>,
    pub(crate) bulkhead: Option<Bulkhead>,
    pub(crate) coalesce: Option<CoalesceConfig>,
    /// How old an answer may be to be given again in place of a failure; zero for never.
    pub(crate) stale_max: Duration,
    /// The fixed answer in place of a failure.
    pub(crate) fixed: Option<(StatusCode, Bytes)>,
}

/// What changes behind upstreams, by their names.
type Activities = BTreeMap<String, Arc<dyn Activity>>;

/// The policies before a change, with what they were made of.
type Before<'a> = Option<(&'a Config, &'a Policies)>;

impl Policies {
    /// What a change of the configuration leaves as it was goes over from `before` with its state.
    pub(crate) fn new(
        config: &Config,
        clock: &Arc<dyn Clock>,
        activities: &Activities,
        before: Before<'_>,
    ) -> Self {
        let limits = before.filter(|(old, _)| {
            (&old.limit, &old.client_limit) == (&config.limit, &config.client_limit)
        });
        let last_good = before.filter(|(old, _)| old.stale == config.stale);
        Self {
            limits: limits.map_or_else(
                || Arc::new(Limits::new(&config.limit, &config.client_limit)),
                |(_, policies)| Arc::clone(&policies.limits),
            ),
            coalesce: config.coalesce,
            last_good: last_good.map_or_else(
                || Arc::new(Mutex::new(LastGood::new(&config.stale))),
                |(_, policies)| Arc::clone(&policies.last_good),
            ),
            upstreams: config
                .upstreams
                .iter()
                .map(|upstream| {
                    let activity = activities.get(&upstream.name);
                    UpstreamPolicy::new(upstream, config, (clock, activity), before)
                })
                .collect(),
            routes: config
                .routes
                .iter()
                .map(|route| RoutePolicy::new(route, clock, before))
                .collect(),
        }
    }

    /// What a route has of its own, if it is declared in the configuration.
    pub(crate) fn route(&self, route: &RpcRoute) -> Option<&RoutePolicy> {
        self.routes.get(route.configured?)
    }
}

impl UpstreamPolicy {
    fn new(
        upstream: &UpstreamConfig,
        config: &Config,
        (clock, activity): (&Arc<dyn Clock>, Option<&Arc<dyn Activity>>),
        before: Before<'_>,
    ) -> Self {
        let breaker = upstream.breaker.as_ref().unwrap_or(&config.breaker);
        let old = before.and_then(|(old, policies)| {
            let mut pairs = old.upstreams.iter().zip(&policies.upstreams);
            let (old_config, policy) = pairs.find(|(other, _)| other.name == upstream.name)?;
            let old_breaker = old_config.breaker.as_ref().unwrap_or(&old.breaker);
            Some((old_config, old_breaker, policy))
        });
        let same_breaker = old.filter(|(_, other, _)| *other == breaker);
        let same_bulkhead =
            old.filter(|(other, _, _)| other.in_flight_max == upstream.in_flight_max);
        Self {
            name: upstream.name.clone(),
            breaker: same_breaker.map_or_else(
                || Breaker::new(&upstream.name, breaker, clock).map(Arc::new),
                |(_, _, policy)| policy.breaker.clone(),
            ),
            bulkhead: same_bulkhead.map_or_else(
                || Bulkhead::new(upstream.in_flight_max),
                |(_, _, policy)| policy.bulkhead.clone(),
            ),
            flights: old.map_or_else(Arc::default, |(_, _, policy)| Arc::clone(&policy.flights)),
            // A write that began under the old configuration must count under the new one.
            writes: old.map_or_else(
                || Arc::new(Writes::new(clock, activity)),
                |(_, _, policy)| Arc::clone(&policy.writes),
            ),
        }
    }
}

impl RoutePolicy {
    fn new(route: &RouteConfig, clock: &Arc<dyn Clock>, before: Before<'_>) -> Self {
        let old = before.and_then(|(old, policies)| {
            let mut pairs = old.routes.iter().zip(&policies.routes);
            pairs.find(|(other, _)| other.http == route.http)
        });
        let same_limits = old.filter(|(other, _)| {
            (&other.limit, &other.client_limit) == (&route.limit, &route.client_limit)
        });
        let same_breaker = old.filter(|(other, _)| other.breaker == route.breaker);
        let same_bulkhead = old.filter(|(other, _)| other.in_flight_max == route.in_flight_max);
        let fallback = route.fallback.as_ref();
        let fixed = fallback.and_then(|fallback| {
            let status = StatusCode::from_u16(fallback.status).ok()?;
            let body = fallback.json.as_ref()?.to_string();
            Some((status, body.into()))
        });
        let own_breaker = || {
            let config = route.breaker.as_ref()?;
            Breaker::new(&route.http, config, clock).map(Arc::new)
        };
        Self {
            limits: same_limits.map_or_else(
                || Arc::new(Limits::new(&route.limit, &route.client_limit)),
                |(_, policy)| Arc::clone(&policy.limits),
            ),
            has_own_breaker: route.breaker.is_some(),
            breaker: same_breaker.map_or_else(own_breaker, |(_, policy)| policy.breaker.clone()),
            bulkhead: same_bulkhead.map_or_else(
                || route.in_flight_max.map(Bulkhead::new),
                |(_, policy)| policy.bulkhead.clone(),
            ),
            coalesce: route.coalesce,
            stale_max: fallback.map_or(Duration::ZERO, |fallback| fallback.stale.get()),
            fixed,
        }
    }
}

//! What the gateway counts. Labels are closed sets: a path or a user's text is never one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use flux_telemetry::TraceContext;
use flux_telemetry::metrics::{Counter, Counters, Gauge, Histogram, Kind, Labels, Registry, Scale};
use http::StatusCode;
use parking_lot::Mutex;

use crate::policy::limit::Scope;
use crate::status::Code;

/// Status classes in the order of the rows of `flux_gateway_requests`.
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];
/// What is counted of one route.
#[derive(Debug, Default)]
pub(crate) struct RouteCounts([AtomicU64; CLASSES.len()]);

/// Routes that were asked for at least once, by method and path template: configuration and
/// descriptors say which there can be.
type Routes = Arc<Mutex<BTreeMap<Box<str>, Arc<RouteCounts>>>>;

/// The route of requests that have none.
const NO_ROUTE: &str = "none";

/// The gateway's metrics.
#[derive(Debug)]
pub(crate) struct Metrics {
    routes: Routes,
    without_route: Arc<RouteCounts>,
    latency: Histogram,
    in_flight: Gauge,
    connections: Gauge,
    upstream_errors: Counters,
    rate_limited: Counters,
    refused: Counters,
    streams: Gauge,
    stream_messages: Counter,
    flights: Counters,
    fallbacks: Counters,
    retries: Counters,
}

impl Metrics {
    pub(crate) fn new(registry: &Registry) -> Self {
        let routes = Routes::default();
        collect_routes(registry, Arc::clone(&routes));
        Self {
            without_route: route(&routes, NO_ROUTE),
            routes,
            latency: registry.histogram(
                "flux_gateway_request_duration_seconds",
                "Time from a request's headers to its answer",
                Scale::Seconds,
            ),
            in_flight: registry.gauge("flux_gateway_requests_in_flight", "Requests being answered"),
            connections: registry.gauge("flux_gateway_connections", "Open client connections"),
            upstream_errors: registry.counters(
                "flux_gateway_upstream_errors",
                "Calls of upstreams that failed, by gRPC status",
                Labels::one("code", Code::NAMES),
            ),
            rate_limited: registry.counters(
                "flux_gateway_rate_limited",
                "Requests refused by a token bucket, by whose it is",
                Labels::one("rule", ["gateway", "route", "client"]),
            ),
            refused: registry.counters(
                "flux_gateway_refused",
                "Calls refused without asking the upstream, by what refused them",
                Labels::one("by", ["breaker", "bulkhead"]),
            ),
            streams: registry.gauge(
                "flux_gateway_streams",
                "Rpcs under way that answer with a stream",
            ),
            stream_messages: registry.counter(
                "flux_gateway_stream_messages",
                "Messages of streams passed on to clients",
            ),
            flights: registry.counters(
                "flux_gateway_singleflight",
                "Reads that may share a call: leaders made one, followers waited for another's",
                Labels::one("role", ["leader", "follower"]),
            ),
            fallbacks: registry.counters(
                "flux_gateway_fallbacks",
                "Answers given in place of a failure: the last good one, or a fixed one",
                Labels::one("kind", ["stale", "fixed"]),
            ),
            retries: registry.counters(
                "flux_gateway_retries",
                "Calls that would be tried again: those that were, and those over the budget",
                Labels::one("result", ["made", "over-budget"]),
            ),
        }
    }

    /// Counts a request in flight until dropped.
    pub(crate) fn enter(&self) -> impl Drop + use<> {
        self.in_flight.enter()
    }

    /// Counts a connection until dropped.
    pub(crate) fn connect(&self) -> impl Drop + use<> {
        self.connections.enter()
    }

    /// Counts a stream until dropped.
    pub(crate) fn stream(&self) -> impl Drop + use<> {
        self.streams.enter()
    }

    pub(crate) fn stream_message(&self) {
        self.stream_messages.increment();
    }

    /// What is counted of a route; to be asked once for each, since it takes a lock.
    pub(crate) fn route(&self, http: &str) -> Arc<RouteCounts> {
        route(&self.routes, http)
    }

    /// Counts an answer; a recorded request is an example of its duration.
    pub(crate) fn answered(
        &self,
        status: StatusCode,
        elapsed: Duration,
        route: Option<&RouteCounts>,
        trace: Option<TraceContext>,
    ) {
        let class = usize::from(status.as_u16() / 100).clamp(1, CLASSES.len()) - 1;
        let RouteCounts(counts) = route.unwrap_or(&self.without_route);
        if let Some(count) = counts.get(class) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.latency.record_traced(elapsed, trace);
    }

    pub(crate) fn upstream_failed(&self, code: Code) {
        self.upstream_errors.increment(code.number());
    }

    pub(crate) fn rate_limited(&self, scope: Scope) {
        self.rate_limited.increment(match scope {
            Scope::Gateway => 0,
            Scope::Route => 1,
            Scope::Client => 2,
        });
    }

    pub(crate) fn refused_by_breaker(&self) {
        self.refused.increment(0);
    }

    pub(crate) fn refused_by_bulkhead(&self) {
        self.refused.increment(1);
    }

    pub(crate) fn flew(&self) {
        self.flights.increment(0);
    }

    pub(crate) fn joined_flight(&self) {
        self.flights.increment(1);
    }

    pub(crate) fn answered_stale(&self) {
        self.fallbacks.increment(0);
    }

    pub(crate) fn answered_fixed(&self) {
        self.fallbacks.increment(1);
    }

    pub(crate) fn retried(&self) {
        self.retries.increment(0);
    }

    pub(crate) fn retry_refused(&self) {
        self.retries.increment(1);
    }
}

fn route(routes: &Routes, http: &str) -> Arc<RouteCounts> {
    let mut routes = routes.lock();
    if let Some(counts) = routes.get(http) {
        return Arc::clone(counts);
    }
    let counts = Arc::new(RouteCounts::default());
    routes.insert(http.into(), Arc::clone(&counts));
    counts
}

fn collect_routes(registry: &Registry, routes: Routes) {
    registry.collect(
        "flux_gateway_requests",
        "Requests answered, by route and class of the HTTP status",
        Kind::Counter,
        &["route", "status"],
        move |samples| {
            for (route, counts) in routes.lock().iter() {
                for (class, count) in CLASSES.iter().zip(&counts.0) {
                    samples.push(&[route, class], count.load(Ordering::Relaxed));
                }
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted_by_route_and_class_and_a_route_keeps_its_count() {
        let registry = Registry::new();
        let metrics = Metrics::new(&registry);
        for _ in 0..2 {
            let route = metrics.route("GET /v1/{name}");
            metrics.answered(StatusCode::OK, Duration::ZERO, Some(&route), None);
        }
        metrics.answered(StatusCode::NOT_FOUND, Duration::ZERO, None, None);
        let text = registry.encode();
        for line in [
            r#"flux_gateway_requests_total{route="GET /v1/{name}",status="2xx"} 2"#,
            r#"flux_gateway_requests_total{route="GET /v1/{name}",status="5xx"} 0"#,
            r#"flux_gateway_requests_total{route="none",status="4xx"} 1"#,
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
    }
}

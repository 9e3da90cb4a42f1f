//! What the gateway counts. Labels are closed sets: a path or a user's text is never one.

use std::time::Duration;

use flux_telemetry::TraceContext;
use flux_telemetry::metrics::{Counter, Counters, Gauge, Histogram, Labels, Registry, Scale};
use http::StatusCode;

use crate::policy::limit::Scope;
use crate::status::Code;

/// Status classes in the order of the rows of `flux_gateway_requests`.
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];
/// The gateway's metrics.
#[derive(Debug)]
pub(crate) struct Metrics {
    requests: Counters,
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
        Self {
            requests: registry.counters(
                "flux_gateway_requests",
                "Requests answered, by class of the HTTP status",
                Labels::one("status", CLASSES),
            ),
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

    /// Counts an answer; a recorded request is an example of its duration.
    pub(crate) fn answered(
        &self,
        status: StatusCode,
        elapsed: Duration,
        trace: Option<TraceContext>,
    ) {
        let class = usize::from(status.as_u16() / 100).clamp(1, CLASSES.len()) - 1;
        self.requests.increment(class);
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

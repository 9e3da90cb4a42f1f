//! What the gateway counts. Labels are closed sets: a path or a user's text is never one.

use std::time::Duration;

use flux_telemetry::metrics::{Counters, Gauge, Histogram, Labels, Registry, Scale};
use http::StatusCode;

use crate::status::Code;

/// Status classes in the order of the rows of `flux_gateway_requests`.
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];
/// gRPC codes in the order of their numbers, as rows of `flux_gateway_upstream_errors`.
const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// The gateway's metrics.
#[derive(Debug)]
pub(crate) struct Metrics {
    requests: Counters,
    latency: Histogram,
    in_flight: Gauge,
    connections: Gauge,
    upstream_errors: Counters,
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
                "flux_gateway_request_seconds",
                "Time from a request's headers to its answer",
                Scale::Seconds,
            ),
            in_flight: registry.gauge("flux_gateway_requests_in_flight", "Requests being answered"),
            connections: registry.gauge("flux_gateway_connections", "Open client connections"),
            upstream_errors: registry.counters(
                "flux_gateway_upstream_errors",
                "Calls of upstreams that failed, by gRPC status",
                Labels::one("code", CODES),
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

    pub(crate) fn answered(&self, status: StatusCode, elapsed: Duration) {
        let class = usize::from(status.as_u16() / 100).clamp(1, CLASSES.len()) - 1;
        self.requests.increment(class);
        self.latency.record_duration(elapsed);
    }

    pub(crate) fn upstream_failed(&self, code: Code) {
        self.upstream_errors.increment(code.number());
    }
}

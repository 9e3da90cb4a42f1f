//! The admin port: metrics, liveness, readiness.
//!
//! It only reads. Except for the change stream it shows no key and no value and asks for no password,
//! so that a supervisor and a scraper reach it as they are; it binds where the node binds, loopback
//! unless told.

use std::sync::Arc;

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use flux_telemetry::checks::{self, Checks, Finding, Need, Report};
use flux_telemetry::metrics::Exposition;
use serde_json::json;

use crate::changes::Changes;
use crate::grpc::Password;
use crate::metrics::Metrics;
use crate::readiness::{Readiness, ShardReadiness};

#[cfg(test)]
mod tests;

mod cdc;

const INDEX: &str = "\
Flux-KV node

/metrics          what is measured, for Prometheus
/healthz          200 while the process answers
/readyz           200 while everything that serving needs is there, else 503
/readyz?verbose   the same, check by check (JSON with Accept: application/json)
/api/v1/cdc       changes as server-sent events, or as lines with Accept: application/x-ndjson
";

#[derive(Clone, Debug)]
struct Admin {
    metrics: Metrics,
    readiness: Arc<dyn Readiness>,
    checks: Checks,
}

/// What answers on the admin port.
pub(crate) fn router(metrics: Metrics, readiness: Arc<dyn Readiness>, checks: Checks) -> Router {
    Router::new()
        .route("/", get(|| async { INDEX }))
        .route("/metrics", get(metrics_text))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .with_state(Admin {
            metrics,
            readiness,
            checks,
        })
}

/// What answers there about changes, which shows values and so asks for the password.
pub(crate) fn changes_router(changes: Changes, password: Password) -> Router {
    Router::new()
        .route("/api/v1/cdc", get(cdc::watch))
        .with_state(cdc::State { changes, password })
}

async fn metrics_text(State(admin): State<Admin>, headers: HeaderMap) -> Response {
    let accept = headers
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok());
    let form = Exposition::negotiate(accept);
    let text = admin.metrics.registry().encode_as(form);
    ([(header::CONTENT_TYPE, form.content_type())], text).into_response()
}

async fn readyz(
    State(admin): State<Admin>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let shards = admin.readiness.shards();
    let is_draining = admin.readiness.is_draining();
    let mut reports: Vec<Report> = shards.iter().map(ShardReadiness::report).collect();
    reports.extend(admin.readiness.reports());
    reports.extend(admin.checks.reports());
    let is_ready = !is_draining && !reports.iter().any(Report::blocks);
    let status = if is_ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let word = match (is_ready, is_draining) {
        (true, _) => "ready",
        (false, true) => "shutting down",
        (false, false) => "not ready",
    };
    if wants_json(&headers) {
        let shards: Vec<_> = shards.iter().map(ShardReadiness::to_json).collect();
        let checks: Vec<_> = reports.iter().map(report_json).collect();
        let body = json!({ "status": word, "shards": shards, "checks": checks });
        return (status, axum::Json(body)).into_response();
    }
    // Who is not ready says why without being asked.
    let is_verbose = query.is_some_and(|query| checks::is_verbose(&query));
    (status, checks::text(word, &reports, is_verbose)).into_response()
}

fn report_json(report: &Report) -> serde_json::Value {
    let (Finding::Ok(text) | Finding::Failed(text)) = &report.finding;
    json!({
        "name": report.name,
        "ok": report.is_ok(),
        "required": report.need == Need::Required,
        "text": text,
    })
}

fn wants_json(headers: &HeaderMap) -> bool {
    headers
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok())
        .is_some_and(|accept| accept.contains("application/json"))
}

//! The admin port of a gateway that runs alone; a node has its own.

use std::net::SocketAddr;

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use flux_telemetry::checks::{self, Report};
use flux_telemetry::metrics::Exposition;
use flux_telemetry::{Checks, Registry};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// A running admin port; it ends when dropped.
#[derive(Debug)]
pub(crate) struct Admin {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Admin {
    /// Begins to answer.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub(crate) async fn start(
        address: SocketAddr,
        registry: Registry,
        checks: Checks,
    ) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let router = Router::new()
            .route("/metrics", get(metrics))
            .route("/healthz", get(|| async { "ok\n" }))
            .route("/readyz", get(readyz))
            .with_state((registry, checks));
        let task = tokio::spawn(async move {
            // It serves until it is aborted; single connections fail by themselves.
            drop(axum::serve(listener, router).await);
        });
        Ok(Self { address, task })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A gateway that accepts is ready, unless a part that it needs says otherwise: whether its
/// upstreams are is told by each answer.
async fn readyz(
    State((_, checks)): State<(Registry, Checks)>,
    RawQuery(query): RawQuery,
) -> Response {
    let reports = checks.reports();
    let (status, word) = if reports.iter().any(Report::blocks) {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready")
    } else {
        (StatusCode::OK, "ready")
    };
    let is_verbose = query.is_some_and(|query| checks::is_verbose(&query));
    (status, checks::text(word, &reports, is_verbose)).into_response()
}

async fn metrics(State((registry, _)): State<(Registry, Checks)>, headers: HeaderMap) -> Response {
    let accept = headers
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok());
    let form = Exposition::negotiate(accept);
    let text = registry.encode_as(form);
    ([(header::CONTENT_TYPE, form.content_type())], text).into_response()
}

//! The admin port of a gateway that runs alone; a node has its own.

use std::net::SocketAddr;

use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use flux_telemetry::Registry;
use flux_telemetry::metrics::CONTENT_TYPE;
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
    pub(crate) async fn start(address: SocketAddr, registry: Registry) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let router = Router::new()
            .route("/metrics", get(metrics))
            .route("/healthz", get(|| async { "ok\n" }))
            // A gateway that accepts is ready: whether its upstreams are is told by each answer.
            .route("/readyz", get(|| async { "ready\n" }))
            .with_state(registry);
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

async fn metrics(State(registry): State<Registry>) -> Response {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], registry.encode()).into_response()
}

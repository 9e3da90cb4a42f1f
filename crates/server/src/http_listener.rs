//! Accepts HTTP connections and serves them until told to stop: for gRPC and for the admin port.
//!
//! hyper is driven directly instead of through `tonic::transport` or `axum::serve`, because those
//! answer deadlines by themselves (without saying whether a write happened) or set no limits on a
//! connection: here each bound has a name.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::metrics::{Metrics, Protocol};

/// Most streams in flight on one HTTP/2 connection; the client waits with more.
const STREAMS_MAX: u32 = 1024;
/// Longest list of headers of one request, in bytes.
const HEADERS_BYTES_MAX: u32 = 16 * 1024;
/// How long a client may take to send the headers of a request.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(10);
/// After how long without traffic a connection is asked whether it still lives, and how long it
/// may take to answer.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// What a stream and a connection may send before they are read: HTTP/2's 64 KiB would slow large
/// values down on any network with a latency.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// Pause after a failed accept: it fails when descriptors have run out, and would fail again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A listener and what its connections are served with.
#[derive(Debug)]
pub(crate) struct HttpListener {
    /// Accepts.
    pub(crate) listener: TcpListener,
    /// Answers requests.
    pub(crate) router: Router,
    /// What is spoken, for metrics; gRPC is HTTP/2 only.
    pub(crate) protocol: Protocol,
    /// One permit for each connection that may be open, shared by all listeners of the node.
    pub(crate) permits: Arc<Semaphore>,
    /// Counts.
    pub(crate) metrics: Metrics,
}

impl HttpListener {
    /// Serves until `shutdown`; then stops accepting, lets requests in flight finish, closes idle
    /// connections, and returns when all are closed. The caller limits how long that may take.
    ///
    /// # Cancellation
    /// Safe; connections then end with the runtime they run on.
    pub(crate) async fn serve(self, shutdown: CancellationToken) {
        let graceful = GracefulShutdown::new();
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => self.connection(stream, &graceful),
                Err(error) => {
                    warn!(%error, protocol = ?self.protocol, "accept failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(self.listener);
        graceful.shutdown().await;
    }

    fn connection(&self, stream: TcpStream, graceful: &GracefulShutdown) {
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
            self.metrics.connection_refused(self.protocol);
            return;
        };
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%error, "connection closed while it was accepted");
            return;
        }
        let counted = self.metrics.connection(self.protocol);
        let service = TowerToHyperService::new(self.router.clone());
        let connection = builder(self.protocol)
            .serve_connection(TokioIo::new(stream), service)
            .into_owned();
        let connection = graceful.watch(connection);
        let (metrics, protocol) = (self.metrics.clone(), self.protocol);
        // Owned by this listener: ends with the connection, on shutdown through `graceful`, and at
        // the latest with the runtime.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                metrics.protocol_error(protocol);
                debug!(%error, ?protocol, "connection ended");
            }
            drop((permit, counted));
        });
    }
}

fn builder(protocol: Protocol) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    if protocol == Protocol::Grpc {
        builder = builder.http2_only();
    }
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_TIMEOUT)
        .max_buf_size(usize::try_from(HEADERS_BYTES_MAX).unwrap_or(usize::MAX));
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADERS_BYTES_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
    builder
}

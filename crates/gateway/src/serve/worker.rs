//! One worker: a thread with its own runtime, listener, connections and upstream clients.
//!
//! Nothing is handed between workers. A worker stops in two steps: [`Phase::Drain`] closes the
//! listener and tells every connection to finish what it has (`Connection: close`, GOAWAY); when
//! all are gone, or at [`Phase::Stop`], the thread ends.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tracing::{debug, warn};

use super::io::{Patience, Protocol, Rewound};
use super::pipeline::{Pipeline, Shared};

const STREAMS_MAX: u32 = 256;
const HTTP2_SEND_BUFFER: usize = 1 << 20;
/// Streams reset by the peer before they were answered; more close the connection.
const RESETS_MAX: usize = 50;
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// hyper's own header limit is this much above ours, so that what is moderately too large still
/// gets our answer with a body; beyond it hyper answers 431 without one.
const HEADER_SLACK: usize = 2;
/// hyper refuses smaller read buffers.
const READ_BUFFER_MIN: usize = 8 << 10;
/// Wait after accept failed for lack of files, so as not to spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How far a shutdown has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Run,
    Drain,
    Stop,
}

/// What a worker needs to run.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) listener: TcpListener,
    pub(crate) shared: Shared,
    /// Places for connections, over all workers.
    pub(crate) places: Arc<Semaphore>,
    pub(crate) phase: watch::Receiver<Phase>,
}

#[derive(Clone, Copy, Debug)]
struct HttpLimits {
    header_read_timeout: Duration,
    header_bytes_max: usize,
    headers_max: usize,
    write_stall: Duration,
}

impl HttpLimits {
    /// Those of a connection that begins now.
    fn new(shared: &Shared) -> Self {
        let config = &shared.live.load().config;
        Self {
            header_read_timeout: config.header_read_timeout.get(),
            header_bytes_max: config.header_bytes_max.get(),
            headers_max: config.headers_max,
            write_stall: config.stall_timeout.get(),
        }
    }
}

impl Worker {
    /// Serves until [`Phase::Stop`] or, once draining, until all connections have ended.
    pub(crate) async fn run(mut self) {
        let listener = match tokio::net::TcpListener::from_std(self.listener) {
            Ok(listener) => listener,
            Err(error) => {
                warn!(%error, "worker cannot use its listener");
                return;
            }
        };
        let desk = Arc::new(Desk::new(self.shared.clone(), self.phase.clone()));
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = reached(&mut self.phase, Phase::Drain) => break,
                Some(_) = connections.join_next() => continue,
                accepted = accept(&listener, &self.places) => accepted,
            };
            let Some((stream, place)) = accepted else {
                continue;
            };
            let connection = Connection {
                limits: HttpLimits::new(&self.shared),
                desk: Arc::clone(&desk),
                phase: self.phase.clone(),
            };
            let counted = self.shared.metrics.connect();
            connections.spawn(async move {
                connection.serve(stream).await;
                drop((place, counted));
            });
        }
        // What the kernel has accepted for us already would be reset with the listener.
        while let Ok(Ok((stream, _))) =
            tokio::time::timeout(Duration::ZERO, listener.accept()).await
        {
            let connection = Connection {
                limits: HttpLimits::new(&self.shared),
                desk: Arc::clone(&desk),
                phase: self.phase.clone(),
            };
            connections.spawn(async move { connection.serve(stream).await });
        }
        drop(listener);
        tokio::select! {
            () = async { while connections.join_next().await.is_some() {} } => {}
            () = reached(&mut self.phase, Phase::Stop) => connections.shutdown().await,
        }
    }
}

/// Takes a place first and a connection then: at the limit, connections wait in the kernel.
async fn accept(
    listener: &tokio::net::TcpListener,
    places: &Arc<Semaphore>,
) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let place = Arc::clone(places).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, place)),
        Err(error) => {
            debug!(%error, "accept failed");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

/// Where a worker's connections get the pipeline for each request.
#[derive(Debug)]
struct Desk {
    shared: Shared,
    phase: watch::Receiver<Phase>,
    current: ArcSwap<Pipeline>,
}

impl Desk {
    fn new(shared: Shared, phase: watch::Receiver<Phase>) -> Self {
        let current = Pipeline::new(&shared, phase.clone(), None);
        Self {
            current: ArcSwap::from_pointee(current),
            shared,
            phase,
        }
    }

    /// The pipeline of the configuration that is in effect now.
    fn pipeline(&self) -> Arc<Pipeline> {
        let current = self.current.load_full();
        if current.is_of(&self.shared.live.load()) {
            return current;
        }
        // Only this worker's thread comes here, so that one pipeline is made for each change.
        let next = Arc::new(Pipeline::new(
            &self.shared,
            self.phase.clone(),
            Some(&current),
        ));
        self.current.store(Arc::clone(&next));
        next
    }
}

struct Connection {
    desk: Arc<Desk>,
    limits: HttpLimits,
    phase: watch::Receiver<Phase>,
}

impl Connection {
    async fn serve(mut self, stream: TcpStream) {
        // Without it small answers wait for acknowledgements; failing to set it is no reason to stop.
        drop(stream.set_nodelay(true));
        let peer = stream.peer_addr();
        let peer = peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.ip());
        let patience = Patience {
            first_bytes: self.limits.header_read_timeout,
            write_stall: self.limits.write_stall,
        };
        let detected = tokio::select! {
            detected = Rewound::detect(stream, patience) => detected,
            // A connection on which nothing was asked yet is idle.
            () = reached(&mut self.phase, Phase::Drain) => return,
        };
        let Ok((stream, protocol)) = detected else {
            return;
        };
        let ended = match protocol {
            Protocol::Http1 => self.serve_http1(stream, peer).await,
            Protocol::Http2 => self.serve_http2(stream, peer).await,
        };
        if let Err(error) = ended {
            debug!(%error, "connection ended");
        }
    }

    async fn serve_http1(mut self, stream: Rewound, peer: IpAddr) -> Result<(), hyper::Error> {
        let desk = self.desk;
        let service = service_fn(move |request: Request<Incoming>| {
            let pipeline = desk.pipeline();
            async move { Ok::<_, Infallible>(pipeline.handle(request, peer).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.header_read_timeout)
            .max_headers(self.limits.headers_max * HEADER_SLACK)
            .max_buf_size((self.limits.header_bytes_max * HEADER_SLACK).max(READ_BUFFER_MIN))
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = pin!(connection);
        tokio::select! {
            ended = connection.as_mut() => return ended,
            () = reached(&mut self.phase, Phase::Drain) => connection.as_mut().graceful_shutdown(),
        }
        connection.await
    }

    async fn serve_http2(mut self, stream: Rewound, peer: IpAddr) -> Result<(), hyper::Error> {
        let desk = self.desk;
        let service = service_fn(move |request: Request<Incoming>| {
            let pipeline = desk.pipeline();
            async move { Ok::<_, Infallible>(pipeline.handle(request, peer).await) }
        });
        let header_list_max = self.limits.header_bytes_max * HEADER_SLACK;
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_header_list_size(u32::try_from(header_list_max).unwrap_or(u32::MAX))
            .max_concurrent_streams(STREAMS_MAX)
            .max_pending_accept_reset_streams(RESETS_MAX)
            .max_local_error_reset_streams(RESETS_MAX)
            .max_send_buf_size(HTTP2_SEND_BUFFER)
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = pin!(connection);
        tokio::select! {
            ended = connection.as_mut() => return ended,
            () = reached(&mut self.phase, Phase::Drain) => connection.as_mut().graceful_shutdown(),
        }
        connection.await
    }
}

/// Returns when the shutdown has come so far, or its sender is gone.
async fn reached(phase: &mut watch::Receiver<Phase>, wanted: Phase) {
    drop(phase.wait_for(|phase| *phase >= wanted).await);
}

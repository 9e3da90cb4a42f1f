//! Accepts connections on the RESP and FLUX port and gives each to a core.
//!
//! One acceptor for all cores: with few connections the kernel's spreading over several listening
//! sockets would leave cores idle, and a hand-over costs one wake in a connection's life. A
//! connection stays on its core until it ends.

use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use flux_wire::{HTTP_ANSWER, Sniffed, sniff};
use futures_util::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::clients::Ending;
use crate::context::{Context, SessionContext};
use crate::cores::{Places, Seat};
use crate::exec::Executor;
use crate::metrics::Protocol;
use crate::{flux_session, session};

/// Pause after a failed accept: it fails when descriptors have run out, and would fail again at
/// once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often silent connections are looked for.
const IDLE_CHECK: Duration = Duration::from_millis(500);
/// Silence after which the kernel asks the peer whether it still lives.
const KEEP_ALIVE: Duration = Duration::from_secs(300);
/// Bytes read to tell the protocols apart.
const SNIFF_BYTES: usize = 1024;

/// What accepting needs.
#[derive(Debug)]
pub(crate) struct Acceptor {
    pub(crate) context: Arc<Context>,
    pub(crate) places: Arc<Places>,
    /// One for each core.
    pub(crate) executors: Vec<Executor>,
}

impl Acceptor {
    /// Accepts until `stop`, then closes the listener.
    ///
    /// # Cancellation
    /// Safe to drop.
    pub(crate) async fn run(self, listener: TcpListener, stop: CancellationToken) {
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    if let Err(error) = self.hand_over(stream, peer) {
                        debug!(%error, "connection closed while it was accepted");
                    }
                }
                Err(error) => {
                    warn!(%error, "accept failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Gives a connection to the least loaded core.
    fn hand_over(&self, stream: TcpStream, peer: SocketAddr) -> io::Result<()> {
        let node = &self.context;
        let stream = stream.into_std()?;
        stream.set_nodelay(true)?;
        socket2::SockRef::from(&stream)
            .set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(KEEP_ALIVE))?;
        if node.clients.count() >= node.switches.connections_max() {
            node.metrics.connection_refused(Protocol::Resp);
            // Non-blocking, and the peer may be gone: an attempt is all it deserves.
            drop(io::Write::write(
                &mut &stream,
                b"-ERR max number of clients reached\r\n",
            ));
            return Ok(());
        }
        let (core, seat) = self.places.seat();
        let Some(executor) = self.executors.get(core) else {
            return Ok(());
        };
        let context = SessionContext {
            node: Arc::clone(node),
            executor: executor.clone(),
        };
        // Owned by its core: ends by itself, on drain through `Clients`, at the latest with the
        // core's runtime.
        self.places
            .handle(core)
            .spawn(guarded(stream, peer, context, seat));
        Ok(())
    }
}

/// Serves a connection; a panic ends this connection and is counted.
async fn guarded(
    stream: std::net::TcpStream,
    peer: SocketAddr,
    context: SessionContext,
    seat: Seat,
) {
    let node = Arc::clone(&context.node);
    let local = stream.local_addr().ok();
    let client = node.clients.register(Some(peer), local, node.now_millis());
    let id = client.id;
    let serving = async {
        let stream = match TcpStream::from_std(stream) {
            Ok(stream) => stream,
            Err(error) => {
                warn!(%error, "connection closed: the runtime did not take it");
                return;
            }
        };
        choose(stream, context, client).await;
    };
    if AssertUnwindSafe(serving).catch_unwind().await.is_err() {
        node.metrics.panicked();
        tracing::error!(client = id, "a session ended by a panic");
    }
    node.clients.remove(id);
    drop(seat);
}

/// Tells the protocols apart and serves the one that is spoken.
async fn choose(
    mut stream: TcpStream,
    context: SessionContext,
    client: Arc<crate::clients::Client>,
) {
    let mut arrived = BytesMut::new();
    let sniffed = loop {
        arrived.reserve(SNIFF_BYTES);
        match client.unless_ended(stream.read_buf(&mut arrived)).await {
            None | Some(Err(_) | Ok(0)) => return,
            Some(Ok(_)) => {}
        }
        match sniff(&arrived) {
            Sniffed::NeedMore => {}
            sniffed @ (Sniffed::Flux | Sniffed::Resp | Sniffed::Http) => break sniffed,
        }
    };
    let metrics = context.node.metrics.clone();
    match sniffed {
        Sniffed::Flux => {
            let counted = metrics.connection(Protocol::Flux);
            client.set_protocol(0);
            flux_session::run(stream, arrived, context.flux_parts(), client).await;
            drop(counted);
        }
        Sniffed::Http => {
            // The answer is a courtesy: whether it arrives changes nothing.
            drop(stream.write_all(HTTP_ANSWER).await);
            drop(stream.shutdown().await);
        }
        Sniffed::Resp | Sniffed::NeedMore => {
            let counted = metrics.connection(Protocol::Resp);
            session::serve(stream, arrived, context, client).await;
            drop(counted);
        }
    }
}

/// Ends connections that have been silent for longer than allowed, until `stop`.
pub(crate) async fn end_idle(context: Arc<Context>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(IDLE_CHECK) => {}
        }
        let Some(timeout) = context.switches.idle_timeout() else {
            continue;
        };
        let now = context.now_millis();
        for client in context.clients.all() {
            let silent = Duration::from_millis(now.saturating_sub(client.active_millis()));
            if silent > timeout {
                client.end(Ending::Kill);
            }
        }
    }
}

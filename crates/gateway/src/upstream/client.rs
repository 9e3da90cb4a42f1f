//! A worker's own way to an upstream: connections over HTTP/2, one per endpoint, and calls on them.
//!
//! Hot path. hyper's HTTP/2 client is used directly: a message is framed once, sent as one body,
//! and what arrives is sliced, not copied, when it arrived in one piece. Endpoints take turns. A
//! call is tried again, elsewhere if possible, only when it provably never reached the service:
//! no connection, not sent, or refused by GOAWAY.

use std::error::Error as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use flux_cluster::registry;
use flux_telemetry::trace::Span;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue, TE, USER_AGENT};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::debug;

use super::Upstream;
use super::frame::frame;
use super::messages::Messages;
use crate::status::{Code, Failure, Outcome};

const CALL_WINDOW: u32 = 1 << 20;
const CALLS_WINDOW: u32 = 8 << 20;
/// What an upstream may send of a stream whose client does not read.
const STREAM_WINDOW: u32 = 64 << 10;
/// Streams on one connection: servers commonly allow a hundred, and one more would wait unseen.
const STREAMS_PER_CONNECTION: usize = 64;
/// All streams of a connection may be stuck without holding up one another.
const STREAMS_WINDOW: u32 = 2 * 64 * STREAM_WINDOW;
const _: () =
    assert!(STREAMS_WINDOW as usize >= 2 * STREAMS_PER_CONNECTION * STREAM_WINDOW as usize);
/// Largest list of response headers or trailers.
const HEADER_LIST_MAX: u32 = 64 << 10;
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// Times a call that never reached the service is tried.
const ATTEMPTS_MAX: usize = 3;

type Body = Full<Bytes>;

/// One call of a method that answers with one message.
#[derive(Debug)]
pub(crate) struct Call {
    /// `/package.Service/Method`
    pub(crate) path: PathAndQuery,
    pub(crate) metadata: HeaderMap,
    pub(crate) message: Bytes,
    pub(crate) deadline: Instant,
    /// Its span, if it is recorded.
    pub(crate) span: Option<Span>,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) headers: HeaderMap,
    pub(crate) message: Bytes,
}

/// Which connections a call takes. Streams have their own: one that nobody reads keeps what it was
/// sent within the window of its connection, which would leave none for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    Calls,
    Streams,
}

impl Lane {
    const fn stream_window(self) -> u32 {
        match self {
            Self::Calls => CALL_WINDOW,
            Self::Streams => STREAM_WINDOW,
        }
    }

    const fn connection_window(self) -> u32 {
        match self {
            Self::Calls => CALLS_WINDOW,
            Self::Streams => STREAMS_WINDOW,
        }
    }
}

/// A connection that carries streams, and how many: one more than it has of these is shared.
#[derive(Debug)]
struct StreamConnection {
    sender: SendRequest<Body>,
    seats: Arc<()>,
}

/// A call's place on a connection, for as long as it lasts.
#[derive(Clone, Debug)]
pub(crate) enum Seat {
    Call,
    Stream(Arc<()>),
}

/// The connections of one worker to one upstream.
#[derive(Debug)]
pub(crate) struct Client {
    upstream: Arc<Upstream>,
    endpoints: Mutex<Endpoints>,
    turn: AtomicUsize,
}

#[derive(Debug)]
struct Endpoints {
    source: registry::Endpoints,
    all: Arc<[Arc<Endpoint>]>,
}

impl Client {
    pub(crate) fn new(upstream: Arc<Upstream>) -> Self {
        let mut source = upstream.endpoints.clone();
        let found = Arc::clone(&source.borrow_and_update());
        let all = found
            .iter()
            .filter_map(|found| Endpoint::new(&found.address, &upstream))
            .collect();
        Self {
            upstream,
            endpoints: Mutex::new(Endpoints { source, all }),
            turn: 0.into(),
        }
    }

    /// Calls a method that takes one message and answers with one.
    ///
    /// # Errors
    /// What the upstream answered, or why it could not be asked; [`Failure::outcome`] says for the
    /// latter whether the service can have seen the call.
    ///
    /// # Cancellation
    /// Safe to drop: the stream is reset.
    pub(crate) async fn unary(&self, call: &Call) -> Result<Answer, Failure> {
        let body = frame(&call.message).ok_or_else(message_too_long)?;
        let is_sent = AtomicBool::new(false);
        let exchange = self.exchange(call, body, &is_sent);
        match timeout_at(call.deadline, exchange).await {
            Ok(Ok((headers, messages))) => match <[Bytes; 1]>::try_from(messages) {
                Ok([message]) => Ok(Answer { headers, message }),
                Err(_) => Err(broken(
                    "the upstream did not answer with exactly one message",
                )),
            },
            Ok(Err(failure)) => Err(failure),
            Err(_) => Err(deadline_exceeded(is_sent.load(Ordering::Relaxed))),
        }
    }

    /// Calls a method that takes one message and answers with a stream of them. Returns when the
    /// upstream begins to answer, which may be as late as its first message.
    ///
    /// # Errors
    /// As [`Self::unary`], as long as no message has come.
    ///
    /// # Cancellation
    /// Safe to drop: the stream is reset.
    pub(crate) async fn open(&self, call: &Call) -> Result<Messages, Failure> {
        let body = frame(&call.message).ok_or_else(message_too_long)?;
        let is_sent = AtomicBool::new(false);
        let opening = self.send(call, body, &is_sent, Lane::Streams);
        match timeout_at(call.deadline, opening).await {
            Ok(opened) => {
                let (response, seat) = opened?;
                let bytes_max = self.upstream.response_bytes_max;
                Messages::new(response, bytes_max, seat)
            }
            Err(_) => Err(deadline_exceeded(is_sent.load(Ordering::Relaxed))),
        }
    }

    /// Calls a streaming method with messages that are known beforehand, and collects the answers.
    ///
    /// # Errors
    /// As [`Self::unary`].
    pub(crate) async fn batch(
        &self,
        call: &Call,
        messages: &[Vec<u8>],
    ) -> Result<Vec<Bytes>, Failure> {
        let framed: Vec<Bytes> = messages
            .iter()
            .filter_map(|message| frame(message))
            .collect();
        let is_sent = AtomicBool::new(false);
        let exchange = self.exchange(call, framed.concat().into(), &is_sent);
        match timeout_at(call.deadline, exchange).await {
            Ok(answer) => answer.map(|(_, messages)| messages),
            Err(_) => Err(deadline_exceeded(is_sent.load(Ordering::Relaxed))),
        }
    }

    async fn exchange(
        &self,
        call: &Call,
        body: Bytes,
        is_sent: &AtomicBool,
    ) -> Result<(HeaderMap, Vec<Bytes>), Failure> {
        let (response, seat) = self.send(call, body, is_sent, Lane::Calls).await?;
        let bytes_max = self.upstream.response_bytes_max;
        let mut messages = Messages::new(response, bytes_max, seat)?;
        let mut all = Vec::new();
        let mut room = bytes_max;
        while let Some(message) = messages.next().await? {
            let left = room.checked_sub(message.len());
            room = left.ok_or_else(answer_too_large)?;
            all.push(message);
        }
        Ok((messages.into_headers(), all))
    }

    /// Sends the call to the endpoint whose turn it is, or to the next that takes it.
    async fn send(
        &self,
        call: &Call,
        body: Bytes,
        is_sent: &AtomicBool,
        lane: Lane,
    ) -> Result<(Response<Incoming>, Seat), Failure> {
        let endpoints = self.endpoints();
        let mut last = unavailable("the upstream has no endpoint");
        for _ in 0..ATTEMPTS_MAX.min(endpoints.len() + 1) {
            let turn = self.turn.fetch_add(1, Ordering::Relaxed);
            let at = turn.checked_rem(endpoints.len()).unwrap_or_default();
            let Some(endpoint) = endpoints.get(at) else {
                break;
            };
            let (mut connection, seat) = match endpoint.connection(lane).await {
                Ok(connection) => connection,
                Err(failure) => {
                    last = failure;
                    continue;
                }
            };
            let request = request(endpoint, call, body.clone())?;
            endpoint.describe(call.span.as_ref());
            is_sent.store(true, Ordering::Relaxed);
            match connection.try_send_request(request).await {
                Ok(response) => return Ok((response, seat)),
                Err(mut refused) => {
                    let never_sent = refused.take_message().is_some();
                    let error = refused.into_error();
                    debug!(upstream = %self.upstream.name, %error, "call failed");
                    if !never_sent && !is_refused_stream(&error) {
                        return Err(unavailable("the connection to the upstream was lost")
                            .outcome(Outcome::Unknown));
                    }
                    is_sent.store(false, Ordering::Relaxed);
                    endpoint.forget(&seat);
                    last = unavailable("the upstream is shutting down");
                }
            }
        }
        Err(last)
    }

    /// The endpoints as discovery has them now; connections of those that stay are kept.
    fn endpoints(&self) -> Arc<[Arc<Endpoint>]> {
        let mut endpoints = self.endpoints.lock();
        if endpoints.source.has_changed().unwrap_or(false) {
            let found = Arc::clone(&endpoints.source.borrow_and_update());
            let old = Arc::clone(&endpoints.all);
            endpoints.all = found
                .iter()
                .filter_map(|found| {
                    let kept = old
                        .iter()
                        .find(|endpoint| endpoint.address == found.address);
                    kept.cloned()
                        .or_else(|| Endpoint::new(&found.address, &self.upstream))
                })
                .collect();
        }
        Arc::clone(&endpoints.all)
    }
}

/// One endpoint and this worker's connection to it.
#[derive(Debug)]
struct Endpoint {
    address: String,
    authority: Authority,
    upstream: Arc<Upstream>,
    calls: Mutex<Option<SendRequest<Body>>>,
    /// Connections that carry nothing but streams.
    streams: Mutex<Vec<StreamConnection>>,
    /// Held while connecting, so that one of many waiting calls does it for all.
    connecting: tokio::sync::Mutex<Backoff>,
}

#[derive(Debug)]
struct Backoff {
    /// No attempt before this.
    retry_at: Option<Instant>,
    next: Duration,
}

impl Endpoint {
    fn new(address: &str, upstream: &Arc<Upstream>) -> Option<Arc<Self>> {
        // Configuration has checked it; a registry may still hold nonsense, which is left out.
        let authority = address.parse().ok()?;
        Some(Arc::new(Self {
            address: address.to_owned(),
            authority,
            upstream: Arc::clone(upstream),
            calls: Mutex::new(None),
            streams: Mutex::new(Vec::new()),
            connecting: tokio::sync::Mutex::new(Backoff {
                retry_at: None,
                next: BACKOFF_MIN,
            }),
        }))
    }

    /// An open connection with room, or a new one.
    async fn connection(&self, lane: Lane) -> Result<(SendRequest<Body>, Seat), Failure> {
        if let Some(open) = self.open_connection(lane) {
            return Ok(open);
        }
        let mut backoff = self.connecting.lock().await;
        if let Some(open) = self.open_connection(lane) {
            return Ok(open);
        }
        if backoff.retry_at.is_some_and(|at| Instant::now() < at) {
            return Err(unavailable("the upstream cannot be reached"));
        }
        let connected = timeout(self.upstream.connect_timeout, self.connect(lane)).await;
        match connected.unwrap_or(Err("the connection took too long".to_owned())) {
            Ok(connection) => {
                *backoff = Backoff {
                    retry_at: None,
                    next: BACKOFF_MIN,
                };
                Ok(self.keep(connection, lane))
            }
            Err(error) => {
                debug!(upstream = %self.upstream.name, endpoint = %self.address, error, "no connection");
                backoff.retry_at = Some(Instant::now() + backoff.next);
                backoff.next = (backoff.next * 2).min(BACKOFF_MAX);
                Err(unavailable("the upstream cannot be reached"))
            }
        }
    }

    fn open_connection(&self, lane: Lane) -> Option<(SendRequest<Body>, Seat)> {
        match lane {
            Lane::Calls => {
                let calls = self.calls.lock();
                let open = calls.as_ref().filter(|open| !open.is_closed());
                open.map(|open| (open.clone(), Seat::Call))
            }
            Lane::Streams => {
                let mut streams = self.streams.lock();
                let mut is_spare = false;
                streams.retain(|one| {
                    let is_idle = Arc::strong_count(&one.seats) == 1;
                    let is_left = one.sender.is_closed() || (is_idle && is_spare);
                    is_spare |= is_idle;
                    !is_left
                });
                let one = streams
                    .iter()
                    .find(|one| Arc::strong_count(&one.seats) <= STREAMS_PER_CONNECTION)?;
                Some((one.sender.clone(), Seat::Stream(Arc::clone(&one.seats))))
            }
        }
    }

    fn keep(&self, sender: SendRequest<Body>, lane: Lane) -> (SendRequest<Body>, Seat) {
        match lane {
            Lane::Calls => {
                *self.calls.lock() = Some(sender.clone());
                (sender, Seat::Call)
            }
            Lane::Streams => {
                let seats = Arc::new(());
                self.streams.lock().push(StreamConnection {
                    sender: sender.clone(),
                    seats: Arc::clone(&seats),
                });
                (sender, Seat::Stream(seats))
            }
        }
    }

    /// Says in a call's span where it goes.
    fn describe(&self, span: Option<&Span>) {
        let Some(span) = span else {
            return;
        };
        span.set("server.address", self.authority.host().to_owned());
        if let Some(port) = self.authority.port_u16() {
            span.set("server.port", port);
        }
    }

    /// Uses the connection no more for new calls.
    fn forget(&self, seat: &Seat) {
        match seat {
            Seat::Call => *self.calls.lock() = None,
            Seat::Stream(seats) => self
                .streams
                .lock()
                .retain(|one| !Arc::ptr_eq(&one.seats, seats)),
        }
    }

    async fn connect(&self, lane: Lane) -> Result<SendRequest<Body>, String> {
        let stream = TcpStream::connect(&self.address)
            .await
            .map_err(|error| error.to_string())?;
        stream
            .set_nodelay(true)
            .map_err(|error| error.to_string())?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(lane.stream_window())
            .initial_connection_window_size(lane.connection_window())
            .max_header_list_size(HEADER_LIST_MAX)
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
        let upstream = Arc::clone(&self.upstream);
        // Owned by the endpoint through `sender`: it ends when the last clone of that is gone, or
        // when the runtime of this worker is.
        drop(tokio::spawn(async move {
            if let Err(error) = connection.await {
                debug!(upstream = %upstream.name, %error, "connection ended");
            }
            upstream.connection_lost.notify_one();
        }));
        Ok(sender)
    }
}

fn request(endpoint: &Endpoint, call: &Call, body: Bytes) -> Result<Request<Body>, Failure> {
    let uri = Uri::builder()
        .scheme(Scheme::HTTP)
        .authority(endpoint.authority.clone())
        .path_and_query(call.path.clone())
        .build();
    let uri = uri.map_err(|_| broken("the method has no usable name"))?;
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = uri;
    let headers = request.headers_mut();
    headers.clone_from(&call.metadata);
    for (name, value) in &endpoint.upstream.metadata {
        if !headers.contains_key(name) {
            headers.insert(name.clone(), value.clone());
        }
    }
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(TE, HeaderValue::from_static("trailers"));
    headers.insert(USER_AGENT, HeaderValue::from_static("flux-gateway"));
    headers.insert("grpc-timeout", grpc_timeout(call.deadline)?);
    Ok(request)
}

/// What is left until the deadline, as gRPC writes it: at most eight digits and a unit.
fn grpc_timeout(deadline: Instant) -> Result<HeaderValue, Failure> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(deadline_exceeded(false));
    }
    let text = match left.as_micros() {
        micros @ 0..=99_999_999 => format!("{}u", micros.max(1)),
        _ => format!("{}m", left.as_millis().min(99_999_999)),
    };
    HeaderValue::try_from(text).map_err(|_| deadline_exceeded(false))
}

/// Whether the upstream said that it did not look at the stream.
fn is_refused_stream(error: &hyper::Error) -> bool {
    let h2 = error
        .source()
        .and_then(|source| source.downcast_ref::<h2::Error>());
    h2.is_some_and(|error| error.reason() == Some(h2::Reason::REFUSED_STREAM))
}

fn message_too_long() -> Failure {
    Failure::new(Code::ResourceExhausted, "the message is too long for gRPC")
        .outcome(Outcome::NotDone)
}

pub(super) fn answer_too_large() -> Failure {
    Failure::new(
        Code::ResourceExhausted,
        "the upstream's answer is too large",
    )
    .http(StatusCode::BAD_GATEWAY)
    .reason("RESPONSE_TOO_LARGE")
}

pub(super) fn unavailable(message: &str) -> Failure {
    Failure::new(Code::Unavailable, message)
        .reason("UPSTREAM_UNAVAILABLE")
        .outcome(Outcome::NotDone)
}

/// The upstream broke the protocol after it was called.
pub(super) fn broken(message: &str) -> Failure {
    Failure::new(Code::Internal, message)
        .http(StatusCode::BAD_GATEWAY)
        .reason("UPSTREAM_PROTOCOL")
        .outcome(Outcome::Unknown)
}

pub(crate) fn deadline_exceeded(is_sent: bool) -> Failure {
    Failure::new(
        Code::DeadlineExceeded,
        "the deadline passed before the upstream answered",
    )
    .reason("DEADLINE_EXCEEDED")
    .outcome(if is_sent {
        Outcome::Unknown
    } else {
        Outcome::NotDone
    })
}

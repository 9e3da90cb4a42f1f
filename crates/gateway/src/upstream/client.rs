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
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue, TE, USER_AGENT};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::debug;

use super::Upstream;
use super::frame::{FrameError, Unframer, frame};
use crate::status::{Code, Failure, Outcome, from_trailers};

const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;
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
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) headers: HeaderMap,
    pub(crate) message: Bytes,
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
        let Some(body) = frame(&call.message) else {
            return Err(
                Failure::new(Code::ResourceExhausted, "the message is too long for gRPC")
                    .outcome(Outcome::NotDone),
            );
        };
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
        let response = self.send(call, body, is_sent).await?;
        collect(response, self.upstream.response_bytes_max).await
    }

    /// Sends the call to the endpoint whose turn it is, or to the next that takes it.
    async fn send(
        &self,
        call: &Call,
        body: Bytes,
        is_sent: &AtomicBool,
    ) -> Result<Response<Incoming>, Failure> {
        let endpoints = self.endpoints();
        let mut last = unavailable("the upstream has no endpoint");
        for _ in 0..ATTEMPTS_MAX.min(endpoints.len() + 1) {
            let turn = self.turn.fetch_add(1, Ordering::Relaxed);
            let at = turn.checked_rem(endpoints.len()).unwrap_or_default();
            let Some(endpoint) = endpoints.get(at) else {
                break;
            };
            let mut connection = match endpoint.connection().await {
                Ok(connection) => connection,
                Err(failure) => {
                    last = failure;
                    continue;
                }
            };
            let request = request(endpoint, call, body.clone())?;
            is_sent.store(true, Ordering::Relaxed);
            match connection.try_send_request(request).await {
                Ok(response) => return Ok(response),
                Err(mut refused) => {
                    let never_sent = refused.take_message().is_some();
                    let error = refused.into_error();
                    debug!(upstream = %self.upstream.name, %error, "call failed");
                    if !never_sent && !is_refused_stream(&error) {
                        return Err(unavailable("the connection to the upstream was lost")
                            .outcome(Outcome::Unknown));
                    }
                    is_sent.store(false, Ordering::Relaxed);
                    endpoint.forget();
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
    current: Mutex<Option<SendRequest<Body>>>,
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
            current: Mutex::new(None),
            connecting: tokio::sync::Mutex::new(Backoff {
                retry_at: None,
                next: BACKOFF_MIN,
            }),
        }))
    }

    /// The open connection, or a new one.
    async fn connection(&self) -> Result<SendRequest<Body>, Failure> {
        if let Some(open) = self.open_connection() {
            return Ok(open);
        }
        let mut backoff = self.connecting.lock().await;
        if let Some(open) = self.open_connection() {
            return Ok(open);
        }
        if backoff.retry_at.is_some_and(|at| Instant::now() < at) {
            return Err(unavailable("the upstream cannot be reached"));
        }
        let connected = timeout(self.upstream.connect_timeout, self.connect()).await;
        match connected.unwrap_or(Err("the connection took too long".to_owned())) {
            Ok(connection) => {
                *backoff = Backoff {
                    retry_at: None,
                    next: BACKOFF_MIN,
                };
                *self.current.lock() = Some(connection.clone());
                Ok(connection)
            }
            Err(error) => {
                debug!(upstream = %self.upstream.name, endpoint = %self.address, error, "no connection");
                backoff.retry_at = Some(Instant::now() + backoff.next);
                backoff.next = (backoff.next * 2).min(BACKOFF_MAX);
                Err(unavailable("the upstream cannot be reached"))
            }
        }
    }

    fn open_connection(&self) -> Option<SendRequest<Body>> {
        self.current
            .lock()
            .as_ref()
            .filter(|connection| !connection.is_closed())
            .cloned()
    }

    fn forget(&self) {
        *self.current.lock() = None;
    }

    async fn connect(&self) -> Result<SendRequest<Body>, String> {
        let stream = TcpStream::connect(&self.address)
            .await
            .map_err(|error| error.to_string())?;
        stream
            .set_nodelay(true)
            .map_err(|error| error.to_string())?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
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

/// Reads the whole answer: messages, then the status.
async fn collect(
    response: Response<Incoming>,
    bytes_max: usize,
) -> Result<(HeaderMap, Vec<Bytes>), Failure> {
    let (head, mut body) = response.into_parts();
    if head.status != StatusCode::OK {
        let code = Code::from_http(head.status);
        let message = format!(
            "the upstream answered with HTTP status {}",
            head.status.as_u16()
        );
        return Err(Failure::new(code, message).outcome(Outcome::Unknown));
    }
    let is_grpc = head
        .headers
        .get(CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
    if !is_grpc {
        return Err(broken("the upstream does not speak gRPC"));
    }
    let mut unframer = Unframer::new(bytes_max);
    let mut messages = Vec::new();
    let mut room = bytes_max;
    let mut status = None;
    while let Some(piece) = body.frame().await {
        let piece = piece.map_err(|error| {
            debug!(%error, "answer broke off");
            unavailable("the connection to the upstream was lost").outcome(Outcome::Unknown)
        })?;
        match piece.into_data() {
            Ok(data) => unframer.push(data),
            Err(other) => status = other.into_trailers().ok().and_then(|t| from_trailers(&t)),
        }
        while let Some(message) = unframer.next().map_err(frame_failure)? {
            room = room
                .checked_sub(message.len())
                .ok_or(FrameError::TooLarge)
                .map_err(frame_failure)?;
            messages.push(message);
        }
    }
    match status.or_else(|| from_trailers(&head.headers)) {
        Some(Err(failure)) => Err(failure),
        Some(Ok(())) if unframer.is_empty() => Ok((head.headers, messages)),
        Some(Ok(())) => Err(broken("the upstream's answer ends inside a message")),
        None => Err(broken("the upstream's answer has no status")),
    }
}

fn frame_failure(error: FrameError) -> Failure {
    match error {
        FrameError::Compressed => broken("the upstream compressed its answer without being asked"),
        FrameError::TooLarge => Failure::new(
            Code::ResourceExhausted,
            "the upstream's answer is too large",
        )
        .http(StatusCode::BAD_GATEWAY)
        .reason("RESPONSE_TOO_LARGE"),
    }
}

/// Whether the upstream said that it did not look at the stream.
fn is_refused_stream(error: &hyper::Error) -> bool {
    let h2 = error
        .source()
        .and_then(|source| source.downcast_ref::<h2::Error>());
    h2.is_some_and(|error| error.reason() == Some(h2::Reason::REFUSED_STREAM))
}

fn unavailable(message: &str) -> Failure {
    Failure::new(Code::Unavailable, message)
        .reason("UPSTREAM_UNAVAILABLE")
        .outcome(Outcome::NotDone)
}

/// The upstream broke the protocol after it was called.
fn broken(message: &str) -> Failure {
    Failure::new(Code::Internal, message)
        .http(StatusCode::BAD_GATEWAY)
        .reason("UPSTREAM_PROTOCOL")
        .outcome(Outcome::Unknown)
}

fn deadline_exceeded(is_sent: bool) -> Failure {
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

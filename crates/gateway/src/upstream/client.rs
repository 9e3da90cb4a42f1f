//! A worker's own way to an upstream: connections over HTTP/2, one per endpoint, and calls on them.
//!
//! Hot path. hyper's HTTP/2 client is used directly: a message is framed once, sent as one body,
//! and what arrives is sliced, not copied, when it arrived in one piece. Which endpoint a call goes
//! to is decided in `upstream::members`; when it is tried again, in [`Tries`].

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flux_telemetry::trace::Span;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue, TE, USER_AGENT};
use http::uri::{PathAndQuery, Scheme};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::Full;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::debug;

use super::Upstream;
use super::frame::frame;
use super::members::{Attempt, Member, Set};
use super::messages::Messages;
use crate::policy::health::Verdict;
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

/// How long before a deadline an upstream's "cancelled" means that it has passed there.
const DEADLINE_SLACK: Duration = Duration::from_millis(50);

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
    /// Whether the caller wants the answer sooner than the configuration would have it.
    pub(crate) is_impatient: bool,
    /// Whether calling twice is the same as once.
    pub(crate) is_idempotent: bool,
}

/// What came back.
#[derive(Clone, Debug)]
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
    known: Mutex<Known>,
}

/// The endpoints when they were last looked at, with this worker's connections to them.
#[derive(Debug)]
struct Known {
    set: Arc<Set>,
    /// In the order of the set.
    endpoints: Arc<[Arc<Endpoint>]>,
}

impl Client {
    pub(crate) fn new(upstream: Arc<Upstream>) -> Self {
        let set = upstream.members.current();
        let endpoints = set
            .all
            .iter()
            .map(|member| Endpoint::new(member, &upstream))
            .collect();
        Self {
            upstream,
            known: Mutex::new(Known { set, endpoints }),
        }
    }

    /// Whether it calls this upstream.
    pub(crate) fn is_of(&self, upstream: &Arc<Upstream>) -> bool {
        Arc::ptr_eq(&self.upstream, upstream)
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
        let mut tries = self.tries(call);
        let (headers, messages) = loop {
            let shot = tries.next()?;
            let exchange = self.exchange(&shot, call, body.clone());
            let result = shot.until(call.deadline, exchange).await;
            if let Some(result) = tries.settle(shot, result) {
                break result?;
            }
        };
        match <[Bytes; 1]>::try_from(messages) {
            Ok([message]) => Ok(Answer { headers, message }),
            Err(_) => Err(broken(
                "the upstream did not answer with exactly one message",
            )),
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
        let mut tries = self.tries(call);
        loop {
            let shot = tries.next()?;
            let opening = self.begin(&shot, call, body.clone(), Lane::Streams);
            let result = shot.until(call.deadline, opening).await;
            if let Some(result) = tries.settle(shot, result) {
                return result;
            }
        }
    }

    /// Calls a streaming method with messages that are known beforehand, and collects the answers.
    /// It is tried once.
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
        // What the gateway asks for itself takes no turn: the turns are those of the callers.
        let mut tries = Tries::new(self, call, 0);
        let shot = tries.next()?;
        let exchange = self.exchange(&shot, call, framed.concat().into());
        let result = shot.until(call.deadline, exchange).await;
        shot.end(&result, call.is_impatient);
        result.map(|(_, messages)| messages)
    }

    fn tries<'c>(&'c self, call: &'c Call) -> Tries<'c> {
        self.upstream.deposit();
        Tries::new(self, call, self.upstream.members.next_turn())
    }

    async fn exchange(
        &self,
        shot: &Shot,
        call: &Call,
        body: Bytes,
    ) -> Result<(HeaderMap, Vec<Bytes>), Failure> {
        let mut messages = self.begin(shot, call, body, Lane::Calls).await?;
        let mut all = Vec::new();
        let mut room = self.upstream.response_bytes_max;
        while let Some(message) = messages.next().await? {
            let left = room.checked_sub(message.len());
            room = left.ok_or_else(answer_too_large)?;
            all.push(message);
        }
        Ok((messages.into_headers(), all))
    }

    /// Sends the call and waits for the head of the answer.
    async fn begin(
        &self,
        shot: &Shot,
        call: &Call,
        body: Bytes,
        lane: Lane,
    ) -> Result<Messages, Failure> {
        let endpoint = &shot.endpoint;
        let (mut connection, seat) = endpoint.connection(lane, &shot.attempt).await?;
        let request = request(endpoint, call, body)?;
        endpoint.describe(call.span.as_ref());
        shot.reached(Reach::Sent);
        match connection.try_send_request(request).await {
            Ok(response) => Messages::new(response, self.upstream.response_bytes_max, seat),
            Err(mut refused) => {
                let never_sent = refused.take_message().is_some();
                let error = refused.into_error();
                debug!(upstream = %self.upstream.name, %error, "call failed");
                if !never_sent && !is_refused_stream(&error) {
                    return Err(unavailable("the connection to the upstream was lost")
                        .outcome(Outcome::Unknown));
                }
                shot.reached(Reach::Connected);
                endpoint.forget(&seat);
                Err(unavailable("the upstream is shutting down"))
            }
        }
    }

    /// The endpoints as discovery has them now; connections of those that stay are kept.
    fn known(&self) -> (Arc<Set>, Arc<[Arc<Endpoint>]>) {
        let set = self.upstream.members.current();
        let mut known = self.known.lock();
        if !Arc::ptr_eq(&known.set, &set) {
            let old = Arc::clone(&known.endpoints);
            let endpoint = |member: &Arc<Member>| {
                let mut same = old.iter();
                let kept = same.find(|endpoint| endpoint.member.address == member.address);
                let is_same = |kept: &&Arc<Endpoint>| Arc::ptr_eq(&kept.member, member);
                let kept = kept.filter(is_same).cloned();
                kept.unwrap_or_else(|| Endpoint::new(member, &self.upstream))
            };
            known.endpoints = set.all.iter().map(endpoint).collect();
            known.set = Arc::clone(&set);
        }
        (set, Arc::clone(&known.endpoints))
    }
}

/// How far an attempt has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    Nowhere,
    /// There was a connection, but the service has not seen the call.
    Connected,
    Sent,
}

/// One attempt of a call, and how far it has come.
#[derive(Debug)]
struct Shot {
    endpoint: Arc<Endpoint>,
    attempt: Attempt,
    reach: Mutex<Reach>,
}

impl Shot {
    fn reached(&self, reach: Reach) {
        *self.reach.lock() = reach;
    }

    async fn until<T>(
        &self,
        deadline: Instant,
        exchange: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let late = |_| Err(deadline_exceeded(*self.reach.lock() == Reach::Sent));
        let result = timeout_at(deadline, exchange).await.unwrap_or_else(late);
        result.map_err(|failure| {
            // A server that keeps the deadline itself may say so first, and many say "cancelled".
            let is_due = Instant::now() + DEADLINE_SLACK >= deadline;
            if failure.code == Code::Cancelled && is_due {
                return deadline_exceeded(true);
            }
            failure
        })
    }

    /// Records what it says of the endpoint's health.
    fn end<T>(self, result: &Result<T, Failure>, is_impatient: bool) -> Reach {
        let reach = *self.reach.lock();
        let verdict = match result {
            Ok(_) => Verdict::Good,
            Err(failure) => match (failure.code, reach) {
                (Code::DeadlineExceeded, _) if is_impatient => Verdict::GivenUp,
                (_, Reach::Nowhere) => Verdict::NoConnection,
                // It is leaving, which is no illness.
                (Code::Unavailable, Reach::Connected) => Verdict::GivenUp,
                (
                    Code::Unavailable
                    | Code::DeadlineExceeded
                    | Code::Internal
                    | Code::Unknown
                    | Code::DataLoss,
                    _,
                ) => Verdict::Failed,
                (_, Reach::Connected | Reach::Sent) => Verdict::Good,
            },
        };
        self.attempt.end(verdict);
        reach
    }
}

/// The attempts of one call.
///
/// It is tried again only while that is safe: when it never reached the service, or, if it may be
/// repeated, when the service or the way to it was unavailable. Attempts that found no connection
/// cost nobody anything and go on to the next endpoint until all were tried; others are bounded in
/// number and by the upstream's budget.
struct Tries<'c> {
    client: &'c Client,
    call: &'c Call,
    set: Arc<Set>,
    endpoints: Arc<[Arc<Endpoint>]>,
    turn: usize,
    tried: Vec<usize>,
    /// Attempts that had a connection.
    made: usize,
}

impl<'c> Tries<'c> {
    fn new(client: &'c Client, call: &'c Call, turn: usize) -> Self {
        let (set, endpoints) = client.known();
        Self {
            client,
            call,
            set,
            endpoints,
            turn,
            tried: Vec::new(),
            made: 0,
        }
    }

    fn next(&mut self) -> Result<Shot, Failure> {
        let members = &self.client.upstream.members;
        let chosen = members.choose(&self.set, &self.tried, self.turn);
        let chosen = chosen.and_then(|(position, attempt)| {
            let endpoint = Arc::clone(self.endpoints.get(position)?);
            Some((position, attempt, endpoint))
        });
        let Some((position, attempt, endpoint)) = chosen else {
            return Err(unavailable("the upstream has no endpoint"));
        };
        self.tried.push(position);
        Ok(Shot {
            endpoint,
            attempt,
            reach: Mutex::new(Reach::Nowhere),
        })
    }

    /// Ends an attempt: the call's result, or nothing if it is to be tried again.
    fn settle<T>(&mut self, shot: Shot, result: Result<T, Failure>) -> Option<Result<T, Failure>> {
        let reach = shot.end(&result, self.call.is_impatient);
        let is_unavailable = matches!(&result, Err(failure) if failure.code == Code::Unavailable);
        if !is_unavailable || Instant::now() >= self.call.deadline {
            return Some(result);
        }
        let may_go_on = match reach {
            Reach::Nowhere => self.tried.len() < self.endpoints.len(),
            Reach::Connected | Reach::Sent => {
                self.made += 1;
                (reach == Reach::Connected || self.call.is_idempotent)
                    && self.made < self.client.upstream.attempts_max
                    && self.client.upstream.may_retry()
            }
        };
        (!may_go_on).then_some(result)
    }
}

/// One endpoint and this worker's connections to it.
#[derive(Debug)]
struct Endpoint {
    member: Arc<Member>,
    upstream: Arc<Upstream>,
    calls: Mutex<Option<SendRequest<Body>>>,
    /// Connections that carry nothing but streams.
    streams: Mutex<Vec<StreamConnection>>,
    /// Held while connecting, so that one of many waiting calls does it for all.
    connecting: tokio::sync::Mutex<()>,
}

impl Endpoint {
    fn new(member: &Arc<Member>, upstream: &Arc<Upstream>) -> Arc<Self> {
        Arc::new(Self {
            member: Arc::clone(member),
            upstream: Arc::clone(upstream),
            calls: Mutex::new(None),
            streams: Mutex::new(Vec::new()),
            connecting: tokio::sync::Mutex::new(()),
        })
    }

    /// An open connection with room, or a new one if the attempt may make one.
    async fn connection(
        &self,
        lane: Lane,
        attempt: &Attempt,
    ) -> Result<(SendRequest<Body>, Seat), Failure> {
        if let Some(open) = self.open_connection(lane) {
            return Ok(open);
        }
        let _one = self.connecting.lock().await;
        if let Some(open) = self.open_connection(lane) {
            return Ok(open);
        }
        if !attempt.may_connect() {
            return Err(unavailable("the upstream cannot be reached"));
        }
        let connected = timeout(self.upstream.connect_timeout, self.connect(lane)).await;
        match connected.unwrap_or(Err("the connection took too long".to_owned())) {
            Ok(connection) => Ok(self.keep(connection, lane)),
            Err(error) => {
                let endpoint = &self.member.address;
                debug!(upstream = %self.upstream.name, %endpoint, error, "no connection");
                attempt.cannot_connect();
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
        span.set("server.address", self.member.authority.host().to_owned());
        if let Some(port) = self.member.authority.port_u16() {
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
        let stream = TcpStream::connect(&self.member.address)
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
        .authority(endpoint.member.authority.clone())
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

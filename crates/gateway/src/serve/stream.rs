//! The answer of an rpc that sends many messages: one task between the upstream and the client.
//!
//! The task asks for a message only when the last one was taken, so a slow client slows the
//! upstream and nothing piles up between them: at most one window of the upstream's stream, one
//! piece being written and [`PIECES_MAX`] waiting. The task ends with the request: whoever drops
//! the response's body drops it and resets the upstream's stream.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, Response};
use http_body::{Frame, SizeHint};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

use super::form::{Form, Labels, Writer};
use super::guard::Admission;
use super::render::Render;
use super::reply::Body;
use super::worker::Phase;
use crate::config::Config;
use crate::descriptor::catalog::Catalog;
use crate::metrics::Metrics;
use crate::status::{Code, Failure};
use crate::transcode::plan::Plans;
use crate::upstream::client::{Call, Client, deadline_exceeded};
use crate::upstream::messages::Messages;

/// Pieces that wait for the connection.
const PIECES_MAX: usize = 1;
/// Messages that have arrived together go together, up to this size.
const PIECE_BYTES: usize = 16 << 10;

/// The times of a stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StreamTimes {
    pub(crate) time_max: Duration,
    open_wait: Duration,
    ping_interval: Duration,
    stall_timeout: Duration,
}

impl StreamTimes {
    pub(crate) const fn new(config: &Config) -> Self {
        Self {
            time_max: config.stream.time_max.get(),
            open_wait: config.stream.open_wait.get(),
            ping_interval: config.stream.ping_interval.get(),
            stall_timeout: config.stall_timeout.get(),
        }
    }
}

/// What is done with a failure of the upstream.
#[derive(Clone, Debug)]
pub(crate) struct FailureRule {
    pub(crate) types: Arc<Plans>,
    /// Whether the outcome does not matter to anybody.
    pub(crate) is_harmless: bool,
    /// Whether the caller is less patient than the configuration.
    pub(crate) is_impatient: bool,
    pub(crate) metrics: Arc<Metrics>,
}

impl FailureRule {
    fn finish(&self, mut failure: Failure) -> Failure {
        failure.types = Some(Arc::clone(&self.types));
        if self.is_harmless {
            failure.outcome = None;
        }
        failure
    }
}

/// A stream that is to begin.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) form: Form,
    pub(crate) client: Arc<Client>,
    pub(crate) call: Call,
    pub(crate) render: Render,
    pub(crate) failures: FailureRule,
    pub(crate) admission: Admission,
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) times: StreamTimes,
    pub(crate) phase: watch::Receiver<Phase>,
}

/// What is known when the answer begins.
struct Opening {
    metadata: HeaderMap,
    kind: HeaderValue,
}

impl Stream {
    /// Calls the upstream and returns when the status of the answer is clear: with the first
    /// message, or when none has come for a while. With it comes the upstream's metadata, if that
    /// has come.
    ///
    /// # Errors
    /// The failure of a call that failed before it had a message.
    ///
    /// # Cancellation
    /// Dropping the future, or later the body, ends the call.
    pub(crate) async fn begin(self) -> Result<(Response<Body>, HeaderMap), Failure> {
        let form = self.form;
        let (opened, opening) = oneshot::channel();
        let (pieces, receiver) = mpsc::channel(PIECES_MAX);
        let body = StreamBody {
            pieces: receiver,
            is_ended: false,
            task: tokio::spawn(Task::new(self, opened, pieces).run()),
        };
        // Without an answer the task has panicked.
        let lost = |_| Err(Failure::new(Code::Internal, "the stream could not begin"));
        let opening = opening.await.unwrap_or_else(lost)?;
        let mut response = Response::new(Body::Stream(body));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, opening.kind);
        if form == Form::Sse {
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
            // What nginx and those who follow it understand.
            headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
        }
        Ok((response, opening.metadata))
    }
}

/// The body ends before its time: the stream failed in a form that has no place to say so, or the
/// client took nothing for too long.
#[derive(Clone, Copy, Debug, Error)]
#[error("the stream broke off")]
pub(crate) struct Broken;

/// What the task gives to the body.
#[derive(Debug)]
enum Piece {
    Bytes(Bytes),
    /// All is said. A body that the task leaves without it is broken.
    End,
}

/// The response body of a stream.
#[derive(Debug)]
pub(crate) struct StreamBody {
    pieces: mpsc::Receiver<Piece>,
    is_ended: bool,
    task: JoinHandle<()>,
}

impl Drop for StreamBody {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl http_body::Body for StreamBody {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        if self.is_ended {
            return Poll::Ready(None);
        }
        let piece = ready!(self.pieces.poll_recv(context));
        Poll::Ready(match piece {
            Some(Piece::Bytes(bytes)) => Some(Ok(Frame::data(bytes))),
            Some(Piece::End) => {
                self.is_ended = true;
                None
            }
            None => {
                self.is_ended = true;
                Some(Err(Broken))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.is_ended
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

/// Where messages come from: the call that is being opened, then its answer.
enum Source {
    Opening(Pin<Box<dyn Future<Output = Result<Messages, Failure>> + Send>>),
    Open(Box<Messages>),
}

impl Source {
    /// Safe to drop.
    async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        if let Self::Opening(open) = self {
            *self = Self::Open(Box::new(open.as_mut().await?));
        }
        match self {
            Self::Open(messages) => messages.next().await,
            Self::Opening(_) => Ok(None),
        }
    }

    fn arrived(&mut self) -> Result<Option<Bytes>, Failure> {
        match self {
            Self::Open(messages) => messages.arrived(),
            Self::Opening(_) => Ok(None),
        }
    }

    fn metadata(&self) -> HeaderMap {
        match self {
            Self::Open(messages) => messages.headers().clone(),
            Self::Opening(_) => HeaderMap::new(),
        }
    }
}

/// What the task waits for.
enum Event {
    Answer(Result<Option<Bytes>, Failure>),
    /// No message in time: time to begin the answer, or to give a sign of life.
    Silence,
    Deadline,
    Drain,
}

/// What an event means for the stream.
enum Flow {
    GoOn,
    /// All is written.
    End,
    /// It cannot be ended in order.
    Break,
}

struct Task {
    source: Source,
    deadline: Instant,
    render: Render,
    failures: FailureRule,
    /// Its places are held for as long as the stream lasts.
    admission: Admission,
    catalog: Arc<Catalog>,
    times: StreamTimes,
    phase: watch::Receiver<Phase>,
    form: Form,
    writer: Writer,
    /// Until the answer has begun.
    opened: Option<oneshot::Sender<Result<Opening, Failure>>>,
    pieces: mpsc::Sender<Piece>,
}

impl Task {
    fn new(
        stream: Stream,
        opened: oneshot::Sender<Result<Opening, Failure>>,
        pieces: mpsc::Sender<Piece>,
    ) -> Self {
        let (client, call) = (stream.client, stream.call);
        Self {
            deadline: call.deadline,
            source: Source::Opening(Box::pin(async move { client.open(&call).await })),
            render: stream.render,
            failures: stream.failures,
            admission: stream.admission,
            catalog: stream.catalog,
            times: stream.times,
            phase: stream.phase,
            form: stream.form,
            writer: Writer::new(stream.form),
            opened: Some(opened),
            pieces,
        }
    }

    async fn run(mut self) {
        let counted = self.failures.metrics.stream();
        let mut out = Vec::new();
        let mut silent_until = Instant::now() + self.times.open_wait;
        loop {
            let flow = match self.event(silent_until).await {
                Event::Answer(Ok(Some(message))) => self.messages(message, &mut out),
                Event::Answer(Ok(None)) => self.end(&mut out),
                Event::Answer(Err(failure)) => self.upstream_failed(failure, &mut out),
                Event::Deadline => self.upstream_failed(deadline_exceeded(true), &mut out),
                Event::Drain => self.fail(draining(), &mut out),
                Event::Silence => self.silence(&mut out),
            };
            let is_taken = out.is_empty() || {
                let piece = Bytes::from(std::mem::take(&mut out));
                self.pass(Piece::Bytes(piece)).await
            };
            match flow {
                Flow::GoOn if is_taken => {}
                Flow::End if is_taken => {
                    self.pass(Piece::End).await;
                    break;
                }
                Flow::GoOn | Flow::End | Flow::Break => break,
            }
            silent_until = Instant::now() + self.times.ping_interval;
        }
        drop(counted);
    }

    async fn event(&mut self, silent_until: Instant) -> Event {
        // A raw body cannot say that it is not whole, so it is not ended before its end; and it has
        // its type from the first message, so that it has to be waited for.
        let is_raw = self.form == Form::Raw;
        if Instant::now() >= self.deadline {
            return Event::Deadline;
        }
        tokio::select! {
            biased;
            _ = self.phase.wait_for(|phase| *phase >= Phase::Drain), if !is_raw => Event::Drain,
            answer = self.source.next() => Event::Answer(answer),
            () = sleep_until(self.deadline) => Event::Deadline,
            () = sleep_until(silent_until), if !is_raw => Event::Silence,
        }
    }

    /// Writes a message and what else has arrived with it.
    fn messages(&mut self, first: Bytes, out: &mut Vec<u8>) -> Flow {
        let mut next = Ok(Some(first));
        loop {
            match next {
                Ok(Some(message)) => {
                    if let Err(failure) = self.message(&message, out) {
                        return self.fail(failure, out);
                    }
                }
                Ok(None) => return Flow::GoOn,
                Err(failure) => return self.fail(failure, out),
            }
            if out.len() >= PIECE_BYTES {
                return Flow::GoOn;
            }
            next = self.source.arrived();
        }
    }

    fn message(&mut self, message: &[u8], out: &mut Vec<u8>) -> Result<(), Failure> {
        self.failures.metrics.stream_message();
        if self.form == Form::Raw {
            let raw = self.render.raw(message)?;
            self.begin(raw.kind);
            out.extend_from_slice(&raw.data);
            return Ok(());
        }
        let mut json = Vec::with_capacity(message.len() + message.len() / 2 + 64);
        self.render.json(message, &mut json)?;
        self.begin(self.form.content_type());
        let rule = &self.render.route.stream;
        let text = |position: Option<usize>| {
            let is_wanted = position.filter(|_| self.form == Form::Sse);
            is_wanted
                .map(|at| self.render.text(at, message))
                .transpose()
        };
        let (id, event) = (text(rule.id)?, text(rule.event)?);
        let labels = Labels {
            id: id.as_deref().filter(|id| !id.is_empty()),
            event: event.as_deref().filter(|event| !event.is_empty()),
        };
        self.writer.message(&json, labels, out);
        Ok(())
    }

    fn end(&mut self, out: &mut Vec<u8>) -> Flow {
        self.begin(self.form.content_type());
        self.writer.end(out);
        Flow::End
    }

    fn upstream_failed(&mut self, failure: Failure, out: &mut Vec<u8>) -> Flow {
        self.failures.metrics.upstream_failed(failure.code);
        let is_impatient = self.failures.is_impatient;
        self.admission.record(Err(&failure), is_impatient);
        self.fail(failure, out)
    }

    fn fail(&mut self, failure: Failure, out: &mut Vec<u8>) -> Flow {
        let failure = self.failures.finish(failure);
        if let Some(opened) = self.opened.take() {
            // A receiver that is gone is a caller that is gone.
            let _is_heard = opened.send(Err(failure)).is_ok();
            return Flow::Break;
        }
        if self.form == Form::Raw {
            return Flow::Break;
        }
        let status = failure.to_json(&self.catalog.error_details);
        self.writer.failure(&status, out);
        Flow::End
    }

    fn silence(&mut self, out: &mut Vec<u8>) -> Flow {
        self.begin(self.form.content_type());
        self.writer.ping(out);
        Flow::GoOn
    }

    /// Lets the answer begin, if it has not.
    fn begin(&mut self, kind: HeaderValue) {
        if let Some(opened) = self.opened.take() {
            // An upstream that has said nothing at all has not proved itself: the permit is given
            // up with the stream then, or settled by what comes.
            if matches!(self.source, Source::Open(_)) {
                self.admission.record(Ok(()), self.failures.is_impatient);
            }
            let metadata = self.source.metadata();
            // A receiver that is gone is a caller that is gone.
            let _is_heard = opened.send(Ok(Opening { metadata, kind })).is_ok();
        }
    }

    /// Passes a piece on; whether it was taken in time.
    async fn pass(&mut self, piece: Piece) -> bool {
        let passed = timeout(self.times.stall_timeout, self.pieces.send(piece)).await;
        passed.is_ok_and(|sent| sent.is_ok())
    }
}

fn draining() -> Failure {
    Failure::new(Code::Unavailable, "the gateway is shutting down: ask again").reason("DRAINING")
}

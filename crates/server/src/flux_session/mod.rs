//! A FLUX session: frames in, commands run apart from each other, replies out as they come.
//!
//! The protocol is described in `docs/wire.md` and coded in `flux_wire::flux`. A session reads what
//! has arrived, puts the commands of that turn into [`crate::groups`], and sends each reply when its group
//! is done, in whatever order that is. All requests in flight are concurrent; a client that needs
//! an order waits for the reply, or relies on what [`crate::groups`] promises for one write of its own.
//!
//! Bounds: at most [`FLUX_IN_FLIGHT_MAX`] requests are in flight; beyond that, and while the peer
//! does not take its replies, nothing is read. Groups are polled, and so begun, only while unsent
//! replies are few: a peer that asks for much and reads little costs the replies of one group, and
//! need not be closed for it.
//!
//! A frame that breaks the protocol ends the session with GOAWAY, after the replies of what came
//! before it. A request that cannot be understood is answered, and the session goes on.
//!
//! Read in this order: [`pipe`] holds the bytes, [`flights`] what is under way,
//! [`frames`] what each frame means.

mod flights;
mod frames;
mod pipe;
#[cfg(test)]
mod tests;

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use flux_env::Clock;
use flux_telemetry::trace::{self, Service, Span};
use flux_types::limits::{FLUX_IN_FLIGHT_MAX, UNAUTHENTICATED_BULK_BYTES_MAX};
use flux_types::{Answer, Command, Error};
use flux_wire::Limits;
use flux_wire::flux::{FrameDecoder, Goaway, GoawayCode, PREFACE_BYTES, Preface, response};
use flux_wire::resp::{SessionCommand, Writer};
use futures_util::stream::{FuturesUnordered, Stream};
use tokio::io::{AsyncRead, AsyncWrite};

use self::flights::Flights;
use self::pipe::{Pipe, Received};
use crate::clients::{Client, Ending};
use crate::execute::Execute;
use crate::groups::{Asked, groups};
use crate::metrics::{CommandCount, Metrics, Protocol};

/// Unsent bytes beyond which no group is begun and nothing is read.
const UNSENT_BYTES_PAUSE: usize = 1024 * 1024;
/// How long a client may take to open with a preface and to authenticate.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
/// What a client is told of the time that its requests under way may still take, when the node
/// shuts down.
const DRAIN_MS: u32 = 10_000;

/// What a session needs of its node.
pub(crate) struct Parts<E> {
    /// Runs commands.
    pub(crate) executor: E,
    /// Answers commands about the node.
    pub(crate) desk: Arc<dyn Desk>,
    /// For deadlines and latencies.
    pub(crate) clock: Arc<dyn Clock>,
    /// Counts.
    pub(crate) metrics: Metrics,
    /// Deadline of a request that brings none.
    pub(crate) request_timeout: Duration,
    /// Longest value and frame.
    pub(crate) limits: Limits,
}

impl<E: fmt::Debug> fmt::Debug for Parts<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts")
            .field("executor", &self.executor)
            .finish_non_exhaustive()
    }
}

/// What a session asks of its node besides the execution of commands.
pub(crate) trait Desk: fmt::Debug + Send + Sync + 'static {
    /// Whether clients must authenticate.
    fn wants_password(&self) -> bool;

    /// Whether this user has this password; an empty user is the default user.
    fn is_password(&self, user: &[u8], password: &[u8]) -> bool;

    /// Answers a command about the connection or the node as one RESP3 value.
    ///
    /// # Errors
    /// If it cannot be answered over this protocol, or its arguments are wrong; nothing is written
    /// then.
    fn answer(
        &self,
        command: SessionCommand,
        arguments: &[bytes::Bytes],
        writer: &mut Writer<'_>,
    ) -> Result<(), Error>;
}

/// Serves a connection until it is over. `arrived` has been read from it already.
///
/// # Cancellation
/// Commands under way may be done or not, as for any client that goes away.
pub(crate) async fn run<S, E>(stream: S, arrived: BytesMut, parts: Parts<E>, client: Arc<Client>)
where
    S: AsyncRead + AsyncWrite + Unpin,
    E: Execute,
{
    let mut pipe = Pipe::new(stream, arrived);
    let greeting = tokio::time::timeout(GREETING_TIMEOUT, greet(&mut pipe, &parts, &client));
    let Ok(Some(preface)) = greeting.await else {
        pipe.finish(&client).await;
        return;
    };
    let mut session = Session::new(parts, preface, client);
    session.serve(&mut pipe).await;
    pipe.finish(&session.client).await;
}

/// Reads the client's preface and answers it; `None` if that is the end of the connection.
async fn greet<S, E>(pipe: &mut Pipe<S>, parts: &Parts<E>, client: &Client) -> Option<Preface>
where
    S: AsyncRead + AsyncWrite + Unpin,
    E: Execute,
{
    let bytes = loop {
        if let Some(bytes) = pipe.input.first_chunk::<PREFACE_BYTES>() {
            break *bytes;
        }
        let received = poll_fn(|context| match pipe.poll_receive(context, 0) {
            Poll::Pending if is_ending(client, context) => Poll::Ready(Received::Ended),
            polled @ (Poll::Ready(_) | Poll::Pending) => polled,
        });
        if received.await == Received::Ended {
            return None;
        }
    };
    pipe.input.advance(PREFACE_BYTES);
    let payload_bytes_max = parts.limits.frame_bytes_max();
    let agreed = Preface::decode(&bytes).and_then(|preface| {
        let answer = Preface::answer(&preface, payload_bytes_max)?;
        Ok((preface, answer))
    });
    match agreed {
        Ok((preface, answer)) => {
            pipe.output.extend_from_slice(&answer.encode());
            Some(preface)
        }
        Err(error) => {
            tracing::debug!(client = client.id, %error, "FLUX preface refused");
            parts.metrics.protocol_error(Protocol::Flux);
            let announced = Preface::announce(payload_bytes_max);
            pipe.output.extend_from_slice(&announced.encode());
            None
        }
    }
}

/// Whether the session was asked to end; if not, the task is woken when it is.
fn is_ending(client: &Client, context: &Context<'_>) -> bool {
    client.register_waker(context.waker());
    client.ending() != Ending::None
}

/// The span of commands that are executed together, if it is sampled. FLUX frames carry no context
/// of the caller, so every trace begins here.
fn span(commands: &[Command]) -> Option<Span> {
    let span = trace::begin(Service::Node, trace::Kind::Server, || "FLUX")?;
    let operation = match commands {
        [command] => CommandCount::of(command).name().to_ascii_uppercase(),
        _ => "PIPELINE".to_owned(),
    };
    span.set("db.system.name", "flux");
    if commands.len() > 1 {
        span.set("db.operation.batch.size", commands.len());
    }
    span.set("db.operation.name", operation.clone());
    span.rename(operation);
    Some(span)
}

/// A group of commands that is done.
struct Done {
    flights: Vec<usize>,
    answers: Vec<Answer>,
}

type Running = Pin<Box<dyn Future<Output = Done> + Send>>;

/// See the module.
struct Session<E> {
    parts: Parts<E>,
    client: Arc<Client>,
    decoder: FrameDecoder,
    is_authenticated: bool,
    /// What the client accepts in one frame.
    payload_bytes_max: usize,
    flights: Flights,
    running: FuturesUnordered<Running>,
    /// Requests of the turn in hand.
    asked: Vec<Asked<usize>>,
    /// Whether the input may hold another whole frame.
    has_more: bool,
    /// Nothing is read any more: the peer, the node or an error has ended the conversation.
    is_leaving: bool,
    /// The last frame, sent when everything else is.
    goodbye: Option<Goaway>,
}

/// What a wait ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// There is input to look at.
    Input,
    /// The session is over.
    Over,
    /// The client has not authenticated in time.
    Late,
}

impl<E: Execute> Session<E> {
    fn new(parts: Parts<E>, preface: Preface, client: Arc<Client>) -> Self {
        let is_authenticated = !parts.desk.wants_password();
        let accepted = if is_authenticated {
            parts.limits.frame_bytes_max()
        } else {
            UNAUTHENTICATED_BULK_BYTES_MAX
        };
        Self {
            decoder: FrameDecoder::new(accepted),
            parts,
            client,
            is_authenticated,
            payload_bytes_max: usize::try_from(preface.payload_bytes_max).unwrap_or(usize::MAX),
            flights: Flights::new(),
            running: FuturesUnordered::new(),
            asked: Vec::new(),
            has_more: true,
            is_leaving: false,
            goodbye: None,
        }
    }

    async fn serve<S: AsyncRead + AsyncWrite + Unpin>(&mut self, pipe: &mut Pipe<S>) {
        let mut patience = pin!(tokio::time::sleep(GREETING_TIMEOUT));
        loop {
            self.take_turn(pipe);
            let event = poll_fn(|context| {
                if let Poll::Ready(event) = self.poll(pipe, context) {
                    return Poll::Ready(event);
                }
                if !self.is_authenticated && !self.is_leaving {
                    return patience.as_mut().poll(context).map(|()| Event::Late);
                }
                Poll::Pending
            });
            match event.await {
                Event::Input => {}
                Event::Over => return,
                Event::Late => self.leave(GoawayCode::Idle, "no authentication in time"),
            }
        }
    }

    /// Decodes what has arrived, as far as it may be in flight, and begins to execute it.
    fn take_turn<S>(&mut self, pipe: &mut Pipe<S>) {
        let now = self.parts.clock.now();
        self.client
            .note_command("flux", self.parts.clock.unix_millis());
        while self.has_more && !self.is_leaving && self.flights.count() < FLUX_IN_FLIGHT_MAX {
            match self.decoder.next(&mut pipe.input) {
                Ok(Some(frame)) => self.frame(frame, now, &mut pipe.output),
                Ok(None) => self.has_more = false,
                Err(error) => {
                    self.parts.metrics.protocol_error(Protocol::Flux);
                    tracing::debug!(client = self.client.id, %error, "FLUX frame refused");
                    self.goodbye = Some(Goaway::of_error(error));
                    self.is_leaving = true;
                }
            }
        }
        if self.is_leaving {
            pipe.input.clear();
            self.has_more = false;
        }
        let executor = &self.parts.executor;
        let asked = std::mem::take(&mut self.asked);
        for group in groups(asked, |command| executor.shard(command)) {
            let span = span(&group.commands);
            let answers = executor.execute_all(group.commands, group.deadline);
            let flights = group.tickets;
            self.running.push(Box::pin(async move {
                let answers = pin!(answers);
                let answers = trace::within(span.as_ref().map(Span::context), answers).await;
                Done { flights, answers }
            }));
        }
    }

    /// Runs, sends and receives until there is something to decode.
    fn poll<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        pipe: &mut Pipe<S>,
        context: &mut Context<'_>,
    ) -> Poll<Event> {
        self.client.register_waker(context.waker());
        match self.client.ending() {
            Ending::Kill => return Poll::Ready(Event::Over),
            Ending::Drain if !self.is_leaving => self.drain(pipe, context),
            Ending::Drain | Ending::None => {}
        }
        loop {
            let was_blocked = pipe.output.len() >= UNSENT_BYTES_PAUSE;
            let has_finished = self.poll_running(&mut pipe.output, context);
            if self.is_leaving
                && self.running.is_empty()
                && let Some(goodbye) = self.goodbye.take()
            {
                goodbye.write(&mut pipe.output);
            }
            if pipe.poll_send(context).is_err() {
                return Poll::Ready(Event::Over);
            }
            self.client.set_unsent(pipe.output.len());
            // Again, until neither side moves: only then is the task sure to be woken.
            let is_blocked = pipe.output.len() >= UNSENT_BYTES_PAUSE;
            if is_blocked || !(has_finished || was_blocked) {
                break;
            }
        }
        if self.is_leaving {
            let is_over = self.running.is_empty() && pipe.output.is_empty();
            return if is_over {
                Poll::Ready(Event::Over)
            } else {
                Poll::Pending
            };
        }
        if self.flights.count() >= FLUX_IN_FLIGHT_MAX || pipe.output.len() >= UNSENT_BYTES_PAUSE {
            return Poll::Pending;
        }
        if self.has_more {
            return Poll::Ready(Event::Input);
        }
        match pipe.poll_receive(context, self.decoder.wanted()) {
            Poll::Ready(Received::Some) => {
                self.has_more = true;
                Poll::Ready(Event::Input)
            }
            Poll::Ready(Received::Ended) => {
                self.is_leaving = true;
                // Once more, to send what is left or to see that nothing is.
                context.waker().wake_by_ref();
                Poll::Pending
            }
            Poll::Pending => Poll::Pending,
        }
    }

    /// Finishes what is done, while its replies find room. Answers whether anything was.
    fn poll_running(&mut self, output: &mut BytesMut, context: &mut Context<'_>) -> bool {
        let mut has_finished = false;
        while output.len() < UNSENT_BYTES_PAUSE {
            match Pin::new(&mut self.running).poll_next(context) {
                Poll::Ready(Some(done)) => {
                    has_finished = true;
                    self.finish(done, output);
                }
                Poll::Ready(None) | Poll::Pending => break,
            }
        }
        has_finished
    }

    fn finish(&mut self, done: Done, output: &mut BytesMut) {
        let now = self.parts.clock.now();
        debug_assert_eq!(done.flights.len(), done.answers.len());
        for (flight, answer) in done.flights.into_iter().zip(done.answers) {
            let Some(flight) = self.flights.end(flight) else {
                continue;
            };
            let metrics = &self.parts.metrics;
            metrics.command(flight.counted, &answer.reply);
            let took = now.saturating_since(flight.begun);
            metrics.latency(Protocol::Flux, flight.counted, took);
            if !flight.is_cancelled {
                response::write_answer(
                    output,
                    flight.correlation,
                    flight.op,
                    &answer,
                    self.payload_bytes_max,
                );
            }
        }
    }

    /// The node shuts down: what has arrived is answered, nothing more is read.
    fn drain<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        pipe: &mut Pipe<S>,
        context: &mut Context<'_>,
    ) {
        Goaway {
            code: GoawayCode::Shutdown,
            drain_ms: DRAIN_MS,
            message: "the node is shutting down".to_owned(),
        }
        .write(&mut pipe.output);
        // What the kernel holds was sent before the client could know.
        while let Poll::Ready(Received::Some) = pipe.poll_receive(context, self.decoder.wanted()) {
            self.has_more = true;
            self.take_turn(pipe);
            if self.is_leaving || self.flights.count() >= FLUX_IN_FLIGHT_MAX {
                break;
            }
        }
        self.is_leaving = true;
    }

    /// Ends the conversation with a last frame.
    fn leave(&mut self, code: GoawayCode, message: &str) {
        self.parts.metrics.protocol_error(Protocol::Flux);
        self.is_leaving = true;
        self.goodbye = Some(Goaway {
            code,
            drain_ms: 0,
            message: message.to_owned(),
        });
    }
}

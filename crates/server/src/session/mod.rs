//! A RESP session: bytes in, commands planned and run, bytes out.
//!
//! A session reads what has arrived, plans all of it into one turn ([`crate::exec::Turn`] for the
//! shards, [`steps`] for the replies), runs the turn, and sends all replies at once, in the order
//! of the requests. Commands that need an answer before the next request can be understood (WATCH,
//! INFO, OBJECT …) end the turn early.
//!
//! Bounds: a turn takes at most [`TURN_COMMANDS_MAX`] commands and about [`TURN_REPLY_BYTES_MAX`]
//! bytes of replies; unsent replies beyond the configured limit close the connection.
//!
//! Read in this order: [`pipe`] holds the bytes, [`steps`] the order of replies, [`state`] what the
//! protocol remembers, [`transaction`] MULTI and WATCH; [`connection`], [`server`],
//! [`parameters`], [`info`] and [`keys`] are the commands that the session answers itself.
//!
//! Hot path: [`Session::take_turn`] and what it calls.

mod connection;
mod info;
mod keys;
mod parameters;
mod pipe;
pub(crate) mod server;
mod state;
mod steps;
#[cfg(test)]
mod tests;
mod transaction;

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use flux_store::Lookup;
use flux_types::{Answer, Command, Error, ErrorCode};
use flux_wire::resp::{Decoded, Decoder, Flags, Request, SessionCommand, Spec, Writer};
use tokio::io::{AsyncRead, AsyncWrite};

use self::pipe::{Event, Pipe};
use self::state::{Mute, State};
use self::steps::{Sink, Steps};
use crate::clients::Client;
use crate::context::{Hits, SessionContext};
use crate::exec::{Place, Split, Turn, split};
use crate::metrics::{CommandCount, Protocol};

/// The version of Redis whose behavior clients may expect; they choose features by it.
const REDIS_VERSION: &str = "7.2.4";
/// Most commands of one turn: what one batch can hold.
const TURN_COMMANDS_MAX: usize = flux_types::limits::BATCH_OPERATIONS_MAX;
/// Bytes of direct replies after which a turn takes no further command.
const TURN_REPLY_BYTES_MAX: usize = 1024 * 1024;

/// Serves a connection until it is over. `arrived` has been read from it already.
///
/// # Cancellation
/// Commands under way may be done or not, as for any client that goes away.
pub(crate) async fn serve<S>(
    stream: S,
    arrived: BytesMut,
    context: SessionContext,
    client: Arc<Client>,
) where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut pipe = Pipe::new(stream, arrived);
    let mut session = Session::new(context, client);
    loop {
        if !pipe.input.is_empty() && session.take_turn(&mut pipe).await == Next::Close {
            pipe.finish(&session.client).await;
            return;
        }
        if session.is_over_limit(pipe.output.len()) {
            tracing::warn!(
                client = session.client.id,
                unsent_bytes = pipe.output.len(),
                "connection closed: it does not read its replies"
            );
            return;
        }
        // A turn that ended at its bound has left whole commands behind.
        if session.has_more {
            tokio::task::yield_now().await;
            continue;
        }
        let wanted = session.decoder.wanted();
        if pipe.wait(&session.client, wanted).await == Event::Over {
            return;
        }
    }
}

/// What follows a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// More requests.
    Continue,
    /// The end, once everything is sent.
    Close,
}

/// What became of a request while it was planned.
enum Planned {
    /// It is part of the turn.
    Yes,
    /// It can be answered only when the turn has run.
    Afterwards(Later),
}

/// A request that waits for the turn to run.
enum Later {
    /// The session answers.
    Session(SessionCommand, Vec<Bytes>),
    /// An EXEC that holds commands which the session answers.
    Exec,
    /// A command that a pause holds back.
    Paused(Decoded),
}

/// See the module.
#[derive(Debug)]
struct Session {
    context: SessionContext,
    client: Arc<Client>,
    decoder: Decoder,
    state: State,
    turn: Turn,
    steps: Steps,
    /// The turn's last command on data: its latency stands for all of them.
    last_counted: Option<CommandCount>,
    hits: Hits,
    /// Whether the last turn ended at its bound.
    has_more: bool,
}

impl Session {
    fn new(context: SessionContext, client: Arc<Client>) -> Self {
        let mut decoder = Decoder::new(context.node.limits());
        let is_authenticated = !context.node.switches.wants_password();
        decoder.set_authenticated(is_authenticated);
        Self {
            context,
            client,
            decoder,
            state: State::new(is_authenticated),
            turn: Turn::default(),
            steps: Steps::default(),
            last_counted: None,
            hits: Hits::default(),
            has_more: false,
        }
    }

    fn is_over_limit(&self, unsent_bytes: usize) -> bool {
        if unsent_bytes == 0 {
            return false;
        }
        self.client.set_unsent(unsent_bytes);
        unsent_bytes as u64 > self.context.node.config.output_buffer_size_max
    }

    /// Plans and runs what has arrived.
    async fn take_turn<S>(&mut self, pipe: &mut Pipe<S>) -> Next {
        let started = self.context.node.clock.now();
        let mut last: Option<&'static Spec> = None;
        let mut commands = 0;
        self.has_more = false;
        let next = loop {
            if commands == TURN_COMMANDS_MAX || self.steps.ready_bytes() >= TURN_REPLY_BYTES_MAX {
                self.has_more = !pipe.input.is_empty();
                break Next::Continue;
            }
            let before = pipe.input.len();
            let decoded = match self.decoder.next(&mut pipe.input) {
                Ok(Some(decoded)) => decoded,
                Ok(None) => break Next::Continue,
                Err(error) => {
                    self.context.node.metrics.protocol_error(Protocol::Resp);
                    self.write(|writer| writer.error(&error.into()));
                    break Next::Close;
                }
            };
            commands += 1;
            last = decoded.spec.or(last);
            let bytes = before - pipe.input.len();
            if let Planned::Afterwards(later) = self.plan(decoded, bytes) {
                self.run_turn(&mut pipe.output).await;
                self.run_later(later, &mut pipe.output).await;
            }
            if self.state.is_closing {
                break Next::Close;
            }
        };
        self.run_turn(&mut pipe.output).await;
        let now = self.context.node.clock.now();
        if let Some(spec) = last {
            let millis = self.context.node.now_millis();
            self.client.note_command(spec.name, millis);
        }
        self.hits.flush(&self.context.node.lookups);
        if let Some(counted) = self.last_counted.take() {
            let took = now.saturating_since(started);
            self.context
                .node
                .metrics
                .latency(Protocol::Resp, counted, took);
        }
        next
    }

    /// Runs what is planned and puts all replies into `output`.
    async fn run_turn(&mut self, output: &mut BytesMut) {
        if self.steps.is_empty() {
            return;
        }
        let deadline = self.context.executor.deadline(None);
        let reads = self.turn.run(&self.context.executor, deadline).await;
        let mut sink = Sink {
            output,
            version: self.state.version,
            metrics: &self.context.node.metrics,
        };
        self.steps.finish(reads, &mut self.turn, &mut sink);
        self.turn.clear();
    }

    /// Makes a request, of so many bytes, part of the turn.
    fn plan(&mut self, decoded: Decoded, bytes: usize) -> Planned {
        let Decoded { spec, request } = decoded;
        if !self.state.is_authenticated && !is_open_to_all(spec) {
            self.refuse(&Error::not_done(
                ErrorCode::Unauthenticated,
                "Authentication required.",
            ));
            return Planned::Yes;
        }
        if self.context.node.pause.may_hold() && self.is_held_by_pause(&request) {
            return Planned::Afterwards(Later::Paused(Decoded { spec, request }));
        }
        self.plan_released(Decoded { spec, request }, bytes)
    }

    /// As [`Session::plan`], for a request that may run and that no pause holds back.
    fn plan_released(&mut self, decoded: Decoded, bytes: usize) -> Planned {
        let Decoded { spec, request } = decoded;
        if self.state.transaction.is_some() && !transaction::runs_at_once(&request) {
            self.queue(spec, request, bytes);
            return Planned::Yes;
        }
        match request {
            Request::Data(command) => self.plan_data(command),
            Request::Session(SessionCommand::Exec, _) => return self.plan_exec(),
            Request::Session(command, arguments) if waits_for_turn(command) => {
                return Planned::Afterwards(Later::Session(command, arguments));
            }
            Request::Session(command, arguments) => self.answer_session(command, &arguments),
            Request::Invalid(error) => self.refuse(&error),
        }
        Planned::Yes
    }

    /// Plans a command on data.
    fn plan_data(&mut self, command: Command) {
        let mute = self.state.take_mute();
        if mute == Mute::Yes && !command.is_write() {
            return;
        }
        let counted = CommandCount::of(&command);
        self.last_counted = Some(counted);
        let home = self.context.executor.home();
        let (shard, command) = match split(command, home.map(), home.lot()) {
            Split::One(shard, command) => (shard, command),
            Split::Many(parts, join) => {
                let place = self
                    .context
                    .executor
                    .plan_parts(parts, join, &mut self.turn);
                self.place(place, counted, mute);
                return;
            }
            Split::Refused(error) => {
                self.place(Place::Ready(Answer::error(error)), counted, mute);
                return;
            }
        };
        if mute == Mute::Yes {
            let place = self
                .context
                .executor
                .plan_part(shard, command, &mut self.turn);
            self.place(place, counted, mute);
            return;
        }
        if let Command::Get { key } = &command
            && let Some(now) = self.turn.direct_now(home, shard)
            && let Some(handle) = home.shard(shard)
        {
            let mut writer = Writer::new(self.steps.ready(), self.state.version);
            let found = handle.store().get(key, now, |lookup| match lookup {
                Lookup::Live(entry) => {
                    writer.bulk(entry.value);
                    Some(true)
                }
                Lookup::Absent => {
                    writer.nil();
                    Some(false)
                }
                // Rule 6: only the proposer may say that a key has expired.
                Lookup::Expired => None,
            });
            if let Some(is_hit) = found {
                self.hits.note(is_hit);
                self.steps.direct(shard);
                self.turn.keep(home, shard, command);
                self.context.node.metrics.command_ok(counted);
                return;
            }
        } else if !command.is_write() {
            let place = self
                .context
                .executor
                .plan_part(shard, command, &mut self.turn);
            match place {
                Place::Direct(shard, answer) => {
                    Writer::new(self.steps.ready(), self.state.version).reply(&answer.reply);
                    self.steps.direct(shard);
                    self.context.node.metrics.command(counted, &answer.reply);
                }
                Place::Shard(shard) => self.steps.shard(shard, counted),
                other => self.place(other, counted, mute),
            }
            return;
        }
        self.turn.ask(home, shard, command);
        self.steps.shard(shard, counted);
    }

    fn place(&mut self, place: Place, counted: CommandCount, mute: Mute) {
        self.steps.place(place, counted);
        if mute == Mute::Yes {
            self.steps.mute_last();
        }
    }

    /// Answers a command that needs nothing but the session and the node.
    fn answer_session(&mut self, command: SessionCommand, arguments: &[Bytes]) {
        let mute = self.state.take_mute();
        let result = self.session_command(command, arguments);
        if let Err(error) = result {
            self.steps.discard();
            Writer::new(self.steps.ready(), self.state.version).error(&error);
        }
        // CLIENT REPLY decides by itself whether it is answered.
        if mute == Mute::Yes && command != SessionCommand::ClientReply {
            self.steps.discard();
        }
        self.steps.bytes();
    }

    /// Answers with an error; inside MULTI it dooms the transaction.
    fn refuse(&mut self, error: &Error) {
        if let Some(transaction) = &mut self.state.transaction {
            transaction.is_doomed = true;
        }
        if self.state.take_mute() == Mute::No {
            self.write(|writer| writer.error(error));
        }
    }

    /// Puts a reply that stands into the turn.
    fn write(&mut self, write: impl FnOnce(&mut Writer<'_>)) {
        write(&mut Writer::new(self.steps.ready(), self.state.version));
        self.steps.bytes();
    }

    /// Answers a request that had to wait for the turn.
    async fn run_later(&mut self, later: Later, output: &mut BytesMut) {
        match later {
            Later::Session(command, arguments) => {
                let mute = self.state.take_mute();
                self.later_command(command, &arguments).await;
                if mute == Mute::Yes {
                    self.steps.discard();
                }
                self.steps.bytes();
            }
            Later::Exec => self.run_exec().await,
            Later::Paused(decoded) => {
                let is_write = matches!(&decoded.request, Request::Data(command) if command.is_write())
                    || matches!(decoded.request, Request::Session(SessionCommand::Exec, _));
                let node = Arc::clone(&self.context.node);
                node.pause.wait(is_write, &*node.clock).await;
                if let Planned::Afterwards(later) = self.plan_released(decoded, 0) {
                    self.run_turn(output).await;
                    Box::pin(self.run_later(later, output)).await;
                }
            }
        }
    }

    /// Answers into the turn's bytes, without accounting for them.
    async fn later_command(&mut self, command: SessionCommand, arguments: &[Bytes]) {
        let result = match command {
            SessionCommand::Watch => self.watch(arguments).await,
            SessionCommand::MemoryUsage
            | SessionCommand::ObjectEncoding
            | SessionCommand::ObjectFreq
            | SessionCommand::ObjectIdleTime
            | SessionCommand::ObjectRefCount
            | SessionCommand::DebugObject => self.about_key(command, arguments).await,
            SessionCommand::DebugSleep => self.debug_sleep(arguments).await,
            other => self.session_command(other, arguments),
        };
        if let Err(error) = result {
            self.steps.discard();
            Writer::new(self.steps.ready(), self.state.version).error(&error);
        }
    }

    /// Executes one command outside of any turn.
    async fn execute(&self, command: Command) -> Answer {
        let executor = &self.context.executor;
        executor.execute(command, executor.deadline(None)).await
    }

    /// Whether a pause can hold a request back; which kind it does is decided when it is on. What
    /// is only queued passes: its EXEC will wait.
    fn is_held_by_pause(&self, request: &Request) -> bool {
        match request {
            Request::Data(_) => self.state.transaction.is_none(),
            Request::Session(command, _) => *command == SessionCommand::Exec,
            Request::Invalid(_) => false,
        }
    }

    fn writer(&mut self) -> Writer<'_> {
        Writer::new(self.steps.ready(), self.state.version)
    }
}

/// Whether a command may be given before authentication.
fn is_open_to_all(spec: Option<&Spec>) -> bool {
    spec.is_some_and(|spec| spec.flags.contains(Flags::NO_AUTH))
}

/// Whether a session command must see what the requests before it did, or takes time.
const fn waits_for_turn(command: SessionCommand) -> bool {
    matches!(
        command,
        // The first two change how the replies before them would be written.
        SessionCommand::Hello
            | SessionCommand::Reset
            | SessionCommand::Watch
            | SessionCommand::Info
            | SessionCommand::Wait
            | SessionCommand::MemoryUsage
            | SessionCommand::MemoryStats
            | SessionCommand::ObjectEncoding
            | SessionCommand::ObjectFreq
            | SessionCommand::ObjectIdleTime
            | SessionCommand::ObjectRefCount
            | SessionCommand::DebugObject
            | SessionCommand::DebugSleep
    )
}

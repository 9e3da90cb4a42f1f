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

pub(crate) mod cluster;
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
mod traced;
mod transaction;

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use flux_env::Instant;
use flux_store::{KeyHash, Lookup, Read};
use flux_telemetry::TraceContext;
use flux_telemetry::trace::{self, Span};
use flux_types::{Answer, Command, Error, ErrorCode, ReadCommand, RequestId, ShardId};
use flux_wire::resp::{
    Decoded, Decoder, Flags, ProtocolError, Request, SessionCommand, Spec, Writer,
};
use tokio::io::{AsyncRead, AsyncWrite};

use self::cluster::Elsewhere;
use self::pipe::{Event, Pipe};
use self::state::{Mute, State};
use self::steps::{Sink, Steps};
use crate::clients::Client;
use crate::context::{Hits, SessionContext};
use crate::exec::{Place, Split, Turn, owner, split};
use crate::metrics::{CommandCount, Protocol};
use crate::statistics::SlowTurn;

/// The version of Redis whose behavior clients may expect; they choose features by it.
const REDIS_VERSION: &str = "7.2.4";
/// Most commands of one turn: what one batch can hold.
const TURN_COMMANDS_MAX: usize = flux_types::limits::BATCH_OPERATIONS_MAX;
/// Bytes of direct replies after which a turn takes no further command.
const TURN_REPLY_BYTES_MAX: usize = 1024 * 1024;

/// Most requests decoded before the first of them is executed.
const LOOK_AHEAD: usize = 16;

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
        let has_input = session.has_more || !pipe.input.is_empty();
        if has_input && session.take_turn(&mut pipe).await == Next::Close {
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

/// A request that was decoded and not planned yet.
#[derive(Debug)]
struct Arrived {
    decoded: Decoded,
    /// Bytes it took.
    bytes: usize,
    /// The hash of its key, if it was asked for ahead.
    hash: Option<KeyHash>,
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
    /// An EXEC that holds commands which the session answers, with its request id if it has one.
    Exec(Option<RequestId>),
    /// A command that a pause holds back.
    Paused(Box<Arrived>),
}

/// See the module.
#[derive(Debug)]
struct Session {
    context: SessionContext,
    client: Arc<Client>,
    decoder: Decoder,
    state: State,
    /// Decoded ahead.
    ahead: VecDeque<Arrived>,
    turn: Turn,
    steps: Steps,
    /// The turn's commands on data by kind, which share its time.
    counted: Vec<(CommandCount, u64)>,
    hits: Hits,
    /// The trace of the turn, if it is recorded.
    trace: Option<TraceContext>,
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
            ahead: VecDeque::new(),
            turn: Turn::default(),
            steps: Steps::default(),
            counted: Vec::new(),
            hits: Hits::default(),
            trace: None,
            has_more: false,
        }
    }

    fn is_over_limit(&self, unsent_bytes: usize) -> bool {
        unsent_bytes as u64 > self.context.node.config.output_buffer_size_max
    }

    /// Plans and runs what has arrived.
    async fn take_turn<S>(&mut self, pipe: &mut Pipe<S>) -> Next {
        let started = self.context.node.clock.now();
        let mut last: Option<&'static Spec> = None;
        let mut commands = 0;
        let mut span = None;
        let next = loop {
            let is_full =
                commands >= TURN_COMMANDS_MAX || self.steps.ready_bytes() >= TURN_REPLY_BYTES_MAX;
            if is_full || self.state.is_closing {
                break Next::Continue;
            }
            let Some(arrived) = self.ahead.pop_front() else {
                match self.look_ahead(&mut pipe.input) {
                    Ok(true) => continue,
                    Ok(false) => break Next::Continue,
                    Err(error) => {
                        let error = error.into();
                        self.context.node.metrics.protocol_error(Protocol::Resp);
                        self.context.node.metrics.error(&error);
                        self.write(|writer| writer.error(&error));
                        break Next::Close;
                    }
                }
            };
            commands += 1;
            if commands == 1 {
                span = traced::begin();
                self.trace = span.as_ref().map(Span::context);
            }
            last = arrived.decoded.spec.or(last);
            if let Planned::Afterwards(later) = self.plan(arrived) {
                self.run_turn(&mut pipe.output).await;
                self.run_later(later, &mut pipe.output).await;
            }
        };
        self.has_more = commands >= TURN_COMMANDS_MAX || !self.ahead.is_empty();
        self.run_turn(&mut pipe.output).await;
        self.note(last, commands, started);
        if let Some(span) = &span {
            traced::describe(span, last, commands);
        }
        if self.state.is_closing {
            Next::Close
        } else {
            next
        }
    }

    /// Decodes the next few requests and asks the processor for the memory that their reads will
    /// touch, so that it is waited for once and not one by one. Answers whether there were any.
    fn look_ahead(&mut self, input: &mut BytesMut) -> Result<bool, ProtocolError> {
        // Before authentication the next request decides how the one after it is decoded.
        let count = if self.state.is_authenticated {
            LOOK_AHEAD
        } else {
            1
        };
        while self.ahead.len() < count {
            let before = input.len();
            let decoded = match self.decoder.next(input) {
                Ok(Some(decoded)) => decoded,
                Ok(None) => break,
                // What came before it is answered first: it will be met again.
                Err(_) if !self.ahead.is_empty() => break,
                Err(error) => return Err(error),
            };
            self.ahead.push_back(Arrived {
                bytes: before - input.len(),
                hash: None,
                decoded,
            });
        }
        if self.ahead.len() > 1 {
            self.prefetch();
        }
        Ok(!self.ahead.is_empty())
    }

    fn prefetch(&mut self) {
        let home = self.context.executor.home();
        for arrived in &mut self.ahead {
            if let Request::Data(Command::Read(ReadCommand::Get { key })) = &arrived.decoded.request
                && let Some(shard) = home.shard(home.map().shard_of_key(key))
            {
                let hash = shard.store().hash(key);
                shard.store().prefetch(hash);
                arrived.hash = Some(hash);
            }
        }
        for arrived in &self.ahead {
            if let Some(hash) = arrived.hash
                && let Request::Data(Command::Read(ReadCommand::Get { key })) =
                    &arrived.decoded.request
                && let Some(shard) = home.shard(home.map().shard_of_key(key))
            {
                shard.store().prefetch_entry(hash);
            }
        }
    }

    /// Notes a turn for CLIENT LIST, the metrics and the slow log.
    fn note(&mut self, last: Option<&'static Spec>, commands: usize, started: Instant) {
        let node = &self.context.node;
        let Some(last_kind) = self.counted.last().map(|(kind, _)| *kind) else {
            self.note_name(last);
            return;
        };
        let took = node.clock.now().saturating_since(started);
        node.metrics.latency(Protocol::Resp, last_kind, took);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let all: u64 = self.counted.iter().map(|(_, count)| count).sum();
        for (kind, count) in self.counted.drain(..) {
            node.metrics
                .command_took(kind, micros.saturating_mul(count) / all.max(1));
        }
        if node.statistics.is_slow(took) {
            self.note_slow(last, commands, micros);
        }
        self.note_name(last);
    }

    fn note_slow(&self, last: Option<&'static Spec>, commands: usize, micros: u64) {
        let node = &self.context.node;
        node.statistics.note_slow(SlowTurn {
            id: 0,
            at_seconds: node.now_millis() / 1000,
            micros,
            command: last.map_or_else(String::new, |spec| spec.full_name().to_string()),
            commands,
            client: self
                .client
                .peer
                .map_or_else(String::new, |peer| peer.to_string()),
            client_name: self.client.labels().name,
        });
    }

    fn note_name(&mut self, last: Option<&'static Spec>) {
        let node = &self.context.node;
        if let Some(spec) = last {
            let container = spec.container.unwrap_or_default();
            self.client
                .note_subcommand(container, spec.name, node.now_millis());
        }
        self.hits.flush(&node.lookups);
    }

    /// Runs what is planned and puts all replies into `output`.
    async fn run_turn(&mut self, output: &mut BytesMut) {
        if self.steps.is_empty() {
            return;
        }
        let deadline = self.context.executor.deadline(None);
        let reads = {
            let run = pin!(self.turn.run(&self.context.executor, deadline));
            trace::within(self.trace, run).await
        };
        let mut sink = Sink {
            output,
            version: self.state.version,
            metrics: &self.context.node.metrics,
        };
        self.steps.finish(reads, &mut self.turn, &mut sink);
        self.turn.clear();
    }

    /// Makes a request part of the turn.
    fn plan(&mut self, arrived: Arrived) -> Planned {
        let Decoded { spec, request } = &arrived.decoded;
        if !self.state.is_authenticated && !is_open_to_all(*spec) {
            self.refuse(&Error::not_done(
                ErrorCode::Unauthenticated,
                "Authentication required.",
            ));
            return Planned::Yes;
        }
        if self.context.node.pause.may_hold() && self.is_held_by_pause(request) {
            return Planned::Afterwards(Later::Paused(Box::new(arrived)));
        }
        self.plan_released(arrived)
    }

    /// As [`Session::plan`], for a request that may run and that no pause holds back.
    fn plan_released(&mut self, arrived: Arrived) -> Planned {
        let Arrived {
            decoded: Decoded { spec, request },
            bytes,
            hash,
        } = arrived;
        if self.state.transaction.is_some() && !transaction::runs_at_once(&request) {
            self.queue(request, bytes);
            return Planned::Yes;
        }
        match request {
            Request::Data(command) => self.plan_data(command, hash),
            Request::Session(SessionCommand::Exec, id) => return self.plan_exec(&id),
            Request::Session(command, arguments) if waits_for_turn(command) => {
                return Planned::Afterwards(Later::Session(command, arguments));
            }
            Request::Session(command, arguments) => self.answer_session(command, &arguments),
            Request::Invalid(error) => {
                if let Some(spec) = spec {
                    self.context.node.metrics.command_rejected(spec.name);
                }
                self.refuse(&error);
            }
        }
        Planned::Yes
    }

    /// Plans a command on data.
    fn plan_data(&mut self, command: Command, hash: Option<KeyHash>) {
        if let Some(elsewhere) = self.elsewhere(&command) {
            self.send_elsewhere(&elsewhere);
            return;
        }
        if self.state.is_readonly && self.plan_stale(&command) {
            return;
        }
        let mute = self.state.take_mute();
        if mute == Mute::Yes && !command.is_write() {
            return;
        }
        let counted = CommandCount::of(&command);
        match self.counted.iter_mut().find(|(kind, _)| *kind == counted) {
            Some((_, count)) => *count += 1,
            None => self.counted.push((counted, 1)),
        }
        let home = self.context.executor.home();
        let map = home.map();
        self.turn.plan_by(map);
        let (shard, command) = match split(command, map, home.lot()) {
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
        if mute == Mute::No
            && let Command::Read(ReadCommand::Get { key }) = &command
        {
            let hash = hash.or_else(|| Some(home.shard(shard)?.store().hash(key)));
            self.plan_get(shard, command, hash, counted);
        } else if mute == Mute::No && command.is_write() {
            self.turn.ask(home, shard, command);
            self.steps.shard(shard, counted);
        } else {
            let place = self
                .context
                .executor
                .plan_part(shard, command, &mut self.turn);
            self.place(place, counted, mute);
        }
    }

    /// Plans a GET: its value goes from the entry into the reply's bytes without a copy between.
    fn plan_get(
        &mut self,
        shard: ShardId,
        command: Command,
        hash: Option<KeyHash>,
        counted: CommandCount,
    ) {
        let home = self.context.executor.home();
        if let Command::Read(ReadCommand::Get { key }) = &command
            && let Some(hash) = hash
            && let Some(now) = self.turn.direct_now(home, shard)
            && let Some(handle) = home.shard(shard)
        {
            let mut writer = Writer::new(self.steps.ready(), self.state.version);
            let found = handle
                .store()
                .get_hashed(hash, key, now, |lookup| match lookup {
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
        }
        self.turn.ask(home, shard, command);
        self.steps.shard(shard, counted);
    }

    /// Plans the answer of a place: at once if it is a direct read that is sent.
    fn place(&mut self, place: Place, counted: CommandCount, mute: Mute) {
        if mute == Mute::No
            && let Place::Direct(shard, answer) = &place
        {
            Writer::new(self.steps.ready(), self.state.version).reply(&answer.reply);
            self.steps.direct(*shard);
            self.context.node.metrics.command(counted, &answer.reply);
            return;
        }
        self.steps.place(place, counted);
        if mute == Mute::Yes {
            self.steps.mute_last();
        }
    }

    /// Tells which node to ask; inside MULTI that dooms the transaction.
    fn send_elsewhere(&mut self, elsewhere: &Elsewhere) {
        if let Some(transaction) = &mut self.state.transaction {
            transaction.is_doomed = true;
        }
        let Elsewhere { slot, host, port } = elsewhere;
        if self.state.take_mute() == Mute::No {
            self.write(|writer| writer.moved(*slot, host, *port));
        }
    }

    /// Answers a read from this node's replica, as READONLY allows, if it does not lead: what it
    /// tells was true, but may be no more. Answers whether it did.
    fn plan_stale(&mut self, command: &Command) -> bool {
        let home = self.context.executor.home();
        let Command::Read(read) = command else {
            return false;
        };
        let map = home.map();
        let Some(handle) = owner(command, map).and_then(|shard| home.shard(shard)) else {
            return false;
        };
        if handle.lease(home.clock().now()).is_some() {
            return false;
        }
        let Some(now) = handle.stale_now() else {
            return false;
        };
        // Rule 6: that a key has expired is for the leader to say.
        let Read::Reply(reply) = handle.store().read(read, now) else {
            return false;
        };
        // It may have been let go, and have forgotten everything, in the middle of the read.
        if handle.stale_now().is_none() || !handle.is_current(map.shard_count()) {
            return false;
        }
        let node = Arc::clone(&self.context.node);
        node.metrics.command(CommandCount::of(command), &reply);
        if self.state.take_mute() == Mute::No {
            self.write(|writer| writer.reply(&reply));
        }
        true
    }

    /// Answers a command that needs nothing but the session and the node.
    fn answer_session(&mut self, command: SessionCommand, arguments: &[Bytes]) {
        let mute = self.state.take_mute();
        let result = self.session_command(command, arguments);
        if let Err(error) = result {
            self.fail(&error);
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
        self.context.node.metrics.error(error);
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
            Later::Exec(request) => self.run_exec(request).await,
            Later::Paused(arrived) => {
                let is_write = match &arrived.decoded.request {
                    Request::Data(command) => command.is_write(),
                    Request::Session(command, _) => *command == SessionCommand::Exec,
                    Request::Invalid(_) => false,
                };
                let node = Arc::clone(&self.context.node);
                node.pause.wait(is_write, &*node.clock).await;
                if let Planned::Afterwards(later) = self.plan_released(*arrived) {
                    self.run_turn(output).await;
                    Box::pin(self.run_later(later, output)).await;
                }
            }
        }
    }

    /// Answers into the turn's bytes, without accounting for them.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "all others need nothing but the session and the node"
    )]
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
            SessionCommand::ClusterCountKeysInSlot | SessionCommand::ClusterGetKeysInSlot => {
                self.keys_in_slot(arguments).await
            }
            other => self.session_command(other, arguments),
        };
        if let Err(error) = result {
            self.fail(&error);
        }
    }

    /// An error in place of what a command has begun to answer.
    fn fail(&mut self, error: &Error) {
        self.context.node.metrics.error(error);
        self.steps.discard();
        self.writer().error(error);
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
        // The first two change how the replies before them would be written, the next two what
        // becomes of the requests before them.
        SessionCommand::Hello
            | SessionCommand::Reset
            | SessionCommand::ConfigSet
            | SessionCommand::ConfigResetStat
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
            | SessionCommand::ClusterCountKeysInSlot
            | SessionCommand::ClusterGetKeysInSlot
    )
}

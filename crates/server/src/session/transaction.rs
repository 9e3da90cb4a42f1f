//! MULTI, EXEC, DISCARD, WATCH, UNWATCH.
//!
//! The session queues; EXEC becomes one command of one shard, whose proposer evaluates it as one
//! group. WATCH notes the revision of each key, and the transaction carries the notes, so that
//! nothing can change between the check and the commands. What the session itself answers (PING,
//! TIME …) may stand between MULTI and EXEC too; its replies are put where they belong.

use bytes::{Bytes, BytesMut};
use flux_types::limits::{FRAME_BYTES_MAX, TRANSACTION_COMMANDS_MAX, WATCHED_KEYS_MAX};
use flux_types::{
    Command, Error, ErrorCode, ReadCommand, Reply, RequestId, Transaction, Watch, WriteCommand,
};
use flux_wire::resp::{Request, SessionCommand, request_id};

use super::keys::entry_of;
use super::state::{Item, Mute, Queue};
use super::{Later, Planned, Session};
use crate::metrics::CommandCount;

/// Most bytes of requests between MULTI and EXEC: what the largest frame may hold.
const TRANSACTION_BYTES_MAX: usize = FRAME_BYTES_MAX;

/// Whether a request between MULTI and EXEC is not queued.
pub(super) const fn runs_at_once(request: &Request) -> bool {
    match request {
        Request::Session(command, _) => matches!(
            command,
            SessionCommand::Exec
                | SessionCommand::Discard
                | SessionCommand::Multi
                | SessionCommand::Watch
                | SessionCommand::Quit
                | SessionCommand::Reset
        ),
        Request::Invalid(_) => true,
        Request::Data(_) => false,
    }
}

/// The command that an EXEC is.
fn transaction(watches: Vec<Watch>, commands: Vec<Command>, id: Option<RequestId>) -> Command {
    let command = Command::Write(WriteCommand::Transaction(Transaction { watches, commands }));
    match id {
        Some(id) => command.once(id),
        None => command,
    }
}

fn invalid(message: &'static str) -> Error {
    Error::not_done(ErrorCode::Invalid, message)
}

impl Session {
    /// Queues a request between MULTI and EXEC.
    pub(super) fn queue(&mut self, request: Request, bytes: usize) {
        let Some(queue) = &mut self.state.transaction else {
            return;
        };
        queue.bytes = queue.bytes.saturating_add(bytes);
        if queue.items.len() >= TRANSACTION_COMMANDS_MAX || queue.bytes > TRANSACTION_BYTES_MAX {
            queue.items.clear();
            self.refuse(&Error::not_done(
                ErrorCode::TooLarge,
                "the transaction is too long",
            ));
            return;
        }
        match request {
            Request::Data(Command::Write(
                WriteCommand::Once(_) | WriteCommand::QueryOutcome { .. },
            )) => {
                self.refuse(&invalid(
                    "inside MULTI no command takes a request id; give it to EXEC",
                ));
                return;
            }
            Request::Data(command) => {
                if let Some(elsewhere) = self.elsewhere(&command) {
                    self.send_elsewhere(&elsewhere);
                    return;
                }
                if let Some(queue) = &mut self.state.transaction {
                    queue.items.push(Item::Data(command));
                }
            }
            Request::Session(command, arguments) => {
                queue.items.push(Item::Session(command, arguments));
            }
            Request::Invalid(error) => {
                self.refuse(&error);
                return;
            }
        }
        let queued = self.state.transaction.as_ref();
        let queued = queued.map(|queue| queue.items.len());
        self.client.set_queued(queued);
        if self.state.take_mute() == Mute::No {
            self.write(|writer| writer.simple("QUEUED"));
        }
    }

    pub(super) fn multi(&mut self) -> Result<(), Error> {
        if self.state.transaction.is_some() {
            return Err(invalid("MULTI calls can not be nested"));
        }
        self.state.transaction = Some(Queue::default());
        self.client.set_queued(Some(0));
        self.writer().ok();
        Ok(())
    }

    pub(super) fn discard(&mut self) -> Result<(), Error> {
        if self.take_queue().is_none() {
            return Err(invalid("DISCARD without MULTI"));
        }
        self.forget_watches();
        self.writer().ok();
        Ok(())
    }

    pub(super) fn forget_watches(&mut self) {
        self.state.watches.clear();
        self.client.set_watched(0);
    }

    fn take_queue(&mut self) -> Option<Queue> {
        self.client.set_queued(None);
        self.state.transaction.take()
    }

    /// Plans an EXEC: as one command if all that is queued is data. The arguments are a request id
    /// or nothing.
    pub(super) fn plan_exec(&mut self, id: &[Bytes]) -> Planned {
        // What is no request id was refused when it was parsed.
        let request = request_id(id).ok();
        let refusal = match &self.state.transaction {
            None => Some(invalid("EXEC without MULTI")),
            Some(queue) if queue.is_doomed => Some(Error::not_done(
                ErrorCode::TransactionAborted,
                "Transaction discarded because of previous errors.",
            )),
            Some(queue) => {
                if queue
                    .items
                    .iter()
                    .any(|item| matches!(item, Item::Session(..)))
                {
                    return Planned::Afterwards(Later::Exec(request));
                }
                None
            }
        };
        let queue = self.take_queue().unwrap_or_default();
        let watches = std::mem::take(&mut self.state.watches);
        self.client.set_watched(0);
        if let Some(error) = refusal {
            self.refuse(&error);
            return Planned::Yes;
        }
        let mute = self.state.take_mute();
        let (commands, _) = split_items(queue.items);
        if commands.is_empty() && watches.is_empty() {
            if mute == Mute::No {
                self.write(|writer| writer.array(0));
            }
            return Planned::Yes;
        }
        let command = transaction(watches, commands, request);
        let counted = CommandCount::of(&command);
        let place = self.context.executor.plan(command, &mut self.turn);
        self.place(place, counted, mute);
        Planned::Yes
    }

    /// Runs an EXEC that holds commands which the session answers. They run after the data, at the
    /// moment of EXEC.
    pub(super) async fn run_exec(&mut self, request: Option<RequestId>) {
        let queue = self.take_queue().unwrap_or_default();
        let watches = std::mem::take(&mut self.state.watches);
        self.client.set_watched(0);
        let mute = self.state.take_mute();
        let (commands, order) = split_items(queue.items);
        let reply = if commands.is_empty() && watches.is_empty() {
            Reply::Array(Vec::new())
        } else {
            let command = transaction(watches, commands, request);
            self.execute(command).await.reply
        };
        let Reply::Array(replies) = reply else {
            // Aborted, or an error: nothing was run.
            if mute == Mute::No {
                self.write(|writer| writer.reply(&reply));
            }
            return;
        };
        let mut replies = replies.into_iter();
        self.writer().array(order.len());
        for item in order {
            match item {
                None => {
                    let reply = replies.next().unwrap_or(Reply::Nil);
                    self.writer().reply(&reply);
                }
                Some((command, arguments)) => self.nested_command(command, &arguments).await,
            }
        }
        if mute == Mute::Yes {
            self.steps.discard();
        }
        self.steps.bytes();
    }

    /// Runs a session command inside an EXEC: exactly one reply, an error in its place.
    async fn nested_command(&mut self, command: SessionCommand, arguments: &[Bytes]) {
        // The replies before it are not accounted for yet: keep an error from taking them along.
        let outer = std::mem::take(self.steps.ready());
        self.later_command(command, arguments).await;
        let own: BytesMut = std::mem::replace(self.steps.ready(), outer);
        self.steps.ready().extend_from_slice(&own);
    }

    pub(super) async fn watch(&mut self, keys: &[Bytes]) -> Result<(), Error> {
        if self.state.transaction.is_some() {
            return Err(invalid("WATCH inside MULTI is not allowed"));
        }
        if self.state.watches.len() + keys.len() > WATCHED_KEYS_MAX {
            return Err(invalid("too many watched keys"));
        }
        for key in keys {
            if self.state.watches.iter().any(|watch| watch.key == *key) {
                continue;
            }
            let home = self.context.executor.home();
            let shard = home.shard(home.map().shard_of_key(key));
            let since = shard.map_or_else(Default::default, flux_raft::Shard::now);
            let answer = self
                .execute(Command::Read(ReadCommand::GetEntry { key: key.clone() }))
                .await;
            let revision = entry_of(answer)?.map(|entry| entry.revision);
            self.state.watches.push(Watch {
                key: key.clone(),
                revision,
                since,
            });
        }
        self.client.set_watched(self.state.watches.len());
        self.writer().ok();
        Ok(())
    }
}

/// A command that the session answers, with its arguments; `None` where the shard's next reply
/// belongs.
type Slot = Option<(SessionCommand, Vec<Bytes>)>;

/// The commands for the shard, and what stands at each place.
fn split_items(items: Vec<Item>) -> (Vec<Command>, Vec<Slot>) {
    let mut commands = Vec::with_capacity(items.len());
    let mut order = Vec::with_capacity(items.len());
    for item in items {
        match item {
            Item::Data(command) => {
                commands.push(command);
                order.push(None);
            }
            Item::Session(command, arguments) => order.push(Some((command, arguments))),
        }
    }
    (commands, order)
}

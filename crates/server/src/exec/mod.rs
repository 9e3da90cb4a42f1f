//! Execution: from a command to its answer, whatever protocol brought it.
//!
//! A command's keys have slots, slots have shards. Writes and everything that must be of one
//! moment go through the shard's proposer; reads are answered from the store while the shard's
//! lease gate is open ([`turn`]). Commands over keys of several shards are [`split`] and their
//! answers [`join`]ed. Shards of other threads are reached over a [`lane`]. While a shard is split what
//! was asked by the map before goes on by the one after (`crate::peer`, "reroute").
//!
//! RESP sessions plan into a [`Turn`] themselves, because they put direct reads into bytes without
//! a reply in between; gRPC, FLUX and the admin port use [`Executor::execute`].

mod home;
mod join;
mod lane;
mod split;
mod stale;
mod turn;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use flux_env::Instant;
use flux_raft::Submission;
use flux_store::Read;
use flux_types::{Answer, Command, ShardId, TraceParent};
use tokio::sync::oneshot;

use crate::execute::Execute;

pub(crate) use self::home::Home;
use self::join::join;
pub(crate) use self::lane::Lanes;
pub(crate) use self::split::{Join, Split, is_on_every_key, owner, split};
pub(crate) use self::turn::{Reads, Turn, busy};

/// Executes commands. Cheap to clone; each thread that carries sessions has its own, which knows
/// its ways to the shards.
#[derive(Clone)]
pub struct Executor {
    home: Arc<Home>,
    lanes: Arc<Lanes>,
}

impl fmt::Debug for Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Executor")
            .field("shards", &self.home.shards().len())
            .finish_non_exhaustive()
    }
}

/// Where the answer of one command will come from.
#[derive(Debug)]
pub(crate) enum Place {
    /// It is here.
    Ready(Answer),
    /// Read directly; if that does not stand, the shard's next answer.
    Direct(ShardId, Answer),
    /// The shard's next answer.
    Shard(ShardId),
    /// Several shards' next answers, joined.
    Joined(Vec<Place>, Join),
}

impl Executor {
    pub(crate) fn new(home: Arc<Home>, lanes: Lanes) -> Self {
        Self {
            home,
            lanes: Arc::new(lanes),
        }
    }

    /// The deadline of a request that brings none, or the one it brings.
    #[must_use]
    pub fn deadline(&self, timeout: Option<Duration>) -> Instant {
        self.home.clock().now() + timeout.unwrap_or_else(|| self.home.request_timeout())
    }

    /// Executes one command.
    ///
    /// # Cancellation
    /// Not safe to drop for a write: it may be done or not.
    pub async fn execute(&self, command: Command, deadline: Instant) -> Answer {
        let mut answers = self.execute_all(vec![command], deadline).await;
        answers.pop().unwrap_or_else(turn::lost)
    }

    /// Executes commands as one pipeline: each sees what those before it did, as far as they are
    /// of one shard. One answer for each, in order.
    ///
    /// # Cancellation
    /// Not safe to drop if there is a write: it may be done or not.
    pub async fn execute_all(&self, commands: Vec<Command>, deadline: Instant) -> Vec<Answer> {
        let mut turn = Turn::default();
        let places: Vec<Place> = commands
            .into_iter()
            .map(|command| self.plan(command, &mut turn))
            .collect();
        let reads = turn.run(self, deadline).await;
        places
            .into_iter()
            .map(|place| settle(place, reads, &mut turn))
            .collect()
    }

    pub(crate) fn home(&self) -> &Home {
        &self.home
    }

    /// Plans a command into a turn.
    pub(crate) fn plan(&self, command: Command, turn: &mut Turn) -> Place {
        let map = self.home.map();
        turn.plan_by(map);
        match split(command, map, self.home.lot()) {
            Split::One(shard, command) => self.plan_part(shard, command, turn),
            Split::Many(parts, join) => self.plan_parts(parts, join, turn),
            Split::Refused(error) => Place::Ready(Answer::error(error)),
        }
    }

    /// Plans the parts of a command that concerns several shards.
    pub(crate) fn plan_parts(
        &self,
        parts: Vec<(ShardId, Command)>,
        join: Join,
        turn: &mut Turn,
    ) -> Place {
        let places = parts
            .into_iter()
            .map(|(shard, command)| self.plan_part(shard, command, turn))
            .collect();
        Place::Joined(places, join)
    }

    /// Plans a command that concerns one shard.
    pub(crate) fn plan_part(&self, shard: ShardId, command: Command, turn: &mut Turn) -> Place {
        if let Command::Read(read) = &command
            && let Some(now) = turn.direct_now(&self.home, shard)
            && let Some(handle) = self.home.shard(shard)
        {
            let revision = handle.store().revision();
            match handle.store().read(read, now) {
                Read::Reply(reply) => {
                    turn.keep(&self.home, shard, command);
                    return Place::Direct(shard, Answer { reply, revision });
                }
                // Rule 6: only the proposer may say that a key has expired.
                Read::Expired => {}
            }
        }
        turn.ask(&self.home, shard, command);
        Place::Shard(shard)
    }

    /// Sends commands to a shard's proposer, over the lane if it lives on another thread.
    pub(crate) fn submit(
        &self,
        shard: ShardId,
        commands: Vec<Command>,
        traces: Vec<(usize, TraceParent)>,
        routing: u32,
        deadline: Instant,
    ) -> oneshot::Receiver<Vec<Answer>> {
        let (reply, answers) = oneshot::channel();
        let submission = Submission {
            traces,
            routing,
            ..Submission::new(commands, deadline, reply)
        };
        let refused = match self.home.shard(shard) {
            Some(shard) => match self.lanes.to(shard) {
                Some(lane) => lane.submit(submission).err(),
                None => shard.submit(submission).err(),
            },
            // No such shard; the answer is lost, which is what the caller will see.
            None => None,
        };
        if let Some(Submission {
            commands, reply, ..
        }) = refused
        {
            // The receiver is in our hand, so this cannot fail.
            drop(reply.send(vec![busy(); commands.len()]));
        }
        answers
    }
}

/// The answer of a place, once its turn has run.
pub(crate) fn settle(place: Place, reads: Reads, turn: &mut Turn) -> Answer {
    match place {
        Place::Ready(answer) => answer,
        Place::Direct(_, answer) if reads == Reads::Stand => answer,
        Place::Direct(shard, _) | Place::Shard(shard) => turn.answer(shard),
        Place::Joined(places, how) => {
            let answers = places
                .into_iter()
                .map(|place| settle(place, reads, turn))
                .collect();
            join(how, answers)
        }
    }
}

impl Execute for Executor {
    fn execute(
        &self,
        command: Command,
        deadline: Instant,
    ) -> impl Future<Output = Answer> + Send + 'static {
        let executor = self.clone();
        async move { Self::execute(&executor, command, deadline).await }
    }

    fn execute_all(
        &self,
        commands: Vec<Command>,
        deadline: Instant,
    ) -> impl Future<Output = Vec<Answer>> + Send + 'static {
        let executor = self.clone();
        async move { Self::execute_all(&executor, commands, deadline).await }
    }

    fn read_stale(&self, command: Command) -> Answer {
        stale::read(&self.home, command)
    }

    fn shard(&self, command: &Command) -> Option<ShardId> {
        owner(command, self.home.map())
    }
}

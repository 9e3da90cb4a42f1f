//! One turn of a session: what it asks of each shard, and the answers.
//!
//! A session reads what has arrived, plans all of it into one turn, and runs the turn: at most one
//! submission for each shard, then one answer for each command, in the order planned.
//!
//! Reads are answered from the store while planning, if the lease gate is open and the turn has no
//! unanswered write in that shard (rule 7). They stand only if the gate is still open after the
//! last of them (rule 8). If it is not, they are put in front of the shard's submission, where the
//! proposer answers them after a round with its quorum: since a read is only direct while nothing
//! of that shard waits, the front is where they belong.
//!
//! Hot path: the vectors are kept from turn to turn; a shard's commands move into its submission.

use std::vec;

use flux_env::Instant;
use flux_telemetry::TraceContext;
use flux_telemetry::trace::{self, Service, Span};
use flux_types::{
    Answer, Command, Error, ErrorCode, ShardId, SlotMap, Term, TraceParent, UnixMillis,
};
use tokio::sync::oneshot;

use super::{Executor, Home};

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    /// One for each shard, by number.
    parts: Vec<Part>,
    /// Shards that are asked anything, each once.
    touched: Vec<u32>,
    /// How many shards the earliest map had by which something of it was planned.
    routing: Option<u32>,
}

/// What a turn asks of one shard.
#[derive(Debug, Default)]
struct Part {
    is_touched: bool,
    /// The shard's expiry clock, sampled when the turn first touched it; none if the gate was
    /// closed then.
    now: Option<UnixMillis>,
    /// The term whose lease was open when the turn began to read.
    lease: Option<Term>,
    /// Reads answered from the store while planning.
    direct: Vec<Command>,
    /// What the proposer is asked.
    commands: Vec<Command>,
    answers: vec::IntoIter<Answer>,
}

/// Whether the direct reads of a turn stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reads {
    /// What was read may be answered.
    Stand,
    /// It may not: answers come from the shards, for direct reads too.
    Moved,
}

impl Turn {
    /// Notes by which map a command is planned. To be called before it is, with the map that says
    /// where it belongs.
    pub(crate) fn plan_by(&mut self, map: &SlotMap) {
        let count = map.shard_count();
        self.routing = Some(self.routing.map_or(count, |older| older.min(count)));
    }

    /// The expiry clock of a shard, if this turn may read its store directly.
    pub(crate) fn direct_now(&mut self, home: &Home, shard: ShardId) -> Option<UnixMillis> {
        let part = self.part(home, shard)?;
        if part.commands.is_empty() {
            part.now
        } else {
            None
        }
    }

    /// Keeps a read that was answered directly, in case it does not stand.
    pub(crate) fn keep(&mut self, home: &Home, shard: ShardId, command: Command) {
        if let Some(part) = self.part(home, shard) {
            part.direct.push(command);
        }
    }

    /// Asks the shard's proposer. [`Turn::answer`] will answer in the same order.
    pub(crate) fn ask(&mut self, home: &Home, shard: ShardId, command: Command) {
        if let Some(part) = self.part(home, shard) {
            part.commands.push(command);
        }
    }

    /// Decides whether direct reads stand, submits, and waits for all answers.
    ///
    /// # Cancellation
    /// Not safe to drop: what was submitted may be done or not.
    pub(crate) async fn run(&mut self, executor: &Executor, deadline: Instant) -> Reads {
        let reads = self.judge_reads(executor.home());
        let parent = trace::current();
        // Submit to all before waiting for any.
        let mut under_way = Vec::new();
        for &shard in &self.touched {
            let Some(part) = self.parts.get_mut(shard as usize) else {
                continue;
            };
            if part.commands.is_empty() {
                continue;
            }
            let commands = std::mem::take(&mut part.commands);
            let count = commands.len();
            let shard_id = ShardId::new(shard);
            let proposed = parent.and_then(|parent| Proposed::begin(parent, shard_id, count));
            let traces = proposed.as_ref().map_or_else(Vec::new, Proposed::traces);
            let routing = self.routing.unwrap_or_default();
            let answers = executor.submit(shard_id, commands, traces, routing, deadline);
            under_way.push((shard, count, answers, proposed));
        }
        for (shard, count, answers, proposed) in under_way {
            let answers = whole(answers.await, count);
            drop(proposed);
            if let Some(part) = self.parts.get_mut(shard as usize) {
                part.answers = answers.into_iter();
            }
        }
        reads
    }

    /// The next answer of a shard, in the order asked.
    pub(crate) fn answer(&mut self, shard: ShardId) -> Answer {
        self.parts
            .get_mut(shard.get() as usize)
            .and_then(|part| part.answers.next())
            .unwrap_or_else(lost)
    }

    /// Forgets everything but the memory.
    pub(crate) fn clear(&mut self) {
        self.routing = None;
        for shard in self.touched.drain(..) {
            if let Some(part) = self.parts.get_mut(shard as usize) {
                part.is_touched = false;
                part.now = None;
                part.lease = None;
                part.direct.clear();
                part.commands.clear();
                part.answers = Vec::new().into_iter();
            }
        }
    }

    /// Moves all direct reads to the front of their shard's commands if the gate of any has closed.
    fn judge_reads(&mut self, home: &Home) -> Reads {
        if self.touched_parts().all(|part| part.direct.is_empty()) {
            return Reads::Stand;
        }
        let (now, routing) = (home.clock().now(), self.routing.unwrap_or_default());
        let stand = self.touched.iter().all(|&shard| {
            let part = self.parts.get(shard as usize);
            part.is_none_or(|part| {
                let handle = home.shard(ShardId::new(shard));
                let lease = handle.and_then(|handle| handle.lease(now));
                // One of a later term says nothing about what was read before it.
                let is_whole = || handle.is_some_and(|handle| handle.is_current(routing));
                part.direct.is_empty() || (lease.is_some() && lease == part.lease && is_whole())
            })
        });
        if stand {
            return Reads::Stand;
        }
        for &shard in &self.touched {
            if let Some(part) = self.parts.get_mut(shard as usize) {
                part.direct.append(&mut part.commands);
                std::mem::swap(&mut part.direct, &mut part.commands);
            }
        }
        Reads::Moved
    }

    fn touched_parts(&self) -> impl Iterator<Item = &Part> {
        self.touched
            .iter()
            .filter_map(|&shard| self.parts.get(shard as usize))
    }

    /// The part of a shard, touched if it was not.
    fn part(&mut self, home: &Home, shard: ShardId) -> Option<&mut Part> {
        let index = shard.get() as usize;
        if self.parts.len() <= index {
            self.parts.resize_with(index + 1, Part::default);
        }
        let part = self.parts.get_mut(index)?;
        if !part.is_touched {
            part.is_touched = true;
            self.touched.push(shard.get());
            let handle = home.shard(shard)?;
            part.lease = handle.lease(home.clock().now());
            part.now = part.lease.map(|_| handle.now());
        }
        Some(part)
    }
}

/// What a recorded request asks of a shard's proposer, from the queue to the answer.
struct Proposed {
    span: Span,
    count: usize,
}

impl Proposed {
    fn begin(parent: TraceContext, shard: ShardId, count: usize) -> Option<Self> {
        let span = trace::child_of(
            parent,
            Service::Node,
            trace::Kind::Internal,
            || "raft.propose",
        )?;
        span.set("flux.shard", shard.get());
        span.set("flux.operations", count);
        Some(Self { span, count })
    }

    /// What the proposer notes with each of the commands.
    fn traces(&self) -> Vec<(usize, TraceParent)> {
        let context = self.span.context();
        let parent = TraceParent::new(context.trace_id(), context.span_id(), context.is_sampled());
        parent.map_or_else(Vec::new, |parent| {
            (0..self.count).map(|number| (number, parent)).collect()
        })
    }
}

/// As many answers as were asked for; what is missing was lost.
fn whole(answers: Result<Vec<Answer>, oneshot::error::RecvError>, count: usize) -> Vec<Answer> {
    let mut answers = answers.unwrap_or_default();
    debug_assert!(answers.is_empty() || answers.len() == count);
    answers.resize_with(count, lost);
    answers
}

/// The answer where none came: the shard ended while it had the command.
pub(crate) fn lost() -> Answer {
    Answer::error(Error::unknown(
        ErrorCode::Unavailable,
        "the shard ended before it answered; the outcome is unknown",
    ))
}

/// The answer when a queue is full.
pub(crate) fn busy() -> Answer {
    Answer::error(Error::not_done(
        ErrorCode::Busy,
        "too many commands wait; try again",
    ))
}

//! The proposer: turns what waits into batches of facts, one batch in flight.
//!
//! One task per shard. It takes everything that waits, evaluates it on the applied state through
//! one overlay, proposes the facts as one entry under the term it evaluated in, and answers once
//! that entry is applied. While a batch is in flight, submissions pile up and become the next one,
//! so batches grow with load and no timer decides their size.
//!
//! What it must never do: evaluate while another leader may have written (it evaluates only as the
//! leader of term T with its own no-op of T applied, and openraft appends the batch only if T still
//! leads), answer a write before it is applied, or call a batch "not done" whose fate is unknown.
//!
//! Hot path: per batch one proposal and one wake; per command one evaluation.

mod pending;
mod traced;
mod weight;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use flux_env::Instant;
use flux_log::{LogError, Space};
use flux_types::bug::{self, Bug};
use flux_types::{Answer, Command, Error, ErrorCode, NodeId, Term, UnixMillis};
use openraft::errors::ClientWriteError;
use openraft::impls::OneshotResponder;

use self::pending::Pending;
use self::weight::{frees_space, weight};
use crate::codec::committed_leader;
use crate::queue::Submission;
use crate::replica::{Leadership, Replica};
use crate::runtime::{Sleep, sleep, stall};
use crate::type_config::{Applied, Batch};

/// How many commands ahead memory is asked for.
const LOOKAHEAD: usize = 16;
/// How often deadlines are looked at while a batch is in flight.
const DEADLINE_CHECK: Duration = Duration::from_millis(10);
/// Pause before asking again who leads, when nobody is known to.
const LEADERSHIP_CHECK: Duration = Duration::from_millis(10);

/// Pause before the log is asked again whether it has space.
pub(crate) const SPACE_CHECK: Duration = Duration::from_millis(2);
/// How often it is asked before a batch is refused: right after a segment was filled the next one
/// is only being prepared, which is not a full disk.
pub(crate) const SPACE_CHECKS_MAX: u32 = 50;

/// What became of a proposed batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Committed and applied: its answers are true.
    Applied,
    /// Not in any log and never will be: its commands may be asked again.
    NotAppended,
    /// It may be committed, now or later, or never.
    Unknown,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Proposer {
    replica: Arc<Replica>,
    /// Submissions begun and not finished, in order, before everything in `taken`.
    begun: VecDeque<Pending>,
    /// Submissions taken from the queue and not begun.
    taken: VecDeque<Submission>,
    deadline_check: Sleep,
    /// How often in a row there was space, but not for the batch.
    rooms_missed: u32,
    /// The term of a split whose fate is not known here.
    split_in: Option<Term>,
}

impl Proposer {
    pub(crate) fn new(replica: Arc<Replica>) -> Self {
        Self {
            replica,
            begun: VecDeque::new(),
            taken: VecDeque::new(),
            deadline_check: sleep(DEADLINE_CHECK),
            rooms_missed: 0,
            split_in: None,
        }
    }

    /// Proposes until the queue is closed, then refuses what is left. Not to be dropped before:
    /// a batch in flight would go unanswered.
    pub(crate) async fn run(mut self) {
        loop {
            if self.begun.is_empty() && self.taken.is_empty() {
                self.replica.queue.ready().await;
            }
            self.replica.queue.drain_into(&mut self.taken);
            if self.replica.queue.is_closed() {
                self.refuse_all(ErrorCode::ShuttingDown, "the shard is shutting down");
                return;
            }
            let is_paused = 0 < self.replica.pauses.load(Ordering::Acquire);
            match self.replica.leadership() {
                Leadership::Leads(_) if is_paused => self.wait_for_leadership().await,
                Leadership::Leads(term) => self.round(term).await,
                Leadership::Follows(leader) => self.hand_on(leader),
                Leadership::Failed => {
                    self.refuse_all(ErrorCode::Unavailable, "the shard has failed");
                }
                Leadership::Unknown => match self.leader_elsewhere() {
                    Some(leader) => self.hand_on(leader),
                    None => self.wait_for_leadership().await,
                },
            }
        }
    }

    /// One batch: evaluated, proposed, applied, answered.
    async fn round(&mut self, term: Term) {
        // Whatever was proposed in an earlier term is applied by now, or never will be.
        if self.split_in.is_some_and(|proposed| proposed < term) {
            self.split_in = None;
            self.replica.ownership.withdraw();
        }
        let space = self.replica.node_log.space();
        let at = self.replica.batch_time();
        let (mut asked, facts) = self.evaluate(term, at, space);
        if asked.is_empty() {
            return;
        }
        if let Some(bytes) = &facts
            && !self.has_room(bytes.len(), space)
        {
            self.postpone(asked).await;
            return;
        }
        self.rooms_missed = 0;
        stall().await;
        let bytes = facts.as_ref().map_or(0, Bytes::len);
        // A split is alone in its batch.
        let split = asked.first().and_then(Pending::splits);
        if let Some(shards) = split {
            self.split_in = Some(term);
            self.replica.ownership.announce(shards);
        }
        let spans = traced::begin(&asked, self.replica.id, term, bytes);
        let fate = match facts {
            Some(bytes) => self.propose(Batch { bytes, at }, term, &mut asked).await,
            None => self.confirm_reads(&asked, term).await,
        };
        if fate != Fate::Applied {
            spans.iter().for_each(|span| span.fail("NOT_APPLIED"));
        }
        // They end before the answers leave, so that they lie within the spans of those who wait.
        drop(spans);
        if split.is_some() && fate != Fate::Unknown {
            self.split_in = None;
            self.replica.ownership.withdraw();
        }
        match fate {
            Fate::Applied => self.settle(asked),
            Fate::NotAppended => {
                self.put_back(asked);
                self.wait_for_leadership().await;
            }
            Fate::Unknown => {
                for pending in &mut asked {
                    pending.lose(
                        ErrorCode::Unavailable,
                        "the shard lost its leader while writing; the outcome is unknown",
                    );
                }
                self.settle(asked);
            }
        }
    }

    /// Takes submissions in order until the batch is full, and asks each command of the overlay.
    /// Answers the submissions touched, in order, and the batch if there are facts.
    fn evaluate(
        &mut self,
        term: Term,
        at: UnixMillis,
        space: Space,
    ) -> (Vec<Pending>, Option<Bytes>) {
        let replica = Arc::clone(&self.replica);
        let now = replica.clock.now();
        let is_full = space == Space::Full;
        let mut room = Room::new(&replica);
        let mut asked = Vec::with_capacity(self.begun.len() + self.taken.len());
        let mut evaluation = replica.store.evaluation(at, term);
        while let Some(mut pending) = self.pop() {
            if pending.deadline() <= now {
                pending.refuse_and_send(ErrorCode::Timeout, TIMED_OUT_WAITING);
                continue;
            }
            let is_old = pending.routing() < replica.ownership.since();
            if is_old && !bug::is_on(Bug::OldMapDone) {
                self.reroute(pending);
                continue;
            }
            // A split is a batch of its own: what comes after it is evaluated on what it left.
            let splits = pending.splits();
            if splits.is_some_and(|shards| shards <= replica.ownership.since()) {
                pending.refuse_and_send(ErrorCode::Conflict, SPLIT_ALREADY);
                continue;
            }
            let splits = splits.is_some();
            if splits && !asked.is_empty() {
                self.begun.push_front(pending);
                break;
            }
            self.look_ahead();
            while let Some(command) = pending.next() {
                if let Some(commands) = pending.begins(LOOKAHEAD) {
                    evaluation.prefetch_all(commands);
                }
                if !room.has(evaluation.bytes(), weight(command)) {
                    break;
                }
                room.operations += 1;
                let answer = match command {
                    Command::Write(write) if is_full && !frees_space(write) => {
                        Answer::error(Error::not_done(ErrorCode::NoSpace, DISK_FULL))
                    }
                    Command::Read(_) | Command::Write(_) => {
                        evaluation.traced_command(command, pending.trace())
                    }
                };
                pending.answer(answer);
            }
            let is_cut = pending.unasked() > 0;
            asked.push(pending);
            if is_cut || splits {
                break;
            }
        }
        replica
            .counters
            .operations
            .fetch_add(room.operations as u64, Ordering::Relaxed);
        (asked, evaluation.finish())
    }

    /// Short submissions come one by one, so what they will touch is asked of the processor some
    /// submissions ahead: first where their keys lie, a little later the entries there.
    fn look_ahead(&self) {
        let store = &self.replica.store;
        // Long ones do it for themselves.
        let short = |at: usize| {
            let submission = self.taken.get(at - 1);
            let commands = submission.map(|taken| taken.commands.as_slice());
            let commands = commands.filter(|commands| commands.len() < LOOKAHEAD / 2);
            commands.unwrap_or_default()
        };
        for command in short(LOOKAHEAD) {
            command.for_each_key(&mut |key| store.prefetch(store.hash(key)));
        }
        for command in short(LOOKAHEAD / 2) {
            command.for_each_key(&mut |key| store.prefetch_entry(store.hash(key)));
        }
    }

    /// Makes sure that the batch can be appended: inside openraft a full disk would be fatal
    /// (rule 11). If not, the next round sees a full disk.
    fn has_room(&mut self, bytes: usize, space: Space) -> bool {
        // What is evaluated on a full disk only frees space, and may use the reserve.
        let is_essential = space == Space::Full;
        match self.replica.log.make_room(bytes, is_essential) {
            Ok(()) => true,
            // Poisoned: the proposal fails and says so.
            Err(LogError::NoSpace) => false,
            Err(_) => true,
        }
    }

    /// There is no room for a batch: it is evaluated again in a moment, and after a few times
    /// refused.
    async fn postpone(&mut self, mut asked: Vec<Pending>) {
        self.rooms_missed += 1;
        if self.rooms_missed < SPACE_CHECKS_MAX {
            self.put_back(asked);
            sleep(SPACE_CHECK).await;
            let now = self.replica.clock.now();
            self.refuse_expired(now, (ErrorCode::Timeout, TIMED_OUT_WAITING));
            return;
        }
        for pending in &mut asked {
            pending.void(ErrorCode::NoSpace, DISK_FULL);
        }
        self.settle(asked);
    }

    /// The next submission in order.
    fn pop(&mut self) -> Option<Pending> {
        if let Some(pending) = self.begun.pop_front() {
            return Some(pending);
        }
        let submission = self.taken.pop_front()?;
        self.replica.queue.settle(submission.commands.len());
        Some(Pending::from(submission))
    }

    /// Proposes a batch under the term it was evaluated in and waits for what becomes of it.
    async fn propose(&mut self, batch: Batch, term: Term, asked: &mut Vec<Pending>) -> Fate {
        self.replica
            .counters
            .batches
            .fetch_add(1, Ordering::Relaxed);
        let (responder, mut outcome) = OneshotResponder::new_pair();
        let replica = Arc::clone(&self.replica);
        let engine = replica.engine();
        let request = engine.raft.write(batch).responder(responder);
        let request = if bug::is_on(Bug::TermFenceOff) {
            request
        } else {
            request.with_leader(committed_leader(term))
        };
        if let Err(fatal) = request.await {
            tracing::error!(shard = %replica.id, error = %fatal, "failed to propose");
            return Fate::Unknown;
        }
        let result = loop {
            tokio::select! {
                biased;
                result = &mut outcome => break result,
                () = &mut self.deadline_check => self.check_deadlines(asked),
            }
        };
        match result {
            Ok(Ok(response)) => match response.data {
                Applied::Effective => Fate::Applied,
                // Cannot be, as the entry was appended under the term in its header.
                Applied::Void => Fate::NotAppended,
            },
            Ok(Err(ClientWriteError::ForwardToLeader(_))) => Fate::NotAppended,
            Ok(Err(
                ClientWriteError::LogEntryDiscarded(_)
                | ClientWriteError::ChangeMembershipError(_)
                | ClientWriteError::PreconditionFailed(_),
            ))
            | Err(_) => Fate::Unknown,
        }
    }

    /// A batch that changes nothing needs no entry, only the certainty that this replica still
    /// led after it was evaluated.
    async fn confirm_reads(&self, asked: &[Pending], term: Term) -> Fate {
        if self.replica.gate.lease(self.replica.clock.now()) == Some(term) {
            return Fate::Applied;
        }
        let deadline = asked.iter().map(Pending::deadline).min();
        let deadline = deadline.unwrap_or_else(|| self.replica.clock.now());
        match self.replica.read_barrier(deadline).await {
            Ok(()) => Fate::Applied,
            Err(_) => Fate::NotAppended,
        }
    }

    /// Their batch is applied (or lost and marked so): sends what is complete, and keeps a
    /// submission that the batch's end cut for the next one.
    fn settle(&mut self, asked: Vec<Pending>) {
        for mut pending in asked {
            pending.settle();
            if pending.unasked() == 0 {
                pending.send();
            } else {
                // Only the last of a batch is cut, and it comes before whatever was put back.
                self.begun.push_front(pending);
            }
        }
    }

    /// Their batch does not exist: their commands are asked again, in the same order.
    fn put_back(&mut self, asked: Vec<Pending>) {
        for mut pending in asked.into_iter().rev() {
            pending.rewind();
            self.begun.push_front(pending);
        }
    }

    /// Answers whoever has waited too long: with an unknown outcome if their commands are in the
    /// batch in flight, as not done if they were never proposed.
    fn check_deadlines(&mut self, asked: &mut Vec<Pending>) {
        self.deadline_check.reset(DEADLINE_CHECK);
        let now = self.replica.clock.now();
        for mut pending in asked.extract_if(.., |pending| pending.deadline() <= now) {
            pending.lose(ErrorCode::Timeout, TIMED_OUT_IN_FLIGHT);
            pending.refuse_and_send(ErrorCode::Timeout, TIMED_OUT_WAITING);
        }
        // What waits behind a batch that no majority confirms waits for a leader.
        let refusal = if self.replica.has_quorum() {
            (ErrorCode::Timeout, TIMED_OUT_WAITING)
        } else {
            (ErrorCode::Unavailable, NO_LEADER)
        };
        self.refuse_expired(now, refusal);
    }

    /// Refuses what waits and whose deadline has passed.
    fn refuse_expired(&mut self, now: Instant, (code, message): Refusal) {
        self.replica.queue.drain_into(&mut self.taken);
        for _ in 0..self.begun.len() {
            let Some(pending) = self.begun.pop_front() else {
                break;
            };
            if pending.deadline() <= now {
                pending.refuse_and_send(code, message);
            } else {
                self.begun.push_back(pending);
            }
        }
        for _ in 0..self.taken.len() {
            let Some(submission) = self.taken.pop_front() else {
                break;
            };
            if submission.deadline <= now {
                self.replica.queue.settle(submission.commands.len());
                Pending::from(submission).refuse_and_send(code, message);
            } else {
                self.taken.push_back(submission);
            }
        }
    }

    /// Who is said to lead while this replica does not know, and is not about to lead itself.
    fn leader_elsewhere(&mut self) -> Option<NodeId> {
        if self.replica.is_leader() {
            return None;
        }
        // What another node sent here in the belief that this one leads must not wait for it.
        self.refuse_forwarded();
        let forward = self.replica.forward.as_ref()?;
        forward.leader(self.replica.id, self.replica.members().term)
    }

    /// Another node leads: what waits goes there, but for what has come from another node.
    fn hand_on(&mut self, leader: NodeId) {
        let replica = Arc::clone(&self.replica);
        while let Some(mut pending) = self.pop() {
            pending.rewind();
            match &replica.forward {
                Some(forward) if !pending.is_forwarded() => {
                    forward.forward(replica.id, leader, pending.into_rest());
                }
                Some(_) | None => pending.refuse_and_send(ErrorCode::NotLeader, NOT_LEADER),
            }
        }
    }

    /// What belongs to another shard since a split goes there, but for what has come from another
    /// node. Nothing of it is provisional.
    fn reroute(&self, pending: Pending) {
        match &self.replica.forward {
            Some(forward) if !pending.is_forwarded() => {
                forward.reroute(self.replica.id, pending.into_rest());
            }
            Some(_) | None => pending.refuse_and_send(ErrorCode::Resharded, RESHARDED),
        }
    }

    /// Refuses what has come from another node.
    fn refuse_forwarded(&mut self) {
        for _ in 0..self.begun.len() {
            let Some(mut pending) = self.begun.pop_front() else {
                break;
            };
            if pending.is_forwarded() {
                pending.rewind();
                pending.refuse_and_send(ErrorCode::NotLeader, NOT_LEADER);
            } else {
                self.begun.push_back(pending);
            }
        }
        for _ in 0..self.taken.len() {
            let Some(submission) = self.taken.pop_front() else {
                break;
            };
            if submission.is_forwarded {
                self.replica.queue.settle(submission.commands.len());
                Pending::from(submission).refuse_and_send(ErrorCode::NotLeader, NOT_LEADER);
            } else {
                self.taken.push_back(submission);
            }
        }
    }

    /// Refuses everything that waits.
    fn refuse_all(&mut self, code: ErrorCode, message: &'static str) {
        while let Some(pending) = self.pop() {
            pending.refuse_and_send(code, message);
        }
    }

    /// Waits a moment for leadership to settle, letting nobody wait past their deadline.
    async fn wait_for_leadership(&mut self) {
        sleep(LEADERSHIP_CHECK).await;
        let now = self.replica.clock.now();
        self.refuse_expired(now, (ErrorCode::Unavailable, NO_LEADER));
    }
}

/// What a refusal says.
type Refusal = (ErrorCode, &'static str);

const NO_LEADER: &str =
    "the shard had no leader that a majority follows before the deadline passed";
const RESHARDED: &str = "the shard was split, and its keys may belong to another one";
const SPLIT_ALREADY: &str = "the shard was split by as late a map already";
const NOT_LEADER: &str = "another node leads this shard";
const TIMED_OUT_WAITING: &str = "the deadline passed before the command was proposed";
const TIMED_OUT_IN_FLIGHT: &str = "the deadline passed while writing; the outcome is unknown";
const DISK_FULL: &str = "the disk is full: only deletes are accepted";

/// What a batch may still take.
struct Room {
    operations: usize,
    operations_max: usize,
    bytes_max: usize,
}

impl Room {
    fn new(replica: &Replica) -> Self {
        Self {
            operations: 0,
            operations_max: replica.config.batch_operations_max,
            bytes_max: replica.config.batch_bytes_max,
        }
    }

    /// Whether a command of this weight may join a batch of that many bytes. The first always
    /// may: what is larger than a batch is a batch alone.
    fn has(&self, bytes: usize, weight: usize) -> bool {
        self.operations == 0
            || (self.operations < self.operations_max
                && bytes.saturating_add(weight) <= self.bytes_max)
    }
}

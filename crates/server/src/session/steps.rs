//! The replies of a turn, in the order of its requests, while some of them are still on their way.
//!
//! What can be put into bytes at once (session commands, direct reads) goes into `ready`; a list of
//! steps tells how bytes and the answers of shards interleave. When the turn has run, the steps are
//! walked once and everything is appended to the session's output.
//!
//! Hot path: a turn of direct reads alone is one buffer, appended whole; a turn of writes alone to
//! one shard is one step.

use bytes::{Buf, BytesMut};
use flux_types::{Answer, ShardId};
use flux_wire::resp::{Version, Writer};

use crate::exec::{Place, Reads, Turn, settle};
use crate::metrics::{CommandCount, Metrics};

/// One or more replies.
#[derive(Debug)]
enum Step {
    /// So many bytes of `ready`.
    Bytes(usize),
    /// A direct read: so many bytes of `ready`, or, if it does not stand, the shard's next answer.
    Direct(ShardId, usize),
    /// The next answers of a shard.
    Shard(ShardId, usize),
    /// An answer that has to be put together.
    Place(Box<Place>),
    /// As the one in it, but not sent (CLIENT REPLY OFF and SKIP).
    Muted(Box<Step>),
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Steps {
    steps: Vec<Step>,
    ready: BytesMut,
    /// End of the bytes of `ready` that a step accounts for.
    accounted: usize,
    /// What is counted of each command that a shard answers, in order.
    counts: Vec<CommandCount>,
}

impl Steps {
    /// Whether there is no reply to come.
    pub(crate) fn is_empty(&self) -> bool {
        self.steps.is_empty() && self.ready.is_empty()
    }

    /// Where to put bytes that are ready; follow it with [`Steps::bytes`] or [`Steps::direct`].
    pub(crate) fn ready(&mut self) -> &mut BytesMut {
        &mut self.ready
    }

    /// Bytes ready so far.
    pub(crate) fn ready_bytes(&self) -> usize {
        self.ready.len()
    }

    /// What was put into `ready` is a reply that stands.
    pub(crate) fn bytes(&mut self) {
        let count = self.account();
        if count == 0 {
            return;
        }
        match self.steps.last_mut() {
            Some(Step::Bytes(before)) => *before += count,
            _ => self.steps.push(Step::Bytes(count)),
        }
    }

    /// What was put into `ready` is the reply of a direct read.
    pub(crate) fn direct(&mut self, shard: ShardId) {
        let count = self.account();
        self.steps.push(Step::Direct(shard, count));
    }

    /// The reply is the shard's next answer.
    pub(crate) fn shard(&mut self, shard: ShardId, counted: CommandCount) {
        self.counts.push(counted);
        match self.steps.last_mut() {
            Some(Step::Shard(last, count)) if *last == shard => *count += 1,
            _ => self.steps.push(Step::Shard(shard, 1)),
        }
    }

    /// The reply is the answer of a place.
    pub(crate) fn place(&mut self, place: Place, counted: CommandCount) {
        self.counts.push(counted);
        self.steps.push(Step::Place(Box::new(place)));
    }

    /// The reply put in last is not sent. It must have been put in by [`Steps::place`].
    pub(crate) fn mute_last(&mut self) {
        if let Some(step) = self.steps.pop() {
            self.steps.push(Step::Muted(Box::new(step)));
        }
    }

    /// Drops what was put into `ready` since the last step.
    pub(crate) fn discard(&mut self) {
        self.ready.truncate(self.accounted);
    }

    /// Bytes put into `ready` since the last step, which now accounts for them.
    fn account(&mut self) -> usize {
        let count = self.ready.len() - self.accounted;
        self.accounted = self.ready.len();
        count
    }

    /// Appends all replies to `output`, once the turn has run, and starts over.
    pub(crate) fn finish(&mut self, reads: Reads, turn: &mut Turn, sink: &mut Sink<'_>) {
        let is_all_ready = reads == Reads::Stand && self.counts.is_empty();
        if is_all_ready {
            if sink.output.is_empty() {
                std::mem::swap(sink.output, &mut self.ready);
            } else {
                sink.output.extend_from_slice(&self.ready);
            }
        } else {
            let mut counts = self.counts.drain(..);
            for step in self.steps.drain(..) {
                walk(step, reads, turn, &mut self.ready, &mut counts, sink);
            }
        }
        self.steps.clear();
        self.counts.clear();
        self.ready.clear();
        self.accounted = 0;
        if self.ready.capacity() > READY_BYTES_KEPT {
            self.ready = BytesMut::new();
        }
    }
}

/// A buffer of up to this size is kept from turn to turn.
const READY_BYTES_KEPT: usize = 8 * 1024;

/// Where replies go.
#[derive(Debug)]
pub(crate) struct Sink<'a> {
    /// The session's output.
    pub(crate) output: &'a mut BytesMut,
    /// Its protocol.
    pub(crate) version: Version,
    /// Counts answers.
    pub(crate) metrics: &'a Metrics,
}

impl Sink<'_> {
    fn put(&mut self, answer: &Answer, counted: Option<CommandCount>) {
        if let Some(counted) = counted {
            self.metrics.command(counted, &answer.reply);
        }
        Writer::new(self.output, self.version).reply(&answer.reply);
    }
}

fn walk(
    step: Step,
    reads: Reads,
    turn: &mut Turn,
    ready: &mut BytesMut,
    counts: &mut impl Iterator<Item = CommandCount>,
    sink: &mut Sink<'_>,
) {
    match step {
        Step::Bytes(count) => copy(ready, count, sink.output),
        Step::Direct(_, count) if reads == Reads::Stand => copy(ready, count, sink.output),
        Step::Direct(shard, count) => {
            ready.advance(count.min(ready.len()));
            sink.put(&turn.answer(shard), None);
        }
        Step::Shard(shard, count) => {
            for _ in 0..count {
                sink.put(&turn.answer(shard), counts.next());
            }
        }
        Step::Place(place) => {
            let answer = settle(*place, reads, turn);
            sink.put(&answer, counts.next());
        }
        Step::Muted(step) => {
            let mut unseen = BytesMut::new();
            let mut sink = Sink {
                output: &mut unseen,
                version: sink.version,
                metrics: sink.metrics,
            };
            walk(*step, reads, turn, ready, counts, &mut sink);
        }
    }
}

fn copy(ready: &mut BytesMut, count: usize, output: &mut BytesMut) {
    let count = count.min(ready.len());
    output.extend_from_slice(ready.get(..count).unwrap_or_default());
    ready.advance(count);
}

//! The bounded queue in front of a shard's proposer.
//!
//! Any thread may submit; one task takes. What is bounded is operations, not submissions, because
//! operations are what a batch and a client wait for. The taker is woken once when an empty queue
//! gets its first submission, not once per submission: while it works, submissions only pile up,
//! and become the next batch.
//!
//! Lock order: the queue's lock is a leaf; nothing else is taken under it.

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Poll, Waker};

use flux_env::Instant;
use flux_types::{Answer, Command, NodeId, ShardId, Term, TraceParent};
use parking_lot::Mutex;
use tokio::sync::oneshot;

/// Commands of one connection's turn, on their way to the proposer.
#[derive(Debug)]
pub struct Submission {
    /// The commands, in the client's order. They are answered in this order, and each sees what
    /// the ones before it did.
    pub commands: Vec<Command>,
    /// Which of the commands belong to a traced request, by their number, rising. What they change
    /// is noted in the log with it.
    pub traces: Vec<(usize, TraceParent)>,
    /// When the client stops waiting. A command that was not yet proposed is then not done; one
    /// that was has an unknown outcome.
    pub deadline: Instant,
    /// Whether it is executed here or refused, and never sent on: it came from another node, or
    /// only makes sense on the leader.
    pub is_forwarded: bool,
    /// By a map of how many shards this shard was chosen ([`crate::split`]): what is older than the
    /// shard's last split is not executed. [`u32::MAX`] for what concerns the shard and no key.
    pub routing: u32,
    /// Gets one answer per command, after all of them are committed and applied.
    pub reply: oneshot::Sender<Vec<Answer>>,
}

impl Submission {
    /// A submission of commands that belong to no trace.
    #[must_use]
    pub const fn new(
        commands: Vec<Command>,
        deadline: Instant,
        reply: oneshot::Sender<Vec<Answer>>,
    ) -> Self {
        Self {
            commands,
            traces: Vec::new(),
            deadline,
            is_forwarded: false,
            routing: u32::MAX,
            reply,
        }
    }
}

/// What is noted of commands from a number on, counted from there.
#[must_use]
pub fn from_number<T: Clone>(noted: &[(usize, T)], first: usize) -> Vec<(usize, T)> {
    let later = noted.iter().filter(|(number, _)| first <= *number);
    later
        .map(|(number, item)| (number - first, item.clone()))
        .collect()
}

/// Takes submissions to the replica that leads, on another node.
pub trait Forward: fmt::Debug + Send + Sync + 'static {
    /// Takes a submission of which nothing was done to the leader, and answers it. Called on the
    /// shard's runtime; returns at once.
    fn forward(&self, shard: ShardId, leader: NodeId, submission: Submission);

    /// Takes a submission of which nothing was done, because its keys may belong to another shard
    /// since a split that its sender did not know of, to where they belong, and answers it. Called
    /// on the shard's runtime; returns at once.
    fn reroute(&self, shard: ShardId, submission: Submission);

    /// Who is said to lead a shard in at least this term, where this node's own replica does not
    /// know; never this node.
    fn leader(&self, shard: ShardId, term: Term) -> Option<NodeId>;
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Queue {
    inner: Mutex<Inner>,
    /// Operations submitted and not yet taken into a batch.
    operations: AtomicUsize,
    operations_max: usize,
}

#[derive(Debug, Default)]
struct Inner {
    waiting: VecDeque<Submission>,
    taker: Option<Waker>,
    is_closed: bool,
}

/// Why a submission was not queued.
#[derive(Debug)]
pub(crate) enum Refused {
    /// There is no room.
    Busy(Submission),
    /// The shard has stopped.
    Closed(Submission),
}

impl Queue {
    pub(crate) fn new(operations_max: usize) -> Self {
        Self {
            inner: Mutex::new(Inner::default()),
            operations: AtomicUsize::new(0),
            operations_max,
        }
    }

    /// Queues a submission, or gives it back. A submission longer than the whole queue is taken
    /// when nothing else waits, or it could never be.
    pub(crate) fn push(&self, submission: Submission) -> Result<(), Refused> {
        let count = submission.commands.len();
        let mut inner = self.inner.lock();
        if inner.is_closed {
            return Err(Refused::Closed(submission));
        }
        let waiting = self.operations.load(Ordering::Relaxed);
        if waiting > 0 && waiting.saturating_add(count) > self.operations_max {
            return Err(Refused::Busy(submission));
        }
        // Only changed under the lock or downwards, so the bound holds.
        self.operations.fetch_add(count, Ordering::Relaxed);
        inner.waiting.push_back(submission);
        let taker = inner.taker.take();
        drop(inner);
        if let Some(taker) = taker {
            taker.wake();
        }
        Ok(())
    }

    /// Waits until something is queued or the queue is closed. Safe to drop.
    pub(crate) async fn ready(&self) {
        poll_fn(|context| {
            let mut inner = self.inner.lock();
            if inner.is_closed || !inner.waiting.is_empty() {
                inner.taker = None;
                return Poll::Ready(());
            }
            match &mut inner.taker {
                Some(taker) => taker.clone_from(context.waker()),
                None => inner.taker = Some(context.waker().clone()),
            }
            Poll::Pending
        })
        .await;
    }

    /// Moves everything queued behind what `to` holds already.
    pub(crate) fn drain_into(&self, to: &mut VecDeque<Submission>) {
        let mut inner = self.inner.lock();
        if to.is_empty() {
            // Swapping keeps both buffers' capacity in use.
            std::mem::swap(&mut inner.waiting, to);
        } else {
            to.append(&mut inner.waiting);
        }
    }

    /// Counts operations that were taken into a batch or answered otherwise.
    pub(crate) fn settle(&self, operations: usize) {
        let before = self.operations.fetch_sub(operations, Ordering::Relaxed);
        assert!(operations <= before, "more operations settled than queued");
    }

    /// Operations submitted and not yet taken into a batch.
    pub(crate) fn operations(&self) -> usize {
        self.operations.load(Ordering::Relaxed)
    }

    /// Refuses further submissions and wakes the taker.
    pub(crate) fn close(&self) {
        let mut inner = self.inner.lock();
        inner.is_closed = true;
        let taker = inner.taker.take();
        drop(inner);
        if let Some(taker) = taker {
            taker.wake();
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.inner.lock().is_closed
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::task::{Context, Wake};

    use flux_types::ReadCommand;

    use super::*;

    fn submission(operations: usize) -> Submission {
        Submission::new(
            vec![Command::Read(ReadCommand::Count); operations],
            Instant::from_nanos(u64::MAX),
            oneshot::channel().0,
        )
    }

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_full_queue_gives_the_submission_back() {
        let queue = Queue::new(10);
        queue.push(submission(6)).expect("fits");
        let refused = queue.push(submission(5)).expect_err("6 + 5 > 10");
        assert!(matches!(refused, Refused::Busy(s) if s.commands.len() == 5));
        queue.push(submission(4)).expect("exactly full");
        let mut taken = VecDeque::new();
        queue.drain_into(&mut taken);
        assert_eq!(taken.len(), 2);
        // Taken is not settled: the operations still wait for a batch.
        assert!(matches!(queue.push(submission(1)), Err(Refused::Busy(_))));
        queue.settle(10);
        queue.push(submission(11)).expect("alone in an empty queue");
    }

    #[test]
    fn the_taker_is_woken_once_per_idle_to_busy_transition() {
        let queue = Queue::new(100);
        let count = Arc::new(Count::default());
        let waker = Waker::from(Arc::clone(&count));
        let mut context = Context::from_waker(&waker);
        let mut ready = Box::pin(queue.ready());
        assert!(ready.as_mut().poll(&mut context).is_pending());
        for _ in 0..10 {
            queue.push(submission(1)).expect("fits");
        }
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        assert!(ready.as_mut().poll(&mut context).is_ready());
    }

    #[test]
    fn a_closed_queue_takes_nothing_and_wakes_its_taker() {
        let queue = Queue::new(100);
        let count = Arc::new(Count::default());
        let waker = Waker::from(Arc::clone(&count));
        let mut context = Context::from_waker(&waker);
        let mut ready = Box::pin(queue.ready());
        assert!(ready.as_mut().poll(&mut context).is_pending());
        queue.close();
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        assert!(matches!(queue.push(submission(1)), Err(Refused::Closed(_))));
    }
}

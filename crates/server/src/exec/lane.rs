//! A lane: the way from one thread to a shard that lives on another.
//!
//! A wake across threads costs as much as dozens of commands, so the sessions of a thread share
//! one lane to each foreign shard. What they submit in one turn of their runtime's loop crosses as
//! one submission, and its answers come back as one; then each session gets its own.
//!
//! Order: commands of one session cross in the order in which it submitted them. Lock order: the
//! lane's lock is a leaf.

use std::sync::{Arc, OnceLock};

use flux_env::Instant;
use flux_raft::{Shard, Submission};
use flux_types::limits::{PROPOSER_QUEUE_OPERATIONS_MAX, SHARDS_MAX};
use flux_types::{Answer, Command, TraceParent};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use super::turn::{busy, lost};
use crate::cores::Places;

/// The lanes of one thread to shards that live on others.
#[derive(Debug)]
pub(crate) struct Lanes {
    /// Where shards live, and which of those places is this thread; none: it has no lanes.
    here: Option<(Arc<Places>, usize)>,
    /// By shard; begun when the first command crosses.
    lanes: Box<[OnceLock<Arc<Lane>>]>,
}

impl Lanes {
    /// Those of a core.
    pub(crate) fn of_core(places: Arc<Places>, core: usize) -> Self {
        Self {
            here: Some((places, core)),
            lanes: (0..SHARDS_MAX).map(|_| OnceLock::new()).collect(),
        }
    }

    /// Those of a thread that is not ours: it has no turns in which to gather, and submits directly.
    pub(crate) fn none() -> Self {
        Self {
            here: None,
            lanes: Box::default(),
        }
    }

    /// The lane to a shard, if it lives on another thread.
    pub(super) fn to(&self, shard: &Shard) -> Option<&Arc<Lane>> {
        let (places, core) = self.here.as_ref()?;
        let number = shard.id().get();
        if places.of_shard(number) == *core {
            return None;
        }
        let lane = self.lanes.get(number as usize)?;
        Some(lane.get_or_init(|| {
            let lane = Lane::new(shard.clone());
            places.handle(*core).spawn(Arc::clone(&lane).run());
            lane
        }))
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Lane {
    shard: Shard,
    gathered: Mutex<Gathered>,
    wake: Notify,
}

/// What waits to cross.
#[derive(Debug, Default)]
struct Gathered {
    commands: Vec<Command>,
    traces: Vec<(usize, TraceParent)>,
    waiting: Vec<Waiting>,
    /// The earliest map by which a submission came here.
    routing: Option<u32>,
    /// The earliest of the submissions' deadlines.
    deadline: Option<Instant>,
}

/// Who waits for the next `count` answers.
#[derive(Debug)]
struct Waiting {
    count: usize,
    reply: oneshot::Sender<Vec<Answer>>,
}

impl Lane {
    fn new(shard: Shard) -> Arc<Self> {
        Arc::new(Self {
            shard,
            gathered: Mutex::new(Gathered::default()),
            wake: Notify::new(),
        })
    }

    /// Hands over a submission; gives it back when too much waits already.
    pub(crate) fn submit(&self, submission: Submission) -> Result<(), Submission> {
        let mut gathered = self.gathered.lock();
        let waiting = gathered.commands.len();
        if waiting > 0 && waiting + submission.commands.len() > PROPOSER_QUEUE_OPERATIONS_MAX {
            return Err(submission);
        }
        let Submission {
            mut commands,
            traces,
            deadline,
            reply,
            routing,
            // What other nodes send goes straight to the shard.
            is_forwarded: _,
        } = submission;
        let traces = traces.into_iter();
        let traces = traces.map(|(number, trace)| (waiting + number, trace));
        gathered.traces.extend(traces);
        gathered.waiting.push(Waiting {
            count: commands.len(),
            reply,
        });
        if gathered.commands.is_empty() {
            gathered.commands = commands;
        } else {
            gathered.commands.append(&mut commands);
        }
        let earliest = gathered.deadline.map_or(deadline, |old| old.min(deadline));
        gathered.deadline = Some(earliest);
        let oldest = gathered.routing.map_or(routing, |old| old.min(routing));
        gathered.routing = Some(oldest);
        drop(gathered);
        self.wake.notify_one();
        Ok(())
    }

    /// Carries submissions over and answers back, for as long as the thread's runtime lives.
    ///
    /// # Cancellation
    /// What is under way is then answered as lost.
    async fn run(self: Arc<Self>) {
        let mut under_way = FuturesUnordered::new();
        loop {
            tokio::select! {
                () = self.wake.notified() => {
                    // Whoever is ready in this turn of the loop gets to add its commands.
                    tokio::task::yield_now().await;
                    if let Some((answers, waiting)) = self.hand_over() {
                        under_way.push(async move { (answers.await.ok(), waiting) });
                    }
                }
                Some((answers, waiting)) = under_way.next(), if !under_way.is_empty() => {
                    distribute(answers, waiting);
                }
            }
        }
    }

    /// Submits what has gathered.
    fn hand_over(&self) -> Option<(oneshot::Receiver<Vec<Answer>>, Vec<Waiting>)> {
        let gathered = std::mem::take(&mut *self.gathered.lock());
        let deadline = gathered.deadline?;
        let (reply, answers) = oneshot::channel();
        let submission = Submission {
            traces: gathered.traces,
            routing: gathered.routing.unwrap_or_default(),
            ..Submission::new(gathered.commands, deadline, reply)
        };
        match self.shard.submit(submission) {
            Ok(()) => Some((answers, gathered.waiting)),
            Err(_refused) => {
                for Waiting { count, reply } in gathered.waiting {
                    // A session that is gone needs no answer.
                    drop(reply.send(vec![busy(); count]));
                }
                None
            }
        }
    }
}

/// Gives each its answers.
fn distribute(answers: Option<Vec<Answer>>, waiting: Vec<Waiting>) {
    let mut answers = answers.unwrap_or_default().into_iter();
    for Waiting { count, reply } in waiting {
        let own: Vec<Answer> = answers
            .by_ref()
            .chain(std::iter::repeat_with(lost))
            .take(count)
            .collect();
        // A session that is gone needs no answer.
        drop(reply.send(own));
    }
}

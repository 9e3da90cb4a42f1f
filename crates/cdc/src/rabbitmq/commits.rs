//! Cursors on their way into the replicated state of their shards.
//!
//! Every shard is committed by itself, one commit of it at a time: none waits for a shard that has no
//! majority just now, and the conversation with the broker goes on meanwhile.

use std::collections::{BTreeMap, BTreeSet};

use flux_types::ShardId;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;

use crate::cursor::Place;

/// What became of a commit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Committed {
    pub(super) shard: ShardId,
    pub(super) place: Place,
    pub(super) is_done: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Commits {
    /// Settled, and no commit of it begun.
    waiting: BTreeMap<ShardId, Place>,
    running: FuturesUnordered<BoxFuture<'static, Committed>>,
    /// Whose commits are running.
    shards: BTreeSet<ShardId>,
    /// Events settled since commits were last begun.
    settled: u64,
}

impl Commits {
    /// Notes that a shard's events have settled up to a place.
    pub(super) fn settle(&mut self, shard: ShardId, place: Place) {
        self.waiting.insert(shard, place);
        self.settled += 1;
    }

    /// Events settled since commits were last begun.
    pub(super) const fn settled(&self) -> u64 {
        self.settled
    }

    /// Begins to commit what has settled, but for shards of which a commit is running.
    pub(super) fn begin(
        &mut self,
        commit: impl Fn(ShardId, Place) -> BoxFuture<'static, Committed>,
    ) {
        self.settled = 0;
        for (shard, place) in std::mem::take(&mut self.waiting) {
            if self.shards.insert(shard) {
                self.running.push(commit(shard, place));
            } else {
                self.waiting.insert(shard, place);
            }
        }
    }

    /// Takes in the end of a commit, if any is running. What failed is committed with what settles
    /// later. Safe to drop.
    pub(super) async fn next(&mut self) -> Option<()> {
        let Committed {
            shard,
            place,
            is_done,
        } = self.running.next().await?;
        self.shards.remove(&shard);
        if !is_done {
            self.waiting.entry(shard).or_insert(place);
        }
        Some(())
    }

    /// Commits what has settled and waits for it: what is running, and what that has held up.
    pub(super) async fn finish(
        &mut self,
        commit: impl Fn(ShardId, Place) -> BoxFuture<'static, Committed>,
    ) {
        for _ in 0..2 {
            self.begin(&commit);
            while self.next().await.is_some() {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::FutureExt as _;
    use parking_lot::Mutex;
    use tokio::sync::oneshot;

    use super::*;

    type Asked = Arc<Mutex<Vec<(ShardId, Place, oneshot::Sender<bool>)>>>;

    fn place(index: u64) -> Place {
        let mut place = Place::BEGINNING;
        if let Place::After { index: at, .. } = &mut place {
            *at = flux_types::LogIndex::new(index);
        }
        place
    }

    fn commit(asked: &Asked) -> impl Fn(ShardId, Place) -> BoxFuture<'static, Committed> {
        let asked = Arc::clone(asked);
        move |shard, place| {
            let (answer, answered) = oneshot::channel();
            asked.lock().push((shard, place, answer));
            let answered = answered.map(move |is_done| Committed {
                shard,
                place,
                is_done: is_done.unwrap_or(false),
            });
            answered.boxed()
        }
    }

    fn shards(asked: &Asked) -> Vec<u32> {
        asked.lock().iter().map(|(shard, ..)| shard.get()).collect()
    }

    #[test]
    fn all_shards_are_committed_at_once_and_each_once_at_a_time() {
        let (asked, mut commits) = (Asked::default(), Commits::default());
        for shard in 0..3 {
            commits.settle(ShardId::new(shard), place(1));
        }
        commits.begin(commit(&asked));
        assert_eq!(shards(&asked), [0, 1, 2], "none waits for another");
        assert!(commits.next().now_or_never().is_none());
        // More of one that is under way waits for that, and for nothing else.
        commits.settle(ShardId::new(1), place(2));
        commits.settle(ShardId::new(4), place(1));
        commits.begin(commit(&asked));
        assert_eq!(shards(&asked), [0, 1, 2, 4]);
        let (_, _, answer) = asked.lock().remove(1);
        assert!(answer.send(true).is_ok());
        assert_eq!(commits.next().now_or_never(), Some(Some(())));
        commits.begin(commit(&asked));
        assert_eq!(shards(&asked), [0, 2, 4, 1]);
        assert_eq!(asked.lock().last().map(|asked| asked.1), Some(place(2)));
    }

    #[test]
    fn what_failed_is_committed_again_unless_more_has_settled() {
        let (asked, mut commits) = (Asked::default(), Commits::default());
        for shard in [7, 8] {
            commits.settle(ShardId::new(shard), place(1));
        }
        commits.begin(commit(&asked));
        commits.settle(ShardId::new(8), place(2));
        for (_, _, answer) in std::mem::take(&mut *asked.lock()) {
            assert!(answer.send(false).is_ok());
        }
        while commits.next().now_or_never() == Some(Some(())) {}
        commits.begin(commit(&asked));
        let again = asked.lock();
        let again: Vec<_> = again.iter().map(|asked| (asked.0.get(), asked.1)).collect();
        assert_eq!(again, [(7, place(1)), (8, place(2))]);
    }

    #[test]
    fn the_end_waits_for_all_that_can_be_committed() {
        let mut commits = Commits::default();
        commits.settle(ShardId::new(1), place(1));
        let done = |is_done| {
            move |shard, place| {
                let committed = Committed {
                    shard,
                    place,
                    is_done,
                };
                std::future::ready(committed).boxed()
            }
        };
        assert!(commits.finish(done(false)).now_or_never().is_some());
        assert_eq!(commits.waiting.len(), 1);
        assert!(commits.finish(done(true)).now_or_never().is_some());
        assert!(commits.waiting.is_empty());
    }
}

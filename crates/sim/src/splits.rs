//! Shards that are split: which, when, and who starts the new ones.
//!
//! Both shards that a run begins with give about half of their keys to a new one, at some moment each.
//! As in a server their leaders do it by the real [`Shard::split`], each machine starts the new shard
//! once its replica of the old one has applied that, and clients learn of it when they are refused,
//! or sooner.
//!
//! Where shards move as well, one split comes after the other, as the map of who carries what tells of
//! them, and a machine that carries nothing of the old shard starts an empty replica of the new one
//! when that is in the map.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use flux_env::Clock;
use flux_raft::split::Beginning;
use flux_raft::{Births, Shard};
use flux_types::{ShardId, SlotMap};
use futures_util::future::BoxFuture;

use crate::executor::{Executor, sleep};
use crate::machine::{Machine, Node, SHARDS};
use crate::moves::Moves;

/// How long one attempt may take.
const LIMIT: Duration = Duration::from_secs(3);
/// Who begins with which slots in the end. That the two at first own what their keys' slots say is not
/// so: what goes is what the later map gives to the new one.
const FIRST: &str = "0-99=0 100-8191=1 8192-16383=2";
const SECOND: &str = "0-99=0 100-199=1 8192-16383=2 200-8191=3";

/// See the module.
pub(crate) struct Splits {
    executor: Arc<Executor>,
    /// The maps after each split.
    maps: [SlotMap; 2],
    /// How many shards there are to be.
    wanted: AtomicU32,
    /// In runs whose shards move as well.
    moves: Option<Arc<Moves>>,
}

/// What a new shard is split off from.
const fn parent(child: ShardId) -> ShardId {
    ShardId::new(child.get() - SHARDS)
}

impl Splits {
    /// # Panics
    /// If the maps above are none.
    pub(crate) fn new(executor: &Arc<Executor>, moves: Option<Arc<Moves>>) -> Arc<Self> {
        let map = |text: &str| text.parse().expect("a map of the slots");
        Arc::new(Self {
            executor: Arc::clone(executor),
            maps: [map(FIRST), map(SECOND)],
            wanted: AtomicU32::new(SHARDS),
            moves,
        })
    }

    /// How many shards there are to be now.
    pub(crate) fn wanted(&self) -> u32 {
        self.wanted.load(Ordering::SeqCst)
    }

    /// The shard of a key that began in `first`, by the map of so many shards.
    pub(crate) fn shard(&self, first: ShardId, key: &[u8], routing: u32) -> ShardId {
        let child = ShardId::new(first.get() + SHARDS);
        let map = self.maps.get(usize::try_from(first.get()).unwrap_or(0));
        match map {
            Some(map) if child.get() < routing && map.shard_of_key(key) == child => child,
            Some(_) | None => first,
        }
    }

    /// One split after the other, some time within this.
    pub(crate) async fn want(self: Arc<Self>, within: Duration) {
        for count in [SHARDS + 1, SHARDS + 2] {
            let micros = u64::try_from(within.as_micros()).unwrap_or(0);
            let wait = micros / 8 + self.executor.below(micros / 4 + 1);
            sleep(&self.executor, Duration::from_micros(wait)).await;
            self.wanted.store(count, Ordering::SeqCst);
        }
    }

    /// The split that a shard is to make, if it has not.
    fn due(&self, shard: &Shard) -> Option<&SlotMap> {
        let number = shard.id().get();
        let map = self
            .maps
            .get(usize::try_from(number).unwrap_or(usize::MAX))?;
        // The first comes first: maps are told by how many shards they have.
        let is_wanted = map.shard_count() <= self.wanted();
        let moves = self.moves.as_ref();
        let is_next = moves.is_none_or(|moves| map.shard_count() <= moves.shards() + 1);
        let done = shard.slots().map_or(0, |slots| slots.shard_count());
        (is_wanted && is_next && done < map.shard_count()).then_some(map)
    }

    /// Whether a machine on which no split has told of the next shard begins it all the same. Where
    /// shards move: only once it is in the map, and if the old one's log will not tell of it.
    pub(crate) fn may_begin(&self, child: ShardId, node: &Node) -> bool {
        self.moves.as_ref().is_none_or(|moves| {
            let old = node.shard(parent(child));
            child.get() < moves.shards() && old.is_some_and(|old| old.will_not_tell_of(child))
        })
    }
}

/// Splits the shards that a machine leads when they are to be, until its process ends.
pub(crate) async fn keep(machine: Arc<Machine>, splits: Arc<Splits>) {
    let executor = Arc::clone(&splits.executor);
    loop {
        sleep(&executor, Duration::from_millis(20 + executor.below(200))).await;
        let shards = machine.shards();
        // Who was sent a later snapshot of the old shard has not applied the split, and hears of it.
        let told = shards.iter().filter_map(Shard::slots);
        let told = told.map(|slots| slots.shard_count()).max();
        if let Some(count) = told.max(splits.moves.as_ref().map(|moves| moves.shards())) {
            machine.take_in(count);
        }
        for shard in shards.iter().filter(|shard| shard.is_writable()) {
            if let Some(moves) = splits.moves.as_ref().filter(|_| SHARDS <= shard.id().get()) {
                moves.take_in(shard.id(), parent(shard.id()));
            }
            // Not between the two halves of a change of voters: the new shard would begin there.
            let is_between = shard.status().voters_after.is_some();
            if let Some(map) = splits.due(shard).filter(|_| !is_between) {
                let deadline = machine.clock.now() + LIMIT;
                // What did not work is decided again.
                let _done = shard.split(map, deadline).await.is_ok();
            }
        }
    }
}

/// Starts new shards on a machine.
pub(crate) struct Midwife(pub(crate) Weak<Machine>);

impl fmt::Debug for Midwife {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Midwife").finish_non_exhaustive()
    }
}

impl Births for Midwife {
    fn is_running(&self, shard: ShardId) -> bool {
        let machine = self.0.upgrade();
        machine.is_some_and(|machine| machine.has_begun(shard))
    }

    fn begin(&self, shard: ShardId, beginning: Beginning) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            loop {
                let Some(machine) = self.0.upgrade() else {
                    return Err(io::Error::other("the machine is gone"));
                };
                let running = machine.node().and_then(|node| node.shard(shard).cloned());
                if let Some(running) = running {
                    return beginning.put_under(&running).await;
                }
                sleep(&machine.executor, Duration::from_millis(1)).await;
            }
        })
    }

    fn born(&self, _: ShardId, slots: &SlotMap) {
        if let Some(machine) = self.0.upgrade() {
            machine.is_born(slots.shard_count());
        }
    }
}

//! The shards of a node and the maps to them. One for the whole node.
//!
//! Shards come as others are split, and never go. A map of the slots is known by how many shards it
//! has; the latest is looked at for every command, so that it is one load and one index away.

use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use flux_env::Clock;
use flux_raft::Shard;
use flux_types::limits::SHARDS_MAX;
use flux_types::{ShardId, SlotMap};
use parking_lot::RwLock;
use tokio::sync::watch;

/// See the module.
pub(crate) struct Home {
    /// The map of so many shards at that place; most are never known.
    maps: Box<[OnceLock<SlotMap>]>,
    /// How many shards the latest map has.
    routing: AtomicU32,
    /// Tells of each later map.
    changes: watch::Sender<u32>,
    /// By number, for who knows it.
    seats: Box<[OnceLock<Shard>]>,
    /// All of them, in order. Written before the map that leads to them.
    shards: RwLock<Arc<[Shard]>>,
    clock: Arc<dyn Clock>,
    request_timeout: Duration,
    /// Counts up; decides which shard RANDOMKEY asks first.
    lots: AtomicU64,
}

impl fmt::Debug for Home {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Home")
            .field("routing", &self.routing)
            .finish_non_exhaustive()
    }
}

impl Home {
    /// # Panics
    /// If the map has more shards than there are.
    pub(crate) fn new(
        map: SlotMap,
        shards: Vec<Shard>,
        clock: Arc<dyn Clock>,
        request_timeout: Duration,
    ) -> Arc<Self> {
        let home = Self {
            maps: (0..=SHARDS_MAX).map(|_| OnceLock::new()).collect(),
            routing: AtomicU32::new(0),
            changes: watch::Sender::new(0),
            seats: (0..SHARDS_MAX).map(|_| OnceLock::new()).collect(),
            shards: RwLock::new(Arc::new([])),
            clock,
            request_timeout,
            lots: AtomicU64::new(0),
        };
        for shard in shards {
            home.take_in(shard);
        }
        home.follow(map);
        Arc::new(home)
    }

    /// Takes in the replica of a shard that has come: the next one.
    ///
    /// # Panics
    /// If it is another one.
    pub(crate) fn take_in(&self, shard: Shard) {
        let mut shards = self.shards.write();
        let index = shard.id().get() as usize;
        assert_eq!(index, shards.len(), "shards come in order");
        let seat = self.seats.get(index).expect("ids are below SHARDS_MAX");
        assert!(seat.set(shard.clone()).is_ok(), "a shard comes once");
        *shards = shards.iter().cloned().chain([shard]).collect();
    }

    /// Follows a map from now on, unless a later one is known.
    ///
    /// # Panics
    /// If it leads to a shard that is not here.
    pub(crate) fn follow(&self, map: SlotMap) {
        let count = map.shard_count();
        assert!(
            count as usize <= self.shards.read().len(),
            "a handle for every shard"
        );
        let seat = self.maps.get(count as usize);
        let seat = seat.expect("no map has more shards than SHARDS_MAX");
        // There is one map of so many shards; whoever has said it first has said the same.
        drop(seat.set(map));
        if self.routing.fetch_max(count, Ordering::AcqRel) < count {
            self.changes.send_replace(count);
        }
    }

    /// How many shards the latest map has.
    pub(crate) fn routing(&self) -> u32 {
        self.routing.load(Ordering::Acquire)
    }

    /// Tells of each later map by how many shards it has.
    pub(crate) fn changes(&self) -> watch::Receiver<u32> {
        self.changes.subscribe()
    }

    /// The latest map.
    pub(crate) fn map(&self) -> &SlotMap {
        let map = self.maps.get(self.routing() as usize);
        map.and_then(OnceLock::get)
            .expect("a map is there before it counts")
    }

    pub(crate) fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    pub(crate) const fn request_timeout(&self) -> Duration {
        self.request_timeout
    }

    /// Every shard, in order.
    pub(crate) fn shards(&self) -> Arc<[Shard]> {
        Arc::clone(&self.shards.read())
    }

    pub(crate) fn shard(&self, shard: ShardId) -> Option<&Shard> {
        self.seats.get(shard.get() as usize)?.get()
    }

    pub(crate) fn lot(&self) -> u64 {
        self.lots.fetch_add(1, Ordering::Relaxed)
    }
}

//! Where shards begin: those that the node starts with, and those that are split off while it runs.
//!
//! A replica of a shard that was split off is started once the split is applied here, because only
//! then is there what it begins with ([`flux_raft::split`]). A node that carries none of the parent
//! hears of the split in the cluster map, and starts an empty replica, as it has of every shard.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io};

use flux_env::Clock;
use flux_log::Log;
use flux_raft::split::Beginning;
use flux_raft::{Births, Formation, Forward, Network, NoNetwork, Shard, ShardConfig, ShardParts};
use flux_store::{Dropped, Store, StoreConfig};
use flux_types::ids::SLOT_COUNT;
use flux_types::{ShardId, Slot, SlotMap};
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::failures::Failures;
use super::open::shard_error;
use crate::config::{Config, Reads, memory_of_shard};
use crate::context::Context;
use crate::cores::Places;
use crate::error::StartError;

/// Fewest stripes of a shard's store, and the number that all shards share.
const STRIPES_MIN: u32 = 16;
const STRIPES_TOTAL: u32 = 256;
/// Pause between two looks at the cluster map.
const PAUSE: Duration = Duration::from_millis(200);
/// How often the first leader of a new shard is sought, and for how long.
const CAMPAIGN_PAUSE: Duration = Duration::from_millis(100);
const CAMPAIGNS: usize = 50;

/// What shards are started with.
pub(super) struct Kit {
    pub(super) config: Config,
    pub(super) log: Log,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) places: Arc<Places>,
    /// The same for every shard: hashes are computed before it is known whose a key is.
    pub(super) hash_seed: u64,
    pub(super) network: Arc<dyn Network>,
    pub(super) forward: Option<Arc<dyn Forward>>,
}

impl Kit {
    /// That of a node alone.
    pub(super) fn alone(
        config: &Config,
        log: &Log,
        clock: &Arc<dyn Clock>,
        places: &Arc<Places>,
    ) -> Result<Self, StartError> {
        Ok(Self {
            config: config.clone(),
            log: log.clone(),
            clock: Arc::clone(clock),
            places: Arc::clone(places),
            hash_seed: draw_seed()?,
            network: Arc::new(NoNetwork),
            forward: None,
        })
    }
}

/// Draws the seed of the stores' hashes.
fn draw_seed() -> Result<u64, StartError> {
    flux_env::entropy_u64().map_err(|source| StartError::System {
        what: "failed to draw random bits",
        source,
    })
}

/// See the module.
pub(super) struct Nursery {
    kit: Kit,
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Default)]
struct State {
    /// Those that are being started, and those that have been.
    shards: BTreeMap<ShardId, Option<Shard>>,
    /// Splits that are applied here: the maps after them by how many shards they have, and the
    /// parents.
    born: BTreeMap<u32, (ShardId, SlotMap)>,
}

impl fmt::Debug for Nursery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nursery").finish_non_exhaustive()
    }
}

impl Births for Nursery {
    fn is_running(&self, shard: ShardId) -> bool {
        self.state.lock().shards.contains_key(&shard)
    }

    fn begin(&self, shard: ShardId, beginning: Beginning) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            let running = loop {
                // It may only just be being started.
                let started = self.state.lock().shards.get(&shard).cloned();
                if let Some(running) = started.flatten() {
                    break running;
                }
                tokio::time::sleep(PAUSE).await;
            };
            let places = &self.kit.places;
            let handle = places.handle(places.of_shard(shard.get()));
            let begun = handle.spawn(async move { beginning.put_under(&running).await });
            begun.await.map_err(io::Error::other)?
        })
    }

    fn born(&self, parent: ShardId, slots: &SlotMap) {
        let mut state = self.state.lock();
        let count = slots.shard_count();
        state.born.insert(count, (parent, slots.clone()));
        drop(state);
        self.wake.notify_one();
    }
}

type Starting = tokio::task::JoinHandle<Result<Shard, flux_raft::StartError>>;

impl Nursery {
    pub(super) fn new(kit: Kit) -> Arc<Self> {
        Arc::new(Self {
            kit,
            state: Mutex::default(),
            wake: Notify::new(),
        })
    }

    /// Starts the shards that the folder holds, all at once; `founding` is how many there were
    /// when it all began.
    pub(super) async fn start_all(
        self: &Arc<Self>,
        founding: u32,
        formation: impl Fn(ShardId) -> Formation,
    ) -> Result<Vec<Shard>, StartError> {
        let log = &self.kit.log;
        let count = log.identity().shard_count;
        let all = || (0..count).map(ShardId::new);
        // What a new shard begins with may have been lost in a crash. It is made again while its
        // parent is recovered, and only then may it start.
        let is_late =
            |shard: &ShardId| founding <= shard.get() && log.shard(*shard).state().is_blank();
        let starting: Vec<_> = all()
            .filter(|shard| !is_late(shard))
            .map(|shard| self.start(shard, count, formation(shard)))
            .collect();
        let mut shards = self.wait_for(starting).await?;
        let started: BTreeSet<ShardId> = shards.iter().map(Shard::id).collect();
        let count = log.identity().shard_count;
        let late = (0..count).map(ShardId::new);
        let starting = late
            .filter(|shard| !started.contains(shard))
            .map(|shard| self.start(shard, count, formation(shard)))
            .collect();
        shards.append(&mut self.wait_for(starting).await?);
        shards.sort_by_key(Shard::id);
        Ok(shards)
    }

    async fn wait_for(&self, starting: Vec<Starting>) -> Result<Vec<Shard>, StartError> {
        let known = starting.into_iter().map(async |start| {
            let started = start.await.map_err(|error| StartError::System {
                what: "a shard's start did not end in order",
                source: io::Error::other(error),
            })?;
            let shard = started.map_err(|error| shard_error(&error))?;
            let known = Some(shard.clone());
            self.state.lock().shards.insert(shard.id(), known);
            Ok(shard)
        });
        // All of them, whatever becomes of one: what runs must be known.
        let known = futures_util::future::join_all(known).await;
        known.into_iter().collect()
    }

    /// Ends the shards that run, before anybody else has heard of them.
    pub(super) async fn end_all(&self) {
        let shards = std::mem::take(&mut self.state.lock().shards);
        let places = &self.kit.places;
        let ends = shards.into_values().flatten().map(|shard| {
            let handle = places.handle(places.of_shard(shard.id().get()));
            handle.spawn(async move { shard.shutdown().await })
        });
        for ended in futures_util::future::join_all(ends).await {
            if let Err(error) = ended {
                tracing::error!(%error, "a shard did not end in order");
            }
        }
    }

    /// Starts a shard on its core; there are `count` by then.
    fn start(self: &Arc<Self>, id: ShardId, count: u32, formation: Formation) -> Starting {
        self.state.lock().shards.insert(id, None);
        let kit = &self.kit;
        let config = &kit.config;
        let store = Store::new(StoreConfig {
            stripes: STRIPES_MIN.max(STRIPES_TOTAL / count.max(1)) as usize,
            hash_seed: kit.hash_seed,
            memory_bytes_max: memory_of_shard(config.max_memory, count),
            value_bytes_max: usize::try_from(config.value_size_max).unwrap_or(usize::MAX),
        });
        store.set_reclaimer(reclaim);
        let parts = ShardParts {
            id,
            node: kit.log.identity().node,
            store: Arc::new(store),
            log: kit.log.clone(),
            clock: Arc::clone(&kit.clock),
            network: Arc::clone(&kit.network),
            forward: kit.forward.clone(),
            births: Some(Arc::clone(self) as Arc<dyn Births>),
            formation,
            config: ShardConfig {
                snapshot_log_bytes: config.snapshot_log_size,
                lease_reads: config.reads == Reads::Lease,
                ..ShardConfig::default()
            },
        };
        let handle = kit.places.handle(kit.places.of_shard(id.get()));
        handle.spawn(Shard::start(parts))
    }

    /// Takes in shards that are split off, until `stop`.
    ///
    /// # Cancellation
    /// Safe to drop; a shard may then have been started that nobody knows.
    pub(super) async fn watch(
        self: Arc<Self>,
        context: Arc<Context>,
        failures: Failures,
        stop: CancellationToken,
    ) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.wake.notified() => {}
                () = tokio::time::sleep(PAUSE) => {}
            }
            if let Err(error) = self.grow(&context, &failures).await {
                let problem = error.to_string();
                tracing::error!(problem, "a shard that was split off does not start");
                failures.tell(None, problem);
                return;
            }
        }
    }

    /// Starts what can be started, and follows the latest map of which every shard is here.
    async fn grow(
        self: &Arc<Self>,
        context: &Context,
        failures: &Failures,
    ) -> Result<(), StartError> {
        let home = &context.home;
        let heard = context.peers.as_ref().and_then(|peers| peers.book.map());
        // Nothing to do, as nearly always, unless it is later than what is followed.
        let heard = heard.filter(|map| home.routing() < map.slots().shard_count());
        let heard = heard.map(|map| map.slots().clone());
        let last_born = self.state.lock().born.keys().next_back().copied();
        let wanted = heard.as_ref().map(SlotMap::shard_count).max(last_born);
        let mut here = u32::try_from(home.shards().len()).unwrap_or(u32::MAX);
        while Some(here) < wanted {
            let id = ShardId::new(here);
            let born = self.state.lock().born.get(&(here + 1)).cloned();
            let may_start = born.is_some()
                || heard.as_ref().is_some_and(|heard| {
                    id.get() < heard.shard_count() && is_elsewhere(context, heard, id)
                });
            if !may_start {
                break;
            }
            here += 1;
            self.take_in(context, failures, id, here).await?;
            if let Some((parent, _)) = born {
                lead(context, parent, id);
            }
        }
        let mut state = self.state.lock();
        let born = state.born.range(..=here).next_back();
        let born = born.map(|(_, (_, slots))| slots.clone());
        let latest = [born, heard.filter(|heard| heard.shard_count() <= here)];
        let latest = latest
            .into_iter()
            .flatten()
            .max_by_key(SlotMap::shard_count);
        state.born.retain(|count, _| here < *count);
        drop(state);
        if let Some(latest) = latest {
            home.follow(latest);
        }
        Ok(())
    }

    async fn take_in(
        self: &Arc<Self>,
        context: &Context,
        failures: &Failures,
        id: ShardId,
        count: u32,
    ) -> Result<(), StartError> {
        let log = self.kit.log.clone();
        let grown = super::blocking(move || log.grow(count)).await?;
        grown.map_err(|error| StartError::System {
            what: "failed to make room for a shard that was split off",
            source: io::Error::other(error),
        })?;
        let starting = self.start(id, count, Formation::Join);
        for shard in self.wait_for(vec![starting]).await? {
            failures.watch(&shard, &self.kit.places);
            context.home.take_in(shard.clone());
            if let Some(peers) = &context.peers {
                peers.serve_shard(shard);
            }
        }
        let limit = memory_of_shard(context.switches.max_memory(), count);
        for shard in context.home.shards().iter() {
            shard.store().set_memory_bytes_max(limit);
        }
        tracing::info!(shard = %id, "a shard was taken in that had been split off");
        Ok(())
    }
}

/// Whether this node will never be told by the parent of a shard what it begins with. Else the
/// parent's log says so here before long.
fn is_elsewhere(context: &Context, heard: &SlotMap, child: ShardId) -> bool {
    let slots = (0..SLOT_COUNT).map(Slot::from_crc16);
    let Some(slot) = slots
        .into_iter()
        .find(|slot| heard.shard_of(*slot) == child)
    else {
        return false;
    };
    let parent = context.home.map().shard_of(slot);
    let replica = context.home.shard(parent);
    replica.is_some_and(|replica| replica.will_not_tell_of(child))
}

/// Lets the new shard be led where its parent is, as soon as others are there to vote.
fn lead(context: &Context, parent: ShardId, child: ShardId) {
    let (home, Some(peers)) = (&context.home, &context.peers) else {
        return;
    };
    let is_led = home.shard(parent).is_some_and(Shard::is_writable);
    let Some(child) = home.shard(child).filter(|_| is_led).cloned() else {
        return;
    };
    let core = peers.places().of_shard(child.id().get());
    // Owned by the shard's runtime; ends by itself.
    drop(peers.places().handle(core).spawn(async move {
        for _ in 0..CAMPAIGNS {
            if child.members().leader.is_some() {
                return;
            }
            child.campaign().await;
            tokio::time::sleep(CAMPAIGN_PAUSE).await;
        }
    }));
}

/// Frees tables that were swapped out on a thread of their own: millions of entries take a while.
fn reclaim(dropped: Dropped) {
    let thread = std::thread::Builder::new().name("flux-reclaim".to_owned());
    // If there is no thread, the closure is dropped here, and the tables with it.
    drop(thread.spawn(move || drop(dropped)));
}

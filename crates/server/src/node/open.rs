//! The first half of a node's start: its log opened, its shards recovered on their cores.

use std::sync::Arc;

use flux_env::{Clock, Disk, RealDisk, Rng, SeededRng};
use flux_log::{FsyncPolicy, Log, LogConfig, OpenError, Retention, Seeds};
use flux_raft::{Formation, Forward, Network, NoNetwork, Shard, ShardConfig, ShardParts};
use flux_store::{Dropped, Store, StoreConfig};
use flux_types::{ClusterId, NodeId, ShardId};
use tracing::{info, warn};

use crate::config::{Config, Fsync, Reads, memory_of_shard};
use crate::cores::Places;
use crate::error::StartError;
use crate::peer::member::{Member, draw_incarnation};

/// Fewest stripes of a shard's store, and the number that all shards share.
const STRIPES_MIN: u32 = 16;
const STRIPES_TOTAL: u32 = 256;
/// How long after a start old log is kept as if a sink needed it: the sinks are only coming.
const HISTORY_SETTLES_MS: u64 = 60_000;

/// The number of a node that is alone.
pub(super) const ALONE_NUMBER: u32 = 1;

/// What a new folder gets, and what an old one must be.
pub(super) struct Opening {
    pub(super) shards: u32,
    pub(super) cluster: ClusterId,
    pub(super) node: NodeId,
    /// Whether a log that a power cut may have shortened is refused.
    pub(super) refuse_power_loss: bool,
}

/// Opens the log of a node that is alone, with as many shards as asked for, or as the folder has.
pub(super) fn open_alone(config: &Config, clock: Arc<dyn Clock>) -> Result<Log, StartError> {
    let shards = config.shards.unwrap_or(config.shards_initial);
    let random = |source| StartError::System {
        what: "failed to draw random bits",
        source,
    };
    let draw = || flux_env::entropy_u64().map_err(random);
    let draw_incarnation = || draw_incarnation().map_err(random);
    let opening = |shards| {
        Ok::<_, StartError>(Opening {
            shards,
            cluster: ClusterId::new(draw()?),
            // A number that it can keep if it becomes one of several.
            node: NodeId::of_incarnation(ALONE_NUMBER, draw_incarnation()?),
            refuse_power_loss: false,
        })
    };
    refuse_member(config)?;
    let opened = match open(config, Arc::clone(&clock), opening(shards)?)? {
        Err(OpenError::ShardCount { found, .. }) if config.shards.is_none() => {
            open(config, clock, opening(found)?)?
        }
        opened => opened,
    };
    opened.map_err(|error| open_error(config, &error))
}

/// The folder of a node of a cluster is not that of a node alone.
fn refuse_member(config: &Config) -> Result<(), StartError> {
    let member = Member::read(&RealDisk, &config.data_dir).ok().flatten();
    let Some(member) = member else { return Ok(()) };
    let number = member.node.physical();
    Err(StartError::DataDir {
        path: config.data_dir.clone(),
        problem: format!(
            "data directory {} belongs to node {number} of a cluster: start it with --node-id \
             {number}",
            config.data_dir.display()
        ),
    })
}

/// Opens a log.
pub(super) fn open(
    config: &Config,
    clock: Arc<dyn Clock>,
    opening: Opening,
) -> Result<Result<Log, OpenError>, StartError> {
    let system = |what| move |source| StartError::System { what, source };
    let mut random =
        SeededRng::new(flux_env::entropy_u64().map_err(system("failed to draw random bits"))?);
    let seeds = Seeds {
        cluster: opening.cluster,
        node: opening.node,
        boot_id: flux_env::boot_id().map_err(system("failed to ask for the boot id"))?,
        draw: Box::new(move || random.next_u64()),
    };
    let log_config = LogConfig {
        fsync: match config.fsync {
            Fsync::Always => FsyncPolicy::Always,
            Fsync::EverySec => FsyncPolicy::EverySecond,
            Fsync::Never => FsyncPolicy::Never,
        },
        segment_bytes: config.segment_size,
        retention: Retention {
            bytes_max: config.cdc.retention_bytes,
            age_max_ms: u64::try_from(config.cdc.retention_age.as_millis()).unwrap_or(u64::MAX),
            pinned_bytes_max: config.cdc.pinned_bytes_max,
            settle_ms: HISTORY_SETTLES_MS,
        },
        refuse_power_loss: opening.refuse_power_loss,
        ..LogConfig::new(config.data_dir.clone(), opening.shards)
    };
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let (log, recovery) = match Log::open(disk, clock, log_config, seeds) {
        Ok(opened) => opened,
        Err(error) => return Ok(Err(error)),
    };
    if let Some(torn) = &recovery.torn {
        warn!(
            ?torn,
            "the log ended in an unfinished record, which was cut"
        );
    }
    info!(
        records = recovery.records,
        bytes = recovery.bytes,
        clean = recovery.clean,
        "log opened"
    );
    Ok(Ok(log))
}

pub(super) fn open_error(config: &Config, error: &OpenError) -> StartError {
    match error {
        OpenError::Damaged { .. } => StartError::Damaged {
            problem: error.to_string(),
        },
        OpenError::ForeignFiles { .. }
        | OpenError::InUse { .. }
        | OpenError::PowerLoss { .. }
        | OpenError::ShardCount { .. }
        | OpenError::Version { .. }
        | OpenError::Io { .. } => StartError::DataDir {
            path: config.data_dir.clone(),
            problem: error.to_string(),
        },
    }
}

/// What the shards of a node have to do with other nodes.
pub(super) struct Wiring<F> {
    pub(super) network: Arc<dyn Network>,
    pub(super) forward: Option<Arc<dyn Forward>>,
    pub(super) formation: F,
}

impl Wiring<fn(ShardId) -> Formation> {
    /// Nothing.
    pub(super) fn alone() -> Self {
        Self {
            network: Arc::new(NoNetwork),
            forward: None,
            formation: |_| Formation::Found,
        }
    }
}

/// Starts every shard on its core, all at once.
pub(super) async fn start_shards<F: Fn(ShardId) -> Formation>(
    config: &Config,
    log: &Log,
    clock: &Arc<dyn Clock>,
    places: &Places,
    wiring: Wiring<F>,
) -> Result<Vec<Shard>, StartError> {
    let identity = log.identity();
    let hash_seed = flux_env::entropy_u64().map_err(|source| StartError::System {
        what: "failed to draw random bits",
        source,
    })?;
    let count = identity.shard_count;
    let stripes = STRIPES_MIN.max(STRIPES_TOTAL / count.max(1));

    let starting: Vec<_> = (0..count)
        .map(|id| {
            let store = Store::new(StoreConfig {
                stripes: stripes as usize,
                hash_seed,
                memory_bytes_max: memory_of_shard(config.max_memory, count),
                value_bytes_max: usize::try_from(config.value_size_max).unwrap_or(usize::MAX),
            });
            store.set_reclaimer(reclaim);
            let parts = ShardParts {
                id: ShardId::new(id),
                node: identity.node,
                store: Arc::new(store),
                log: log.clone(),
                clock: Arc::clone(clock),
                network: Arc::clone(&wiring.network),
                forward: wiring.forward.clone(),
                formation: (wiring.formation)(ShardId::new(id)),
                config: ShardConfig {
                    snapshot_log_bytes: config.snapshot_log_size,
                    lease_reads: config.reads == Reads::Lease,
                    ..ShardConfig::default()
                },
            };
            let handle = places.handle(places.of_shard(id));
            handle.spawn(Shard::start(parts))
        })
        .collect();
    let mut shards = Vec::with_capacity(starting.len());
    for start in starting {
        let started = start.await.map_err(|error| StartError::System {
            what: "a shard's start did not end in order",
            source: std::io::Error::other(error),
        })?;
        shards.push(started.map_err(|error| shard_error(&error))?);
    }
    Ok(shards)
}

/// Frees tables that were swapped out on a thread of their own: millions of entries take a while.
fn reclaim(dropped: Dropped) {
    let thread = std::thread::Builder::new().name("flux-reclaim".to_owned());
    // If there is no thread, the closure is dropped here, and the tables with it.
    drop(thread.spawn(move || drop(dropped)));
}

fn shard_error(error: &flux_raft::StartError) -> StartError {
    use flux_raft::StartError as Raft;
    let problem = error.to_string();
    match error {
        Raft::Gap { .. } | Raft::Entry { .. } | Raft::Snapshot { .. } => {
            StartError::Damaged { problem }
        }
        Raft::Log { .. } | Raft::Engine { .. } => StartError::Shard { problem },
    }
}

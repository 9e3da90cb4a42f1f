//! The first step of a node's start: its log opened.

use std::sync::Arc;

use flux_env::{Clock, Disk, RealDisk, Rng, SeededRng};
use flux_log::{FsyncPolicy, Log, LogConfig, OpenError, Retention, Seeds};
use flux_types::{ClusterId, NodeId};
use tracing::{info, warn};

use crate::config::{Config, Fsync};
use crate::error::StartError;
use crate::peer::member::{Member, draw_incarnation};

/// How long after a start old log is kept as if a sink needed it: the sinks are only coming.
const HISTORY_SETTLES_MS: u64 = 60_000;

/// The number of a node that is alone.
pub(super) const ALONE_NUMBER: u32 = 1;

/// What a new folder gets, and what an old one must be.
pub(super) struct Opening {
    pub(super) shards: u32,
    pub(super) cluster: ClusterId,
    pub(super) node: NodeId,
    /// Whether an old one may have more shards, since some were split.
    pub(super) may_have_grown: bool,
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
            may_have_grown: false,
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
        may_have_grown: opening.may_have_grown,
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

pub(super) fn shard_error(error: &flux_raft::StartError) -> StartError {
    use flux_raft::StartError as Raft;
    let problem = error.to_string();
    match error {
        Raft::Gap { .. } | Raft::Entry { .. } | Raft::Snapshot { .. } => {
            StartError::Damaged { problem }
        }
        Raft::Log { .. } | Raft::Engine { .. } => StartError::Shard { problem },
    }
}

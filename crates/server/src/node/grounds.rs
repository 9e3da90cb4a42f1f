//! The second step of a node's start: its shards recovered on their cores, alone or with others.

use std::sync::Arc;

use flux_cluster::SlotMap;
use flux_env::Clock;
use flux_log::Log;
use flux_raft::{Formation, Shard};

use super::blocking;
use super::join::{self, Joined, join};
use super::nursery::{Kit, Nursery};
use super::open::open_alone;
use crate::config::Config;
use crate::cores::Places;
use crate::error::StartError;
use crate::peer::{self, Forwarder, PeerNetwork, Peers};
use crate::ports::{Addresses, Listeners};

/// What a node stands on.
pub(super) struct Grounds {
    pub(super) log: Log,
    pub(super) shards: Vec<Shard>,
    /// The latest map of the slots that they know.
    pub(super) map: SlotMap,
    /// How many shards there were when it all began.
    pub(super) founding: u32,
    pub(super) nursery: Arc<Nursery>,
    pub(super) peers: Option<Arc<Peers>>,
}

/// Opens the log and starts the shards, as one of a cluster or alone.
pub(super) async fn grounds(
    config: &Config,
    listeners: &mut Listeners,
    addresses: Addresses,
    clock: &Arc<dyn Clock>,
    places: &Arc<Places>,
) -> Result<Grounds, StartError> {
    let Some(listener) = listeners.peer.take() else {
        let log = {
            let (config, clock) = (config.clone(), Arc::clone(clock));
            blocking(move || open_alone(&config, clock)).await??
        };
        // From here on a failure must leave the folder as an orderly end does.
        let closing = CloseOnDrop(Some(log.clone()));
        let nursery = Nursery::new(Kit::alone(config, &log, clock, places)?);
        let founding = log.identity().shard_count;
        let shards = nursery.start_all(founding, |_| Formation::Found).await?;
        closing.disarm();
        return Ok(Grounds {
            map: latest_map(founding, &shards)?,
            founding,
            peers: None,
            log,
            shards,
            nursery,
        });
    };
    let mut joined = join(join::Parts {
        config,
        listener,
        addresses,
        clock,
        places,
    })
    .await?;
    let peers = Arc::clone(&joined.peers);
    let mut started = start_replicas(config, clock, places, &mut joined).await;
    if let Err(StartError::Damaged { problem }) = started {
        // The log is whole, a snapshot is not: others may have what it held (rule 13).
        started = match joined.rebuild(config, clock, problem).await {
            Ok(()) => start_replicas(config, clock, places, &mut joined).await,
            Err(error) => Err(error),
        };
    }
    if started.is_err() {
        peers.stop();
    }
    let (nursery, shards) = started?;
    let founding = joined.founding();
    Ok(Grounds {
        map: latest_map(founding, &shards)?,
        founding,
        peers: Some(peers),
        log: joined.log,
        shards,
        nursery,
    })
}

/// The latest map of the slots by what the shards have applied; an older one is as safe.
fn latest_map(founding: u32, shards: &[Shard]) -> Result<SlotMap, StartError> {
    let first = SlotMap::even(founding).map_err(|error| StartError::System {
        what: "the data folder has an impossible number of shards",
        source: std::io::Error::other(error),
    })?;
    let split = shards.iter().filter_map(Shard::slots);
    let split = split.filter(|slots| slots.shard_count() as usize <= shards.len());
    let latest = split.chain([first]).max_by_key(SlotMap::shard_count);
    Ok(latest.expect("the first is one"))
}

/// Starts the shards of a node of a cluster. After an error none of them runs, and the log is closed.
async fn start_replicas(
    config: &Config,
    clock: &Arc<dyn Clock>,
    places: &Arc<Places>,
    joined: &mut Joined,
) -> Result<(Arc<Nursery>, Vec<Shard>), StartError> {
    let closing = CloseOnDrop(Some(joined.log.clone()));
    joined.note_fsync(config).await?;
    let peers = Arc::clone(&joined.peers);
    let nursery = Nursery::new(Kit {
        network: Arc::new(PeerNetwork(Arc::clone(&peers))),
        forward: Some(Arc::new(Forwarder(Arc::downgrade(&peers)))),
        ..Kit::alone(config, &joined.log, clock, places)?
    });
    let formation = |shard| joined.formation(shard);
    let started = nursery.start_all(joined.founding(), formation).await;
    let settled = match started {
        Ok(shards) => joined.settled(config).await.map(|()| shards),
        Err(error) => Err(error),
    };
    if settled.is_err() {
        nursery.end_all().await;
    }
    let shards = settled?;
    closing.disarm();
    peers.serve_shards(shards.clone());
    // Owned by the node: ends when the peers are stopped.
    places.handle(0).spawn(peer::keep(peers));
    Ok((nursery, shards))
}

/// Closes a log unless the start has succeeded.
struct CloseOnDrop(Option<Log>);

impl CloseOnDrop {
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        if let Some(log) = self.0.take() {
            log.close();
        }
    }
}

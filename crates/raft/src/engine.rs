//! The consensus engine of a replica: openraft on its log, store and network. It is started with the
//! replica, and once more each time the replica has forgotten what it held ([`crate::retire`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use flux_env::Clock;
use flux_types::bug::{self, Bug};
use flux_types::{NodeId, ShardId};
use openraft::impls::EmptyNode;
use openraft::metrics::{RaftDataMetrics, RaftServerMetrics};
use openraft::{Config, SnapshotPolicy, StepDownPolicy};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::config::{ShardConfig, Timings};
use crate::error::StartError;
use crate::log_store::LogStore;
use crate::network::Network;
use crate::network::adapter::{Answers, Connector};
use crate::replica::Watched;
use crate::shard::Formation;
use crate::state_machine::StateMachine;
use crate::type_config::{Raft, TypeConfig};

/// What engines of one replica are made of.
#[derive(Debug)]
pub(crate) struct Maker {
    pub(crate) id: ShardId,
    pub(crate) node: NodeId,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) network: Arc<dyn Network>,
    pub(crate) formation: Formation,
    pub(crate) config: ShardConfig,
    pub(crate) machine: StateMachine,
}

/// One engine, running or ended.
pub(crate) struct Engine {
    pub(crate) raft: Raft,
    pub(crate) server_metrics: Watched<RaftServerMetrics<TypeConfig>>,
    pub(crate) data_metrics: Watched<RaftDataMetrics<TypeConfig>>,
    /// Told when nothing applies for it any more.
    released: Mutex<Option<oneshot::Receiver<()>>>,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").finish_non_exhaustive()
    }
}

impl Engine {
    /// Ends it, and returns when nothing of it touches the log or the store any more.
    pub(crate) async fn end(&self) {
        if let Err(error) = self.raft.shutdown().await {
            tracing::error!(%error, "the consensus engine did not end in order");
        }
        let released = self.released.lock().take();
        if let Some(released) = released {
            // Never sent to: it ends with the last who could apply.
            let _ = released.await.is_ok();
        }
    }
}

impl Maker {
    /// Starts openraft on what the log and the store hold; founds the shard if this is its first
    /// start.
    pub(crate) async fn start(&self) -> Result<Engine, StartError> {
        let id = self.id;
        let (held, released) = oneshot::channel();
        let machine = StateMachine {
            held: Some(Arc::new(held)),
            ..self.machine.clone()
        };
        let log_store = LogStore {
            log: machine.log.clone(),
            clock: Arc::clone(&self.clock),
            counters: Arc::clone(&machine.counters),
            snapshot_wanted: Arc::clone(&machine.snapshot_wanted),
            committed: None,
        };
        let connector = Connector {
            shard: id,
            node: self.node,
            network: Arc::clone(&self.network),
            timings: self.config.timings,
            answers: Answers::default(),
        };
        let state = machine.log.state();
        let is_new = state.vote.is_none() && state.tombstone.is_none();
        let config = self.raft_config(is_new)?;
        let raft = Raft::new(self.node.get(), config, connector, log_store, machine)
            .await
            .map_err(|error| failed(id, &error))?;
        let is_founded = raft
            .is_initialized()
            .await
            .map_err(|error| failed(id, &error))?;
        let voters = match &self.formation {
            Formation::Found => BTreeSet::from([self.node]),
            Formation::Members(voters) => voters.clone(),
            Formation::Join => BTreeSet::new(),
        };
        // Who was let go waits to be added again, however the shard began.
        if !is_founded && state.tombstone.is_none() && !voters.is_empty() {
            let members: BTreeMap<u64, EmptyNode> = voters
                .into_iter()
                .map(|voter| (voter.get(), EmptyNode::new()))
                .collect();
            raft.initialize(members)
                .await
                .map_err(|error| failed(id, &error))?;
        }
        Ok(Engine {
            server_metrics: raft.server_metrics(),
            data_metrics: raft.data_metrics(),
            raft,
            released: Mutex::new(Some(released)),
        })
    }

    /// openraft's settings; the reasons are in `docs/design/`.
    fn raft_config(&self, is_new: bool) -> Result<Arc<Config>, StartError> {
        let Timings {
            election_min,
            election_max,
            heartbeat,
            heartbeat_min,
            ..
        } = self.config.timings;
        let config = Config {
            cluster_name: format!("shard {}", self.id),
            election_timeout_min: millis(election_min),
            election_timeout_max: millis(election_max),
            heartbeat_interval: millis(heartbeat),
            heartbeat_min_interval: Some(millis(heartbeat_min)),
            // Who has voted before stands for election only when the shard says so.
            enable_elect: is_new,
            // A campaign that cannot win must not disturb a leader that works.
            enable_pre_vote: Some(true),
            // The store is in memory: a leader that came back without an election could be behind
            // what it had acknowledged.
            enable_leader_restore: Some(bug::is_on(Bug::LeaderRestored)),
            // The lease gate must close before leadership goes anywhere, so it never goes by itself.
            removed_leader_step_down: StepDownPolicy::Never,
            // Snapshots are taken by bytes, here (`crate::snapshot`).
            snapshot_policy: SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: self.config.log_entries_kept,
            replication_lag_threshold: u64::MAX,
            max_payload_entries: 64,
            api_channel_size: Some(1024),
            notification_channel_size: Some(4096),
            backoff: "50ms 100ms 200ms ..2s".to_owned(),
            ..Config::default()
        };
        let config = config.validate().map_err(|error| failed(self.id, &error))?;
        Ok(Arc::new(config))
    }
}

pub(crate) fn failed(shard: ShardId, error: &dyn fmt::Display) -> StartError {
    StartError::Engine {
        shard,
        reason: error.to_string(),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

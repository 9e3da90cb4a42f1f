//! Shards that move: where they should be, who gets them there, and who forgets them.
//!
//! As in a server, each machine looks after the shards that it leads with the real
//! [`flux_cluster::reconcile`], and forgets what leaders say it no longer carries with the real
//! [`Shard::retire`]. What leaders say comes late, and now and then something old comes after something
//! newer.
//!
//! The map of who carries what also has the shards that were split off, each once it is led.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use flux_cluster::reconcile::{Members, Step, Target, caught_up, next_step};
use flux_env::Clock;
use flux_log::LogId;
use flux_raft::{Formation, Shard, ShardStatus};
use flux_types::{LogIndex, NodeId, NodeNumber, ShardId};
use parking_lot::Mutex;

use crate::executor::{Executor, sleep};
use crate::failure::Failure;
use crate::machine::{Machine, SHARDS};

/// How many machines carry a shard.
const REPLICAS: usize = 3;
/// How long one step may take.
const LIMIT: Duration = Duration::from_secs(3);
/// How much of what leaders have said is remembered.
const TOLD_MAX: usize = 12;

/// See the module.
pub(crate) struct Moves {
    executor: Arc<Executor>,
    nodes: usize,
    targets: Mutex<BTreeMap<ShardId, Target>>,
    /// Of each shard, what leaders have said of its committed members, the newest last.
    told: Mutex<BTreeMap<ShardId, VecDeque<Told>>>,
    up: Mutex<BTreeSet<NodeId>>,
    forgotten: AtomicU64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Told {
    at: LogId,
    members: BTreeSet<NodeId>,
}

fn number(machine: usize) -> NodeNumber {
    NodeNumber::new(u32::try_from(machine).unwrap_or(u32::MAX).saturating_add(1))
}

impl Moves {
    pub(crate) fn new(executor: &Arc<Executor>, nodes: usize) -> Arc<Self> {
        let shards = (0..SHARDS).map(|shard| {
            let first = usize::try_from(executor.below(nodes as u64)).unwrap_or(0);
            let nodes = (0..REPLICAS).map(|at| number((first + at) % nodes));
            let target = Target {
                nodes: nodes.collect(),
                leader: None,
            };
            (ShardId::new(shard), target)
        });
        Arc::new(Self {
            executor: Arc::clone(executor),
            nodes,
            targets: Mutex::new(shards.collect()),
            told: Mutex::default(),
            up: Mutex::default(),
            forgotten: AtomicU64::new(0),
        })
    }

    /// How many shards are in the map.
    pub(crate) fn shards(&self) -> u32 {
        u32::try_from(self.targets.lock().len()).unwrap_or(u32::MAX)
    }

    /// A shard that was split off is led, and from now on in the map: where its parent should be.
    pub(crate) fn take_in(&self, child: ShardId, parent: ShardId) {
        let mut targets = self.targets.lock();
        let begins_at = targets.get(&parent).map(|target| Target {
            leader: None,
            ..target.clone()
        });
        if let Some(begins_at) = begins_at {
            targets.entry(child).or_insert(begins_at);
        }
    }

    /// How often a machine forgot a shard that it had given away.
    pub(crate) fn forgotten(&self) -> u64 {
        self.forgotten.load(Ordering::Relaxed)
    }

    /// Where a shard should be, if it is in the map yet.
    fn target(&self, shard: ShardId) -> Option<Target> {
        self.targets.lock().get(&shard).cloned()
    }

    /// How a machine begins each shard.
    pub(crate) fn formations(&self, node: NodeId) -> Vec<Formation> {
        let formation = |shard| {
            let target = self.target(ShardId::new(shard)).unwrap_or_default();
            let voters = target
                .nodes
                .iter()
                .map(|number| NodeId::of_incarnation(number.get(), 1));
            let voters: BTreeSet<NodeId> = voters.collect();
            if voters.contains(&node) {
                Formation::Members(voters)
            } else {
                Formation::Join
            }
        };
        (0..SHARDS).map(formation).collect()
    }

    /// From now on some shard shall be elsewhere: one or two of its machines give it to others.
    pub(crate) fn want_other(&self) {
        let below = |bound: usize| usize::try_from(self.executor.below(bound as u64)).unwrap_or(0);
        let mut targets = self.targets.lock();
        let shard = ShardId::new(u32::try_from(below(targets.len())).unwrap_or(0));
        let Some(target) = targets.get_mut(&shard) else {
            return;
        };
        for _ in 0..=below(2) {
            let others = (0..self.nodes).map(number);
            let others: Vec<_> = others
                .filter(|other| !target.nodes.contains(other))
                .collect();
            let leaving = target.nodes.iter().copied().nth(below(target.nodes.len()));
            if let (Some(leaving), Some(coming)) = (leaving, others.get(below(others.len()))) {
                target.nodes.remove(&leaving);
                target.nodes.insert(*coming);
            }
        }
        let named = target.nodes.iter().copied().nth(below(REPLICAS));
        target.leader = named.filter(|_| below(3) == 0);
    }

    pub(crate) fn is_up(&self, node: NodeId) {
        self.up.lock().insert(node);
    }

    pub(crate) fn is_down(&self, node: NodeId) {
        self.up.lock().remove(&node);
    }

    /// A leader says who belongs to its shard, if that is committed.
    fn tell(&self, status: &ShardStatus) {
        let Some(at) = status.membership.filter(|_| status.is_membership_committed) else {
            return;
        };
        let members = status
            .voters
            .iter()
            .chain(&status.learners)
            .copied()
            .collect();
        let said = Told { at, members };
        let mut told = self.told.lock();
        let told = told.entry(status.id).or_default();
        if told.back() != Some(&said) {
            told.push_back(said);
            while TOLD_MAX < told.len() {
                told.pop_front();
            }
        }
    }

    /// What a machine hears: the newest, or now and then something older.
    fn gone_at(&self, shard: ShardId, node: NodeId) -> Option<LogId> {
        let told = self.told.lock();
        let told = told.get(&shard)?;
        let back = match self.executor.below(4) {
            0 => usize::try_from(self.executor.below(told.len() as u64)).unwrap_or(0),
            _ => 0,
        };
        let heard = told.iter().rev().nth(back)?;
        (!heard.members.contains(&node)).then_some(heard.at)
    }

    /// What is missing until every shard is where it should be, and nowhere else.
    pub(crate) fn missing(&self, shards: u32, machines: &[Arc<Machine>]) -> Option<String> {
        (0..shards).find_map(|shard| self.missing_of(ShardId::new(shard), machines))
    }

    fn missing_of(&self, shard: ShardId, machines: &[Arc<Machine>]) -> Option<String> {
        let Some(target) = self.target(shard) else {
            return Some(format!("shard {shard} is in the map"));
        };
        let (mut applied, mut leaders) = (BTreeSet::new(), 0);
        for machine in machines {
            let of = machine.number;
            let Some(handle) = machine.node().and_then(|node| node.shard(shard).cloned()) else {
                return Some(format!("machine {of} runs, and has begun shard {shard}"));
            };
            let status = handle.status();
            if !target.nodes.contains(&number(of)) {
                if let Some(what) = left_over(&handle, machine) {
                    let log = handle.log().state();
                    return Some(format!(
                        "machine {of} has forgotten shard {shard}, of which it has {what}: {log:?}"
                    ));
                }
                continue;
            }
            applied.insert((status.applied, status.last));
            if !status.is_writable {
                continue;
            }
            leaders += 1;
            let voters = status
                .voters
                .iter()
                .map(|voter| NodeNumber::new(voter.physical()));
            let voters: BTreeSet<_> = voters.collect();
            let is_there = voters == target.nodes && status.learners.is_empty();
            if !is_there || status.voters_after.is_some() {
                let found = (&status.voters, &status.voters_after, &status.learners);
                return Some(format!("shard {shard} is on {target:?}, not {found:?}"));
            }
        }
        let same = applied.iter().next().filter(|_| applied.len() == 1);
        let is_same = same.is_some_and(|(applied, last)| applied == last);
        (leaders != 1 || !is_same).then(|| {
            format!("shard {shard} has one leader ({leaders}) and one state ({applied:?})")
        })
    }

    /// Whether those who carry a shard hold the same.
    pub(crate) fn judge(&self, machines: &[Arc<Machine>]) -> Result<(), Failure> {
        for shard in (0..self.shards()).map(ShardId::new) {
            let target = self.target(shard).unwrap_or_default();
            let mut digests = BTreeSet::new();
            let mut index = 0;
            for machine in machines {
                let Some(handle) = machine.node().and_then(|node| node.shard(shard).cloned())
                else {
                    continue;
                };
                if target.nodes.contains(&number(machine.number)) {
                    index = handle.status().applied.get();
                    digests.insert(handle.store().digest());
                }
            }
            if digests.len() != 1 {
                return Err(Failure::Diverged { shard, index });
            }
        }
        Ok(())
    }
}

/// What a machine still has of a shard that it does not carry.
fn left_over(shard: &Shard, machine: &Machine) -> Option<&'static str> {
    let (log, store) = (shard.log(), shard.store());
    let state = log.state();
    let found = [
        (state.last.is_some() || state.purged.is_some(), "entries"),
        (log.oldest().get() != 1, "history"),
        (!store.is_empty() || 0 < store.revision().get(), "keys"),
        (0 < store.request_sessions(), "sessions of requests"),
        (0 < store.system_len(), "system data"),
        (shard.applied().is_some(), "a position"),
        (shard.stale_now().is_some(), "something to read"),
        (0 < machine.snapshots(shard.id()), "snapshots"),
    ];
    found
        .into_iter()
        .find(|(is_there, _)| *is_there)
        .map(|(_, what)| what)
}

/// A shard as its leader sees it.
fn members(status: &ShardStatus, living: BTreeSet<NodeId>) -> Members {
    let member_since = status.membership.map_or(LogIndex::new(0), |id| id.index);
    let after = status.voters_after.as_ref();
    Members {
        own: status.node,
        voters: status.voters.iter().copied().collect(),
        after: after.map(|after| after.iter().copied().collect()),
        learners: status.learners.iter().copied().collect(),
        caught_up: caught_up(&status.replication, status.last, member_since),
        living,
    }
}

/// Gets the shards that a machine leads to where they should be, until its process ends.
pub(crate) async fn keep(machine: Arc<Machine>, moves: Arc<Moves>) {
    let executor = &moves.executor;
    loop {
        sleep(executor, Duration::from_millis(50 + executor.below(250))).await;
        let shards = machine.shards();
        for shard in shards.iter().filter(|shard| shard.is_writable()) {
            let status = shard.status();
            moves.tell(&status);
            let mut living = moves.up.lock().clone();
            living.remove(&status.node);
            let target = moves.target(shard.id());
            let Some(step) = next_step(&members(&status, living), target.as_ref()) else {
                continue;
            };
            let deadline = machine.clock.now() + LIMIT;
            // What did not work is decided again.
            let _done = match step {
                Step::Learn(node) => shard.add_learner(node, deadline).await.is_ok(),
                Step::Wait(_) => true,
                Step::Vote(voters) => shard.change_voters(voters, deadline).await.is_ok(),
                Step::Forget(node) => shard.remove_learner(node, deadline).await.is_ok(),
                Step::Lead(node) => shard.transfer_leadership(node, deadline).await.is_ok(),
            };
        }
    }
}

/// Forgets the shards that a machine no longer carries, until its process ends.
pub(crate) async fn let_go(machine: Arc<Machine>, moves: Arc<Moves>) {
    let executor = &moves.executor;
    loop {
        sleep(executor, Duration::from_millis(20 + executor.below(400))).await;
        for shard in machine.shards() {
            let Some(gone_at) = moves.gone_at(shard.id(), machine.id()) else {
                continue;
            };
            // It may have failed, or its disk be full: it is asked again.
            if matches!(shard.retire(gone_at).await, Ok(true)) {
                moves.forgotten.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

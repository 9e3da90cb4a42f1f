//! What goes wrong in a run: drawn from the seed, one thing after another, each counted.
//!
//! Every run draws which kinds of faults it has at all: a run with few kinds goes deeper into them
//! than one that has all.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use flux_env::{Clock, CrashLoss};
use flux_raft::{Formation, MembershipError, Shard};
use flux_types::{NodeId, ShardId};
use parking_lot::Mutex;

use crate::client::{Phase, Shared};
use crate::executor::sleep;
use crate::machine::{Machine, SHARDS, SyncTime};
use crate::moves::Moves;
use crate::network::{SimNetwork, Weather};

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// A process dies; what its disk had not synced is lost, torn or there.
    Crash,
    /// All processes die at once.
    CrashAll,
    /// Two sides do not hear one another.
    Partition,
    /// One side does not hear the other, which hears it.
    OneWay,
    /// Two sides do not hear one another, and one node hears both.
    Bridge,
    /// A process stands still.
    Pause,
    /// A disk takes long to sync.
    SlowDisk,
    /// A sync fails, after which the process must end.
    SyncFailure,
    /// Messages are slow, lost and repeated.
    Storm,
    /// A wall clock is stepped.
    ClockStep,
    /// A leader hands over.
    Transfer,
    /// A machine loses its disk and is replaced by a new incarnation.
    Replace,
    /// A snapshot is taken out of turn.
    Snapshot,
    /// A leader is cut off and the others restart, having forgotten the lease they granted it.
    Amnesia,
    /// A shard shall be carried by other machines.
    Move,
}

impl Fault {
    /// All of them.
    pub const ALL: &[Self] = &[
        Self::Crash,
        Self::CrashAll,
        Self::Partition,
        Self::OneWay,
        Self::Bridge,
        Self::Pause,
        Self::SlowDisk,
        Self::SyncFailure,
        Self::Storm,
        Self::ClockStep,
        Self::Transfer,
        Self::Replace,
        Self::Snapshot,
        Self::Amnesia,
        Self::Move,
    ];
}

impl Fault {
    /// Whether everything that is written stays.
    pub(crate) const fn keeps_disks(self) -> bool {
        !matches!(self, Self::SyncFailure | Self::Replace)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Breaks things, and heals them.
#[derive(Clone)]
pub(crate) struct Nemesis {
    pub(crate) shared: Arc<Shared>,
    pub(crate) network: SimNetwork,
    pub(crate) enabled: Vec<Fault>,
    pub(crate) counts: Arc<Mutex<BTreeMap<Fault, u64>>>,
    /// A replacement that has been begun and not finished, with the id that must go.
    replacing: Arc<Mutex<Option<Replacement>>>,
    /// In runs whose shards move.
    moves: Option<Arc<Moves>>,
}

#[derive(Clone, Copy, Debug)]
struct Replacement {
    machine: usize,
    old: NodeId,
    new: NodeId,
}

/// How long a membership change may wait for one answer.
const STEP_PATIENCE: Duration = Duration::from_secs(3);

impl Nemesis {
    pub(crate) fn new(
        shared: &Arc<Shared>,
        network: &SimNetwork,
        enabled: Vec<Fault>,
        moves: Option<Arc<Moves>>,
    ) -> Self {
        Self {
            shared: Arc::clone(shared),
            network: network.clone(),
            enabled,
            counts: Arc::default(),
            replacing: Arc::default(),
            moves,
        }
    }

    fn below(&self, bound: u64) -> u64 {
        self.shared.executor.below(bound)
    }

    /// Any shard: of those in the map, where shards move.
    fn any_shard(&self) -> ShardId {
        let shards = self.moves.as_ref().map_or(SHARDS, |moves| moves.shards());
        ShardId::new(u32::try_from(self.below(shards.into())).unwrap_or(0))
    }

    fn machines(&self) -> &[Arc<Machine>] {
        &self.shared.machines
    }

    async fn wait_millis(&self, from: u64, to: u64) {
        let millis = from + self.below(to - from + 1);
        sleep(&self.shared.executor, Duration::from_millis(millis)).await;
    }

    /// Any machine, the leader of some shard half of the time.
    fn victim(&self) -> Arc<Machine> {
        let leaders: Vec<_> = self
            .machines()
            .iter()
            .filter(|machine| {
                let node = machine.node();
                node.is_some_and(|node| node.shards.iter().any(Shard::is_writable))
            })
            .collect();
        let all: Vec<_> = self.machines().iter().collect();
        let from = if self.below(2) == 0 && !leaders.is_empty() {
            leaders
        } else {
            all
        };
        let at = usize::try_from(self.below(from.len() as u64)).unwrap_or(0);
        from.get(at).map_or_else(
            || Arc::clone(self.machines().first().expect("a cluster has machines")),
            |machine| Arc::clone(machine),
        )
    }

    /// Breaks one thing after another until it is told to stop.
    pub(crate) async fn run(self, phase: Phase) {
        while !self.shared.stop.load(Ordering::SeqCst) {
            let has_rounds = self.shared.has_rounds.load(Ordering::SeqCst);
            let pause_max = if has_rounds { 250 } else { 1_200 };
            self.wait_millis(50, pause_max).await;
            let at = usize::try_from(self.below(self.enabled.len() as u64)).unwrap_or(0);
            let drawn = self.enabled.get(at).copied().unwrap_or(Fault::Crash);
            // Deadlines are judged by one clock after the other where leadership moves.
            let one_in = if has_rounds { 8 } else { 2 };
            let moves = phase == Phase::Expiring && self.below(one_in) != 0;
            let fault = if moves { Fault::Transfer } else { drawn };
            let code = Fault::ALL.iter().position(|known| *known == fault);
            self.shared.executor.note(code.unwrap_or(0) as u64);
            *self.counts.lock().entry(fault).or_default() += 1;
            self.inflict(fault).await;
        }
    }

    async fn inflict(&self, fault: Fault) {
        match fault {
            Fault::Crash => {
                let voter = if self.below(3) == 0 {
                    self.next_voter().await
                } else {
                    None
                };
                let machine = voter.unwrap_or_else(|| self.victim());
                self.crash(&machine).await;
            }
            Fault::CrashAll => {
                let loss = self.loss();
                for machine in self.machines() {
                    machine.crash(loss);
                }
                self.wait_millis(10, 500).await;
                for machine in self.machines() {
                    machine.start(Formation::Join);
                }
            }
            Fault::Partition | Fault::OneWay | Fault::Bridge => self.part(fault).await,
            Fault::Pause => {
                let machine = self.victim();
                self.shared.executor.pause(machine.number);
                self.wait_millis(100, 2_500).await;
                self.shared.executor.resume(machine.number);
            }
            Fault::SlowDisk => {
                let machine = self.victim();
                machine.set_sync_time(SyncTime::SLOW);
                self.wait_millis(300, 2_000).await;
                machine.set_sync_time(SyncTime::QUICK);
            }
            Fault::SyncFailure => self.victim().fail_sync(self.below(20)),
            Fault::Storm => {
                self.network.set_weather(Weather {
                    micros_min: 200,
                    micros_max: 1_000 + self.below(60_000),
                    lost_permille: self.below(200),
                    twice_permille: self.below(200),
                });
                self.wait_millis(300, 3_000).await;
                self.network.set_weather(Weather::FAIR);
            }
            Fault::ClockStep => {
                let machine = self.victim();
                let millis = i64::try_from(self.below(20_000)).unwrap_or(0) - 10_000;
                machine.clock.set_step_millis(millis);
                self.wait_millis(200, 1_000).await;
            }
            Fault::Amnesia => self.amnesia().await,
            Fault::Move => self.want_other().await,
            Fault::Transfer => self.transfer().await,
            Fault::Replace => self.replace().await,
            Fault::Snapshot => {
                let shard = self.any_shard();
                let machine = self.victim();
                if let Some(handle) = machine.node().and_then(|node| node.shard(shard).cloned()) {
                    self.shared.executor.spawn_on(machine.number, async move {
                        drop(handle.snapshot().await);
                    });
                }
            }
        }
    }

    async fn want_other(&self) {
        if let Some(moves) = &self.moves {
            moves.want_other();
        }
        self.wait_millis(50, 1_500).await;
    }

    async fn amnesia(&self) {
        let shard = self.any_shard();
        let Some((leader, _)) = self.leader(shard) else {
            return;
        };
        let others: Vec<_> = self
            .machines()
            .iter()
            .filter(|machine| machine.number != leader.number)
            .collect();
        let loss = self.loss();
        if self.below(2) == 0 {
            for other in &others {
                self.cut_off(leader.number, other.number);
                other.crash(loss);
                other.start(Formation::Join);
            }
        } else {
            // So many that the leader has a quorum with them still hear it; the rest does not, and
            // asks them for votes until they have forgotten whom they follow.
            let (forgetful, eager) = others.split_at(self.machines().len() / 2);
            for other in eager {
                self.cut_off(leader.number, other.number);
            }
            self.wait_millis(700, 1_700).await;
            for other in forgetful {
                self.cut_off(leader.number, other.number);
                other.crash(loss);
                other.start(Formation::Join);
            }
        }
        self.wait_millis(500, 2_000).await;
        self.network.heal();
    }

    fn cut_off(&self, one: usize, other: usize) {
        self.network.cut(one, other);
        self.network.cut(other, one);
    }

    fn loss(&self) -> CrashLoss {
        if self.shared.is_relaxed {
            // Who has lost what it acknowledged must not come back under its name.
            return CrashLoss::Nothing;
        }
        match self.below(4) {
            0 => CrashLoss::Nothing,
            1 => CrashLoss::Everything,
            _ => CrashLoss::Random,
        }
    }

    /// Waits for a moment until some machine has just given its vote.
    async fn next_voter(&self) -> Option<Arc<Machine>> {
        self.network.take_last_voter();
        for _ in 0..4_000 {
            sleep(&self.shared.executor, Duration::from_micros(200)).await;
            if let Some(number) = self.network.take_last_voter() {
                return self.machines().get(number).cloned();
            }
        }
        None
    }

    async fn crash(&self, machine: &Arc<Machine>) {
        machine.crash(self.loss());
        self.wait_millis(10, 1_500).await;
        machine.start(Formation::Join);
    }

    /// Cuts links for a while.
    async fn part(&self, fault: Fault) {
        let victim = self.victim().number;
        let count = self.machines().len();
        // The victim alone, or some others with it.
        let side: BTreeSet<usize> = (0..count)
            .filter(|number| *number == victim || self.below(4) == 0)
            .collect();
        let bridge = (0..count).find(|number| *number != victim);
        let is_one_way = fault == Fault::OneWay;
        let inward = self.below(2) == 0;
        for source in 0..count {
            for target in 0..count {
                let crosses = side.contains(&source) != side.contains(&target);
                let is_bridge = fault == Fault::Bridge
                    && bridge.is_some_and(|bridge| bridge == source || bridge == target);
                let is_spared = is_one_way && side.contains(&source) == inward;
                if crosses && !is_bridge && !is_spared {
                    self.network.cut(source, target);
                }
            }
        }
        self.wait_millis(200, 3_000).await;
        self.network.heal();
    }

    /// The machine and handle of a shard's leader, if there is one.
    fn leader(&self, shard: ShardId) -> Option<(Arc<Machine>, Shard)> {
        self.machines().iter().find_map(|machine| {
            let handle = machine.node()?.shard(shard)?.clone();
            handle.is_writable().then(|| (Arc::clone(machine), handle))
        })
    }

    /// Leadership goes somewhere, in one of three ways: and that is it; and who had it hears of nothing
    /// any more; and it comes back at once.
    async fn transfer(&self) {
        let shard = self.any_shard();
        let Some((first, handle)) = self.leader(shard) else {
            return;
        };
        let way = self.below(3);
        let voters = handle.status().voters;
        let others: Vec<_> = voters
            .into_iter()
            .filter(|voter| *voter != first.id())
            .collect();
        let at = usize::try_from(self.below(others.len().max(1) as u64)).unwrap_or(0);
        let Some(target) = others.get(at).copied() else {
            return;
        };
        self.hand_over(&first, handle, target);
        match way {
            0 => self.wait_millis(50, 500).await,
            1 => {
                self.wait_millis(0, 15).await;
                for other in self.machines() {
                    self.network.cut(other.number, first.number);
                }
                self.wait_millis(300, 1_000).await;
                self.network.heal();
            }
            _ => {
                for _ in 0..100 {
                    self.wait_millis(1, 3).await;
                    let Some((second, handle)) = self.leader_beside(shard, &first) else {
                        continue;
                    };
                    self.wait_millis(5, 60).await;
                    self.hand_over(&second, handle, first.id());
                    break;
                }
                self.wait_millis(50, 300).await;
            }
        }
    }

    /// Whoever leads a shard besides this machine.
    fn leader_beside(&self, shard: ShardId, other: &Machine) -> Option<(Arc<Machine>, Shard)> {
        self.machines().iter().find_map(|machine| {
            let handle = machine.node()?.shard(shard)?.clone();
            let leads = machine.number != other.number && handle.is_writable();
            leads.then(|| (Arc::clone(machine), handle))
        })
    }

    fn hand_over(&self, machine: &Arc<Machine>, shard: Shard, target: NodeId) {
        let deadline = machine.clock.now() + STEP_PATIENCE;
        self.shared.executor.spawn_on(machine.number, async move {
            drop(shard.transfer_leadership(target, deadline).await);
        });
    }

    /// A machine loses everything and comes back as another; the others stay, so that a quorum of
    /// disks remembers what was acknowledged.
    async fn replace(&self) {
        if self.replacing.lock().is_none() {
            if !self.machines().iter().all(|machine| machine.is_up()) {
                return;
            }
            let machine = self.victim();
            let old = machine.id();
            machine.crash(CrashLoss::Everything);
            machine.wipe();
            machine.start(Formation::Join);
            *self.replacing.lock() = Some(Replacement {
                machine: machine.number,
                old,
                new: machine.id(),
            });
        }
        for _ in 0..20 {
            if self.go_on_replacing().await {
                return;
            }
            self.wait_millis(50, 300).await;
            if self.shared.stop.load(Ordering::SeqCst) {
                return;
            }
        }
    }

    /// Takes the next step of a replacement in each shard; whether none is left.
    pub(crate) async fn go_on_replacing(&self) -> bool {
        let Some(replacement) = *self.replacing.lock() else {
            return true;
        };
        let mut is_done = true;
        for number in 0..SHARDS {
            is_done &= self.replace_in(ShardId::new(number), replacement).await;
        }
        if is_done {
            *self.replacing.lock() = None;
        }
        is_done
    }

    async fn replace_in(&self, shard: ShardId, replacement: Replacement) -> bool {
        let Replacement { old, new, .. } = replacement;
        let Some((machine, handle)) = self.leader(shard) else {
            return false;
        };
        let status = handle.status();
        let deadline = machine.clock.now() + STEP_PATIENCE;
        let is_voter = status.voters.contains(&new);
        let is_learner = status.learners.contains(&new);
        let has_old = status.voters.contains(&old) || status.learners.contains(&old);
        if is_voter && !has_old {
            return true;
        }
        let mut voters: BTreeSet<NodeId> = status.voters.iter().copied().collect();
        let (done, answer) = tokio::sync::oneshot::channel();
        self.shared.executor.spawn_on(machine.number, async move {
            let result: Result<(), MembershipError> = if !is_voter && !is_learner {
                handle.add_learner(new, deadline).await
            } else if !is_voter {
                let mut replication = status.replication.iter();
                let there = replication.find(|(node, _)| *node == new);
                let has_caught_up =
                    there.is_some_and(|(_, index)| status.last.get() <= index.get() + 8);
                if has_caught_up {
                    voters.remove(&old);
                    voters.insert(new);
                    handle.change_voters(voters, deadline).await
                } else {
                    Ok(())
                }
            } else {
                handle.remove_learner(old, deadline).await
            };
            drop(done.send(result));
        });
        drop(answer.await);
        false
    }

    /// Which machine is being replaced.
    pub(crate) fn replaced(&self) -> Option<usize> {
        self.replacing.lock().map(|replacement| replacement.machine)
    }

    /// Cuts the power of all machines. They go on with what is on their disks, as after `--accept-loss`,
    /// but for one that led: its disk is gone, and with it what it alone had synced. `down` is called
    /// while none runs.
    pub(crate) async fn cut_power(&self, down: impl FnOnce()) {
        let loss = if self.below(2) == 0 {
            CrashLoss::Everything
        } else {
            CrashLoss::Random
        };
        let shard = self.any_shard();
        let leader = self.leader(shard).map(|(machine, _)| machine);
        let lost = leader.unwrap_or_else(|| self.victim());
        let old = lost.id();
        for machine in self.machines() {
            machine.crash(loss);
        }
        down();
        lost.wipe();
        *self.replacing.lock() = Some(Replacement {
            machine: lost.number,
            old,
            new: lost.id(),
        });
        for machine in self.machines() {
            machine.start(Formation::Join);
        }
        // Two of three carry on without a spare until this is done.
        while !self.go_on_replacing().await && !self.shared.stop.load(Ordering::SeqCst) {
            self.wait_millis(50, 300).await;
        }
    }

    /// Steps all wall clocks, until everything is healed.
    pub(crate) fn step_clocks(&self) {
        for machine in self.machines() {
            machine.clock.set_step_millis(60_000);
        }
    }

    /// Ends everything that is wrong.
    pub(crate) fn heal(&self) {
        self.network.heal();
        self.network.set_weather(Weather::FAIR);
        for machine in self.machines() {
            self.shared.executor.resume(machine.number);
            machine.set_sync_time(SyncTime::QUICK);
            machine.fail_sync(u64::MAX);
            machine.clock.set_step_millis(0);
        }
    }
}

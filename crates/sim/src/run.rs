//! One run: a cluster is made, worked on, broken, healed, and judged.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use flux_env::{CrashLoss, enter_world};
use flux_history::{Action, Demands, History, Options, Outcome, check};
use flux_log::FsyncPolicy;
use flux_raft::{Formation, Shard};
use flux_types::bug::{self, Bug};
use flux_types::{NodeId, ShardId};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::changes::{self, Changes};
use crate::client::{Client, Phase, Shared, Subject};
use crate::executor::{Bounds, Executor, OUTSIDE, Stalls, Stuck, sleep};
use crate::failure::Failure;
use crate::faults::{Fault, Nemesis};
use crate::machine::{Character, Machine, SHARDS};
use crate::moves::Moves;
use crate::network::SimNetwork;
use crate::splits::Splits;
use crate::watched::Watched;

/// By how much wall clocks differ from true time, at most.
const OFFSET_MILLIS_MAX: u64 = 200;
/// By how much monotonic clocks run faster or slower, at most. Rule 8's lease bears 1 : 0.7.
const DRIFT_PPM_MAX: u64 = 120_000;
/// How long the cluster may take to be whole again once everything is healed.
pub(crate) const HEAL_MAX: Duration = Duration::from_secs(60);

/// Simulated time beside the phases of a run after which it hangs: everything in it has deadlines,
/// and all of them together are less.
const REST_MAX: Duration = Duration::from_secs(20 * 60);
/// Polls after which it hangs: some hundred times what a run takes.
const POLLS_MAX: u64 = 100_000_000;

/// How often a key may be asked for once the cluster is whole.
const READS_MAX: u32 = 10;

/// What to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Everything follows from it.
    pub seed: u64,
    /// Machines.
    pub nodes: usize,
    /// Whether shards move: among five machines, of which three carry each. Drawn unless it is said.
    pub moves: Option<bool>,
    /// Whether shards are split. Drawn unless it is said.
    pub splits: Option<bool>,
    /// A bug to be found.
    pub bug: Option<Bug>,
    /// How long faults go on while keys without deadlines are worked on.
    pub lasting: Duration,
    /// And then keys with deadlines.
    pub expiring: Duration,
}

impl Plan {
    /// A run of the usual length.
    #[must_use]
    pub const fn new(seed: u64, nodes: usize) -> Self {
        Self {
            seed,
            nodes,
            moves: None,
            splits: None,
            bug: None,
            lasting: Duration::from_secs(12),
            expiring: Duration::from_secs(4),
        }
    }
}

/// What a run was.
#[derive(Clone, Debug)]
pub struct Report {
    /// What was run.
    pub plan: Plan,
    /// Hash of everything that happened: equal for equal seeds.
    pub hash: u64,
    /// Operations called.
    pub called: usize,
    /// Of them, completed.
    pub completed: usize,
    /// Of them, unknown.
    pub unknown: usize,
    /// Reads that found a value.
    pub values_read: usize,
    /// How often leadership of some shard moved.
    pub leaders: usize,
    /// Faults by kind.
    pub faults: BTreeMap<Fault, u64>,
    /// Messages that arrived, were lost, arrived a second time.
    pub messages: (u64, u64, u64),
    /// Simulated time, in milliseconds.
    pub simulated_millis: u64,
    /// Events that readers of changes were told, repeated ones included.
    pub events: u64,
    /// How often a machine forgot a shard that it had given away.
    pub forgotten: u64,
    /// How many shards there were in the end.
    pub shards: u32,
    /// Whether acknowledged writes could be lost, so that what clients saw is not judged.
    pub is_relaxed: bool,
    /// Polls of tasks.
    pub polls: u64,
    /// What clients saw.
    pub histories: [History; 2],
    /// Where every replica stood at the end.
    pub replicas: Vec<String>,
    /// Why it is no good.
    pub failure: Option<Failure>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults: u64 = self.faults.values().sum();
        write!(
            f,
            "seed {}: {} nodes, {} operations ({} completed, {} unknown, {} values read), {} faults, \
             {} changes of leader, {} messages ({} lost, {} twice), {} events, {} forgotten, {} shards, {} s simulated, hash {:016x}{}",
            self.plan.seed,
            self.plan.nodes,
            self.called,
            self.completed,
            self.unknown,
            self.values_read,
            faults,
            self.leaders,
            self.messages.0,
            self.messages.1,
            self.messages.2,
            self.events,
            self.forgotten,
            self.shards,
            self.simulated_millis / 1000,
            self.hash,
            if self.is_relaxed {
                ", relaxed: what clients saw is not judged"
            } else {
                ""
            }
        )
    }
}

/// How long batches are kept between their evaluation and their proposal, one of five kinds of runs;
/// and whether clients then ask others soon: whoever waits for such a batch has no part in what happens
/// meanwhile.
const fn drawn_stalls(kind: u64) -> (Stalls, bool) {
    let (one_in, millis_max, is_impatient) = match kind {
        0 => (400, 400, false),
        1 => (40, 400, false),
        2 => (100, 1_000, true),
        _ => (0, 0, false),
    };
    let micros_max = millis_max * 1_000;
    (Stalls { one_in, micros_max }, is_impatient)
}

/// By how much clocks may drift, one of three kinds of runs.
fn drawn_drift(kind: u64) -> u64 {
    let bounds = [0, 1_000, DRIFT_PPM_MAX];
    let bound = bounds.get(usize::try_from(kind).unwrap_or(0));
    bound.copied().unwrap_or(0)
}

/// The readers of changes of a run that has any, to which every machine publishes.
fn readers(has_readers: bool, shared: &Arc<Shared>) -> Option<Arc<Changes>> {
    let changes = has_readers.then(|| Changes::new(shared));
    for (machine, changes) in shared.machines.iter().zip(changes.iter().cycle()) {
        machine.publish_to(changes);
    }
    changes
}

struct Cluster {
    executor: Arc<Executor>,
    network: SimNetwork,
    machines: Vec<Arc<Machine>>,
    shared: Arc<Shared>,
    nemesis: Nemesis,
    watched: Arc<Mutex<Watched>>,
    /// In runs that have readers of changes.
    changes: Option<Arc<Changes>>,
    /// In runs whose shards move.
    moves: Option<Arc<Moves>>,
    /// In runs whose shards are split.
    splits: Option<Arc<Splits>>,
    plan: Plan,
}

/// Runs a plan.
#[must_use]
pub fn run(plan: Plan) -> Report {
    run_and_look(plan, |_| ()).0
}

/// Runs a plan, and looks at its cluster at the end, before it is gone.
fn run_and_look<T>(plan: Plan, look: impl FnOnce(&Cluster) -> T) -> (Report, T) {
    flux_raft::set_abort_hook(|| ());
    bug::switch(plan.bug);
    let executor = Executor::new(plan.seed);
    let _entered = enter_world(Arc::clone(&executor) as Arc<dyn flux_env::World>);
    let cluster = Cluster::new(&executor, plan);
    let outcome = Arc::new(Mutex::new(None));
    let is_done = Arc::new(AtomicBool::new(false));
    let (result, flag) = (Arc::clone(&outcome), Arc::clone(&is_done));
    let cluster = Arc::new(cluster);
    let playing = Arc::clone(&cluster);
    executor.spawn_on(OUTSIDE, async move {
        *result.lock() = playing.play().await.err();
        flag.store(true, Ordering::SeqCst);
    });
    let ended = cluster.run_until(|| is_done.load(Ordering::SeqCst));
    let mut failure = cluster.watched.lock().failure.take();
    failure = failure.or_else(|| cluster.shared.complaint.lock().take());
    failure = failure.or_else(|| ended.err().map(Failure::Stuck));
    failure = failure.or_else(|| outcome.lock().take());
    let report = cluster.report(failure);
    let seen = look(&cluster);
    for machine in &cluster.machines {
        machine.crash(CrashLoss::Nothing);
        machine.retire();
    }
    executor.clear();
    bug::switch(None);
    (report, seen)
}

impl Cluster {
    fn new(executor: &Arc<Executor>, plan: Plan) -> Self {
        let network = SimNetwork::new(Arc::clone(executor));
        let below = |bound| executor.below(bound);
        let signed = |bound: u64| {
            let drawn = i64::try_from(below(2 * bound + 1)).unwrap_or(0);
            drawn - i64::try_from(bound).unwrap_or(0)
        };
        let drift_max = drawn_drift(below(3));
        let (stalls, is_impatient) = drawn_stalls(below(5));
        executor.set_stalls(stalls);
        let snapshot_log_bytes = 500 + below(8_000);
        let batch_operations_max = if below(4) == 0 { 2 } else { 64 };
        // With five, some of those who keep their disks could go on without the others.
        let is_relaxed = below(8) == 0 && plan.nodes == 3;
        let is_drawn = below(2) == 0;
        let does_move = plan.nodes == 5 && plan.moves.unwrap_or(is_drawn);
        let moves = does_move.then(|| Moves::new(executor, plan.nodes));
        let is_drawn = below(3) == 0;
        let is_split = plan.splits.unwrap_or(is_drawn) && !is_relaxed;
        let splits = is_split.then(|| Splits::new(executor, moves.clone()));
        // A reader follows a shard neither to another machine nor to its halves.
        let has_readers = moves.is_none() && splits.is_none() && (below(2) == 0 || is_relaxed);
        let keeps_history = has_readers && below(4) != 0;
        let machines: Vec<_> = (0..plan.nodes)
            .map(|number| {
                let character = Character {
                    origin_nanos: below(1_000_000_000_000),
                    drift_ppm: signed(drift_max),
                    offset_millis: signed(OFFSET_MILLIS_MAX),
                    snapshot_log_bytes,
                    batch_operations_max,
                    keeps_history,
                    fsync: if is_relaxed {
                        FsyncPolicy::EverySecond
                    } else {
                        FsyncPolicy::Always
                    },
                };
                let kept = (moves.clone(), splits.clone());
                Machine::new(number, executor, &network, character, kept)
            })
            .collect();
        let mut enabled: Vec<Fault> = Fault::ALL
            .iter()
            .copied()
            .filter(|_| below(3) == 0)
            .filter(|fault| !is_relaxed || fault.keeps_disks())
            .filter(|fault| (moves.is_none() && splits.is_none()) || *fault != Fault::Replace)
            .filter(|fault| *fault != Fault::Move)
            .collect();
        // Twice: most of what else happens should happen to shards that move.
        enabled.extend(moves.iter().flat_map(|_| [Fault::Move; 2]));
        // Something must end a leader now and then, or nothing would be proved.
        if !enabled.contains(&Fault::Crash) {
            enabled.push(Fault::Crash);
        }
        // And leadership that moves without an end is what most rules are about.
        if !enabled.contains(&Fault::Transfer) && below(2) == 0 {
            enabled.push(Fault::Transfer);
        }
        // While a batch is kept, others should lead, and then again who keeps it.
        let more = if is_impatient { 3 } else { 0 };
        enabled.extend([Fault::Transfer; 3].iter().take(more));
        let shared = Shared::new(executor, &machines, is_relaxed, is_impatient);
        let changes = readers(has_readers, &shared);
        Self {
            nemesis: Nemesis::new(&shared, &network, enabled, moves.clone()),
            executor: Arc::clone(executor),
            network,
            machines,
            shared,
            watched: Arc::default(),
            changes,
            moves,
            splits,
            plan,
        }
    }

    /// Runs until it is done, or it is clear that the run is no good.
    fn run_until(&self, is_done: impl Fn() -> bool) -> Result<(), Stuck> {
        let bounds = Bounds {
            time: self.plan.lasting + self.plan.expiring + REST_MAX,
            polls: POLLS_MAX,
        };
        self.executor.run_until(bounds, || {
            is_done()
                || self.watched.lock().failure.is_some()
                || self.shared.complaint.lock().is_some()
        })
    }

    async fn pause(&self, duration: Duration) {
        sleep(&self.executor, duration).await;
    }

    async fn play(&self) -> Result<(), Failure> {
        self.form().await?;
        self.spawn_watch();
        self.spawn_supervisor();
        if self.shared.is_relaxed {
            self.spawn_power_cut();
        }
        if let Some(splits) = &self.splits {
            let wanting = Arc::clone(splits).want(self.plan.lasting);
            self.executor.spawn_on(OUTSIDE, wanting);
        }
        self.work(Phase::Lasting, self.plan.lasting).await;
        self.work(Phase::Expiring, self.plan.expiring).await;
        self.nemesis.heal();
        self.become_whole().await?;
        self.read_everything().await?;
        self.hear_everything().await?;
        self.become_whole().await
    }

    /// Waits until the broker has every change, and looks whether they are right.
    async fn hear_everything(&self) -> Result<(), Failure> {
        let Some(changes) = self.changes.as_ref().filter(|_| !self.shared.is_relaxed) else {
            return Ok(());
        };
        let recorders = [&self.shared.lasting, &self.shared.expiring];
        let histories = recorders.map(|recorder| recorder.lock().clone().history());
        let missing = || {
            histories
                .iter()
                .find_map(|history| changes.missing(history))
        };
        if let Err(Failure::NotWhole { missing }) = self.eventually(missing).await {
            let (shard, what) = (
                ShardId::new(0),
                format!("in vain is waited until {missing}"),
            );
            return Err(Failure::Changes { shard, what });
        }
        // Increments and deletes are in no list of what is missing: the last of them too.
        self.pause(Duration::from_millis(500)).await;
        let nodes = self.machines.iter().filter_map(|machine| machine.node());
        let shards: Vec<Shard> = nodes.take(1).flat_map(|node| node.shards).collect();
        let mut histories = histories.iter();
        histories.try_for_each(|history| changes.judge(history, &shards))
    }

    /// All machines begin every shard with the same voters: all of them, or those that carry it.
    async fn form(&self) -> Result<(), Failure> {
        let ids: BTreeSet<NodeId> = self.machines.iter().map(|machine| machine.id()).collect();
        for machine in &self.machines {
            match &self.moves {
                Some(moves) => machine.begin(moves.formations(machine.id())),
                None => machine.start(Formation::Members(ids.clone())),
            }
        }
        self.eventually(|| {
            let is_led = |number| {
                self.machines.iter().any(|machine| {
                    let node = machine.node();
                    node.and_then(|node| node.shard(ShardId::new(number)).cloned())
                        .is_some_and(|shard| shard.is_writable())
                })
            };
            (!(0..SHARDS).all(is_led)).then(|| "every shard is led".to_owned())
        })
        .await
    }

    /// Clients work while things break.
    async fn work(&self, phase: Phase, duration: Duration) {
        const CLIENTS: u64 = 8;
        self.shared.stop.store(false, Ordering::SeqCst);
        let think_micros = 2_000 + self.executor.below(30_000);
        let mut running = Vec::new();
        for number in 0..CLIENTS {
            let client = Client::new(number, &self.shared, phase, think_micros);
            running.push(self.spawn(client.run()));
        }
        if phase == Phase::Lasting {
            let prober = Client::new(CLIENTS, &self.shared, phase, 1);
            running.push(self.spawn(prober.probe()));
        }
        // Who reads changes has them synced, and then they cannot be lost.
        let watched = self.changes.iter().filter(|_| !self.shared.is_relaxed);
        for watcher in watched.flat_map(changes::spawn_watchers) {
            running.push(self.spawn(watcher));
        }
        self.pause(Duration::from_millis(500)).await;
        let kind = self.executor.below(4);
        if phase == Phase::Expiring && kind < 2 {
            // After a step of the clock nobody sweeps: what has expired is met by reads.
            self.nemesis.step_clocks();
            self.shared.has_rounds.store(kind == 0, Ordering::SeqCst);
        }
        // Two things may be wrong at once.
        for _ in 0..2 {
            running.push(self.spawn(self.nemesis.clone().run(phase)));
        }
        self.pause(duration).await;
        if phase == Phase::Lasting {
            self.wait_for_enough(duration).await;
        }
        self.shared.stop.store(true, Ordering::SeqCst);
        for ended in running {
            let _ = ended.await.is_ok();
        }
    }

    /// Where so much went wrong that little was done, a run goes on for up to as long again.
    async fn wait_for_enough(&self, time_max: Duration) {
        let until = self.executor.true_nanos() + u64::try_from(time_max.as_nanos()).unwrap_or(0);
        let is_enough = || {
            let lasting = self.shared.lasting.lock().clone().history();
            lasting.meets(&self.demands()).is_ok()
        };
        while self.executor.true_nanos() < until && !is_enough() {
            self.pause(Duration::from_millis(250)).await;
        }
    }

    /// Runs something beside; the answer errs once it has ended.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> oneshot::Receiver<()> {
        let (done, ended) = oneshot::channel();
        self.executor.spawn_on(OUTSIDE, async move {
            task.await;
            drop(done);
        });
        ended
    }

    /// Starts again whatever ended by itself after a failed sync.
    fn spawn_supervisor(&self) {
        let (executor, machines) = (Arc::clone(&self.executor), self.machines.clone());
        let watched = Arc::clone(&self.watched);
        self.executor.spawn_on(OUTSIDE, async move {
            loop {
                sleep(&executor, Duration::from_millis(20)).await;
                for machine in &machines {
                    let Some(reason) = machine.failure() else {
                        continue;
                    };
                    // A failed sync must end the process; everything else must not happen.
                    if !reason.contains("injected failure") {
                        let node = machine.number;
                        let failure = Failure::Node { node, reason };
                        watched.lock().failure.get_or_insert(failure);
                    }
                    machine.crash(CrashLoss::Random);
                    machine.start(Formation::Join);
                }
            }
        });
    }

    /// Cuts the power of all machines, some time in the middle of the work.
    fn spawn_power_cut(&self) {
        let millis = u64::try_from(self.plan.lasting.as_millis()).unwrap_or(0);
        let wait = Duration::from_millis(millis / 4 + self.executor.below(millis / 2));
        let (executor, nemesis) = (Arc::clone(&self.executor), self.nemesis.clone());
        let watched = Arc::clone(&self.watched);
        self.executor.spawn_on(OUTSIDE, async move {
            sleep(&executor, wait).await;
            // What was applied and is lost must not be held against what comes instead.
            let forget = || watched.lock().digests.clear();
            nemesis.cut_power(forget).await;
        });
    }

    fn spawn_watch(&self) {
        let (executor, machines) = (Arc::clone(&self.executor), self.machines.clone());
        let network = self.network.clone();
        let (watched, shared) = (Arc::clone(&self.watched), Arc::clone(&self.shared));
        self.executor.spawn_on(OUTSIDE, async move {
            loop {
                sleep(&executor, Duration::from_millis(7)).await;
                let mut watched = watched.lock();
                let mut leading = BTreeMap::new();
                for machine in &machines {
                    let node = machine.node();
                    for shard in node.iter().flat_map(|node| &node.shards) {
                        let status = shard.status();
                        if status.role == flux_raft::Role::Leader {
                            leading.insert((shard.id(), status.term.get()), machine.number);
                        }
                        watched.look_at(shard, &status);
                        watched.look_at_vote(shard, status.node, &network);
                    }
                }
                *shared.leading.lock() = leading;
            }
        });
    }

    /// Waits until nothing is missing.
    async fn eventually(&self, missing: impl Fn() -> Option<String>) -> Result<(), Failure> {
        let until = self.executor.true_nanos() + u64::try_from(HEAL_MAX.as_nanos()).unwrap_or(0);
        loop {
            let Some(missing) = missing() else {
                return Ok(());
            };
            if until < self.executor.true_nanos() {
                return Err(Failure::NotWhole { missing });
            }
            self.pause(Duration::from_millis(10)).await;
        }
    }

    /// Waits until every shard has a leader and all replicas have applied the same.
    async fn become_whole(&self) -> Result<(), Failure> {
        for machine in &self.machines {
            machine.start(Formation::Join);
        }
        let until = self.executor.true_nanos() + u64::try_from(HEAL_MAX.as_nanos()).unwrap_or(0);
        while !self.nemesis.go_on_replacing().await {
            if until < self.executor.true_nanos() {
                let missing = format!("machine {:?} is replaced", self.nemesis.replaced());
                return Err(Failure::NotWhole { missing });
            }
            self.pause(Duration::from_millis(50)).await;
        }
        if let Some(moves) = &self.moves {
            let missing = || moves.missing(self.shards(), &self.machines);
            self.eventually(missing).await?;
            return moves.judge(&self.machines);
        }
        self.eventually(|| self.missing()).await?;
        for number in 0..self.shards() {
            let mut digests = BTreeSet::new();
            let mut index = 0;
            for machine in &self.machines {
                let node = machine.node();
                let shard = node
                    .as_ref()
                    .and_then(|node| node.shard(ShardId::new(number)));
                if let Some(shard) = shard {
                    index = shard.status().applied.get();
                    digests.insert(shard.store().digest());
                }
            }
            if digests.len() != 1 {
                return Err(Failure::Diverged {
                    shard: ShardId::new(number),
                    index,
                });
            }
        }
        Ok(())
    }

    /// How many shards there are to be.
    fn shards(&self) -> u32 {
        let splits = self.splits.as_ref();
        splits.map_or(SHARDS, |splits| splits.wanted())
    }

    fn missing(&self) -> Option<String> {
        for number in 0..self.shards() {
            let mut applied = BTreeSet::new();
            let mut leaders = 0;
            for machine in &self.machines {
                let Some(node) = machine.node() else {
                    return Some(format!("machine {} runs", machine.number));
                };
                let Some(shard) = node.shard(ShardId::new(number)) else {
                    return Some(format!("machine {} has shard {number}", machine.number));
                };
                let status = shard.status();
                applied.insert((status.applied, status.last));
                leaders += usize::from(status.is_writable);
            }
            let same = applied.iter().next().filter(|_| applied.len() == 1);
            if leaders != 1 || same.is_none_or(|(applied, last)| applied != last) {
                return Some(format!(
                    "shard {number} has one leader ({leaders}) and one state ({applied:?})"
                ));
            }
        }
        None
    }

    /// Reads every key once more, so that what was acknowledged and then lost is seen.
    async fn read_everything(&self) -> Result<(), Failure> {
        for phase in [Phase::Lasting, Phase::Expiring] {
            let mut client = Client::new(99, &self.shared, phase, 1);
            for subject in Subject::all(phase) {
                let mut outcome = Outcome::Unknown;
                // Leadership may still move once or twice.
                for _ in 0..READS_MAX {
                    if matches!(outcome, Outcome::Failed | Outcome::Unknown) {
                        outcome = client.perform(subject, Action::Get).await;
                    }
                }
                if matches!(outcome, Outcome::Failed | Outcome::Unknown) {
                    return Err(Failure::NotWhole {
                        missing: format!("{subject:?} can be read"),
                    });
                }
            }
        }
        Ok(())
    }

    fn report(&self, failure: Option<Failure>) -> Report {
        let lasting = self.shared.lasting.lock().clone().history();
        let expiring = self.shared.expiring.lock().clone().history();
        let leaders = self.watched.lock().leaders.len();
        let failure = failure.or_else(|| self.judge(&lasting, &expiring, leaders).err());
        let summaries = [lasting.summary(), expiring.summary()];
        let sum = |part: fn(&flux_history::Summary) -> usize| summaries.iter().map(part).sum();
        let counts = &self.network.counts;
        Report {
            plan: self.plan,
            hash: self.executor.hash(),
            called: sum(|summary| summary.called),
            completed: sum(|summary| summary.completed),
            unknown: sum(|summary| summary.unknown),
            values_read: sum(|summary| summary.values_read),
            leaders,
            faults: self.nemesis.counts.lock().clone(),
            messages: (
                counts.sent.load(Ordering::Relaxed),
                counts.lost.load(Ordering::Relaxed),
                counts.twice.load(Ordering::Relaxed),
            ),
            simulated_millis: self.executor.true_nanos() / 1_000_000,
            polls: self.executor.polls(),
            is_relaxed: self.shared.is_relaxed,
            events: self.changes.as_ref().map_or(0, |changes| changes.events()),
            forgotten: self.moves.as_ref().map_or(0, |moves| moves.forgotten()),
            shards: self.shards(),
            histories: [lasting, expiring],
            replicas: self.replicas(),
            failure,
        }
    }

    fn replicas(&self) -> Vec<String> {
        let mut replicas = Vec::new();
        for machine in &self.machines {
            let Some(node) = machine.node() else {
                replicas.push(format!("machine {} is down", machine.number));
                continue;
            };
            for shard in &node.shards {
                let status = shard.status();
                let log = shard.log().state();
                replicas.push(format!(
                    "machine {} shard {}: {} of term {}, last {}, committed {}, applied {} ({:?}), snapshot {}, \
                     purged {}; log from {:?} to {:?}, committed {:?}, flushed {:?}",
                    machine.number,
                    shard.id(),
                    status.role,
                    status.term,
                    status.last,
                    status.committed,
                    status.applied,
                    shard.applied(),
                    status.snapshot,
                    status.purged,
                    log.purged,
                    log.last,
                    log.committed,
                    log.flushed,
                ));
            }
        }
        replicas
    }

    /// What must happen for a verdict, by how long a run is meant to be.
    fn demands(&self) -> Demands {
        let seconds = usize::try_from(self.plan.lasting.as_secs()).unwrap_or(0);
        Demands {
            // A shard that moves has fewer machines, and clients look for it longer.
            completed_min: if self.moves.is_some() { 15 } else { 25 } * seconds,
            values_read_min: 5 * seconds,
            overlapping_min: 1,
            unknown_percent_max: 20,
        }
    }

    fn judge(&self, lasting: &History, expiring: &History, leaders: usize) -> Result<(), Failure> {
        if !self.shared.is_relaxed {
            check(lasting, &Options::default())?;
        }
        check(
            expiring,
            &Options {
                clock_error_nanos: (2 * OFFSET_MILLIS_MAX + 2) * 1_000_000,
                ..Options::default()
            },
        )?;
        lasting.meets(&self.demands())?;
        // The founder of each shard leads first; some other must have after it.
        if leaders <= usize::try_from(SHARDS).unwrap_or(0) {
            return Err(Failure::Calm);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Weak;

    use super::*;

    /// Campaigns make thousands of runs in one process.
    #[test]
    fn nothing_of_a_run_stays_behind() {
        let mut kinds = BTreeSet::new();
        for seed in 1..9 {
            let plan = Plan {
                lasting: Duration::from_secs(2),
                expiring: Duration::from_secs(1),
                ..Plan::new(seed, if seed == 4 { 5 } else { 3 })
            };
            let (_, (kind, executor, shared, machines, stores)) = run_and_look(plan, |cluster| {
                let machines = cluster.machines.iter();
                let nodes = machines.clone().filter_map(|machine| machine.node());
                let shards = nodes.flat_map(|node| node.shards);
                let stores: Vec<_> = shards.map(|it| Arc::downgrade(it.store())).collect();
                (
                    (cluster.changes.is_some(), cluster.moves.is_some()),
                    Arc::downgrade(&cluster.executor),
                    Arc::downgrade(&cluster.shared),
                    machines.map(Arc::downgrade).collect::<Vec<_>>(),
                    stores,
                )
            });
            let held = [
                Weak::strong_count(&executor),
                Weak::strong_count(&shared),
                machines.iter().map(Weak::strong_count).sum(),
                stores.iter().map(Weak::strong_count).sum(),
            ];
            assert_eq!(
                held, [0; 4],
                "seed {seed}: world, clients, machines, stores"
            );
            assert!(!stores.is_empty());
            kinds.insert(kind);
        }
        assert!(1 < kinds.len(), "with and without readers of changes");
    }
}

//! A machine of the cluster: a disk that outlives the process, a clock, and a node that may run.
//!
//! The node is the real log, store and shards; what is simulated is below them (disk, clock, network)
//! and around them: [`Machine::answer`] stands for a server's session and does what one does, in the
//! same order.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::iter::repeat;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use flux_env::{Clock, CrashLoss, Disk, SeededRng, SimDisk};
use flux_log::{FsyncPolicy, Log, LogConfig, Retention, Seeds};
use flux_raft::{Formation, Shard, ShardConfig, ShardParts, Submission, Timings};
use flux_store::{Read, Store, StoreConfig};
use flux_types::bug::{self, Bug};
use flux_types::{Answer, ClusterId, Command, Error, ErrorCode, NodeId, Reply, ShardId, Term};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use crate::changes::{self, Changes};
use crate::clock::NodeClock;
use crate::executor::{Executor, Pace, sleep};
use crate::moves::{self, Moves};
use crate::network::SimNetwork;
use crate::splits::{self, Midwife, Splits};

/// The only cluster there is.
pub(crate) const CLUSTER: ClusterId = ClusterId::new(1);

/// Shards of every node; they share its log.
pub(crate) const SHARDS: u32 = 2;

/// Small enough that segments, snapshots and purges come often.
const SEGMENT_BYTES: u64 = 64 * 1024;

/// More than a run writes.
const HISTORY: Retention = Retention {
    bytes_max: 64 * 1024 * 1024,
    age_max_ms: 3_600_000,
    pinned_bytes_max: 64 * 1024 * 1024,
    settle_ms: 60_000,
};

/// A node while its process lives.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) shards: Vec<Shard>,
}

impl Node {
    pub(crate) fn shard(&self, shard: ShardId) -> Option<&Shard> {
        self.shards.iter().find(|known| known.id() == shard)
    }
}

/// How long a session's thread may have to wait for a processor, in microseconds.
const MICROS_KEPT_MAX: u64 = 400_000;

/// How long a sync takes, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SyncTime {
    pub(crate) micros_min: u64,
    pub(crate) micros_max: u64,
}

impl SyncTime {
    pub(crate) const QUICK: Self = Self {
        micros_min: 50,
        micros_max: 2_000,
    };
    pub(crate) const SLOW: Self = Self {
        micros_min: 20_000,
        micros_max: 400_000,
    };
}

/// What a run draws for a machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Character {
    pub(crate) origin_nanos: u64,
    pub(crate) drift_ppm: i64,
    pub(crate) offset_millis: i64,
    pub(crate) snapshot_log_bytes: u64,
    pub(crate) batch_operations_max: usize,
    /// Whether log is kept for readers of changes beyond what replication needs.
    pub(crate) keeps_history: bool,
    pub(crate) fsync: FsyncPolicy,
}

/// See the module.
pub(crate) struct Machine {
    pub(crate) number: usize,
    pub(crate) executor: Arc<Executor>,
    pub(crate) network: SimNetwork,
    pub(crate) clock: Arc<NodeClock>,
    pub(crate) character: Character,
    /// In runs whose shards move.
    pub(crate) moves: Option<Arc<Moves>>,
    /// In runs whose shards are split.
    pub(crate) splits: Option<Arc<Splits>>,
    state: Mutex<State>,
}

struct State {
    id: NodeId,
    disk: SimDisk,
    sync_time: SyncTime,
    /// The log of its process, while that lives.
    log: Option<Log>,
    node: Option<Node>,
    /// Whether its process was started and not ended since.
    is_started: bool,
    /// How many shards its process has begun to start.
    begun: u32,
    /// Shards that splits which its process has applied told of.
    born: BTreeSet<ShardId>,
    /// Which boot of the machine this is.
    boot: u128,
    /// Why the node could not start, or had to end.
    failure: Option<String>,
    /// Where changes go, in runs that have readers of them.
    changes: Option<Arc<Changes>>,
    /// What its threads lately saw at lease gates, and when ([`Bug::GateBeforeRead`]).
    looks: VecDeque<(u64, ShardId, Option<Term>)>,
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine")
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}

impl Machine {
    pub(crate) fn new(
        number: usize,
        executor: &Arc<Executor>,
        network: &SimNetwork,
        character: Character,
        (moves, splits): (Option<Arc<Moves>>, Option<Arc<Splits>>),
    ) -> Arc<Self> {
        executor.set_pace(
            number,
            Pace {
                origin_nanos: character.origin_nanos,
                drift_ppm: character.drift_ppm,
            },
        );
        Arc::new(Self {
            number,
            executor: Arc::clone(executor),
            network: network.clone(),
            clock: Arc::new(NodeClock::new(
                Arc::clone(executor),
                number,
                character.offset_millis,
            )),
            character,
            moves,
            splits,
            state: Mutex::new(State {
                id: incarnation(number, 1),
                disk: SimDisk::new(),
                sync_time: SyncTime::QUICK,
                log: None,
                node: None,
                is_started: false,
                begun: 0,
                born: BTreeSet::new(),
                boot: 1,
                failure: None,
                changes: None,
                looks: VecDeque::new(),
            }),
        })
    }

    /// From now on every process of this machine publishes changes.
    pub(crate) fn publish_to(&self, changes: &Arc<Changes>) {
        self.state.lock().changes = Some(Arc::clone(changes));
    }

    /// The id of its present incarnation.
    pub(crate) fn id(&self) -> NodeId {
        self.state.lock().id
    }

    /// The node, if it runs.
    pub(crate) fn node(&self) -> Option<Node> {
        self.state.lock().node.clone()
    }

    /// The shards of the node, if it runs.
    pub(crate) fn shards(&self) -> Vec<Shard> {
        self.node().map_or_else(Vec::new, |node| node.shards)
    }

    /// Whether its process has been started and not ended.
    pub(crate) fn is_up(&self) -> bool {
        self.state.lock().node.is_some()
    }

    /// Whether a failed sync has poisoned its log, so that its process must end.
    pub(crate) fn is_ending(&self) -> bool {
        let state = self.state.lock();
        let reason = state.log.as_ref().and_then(Log::poison_reason);
        reason.is_some_and(|reason| reason.contains("injected failure"))
    }

    pub(crate) fn failure(&self) -> Option<String> {
        self.state.lock().failure.clone()
    }

    pub(crate) fn set_sync_time(&self, sync_time: SyncTime) {
        self.state.lock().sync_time = sync_time;
    }

    /// Lets the next but `after` sync of its disk fail.
    pub(crate) fn fail_sync(&self, after: u64) {
        self.state.lock().disk.fail_sync_after(after);
    }

    /// The machine is of no use any more: it holds nobody who holds it.
    pub(crate) fn retire(&self) {
        self.state.lock().changes = None;
    }

    /// Ends the process wherever it is, and lets the disk lose what `loss` says.
    pub(crate) fn crash(&self, loss: CrashLoss) {
        let seed = self.executor.below(u64::MAX);
        self.network.detach(self.number);
        if let Some(moves) = &self.moves {
            moves.is_down(self.id());
        }
        let (log, node) = {
            let mut state = self.state.lock();
            (state.log.take(), state.node.take())
        };
        self.executor.kill(self.number);
        drop((log, node));
        let mut state = self.state.lock();
        state.is_started = false;
        state.begun = 0;
        state.born.clear();
        state.failure = None;
        state.looks.clear();
        if loss != CrashLoss::Nothing {
            // Only a power cut loses what was written, and it is another boot.
            state.boot += 1;
        }
        state.disk.crash(loss, &mut SeededRng::new(seed));
    }

    /// The snapshots of a shard on its disk.
    pub(crate) fn snapshots(&self, shard: ShardId) -> usize {
        let disk = self.state.lock().disk.clone();
        let names = disk.read_dir(Path::new("/data/snap")).unwrap_or_default();
        let prefix = format!("{:08x}-", shard.get());
        let of_shard = |name: &&String| name.starts_with(&prefix) && name.ends_with(".fsnap");
        names.iter().filter(of_shard).count()
    }

    /// Loses the disk; what comes back is another incarnation.
    pub(crate) fn wipe(&self) {
        let mut state = self.state.lock();
        let next = state.id.incarnation() + 1;
        state.id = incarnation(self.number, next);
        state.disk = SimDisk::new();
    }

    /// Starts the process, unless somebody has. It runs when [`Machine::is_up`].
    pub(crate) fn start(self: &Arc<Self>, formation: Formation) {
        self.begin((0..SHARDS).map(|_| formation.clone()).collect());
    }

    /// The same with a formation for each shard.
    pub(crate) fn begin(self: &Arc<Self>, formations: Vec<Formation>) {
        let machine = Arc::clone(self);
        if std::mem::replace(&mut self.state.lock().is_started, true) {
            return;
        }
        self.executor.spawn_on(self.number, async move {
            if let Err(reason) = machine.run(formations).await {
                machine.state.lock().failure = Some(reason);
            }
        });
    }

    async fn run(self: &Arc<Self>, formations: Vec<Formation>) -> Result<(), String> {
        let log = self.open_log()?;
        self.state.lock().log = Some(log.clone());
        self.drive(&log);
        let mut shards = Vec::new();
        // Those that were split off come after all whose children they are.
        let formations = formations.into_iter().chain(repeat(Formation::Join));
        for (number, formation) in (0..).zip(formations) {
            if log.identity().shard_count <= number {
                break;
            }
            self.state.lock().begun = number + 1;
            let parts = self.parts(&log, ShardId::new(number), formation);
            let shard = Shard::start(parts).await;
            shards.push(shard.map_err(|error| error.to_string())?);
        }
        let id = self.id();
        for shard in &shards {
            self.introduce(shard);
        }
        let changes = self.state.lock().changes.clone();
        if let Some(changes) = &changes {
            for shard in &shards {
                let sink = changes::sink(Arc::clone(self), shard.clone(), Arc::clone(changes));
                self.executor.spawn_on(self.number, sink);
            }
        }
        if let Some(moves) = &self.moves {
            moves.is_up(id);
            let keeper = moves::keep(Arc::clone(self), Arc::clone(moves));
            self.executor.spawn_on(self.number, keeper);
            let leaving = moves::let_go(Arc::clone(self), Arc::clone(moves));
            self.executor.spawn_on(self.number, leaving);
        }
        self.state.lock().node = Some(Node { shards });
        if let Some(splits) = &self.splits {
            let keeper = splits::keep(Arc::clone(self), Arc::clone(splits));
            self.executor.spawn_on(self.number, keeper);
        }
        Ok(())
    }

    /// Lets others reach a replica, and notes its failure.
    fn introduce(self: &Arc<Self>, shard: &Shard) {
        self.network
            .attach(shard.id(), self.id(), self.number, shard.peer_handler());
        let (machine, shard) = (Arc::clone(self), shard.clone());
        self.executor.spawn_on(self.number, async move {
            let failure = shard.failed().await;
            machine.state.lock().failure = Some(failure.to_string());
        });
    }

    /// Whether the process has begun to start a shard.
    pub(crate) fn has_begun(&self, shard: ShardId) -> bool {
        shard.get() < self.state.lock().begun
    }

    /// A split that has been applied here told of the last of so many shards.
    pub(crate) fn is_born(self: &Arc<Self>, count: u32) {
        self.state.lock().born.insert(ShardId::new(count - 1));
        self.take_in(count);
    }

    /// Starts the shards that have been split off, until there are so many, or the next cannot be yet.
    pub(crate) fn take_in(self: &Arc<Self>, count: u32) {
        let machine = Arc::clone(self);
        self.executor.spawn_on(self.number, async move {
            loop {
                let log = {
                    let mut state = machine.state.lock();
                    // A start that is under way starts them all.
                    if count <= state.begun || !machine.may_begin_next(&state) {
                        return;
                    }
                    state
                        .log
                        .clone()
                        .filter(|_| state.node.is_some())
                        .inspect(|_| state.begun += 1)
                };
                let Some(log) = log else {
                    sleep(&machine.executor, Duration::from_millis(1)).await;
                    continue;
                };
                let number = machine.state.lock().begun - 1;
                if let Err(error) = log.grow(number + 1) {
                    // A failed sync, as any other, ends the process.
                    machine.state.lock().failure = Some(error.to_string());
                    return;
                }
                let parts = machine.parts(&log, ShardId::new(number), Formation::Join);
                match Shard::start(parts).await {
                    Ok(shard) => {
                        machine.introduce(&shard);
                        let mut state = machine.state.lock();
                        if let Some(node) = &mut state.node {
                            node.shards.push(shard);
                        }
                    }
                    Err(error) => machine.state.lock().failure = Some(error.to_string()),
                }
            }
        });
    }

    fn may_begin_next(&self, state: &State) -> bool {
        let next = ShardId::new(state.begun);
        let (Some(node), Some(splits)) = (&state.node, &self.splits) else {
            return true;
        };
        state.born.contains(&next) || splits.may_begin(next, node)
    }

    fn open_log(&self) -> Result<Log, String> {
        let (disk, id, boot_id) = {
            let state = self.state.lock();
            (state.disk.as_process(), state.id, state.boot)
        };
        let config = LogConfig {
            fsync: self.character.fsync,
            segment_bytes: SEGMENT_BYTES,
            tail_bytes_max: 8 * 1024,
            own_thread: false,
            retention: if self.character.keeps_history {
                HISTORY
            } else {
                Retention::default()
            },
            may_have_grown: true,
            ..LogConfig::new(Path::new("/data"), SHARDS)
        };
        let executor = Arc::clone(&self.executor);
        let seeds = Seeds {
            cluster: CLUSTER,
            node: id,
            boot_id,
            draw: Box::new(move || executor.below(u64::MAX)),
        };
        let disk: Arc<dyn Disk> = Arc::new(disk);
        let clock = Arc::clone(&self.clock) as Arc<dyn Clock>;
        let opened = Log::open(disk, clock, config, seeds);
        opened
            .map(|(log, _)| log)
            .map_err(|error| error.to_string())
    }

    /// Writes and syncs what the log is given, some time after it was.
    fn drive(self: &Arc<Self>, log: &Log) {
        let work = Arc::new(Notify::new());
        let told = Arc::clone(&work);
        log.on_work(Box::new(move || told.notify_one()));
        let (machine, log) = (Arc::clone(self), log.clone());
        self.executor.spawn_on(self.number, async move {
            loop {
                let time = machine.state.lock().sync_time;
                let span = time.micros_max - time.micros_min + 1;
                let micros = time.micros_min + machine.executor.below(span);
                sleep(&machine.executor, Duration::from_micros(micros)).await;
                log.pump();
                work.notified().await;
            }
        });
    }

    fn parts(self: &Arc<Self>, log: &Log, id: ShardId, formation: Formation) -> ShardParts {
        let store = Store::new(StoreConfig {
            stripes: 16,
            ..StoreConfig::default()
        });
        ShardParts {
            id,
            node: self.id(),
            store: Arc::new(store),
            log: log.clone(),
            clock: Arc::clone(&self.clock) as Arc<dyn Clock>,
            network: self.network.of(self.number),
            forward: None,
            births: Some(Arc::new(Midwife(Arc::downgrade(self)))),
            formation,
            config: ShardConfig {
                snapshot_log_bytes: self.character.snapshot_log_bytes,
                snapshot_block_bytes: 1,
                log_entries_kept: 16,
                batch_operations_max: self.character.batch_operations_max,
                sweep_pause_max: Duration::from_millis(200),
                timings: Timings::default(),
                ..ShardConfig::default()
            },
        }
    }

    /// Answers one command as a server's session does.
    pub(crate) async fn answer(
        &self,
        shard: ShardId,
        command: Command,
        patience: Duration,
        (by_lease, routing): (bool, u32),
    ) -> Answer {
        let deadline = self.clock.now() + patience;
        let Some(handle) = self.node().and_then(|node| node.shard(shard).cloned()) else {
            return refused();
        };
        if self.moves.is_some() && !handle.status().voters.contains(&self.id()) {
            // Who does not carry a shard knows so, and sends clients on.
            return refused();
        }
        if let (Command::Read(read), true) = (&command, by_lease) {
            let is_late = bug::is_on(Bug::GateBeforeRead);
            let lease = if is_late {
                self.looked_before(&handle)
            } else {
                handle.lease(self.clock.now())
            };
            let found = handle.store().read(read, handle.now());
            if !is_late {
                self.descheduled().await;
            }
            let stands = lease.is_some() && (is_late || handle.lease(self.clock.now()) == lease);
            if stands
                && handle.is_current(routing)
                && let Read::Reply(reply) = found
            {
                return Answer {
                    reply,
                    revision: handle.store().revision(),
                };
            }
        }
        let (reply, answers) = oneshot::channel();
        let submission = Submission {
            routing,
            ..Submission::new(vec![command], deadline, reply)
        };
        if handle.submit(submission).is_err() {
            return Answer::error(Error::not_done(ErrorCode::Busy, "busy"));
        }
        let mut answers = answers.await.unwrap_or_default();
        answers.pop().unwrap_or_else(unknown)
    }

    /// Between two steps of a session its thread may have to wait for a processor, now and then long.
    async fn descheduled(&self) {
        if let Some(micros) = self.micros_kept() {
            sleep(&self.executor, Duration::from_micros(micros)).await;
        }
    }

    fn micros_kept(&self) -> Option<u64> {
        (self.executor.below(4) == 0).then(|| match self.executor.below(16) {
            0 => self.executor.below(MICROS_KEPT_MAX),
            _ => self.executor.below(10_000),
        })
    }

    /// What a thread saw at the gate that looked first, was kept from its processor, and then took
    /// the request, which had come meanwhile ([`Bug::GateBeforeRead`]). A request that was there before
    /// the look would come to no harm: what it finds later is what there was then, or newer.
    #[cold]
    fn looked_before(&self, handle: &Shard) -> Option<Term> {
        let lease = handle.lease(self.clock.now());
        let kept = self.micros_kept().unwrap_or(0) * 1_000;
        let now = self.executor.true_nanos();
        let mut state = self.state.lock();
        state.looks.push_back((now, handle.id(), lease));
        let is_old = |at: u64| at + MICROS_KEPT_MAX * 1_000 < now;
        while state.looks.front().is_some_and(|(at, ..)| is_old(*at)) {
            state.looks.pop_front();
        }
        let mut looks = state.looks.iter();
        let first = looks.find(|(at, of, _)| *of == handle.id() && now <= at + kept);
        first.and_then(|(.., lease)| *lease)
    }
}

fn incarnation(number: usize, incarnation: u32) -> NodeId {
    NodeId::of_incarnation(u32::try_from(number).unwrap_or(u32::MAX) + 1, incarnation)
}

fn refused() -> Answer {
    Answer::error(Error::not_done(ErrorCode::Unavailable, "the node is down"))
}

/// No answer at all: whoever had it is gone.
fn unknown() -> Answer {
    let mut error = Error::not_done(ErrorCode::Unavailable, "the node is gone");
    error.outcome = flux_types::Outcome::Unknown;
    Answer {
        reply: Reply::Error(error),
        revision: flux_types::Revision::default(),
    }
}

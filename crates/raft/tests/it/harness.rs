//! A node in a test: a simulated disk, a clock, a log, one shard.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use flux_env::{Clock, Disk, Instant, RealClock, SimClock, SimDisk};
use flux_log::{FsyncPolicy, Log, LogConfig, Seeds};
use flux_raft::{Formation, MemoryNetwork, Network, NoNetwork, Shard, ShardConfig, ShardParts};
use flux_raft::{Submission, Timings};
use flux_store::{Store, StoreConfig};
use flux_types::{
    Answer, ClusterId, Command, Error, Expiry, NodeId, ReadCommand, Reply, Set, ShardId,
    Transaction, WriteCommand,
};
use tokio::sync::oneshot;

pub(crate) const SHARD: ShardId = ShardId::new(0);
/// What the simulated clock shows at the start.
pub(crate) const EPOCH_MILLIS: u64 = 1_700_000_000_000;

/// How a node of a test is made.
#[derive(Clone)]
pub(crate) struct Setup {
    pub(crate) id: u64,
    pub(crate) disk: SimDisk,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) fsync: FsyncPolicy,
    pub(crate) formation: Formation,
    pub(crate) network: Arc<dyn Network>,
    pub(crate) segment_bytes: u64,
    pub(crate) config: ShardConfig,
    pub(crate) forward: Option<Arc<dyn flux_raft::Forward>>,
    pub(crate) births: Option<Arc<dyn flux_raft::Births>>,
}

/// A running node of a test.
pub(crate) struct Node {
    pub(crate) shard: Shard,
    pub(crate) log: Log,
    pub(crate) clock: Arc<dyn Clock>,
}

static SALTS: AtomicU64 = AtomicU64::new(1);

impl Setup {
    /// A node alone, on an empty disk, with the machine's clock.
    pub(crate) fn new() -> Self {
        Self {
            id: 1,
            disk: SimDisk::new(),
            clock: Arc::new(RealClock::new()),
            fsync: FsyncPolicy::Always,
            formation: Formation::Found,
            network: Arc::new(NoNetwork),
            segment_bytes: 1024 * 1024,
            config: quick(),
            forward: None,
            births: None,
        }
    }

    /// The same with a clock that stands still until it is moved.
    pub(crate) fn with_sim_clock() -> (Self, Arc<SimClock>) {
        let clock = Arc::new(SimClock::new(EPOCH_MILLIS));
        let setup = Self {
            clock: Arc::clone(&clock) as Arc<dyn Clock>,
            ..Self::new()
        };
        (setup, clock)
    }

    /// A node of a cluster in one process.
    pub(crate) fn member(id: u64, network: &MemoryNetwork) -> Self {
        let formation = if id == 1 {
            Formation::Found
        } else {
            Formation::Join
        };
        Self {
            id,
            formation,
            network: network.of(NodeId::new(id)),
            ..Self::new()
        }
    }

    /// Opens the log, whatever was on the disk before.
    pub(crate) fn open_log(&self) -> Log {
        let config = LogConfig {
            fsync: self.fsync,
            segment_bytes: self.segment_bytes,
            may_have_grown: true,
            ..LogConfig::new("/data", 1)
        };
        let seeds = Seeds {
            cluster: ClusterId::new(1),
            node: NodeId::new(self.id),
            boot_id: 7,
            draw: Box::new(|| SALTS.fetch_add(1, Ordering::Relaxed)),
        };
        let disk: Arc<dyn Disk> = Arc::new(self.disk.as_process());
        let opened = Log::open(disk, Arc::clone(&self.clock), config, seeds);
        opened.expect("the log opens").0
    }

    /// Starts a node, whatever was on its disk before.
    pub(crate) async fn start(&self) -> Node {
        let log = self.open_log();
        self.start_shard(&log, SHARD, self.formation.clone()).await
    }

    /// Starts a shard of a node whose log is open.
    pub(crate) async fn start_shard(&self, log: &Log, id: ShardId, formation: Formation) -> Node {
        let store = Arc::new(Store::new(StoreConfig::default()));
        let parts = ShardParts {
            id,
            node: NodeId::new(self.id),
            store,
            log: log.clone(),
            clock: Arc::clone(&self.clock),
            network: Arc::clone(&self.network),
            forward: self.forward.clone(),
            births: self.births.clone(),
            formation,
            config: self.config.clone(),
        };
        let shard = Shard::start(parts).await.expect("the shard starts");
        Node {
            shard,
            log: log.clone(),
            clock: Arc::clone(&self.clock),
        }
    }

    /// Starts a node and waits until it can write.
    pub(crate) async fn start_writable(&self) -> Node {
        let node = self.start().await;
        node.wait_writable().await;
        node
    }
}

/// Settings with which a test need not wait.
pub(crate) fn quick() -> ShardConfig {
    ShardConfig {
        log_entries_kept: 4,
        sweep_pause_max: Duration::from_millis(5),
        timings: Timings {
            election_min: Duration::from_millis(150),
            election_max: Duration::from_millis(300),
            heartbeat: Duration::from_millis(40),
            heartbeat_min: Duration::from_millis(30),
            ..Timings::default()
        },
        ..ShardConfig::default()
    }
}

impl Node {
    /// An instant this long from now.
    pub(crate) fn after(&self, seconds: u64) -> Instant {
        self.clock.now() + Duration::from_secs(seconds)
    }

    pub(crate) async fn wait_writable(&self) {
        let writable = self.shard.wait_writable(self.after(20)).await;
        writable.expect("the shard becomes writable");
    }

    /// Submits commands; the receiver gets their answers.
    pub(crate) fn submit(&self, commands: Vec<Command>) -> oneshot::Receiver<Vec<Answer>> {
        self.submit_until(commands, self.after(30))
    }

    pub(crate) fn submit_until(
        &self,
        commands: Vec<Command>,
        deadline: Instant,
    ) -> oneshot::Receiver<Vec<Answer>> {
        let (reply, answers) = oneshot::channel();
        let submission = Submission::new(commands, deadline, reply);
        self.shard.submit(submission).expect("the queue has room");
        answers
    }

    /// Submits commands and waits for their replies.
    pub(crate) async fn run(&self, commands: Vec<Command>) -> Vec<Reply> {
        let answers = self.submit(commands).await.expect("an answer");
        answers.into_iter().map(|answer| answer.reply).collect()
    }

    pub(crate) async fn run_one(&self, command: Command) -> Reply {
        self.run(vec![command]).await.remove(0)
    }

    pub(crate) async fn get(&self, key: &str) -> Reply {
        self.run_one(get(key)).await
    }

    /// Ends the node in order.
    pub(crate) async fn stop(self) {
        self.shard.shutdown().await;
        self.log.close();
    }
}

/// Runs a test on a runtime of its own, as a shard has one.
pub(crate) fn on_runtime<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let output = runtime.block_on(test);
    runtime.shutdown_background();
    output
}

/// Waits until something holds, or fails the test.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let limit = Duration::from_secs(20);
    assert!(tokio::time::timeout(limit, waiting).await.is_ok(), "{what}");
}

pub(crate) fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

pub(crate) fn set(key: &str, value: &str) -> Command {
    Command::Write(WriteCommand::Set(Set::plain(bytes(key), bytes(value))))
}

pub(crate) fn set_for(key: &str, value: &str, millis: i64) -> Command {
    Command::Write(WriteCommand::Set(Set {
        expiry: Expiry::In(millis),
        ..Set::plain(bytes(key), bytes(value))
    }))
}

pub(crate) fn get(key: &str) -> Command {
    Command::Read(ReadCommand::Get { key: bytes(key) })
}

pub(crate) fn increment(key: &str) -> Command {
    Command::Write(WriteCommand::Increment {
        key: bytes(key),
        by: 1,
    })
}

pub(crate) fn delete(key: &str) -> Command {
    Command::Write(WriteCommand::Delete {
        keys: vec![bytes(key)],
    })
}

pub(crate) fn transaction(commands: Vec<Command>) -> Command {
    Command::Write(WriteCommand::Transaction(Transaction {
        watches: Vec::new(),
        commands,
    }))
}

pub(crate) fn bulk(text: &str) -> Reply {
    Reply::Bulk(bytes(text))
}

/// The error of a reply that is one.
pub(crate) fn error_of(reply: &Reply) -> &Error {
    match reply {
        Reply::Error(error) => error,
        other => panic!("an error was expected, not {other:?}"),
    }
}

pub(crate) fn nodes(ids: &[u64]) -> BTreeSet<NodeId> {
    ids.iter().copied().map(NodeId::new).collect()
}

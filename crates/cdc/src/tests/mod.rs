//! Feeds over a shard on a simulated disk: the rules of the design that concern them.

mod elsewhere;
mod feeds;
mod retention;
pub(crate) mod splits;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flux_env::Rng as _;
use flux_env::{Clock as _, SeededRng, SimClock, SimDisk};
use flux_log::{FsyncPolicy, Log, LogConfig, LogEntry, LogId, Retention, Seeds, ShardLog};
use flux_store::{BatchView, Store, StoreConfig};
use flux_types::{
    ClusterId, Command, Error, LogIndex, NodeId, Set, ShardId, Term, UnixMillis, WriteCommand,
};
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use crate::{
    Batch, CdcError, Change, Control, Cursor, Feed, Fetched, Origin, Origins, Request, Start,
    Wanted,
};

pub(crate) const CLUSTER: ClusterId = ClusterId::new(1);
/// What no step takes, unless something is wrong.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long nothing must come.
pub(crate) const SILENCE: Duration = Duration::from_millis(60);

/// A shard whose commits the test makes itself, one by one.
pub(crate) struct TestShard {
    log: Log,
    shard: ShardLog,
    pub(crate) store: Arc<Store>,
    clock: Arc<SimClock>,
    state: Mutex<State>,
    changed: Notify,
    others: Mutex<elsewhere::Others>,
}

#[derive(Clone, Copy, Debug)]
struct State {
    applied: Option<LogId>,
    is_whole: bool,
    is_forgotten: bool,
    is_leading: bool,
    was_split_off: bool,
    term: Term,
}

/// Shards as a node has them.
pub(crate) struct TestOrigins {
    list: Mutex<Arc<[Arc<dyn Origin>]>>,
    came: Notify,
}

impl std::fmt::Debug for TestOrigins {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TestOrigins").finish_non_exhaustive()
    }
}

impl TestOrigins {
    pub(crate) fn of(shards: &[&Arc<TestShard>]) -> Arc<Self> {
        let shards = shards.iter();
        let list = shards.map(|shard| -> Arc<dyn Origin> { Arc::<TestShard>::clone(shard) });
        Arc::new(Self {
            list: Mutex::new(list.collect()),
            came: Notify::new(),
        })
    }

    /// The replica of a further shard is here now.
    pub(crate) fn come(&self, shard: &Arc<TestShard>) {
        let further: Arc<dyn Origin> = Arc::<TestShard>::clone(shard);
        let mut list = self.list.lock();
        *list = list.iter().cloned().chain([further]).collect();
        drop(list);
        self.came.notify_waiters();
    }
}

impl Origins for TestOrigins {
    fn list(&self) -> Arc<[Arc<dyn Origin>]> {
        Arc::clone(&self.list.lock())
    }

    fn wait_more(&self, than: usize) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            loop {
                let came = self.came.notified();
                if than < self.list().len() {
                    return;
                }
                came.await;
            }
        })
    }
}

impl std::fmt::Debug for TestShard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TestShard").finish_non_exhaustive()
    }
}

fn log_config(fsync: FsyncPolicy, retention: Retention) -> LogConfig {
    LogConfig {
        fsync,
        retention,
        segment_bytes: 64 * 1024,
        // Nearly everything is read from disk, as by a reader that is behind.
        tail_bytes_max: 1024,
        own_thread: false,
        ..LogConfig::new("/data", 1)
    }
}

impl TestShard {
    fn open(disk: &SimDisk, config: LogConfig, term: u64) -> Arc<Self> {
        let mut rng = SeededRng::new(term);
        let seeds = Seeds {
            cluster: CLUSTER,
            node: NodeId::new(2),
            boot_id: u128::from(term),
            draw: Box::new(move || rng.next_u64()),
        };
        let clock = Arc::new(SimClock::new(1_000_000));
        let shards = config.shard_count;
        let disk = Arc::new(disk.clone());
        let (log, _) = Log::open(disk, Arc::<SimClock>::clone(&clock), config, seeds).unwrap();
        let shard = Arc::new(Self {
            // The last of those that the log has room for.
            shard: log.shard(ShardId::new(shards - 1)),
            log,
            store: Arc::new(Store::new(StoreConfig::default())),
            clock,
            state: Mutex::new(State {
                applied: None,
                is_whole: true,
                is_forgotten: false,
                is_leading: true,
                was_split_off: false,
                term: Term::new(term),
            }),
            changed: Notify::new(),
            others: Mutex::default(),
        });
        // What was there is committed, as a sole voter finds it after its own no-op.
        let last = shard.shard.state().last.unwrap_or_default();
        let mut next = shard.shard.oldest();
        while next <= last.index {
            let entries = shard.shard.history(next, last.index.next(), usize::MAX);
            let entries = entries.unwrap();
            assert!(!entries.is_empty(), "what the log says it has, it gives");
            for entry in entries {
                shard.apply(&entry);
                next = entry.id.index.next();
            }
        }
        shard
    }

    pub(crate) fn new() -> Arc<Self> {
        Self::of(ShardId::new(0))
    }

    fn of(shard: ShardId) -> Arc<Self> {
        let config = LogConfig {
            shard_count: shard.get() + 1,
            ..log_config(FsyncPolicy::Always, Retention::default())
        };
        Self::open(&SimDisk::new(), config, 1)
    }

    fn origins(self: &Arc<Self>) -> Arc<dyn Origins> {
        TestOrigins::of(&[self])
    }

    /// Evaluates commands as one batch; an entry that is in no log yet.
    fn evaluate(&self, commands: &[Command]) -> LogEntry {
        let term = self.state.lock().term;
        let at = UnixMillis::new(self.clock.unix_millis());
        let mut evaluation = self.store.evaluation(at, term);
        for command in commands {
            evaluation.command(command);
        }
        let index = self.shard.state().last.unwrap_or_default().index.next();
        LogEntry {
            id: LogId { term, index },
            timestamp: at,
            payload: evaluation.finish().expect("facts"),
        }
    }

    fn append(&self, entry: LogEntry) {
        self.shard
            .append(vec![entry], Box::new(|result| result.unwrap()))
            .unwrap();
    }

    fn apply(&self, entry: &LogEntry) {
        if let Some(batch) = flux_store::batch::effective(entry.id.term, &entry.payload).unwrap() {
            self.store.apply(&batch);
        }
        self.state.lock().applied = Some(entry.id);
        self.changed.notify_waiters();
    }

    /// Commits commands as one batch.
    fn commit(&self, commands: &[Command]) {
        let entry = self.evaluate(commands);
        self.append(entry.clone());
        self.log.pump();
        self.apply(&entry);
    }

    pub(crate) fn stop_leading(&self) {
        self.state.lock().is_leading = false;
    }

    pub(crate) fn set(&self, key: &str, value: &str) {
        self.commit(&[set(key, value)]);
    }

    async fn feed(self: &Arc<Self>, start: Start) -> Feed {
        self.try_feed(Request::from(start)).await.expect("a feed")
    }

    /// Begins a feed and takes its first event, which tells where it begins.
    async fn try_feed(self: &Arc<Self>, request: Request) -> Result<Feed, CdcError> {
        self.feed_of(self.origins(), request).await
    }

    /// The same, of this shard and others.
    async fn feed_of(&self, origins: Arc<dyn Origins>, request: Request) -> Result<Feed, CdcError> {
        let open = Feed::open(CLUSTER, &origins, request);
        let mut feed = self.pumping(open).await?;
        let first = feed.next().await?;
        let change = first.events.first().map(|event| event.change.clone());
        assert_eq!(change, Some(Change::Control(Control::Progress)));
        Ok(feed)
    }

    /// Does what the log's thread would do while something is waited for.
    async fn pumping<T>(&self, waited: impl Future<Output = T>) -> T {
        let pump = async {
            loop {
                self.log.pump();
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let both = async {
            tokio::select! {
                done = waited => done,
                never = pump => never,
            }
        };
        tokio::time::timeout(PATIENCE, both).await.expect("in time")
    }

    async fn next(&self, feed: &mut Feed) -> Batch {
        self.pumping(feed.next()).await.expect("no error")
    }

    /// The next so many events, in short.
    async fn told(&self, feed: &mut Feed, count: usize) -> Vec<String> {
        let mut told = Vec::new();
        while told.len() < count {
            told.extend(self.next(feed).await.events.iter().map(short));
        }
        told
    }

    /// Everything up to an event.
    async fn told_until(&self, feed: &mut Feed, last: &str) -> Vec<String> {
        let mut told = Vec::new();
        while told.last().is_none_or(|told| told != last) {
            told.extend(self.told(feed, 1).await);
        }
        told
    }
}

impl Origin for TestShard {
    fn log(&self) -> &ShardLog {
        &self.shard
    }

    fn store(&self) -> &Arc<Store> {
        &self.store
    }

    fn now(&self) -> UnixMillis {
        UnixMillis::new(self.clock.unix_millis())
    }

    fn applied(&self) -> Option<LogId> {
        self.state.lock().applied
    }

    fn applying(&self) -> Option<LogId> {
        self.state.lock().applied
    }

    fn wait_applied(&self, index: LogIndex) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            loop {
                let changed = self.changed.notified();
                let is_forgotten = self.state.lock().is_forgotten;
                if is_forgotten || self.applied().is_some_and(|id| index <= id.index) {
                    return;
                }
                changed.await;
            }
        })
    }

    fn wait_whole(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            loop {
                let changed = self.changed.notified();
                if self.state.lock().is_whole {
                    return;
                }
                changed.await;
            }
        })
    }

    fn fetch(&self, wanted: Wanted) -> oneshot::Receiver<Fetched> {
        self.others.lock().answer(wanted)
    }

    fn was_split_off(&self) -> bool {
        self.state.lock().was_split_off
    }

    fn is_leading(&self) -> bool {
        self.state.lock().is_leading
    }

    fn put_system(&self, name: Bytes, value: Option<Bytes>) -> BoxFuture<'_, Result<(), Error>> {
        self.commit(&[Command::Write(WriteCommand::PutSystem { name, value })]);
        Box::pin(async { Ok(()) })
    }
}

fn set(key: &str, value: &str) -> Command {
    let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    Command::Write(WriteCommand::Set(Set::plain(bytes(key), bytes(value))))
}

fn delete(key: &str) -> Command {
    let keys = vec![Bytes::copy_from_slice(key.as_bytes())];
    Command::Write(WriteCommand::Delete { keys })
}

/// An event as its word, its key, and what tells its place.
fn short(event: &crate::Event) -> String {
    let key = event
        .change
        .key()
        .map(|key| String::from_utf8_lossy(key).into_owned());
    let group = event.group.map_or_else(String::new, |group| {
        format!(" {}/{}", group.order, group.count)
    });
    if let Change::Control(Control::Gap { after, next }) = event.change {
        return format!("gap {after}..{next}");
    }
    format!("{} {}{group}", event.change.word(), key.unwrap_or_default())
}

fn at(cursor: &Cursor) -> Start {
    // As a consumer hands it back.
    Start::At(cursor.to_string().parse().expect("our own text"))
}

fn parse(entry: &LogEntry) -> BatchView<'_> {
    BatchView::parse(&entry.payload).expect("a batch")
}

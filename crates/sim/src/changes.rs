//! Readers of changes: a sink for each shard beside its leader, and one who watches from outside.
//!
//! Both use the change stream as a node does. A sink runs on every machine and follows the shards that
//! are led there: it publishes to a broker, in order, and commits its cursor into the shard behind
//! what the broker has confirmed. The watcher keeps its cursor itself and asks now this machine, now
//! that one, leader or not. What they are told is compared with one another, with what the shards
//! hold at the end, and with what clients were answered.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use flux_cdc::{
    CdcError, Change, Control, Cursor, Event, Feed, OnGap, Origin, Place, Request, Start,
};
use flux_env::Clock;
use flux_history::{Action, History, Outcome};
use flux_log::{LogId, ShardLog};
use flux_raft::Shard;
use flux_store::{Read, Store};
use flux_types::bug::{self, Bug};
use flux_types::{Error, LogIndex, ReadCommand, Reply, ShardId, UnixMillis};
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use crate::client::{Phase, Shared, Subject};
use crate::clock::NodeClock;
use crate::executor::{Executor, OUTSIDE, sleep};
use crate::failure::Failure;
use crate::machine::{CLUSTER, Machine, SHARDS};

/// Name of the sink's cursor in the system data of each shard.
const CURSOR_NAME: &[u8] = b"cdc/simulated";
/// Under which the log is kept for the sink.
const PIN_NAME: &str = "simulated";
/// Messages that a sink has in flight at most.
const WINDOW: usize = 24;
/// How often a sink commits its cursor, and looks whether it still stands beside the leader.
const TICK: Duration = Duration::from_millis(100);
const COMMIT_TIMEOUT: Duration = Duration::from_secs(5);

/// A shard as the change stream sees it, as on a server.
#[derive(Debug)]
struct ShardOrigin {
    shard: Shard,
    clock: Arc<NodeClock>,
}

impl Origin for ShardOrigin {
    fn log(&self) -> &ShardLog {
        self.shard.log()
    }

    fn store(&self) -> &Arc<Store> {
        self.shard.store()
    }

    fn now(&self) -> UnixMillis {
        self.shard.now()
    }

    fn applied(&self) -> Option<LogId> {
        self.shard.applied()
    }

    fn applying(&self) -> Option<LogId> {
        self.shard.applying()
    }

    fn wait_applied(&self, index: LogIndex) -> BoxFuture<'_, ()> {
        Box::pin(self.shard.wait_applied(index))
    }

    fn wait_whole(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.shard.wait_whole())
    }

    fn is_leading(&self) -> bool {
        self.shard.is_writable()
    }

    fn put_system(&self, name: Bytes, value: Option<Bytes>) -> BoxFuture<'_, Result<(), Error>> {
        let deadline = self.clock.now() + COMMIT_TIMEOUT;
        Box::pin(self.shard.put_system(name, value, deadline))
    }
}

/// What readers were told.
#[derive(Debug, Default)]
struct Told {
    /// What each id says.
    by_id: BTreeMap<String, (u64, Change)>,
    /// Which id stands at each revision of a shard.
    by_revision: BTreeMap<(ShardId, u64), String>,
    /// What came to the broker.
    published: BTreeSet<(ShardId, u64)>,
    /// Values that came to the broker, with their keys.
    values: BTreeSet<(Bytes, Bytes)>,
    /// Shards whose sink was told of a gap.
    gaps: BTreeSet<ShardId>,
    events: u64,
}

/// Where changes go, and who judges them. Outlives all machines.
pub(crate) struct Changes {
    shared: Arc<Shared>,
    told: Mutex<Told>,
}

impl fmt::Debug for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Changes").finish_non_exhaustive()
    }
}

impl Changes {
    pub(crate) fn new(shared: &Arc<Shared>) -> Arc<Self> {
        Arc::new(Self {
            shared: Arc::clone(shared),
            told: Mutex::default(),
        })
    }

    /// How many events readers were told, repeated ones included.
    pub(crate) fn events(&self) -> u64 {
        self.told.lock().events
    }

    fn complain(&self, shard: ShardId, what: String) {
        self.shared.complain(Failure::Changes { shard, what });
    }

    /// Whoever reads was told an event.
    fn tell(&self, event: &Event, is_sink: bool) {
        let mut told = self.told.lock();
        let shard = event.position.shard;
        if let Change::Control(control) = event.change {
            if is_sink && matches!(control, Control::Gap { .. }) {
                told.gaps.insert(shard);
            }
            return;
        }
        told.events += 1;
        let (id, revision) = (event.id(), event.position.revision.get());
        let says = (revision, event.change.clone());
        let known = told.by_id.entry(id.clone()).or_insert_with(|| says.clone());
        if *known != says {
            let what = format!("event {id} is {known:?} and {says:?}");
            return self.complain(shard, what);
        }
        let known = told.by_revision.entry((shard, revision));
        let known = known.or_insert_with(|| id.clone());
        if *known != id && !self.shared.is_relaxed {
            let what = format!("revision {revision} is event {known} and event {id}");
            return self.complain(shard, what);
        }
        if is_sink {
            told.published.insert((shard, revision));
            if let Change::Set { key, value, .. } = &event.change {
                told.values.insert((key.clone(), value.clone()));
            }
        }
    }

    /// What of the acknowledged writes has not come to the broker.
    pub(crate) fn missing(&self, history: &History) -> Option<String> {
        let told = self.told.lock();
        for operation in history.operations() {
            let (Outcome::Done | Outcome::Applied(true)) = operation.outcome else {
                continue;
            };
            let (Action::Set { value, .. } | Action::CompareAndSet { value, .. }) =
                &operation.action
            else {
                continue;
            };
            let Some(subject) = Subject::of_name(&operation.key) else {
                continue;
            };
            if told.gaps.contains(&subject.shard()) {
                continue;
            }
            let value = Bytes::copy_from_slice(value);
            for key in subject.keys() {
                if !told.values.contains(&(key.clone(), value.clone())) {
                    return Some(format!("the event that {key:?} became {value:?} comes"));
                }
            }
        }
        // What some replica told the watcher is committed, and so must come to the broker too.
        let all = told.by_revision.iter();
        let mut missing = all
            .filter(|(place, _)| !told.published.contains(place) && !told.gaps.contains(&place.0));
        missing.next().map(|(_, id)| format!("event {id} comes"))
    }

    /// Whether events are of what did not happen, or do not lead to what is there.
    pub(crate) fn judge(&self, history: &History, shards: &[Shard]) -> Result<(), Failure> {
        let told = self.told.lock();
        for operation in history.operations() {
            let value = match (&operation.outcome, &operation.action) {
                (
                    Outcome::Failed | Outcome::Applied(false),
                    Action::Set { value, .. } | Action::CompareAndSet { value, .. },
                ) => Bytes::copy_from_slice(value),
                _ => continue,
            };
            let Some(subject) = Subject::of_name(&operation.key) else {
                continue;
            };
            let mut keys = subject.keys().into_iter();
            if let Some(key) = keys.find(|key| told.values.contains(&(key.clone(), value.clone())))
            {
                return Err(Failure::Changes {
                    shard: subject.shard(),
                    what: format!("{key:?} became {value:?}, which was never done"),
                });
            }
        }
        shards.iter().try_for_each(|shard| told.leads_to(shard))
    }
}

impl Told {
    /// Whether the changes of a shard, taken one after the other, lead to what it holds.
    fn leads_to(&self, shard: &Shard) -> Result<(), Failure> {
        let id = shard.id();
        if self.gaps.contains(&id) {
            return Ok(());
        }
        let mut state: BTreeMap<&Bytes, &Bytes> = BTreeMap::new();
        for (_, event) in self.by_revision.range((id, 0)..=(id, u64::MAX)) {
            match self.by_id.get(event).map(|(_, change)| change) {
                Some(Change::Set { key, value, .. }) => {
                    state.insert(key, value);
                }
                Some(Change::Delete { key, .. }) => {
                    state.remove(key);
                }
                _ => {}
            }
        }
        // Keys with deadlines may expire meanwhile.
        for subject in Subject::all(Phase::Lasting) {
            if subject.shard() != id {
                continue;
            }
            for key in subject.keys() {
                let get = ReadCommand::Get { key: key.clone() };
                let Read::Reply(reply) = shard.store().read(&get, shard.now()) else {
                    continue;
                };
                let told = state
                    .get(&key)
                    .map_or(Reply::Nil, |value| Reply::Bulk((*value).clone()));
                if told != reply {
                    let what = format!("events lead to {key:?} = {told:?}, and it is {reply:?}");
                    return Err(Failure::Changes { shard: id, what });
                }
            }
        }
        Ok(())
    }
}

/// A message to the broker, and where its confirm goes.
type Message = (Event, oneshot::Sender<()>);

/// The connection of a sink to the broker: in order, until it breaks. What its sender had sent before
/// it died may still arrive, as far as chance lets it.
async fn connection(
    executor: Arc<Executor>,
    changes: Arc<Changes>,
    mut messages: mpsc::Receiver<Message>,
) {
    // One in so many messages breaks it, and in some connections the broker takes its time.
    let breaks_one_in = 50 + executor.below(500);
    let micros = if executor.below(3) == 0 {
        100_000
    } else {
        3_000
    };
    while let Some((event, confirm)) = messages.recv().await {
        let way = executor.below(micros);
        sleep(&executor, Duration::from_micros(way)).await;
        let is_cut = messages.is_closed() && executor.below(2) == 0;
        if is_cut || executor.below(breaks_one_in) == 0 {
            return;
        }
        changes.tell(&event, true);
        let back = Duration::from_micros(executor.below(3_000));
        let world = Arc::clone(&executor);
        executor.spawn_on(OUTSIDE, async move {
            sleep(&world, back).await;
            // Whoever waits for it may be gone.
            let _ = confirm.send(()).is_ok();
        });
    }
}

/// Publishes the changes of a shard whenever it is led on this machine, from where the last one
/// left off. A task of the machine.
pub(crate) async fn sink(machine: Arc<Machine>, shard: Shard, changes: Arc<Changes>) {
    let origin: Arc<dyn Origin> = Arc::new(ShardOrigin {
        shard,
        clock: Arc::clone(&machine.clock),
    });
    origin.wait_whole().await;
    let shard = origin.log().id();
    match saved(&*origin).and_then(|saved| saved.place(shard)) {
        Some(place) => pin(&*origin, place),
        None => {
            let applied = origin.applied().unwrap_or_default();
            origin.log().pin(PIN_NAME, applied.index);
        }
    }
    loop {
        flux_env::sleep(Duration::from_millis(20)).await;
        if !origin.is_leading() {
            continue;
        }
        origin.wait_whole().await;
        if let Err(error) = follow(&machine, &origin, &changes).await {
            let is_end = machine.is_ending() || matches!(error, CdcError::Stopped { .. });
            if !is_end {
                let what = format!("the sink cannot go on: {error}");
                changes.complain(shard, what);
                return;
            }
        }
    }
}

/// The cursor that was committed into the shard.
fn saved(origin: &dyn Origin) -> Option<Cursor> {
    Cursor::decode(&origin.store().system(CURSOR_NAME)?).ok()
}

/// Keeps the log behind a place.
fn pin(origin: &dyn Origin, place: Place) {
    if let Place::After { index, .. } = place {
        origin.log().pin(PIN_NAME, index);
    }
}

/// What a sink waits for.
enum Step {
    Confirmed(bool),
    Read(Result<flux_cdc::Batch, CdcError>),
    Tick,
}

/// One connection of the sink, until it breaks or the shard is led elsewhere.
async fn follow(
    machine: &Arc<Machine>,
    origin: &Arc<dyn Origin>,
    changes: &Arc<Changes>,
) -> Result<(), CdcError> {
    let start = saved(&**origin).map_or(Start::Earliest, Start::At);
    let request = Request {
        on_gap: OnGap::Report,
        ..Request::from(start)
    };
    let mut feed = match Feed::of_shard(CLUSTER, origin, request).await {
        // The cursor is of a history that was lost.
        Err(CdcError::Diverged { .. }) if changes.shared.is_relaxed => {
            Feed::of_shard(CLUSTER, origin, Request::from(Start::Earliest)).await?
        }
        opened => opened?,
    };
    let (outlet, messages) = mpsc::channel(WINDOW);
    let executor = Arc::clone(&machine.executor);
    executor.spawn_on(
        OUTSIDE,
        connection(Arc::clone(&executor), Arc::clone(changes), messages),
    );
    let mut flights: VecDeque<(Place, oneshot::Receiver<()>)> = VecDeque::new();
    let (mut settled, mut sent) = (None, 0);
    let mut tick = flux_env::sleep(TICK);
    while origin.is_leading() {
        let has_room = flights.len() < WINDOW;
        let step = tokio::select! {
            biased;
            confirm = next_confirm(&mut flights) => Step::Confirmed(confirm),
            () = &mut tick => Step::Tick,
            batch = feed.next(), if has_room => Step::Read(batch),
        };
        match step {
            Step::Confirmed(false) => break,
            Step::Confirmed(true) => {
                let confirmed = flights.pop_front();
                settled = confirmed.map(|(place, _)| place).or(settled);
            }
            Step::Read(batch) => {
                let batch = batch?;
                for event in &batch.events {
                    let (confirm, confirmed) = oneshot::channel();
                    let Some(place) = batch.place_at(event) else {
                        continue;
                    };
                    if outlet.send((event.clone(), confirm)).await.is_err() {
                        commit(&**origin, &mut settled).await;
                        return Ok(());
                    }
                    if bug::is_on(Bug::CursorBeforeConfirm) {
                        settled = Some(place);
                    }
                    flights.push_back((place, confirmed));
                    settle(&mut flights, &mut settled);
                    // A batch may be long, and a connection that breaks within it must have got
                    // somewhere.
                    sent += 1;
                    if sent % WINDOW == 0 {
                        commit(&**origin, &mut settled).await;
                    }
                }
            }
            Step::Tick => {
                tick.reset(TICK);
                commit(&**origin, &mut settled).await;
            }
        }
    }
    Ok(())
}

/// Takes what has been confirmed already.
fn settle(flights: &mut VecDeque<(Place, oneshot::Receiver<()>)>, settled: &mut Option<Place>) {
    while flights
        .front_mut()
        .is_some_and(|(_, confirm)| confirm.try_recv().is_ok())
    {
        *settled = flights.pop_front().map(|(place, _)| place);
    }
}

/// Whether the oldest message was confirmed, once it is known.
async fn next_confirm(flights: &mut VecDeque<(Place, oneshot::Receiver<()>)>) -> bool {
    match flights.front_mut() {
        Some((_, confirmed)) => confirmed.await.is_ok(),
        None => std::future::pending().await,
    }
}

/// Commits how far the broker has everything. What fails is repeated by whoever comes next.
async fn commit(origin: &dyn Origin, settled: &mut Option<Place>) {
    let Some(place) = settled.take() else {
        return;
    };
    let shard = origin.log().id();
    let cursor = Cursor::new(CLUSTER).with(shard, place);
    let name = Bytes::from_static(CURSOR_NAME);
    let put = origin.put_system(name, Some(Bytes::from(cursor.encode())));
    if put.await.is_ok() {
        pin(origin, place);
    }
}

/// Watches one shard from outside: keeps its cursor itself, and asks any machine.
pub(crate) async fn watch(changes: Arc<Changes>, shard: ShardId) {
    let shared = Arc::clone(&changes.shared);
    let executor = Arc::clone(&shared.executor);
    let mut start = Start::Earliest;
    while !shared.stop.load(Ordering::SeqCst) {
        let pause = 10 + executor.below(100);
        sleep(&executor, Duration::from_millis(pause)).await;
        let number = executor.below(shared.machines.len() as u64);
        let machine = usize::try_from(number).ok();
        let Some(machine) = machine.and_then(|number| shared.machines.get(number)) else {
            continue;
        };
        let Some(handle) = machine.node().and_then(|node| node.shard(shard).cloned()) else {
            continue;
        };
        let (sender, mut batches) = mpsc::channel(2);
        let serving = serve(handle, Arc::clone(&machine.clock), start.clone(), sender);
        let task = executor.spawn_on(machine.number, serving);
        let until = executor.true_nanos() + executor.below(2_000_000_000);
        while executor.true_nanos() < until {
            let Some(batch) = batches.recv().await else {
                break;
            };
            let way = executor.below(2_000);
            sleep(&executor, Duration::from_micros(way)).await;
            let batch: flux_cdc::Batch = batch;
            let mut last = None;
            for event in &batch.events {
                let revision = event.position.revision;
                if !event.change.is_control() && last.replace(revision) >= Some(revision) {
                    let what = format!("event {} comes behind {last:?}", event.id());
                    changes.complain(shard, what);
                }
                changes.tell(event, false);
            }
            start = Start::At(batch.cursor().clone());
        }
        flux_env::World::abort(&*executor, task);
    }
}

/// Answers a watcher: a task of the machine that it asks.
async fn serve(
    shard: Shard,
    clock: Arc<NodeClock>,
    start: Start,
    batches: mpsc::Sender<flux_cdc::Batch>,
) {
    let origin: Arc<dyn Origin> = Arc::new(ShardOrigin { shard, clock });
    origin.wait_whole().await;
    let request = Request {
        on_gap: OnGap::Report,
        progress_interval: Duration::from_millis(200),
        ..Request::from(start)
    };
    // A replica that is behind the watcher's cursor cannot serve it yet: it asks another.
    let Ok(mut feed) = Feed::of_shard(CLUSTER, &origin, request).await else {
        return;
    };
    while let Ok(batch) = feed.next().await {
        if batches.send(batch).await.is_err() {
            return;
        }
    }
}

/// Everything that readers of changes do in a run.
pub(crate) fn spawn_watchers(
    changes: &Arc<Changes>,
) -> impl Iterator<Item = BoxFuture<'static, ()>> {
    (0..SHARDS).map(|number| -> BoxFuture<'static, ()> {
        Box::pin(watch(Arc::clone(changes), ShardId::new(number)))
    })
}

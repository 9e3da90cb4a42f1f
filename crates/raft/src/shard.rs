//! The handle of one shard's replica: how the rest of the node reads, writes and governs it.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use flux_env::{Clock, Instant};
use flux_log::{Log, LogId, ShardLog};
use flux_store::Store;
use flux_types::bug::{self, Bug};
use flux_types::{Answer, Error, ErrorCode, LogIndex, NodeId, ShardId, Term, UnixMillis};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, watch};

use crate::config::ShardConfig;
use crate::core_task::spawn_core;
use crate::engine::{Engine, Maker, failed};
use crate::error::{SnapshotError, StartError};
use crate::expiry::{self, SweepAlarm};
use crate::gate::LeaseGate;
use crate::network::{Network, Peer, PeerHandler};
use crate::progress::Progress;
use crate::proposer::Proposer;
use crate::queue::{Forward, Queue, Refused, Submission};
use crate::recovery;
use crate::replica::{Leadership, Replica};
use crate::runtime::{Task, blocking, reclaimer, sleep, timeout};
use crate::snapshot::{self, Snapshots};
use crate::split::{Births, Ownership};
use crate::state_machine::StateMachine;
use crate::status::{Counters, Failure, Members, Role, ShardStatus};
use crate::watcher;

/// What a shard is made of.
#[derive(Debug)]
pub struct ShardParts {
    /// Which shard.
    pub id: ShardId,
    /// Which node.
    pub node: NodeId,
    /// Its store: empty, and given to nobody else who writes.
    pub store: Arc<Store>,
    /// The node's log, opened.
    pub log: Log,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// The way to other nodes.
    pub network: Arc<dyn Network>,
    /// The way of commands to whoever leads, where another node can.
    pub forward: Option<Arc<dyn Forward>>,
    /// Who is told of shards that are split off this one.
    pub births: Option<Arc<dyn Births>>,
    /// What to do if the log holds nothing of this shard yet.
    pub formation: Formation,
    /// Settings.
    pub config: ShardConfig,
}

/// What a replica does at its very first start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Formation {
    /// It founds the shard, as its only voter. Right on exactly one node of a cluster.
    Found,
    /// It begins with these voters, itself one of them. Right only if all of them do the same: the
    /// first entry of their logs is then the same.
    Members(BTreeSet<NodeId>),
    /// It waits until a leader adds it.
    Join,
}

/// A replica of a shard. Cheap to clone, usable from any thread.
#[derive(Clone)]
pub struct Shard {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) replica: Arc<Replica>,
    pub(crate) maker: Maker,
    peer_handler: PeerHandler,
    proposer: Mutex<Option<Task<()>>>,
    /// Tasks that may be ended at any point.
    helpers: Mutex<Vec<Task<()>>>,
    /// Those among them that belong to one consensus engine.
    attached: Mutex<Vec<Task<()>>>,
    /// Held while the engine is ended or renewed.
    pub(crate) changing: tokio::sync::Mutex<()>,
}

impl Inner {
    /// Starts the tasks of the consensus engine that runs now. `had_vote`: before it ran, this
    /// replica may have voted.
    pub(crate) fn attach(&self, had_vote: bool) {
        let replica = &self.replica;
        let is_behind = replica.is_behind();
        // A sole voter has nobody whose lease it could break; unless it was one, and does not know
        // by whom it was followed.
        let has_lease = had_vote && (is_behind || !replica.is_sole_voter());
        let refuses = has_lease && !bug::is_on(Bug::VoteAfterRestart);
        let watch = watcher::run(Arc::clone(replica), Arc::clone(&self.maker.machine.alarm));
        let mut tasks = vec![spawn_core("watcher", watch)];
        if refuses || is_behind {
            let until = refuses.then(|| replica.refuse_votes());
            tasks.push(spawn_core("votes", stand_later(Arc::clone(replica), until)));
        } else {
            // Nobody's lease could be broken.
            replica.engine().raft.runtime_config().elect(true);
        }
        self.attached.lock().extend(tasks);
    }

    /// Ends the consensus engine; returns when nothing of it changes anything any more. Only while
    /// `changing` is held, and before [`Inner::start_anew`].
    pub(crate) async fn halt(&self) {
        self.detach().await;
        self.replica.gate.close();
        self.replica.engine().end().await;
    }

    /// Starts the consensus engine once more, on what log and store hold by then.
    ///
    /// # Errors
    /// See [`StartError`]; the replica has then failed.
    pub(crate) async fn start_anew(&self) -> Result<(), StartError> {
        let replica = &self.replica;
        let engine = self.maker.start().await.inspect_err(|error| {
            replica.fail(Failure::Engine(error.to_string()));
        })?;
        *replica.engine.write() = Arc::new(engine);
        self.attach(true);
        replica.leadership_changes.send_modify(|count| *count += 1);
        Ok(())
    }

    /// Ends the tasks of the consensus engine.
    async fn detach(&self) {
        let tasks = std::mem::take(&mut *self.attached.lock());
        end(tasks).await;
    }
}

async fn end(tasks: Vec<Task<()>>) {
    for task in &tasks {
        task.abort();
    }
    for task in tasks {
        // Ended by abort, which is how it was meant.
        let _ = task.await;
    }
}

impl fmt::Debug for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shard")
            .field("id", &self.inner.replica.id)
            .field("node", &self.inner.replica.node)
            .finish_non_exhaustive()
    }
}

impl Shard {
    /// Recovers the shard from its latest snapshot and the log after it, and starts its tasks on
    /// the current runtime, where they stay. Returns before the shard can write: see
    /// [`Shard::wait_writable`]. Several shards may start at once.
    ///
    /// # Errors
    /// See [`StartError`]; nothing is left running.
    ///
    /// # Cancellation
    /// Not safe to drop: tasks may be left running.
    pub async fn start(parts: ShardParts) -> Result<Self, StartError> {
        let id = parts.id;
        let shared = Shared::default();
        shared
            .counters
            .snapshot_due_bytes
            .store(parts.config.snapshot_log_bytes, Ordering::Relaxed);
        // Freeing millions of entries takes seconds, which the shard's runtime has not.
        parts.store.set_reclaimer(reclaimer());
        let machine = shared.machine(&parts);
        let state = machine.log.state();
        let tombstone = state.tombstone;
        shared
            .progress
            .remember(tombstone.map(|tombstone| tombstone.gone_at));
        let recovering = machine.clone();
        blocking(move || recovery::recover(id, &recovering))
            .await
            .map_err(|error| failed(id, &error))??;
        machine.keep_snapshot_room();
        let maker = Maker {
            id,
            node: parts.node,
            clock: Arc::clone(&parts.clock),
            network: Arc::clone(&parts.network),
            formation: parts.formation.clone(),
            config: parts.config.clone(),
            machine,
        };
        let engine = maker.start().await?;
        let replica = shared.replica(parts, engine);
        let poisoned = Arc::downgrade(&replica);
        replica.node_log.on_poison(Box::new(move |reason| {
            if let Some(replica) = poisoned.upgrade() {
                replica.fail(Failure::LogPoisoned(reason.to_owned()));
            }
        }));
        let cramped = Arc::downgrade(&replica);
        replica.node_log.on_full(Box::new(move || {
            if let Some(replica) = cramped.upgrade() {
                replica.want_space();
            }
        }));
        let shard = Self::spawn(replica, maker, state.vote.is_some());
        shard.campaign_if_alone().await;
        Ok(shard)
    }

    /// Starts the tasks of a replica whose consensus engine runs.
    fn spawn(replica: Arc<Replica>, maker: Maker, had_vote: bool) -> Self {
        let machine = &maker.machine;
        let proposer = Proposer::new(Arc::clone(&replica));
        let snapshots = snapshot::run(Arc::clone(&replica), machine.clone());
        let sweeps = expiry::run(Arc::clone(&replica), Arc::clone(&machine.alarm));
        let helpers = vec![
            spawn_core("snapshots", snapshots),
            spawn_core("expiry", sweeps),
        ];
        let inner = Inner {
            peer_handler: PeerHandler::new(Arc::clone(&replica)),
            proposer: Mutex::new(Some(spawn_core("proposer", proposer.run()))),
            helpers: Mutex::new(helpers),
            attached: Mutex::new(Vec::new()),
            changing: tokio::sync::Mutex::new(()),
            replica,
            maker,
        };
        inner.attach(had_vote);
        Self {
            inner: Arc::new(inner),
        }
    }

    /// A sole voter need not wait for a leader that cannot be.
    async fn campaign_if_alone(&self) {
        let replica = &self.inner.replica;
        if replica.is_sole_voter()
            && !replica.is_behind()
            && !matches!(replica.leadership(), Leadership::Leads(_))
            && let Err(fatal) = replica.engine().raft.trigger().elect(false).await
        {
            tracing::error!(shard = %replica.id, error = %fatal, "cannot campaign");
        }
    }

    /// Hands commands to the proposer, from any thread. Each submission is answered once, when all
    /// its commands are committed and applied, or refused. If the shard has stopped, that answer
    /// comes at once.
    ///
    /// # Errors
    /// The submission itself, if the queue is full: answer *busy*.
    pub fn submit(&self, submission: Submission) -> Result<(), Submission> {
        match self.inner.replica.queue.push(submission) {
            Ok(()) => Ok(()),
            Err(Refused::Busy(submission)) => Err(submission),
            Err(Refused::Closed(submission)) => {
                let error = Error::not_done(ErrorCode::ShuttingDown, "the shard is shutting down");
                let answers = vec![Answer::error(error); submission.commands.len()];
                drop(submission.reply.send(answers));
                Ok(())
            }
        }
    }

    /// The clock that decides what has expired, for reads of the store. Take it before the read.
    #[must_use]
    pub fn now(&self) -> UnixMillis {
        self.inner.replica.now()
    }

    /// The shard's expiry clock, if its store may be read without asking anybody: what is read may
    /// be behind what others have written, but is a state that was. None while a snapshot's
    /// state is not yet whole (rule 4), once this replica has failed, and unless it belongs to the
    /// shard by what it has applied.
    #[must_use]
    pub fn stale_now(&self) -> Option<UnixMillis> {
        let replica = self.replica();
        let is_sound = replica.failure.borrow().is_none()
            && !replica.is_retiring.load(Ordering::Acquire)
            && replica.progress.is_whole()
            && replica.progress.includes(replica.node);
        is_sound.then(|| self.now())
    }

    /// The term whose lease is open at `now`. What is read from the store may be answered without
    /// asking anyone if this was some term before the read, and is the same for a `now` that was
    /// sampled after it.
    #[must_use]
    pub fn lease(&self, now: Instant) -> Option<Term> {
        if bug::is_on(Bug::LocalReads) {
            let status = self.status();
            return (status.role == Role::Leader).then_some(status.term);
        }
        self.inner.replica.gate.lease(now)
    }

    /// Returns once a read of the store sees every write acknowledged before the call. Calls made
    /// together share one round.
    ///
    /// # Errors
    /// [`ErrorCode::Timeout`] at the deadline; [`ErrorCode::NotLeader`] or
    /// [`ErrorCode::Unavailable`] if this replica cannot tell, or no majority has answered it lately.
    ///
    /// # Cancellation
    /// Safe to drop.
    pub async fn read_barrier(&self, deadline: Instant) -> Result<(), Error> {
        self.inner.replica.read_barrier(deadline).await
    }

    /// The shard's number.
    #[must_use]
    pub fn id(&self) -> ShardId {
        self.inner.replica.id
    }

    /// The way to another replica of this shard.
    pub(crate) fn peer(&self, node: NodeId) -> Box<dyn Peer> {
        self.inner.maker.network.peer(self.id(), node)
    }

    /// The store, for reads.
    #[must_use]
    pub fn store(&self) -> &Arc<Store> {
        &self.inner.replica.store
    }

    /// A picture of this replica.
    #[must_use]
    pub fn status(&self) -> ShardStatus {
        self.inner.replica.status()
    }

    /// Who leads and who belongs to the shard: cheaper than [`Shard::status`].
    #[must_use]
    pub fn members(&self) -> Members {
        self.inner.replica.members()
    }

    /// Whether this replica leads and has applied all it must before it evaluates.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        matches!(self.inner.replica.leadership(), Leadership::Leads(_))
    }

    /// Waits until [`Shard::is_writable`].
    ///
    /// # Errors
    /// [`ErrorCode::Timeout`] at the deadline, [`ErrorCode::Unavailable`] if it never will be.
    ///
    /// # Cancellation
    /// Safe to drop.
    pub async fn wait_writable(&self, deadline: Instant) -> Result<(), Error> {
        let replica = &self.inner.replica;
        let mut changes = replica.leadership_changes.subscribe();
        let left = deadline.saturating_since(replica.clock.now());
        let writable = async {
            loop {
                changes.borrow_and_update();
                match replica.leadership() {
                    Leadership::Leads(_) => return Ok(()),
                    Leadership::Failed => {
                        let message = "the shard has failed";
                        return Err(Error::not_done(ErrorCode::Unavailable, message));
                    }
                    Leadership::Follows(_) | Leadership::Unknown => {}
                }
                if changes.changed().await.is_err() {
                    let message = "the shard is shutting down";
                    return Err(Error::not_done(ErrorCode::ShuttingDown, message));
                }
            }
        };
        match timeout(left, writable).await {
            Ok(result) => result,
            Err(_) => Err(Error::not_done(
                ErrorCode::Timeout,
                "the shard could not write in time",
            )),
        }
    }

    /// Waits until this replica cannot go on. The process should then end.
    ///
    /// # Cancellation
    /// Safe to drop.
    pub async fn failed(&self) -> Failure {
        let mut failure = self.inner.replica.failure.subscribe();
        loop {
            if let Some(failure) = failure.borrow_and_update().clone() {
                return failure;
            }
            if failure.changed().await.is_err() {
                // The sender lives in the replica, which this handle keeps alive.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Takes a snapshot now; answers the last entry it stands for. The log before it is purged,
    /// but for a tail.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    ///
    /// # Cancellation
    /// Safe to drop: a snapshot that is not finished never counts.
    pub async fn snapshot(&self) -> Result<LogId, SnapshotError> {
        let info = snapshot::take(&self.inner.maker.machine).await?;
        snapshot::adopt(&self.inner.replica).await;
        Ok(info.start)
    }

    /// What answers other replicas of this shard.
    #[must_use]
    pub fn peer_handler(&self) -> PeerHandler {
        self.inner.peer_handler.clone()
    }

    /// Waits until this index is applied here, or the replica has forgotten everything
    /// ([`Shard::retire`]).
    ///
    /// # Cancellation
    /// Safe to drop.
    pub async fn wait_applied(&self, index: LogIndex) {
        self.inner.replica.progress.wait_applied(index).await;
    }

    /// The last entry applied here, and so committed.
    #[must_use]
    pub fn applied(&self) -> Option<LogId> {
        self.inner.replica.progress.applied_id()
    }

    /// The last entry applied here or being applied.
    #[must_use]
    pub fn applying(&self) -> Option<LogId> {
        self.inner.replica.progress.applying()
    }

    /// Whether the store holds a state that once was: see [`Shard::wait_whole`].
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.inner.replica.progress.is_whole()
    }

    /// Waits until the store holds a state that once was, as it does not while the end of a
    /// snapshot is being replayed (rule 4).
    ///
    /// # Cancellation
    /// Safe to drop.
    pub async fn wait_whole(&self) {
        self.inner.replica.progress.wait_whole().await;
    }

    /// The shard's log, for those who follow what is committed.
    #[must_use]
    pub fn log(&self) -> &ShardLog {
        &self.inner.replica.log
    }

    /// Closes the gate, finishes the batch in flight, refuses what waits behind it and ends all
    /// tasks. The log is the node's to close.
    ///
    /// # Cancellation
    /// Not safe to drop: call it again then.
    pub async fn shutdown(&self) {
        let replica = &self.inner.replica;
        replica.gate.close();
        replica.queue.close();
        let proposer = self.inner.proposer.lock().take();
        if let Some(proposer) = proposer
            && let Err(error) = proposer.await
        {
            tracing::error!(shard = %replica.id, %error, "the proposer did not end in order");
        }
        let _alone = self.inner.changing.lock().await;
        let helpers = std::mem::take(&mut *self.inner.helpers.lock());
        end(helpers).await;
        self.inner.detach().await;
        if let Err(error) = replica.engine().raft.shutdown().await {
            tracing::error!(shard = %replica.id, %error, "the consensus engine did not end in order");
        }
    }

    pub(crate) fn replica(&self) -> &Arc<Replica> {
        &self.inner.replica
    }
}

/// Lets a replica that has just started stand for election once it may vote: it has a vote for itself
/// as well, and that must not break the lease of a leader that it has forgotten either. And not before
/// its log reaches what it had when it was let go.
async fn stand_later(replica: Arc<Replica>, until: Option<Instant>) {
    let engine = replica.engine();
    if let Some(until) = until {
        sleep(until.saturating_since(replica.clock.now())).await;
    }
    replica.progress.wait_until(|| !replica.is_behind()).await;
    engine.raft.runtime_config().elect(true);
}

/// What the tasks of a replica share before there is a replica.
#[derive(Default)]
struct Shared {
    progress: Arc<Progress>,
    alarm: Arc<SweepAlarm>,
    counters: Arc<Counters>,
    snapshots: Arc<Snapshots>,
    snapshot_wanted: Arc<Notify>,
    ownership: Arc<Ownership>,
}

impl Shared {
    fn machine(&self, parts: &ShardParts) -> StateMachine {
        StateMachine {
            shard: parts.id,
            node: parts.node,
            node_log: parts.log.clone(),
            ownership: Arc::clone(&self.ownership),
            births: parts.births.clone(),
            store: Arc::clone(&parts.store),
            log: parts.log.shard(parts.id),
            progress: Arc::clone(&self.progress),
            alarm: Arc::clone(&self.alarm),
            counters: Arc::clone(&self.counters),
            snapshot_wanted: Arc::clone(&self.snapshot_wanted),
            snapshots: Arc::clone(&self.snapshots),
            block_bytes: parts.config.snapshot_block_bytes,
            held: None,
        }
    }

    fn replica(&self, parts: ShardParts, engine: Engine) -> Arc<Replica> {
        let tombstone = parts.log.shard(parts.id).state().tombstone;
        let gone_term = tombstone.map_or(0, |tombstone| tombstone.gone_at.term.get());
        Arc::new(Replica {
            id: parts.id,
            node: parts.node,
            clock: parts.clock,
            store: parts.store,
            log: parts.log.shard(parts.id),
            node_log: parts.log,
            engine: RwLock::new(Arc::new(engine)),
            is_retiring: AtomicBool::new(false),
            refuse_votes_until: AtomicU64::new(0),
            gone_term: AtomicU64::new(gone_term),
            progress: Arc::clone(&self.progress),
            ownership: Arc::clone(&self.ownership),
            gate: LeaseGate::default(),
            snapshots: Arc::clone(&self.snapshots),
            pauses: AtomicUsize::new(0),
            queue: Queue::new(parts.config.queue_operations_max),
            counters: Arc::clone(&self.counters),
            forward: parts.forward,
            snapshot_wanted: Arc::clone(&self.snapshot_wanted),
            failure: watch::Sender::new(None),
            leadership_changes: watch::Sender::new(0),
            config: parts.config,
        })
    }
}

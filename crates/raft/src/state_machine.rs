//! openraft's state machine over the shard's store.
//!
//! Apply is thin: it parses a batch, asks whether it is effective (rule 2) and hands it to the
//! store. It never looks at a clock and never fails but on bytes that no writer of ours wrote, and on
//! an entry that does not follow the last one.
//! Snapshots are taken elsewhere ([`crate::snapshot`]): when openraft asks for one it gets what is
//! already on disk, so that neither a full disk nor a slow one is ever an error inside openraft.
//!
//! Hot path: one call per entry.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use flux_log::{Log, LogId, ShardLog};
use flux_store::Store;
use flux_store::batch::effective;
use flux_types::bug::{self, Bug};
use flux_types::{NodeId, ShardId, SlotMap};
use futures_util::{Stream, TryStreamExt};
use openraft::entry::{EntryPayload, RaftEntry as _};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use tokio::sync::{Notify, oneshot};

use crate::codec::{from_raft_id, to_raft_id};
use crate::expiry::SweepAlarm;
use crate::log_store::to_io;
use crate::progress::Progress;
use crate::runtime::{blocking, pause};
use crate::snapshot::{self, SnapshotData, Snapshots};
use crate::split::{self, Births, Ownership, Split};
use crate::status::Counters;
use crate::type_config::{Applied, Payload, RaftLogId, SnapshotMeta, StoredMembership, TypeConfig};

type RaftSnapshot = openraft::alias::SnapshotOf<TypeConfig, SnapshotData>;

/// Bytes of batches applied in a row before other tasks of the runtime get a turn.
const APPLY_BYTES_PER_TURN: usize = 1024 * 1024;

/// By how much a snapshot grows before the log is asked for more room.
const ROOM_STEP_BYTES: u64 = 64 * 1024;

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct StateMachine {
    pub(crate) shard: ShardId,
    pub(crate) node: NodeId,
    pub(crate) node_log: Log,
    pub(crate) ownership: Arc<Ownership>,
    pub(crate) births: Option<Arc<dyn Births>>,
    pub(crate) store: Arc<Store>,
    pub(crate) log: ShardLog,
    pub(crate) progress: Arc<Progress>,
    pub(crate) alarm: Arc<SweepAlarm>,
    pub(crate) counters: Arc<Counters>,
    /// Told when openraft needs a snapshot that does not exist yet.
    pub(crate) snapshot_wanted: Arc<Notify>,
    pub(crate) snapshots: Arc<Snapshots>,
    /// About how large a block of a snapshot is.
    pub(crate) block_bytes: usize,
    /// Dropped when the engine that applies through this one, or a part of it, has ended.
    #[expect(dead_code, reason = "only that it is dropped counts")]
    pub(crate) held: Option<Arc<oneshot::Sender<()>>>,
}

/// What became of an entry.
enum Step {
    /// It is applied.
    Done(Applied),
    /// Nothing yet: the shard is split by it, and this is whose slots are whose then.
    Split(SlotMap),
}

impl StateMachine {
    /// Tells the log for how large a snapshot it must keep room (rule 11), whenever that has
    /// changed by more than a little.
    pub(crate) fn keep_snapshot_room(&self) {
        let bytes = self.store.snapshot_bytes_at_most() + ROOM_STEP_BYTES;
        let asked = self.counters.snapshot_room_bytes.load(Ordering::Relaxed);
        if ROOM_STEP_BYTES <= bytes.abs_diff(asked) {
            self.counters
                .snapshot_room_bytes
                .store(bytes, Ordering::Relaxed);
            self.log.keep_snapshot_room(bytes);
        }
    }

    /// For who applies nothing.
    pub(crate) fn without_engine(&self) -> Self {
        Self {
            held: None,
            ..self.clone()
        }
    }

    /// Applies one entry: the only way into the store but a snapshot. An entry that splits the shard
    /// is left to [`StateMachine::divide`].
    fn apply_entry(&self, id: LogId, payload: &Payload) -> io::Result<Step> {
        if let Some(last) = self.progress.applied_id()
            && last.index.next() != id.index
        {
            return Err(does_not_follow(id, last));
        }
        let mut membership = None;
        let mut applied = Applied::Effective;
        match payload {
            EntryPayload::Blank => {}
            EntryPayload::Normal(batch) => match effective(id.term, &batch.bytes) {
                Ok(Some(view)) => {
                    if let Some(slots) = split::of_batch(&view) {
                        return Ok(Step::Split(slots));
                    }
                    self.progress.begin(id);
                    self.store.apply(&view);
                }
                Ok(None) => {
                    tracing::info!(term = %id.term, index = %id.index, "skipped a void batch");
                    applied = Applied::Void;
                }
                Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
            },
            EntryPayload::Membership(new) => {
                membership = Some(StoredMembership::new(Some(to_raft_id(id)), new.clone()));
            }
        }
        self.progress.finish(id, membership);
        Ok(Step::Done(applied))
    }

    /// Applies an entry that splits the shard.
    async fn apply_split(&self, id: LogId, payload: &Payload, slots: SlotMap) -> io::Result<()> {
        let EntryPayload::Normal(batch) = payload else {
            return Ok(());
        };
        let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
        match effective(id.term, &batch.bytes).map_err(invalid)? {
            Some(view) => self.divide(id, Split::new(slots), &view).await,
            None => Ok(()),
        }
    }
}

/// openraft left something out. Applied all the same, this replica would differ from the others.
fn does_not_follow(id: LogId, last: LogId) -> io::Error {
    let (index, last) = (id.index, last.index);
    let reason = format!("entry {index} does not follow {last}, the last one applied");
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = LatestSnapshot;

    async fn applied_state(&mut self) -> io::Result<(Option<RaftLogId>, StoredMembership)> {
        let (applied, membership) = self.progress.applied();
        Ok((applied.map(to_raft_id), membership))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + Send,
    {
        let mut bytes_in_turn = 0;
        while let Some((entry, responder)) = entries.try_next().await? {
            let id = from_raft_id(&entry.log_id());
            if bug::is_on(Bug::GroupNotAtomic) {
                self.apply_in_parts(id, &entry.payload).await;
            }
            let applied = match self.apply_entry(id, &entry.payload)? {
                Step::Done(applied) => applied,
                Step::Split(slots) => {
                    self.apply_split(id, &entry.payload, slots).await?;
                    Applied::Effective
                }
            };
            if let Some(responder) = responder {
                responder.send(applied);
            }
            if let EntryPayload::Normal(batch) = &entry.payload {
                bytes_in_turn += batch.bytes.len();
            }
            if bytes_in_turn >= APPLY_BYTES_PER_TURN {
                bytes_in_turn = 0;
                tokio::task::yield_now().await;
            }
        }
        self.alarm.applied(&self.store);
        self.keep_snapshot_room();
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<LatestSnapshot> {
        // Whoever needs one is served once it is on disk; then openraft is told again.
        if !force && self.snapshots.latest_info().is_none() {
            self.snapshot_wanted.notify_one();
            return None;
        }
        Some(LatestSnapshot {
            machine: self.without_engine(),
            must_build: force,
        })
    }

    async fn get_snapshot_builder(&mut self) -> LatestSnapshot {
        LatestSnapshot {
            machine: self.without_engine(),
            must_build: true,
        }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotData,
    ) -> io::Result<()> {
        let machine = self.clone();
        let meta = meta.clone();
        // Before anybody is told that all of it is applied: what the log held of it may be what a
        // former leader never had committed, and is no history. openraft purges only afterward.
        let start = snapshot.info().start;
        self.log.purge_to(start, Box::new(drop)).map_err(to_io)?;
        blocking(move || machine.install(&meta, &snapshot))
            .await
            .map_err(io::Error::other)?
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<RaftSnapshot>> {
        let (snapshots, log) = (Arc::clone(&self.snapshots), self.log.clone());
        blocking(move || snapshots.open(&log))
            .await
            .map_err(io::Error::other)?
    }
}

impl StateMachine {
    /// Applies the facts of a batch one by one, others running in between ([`Bug::GroupNotAtomic`]);
    /// the batch is then applied whole.
    #[cold]
    async fn apply_in_parts(&self, id: LogId, payload: &Payload) {
        let EntryPayload::Normal(batch) = payload else {
            return;
        };
        let mut count = 1;
        while let Ok(Some(view)) = effective(id.term, &batch.bytes)
            && self.store.apply_partly(&view, count)
        {
            count += 1;
            pause().await;
        }
    }

    /// Loads a snapshot beside the store and swaps it in.
    pub(crate) fn install(&self, meta: &SnapshotMeta, data: &SnapshotData) -> io::Result<()> {
        let info = data.info();
        let start = meta.last_log_id.as_ref().map(from_raft_id);
        if start != Some(info.start) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a snapshot's contents are of another entry than its metadata",
            ));
        }
        snapshot::load(data, &self.store)?;
        self.keep_snapshot_room();
        self.ownership.follow(&self.store);
        self.progress
            .install(info.start, info.end.index, meta.last_membership.clone());
        self.counters.log_bytes.store(0, Ordering::Relaxed);
        Ok(())
    }
}

/// Answers openraft's wish for a snapshot with the one on disk.
#[derive(Debug)]
pub(crate) struct LatestSnapshot {
    machine: StateMachine,
    /// There must be one of what is applied now: build it first.
    must_build: bool,
}

impl RaftSnapshotBuilder<TypeConfig> for LatestSnapshot {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> io::Result<RaftSnapshot> {
        if self.must_build {
            snapshot::take(&self.machine)
                .await
                .map_err(|error| io::Error::other(error.to_string()))?;
        }
        // openraft keeps the metadata of what was built and asks again for the contents.
        let latest = self.machine.snapshots.latest_info();
        let none = || io::Error::new(io::ErrorKind::NotFound, "no snapshot on disk");
        let latest = latest.ok_or_else(none)?;
        // One that was just received may be ahead of what is applied here. openraft purges the log
        // up to what it is told, and would then find nothing to apply.
        self.machine.progress.wait_applied(latest.start.index).await;
        snapshot::named(latest)
    }
}

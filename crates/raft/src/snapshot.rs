//! Snapshots: the store on disk, taken while writes go on, and loaded back.
//!
//! A snapshot is fuzzy. Its walk begins when entry S was the last applied and ends when E was the
//! last applied or being applied; each key in it is as it was at some moment between. Replaying the
//! log from S on repairs that, because facts are absolute, and at E the state is whole. Hence the
//! rules: the file gets its final name only after E is applied and flushed here, the log after S is
//! kept with it, and whoever loads it serves nothing until E is applied again.
//!
//! The walk runs on a blocking thread and takes the store's locks for one block at a time, so the
//! shard's runtime never waits for it. openraft learns of a snapshot only when it is finished
//! ([`adopt`]); one that fails is logged and tried again, and the one before stays.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use flux_log::{
    LogError, LogId, ShardLog, SnapshotFooter, SnapshotReader, SnapshotWriter, Space, Vote,
};
use flux_store::{Store, Walk};
use flux_types::bug::{self, Bug};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::codec::{SnapshotExtra, to_raft_id};
use crate::error::SnapshotError;
use crate::log_store::to_io;
use crate::network::{SnapshotInfo, SnapshotTransfer};
use crate::replica::Replica;
use crate::runtime::{blocking, pause, sleep};
use crate::state_machine::StateMachine;
use crate::type_config::{SnapshotMeta, TypeConfig};

/// Pause after a snapshot that failed.
const RETRY: Duration = Duration::from_secs(5);

/// How long the engine may take to note a snapshot.
const ADOPTION: Duration = Duration::from_secs(5);

type RaftSnapshot = openraft::alias::SnapshotOf<TypeConfig, SnapshotData>;

/// A snapshot on disk, opened, as openraft hands it around. The open file stays readable when a
/// newer snapshot takes its place.
#[derive(Clone, Debug)]
pub(crate) struct SnapshotData {
    info: SnapshotInfo,
    /// Taken by whoever reads it: to load it or to send it.
    reader: Arc<Mutex<Option<SnapshotReader>>>,
}

/// What is known of a shard's snapshots, and whose turn it is with them.
///
/// Lock order: `turn`, then `walking`, then `placing`, then `files`, then `latest`.
#[derive(Debug, Default)]
pub(crate) struct Snapshots {
    /// Held while a snapshot is taken: one at a time.
    pub(crate) turn: tokio::sync::Mutex<()>,
    /// Held while the store is walked over, and while it is parted ([`crate::split`]).
    pub(crate) walking: tokio::sync::Mutex<()>,
    /// Held while a snapshot gets its name or is opened by it: naming one removes the one before.
    files: Mutex<()>,
    latest: Mutex<Option<SnapshotInfo>>,
    /// Size of the last one named since the start, in bytes.
    size_bytes: AtomicU64,
    /// How many receipts have begun: each ends the one before.
    receipts: AtomicU64,
    /// Held while one that was received is put in place: one at a time.
    pub(crate) placing: tokio::sync::Mutex<()>,
}

impl Snapshots {
    /// What the latest snapshot on disk stands for.
    pub(crate) fn latest_info(&self) -> Option<SnapshotInfo> {
        self.latest.lock().clone()
    }

    /// Size of the last snapshot named since the start, in bytes.
    fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Relaxed)
    }

    /// Forgets and removes them all; the log has forgotten them. Blocks on the disk.
    pub(crate) fn forget(&self, log: &ShardLog) {
        let _files = self.files.lock();
        log.remove_snapshots();
        *self.latest.lock() = None;
        self.size_bytes.store(0, Ordering::Relaxed);
    }

    /// Opens the latest snapshot on disk. Blocks on the disk.
    pub(crate) fn open(&self, log: &ShardLog) -> io::Result<Option<RaftSnapshot>> {
        let _files = self.files.lock();
        let reader = log.latest_snapshot().map_err(to_io)?;
        let snapshot = reader.map(for_raft).transpose()?;
        *self.latest.lock() = snapshot.as_ref().map(|found| found.snapshot.info.clone());
        Ok(snapshot)
    }

    /// Gives a snapshot its name. Blocks on the disk.
    fn publish(
        &self,
        info: &SnapshotInfo,
        finish: impl FnOnce() -> Result<SnapshotReader, LogError>,
    ) -> Result<SnapshotReader, LogError> {
        let _files = self.files.lock();
        let reader = finish()?;
        self.size_bytes
            .store(reader.footer().bytes, Ordering::Relaxed);
        *self.latest.lock() = Some(info.clone());
        Ok(reader)
    }
}

/// Takes snapshots when they are wanted, until it is dropped.
pub(crate) async fn run(replica: Arc<Replica>, machine: StateMachine) {
    loop {
        replica.snapshot_wanted.notified().await;
        match take(&machine).await {
            Ok(info) => {
                tracing::info!(shard = %replica.id, index = %info.start.index, "snapshot taken");
                let due = replica
                    .config
                    .snapshot_log_bytes
                    .max(replica.snapshots.size_bytes());
                replica
                    .counters
                    .snapshot_due_bytes
                    .store(due, Ordering::Relaxed);
                adopt(&replica).await;
                if matches!(replica.node_log.space(), Space::Full) {
                    purge_all(&replica, &info).await;
                }
            }
            Err(error @ (SnapshotError::Empty | SnapshotError::Cancelled)) => {
                tracing::debug!(shard = %replica.id, %error, "no snapshot taken");
            }
            Err(error) => {
                tracing::warn!(shard = %replica.id, %error, "failed to take a snapshot");
                sleep(RETRY).await;
                replica.snapshot_wanted.notify_one();
            }
        }
    }
}

/// Tells openraft of the latest snapshot, so that it purges what lies before and sends it to
/// replicas that need it.
pub(crate) async fn adopt(replica: &Replica) {
    if let Err(fatal) = replica.engine().raft.trigger().snapshot().await {
        tracing::debug!(shard = %replica.id, error = %fatal, "the engine takes no snapshot");
    }
}

/// On a full disk no tail of the log is kept for replicas that were away for a moment.
async fn purge_all(replica: &Replica, info: &SnapshotInfo) {
    let upto = to_raft_id(info.start);
    let engine = replica.engine();
    let adopted = engine
        .raft
        .wait(Some(ADOPTION))
        .metrics(|metrics| metrics.snapshot >= Some(upto), "snapshot adopted")
        .await;
    if let Err(error) = adopted {
        tracing::debug!(shard = %replica.id, %error, "the engine adopts no snapshot");
        return;
    }
    if let Err(fatal) = engine.raft.trigger().purge_log(upto.index()).await {
        tracing::debug!(shard = %replica.id, error = %fatal, "the engine purges nothing");
    }
}

/// Takes a snapshot of the store while it changes.
pub(crate) async fn take(machine: &StateMachine) -> Result<SnapshotInfo, SnapshotError> {
    let _turn = machine.snapshots.turn.lock().await;
    let counted = machine.counters.log_bytes.swap(0, Ordering::Relaxed);
    let taken = walk_and_finish(machine).await;
    match &taken {
        Ok(_) => {
            machine.counters.snapshots.fetch_add(1, Ordering::Relaxed);
        }
        Err(_) => {
            machine
                .counters
                .log_bytes
                .fetch_add(counted, Ordering::Relaxed);
        }
    }
    taken
}

async fn walk_and_finish(machine: &StateMachine) -> Result<SnapshotInfo, SnapshotError> {
    let parted = machine.snapshots.walking.lock().await;
    let walking = machine.clone();
    let (writer, info) = if flux_env::world().is_some() {
        // Batches are applied between the blocks, as they are beside a thread that walks.
        let mut walking = Walking::begin(walking)?;
        while walking.step()? {
            pause().await;
        }
        walking.end()
    } else {
        let walked = blocking(move || {
            let mut walking = Walking::begin(walking)?;
            while walking.step()? {}
            Ok::<_, SnapshotError>(walking.end())
        });
        walked.await.map_err(|_| SnapshotError::Cancelled)??
    };
    drop(parted);
    // E is in the store, so it is committed; it must also be applied and flushed here, or the
    // file could speak of entries that this log forgets in a power cut (rule 4).
    machine.progress.wait_applied(info.end.index).await;
    let (done, synced) = oneshot::channel();
    machine
        .log
        .sync(Box::new(move |result| drop(done.send(result))));
    match synced.await {
        Ok(result) => result?,
        Err(_) => return Err(SnapshotError::Cancelled),
    }
    let footer = SnapshotFooter::new(info.end, info.meta.clone());
    let (snapshots, named) = (Arc::clone(&machine.snapshots), info.clone());
    let publish = move || snapshots.publish(&named, || writer.finish(footer));
    blocking(publish)
        .await
        .map_err(|_| SnapshotError::Cancelled)??;
    Ok(info)
}

/// Writes every key to a file without its final name, a block at a time.
struct Walking {
    machine: StateMachine,
    start: LogId,
    extra: SnapshotExtra,
    writer: SnapshotWriter,
    walk: Walk,
}

impl Walking {
    fn begin(machine: StateMachine) -> Result<Self, SnapshotError> {
        // S first, then the walk: every batch up to S is in the store before the first key is read.
        let (start, membership) = machine.progress.applied();
        let start = start.ok_or(SnapshotError::Empty)?;
        let extra = SnapshotExtra {
            revision: machine.store.revision(),
            last_batch_at: machine.store.last_batch_at(),
            membership,
        };
        Ok(Self {
            writer: machine.log.begin_snapshot(start)?,
            walk: machine.store.walk(),
            machine,
            start,
            extra,
        })
    }

    /// Writes the next block; whether there was one.
    fn step(&mut self) -> Result<bool, SnapshotError> {
        let block = self
            .walk
            .next_block(self.machine.block_bytes)
            .map_err(|_| SnapshotError::Replaced)?;
        let Some(block) = block else {
            return Ok(false);
        };
        self.writer.block(&block)?;
        Ok(true)
    }

    fn end(self) -> (SnapshotWriter, SnapshotInfo) {
        // E last: what was being applied when the walk ended may be in it, in part.
        let end = self.machine.progress.applying().unwrap_or(self.start);
        let info = SnapshotInfo {
            start: self.start,
            end,
            meta: self.extra.encode(),
        };
        (self.writer, info)
    }
}

/// What openraft needs to know of a snapshot that it does not read.
pub(crate) fn named(info: SnapshotInfo) -> io::Result<RaftSnapshot> {
    Ok(RaftSnapshot {
        meta: meta_of(&info)?,
        snapshot: SnapshotData {
            info,
            reader: Arc::default(),
        },
    })
}

fn meta_of(info: &SnapshotInfo) -> io::Result<SnapshotMeta> {
    Ok(SnapshotMeta {
        last_log_id: Some(to_raft_id(info.start)),
        last_membership: SnapshotExtra::decode(&info.meta)?.membership,
    })
}

fn for_raft(reader: SnapshotReader) -> io::Result<RaftSnapshot> {
    let info = SnapshotInfo {
        start: reader.header().begin,
        end: reader.footer().end,
        meta: reader.footer().meta.clone(),
    };
    Ok(RaftSnapshot {
        meta: meta_of(&info)?,
        snapshot: SnapshotData {
            info,
            reader: Arc::new(Mutex::new(Some(reader))),
        },
    })
}

impl SnapshotData {
    pub(crate) fn info(&self) -> &SnapshotInfo {
        &self.info
    }

    /// One that is not there.
    #[cfg(test)]
    pub(crate) fn absent() -> Self {
        Self {
            info: SnapshotInfo {
                start: LogId::default(),
                end: LogId::default(),
                meta: Bytes::new(),
            },
            reader: Arc::default(),
        }
    }

    fn take_reader(&self) -> io::Result<SnapshotReader> {
        let reader = self.reader.lock().take();
        reader.ok_or_else(|| io::Error::other("the snapshot was read already"))
    }
}

/// Loads a snapshot beside the store and swaps it in. Blocks on the disk.
pub(crate) fn load(data: &SnapshotData, store: &Store) -> io::Result<()> {
    let mut reader = data.take_reader()?;
    let extra = SnapshotExtra::decode(&data.info.meta)?;
    let mut loader = store.loader();
    while let Some(block) = reader.next_block().map_err(to_io)? {
        loader
            .load_block(&block)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    }
    store.install(loader, extra.revision, extra.last_batch_at);
    Ok(())
}

/// A snapshot ready to be sent, and its size.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) snapshot: SnapshotTransfer,
    pub(crate) bytes: usize,
}

/// A snapshot as it is sent.
pub(crate) fn transfer(vote: Vote, data: &SnapshotData) -> io::Result<Outgoing> {
    let reader = data.take_reader()?;
    Ok(Outgoing {
        bytes: usize::try_from(reader.footer().bytes).unwrap_or(usize::MAX),
        snapshot: SnapshotTransfer {
            vote,
            info: data.info.clone(),
            blocks: Box::new(Blocks(reader)),
        },
    })
}

#[derive(Debug)]
struct Blocks(SnapshotReader);

impl Iterator for Blocks {
    type Item = io::Result<Bytes>;

    fn next(&mut self) -> Option<Self::Item> {
        let block = self.0.next_block().map_err(to_io).transpose()?;
        Some(block.map(Bytes::from))
    }
}

/// A snapshot that another replica sent, whole, in a file without a name.
pub(crate) struct Incoming {
    writer: SnapshotWriter,
    info: SnapshotInfo,
}

/// A snapshot that another replica sent, on this disk; not counted before it is noted in the log.
#[derive(Debug)]
pub(crate) struct Received {
    log: ShardLog,
    reader: SnapshotReader,
    noted: oneshot::Receiver<Result<(), LogError>>,
}

impl Received {
    /// Waits until the log has noted it. Safe to drop: it then counts or not.
    pub(crate) async fn noted(self) -> io::Result<RaftSnapshot> {
        match self.noted.await {
            Ok(done) => done.map_err(to_io)?,
            Err(_) => return Err(io::Error::other("the log was closed")),
        }
        // Not sooner: if it did not count after a crash, the older one would.
        let (log, end) = (self.log, self.reader.footer().end);
        blocking(move || log.remove_snapshots_before(end))
            .await
            .map_err(io::Error::other)?;
        for_raft(self.reader)
    }
}

/// Takes in a snapshot that another replica sends. Blocks on the disk, and on the sender: so that
/// one that is gone holds up nobody, the next receipt ends this one.
pub(crate) fn receive(
    snapshots: &Snapshots,
    log: &ShardLog,
    transfer: SnapshotTransfer,
) -> io::Result<Incoming> {
    let receipt = snapshots.receipts.fetch_add(1, Ordering::AcqRel) + 1;
    let check_last = || {
        if snapshots.receipts.load(Ordering::Acquire) == receipt {
            return Ok(());
        }
        Err(io::Error::other("another snapshot has begun to arrive"))
    };
    let SnapshotTransfer { info, blocks, .. } = transfer;
    SnapshotExtra::decode(&info.meta)?;
    let mut writer = log.begin_snapshot(info.start).map_err(to_io)?;
    for block in blocks {
        check_last()?;
        writer.block(&block?).map_err(to_io)?;
    }
    check_last()?;
    Ok(Incoming { writer, info })
}

/// Gives a snapshot that was received its name. Blocks on the disk.
pub(crate) fn place(
    snapshots: &Snapshots,
    log: &ShardLog,
    incoming: Incoming,
) -> io::Result<Received> {
    let Incoming { writer, info } = incoming;
    let footer = SnapshotFooter::new(info.end, info.meta.clone());
    let reader = snapshots
        .publish(&info, || writer.finish_installed(footer))
        .map_err(to_io)?;
    // Noted with its end: until that is in the log too, only this note says that the file counts.
    let (done, noted) = oneshot::channel();
    let tell: flux_log::Flushed = Box::new(move |result| drop(done.send(result)));
    if bug::is_on(Bug::InstallNotNoted) {
        tell(Ok(()));
    } else {
        log.mark_installed(info.end, tell);
    }
    let log = log.clone();
    Ok(Received { log, reader, noted })
}

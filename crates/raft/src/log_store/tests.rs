//! openraft's own conformance suite over our log and state machine.

use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;
use std::sync::Arc;

use flux_env::{RealClock, SimDisk};
use flux_log::{Log, LogConfig, LogId, Seeds, Vote};
use flux_store::{Store, StoreConfig};
use flux_types::{ClusterId, LogIndex, NodeId, ShardId};
use futures_util::{Stream, TryStreamExt as _};
use openraft::StorageError;
use openraft::entry::RaftEntry as _;
use openraft::storage::{
    EntryResponder, IOFlushed, LogState, RaftLogReader, RaftLogStorage, RaftSnapshotBuilder,
    RaftStateMachine,
};
use openraft::testing::log::{StoreBuilder, Suite};

use super::{LogReader, LogStore};
use crate::codec::from_raft_id;
use crate::expiry::SweepAlarm;
use crate::progress::Progress;
use crate::snapshot::{self, SnapshotData, Snapshots};
use crate::state_machine::StateMachine;
use crate::type_config::{
    RaftEntry, RaftLogId, RaftVote, SnapshotMeta, StoredMembership, TypeConfig,
};

/// The suite begins logs in the middle, which no Raft log of ours ever does: an empty log begins at
/// index 1 or after a snapshot. This puts the missing beginning there, purged, and hides it.
#[derive(Debug)]
struct BegunAnywhere {
    store: LogStore,
    hidden_purge: Option<LogId>,
}

impl RaftLogStorage<TypeConfig> for BegunAnywhere {
    type LogReader = LogReader;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let mut state = self.store.get_log_state().await?;
        let hidden = self.hidden_purge;
        let purged = state.last_purged_log_id.as_ref().map(from_raft_id);
        if hidden.is_some() && purged == hidden {
            state.last_purged_log_id = None;
        }
        if hidden.is_some() && state.last_log_id.as_ref().map(from_raft_id) == hidden {
            state.last_log_id = None;
        }
        Ok(state)
    }

    async fn get_log_reader(&mut self) -> LogReader {
        self.store.get_log_reader().await
    }

    async fn save_vote(&mut self, vote: &RaftVote) -> io::Result<()> {
        self.store.save_vote(vote).await
    }

    async fn save_committed(&mut self, committed: Option<RaftLogId>) -> io::Result<()> {
        self.store.save_committed(committed).await
    }

    async fn read_committed(&mut self) -> io::Result<Option<RaftLogId>> {
        self.store.read_committed().await
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = RaftEntry> + Send,
        I::IntoIter: Send,
    {
        let entries: Vec<_> = entries.into_iter().collect();
        let first = entries.first().map(|entry| from_raft_id(&entry.log_id()));
        if let Some(first) = first
            && self.store.log.state().last.is_none()
            && LogIndex::new(1) < first.index
        {
            let missing = LogId {
                term: first.term,
                index: LogIndex::new(first.index.get() - 1),
            };
            self.store.log.purge_to(missing, Box::new(drop)).unwrap();
            self.hidden_purge = Some(missing);
        }
        self.store.append(entries, callback).await
    }

    async fn truncate_after(&mut self, last: Option<RaftLogId>) -> io::Result<()> {
        self.store.truncate_after(last).await
    }

    async fn purge(&mut self, upto: RaftLogId) -> io::Result<()> {
        self.hidden_purge = None;
        self.store.purge(upto).await
    }
}

impl RaftLogReader<TypeConfig> for BegunAnywhere {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<RaftEntry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + Send,
    {
        self.get_log_reader().await.try_get_log_entries(range).await
    }

    async fn read_vote(&mut self) -> io::Result<Option<RaftVote>> {
        self.get_log_reader().await.read_vote().await
    }
}

/// The suite purges logs without a snapshot, takes snapshots of what no log holds, and applies entries
/// that do not follow one another. Ours refuse all that, so this gives the log what is missing, shows
/// an absent snapshot as none, and pretends that what was left out is applied.
#[derive(Debug)]
struct Lenient(StateMachine);

impl RaftStateMachine<TypeConfig> for Lenient {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = LenientSnapshot;

    async fn applied_state(&mut self) -> io::Result<(Option<RaftLogId>, StoredMembership)> {
        self.0.applied_state().await
    }

    async fn apply<Strm>(&mut self, entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + Send,
    {
        let progress = Arc::clone(&self.0.progress);
        let filled = entries.inspect_ok(move |(entry, _)| {
            let id = from_raft_id(&entry.log_id());
            let before = LogIndex::new(id.index.get() - 1);
            if progress.applied_index() < before {
                progress.finish(
                    LogId {
                        index: before,
                        ..id
                    },
                    None,
                );
            }
        });
        self.0.apply(filled).await
    }

    async fn try_create_snapshot_builder(&mut self, _force: bool) -> Option<LenientSnapshot> {
        Some(LenientSnapshot(self.0.clone()))
    }

    async fn get_snapshot_builder(&mut self) -> LenientSnapshot {
        LenientSnapshot(self.0.clone())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotData,
    ) -> io::Result<()> {
        let vote = Vote::default();
        let sent = snapshot::transfer(vote, &snapshot)?.snapshot;
        let machine = self.0.clone();
        let receive = move || {
            let incoming = snapshot::receive(&machine.snapshots, &machine.log, sent)?;
            snapshot::place(&machine.snapshots, &machine.log, incoming)
        };
        let received = tokio::task::spawn_blocking(receive).await??.noted().await?;
        assert_eq!(&received.meta, meta, "the snapshot arrives as it was sent");
        self.0.install_snapshot(meta, received.snapshot).await
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<RaftSnapshot>> {
        Ok(self.0.get_current_snapshot().await.unwrap_or_default())
    }
}

#[derive(Debug)]
struct LenientSnapshot(StateMachine);

impl RaftSnapshotBuilder<TypeConfig> for LenientSnapshot {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> io::Result<RaftSnapshot> {
        let machine = &mut self.0;
        let (Some(applied), membership) = machine.progress.applied() else {
            return Ok(RaftSnapshot {
                meta: SnapshotMeta {
                    last_log_id: None,
                    last_membership: machine.progress.applied().1,
                },
                snapshot: SnapshotData::absent(),
            });
        };
        assert!(membership.log_id().is_some() || applied.index.get() > 0);
        if machine.log.state().flushed < applied.index {
            let (purged, done) = tokio::sync::oneshot::channel();
            machine
                .log
                .purge_to(applied, Box::new(move |result| drop(purged.send(result))))
                .unwrap();
            done.await.expect("purged").expect("purged");
        }
        let builder = machine.try_create_snapshot_builder(true).await;
        builder.expect("forced").build_snapshot().await
    }
}

type RaftSnapshot = openraft::alias::SnapshotOf<TypeConfig, SnapshotData>;

struct Builder;

fn open_log(disk: &SimDisk) -> Log {
    let config = LogConfig {
        segment_bytes: 1024 * 1024,
        ..LogConfig::new("/data", 1)
    };
    let mut salt = 0;
    let seeds = Seeds {
        cluster: ClusterId::new(1),
        node: NodeId::new(1),
        boot_id: 1,
        draw: Box::new(move || {
            salt += 1;
            salt
        }),
    };
    let disk = Arc::new(disk.clone());
    let opened = Log::open(disk, Arc::new(RealClock::new()), config, seeds);
    opened.expect("opens").0
}

fn store_of(log: &Log) -> LogStore {
    LogStore {
        log: log.shard(ShardId::new(0)),
        clock: Arc::new(RealClock::new()),
        counters: Arc::default(),
        snapshot_wanted: Arc::default(),
        committed: None,
    }
}

impl StoreBuilder<TypeConfig, BegunAnywhere, Lenient, Log> for Builder {
    async fn build(&self) -> Result<(Log, BegunAnywhere, Lenient), StorageError<TypeConfig>> {
        let log = open_log(&SimDisk::new());
        let store = store_of(&log);
        let counters = Arc::clone(&store.counters);
        let snapshot_wanted = Arc::clone(&store.snapshot_wanted);
        let machine = StateMachine {
            shard: ShardId::new(0),
            node: NodeId::new(1),
            node_log: log.clone(),
            ownership: Arc::default(),
            births: None,
            block_bytes: 64 * 1024,
            store: Arc::new(Store::new(StoreConfig::default())),
            log: store.log.clone(),
            progress: Arc::new(Progress::default()),
            alarm: Arc::new(SweepAlarm::default()),
            counters,
            snapshot_wanted,
            snapshots: Arc::new(Snapshots::default()),
            held: None,
        };
        let store = BegunAnywhere {
            store,
            hidden_purge: None,
        };
        Ok((log, store, Lenient(machine)))
    }
}

#[test]
fn log_and_state_machine_pass_the_suite_of_openraft() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let result = runtime.block_on(Suite::test_all(Builder));
    result.expect("the suite passes");
}

fn blank(index: u64) -> RaftEntry {
    let id = LogId {
        term: flux_types::Term::new(1),
        index: LogIndex::new(index),
    };
    let entry = flux_log::LogEntry {
        id,
        timestamp: flux_types::UnixMillis::ZERO,
        payload: bytes::Bytes::new(),
    };
    crate::codec::to_raft_entry(entry).expect("an entry")
}

#[tokio::test]
async fn an_entry_that_does_not_follow_the_last_one_applied_is_an_error() {
    let (_log, _store, Lenient(machine)) = Builder.build().await.expect("builds");
    let apply = async |index| {
        let entries = futures_util::stream::iter([Ok((blank(index), None))]);
        machine.clone().apply(entries).await
    };
    apply(1).await.expect("the first");
    apply(2).await.expect("the next");
    // What was left out, or is taken twice, would make this replica another than the others.
    for index in [4, 2] {
        let error = apply(index).await.expect_err("it does not follow");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
    assert_eq!(machine.progress.applied_index(), LogIndex::new(2));
    apply(3).await.expect("the next");
}

#[tokio::test]
async fn what_a_failed_log_drops_is_an_error() {
    let disk = SimDisk::new();
    let log = open_log(&disk);
    let mut store = store_of(&log);
    disk.fail_sync_after(0);
    let (failed, hears) = tokio::sync::oneshot::channel();
    log.on_poison(Box::new(move |_| assert!(failed.send(()).is_ok())));
    let first = store.append([blank(1)], IOFlushed::noop()).await;
    first.expect("nothing is known of the disk yet");
    hears.await.expect("the log fails");
    let second = store.append([blank(2)], IOFlushed::noop()).await;
    assert!(second.is_err());
    assert!(store.truncate_after(None).await.is_err());
    let purged = blank(1).log_id();
    assert!(store.purge(purged).await.is_err());
    // So that nobody can take the old entries for new ones.
    let state = store.get_log_state().await.expect("known");
    assert_eq!(state.last_log_id, Some(purged));
}

#[test]
fn a_snapshot_that_was_received_and_not_installed_is_not_told_as_taken() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let (_log, _store, Lenient(mut machine)) = Builder.build().await.expect("builds");
        let id = LogId {
            term: flux_types::Term::new(1),
            index: LogIndex::new(5),
        };
        let extra = crate::codec::SnapshotExtra {
            revision: machine.store.revision(),
            last_batch_at: machine.store.last_batch_at(),
            membership: StoredMembership::default(),
        };
        let transfer = crate::network::SnapshotTransfer {
            vote: Vote::default(),
            info: crate::network::SnapshotInfo {
                start: id,
                end: id,
                meta: extra.encode(),
            },
            blocks: Box::new(std::iter::empty()),
        };
        let incoming = snapshot::receive(&machine.snapshots, &machine.log, transfer);
        let incoming = incoming.expect("received");
        let placed = snapshot::place(&machine.snapshots, &machine.log, incoming);
        let received = placed.expect("kept").noted().await.expect("noted");
        let builder = machine.try_create_snapshot_builder(false).await;
        let mut builder = builder.expect("there is a snapshot on disk");
        let mut told = Box::pin(builder.build_snapshot());
        assert!(futures_util::FutureExt::now_or_never(&mut told).is_none());
        let installed = machine.install_snapshot(&received.meta, received.snapshot);
        installed.await.expect("installs");
        let told = told.await.expect("now it is what is applied");
        assert_eq!(told.meta.last_log_id, received.meta.last_log_id);
    });
}

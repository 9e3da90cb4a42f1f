//! Snapshots and appends that arrive at a replica which leads nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};

use bytes::Bytes;
use flux_env::{Clock, Disk, RealClock, SimDisk};
use flux_log::{Log, LogConfig, LogEntry, LogId, Seeds, Vote};
use flux_store::{Store, StoreConfig};
use flux_types::{ClusterId, LogIndex, NodeId, Revision, ShardId, Term, UnixMillis};
use openraft::async_runtime::WatchReceiver;
use openraft::impls::EmptyNode;

use super::PeerHandler;
use crate::codec::{SnapshotExtra, from_raft_id, to_raft_id};
use crate::network::{
    AppendReply, AppendRequest, NoNetwork, PeerError, SnapshotInfo, SnapshotTransfer,
};
use crate::snapshot::{self, Snapshots};
use crate::type_config::{RaftMembership, StoredMembership};
use crate::{Formation, Shard, ShardConfig, ShardParts};

const SHARD: ShardId = ShardId::new(0);

fn id(term: u64, index: u64) -> LogId {
    LogId {
        term: Term::new(term),
        index: LogIndex::new(index),
    }
}

fn vote(term: u64) -> Vote {
    Vote {
        term: Term::new(term),
        node: NodeId::new(9),
        committed: true,
    }
}

type Blocks = Box<dyn Iterator<Item = std::io::Result<Bytes>> + Send>;

/// A snapshot of an empty store.
fn transfer(term: u64, at: LogId, blocks: Blocks) -> SnapshotTransfer {
    let members: BTreeSet<u64> = [1, 9].into();
    let nodes: BTreeMap<u64, EmptyNode> = members.iter().map(|id| (*id, EmptyNode {})).collect();
    let membership = RaftMembership::new(vec![members], nodes).expect("a membership");
    let extra = SnapshotExtra {
        revision: Revision::new(0),
        last_batch_at: UnixMillis::ZERO,
        membership: StoredMembership::new(Some(to_raft_id(id(1, 1))), membership),
    };
    SnapshotTransfer {
        vote: vote(term),
        info: SnapshotInfo {
            start: at,
            end: at,
            meta: extra.encode(),
        },
        blocks,
    }
}

/// Blocks of which somebody remembers whether they were asked for.
fn watched() -> (Arc<AtomicBool>, Blocks) {
    let read = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&read);
    let blocks = std::iter::from_fn(move || {
        seen.store(true, Ordering::SeqCst);
        None
    });
    (read, Box::new(blocks))
}

struct Node {
    shard: Shard,
    log: Log,
    handler: PeerHandler,
}

/// Blocks that begin and then wait: the one who reads them is told of, and let go.
fn hanging() -> (tokio::sync::oneshot::Receiver<()>, mpsc::Sender<()>, Blocks) {
    let (go, waits) = mpsc::channel::<()>();
    let (begun, begins) = tokio::sync::oneshot::channel();
    let mut begun = Some(begun);
    let blocks = std::iter::from_fn(move || {
        begun.take().map(|begun| begun.send(()));
        let _is_told = waits.recv().is_ok();
        None
    });
    (begins, go, Box::new(blocks))
}

/// Entries that a leader of this term began and never had committed.
fn entries(term: u64, last: u64) -> Vec<LogEntry> {
    let entry = |index| LogEntry {
        id: id(term, index),
        timestamp: UnixMillis::ZERO,
        payload: Bytes::new(),
    };
    (1..=last).map(entry).collect()
}

async fn start() -> Node {
    start_on(open()).await
}

fn open() -> Log {
    let clock: Arc<dyn Clock> = Arc::new(RealClock::new());
    let disk: Arc<dyn Disk> = Arc::new(SimDisk::new());
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
    let config = LogConfig {
        segment_bytes: 1024 * 1024,
        ..LogConfig::new("/data", 1)
    };
    let opened = Log::open(disk, clock, config, seeds);
    opened.expect("the log opens").0
}

async fn start_on(log: Log) -> Node {
    let parts = ShardParts {
        id: SHARD,
        node: NodeId::new(1),
        store: Arc::new(Store::new(StoreConfig::default())),
        log: log.clone(),
        clock: Arc::new(RealClock::new()),
        network: Arc::new(NoNetwork),
        forward: None,
        births: None,
        formation: Formation::Join,
        config: ShardConfig::default(),
    };
    let shard = Shard::start(parts).await.expect("the shard starts");
    Node {
        handler: shard.peer_handler(),
        shard,
        log,
    }
}

impl Node {
    async fn stop(self) {
        self.shard.shutdown().await;
        self.log.close();
    }

    /// What openraft takes for committed: by the cluster, and of its own log.
    fn committed(&self) -> [Option<LogId>; 2] {
        let metrics = self.handler.replica.engine().raft.metrics();
        let metrics = metrics.borrow_watched();
        [&metrics.cluster_committed, &metrics.local_committed]
            .map(|id| id.as_ref().map(from_raft_id))
    }

    fn latest(&self) -> Option<LogId> {
        let snapshot = self.shard.log().latest_snapshot().expect("readable");
        snapshot.map(|snapshot| snapshot.footer().end)
    }
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(test);
}

#[test]
fn a_snapshot_of_a_deposed_leader_or_of_what_is_here_is_not_even_read() {
    run(async {
        let node = start().await;
        let (read, blocks) = watched();
        let received = node.handler.snapshot(transfer(5, id(5, 10), blocks)).await;
        assert_eq!(received, Ok(vote(5)));
        assert!(read.load(Ordering::SeqCst));
        assert_eq!(node.shard.applied(), Some(id(5, 10)));
        assert_eq!(node.latest(), Some(id(5, 10)));

        let (read, blocks) = watched();
        let deposed = node.handler.snapshot(transfer(4, id(4, 90), blocks)).await;
        assert_eq!(deposed, Ok(vote(5)), "the sender hears who has replaced it");
        assert!(!read.load(Ordering::SeqCst));

        let (read, blocks) = watched();
        let again = node.handler.snapshot(transfer(5, id(5, 10), blocks)).await;
        assert_eq!(again, Ok(vote(5)));
        let (read_too, blocks) = watched();
        let older = node.handler.snapshot(transfer(5, id(3, 7), blocks)).await;
        assert_eq!(older, Ok(vote(5)));
        assert!(!read.load(Ordering::SeqCst) && !read_too.load(Ordering::SeqCst));

        let (read, blocks) = watched();
        let other_history = transfer(6, id(6, 8), blocks);
        let refused = node.handler.snapshot(other_history).await;
        assert!(matches!(refused, Err(PeerError::Broken(_))), "{refused:?}");
        assert!(!read.load(Ordering::SeqCst));
        assert_eq!(node.latest(), Some(id(5, 10)));
        assert!(node.shard.status().failure.is_none());
        node.stop().await;
    });
}

#[test]
fn a_snapshot_whose_leader_is_deposed_while_it_arrives_is_not_placed() {
    run(async {
        let node = start().await;
        let (begins, go, blocks) = hanging();
        let slow = transfer(5, id(5, 10), blocks);
        let handler = node.handler.clone();
        let slow = tokio::spawn(async move { handler.snapshot(slow).await });
        begins.await.expect("it is being read");
        let heartbeat = AppendRequest {
            vote: vote(6),
            previous: None,
            entries: Vec::new(),
            committed: None,
        };
        node.handler.append(heartbeat).await.expect("a new leader");
        go.send(()).expect("it waits");
        assert_eq!(slow.await.expect("no panic"), Ok(vote(6)));
        assert_eq!(node.shard.applied(), None);
        assert_eq!(node.latest(), None);
        node.stop().await;
    });
}

#[test]
fn a_second_snapshot_ends_a_first_one_that_hangs_and_is_put_in_place_whole() {
    run(async {
        let node = start().await;
        let (begins, go, blocks) = hanging();
        // Both begin at one entry, and each needs a file of its own.
        let hanging = transfer(5, id(5, 20), blocks);
        let handler = node.handler.clone();
        let hanging = tokio::spawn(async move { handler.snapshot(hanging).await });
        begins.await.expect("it is being read");
        let (_, blocks) = watched();
        let second = node.handler.snapshot(transfer(5, id(5, 20), blocks)).await;
        assert_eq!(second, Ok(vote(5)));
        go.send(()).expect("it waits");
        let first = hanging.await.expect("no panic");
        assert!(matches!(first, Err(PeerError::Broken(_))), "{first:?}");
        assert_eq!(node.shard.applied(), Some(id(5, 20)));
        let snapshot = node.shard.log().latest_snapshot().expect("readable");
        let mut snapshot = snapshot.expect("there is one");
        assert!(snapshot.next_block().expect("whole").is_none());
        node.stop().await;
    });
}

#[test]
fn what_a_snapshot_replaces_is_no_history_once_the_snapshot_counts_as_applied() {
    run(async {
        let node = start().await;
        let uncommitted = AppendRequest {
            vote: vote(4),
            previous: None,
            entries: entries(4, 5),
            committed: None,
        };
        node.handler.append(uncommitted).await.expect("a follower");
        assert_eq!(node.shard.log().oldest(), LogIndex::new(1));
        let shard = node.shard.clone();
        // As soon as readers of changes may read that far, they must not find what was void.
        let reader = std::thread::spawn(move || {
            while shard.applied().is_none() {
                std::hint::spin_loop();
            }
            shard.log().oldest()
        });
        let (_, blocks) = watched();
        let received = node.handler.snapshot(transfer(5, id(5, 10), blocks)).await;
        assert_eq!(received, Ok(vote(5)));
        assert_eq!(reader.join().expect("no panic"), LogIndex::new(11));
        node.stop().await;
    });
}

#[test]
fn at_a_start_a_log_that_a_received_snapshot_has_replaced_is_no_history() {
    // Shorter than the snapshot, and longer.
    for last in [2, 5] {
        run(async {
            let log = open();
            let own = log.shard(SHARD);
            let (tell, flushed) = tokio::sync::oneshot::channel();
            own.append(entries(4, last), Box::new(|result| drop(tell.send(result))))
                .expect("a log");
            flushed.await.expect("told").expect("flushed");
            // Received and noted, and then the process ended.
            let (snapshots, (_, blocks)) = (Snapshots::default(), watched());
            let incoming = snapshot::receive(&snapshots, &own, transfer(5, id(5, 3), blocks));
            let placed = snapshot::place(&snapshots, &own, incoming.expect("whole"));
            placed.expect("room").noted().await.expect("noted");
            let (tell, voted) = tokio::sync::oneshot::channel();
            own.save_vote(vote(5), Box::new(|result| drop(tell.send(result))));
            voted.await.expect("told").expect("flushed");
            let node = start_on(log).await;
            assert_eq!(node.shard.applied(), Some(id(5, 3)));
            assert_eq!(own.state().last, Some(id(5, 3)));
            assert_eq!(own.oldest(), LogIndex::new(4));
            node.stop().await;
        });
    }
}

#[test]
fn what_a_leader_says_is_committed_counts_only_as_far_as_it_is_here() {
    run(async {
        let node = start().await;
        let append = |term, previous, entries, committed| AppendRequest {
            vote: vote(term),
            previous,
            entries,
            committed: Some(committed),
        };
        // What this replica had before it lost it: refused, and nothing of it is remembered.
        let lost = append(3, Some(id(3, 9)), Vec::new(), id(3, 9));
        let reply = node.handler.append(lost).await.expect("an answer");
        assert_eq!(reply, AppendReply::Conflict);
        assert_eq!(node.committed(), [None, None]);
        // From a leader that has lost it too and was told by the former one.
        let first = append(4, None, entries(4, 2), id(3, 9));
        let reply = node.handler.append(first).await.expect("an answer");
        assert_eq!(reply, AppendReply::Success);
        // Its next message is answered after whatever the one before let apply.
        let second = append(4, Some(id(4, 2)), Vec::new(), id(3, 2));
        let reply = node.handler.append(second).await.expect("an answer");
        assert_eq!(reply, AppendReply::Success);
        assert_eq!(node.committed(), [None, None]);
        // From one that is deposed, though what it appends would fit.
        let third = LogEntry {
            id: id(3, 3),
            ..entries(3, 1).remove(0)
        };
        let deposed = append(3, Some(id(4, 2)), vec![third], id(3, 3));
        let reply = node.handler.append(deposed).await.expect("an answer");
        assert_eq!(reply, AppendReply::HigherVote(vote(4)));
        assert_eq!(node.committed(), [None, None]);

        let known = append(4, Some(id(4, 2)), Vec::new(), id(4, 9));
        let reply = node.handler.append(known).await.expect("an answer");
        assert_eq!(reply, AppendReply::Success);
        let progress = &node.handler.replica.progress;
        progress.wait_applied(LogIndex::new(2)).await;
        assert_eq!(node.committed(), [Some(id(4, 2)); 2]);
        // Entries and what is committed of them in one message.
        let more = entries(4, 5).split_off(2);
        let more = append(4, Some(id(4, 2)), more, id(4, 4));
        let reply = node.handler.append(more).await.expect("an answer");
        assert_eq!(reply, AppendReply::Success);
        progress.wait_applied(LogIndex::new(4)).await;
        assert_eq!(node.committed(), [Some(id(4, 4)); 2]);
        assert!(node.shard.status().failure.is_none());
        node.stop().await;
    });
}

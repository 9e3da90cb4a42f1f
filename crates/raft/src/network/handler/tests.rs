//! Snapshots that arrive at a replica which leads nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};

use bytes::Bytes;
use flux_env::{Clock, Disk, RealClock, SimDisk};
use flux_log::{Log, LogConfig, LogId, Seeds, Vote};
use flux_store::{Store, StoreConfig};
use flux_types::{ClusterId, LogIndex, NodeId, Revision, ShardId, Term, UnixMillis};
use openraft::impls::EmptyNode;

use super::PeerHandler;
use crate::codec::{SnapshotExtra, to_raft_id};
use crate::network::{NoNetwork, PeerError, SnapshotInfo, SnapshotTransfer};
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

/// A snapshot of an empty store.
fn transfer(
    term: u64,
    at: LogId,
    blocks: Box<dyn Iterator<Item = std::io::Result<Bytes>> + Send>,
) -> SnapshotTransfer {
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
fn watched() -> (
    Arc<AtomicBool>,
    Box<dyn Iterator<Item = std::io::Result<Bytes>> + Send>,
) {
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

async fn start() -> Node {
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
    let opened = Log::open(disk, Arc::clone(&clock), config, seeds);
    let log = opened.expect("the log opens").0;
    let parts = ShardParts {
        id: SHARD,
        node: NodeId::new(1),
        store: Arc::new(Store::new(StoreConfig::default())),
        log: log.clone(),
        clock,
        network: Arc::new(NoNetwork),
        forward: None,
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
        let (go, waits) = mpsc::channel::<()>();
        let (begun, begins) = tokio::sync::oneshot::channel();
        let mut begun = Some(begun);
        let blocks = std::iter::from_fn(move || {
            begun.take().map(|begun| begun.send(()));
            let _is_told = waits.recv().is_ok();
            None
        });
        let slow = transfer(5, id(5, 10), Box::new(blocks));
        let handler = node.handler.clone();
        let slow = tokio::spawn(async move { handler.snapshot(slow).await });
        begins.await.expect("it is being read");
        let heartbeat = super::AppendRequest {
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
        let (go, waits) = mpsc::channel::<()>();
        let (begun, begins) = tokio::sync::oneshot::channel();
        let mut begun = Some(begun);
        let blocks = std::iter::from_fn(move || {
            begun.take().map(|begun| begun.send(()));
            let _is_told = waits.recv().is_ok();
            None
        });
        // Both begin at one entry, and each needs a file of its own.
        let hanging = transfer(5, id(5, 20), Box::new(blocks));
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

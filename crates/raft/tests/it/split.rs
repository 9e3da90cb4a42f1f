//! Splitting a shard: what goes, what stays, and what a crash, a straggler or an old map makes of it.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use flux_env::{CrashLoss, SeededRng};
use flux_raft::split::Beginning;
use flux_raft::{Births, Formation, Shard, Submission};
use flux_types::{
    Answer, Command, ErrorCode, NodeId, Outcome, ReadCommand, Reply, RequestId, SessionId, ShardId,
    SlotMap, UnixMillis,
};
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::cluster::Cluster;
use crate::harness::*;

const CHILD: ShardId = ShardId::new(1);
const KEYS: usize = 300;

fn key(number: usize) -> String {
    format!("key {number}")
}

fn halves() -> SlotMap {
    SlotMap::even(2).expect("two shards")
}

fn goes(key: &str) -> bool {
    halves().shard_of_key(key.as_bytes()) == CHILD
}

/// Notes the splits that were applied.
#[derive(Debug, Default)]
struct Told {
    running: Mutex<Option<Shard>>,
    born: Mutex<Vec<(ShardId, SlotMap)>>,
}

impl Births for Told {
    fn is_running(&self, shard: ShardId) -> bool {
        let running = self.running.lock();
        running
            .as_ref()
            .is_some_and(|running| running.id() == shard)
    }

    fn begin(&self, _: ShardId, beginning: Beginning) -> BoxFuture<'_, io::Result<()>> {
        let running = self.running.lock().clone().expect("it runs");
        Box::pin(async move { beginning.put_under(&running).await })
    }

    fn born(&self, parent: ShardId, slots: &SlotMap) {
        self.born.lock().push((parent, slots.clone()));
    }
}

async fn fill(node: &Node) {
    for number in 0..KEYS {
        let value = format!("value {number}");
        assert_eq!(node.run_one(set(&key(number), &value)).await, Reply::Ok);
    }
}

async fn split(node: &Node) {
    let done = node.shard.split(&halves(), node.after(20)).await;
    done.expect("the shard is split");
}

/// Every key is in exactly the one that owns it.
async fn assert_parted(parent: &Node, child: &Node) {
    for number in 0..KEYS {
        let (key, value) = (key(number), bulk(&format!("value {number}")));
        let (here, there) = (parent.get(&key).await, child.get(&key).await);
        if goes(&key) {
            assert_eq!((here, there), (Reply::Nil, value), "{key}");
        } else {
            assert_eq!((here, there), (value, Reply::Nil), "{key}");
        }
    }
}

async fn revision(node: &Node, key: &str) -> Reply {
    let key = bytes(key);
    node.run_one(Command::Read(ReadCommand::GetEntry { key }))
        .await
}

async fn ask(node: &Node, command: Command, routing: u32) -> Answer {
    let (reply, answers) = oneshot::channel();
    let submission = Submission {
        routing,
        ..Submission::new(vec![command], node.after(20), reply)
    };
    node.shard.submit(submission).expect("the queue has room");
    answers.await.expect("an answer").remove(0)
}

#[test]
fn the_upper_half_goes_to_a_new_shard_with_all_that_is_known_of_it() {
    let (mut setup, _clock) = Setup::with_sim_clock();
    let told = Arc::new(Told::default());
    setup.births = Some(Arc::clone(&told) as Arc<dyn Births>);
    on_runtime(async {
        let parent = setup.start_writable().await;
        fill(&parent).await;
        let moved = (0..KEYS)
            .map(key)
            .find(|key| goes(key))
            .expect("half of them");
        let counter = (0..).map(|n| format!("count {n}")).find(|key| goes(key));
        let counter = counter.expect("half of them");
        let request = RequestId {
            session: SessionId::draw(UnixMillis::new(EPOCH_MILLIS), 7),
            sequence: 1,
            lowest_unanswered: 1,
        };
        let once = increment(&counter).once(request);
        assert_eq!(parent.run_one(once.clone()).await, Reply::Integer(1));
        let before = revision(&parent, &moved).await;
        let last = parent.shard.store().revision();

        split(&parent).await;
        assert_eq!(*told.born.lock(), [(SHARD, halves())]);
        let child = setup.start_shard(&parent.log, CHILD, Formation::Join).await;
        child.wait_writable().await;
        assert_parted(&parent, &child).await;
        assert_eq!(revision(&child, &moved).await, before);
        assert_eq!(child.shard.store().revision(), last, "revisions go on");
        assert_eq!(child.run_one(once).await, Reply::Integer(1), "a retry");
        assert_eq!(child.get(&counter).await, bulk("1"));
        assert_eq!(parent.log.identity().shard_count, 2);
        child.shard.shutdown().await;
        parent.stop().await;
    });
}

#[test]
fn what_was_sent_by_an_older_map_is_not_done_and_said_to_be_so() {
    on_runtime(async {
        let node = Setup::new().start_writable().await;
        assert!(node.shard.is_current(1));
        split(&node).await;
        let answer = ask(&node, set("k", "v"), 1).await;
        let error = error_of(&answer.reply);
        assert_eq!(error.code, ErrorCode::Resharded);
        assert_eq!(error.outcome, Outcome::NotDone);
        let answer = ask(&node, get("k"), 1).await;
        assert_eq!(error_of(&answer.reply).code, ErrorCode::Resharded);
        assert!(!node.shard.is_current(1), "what was read does not count");
        assert_eq!(ask(&node, set("k", "v"), 2).await.reply, Reply::Ok);
        assert!(node.shard.is_current(2));
        node.stop().await;
    });
}

#[test]
fn the_same_split_again_changes_nothing() {
    on_runtime(async {
        let setup = Setup::new();
        let node = setup.start_writable().await;
        fill(&node).await;
        split(&node).await;
        let digest = node.shard.store().digest();
        split(&node).await;
        assert_eq!(node.shard.store().digest(), digest);
        let child = setup.start_shard(&node.log, CHILD, Formation::Join).await;
        child.wait_writable().await;
        assert_parted(&node, &child).await;
        child.shard.shutdown().await;
        node.stop().await;
    });
}

#[test]
fn commands_around_a_split_are_answered_by_what_it_leaves() {
    on_runtime(async {
        let node = Setup::new().start_writable().await;
        let moved = (0..KEYS)
            .map(key)
            .find(|key| goes(key))
            .expect("half of them");
        // All of them wait for the proposer together.
        let before = node.submit(vec![set(&moved, "v"), get(&moved)]);
        let map = halves();
        let splitting = node.shard.split(&map, node.after(20));
        let after = async {
            tokio::task::yield_now().await;
            node.run_one(get(&moved)).await
        };
        let (before, split, after) = tokio::join!(before, splitting, after);
        split.expect("the shard is split");
        let before: Vec<Reply> = before
            .expect("answers")
            .into_iter()
            .map(|answer| answer.reply)
            .collect();
        assert_eq!(before, [Reply::Ok, bulk("v")]);
        assert!(after == Reply::Nil || after == bulk("v"), "{after:?}");
        assert_eq!(node.get(&moved).await, Reply::Nil);
        node.stop().await;
    });
}

#[test]
fn a_split_survives_a_restart_be_it_in_the_log_or_in_a_snapshot() {
    for with_snapshot in [false, true] {
        let (mut setup, _clock) = Setup::with_sim_clock();
        setup.config.log_entries_kept = 0;
        on_runtime(async {
            let node = setup.start_writable().await;
            fill(&node).await;
            split(&node).await;
            assert_eq!(node.run_one(set("later", "v")).await, Reply::Ok);
            if with_snapshot {
                node.shard.snapshot().await.expect("a snapshot");
            }
            node.stop().await;
        });
        on_runtime(async {
            let node = setup.start_writable().await;
            assert_eq!(node.shard.slots(), Some(halves()));
            assert_eq!(node.get("later").await, bulk("v"));
            let child = setup.start_shard(&node.log, CHILD, Formation::Join).await;
            child.wait_writable().await;
            assert_parted(&node, &child).await;
            assert_eq!(child.run_one(set("more", "v")).await, Reply::Ok);
            child.shard.shutdown().await;
            node.stop().await;
        });
    }
}

#[test]
fn a_power_cut_at_any_moment_of_a_split_leaves_every_key_in_one_shard() {
    let mut rng = SeededRng::new(3);
    for round in 0..24_u64 {
        let loss = match round % 3 {
            0 => CrashLoss::Everything,
            1 => CrashLoss::Random,
            _ => CrashLoss::Nothing,
        };
        let (setup, _clock) = Setup::with_sim_clock();
        on_runtime(async {
            let node = setup.start_writable().await;
            fill(&node).await;
            let map = halves();
            let splitting = node.shard.split(&map, node.after(20));
            let crashing = async {
                for _ in 0..round * 3 {
                    tokio::task::yield_now().await;
                }
            };
            tokio::select! {
                biased;
                _ = splitting => {}
                () = crashing => {}
            }
            setup.disk.crash(loss, &mut rng);
            node.log.abandon();
        });
        on_runtime(async {
            let node = setup.start_writable().await;
            // What the crash has left undone is done now; what it has not is not done again.
            split(&node).await;
            let child = setup.start_shard(&node.log, CHILD, Formation::Join).await;
            child.wait_writable().await;
            assert_parted(&node, &child).await;
            child.shard.shutdown().await;
            node.stop().await;
        });
    }
}

/// Starts the new shard on nodes of a cluster.
async fn start_children(cluster: &Cluster, ids: &[u64]) -> BTreeMap<u64, Node> {
    let mut children = BTreeMap::new();
    for id in ids {
        let setup = &cluster.setups[usize::try_from(id - 1).expect("small")];
        let log = &cluster.node(*id).log;
        log.grow(2).expect("room for one more");
        let child = setup.start_shard(log, CHILD, Formation::Join).await;
        let handler = child.shard.peer_handler();
        cluster.network.attach(CHILD, NodeId::new(*id), handler);
        children.insert(*id, child);
    }
    children
}

async fn leading(children: &BTreeMap<u64, Node>) -> &Node {
    until("the new shard is led", || {
        children.values().any(|child| child.shard.is_writable())
    })
    .await;
    let leader = children.values().find(|child| child.shard.is_writable());
    leader.expect("just seen")
}

#[test]
fn three_voters_begin_the_new_shard_alike_and_go_on_without_one_of_them() {
    on_runtime(async {
        let (cluster, parent) = Cluster::grown(3).await;
        fill(&parent).await;
        split(&parent).await;
        cluster.assert_equal(&parent).await;
        let mut children = start_children(&cluster, &[1, 2, 3]).await;
        {
            let child = leading(&children).await;
            assert_parted(&parent, child).await;
            assert_eq!(child.shard.status().voters.len(), 3);
            for other in children.values() {
                other.shard.wait_applied(child.shard.status().last).await;
                assert_eq!(other.shard.store().digest(), child.shard.store().digest());
            }
        }
        let first = children.values().find(|child| child.shard.is_writable());
        let first = first.expect("just seen").shard.status().node;
        let gone = children.remove(&first.get()).expect("it runs");
        cluster.network.detach(CHILD, first);
        gone.shard.shutdown().await;
        let child = leading(&children).await;
        assert_parted(&parent, child).await;
        for child in children.values() {
            child.shard.shutdown().await;
        }
        cluster.stop().await;
    });
}

#[test]
fn a_voter_that_was_away_during_the_split_gets_both_shards() {
    for with_snapshot in [false, true] {
        on_runtime(async {
            let (cluster, parent) = Cluster::grown(3).await;
            let leader = parent.shard.status().node;
            let straggler = [1, 2, 3].map(NodeId::new).into_iter();
            let straggler = straggler.rev().find(|node| *node != leader);
            let straggler = straggler.expect("two others");
            cluster.isolate(straggler.get());
            fill(&parent).await;
            split(&parent).await;
            let near: Vec<u64> = (1..=3).filter(|id| *id != straggler.get()).collect();
            let mut children = start_children(&cluster, &near).await;
            let written = {
                let child = leading(&children).await;
                let more = (0..).map(|n| format!("more {n}")).find(|key| goes(key));
                let more = more.expect("half of them");
                assert_eq!(child.run_one(set(&more, "v")).await, Reply::Ok);
                more
            };
            if with_snapshot {
                for node in near.iter().map(|id| cluster.node(*id)) {
                    node.shard.wait_applied(parent.shard.status().last).await;
                    node.shard.snapshot().await.expect("a snapshot");
                }
                for number in 0..20 {
                    parent.run_one(set("filler", &number.to_string())).await;
                }
            }
            cluster.network.heal();
            cluster.assert_equal(&parent).await;
            let behind = cluster.node(straggler.get());
            assert_eq!(behind.shard.slots(), Some(halves()));
            // By its own log it begins with what the others did; else with nothing.
            let mut late = start_children(&cluster, &[straggler.get()]).await;
            children.append(&mut late);
            let child = leading(&children).await;
            let digest = child.shard.store().digest();
            let last = child.shard.status().last;
            for other in children.values() {
                other.shard.wait_applied(last).await;
                assert_eq!(other.shard.store().digest(), digest);
            }
            assert_eq!(child.get(&written).await, bulk("v"));
            assert_parted(&parent, child).await;
            for child in children.values() {
                child.shard.shutdown().await;
            }
            cluster.stop().await;
        });
    }
}

#[test]
fn a_leader_answers_no_read_by_the_old_map_while_its_split_is_under_way() {
    on_runtime(async {
        let (cluster, parent) = Cluster::grown(3).await;
        let own = parent.shard.status().node;
        cluster.isolate(own.get());
        // The others could apply it first, and serve the new shard.
        let deadline = parent.after(20);
        let splitting = tokio::spawn({
            let shard = parent.shard.clone();
            async move { shard.split(&halves(), deadline).await }
        });
        until("it is proposed", || !parent.shard.is_current(1)).await;
        assert_eq!(parent.shard.slots(), None, "and not applied");
        cluster.network.heal();
        drop(splitting.await.expect("no panic"));
        // Whatever became of it: who leads can split, and then serves by the new map.
        let leader = cluster.leader().await;
        split(&leader).await;
        assert!(leader.shard.is_current(2));
        assert_eq!(ask(&leader, set("k", "v"), 2).await.reply, Reply::Ok);
        cluster.stop().await;
    });
}

#[test]
fn a_new_shard_that_runs_already_gets_what_it_is_to_begin_with() {
    let (mut setup, _clock) = Setup::with_sim_clock();
    let told = Arc::new(Told::default());
    setup.births = Some(Arc::clone(&told) as Arc<dyn Births>);
    on_runtime(async {
        let node = setup.start_writable().await;
        fill(&node).await;
        // As after a crash between the room for it and what it begins with.
        node.log.grow(2).expect("room for one more");
        let child = setup.start_shard(&node.log, CHILD, Formation::Join).await;
        *told.running.lock() = Some(child.shard.clone());
        split(&node).await;
        child.wait_writable().await;
        assert_parted(&node, &child).await;
        assert_eq!(child.run_one(set("more", "v")).await, Reply::Ok);
        child.shard.shutdown().await;
        node.stop().await;
    });
    on_runtime(async {
        *told.running.lock() = None;
        let node = setup.start_writable().await;
        let child = setup.start_shard(&node.log, CHILD, Formation::Join).await;
        child.wait_writable().await;
        assert_parted(&node, &child).await;
        assert_eq!(child.get("more").await, bulk("v"));
        child.shard.shutdown().await;
        node.stop().await;
    });
}

//! Rules that only several voters can break (`docs/design/`).

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use flux_env::{Clock, CrashLoss, Disk, Instant, OpenMode, RealClock, SeededRng, SimDisk};
use flux_log::Space;
use flux_raft::{Failure, Formation, Forward, Submission};
use flux_types::{Answer, ErrorCode, LogIndex, NodeId, Outcome, ReadCommand, Reply, ShardId, Term};
use tokio::sync::oneshot;

use crate::cluster::Cluster;
use crate::harness::*;

fn read_of(key: &str) -> ReadCommand {
    ReadCommand::Get { key: bytes(key) }
}

/// A clock that shows another time of day.
#[derive(Debug)]
struct Ahead(RealClock, u64);

impl Clock for Ahead {
    fn now(&self) -> Instant {
        self.0.now()
    }

    fn unix_millis(&self) -> u64 {
        self.0.unix_millis() + self.1
    }

    fn step_millis(&self) -> i64 {
        0
    }
}

#[test]
fn rule_2_what_a_deposed_leader_evaluated_never_happens_after_the_new_one_has_written() {
    on_runtime(async {
        let cluster = Cluster::start(3).await;
        cluster.grow().await;
        let old = cluster.leader().await;
        assert_eq!(old.run_one(set("n", "1")).await, Reply::Ok);
        cluster.assert_equal(&old).await;
        cluster.isolate(1);
        // Evaluated on n = 1, and in nobody else's log.
        let deadline = old.clock.now() + Duration::from_millis(100);
        let cut_off = old.submit_until(vec![increment("n")], deadline);
        let reply = cut_off.await.expect("an answer").remove(0).reply;
        assert_eq!(error_of(&reply).outcome, Outcome::Unknown);
        until("another leads", || {
            [2, 3]
                .iter()
                .any(|id| cluster.node(*id).shard.is_writable())
        })
        .await;
        let new = [2, 3].map(|id| Arc::clone(cluster.node(id)));
        let new = new
            .iter()
            .find(|node| node.shard.is_writable())
            .expect("it leads");
        assert_eq!(new.run_one(set("n", "10")).await, Reply::Ok);
        cluster.network.heal();
        assert_eq!(new.run_one(increment("n")).await, Reply::Integer(11));
        cluster.assert_equal(new).await;
        cluster.stop().await;
    });
}

#[test]
fn rule_6_a_new_leader_with_a_late_clock_revives_nothing() {
    on_runtime(async {
        // The first leader's clock is ten minutes ahead of the others'.
        let cluster = Cluster::start_with(3, |setup| {
            if setup.id == 1 {
                setup.clock = Arc::new(Ahead(RealClock::new(), 600_000));
            }
        })
        .await;
        cluster.grow().await;
        let first = cluster.leader().await;
        assert_eq!(first.run_one(set_for("k", "v", 60)).await, Reply::Ok);
        until("it has expired by the first leader's clock", || {
            first.shard.store().digest() == cluster.node(2).shard.store().digest()
                && first.shard.status().swept_keys == 1
        })
        .await;
        // A deadline that only the first leader's clock has passed.
        assert_eq!(first.run_one(set_for("soon", "v", 1)).await, Reply::Ok);
        while first.get("soon").await != Reply::Nil {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let moved = first
            .shard
            .transfer_leadership(NodeId::new(3), first.after(10));
        moved.await.expect("node 3 takes over");
        let third = cluster.node(3);
        third.wait_writable().await;
        for key in ["k", "soon"] {
            assert_eq!(third.get(key).await, Reply::Nil, "{key} stays gone");
        }
        // Its time goes on from the last batch, not back to its own.
        let ahead = first.clock.unix_millis() - 60_000;
        assert!(ahead < third.shard.now().get());
        cluster.assert_equal(third).await;
        cluster.stop().await;
    });
}

/// Three voters whose disks can be filled with little.
async fn of_small_segments() -> (Cluster, Arc<Node>) {
    let cluster = Cluster::start_with(3, |setup| setup.segment_bytes = 64 * 1024).await;
    cluster.grow().await;
    let leader = cluster.leader().await;
    (cluster, leader)
}

/// Leaves a node's disk no space beyond what its log has taken beforehand, and so much more. The room
/// for a snapshot is made by a thread of its own: without it the disk would be full at once.
async fn limit_disk(cluster: &Cluster, node: &Node, more_bytes: u64) -> SimDisk {
    let at = usize::try_from(node.shard.status().node.get() - 1).expect("small");
    let disk = &cluster.setups[at].disk;
    let folder = Path::new("/data/snap");
    let size = |name: &String| {
        let file = disk.open(&folder.join(name), OpenMode::Read);
        file.and_then(|file| file.size_bytes()).unwrap_or(0)
    };
    until("room for a snapshot is kept", || {
        let names = disk.read_dir(folder).expect("it is there");
        names
            .iter()
            .any(|name| name.ends_with(".prepared") && 0 < size(name))
    })
    .await;
    disk.set_capacity_bytes(Some(disk.used_bytes() + more_bytes));
    disk.clone()
}

#[test]
fn rule_11_a_follower_whose_disk_is_full_still_votes_and_hears_and_catches_up_later() {
    on_runtime(async {
        let (cluster, leader) = of_small_segments().await;
        cluster.assert_equal(&leader).await;
        let full = cluster.node(3);
        let disk = limit_disk(&cluster, full, 0).await;
        let value = "v".repeat(8 * 1024);
        for number in 0..64 {
            let key = format!("key {number}");
            assert_eq!(leader.run_one(set(&key, &value)).await, Reply::Ok);
        }
        assert!(
            full.shard.status().failure.is_none(),
            "{:?}",
            full.shard.status()
        );
        // It is behind, and yet knows and follows its leader.
        assert_eq!(full.shard.status().leader, Some(NodeId::new(1)));
        assert_eq!(full.shard.status().term, leader.shard.status().term);
        disk.set_capacity_bytes(None);
        cluster.assert_equal(&leader).await;
        cluster.stop().await;
    });
}

#[test]
fn rule_11_what_removes_data_and_a_new_leader_pass_a_follower_whose_disk_is_full() {
    on_runtime(async {
        let (cluster, leader) = of_small_segments().await;
        assert_eq!(leader.run_one(set("gone", "1")).await, Reply::Ok);
        assert_eq!(leader.run_one(set("gone too", "1")).await, Reply::Ok);
        cluster.assert_equal(&leader).await;
        let full = cluster.node(3);
        let disk = limit_disk(&cluster, full, 0).await;
        let value = "v".repeat(4 * 1024);
        let (segment, _) = full.log.end();
        // Up to the entry that begins the last segment there is room for.
        while full.log.end().0 == segment {
            assert_eq!(leader.run_one(set("key", &value)).await, Reply::Ok);
            cluster.assert_equal(&leader).await;
        }
        until("its disk is full", || full.log.space() == Space::Full).await;
        // From here on nothing is committed without it.
        cluster.isolate(2);
        assert_eq!(leader.run_one(delete("gone")).await, Reply::Integer(1));
        let moved = leader
            .shard
            .transfer_leadership(NodeId::new(3), leader.after(10));
        moved.await.expect("node 3 takes over");
        full.wait_writable().await;
        assert_eq!(full.run_one(delete("gone too")).await, Reply::Integer(1));
        let refused = full.run_one(set("key", "v")).await;
        assert_eq!(error_of(&refused).code, ErrorCode::NoSpace);
        disk.set_capacity_bytes(None);
        cluster.network.heal();
        cluster.assert_equal(full).await;
        cluster.stop().await;
    });
}

#[test]
fn rule_11_an_entry_larger_than_a_nearly_full_disk_does_not_end_a_follower() {
    on_runtime(async {
        let (cluster, leader) = of_small_segments().await;
        cluster.assert_equal(&leader).await;
        let small = cluster.node(3);
        let disk = limit_disk(&cluster, small, 96 * 1024).await;
        let value = "v".repeat(1024 * 1024);
        assert_eq!(leader.run_one(set("large", &value)).await, Reply::Ok);
        for number in 0..20 {
            let key = format!("key {number}");
            assert_eq!(leader.run_one(set(&key, "v")).await, Reply::Ok);
        }
        until("it has been offered the entry", || {
            small.shard.status().leader == Some(NodeId::new(1))
        })
        .await;
        assert_eq!(small.log.poison_reason(), None);
        assert!(small.shard.status().failure.is_none());
        disk.set_capacity_bytes(None);
        cluster.assert_equal(&leader).await;
        cluster.stop().await;
    });
}

/// What a stale read of the counter tells.
fn number_seen(node: &Node) -> Option<i64> {
    let seen = node
        .shard
        .store()
        .read(&read_of("n"), node.shard.stale_now()?);
    let flux_store::Read::Reply(Reply::Bulk(seen)) = seen else {
        panic!("{seen:?}");
    };
    Some(String::from_utf8_lossy(&seen).parse().expect("a number"))
}

#[test]
fn a_replica_whose_disk_fails_tells_and_applies_nothing_that_it_could_not_keep() {
    for syncs in 0..4 {
        on_runtime(async {
            let cluster = Cluster::start(3).await;
            cluster.grow().await;
            let old = cluster.leader().await;
            assert_eq!(old.run_one(set("n", "1")).await, Reply::Ok);
            cluster.assert_equal(&old).await;
            cluster.isolate(1);
            // In its log alone, where the others will have something else.
            for _ in 0..3 {
                let deadline = old.clock.now() + Duration::from_millis(30);
                drop(old.submit_until(vec![increment("n")], deadline).await);
            }
            until("another leads", || {
                [2, 3]
                    .iter()
                    .any(|id| cluster.node(*id).shard.is_writable())
            })
            .await;
            let new = [2, 3].map(|id| Arc::clone(cluster.node(id)));
            let new = new.iter().find(|node| node.shard.is_writable());
            let new = new.expect("it leads");
            assert_eq!(new.run_one(set("n", "10")).await, Reply::Ok);
            let disk = &cluster.setups[0].disk;
            disk.fail_sync_after(syncs);
            cluster.network.heal();
            let mut number = 10;
            let failed = async {
                let limit = Duration::from_secs(20);
                let failed = tokio::time::timeout(limit, old.shard.failed()).await;
                failed.expect("its disk fails")
            };
            let writing = async {
                loop {
                    number += 1;
                    let reply = new.run_one(increment("n")).await;
                    assert_eq!(reply, Reply::Integer(number));
                    if let Some(seen) = number_seen(&old) {
                        assert!(seen == 1 || (10..=number).contains(&seen), "{seen}");
                    }
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            };
            let failure = tokio::select! {
                failure = failed => failure,
                () = writing => unreachable!("it writes on"),
            };
            assert!(matches!(failure, Failure::LogPoisoned(_)), "{failure}");
            assert!(old.shard.stale_now().is_none());
            // What the leader believes to be there is there after a power cut.
            let told = new.shard.status().replication;
            let told = told.iter().find(|(node, _)| *node == NodeId::new(1));
            let told = told.map_or(LogIndex::new(0), |(_, index)| *index);
            let kept_id = new.shard.log().id_at(told);
            disk.fail_sync_after(u64::MAX);
            old.shard.shutdown().await;
            old.log.abandon();
            disk.crash(CrashLoss::Everything, &mut SeededRng::new(syncs));
            let log = cluster.setups[0].open_log();
            if told.get() > 0 {
                assert_eq!(log.shard(SHARD).id_at(told), kept_id, "after {syncs} syncs");
            }
            log.close();
            cluster.stop().await;
        });
    }
}

#[test]
fn a_shard_that_begins_with_three_voters_needs_two_of_them_to_write() {
    on_runtime(async {
        let voters: BTreeSet<NodeId> = nodes(&[1, 2, 3]);
        let network = flux_raft::MemoryNetwork::default();
        let setup = |id| Setup {
            formation: Formation::Members(voters.clone()),
            ..Setup::member(id, &network)
        };
        let first = setup(1).start().await;
        network.attach(SHARD, NodeId::new(1), first.shard.peer_handler());
        let alone = first
            .shard
            .wait_writable(first.clock.now() + Duration::from_secs(1));
        assert_eq!(
            alone.await.expect_err("one of three").code,
            ErrorCode::Timeout
        );
        let second = setup(2).start().await;
        network.attach(SHARD, NodeId::new(2), second.shard.peer_handler());
        until("one of the two leads", || {
            first.shard.is_writable() || second.shard.is_writable()
        })
        .await;
        let leader = if first.shard.is_writable() {
            &first
        } else {
            &second
        };
        assert_eq!(leader.run_one(set("k", "v")).await, Reply::Ok);
        assert_eq!(leader.shard.status().voters.len(), 3);
        first.stop().await;
        second.stop().await;
    });
}

/// Counts what is handed on, and answers it.
#[derive(Debug, Default)]
struct Counting(AtomicUsize);

impl Forward for Counting {
    fn forward(&self, _shard: ShardId, leader: NodeId, submission: Submission) {
        self.0
            .fetch_add(submission.commands.len(), Ordering::SeqCst);
        assert_eq!(leader, NodeId::new(1));
        let answer = Answer {
            reply: Reply::Ok,
            revision: flux_types::Revision::new(0),
        };
        drop(
            submission
                .reply
                .send(vec![answer; submission.commands.len()]),
        );
    }

    fn reroute(&self, shard: ShardId, _submission: Submission) {
        panic!("shard {shard} was never split");
    }

    fn leader(&self, _shard: ShardId, _term: Term) -> Option<NodeId> {
        None
    }
}

#[test]
fn a_follower_hands_commands_on_once_and_refuses_what_was_handed_on_to_it() {
    on_runtime(async {
        let counting = Arc::new(Counting::default());
        let forward = Arc::clone(&counting) as Arc<dyn Forward>;
        let cluster = Cluster::start_with(3, |setup| {
            if setup.id == 2 {
                setup.forward = Some(Arc::clone(&forward));
            }
        })
        .await;
        cluster.grow().await;
        let leader = cluster.leader().await;
        cluster.assert_equal(&leader).await;
        let follower = cluster.node(2);
        let replies = follower.run(vec![set("a", "1"), get("a")]).await;
        assert_eq!(replies, [Reply::Ok, Reply::Ok]);
        assert_eq!(counting.0.load(Ordering::SeqCst), 2);
        let (reply, answers) = oneshot::channel();
        let handed_on = Submission {
            is_forwarded: true,
            ..Submission::new(vec![set("a", "2")], follower.after(10), reply)
        };
        follower
            .shard
            .submit(handed_on)
            .expect("the queue has room");
        let reply = answers.await.expect("an answer").remove(0).reply;
        assert_eq!(error_of(&reply).code, ErrorCode::NotLeader);
        assert_eq!(error_of(&reply).outcome, Outcome::NotDone);
        assert_eq!(counting.0.load(Ordering::SeqCst), 2);
        cluster.stop().await;
    });
}

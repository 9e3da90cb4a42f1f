//! Several replicas in one process: growing from one voter, failing over, catching up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use flux_raft::network::VoteRequest;
use flux_raft::{MembershipError, MemoryNetwork, Role};
use flux_types::{ErrorCode, NodeId, Outcome, Reply};

use crate::harness::*;

pub(crate) struct Cluster {
    pub(crate) network: MemoryNetwork,
    pub(crate) setups: Vec<Setup>,
    nodes: Vec<Option<Arc<Node>>>,
}

impl Cluster {
    /// One voter, and learners to be.
    pub(crate) async fn start(count: u64) -> Self {
        Self::start_with(count, |_| ()).await
    }

    /// The same with settings changed for each node.
    pub(crate) async fn start_with(count: u64, change: impl Fn(&mut Setup)) -> Self {
        let network = MemoryNetwork::default();
        let mut setups: Vec<_> = (1..=count).map(|id| Setup::member(id, &network)).collect();
        setups.iter_mut().for_each(change);
        let mut cluster = Self {
            nodes: vec![None; setups.len()],
            network,
            setups,
        };
        for id in 1..=count {
            cluster.start_node(id).await;
        }
        cluster.node(1).wait_writable().await;
        cluster
    }

    pub(crate) async fn start_node(&mut self, id: u64) {
        let at = usize::try_from(id - 1).expect("small");
        let node = self.setups[at].start().await;
        let handler = node.shard.peer_handler();
        self.network.attach(SHARD, NodeId::new(id), handler);
        self.nodes[at] = Some(Arc::new(node));
    }

    pub(crate) async fn stop_node(&mut self, id: u64) {
        self.network.detach(SHARD, NodeId::new(id));
        let at = usize::try_from(id - 1).expect("small");
        let node = self.nodes[at].take().expect("it runs");
        node.shard.shutdown().await;
        node.log.close();
    }

    pub(crate) fn node(&self, id: u64) -> &Arc<Node> {
        let at = usize::try_from(id - 1).expect("small");
        self.nodes[at].as_ref().expect("it runs")
    }

    fn running(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes.iter().flatten()
    }

    /// Makes all nodes voters.
    pub(crate) async fn grow(&self) {
        let leader = self.node(1);
        let ids: Vec<u64> = (1..=self.setups.len() as u64).collect();
        for id in ids.iter().skip(1) {
            let added = leader
                .shard
                .add_learner(NodeId::new(*id), leader.after(10))
                .await;
            added.expect("a learner joins");
        }
        let changed = leader
            .shard
            .change_voters(nodes(&ids), leader.after(10))
            .await;
        changed.expect("voters change");
    }

    /// So many voters, and the one that leads.
    pub(crate) async fn grown(count: u64) -> (Self, Arc<Node>) {
        let cluster = Self::start(count).await;
        cluster.grow().await;
        let leader = cluster.leader().await;
        (cluster, leader)
    }

    /// Lets a node and all others hear nothing of each other.
    pub(crate) fn isolate(&self, id: u64) {
        let ids = 1..=self.setups.len() as u64;
        for other in ids.filter(|other| *other != id) {
            self.network.cut(NodeId::new(id), NodeId::new(other));
            self.network.cut(NodeId::new(other), NodeId::new(id));
        }
    }

    /// Waits until some node can write, and answers it.
    pub(crate) async fn leader(&self) -> Arc<Node> {
        until("there is a leader", || {
            self.running().any(|node| node.shard.is_writable())
        })
        .await;
        let leader = self.running().find(|node| node.shard.is_writable());
        Arc::clone(leader.expect("just seen"))
    }

    /// Waits until all replicas have applied the same, and compares what they hold.
    pub(crate) async fn assert_equal(&self, leader: &Node) {
        let status = leader.shard.status();
        for node in self.running() {
            node.shard.wait_applied(status.last).await;
        }
        let digests: Vec<u128> = self
            .running()
            .map(|node| node.shard.store().digest())
            .collect();
        assert!(
            digests.windows(2).all(|pair| pair[0] == pair[1]),
            "{digests:?}"
        );
    }

    pub(crate) async fn stop(mut self) {
        for id in 1..=self.setups.len() as u64 {
            let at = usize::try_from(id - 1).expect("small");
            if self.nodes[at].is_some() {
                self.stop_node(id).await;
            }
        }
    }
}

#[test]
fn one_voter_becomes_three_while_it_writes_and_loses_nothing_with_its_leader() {
    on_runtime(async {
        let mut cluster = Cluster::start(3).await;
        let first = Arc::clone(cluster.node(1));
        let growing = AtomicBool::new(true);
        let writing = async {
            let mut written = 0;
            while growing.load(Ordering::SeqCst) || written < 200 {
                let key = format!("key {written}");
                assert_eq!(first.run_one(set(&key, "value")).await, Reply::Ok);
                written += 1;
            }
            written
        };
        let growth = async {
            cluster.grow().await;
            growing.store(false, Ordering::SeqCst);
        };
        let (written, ()) = tokio::join!(writing, growth);
        let status = first.shard.status();
        assert_eq!(status.voters.len(), 3);
        assert_eq!(status.role, Role::Leader);
        assert!(status.is_membership_committed);
        cluster.assert_equal(&first).await;
        until("all know which entry made them voters", || {
            [2, 3].iter().all(|id| {
                let members = cluster.node(*id).shard.members();
                members.membership == status.membership && members.is_membership_committed
            })
        })
        .await;

        cluster.stop_node(1).await;
        let second = cluster.leader().await;
        assert!(status.term < second.shard.status().term);
        for number in 0..written {
            let key = format!("key {number}");
            assert_eq!(second.get(&key).await, bulk("value"), "{key}");
        }
        assert_eq!(second.run_one(set("after", "1")).await, Reply::Ok);
        cluster.assert_equal(&second).await;

        // Back again, with what it missed.
        cluster.start_node(1).await;
        cluster.assert_equal(&second).await;
        cluster.stop().await;
    });
}

#[test]
fn a_follower_refuses_writes_as_not_done_and_gives_no_lease() {
    on_runtime(async {
        let (cluster, leader) = Cluster::grown(3).await;
        cluster.assert_equal(&leader).await;
        let follower = cluster.node(2);
        let reply = follower.run_one(set("k", "1")).await;
        assert_eq!(error_of(&reply).code, ErrorCode::NotLeader);
        assert_eq!(error_of(&reply).outcome, Outcome::NotDone);
        assert!(follower.shard.lease(follower.clock.now()).is_none());
        let barrier = follower.shard.read_barrier(follower.after(5)).await;
        assert_eq!(
            barrier.expect_err("not the leader").code,
            ErrorCode::NotLeader
        );
        cluster.stop().await;
    });
}

#[test]
fn rule_8_the_leader_of_three_has_a_lease_that_ends_when_it_is_cut_off() {
    on_runtime(async {
        let (cluster, leader) = Cluster::grown(3).await;
        until("the lease opens", || {
            leader.shard.lease(leader.clock.now()).is_some()
        })
        .await;
        leader
            .shard
            .read_barrier(leader.after(5))
            .await
            .expect("a quorum confirms");
        cluster.isolate(1);
        until("the lease ends", || {
            leader.shard.lease(leader.clock.now()).is_none()
        })
        .await;
        let deadline = leader.clock.now() + Duration::from_millis(200);
        assert!(leader.shard.read_barrier(deadline).await.is_err());
        cluster.network.heal();
        cluster.stop().await;
    });
}

#[test]
fn a_write_that_no_quorum_confirms_is_unknown_and_those_behind_it_are_not_done() {
    on_runtime(async {
        let (cluster, leader) = Cluster::grown(3).await;
        for other in [2, 3] {
            cluster.network.cut(NodeId::new(1), NodeId::new(other));
        }
        let deadline = leader.clock.now() + Duration::from_millis(150);
        let batches = leader.shard.status().batches;
        let first = leader.submit_until(vec![set("k", "1")], deadline);
        until("it is proposed", || batches < leader.shard.status().batches).await;
        let second = leader.submit_until(vec![set("k", "2")], deadline);
        let first = first.await.expect("an answer").remove(0).reply;
        let second = second.await.expect("an answer").remove(0).reply;
        assert_eq!(error_of(&first).outcome, Outcome::Unknown);
        assert_eq!(error_of(&first).code, ErrorCode::Timeout);
        assert_eq!(error_of(&second).outcome, Outcome::NotDone);
        assert_eq!(error_of(&second).code, ErrorCode::Timeout);
        cluster.network.heal();
        cluster.stop().await;
    });
}

#[test]
fn rule_14_leadership_is_handed_over_without_losing_a_write() {
    on_runtime(async {
        let cluster = Cluster::start(3).await;
        cluster.grow().await;
        let first = cluster.leader().await;
        for number in 0..20 {
            let key = format!("key {number}");
            assert_eq!(first.run_one(set(&key, "1")).await, Reply::Ok);
        }
        let moved = first
            .shard
            .transfer_leadership(NodeId::new(3), first.after(10));
        moved.await.expect("node 3 takes over");
        assert!(first.shard.lease(first.clock.now()).is_none());
        let third = cluster.node(3);
        third.wait_writable().await;
        for number in 0..20 {
            assert_eq!(third.get(&format!("key {number}")).await, bulk("1"));
        }
        let reply = first.run_one(set("late", "1")).await;
        assert_eq!(error_of(&reply).code, ErrorCode::NotLeader);
        cluster.stop().await;
    });
}

#[test]
fn a_leader_that_does_not_reach_its_heir_goes_on_leading() {
    on_runtime(async {
        let (cluster, leader) = Cluster::grown(3).await;
        cluster.assert_equal(&leader).await;
        let term = leader.shard.status().term;
        // The heir has everything: only the word that it is to lead would be lost.
        cluster.network.cut(NodeId::new(1), NodeId::new(3));
        let deadline = leader.clock.now() + Duration::from_millis(100);
        let moved = leader.shard.transfer_leadership(NodeId::new(3), deadline);
        assert_eq!(moved.await, Err(MembershipError::Timeout));
        assert!(leader.shard.is_writable());
        assert_eq!(leader.run_one(set("k", "1")).await, Reply::Ok);
        assert_eq!(leader.shard.status().term, term);
        cluster.network.heal();
        cluster.stop().await;
    });
}

#[test]
fn a_leader_that_is_deposed_while_it_hands_over_says_nothing_in_the_name_of_the_next() {
    on_runtime(async {
        let (cluster, leader) = Cluster::grown(3).await;
        cluster.assert_equal(&leader).await;
        cluster.isolate(1);
        let handing_over = leader
            .shard
            .transfer_leadership(NodeId::new(2), leader.after(30));
        let others = async {
            until("another leads", || {
                [2, 3]
                    .iter()
                    .any(|id| cluster.node(*id).shard.is_writable())
            })
            .await;
            let (second, third) = (cluster.node(2), cluster.node(3));
            while !second.shard.is_writable() {
                // Who leads is to be the one that the first leader talks to.
                let moved = third
                    .shard
                    .transfer_leadership(NodeId::new(2), third.after(1));
                drop(moved.await);
            }
            cluster.network.heal();
        };
        let (handed_over, ()) = tokio::join!(handing_over, others);
        let told = matches!(handed_over, Err(MembershipError::NotLeader { .. }));
        assert!(told, "{handed_over:?}");
        let second = cluster.node(2);
        assert_eq!(second.run_one(set("k", "1")).await, Reply::Ok);
        cluster.assert_equal(second).await;
        for id in 1..=3 {
            assert_eq!(cluster.node(id).shard.status().failure, None);
        }
        cluster.stop().await;
    });
}

#[test]
fn what_waits_behind_a_write_that_no_majority_confirms_hears_that_nobody_leads() {
    on_runtime(async {
        let (cluster, leader) = Cluster::grown(3).await;
        cluster.isolate(1);
        let batches = leader.shard.status().batches;
        let deadline = leader.after(60);
        let written = leader.submit_until(vec![set("k", "1")], deadline);
        until("it is proposed", || batches < leader.shard.status().batches).await;
        let mut code = ErrorCode::Timeout;
        // While a majority may only be slow, the deadline is all that is known.
        while code == ErrorCode::Timeout {
            let deadline = leader.clock.now() + Duration::from_millis(20);
            let read = leader.submit_until(vec![get("k")], deadline);
            let reply = read.await.expect("an answer").remove(0).reply;
            assert_eq!(error_of(&reply).outcome, Outcome::NotDone);
            code = error_of(&reply).code;
        }
        assert_eq!(code, ErrorCode::Unavailable);
        assert!(!leader.shard.status().is_writable);
        let deadline = leader.clock.now() + Duration::from_millis(20);
        let barrier = leader.shard.read_barrier(deadline).await;
        assert_eq!(
            barrier.expect_err("nobody answers").code,
            ErrorCode::Unavailable
        );
        cluster.network.heal();
        // Whatever becomes of it.
        written.await.expect("an answer");
        cluster.stop().await;
    });
}

#[test]
fn a_replica_that_was_cut_off_does_not_depose_the_leader_when_it_returns() {
    on_runtime(async {
        let (cluster, leader) = Cluster::grown(3).await;
        cluster.assert_equal(&leader).await;
        let term = leader.shard.status().term;
        cluster.isolate(3);
        let cut_off = cluster.node(3);
        // It stops hearing the leader and campaigns, several times over: it has nothing else to say.
        until("it campaigns", || {
            6 <= cluster.network.lost_from(NodeId::new(3))
        })
        .await;
        assert_eq!(cut_off.shard.status().term, term, "no vote raised its term");
        cluster.network.heal();
        assert_eq!(leader.run_one(set("k", "1")).await, Reply::Ok);
        cluster.assert_equal(&leader).await;
        assert_eq!(leader.shard.status().term, term);
        cluster.stop().await;
    });
}

#[test]
fn rule_8_a_voter_that_has_just_restarted_gives_no_vote() {
    on_runtime(async {
        let (mut cluster, leader) = Cluster::grown(3).await;
        cluster.assert_equal(&leader).await;
        cluster.stop_node(3).await;
        cluster.start_node(3).await;
        let status = leader.shard.status();
        let request = VoteRequest {
            vote: flux_log::Vote {
                term: flux_types::Term::new(status.term.get() + 1),
                node: NodeId::new(2),
                committed: false,
            },
            last: None,
            is_transfer: false,
        };
        let handler = cluster.node(3).shard.peer_handler();
        assert!(handler.vote(request.clone()).await.is_err());
        assert!(handler.pre_vote(request).await.is_err());
        cluster.stop().await;
    });
}

#[test]
fn rule_8_a_voter_that_has_just_restarted_does_not_stand_for_election_either() {
    on_runtime(async {
        let (mut cluster, leader) = Cluster::grown(3).await;
        cluster.assert_equal(&leader).await;
        cluster.stop_node(3).await;
        cluster.isolate(1);
        // Whoever has missed the leader for so long would vote for another.
        let timings = quick().timings;
        let missed = leader.clock.now() + timings.election_max * 2;
        until("the second has missed the leader", || {
            missed <= leader.clock.now()
        })
        .await;
        let refusing = leader.clock.now() + timings.vote_refusal();
        cluster.start_node(3).await;
        let (second, third) = (cluster.node(2), cluster.node(3));
        until("the restarted voter may vote", || {
            let role = third.shard.status().role;
            let is_over = refusing <= leader.clock.now();
            assert!(
                is_over || !matches!(role, Role::Candidate | Role::Leader),
                "{role}"
            );
            is_over
        })
        .await;
        until("one of the two leads", || {
            let leads = |node: &Arc<Node>| node.shard.status().role == Role::Leader;
            leads(second) || leads(third)
        })
        .await;
        cluster.stop().await;
    });
}

#[test]
fn a_replica_whose_entries_are_gone_from_the_log_catches_up_by_snapshot() {
    on_runtime(async {
        let mut cluster = Cluster::start(1).await;
        let leader = Arc::clone(cluster.node(1));
        for number in 0..50 {
            let key = format!("key {number}");
            assert_eq!(leader.run_one(set(&key, "value")).await, Reply::Ok);
        }
        leader.shard.snapshot().await.expect("a snapshot");
        until("the log is purged", || {
            10 < leader.shard.status().purged.get()
        })
        .await;
        cluster.setups.push(Setup::member(2, &cluster.network));
        cluster.nodes.push(None);
        cluster.start_node(2).await;
        leader
            .shard
            .add_learner(NodeId::new(2), leader.after(10))
            .await
            .expect("a learner joins");
        assert_eq!(leader.run_one(set("after", "1")).await, Reply::Ok);
        cluster.assert_equal(&leader).await;
        assert_eq!(cluster.node(2).shard.status().role, Role::Learner);

        // And again after a restart of its own.
        cluster.stop_node(2).await;
        cluster.start_node(2).await;
        cluster.assert_equal(&leader).await;
        cluster.stop().await;
    });
}

#[test]
fn who_asks_for_a_status_while_everything_changes_does_not_wait_for_itself() {
    let (tell, told) = std::sync::mpsc::channel();
    // On a thread of its own: one that waits for itself never ends.
    std::thread::spawn(move || {
        on_runtime(async {
            let cluster = Cluster::start(1).await;
            let node = cluster.leader().await;
            let ask = || {
                let shard = node.shard.clone();
                std::thread::spawn(move || {
                    for _ in 0..20_000 {
                        drop((shard.status(), shard.members(), shard.is_writable()));
                    }
                })
            };
            let asking = [ask(), ask()];
            while asking.iter().any(|thread| !thread.is_finished()) {
                assert_eq!(node.run_one(set("n", "1")).await, Reply::Ok);
            }
            for thread in asking {
                thread.join().expect("it asks to the end");
            }
        });
        let _is_heard = tell.send(()).is_ok();
    });
    let ended = told.recv_timeout(Duration::from_secs(60));
    assert!(ended.is_ok(), "somebody waits for itself");
}

//! A replica that was let go forgets everything but its vote and what it once had.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flux_env::{CrashLoss, Disk, SeededRng};
use flux_log::{LogEntry, LogId, ShardLogState, Tombstone, Vote};
use flux_raft::network::{AppendReply, AppendRequest, VoteRequest};
use flux_raft::{Formation, MembershipError, NoNetwork, PeerError, Role};
use flux_store::{Store, StoreConfig};
use flux_types::bug::{self, Bug};
use flux_types::{LogIndex, NodeId, Reply, Revision, ShardId, SlotMap, Term, UnixMillis};

use crate::cluster::Cluster;
use crate::harness::*;

fn id(term: u64, index: u64) -> LogId {
    LogId {
        term: Term::new(term),
        index: LogIndex::new(index),
    }
}

fn node(id: u64) -> NodeId {
    NodeId::new(id)
}

/// Four nodes, of which the first three vote and the last is known to nobody.
async fn three_of_four() -> Cluster {
    let cluster = Cluster::start(4).await;
    let leader = cluster.node(1);
    for learner in [2, 3] {
        let added = leader.shard.add_learner(node(learner), leader.after(10));
        added.await.expect("a learner joins");
    }
    let voters = leader
        .shard
        .change_voters(nodes(&[1, 2, 3]), leader.after(10));
    voters.await.expect("voters change");
    cluster
}

async fn write(leader: &Node, from: u32, until: u32) {
    for number in from..until {
        let key = format!("key {number}");
        assert_eq!(leader.run_one(set(&key, "value")).await, Reply::Ok);
    }
}

/// Gives the vote of one node to another, of nodes 1 to 4, and lets the first go; answers the
/// membership that says so.
async fn exchange(leader: &Node, leaver: u64, comer: u64) -> LogId {
    let added = leader.shard.add_learner(node(comer), leader.after(10));
    added.await.expect("a learner joins");
    let voters: Vec<u64> = (1..=4).filter(|id| *id != leaver).collect();
    let voters = leader.shard.change_voters(nodes(&voters), leader.after(10));
    voters.await.expect("voters change");
    let removed = leader.shard.remove_learner(node(leaver), leader.after(10));
    removed.await.expect("it is let go");
    let members = leader.shard.members();
    assert!(members.is_membership_committed);
    members.membership.expect("there is one")
}

async fn move_3_to_4(cluster: &Cluster) -> LogId {
    exchange(cluster.node(1), 3, 4).await
}

fn snapshot_files(setup: &Setup) -> Vec<String> {
    let names = setup.disk.read_dir(Path::new("/data/snap"));
    let names = names.expect("it is there").into_iter();
    names.filter(|name| name.ends_with(".fsnap")).collect()
}

/// Whether a replica holds nothing but its vote and its tombstone, and serves nothing.
fn assert_forgotten(node: &Node, setup: &Setup, vote: Option<Vote>, tombstone: Tombstone) {
    let expected = ShardLogState {
        vote,
        tombstone: Some(tombstone),
        ..ShardLogState::default()
    };
    assert_eq!(node.shard.log().state(), expected);
    let store = node.shard.store();
    assert!(store.is_empty());
    assert_eq!(store.revision(), Revision::new(0));
    assert_eq!(store.last_batch_at(), UnixMillis::ZERO);
    assert_eq!(
        store.digest(),
        Store::new(StoreConfig::default()).digest(),
        "requests and system data too"
    );
    assert_eq!(node.shard.log().oldest(), LogIndex::new(1));
    assert_eq!(node.shard.applied(), None);
    assert_eq!(node.shard.stale_now(), None);
    assert_eq!(snapshot_files(setup), Vec::<String>::new());
    let status = node.shard.status();
    assert_eq!(status.role, Role::Learner);
    assert_eq!(status.membership, None);
    assert_eq!(status.leader, None, "who led once says nothing");
    assert_eq!(node.shard.members().leader, None);
    assert_eq!(status.snapshot, LogIndex::new(0));
}

#[test]
fn a_voter_moves_and_the_one_let_go_forgets_everything_and_can_come_back() {
    on_runtime(async {
        let mut cluster = three_of_four().await;
        assert_eq!(
            cluster.node(4).shard.stale_now(),
            None,
            "what was never added has nothing to serve"
        );
        let leader = Arc::clone(cluster.node(1));
        write(&leader, 0, 40).await;
        let third = Arc::clone(cluster.node(3));
        third
            .shard
            .wait_applied(leader.shard.status().committed)
            .await;
        third.shard.snapshot().await.expect("a snapshot");
        write(&leader, 40, 60).await;
        assert!(third.shard.stale_now().is_some());
        let gone_at = move_3_to_4(&cluster).await;

        let before = third.shard.log().state();
        assert_eq!(
            before.purged.is_some(),
            !snapshot_files(&cluster.setups[2]).is_empty()
        );
        assert!(third.shard.retire(gone_at).await.expect("it forgets"));
        let tombstone = Tombstone {
            last: before.last.expect("it had entries"),
            gone_at,
        };
        assert_forgotten(&third, &cluster.setups[2], before.vote, tombstone);
        assert!(!third.shard.retire(gone_at).await.expect("nothing is left"));

        // The leader has committed more meanwhile, and takes it back.
        write(&leader, 60, 80).await;
        let added = leader.shard.add_learner(node(3), leader.after(10));
        added.await.expect("it joins again");
        cluster.assert_equal(&leader).await;
        assert!(third.shard.stale_now().is_some());
        assert!(!third.shard.log().state().is_behind());
        let again = leader
            .shard
            .change_voters(nodes(&[1, 3, 4]), leader.after(10));
        again.await.expect("it votes again");
        write(&leader, 80, 90).await;
        assert!(!third.shard.retire(gone_at).await.expect("it stays"));
        cluster.assert_equal(&leader).await;

        // And can lead.
        let moved = leader.shard.transfer_leadership(node(3), leader.after(10));
        moved.await.expect("it takes over");
        third.wait_writable().await;
        assert_eq!(third.get("key 89").await, bulk("value"));
        cluster.stop_node(1).await;
        write(&third, 90, 95).await;
        cluster.stop().await;
    });
}

#[test]
fn the_log_of_who_was_let_go_tells_of_no_split_as_that_of_who_never_was_a_member() {
    on_runtime(async {
        let child = ShardId::new(1);
        let cluster = three_of_four().await;
        let leader = Arc::clone(cluster.node(1));
        write(&leader, 0, 5).await;
        let (third, fourth) = (Arc::clone(cluster.node(3)), Arc::clone(cluster.node(4)));
        let committed = leader.shard.status().committed;
        third.shard.wait_applied(committed).await;
        assert!(!third.shard.will_not_tell_of(child));
        assert!(fourth.shard.will_not_tell_of(child));
        let gone_at = move_3_to_4(&cluster).await;
        assert!(!fourth.shard.will_not_tell_of(child));
        assert!(third.shard.retire(gone_at).await.expect("it forgets"));
        assert!(third.shard.will_not_tell_of(child));
        let halves = SlotMap::even(2).expect("two shards");
        let split = leader.shard.split(&halves, leader.after(20)).await;
        split.expect("the shard is split");
        assert!(leader.shard.will_not_tell_of(child), "it has told");
        assert!(!leader.shard.will_not_tell_of(ShardId::new(2)));
        cluster.stop().await;
    });
}

#[test]
fn who_was_let_go_hears_of_no_later_leader_that_is_asked_to_hand_over_to_it() {
    on_runtime(async {
        let cluster = three_of_four().await;
        let [first, second, third] = [1, 2, 3].map(|id| Arc::clone(cluster.node(id)));
        write(&first, 0, 5).await;
        let gone_at = move_3_to_4(&cluster).await;
        let moved = first.shard.transfer_leadership(node(2), first.after(10));
        moved.await.expect("it takes over");
        second.wait_writable().await;
        let moved = second.shard.transfer_leadership(node(3), second.after(2));
        assert_eq!(moved.await, Err(MembershipError::NotAVoter(node(3))));
        assert!(third.shard.retire(gone_at).await.expect("it forgets"));
        write(&second, 5, 10).await;
        cluster.stop().await;
    });
}

/// A request for a vote that no lease stands in the way of.
fn candidate(term: u64, of: u64, last: LogId) -> VoteRequest {
    VoteRequest {
        vote: Vote {
            term: Term::new(term),
            node: node(of),
            committed: false,
        },
        last: Some(last),
        is_transfer: true,
    }
}

#[test]
fn a_straggler_of_the_old_membership_gets_no_vote_of_a_replica_let_go() {
    on_runtime(async {
        let mut cluster = three_of_four().await;
        let leader = Arc::clone(cluster.node(1));
        write(&leader, 0, 5).await;
        cluster
            .node(2)
            .shard
            .wait_applied(leader.shard.status().committed)
            .await;
        cluster.isolate(2);
        // Committed by 1 and 3 alone.
        write(&leader, 5, 6).await;
        let gone_at = move_3_to_4(&cluster).await;
        let third = cluster.node(3);
        let had = third.shard.log().state().last.expect("it had entries");
        assert!(third.shard.retire(gone_at).await.expect("it forgets"));

        let straggler = cluster.node(2).shard.log().state().last;
        let straggler = straggler.expect("it has entries");
        assert!(straggler < had);
        let term = leader.shard.status().term.get();
        let handler = third.shard.peer_handler();
        for last in [straggler, id(had.term.get(), had.index.get() - 1)] {
            let asked = handler.pre_vote(candidate(term + 5, 2, last)).await;
            assert!(!asked.expect("an answer").is_granted);
            let asked = handler.vote(candidate(term + 5, 2, last)).await;
            let answer = asked.expect("an answer");
            assert!(!answer.is_granted);
            assert_eq!(answer.last, Some(had));
        }
        // It is the tombstone that refuses: an empty log would not.
        if bug::switch(Some(Bug::RetiredVotes)) {
            let asked = handler.pre_vote(candidate(term + 5, 2, straggler)).await;
            bug::switch(None);
            assert!(asked.expect("an answer").is_granted);
        }

        // And after a restart.
        cluster.stop_node(3).await;
        cluster.start_node(3).await;
        let handler = cluster.node(3).shard.peer_handler();
        let asked = handler.vote(candidate(term + 5, 2, straggler)).await;
        assert!(!asked.expect("an answer").is_granted);
        // Whoever has what it had gets its vote, but not twice in a term.
        let asked = handler.vote(candidate(term + 6, 2, had)).await;
        assert!(asked.expect("an answer").is_granted);
        let asked = handler.vote(candidate(term + 6, 4, had)).await;
        assert!(!asked.expect("an answer").is_granted);
        cluster.stop().await;
    });
}

#[test]
fn who_was_added_again_or_leads_forgets_nothing() {
    on_runtime(async {
        let mut cluster = three_of_four().await;
        let leader = Arc::clone(cluster.node(1));
        write(&leader, 0, 10).await;
        let gone_at = move_3_to_4(&cluster).await;
        let added = leader.shard.add_learner(node(3), leader.after(10));
        added.await.expect("it joins again");
        cluster.assert_equal(&leader).await;
        let third = cluster.node(3);
        let before = third.shard.log().state().last;
        assert!(!third.shard.retire(gone_at).await.expect("it stays"));
        assert_eq!(third.shard.log().state().last, before);
        assert!(!leader.shard.retire(gone_at).await.expect("it leads"));
        write(&leader, 10, 20).await;
        cluster.assert_equal(&leader).await;

        // What came after its start is known from the log as well.
        cluster.stop_node(3).await;
        cluster.network.cut(node(1), node(3));
        cluster.start_node(3).await;
        let third = cluster.node(3);
        assert!(!third.shard.retire(gone_at).await.expect("it stays"));
        cluster.network.heal();
        cluster.assert_equal(&leader).await;
        cluster.stop().await;
    });
}

#[test]
fn a_leader_that_was_deposed_and_let_go_without_hearing_of_either_forgets_too() {
    on_runtime(async {
        let cluster = three_of_four().await;
        let first = Arc::clone(cluster.node(1));
        write(&first, 0, 10).await;
        cluster.isolate(1);
        until("another leads", || {
            [2, 3]
                .iter()
                .any(|id| cluster.node(*id).shard.is_writable())
        })
        .await;
        let leads = |id: &u64| cluster.node(*id).shard.is_writable();
        let second = [2, 3].into_iter().find(leads).expect("it leads");
        let second = Arc::clone(cluster.node(second));
        let gone_at = exchange(&second, 1, 4).await;

        assert_eq!(first.shard.status().role, Role::Leader);
        assert!(first.shard.retire(gone_at).await.expect("it forgets"));
        let state = first.shard.log().state();
        assert_eq!(state.last, None);
        assert!(state.vote.is_some() && state.tombstone.is_some());
        cluster.network.heal();
        let added = second.shard.add_learner(node(1), second.after(10));
        added.await.expect("it joins again");
        cluster.assert_equal(&second).await;
        cluster.stop().await;
    });
}

#[test]
fn who_was_added_again_and_has_not_heard_of_it_may_forget_and_catches_up() {
    on_runtime(async {
        let cluster = three_of_four().await;
        let leader = Arc::clone(cluster.node(1));
        write(&leader, 0, 10).await;
        let gone_at = move_3_to_4(&cluster).await;
        cluster.network.cut(node(1), node(3));
        let added = leader.shard.add_learner(node(3), leader.after(10));
        added.await.expect("it joins again");
        write(&leader, 10, 20).await;
        let third = cluster.node(3);
        assert!(third.shard.retire(gone_at).await.expect("it forgets"));
        cluster.network.heal();
        cluster.assert_equal(&leader).await;
        let voters = leader
            .shard
            .change_voters(nodes(&[1, 2, 3]), leader.after(10));
        voters.await.expect("it votes again");
        cluster.stop().await;
    });
}

/// Three voters, and the fourth node as a learner that holds everything; the first leads.
async fn with_a_learner() -> (Cluster, Arc<Node>) {
    let cluster = three_of_four().await;
    let leader = Arc::clone(cluster.node(1));
    write(&leader, 0, 10).await;
    let added = leader.shard.add_learner(node(4), leader.after(10));
    added.await.expect("it joins");
    cluster.assert_equal(&leader).await;
    (cluster, leader)
}

/// What the guards of `retire` leave over: a node starts again and has forgotten beneath them all.
async fn forget_beneath(cluster: &mut Cluster, number: u64) {
    cluster.stop_node(number).await;
    let at = usize::try_from(number - 1).expect("small");
    let log = cluster.setups[at].open_log();
    let (done, noted) = std::sync::mpsc::channel();
    let note = move |result: Result<_, _>| done.send(result.is_ok()).expect("it waits");
    log.shard(SHARD).retire(id(1, 1), Box::new(note));
    assert_eq!(noted.recv(), Ok(true));
    log.close();
    cluster.start_node(number).await;
}

#[test]
fn a_learner_may_forget_what_it_was_known_to_hold_before_its_addition_is_committed() {
    on_runtime(async {
        let (mut cluster, leader) = with_a_learner().await;
        let removed = leader.shard.remove_learner(node(4), leader.after(10));
        removed.await.expect("it is let go");
        for other in [2, 3] {
            cluster.network.cut(node(1), node(other));
            cluster.network.cut(node(other), node(1));
        }
        let adding = Arc::clone(&leader);
        let adding = tokio::spawn(async move {
            let added = adding.shard.add_learner(node(4), adding.after(10));
            added.await.is_ok()
        });
        until("it is known to hold everything", || {
            let status = leader.shard.status();
            let fourth = status.replication.iter().find(|(of, _)| *of == node(4));
            fourth.is_some_and(|(_, index)| *index == status.last)
        })
        .await;
        forget_beneath(&mut cluster, 4).await;
        until("it holds everything again", || {
            cluster.node(4).shard.status().last == leader.shard.status().last
        })
        .await;
        cluster.network.heal();
        adding.await.expect("it ends");
        cluster.stop().await;
    });
}

#[test]
fn a_leader_whose_learner_forgets_what_it_was_known_to_hold_sends_it_again() {
    on_runtime(async {
        let (mut cluster, leader) = with_a_learner().await;
        forget_beneath(&mut cluster, 4).await;
        write(&leader, 10, 20).await;
        cluster.assert_equal(&leader).await;
        cluster.stop().await;
    });
}

/// A membership as an entry carries it (`docs/file-format.md`).
fn membership(voters: &[u64]) -> Bytes {
    let mut out = vec![0x4d, 1];
    out.extend([0; 16]);
    out.extend(1_u32.to_le_bytes());
    for _ in 0..2 {
        out.extend(u32::try_from(voters.len()).expect("few").to_le_bytes());
        voters
            .iter()
            .for_each(|node| out.extend(node.to_le_bytes()));
    }
    Bytes::from(out)
}

/// A node without others, and what a leader has sent it: a membership and some entries.
async fn alone(setup: &Setup) -> Node {
    let node = setup.start().await;
    let entry = |index: u64, payload: Bytes| LogEntry {
        id: id(5, index),
        timestamp: UnixMillis::new(1),
        payload,
    };
    let mut entries = vec![entry(1, membership(&[1, 9]))];
    entries.extend((2..=6).map(|index| entry(index, Bytes::new())));
    let handler = node.shard.peer_handler();
    let reply = handler.append(append(5, None, entries, 5)).await;
    assert_eq!(reply, Ok(AppendReply::Success));
    node.shard.wait_applied(LogIndex::new(5)).await;
    node.shard.snapshot().await.expect("a snapshot");
    node
}

fn append(
    term: u64,
    previous: Option<LogId>,
    entries: Vec<LogEntry>,
    committed: u64,
) -> AppendRequest {
    AppendRequest {
        vote: Vote {
            term: Term::new(term),
            node: node(9),
            committed: true,
        },
        previous,
        entries,
        committed: Some(id(5, committed)),
    }
}

fn lonely() -> Setup {
    Setup {
        formation: Formation::Members(nodes(&[1, 9])),
        network: Arc::new(NoNetwork),
        ..Setup::new()
    }
}

fn vote_of_9() -> Vote {
    Vote {
        term: Term::new(5),
        node: node(9),
        committed: true,
    }
}

fn tombstone(gone_at: LogId) -> Tombstone {
    Tombstone {
        last: id(5, 6),
        gone_at,
    }
}

#[test]
fn who_is_let_go_neither_founds_the_shard_again_nor_hears_leaders_that_do_not_know() {
    on_runtime(async {
        let setup = Setup {
            formation: Formation::Join,
            ..lonely()
        };
        let node = alone(&setup).await;
        let gone_at = id(7, 30);
        assert!(node.shard.retire(gone_at).await.expect("it forgets"));
        assert_forgotten(&node, &setup, Some(vote_of_9()), tombstone(gone_at));
        // Of a leader of the membership that is gone.
        let handler = node.shard.peer_handler();
        let late = handler
            .append(append(6, Some(id(5, 6)), Vec::new(), 6))
            .await;
        assert!(matches!(late, Err(PeerError::Broken(_))), "{late:?}");
        node.stop().await;

        let setup = Setup {
            formation: Formation::Members(nodes(&[1])),
            ..setup
        };
        let node = setup.start().await;
        assert_forgotten(&node, &setup, Some(vote_of_9()), tombstone(gone_at));
        let handler = node.shard.peer_handler();
        let late = handler
            .append(append(6, Some(id(5, 6)), Vec::new(), 6))
            .await;
        assert!(matches!(late, Err(PeerError::Broken(_))), "{late:?}");
        let knows = handler
            .append(append(7, Some(id(5, 6)), Vec::new(), 6))
            .await;
        assert_eq!(knows, Ok(AppendReply::Conflict));
        // Who is deposed must hear of it, or it would lead on for ever.
        let late = append(6, Some(id(5, 6)), Vec::new(), 6);
        let deposed_by = Vote {
            term: Term::new(7),
            ..vote_of_9()
        };
        let told = handler.append(late).await;
        assert_eq!(told, Ok(AppendReply::HigherVote(deposed_by)));
        node.stop().await;
    });
}

#[test]
fn who_was_the_only_voter_once_does_not_lead_by_the_old_entries_that_it_gets_back() {
    on_runtime(async {
        let setup = Setup {
            formation: Formation::Join,
            ..lonely()
        };
        let node = alone(&setup).await;
        assert!(node.shard.retire(id(7, 30)).await.expect("it forgets"));
        let first = LogEntry {
            id: id(5, 1),
            timestamp: UnixMillis::new(1),
            payload: membership(&[1]),
        };
        let handler = node.shard.peer_handler();
        let reply = handler.append(append(7, None, vec![first], 1)).await;
        assert_eq!(reply, Ok(AppendReply::Success));
        node.shard.wait_applied(LogIndex::new(1)).await;
        assert_eq!(node.shard.stale_now(), None, "it is not a member again yet");
        node.stop().await;
        let node = setup.start().await;
        let deadline = node.clock.now() + Duration::from_millis(1500);
        assert!(node.shard.wait_writable(deadline).await.is_err());
        assert_eq!(node.shard.status().term, Term::new(7));
        node.stop().await;
    });
}

#[test]
fn a_power_cut_at_any_write_or_sync_finds_all_or_nothing_forgotten() {
    let gone_at = id(7, 30);
    let (mut kept, mut forgotten) = (0, 0);
    for (count, of_syncs) in (0..5).flat_map(|count| [(count, true), (count, false)]) {
        let setup = Setup {
            formation: Formation::Join,
            ..lonely()
        };
        let told = on_runtime(async {
            let node = alone(&setup).await;
            if of_syncs {
                setup.disk.fail_sync_after(count);
            } else {
                setup.disk.fail_write_after(count);
            }
            let told = node.shard.retire(gone_at).await;
            setup
                .disk
                .crash(CrashLoss::Everything, &mut SeededRng::new(count));
            told
        });
        on_runtime(async {
            setup.disk.fail_sync_after(u64::MAX);
            setup.disk.fail_write_after(u64::MAX);
            let node = setup.start().await;
            let state = node.shard.log().state();
            assert_eq!(state.vote, Some(vote_of_9()));
            if state.tombstone.is_none() {
                assert!(told.is_err(), "it was told that it had forgotten");
                assert_eq!(state.last, Some(id(5, 6)));
                assert!(!snapshot_files(&setup).is_empty());
                kept += 1;
            } else {
                assert_forgotten(&node, &setup, Some(vote_of_9()), tombstone(gone_at));
                forgotten += 1;
            }
            node.stop().await;
        });
    }
    assert!(0 < kept && 0 < forgotten, "{kept} {forgotten}");
}

//! Rules 1, 5 and 7: what a batch means to those whose commands are in it.

use std::time::Duration;

use flux_env::Clock;
use flux_raft::Submission;
use flux_types::{Answer, Command, Condition, ErrorCode, Outcome, Reply, Set, WriteCommand};
use tokio::sync::oneshot;

use crate::harness::*;

#[test]
fn rule_1_two_increments_in_one_batch_see_each_other() {
    on_runtime(async {
        let node = Setup::new().start_writable().await;
        let replies = node.run(vec![increment("n"), increment("n")]).await;
        assert_eq!(replies, [Reply::Integer(1), Reply::Integer(2)]);
        assert_eq!(node.shard.status().batches, 1);
        node.stop().await;
    });
}

#[test]
fn rule_1_a_thousand_concurrent_increments_make_a_thousand() {
    on_runtime(async {
        let node = Setup::new().start_writable().await;
        let answers: Vec<_> = (0..1000)
            .map(|_| node.submit(vec![increment("n")]))
            .collect();
        let mut seen: Vec<i64> = Vec::new();
        for answer in answers {
            match answer.await.expect("an answer").remove(0).reply {
                Reply::Integer(n) => seen.push(n),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(seen, (1..=1000).collect::<Vec<_>>());
        assert_eq!(node.get("n").await, bulk("1000"));
        node.stop().await;
    });
}

#[test]
fn set_if_absent_twice_in_one_pipeline_has_one_winner() {
    on_runtime(async {
        let node = Setup::new().start_writable().await;
        let set = |value| {
            Command::Write(WriteCommand::Set(Set {
                condition: Condition::Absent,
                ..Set::plain(bytes("k"), bytes(value))
            }))
        };
        let replies = node.run(vec![set("a"), set("b")]).await;
        assert_eq!(replies, [Reply::Ok, Reply::Nil]);
        assert_eq!(node.get("k").await, bulk("a"));
        node.stop().await;
    });
}

#[test]
fn rule_7_reads_behind_an_unanswered_write_see_it() {
    on_runtime(async {
        let node = Setup::new().start_writable().await;
        let replies = node
            .run(vec![
                get("k"),
                set("k", "1"),
                get("k"),
                set("k", "2"),
                get("k"),
            ])
            .await;
        let expected = [Reply::Nil, Reply::Ok, bulk("1"), Reply::Ok, bulk("2")];
        assert_eq!(replies, expected);
        assert_eq!(node.shard.status().batches, 1, "one round per pipeline");
        node.stop().await;
    });
}

#[test]
fn a_submission_longer_than_a_batch_goes_through_several_and_is_answered_once() {
    let mut setup = Setup::new();
    setup.config.batch_operations_max = 16;
    on_runtime(async {
        let node = setup.start_writable().await;
        let first = node.submit(vec![increment("n"); 100]);
        let second = node.submit(vec![increment("n"); 3]);
        let numbers = |answers: Vec<Answer>| -> Vec<Reply> {
            answers.into_iter().map(|answer| answer.reply).collect()
        };
        let first = numbers(first.await.expect("answers"));
        let second = numbers(second.await.expect("answers"));
        assert_eq!(first, (1..=100).map(Reply::Integer).collect::<Vec<_>>());
        assert_eq!(second, (101..=103).map(Reply::Integer).collect::<Vec<_>>());
        assert_eq!(node.shard.status().batches, 7);
        node.stop().await;
    });
}

#[test]
fn a_command_larger_than_a_batch_is_a_batch_alone() {
    let mut setup = Setup::new();
    setup.config.batch_bytes_max = 4096;
    setup.segment_bytes = 256 * 1024;
    on_runtime(async {
        let node = setup.start_writable().await;
        let large = "x".repeat(1024 * 1024);
        let commands = vec![set("a", "1"), set("b", &large), set("c", "1")];
        assert_eq!(node.run(commands).await, [Reply::Ok, Reply::Ok, Reply::Ok]);
        assert_eq!(node.shard.status().batches, 3);
        assert_eq!(node.get("b").await, bulk(&large));
        node.stop().await;
    });
}

#[test]
fn a_command_whose_deadline_has_passed_is_not_done() {
    let (setup, clock) = Setup::with_sim_clock();
    on_runtime(async {
        let node = setup.start_writable().await;
        clock.advance(Duration::from_secs(1));
        let answers = node.submit_until(vec![set("k", "1")], clock.now());
        let reply = answers.await.expect("an answer").remove(0).reply;
        assert_eq!(error_of(&reply).code, ErrorCode::Timeout);
        assert_eq!(error_of(&reply).outcome, Outcome::NotDone);
        assert_eq!(node.get("k").await, Reply::Nil);
        node.stop().await;
    });
}

#[test]
fn a_full_queue_gives_back_and_a_stopped_shard_refuses() {
    let mut setup = Setup::new();
    setup.config.queue_operations_max = 4;
    on_runtime(async {
        let node = setup.start_writable().await;
        let submission = |count| {
            let (reply, answers) = oneshot::channel();
            let submission = Submission::new(vec![increment("n"); count], node.after(10), reply);
            (submission, answers)
        };
        let (fits, answers) = submission(4);
        node.shard.submit(fits).expect("room");
        let (over, _) = submission(1);
        let back = node.shard.submit(over).expect_err("busy");
        assert_eq!(back.commands.len(), 1);
        assert_eq!(answers.await.expect("answers").len(), 4);
        node.shard.submit(back).expect("room again");
        node.shard.shutdown().await;
        let (late, answers) = submission(1);
        node.shard.submit(late).expect("answered, not given back");
        let reply = answers.await.expect("an answer").remove(0).reply;
        assert_eq!(error_of(&reply).code, ErrorCode::ShuttingDown);
    });
}

#[test]
fn the_lease_of_a_sole_voter_opens_with_its_own_no_op_and_closes_with_the_shard() {
    let setup = Setup::new();
    on_runtime(async {
        let node = setup.start_writable().await;
        until("the gate opens", || {
            node.shard.lease(node.clock.now()).is_some()
        })
        .await;
        node.shard
            .read_barrier(node.after(5))
            .await
            .expect("a sole voter confirms itself");
        node.shard.shutdown().await;
        assert!(node.shard.lease(node.clock.now()).is_none());
    });
}

//! Rules 1, 5 and 7: what a batch means to those whose commands are in it.

use flux_types::{Command, Condition, Reply, Set};

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
            Command::Set(Set {
                condition: Condition::Absent,
                ..Set::plain(bytes("k"), bytes(value))
            })
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

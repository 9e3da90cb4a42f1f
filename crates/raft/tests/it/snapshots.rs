//! Rule 4: a snapshot taken while writes go on, and what a restart makes of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use flux_env::{CrashLoss, SeededRng};
use flux_log::FsyncPolicy;
use flux_types::Reply;

use crate::harness::*;

/// Overwrites, deletes, counts and expires keys until told to stop.
async fn churn(node: Arc<Node>, stop: Arc<AtomicBool>) -> u64 {
    let mut round = 0;
    while !stop.load(Ordering::SeqCst) {
        let key = format!("key {}", round % 97);
        let commands = vec![
            set(&key, &format!("value {round}")),
            increment("count"),
            delete(&format!("key {}", (round * 7) % 97)),
            set_for(&format!("ttl {}", round % 31), "x", 1_000_000),
        ];
        let replies = node.run(commands).await;
        assert_eq!(replies[0], Reply::Ok);
        round += 1;
    }
    round
}

#[test]
fn rule_4_a_snapshot_taken_during_writes_and_the_log_after_it_restore_the_same_state() {
    let (setup, _clock) = Setup::with_sim_clock();
    let (digest, revision, last) = on_runtime(async {
        let node = Arc::new(setup.start_writable().await);
        for number in 0..2000 {
            node.run_one(set(&format!("still {number}"), "there")).await;
        }
        let stop = Arc::new(AtomicBool::new(false));
        let churning = tokio::spawn(churn(Arc::clone(&node), Arc::clone(&stop)));
        for _ in 0..3 {
            let before = node.shard.status().applied;
            let at = node.shard.snapshot().await.expect("a snapshot");
            assert!(before <= at.index);
        }
        stop.store(true, Ordering::SeqCst);
        assert!(churning.await.expect("no panic") > 0);
        until("the log before the snapshot goes", || {
            1000 < node.shard.status().purged.get()
        })
        .await;
        let store = node.shard.store();
        let seen = (store.digest(), store.revision(), node.shard.status().last);
        node.shard.shutdown().await;
        node.log.close();
        seen
    });
    on_runtime(async {
        let node = setup.start_writable().await;
        assert!(
            node.shard.status().purged.get() > 1000,
            "replayed, not kept"
        );
        node.shard.wait_applied(last).await;
        assert_eq!(node.shard.store().digest(), digest);
        assert_eq!(node.shard.store().revision(), revision);
        node.stop().await;
    });
}

#[test]
fn rule_4_a_power_cut_around_a_snapshot_never_leaves_a_hole() {
    // Under `everysec` the log is ahead of the disk, so a snapshot could come to speak of entries
    // that a power cut takes back. Whatever is lost then is lost from the end.
    for seed in 0..12 {
        let mut rng = SeededRng::new(seed);
        let (mut setup, _clock) = Setup::with_sim_clock();
        setup.fsync = FsyncPolicy::EverySecond;
        setup.config.log_entries_kept = 0;
        let written = on_runtime(async {
            let node = Arc::new(setup.start_writable().await);
            let written = Arc::new(AtomicU64::new(0));
            let write = |count: u64| {
                let (node, written) = (Arc::clone(&node), Arc::clone(&written));
                async move {
                    for _ in 0..count {
                        let number = written.fetch_add(1, Ordering::SeqCst);
                        let key = format!("key {number}");
                        assert_eq!(node.run_one(set(&key, "1")).await, Reply::Ok);
                    }
                }
            };
            write(20).await;
            node.shard.snapshot().await.expect("a snapshot");
            until("the log before it goes", || {
                20 < node.shard.status().purged.get()
            })
            .await;
            write(20 + seed * 3).await;
            // The next snapshot is cut off the moment it has its name.
            node.shard.snapshot().await.expect("a snapshot");
            setup.disk.crash(CrashLoss::Random, &mut rng);
            written.load(Ordering::SeqCst)
        });
        on_runtime(async {
            let node = setup.start_writable().await;
            let mut is_lost = false;
            for number in 0..written {
                let is_there = node.get(&format!("key {number}")).await != Reply::Nil;
                assert!(
                    !(is_lost && is_there),
                    "key {number} is there after a lost one"
                );
                is_lost |= !is_there;
            }
            assert_eq!(node.get("key 0").await, bulk("1"), "snapshots are kept");
            node.stop().await;
        });
    }
}

#[test]
fn a_snapshot_is_taken_by_itself_when_the_log_has_grown_enough() {
    let (mut setup, _clock) = Setup::with_sim_clock();
    setup.config.snapshot_log_bytes = 64 * 1024;
    on_runtime(async {
        let node = setup.start_writable().await;
        let value = "x".repeat(4096);
        for number in 0..64 {
            node.run_one(set(&format!("key {}", number % 4), &value))
                .await;
        }
        until("a snapshot is taken", || 0 < node.shard.status().snapshots).await;
        until("the log before it goes", || {
            0 < node.shard.status().purged.get()
        })
        .await;
        node.stop().await;
    });
    on_runtime(async {
        let node = setup.start_writable().await;
        assert_eq!(node.get("key 0").await, bulk(&"x".repeat(4096)));
        node.stop().await;
    });
}

#[test]
fn a_shard_that_has_applied_nothing_but_its_first_entries_can_be_snapshotted() {
    let setup = Setup::new();
    on_runtime(async {
        let node = setup.start_writable().await;
        node.shard.snapshot().await.expect("membership and no-op");
        node.stop().await;
    });
    on_runtime(async {
        let node = setup.start_writable().await;
        assert_eq!(
            node.shard.status().voters.len(),
            1,
            "its membership is kept"
        );
        assert_eq!(node.run_one(set("k", "1")).await, Reply::Ok);
        node.stop().await;
    });
}

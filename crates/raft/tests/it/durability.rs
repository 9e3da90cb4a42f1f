//! Rules 9, 11 and 12 and what `fsync` promises: acknowledged is kept, whatever dies.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use flux_env::{CrashLoss, Rng, SeededRng};
use flux_log::FsyncPolicy;
use flux_raft::Failure;
use flux_types::{Command, ErrorCode, Outcome, ReadCommand, Reply, TtlForm, WriteCommand};
use parking_lot::Mutex;

use crate::harness::*;

/// What clients were told before the crash.
#[derive(Default)]
struct Told {
    /// Key → value and deadline.
    values: BTreeMap<String, (String, i64)>,
    /// Replies of increments.
    counts: Vec<i64>,
    submitted: u64,
}

const CLIENTS: u64 = 8;

/// Writes as fast as it is answered, noting every acknowledgement.
async fn client(node: Arc<Node>, number: u64, told: Arc<Mutex<Told>>, acked: Arc<AtomicU64>) {
    for round in 0.. {
        let key = format!("{number}:{round}");
        let value = format!("value {round} of {number}");
        let deadline = i64::try_from(EPOCH_MILLIS + 1_000_000 + round).expect("small");
        let mut write = set_for(&key, &value, 0);
        if let Command::Write(WriteCommand::Set(set)) = &mut write {
            set.expiry = flux_types::Expiry::At(deadline);
        }
        told.lock().submitted += 1;
        let Ok(answers) = node.submit(vec![write, increment("count")]).await else {
            return;
        };
        let mut told = told.lock();
        if answers[0].reply == Reply::Ok {
            told.values.insert(key, (value, deadline));
        }
        if let Reply::Integer(count) = answers[1].reply {
            told.counts.push(count);
        }
        drop(told);
        acked.fetch_add(1, Ordering::SeqCst);
    }
}

/// Runs clients until some number of rounds is acknowledged, then stops the machine dead.
fn crash_under_load(setup: &Setup, rounds: u64, loss: CrashLoss, rng: &mut SeededRng) -> Told {
    let told = Arc::new(Mutex::new(Told::default()));
    on_runtime(async {
        let node = Arc::new(setup.start_writable().await);
        let acked = Arc::new(AtomicU64::new(0));
        for number in 0..CLIENTS {
            let (told, acked) = (Arc::clone(&told), Arc::clone(&acked));
            tokio::spawn(client(Arc::clone(&node), number, told, acked));
        }
        let rounds_before = acked.load(Ordering::SeqCst);
        until("clients are answered", || {
            rounds_before + rounds <= acked.load(Ordering::SeqCst)
        })
        .await;
        setup.disk.crash(loss, rng);
    });
    Arc::into_inner(told).map_or_else(Told::default, Mutex::into_inner)
}

/// Every acknowledged write is there with its exact deadline, and no increment counted twice.
fn check_kept(setup: &Setup, told: &Told, submitted_before: u64) -> i64 {
    on_runtime(async {
        let node = setup.start_writable().await;
        for (key, (value, deadline)) in &told.values {
            let ttl = Command::Read(ReadCommand::Ttl {
                key: bytes(key),
                form: TtlForm::AbsoluteMillis,
            });
            let replies = node.run(vec![get(key), ttl]).await;
            assert_eq!(replies, [bulk(value), Reply::Integer(*deadline)], "{key}");
        }
        let count = match node.get("count").await {
            Reply::Bulk(count) => std::str::from_utf8(&count)
                .expect("digits")
                .parse()
                .expect("a number"),
            Reply::Nil => 0,
            other => panic!("{other:?}"),
        };
        let highest = told.counts.iter().copied().max().unwrap_or(0);
        assert!(highest <= count, "acknowledged increments were lost");
        let submitted = i64::try_from(submitted_before + told.submitted).expect("small");
        assert!(count <= submitted, "an increment counted twice");
        node.stop().await;
        count
    })
}

#[test]
fn rule_9_what_was_acknowledged_under_always_survives_power_cuts_at_any_moment() {
    for seed in 0..6 {
        let mut rng = SeededRng::new(seed);
        let (setup, _clock) = Setup::with_sim_clock();
        let mut submitted = 0;
        for _ in 0..3 {
            let rounds = 1 + rng.below(60);
            let loss = if rng.one_in(2) {
                CrashLoss::Everything
            } else {
                CrashLoss::Random
            };
            let told = crash_under_load(&setup, rounds, loss, &mut rng);
            assert!(!told.values.is_empty(), "the test tests something");
            check_kept(&setup, &told, submitted);
            submitted += told.submitted;
            setup.disk.crash(CrashLoss::Nothing, &mut rng);
        }
    }
}

#[test]
fn what_was_acknowledged_survives_the_death_of_the_process_under_every_policy() {
    for (seed, fsync) in [(1, FsyncPolicy::EverySecond), (2, FsyncPolicy::Never)] {
        let mut rng = SeededRng::new(seed);
        let (mut setup, _clock) = Setup::with_sim_clock();
        setup.fsync = fsync;
        let told = crash_under_load(&setup, 100, CrashLoss::Nothing, &mut rng);
        assert!(!told.values.is_empty(), "the test tests something");
        check_kept(&setup, &told, 0);
    }
}

#[test]
fn a_restart_shows_the_term_going_up_by_one() {
    let setup = Setup::new();
    let term = |setup: &Setup| {
        on_runtime(async {
            let node = setup.start_writable().await;
            let term = node.shard.status().term.get();
            node.stop().await;
            term
        })
    };
    let first = term(&setup);
    assert_eq!(term(&setup), first + 1);
    assert_eq!(term(&setup), first + 2);
}

#[test]
fn rule_11_a_full_disk_refuses_writes_and_lets_deletes_and_reads_pass() {
    let (mut setup, _clock) = Setup::with_sim_clock();
    setup.segment_bytes = 256 * 1024;
    on_runtime(async {
        let node = setup.start_writable().await;
        assert_eq!(node.run_one(set("kept", "1")).await, Reply::Ok);
        assert_eq!(node.run_one(set("gone", "1")).await, Reply::Ok);
        setup.disk.set_capacity_bytes(Some(setup.disk.used_bytes()));
        let large = "x".repeat(16 * 1024);
        let mut refused = None;
        for round in 0..200 {
            let reply = node.run_one(set(&format!("fill {round}"), &large)).await;
            if let Reply::Error(error) = reply {
                refused = Some(error);
                break;
            }
        }
        let refused = refused.expect("the disk is full at some point");
        assert_eq!(refused.code, ErrorCode::NoSpace);
        assert_eq!(refused.outcome, Outcome::NotDone);
        assert_eq!(node.run_one(delete("gone")).await, Reply::Integer(1));
        let replies = node.run(vec![get("kept"), get("gone")]).await;
        assert_eq!(replies, [bulk("1"), Reply::Nil]);
        assert!(node.shard.status().failure.is_none());

        setup.disk.set_capacity_bytes(None);
        let mut replies = Vec::new();
        for _ in 0..500 {
            replies.push(node.run_one(set("again", "1")).await);
            if replies.last() == Some(&Reply::Ok) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(replies.last(), Some(&Reply::Ok), "service resumes");
        node.stop().await;
    });
    on_runtime(async {
        let node = setup.start_writable().await;
        let replies = node.run(vec![get("kept"), get("gone"), get("again")]).await;
        assert_eq!(replies, [bulk("1"), Reply::Nil, bulk("1")]);
    });
}

/// Writes until it succeeds.
async fn write_at_last(node: &Node, key: &str, value: &str) -> u32 {
    for refusals in 0..1000 {
        match node.run_one(set(key, value)).await {
            Reply::Ok => return refusals,
            reply => assert_eq!(error_of(&reply).code, ErrorCode::NoSpace),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("writes do not go on");
}

#[test]
fn rule_11_a_disk_full_of_log_is_helped_by_a_snapshot_without_anybody_from_outside() {
    let (mut setup, _clock) = Setup::with_sim_clock();
    setup.segment_bytes = 256 * 1024;
    let value = |round: u32| format!("{round}:{}", "x".repeat(16 * 1024));
    on_runtime(async {
        let node = setup.start_writable().await;
        assert_eq!(node.run_one(set("kept", "1")).await, Reply::Ok);
        let capacity = setup.disk.used_bytes() + 512 * 1024;
        setup.disk.set_capacity_bytes(Some(capacity));
        // Six times what there is, over few keys: only old segments are in the way.
        let mut refusals = 0;
        for round in 0..200 {
            refusals += write_at_last(&node, &format!("key {}", round % 8), &value(round)).await;
        }
        assert!(0 < refusals, "the disk was full at some point");
        let status = node.shard.status();
        assert!(0 < status.snapshots.min(status.purged.get()));
        assert!(status.failure.is_none());
        // A power cut now.
        setup
            .disk
            .crash(CrashLoss::Everything, &mut SeededRng::new(1));
    });
    on_runtime(async {
        let node = setup.start_writable().await;
        assert_eq!(node.get("kept").await, bulk("1"));
        for round in 192..200 {
            let key = format!("key {}", round % 8);
            assert_eq!(node.get(&key).await, bulk(&value(round)), "{key}");
        }
        node.stop().await;
    });
}

#[test]
fn a_failed_fsync_makes_the_write_unknown_and_ends_the_shard() {
    let (setup, _clock) = Setup::with_sim_clock();
    on_runtime(async {
        let node = setup.start_writable().await;
        assert_eq!(node.run_one(set("a", "1")).await, Reply::Ok);
        setup.disk.fail_sync_after(0);
        let reply = node.run_one(set("b", "1")).await;
        assert_eq!(error_of(&reply).outcome, Outcome::Unknown);
        let failure = node.shard.failed().await;
        assert!(matches!(failure, Failure::LogPoisoned(_)), "{failure}");
        assert!(node.shard.status().failure.is_some());
        assert!(node.shard.lease(node.clock.now()).is_none());
        let reply = node.run_one(set("c", "1")).await;
        assert!(matches!(reply, Reply::Error(_)));
    });
}

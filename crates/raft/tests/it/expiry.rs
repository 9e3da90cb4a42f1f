//! Rule 6 and active expiry: deadlines pass for everyone at once, and keys go without being asked.

use std::sync::Arc;
use std::time::Duration;

use flux_env::SimClock;
use flux_types::{Reply, UnixMillis};

use crate::harness::*;

async fn start() -> (Node, Arc<SimClock>) {
    let (setup, clock) = Setup::with_sim_clock();
    (setup.start_writable().await, clock)
}

#[test]
fn a_key_whose_deadline_passes_is_removed_without_being_asked_for() {
    on_runtime(async {
        let (node, clock) = start().await;
        let replies = node
            .run(vec![
                set_for("soon", "1", 100),
                set_for("later", "1", 60_000),
                set("never", "1"),
            ])
            .await;
        assert_eq!(replies, [Reply::Ok, Reply::Ok, Reply::Ok]);
        assert_eq!(node.shard.store().len(), 3);
        clock.advance(Duration::from_millis(101));
        until("it is removed", || node.shard.store().len() == 2).await;
        until("and counted", || node.shard.status().swept_keys == 1).await;
        clock.advance(Duration::from_secs(60));
        until("the other too", || node.shard.store().len() == 1).await;
        node.stop().await;
    });
}

#[test]
fn a_sweeper_asleep_is_woken_by_an_earlier_deadline() {
    let (mut setup, clock) = Setup::with_sim_clock();
    // It never wakes by its own pause within this test.
    setup.config.sweep_pause_max = Duration::from_secs(3600);
    on_runtime(async {
        let node = setup.start_writable().await;
        node.run_one(set_for("later", "1", 3_000_000)).await;
        clock.advance(Duration::from_millis(500));
        // Its deadline lies in the past of the clock when it is applied.
        let mut past = set_for("soon", "1", 0);
        if let flux_types::Command::Write(flux_types::WriteCommand::Set(set)) = &mut past {
            let at = i64::try_from(EPOCH_MILLIS + 501).expect("small");
            set.expiry = flux_types::Expiry::At(at);
        }
        node.run_one(past).await;
        clock.advance(Duration::from_millis(2));
        node.run_one(set("another", "1")).await;
        until("it is removed", || node.shard.store().len() == 2).await;
        node.stop().await;
    });
}

#[test]
fn rule_6_a_stepped_clock_pauses_active_expiry() {
    on_runtime(async {
        let (node, clock) = start().await;
        node.run_one(set_for("k", "1", 100)).await;
        clock.set_step_millis(501);
        clock.advance(Duration::from_millis(101));
        // Time enough for many looks of the sweeper.
        for _ in 0..20 {
            node.run_one(set("other", "1")).await;
            tokio::task::yield_now().await;
        }
        assert_eq!(node.shard.status().swept_keys, 0);
        clock.set_step_millis(-499);
        until("it is removed", || node.shard.status().swept_keys == 1).await;
        node.stop().await;
    });
}

#[test]
fn rule_6_time_never_goes_back_behind_the_last_batch() {
    let (setup, clock) = Setup::with_sim_clock();
    on_runtime(async {
        let node = setup.start_writable().await;
        clock.advance(Duration::from_secs(100));
        node.run_one(set("k", "1")).await;
        node.stop().await;
    });
    // The machine's clock is a hundred seconds behind at the next start.
    let mut setup = setup;
    setup.clock = Arc::new(SimClock::new(EPOCH_MILLIS));
    on_runtime(async {
        let node = setup.start_writable().await;
        let last = UnixMillis::new(EPOCH_MILLIS + 100_000);
        assert_eq!(node.shard.now(), last);
        node.run_one(set_for("t", "1", 50)).await;
        assert!(last <= node.shard.store().last_batch_at());
        let replies = node.run(vec![get("k"), get("t")]).await;
        assert_eq!(replies, [bulk("1"), bulk("1")]);
        node.stop().await;
    });
}

#[test]
fn rule_6_a_write_in_the_batch_of_its_deadline_wins() {
    on_runtime(async {
        let (node, clock) = start().await;
        node.run_one(set_for("k", "old", 100)).await;
        clock.set_step_millis(501);
        clock.advance(Duration::from_millis(100));
        let replies = node.run(vec![set("k", "new"), get("k")]).await;
        assert_eq!(replies, [Reply::Ok, bulk("new")]);
        clock.set_step_millis(0);
        for _ in 0..20 {
            node.run_one(set("other", "1")).await;
        }
        assert_eq!(node.get("k").await, bulk("new"));
        assert_eq!(node.shard.status().swept_keys, 0);
        node.stop().await;
    });
}

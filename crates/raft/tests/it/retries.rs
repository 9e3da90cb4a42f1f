//! Writes with request ids, over restarts, snapshots and time.

use std::time::Duration;

use flux_types::limits::{REQUEST_SESSION_BEGIN_MS, REQUEST_SESSION_IDLE_MS};
use flux_types::{Command, ErrorCode, Outcome, Reply, RequestId, SessionId, UnixMillis};

use crate::harness::*;

fn once(sequence: u64) -> Command {
    increment("n").once(RequestId {
        session: SessionId::draw(UnixMillis::new(EPOCH_MILLIS), 7),
        sequence,
        lowest_unanswered: 1,
    })
}

#[test]
fn a_retry_after_a_restart_is_done_once_be_it_from_log_or_snapshot() {
    let (mut setup, _clock) = Setup::with_sim_clock();
    setup.config.log_entries_kept = 0;
    on_runtime(async {
        let node = setup.start_writable().await;
        assert_eq!(node.run_one(once(1)).await, Reply::Integer(1));
        let before = node.shard.status().applied.next();
        node.shard.snapshot().await.expect("a snapshot");
        // From here on the first is in the snapshot alone.
        assert_eq!(node.run_one(once(2)).await, Reply::Integer(2));
        until("the log before it goes", || {
            before <= node.shard.status().purged.next()
        })
        .await;
        node.stop().await;
    });
    on_runtime(async {
        let node = setup.start_writable().await;
        let replies = node.run(vec![once(2), once(1), once(3)]).await;
        assert_eq!(replies, [2, 1, 3].map(Reply::Integer));
        assert_eq!(node.get("n").await, bulk("3"));
        node.stop().await;
    });
}

#[test]
fn an_idle_session_is_forgotten_without_being_asked_for() {
    let (setup, clock) = Setup::with_sim_clock();
    on_runtime(async {
        let node = setup.start_writable().await;
        assert_eq!(node.run_one(once(1)).await, Reply::Integer(1));
        clock.advance(Duration::from_millis(REQUEST_SESSION_BEGIN_MS));
        assert_eq!(node.run_one(once(1)).await, Reply::Integer(1));
        assert_eq!(node.run_one(once(2)).await, Reply::Integer(2));
        clock.advance(Duration::from_millis(REQUEST_SESSION_IDLE_MS + 2000));
        until("it is forgotten", || {
            node.shard.store().request_sessions() == 0
        })
        .await;
        let reply = node.run_one(once(1)).await;
        let error = error_of(&reply);
        assert_eq!(error.code, ErrorCode::RequestUnknown);
        assert_eq!(error.outcome, Outcome::Unknown);
        assert_eq!(node.get("n").await, bulk("2"));
        node.stop().await;
    });
}

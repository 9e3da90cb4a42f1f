//! Follows openraft's view of leadership and turns it into the lease gate's deadline, the
//! sweeper's switch and a counter others wait on.

use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;

use crate::expiry::SweepAlarm;
use crate::gate::Grant;
use crate::replica::{Leadership, Replica};
use crate::runtime::sleep;
use crate::status::Failure;

/// How often the gate's deadline is moved on while several voters grant it.
const GRANT_REFRESH: Duration = Duration::from_millis(20);

/// Watches until the consensus engine ends. Safe to drop.
pub(crate) async fn run(replica: Arc<Replica>, alarm: Arc<SweepAlarm>) {
    let engine = replica.engine();
    let mut metrics = engine.raft.server_metrics();
    loop {
        let grant = replica.grant();
        replica.gate.set(grant);
        alarm.set_leading(matches!(replica.leadership(), Leadership::Leads(_)));
        replica.leadership_changes.send_modify(|count| *count += 1);
        let needs_refresh = matches!(grant, Grant::Until(..)) || is_leading_without_grant(&replica);
        tokio::select! {
            biased;
            changed = metrics.changed() => {
                if changed.is_err() {
                    break;
                }
            }
            () = replica.progress.wait_term_changed() => {}
            () = sleep(GRANT_REFRESH), if needs_refresh => {}
        }
    }
    replica.gate.close();
    alarm.set_leading(false);
    let state = engine.raft.metrics().borrow_watched().running_state.clone();
    if let Err(fatal) = state
        && !replica.queue.is_closed()
    {
        tracing::error!(shard = %replica.id, error = %fatal, "the shard's consensus engine stopped");
        // Of a log that has failed the engine may hear before everybody else.
        replica.fail(match replica.node_log.poison_reason() {
            Some(reason) => Failure::LogPoisoned(reason),
            None => Failure::Engine(fatal.to_string()),
        });
    }
    replica.leadership_changes.send_modify(|count| *count += 1);
}

/// A leader of several voters whose quorum has not answered yet: the grant comes without any
/// change of what the server metrics show.
fn is_leading_without_grant(replica: &Replica) -> bool {
    matches!(replica.leadership(), Leadership::Leads(_)) && !replica.is_sole_voter()
}

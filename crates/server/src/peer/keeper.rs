//! Keeps a shard's voters alive: its leader takes one step after the other
//! ([`flux_cluster::reconcile`]) until the members are those that should be.
//!
//! A node that lost its disk, or cannot trust it, comes back under the same number as another
//! node. Its shards' leaders see that in the news, let it follow, wait until it has caught up, give
//! it the vote of its former life, and let that go. Nothing is remembered between two looks, so that
//! another leader can take it up: each step starts from the shard's own membership.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use flux_cluster::reconcile::{Members, Step, next_step};
use flux_raft::{MembershipError, Shard, ShardStatus};
use flux_types::NodeId;

use super::{Peers, clock};

/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(300);
/// How long one step may take.
const LIMIT: Duration = Duration::from_secs(10);
/// How many entries behind the leader counts as caught up: what a change of voters waits for.
const LAG_MAX: u64 = 64;

/// A shard as its leader sees it. `living` are the lives of other nodes that are there and well.
fn members(status: &ShardStatus, living: BTreeSet<NodeId>) -> Members {
    let reached = |index: u64| status.last.get() <= index + LAG_MAX;
    let caught_up = status.replication.iter();
    let caught_up = caught_up.filter(|(_, index)| reached(index.get()));
    let after = status.voters_after.as_ref();
    Members {
        own: status.node,
        voters: status.voters.iter().copied().collect(),
        after: after.map(|after| after.iter().copied().collect()),
        learners: status.learners.iter().copied().collect(),
        caught_up: caught_up.map(|(node, _)| *node).collect(),
        living,
    }
}

/// Looks after the shards that this node leads, and after whether it should, until it ends.
///
/// # Cancellation
/// Safe to drop; a step under way goes on.
pub(crate) async fn keep(peers: Arc<Peers>) {
    tokio::join!(keep_members(&peers), clock::watch(&peers));
}

async fn keep_members(peers: &Arc<Peers>) {
    loop {
        tokio::select! {
            () = peers.stop.cancelled() => return,
            () = tokio::time::sleep(PAUSE) => {}
        }
        for shard in peers.shards().iter() {
            if !shard.is_writable() {
                continue;
            }
            let members = members(&shard.status(), peers.book.all_living());
            let Some(step) = next_step(&members, None) else {
                continue;
            };
            match take(peers, shard, step.clone()).await {
                Ok(()) if matches!(step, Step::Wait(_)) => {}
                Ok(()) => tracing::info!(shard = %shard.id(), ?step, "membership changed"),
                Err(error) => {
                    tracing::debug!(shard = %shard.id(), ?step, %error, "membership not changed");
                }
            }
        }
    }
}

async fn take(peers: &Peers, shard: &Shard, step: Step) -> Result<(), MembershipError> {
    let deadline = peers.clock.now() + LIMIT;
    match step {
        Step::Learn(node) => shard.add_learner(node, deadline).await,
        Step::Wait(_) => Ok(()),
        Step::Vote(voters) => shard.change_voters(voters, deadline).await,
        Step::Forget(node) => shard.remove_learner(node, deadline).await,
        Step::Lead(node) => shard.transfer_leadership(node, deadline).await,
    }
}

#[cfg(test)]
mod tests {
    use flux_raft::Role;
    use flux_types::{LogIndex, ShardId, Term};

    use super::*;

    fn node(physical: u32, incarnation: u32) -> NodeId {
        NodeId::of_incarnation(physical, incarnation)
    }

    fn status(voters: &[NodeId], learners: &[NodeId], reached: u64) -> ShardStatus {
        let index = LogIndex::new(1000);
        let all = voters.iter().chain(learners);
        ShardStatus {
            id: ShardId::new(0),
            node: node(1, 1),
            role: Role::Leader,
            term: Term::new(1),
            leader: Some(node(1, 1)),
            last: index,
            committed: index,
            applied: index,
            snapshot: index,
            purged: index,
            flushed: index,
            voters: voters.to_vec(),
            voters_after: None,
            learners: learners.to_vec(),
            membership: None,
            is_membership_committed: false,
            replication: all.map(|node| (*node, LogIndex::new(reached))).collect(),
            is_writable: true,
            queue_operations: 0,
            batches: 0,
            operations: 0,
            snapshots: 0,
            swept_keys: 0,
            failure: None,
        }
    }

    #[test]
    fn another_life_gets_the_vote_of_the_former_once_it_lacks_little() {
        let (one, two, three, newer) = (node(1, 1), node(2, 1), node(3, 1), node(3, 9));
        let step = |reached| {
            let status = status(&[one, two, three], &[newer], reached);
            next_step(&members(&status, BTreeSet::from([two, newer])), None)
        };
        assert_eq!(step(1000 - LAG_MAX - 1), Some(Step::Wait(newer)));
        let voters = BTreeSet::from([one, two, newer]);
        assert_eq!(step(1000 - LAG_MAX), Some(Step::Vote(voters)));
    }

    #[test]
    fn a_change_that_a_leader_left_behind_is_finished_by_the_next() {
        let (one, two, three, newer) = (node(1, 1), node(2, 1), node(3, 1), node(3, 9));
        let left_behind = ShardStatus {
            voters_after: Some(vec![one, two, newer]),
            ..status(&[one, two, three, newer], &[], 1000)
        };
        let seen = members(&left_behind, BTreeSet::from([two]));
        let voters = BTreeSet::from([one, two, newer]);
        assert_eq!(next_step(&seen, None), Some(Step::Vote(voters)));
    }
}

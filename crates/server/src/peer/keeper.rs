//! Keeps a shard's voters alive: the leader replaces one whose node has begun another life.
//!
//! A node that lost its disk, or cannot trust it, comes back under the same number as another
//! node. Its shards' leaders see that in the news, let it follow, wait until it has caught up, give
//! it the vote of its former life, and let that go. One step at a time, and nothing that a restart
//! of the leader could not take up again, because each step starts from the shard's own membership.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use flux_raft::{MembershipError, Shard, ShardStatus};
use flux_types::NodeId;

use super::Peers;

/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(300);
/// How long one step may take.
const LIMIT: Duration = Duration::from_secs(10);
/// How many entries behind the leader counts as caught up: what a change of voters waits for.
const LAG_MAX: u64 = 64;

/// What a leader does next about its shard's members.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// Lets a node follow.
    Learn(NodeId),
    /// Gives the votes to these.
    Vote(BTreeSet<NodeId>),
    /// Lets a follower go.
    Forget(NodeId),
}

/// Decides. `living` names the life of a node that is there and well, by its number.
fn next_step(status: &ShardStatus, living: impl Fn(u32) -> Option<NodeId>) -> Option<Step> {
    let is_member = |node: &NodeId| status.voters.contains(node) || status.learners.contains(node);
    for voter in &status.voters {
        let Some(newer) = living(voter.physical()).filter(|newer| newer != voter) else {
            continue;
        };
        if voter.physical() == status.node.physical() {
            continue;
        }
        if !is_member(&newer) {
            return Some(Step::Learn(newer));
        }
        let reached = status.replication.iter().find(|(node, _)| *node == newer);
        let has_caught_up =
            reached.is_some_and(|(_, index)| status.last.get() <= index.get() + LAG_MAX);
        if status.learners.contains(&newer) && has_caught_up {
            let mut voters: BTreeSet<NodeId> = status.voters.iter().copied().collect();
            voters.remove(voter);
            voters.insert(newer);
            return Some(Step::Vote(voters));
        }
    }
    let is_former = |learner: &&NodeId| {
        living(learner.physical()).is_some_and(|newer| newer != **learner)
            || (learner.physical() == status.node.physical() && **learner != status.node)
    };
    status
        .learners
        .iter()
        .find(is_former)
        .copied()
        .map(Step::Forget)
}

/// Looks after the shards that this node leads, until it ends.
///
/// # Cancellation
/// Safe to drop; a step under way goes on.
pub(crate) async fn keep(peers: Arc<Peers>) {
    loop {
        tokio::select! {
            () = peers.stop.cancelled() => return,
            () = tokio::time::sleep(PAUSE) => {}
        }
        for shard in peers.shards().iter() {
            if !shard.is_writable() {
                continue;
            }
            let status = shard.status();
            let Some(step) = next_step(&status, |number| peers.book.living(number)) else {
                continue;
            };
            match take(&peers, shard, step.clone()).await {
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
        Step::Vote(voters) => shard.change_voters(voters, deadline).await,
        Step::Forget(node) => shard.remove_learner(node, deadline).await,
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
            learners: learners.to_vec(),
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
    fn another_life_follows_then_votes_then_the_former_goes() {
        let (one, two, three, newer) = (node(1, 1), node(2, 1), node(3, 1), node(3, 9));
        let living = |number| match number {
            2 => Some(two),
            3 => Some(newer),
            _ => None,
        };
        let step = |voters: &[NodeId], learners: &[NodeId], reached| {
            next_step(&status(voters, learners, reached), living)
        };
        assert_eq!(step(&[one, two, three], &[], 0), Some(Step::Learn(newer)));
        assert_eq!(
            step(&[one, two, three], &[newer], 0),
            None,
            "not yet caught up"
        );
        let voters = BTreeSet::from([one, two, newer]);
        assert_eq!(
            step(&[one, two, three], &[newer], 990),
            Some(Step::Vote(voters))
        );
        assert_eq!(
            step(&[one, two, newer], &[three], 990),
            Some(Step::Forget(three))
        );
        assert_eq!(step(&[one, two, newer], &[], 990), None);
    }

    #[test]
    fn a_node_that_is_only_away_keeps_its_vote() {
        let voters = [node(1, 1), node(2, 1), node(3, 1)];
        assert_eq!(next_step(&status(&voters, &[], 0), |_| None), None);
    }
}

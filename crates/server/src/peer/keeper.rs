//! Keeps a shard's voters alive: its leader takes one step after the other
//! ([`flux_cluster::reconcile`]) until the members are those that should be.
//!
//! A node that lost its disk, or cannot trust it, comes back under the same number as another
//! node. Its shards' leaders see that in the news, let it follow, wait until it has caught up, give
//! it the vote of its former life, and let that go. Nothing is remembered between two looks, so that
//! another leader can take it up: each step starts from the shard's own membership.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use flux_cluster::reconcile::{Members, Step, Target, caught_up, next_step};
use flux_env::Instant;
use flux_log::LogId;
use flux_raft::{MembershipError, Shard, ShardStatus};
use flux_types::hold::{self, MoveStep};
use flux_types::{LogIndex, NodeId, NodeNumber, ShardId};

use super::{Peers, clock, placement};

/// Pause between two looks, and after a step that was taken.
const PAUSE: Duration = Duration::from_millis(300);
const PAUSE_BETWEEN_STEPS: Duration = Duration::from_millis(20);
/// For how many shards that a node leads replicas are filled at the same time.
const MOVES_MAX: usize = 2;
/// How long a leader leads at least before it hands over to the one that should lead.
const LEAD_MIN: Duration = Duration::from_secs(5);
/// How long a split may take: all that goes to the new shard is written once.
const SPLIT: Duration = Duration::from_secs(60);
/// How long one step may take.
const LIMIT: Duration = Duration::from_secs(10);
/// How long a voter gets to take over: commands wait meanwhile. And how long a shard is left alone
/// after one that did not.
const HAND_OVER: Duration = Duration::from_millis(1500);
const REST: Duration = Duration::from_secs(5);

/// A shard as its leader sees it. `living` are the lives of other nodes that are there and well.
fn members(status: &ShardStatus, living: BTreeSet<NodeId>) -> Members {
    let member_since = status.membership.map_or(LogIndex::new(0), |id| id.index);
    let after = status.voters_after.as_ref();
    Members {
        own: status.node,
        voters: status.voters.iter().copied().collect(),
        after: after.map(|after| after.iter().copied().collect()),
        learners: status.learners.iter().copied().collect(),
        caught_up: caught_up(&status.replication, status.last, member_since),
        living,
    }
}

/// Looks after the shards that this node leads, and after whether it should, until it ends.
///
/// # Cancellation
/// Safe to drop; a step under way goes on.
pub(crate) async fn keep(peers: Arc<Peers>) {
    tokio::join!(
        keep_members(&peers),
        let_go(&peers),
        split(&peers),
        clock::watch(&peers),
        placement::keep(&peers)
    );
}

async fn keep_members(peers: &Arc<Peers>) {
    let mut leads_since = BTreeMap::new();
    let mut resting: BTreeMap<ShardId, Instant> = BTreeMap::new();
    let mut pause = PAUSE;
    loop {
        tokio::select! {
            () = peers.stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        let steps = next_steps(peers, &mut leads_since);
        let mut following = steps
            .iter()
            .filter(|(_, step)| matches!(step, Step::Wait(_)))
            .count();
        pause = PAUSE;
        for (shard, step) in steps {
            let now = peers.clock.now();
            let rests = resting.get(&shard.id()).is_some_and(|until| now < *until);
            match step {
                Step::Lead(_) if rests => continue,
                Step::Wait(_) => continue,
                Step::Learn(_) if MOVES_MAX <= following => continue,
                Step::Learn(_) => following += 1,
                Step::Vote(_) | Step::Forget(_) | Step::Lead(_) => {}
            }
            match take(peers, &shard, step.clone()).await {
                Ok(()) => {
                    tracing::info!(shard = %shard.id(), ?step, "membership changed");
                    pause = PAUSE_BETWEEN_STEPS;
                }
                Err(error) => {
                    tracing::debug!(shard = %shard.id(), ?step, %error, "membership not changed");
                    if matches!(step, Step::Lead(_)) {
                        resting.insert(shard.id(), peers.clock.now() + REST);
                    }
                }
            }
        }
    }
}

/// What there is to do about the shards that this node leads, one step for each.
fn next_steps(
    peers: &Arc<Peers>,
    leads_since: &mut BTreeMap<ShardId, Instant>,
) -> Vec<(Shard, Step)> {
    let now = peers.clock.now();
    let living = peers.book.all_living();
    let mut steps = Vec::new();
    for shard in peers.shards().iter() {
        let id = shard.id();
        if !shard.is_writable() {
            leads_since.remove(&id);
            continue;
        }
        let since = *leads_since.entry(id).or_insert(now);
        let is_settled = LEAD_MIN <= now.saturating_since(since);
        let target = target(peers, id, is_settled);
        let members = members(&shard.status(), living.clone());
        if let Some(step) = next_step(&members, target.as_ref())
            && !rests_before(&members, &step)
        {
            steps.push((shard.clone(), step));
        }
    }
    steps
}

/// Whether a shard is to stay where it is instead of taking this step: only where a test says so.
fn rests_before(members: &Members, step: &Step) -> bool {
    let next = match step {
        Step::Learn(_) => MoveStep::Follows,
        Step::Wait(_) => MoveStep::CaughtUp,
        Step::Lead(_) => MoveStep::HandedOver,
        Step::Vote(_) if members.after.is_none() => MoveStep::Joint,
        Step::Vote(_) => MoveStep::Exchanged,
        Step::Forget(_) => MoveStep::LetGo,
    };
    let rests = hold::is_held(next);
    if rests {
        tracing::warn!(before = ?next, "a move is held");
    }
    rests
}

/// Where a shard is to be, unless that is not known or shards are to stay where they are. Another
/// leads it only if that is worth it: not at once after an election, which has its own reasons, nor
/// one that could not keep it.
fn target(peers: &Peers, shard: ShardId, is_settled: bool) -> Option<Target> {
    let map = peers.book.map().filter(|map| !map.is_paused())?;
    let planned = map.shard(shard)?;
    let is_fit = |leader: &NodeNumber| {
        let living = peers.book.living(leader.get());
        living.is_some_and(|node| peers.book.is_clock_near(node) && !peers.book.is_leaving(node))
    };
    Some(Target {
        nodes: planned.replicas.iter().copied().collect(),
        leader: planned.leader.filter(|_| is_settled).filter(is_fit),
    })
}

/// Splits the shard that is to be, if this node leads it.
async fn split(peers: &Arc<Peers>) {
    loop {
        tokio::select! {
            () = peers.stop.cancelled() => return,
            () = tokio::time::sleep(PAUSE) => {}
        }
        let map = peers.book.map().filter(|map| !map.is_paused());
        let Some((parent, slots)) = map.and_then(|map| map.splitting()) else {
            continue;
        };
        let Some(shard) = peers.shard(parent.get()).filter(Shard::is_writable) else {
            continue;
        };
        let done = shard.slots().map_or(0, |slots| slots.shard_count());
        // Not between the two halves of a change of voters: the new shard would begin there.
        if slots.shard_count() <= done || shard.status().voters_after.is_some() {
            continue;
        }
        let deadline = peers.clock.now() + SPLIT;
        match shard.split(&slots, deadline).await {
            Ok(()) => tracing::info!(shard = %parent, "the shard gave half of its slots away"),
            Err(error) => {
                let problem = error.message.as_ref();
                tracing::warn!(shard = %parent, problem, "the shard was not split");
                tokio::select! {
                    () = peers.stop.cancelled() => return,
                    () = tokio::time::sleep(REST) => {}
                }
            }
        }
    }
}

/// Forgets shards of which this node is no member any more, as their leaders say: what it holds of
/// them is of no use to anybody.
async fn let_go(peers: &Arc<Peers>) {
    loop {
        tokio::select! {
            () = peers.stop.cancelled() => return,
            () = tokio::time::sleep(PAUSE) => {}
        }
        for shard in peers.shards().iter() {
            let Some(gone_at) = left_at(peers, shard) else {
                continue;
            };
            if hold::is_held(MoveStep::Noted) {
                tracing::warn!(before = ?MoveStep::Noted, "a move is held");
                continue;
            }
            // On the shard's own thread, where its tasks are to stay.
            let core = peers.places.of_shard(shard.id().get());
            let retiring = {
                let shard = shard.clone();
                async move { shard.retire(gone_at).await }
            };
            match peers.places.handle(core).spawn(retiring).await {
                // Whoever forgets says so.
                Ok(Ok(_)) => {}
                Ok(Err(error)) => {
                    tracing::warn!(shard = %shard.id(), %error, "a shard was not forgotten");
                }
                Err(error) => tracing::error!(%error, "forgetting a shard did not end in order"),
            }
        }
    }
}

/// The entry by which this node is no member of a shard, if its leader says so and the replica here
/// holds something.
fn left_at(peers: &Peers, shard: &Shard) -> Option<LogId> {
    let hint = peers.book.hint(shard.id())?;
    let carriers = hint.carriers?;
    let own = peers.book.node();
    let is_left = hint.leader != own && !carriers.contains(own);
    let holds_something = shard.applied().is_some() || shard.log().state().last.is_some();
    carriers.committed_at.filter(|_| is_left && holds_something)
}

async fn take(peers: &Peers, shard: &Shard, step: Step) -> Result<(), MembershipError> {
    let deadline = peers.clock.now() + LIMIT;
    match step {
        Step::Learn(node) => shard.add_learner(node, deadline).await,
        Step::Wait(_) => Ok(()),
        Step::Vote(voters) => shard.change_voters(voters, deadline).await,
        Step::Forget(node) => shard.remove_learner(node, deadline).await,
        Step::Lead(node) => {
            let deadline = peers.clock.now() + HAND_OVER;
            shard.transfer_leadership(node, deadline).await
        }
    }
}

#[cfg(test)]
mod tests {
    use flux_cluster::reconcile::LAG_MAX;
    use flux_raft::Role;
    use flux_types::Term;

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

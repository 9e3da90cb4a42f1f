//! Who belongs to a shard: learners and voters, changed one step at a time by its leader.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use flux_env::Instant;
use flux_log::Vote;
use flux_types::hold::{self, MoveStep};
use flux_types::{NodeId, Term};
use futures_util::future::join;
use openraft::async_runtime::WatchReceiver;
use openraft::entry::RaftPayload as _;
use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::impls::EmptyNode;
use openraft::{ChangeMembers, Precondition};

use crate::core_task::spawn_core;
use crate::engine::Engine;
use crate::error::MembershipError;
use crate::gate::SoleForgotten;
use crate::network::{AppendReply, AppendRequest, Peer};
use crate::replica::{Leadership, Replica};
use crate::runtime::{sleep, timeout};
use crate::shard::Shard;
use crate::type_config::{Payload, RaftMembership, TypeConfig};

/// Most voters of a shard.
pub const VOTERS_MAX: usize = 7;
/// Pause before a change that openraft was not ready for is tried again.
const RETRY: std::time::Duration = std::time::Duration::from_millis(20);

type Change = ChangeMembers<u64, EmptyNode>;
type WriteError = RaftError<TypeConfig, ClientWriteError<TypeConfig>>;

impl Shard {
    /// Lets a node follow the shard without a vote. Returns when that is committed, not when it
    /// has caught up: see [`crate::ShardStatus::replication`].
    ///
    /// # Errors
    /// See [`MembershipError`].
    ///
    /// # Cancellation
    /// Safe to drop; the change goes on.
    pub async fn add_learner(
        &self,
        node: NodeId,
        deadline: Instant,
    ) -> Result<(), MembershipError> {
        let change = Change::AddNodes([(node.get(), EmptyNode::new())].into());
        self.change(change, deadline).await?;
        allow_revert(&self.replica().engine(), node.get(), true).await;
        Ok(())
    }

    /// Makes exactly these nodes the voters. New ones must be learners already; old ones become
    /// learners. Goes through a joint configuration; one that was left behind is finished.
    ///
    /// # Errors
    /// See [`MembershipError`].
    ///
    /// # Cancellation
    /// Safe to drop; the change goes on.
    pub async fn change_voters(
        &self,
        voters: BTreeSet<NodeId>,
        deadline: Instant,
    ) -> Result<(), MembershipError> {
        let count = voters.len();
        if count.is_multiple_of(2) || count > VOTERS_MAX {
            return Err(MembershipError::VoterCount(count));
        }
        for voter in &voters {
            allow_revert(&self.replica().engine(), voter.get(), false).await;
        }
        let voters = voters.into_iter().map(NodeId::get).collect();
        self.change(Change::ReplaceAllVoters(voters), deadline)
            .await
    }

    /// Ends the replication to a learner.
    ///
    /// # Errors
    /// See [`MembershipError`].
    ///
    /// # Cancellation
    /// Safe to drop; the change goes on.
    pub async fn remove_learner(
        &self,
        node: NodeId,
        deadline: Instant,
    ) -> Result<(), MembershipError> {
        self.change(Change::RemoveNodes([node.get()].into()), deadline)
            .await
    }

    /// Hands leadership to another voter. While it does, this replica proposes nothing, and from
    /// the moment the target is asked its lease stays closed for the rest of the term.
    ///
    /// # Errors
    /// [`MembershipError::NotLeader`] if this replica does not lead,
    /// [`MembershipError::NotAVoter`] if the target could not,
    /// [`MembershipError::Timeout`] if the target has not taken over by the deadline; it still may.
    ///
    /// # Cancellation
    /// Safe to drop; the transfer may go on.
    pub async fn transfer_leadership(
        &self,
        target: NodeId,
        deadline: Instant,
    ) -> Result<(), MembershipError> {
        let replica = self.replica();
        let Leadership::Leads(term) = replica.leadership() else {
            return Err(self.not_leader());
        };
        let _paused = Paused::new(Arc::clone(replica));
        let left = deadline.saturating_since(replica.clock.now());
        let handing_over = async {
            let peer = self.peer(target);
            loop {
                if replica.leadership() != Leadership::Leads(term) {
                    return Err(self.not_leader());
                }
                // Nobody else is told who leads: a replica that hears a later leader takes itself for
                // a member.
                if !self.status().voters.contains(&target) {
                    return Err(MembershipError::NotAVoter(target));
                }
                if self.is_heard_by(peer.as_ref(), term).await && self.has_everything(target) {
                    break;
                }
                sleep(RETRY).await;
            }
            replica.gate.hand_over(term);
            let engine = replica.engine();
            let asked = engine.raft.trigger().transfer_leader(target.get()).await;
            asked.map_err(|fatal| MembershipError::Interrupted(fatal.to_string()))?;
            while self.status().leader != Some(target) {
                sleep(RETRY).await;
            }
            Ok(())
        };
        match timeout(left, handing_over).await {
            Ok(result) => result,
            Err(_) => Err(MembershipError::Timeout),
        }
    }

    fn not_leader(&self) -> MembershipError {
        MembershipError::NotLeader {
            leader: self.status().leader,
        }
    }

    /// Whether a voter follows this leader of a term, and answers now. openraft asks it only once to
    /// take over, and proposes nothing from then on: if it were not reached, nobody would serve until
    /// others stand for election.
    async fn is_heard_by(&self, peer: &dyn Peer, term: Term) -> bool {
        let heartbeat = AppendRequest {
            // Its own, though another may lead by now: nobody speaks in the name of another.
            vote: Vote {
                term,
                node: self.replica().node,
                committed: true,
            },
            previous: None,
            entries: Vec::new(),
            committed: None,
        };
        matches!(peer.append(heartbeat).await, Ok(AppendReply::Success))
    }

    /// Whether what is in the log is applied here and known to be there: else the target would have to
    /// wait for it while nobody serves.
    fn has_everything(&self, target: NodeId) -> bool {
        let status = self.status();
        let there = status.replication.iter().find(|(node, _)| *node == target);
        let is_matched = there.is_some_and(|(_, index)| *index == status.last);
        is_matched && status.applied == status.last
    }

    async fn change(&self, change: Change, deadline: Instant) -> Result<(), MembershipError> {
        let replica = Arc::clone(self.replica());
        let left = deadline.saturating_since(replica.clock.now());
        // In a task of its own: the gate must know of the change until its fate is known, however
        // long the caller waits.
        let task = spawn_core("membership", apply(replica, change, deadline));
        match timeout(left, task).await {
            Ok(Ok(result)) => result,
            Ok(Err(error)) => Err(MembershipError::Interrupted(error.to_string())),
            Err(_) => Err(MembershipError::Timeout),
        }
    }
}

/// Says whether a replica's log may be found shorter than it was, once. One that is added may have been
/// let go before and hear of that only now: what it is known to hold may vanish, as long as it has no
/// vote. Of a voter it must not.
async fn allow_revert(engine: &Engine, node: u64, is_allowed: bool) {
    let trigger = engine.raft.trigger();
    match trigger.allow_next_revert(&node, is_allowed).await {
        Ok(Ok(())) => {}
        // Not the leader any more, or not a member: nobody counts on it then.
        Ok(Err(error)) => tracing::debug!(node, %error, "the log's length stays guarded"),
        Err(fatal) => tracing::debug!(node, error = %fatal, "the log's length stays guarded"),
    }
}

/// While it lives, the proposer proposes nothing.
struct Paused(Arc<Replica>);

impl Paused {
    fn new(replica: Arc<Replica>) -> Self {
        replica.pauses.fetch_add(1, Ordering::AcqRel);
        Self(replica)
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        self.0.pauses.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Makes one change, trying again while openraft is not ready for it.
async fn apply(
    replica: Arc<Replica>,
    change: Change,
    deadline: Instant,
) -> Result<(), MembershipError> {
    let _forgotten = SoleForgotten::new(Arc::clone(&replica));
    loop {
        let engine = replica.engine();
        let result = if let Change::ReplaceAllVoters(voters) = &change
            && hold::is_held(MoveStep::Exchanged)
        {
            begin_exchange(&engine, voters).await
        } else {
            let changing = engine.raft.change_membership(change.clone(), true);
            // Who is added is sent entries from then on, and not only once that is committed.
            let (changed, ()) = join(changing, allow_added(&engine, &change)).await;
            changed.map(drop).map_err(translate)
        };
        let Err(error) = result else {
            return Ok(());
        };
        let is_late = deadline <= replica.clock.now();
        if error != MembershipError::InProgress || is_late {
            return Err(error);
        }
        sleep(RETRY).await;
    }
}

async fn allow_added(engine: &Engine, change: &Change) {
    if let Change::AddNodes(added) = change {
        for node in added.keys() {
            allow_revert(engine, *node, true).await;
        }
    }
}

/// Writes the first half of a change of voters, the joint configuration, and leaves it at that: only
/// where a test says so.
#[cold]
async fn begin_exchange(engine: &Engine, voters: &BTreeSet<u64>) -> Result<(), MembershipError> {
    let observed = {
        let metrics = engine.server_metrics.borrow_watched();
        Arc::clone(&metrics.membership_config)
    };
    let now = observed.membership();
    let nodes = now.nodes().map(|(node, _)| (*node, EmptyNode::new()));
    let nodes: BTreeMap<u64, EmptyNode> = nodes.collect();
    let configurations = vec![now.voter_ids().collect(), voters.clone()];
    let joint = RaftMembership::new(configurations, nodes)
        .map_err(|error| MembershipError::Interrupted(error.to_string()))?;
    let unchanged = Precondition::LastMembershipLogId {
        last_membership_log_id: *observed.log_id(),
    };
    let appending = engine
        .raft
        .append_membership(joint, Payload::blank(), [unchanged]);
    appending.await.map(drop).map_err(translate)
}

fn translate(error: WriteError) -> MembershipError {
    let error = match error {
        RaftError::APIError(error) => error,
        RaftError::Fatal(fatal) => return MembershipError::Interrupted(fatal.to_string()),
    };
    match error {
        ClientWriteError::ForwardToLeader(forward) => MembershipError::NotLeader {
            leader: forward.leader_id.map(NodeId::new),
        },
        ClientWriteError::LogEntryDiscarded(discarded) => {
            MembershipError::Interrupted(discarded.to_string())
        }
        ClientWriteError::PreconditionFailed(failed) => {
            MembershipError::Interrupted(failed.to_string())
        }
        ClientWriteError::ChangeMembershipError(error) => match error {
            ChangeMembershipError::InProgress(_)
            | ChangeMembershipError::UncommittedLeaderLog(_) => MembershipError::InProgress,
            ChangeMembershipError::LearnerNotFound(missing) => {
                MembershipError::NotALearner(NodeId::new(missing.node_id))
            }
            ChangeMembershipError::EmptyMembership(_) => MembershipError::VoterCount(0),
            ChangeMembershipError::UnsupportedMembershipTransition(error) => {
                MembershipError::Interrupted(error.to_string())
            }
            ChangeMembershipError::NodeMetadataChanged(error) => {
                MembershipError::Interrupted(error.to_string())
            }
        },
    }
}

//! `flux.admin.v1.Cluster`: what the cluster looks like, who is to lead, and what nodes carry.
//!
//! Every node answers. What only the leader of a shard can do is passed on to it, once.

use std::sync::Arc;
use std::time::Duration;

use flux_cluster::placement::{self, MemberState};
use flux_cluster::{ChangeError, ClusterMap};
use flux_env::Clock;
use flux_proto::admin::change_map_request::Change;
use flux_proto::admin::cluster_client::ClusterClient;
use flux_proto::admin::cluster_server::Cluster;
use flux_proto::admin::{self, DescribeRequest, DescribeResponse};
use flux_proto::admin::{ChangeMapRequest, ChangeMapResponse};
use flux_proto::admin::{TransferLeadershipRequest, TransferLeadershipResponse};
use flux_raft::{MembershipError, Role, Shard};
use flux_types::{ClusterId, Error, ErrorCode, NodeId, NodeNumber, ShardId};
use tonic::metadata::MetadataValue;
use tonic::transport::Endpoint;
use tonic::{Code, Request, Response, Status};

use super::{Password, to_status};
use crate::context::Context;
use crate::exec::Home;
use crate::peer::Peers;
use crate::peer::placement::MapChangeError;
use crate::topology::{NodePlace, ShardPlace, Topology, TopologyHandle};

/// How long who leads may be unknown, as it is just after somebody else took over, before a caller
/// is told so; and the pause between two looks.
const SETTLING: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(50);
/// How long a voter gets to take over; commands of the shard wait as long.
const HAND_OVER: Duration = Duration::from_secs(3);
/// How long the leader gets to say how that went, beyond it.
const PASSED_ON: Duration = Duration::from_secs(2);
/// Marks a call that came from another node: it is not passed on again.
const PASSED_ON_KEY: &str = "flux-passed-on";

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct ClusterApi {
    cluster: ClusterId,
    topology: TopologyHandle,
    home: Arc<Home>,
    /// The other nodes; none if it is alone, and then it has no number.
    peers: Option<Arc<Peers>>,
    clock: Arc<dyn Clock>,
    /// What other nodes want to hear: the same as this one.
    password: Password,
}

impl ClusterApi {
    /// That of a node; `password` is what other nodes want to hear too.
    pub(crate) fn of(context: &Context, password: Password) -> Self {
        Self {
            cluster: context.identity.cluster,
            topology: context.topology.clone(),
            home: Arc::clone(&context.home),
            peers: context.peers.clone(),
            clock: Arc::clone(&context.clock),
            password,
        }
    }

    fn description(&self, topology: &Topology) -> DescribeResponse {
        let ranges = self.home.map().ranges();
        let slots_of = |shard: ShardId| {
            let own = ranges.iter().filter(|(_, _, owner)| *owner == shard);
            own.map(|(first, last, _)| admin::SlotRange {
                first: u32::from(first.get()),
                last: u32::from(last.get()),
            })
            .collect()
        };
        let shard = |place: &ShardPlace| admin::Shard {
            shard: place.shard.get(),
            slots: slots_of(place.shard),
            leader: place.leader.map(NodeId::get),
            term: place.term.get(),
            voters: place.voters.iter().map(|node| node.get()).collect(),
            learners: place.learners.iter().map(|node| node.get()).collect(),
            ..admin::Shard::default()
        };
        let node = |place: &NodePlace| admin::Node {
            id: place.node.get(),
            number: if self.peers.is_some() {
                place.node.physical()
            } else {
                0
            },
            host: place.host.clone(),
            resp_port: u32::from(place.resp),
            grpc_port: u32::from(place.grpc),
            admin_port: u32::from(place.admin),
            peer_port: u32::from(place.peer),
            reachable: place.is_reachable,
            ..admin::Node::default()
        };
        let mut described = DescribeResponse {
            cluster: self.cluster.get(),
            node: topology.own.get(),
            nodes: topology.nodes.iter().map(node).collect(),
            shards: topology.shards.iter().map(shard).collect(),
            ..DescribeResponse::default()
        };
        if let Some(peers) = &self.peers {
            add_progress(&mut described, peers);
            if let Some(map) = peers.book.map() {
                add_plan(&mut described, &map);
            }
        }
        described
    }

    fn peers(&self) -> Result<&Arc<Peers>, Status> {
        let alone = || {
            let problem = "this node is alone: there is no cluster to change";
            to_status(&Error::not_done(ErrorCode::Conflict, problem))
        };
        self.peers.as_ref().ok_or_else(alone)
    }

    /// Notes that a node is to lead a shard from now on, if it is to carry it; while it is only on
    /// its way from there, it leads as long as it can.
    async fn prefer(&self, asked: TransferLeadershipRequest) -> Result<(), Status> {
        let peers = self.peers()?;
        let (shard, node) = (ShardId::new(asked.shard), NodeNumber::new(asked.node));
        let planned = peers.planned(shard);
        if planned.is_some_and(|planned| planned.leader == Some(node)) {
            return Ok(());
        }
        match peers.change_map(|map| map.led_by(shard, node)).await {
            Ok(_) | Err(MapChangeError::Change(ChangeError::NotItsNode { .. })) => Ok(()),
            Err(error) => Err(to_status(&error.to_error())),
        }
    }

    /// Hands over a shard that this node leads.
    async fn hand_over(&self, shard: &Shard, target: NodeId) -> Result<(), Error> {
        let deadline = self.clock.now() + HAND_OVER;
        let handed_over = shard.transfer_leadership(target, deadline).await;
        handed_over.map_err(|error| of_membership(&error))
    }

    /// Asks the leader to do it.
    async fn pass_on(
        &self,
        leader: &NodePlace,
        asked: TransferLeadershipRequest,
    ) -> Result<Response<TransferLeadershipResponse>, Status> {
        let host = &leader.host;
        let host = if host.contains(':') {
            format!("[{host}]")
        } else {
            host.clone()
        };
        let address = format!("http://{host}:{}", leader.grpc);
        let endpoint = Endpoint::from_shared(address);
        let endpoint = endpoint.map_err(|_| unavailable(leader))?;
        let endpoint = endpoint
            .connect_timeout(PASSED_ON)
            .timeout(HAND_OVER + PASSED_ON);
        let channel = endpoint.connect().await;
        let channel = channel.map_err(|_| unavailable(leader))?;
        let mut request = Request::new(asked);
        let metadata = request.metadata_mut();
        metadata.insert(PASSED_ON_KEY, MetadataValue::from_static("1"));
        let password = self.password.current();
        if !password.is_empty() {
            let value = format!("Bearer {password}").parse();
            let value = value.map_err(|_| {
                let problem = "the password cannot be sent to the leader: it has characters that \
                               no header may have";
                to_status(&Error::not_done(ErrorCode::Invalid, problem))
            })?;
            metadata.insert("authorization", value);
        }
        ClusterClient::new(channel)
            .transfer_leadership(request)
            .await
    }
}

#[tonic::async_trait]
impl Cluster for ClusterApi {
    async fn describe(
        &self,
        _: Request<DescribeRequest>,
    ) -> Result<Response<DescribeResponse>, Status> {
        Ok(Response::new(self.description(&self.topology.current())))
    }

    async fn transfer_leadership(
        &self,
        request: Request<TransferLeadershipRequest>,
    ) -> Result<Response<TransferLeadershipResponse>, Status> {
        let is_passed_on = request.metadata().contains_key(PASSED_ON_KEY);
        let asked = request.into_inner();
        let until = self.clock.now() + SETTLING;
        // It names who is to lead, and may be asked again whatever became of it.
        loop {
            let answer = self.transfer(asked, is_passed_on).await;
            let is_unsettled = answer
                .as_ref()
                .is_err_and(|status| status.code() == Code::Unavailable);
            if !is_unsettled || is_passed_on || until <= self.clock.now() {
                return answer;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn change_map(
        &self,
        request: Request<ChangeMapRequest>,
    ) -> Result<Response<ChangeMapResponse>, Status> {
        let peers = self.peers()?;
        let change = request.into_inner().change.ok_or_else(|| {
            let problem =
                "change: one of drain, undrain, remove, rebalance, pause and split must be set";
            to_status(&Error::not_done(ErrorCode::Invalid, problem))
        })?;
        let changed = peers.change_map(|map| next_map(map, change)).await;
        let changed = changed.map_err(|error| to_status(&error.to_error()))?;
        let moves = placement::moves(changed.before.shards(), changed.after.shards());
        Ok(Response::new(ChangeMapResponse {
            version: changed.after.version(),
            moves: u32::try_from(moves.len()).unwrap_or(u32::MAX),
        }))
    }
}

fn next_map(map: &ClusterMap, change: Change) -> Result<ClusterMap, ChangeError> {
    match change {
        Change::Drain(node) => map.drained(NodeNumber::new(node), true),
        Change::Undrain(node) => map.drained(NodeNumber::new(node), false),
        Change::Remove(node) => map.removed(NodeNumber::new(node)),
        Change::Rebalance(admin::Rebalance {}) => map.rebalanced(),
        Change::Pause(is_paused) => Ok(map.paused(is_paused)),
        Change::Split(shard) => map.split(ShardId::new(shard)),
    }
}

/// How far those who follow without a vote have come.
fn add_progress(described: &mut DescribeResponse, peers: &Peers) {
    for hint in peers.leaders() {
        let shard = described.shards.get_mut(hint.shard.get() as usize);
        let (Some(shard), Some(carriers)) = (shard, hint.carriers) else {
            continue;
        };
        let of = |learner: &u64| {
            let mut known = carriers.learners.iter();
            let found = known.find(|(node, _)| node.get() == *learner);
            found.map_or(0, |(_, permille)| u32::from(*permille))
        };
        shard.progress = shard.learners.iter().map(of).collect();
    }
}

/// What the cluster map says.
fn add_plan(described: &mut DescribeResponse, map: &ClusterMap) {
    described.map_version = map.version();
    described.paused = map.is_paused();
    described.splitting = map.splitting().map(|(shard, _)| shard.get());
    for node in &mut described.nodes {
        if let Some(member) = map.member(NodeNumber::new(node.number)) {
            let state = match member.state {
                MemberState::Active => admin::NodeState::Active,
                MemberState::Draining => admin::NodeState::Draining,
                MemberState::Leaving => admin::NodeState::Leaving,
                MemberState::Away => admin::NodeState::Away,
            };
            node.set_state(state);
            node.weight = u32::from(member.weight.get());
            node.zone = member
                .zone
                .as_ref()
                .map_or_else(String::new, ToString::to_string);
        }
    }
    // One that was split off may not have come here yet.
    let known = described.shards.len();
    let missing = (0..).zip(map.shards()).skip(known);
    described
        .shards
        .extend(missing.map(|(shard, _)| admin::Shard {
            shard,
            ..admin::Shard::default()
        }));
    for (shard, planned) in described.shards.iter_mut().zip(map.shards()) {
        shard.planned = planned.replicas.iter().map(|node| node.get()).collect();
        shard.planned_leader = planned.leader.map_or(0, NodeNumber::get);
    }
}

impl ClusterApi {
    /// Tries once.
    async fn transfer(
        &self,
        asked: TransferLeadershipRequest,
        is_passed_on: bool,
    ) -> Result<Response<TransferLeadershipResponse>, Status> {
        let topology = self.topology.current();
        let target = target(&topology, asked).map_err(|error| to_status(&error))?;
        if !is_passed_on {
            self.prefer(asked).await?;
        }
        let shard = self.home.shard(ShardId::new(asked.shard));
        let shard = shard.ok_or_else(|| to_status(&no_shard(asked.shard)))?;
        let status = shard.status();
        let done = |former: NodeId| {
            let (former, leader) = (former.get(), target.get());
            Ok(Response::new(TransferLeadershipResponse { former, leader }))
        };
        if status.role == Role::Leader {
            if status.node == target {
                return done(target);
            }
            let handed_over = self.hand_over(shard, target).await;
            return match handed_over {
                Ok(()) => done(status.node),
                Err(error) => Err(to_status(&error)),
            };
        }
        let leader = topology.leader_of(ShardId::new(asked.shard));
        match leader {
            Some(leader) if leader.node != topology.own && !is_passed_on => {
                self.pass_on(leader, asked).await
            }
            Some(_) | None => {
                let problem = format!("nobody is known to lead shard {} now", asked.shard);
                Err(to_status(&Error::not_done(ErrorCode::Unavailable, problem)))
            }
        }
    }
}

/// The voter of that number, if it is there: the shard stands still until it has taken over.
fn target(topology: &Topology, asked: TransferLeadershipRequest) -> Result<NodeId, Error> {
    let shard = ShardId::new(asked.shard);
    let place = topology.shard(shard).ok_or_else(|| no_shard(asked.shard))?;
    let voter = place
        .voters
        .iter()
        .find(|voter| voter.physical() == asked.node);
    let voter = voter.copied().ok_or_else(|| {
        let voters = place
            .voters
            .iter()
            .map(|voter| voter.physical().to_string());
        let voters = voters.collect::<Vec<_>>().join(", ");
        let problem = format!(
            "node {} has no vote in shard {shard}: choose one of {voters}",
            asked.node
        );
        Error::not_done(ErrorCode::Conflict, problem)
    })?;
    if topology.node(voter).is_some_and(|node| node.is_reachable) {
        return Ok(voter);
    }
    let problem = format!("node {} has not been heard of lately", asked.node);
    Err(Error::not_done(ErrorCode::Conflict, problem))
}

fn no_shard(shard: u32) -> Error {
    Error::not_done(ErrorCode::Invalid, format!("there is no shard {shard}"))
}

fn unavailable(leader: &NodePlace) -> Status {
    let problem = format!(
        "the leader, node {} at {}:{}, cannot be reached",
        leader.node.physical(),
        leader.host,
        leader.grpc
    );
    to_status(&Error::not_done(ErrorCode::Unavailable, problem))
}

fn of_membership(error: &MembershipError) -> Error {
    let text = error.to_string();
    match error {
        MembershipError::NotLeader { .. } => Error::not_done(ErrorCode::NotLeader, text),
        MembershipError::Timeout => Error::unknown(
            ErrorCode::Timeout,
            "the node did not take over in time; it still may",
        ),
        MembershipError::Interrupted(_) => Error::unknown(ErrorCode::Unavailable, text),
        MembershipError::InProgress
        | MembershipError::NotALearner(_)
        | MembershipError::NotAVoter(_)
        | MembershipError::VoterCount(_) => Error::not_done(ErrorCode::Conflict, text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topology() -> Topology {
        let node = |number| NodeId::of_incarnation(number, 7);
        Topology {
            own: node(1),
            shards: vec![ShardPlace {
                leader: Some(node(1)),
                voters: [1, 2, 3].map(node).to_vec(),
                learners: vec![node(4)],
                ..ShardPlace::default()
            }],
            nodes: [1, 2, 3, 4]
                .map(|number| NodePlace {
                    node: node(number),
                    is_reachable: number != 3,
                    ..NodePlace::default()
                })
                .to_vec(),
        }
    }

    #[test]
    fn only_a_voter_that_is_there_can_be_asked_to_lead_a_shard() {
        let asked = |shard, node| target(&topology(), TransferLeadershipRequest { shard, node });
        assert_eq!(asked(0, 2), Ok(NodeId::of_incarnation(2, 7)));
        let learner = asked(0, 4).expect_err("no vote");
        assert_eq!(learner.code, ErrorCode::Conflict);
        assert!(
            learner.message.contains("choose one of 1, 2, 3"),
            "{learner:?}"
        );
        let away = asked(0, 3).expect_err("not there");
        assert!(away.message.contains("has not been heard of"), "{away:?}");
        assert_eq!(asked(1, 1).expect_err("no shard").code, ErrorCode::Invalid);
    }

    #[test]
    fn whether_it_was_done_is_said_for_every_failure() {
        let outcome = |error| of_membership(&error).outcome;
        assert_eq!(
            outcome(MembershipError::NotLeader { leader: None }),
            flux_types::Outcome::NotDone
        );
        assert_eq!(
            outcome(MembershipError::Timeout),
            flux_types::Outcome::Unknown
        );
        let interrupted = MembershipError::Interrupted("gone".to_owned());
        assert_eq!(outcome(interrupted), flux_types::Outcome::Unknown);
    }
}

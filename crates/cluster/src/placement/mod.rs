//! Which nodes carry a shard's replicas, and which of them should lead it.
//!
//! A plan starts from what there is and changes as little as it can: [`plan`] is a pure function of
//! the nodes and the present placement, and gives the same result everywhere, in whatever order it
//! is told things. What it promises (`docs/placement.md`; each is a test):
//!
//! - replicas of a shard are on distinct nodes, and in distinct zones if there are zones enough;
//! - nobody carries more than its share by weight and a tenth, rounded up;
//! - a node that comes or goes moves about its share and nothing else.
//!
//! Taking the steps from one placement to the next is not done here.

mod balance;
mod member;
mod rules;
mod share;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use flux_types::limits::{NODE_NUMBER_MAX, PLACEMENT_SHARDS_MAX, REPLICAS_MAX};
use flux_types::{NodeNumber, ShardId};

pub use self::member::{Member, MemberState, Zone, ZoneError};

use self::balance::{Balance, Bound, NodeIndex, PerNode, PerShard, ShardIndex};
use self::rules::{Leaders, Replicas};
use self::share::{Claim, Share};
use crate::ring::{Ring, Weight};

/// By how much, in thousandths, a node may be beyond its share: the ε of bounded loads.
pub const EXCESS_PERMILLE: u64 = 100;

/// Where one shard is to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardPlacement {
    /// Who carries it, in ascending order.
    pub replicas: Vec<NodeNumber>,
    /// Who of them should lead it.
    pub leader: Option<NodeNumber>,
}

/// A replica that goes from one node to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Move {
    /// Of which shard.
    pub shard: ShardId,
    /// Who gives it away; none if the shard had fewer replicas.
    pub from: Option<NodeNumber>,
    /// Who gets it.
    pub to: NodeNumber,
}

/// Why there is no plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Fewer nodes may carry something than each shard has replicas.
    #[error("{replicas} replicas need as many nodes that stay: there are {nodes}")]
    TooFewNodes {
        /// Replicas of each shard.
        replicas: usize,
        /// Nodes that are not leaving.
        nodes: usize,
    },
    /// Two nodes have one number.
    #[error("two nodes have number {0}")]
    SameNumber(NodeNumber),
    /// A number that no node can have.
    #[error("node {0}: a number must be 1 to {NODE_NUMBER_MAX}")]
    Number(NodeNumber),
    /// A number of replicas that a shard cannot have.
    #[error("{0} replicas: must be 1 to {REPLICAS_MAX}, and odd")]
    Replicas(usize),
    /// More shards than a placement is computed for.
    #[error("{0} shards: at most {PLACEMENT_SHARDS_MAX} can be placed")]
    TooManyShards(usize),
    /// No place for a shard was found, though nodes, weights and zones leave one.
    #[error("no place was found for shard {0}")]
    NoPlace(ShardId),
}

/// Checks a number of replicas.
pub(crate) fn check_replicas(replicas: usize) -> Result<(), PlanError> {
    if replicas == 0 || replicas > REPLICAS_MAX || replicas.is_multiple_of(2) {
        return Err(PlanError::Replicas(replicas));
    }
    Ok(())
}

/// Checks the numbers of nodes.
pub(crate) fn check_members(members: &[Member]) -> Result<(), PlanError> {
    let mut seen = BTreeSet::new();
    for member in members {
        if !(1..=NODE_NUMBER_MAX).contains(&member.node.get()) {
            return Err(PlanError::Number(member.node));
        }
        if !seen.insert(member.node) {
            return Err(PlanError::SameNumber(member.node));
        }
    }
    Ok(())
}

/// Places every shard of `present`, which is as long as there are shards, with as few moves as the
/// promises allow.
///
/// # Errors
/// See [`PlanError`].
pub fn plan(
    members: &[Member],
    replicas: usize,
    present: &[ShardPlacement],
) -> Result<Vec<ShardPlacement>, PlanError> {
    check_replicas(replicas)?;
    if present.len() > PLACEMENT_SHARDS_MAX {
        return Err(PlanError::TooManyShards(present.len()));
    }
    let staying = Staying::of(members, replicas)?;
    let holders = staying.place_replicas(replicas, present)?;
    let leaders = staying.place_leaders(replicas, present, &holders)?;
    let placement = |(nodes, leader): (&Vec<NodeIndex>, &Option<NodeIndex>)| ShardPlacement {
        replicas: nodes.iter().map(|node| staying.number(*node)).collect(),
        leader: leader.map(|node| staying.number(node)),
    };
    Ok(holders.0.iter().zip(&leaders.0).map(placement).collect())
}

/// What has to move between two placements: for each shard, who gets it and instead of whom.
#[must_use]
pub fn moves(before: &[ShardPlacement], after: &[ShardPlacement]) -> Vec<Move> {
    let mut moves = Vec::new();
    for (number, new) in (0..).zip(after) {
        let old = before.get(number as usize).map(|old| &*old.replicas);
        let old = old.unwrap_or_default();
        let mut given = old.iter().filter(|node| !new.replicas.contains(node));
        for to in new.replicas.iter().filter(|node| !old.contains(node)) {
            moves.push(Move {
                shard: ShardId::new(number),
                from: given.next().copied(),
                to: *to,
            });
        }
    }
    moves
}

/// What each node may carry at most: by weight its share of all replicas and a tenth, rounded up.
/// Nodes that are leaving are not in it.
///
/// # Errors
/// See [`PlanError`].
pub fn bounds(
    members: &[Member],
    replicas: usize,
    shards: usize,
) -> Result<BTreeMap<NodeNumber, u64>, PlanError> {
    check_replicas(replicas)?;
    let staying = Staying::of(members, replicas)?;
    let bounds = staying.bounds(replicas, shards);
    let bound = |(node, bound): (&Member, &Bound)| (node.node, bound.most);
    Ok(staying.members.iter().zip(&bounds.0).map(bound).collect())
}

/// The nodes that may carry something, in order of their numbers.
struct Staying {
    members: Vec<Member>,
    zones: PerNode<usize>,
    /// Most replicas of one shard in one zone.
    zone_limit: usize,
    ring: Ring,
}

impl Staying {
    fn of(members: &[Member], replicas: usize) -> Result<Self, PlanError> {
        check_members(members)?;
        let stays = |member: &&Member| member.state == MemberState::Active;
        let mut members: Vec<Member> = members.iter().filter(stays).cloned().collect();
        members.sort_by_key(|member| member.node);
        let zones = zones(&members);
        let claims = claims(&members, &zones);
        let Some(zone_limit) = share::zone_limit(&claims, replicas) else {
            let nodes = members.len();
            return Err(PlanError::TooFewNodes { replicas, nodes });
        };
        let weights: BTreeMap<NodeNumber, Weight> = members
            .iter()
            .map(|member| (member.node, member.weight))
            .collect();
        Ok(Self {
            members,
            zones,
            zone_limit,
            ring: Ring::new(&weights),
        })
    }

    fn number(&self, node: NodeIndex) -> NodeNumber {
        let member = self.members.get(node.0);
        member.map_or(NodeNumber::new(0), |member| member.node)
    }

    fn index(&self, node: NodeNumber) -> Option<NodeIndex> {
        let found = self
            .members
            .binary_search_by_key(&node, |member| member.node);
        found.ok().map(NodeIndex)
    }

    fn shares(&self, replicas: usize, shards: usize) -> Vec<Share> {
        let claims = claims(&self.members, &self.zones);
        let limit = self.zone_limit as u64;
        share::shares(&claims, shards as u64, replicas as u64, limit)
    }

    fn bounds(&self, replicas: usize, shards: usize) -> PerNode<Bound> {
        let bound = |share: Share| Bound {
            share,
            tolerance_permille: EXCESS_PERMILLE,
            most: share.ceiling_with(EXCESS_PERMILLE).min(shards as u64),
        };
        PerNode(
            self.shares(replicas, shards)
                .into_iter()
                .map(bound)
                .collect(),
        )
    }

    fn place_replicas(
        &self,
        replicas: usize,
        present: &[ShardPlacement],
    ) -> Result<PerShard<Vec<NodeIndex>>, PlanError> {
        let rule = Replicas::new(&self.ring, &self.members, &self.zones, self.zone_limit);
        let bounds = self.bounds(replicas, present.len());
        let mut balance = Balance::new(&rule, replicas, bounds, present.len());
        for (shard, placement) in present.iter().enumerate() {
            let known = placement.replicas.iter();
            let mut nodes: Vec<NodeIndex> = known.filter_map(|node| self.index(*node)).collect();
            // If one must go, it is the one that the shard likes least.
            nodes.sort_by_key(|node| {
                let distance = self.ring.distance(shard_id(shard), self.number(*node));
                (distance, *node)
            });
            for node in nodes {
                balance.keep(ShardIndex(shard), node);
            }
        }
        let spread = balance.spread();
        spread.map_err(|no_room| PlanError::NoPlace(shard_id(no_room.0.0)))?;
        Ok(balance.into_holders())
    }

    /// One of each shard's replicas, so that every node leads its part of what it carries.
    fn place_leaders(
        &self,
        replicas: usize,
        present: &[ShardPlacement],
        holders: &PerShard<Vec<NodeIndex>>,
    ) -> Result<PerShard<Option<NodeIndex>>, PlanError> {
        let mut loads = PerNode(vec![0_u64; self.members.len()]);
        for node in holders.0.iter().flatten() {
            loads[*node] += 1;
        }
        // As even as what they carry allows; beyond that as for replicas.
        let bound = |(bound, load): (Bound, &u64)| Bound {
            share: Share::new(*load, replicas as u64),
            tolerance_permille: EXCESS_PERMILLE,
            most: bound.most.div_ceil(replicas as u64),
        };
        let bounds = self.bounds(replicas, present.len()).0.into_iter();
        let bounds = PerNode(bounds.zip(&loads.0).map(bound).collect());
        let rule = Leaders::new(&self.ring, &self.members, holders);
        let mut balance = Balance::new(&rule, 1, bounds, present.len());
        for (shard, placement) in present.iter().enumerate() {
            if let Some(node) = placement.leader.and_then(|leader| self.index(leader)) {
                balance.keep(ShardIndex(shard), node);
            }
        }
        let spread = balance.spread();
        spread.map_err(|no_room| PlanError::NoPlace(shard_id(no_room.0.0)))?;
        let leaders = balance.into_holders().0.into_iter();
        Ok(PerShard(
            leaders.map(|nodes| nodes.first().copied()).collect(),
        ))
    }
}

/// The number of each node's zone: those of one name have one, nodes without a name each their own.
fn zones(members: &[Member]) -> PerNode<usize> {
    let mut names: BTreeMap<&Zone, usize> = BTreeMap::new();
    let mut zones = Vec::with_capacity(members.len());
    let mut next = 0;
    for member in members {
        let known = member.zone.as_ref().and_then(|zone| names.get(zone));
        let number = known.copied().unwrap_or(next);
        next += usize::from(known.is_none());
        if let Some(zone) = &member.zone {
            names.insert(zone, number);
        }
        zones.push(number);
    }
    PerNode(zones)
}

fn claims(members: &[Member], zones: &PerNode<usize>) -> Vec<Claim> {
    let claim = |(member, zone): (&Member, &usize)| Claim {
        weight: u64::from(member.weight.get()),
        zone: *zone,
    };
    members.iter().zip(&zones.0).map(claim).collect()
}

/// # Panics
/// Never: [`plan`] has bounded the number of shards.
fn shard_id(index: usize) -> ShardId {
    ShardId::new(u32::try_from(index).expect("the shards have been counted"))
}

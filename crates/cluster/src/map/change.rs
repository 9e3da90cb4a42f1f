//! How one cluster map becomes the next: what an operator asks for, and what the nodes that are
//! there call for. Pure; every function leaves the map as it is and tells the next one.

use std::collections::BTreeSet;
use std::time::Duration;

use flux_types::{NodeId, NodeNumber, ShardId};

use super::{ClusterMap, GONE_MAX, MapProblem};
use crate::placement::{self, Member, MemberState, PlanError, ShardPlacement, Zone};
use crate::ring::Weight;

/// Why a map stays as it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// No such node.
    #[error("the cluster has no node {0}")]
    UnknownNode(NodeNumber),
    /// No such shard.
    #[error("there is no shard {0}")]
    UnknownShard(ShardId),
    /// A leader that would not carry the shard.
    #[error("node {node} is not to carry shard {shard}: it cannot lead it")]
    NotItsNode {
        /// The shard.
        shard: ShardId,
        /// The node.
        node: NodeNumber,
    },
    /// Another shard is being split.
    #[error("shard {0} is being split: one at a time")]
    SplitUnderWay(ShardId),
    /// What would be is no map.
    #[error(transparent)]
    Problem(#[from] MapProblem),
}

impl From<PlanError> for ChangeError {
    fn from(error: PlanError) -> Self {
        Self::Problem(error.into())
    }
}

/// What is known of a node, now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sight {
    /// Its present life.
    pub node: NodeId,
    /// What it says that it can carry.
    pub weight: Weight,
    /// What it says that it shares its fate with.
    pub zone: Option<Zone>,
    /// For how long it has not been heard of; zero while it is there and well.
    pub silent_for: Duration,
}

/// What a cluster is told to be like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wishes {
    /// How long a node may be silent before others carry what it did.
    pub patience: Duration,
    /// On how many nodes each shard is to be, once there are so many. There are never fewer than
    /// there were.
    pub replicas: usize,
}

impl Sight {
    fn number(&self) -> NodeNumber {
        NodeNumber::new(self.node.physical())
    }
}

impl ClusterMap {
    /// The next map, for these nodes instead: as few moves from this one as there can be.
    ///
    /// # Errors
    /// See [`MapProblem`].
    pub fn with_members(&self, members: Vec<Member>) -> Result<Self, MapProblem> {
        self.planned(members, &self.shards)
    }

    /// Lets a node give away all that it carries, or takes that back.
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub fn drained(&self, node: NodeNumber, is_drained: bool) -> Result<Self, ChangeError> {
        let state = if is_drained {
            MemberState::Draining
        } else {
            MemberState::Active
        };
        self.with_state(node, state)
    }

    /// Lets a node give away all that it carries and then not belong to the cluster any more:
    /// [`ClusterMap::reviewed`] ends that.
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub fn removed(&self, node: NodeNumber) -> Result<Self, ChangeError> {
        self.with_state(node, MemberState::Leaving)
    }

    /// Places everything again as the nodes call for, leaders that were chosen by hand included.
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub fn rebalanced(&self) -> Result<Self, ChangeError> {
        let led_by_none = self.shards.iter().map(|placement| ShardPlacement {
            replicas: placement.replicas.clone(),
            leader: None,
        });
        let present: Vec<_> = led_by_none.collect();
        Ok(self.planned(self.members.clone(), &present)?)
    }

    /// Lets shards stay where they are for now, or go on.
    #[must_use]
    pub fn paused(&self, is_paused: bool) -> Self {
        Self {
            version: self.version + 1,
            is_paused,
            ..self.clone()
        }
    }

    /// Lets a node lead a shard that it is to carry.
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub fn led_by(&self, shard: ShardId, node: NodeNumber) -> Result<Self, ChangeError> {
        let mut next = Self {
            version: self.version + 1,
            ..self.clone()
        };
        let placement = next.shards.get_mut(shard.get() as usize);
        let placement = placement.ok_or(ChangeError::UnknownShard(shard))?;
        if !placement.replicas.contains(&node) {
            return Err(ChangeError::NotItsNode { shard, node });
        }
        placement.leader = Some(node);
        Ok(next)
    }

    /// Lets a shard give the upper half of its slots to a new one. Where that is, and who leads it,
    /// is placed when it is there: [`ClusterMap::split_done`].
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub fn split(&self, shard: ShardId) -> Result<Self, ChangeError> {
        if let Some(other) = self.splitting {
            return Err(ChangeError::SplitUnderWay(other));
        }
        if self.shard(shard).is_none() {
            return Err(ChangeError::UnknownShard(shard));
        }
        let next = Self {
            version: self.version + 1,
            ..self.clone()
        };
        Ok(next.with_split(shard)?)
    }

    /// The same map, in which a shard is to be split.
    pub(super) fn with_split(self, shard: ShardId) -> Result<Self, MapProblem> {
        if self.slots.divided(shard).is_none() {
            return Err(MapProblem::Split(shard));
        }
        Ok(Self {
            splitting: Some(shard),
            ..self
        })
    }

    /// The next map once the shard that was to be split has been: the new one, which begins where
    /// its parent is, is placed. None if none was to be.
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub fn split_done(&self) -> Result<Option<Self>, ChangeError> {
        let Some((parent, slots)) = self.splitting() else {
            return Ok(None);
        };
        let replicas = self.shard(parent).map(|placed| placed.replicas.clone());
        let child = ShardPlacement {
            replicas: replicas.unwrap_or_default(),
            leader: None,
        };
        let present: Vec<_> = self.shards.iter().cloned().chain([child]).collect();
        let whole = Self {
            slots,
            splitting: None,
            ..self.clone()
        };
        Ok(Some(whole.planned(self.members.clone(), &present)?))
    }

    /// What the nodes that are there call for; none if that is what the map says already. Those
    /// that have come are taken in, those that have been silent for too long replaced and, once
    /// they are back, taken in again; those that were removed are forgotten when no shard is on
    /// them any more; and each shard gets as many replicas as are wished for, once there are enough
    /// nodes. `carrying`: on whom there is a shard, if that is known of every one.
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub fn reviewed(
        &self,
        sights: &[Sight],
        carrying: Option<&BTreeSet<NodeNumber>>,
        wishes: Wishes,
    ) -> Result<Option<Self>, ChangeError> {
        let mut members = self.members.clone();
        let mut gone = self.gone.clone();
        members.retain(|member| {
            let is_over = member.state == MemberState::Leaving
                && carrying.is_some_and(|carrying| !carrying.contains(&member.node));
            if is_over {
                let lives = sights.iter().filter(|seen| seen.number() == member.node);
                gone.extend(lives.map(|seen| seen.node));
            }
            !is_over
        });
        for seen in sights.iter().filter(|seen| seen.silent_for.is_zero()) {
            take_in(&mut members, seen, gone.contains(&seen.node));
        }
        self.replace_silent(&mut members, sights, wishes.patience);
        members.sort_by_key(|member| member.node);
        let replicas = self.affordable(&members, wishes.replicas);
        if members == self.members && gone == self.gone && replicas == self.replicas {
            return Ok(None);
        }
        let excess = gone.len().saturating_sub(GONE_MAX);
        gone.drain(..excess);
        let wider = Self {
            replicas,
            ..self.clone()
        };
        let next = wider.with_members(members)?;
        Ok(Some(Self { gone, ..next }))
    }

    /// How many replicas each shard gets: more than there were if so many nodes are to carry some.
    fn affordable(&self, members: &[Member], wanted: usize) -> usize {
        let active = members
            .iter()
            .filter(|member| member.state == MemberState::Active);
        let is_affordable = wanted <= active.count() && placement::check_replicas(wanted).is_ok();
        if is_affordable {
            self.replicas.max(wanted)
        } else {
            self.replicas
        }
    }

    /// Marks those who have been silent for too long, as long as enough are there to take over.
    fn replace_silent(&self, members: &mut [Member], sights: &[Sight], patience: Duration) {
        let silence = |member: &Member| {
            let lives = sights.iter().filter(|seen| seen.number() == member.node);
            lives.map(|seen| seen.silent_for).min()
        };
        let is_there = |member: &&Member| {
            member.state == MemberState::Active && silence(member).is_some_and(|age| age.is_zero())
        };
        if members.iter().filter(is_there).count() < self.replicas {
            return;
        }
        for member in members.iter_mut() {
            let is_silent = silence(member).is_some_and(|age| patience <= age);
            if member.state == MemberState::Active && is_silent {
                member.state = MemberState::Away;
            }
        }
    }

    fn with_state(&self, node: NodeNumber, state: MemberState) -> Result<Self, ChangeError> {
        let mut members = self.members.clone();
        let mut member = members.iter_mut().find(|member| member.node == node);
        let member = member.as_mut().ok_or(ChangeError::UnknownNode(node))?;
        member.state = state;
        Ok(self.with_members(members)?)
    }

    fn planned(
        &self,
        members: Vec<Member>,
        present: &[ShardPlacement],
    ) -> Result<Self, MapProblem> {
        let shards = placement::plan(&members, self.replicas, present)?;
        let slots = self.slots.clone();
        let next = Self::new(self.version + 1, members, self.replicas, slots, shards)?;
        Ok(Self {
            is_paused: self.is_paused,
            splitting: self.splitting,
            gone: self.gone.clone(),
            ..next
        })
    }
}

/// Takes in a node that is there.
fn take_in(members: &mut Vec<Member>, seen: &Sight, is_gone: bool) {
    let known = members
        .iter_mut()
        .find(|member| member.node == seen.number());
    let Some(member) = known else {
        if !is_gone {
            members.push(Member {
                node: seen.number(),
                weight: seen.weight,
                zone: seen.zone.clone(),
                state: MemberState::Active,
            });
        }
        return;
    };
    member.weight = seen.weight;
    member.zone.clone_from(&seen.zone);
    if member.state == MemberState::Away {
        member.state = MemberState::Active;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SlotMap;

    const WISHES: Wishes = Wishes {
        patience: Duration::from_secs(600),
        replicas: 3,
    };

    fn number(number: u32) -> NodeNumber {
        NodeNumber::new(number)
    }

    fn founded(nodes: u32) -> ClusterMap {
        let members = (1..=nodes).map(number).map(Member::new).collect();
        let slots = SlotMap::even(8).expect("eight shards");
        ClusterMap::found(members, 3, slots, Vec::new()).expect("a map")
    }

    fn seen(node: u32, life: u32, silent_secs: u64) -> Sight {
        Sight {
            node: NodeId::of_incarnation(node, life),
            weight: Weight::STANDARD,
            zone: None,
            silent_for: Duration::from_secs(silent_secs),
        }
    }

    fn sights(nodes: &[u32]) -> Vec<Sight> {
        nodes.iter().map(|node| seen(*node, 1, 0)).collect()
    }

    fn carried(map: &ClusterMap, node: u32) -> usize {
        let shards = map.shards().iter();
        shards
            .filter(|shard| shard.replicas.contains(&number(node)))
            .count()
    }

    fn carrying(map: &ClusterMap) -> BTreeSet<NodeNumber> {
        let shards = map.shards().iter();
        shards.flat_map(|shard| shard.replicas.clone()).collect()
    }

    #[test]
    fn a_node_that_comes_gets_its_share_and_then_nothing_changes() {
        let map = founded(3);
        assert_eq!(map.reviewed(&sights(&[1, 2, 3]), None, WISHES), Ok(None));
        let grown = map.reviewed(&sights(&[1, 2, 3, 4]), None, WISHES);
        let grown = grown.expect("a plan").expect("another map");
        assert_eq!(grown.version(), 2);
        assert_eq!(carried(&grown, 4), 6, "24 replicas on four nodes");
        let again = grown.reviewed(&sights(&[1, 2, 3, 4]), None, WISHES);
        assert_eq!(again, Ok(None));
    }

    #[test]
    fn a_node_is_replaced_only_when_it_was_silent_for_long_and_comes_back_to_its_share() {
        let map = founded(4);
        let mut now = sights(&[1, 2, 3, 4]);
        now[1] = seen(2, 1, 599);
        assert_eq!(map.reviewed(&now, None, WISHES), Ok(None));
        now[1] = seen(2, 1, 600);
        let without = map.reviewed(&now, None, WISHES).expect("a plan");
        let without = without.expect("another map");
        assert_eq!(carried(&without, 2), 0);
        let state = without.member(number(2)).map(|member| member.state);
        assert_eq!(state, Some(MemberState::Away));
        let back = without.reviewed(&sights(&[1, 2, 3, 4]), None, WISHES);
        let back = back.expect("a plan").expect("another map");
        assert_eq!(carried(&back, 2), 6);
    }

    #[test]
    fn nobody_is_replaced_while_too_few_are_there_to_take_over() {
        let map = founded(3);
        let mut now = sights(&[1, 2, 3]);
        now[2] = seen(3, 1, 9_999);
        assert_eq!(map.reviewed(&now, None, WISHES), Ok(None));
        // A node of which nothing at all is known is not taken for gone.
        let map = founded(4);
        assert_eq!(map.reviewed(&sights(&[1, 2, 3]), None, WISHES), Ok(None));
    }

    #[test]
    fn a_node_that_is_removed_is_forgotten_once_nothing_is_on_it_and_only_another_life_comes_back()
    {
        let map = founded(4).removed(number(4)).expect("three are enough");
        assert_eq!(carried(&map, 4), 0);
        let now = sights(&[1, 2, 3, 4]);
        let still: BTreeSet<_> = [1, 2, 3, 4].map(number).into();
        assert_eq!(map.reviewed(&now, Some(&still), WISHES), Ok(None));
        assert_eq!(map.reviewed(&now, None, WISHES), Ok(None), "not known");
        let moved = carrying(&map);
        let without = map.reviewed(&now, Some(&moved), WISHES).expect("a plan");
        let without = without.expect("another map");
        assert!(without.member(number(4)).is_none());
        let again = without.reviewed(&now, Some(&moved), WISHES);
        assert_eq!(again, Ok(None), "the same life is not taken in again");
        let mut reborn = now;
        reborn[3] = seen(4, 2, 0);
        let back = without.reviewed(&reborn, Some(&moved), WISHES);
        assert_eq!(carried(&back.expect("a plan").expect("another map"), 4), 6);
    }

    #[test]
    fn a_node_is_drained_and_taken_back_and_not_when_too_few_would_stay() {
        let map = founded(4);
        let drained = map.drained(number(1), true).expect("three are enough");
        assert_eq!(carried(&drained, 1), 0);
        assert_eq!(
            drained.reviewed(&sights(&[1, 2, 3, 4]), None, WISHES),
            Ok(None),
            "that it is there does not undo it"
        );
        let back = drained.drained(number(1), false).expect("it may");
        assert_eq!(carried(&back, 1), 6);
        let refused = drained.drained(number(2), true).expect_err("too few");
        let said = refused.to_string();
        assert!(
            said.contains("3 replicas need as many nodes that stay: there are 2"),
            "{said}"
        );
        let unknown = map.drained(number(9), true).expect_err("no such node");
        assert_eq!(unknown.to_string(), "the cluster has no node 9");
    }

    #[test]
    fn who_leads_may_be_chosen_until_everything_is_placed_again() {
        let map = founded(3);
        let shard = ShardId::new(0);
        let leader = |map: &ClusterMap| map.shard(shard).and_then(|placed| placed.leader);
        let other = if leader(&map) == Some(number(1)) {
            2
        } else {
            1
        };
        let chosen = map.led_by(shard, number(other)).expect("it carries it");
        assert_eq!(
            (leader(&chosen), chosen.version()),
            (Some(number(other)), 2)
        );
        let again = chosen.rebalanced().expect("a plan");
        assert_eq!(leader(&again), leader(&map));
        let stranger = map.led_by(shard, number(9)).expect_err("not its node");
        assert!(stranger.to_string().contains("cannot lead it"));
        let none = map.led_by(ShardId::new(8), number(1)).expect_err("eight");
        assert_eq!(none, ChangeError::UnknownShard(ShardId::new(8)));
    }

    #[test]
    fn a_node_that_was_alone_shares_what_it_has_as_soon_as_there_are_enough() {
        let slots = SlotMap::even(1).expect("one shard");
        let alone = ShardPlacement {
            replicas: vec![number(1)],
            leader: None,
        };
        let map = ClusterMap::found(vec![Member::new(number(1))], 1, slots, vec![alone]);
        let map = map.expect("a map");
        let reviewed = |map: &ClusterMap, nodes: &[u32]| map.reviewed(&sights(nodes), None, WISHES);
        assert_eq!(reviewed(&map, &[1]), Ok(None));
        let two = reviewed(&map, &[1, 2])
            .expect("a plan")
            .expect("a member more");
        assert_eq!((two.replicas(), carried(&two, 1)), (1, 1));
        let three = reviewed(&two, &[1, 2, 3])
            .expect("a plan")
            .expect("another");
        assert_eq!(three.replicas(), 3);
        assert_eq!([1, 2, 3].map(|node| carried(&three, node)), [1, 1, 1]);
        assert_eq!(reviewed(&three, &[1, 2, 3]), Ok(None));
        let fewer = Wishes {
            replicas: 1,
            ..WISHES
        };
        assert_eq!(
            three.reviewed(&sights(&[1, 2, 3]), None, fewer),
            Ok(None),
            "never fewer"
        );
    }

    #[test]
    fn a_shard_is_split_one_at_a_time_and_then_placed() {
        let map = founded(4);
        let unknown = map.split(ShardId::new(8)).expect_err("eight shards");
        assert_eq!(unknown, ChangeError::UnknownShard(ShardId::new(8)));
        let asked = map.split(ShardId::new(3)).expect("it has many slots");
        assert_eq!((asked.version(), asked.shards()), (2, map.shards()));
        let (parent, slots) = asked.splitting().expect("it was asked for");
        assert_eq!((parent.get(), slots.shard_count()), (3, 9));
        let second = asked.split(ShardId::new(1)).expect_err("one at a time");
        assert_eq!(second.to_string(), "shard 3 is being split: one at a time");
        let drained = asked.drained(number(1), true).expect("three are enough");
        assert!(drained.splitting().is_some(), "it goes on meanwhile");
        let done = asked.split_done().expect("a plan").expect("it was split");
        assert_eq!((done.version(), done.slots()), (3, &slots));
        assert_eq!(done.splitting(), None);
        assert_eq!(done.shards().len(), 9);
        let nine = [1, 2, 3, 4].map(|node| carried(&done, node));
        assert!(nine.iter().all(|count| (6..=8).contains(count)), "{nine:?}");
        assert_eq!(done.split_done(), Ok(None));
        let text = asked.encode().expect("a text");
        let read = ClusterMap::decode(text.as_bytes()).expect("a map");
        assert_eq!(read, asked);
        let odd = text.replace("\"splitting\":3", "\"splitting\":8");
        let refused = ClusterMap::decode(odd.as_bytes()).expect_err("no such shard");
        assert!(refused.to_string().contains("shard 8 cannot be split"));
    }

    #[test]
    fn a_pause_survives_other_changes() {
        let paused = founded(4).paused(true);
        assert!(paused.is_paused());
        assert!(paused.drained(number(1), true).expect("a plan").is_paused());
        assert!(!paused.paused(false).is_paused());
    }
}

//! The next step from the members that a shard has towards those that it should have.
//!
//! A pure decision of the shard's leader, made again after every step from what the shard's own log
//! says of its members: a leader that comes in between takes up where the last one was, and nothing
//! is remembered. One change at a time: a node follows, catches up, gets a vote in exchange for
//! another's, and only then the other is let go. Safe at every point between: a vote is given only
//! to who has caught up, the voters never become fewer, and no change is begun whose outcome would
//! have no majority that is there.

use std::collections::BTreeSet;

use flux_types::{LogIndex, NodeId, NodeNumber};

/// How many entries behind the leader counts as caught up: what a change of voters waits for.
pub const LAG_MAX: u64 = 64;

/// What a shard's leader does next about its members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Lets a node follow.
    Learn(NodeId),
    /// Waits until a node that follows has caught up.
    Wait(NodeId),
    /// Gives the votes to exactly these.
    Vote(BTreeSet<NodeId>),
    /// Lets a follower go.
    Forget(NodeId),
    /// Hands the leadership to a voter.
    Lead(NodeId),
}

/// Where a shard should be: numbers, because a node that has lost its disk takes its own place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// Who should vote.
    pub nodes: BTreeSet<NodeNumber>,
    /// Who of them should lead, if that matters.
    pub leader: Option<NodeNumber>,
}

/// A shard as its leader sees it.
#[derive(Clone, Debug, Default)]
pub struct Members {
    /// The node that decides: it leads.
    pub own: NodeId,
    /// Who votes; while a change of voters is under way, those before and after it.
    pub voters: BTreeSet<NodeId>,
    /// While a change of voters is under way: who votes after it.
    pub after: Option<BTreeSet<NodeId>>,
    /// Who follows without a vote.
    pub learners: BTreeSet<NodeId>,
    /// Who has (nearly) everything that the leader has.
    pub caught_up: BTreeSet<NodeId>,
    /// Other nodes that are there and well: of each number the life that it lives now.
    pub living: BTreeSet<NodeId>,
}

/// Who has (nearly) everything, by how far each log is known to reach: at least to the entry
/// `member_since` by which they belong to the shard, because what a voter acknowledges counts from
/// then on, and almost to the `last` one.
#[must_use]
pub fn caught_up(
    replication: &[(NodeId, LogIndex)],
    last: LogIndex,
    member_since: LogIndex,
) -> BTreeSet<NodeId> {
    let reached = |index: LogIndex| last.get() <= index.get() + LAG_MAX && member_since <= index;
    let nodes = replication.iter().filter(|(_, index)| reached(*index));
    nodes.map(|(node, _)| *node).collect()
}

/// Decides. Without a target the shard stays on the nodes where it is, and only nodes that have
/// begun another life are replaced by themselves.
#[must_use]
pub fn next_step(members: &Members, target: Option<&Target>) -> Option<Step> {
    if let Some(after) = &members.after {
        // A change that was left behind is finished first, whatever is wanted by now.
        return govern(members, after.clone());
    }
    if !members.voters.contains(&members.own) {
        // It goes on leading after its vote was taken, and may not be let go itself.
        return heir(members, members.voters.iter().copied()).map(Step::Lead);
    }
    let present: BTreeSet<NodeNumber> = members.voters.iter().copied().map(number).collect();
    let numbers = target.map_or(&present, |target| &target.nodes);
    let wanted: Vec<NodeId> = numbers
        .iter()
        .filter_map(|number| members.life(*number))
        .collect();
    exchange(members, &wanted, numbers.len())
        .or_else(|| let_go(members, numbers, target.is_some()))
        .or_else(|| lead(members, target?.leader?))
}

impl Members {
    /// The life of a number that should be a member: the one that is there, or else the one that is
    /// a member already, which may come back.
    fn life(&self, wanted: NodeNumber) -> Option<NodeId> {
        if number(self.own) == wanted {
            return Some(self.own);
        }
        let of = |nodes: &BTreeSet<NodeId>| {
            let mut lives = nodes.iter().filter(|node| number(**node) == wanted);
            lives.next_back().copied()
        };
        of(&self.living)
            .or_else(|| of(&self.voters))
            .or_else(|| of(&self.learners))
    }

    fn is_there(&self, node: NodeId) -> bool {
        node == self.own || self.living.contains(&node)
    }

    fn has_caught_up(&self, node: NodeId) -> bool {
        node == self.own || self.caught_up.contains(&node)
    }

    /// Whether a majority of these is there and has what was acknowledged.
    fn would_go_on(&self, voters: &BTreeSet<NodeId>) -> bool {
        let well = voters
            .iter()
            .filter(|voter| self.is_there(**voter) && self.has_caught_up(**voter));
        voters.len() / 2 < well.count()
    }
}

/// Gives votes to those who should have one.
fn exchange(members: &Members, wanted: &[NodeId], count: usize) -> Option<Step> {
    let missing = |node: &&NodeId| !members.voters.contains(node) && members.is_there(**node);
    let mut ready = Vec::new();
    for node in wanted.iter().filter(missing) {
        if !members.learners.contains(node) {
            return Some(Step::Learn(*node));
        }
        if !members.has_caught_up(*node) {
            return Some(Step::Wait(*node));
        }
        ready.push(*node);
    }
    let voters: BTreeSet<NodeId> = if members.voters.len() == count {
        // One for one, so that every step is as small as it can be.
        let node = *ready.first()?;
        let leaving = leaving(members, wanted, node)?;
        let mut voters = members.voters.clone();
        voters.remove(&leaving);
        voters.insert(node);
        voters
    } else {
        // More votes than before, or fewer: only all at once is their number always odd.
        wanted.iter().copied().collect()
    };
    let is_whole = voters.len() == count && voters != members.voters;
    let is_safe = voters.iter().all(|voter| {
        members.voters.contains(voter)
            || (members.learners.contains(voter) && members.has_caught_up(*voter))
    });
    if !is_whole || !is_safe || !members.would_go_on(&voters) {
        return None;
    }
    govern(members, voters)
}

/// Gives the votes to these; but who leads is not voted out: somebody who stays leads first.
fn govern(members: &Members, voters: BTreeSet<NodeId>) -> Option<Step> {
    if voters.contains(&members.own) {
        return Some(Step::Vote(voters));
    }
    let heirs = members.voters.intersection(&voters).copied();
    heir(members, heirs).map(Step::Lead)
}

/// Whose vote a node gets: that of its former life; else of one that is not wanted, rather gone than
/// there, rather another than the leader.
fn leaving(members: &Members, wanted: &[NodeId], node: NodeId) -> Option<NodeId> {
    let unwanted = || {
        members
            .voters
            .iter()
            .copied()
            .filter(|voter| !wanted.contains(voter))
    };
    let former = unwanted().find(|voter| number(*voter) == number(node));
    former.or_else(|| {
        unwanted().min_by_key(|voter| (*voter == members.own, members.is_there(*voter), *voter))
    })
}

/// Lets followers go that should not follow: former lives, and whoever has no place in the target.
fn let_go(members: &Members, numbers: &BTreeSet<NodeNumber>, has_target: bool) -> Option<Step> {
    let is_former = |learner: NodeId| {
        members
            .life(number(learner))
            .is_some_and(|life| life != learner)
    };
    let is_left_over = |learner: NodeId| has_target && !numbers.contains(&number(learner));
    let mut learners = members.learners.iter().copied();
    let gone = learners
        .find(|learner| *learner != members.own && (is_former(*learner) || is_left_over(*learner)));
    gone.map(Step::Forget)
}

/// Lets the one lead that should.
fn lead(members: &Members, leader: NodeNumber) -> Option<Step> {
    let named = members
        .voters
        .iter()
        .copied()
        .filter(|voter| number(*voter) == leader);
    let named = named.filter(|voter| *voter != members.own);
    heir(members, named).map(Step::Lead)
}

/// The first who could lead at once.
fn heir(members: &Members, mut nodes: impl Iterator<Item = NodeId>) -> Option<NodeId> {
    nodes.find(|node| {
        *node != members.own && members.is_there(*node) && members.has_caught_up(*node)
    })
}

fn number(node: NodeId) -> NodeNumber {
    NodeNumber::new(node.physical())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn node(number: u32, life: u32) -> NodeId {
        NodeId::of_incarnation(number, life)
    }

    fn first(numbers: &[u32]) -> BTreeSet<NodeId> {
        numbers.iter().map(|number| node(*number, 1)).collect()
    }

    fn target(nodes: &[u32], leader: Option<u32>) -> Target {
        Target {
            nodes: nodes.iter().copied().map(NodeNumber::new).collect(),
            leader: leader.map(NodeNumber::new),
        }
    }

    /// Node 1 leads; all of the first life are there, and have everything.
    fn members(voters: &[u32], learners: &[u32]) -> Members {
        Members {
            own: node(1, 1),
            voters: first(voters),
            after: None,
            learners: first(learners),
            caught_up: first(&[voters, learners].concat()),
            living: first(&[2, 3, 4, 5, 6]),
        }
    }

    #[test]
    fn another_life_follows_then_votes_then_the_former_goes() {
        let newer = node(3, 9);
        let mut now = members(&[1, 2, 3], &[]);
        now.living = BTreeSet::from([node(2, 1), newer]);
        assert_eq!(next_step(&now, None), Some(Step::Learn(newer)));
        now.learners.insert(newer);
        assert_eq!(next_step(&now, None), Some(Step::Wait(newer)));
        now.caught_up.insert(newer);
        let voters = BTreeSet::from([node(1, 1), node(2, 1), newer]);
        assert_eq!(next_step(&now, None), Some(Step::Vote(voters.clone())));
        now.voters = voters;
        now.learners = first(&[3]);
        assert_eq!(next_step(&now, None), Some(Step::Forget(node(3, 1))));
        now.learners.clear();
        assert_eq!(next_step(&now, None), None);
    }

    #[test]
    fn who_lacks_little_has_caught_up_unless_it_lacks_the_entry_that_made_it_a_member() {
        let (one, two) = (node(1, 1), node(2, 1));
        let at = LogIndex::new;
        let reached = |index| caught_up(&[(one, at(index)), (two, at(1))], at(1000), at(990));
        assert_eq!(reached(990), BTreeSet::from([one]));
        assert_eq!(reached(989), BTreeSet::new());
        let old = |index| caught_up(&[(one, at(index))], at(1000), at(5));
        assert_eq!(old(1000 - LAG_MAX), BTreeSet::from([one]));
        assert_eq!(old(1000 - LAG_MAX - 1), BTreeSet::new());
    }

    #[test]
    fn a_node_that_is_only_away_keeps_its_vote() {
        let mut now = members(&[1, 2, 3], &[]);
        now.living = first(&[2]);
        assert_eq!(next_step(&now, None), None);
        assert_eq!(next_step(&now, Some(&target(&[1, 2, 3], None))), None);
    }

    #[test]
    fn a_replica_moves_step_by_step_and_the_leader_hands_over_before_it_goes() {
        let wanted = target(&[2, 3, 4], Some(2));
        let step = |now: &Members| next_step(now, Some(&wanted));
        let mut now = members(&[1, 2, 3], &[]);
        assert_eq!(step(&now), Some(Step::Learn(node(4, 1))));
        now = members(&[1, 2, 3], &[4]);
        assert_eq!(step(&now), Some(Step::Lead(node(2, 1))));
        now.own = node(2, 1);
        now.living.insert(node(1, 1));
        assert_eq!(step(&now), Some(Step::Vote(first(&[2, 3, 4]))));
        now.voters = first(&[2, 3, 4]);
        now.learners = first(&[1]);
        assert_eq!(step(&now), Some(Step::Forget(node(1, 1))));
        now.learners.clear();
        assert_eq!(step(&now), None);
    }

    #[test]
    fn a_change_that_was_left_behind_is_finished_first() {
        let mut now = members(&[1, 2, 3, 4], &[]);
        now.after = Some(first(&[2, 3, 4]));
        assert_eq!(
            next_step(&now, None),
            Some(Step::Lead(node(2, 1))),
            "node 1 leads"
        );
        now.after = Some(first(&[1, 2, 4]));
        for wanted in [None, Some(target(&[1, 2, 3], None))] {
            let step = next_step(&now, wanted.as_ref());
            assert_eq!(step, Some(Step::Vote(first(&[1, 2, 4]))));
        }
    }

    #[test]
    fn who_leads_without_a_vote_hands_over_wherever_the_shard_should_be() {
        let mut now = members(&[2, 3, 4], &[1]);
        let wanted = [target(&[2, 3, 4], None), target(&[1, 2, 3], None)];
        for wanted in [None, wanted.first(), wanted.last()] {
            assert_eq!(next_step(&now, wanted), Some(Step::Lead(node(2, 1))));
        }
        now.caught_up.remove(&node(2, 1));
        assert_eq!(next_step(&now, None), Some(Step::Lead(node(3, 1))));
    }

    #[test]
    fn one_that_is_gone_is_replaced_before_one_that_is_there() {
        let mut now = members(&[1, 2, 3], &[4, 5]);
        now.living.remove(&node(3, 1));
        let step = next_step(&now, Some(&target(&[1, 4, 5], None)));
        assert_eq!(step, Some(Step::Vote(first(&[1, 2, 4]))));
    }

    #[test]
    fn one_voter_becomes_three_at_once() {
        let wanted = target(&[1, 2, 3], None);
        let mut now = members(&[1], &[2]);
        assert_eq!(
            next_step(&now, Some(&wanted)),
            Some(Step::Learn(node(3, 1)))
        );
        now = members(&[1], &[2, 3]);
        assert_eq!(
            next_step(&now, Some(&wanted)),
            Some(Step::Vote(first(&[1, 2, 3])))
        );
    }

    #[test]
    fn no_vote_moves_where_too_few_would_be_there() {
        let mut now = members(&[1, 2, 3], &[4]);
        now.living = first(&[3, 4]);
        // 2 is gone, and 1 would be: with 4 there would be 3 and 4 of 2, 3 and 4.
        let step = next_step(&now, Some(&target(&[2, 3, 4], None)));
        assert_eq!(step, Some(Step::Lead(node(3, 1))));
        now.caught_up.remove(&node(3, 1));
        assert_eq!(next_step(&now, Some(&target(&[2, 3, 4], None))), None);
    }

    /// A whole shard, in which anything may happen between two steps.
    #[derive(Clone, Debug)]
    struct World {
        /// The lives that run now, by number; none: the node is down.
        running: [Option<u32>; 6],
        /// The newest life that each number has had.
        lives: [u32; 6],
        voters: BTreeSet<NodeId>,
        after: Option<BTreeSet<NodeId>>,
        learners: BTreeSet<NodeId>,
        /// Who holds everything that was ever acknowledged.
        whole: BTreeSet<NodeId>,
        leader: Option<NodeId>,
    }

    #[derive(Clone, Debug)]
    enum Event {
        /// The leader takes its step; `true`: it dies in the middle of it.
        Step(bool),
        Down(usize),
        Up(usize),
        /// A node comes back without its disk.
        Wipe(usize),
        /// Followers get what they lack.
        Replicate,
        /// A write is acknowledged by a bare majority; the others lack it.
        Write(bool),
        Elect(usize),
    }

    impl World {
        fn new(voters: &[u32]) -> Self {
            Self {
                running: [Some(1); 6],
                lives: [1; 6],
                voters: first(voters),
                after: None,
                learners: BTreeSet::new(),
                whole: first(voters),
                leader: None,
            }
        }

        fn runs(&self, node: NodeId) -> bool {
            let at = node.physical() as usize - 1;
            self.running[at] == Some(node.incarnation())
        }

        /// The sets of which each needs a majority.
        fn configurations(&self) -> Vec<BTreeSet<NodeId>> {
            match &self.after {
                None => vec![self.voters.clone()],
                Some(after) => vec![self.voters.clone(), after.clone()],
            }
        }

        fn has_majority(&self, of: impl Fn(NodeId) -> bool) -> bool {
            self.configurations()
                .iter()
                .all(|voters| voters.len() / 2 < voters.iter().filter(|voter| of(**voter)).count())
        }

        /// Whether a voter can be elected: a majority runs, and it has what they have.
        fn elect(&mut self, at: usize) {
            let voters: BTreeSet<NodeId> = self.configurations().into_iter().flatten().collect();
            let candidates: Vec<NodeId> = voters
                .into_iter()
                .filter(|voter| self.runs(*voter) && self.whole.contains(voter))
                .collect();
            self.leader = None;
            if !candidates.is_empty() && self.has_majority(|voter| self.runs(voter)) {
                self.leader = Some(candidates[at % candidates.len()]);
            }
        }

        fn seen(&self, own: NodeId) -> Members {
            let living = (1..)
                .zip(self.running)
                .filter_map(|(number, life)| Some(node(number, life?)));
            Members {
                own,
                voters: self.configurations().into_iter().flatten().collect(),
                after: self.after.clone(),
                learners: self.learners.clone(),
                caught_up: self.whole.clone(),
                living: living.filter(|node| *node != own).collect(),
            }
        }

        fn happens(&mut self, event: &Event, wanted: &Target) {
            match event {
                Event::Down(at) => self.running[*at] = None,
                Event::Up(at) => self.running[*at] = Some(self.lives[*at]),
                Event::Wipe(at) => {
                    // More may not be lost than a majority has: nothing could survive that.
                    let gone = node(u32::try_from(at + 1).unwrap(), self.lives[*at]);
                    let mut rest = self.clone();
                    rest.whole.remove(&gone);
                    if !rest.has_majority(|voter| rest.whole.contains(&voter)) {
                        return;
                    }
                    self.whole.remove(&gone);
                    self.lives[*at] += 1;
                    self.running[*at] = Some(self.lives[*at]);
                }
                Event::Replicate => {
                    if self.leader.is_some() {
                        let members: BTreeSet<NodeId> = self
                            .configurations()
                            .into_iter()
                            .flatten()
                            .chain(self.learners.clone())
                            .collect();
                        let reached: Vec<NodeId> = members
                            .into_iter()
                            .filter(|node| self.runs(*node))
                            .collect();
                        self.whole.extend(reached);
                    }
                }
                Event::Write(is_bare) => self.write(*is_bare),
                Event::Elect(at) => self.elect(*at),
                Event::Step(dies) => self.step(*dies, wanted),
            }
            if self.leader.is_some_and(|leader| !self.runs(leader)) {
                self.leader = None;
            }
        }

        fn write(&mut self, is_bare: bool) {
            let Some(leader) = self.leader else { return };
            if !self.has_majority(|voter| self.runs(voter)) {
                return;
            }
            let voters: BTreeSet<NodeId> = self.configurations().into_iter().flatten().collect();
            let mut acknowledging = self.clone();
            acknowledging.whole = voters
                .into_iter()
                .filter(|voter| self.runs(*voter))
                .collect();
            let all = acknowledging.whole.clone();
            for voter in all
                .iter()
                .rev()
                .filter(|voter| is_bare && **voter != leader)
            {
                let mut fewer = acknowledging.clone();
                fewer.whole.remove(voter);
                if fewer.has_majority(|voter| fewer.whole.contains(&voter)) {
                    acknowledging = fewer;
                }
            }
            self.whole = acknowledging.whole;
        }

        fn step(&mut self, dies: bool, wanted: &Target) {
            let Some(leader) = self.leader else { return };
            if !self.has_majority(|voter| self.runs(voter)) {
                return;
            }
            match next_step(&self.seen(leader), Some(wanted)) {
                Some(Step::Learn(node)) => {
                    self.learners.insert(node);
                }
                Some(Step::Forget(node)) => {
                    assert!(self.learners.remove(&node), "only learners are let go");
                    self.whole.remove(&node);
                }
                Some(Step::Lead(node)) => {
                    let has_vote = self
                        .configurations()
                        .iter()
                        .any(|voters| voters.contains(&node));
                    assert!(has_vote && self.runs(node) && self.whole.contains(&node));
                    self.leader = Some(node);
                }
                Some(Step::Vote(voters)) => self.vote(voters, leader, dies),
                Some(Step::Wait(_)) | None => {}
            }
        }

        fn vote(&mut self, voters: BTreeSet<NodeId>, leader: NodeId, dies: bool) {
            assert_eq!(voters.len() % 2, 1, "an even number of votes: {voters:?}");
            assert!(voters.contains(&leader), "the leader is voted out");
            if self.after.is_none() {
                for new in voters.difference(&self.voters) {
                    assert!(self.learners.remove(new), "{new:?} was no learner");
                    assert!(self.whole.contains(new), "{new:?} has not caught up");
                }
                self.after = Some(voters.clone());
                if dies {
                    self.leader = None;
                    return;
                }
            }
            if self.has_majority(|voter| self.runs(voter)) {
                let former = std::mem::replace(&mut self.voters, voters);
                self.after = None;
                self.learners.extend(former.difference(&self.voters));
            }
        }
    }

    fn any_event() -> impl Strategy<Value = Event> {
        prop_oneof![
            6 => any::<bool>().prop_map(Event::Step),
            1 => (0_usize..6).prop_map(Event::Down),
            2 => (0_usize..6).prop_map(Event::Up),
            1 => (0_usize..6).prop_map(Event::Wipe),
            3 => Just(Event::Replicate),
            2 => any::<bool>().prop_map(Event::Write),
            3 => (0_usize..6).prop_map(Event::Elect),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn whatever_dies_in_between_nothing_is_lost_and_the_target_is_reached(
            targets in prop::collection::vec(
                (prop::sample::subsequence(vec![1_u32, 2, 3, 4, 5, 6], 3), 0_usize..3), 1..4),
            events in prop::collection::vec(any_event(), 0..80)
        ) {
            let mut world = World::new(&[1, 2, 3]);
            let targets: Vec<Target> =
                targets.iter().map(|(nodes, leader)| target(nodes, Some(nodes[*leader]))).collect();
            for (at, event) in events.iter().enumerate() {
                let wanted = &targets[at * targets.len() / events.len()];
                world.happens(event, wanted);
                // What was acknowledged is with a majority, whatever the configuration.
                let holds = world.has_majority(|voter| world.whole.contains(&voter));
                prop_assert!(holds, "{event:?}: {world:?}");
            }
            // Then everybody is there, and the shard reaches its target.
            let wanted = targets.last().expect("at least one");
            for _ in 0..60 {
                for at in 0..6 {
                    world.happens(&Event::Up(at), wanted);
                }
                if world.leader.is_none() {
                    world.happens(&Event::Elect(0), wanted);
                }
                world.happens(&Event::Replicate, wanted);
                world.happens(&Event::Step(false), wanted);
            }
            let reached: BTreeSet<NodeNumber> = world.voters.iter().copied().map(number).collect();
            prop_assert_eq!(&reached, &wanted.nodes, "{:?}", &world);
            prop_assert_eq!(world.voters.len(), 3);
            prop_assert!(world.learners.is_empty() && world.after.is_none(), "{:?}", &world);
            prop_assert_eq!(world.leader.map(number), wanted.leader);
        }
    }
}

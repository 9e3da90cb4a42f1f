//! Spreads copies of shards over nodes so that nobody holds more than its bound, changing as little
//! as possible of what there is. Knows nothing of why a node may hold a copy: see [`Rule`].
//!
//! "Consistent Hashing with Bounded Loads" (Mirrokni, Thorup, Zadimoghaddam, SODA 2018; 2016 as
//! arXiv:1608.01350): a copy goes to the first node along the ring that has room. What differs here
//! is that there is a present state from which to move: a copy that lies well stays, though another
//! node has become the first with room. Where the nodes with room are just those that may not take
//! the copy, a shortest chain of exchanges makes room elsewhere (augmenting paths, as in the maximum
//! flow of Edmonds and Karp), so that a solution is found whenever there is one.

use std::collections::{BTreeSet, VecDeque};
use std::mem;
use std::ops::{Index, IndexMut};

use super::share::Share;

/// How many steps along the ring are taken before all nodes are compared instead, which finds the
/// same and takes less time where few have room.
const WALK_MAX: usize = 512;

/// One of the nodes that may be given something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct NodeIndex(pub(super) usize);

/// One of the shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ShardIndex(pub(super) usize);

/// Something for every node.
#[derive(Clone, Debug)]
pub(super) struct PerNode<T>(pub(super) Vec<T>);

/// Something for every shard.
#[derive(Clone, Debug)]
pub(super) struct PerShard<T>(pub(super) Vec<T>);

macro_rules! indexed {
    ($list:ident by $index:ident) => {
        #[expect(
            clippy::indexing_slicing,
            reason = "an index counts the list of the plan that made it, and leaves it never"
        )]
        const _: () = {
            impl<T> Index<$index> for $list<T> {
                type Output = T;

                fn index(&self, at: $index) -> &T {
                    &self.0[at.0]
                }
            }

            impl<T> IndexMut<$index> for $list<T> {
                fn index_mut(&mut self, at: $index) -> &mut T {
                    &mut self.0[at.0]
                }
            }
        };
    };
}

indexed!(PerNode by NodeIndex);
indexed!(PerShard by ShardIndex);

/// Who may hold what.
pub(super) trait Rule {
    /// Whether `taker` may hold a copy of a shard that these hold, once `leaving` does no more.
    fn allows(
        &self,
        shard: ShardIndex,
        holders: &[NodeIndex],
        leaving: Option<NodeIndex>,
        taker: NodeIndex,
    ) -> bool;

    /// Nodes in the order in which a shard likes them; all that may ever hold it, perhaps others,
    /// perhaps more than once.
    fn preference(&self, shard: ShardIndex) -> Box<dyn Iterator<Item = NodeIndex> + '_>;

    /// How far down in that order a node is.
    fn distance(&self, shard: ShardIndex, node: NodeIndex) -> u64;
}

/// How much a node should and may hold.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bound {
    /// What is fair.
    pub(super) share: Share,
    /// Thousandths by which it may miss its share before something is done.
    pub(super) tolerance_permille: u64,
    /// What it never exceeds.
    pub(super) most: u64,
}

/// A shard for which there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoRoom(pub(super) ShardIndex);

/// See the module.
pub(super) struct Balance<'a, R> {
    rule: &'a R,
    /// How many copies each shard has.
    copies: usize,
    bounds: PerNode<Bound>,
    holders: PerShard<Vec<NodeIndex>>,
    held: PerNode<BTreeSet<ShardIndex>>,
    /// Who was kept.
    kept: Vec<(ShardIndex, NodeIndex)>,
}

impl<'a, R: Rule> Balance<'a, R> {
    pub(super) fn new(rule: &'a R, copies: usize, bounds: PerNode<Bound>, shards: usize) -> Self {
        let nodes = bounds.0.len();
        Self {
            rule,
            copies,
            bounds,
            holders: PerShard(vec![Vec::new(); shards]),
            held: PerNode(vec![BTreeSet::new(); nodes]),
            kept: Vec::new(),
        }
    }

    /// Leaves a copy where it is, if it may be there and is not one too many. To be called before
    /// anything is spread, for the best place of a shard first.
    pub(super) fn keep(&mut self, shard: ShardIndex, node: NodeIndex) {
        let holders = &self.holders[shard];
        if holders.len() < self.copies && self.rule.allows(shard, holders, None, node) {
            self.add(shard, node);
            self.kept.push((shard, node));
        }
    }

    /// Gives every shard its copies within the bounds.
    ///
    /// # Errors
    /// There is a shard for which no place can be made.
    pub(super) fn spread(&mut self) -> Result<(), NoRoom> {
        self.place()?;
        self.feed();
        self.shed();
        self.place()?;
        self.take_back();
        Ok(())
    }

    /// Who holds each shard, in order of the nodes.
    pub(super) fn into_holders(self) -> PerShard<Vec<NodeIndex>> {
        let mut holders = self.holders;
        for nodes in &mut holders.0 {
            nodes.sort_unstable();
        }
        holders
    }

    fn shards(&self) -> impl Iterator<Item = ShardIndex> + use<R> {
        (0..self.holders.0.len()).map(ShardIndex)
    }

    fn nodes(&self) -> impl Iterator<Item = NodeIndex> + use<R> {
        (0..self.held.0.len()).map(NodeIndex)
    }

    fn load(&self, node: NodeIndex) -> u64 {
        self.held[node].len() as u64
    }

    fn is_hungry(&self, node: NodeIndex) -> bool {
        let bound = self.bounds[node];
        bound
            .share
            .misses(self.load(node), bound.tolerance_permille)
    }

    fn is_within_share(&self, node: NodeIndex) -> bool {
        self.load(node)
            < self.bounds[node]
                .share
                .ceiling()
                .min(self.bounds[node].most)
    }

    fn has_room(&self, node: NodeIndex) -> bool {
        self.load(node) < self.bounds[node].most
    }

    fn add(&mut self, shard: ShardIndex, node: NodeIndex) {
        self.holders[shard].push(node);
        self.held[node].insert(shard);
    }

    fn remove(&mut self, shard: ShardIndex, node: NodeIndex) {
        self.holders[shard].retain(|holder| *holder != node);
        self.held[node].remove(&shard);
    }

    /// Finds a place for every copy that has none.
    fn place(&mut self) -> Result<(), NoRoom> {
        for shard in self.shards() {
            while self.holders[shard].len() < self.copies {
                match self.first_with_room(shard) {
                    Some(node) => self.add(shard, node),
                    None => self.make_room(shard).ok_or(NoRoom(shard))?,
                }
            }
        }
        Ok(())
    }

    /// The node that a shard likes best: among those that are short, else that have not their
    /// share, else that have room at all.
    fn first_with_room(&self, shard: ShardIndex) -> Option<NodeIndex> {
        let holders = &self.holders[shard];
        let first = |wants: &dyn Fn(NodeIndex) -> bool| {
            let suits =
                |node: &NodeIndex| wants(*node) && self.rule.allows(shard, holders, None, *node);
            let mut near = self.rule.preference(shard).take(WALK_MAX);
            near.find(suits).or_else(|| {
                let by_distance = |node: &NodeIndex| (self.rule.distance(shard, *node), *node);
                self.nodes().filter(suits).min_by_key(by_distance)
            })
        };
        first(&|node| self.is_hungry(node))
            .or_else(|| first(&|node| self.bounds[node].share.has_room(self.load(node))))
            .or_else(|| first(&|node| self.is_within_share(node)))
            .or_else(|| first(&|node| self.has_room(node)))
    }

    /// Places a copy with a node that has no room, having moved one of its own elsewhere, and so
    /// on: the shortest such chain.
    fn make_room(&mut self, shard: ShardIndex) -> Option<()> {
        let nodes = self.held.0.len();
        // Whose copy of which shard a node would take; `None` within for the first of a chain.
        let mut reached: PerNode<Option<Option<(NodeIndex, ShardIndex)>>> =
            PerNode(vec![None; nodes]);
        let mut waiting = VecDeque::new();
        for node in self.nodes() {
            if self.rule.allows(shard, &self.holders[shard], None, node) {
                reached[node] = Some(None);
                waiting.push_back(node);
            }
        }
        let mut end = loop {
            let node = waiting.pop_front()?;
            if self.has_room(node) {
                break node;
            }
            for moved in &self.held[node] {
                let holders = &self.holders[*moved];
                for taker in self.nodes() {
                    if reached[taker].is_none()
                        && self.rule.allows(*moved, holders, Some(node), taker)
                    {
                        reached[taker] = Some(Some((node, *moved)));
                        waiting.push_back(taker);
                    }
                }
            }
        };
        while let Some(Some((giver, moved))) = reached[end] {
            self.remove(moved, giver);
            self.add(moved, end);
            end = giver;
        }
        self.add(shard, end);
        Some(())
    }

    /// Brings nodes that are short to their share, from those that have most beyond theirs.
    fn feed(&mut self) {
        let hungry: Vec<NodeIndex> = self.nodes().filter(|node| self.is_hungry(*node)).collect();
        for node in hungry {
            while self.bounds[node].share.has_room(self.load(node)) && self.feed_one(node).is_some()
            {
            }
        }
    }

    /// Takes one copy for a node: from one that has more than its share, through a shortest chain.
    fn feed_one(&mut self, node: NodeIndex) -> Option<()> {
        let nodes = self.held.0.len();
        // Who takes a node's copy of which shard.
        let mut reached: PerNode<Option<(NodeIndex, ShardIndex)>> = PerNode(vec![None; nodes]);
        let mut level = vec![node];
        loop {
            let mut next: Vec<NodeIndex> = Vec::new();
            for taker in level {
                for (giver, moved) in self.gifts(taker) {
                    if giver != node && reached[giver].is_none() {
                        reached[giver] = Some((taker, moved));
                        next.push(giver);
                    }
                }
            }
            if next.is_empty() {
                return None;
            }
            let excess = |node: NodeIndex| (self.bounds[node].share, self.load(node));
            let mut rich = next.iter().copied().filter(|node| {
                let (share, load) = excess(*node);
                share.is_exceeded(load)
            });
            if let Some(first) = rich.next() {
                // The richest, and of those the first.
                let mut giver = rich.fold(first, |best, node| {
                    let order = Share::compare_excess(excess(node), excess(best));
                    if order.is_gt() { node } else { best }
                });
                while let Some((taker, moved)) = reached[giver] {
                    self.remove(moved, giver);
                    self.add(moved, taker);
                    giver = taker;
                }
                return Some(());
            }
            level = next;
        }
    }

    /// What each other node could give to one: of all its shards that which likes the taker best.
    fn gifts(&self, taker: NodeIndex) -> Vec<(NodeIndex, ShardIndex)> {
        let mut best: PerNode<Option<(u64, ShardIndex)>> = PerNode(vec![None; self.held.0.len()]);
        for shard in self.shards() {
            let holders = &self.holders[shard];
            if holders.contains(&taker) {
                continue;
            }
            let mut distance = None;
            for giver in holders {
                if self.rule.allows(shard, holders, Some(*giver), taker) {
                    let distance =
                        *distance.get_or_insert_with(|| self.rule.distance(shard, taker));
                    if best[*giver].is_none_or(|known| (distance, shard) < known) {
                        best[*giver] = Some((distance, shard));
                    }
                }
            }
        }
        let gifts = self
            .nodes()
            .filter_map(|giver| Some((giver, best[giver]?.1)));
        gifts.collect()
    }

    /// Takes from nodes what is beyond their bounds: first the shards that like them least.
    fn shed(&mut self) {
        for node in self.nodes() {
            while self.load(node) > self.bounds[node].most {
                let by_distance = |shard: &ShardIndex| (self.rule.distance(*shard, node), *shard);
                let Some(shard) = self.held[node].iter().copied().max_by_key(by_distance) else {
                    break;
                };
                self.remove(shard, node);
            }
        }
    }

    /// Takes back what need not have moved, now that all is known.
    fn take_back(&mut self) {
        for (shard, node) in mem::take(&mut self.kept) {
            if self.held[node].contains(&shard) || !self.has_room(node) {
                continue;
            }
            let spares = |taker: &NodeIndex| {
                let left = self.load(*taker) - 1;
                !self.bounds[*taker].share.has_room(left)
            };
            let holders = &self.holders[shard];
            let mut takers = holders.iter().copied().filter(spares);
            let back = takers.find(|taker| self.rule.allows(shard, holders, Some(*taker), node));
            if let Some(taker) = back {
                self.remove(shard, taker);
                self.add(shard, node);
            }
        }
    }
}

//! The cluster map: kept as system data of shard 0, changed by comparing and replacing it there,
//! told on with the news, and reviewed by whoever leads that shard (`docs/design/0018`).
//!
//! The log of shard 0 is the authority; what a node knows of the map may be old. That is safe: each
//! shard's own log says who its members are, and steps towards an old target are steps that could
//! have been taken before.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flux_cluster::placement::{Member, ShardPlacement, Zone};
use flux_cluster::registry::{MapHint, Rank};
use flux_cluster::{ChangeError, ClusterMap, MapError, MapProblem, Sight, SlotMap, Wishes};
use flux_env::Instant;
use flux_raft::{Replaced, Shard};
use flux_types::{Error, ErrorCode, NodeId, NodeNumber, Outcome, ShardId};

use super::Peers;
use super::news::{Card, Decision, Standing};

/// Under this name shard 0 keeps the map.
const MAP_NAME: &[u8] = b"cluster/map";
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(500);
/// How long one change may take.
const LIMIT: Duration = Duration::from_secs(5);
/// How often a change is tried again because somebody else made one meanwhile.
const ATTEMPTS: usize = 8;
/// Silence of a node that has been heard of but is not well: more than none.
const UNWELL: Duration = Duration::from_millis(1);

/// Why a map was not changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MapChangeError {
    /// It must not be as it would be.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// What is kept is no map.
    #[error("what is kept as the cluster map cannot be read: {0}")]
    Map(#[from] MapError),
    /// It could not be read or written.
    #[error("{}", .0.message)]
    Shard(Error),
}

/// A map that was replaced, and the one that was put there.
#[derive(Debug)]
pub(crate) struct Changed {
    pub(crate) before: ClusterMap,
    pub(crate) after: ClusterMap,
}

impl MapChangeError {
    /// What a caller is told, the outcome included.
    pub(crate) fn to_error(&self) -> Error {
        match self {
            Self::Change(error) => Error::not_done(code_of(error), error.to_string()),
            Self::Map(_) => Error::not_done(ErrorCode::Internal, self.to_string()),
            Self::Shard(error) => error.clone(),
        }
    }
}

const fn code_of(error: &ChangeError) -> ErrorCode {
    match error {
        ChangeError::UnknownNode(_) | ChangeError::UnknownShard(_) => ErrorCode::Invalid,
        ChangeError::NotItsNode { .. }
        | ChangeError::SplitUnderWay(_)
        | ChangeError::Problem(_) => ErrorCode::Conflict,
    }
}

impl Peers {
    fn map_shard(&self) -> Result<Shard, MapChangeError> {
        self.shard(0).ok_or_else(|| {
            let message = "this node does not serve its shards now";
            MapChangeError::Shard(Error::not_done(ErrorCode::Unavailable, message))
        })
    }

    /// The map as shard 0 has it, and its text.
    async fn stored_map(&self, deadline: Instant) -> Result<Option<Bytes>, MapChangeError> {
        // Nothing is equal to this, so that it only tells what is there.
        let (never, name) = (Some(Bytes::new()), Bytes::from_static(MAP_NAME));
        let shard = self.map_shard()?;
        let asked = shard.replace_system(name, never, Bytes::new(), deadline);
        match asked.await.map_err(MapChangeError::Shard)? {
            Replaced::Present(text) => Ok(text),
            Replaced::Done => Ok(None),
        }
    }

    /// Changes the map, from whatever node.
    ///
    /// # Errors
    /// See [`MapChangeError`].
    ///
    /// # Cancellation
    /// Safe to drop; the change may then have been made.
    pub(crate) async fn change_map(
        &self,
        change: impl Fn(&ClusterMap) -> Result<ClusterMap, ChangeError>,
    ) -> Result<Changed, MapChangeError> {
        let deadline = self.clock.now() + LIMIT;
        let mut present = self.stored_map(deadline).await?;
        // A cluster that has only just begun gets its map within moments.
        while present.is_none() && self.clock.now() + PAUSE < deadline {
            tokio::time::sleep(PAUSE).await;
            present = self.stored_map(deadline).await?;
        }
        for _ in 0..ATTEMPTS {
            let Some(text) = present else {
                let message = "the cluster has no map yet: its first leader is about to make it";
                let error = Error::not_done(ErrorCode::Unavailable, message);
                return Err(MapChangeError::Shard(error));
            };
            let before = ClusterMap::decode(&text)?;
            let after = change(&before)?;
            match self.replace_map(Some(text), &after, deadline).await? {
                Replaced::Done => return Ok(Changed { before, after }),
                Replaced::Present(other) => present = other,
            }
        }
        let message = "the cluster map is being changed by others all the time";
        let error = Error::not_done(ErrorCode::Busy, message);
        Err(MapChangeError::Shard(error))
    }

    async fn replace_map(
        &self,
        expected: Option<Bytes>,
        next: &ClusterMap,
        deadline: Instant,
    ) -> Result<Replaced, MapChangeError> {
        let text = Bytes::from(next.encode()?);
        let (shard, name) = (self.map_shard()?, Bytes::from_static(MAP_NAME));
        let replacing = shard.replace_system(name, expected, text.clone(), deadline);
        let replaced = replacing.await.map_err(MapChangeError::Shard)?;
        if replaced == Replaced::Done {
            self.book.hear_map(&text);
        }
        Ok(replaced)
    }

    /// The first map: every shard where it was founded.
    fn first_map(&self) -> Result<Option<ClusterMap>, MapProblem> {
        let Some(decision) = self.book.decision() else {
            return Ok(None);
        };
        let cards: BTreeMap<u32, Card> = self
            .cards()
            .into_iter()
            .map(|(card, ..)| (card.node.physical(), card))
            .collect();
        let numbers = decision.voters.iter().flatten();
        let numbers: BTreeSet<u32> = numbers.map(|voter| voter.physical()).collect();
        let member = |number: u32| match cards.get(&number) {
            Some(card) => Member {
                weight: card.weight,
                zone: Zone::new(&card.zone).ok(),
                ..Member::new(NodeNumber::new(number))
            },
            None => Member::new(NodeNumber::new(number)),
        };
        let members = numbers.into_iter().map(member).collect();
        let present = decision.voters.iter().map(|voters| {
            let mut replicas: Vec<_> = voters
                .iter()
                .map(|voter| NodeNumber::new(voter.physical()))
                .collect();
            replicas.sort_unstable();
            ShardPlacement {
                replicas,
                leader: None,
            }
        });
        let present: Vec<_> = present.collect();
        let replicas = present.first().map_or(1, |placed| placed.replicas.len());
        let slots = SlotMap::even(decision.shard_count());
        let slots = slots.map_err(|_| MapProblem::ShardCount {
            given: present.len(),
            owners: 0,
        })?;
        ClusterMap::found(members, replicas, slots, present).map(Some)
    }

    /// This node and all others.
    fn cards(&self) -> Vec<(Card, Standing, bool)> {
        let mut cards = self.book.others();
        cards.push((self.book.own(), Standing::Member, true));
        cards
    }

    /// What is known of every node. Nobody has been silent for longer than this node has listened
    /// in this office.
    fn sights(&self, since: Instant) -> Vec<Sight> {
        let now = self.clock.now();
        let ages = self.book.heard_ages();
        let longest = now.saturating_since(since);
        let sight = |(card, standing, is_alive): (Card, Standing, bool)| {
            let age = ages.get(&card.node.physical()).copied();
            let silence = age.map_or(longest, |age| age.min(longest));
            Sight {
                node: card.node,
                weight: card.weight,
                zone: Zone::new(&card.zone).ok(),
                silent_for: if is_alive && standing == Standing::Member {
                    Duration::ZERO
                } else {
                    silence.max(UNWELL)
                },
            }
        };
        self.cards().into_iter().map(sight).collect()
    }

    /// On whom shards are, if that is known of every one, as its committed members.
    fn carrying(&self) -> Option<BTreeSet<NodeNumber>> {
        let mut carrying = BTreeSet::new();
        let leaders = self.leaders();
        let is_whole = leaders.len() == self.shards().len();
        for hint in leaders {
            let carriers = hint.carriers?;
            carriers.committed_at?;
            let learners = carriers.learners.iter().map(|(learner, _)| learner);
            let all = carriers.voters.iter().chain(learners);
            carrying.extend(all.map(|node| NodeNumber::new(node.physical())));
        }
        is_whole.then_some(carrying)
    }

    /// The numbers of every shard's voters, and whether its leader says so: else those that are to
    /// be, or that it began with.
    pub(crate) fn voters(&self, decision: &Decision) -> Vec<(BTreeSet<u32>, bool)> {
        let map = self.book.map();
        // Those that were split off since are in the map, or in the news of who leads them.
        let later = map.as_ref().map_or(0, |map| map.shards().len());
        let led = self.book.hinted().map_or(0, |last| last.get() as usize + 1);
        let none = Vec::new();
        let first = decision.voters.iter().chain(std::iter::repeat(&none));
        let first = first.take(decision.voters.len().max(later).max(led));
        let of = |(shard, first): (u32, &Vec<NodeId>)| {
            let shard = ShardId::new(shard);
            let said = self.book.hint(shard).and_then(|hint| hint.carriers);
            if let Some(carriers) = said {
                let voters = carriers.voters.iter();
                return (voters.map(|voter| voter.physical()).collect(), true);
            }
            let planned = map.as_ref().and_then(|map| map.shard(shard));
            let voters = match planned {
                Some(planned) => planned.replicas.iter().map(|node| node.get()).collect(),
                None => first.iter().map(|voter| voter.physical()).collect(),
            };
            (voters, false)
        };
        (0..).zip(first).map(of).collect()
    }

    /// Whether a shard has a leader that this node knows of, so that it is there.
    fn is_led(&self, shard: ShardId) -> bool {
        let own = self.shard(shard.get());
        let here = own.is_some_and(|shard| shard.members().leader.is_some());
        here || self.book.hint(shard).is_some()
    }

    /// The nodes that are to carry a shard, as far as this node knows.
    pub(crate) fn planned(&self, shard: ShardId) -> Option<ShardPlacement> {
        self.book.map()?.shard(shard).cloned()
    }
}

/// What this node shows of the map in the registry while it leads shard 0.
#[derive(Debug, Default)]
struct Shown {
    rank: Rank,
    leaders: Vec<Option<NodeNumber>>,
}

impl Shown {
    /// What to show now, if it is not what was shown last.
    fn next(
        &mut self,
        (version, term): (u64, u64),
        leaders: Vec<Option<NodeNumber>>,
    ) -> Option<Rank> {
        let last = self.rank;
        if (last.version, last.term) == (version, term) && self.leaders == leaders {
            return None;
        }
        let count = if last.term == term { last.count } else { 0 };
        self.rank = Rank {
            version,
            term,
            count: count + 1,
        };
        self.leaders = leaders;
        Some(self.rank)
    }
}

impl Peers {
    /// Who leads each shard, as far as this node knows.
    fn led(&self) -> Vec<Option<NodeNumber>> {
        let mut led = vec![None; self.shards().len()];
        for hint in self.leaders() {
            if let Some(place) = led.get_mut(hint.shard.get() as usize) {
                *place = Some(NodeNumber::new(hint.leader.physical()));
            }
        }
        led
    }

    /// Tells the registry of the map, which this node looks after.
    fn show(&self, shard: &Shard, shown: &mut Shown) {
        let (members, own) = (shard.members(), self.book.node());
        let Some(map) = self.book.map().filter(|_| members.leader == Some(own)) else {
            return;
        };
        let leaders = self.led();
        let at = (map.version(), members.term.get());
        let Some(rank) = shown.next(at, leaders.clone()) else {
            return;
        };
        self.shown.send_replace(Some(Arc::new(MapHint {
            cluster: self.book.cluster(),
            rank,
            controller: NodeNumber::new(own.physical()),
            leaders,
            map,
        })));
    }

    /// Another node looks after the map, or none.
    fn show_nothing(&self) {
        self.shown.send_if_modified(|shown| shown.take().is_some());
    }
}

/// Keeps the map: takes it from shard 0 if that is here, and makes the next one if this node leads
/// that shard, until the node ends.
///
/// # Cancellation
/// Safe to drop; a change under way may be made.
pub(super) async fn keep(peers: &Arc<Peers>) {
    let mut leads_since = None;
    let mut shown = Shown::default();
    loop {
        tokio::select! {
            () = peers.stop.cancelled() => return,
            () = tokio::time::sleep(PAUSE) => {}
        }
        let Some(shard) = peers.shard(0) else {
            continue;
        };
        // What is applied is committed.
        if shard.stale_now().is_some()
            && let Some(text) = shard.store().system(MAP_NAME)
        {
            peers.book.hear_map(&text);
        }
        if !shard.is_writable() {
            leads_since = None;
            peers.show_nothing();
            continue;
        }
        let since = *leads_since.get_or_insert_with(|| peers.clock.now());
        match review(peers, &shard, since).await {
            // Only now: what is known of the map may be what another leader had before.
            Ok(()) => peers.show(&shard, &mut shown),
            // Somebody else leads by now, or the node is busy: the next look tells.
            Err(MapChangeError::Shard(error)) if error.outcome != Outcome::Done => {
                tracing::debug!(error = error.message.as_ref(), "cluster map not reviewed");
            }
            Err(error) => tracing::warn!(%error, "the cluster map cannot be changed"),
        }
    }
}

/// Makes the first map, or the next one if the nodes that are there call for it.
async fn review(peers: &Peers, shard: &Shard, since: Instant) -> Result<(), MapChangeError> {
    let deadline = peers.clock.now() + LIMIT;
    let present = shard.store().system(MAP_NAME);
    let next = match &present {
        None => peers.first_map().map_err(ChangeError::from)?,
        Some(text) => {
            let map = ClusterMap::decode(text)?;
            if let Some((_, slots)) = map.splitting()
                && peers.is_led(ShardId::new(slots.shard_count() - 1))
            {
                map.split_done()?
            } else {
                let carrying = peers.carrying();
                let sights = peers.sights(since);
                let wishes = Wishes {
                    patience: peers.replace_after,
                    replicas: peers.replicas,
                };
                map.reviewed(&sights, carrying.as_ref(), wishes)?
            }
        }
    };
    if let Some(next) = next {
        let version = next.version();
        let replaced = peers.replace_map(present, &next, deadline).await?;
        if replaced == Replaced::Done {
            tracing::info!(version, "the nodes call for another cluster map");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_is_shown_again_when_it_or_a_leader_changes_and_counts_up_within_a_term() {
        let led = |leader| vec![Some(NodeNumber::new(leader)), None];
        let rank = |version, term, count| Rank {
            version,
            term,
            count,
        };
        let mut shown = Shown::default();
        assert_eq!(shown.next((3, 2), led(1)), Some(rank(3, 2, 1)));
        assert_eq!(shown.next((3, 2), led(1)), None);
        assert_eq!(shown.next((3, 2), led(2)), Some(rank(3, 2, 2)));
        assert_eq!(shown.next((4, 2), led(2)), Some(rank(4, 2, 3)));
        // It did not lead meanwhile.
        assert_eq!(shown.next((4, 5), led(2)), Some(rank(4, 5, 1)));
    }
}

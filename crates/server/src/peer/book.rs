//! What this node knows of itself and the others: cards, who has been heard of lately, who is said
//! to lead. Decides who may talk to this node.
//!
//! Lock order: the book's lock is a leaf.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flux_cluster::ClusterMap;
use flux_env::{Clock, Instant};
use flux_types::{ClusterId, NodeId, ShardId, Term};
use parking_lot::Mutex;

use super::handshake::{Greeting, Lane, Welcome};
use super::news::{Card, Decision, Hint, News, Standing};

/// How long a node counts as there after it was heard.
const ALIVE: Duration = Duration::from_millis(1500);

/// See the module.
pub(crate) struct Book {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

struct State {
    /// What this node tells of itself; leaders and cards are filled in when it is told.
    own: News,
    /// The newest life of each node, by its number.
    cards: BTreeMap<u32, Known>,
    hints: BTreeMap<ShardId, Hint>,
    /// The newest cluster map that is known, and as it was told.
    map: Option<(Arc<ClusterMap>, Bytes)>,
    /// Whether cards have changed since they were last kept.
    is_changed: bool,
    /// Whether the map has.
    is_map_changed: bool,
}

#[derive(Clone)]
struct Known {
    card: Card,
    heard: Option<Instant>,
    standing: Standing,
    /// How far its clock is ahead of this node's at least, in milliseconds.
    clock_offset_ms: Option<i64>,
    /// Whether it says that its clock is too far from the others'.
    is_clock_far: bool,
    /// Whether it says that it is about to go.
    is_leaving: bool,
}

impl fmt::Debug for Book {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Book").finish_non_exhaustive()
    }
}

impl Known {
    fn is_alive(&self, now: Instant) -> bool {
        self.heard
            .is_some_and(|heard| now.saturating_since(heard) < ALIVE)
    }
}

impl Book {
    pub(crate) fn new(clock: Arc<dyn Clock>, own: News, cards: Vec<Card>) -> Self {
        let known = |card: Card| Known {
            card,
            heard: None,
            standing: Standing::Member,
            clock_offset_ms: None,
            is_clock_far: false,
            is_leaving: false,
        };
        let number = own.card.node.physical();
        let cards = cards
            .into_iter()
            .filter(|card| card.node.physical() != number)
            .map(|card| (card.node.physical(), known(card)))
            .collect();
        Self {
            clock,
            state: Mutex::new(State {
                own,
                cards,
                hints: BTreeMap::new(),
                map: None,
                is_changed: false,
                is_map_changed: false,
            }),
        }
    }

    pub(crate) fn own(&self) -> Card {
        self.state.lock().own.card.clone()
    }

    pub(crate) fn node(&self) -> NodeId {
        self.state.lock().own.card.node
    }

    /// The cluster of this node; 0: none yet.
    pub(crate) fn cluster(&self) -> ClusterId {
        let state = self.state.lock();
        let decision = state.own.decision.as_ref();
        decision.map_or(ClusterId::new(0), |decision| decision.cluster)
    }

    pub(crate) fn decision(&self) -> Option<Decision> {
        self.state.lock().own.decision.clone()
    }

    /// Changes what this node tells of itself.
    pub(crate) fn tell(&self, change: impl FnOnce(&mut News)) {
        change(&mut self.state.lock().own);
    }

    /// What this node tells, with who leads which shard as far as it knows by itself.
    pub(crate) fn news(&self, leaders: Vec<Hint>) -> News {
        let (now, time_ms) = (self.clock.now(), self.clock.unix_millis());
        let state = self.state.lock();
        News {
            leaders,
            time_ms,
            cards: state
                .cards
                .values()
                .filter(|known| known.is_alive(now))
                .map(|known| known.card.clone())
                .collect(),
            ..state.own.clone()
        }
    }

    /// Takes in what another node tells.
    pub(crate) fn hear(&self, news: &News) {
        let now = self.clock.now();
        let mut state = self.state.lock();
        let own = state.own.card.node;
        let is_of_ours = match (&state.own.decision, &news.decision) {
            (Some(own), Some(other)) => own.cluster == other.cluster,
            (None, _) | (_, None) => true,
        };
        if news.card.node.physical() == own.physical() || !is_of_ours {
            return;
        }
        state.note(&news.card, Some(now), news.standing);
        if let Some(known) = state.cards.get_mut(&news.card.node.physical())
            && known.card.node == news.card.node
        {
            known.is_clock_far = news.is_clock_far;
            known.is_leaving = news.is_leaving;
        }
        for card in &news.cards {
            if card.node.physical() != own.physical() {
                state.note(card, None, Standing::Member);
            }
        }
        for hint in &news.leaders {
            let is_of_leader = hint.leader == news.card.node;
            if is_newer(state.hints.get(&hint.shard), hint, is_of_leader) {
                state.hints.insert(hint.shard, hint.clone());
            }
        }
        drop(state);
        if let Some(map) = &news.map {
            self.hear_map(map);
        }
    }

    /// Takes in a cluster map, if it is newer than the one that is known. What is no map, or one of
    /// another version of this program, is worth nothing here.
    pub(crate) fn hear_map(&self, text: &Bytes) {
        let is_known = |(_, known): &(_, Bytes)| known == text;
        if self.state.lock().map.as_ref().is_some_and(is_known) {
            return;
        }
        let Ok(map) = ClusterMap::decode(text) else {
            return;
        };
        let version = map.version();
        let mut state = self.state.lock();
        // Only now: another may have been heard meanwhile.
        if version <= state.own.map_version {
            return;
        }
        state.own.map_version = version;
        state.map = Some((Arc::new(map), text.clone()));
        state.is_map_changed = true;
        drop(state);
        tracing::info!(version, "cluster map changed");
    }

    /// The newest cluster map that is known.
    pub(crate) fn map(&self) -> Option<Arc<ClusterMap>> {
        let state = self.state.lock();
        state.map.as_ref().map(|(map, _)| Arc::clone(map))
    }

    /// The cluster map for somebody who knows that of this version, if it is newer.
    pub(crate) fn map_for(&self, version: u64) -> Option<Bytes> {
        let state = self.state.lock();
        let (map, text) = state.map.as_ref()?;
        (version < map.version()).then(|| text.clone())
    }

    /// Takes in how far another node's clock is ahead of this one's, by an answer that told `time_ms`
    /// and was asked for and came at these times of this node.
    pub(crate) fn note_clock(&self, node: NodeId, time_ms: u64, asked_ms: u64, came_ms: u64) {
        let signed = |millis: u64| i64::try_from(millis).unwrap_or(i64::MAX);
        // Between the two it was told; nothing more is known.
        let (earliest, latest) = (
            signed(time_ms).saturating_sub(signed(came_ms)),
            signed(time_ms).saturating_sub(signed(asked_ms)),
        );
        let offset = if 0 < earliest {
            earliest
        } else {
            latest.min(0)
        };
        let mut state = self.state.lock();
        if let Some(known) = state.cards.get_mut(&node.physical())
            && known.card.node == node
        {
            known.clock_offset_ms = Some(offset);
        }
    }

    /// How far the clocks of those who are there are ahead of this node's, in milliseconds, and how
    /// many nodes there are, this one included.
    pub(crate) fn clock_offsets(&self) -> (Vec<i64>, usize) {
        let now = self.clock.now();
        let state = self.state.lock();
        let alive = state.cards.values().filter(|known| known.is_alive(now));
        let offsets = alive.filter_map(|known| known.clock_offset_ms).collect();
        (offsets, state.cards.len() + 1)
    }

    /// Whether another node has said nothing against its own clock.
    pub(crate) fn is_clock_near(&self, node: NodeId) -> bool {
        let state = self.state.lock();
        let known = state.cards.get(&node.physical());
        known.is_some_and(|known| known.card.node == node && !known.is_clock_far)
    }

    /// Whether another node has said that it is about to go.
    pub(crate) fn is_leaving(&self, node: NodeId) -> bool {
        let state = self.state.lock();
        let known = state.cards.get(&node.physical());
        known.is_some_and(|known| known.card.node == node && known.is_leaving)
    }

    /// Where another node is reached.
    pub(crate) fn address(&self, node: NodeId) -> Option<String> {
        let state = self.state.lock();
        let known = state.cards.get(&node.physical())?;
        (known.card.node == node).then(|| known.card.peer_address())
    }

    /// The newest life of a node that has been heard of lately and is well.
    pub(crate) fn living(&self, physical: u32) -> Option<NodeId> {
        let now = self.clock.now();
        let state = self.state.lock();
        let known = state.cards.get(&physical)?;
        let is_well = known.is_alive(now) && known.standing == Standing::Member;
        is_well.then_some(known.card.node)
    }

    /// The lives of other nodes that have been heard of lately and are well.
    pub(crate) fn all_living(&self) -> BTreeSet<NodeId> {
        let now = self.clock.now();
        let state = self.state.lock();
        let well = |known: &&Known| known.is_alive(now) && known.standing == Standing::Member;
        let living = state.cards.values().filter(well);
        living.map(|known| known.card.node).collect()
    }

    /// Everybody else, and whether each has been heard of lately.
    pub(crate) fn others(&self) -> Vec<(Card, Standing, bool)> {
        let now = self.clock.now();
        let state = self.state.lock();
        let tell = |known: &Known| (known.card.clone(), known.standing, known.is_alive(now));
        state.cards.values().map(tell).collect()
    }

    /// How long ago each of the others was heard of by itself, by its number.
    pub(crate) fn heard_ages(&self) -> BTreeMap<u32, Duration> {
        let now = self.clock.now();
        let state = self.state.lock();
        let cards = state.cards.iter();
        cards
            .filter_map(|(number, known)| Some((*number, now.saturating_since(known.heard?))))
            .collect()
    }

    /// Who is said to lead a shard in at least this term, if it is another node.
    pub(crate) fn leader(&self, shard: ShardId, term: Term) -> Option<(NodeId, Term)> {
        let state = self.state.lock();
        let hint = state.hints.get(&shard)?;
        let is_other = term <= hint.term && hint.leader != state.own.card.node;
        is_other.then_some((hint.leader, hint.term))
    }

    /// The newest that is said of a shard.
    pub(crate) fn hint(&self, shard: ShardId) -> Option<Hint> {
        self.state.lock().hints.get(&shard).cloned()
    }

    /// The last shard of which anything is said.
    pub(crate) fn hinted(&self) -> Option<ShardId> {
        let state = self.state.lock();
        state.hints.last_key_value().map(|(shard, _)| *shard)
    }

    /// The cards, if they have changed since this was last asked.
    pub(crate) fn changed_cards(&self) -> Option<Vec<Card>> {
        let mut state = self.state.lock();
        if !std::mem::take(&mut state.is_changed) {
            return None;
        }
        Some(
            state
                .cards
                .values()
                .map(|known| known.card.clone())
                .collect(),
        )
    }

    /// Whether this node is the life of it that somebody looks for.
    ///
    /// # Errors
    /// That it is another one.
    pub(crate) fn check_life(&self, wanted: NodeId) -> Result<(), String> {
        let own = self.node();
        if wanted == own {
            return Ok(());
        }
        Err(format!(
            "this is node {} in another life than the one that was looked for",
            own.physical()
        ))
    }

    /// The cluster map, if it has changed since this was last asked.
    pub(crate) fn changed_map(&self) -> Option<Bytes> {
        let mut state = self.state.lock();
        if !std::mem::take(&mut state.is_map_changed) {
            return None;
        }
        state.map.as_ref().map(|(_, text)| text.clone())
    }

    /// Whether a caller may talk to this node, and who this node is.
    ///
    /// # Errors
    /// Why not, in words for an operator.
    pub(crate) fn judge(&self, greeting: &Greeting) -> Result<Welcome, String> {
        if greeting.wanted.get() != 0 {
            self.check_life(greeting.wanted)?;
        }
        let (own, cluster) = (self.node(), self.cluster());
        let none = ClusterId::new(0);
        if greeting.cluster != none && cluster != none && greeting.cluster != cluster {
            return Err(format!(
                "this node belongs to cluster {:016x}, the caller to {:016x}",
                cluster.get(),
                greeting.cluster.get()
            ));
        }
        if greeting.lane != Lane::Control && (greeting.cluster != cluster || cluster == none) {
            return Err("the two nodes do not belong to one cluster yet".to_owned());
        }
        Ok(Welcome { cluster, node: own })
    }
}

/// Whether a hint replaces what is known. Of one term the leader itself knows best who carries the
/// shard; others repeat what it said a while ago.
fn is_newer(known: Option<&Hint>, hint: &Hint, is_of_leader: bool) -> bool {
    let Some(known) = known else { return true };
    if known.term != hint.term {
        return known.term < hint.term;
    }
    let at = |hint: &Hint| hint.carriers.as_ref().map(|carriers| carriers.committed_at);
    hint.carriers.is_some() && (is_of_leader || at(known) < at(hint))
}

impl State {
    fn note(&mut self, card: &Card, heard: Option<Instant>, standing: Standing) {
        let number = card.node.physical();
        let Some(known) = self.cards.get_mut(&number) else {
            let known = Known {
                card: card.clone(),
                heard,
                standing,
                clock_offset_ms: None,
                is_clock_far: false,
                is_leaving: false,
            };
            self.cards.insert(number, known);
            self.is_changed = true;
            return;
        };
        if card.stamp < known.card.stamp {
            return;
        }
        if known.card != *card {
            self.is_changed = true;
            if known.card.node != card.node {
                known.heard = None;
                (known.clock_offset_ms, known.is_clock_far) = (None, false);
                known.is_leaving = false;
            }
            known.card = card.clone();
        }
        if heard.is_some() {
            known.heard = heard;
            known.standing = standing;
        }
    }
}

#[cfg(test)]
mod tests {
    use flux_env::SimClock;

    use super::*;

    fn card(physical: u32, incarnation: u32, stamp: u64) -> Card {
        Card {
            node: NodeId::of_incarnation(physical, incarnation),
            stamp,
            host: format!("h{incarnation}"),
            peer: 1,
            ..Card::default()
        }
    }

    fn member(physical: u32, incarnation: u32, stamp: u64) -> News {
        News {
            card: card(physical, incarnation, stamp),
            standing: Standing::Member,
            decision: Some(Decision {
                cluster: ClusterId::new(4),
                voters: vec![vec![]],
            }),
            ..News::default()
        }
    }

    fn book() -> (Book, Arc<SimClock>) {
        let clock = Arc::new(SimClock::new(0));
        (
            Book::new(Arc::clone(&clock) as _, member(1, 1, 5), vec![]),
            clock,
        )
    }

    #[test]
    fn a_later_life_of_a_node_takes_the_place_of_the_earlier_and_never_the_reverse() {
        let (book, _) = book();
        let (old, new) = (NodeId::of_incarnation(2, 7), NodeId::of_incarnation(2, 8));
        book.hear(&member(2, 7, 10));
        assert_eq!(book.address(old).as_deref(), Some("h7:1"));
        book.hear(&member(2, 8, 11));
        book.hear(&member(2, 7, 10));
        assert_eq!(book.address(old), None);
        assert_eq!(book.address(new).as_deref(), Some("h8:1"));
        assert_eq!(book.living(2), Some(new));
    }

    #[test]
    fn a_node_that_is_not_heard_of_is_not_there_and_hearsay_does_not_change_that() {
        let (book, clock) = book();
        book.hear(&member(2, 7, 10));
        assert_eq!(book.living(2), Some(NodeId::of_incarnation(2, 7)));
        clock.advance(ALIVE);
        assert_eq!(book.living(2), None);
        let hearsay = News {
            cards: vec![card(2, 7, 10)],
            ..member(3, 1, 1)
        };
        book.hear(&hearsay);
        assert_eq!(book.living(2), None);
        assert_eq!(book.living(3), Some(NodeId::of_incarnation(3, 1)));
        assert_eq!(
            book.news(vec![]).cards.len(),
            1,
            "only who is there is told of"
        );
    }

    #[test]
    fn a_clock_is_as_far_as_the_round_trip_proves_and_only_while_its_node_is_there() {
        let (book, clock) = book();
        book.hear(&member(2, 7, 10));
        let two = NodeId::of_incarnation(2, 7);
        let offset = |time, asked, came| {
            book.note_clock(two, time, asked, came);
            book.clock_offsets()
        };
        assert_eq!(offset(1_050, 1_000, 1_100), (vec![0], 2));
        assert_eq!(offset(1_000, 1_000, 1_100), (vec![0], 2));
        assert_eq!(offset(1_150, 1_000, 1_100), (vec![50], 2));
        assert_eq!(offset(900, 1_000, 1_100), (vec![-100], 2));
        book.note_clock(NodeId::of_incarnation(2, 6), 9_000, 1_000, 1_001);
        assert_eq!(book.clock_offsets(), (vec![-100], 2));
        assert!(book.is_clock_near(two));
        let far = News {
            is_clock_far: true,
            ..member(2, 7, 10)
        };
        book.hear(&far);
        assert!(!book.is_clock_near(two));
        clock.advance(ALIVE);
        assert_eq!(book.clock_offsets(), (vec![], 2));
    }

    #[test]
    fn strangers_and_those_who_look_for_somebody_else_are_refused() {
        let (book, _) = book();
        let greeting = |lane, cluster, wanted| Greeting {
            lane,
            shard: 0,
            cluster: ClusterId::new(cluster),
            node: NodeId::of_incarnation(2, 1),
            wanted,
            nonce: [0; 32],
        };
        let (own, nobody) = (NodeId::of_incarnation(1, 1), NodeId::new(0));
        assert!(book.judge(&greeting(Lane::Data, 4, own)).is_ok());
        assert!(book.judge(&greeting(Lane::Control, 0, nobody)).is_ok());
        let problem = |greeting: &Greeting| book.judge(greeting).expect_err("refused");
        assert!(problem(&greeting(Lane::Control, 5, nobody)).contains("belongs to cluster"));
        assert!(problem(&greeting(Lane::Data, 0, nobody)).contains("one cluster"));
        let former = NodeId::of_incarnation(1, 9);
        assert!(problem(&greeting(Lane::Data, 4, former)).contains("another life"));
    }

    #[test]
    fn the_leader_of_the_latest_term_is_believed() {
        let (book, _) = book();
        let hint = |term, physical| Hint {
            shard: ShardId::new(0),
            term: Term::new(term),
            leader: NodeId::of_incarnation(physical, 1),
            carriers: None,
        };
        let with = |hint| News {
            leaders: vec![hint],
            ..member(2, 1, 1)
        };
        book.hear(&with(hint(3, 2)));
        book.hear(&with(hint(2, 3)));
        let shard = ShardId::new(0);
        let two = NodeId::of_incarnation(2, 1);
        assert_eq!(book.leader(shard, Term::new(1)), Some((two, Term::new(3))));
        assert_eq!(book.leader(shard, Term::new(4)), None, "it knows better");
        book.hear(&with(hint(5, 1)));
        assert_eq!(
            book.leader(shard, Term::new(1)),
            None,
            "it would be this node"
        );
    }
}

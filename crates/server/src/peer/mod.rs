//! Other nodes: how they find, know and talk to each other (`docs/replication.md`).
//!
//! To each other node this one keeps, for each of its own threads, a connection for small messages
//! that must not wait and one for data, on which it asks and the other answers; snapshots have one
//! each. All shards of a thread share them. What replication says is [`flux_raft::network`]'s;
//! here are the carrier ([`link`], [`serve`]), who may talk ([`handshake`]), what nodes tell each
//! other of the cluster ([`news`], [`book`]), how one comes to be ([`formation`], [`member`]), and
//! how a command reaches the leader of its shard ([`forward`]), and how a replica comes by log that
//! it does not hold ([`history`]).

pub(crate) mod book;
mod clock;
mod dial;
mod exchange;
mod field;
pub(crate) mod formation;
mod forward;
mod handshake;
mod history;
mod keeper;
mod link;
pub(crate) mod member;
mod network;
pub(crate) mod news;
mod pace;
pub(crate) mod placement;
mod reroute;
mod serve;
pub(crate) mod traffic;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use flux_cluster::registry::{MapHint, Maps};
use flux_env::Clock;
use flux_raft::{Members, Role, Shard};
use flux_telemetry::Registry;
use flux_types::{NodeId, ShardId};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::cores::Places;
use crate::exec::Executor;

use self::book::Book;
pub(crate) use self::clock::Clockwork;
pub(crate) use self::exchange::{ask_news, exchange};
pub(crate) use self::forward::Forwarder;
use self::handshake::{Greeting, Lane, Welcome};
pub(crate) use self::history::Historian;
pub(crate) use self::keeper::keep;
use self::link::{Link, Target};
pub(crate) use self::network::PeerNetwork;
use self::news::{Card, Carriers, Hint, Standing};
use self::pace::Pace;
pub(crate) use self::serve::accept;
use self::traffic::{PeerStats, Traffic, Traffics, Way};
use crate::metrics::register_peers;
use crate::topology::{self, NodePlace, Topology};

/// What all parts of this room share.
pub(crate) struct Peers {
    pub(crate) book: Book,
    clock: Arc<dyn Clock>,
    password: Arc<str>,
    places: Arc<Places>,
    /// Whether this node learns the host it is reached under from the list.
    takes_host_from_list: bool,
    /// How long a node may be silent before others carry what it did.
    replace_after: Duration,
    replicas: usize,
    /// How fast snapshots are sent.
    pace: Pace,
    /// Ends every connection.
    stop: CancellationToken,
    /// Tells the others that this node is about to go.
    leaving: CancellationToken,
    links: Mutex<BTreeMap<(Address, usize, u8), Link>>,
    traffics: Traffics,
    /// Reads of old log for others that may be under way at once.
    readings: Semaphore,
    /// Runs commands that belong to another shard than they were sent to; none before the shards
    /// run, and after the node has ended.
    executor: Mutex<Option<Executor>>,
    /// The cluster map that the registry is to show: only while this node looks after it.
    shown: watch::Sender<Option<Arc<MapHint>>>,
    /// Empty until the shards run, and after the node has ended: then nothing but news is answered.
    shards: RwLock<Arc<[Shard]>>,
}

/// Whom a link leads to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Address {
    /// One life of a node, wherever it is.
    Node(NodeId),
    /// Whoever answers there.
    Place(String),
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peers").finish_non_exhaustive()
    }
}

/// What [`Peers`] are made of.
pub(crate) struct Parts {
    pub(crate) book: Book,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) password: Arc<str>,
    pub(crate) places: Arc<Places>,
    pub(crate) takes_host_from_list: bool,
    /// How long a node may be silent before others carry what it did.
    pub(crate) replace_after: Duration,
    /// On how many nodes each shard is to be, once there are so many.
    pub(crate) replicas: usize,
    /// Most bytes of snapshots that are sent a second; 0: as fast as can be.
    pub(crate) move_rate: u64,
}

impl Peers {
    pub(crate) fn new(parts: Parts) -> Arc<Self> {
        Arc::new(Self {
            book: parts.book,
            clock: parts.clock,
            password: parts.password,
            places: parts.places,
            takes_host_from_list: parts.takes_host_from_list,
            replace_after: parts.replace_after,
            replicas: parts.replicas,
            pace: Pace::new(parts.move_rate),
            stop: CancellationToken::new(),
            leaving: CancellationToken::new(),
            links: Mutex::new(BTreeMap::new()),
            traffics: Traffics::default(),
            readings: Semaphore::new(history::READINGS_MAX),
            executor: Mutex::new(None),
            shown: watch::Sender::new(None),
            shards: RwLock::new(Arc::new([])),
        })
    }

    /// From now on replication is answered.
    pub(crate) fn serve_shards(&self, shards: Vec<Shard>) {
        *self.shards.write() = shards.into();
        // Only now is it known that its data is whole: others may count on it.
        self.book.tell(|own| own.standing = Standing::Member);
    }

    /// From now on one more is.
    pub(crate) fn serve_shard(&self, shard: Shard) {
        let mut shards = self.shards.write();
        *shards = shards.iter().cloned().chain([shard]).collect();
    }

    /// From now on commands that belong to another shard than they were sent to run by this.
    pub(crate) fn execute_by(&self, executor: Executor) {
        *self.executor.lock() = Some(executor);
    }

    /// Runs commands on this node's shards; none before they run, and after the node has ended.
    fn executor(&self) -> Option<Executor> {
        self.executor.lock().clone()
    }

    /// Where tasks of shards run.
    pub(crate) const fn places(&self) -> &Arc<Places> {
        &self.places
    }

    /// What was counted of the other nodes.
    fn stats(&self) -> PeerStats {
        let own = self.book.node().physical();
        self.traffics.stats(own, &self.book.heard_ages())
    }

    fn shards(&self) -> Arc<[Shard]> {
        Arc::clone(&self.shards.read())
    }

    fn shard(&self, shard: u32) -> Option<Shard> {
        self.shards.read().get(shard as usize).cloned()
    }

    /// The cluster map that the registry is to show, now and after every change.
    pub(crate) fn maps(&self) -> Maps {
        self.shown.subscribe()
    }

    /// Asks the others not to send anything more, and answers what they have sent.
    pub(crate) fn leave(&self) {
        self.leaving.cancel();
    }

    /// Ends every connection.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
        // The shards know this room too: neither would ever be freed.
        *self.shards.write() = Arc::new([]);
        *self.executor.lock() = None;
        self.links.lock().clear();
    }

    pub(crate) fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// Who leads each shard, as this node's replicas know.
    pub(crate) fn leaders(&self) -> Vec<Hint> {
        let hint = |handle: &Shard| {
            let members = handle.members();
            let (shard, term) = (handle.id(), members.term);
            let own = self.book.node();
            if let Some(leader) = members.leader
                && leader == own
            {
                let carriers = Some(carriers(handle, members));
                return Some(Hint {
                    shard,
                    term,
                    leader,
                    carriers,
                });
            }
            // A replica passes on what it has heard, as long as its own log knows nothing newer.
            let heard = self.book.hint(shard);
            let heard = heard.filter(|hint| term <= hint.term && hint.leader != own);
            heard.or_else(|| {
                Some(Hint {
                    shard,
                    term,
                    leader: members.leader?,
                    carriers: None,
                })
            })
        };
        self.shards().iter().filter_map(hint).collect()
    }

    /// The link of a lane to another node, for a shard of this one.
    fn link(self: &Arc<Self>, node: NodeId, shard: ShardId, lane: Lane) -> Link {
        self.link_to(Address::Node(node), shard.get(), lane)
    }

    fn link_to(self: &Arc<Self>, address: Address, shard: u32, lane: Lane) -> Link {
        let core = self.places.of_shard(shard);
        let number = match lane {
            Lane::Control => 0,
            Lane::Data => 1,
            Lane::Snapshot => 2,
        };
        let mut links = self.links.lock();
        let link = links
            .entry((address.clone(), core, number))
            .or_insert_with(|| {
                let target = Arc::new(PeerTarget {
                    peers: Arc::downgrade(self),
                    password: Arc::clone(&self.password),
                    address,
                    shard,
                    lane,
                    complaint: Mutex::new(String::new()),
                });
                let runtime = self.places.handle(core);
                Link::start(target, Arc::clone(&self.clock), runtime, self.stop.clone())
            });
        link.clone()
    }

    /// A node has connected: what is to be said to it need not wait any longer.
    fn is_back(&self, node: NodeId) {
        let address = Address::Node(node);
        let links = self.links.lock();
        let to_it = links.iter().filter(|((to, ..), _)| *to == address);
        to_it.for_each(|(_, link)| link.forget_failure());
    }

    fn greeting(&self, wanted: NodeId, shard: u32, lane: Lane) -> Greeting {
        Greeting {
            lane,
            shard,
            cluster: self.book.cluster(),
            node: self.book.node(),
            wanted,
            nonce: [0; 32],
        }
    }

    /// Who could lead a shard that this node leads: voters that are there, those first whose clocks
    /// are near the others', and of these the furthest.
    pub(crate) fn heirs(&self, shard: &Shard) -> Vec<NodeId> {
        let status = shard.status();
        if status.role != Role::Leader {
            return Vec::new();
        }
        let reached = |node: &NodeId| {
            let found = status.replication.iter().find(|(known, _)| known == node);
            found.map(|(_, index)| *index)
        };
        let mut heirs: Vec<NodeId> = status
            .voters
            .iter()
            .copied()
            .filter(|voter| *voter != status.node)
            .filter(|voter| self.book.living(voter.physical()) == Some(*voter))
            .filter(|voter| !self.book.is_leaving(*voter))
            .collect();
        heirs.sort_by_key(|heir| {
            let is_far = !self.book.is_clock_near(*heir);
            (is_far, std::cmp::Reverse(reached(heir)))
        });
        heirs
    }

    /// What this node knows of who leads, who votes and where everybody is.
    pub(crate) fn topology(&self, shards: &[Shard]) -> Topology {
        let own = self.book.own();
        let decision = self.book.decision();
        let mut places = topology::of_shards(shards);
        for place in &mut places {
            if let Some((leader, term)) = self.book.leader(place.shard, place.term)
                && (place.leader.is_none() || place.term < term)
            {
                (place.leader, place.term) = (Some(leader), term);
            }
            // Who does not lead may have been let go, or not told yet of those who came.
            if let Some(hint) = self.book.hint(place.shard)
                && hint.leader != own.node
                && Some(hint.leader) == place.leader
                && hint.term == place.term
                && let Some(carriers) = hint.carriers
            {
                place.voters = carriers.voters;
                place.learners = carriers.learners.iter().map(|(node, _)| *node).collect();
            }
            // A replica that nobody has told anything knows only how it all began.
            if place.voters.is_empty()
                && let Some(decision) = &decision
                && let Some(voters) = decision.voters.get(place.shard.get() as usize)
            {
                place.voters.clone_from(voters);
            }
        }
        let place = |card: &Card, is_reachable| NodePlace {
            node: card.node,
            host: card.host.clone(),
            resp: card.resp,
            grpc: card.grpc,
            admin: card.admin,
            peer: card.peer,
            is_reachable,
        };
        let mut nodes: Vec<NodePlace> = self
            .book
            .others()
            .iter()
            .map(|(card, _, is_alive)| place(card, *is_alive))
            .collect();
        nodes.push(place(&own, true));
        nodes.sort_by_key(|place| place.node);
        Topology {
            own: own.node,
            shards: places,
            nodes,
        }
    }

    /// Who leads a shard, as its replica here knows or as others say.
    fn leader_of(&self, shard: &Shard) -> Option<NodeId> {
        let members = shard.members();
        let heard = self.book.leader(shard.id(), members.term);
        // A replica that was let go is told of no later term by its shard.
        let later = heard.filter(|(_, term)| members.leader.is_none() || members.term < *term);
        later.map(|(leader, _)| leader).or(members.leader)
    }

    /// Whether another node leads a shard and has been heard of lately: a replica may believe in a
    /// leader that is gone for as long as no other is elected.
    pub(crate) fn knows_leader(&self, shard: &Shard) -> bool {
        let leader = self.leader_of(shard);
        leader.is_some_and(|leader| self.book.living(leader.physical()) == Some(leader))
    }

    /// Whether a shard can be served from here: it leads and has applied what it must, or it knows
    /// who does and is itself as far as it was told.
    pub(crate) fn is_served(&self, shard: &Shard) -> bool {
        let status = shard.status();
        match status.role {
            Role::Leader => status.is_writable,
            Role::Follower | Role::Candidate | Role::Learner => {
                self.knows_leader(shard) && shard.is_whole() && status.committed <= status.applied
            }
        }
    }
}

/// Who carries a shard that this node leads.
fn carriers(shard: &Shard, members: Members) -> Carriers {
    let replication = if members.learners.is_empty() {
        Vec::new()
    } else {
        shard.status().replication
    };
    let last = shard.applied().map_or(0, |id| id.index.get()).max(1);
    let progress = |learner: NodeId| {
        let reached = replication.iter().find(|(node, _)| *node == learner);
        let reached = reached.map_or(0, |(_, index)| index.get().min(last));
        // What is left is told even if it is little.
        let permille = u16::try_from(u128::from(reached) * 1000 / u128::from(last));
        (learner, permille.unwrap_or(1000))
    };
    let Members {
        voters,
        learners,
        membership,
        is_membership_committed,
        ..
    } = members;
    Carriers {
        committed_at: membership.filter(|_| is_membership_committed),
        voters,
        learners: learners.into_iter().map(progress).collect(),
    }
}

/// Lets metrics read what goes between this node and the others; there are none if it is alone.
pub(crate) fn register(registry: &Registry, peers: Option<&Arc<Peers>>) {
    // The registry may outlive the node.
    let peers = peers.map(Arc::downgrade);
    register_peers(registry, move || {
        let peers = peers.as_ref().and_then(std::sync::Weak::upgrade);
        peers.map_or_else(PeerStats::default, |peers| peers.stats())
    });
}

/// A link's other end.
#[derive(Debug)]
struct PeerTarget {
    peers: std::sync::Weak<Peers>,
    password: Arc<str>,
    address: Address,
    shard: u32,
    lane: Lane,
    /// The last problem that was told, so that it is told once.
    complaint: Mutex<String>,
}

impl Target for PeerTarget {
    fn address(&self) -> Option<String> {
        match &self.address {
            Address::Node(node) => self.peers.upgrade()?.book.address(*node),
            Address::Place(address) => Some(address.clone()),
        }
    }

    fn greeting(&self) -> Greeting {
        let wanted = match self.address {
            Address::Node(node) => node,
            Address::Place(_) => NodeId::new(0),
        };
        match self.peers.upgrade() {
            Some(peers) => peers.greeting(wanted, self.shard, self.lane),
            // The node is gone, and the link with it.
            None => Greeting {
                lane: self.lane,
                shard: self.shard,
                cluster: flux_types::ClusterId::new(0),
                node: NodeId::new(0),
                wanted,
                nonce: [0; 32],
            },
        }
    }

    fn password(&self) -> &str {
        &self.password
    }

    fn judge(&self, welcome: Welcome) -> Result<(), String> {
        self.complaint.lock().clear();
        match self.address {
            Address::Node(node) if node != welcome.node => {
                Err("another node answers there".to_owned())
            }
            Address::Node(_) | Address::Place(_) => Ok(()),
        }
    }

    fn traffic(&self, node: NodeId) -> Option<Arc<Traffic>> {
        Some(self.peers.upgrade()?.traffics.of(node.physical()))
    }

    fn refused(&self) {
        if let Some(peers) = self.peers.upgrade() {
            peers.traffics.refused.add(Way::Out, 1);
        }
    }

    fn failed(&self, reason: &str) {
        let mut complaint = self.complaint.lock();
        if *complaint != reason {
            reason.clone_into(&mut complaint);
            tracing::info!(%reason, "another node cannot be reached");
        }
    }
}

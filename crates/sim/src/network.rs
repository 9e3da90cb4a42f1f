//! The network between nodes: messages that are late, lost, twice, or out of order.
//!
//! A message is a call of another node's handler. It travels for a while, may get lost either way
//! (the caller then hears nothing, or of a broken connection), and may arrive a second time much later,
//! as the remains of a connection that the sender has given up do. Answers come from the node that
//! made them or not at all: nothing is made up.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use flux_log::Vote;
use flux_raft::network::{
    AppendReply, AppendRequest, SnapshotTransfer, TransferReply, TransferRequest, VoteReply,
    VoteRequest,
};
use flux_raft::{Network, Peer, PeerError, PeerHandler};
use flux_types::{NodeId, ShardId};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::executor::{Executor, OUTSIDE, sleep};

/// How messages fare, where nothing is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Weather {
    /// Shortest and longest way, in microseconds.
    pub(crate) micros_min: u64,
    pub(crate) micros_max: u64,
    /// Of a thousand messages (and of answers), how many get lost.
    pub(crate) lost_permille: u64,
    /// Of a thousand messages, how many arrive a second time.
    pub(crate) twice_permille: u64,
}

impl Weather {
    pub(crate) const FAIR: Self = Self {
        micros_min: 100,
        micros_max: 2_000,
        lost_permille: 0,
        twice_permille: 0,
    };
}

/// Counts of what the network did.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) sent: AtomicU64,
    pub(crate) lost: AtomicU64,
    pub(crate) twice: AtomicU64,
}

#[derive(Debug)]
struct Place {
    node: usize,
    handler: PeerHandler,
}

struct State {
    weather: Weather,
    /// Links by sending and receiving node that pass nothing.
    cut: BTreeSet<(usize, usize)>,
    places: BTreeMap<(ShardId, NodeId), Place>,
    /// Which machine a replica's id belongs to.
    machines: BTreeMap<NodeId, usize>,
    /// The highest term in which a replica is known to have given its vote.
    given: BTreeMap<(ShardId, NodeId), u64>,
    /// Which machine gave a vote last, until somebody asks.
    last_voter: Option<usize>,
}

/// See the module. Clones share the network.
#[derive(Clone)]
pub(crate) struct SimNetwork {
    executor: Arc<Executor>,
    state: Arc<Mutex<State>>,
    pub(crate) counts: Arc<Counts>,
}

impl fmt::Debug for SimNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimNetwork").finish_non_exhaustive()
    }
}

/// How long a second copy of a message may be under way.
const TWICE_MICROS_MAX: u64 = 3_000_000;

impl SimNetwork {
    pub(crate) fn new(executor: Arc<Executor>) -> Self {
        Self {
            executor,
            state: Arc::new(Mutex::new(State {
                weather: Weather::FAIR,
                cut: BTreeSet::new(),
                places: BTreeMap::new(),
                machines: BTreeMap::new(),
                given: BTreeMap::new(),
                last_voter: None,
            })),
            counts: Arc::default(),
        }
    }

    pub(crate) fn set_weather(&self, weather: Weather) {
        self.state.lock().weather = weather;
    }

    pub(crate) fn cut(&self, source: usize, target: usize) {
        self.state.lock().cut.insert((source, target));
    }

    pub(crate) fn heal(&self) {
        self.state.lock().cut.clear();
    }

    /// The highest term in which a replica is known to have given its vote; 0 for none.
    pub(crate) fn vote_given(&self, shard: ShardId, id: NodeId) -> u64 {
        let state = self.state.lock();
        state.given.get(&(shard, id)).copied().unwrap_or(0)
    }

    /// Which machine has given a vote since the last time that this was asked.
    pub(crate) fn take_last_voter(&self) -> Option<usize> {
        self.state.lock().last_voter.take()
    }

    fn note_vote(&self, key: (ShardId, NodeId), reply: &VoteReply) {
        if reply.is_granted {
            let mut state = self.state.lock();
            let given = state.given.entry(key).or_default();
            *given = reply.vote.term.get().max(*given);
            state.last_voter = state.machines.get(&key.1).copied();
        }
    }

    /// Whether messages pass from one machine to another.
    pub(crate) fn passes(&self, source: usize, target: usize) -> bool {
        !self.state.lock().cut.contains(&(source, target))
    }

    pub(crate) fn attach(&self, shard: ShardId, id: NodeId, node: usize, handler: PeerHandler) {
        let mut state = self.state.lock();
        state.machines.insert(id, node);
        state.places.insert((shard, id), Place { node, handler });
    }

    /// The machine is down: none of its replicas can be reached.
    pub(crate) fn detach(&self, node: usize) {
        let mut state = self.state.lock();
        state.places.retain(|_, place| place.node != node);
    }

    /// The network as one machine uses it.
    pub(crate) fn of(&self, node: usize) -> Arc<dyn Network> {
        Arc::new(View {
            network: self.clone(),
            node,
        })
    }

    /// A way through the network in good time; also whether the message gets lost.
    fn way(&self) -> (Duration, bool) {
        let weather = self.state.lock().weather;
        let span = weather.micros_max.saturating_sub(weather.micros_min) + 1;
        let micros = weather.micros_min + self.executor.below(span);
        let is_lost = self.executor.below(1000) < weather.lost_permille;
        (Duration::from_micros(micros), is_lost)
    }

    /// Waits for a message to arrive; whether it does.
    async fn travel(&self, source: usize, target: usize) -> bool {
        let (way, is_lost) = self.way();
        sleep(&self.executor, way).await;
        // Cut while it was under way counts too.
        let arrives = !is_lost && self.passes(source, target);
        let counter = if arrives {
            &self.counts.sent
        } else {
            &self.counts.lost
        };
        counter.fetch_add(1, Ordering::Relaxed);
        arrives
    }

    /// Waits on the machine that a message is for until its handler has answered, if it is there.
    async fn handled<T: Send + 'static>(
        &self,
        key: (ShardId, NodeId),
        handle: impl FnOnce(PeerHandler) -> BoxFuture<'static, Result<T, PeerError>>,
    ) -> Option<Result<T, PeerError>> {
        let (node, call) = {
            let state = self.state.lock();
            let place = state.places.get(&key)?;
            (place.node, handle(place.handler.clone()))
        };
        let (done, answer) = oneshot::channel();
        self.executor.spawn_on(node, async move {
            drop(done.send(call.await));
        });
        // A machine that dies answers nothing.
        answer.await.ok()
    }
}

#[derive(Debug)]
struct View {
    network: SimNetwork,
    node: usize,
}

impl Network for View {
    fn peer(&self, shard: ShardId, target: NodeId) -> Box<dyn Peer> {
        Box::new(SimPeer {
            network: self.network.clone(),
            source: self.node,
            key: (shard, target),
        })
    }
}

#[derive(Debug)]
struct SimPeer {
    network: SimNetwork,
    source: usize,
    key: (ShardId, NodeId),
}

impl SimPeer {
    /// Carries one message there and its answer back, in a task of the network: what is under way
    /// arrives even if the sender dies.
    fn carry<T, H>(
        &self,
        handle: H,
    ) -> impl Future<Output = Result<T, PeerError>> + Send + use<T, H>
    where
        T: Send + 'static,
        H: FnOnce(PeerHandler) -> BoxFuture<'static, Result<T, PeerError>> + Send + 'static,
    {
        let (network, source, key) = (self.network.clone(), self.source, self.key);
        let target = network.state.lock().machines.get(&key.1).copied();
        let (done, answer) = oneshot::channel();
        let executor = Arc::clone(&network.executor);
        async move {
            let unreachable = || PeerError::Unreachable("nobody listens there".to_owned());
            let target = target.ok_or_else(unreachable)?;
            executor.spawn_on(OUTSIDE, async move {
                if !network.travel(source, target).await {
                    // Half of what is lost is noticed as a broken connection, late; the other half
                    // never is.
                    if network.executor.below(2) == 0 {
                        sleep(&network.executor, Duration::from_millis(50)).await;
                        drop(done.send(Err(PeerError::Broken("reset".to_owned()))));
                    } else {
                        sleep(&network.executor, Duration::from_secs(60)).await;
                    }
                    return;
                }
                let reply = network.handled(key, handle).await;
                let reply = reply.unwrap_or_else(|| Err(unreachable()));
                if network.travel(target, source).await {
                    drop(done.send(reply));
                } else {
                    sleep(&network.executor, Duration::from_secs(60)).await;
                }
            });
            answer
                .await
                .unwrap_or_else(|_| Err(PeerError::Broken("reset".to_owned())))
        }
    }

    /// Now and then lets a copy of a message arrive some time later.
    fn repeat<T, H>(&self, handle: H)
    where
        T: Send + 'static,
        H: FnOnce(PeerHandler) -> BoxFuture<'static, Result<T, PeerError>> + Send + 'static,
    {
        let network = self.network.clone();
        let twice_permille = network.state.lock().weather.twice_permille;
        if twice_permille <= network.executor.below(1000) {
            return;
        }
        let (source, key) = (self.source, self.key);
        let Some(target) = network.state.lock().machines.get(&key.1).copied() else {
            return;
        };
        let executor = Arc::clone(&network.executor);
        executor.spawn_on(OUTSIDE, async move {
            let late = network.executor.below(TWICE_MICROS_MAX);
            sleep(&network.executor, Duration::from_micros(late)).await;
            if network.passes(source, target) {
                network.counts.twice.fetch_add(1, Ordering::Relaxed);
                drop(network.handled(key, handle).await);
            }
        });
    }
}

impl Peer for SimPeer {
    fn append(&self, request: AppendRequest) -> BoxFuture<'_, Result<AppendReply, PeerError>> {
        let copy = request.clone();
        self.repeat(move |handler| async move { handler.append(copy).await }.boxed());
        self.carry(move |handler| async move { handler.append(request).await }.boxed())
            .boxed()
    }

    fn vote(&self, request: VoteRequest) -> BoxFuture<'_, Result<VoteReply, PeerError>> {
        let copy = request.clone();
        self.repeat(move |handler| async move { handler.vote(copy).await }.boxed());
        let (network, key) = (self.network.clone(), self.key);
        let vote = self.carry(move |handler| {
            async move {
                let reply = handler.vote(request).await?;
                network.note_vote(key, &reply);
                Ok(reply)
            }
            .boxed()
        });
        vote.boxed()
    }

    fn pre_vote(&self, request: VoteRequest) -> BoxFuture<'_, Result<VoteReply, PeerError>> {
        self.carry(move |handler| async move { handler.pre_vote(request).await }.boxed())
            .boxed()
    }

    fn snapshot(&self, snapshot: SnapshotTransfer) -> BoxFuture<'_, Result<Vote, PeerError>> {
        self.carry(move |handler| async move { handler.snapshot(snapshot).await }.boxed())
            .boxed()
    }

    fn transfer(
        &self,
        request: TransferRequest,
    ) -> BoxFuture<'_, Result<TransferReply, PeerError>> {
        self.carry(move |handler| async move { handler.transfer(request).await }.boxed())
            .boxed()
    }
}

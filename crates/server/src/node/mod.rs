//! A node: built, running, ended.
//!
//! Start: settings are judged, ports bound, the log opened (which takes the data folder), shards
//! recovered on their cores, and only then is anyone let in. Until every shard can write, `/readyz`
//! and the health service say so, and commands wait for their deadline.
//!
//! End: the registration is withdrawn; no new connection; sessions answer what they have and close; what is left after the drain
//! is closed; shards finish their batch; the log is synced and closed; threads end. A node that is
//! dropped instead leaves its log as a killed process would.

mod activity;
mod failures;
mod given;
mod grounds;
mod join;
mod leaderships;
mod nursery;
mod open;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use flux_cluster::registry::{Registered, RegistryError, Showing};
use flux_env::Instant;
use flux_raft::Shard;
use flux_telemetry::{Checks, Registry};
use flux_types::{Error, NodeId, UnixMillis};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

pub use self::activity::Activity;
use self::failures::Failures;
pub use self::given::Given;
use self::grounds::{Grounds, grounds};
pub use self::leaderships::Leaderships;
use self::nursery::Nursery;
use crate::changes::{self, Changes};
use crate::clients::{Clients, Ending};
use crate::config::Config;
use crate::context::{Context, Lookups, Pause, Switches};
use crate::cores::{Cores, Places};
use crate::error::{NodeFailure, StartError};
use crate::exec::{Executor, Home, Lanes};
use crate::http_listener::HttpListener;
use crate::listen::{Acceptor, end_idle};
use crate::metrics::{
    ChangesMetrics, LogState, Metrics, Protocol, register_clock, register_log, register_raft,
    register_stores,
};
use crate::peer;
use crate::ports::{Addresses, Listeners, PeerPort};
use crate::rabbitmq::{Publisher, PublisherParts};
use crate::readiness::Readiness;
use crate::registration::{host, registration};
use crate::statistics::Statistics;
use crate::topology::{self, NodePlace, Topology, TopologyHandle};
use crate::{admin, grpc};

/// How long sessions get to end after they were killed.
const KILL_GRACE: Duration = Duration::from_secs(1);
/// How often the end of the last session is looked for.
const DRAIN_CHECK: Duration = Duration::from_millis(5);
/// How long other nodes get to send nothing more here, once they are told.
const GOODBYE: Duration = Duration::from_millis(100);
/// How long the shards may still talk to other nodes: a call to one that is gone would be waited for.
const LAST_ROUNDS: Duration = Duration::from_millis(500);
/// How long the shards get to finish their batch.
const SHARD_GRACE: Duration = Duration::from_secs(10);

/// A running node. See the module.
pub struct Node {
    context: Arc<Context>,
    cores: Cores,
    /// For everything that accepts: cancelled first.
    stop_accepting: CancellationToken,
    /// Listeners and what else runs on the caller's runtime.
    tasks: Vec<JoinHandle<()>>,
    /// The sink for RabbitMQ, if there is one.
    publisher: Option<Publisher>,
    failure: watch::Receiver<Option<NodeFailure>>,
    executor: Executor,
    registered: Option<Registered>,
    /// The cluster map that this node shows while it looks after it.
    showing: Option<Showing>,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("addresses", &self.context.addresses)
            .finish_non_exhaustive()
    }
}

impl Node {
    /// Starts a node. It listens when this returns, and can write when [`Node::wait_ready`] does.
    ///
    /// gRPC and the admin port run on the caller's runtime; connections and shards on threads of
    /// the node's own.
    ///
    /// # Errors
    /// See [`StartError`]. What can be known to be wrong before anything is created, is.
    ///
    /// # Cancellation
    /// Safe to drop; the node is then gone.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        Self::start_with(config, &Registry::new(), &Checks::new()).await
    }

    /// As [`Node::start`], with metrics and named checks that the process shares: the admin port
    /// shows both.
    ///
    /// # Errors
    /// As [`Node::start`].
    ///
    /// # Cancellation
    /// As [`Node::start`].
    pub async fn start_with(
        config: Config,
        registry: &Registry,
        checks: &Checks,
    ) -> Result<Self, StartError> {
        Self::start_on(config, None, registry, checks).await
    }

    /// As [`Node::start_with`], on a peer port that was reserved for it if there is one; the
    /// configuration's own is then not looked at.
    ///
    /// # Errors
    /// As [`Node::start`].
    ///
    /// # Cancellation
    /// As [`Node::start`].
    pub async fn start_on(
        config: Config,
        peer_port: Option<PeerPort>,
        registry: &Registry,
        checks: &Checks,
    ) -> Result<Self, StartError> {
        let given = Given {
            peer_port,
            ..Given::default()
        };
        Self::start_given(given, config, registry, checks).await
    }

    /// As [`Node::start_with`], with what is not its configuration's.
    ///
    /// # Errors
    /// As [`Node::start`].
    ///
    /// # Cancellation
    /// As [`Node::start`].
    pub async fn start_given(
        given: Given,
        config: Config,
        registry: &Registry,
        checks: &Checks,
    ) -> Result<Self, StartError> {
        let Given { clock, peer_port } = given;
        config.validate().map_err(StartError::Config)?;
        let mut listeners = Listeners::bind(&config, peer_port)?;
        let addresses = listeners.addresses()?;
        let started_at = clock.now();
        let mut cores = start_cores(&config)?;
        let places = Arc::clone(cores.places());
        let Grounds {
            log,
            shards,
            map,
            founding,
            nursery,
            peers,
        } = grounds(&config, &mut listeners, addresses, &clock, &places).await?;
        register_log(registry, {
            let log = log.clone();
            move || LogState {
                stats: log.stats(),
                space: log.space(),
                is_poisoned: log.poison_reason().is_some(),
            }
        });
        let topology = match &peers {
            Some(peers) => peers.topology(&shards),
            None => own_topology(&config, addresses, log.identity().node, &shards),
        };
        let home = Home::new(map, shards, Arc::clone(&clock), config.request_timeout);
        if let Some(peers) = &peers {
            peers.execute_by(executor_of_caller(&home));
        }
        register_shards(registry, &home);
        peer::register(registry, peers.as_ref());
        let others = peers.as_ref().map(Arc::downgrade);
        let ahead = move || others.as_ref()?.upgrade()?.clock_ahead_seconds();
        register_clock(registry, ahead);
        let changes = Changes::new(changes::Parts {
            cluster: log.identity().cluster,
            node: log.identity().node,
            home: Arc::clone(&home),
            founding,
            value_bytes_max: usize::try_from(config.cdc.event_value_max).unwrap_or(usize::MAX),
            clock: Arc::clone(&clock),
            meters: cores.take_meters(),
            peers: peers.clone(),
            metrics: ChangesMetrics::new(registry),
            draining: CancellationToken::new(),
        });
        let context = Arc::new(Context {
            switches: Switches::new(&config),
            config,
            addresses,
            identity: log.identity(),
            topology: TopologyHandle::new(topology),
            peers,
            clock,
            home,
            log,
            clients: Clients::default(),
            metrics: Metrics::new(registry),
            pause: Pause::default(),
            lookups: Lookups::default(),
            statistics: Statistics::default(),
            started_at,
            is_draining: AtomicBool::new(false),
        });
        Self::run(context, cores, listeners, checks, changes, nursery)
    }

    /// Starts to accept.
    fn run(
        context: Arc<Context>,
        cores: Cores,
        listeners: Listeners,
        checks: &Checks,
        changes: Changes,
        nursery: Arc<Nursery>,
    ) -> Result<Self, StartError> {
        let stop_accepting = changes.draining().clone();
        let places = Arc::clone(cores.places());
        accept(&context, &places, listeners.resp, &stop_accepting)?;
        let executor = executor_of_caller(&context.home);
        let places_max = context.config.connections_max.min(Semaphore::MAX_PERMITS);
        let permits = Arc::new(Semaphore::new(places_max));
        let readiness: Arc<dyn Readiness> = Arc::clone(&context) as _;
        let password = {
            let context = Arc::clone(&context);
            grpc::Password::new(move || context.switches.password())
        };
        let grpc = grpc::router(grpc::Parts {
            executor: executor.clone(),
            clock: Arc::clone(&context.clock),
            metrics: context.metrics.clone(),
            readiness: Arc::clone(&readiness),
            request_timeout: context.config.request_timeout,
            value_bytes_max: usize::try_from(context.config.value_size_max).unwrap_or(usize::MAX),
            password: password.clone(),
            changes: Some(changes.clone()),
            cluster: Some(grpc::ClusterApi::of(&context, password.clone())),
        });
        let admin = admin::router(context.metrics.clone(), readiness, checks.clone());
        let admin = admin.merge(admin::changes_router(changes.clone(), password));
        let mut tasks = Vec::new();
        for (socket, router, protocol) in [
            (listeners.grpc, grpc, Protocol::Grpc),
            (listeners.admin, admin, Protocol::Admin),
        ] {
            let http = HttpListener {
                listener: listener(socket)?,
                router,
                protocol,
                permits: Arc::clone(&permits),
                metrics: context.metrics.clone(),
            };
            tasks.push(tokio::spawn(http.serve(stop_accepting.clone())));
        }
        let failures = Failures::new();
        let failure = failures.first();
        failures.watch_log(&context.log);
        let shards = context.home.shards();
        shards
            .iter()
            .for_each(|shard| failures.watch(shard, &places));
        if context.peers.is_some() {
            let watching = nursery.watch(Arc::clone(&context), failures, stop_accepting.clone());
            places.handle(0).spawn(watching);
        }
        info!(
            resp = %context.addresses.resp,
            grpc = %context.addresses.grpc,
            admin = %context.addresses.admin,
            shards = shards.len(),
            cores = places.count(),
            "node started"
        );
        Ok(Self {
            publisher: publisher(&context, checks, &changes)?,
            context,
            cores,
            stop_accepting,
            tasks,
            failure,
            executor,
            registered: None,
            showing: None,
        })
    }

    /// Where the node can be reached.
    #[must_use]
    pub fn addresses(&self) -> Addresses {
        self.context.addresses
    }

    /// How many shards its data is in.
    #[must_use]
    pub fn shard_count(&self) -> u32 {
        self.context.home.routing()
    }

    /// Who leads, who votes and where everybody is.
    #[must_use]
    pub fn topology(&self) -> &TopologyHandle {
        &self.context.topology
    }

    /// What changes in this node's data, whoever changes it.
    #[must_use]
    pub fn activity(&self) -> Activity {
        Activity(Arc::clone(&self.context.home))
    }

    /// Runs commands on this node's shards, from any runtime.
    #[must_use]
    pub const fn executor(&self) -> &Executor {
        &self.executor
    }

    /// Waits until every shard can be served: it can write here, or, in a cluster, this node knows
    /// who leads it and is itself as far as it was told. From then on the picture of the cluster
    /// shows a leader of every shard.
    ///
    /// # Errors
    /// A shard's, if it never will or has not within `timeout`. A node of a cluster waits for the
    /// others without end.
    ///
    /// # Cancellation
    /// Safe to drop.
    pub async fn wait_ready(&self, timeout: Duration) -> Result<(), Error> {
        if self.context.peers.is_some() {
            while !self.context.is_served() {
                tokio::time::sleep(DRAIN_CHECK).await;
            }
        } else {
            let deadline = self.context.clock.now() + timeout;
            for shard in self.context.home.shards().iter() {
                shard.wait_writable(deadline).await?;
            }
        }
        self.context.topology.wait_whole().await;
        Ok(())
    }

    /// Registers the node's services, and keeps them registered until [`Node::withdraw`]; and shows
    /// the cluster map there while this node looks after it. To be called when the node is ready; `http` is where a gateway of the same process listens.
    ///
    /// # Errors
    /// A name or an address that cannot be registered.
    pub fn register(
        &mut self,
        registry: &flux_cluster::registry::Registry,
        http: Option<SocketAddr>,
    ) -> Result<(), RegistryError> {
        let registration = registration(&self.context, http);
        self.registered = Some(registry.register(registration)?);
        self.showing = self.context.peers.as_ref().map(|peers| {
            let cluster = self.context.identity.cluster;
            registry.show_map(cluster, peers.maps())
        });
        Ok(())
    }

    /// Takes the registration back, so that nobody is sent here anymore; the node serves on. If
    /// the registry does not answer within some seconds, the registration ends with its lease.
    ///
    /// # Cancellation
    /// Safe to drop; the withdrawal may then not have happened.
    pub async fn withdraw(&mut self) {
        self.showing = None;
        if let Some(registered) = self.registered.take() {
            registered.withdraw().await;
        }
    }

    /// Resolves when the node cannot go on: its process should then exit.
    pub fn failed(&self) -> impl Future<Output = NodeFailure> + Send + use<> {
        let mut failure = self.failure.clone();
        async move {
            loop {
                if let Some(failure) = failure.borrow_and_update().clone() {
                    return failure;
                }
                if failure.changed().await.is_err() {
                    // The node has ended in order: it will not fail anymore.
                    std::future::pending::<()>().await;
                }
            }
        }
    }

    /// Which shards this node leads, and the way to give them away.
    #[must_use]
    pub fn leaderships(&self) -> Leaderships {
        Leaderships::new(Arc::clone(&self.context))
    }

    /// Ends the node as the death of its process would, and releases its folder.
    ///
    /// # Cancellation
    /// Safe to drop; the node then ends a little later.
    pub async fn kill(self) {
        let log = self.context.log.clone();
        let killing = blocking(move || {
            // Joins the threads.
            drop(self);
            log.abandon();
        });
        // There is nobody to tell of a task that did not end in order.
        drop(killing.await);
    }

    /// Ends the node: see the module. `drain` bounds how long requests in hand may take.
    ///
    /// # Cancellation
    /// Not safe to drop: the log may then end as that of a killed process.
    pub async fn shutdown(mut self, drain: Duration) {
        info!("node shuts down");
        self.withdraw().await;
        let clock = Arc::clone(&self.context.clock);
        let deadline = clock.now() + drain;
        self.leaderships().give_away().await;
        self.context.is_draining.store(true, Ordering::SeqCst);
        self.stop_accepting.cancel();
        self.context.clients.drain();
        self.end_sessions(deadline).await;
        for task in self.tasks.drain(..) {
            let left = deadline.saturating_since(clock.now());
            let abort = task.abort_handle();
            if tokio::time::timeout(left, task).await.is_err() {
                abort.abort();
            }
        }
        // Before the shards, which keep its cursor.
        if let Some(publisher) = self.publisher.take() {
            publisher.stop().await;
        }
        if let Some(peers) = &self.context.peers {
            peers.leave();
            tokio::time::sleep(GOODBYE).await;
        }
        {
            let ending = self.end_shards();
            let mut ending = std::pin::pin!(ending);
            let is_ended = tokio::time::timeout(LAST_ROUNDS, &mut ending).await.is_ok();
            if let Some(peers) = &self.context.peers {
                peers.stop();
            }
            if !is_ended {
                ending.await;
            }
        }
        let log = self.context.log.clone();
        let ended = blocking(move || {
            log.close();
            // Joins the threads.
            drop(self);
        });
        if let Err(error) = ended.await {
            error!(%error, "the log was not closed in order");
        } else {
            info!("node ended");
        }
    }

    /// Waits for sessions to end, then ends those that have not.
    async fn end_sessions(&self, deadline: Instant) {
        let clients = &self.context.clients;
        let clock = &self.context.clock;
        while clients.count() > 0 && clock.now() < deadline {
            tokio::time::sleep(DRAIN_CHECK).await;
        }
        let left = clients.count();
        if left == 0 {
            return;
        }
        warn!(connections = left, "connections closed at the drain limit");
        for client in clients.all() {
            client.end(Ending::Kill);
        }
        let deadline = clock.now() + KILL_GRACE;
        while clients.count() > 0 && clock.now() < deadline {
            tokio::time::sleep(DRAIN_CHECK).await;
        }
    }

    async fn end_shards(&self) {
        let ends: Vec<_> = self
            .context
            .home
            .shards()
            .iter()
            .map(|shard| {
                let places = self.cores.places();
                let core = places.of_shard(shard.id().get());
                let shard = shard.clone();
                places
                    .handle(core)
                    .spawn(async move { shard.shutdown().await })
            })
            .collect();
        for end in ends {
            match tokio::time::timeout(SHARD_GRACE, end).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => error!(%error, "a shard did not end in order"),
                Err(_) => error!("a shard did not end in time"),
            }
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop_accepting.cancel();
        if let Some(peers) = &self.context.peers {
            peers.stop();
        }
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// Starts to accept on the port of RESP and FLUX.
fn accept(
    context: &Arc<Context>,
    places: &Arc<Places>,
    socket: std::net::TcpListener,
    stop: &CancellationToken,
) -> Result<(), StartError> {
    let executor_of_core = |core| {
        let lanes = Lanes::of_core(Arc::clone(places), core);
        Executor::new(Arc::clone(&context.home), lanes)
    };
    let executors = (0..places.count()).map(executor_of_core).collect();
    let acceptor = Acceptor {
        context: Arc::clone(context),
        places: Arc::clone(places),
        executors,
    };
    // The listener's socket belongs to the runtime of the first core.
    let handle = places.handle(0);
    let _entered = handle.enter();
    let listener = listener(socket)?;
    handle.spawn(acceptor.run(listener, stop.clone()));
    handle.spawn(end_idle(Arc::clone(context), stop.clone()));
    handle.spawn(keep_topology(context));
    Ok(())
}

/// What a node knows of itself.
fn own_topology(config: &Config, addresses: Addresses, node: NodeId, shards: &[Shard]) -> Topology {
    let own = NodePlace {
        node,
        host: host(config, addresses.resp.ip()),
        resp: addresses.resp.port(),
        grpc: addresses.grpc.port(),
        admin: addresses.admin.port(),
        peer: 0,
        is_reachable: true,
    };
    Topology {
        own: node,
        shards: topology::of_shards(shards),
        nodes: vec![own],
    }
}

/// Keeps the picture of the cluster up to date.
fn keep_topology(context: &Context) -> impl Future<Output = ()> + Send + use<> {
    let handle = context.topology.clone();
    let (config, addresses) = (context.config.clone(), context.addresses);
    let (node, home) = (context.identity.node, Arc::clone(&context.home));
    let peers = context.peers.clone();
    topology::keep(handle, move || match &peers {
        Some(peers) => peers.topology(&home.shards()),
        None => own_topology(&config, addresses, node, &home.shards()),
    })
}

impl Context {
    /// Whether every shard can be served from here.
    fn is_served(&self) -> bool {
        self.peers.as_ref().is_none_or(|peers| {
            self.home
                .shards()
                .iter()
                .all(|shard| peers.is_served(shard))
        })
    }
}

/// Runs what blocks on a thread of its own.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, StartError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| StartError::System {
            what: "a blocking task did not end in order",
            source: std::io::Error::other(error),
        })
}

/// Lets metrics read the replicas and stores of the shards.
fn register_shards(registry: &Registry, home: &Arc<Home>) {
    let (stores, clock) = (Arc::clone(home), Arc::clone(home));
    let stores = move || {
        let shards = stores.shards();
        let store = |shard: &Shard| (shard.id(), Arc::clone(shard.store()));
        shards.iter().map(store).collect()
    };
    // All shards of a node expire keys by one clock, so any of them tells it.
    let now = move || clock.shards().first().map_or(UnixMillis::ZERO, Shard::now);
    register_stores(registry, stores, now);
    let home = Arc::clone(home);
    register_raft(registry, move || {
        home.shards().iter().map(Shard::status).collect()
    });
}

fn start_cores(config: &Config) -> Result<Cores, StartError> {
    Cores::start(config.thread_count()).map_err(|source| StartError::System {
        what: "failed to start a thread",
        source,
    })
}

fn listener(socket: std::net::TcpListener) -> Result<TcpListener, StartError> {
    TcpListener::from_std(socket).map_err(|source| StartError::System {
        what: "failed to register a listener with its runtime",
        source,
    })
}

/// Starts the sink for RabbitMQ, if there is to be one.
fn publisher(
    context: &Context,
    checks: &Checks,
    changes: &Changes,
) -> Result<Option<Publisher>, StartError> {
    let started = Publisher::start(&PublisherParts {
        config: &context.config.cdc.rabbitmq,
        cluster: context.identity.cluster,
        changes,
        clock: &context.clock,
        registry: context.metrics.registry(),
        checks,
    });
    started.map_err(|source| StartError::System {
        what: "failed to start the sink for RabbitMQ",
        source,
    })
}

/// The executor of whoever runs on the caller's runtime. It submits directly: its threads are not
/// ours, so there is no turn in which to gather.
fn executor_of_caller(home: &Arc<Home>) -> Executor {
    Executor::new(Arc::clone(home), Lanes::none())
}

//! Starting and stopping a gateway: threads, the tasks that keep descriptors fresh, the drain.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use arc_swap::ArcSwap;
use flux_env::{Clock, RealClock};
use flux_telemetry::{Kind, Registry};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::JoinSet;
use tracing::info;

use crate::config::{Config, DescriptorSource};
use crate::descriptor::refresh::Refresh;
use crate::error::StartError;
use crate::live::Live;
use crate::metrics::Metrics;
use crate::policy::breaker::Standing;
use crate::serve::listen;
use crate::serve::pipeline::Shared;
use crate::serve::worker::{Phase, Worker};
use crate::surroundings::Surroundings;

/// Where a gateway listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// HTTP/1.1 and HTTP/2 without TLS.
    pub http: SocketAddr,
}

/// A running gateway. Dropping it stops it at once; [`Gateway::shutdown`] lets it finish.
#[derive(Debug)]
pub struct Gateway {
    addresses: Addresses,
    shared: Shared,
    /// Tells that the configuration is another.
    changed: watch::Sender<()>,
    phase: watch::Sender<Phase>,
    threads: Vec<Thread>,
}

#[derive(Debug)]
struct Thread {
    handle: thread::JoinHandle<()>,
    /// Told when the thread's work has ended.
    ended: oneshot::Receiver<()>,
}

impl Gateway {
    /// Starts a gateway with a metrics registry of its own.
    ///
    /// # Errors
    /// As [`Self::start_with`].
    pub fn start(config: Config) -> Result<Self, StartError> {
        Self::start_with(config, &Registry::new())
    }

    /// Starts a gateway that registers its metrics with `registry`. It accepts connections when
    /// this returns; its upstreams need not be there yet.
    ///
    /// # Errors
    /// Mistakes in the configuration, an address that is taken, descriptors that cannot be read,
    /// threads that cannot be made. Nothing is left running then.
    ///
    /// # Panics
    /// If `registry` has a gateway's metrics already.
    pub fn start_with(config: Config, registry: &Registry) -> Result<Self, StartError> {
        Self::start_in(config, registry, Surroundings::default())
    }

    /// As [`Self::start_with`], with what the process around it offers.
    ///
    /// # Errors
    /// As [`Self::start_with`].
    ///
    /// # Panics
    /// As [`Self::start_with`].
    pub fn start_in(
        config: Config,
        registry: &Registry,
        surroundings: Surroundings,
    ) -> Result<Self, StartError> {
        let clock: Arc<dyn Clock> = Arc::new(RealClock::new());
        let metrics = Arc::new(Metrics::new(registry));
        let live = Live::new(config, &metrics, &clock, &surroundings, None)?;
        let config = &live.config;
        let workers = match config.workers {
            0 => thread::available_parallelism().map_or(1, usize::from),
            count => count,
        };
        let listen_error = |source| StartError::Listen {
            address: config.listen,
            source,
        };
        let listeners = listen::open(config.listen, workers).map_err(listen_error)?;
        let http = listeners
            .first()
            .map_or(Ok(config.listen), |l| l.local_addr());
        let addresses = Addresses {
            http: http.map_err(listen_error)?,
        };
        let places = Arc::new(Semaphore::new(config.connections_max));
        let shared = Shared {
            live: Arc::new(ArcSwap::from_pointee(live)),
            metrics,
            clock,
            surroundings,
        };
        register_policies(registry, &shared.live);
        let phase = watch::Sender::new(Phase::Run);
        let changed = watch::Sender::new(());
        let mut threads = Vec::with_capacity(workers + 1);
        for (index, listener) in listeners.into_iter().enumerate() {
            let worker = Worker {
                listener,
                shared: shared.clone(),
                places: Arc::clone(&places),
                phase: phase.subscribe(),
            };
            threads.push(spawn(format!("gateway-{index}"), worker.run())?);
        }
        let refresh = refresh(shared.clone(), changed.subscribe(), phase.subscribe());
        threads.push(spawn("gateway-control".to_owned(), refresh)?);
        info!(http = %addresses.http, workers, "gateway accepts requests");
        Ok(Self {
            addresses,
            shared,
            changed,
            phase,
            threads,
        })
    }

    /// Puts another configuration into effect: all of it at once, for requests that begin from now
    /// on. Those under way end as they began. What it leaves as it was keeps its state. Returns the
    /// keys whose change waits for the next start.
    ///
    /// # Errors
    /// Mistakes in it, descriptors that cannot be read. Then the one before stays in effect.
    pub fn reload(&self, config: Config) -> Result<Vec<&'static str>, StartError> {
        let old = self.shared.live.load_full();
        let mut waiting = Vec::new();
        if config.listen != old.config.listen {
            waiting.push("listen");
        }
        if config.workers != old.config.workers {
            waiting.push("workers");
        }
        if config.connections_max != old.config.connections_max {
            waiting.push("connections-max");
        }
        let Shared {
            metrics,
            clock,
            surroundings,
            ..
        } = &self.shared;
        let live = Live::new(config, metrics, clock, surroundings, Some(&old))?;
        self.shared.live.store(Arc::new(live));
        self.changed.send_replace(());
        Ok(waiting)
    }

    /// Where it listens; with port 0 configured, the port that it was given.
    #[must_use]
    pub const fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Stops accepting, lets every request under way finish, closes idle connections, and returns
    /// when all threads have ended; after `drain` what is left is cut off.
    ///
    /// # Cancellation
    /// Dropping the future stops the gateway at once.
    pub async fn shutdown(mut self, drain: Duration) {
        self.phase.send_replace(Phase::Drain);
        let threads = std::mem::take(&mut self.threads);
        let phase = self.phase.clone();
        // The caller may have no runtime with a timer: the limit is kept by a thread of its own.
        let (finished, cut) = oneshot::channel::<()>();
        let limit = spawn("gateway-drain".to_owned(), async move {
            if tokio::time::timeout(drain, cut).await.is_err() {
                phase.send_replace(Phase::Stop);
            }
        });
        if limit.is_err() {
            self.phase.send_replace(Phase::Stop);
        }
        for thread in threads {
            // An error is a thread that has ended without saying so, by a panic.
            let _ = thread.ended.await;
            drop(thread.handle.join());
        }
        drop(finished);
        if let Ok(limit) = limit {
            let _ = limit.ended.await;
            drop(limit.handle.join());
        }
        info!("gateway has stopped");
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.phase.send_replace(Phase::Stop);
    }
}

/// What is read from the policies at each scrape.
fn register_policies(registry: &Registry, live: &Arc<ArcSwap<Live>>) {
    let source = Arc::clone(live);
    registry.collect(
        "flux_gateway_breaker_state",
        "How the breaker of an upstream stands: 0 closed, 1 half open (one call on trial), 2 open",
        Kind::Gauge,
        &["upstream"],
        move |samples| {
            for upstream in &source.load().policies.upstreams {
                if let Some(breaker) = &upstream.breaker {
                    let state = match breaker.standing() {
                        Standing::Closed => 0_u64,
                        Standing::HalfOpen => 1,
                        Standing::Open => 2,
                    };
                    samples.push(&[&upstream.name], state);
                }
            }
        },
    );
    let source = Arc::clone(live);
    registry.collect(
        "flux_gateway_upstream_calls_in_flight",
        "Calls of an upstream under way",
        Kind::Gauge,
        &["upstream"],
        move |samples| {
            for upstream in &source.load().policies.upstreams {
                samples.push(&[&upstream.name], upstream.bulkhead.taken());
            }
        },
    );
    let source = Arc::clone(live);
    registry.collect(
        "flux_gateway_endpoints",
        "Endpoints of an upstream: in use, or passed over because calls of them fail",
        Kind::Gauge,
        &["upstream", "state"],
        move |samples| {
            for upstream in &source.load().upstreams {
                let (used, passed_over) = upstream.members.count();
                samples.push(&[&upstream.name, "in"], used);
                samples.push(&[&upstream.name, "out"], passed_over);
            }
        },
    );
}

/// Asks upstreams for their descriptors, those of another configuration once it is in effect.
async fn refresh(
    shared: Shared,
    mut changed: watch::Receiver<()>,
    mut phase: watch::Receiver<Phase>,
) {
    loop {
        changed.mark_unchanged();
        let live = shared.live.load_full();
        let tasks = live
            .config
            .upstreams
            .iter()
            .zip(&live.upstreams)
            .enumerate();
        let tasks =
            tasks.filter(|(_, (config, _))| config.descriptors == DescriptorSource::Reflection);
        let mut running: JoinSet<()> = tasks
            .map(|(position, (config, upstream))| {
                let refresh = Refresh {
                    catalog: Arc::clone(&live.catalog),
                    upstream: Arc::clone(upstream),
                    position,
                    services: config.services.clone(),
                    interval: config.refresh.get(),
                };
                refresh.run()
            })
            .collect();
        drop(live);
        let is_over = tokio::select! {
            _ = phase.wait_for(|phase| *phase >= Phase::Drain) => true,
            // Its sender lives as long as the gateway; without it this is over, too.
            another = changed.changed() => another.is_err(),
        };
        running.shutdown().await;
        if is_over {
            return;
        }
    }
}

/// A thread with a runtime of its own that runs `work`.
fn spawn(
    name: String,
    work: impl Future<Output = ()> + Send + 'static,
) -> Result<Thread, StartError> {
    let worker_error = |source| StartError::Worker { source };
    let runtime: Runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(worker_error)?;
    let (end, ended) = oneshot::channel();
    let handle = thread::Builder::new()
        .name(name)
        .spawn(move || {
            runtime.block_on(work);
            // Looking up the name of an upstream that is gone blocks for seconds, and matters to
            // nobody any more.
            runtime.shutdown_background();
            // A receiver that is gone is a gateway that was dropped.
            let _ = end.send(());
        })
        .map_err(worker_error)?;
    Ok(Thread { handle, ended })
}

//! `flux start`, `server` and `gateway`: probe, start, say so, wait for the end, drain.
//!
//! Mistakes are found before anything is created: settings first, then every port of every part,
//! then the ready file. A node starts before the gateway in front of it and stops after it, so that
//! no request meets a part that is gone.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use flux_cluster::registry::Registry as Services;
use flux_gateway::{Gateway, Surroundings};
use flux_server::Node;
use flux_telemetry::{Checks, Registry, process};
use tracing::{error, info};

use crate::admin::Admin;
use crate::args::Run;
use crate::banner::{Facts, banner};
use crate::cmd::finish;
use crate::cmd::reload::Reload;
use crate::cmd::trial::{self, Chaos, Trial};
use crate::panics;
use crate::ready::{Addresses, ReadyFile};
use crate::settings::{Part, Settings, UPSTREAM, Upstream, read_layers, resolve};
use crate::signals::{Signals, Waited};
use crate::traces::Traces;
use crate::{Failure, out, ports};

/// A single voter elects itself within a second; a machine under load needs a little more.
const READY_PATIENCE: Duration = Duration::from_secs(60);

/// What people do not want to know about the libraries we stand on: what matters of their doings we
/// say ourselves, in our words. A level that names a library still rules it.
const LIBRARIES: &str = "openraft=error,h2=warn,hyper=warn,tower=warn,tonic=warn,lapin=off";

/// Runs the parts until a signal or a failure ends them.
///
/// # Errors
/// Mistakes in settings, ports and folders; damage; a failure of a running part.
pub(crate) fn run(run: Run) -> Result<(), Failure> {
    let parts = run.parts;
    let layers = read_layers(run.config.clone(), run.flags.clone())?;
    let resolved = resolve(&layers, parts)?;
    if 1 < run.nodes {
        trial::review(&resolved, run.nodes)?;
    }
    let settings = resolved.settings;
    let ready = settings
        .ready_file
        .as_deref()
        .map(ReadyFile::prepare)
        .transpose();
    let ready = ready.map_err(Failure::Mistake)?;
    ports::probe(settings.bind, &settings.ports(parts))
        .map_err(|problems| Failure::Mistake(problems.join("\n")))?;
    install_logs(&settings)?;
    panics::install();
    if let Some(step) = run.moves_held_at {
        flux_types::hold::after(step);
    }
    let runtime = tokio::runtime::Runtime::new()
        .map_err(|error| Failure::Failed(format!("the runtime: {error}")))?;
    let origin = (run, layers.file);
    finish(runtime, serve(&settings, origin, ready))
}

/// Sets up the log of the process.
///
/// # Errors
/// A level that is none.
pub(crate) fn install_logs(settings: &Settings) -> Result<(), Failure> {
    let logs = flux_telemetry::logs::Config {
        level: settings.log_level.clone(),
        format: settings.telemetry.log_format,
    };
    flux_telemetry::logs::install(&logs, LIBRARIES, flux_env::wall_nanos)
        .map_err(|error| Failure::Mistake(error.to_string()))
}

/// Everything that runs.
#[derive(Debug, Default)]
struct Running {
    registry: Registry,
    checks: Checks,
    /// Looks for endpoints for as long as it is held.
    services: Option<Services>,
    node: Option<Node>,
    /// Further nodes of a cluster in this process.
    trial: Option<Trial>,
    gateway: Option<Gateway>,
    /// What is behind the gateway by these settings.
    upstream: Option<Upstream>,
    admin: Option<Admin>,
    traces: Traces,
}

async fn serve(
    settings: &Settings,
    (run, file): (Run, Option<(PathBuf, String)>),
    mut ready: Option<ReadyFile>,
) -> Result<(), Failure> {
    let parts = run.parts;
    let mut signals = Signals::listen()
        .map_err(|error| Failure::Failed(format!("cannot listen for signals: {error}")))?;
    let mut running = tokio::select! {
        running = start(settings, parts, run.nodes) => running?,
        // Nothing has been promised yet, so there is nothing to finish.
        () = signals.next() => return Ok(()),
    };
    let has_chaos = run.has_chaos;
    let watch = Reload::watch(run, file, settings, &running.registry, &running.checks);
    let mut reload =
        watch.map_err(|error| Failure::Failed(format!("cannot listen for signals: {error}")))?;
    let addresses = running.addresses();
    if let Some(file) = &mut ready {
        file.write(&addresses, std::process::id())
            .map_err(|error| Failure::Failed(format!("the ready file: {error}")))?;
    }
    out::text(&describe(settings, parts, &addresses, &running));
    let chaos = match (&running.node, &running.trial) {
        (Some(first), Some(trial)) if has_chaos => Some(Chaos::start(first, trial)?),
        _ => None,
    };
    let waited = loop {
        tokio::select! {
            waited = signals.or(running.failure()) => break waited,
            () = reload.wanted() => {
                reload.reload(running.gateway.as_ref(), running.upstream.as_ref());
            }
        }
    };
    // Gone before anything else, so that nobody is sent here any more.
    drop(ready);
    match waited {
        Waited::Signal => {
            info!("stopping");
            signals.exit_on_the_next();
            let found = match chaos {
                Some(chaos) => chaos.stop().await,
                None => Ok(()),
            };
            running.shutdown(settings).await;
            found.map_err(Failure::Failed)
        }
        Waited::Other(problem) => {
            error!(%problem, "the node cannot go on");
            if let Some(node) = &mut running.node {
                node.withdraw().await;
            }
            Err(Failure::Failed(format!("the node cannot go on: {problem}")))
        }
    }
}

async fn start(settings: &Settings, parts: &[Part], nodes: u32) -> Result<Running, Failure> {
    let mut running = Running::default();
    describe_process(&running.registry);
    running.traces = Traces::start(&settings.telemetry, &running.registry)?;
    let services = services(settings, &running.registry, &running.checks)?;
    if parts.contains(&Part::Node) && 1 < nodes {
        let starting = Trial::start(settings, parts, nodes, &running.registry, &running.checks);
        let (first, trial) = Box::pin(starting).await?;
        running.node = Some(first);
        running.trial = Some(trial);
    } else if parts.contains(&Part::Node) {
        running.node = Some(start_node(settings, parts, &running).await?);
    }
    if parts.contains(&Part::Gateway) {
        running.start_gateway(settings, parts, &services).await?;
    }
    running.register(&services)?;
    running.services = Some(services);
    Ok(running)
}

/// What is measured of every process, whatever runs in it.
fn describe_process(registry: &Registry) {
    process::register(registry);
    registry.info(
        "flux_build",
        "What runs here",
        &[
            ("version", env!("CARGO_PKG_VERSION")),
            ("rustc", env!("FLUX_RUSTC")),
        ],
    );
}

/// Opens the registry of services that the settings name.
///
/// # Errors
/// A mistake in them.
pub(crate) fn services(
    settings: &Settings,
    metrics: &Registry,
    checks: &Checks,
) -> Result<Services, Failure> {
    let seed = flux_env::entropy_u64()
        .map_err(|error| Failure::Failed(format!("cannot draw random bits: {error}")))?;
    let parts = flux_cluster::registry::Parts {
        clock: Arc::new(flux_env::RealClock::new()),
        disk: Arc::new(flux_env::RealDisk),
        seed,
        metrics: metrics.clone(),
        checks: checks.clone(),
    };
    Services::open(settings.registry.config(), parts)
        .map_err(|error| Failure::Mistake(format!("the registry: {error}")))
}

async fn start_node(
    settings: &Settings,
    parts: &[Part],
    running: &Running,
) -> Result<Node, Failure> {
    let node = Node::start_with(settings.node(parts), &running.registry, &running.checks)
        .await
        .map_err(|error| start_error(&error))?;
    wait_ready(node).await
}

/// What the process says and exits with when a node does not start.
pub(crate) fn start_error(error: &flux_server::error::StartError) -> Failure {
    let message = error.to_string();
    match error.exit_code() {
        2 => Failure::Mistake(message),
        3 => Failure::Damage(message),
        _ => Failure::Failed(message),
    }
}

/// Waits until a node can serve.
pub(crate) async fn wait_ready(node: Node) -> Result<Node, Failure> {
    let failed = |problem: &dyn std::fmt::Display| {
        Failure::Failed(format!("the node cannot start to write: {problem}"))
    };
    tokio::select! {
        ready = node.wait_ready(READY_PATIENCE) => ready.map_err(|error| failed(&error))?,
        failure = node.failed() => return Err(failed(&failure)),
    }
    Ok(node)
}

impl Running {
    async fn start_gateway(
        &mut self,
        settings: &Settings,
        parts: &[Part],
        services: &Services,
    ) -> Result<(), Failure> {
        let failed =
            |error: &dyn std::fmt::Display| Failure::Mistake(format!("the gateway: {error}"));
        let upstream = match (&settings.upstream, &self.node) {
            (Some(other), _) => Upstream::Other(other.clone()),
            // Its own node is nearer than any that it could find.
            (None, Some(node)) => Upstream::Node(
                reachable(node.addresses().grpc),
                flux_proto::FILE_DESCRIPTOR_SET,
            ),
            (None, None) => Upstream::Discovered(flux_proto::KV_SERVICE),
        };
        let listen = SocketAddr::new(settings.bind, settings.http_port);
        let config = settings
            .gateway(listen, &upstream)
            .map_err(|error| failed(&error))?;
        let own = self.node.as_ref();
        let own = own.filter(|_| matches!(upstream, Upstream::Node(..)));
        let surroundings = Surroundings {
            services: Some(services.clone()),
            activities: own
                .map(|node| (UPSTREAM.to_owned(), activity(node)))
                .into_iter()
                .collect(),
        };
        let gateway = Gateway::start_in(config, &self.registry, surroundings)
            .map_err(|error| failed(&error))?;
        self.gateway = Some(gateway);
        self.upstream = Some(upstream);
        if self.node.is_none() {
            // A node brings its own admin port, which then tells of both.
            let address = SocketAddr::new(settings.bind, settings.admin_port_for(parts));
            let admin = Admin::start(address, self.registry.clone(), self.checks.clone())
                .await
                .map_err(|error| failed(&error))?;
            self.admin = Some(admin);
        }
        Ok(())
    }

    /// Lets others find the node, now that everything answers.
    fn register(&mut self, services: &Services) -> Result<(), Failure> {
        let http = self.addresses().http;
        match &mut self.node {
            Some(node) => node
                .register(services, http)
                .map_err(|error| Failure::Mistake(format!("the registry: {error}"))),
            None => Ok(()),
        }
    }

    fn addresses(&self) -> Addresses {
        let node = self.node.as_ref().map(Node::addresses);
        Addresses {
            resp: node.map(|node| node.resp),
            grpc: node.map(|node| node.grpc),
            http: self
                .gateway
                .as_ref()
                .map(|gateway| gateway.addresses().http),
            admin: node
                .map(|node| node.admin)
                .or_else(|| self.admin.as_ref().map(Admin::address)),
            peer: node.and_then(|node| node.peer),
        }
    }

    /// Waits until a node says that it cannot go on.
    async fn failure(&self) -> String {
        let first = async {
            match &self.node {
                Some(node) => node.failed().await.to_string(),
                None => std::future::pending().await,
            }
        };
        let others = async {
            match &self.trial {
                Some(trial) => trial.failed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            problem = first => problem,
            problem = others => problem,
        }
    }

    /// The registration first of all, so that nobody new is sent here; then the gateway: its
    /// requests in hand need the node.
    async fn shutdown(mut self, settings: &Settings) {
        let drain = settings.drain_timeout;
        if let Some(node) = &mut self.node {
            node.withdraw().await;
            if settings.registry.is_shared() {
                // Whoever watches hears of it within milliseconds, and may have a call on its way.
                tokio::time::sleep(settings.registry.drain_delay).await;
            }
        }
        let begun = tokio::time::Instant::now();
        if let Some(gateway) = self.gateway {
            gateway.shutdown(drain).await;
        }
        if let Some(node) = self.node {
            node.shutdown(drain.saturating_sub(begun.elapsed())).await;
        }
        if let Some(trial) = &self.trial {
            trial.shutdown(drain.saturating_sub(begun.elapsed())).await;
        }
        drop(self.services);
        // Last, so that a scraper sees the drain.
        drop(self.admin);
        info!("stopped");
        self.traces.shutdown().await;
    }
}

/// What changes in the node behind the gateway, of whichever protocol a write comes by.
#[derive(Debug)]
struct OwnNode(flux_server::Activity);

impl flux_gateway::Activity for OwnNode {
    fn begun(&self) -> u64 {
        self.0.begun()
    }

    fn ended(&self) -> u64 {
        self.0.ended()
    }
}

fn activity(node: &Node) -> Arc<dyn flux_gateway::Activity> {
    Arc::new(OwnNode(node.activity()))
}

/// An address under which a listener of this process can be reached by itself.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

fn describe(
    settings: &Settings,
    parts: &[Part],
    addresses: &Addresses,
    running: &Running,
) -> String {
    let data_dir = std::path::absolute(&settings.node.data_dir);
    let data_dir = data_dir.unwrap_or_else(|_| settings.node.data_dir.clone());
    let program = program();
    let registry = (settings.registry.is_shared()).then(|| settings.registry.place());
    let upstream = settings.upstream.clone().or_else(|| {
        let service = flux_proto::KV_SERVICE;
        registry
            .as_ref()
            .map(|_| format!("{service}, as registered"))
    });
    let node = running.node.as_ref().map(|node| {
        (
            data_dir.as_path(),
            settings.node.fsync.as_str(),
            node.shard_count(),
        )
    });
    banner(&Facts {
        addresses,
        node,
        upstream: upstream.as_deref().filter(|_| parts == [Part::Gateway]),
        registry: registry.as_deref(),
        program: &program,
        with_password: settings.password.is_some(),
    })
}

/// How this program can be called from here: by its name if it is on the path, else by its path.
fn program() -> String {
    let Ok(own) = std::env::current_exe() else {
        return "flux".to_owned();
    };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_on_path = std::env::split_paths(&path).any(|folder| {
        folder
            .join("flux")
            .canonicalize()
            .is_ok_and(|found| found == own)
    });
    if is_on_path {
        return "flux".to_owned();
    }
    let here = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    own.strip_prefix(&here)
        .unwrap_or(&own)
        .display()
        .to_string()
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;

//! `flux start`, `server` and `gateway`: probe, start, say so, wait for the end, drain.
//!
//! Mistakes are found before anything is created: settings first, then every port of every part,
//! then the ready file. A node starts before the gateway in front of it and stops after it, so that
//! no request meets a part that is gone.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use flux_gateway::Gateway;
use flux_server::Node;
use flux_telemetry::{Checks, Registry, process};
use tracing::{error, info};

use crate::admin::Admin;
use crate::args::Run;
use crate::banner::{Facts, banner};
use crate::cmd::reload::Reload;
use crate::panics;
use crate::ready::{Addresses, ReadyFile};
use crate::settings::{Part, Settings, Upstream, read_layers, resolve};
use crate::signals::{Signals, Waited};
use crate::traces::Traces;
use crate::{Failure, out, ports};

/// A single voter elects itself within a second; a machine under load needs a little more.
const READY_PATIENCE: Duration = Duration::from_secs(60);

/// What people do not want to know about the libraries we stand on: what matters of their doings we
/// say ourselves, in our words. A level that names a library still rules it.
const LIBRARIES: &str = "openraft=warn,h2=warn,hyper=warn,tower=warn,tonic=warn,lapin=off";

/// Runs the parts until a signal or a failure ends them.
///
/// # Errors
/// Mistakes in settings, ports and folders; damage; a failure of a running part.
pub(crate) fn run(run: Run) -> Result<(), Failure> {
    let parts = run.parts;
    let layers = read_layers(run.config.clone(), run.flags.clone())?;
    let settings = resolve(&layers, parts)?.settings;
    let ready = settings
        .ready_file
        .as_deref()
        .map(ReadyFile::prepare)
        .transpose();
    let ready = ready.map_err(Failure::Mistake)?;
    ports::probe(settings.bind, &settings.ports(parts))
        .map_err(|problems| Failure::Mistake(problems.join("\n")))?;
    let logs = flux_telemetry::logs::Config {
        level: settings.log_level.clone(),
        format: settings.telemetry.log_format,
    };
    flux_telemetry::logs::install(&logs, LIBRARIES, flux_env::wall_nanos)
        .map_err(|error| Failure::Mistake(error.to_string()))?;
    panics::install();
    let runtime = tokio::runtime::Runtime::new()
        .map_err(|error| Failure::Failed(format!("the runtime: {error}")))?;
    let origin = (run, layers.file);
    runtime.block_on(serve(&settings, origin, ready))
}

/// Everything that runs.
#[derive(Debug, Default)]
struct Running {
    registry: Registry,
    checks: Checks,
    node: Option<Node>,
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
    let running = tokio::select! {
        running = start(settings, parts) => running?,
        // Nothing has been promised yet, so there is nothing to finish.
        () = signals.next() => return Ok(()),
    };
    let watch = Reload::watch(run, file, settings, &running.registry, &running.checks);
    let mut reload =
        watch.map_err(|error| Failure::Failed(format!("cannot listen for signals: {error}")))?;
    let addresses = running.addresses();
    if let Some(file) = &mut ready {
        file.write(&addresses, std::process::id())
            .map_err(|error| Failure::Failed(format!("the ready file: {error}")))?;
    }
    out::text(&describe(settings, parts, &addresses, &running));
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
            running.shutdown(settings.drain_timeout).await;
            Ok(())
        }
        Waited::Other(problem) => {
            error!(%problem, "the node cannot go on");
            Err(Failure::Failed(format!("the node cannot go on: {problem}")))
        }
    }
}

async fn start(settings: &Settings, parts: &[Part]) -> Result<Running, Failure> {
    let mut running = Running::default();
    describe_process(&running.registry);
    running.traces = Traces::start(&settings.telemetry, &running.registry)?;
    if parts.contains(&Part::Node) {
        running.node = Some(start_node(settings, parts, &running).await?);
    }
    if parts.contains(&Part::Gateway) {
        running.start_gateway(settings, parts).await?;
    }
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

async fn start_node(
    settings: &Settings,
    parts: &[Part],
    running: &Running,
) -> Result<Node, Failure> {
    let node = Node::start_with(settings.node(parts), &running.registry, &running.checks)
        .await
        .map_err(|error| {
            let message = error.to_string();
            match error.exit_code() {
                2 => Failure::Mistake(message),
                3 => Failure::Damage(message),
                _ => Failure::Failed(message),
            }
        })?;
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
    async fn start_gateway(&mut self, settings: &Settings, parts: &[Part]) -> Result<(), Failure> {
        let failed =
            |error: &dyn std::fmt::Display| Failure::Mistake(format!("the gateway: {error}"));
        let upstream = match (&settings.upstream, &self.node) {
            (Some(other), _) => Upstream::Other(other.clone()),
            (None, Some(node)) => Upstream::Node(
                reachable(node.addresses().grpc),
                flux_proto::FILE_DESCRIPTOR_SET,
            ),
            (None, None) => return Err(failed(&"there is no upstream")),
        };
        let listen = SocketAddr::new(settings.bind, settings.http_port);
        let config = settings
            .gateway(listen, &upstream)
            .map_err(|error| failed(&error))?;
        let gateway =
            Gateway::start_with(config, &self.registry).map_err(|error| failed(&error))?;
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
        }
    }

    /// Waits until the node says that it cannot go on.
    async fn failure(&self) -> String {
        match &self.node {
            Some(node) => node.failed().await.to_string(),
            None => std::future::pending().await,
        }
    }

    /// The gateway first: its requests in hand need the node.
    async fn shutdown(self, drain: Duration) {
        let begun = tokio::time::Instant::now();
        if let Some(gateway) = self.gateway {
            gateway.shutdown(drain).await;
        }
        if let Some(node) = self.node {
            node.shutdown(drain.saturating_sub(begun.elapsed())).await;
        }
        // Last, so that a scraper sees the drain.
        drop(self.admin);
        info!("stopped");
        self.traces.shutdown().await;
    }
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
        upstream: settings
            .upstream
            .as_deref()
            .filter(|_| parts == [Part::Gateway]),
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

//! `flux start --nodes 3`: a whole cluster in one process, for trying; and `--chaos`, which kills
//! its leaders while clients write and read, and judges what they saw.
//!
//! The first node has the ports of the settings, the others any free ones. Each has a folder of its
//! own in the data folder, and they replicate over loopback as separate processes would. A killed
//! node loses its connections and tasks, and its log is left as a killed process leaves it. What
//! ends one of the nodes ends the process, as it does with a node alone.

mod chaos;
mod tally;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use flux_server::{Config, Node, PeerPort};
use flux_telemetry::{Checks, Registry};
use futures_util::future::try_join_all;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use tracing::info;

use super::run::{start_error, wait_ready};
use crate::Failure;
use crate::settings::{KEYS, Part, Resolved, Settings};

pub(crate) use self::chaos::Chaos;

/// Most nodes in one process.
const NODES_MAX: u32 = 7;
/// Shards of a cluster for trying, unless something else is asked for.
const SHARDS: u32 = 4;
/// How often a killed node is tried again while the system still holds what was its.
const RETRY: Duration = Duration::from_millis(100);
const RETRIES: u32 = 50;
/// How long a killed node may take to serve again.
const COME_BACK: Duration = Duration::from_secs(60);
/// Settings that say of one node what cannot be said of several.
const OF_ONE: [&str; 7] = [
    "node.name",
    "node.advertise",
    "node.node-id",
    "node.peer-port",
    "node.advertise-peer-port",
    "node.join",
    "node.replicas",
];

/// Refuses settings that cannot be those of several nodes in one process.
///
/// # Errors
/// Which, and where they come from; a folder that belongs to something else.
pub(crate) fn review(resolved: &Resolved, count: u32) -> Result<(), Failure> {
    let settings = &resolved.settings;
    if !settings.bind.is_loopback() {
        return Err(Failure::Mistake(format!(
            "--bind {}: --nodes {count} runs a cluster for trying on loopback: bind to 127.0.0.1, \
             or run every node as a process of its own",
            settings.bind
        )));
    }
    let ours = Settings {
        node: Config {
            replicas: count,
            ..Config::default()
        },
        ..Settings::default()
    };
    let defaults = Settings::default();
    let of_one = KEYS.iter().filter(|key| OF_ONE.contains(&key.name));
    let given = of_one.filter_map(|key| {
        let value = (key.show)(settings);
        let is_harmless = value == (key.show)(&defaults) || value == (key.show)(&ours);
        let origin = resolved.origins.get(key.name).filter(|_| !is_harmless)?;
        let origin = origin.to_string();
        Some(if origin.contains(key.flag) || origin == key.variable {
            origin
        } else {
            format!("{} ({origin})", key.name)
        })
    });
    let given: Vec<String> = given.collect();
    if !given.is_empty() {
        return Err(Failure::Mistake(format!(
            "--nodes {count} gives each of its nodes a name, an address and a peer port of its own: \
             leave out {}",
            given.join(", ")
        )));
    }
    review_folder(&settings.node.data_dir, count)
}

/// The folder of a node alone is not that of several, and that of many not that of fewer: what is
/// left of them may be no majority, and would wait for the others without end.
fn review_folder(folder: &Path, count: u32) -> Result<(), Failure> {
    let shown = folder.display();
    if folder.join("IDENTITY").exists() {
        return Err(Failure::Mistake(format!(
            "--nodes: data directory {shown} belongs to one node alone; choose another --data-dir"
        )));
    }
    let node = |number: &u32| folder.join(format!("node-{number}"));
    let more = (count + 1..=NODES_MAX)
        .rev()
        .find(|number| node(number).exists());
    if let Some(last) = more {
        // Their number was odd; a start that was cut short may have left fewer.
        let all = last | 1;
        return Err(Failure::Mistake(format!(
            "--nodes {count}: data directory {shown} belongs to a cluster of {all} nodes: start it \
             with --nodes {all}, or choose another --data-dir"
        )));
    }
    Ok(())
}

/// The nodes beside the first.
#[derive(Debug)]
pub(crate) struct Trial {
    others: Arc<Vec<Slot>>,
    failure: Failures,
}

/// Tells the first of the failures that end the process.
#[derive(Clone, Debug)]
struct Failures(watch::Sender<Option<String>>);

impl Failures {
    fn tell(&self, problem: String) {
        self.0.send_if_modified(|first| {
            let is_first = first.is_none();
            if is_first {
                *first = Some(problem);
            }
            is_first
        });
    }
}

/// A place for one node.
#[derive(Debug)]
struct Slot {
    config: Config,
    place: Mutex<Option<Occupant>>,
    failure: Failures,
}

/// A node at work, and who waits for its failure.
#[derive(Debug)]
struct Occupant {
    node: Node,
    watcher: JoinHandle<()>,
}

impl Occupant {
    fn new(number: u32, node: Node, failure: Failures) -> Self {
        let failed = node.failed();
        let watcher = tokio::spawn(async move {
            failure.tell(format!("node {number}: {}", failed.await));
        });
        Self { node, watcher }
    }

    /// The node alone: whatever becomes of it now is intended.
    fn into_node(self) -> Node {
        self.watcher.abort();
        self.node
    }
}

/// The settings of one node of a cluster for trying: the first has what was set.
fn config(base: &Config, number: u32, address: SocketAddr, join: &[SocketAddr]) -> Config {
    let is_first = number == 1;
    let own = |port| if is_first { port } else { 0 };
    Config {
        node_id: number,
        peer_port: address.port(),
        join: join.iter().map(SocketAddr::to_string).collect(),
        replicas: u32::try_from(join.len()).unwrap_or(u32::MAX),
        port: own(base.port),
        grpc_port: own(base.grpc_port),
        admin_port: own(base.admin_port),
        data_dir: base.data_dir.join(format!("node-{number}")),
        shards_initial: SHARDS,
        threads: base.threads.max(1),
        ..base.clone()
    }
}

/// Starts one node and waits until it serves.
async fn start_one(
    config: Config,
    port: PeerPort,
    registry: &Registry,
    checks: &Checks,
) -> Result<Node, Failure> {
    let number = config.node_id;
    let of_node = |failure| {
        let named = |message| format!("node {number}: {message}");
        match failure {
            Failure::Failed(message) => Failure::Failed(named(message)),
            Failure::Mistake(message) => Failure::Mistake(named(message)),
            Failure::Damage(message) => Failure::Damage(named(message)),
            other @ (Failure::Unavailable(_) | Failure::Said | Failure::Status(_)) => other,
        }
    };
    let started = Node::start_on(config, Some(port), registry, checks).await;
    let node = started.map_err(|error| of_node(start_error(&error)))?;
    wait_ready(node).await.map_err(of_node)
}

impl Trial {
    /// Starts all nodes and waits until they serve; answers the first, and keeps the others. If one
    /// cannot start none does: the others would wait for it.
    ///
    /// # Errors
    /// As a node's start.
    pub(crate) async fn start(
        settings: &Settings,
        parts: &[Part],
        count: u32,
        registry: &Registry,
        checks: &Checks,
    ) -> Result<(Node, Self), Failure> {
        let base = settings.node(parts);
        let reserve = || PeerPort::reserve(base.bind).map_err(|error| start_error(&error));
        let first = reserve()?;
        let others = (1..count).map(|_| reserve());
        let others = others.collect::<Result<Vec<PeerPort>, Failure>>()?;
        let all = std::iter::once(&first).chain(&others);
        let join: Vec<SocketAddr> = all.map(PeerPort::address).collect();
        let failure = Failures(watch::Sender::new(None));
        let starting_others = (2..).zip(others).map(|(number, port)| {
            let config = config(&base, number, port.address(), &join);
            let failure = failure.clone();
            async move {
                let (registry, checks) = (Registry::new(), Checks::new());
                let node = start_one(config.clone(), port, &registry, &checks).await?;
                Ok(Slot::new(config, node, failure))
            }
        });
        let config = config(&base, 1, first.address(), &join);
        let (first, others) = tokio::try_join!(
            start_one(config, first, registry, checks),
            try_join_all(starting_others)
        )?;
        let trial = Self {
            others: Arc::new(others),
            failure,
        };
        Ok((first, trial))
    }

    /// Resolves when one of the other nodes cannot go on, or chaos cannot.
    pub(crate) fn failed(&self) -> impl Future<Output = String> + Send + use<> {
        let mut failure = self.failure.0.subscribe();
        async move {
            if let Ok(problem) = failure.wait_for(Option::is_some).await
                && let Some(problem) = &*problem
            {
                return problem.clone();
            }
            // Nobody is left who could fail.
            std::future::pending().await
        }
    }

    /// Ends the other nodes in order.
    pub(crate) async fn shutdown(&self, drain: Duration) {
        for slot in self.others.iter() {
            let occupant = slot.place.lock().await.take();
            if let Some(occupant) = occupant {
                occupant.into_node().shutdown(drain).await;
            }
        }
    }
}

impl Slot {
    fn new(config: Config, node: Node, failure: Failures) -> Self {
        // It comes back on the same ports.
        let addresses = node.addresses();
        let config = Config {
            port: addresses.resp.port(),
            grpc_port: addresses.grpc.port(),
            admin_port: addresses.admin.port(),
            ..config
        };
        let occupant = Occupant::new(config.node_id, node, failure.clone());
        Self {
            config,
            place: Mutex::new(Some(occupant)),
            failure,
        }
    }

    /// Kills the node, starts it again and waits until it serves.
    ///
    /// # Errors
    /// Why it does not come back.
    ///
    /// # Cancellation
    /// Safe to drop; the node is then gone.
    async fn kill_and_restart(&self) -> Result<(), String> {
        let number = self.config.node_id;
        let mut place = self.place.lock().await;
        if let Some(occupant) = place.take() {
            occupant.into_node().kill().await;
            info!(node = number, "killed a leader");
        }
        let coming_back = tokio::time::timeout(COME_BACK, self.start_again());
        let problem = match coming_back.await {
            Ok(Ok(node)) => {
                *place = Some(Occupant::new(number, node, self.failure.clone()));
                return Ok(());
            }
            Ok(Err(problem)) => problem,
            Err(_) => format!("it does not serve after {} s", COME_BACK.as_secs()),
        };
        Err(format!(
            "node {number} did not come back after it was killed: {problem}"
        ))
    }

    async fn start_again(&self) -> Result<Node, String> {
        let mut tries = 0;
        let node = loop {
            let (registry, checks) = (Registry::new(), Checks::new());
            match Node::start_with(self.config.clone(), &registry, &checks).await {
                Ok(node) => break node,
                // Its ports and its folder may be held for a moment more.
                Err(error) if tries < RETRIES => {
                    tries += 1;
                    tracing::debug!(node = self.config.node_id, %error, "not back yet");
                    tokio::time::sleep(RETRY).await;
                }
                Err(error) => return Err(error.to_string()),
            }
        };
        tokio::select! {
            ready = node.wait_ready(COME_BACK) => ready.map_err(|error| error.to_string())?,
            failure = node.failed() => return Err(failure.to_string()),
        }
        Ok(node)
    }

    /// How many shards the node leads.
    async fn leads(&self) -> usize {
        let place = self.place.lock().await;
        let occupant = place.as_ref();
        occupant.map_or(0, |occupant| occupant.node.leaderships().count())
    }
}

#[cfg(test)]
mod tests;

//! `flux start --nodes 3`: a whole cluster in one process, for trying; and `--chaos`, which kills
//! its leaders while clients write and read, and judges what they saw.
//!
//! The first node has the ports of the settings, the others any free ones. Each has a folder of its
//! own in the data folder, and they replicate over loopback as separate processes would. A killed
//! node loses its connections and tasks, and its log is left as a killed process leaves it.

mod chaos;

use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use flux_server::{Config, Node};
use flux_telemetry::{Checks, Registry};
use tokio::sync::Mutex;
use tracing::info;

use super::run::start_error;
use crate::Failure;
use crate::settings::{Part, Settings};

pub(crate) use self::chaos::Chaos;

/// Most nodes in one process.
pub(crate) const NODES_MAX: u32 = 7;
/// Shards of a cluster for trying, unless something else is asked for.
const SHARDS: u32 = 4;
/// How often a killed node is tried again while the system still holds what was its.
const RETRY: Duration = Duration::from_millis(100);
const RETRIES: u32 = 50;

/// The nodes beside the first.
#[derive(Debug)]
pub(crate) struct Trial {
    others: Arc<Vec<Slot>>,
}

/// A place for one node.
#[derive(Debug)]
struct Slot {
    config: Config,
    node: Mutex<Option<Node>>,
}

/// The settings of every node of a cluster for trying.
///
/// # Errors
/// What the settings forbid.
fn configs(settings: &Settings, parts: &[Part], count: u32) -> Result<Vec<Config>, Failure> {
    let base = settings.node(parts);
    if base.node_id != 0 {
        let problem = "--nodes starts all nodes in this process: leave out --node-id and --join";
        return Err(Failure::Mistake(problem.to_owned()));
    }
    if count.is_multiple_of(2) || NODES_MAX < count {
        let problem = format!("--nodes {count}: choose 1, 3, 5 or 7");
        return Err(Failure::Mistake(problem));
    }
    refuse_folder_of_one(&base.data_dir)?;
    let ports = (0..count)
        .map(|_| free_port())
        .collect::<std::io::Result<Vec<u16>>>()
        .map_err(|error| Failure::Failed(format!("no free port for the nodes: {error}")))?;
    let join: Vec<String> = ports
        .iter()
        .map(|port| format!("127.0.0.1:{port}"))
        .collect();
    let config = |(number, port): (u32, &u16)| {
        let is_first = number == 1;
        let own = |port| if is_first { port } else { 0 };
        Config {
            node_id: number,
            peer_port: *port,
            join: join.clone(),
            replicas: count,
            port: own(base.port),
            grpc_port: own(base.grpc_port),
            admin_port: own(base.admin_port),
            bind: if is_first {
                base.bind
            } else {
                IpAddr::V4(Ipv4Addr::LOCALHOST)
            },
            data_dir: base.data_dir.join(format!("node-{number}")),
            shards_initial: SHARDS,
            threads: base.threads.max(1),
            ..base.clone()
        }
    };
    Ok((1..).zip(&ports).map(config).collect())
}

/// The folder of a node alone is not that of several.
fn refuse_folder_of_one(folder: &Path) -> Result<(), Failure> {
    if folder.join("IDENTITY").exists() {
        return Err(Failure::Mistake(format!(
            "--nodes: data directory {} belongs to one node alone; choose another --data-dir",
            folder.display()
        )));
    }
    Ok(())
}

fn free_port() -> std::io::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(listener.local_addr()?.port())
}

impl Trial {
    /// Starts all nodes; answers the first, and keeps the others.
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
        let mut configs = configs(settings, parts, count)?.into_iter();
        let first = configs
            .next()
            .ok_or_else(|| Failure::Mistake("--nodes 0: choose 1, 3, 5 or 7".to_owned()))?;
        let others: Vec<Config> = configs.collect();
        let starting_others = others.into_iter().map(|config| async move {
            let node = Node::start_with(config.clone(), &Registry::new(), &Checks::new()).await;
            node.map(|node| {
                // It comes back on the same ports.
                let addresses = node.addresses();
                let config = Config {
                    port: addresses.resp.port(),
                    grpc_port: addresses.grpc.port(),
                    admin_port: addresses.admin.port(),
                    ..config
                };
                Slot {
                    config,
                    node: Mutex::new(Some(node)),
                }
            })
        });
        let (first, others) = tokio::join!(
            Node::start_with(first, registry, checks),
            futures_util::future::join_all(starting_others)
        );
        let first = first.map_err(|error| start_error(&error))?;
        let others: Result<Vec<Slot>, _> = others.into_iter().collect();
        let others = others.map_err(|error| start_error(&error))?;
        for slot in &others {
            if let Some(node) = &*slot.node.lock().await {
                // A node of a cluster waits for the others without end.
                drop(node.wait_ready(Duration::MAX).await);
            }
        }
        let trial = Self {
            others: Arc::new(others),
        };
        Ok((first, trial))
    }

    /// Ends the other nodes in order.
    pub(crate) async fn shutdown(&self, drain: Duration) {
        for slot in self.others.iter() {
            let node = slot.node.lock().await.take();
            if let Some(node) = node {
                node.shutdown(drain).await;
            }
        }
    }
}

impl Slot {
    /// Kills the node and starts it again. Answers whether there was one.
    async fn kill_and_restart(&self) -> bool {
        let mut place = self.node.lock().await;
        let Some(node) = place.take() else {
            return false;
        };
        let number = self.config.node_id;
        node.kill().await;
        info!(node = number, "killed a leader");
        for _ in 0..RETRIES {
            let (registry, checks) = (Registry::new(), Checks::new());
            match Node::start_with(self.config.clone(), &registry, &checks).await {
                Ok(node) => {
                    *place = Some(node);
                    return true;
                }
                Err(error) => {
                    // Its ports and its folder may be held for a moment more.
                    tracing::debug!(node = number, %error, "not back yet");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
        tracing::error!(node = number, "the node does not come back");
        true
    }

    /// How many shards the node leads.
    async fn leads(&self) -> usize {
        let place = self.node.lock().await;
        place.as_ref().map_or(0, |node| node.leaderships().count())
    }
}

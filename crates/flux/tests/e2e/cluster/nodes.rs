//! Several real nodes of one cluster, each a process with a folder of its own.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Instant;

use tempfile::TempDir;

use crate::harness::resp::{Connection, Value, encode};
use crate::harness::{PATIENCE, Process, Start, get_json, wait_until};

/// A port for a listener that comes and goes: below those that the system gives to connections,
/// so that none of them has it while its node is down.
pub(super) fn fixed_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Not those of another run of these tests at the same time.
    let first = u16::try_from(std::process::id() % 19).unwrap_or(0) * 1000;
    loop {
        let port = 12_000 + first + NEXT.fetch_add(1, Ordering::Relaxed) % 1000;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

/// A cluster. A node that is down has only its folder.
pub(super) struct Nodes {
    list: String,
    args: Vec<String>,
    ports: Vec<Ports>,
    nodes: Vec<Node>,
}

#[derive(Clone, Copy)]
struct Ports {
    resp: u16,
    peer: u16,
    /// Under which the other nodes reach it.
    advertised: u16,
}

enum Node {
    Up(Box<Process>),
    Down(TempDir),
    /// Never started.
    New,
}

impl Nodes {
    /// Ports for so many nodes; none is started.
    pub(super) fn new(count: usize, args: &[&str]) -> Self {
        let ports = (0..count).map(|_| {
            let peer = fixed_port();
            Ports {
                resp: fixed_port(),
                peer,
                advertised: peer,
            }
        });
        Self::with(ports.collect(), args)
    }

    fn with(ports: Vec<Ports>, args: &[&str]) -> Self {
        let list: Vec<String> = ports
            .iter()
            .map(|ports| format!("127.0.0.1:{}", ports.advertised))
            .collect();
        Self {
            list: list.join(","),
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            nodes: ports.iter().map(|_| Node::New).collect(),
            ports,
        }
    }

    /// Nodes with folders of their own; none is started.
    pub(super) fn in_folders(folders: Vec<TempDir>, args: &[&str]) -> Self {
        let nodes = Self::new(folders.len(), args);
        Self {
            nodes: folders.into_iter().map(Node::Down).collect(),
            ..nodes
        }
    }

    /// Nodes with these peer ports, which others reach under other ones.
    pub(super) fn behind(peers: &[u16], advertised: &[u16], args: &[&str]) -> Self {
        let ports = peers
            .iter()
            .zip(advertised)
            .map(|(peer, advertised)| Ports {
                resp: fixed_port(),
                peer: *peer,
                advertised: *advertised,
            });
        Self::with(ports.collect(), args)
    }

    /// A cluster that serves.
    pub(super) fn started(count: usize, args: &[&str]) -> Self {
        let mut nodes = Self::new(count, args);
        for index in 0..count {
            nodes.spawn(index);
        }
        nodes.wait_ready();
        nodes
    }

    /// Gives a node that was never started a folder.
    pub(super) fn give(&mut self, index: usize, folder: TempDir) {
        self.nodes[index] = Node::Down(folder);
    }

    /// Another node, which looks for the cluster where the first ones are; it is not started.
    /// Answers its index.
    pub(super) fn grow(&mut self) -> usize {
        let peer = fixed_port();
        self.ports.push(Ports {
            resp: fixed_port(),
            peer,
            advertised: peer,
        });
        self.nodes.push(Node::New);
        self.nodes.len() - 1
    }

    /// Whether a node runs.
    pub(super) fn is_up(&self, index: usize) -> bool {
        matches!(self.nodes[index], Node::Up(_))
    }

    pub(super) fn count(&self) -> usize {
        self.nodes.len()
    }

    /// How a node is started.
    pub(super) fn start(&self, index: usize) -> Start {
        self.start_as(index, index + 1)
    }

    /// How a node is started under another number.
    pub(super) fn start_as(&self, index: usize, number: usize) -> Start {
        let ports = self.ports[index];
        let number = number.to_string();
        let peer = ports.peer.to_string();
        let advertised = ports.advertised.to_string();
        let words = [
            "--advertise-peer-port",
            &advertised,
            "--node-id",
            &number,
            "--peer-port",
            &peer,
            "--join",
            &self.list,
        ];
        let args: Vec<&str> = self.args.iter().map(String::as_str).collect();
        Start::node()
            .port("--port", ports.resp)
            .args(&words)
            .args(&args)
    }

    /// Starts a node, over what it left if it was there before, without waiting for it.
    pub(super) fn spawn(&mut self, index: usize) {
        self.spawn_with(index, &[]);
    }

    /// The same with more arguments.
    pub(super) fn spawn_with(&mut self, index: usize, args: &[&str]) {
        let start = self.start(index).args(args);
        let before = std::mem::replace(&mut self.nodes[index], Node::New);
        let start = match before {
            Node::Down(folder) => start.over(folder),
            Node::New => start,
            Node::Up(_) => panic!("node {} runs", index + 1),
        };
        self.nodes[index] = Node::Up(Box::new(start.spawn()));
    }

    /// Waits until every node that runs can serve.
    pub(super) fn wait_ready(&mut self) {
        for node in &mut self.nodes {
            if let Node::Up(process) = node {
                process.wait_ready();
            }
        }
    }

    /// Waits until one node can serve.
    pub(super) fn wait_node(&mut self, index: usize) {
        match &mut self.nodes[index] {
            Node::Up(process) => process.wait_ready(),
            Node::Down(_) | Node::New => panic!("node {} does not run", index + 1),
        }
    }

    pub(super) fn process(&self, index: usize) -> &Process {
        match &self.nodes[index] {
            Node::Up(process) => process,
            Node::Down(_) | Node::New => panic!("node {} does not run", index + 1),
        }
    }

    /// SIGKILL.
    pub(super) fn kill(&mut self, index: usize) {
        if let Node::Up(process) = std::mem::replace(&mut self.nodes[index], Node::New) {
            self.nodes[index] = Node::Down(process.kill());
        }
    }

    /// SIGTERM, and waits for the end.
    pub(super) fn stop(&mut self, index: usize) {
        if let Node::Up(process) = std::mem::replace(&mut self.nodes[index], Node::New) {
            self.nodes[index] = Node::Down(process.stop());
        }
    }

    /// The folder of a node that is down.
    pub(super) fn folder(&self, index: usize) -> &std::path::Path {
        match &self.nodes[index] {
            Node::Down(folder) => folder.path(),
            Node::Up(_) | Node::New => panic!("node {} is not down", index + 1),
        }
    }

    /// The snapshots in the folder of a node that was started.
    pub(super) fn snapshots(&self, index: usize) -> Vec<std::path::PathBuf> {
        let folder = match &self.nodes[index] {
            Node::Up(process) => process.folder(),
            Node::Down(_) | Node::New => self.folder(index),
        };
        let found = std::fs::read_dir(folder.join("flux-data/snap"));
        let paths = found
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path());
        paths
            .filter(|path| path.extension().is_some_and(|end| end == "fsnap"))
            .collect()
    }

    /// Waits for the end of a node that ends by itself; answers its exit code and what it said.
    pub(super) fn ended(&mut self, index: usize) -> (Option<i32>, String) {
        let Node::Up(mut process) = std::mem::replace(&mut self.nodes[index], Node::New) else {
            panic!("node {} was not started", index + 1);
        };
        let status = process.wait();
        let said = process.stderr();
        self.nodes[index] = Node::Down(process.into_folder());
        (status.code(), said)
    }

    /// Loses the disk of a node that is down.
    pub(super) fn wipe(&mut self, index: usize) {
        self.nodes[index] = Node::New;
    }

    pub(super) fn address(&self, index: usize) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.ports[index].resp))
    }

    pub(super) fn peer_port(&self, index: usize) -> u16 {
        self.ports[index].peer
    }

    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        (0..self.nodes.len())
            .map(|index| self.address(index))
            .collect()
    }

    pub(super) fn connect(&self, index: usize) -> Connection {
        Connection::open(self.address(index))
    }

    /// What a node says of its shards: role and whether it can be served from there.
    pub(super) fn shards(&self, index: usize) -> Option<Vec<serde_json::Value>> {
        let Node::Up(process) = &self.nodes[index] else {
            return None;
        };
        let admin = process.addresses().admin?;
        let json = get_json(admin, "/readyz")?;
        json["shards"].as_array().cloned()
    }

    /// Voters and learners of every shard, as a node knows.
    pub(super) fn members(&self, index: usize) -> Vec<(u64, u64)> {
        let shards = self.shards(index).unwrap_or_default();
        let count = |shard: &serde_json::Value, name: &str| shard[name].as_u64().unwrap_or(0);
        shards
            .iter()
            .map(|shard| (count(shard, "voters"), count(shard, "learners")))
            .collect()
    }

    /// The node that leads a shard, once there is one among those that run.
    pub(super) fn leader(&self, shard: usize) -> usize {
        let mut found = None;
        wait_until("a leader", || {
            found = (0..self.count()).find(|index| {
                let shards = self.shards(*index).unwrap_or_default();
                shards
                    .get(shard)
                    .is_some_and(|shard| shard["writable"] == true)
            });
            found.is_some()
        });
        found.expect("it was waited for")
    }

    /// Waits until all nodes have applied the same, and compares what they hold.
    pub(super) fn assert_equal(&self) {
        wait_until("all replicas have applied the same", || {
            let applied: Vec<Vec<u64>> = (0..self.count())
                .filter_map(|index| self.shards(index))
                .map(|shards| {
                    let applied = shards.iter();
                    applied
                        .map(|shard| shard["applied_index"].as_u64().unwrap_or(0))
                        .collect()
                })
                .collect();
            applied.len() == self.count() && applied.windows(2).all(|pair| pair[0] == pair[1])
        });
        let Value::Array(keys) = self.connect(0).line("KEYS *") else {
            panic!("the keys of all shards");
        };
        assert!(!keys.is_empty(), "there is something to compare");
        let held: Vec<_> = (0..self.count())
            .map(|index| self.held(index, &keys))
            .collect();
        for (index, other) in held.iter().enumerate().skip(1) {
            assert_eq!(
                held[0], *other,
                "node 0 and node {index} hold different data"
            );
        }
    }

    /// What a node's own replicas hold under these keys, and until when.
    fn held(&self, index: usize, keys: &[Value]) -> Vec<[Value; 2]> {
        let mut connection = self.connect(index);
        assert_eq!(connection.line("READONLY"), Value::ok());
        let held = keys.iter().map(|key| {
            let Value::Bulk(key) = key else {
                panic!("a key is a string: {key:?}");
            };
            let key = std::str::from_utf8(key).expect("the tests' keys are text");
            ["GET", "PEXPIRETIME"].map(|name| connection.command(&[name, key]))
        });
        held.collect()
    }
}

/// Asks again while the answer is an error that says that nothing was done.
pub(super) fn insist(connection: &mut Connection, words: &[&str]) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        connection.send(&encode(words)).expect("the node is up");
        let reply = connection.reply().expect("the node is up");
        let is_refused = matches!(&reply, Value::Error(text) if !text.starts_with("UNCERTAIN"));
        if !is_refused || deadline < Instant::now() {
            return reply;
        }
    }
}

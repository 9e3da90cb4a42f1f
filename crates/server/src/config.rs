//! What can be set about a node, with its defaults and bounds.
//!
//! Two steps: whoever builds a [`Config`] fills in typed values; [`Config::validate`] then judges
//! all of them together and reports every mistake at once. Nothing below checks again.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use flux_cluster::placement::Zone;
use flux_cluster::registry;
use flux_cluster::ring::Weight;
use flux_types::limits;
use serde::{Deserialize, Serialize};

use crate::rabbitmq::RabbitConfig;
use crate::units;

/// When an acknowledged write is on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fsync {
    /// Before it is acknowledged.
    #[default]
    Always,
    /// Within a second. A killed process loses nothing, a power cut up to a second.
    EverySec,
    /// When the kernel likes. A killed process loses nothing.
    Never,
}

/// Whether a RESP client is told which node leads what it asks for, or is served by any node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RespCluster {
    /// A connection is served by any node until it asks for the cluster's slots.
    #[default]
    Auto,
    /// Every connection is told.
    Moved,
    /// None is: a node looks like the only one.
    Proxy,
}

impl RespCluster {
    /// The word for it in configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Moved => "moved",
            Self::Proxy => "proxy",
        }
    }
}

impl Fsync {
    /// The word that Redis has for it.
    pub(crate) const fn as_redis_str(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::EverySec => "everysec",
            Self::Never => "no",
        }
    }

    /// The word for it in configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::EverySec => "everysec",
            Self::Never => "never",
        }
    }
}

/// How a leader makes sure of a read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reads {
    /// It answers from memory while its lease is provably open; clocks must run at nearly the same
    /// rate.
    #[default]
    Lease,
    /// It asks a majority every time; no clock matters.
    ReadIndex,
}

impl Reads {
    /// The word for it in configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Lease => "lease",
            Self::ReadIndex => "read-index",
        }
    }
}

/// Settings of one node.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Address of every listener. Default 127.0.0.1. Beyond loopback a password is required.
    pub bind: IpAddr,
    /// Port of RESP and FLUX, told apart by their first bytes; 0: any free one. Default 7379.
    pub port: u16,
    /// Port of gRPC; 0: any free one. Default 50052.
    pub grpc_port: u16,
    /// Port of `/metrics`, `/healthz`, `/readyz`; 0: any free one. Default 9180.
    pub admin_port: u16,
    /// Folder of log and snapshots; one process at a time. Default `./flux-data`.
    pub data_dir: PathBuf,
    /// When an acknowledged write is on disk. Default `always`.
    pub fsync: Fsync,
    /// What RESP clients are told of the cluster. Default `auto`.
    pub resp_cluster: RespCluster,
    /// How many shards the data folder must have; a new one gets them. 1 to 64. Default: not
    /// given, any number is right, and a new folder gets `shards-initial`.
    pub shards: Option<u32>,
    /// Shards of a new data folder if `shards` is not given. 1 to 64. Default 1.
    pub shards_initial: u32,
    /// Threads that carry connections and shards; 0: one for each core that the process may use.
    /// Default 0, at most 256.
    pub threads: usize,
    /// Deadline of every request that brings none. Default 2 s, 1 ms to 1 h.
    #[serde(with = "units::duration")]
    pub request_timeout: Duration,
    /// How long a stop waits for requests in hand. Default 10 s, at most 1 h.
    #[serde(with = "units::duration")]
    pub drain_timeout: Duration,
    /// A RESP connection that is silent for this long is closed; 0: never. Default 0.
    #[serde(with = "units::duration")]
    pub idle_timeout: Duration,
    /// Longest value. Default 8 MiB, at most 64 MiB.
    #[serde(with = "units::size")]
    pub value_size_max: u64,
    /// Most connections to the RESP and FLUX port. Default 10,000.
    pub connections_max: usize,
    /// Unsent reply bytes after which a connection is closed. Default 256 MiB, at least 64 KiB.
    #[serde(with = "units::size")]
    pub output_buffer_size_max: u64,
    /// Password that clients must give; empty: none. Default none.
    pub password: String,
    /// Allows a bind beyond loopback without a password. Default false.
    pub insecure: bool,
    /// Memory of the data after which writes that add are refused; 0: no limit. Default 0.
    #[serde(with = "units::size")]
    pub max_memory: u64,
    /// Log bytes of a shard after which it is snapshotted. Default 256 MiB, at least 1 MiB.
    #[serde(with = "units::size")]
    pub snapshot_log_size: u64,
    /// Size of a log segment. Default 64 MiB, 1 MiB to 1 GiB.
    #[serde(with = "units::size")]
    pub segment_size: u64,
    /// Host under which others reach this node. Default: the address that it binds.
    pub advertise: String,
    /// How the registry tells this node from others. Default: its number in the data folder.
    pub name: String,
    /// Whether it registers as waiting to take over, so that nobody calls it. Default false.
    pub standby: bool,
    /// What is kept for readers of the change stream.
    pub cdc: CdcConfig,
    /// The node's number in its cluster, 1 to 65535; 0: it is alone. Default 0.
    pub node_id: u32,
    /// Port for other nodes of the cluster; 0: any free one. Default 7390.
    pub peer_port: u16,
    /// Port under which other nodes reach the peer port, where ports are mapped; 0: the same.
    /// Default 0.
    pub advertise_peer_port: u16,
    /// The peer addresses, `host:port`, of all nodes with which a cluster begins, this one
    /// included. After the first start: where to look for the others. Default none.
    pub join: Vec<String>,
    /// On how many nodes each shard of a new cluster is: 1, 3, 5 or 7. Default 3.
    pub replicas: u32,
    /// How much this node can carry beside others, 1 to 1000. Default 100.
    pub weight: u32,
    /// What this node shares its fate with, such as a rack: replicas of a shard are put in different
    /// zones. Default none.
    pub zone: String,
    /// How long a node of the cluster may be silent before others carry what it did. Default 10 m.
    #[serde(with = "units::duration")]
    pub replace_after: Duration,
    /// Most bytes a second that this node sends of snapshots; 0: as fast as can be. Default 64 MiB.
    #[serde(with = "units::size")]
    pub move_rate: u64,
    /// How a leader of several voters makes sure of a read. Default `lease`.
    pub reads: Reads,
    /// Goes on with what is on the disk although power may have failed before all that was
    /// acknowledged was there. Default false.
    pub accept_loss: bool,
}

/// What is kept for readers of the change stream, and what they get.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct CdcConfig {
    /// Bytes of old log segments kept for the change stream alone. Default 512 MiB.
    #[serde(with = "units::size")]
    pub retention_bytes: u64,
    /// How long they are kept at most. Default 24 h.
    #[serde(with = "units::duration")]
    pub retention_age: Duration,
    /// Bytes kept instead while a sink that is known by name still needs them. Default 8 GiB.
    #[serde(with = "units::size")]
    pub pinned_bytes_max: u64,
    /// Longest value that is put into an event; of a longer one come size and checksum. Default
    /// 256 KiB.
    #[serde(with = "units::size")]
    pub event_value_max: u64,
    /// The sink for RabbitMQ.
    pub rabbitmq: RabbitConfig,
}

impl Default for CdcConfig {
    fn default() -> Self {
        Self {
            retention_bytes: 512 * MIB,
            retention_age: Duration::from_secs(24 * 60 * 60),
            pinned_bytes_max: 8 * 1024 * MIB,
            event_value_max: flux_cdc::envelope::VALUE_BYTES_DEFAULT as u64,
            rabbitmq: RabbitConfig::default(),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            bind: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 7379,
            grpc_port: 50052,
            admin_port: 9180,
            data_dir: PathBuf::from("./flux-data"),
            fsync: Fsync::Always,
            resp_cluster: RespCluster::Auto,
            shards: None,
            shards_initial: 1,
            threads: 0,
            request_timeout: Duration::from_secs(2),
            drain_timeout: Duration::from_secs(10),
            idle_timeout: Duration::ZERO,
            value_size_max: limits::VALUE_BYTES_DEFAULT as u64,
            connections_max: limits::CONNECTIONS_DEFAULT,
            output_buffer_size_max: limits::OUTPUT_BUFFER_BYTES_MAX as u64,
            password: String::new(),
            insecure: false,
            max_memory: 0,
            snapshot_log_size: 256 * MIB,
            segment_size: limits::SEGMENT_BYTES_DEFAULT as u64,
            cdc: CdcConfig::default(),
            advertise: String::new(),
            name: String::new(),
            standby: false,
            node_id: 0,
            peer_port: 7390,
            advertise_peer_port: 0,
            join: Vec::new(),
            replicas: 3,
            weight: u32::from(Weight::STANDARD.get()),
            zone: String::new(),
            replace_after: Duration::from_secs(600),
            move_rate: 64 * 1024 * 1024,
            reads: Reads::Lease,
            accept_loss: false,
        }
    }
}

impl fmt::Debug for Config {
    /// Shows everything but the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("bind", &self.bind)
            .field("port", &self.port)
            .field("grpc_port", &self.grpc_port)
            .field("admin_port", &self.admin_port)
            .field("data_dir", &self.data_dir)
            .field("fsync", &self.fsync)
            .field("shards", &self.shards)
            .field("has_password", &!self.password.is_empty())
            .finish_non_exhaustive()
    }
}

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const HOUR: Duration = Duration::from_secs(3600);
/// More threads than any machine we know makes use of.
const THREADS_MAX: usize = 256;
/// Shorter than this a restart would be taken for the end of a node.
const REPLACE_AFTER_MIN: Duration = Duration::from_secs(5);
/// Slower than this no snapshot would ever arrive.
const MOVE_RATE_MIN: u64 = MIB;

/// One setting that cannot stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The setting, as it is written in a file.
    pub key: &'static str,
    /// What is wrong with it, and what would be right.
    pub problem: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.problem)
    }
}

/// Collects mistakes.
#[derive(Default)]
struct Review(Vec<Mistake>);

impl Review {
    fn add(&mut self, key: &'static str, problem: impl Into<String>) {
        self.0.push(Mistake {
            key,
            problem: problem.into(),
        });
    }

    fn check(&mut self, key: &'static str, holds: bool, problem: &str) {
        if !holds {
            self.add(key, problem);
        }
    }
}

impl Config {
    /// Judges all settings together.
    ///
    /// # Errors
    /// Every mistake, in the order of the fields.
    pub fn validate(&self) -> Result<(), Vec<Mistake>> {
        let mut review = Review::default();
        if !self.bind.is_loopback() && self.password.is_empty() && !self.insecure {
            review.add(
                "bind",
                format!(
                    "{} can be reached from other machines: set a password, or insecure",
                    self.bind
                ),
            );
        }
        self.review_ports(&mut review);
        review.check(
            "data-dir",
            !self.data_dir.as_os_str().is_empty(),
            "must not be empty",
        );
        let shards = 1..=limits::SHARDS_MAX;
        review.check(
            "shards",
            self.shards.is_none_or(|count| shards.contains(&count)),
            "must be 1 to 64",
        );
        review.check(
            "shards-initial",
            shards.contains(&self.shards_initial),
            "must be 1 to 64",
        );
        review.check(
            "threads",
            self.threads <= THREADS_MAX,
            "must be at most 256",
        );
        review.check(
            "request-timeout",
            (Duration::from_millis(1)..=HOUR).contains(&self.request_timeout),
            "must be 1ms to 1h",
        );
        review.check(
            "drain-timeout",
            self.drain_timeout <= HOUR,
            "must be at most 1h",
        );
        self.review_sizes(&mut review);
        review.0.extend(self.cdc.rabbitmq.mistakes());
        self.review_names(&mut review);
        self.review_cluster(&mut review);
        if review.0.is_empty() {
            Ok(())
        } else {
            Err(review.0)
        }
    }

    fn review_sizes(&self, review: &mut Review) {
        review.check(
            "value-size-max",
            (1..=limits::VALUE_BYTES_MAX as u64).contains(&self.value_size_max),
            "must be 1 to 64MiB",
        );
        review.check(
            "connections-max",
            self.connections_max >= 1,
            "must be at least 1",
        );
        review.check(
            "output-buffer-size-max",
            self.output_buffer_size_max >= 64 * KIB,
            "must be at least 64KiB",
        );
        review.check(
            "snapshot-log-size",
            self.snapshot_log_size >= MIB,
            "must be at least 1MiB",
        );
        review.check(
            "segment-size",
            (MIB..=1024 * MIB).contains(&self.segment_size),
            "must be 1MiB to 1GiB",
        );
        review.check(
            "event-value-max",
            self.cdc.event_value_max <= limits::VALUE_BYTES_MAX as u64,
            "must be at most 64MiB",
        );
    }

    /// What others will see of this node.
    fn review_names(&self, review: &mut Review) {
        let advertised = registry::address_of(&self.advertise, 1);
        if !self.advertise.is_empty() && registry::check_address(&advertised).is_err() {
            review.add("advertise", format!("{:?} is not a host", self.advertise));
        }
        if !self.name.is_empty()
            && let Err(problem) = registry::check_id(&self.name)
        {
            review.add("node-name", problem);
        }
    }

    /// What makes this node one of several.
    fn review_cluster(&self, review: &mut Review) {
        if self.node_id == 0 {
            if !self.join.is_empty() {
                review.add(
                    "join",
                    "needs a node-id: the number of this node among them",
                );
            }
            return;
        }
        review.check("node-id", self.node_id <= 65_535, "must be 1 to 65535");
        let replicas = self.replicas as usize;
        let is_odd = !replicas.is_multiple_of(2) && replicas <= flux_raft::membership::VOTERS_MAX;
        review.check(
            "replicas",
            is_odd,
            "must be 1, 3, 5 or 7: an even number tolerates no more failures than one less",
        );
        if let Err(error) = Weight::new(self.weight) {
            review.add("weight", error.to_string());
        }
        if !self.zone.is_empty()
            && let Err(error) = Zone::new(&self.zone)
        {
            review.add("zone", error.to_string());
        }
        review.check(
            "replace-after",
            REPLACE_AFTER_MIN <= self.replace_after,
            "must be at least 5s: a node that restarts is silent as well",
        );
        review.check(
            "move-rate",
            self.move_rate == 0 || MOVE_RATE_MIN <= self.move_rate,
            "must be 0, or at least 1MiB",
        );
        if self.join.is_empty() {
            review.add(
                "join",
                "must name the peer addresses of all nodes, this one included, as HOST:PORT,HOST:PORT",
            );
        }
        for (number, address) in self.join.iter().enumerate() {
            if registry::check_address(address).is_err() {
                review.add("join", format!("{address:?} is not HOST:PORT"));
            }
            if self
                .join
                .iter()
                .take(number)
                .any(|earlier| earlier == address)
            {
                review.add("join", format!("{address} is named twice"));
            }
        }
        review.check(
            "join",
            self.join.len() <= limits::CLUSTER_NODES_MAX,
            "names more than 64 nodes",
        );
        if !self.join.is_empty() && self.join.len() < replicas && is_odd {
            review.add(
                "replicas",
                format!(
                    "{replicas} replicas need as many nodes, and join names {}",
                    self.join.len()
                ),
            );
        }
    }

    /// Two listeners cannot share a port; 0 never collides.
    fn review_ports(&self, review: &mut Review) {
        let mut ports = vec![
            ("port", self.port),
            ("grpc-port", self.grpc_port),
            ("admin-port", self.admin_port),
        ];
        if self.node_id != 0 {
            ports.push(("peer-port", self.peer_port));
        }
        for (index, (key, port)) in ports.iter().enumerate() {
            let earlier = ports.iter().take(index).find(|(_, other)| other == port);
            if let Some((other, _)) = earlier
                && *port != 0
            {
                review.add(key, format!("{port} is taken by {other} already"));
            }
        }
    }

    /// Threads that carry connections and shards: as set, or one for each usable core.
    #[must_use]
    pub fn thread_count(&self) -> usize {
        if self.threads > 0 {
            return self.threads;
        }
        std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
    }
}

/// What each of so many shards may take of a limit for all, where 0 means none.
pub(crate) fn memory_of_shard(max_memory: u64, shards: u32) -> Option<u64> {
    (max_memory > 0).then(|| (max_memory / u64::from(shards.max(1))).max(1))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    fn keys(config: &Config) -> Vec<&'static str> {
        config
            .validate()
            .err()
            .unwrap_or_default()
            .iter()
            .map(|mistake| mistake.key)
            .collect()
    }

    #[test]
    fn defaults_are_valid() {
        assert_eq!(Config::default().validate(), Ok(()));
    }

    #[test]
    fn beyond_loopback_needs_a_password_or_a_decision() {
        let mut config = Config {
            bind: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            ..Config::default()
        };
        assert_eq!(keys(&config), ["bind"]);
        config.insecure = true;
        assert_eq!(config.validate(), Ok(()));
        config.insecure = false;
        config.password = "secret".to_owned();
        assert_eq!(config.validate(), Ok(()));
        config.bind = IpAddr::V6(Ipv6Addr::LOCALHOST);
        config.password.clear();
        assert_eq!(config.validate(), Ok(()));
    }

    #[test]
    fn every_mistake_is_reported() {
        let config = Config {
            bind: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            port: 7000,
            grpc_port: 7000,
            admin_port: 7000,
            data_dir: PathBuf::new(),
            shards: Some(65),
            shards_initial: 0,
            threads: 257,
            request_timeout: Duration::ZERO,
            drain_timeout: HOUR + Duration::from_millis(1),
            value_size_max: 0,
            connections_max: 0,
            output_buffer_size_max: 1,
            snapshot_log_size: 1,
            segment_size: 1,
            advertise: "a b".to_owned(),
            name: "a/b".to_owned(),
            ..Config::default()
        };
        assert_eq!(
            keys(&config),
            [
                "bind",
                "grpc-port",
                "admin-port",
                "data-dir",
                "shards",
                "shards-initial",
                "threads",
                "request-timeout",
                "drain-timeout",
                "value-size-max",
                "connections-max",
                "output-buffer-size-max",
                "snapshot-log-size",
                "segment-size",
                "advertise",
                "node-name",
            ]
        );
    }

    #[test]
    fn free_ports_do_not_collide() {
        let config = Config {
            port: 0,
            grpc_port: 0,
            admin_port: 0,
            ..Config::default()
        };
        assert_eq!(config.validate(), Ok(()));
    }

    #[test]
    fn written_form_is_read_back_and_unknown_keys_are_refused() {
        let config = Config {
            fsync: Fsync::EverySec,
            request_timeout: Duration::from_millis(1500),
            ..Config::default()
        };
        let text = serde_json::to_string(&config).unwrap();
        assert!(text.contains(r#""fsync":"everysec""#), "{text}");
        assert!(text.contains(r#""request-timeout":"1500ms""#), "{text}");
        assert!(text.contains(r#""value-size-max":"8MiB""#), "{text}");
        assert_eq!(serde_json::from_str::<Config>(&text).unwrap(), config);
        assert_eq!(
            serde_json::from_str::<Config>("{}").unwrap(),
            Config::default()
        );
        assert!(serde_json::from_str::<Config>(r#"{"prot":1}"#).is_err());
    }

    #[test]
    fn a_cluster_needs_a_number_a_list_and_an_odd_count_of_replicas() {
        let list = ["a:1", "b:1", "c:1"].map(str::to_owned).to_vec();
        let good = Config {
            node_id: 1,
            join: list,
            ..Config::default()
        };
        assert_eq!(good.validate(), Ok(()));
        let with = |change: fn(&mut Config)| {
            let mut config = good.clone();
            change(&mut config);
            keys(&config)
        };
        assert_eq!(with(|config| config.node_id = 0), ["join"]);
        assert_eq!(with(|config| config.node_id = 65_536), ["node-id"]);
        assert_eq!(with(|config| config.replicas = 2), ["replicas"]);
        assert_eq!(with(|config| config.replicas = 5), ["replicas"]);
        assert_eq!(with(|config| config.join.clear()), ["join"]);
        assert_eq!(with(|config| config.join.push("a:1".to_owned())), ["join"]);
        assert_eq!(
            with(|config| config.join.push("nowhere".to_owned())),
            ["join"]
        );
        assert_eq!(with(|config| config.peer_port = config.port), ["peer-port"]);
    }

    #[test]
    fn the_password_is_not_shown() {
        let config = Config {
            password: "hunter2".to_owned(),
            ..Config::default()
        };
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}

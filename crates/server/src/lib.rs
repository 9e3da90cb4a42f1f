//! A KV node: listeners, sessions, command execution, gRPC services, admin HTTP, shutdown.
//!
//! Read in this order: [`config`] says what can be set, [`Node`] builds and ends everything,
//! `cores` are the threads it runs on, `listen` accepts, `session` speaks RESP, `flux_session`
//! FLUX, `grpc` and `admin` HTTP; all of them execute commands through [`exec`]. `peer` is how nodes
//! of a cluster find and talk to each other; [`topology`] is what this node knows of them.

mod admin;
mod changes;
mod clients;
pub mod config;
mod context;
mod cores;
mod desk;
pub mod error;
mod exec;
mod execute;
mod flux_session;
mod groups;
mod grpc;
mod http_listener;
mod listen;
mod metrics;
mod node;
mod peer;
mod ports;
mod rabbitmq;
mod readiness;
mod registration;
mod session;
mod statistics;
pub mod topology;
mod units;

pub use config::{CdcConfig, Config, Fsync, Mistake, Reads, RespCluster};
pub use error::{NodeFailure, StartError};
pub use exec::Executor;
pub use node::{Activity, Given, Leaderships, Node};
pub use ports::{Addresses, PeerPort};
pub use rabbitmq::{EventFormat, RabbitConfig};
pub use topology::{NodePlace, ShardPlace, Topology, TopologyHandle};

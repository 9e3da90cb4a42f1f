//! Replication of a shard: openraft bound to log and store; proposer, lease gate, membership.
//!
//! A shard is one Raft group. Its replica on this node is a handful of tasks on one runtime: the
//! proposer, openraft's core, a sweeper of expired keys, a watcher of leadership, snapshots. One
//! node alone is a group of one voter: the same path, and growing is a membership change.
//!
//! What holds here: a reply is sent only after its entry is committed and applied; there is no
//! second journal; no openraft type leaves this room. Read in this order: [`shard`] is the handle,
//! [`queue`] and `proposer` the way of a write, `state_machine` and `log_store` what openraft stands
//! on, `gate` and `watcher` why a read may be answered, `snapshot` and `recovery` how a state comes
//! back, [`membership`] and [`network`] how there come to be several replicas, [`split`] how there come to be
//! several shards.

mod codec;
pub mod config;
pub mod core_task;
mod engine;
pub mod error;
mod expiry;
mod gate;
mod log_store;
pub mod membership;
pub mod network;
mod progress;
mod proposer;
pub mod queue;
mod recovery;
mod replica;
mod retire;
mod runtime;
pub mod shard;
mod snapshot;
pub mod split;
mod state_machine;
pub mod status;
pub mod system;
mod type_config;
mod watcher;

pub use config::{ShardConfig, Timings};
pub use core_task::{set_abort_hook, spawn_core};
pub use error::{MembershipError, RetireError, SnapshotError, StartError};
pub use network::{MemoryNetwork, Network, NoNetwork, Peer, PeerError, PeerHandler};
pub use queue::{Forward, Submission};
pub use runtime::{Task, TaskError};
pub use shard::{Formation, Shard, ShardParts};
pub use split::Births;
pub use status::{Failure, Members, Role, ShardStatus};
pub use system::Replaced;

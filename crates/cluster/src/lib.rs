//! Who owns what, and who is where: hash slots and the shards they belong to, shards and the nodes
//! that carry them, services and their endpoints.
//!
//! A key has a slot, by Redis Cluster's rule, so that every cluster client computes the same one
//! ([`slot_of_key`]); a slot belongs to exactly one shard ([`SlotMap`]); which nodes are to carry a
//! shard is computed from a [`ring`] ([`placement`]) and stored ([`ClusterMap`]), and single steps
//! lead there ([`reconcile`]). Those parts do no I/O: whoever holds a map decides when it changes.
//! [`registry`] writes down where a service can be reached, and finds what others wrote.

mod map;
pub mod placement;
pub mod reconcile;
pub mod registry;
pub mod ring;

pub use flux_types::{ShardCountError, SlotMap, SlotMapError, crc16, hash_tag, slot_of_key};
pub use map::{ChangeError, ClusterMap, MapError, MapProblem, Sight, Wishes};

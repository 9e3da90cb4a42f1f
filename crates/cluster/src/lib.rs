//! Who owns what, and who is where: hash slots and the shards they belong to, services and their
//! endpoints.
//!
//! A key has a slot, by Redis Cluster's rule, so that every cluster client computes the same one
//! ([`slot_of_key`]); a slot belongs to exactly one shard ([`SlotMap`]). That part does no I/O:
//! whoever holds a map decides when it changes. [`registry`] writes down where a service can be
//! reached, and finds what others wrote.

mod map;
pub mod registry;
mod slot;

pub use map::{ShardCountError, SlotMap};
pub use slot::{crc16, hash_tag, slot_of_key};

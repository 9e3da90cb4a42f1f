//! Who owns what: hash slots and the shards they belong to.
//!
//! A key has a slot, by Redis Cluster's rule, so that every cluster client computes the same one
//! ([`slot_of_key`]); a slot belongs to exactly one shard ([`SlotMap`]). Nothing here does I/O:
//! whoever holds a map decides when it changes.

mod map;
mod slot;

pub use map::{ShardCountError, SlotMap};
pub use slot::{crc16, hash_tag, slot_of_key};

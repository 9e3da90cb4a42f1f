//! Shards as the rest of a node meets them. Each module names the rules it holds to
//! (`docs/design/`); each test fails if its rule is broken.

mod harness;

mod batches;
mod cluster;
mod durability;
mod expiry;
mod model;
mod snapshots;

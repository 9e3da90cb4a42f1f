//! Shards as the rest of a node meets them. Each module names the rules it holds to
//! (`docs/design/`); each test fails if its rule is broken.

#![expect(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "a test that meets what it does not expect fails, and says so"
)]

mod harness;

mod batches;
mod cluster;
mod durability;
mod expiry;
mod facts;
mod model;
mod retire;
mod retries;
mod snapshots;
mod split;
mod voters;

//! A real node on free ports in a folder of its own, spoken to over sockets.

#![expect(
    clippy::panic,
    clippy::disallowed_methods,
    clippy::wildcard_enum_match_arm,
    reason = "tests; the lints' own exemption does not reach helper functions of an integration test"
)]

mod admin;
mod changes;
mod clocks;
mod cluster;
mod flux;
mod frames;
mod grpc;
mod harness;
mod lifecycle;
mod pipelines;
mod retries;
mod sessions;
mod shards;
mod transcripts;

//! A real node on free ports in a folder of its own, spoken to over sockets.

mod admin;
mod flux;
mod frames;
mod grpc;
mod harness;
mod lifecycle;
mod pipelines;
mod sessions;
mod shards;
mod transcripts;

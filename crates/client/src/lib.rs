//! Rust SDK: FLUX frames over TCP, pipelined, honest about unknown outcomes.
//!
//! A [`Client`] is a cheap handle on a cluster, be it of one node. It knows who leads what and sends each
//! request there, over few connections. Each connection has one task that writes everything that
//! waits in one piece and hands out replies by their correlation ids, so many callers share one
//! round trip.
//!
//! Every request has a deadline, and until then it is sent again as long as that is safe: when it
//! was not done, when it only reads, and when it is a write with a request id, which is done once
//! however often it is sent. Writes carry such ids wherever the node understands them. Where it does
//! not, a write that had been sent is never repeated. When the deadline comes first, the caller learns
//! whether the outcome is unknown, which is then the truth.
//!
//! Read in this order: [`config`] and [`error`] are what callers see besides [`client`];
//! `retry` says what is sent again, `route` to whom, `session` under which number; `node` and
//! `connection` are what is behind an address; `request` is what passes between caller and task.

pub mod client;
pub mod config;
mod connection;
pub mod error;
mod node;
mod request;
mod retry;
mod route;
mod session;

pub use client::{Client, SetOptions};
pub use config::Config;
pub use error::Error;
pub use flux_types::{Compare, Condition, Entry, ExpireCondition, Expiry, Outcome, Written};
pub use flux_wire::resp::Value;

#[cfg(test)]
mod tests;

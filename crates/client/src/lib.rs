//! Rust SDK: FLUX frames over TCP, pipelined, honest about unknown outcomes.
//!
//! A [`Client`] is a cheap handle on a few connections. Each connection has one task that writes
//! everything that waits in one piece and hands out replies by their correlation ids, so many
//! callers share one round trip. Every request has a deadline. When a connection is lost, reads are
//! sent again on the next one; a write that had been sent is never repeated: its caller learns that
//! the outcome is unknown, which is the truth.
//!
//! Read in this order: [`config`] and [`error`] are what callers see besides [`client`];
//! `connection` is the task behind a connection; `request` is what passes between the two.

pub mod client;
pub mod config;
mod connection;
pub mod error;
mod request;

pub use client::{Client, SetOptions};
pub use config::Config;
pub use error::Error;
pub use flux_types::{Compare, Condition, Entry, ExpireCondition, Expiry, Outcome, Written};
pub use flux_wire::resp::Value;

#[cfg(test)]
mod tests;

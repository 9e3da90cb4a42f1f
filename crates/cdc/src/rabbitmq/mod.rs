//! RabbitMQ: what the node publishes with and the consumer reads with.
//!
//! Read in this order: [`Address`] says where the broker is, [`Topology`] what is to be there,
//! [`Link`] is a connection, `outlet` one that only publishes, [`Trouble`] what can be wrong with it,
//! and [`Backoff`] how long to wait then. [`Window`] and [`Pace`] decide what a publisher may send,
//! `follow` where it begins, and [`Sink`] is the publisher.

pub mod routing;

mod address;
mod backoff;
mod commits;
mod config;
mod follow;
mod frames;
mod link;
mod message;
mod outlet;
mod pace;
mod session;
mod sink;
mod status;
mod topology;
mod traced;
mod trouble;
mod window;

pub use address::Address;
pub use backoff::Backoff;
pub use config::{Shape, SinkConfig, WINDOW_EVENTS_MAX};
pub use link::Link;
pub use pace::Pace;
pub use sink::{CURSOR_NAME, Sink, SinkParts};
pub use status::{Count, State, Status};
pub use topology::Topology;
pub use trouble::{Trouble, TroubleKind};
pub use window::Window;

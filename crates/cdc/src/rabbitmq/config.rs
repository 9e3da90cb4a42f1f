//! What can be set about the sink.

use super::{Address, Topology};
use crate::cursor::Start;

/// Bytes in flight at most.
pub(super) const WINDOW_BYTES_MAX: usize = 8 << 20;
/// Most events in flight that may be asked for.
pub const WINDOW_EVENTS_MAX: usize = 16_384;

/// The form in which events are published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shape {
    /// The whole event as JSON in the body.
    #[default]
    Structured,
    /// The bare value in the body, the rest in headers.
    Binary,
}

/// Settings of the sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SinkConfig {
    /// The broker.
    pub address: Address,
    /// Exchange and queues.
    pub topology: Topology,
    /// How events look.
    pub shape: Shape,
    /// Events published and not yet confirmed, at most.
    pub window: usize,
    /// Events published each second, at most; 0: as many as there are.
    pub rate_max: u32,
    /// Where a sink begins that has no cursor yet.
    pub start: Start,
}

impl SinkConfig {
    /// The defaults for a broker.
    #[must_use]
    pub fn new(address: Address) -> Self {
        Self {
            address,
            topology: Topology::default(),
            shape: Shape::default(),
            window: 512,
            rate_max: 0,
            start: Start::Earliest,
        }
    }
}

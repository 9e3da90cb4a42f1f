//! What a node is given beside its configuration.

use std::sync::Arc;

use flux_env::{Clock, RealClock};

use crate::ports::PeerPort;

/// What a node does not take from its configuration.
#[derive(Debug)]
pub struct Given {
    /// By which it goes.
    pub clock: Arc<dyn Clock>,
    /// Its peer port, if that was reserved for it.
    pub peer_port: Option<PeerPort>,
}

impl Default for Given {
    /// The machine's clock, and no port.
    fn default() -> Self {
        Self {
            clock: Arc::new(RealClock::new()),
            peer_port: None,
        }
    }
}

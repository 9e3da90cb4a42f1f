//! Where the endpoints of an upstream come from. A fixed list now; a registry is another
//! implementation of the same trait, and nothing else changes.

use std::fmt::Debug;
use std::sync::Arc;

use tokio::sync::watch;

/// The endpoints of an upstream, as they come and go.
pub(crate) trait Discovery: Debug + Send + Sync {
    /// The endpoints, `host:port` each, now and after every change.
    fn endpoints(&self) -> watch::Receiver<Arc<[String]>>;
}

/// Endpoints that are written in the configuration.
#[derive(Debug)]
pub(crate) struct StaticDiscovery {
    endpoints: watch::Sender<Arc<[String]>>,
}

impl StaticDiscovery {
    pub(crate) fn new(endpoints: &[String]) -> Self {
        Self {
            endpoints: watch::Sender::new(endpoints.into()),
        }
    }
}

impl Discovery for StaticDiscovery {
    fn endpoints(&self) -> watch::Receiver<Arc<[String]>> {
        self.endpoints.subscribe()
    }
}

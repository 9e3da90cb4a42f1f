//! Upstreams: the endpoints that serve a set of services, and calling them.
//!
//! [`Upstream`] is shared by all workers and holds what must be counted once; each worker has its
//! own [`client::Client`] with its own connections, so that no request changes threads.

pub(crate) mod client;

mod frame;

use std::time::Duration;

use flux_cluster::registry::{self, Endpoint, Endpoints};
use tokio::sync::Notify;

use crate::config::UpstreamConfig;

/// What all workers share about one upstream.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) name: String,
    /// Where it can be called, now and after every change.
    pub(crate) endpoints: Endpoints,
    pub(crate) connect_timeout: Duration,
    pub(crate) response_bytes_max: usize,
    /// Told when a connection was lost: what is behind it may not be the same again.
    pub(crate) connection_lost: Notify,
}

impl Upstream {
    pub(crate) fn new(config: &UpstreamConfig, response_bytes_max: usize) -> Self {
        Self {
            name: config.name.clone(),
            endpoints: registry::fixed(config.endpoints.iter().map(Endpoint::at).collect()),
            connect_timeout: config.connect_timeout.get(),
            response_bytes_max,
            connection_lost: Notify::new(),
        }
    }
}

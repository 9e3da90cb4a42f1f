//! Upstreams: the endpoints that serve a set of services, and calling them.
//!
//! [`Upstream`] is shared by all workers and holds what must be counted once; each worker has its
//! own [`client::Client`] with its own connections, so that no request changes threads.

pub(crate) mod client;

mod frame;

pub(crate) mod messages;

use std::collections::BTreeMap;
use std::time::Duration;

use flux_cluster::registry::{self, Endpoint, Endpoints};
use http::header::{HeaderMap, HeaderName, HeaderValue};
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
    /// What every call carries unless it brings its own under that name.
    pub(crate) metadata: HeaderMap,
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
            metadata: metadata(&config.metadata),
            connection_lost: Notify::new(),
        }
    }
}

/// The configured metadata as headers, kept out of debug output. Validation has refused the rest.
fn metadata(config: &BTreeMap<String, String>) -> HeaderMap {
    let pairs = config.iter().filter_map(|(name, value)| {
        let name: HeaderName = name.parse().ok()?;
        let mut value = HeaderValue::from_str(value).ok()?;
        value.set_sensitive(true);
        Some((name, value))
    });
    pairs.collect()
}

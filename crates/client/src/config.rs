//! How a client connects.

use std::fmt;
use std::time::Duration;

/// Settings of a [`crate::Client`].
#[derive(Clone, PartialEq, Eq)]
pub struct Config {
    /// `host:port` of the RESP and FLUX port of a node, or of several, with commas between: the
    /// others of a cluster are found from any. Default `127.0.0.1:7379`.
    pub address: String,
    /// Password of the node, if it asks for one. Default none.
    pub password: Option<String>,
    /// Connections to open to each node; requests take turns. Default 1, at least 1.
    pub connections: usize,
    /// Time for one attempt to connect and authenticate. Default 2 s.
    pub connect_timeout: Duration,
    /// Deadline of requests made without one, further attempts included. Default 2 s.
    pub request_timeout: Duration,
    /// Requests of one connection that may wait for replies; more wait to be sent. Default 1024.
    pub in_flight_max: usize,
    /// Longest payload that a node may send, in bytes. Default 9 MiB: the default longest value
    /// and what surrounds it.
    pub frame_bytes_max: usize,
    /// Pause before the second attempt to reconnect; doubles with each. Default 20 ms.
    pub backoff_min: Duration,
    /// Longest pause between attempts to reconnect. Default 2 s.
    pub backoff_max: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            address: "127.0.0.1:7379".to_owned(),
            password: None,
            connections: 1,
            connect_timeout: Duration::from_secs(2),
            request_timeout: Duration::from_secs(2),
            in_flight_max: 1024,
            frame_bytes_max: flux_types::limits::FRAME_BYTES_DEFAULT,
            backoff_min: Duration::from_millis(20),
            backoff_max: Duration::from_secs(2),
        }
    }
}

impl Config {
    /// The defaults, for an address.
    #[must_use]
    pub fn new(address: impl Into<String>) -> Self {
        Self {
            address: address.into(),
            ..Self::default()
        }
    }
}

impl fmt::Debug for Config {
    /// Shows everything but the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("address", &self.address)
            .field("has_password", &self.password.is_some())
            .field("connections", &self.connections)
            .finish_non_exhaustive()
    }
}

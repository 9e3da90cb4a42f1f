//! Endpoints as whoever calls a service sees them.

use std::sync::Arc;

use tokio::sync::watch;

/// Share of an endpoint that says nothing about it.
pub const WEIGHT_DEFAULT: u32 = 1;

/// One address at which a service can be called.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// `host:port`; an IPv6 host stands in brackets.
    pub address: String,
    /// Its share of the calls, relative to the other endpoints; at least 1.
    pub weight: u32,
    /// Where it stands, as in `eu-1a`; empty if it does not say.
    pub zone: String,
}

impl Endpoint {
    /// An endpoint that says no more than where it is.
    #[must_use]
    pub fn at(address: impl Into<String>) -> Self {
        Self {
            address: address.into(),
            weight: WEIGHT_DEFAULT,
            zone: String::new(),
        }
    }
}

/// The endpoints of a service, now and after every change: sorted by address, without doubles. The
/// last known ones stay in it when whoever tells of them is away or gone (the receiver then reports
/// that its sender is gone: no more than that nothing will change).
pub type Endpoints = watch::Receiver<Arc<[Endpoint]>>;

/// Endpoints that never change.
#[must_use]
pub fn fixed(endpoints: Vec<Endpoint>) -> Endpoints {
    watch::Sender::new(endpoints.into()).subscribe()
}

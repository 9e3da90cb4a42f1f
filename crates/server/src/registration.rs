//! What a node writes into the registry about itself.
//!
//! A node that serves registers every service of its gRPC port; one on standby only says that it is
//! there. What is written, and how it is kept alive, is the registry's: see
//! [`flux_cluster::registry`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use flux_cluster::registry::{NodeEntry, Registration, address_of};
use flux_proto::{KV_SERVICE, ORIGINAL_SERVICE, WATCH_SERVICE};

use crate::config::Config;
use crate::context::Context;

/// The services that are registered: all that a client would call. No name may begin with another,
/// because old clients look for a name without what ends it.
const SERVICES: &[&str] = &[KV_SERVICE, ORIGINAL_SERVICE, WATCH_SERVICE];

/// What this node registers; `http` is where a gateway of the same process listens.
pub(crate) fn registration(context: &Context, http: Option<SocketAddr>) -> Registration {
    let config = &context.config;
    let host = host(config, context.addresses.grpc.ip());
    let at = |address: SocketAddr| address_of(&host, address.port());
    let id = if config.name.is_empty() {
        format!("{:016x}", context.identity.node.get())
    } else {
        config.name.clone()
    };
    let services = if config.standby { &[] } else { SERVICES };
    let node = NodeEntry {
        id: id.clone(),
        grpc: at(context.addresses.grpc),
        resp: at(context.addresses.resp),
        http: http.map(at).unwrap_or_default(),
        admin: at(context.addresses.admin),
        zone: String::new(),
        weight: 1,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        shards: context.home.routing(),
        standby: config.standby,
        started_at: context.clock.unix_millis(),
    };
    Registration {
        id,
        services: services.iter().map(|name| (*name).to_owned()).collect(),
        address: node.grpc.clone(),
        node: Some(node),
    }
}

/// The host under which others reach this node. A listener on every address is advertised as
/// loopback: nothing else is known to be right, and it is right on this machine.
pub(crate) fn host(config: &Config, bound: IpAddr) -> String {
    if !config.advertise.is_empty() {
        return config.advertise.clone();
    }
    match bound {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.to_string(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.to_string(),
        IpAddr::V4(_) | IpAddr::V6(_) => bound.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_service_is_the_beginning_of_another() {
        for one in SERVICES {
            for other in SERVICES {
                assert!(one == other || !other.starts_with(one), "{one} and {other}");
            }
        }
    }

    #[test]
    fn a_node_is_reached_where_it_says_or_where_it_listens() {
        let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let mut config = Config::default();
        assert_eq!(host(&config, any), "127.0.0.1");
        assert_eq!(host(&config, IpAddr::V6(Ipv6Addr::UNSPECIFIED)), "::1");
        assert_eq!(
            host(&config, IpAddr::V4(Ipv4Addr::new(10, 0, 0, 7))),
            "10.0.0.7"
        );
        config.advertise = "kv1".to_owned();
        assert_eq!(host(&config, any), "kv1");
    }
}

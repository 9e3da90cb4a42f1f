//! The gateway over real sockets, in front of a real tonic service.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::string_slice,
    reason = "a test fails by panicking, in its helpers too"
)]

mod client;
mod errors;
mod life;
mod limits;
mod policy;
mod routes;
mod sample;
mod streams;

use std::net::SocketAddr;

use flux_gateway::{Config, DescriptorSource, Gateway, UpstreamConfig};
use sample::{Reflection, Sample, descriptor_set};

/// A gateway before a sample, its descriptors there from the start.
struct Lab {
    gateway: Gateway,
    sample: Sample,
}

impl Lab {
    fn start() -> Self {
        Self::start_with("")
    }

    /// With further configuration, as TOML.
    fn start_with(toml: &str) -> Self {
        let sample = Sample::start(Reflection::None);
        let mut config = config(toml, sample.address);
        for upstream in &mut config.upstreams {
            upstream.descriptors = DescriptorSource::Embedded(descriptor_set().into());
        }
        Self {
            gateway: Gateway::start(config).unwrap(),
            sample,
        }
    }

    fn address(&self) -> SocketAddr {
        self.gateway.addresses().http
    }
}

/// Two workers on a free port, before one endpoint.
fn config(toml: &str, endpoint: SocketAddr) -> Config {
    let mut config: Config = toml::from_str(toml).unwrap();
    config.listen = "127.0.0.1:0".parse().unwrap();
    config.workers = 2;
    config.text_bytes_option = "lab.v1.is_text".to_owned();
    if config.upstreams.is_empty() {
        config.upstreams.push(UpstreamConfig::default());
    }
    for upstream in &mut config.upstreams {
        upstream.endpoints = vec![endpoint.to_string()];
    }
    config
}

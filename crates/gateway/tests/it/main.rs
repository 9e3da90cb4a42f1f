//! The gateway over real sockets, in front of a real tonic service.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::string_slice,
    reason = "a test fails by panicking, in its helpers too"
)]

mod balance;
mod client;
mod corpus;
mod errors;
mod flight;
mod hostile;
mod life;
mod limits;
mod policy;
mod reload;
mod routes;
mod sample;
mod streams;

use std::net::SocketAddr;

use flux_gateway::{Config, DescriptorSource, Gateway, UpstreamConfig};
use flux_telemetry::Registry;
use sample::{Reflection, Sample, descriptor_set};

/// A gateway before a sample, its descriptors there from the start.
struct Lab {
    gateway: Gateway,
    sample: Sample,
    registry: Registry,
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
        let registry = Registry::new();
        Self {
            gateway: Gateway::start_with(config, &registry).unwrap(),
            sample,
            registry,
        }
    }

    fn metric(&self, name: &str) -> f64 {
        metric(&self.registry, name)
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

/// The value of a sample, named with its labels; 0 if there is none.
fn metric(registry: &Registry, name: &str) -> f64 {
    let text = registry.encode();
    let mut lines = text.lines().filter_map(|line| line.rsplit_once(' '));
    let found = lines.find(|(sample, _)| *sample == name);
    found.map_or(0.0, |(_, value)| value.parse().unwrap())
}

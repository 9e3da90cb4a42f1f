//! HTTP to gRPC for any service, by descriptor: no generated code, and no word about what the
//! services are for.
//!
//! A request comes in over HTTP/1.1 or HTTP/2 (`serve`), is matched by method and path (`route`)
//! against what descriptors and configuration declare (`descriptor`), turned into protobuf bytes
//! (`transcode`), sent to an endpoint (`upstream`), and its answer turned into JSON. Every failure,
//! the gateway's own included, is a `google.rpc.Status` as JSON (`status`).
//!
//! What it promises and what can be configured is in `docs/gateway.md`.

mod config;

mod error;

mod gateway;

pub mod fuzzing;
mod live;

mod surroundings;

mod serve;

mod route;

mod descriptor;

mod transcode;

mod policy;

mod upstream;

mod status;

mod metrics;

pub use config::{
    BalanceConfig, BreakerConfig, BreakerMode, ClientLimitConfig, CoalesceConfig, Config,
    DescriptorSource, FallbackConfig, HealthConfig, JsonConfig, LimitConfig, Mistake, NamesConfig,
    ProtoSource, Rate, ResponseConfig, RetryConfig, RouteConfig, Size, StaleConfig, StreamConfig,
    StreamForm, Timeout, UnknownFieldsConfig, UpstreamConfig,
};
pub use error::StartError;
pub use gateway::{Addresses, Gateway};
pub use surroundings::{Activity, Surroundings};

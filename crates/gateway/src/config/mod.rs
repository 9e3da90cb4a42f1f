//! What can be configured, with its defaults and its limits.
//!
//! Two steps: serde turns text into these types, then [`Config::validate`] looks at everything
//! together and reports every mistake at once, each with its key and what to do. Code below takes
//! the fields it needs and never validates again.

mod policy;
mod policy_check;
mod units;
mod validate;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub use policy::{
    BalanceConfig, BreakerConfig, BreakerMode, ClientLimitConfig, CoalesceConfig, FallbackConfig,
    HealthConfig, LimitConfig, Rate, RetryConfig, StaleConfig,
};
pub use units::{Size, Timeout};
pub use validate::Mistake;
pub(crate) use validate::is_reserved;

/// The gateway. All keys are optional but an upstream is needed to be of any use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Address on which HTTP/1.1 and HTTP/2 without TLS are served. Port 0 picks a free one.
    pub listen: SocketAddr,
    /// Worker threads, each with its own connections; 0 means one per core. At most 256.
    pub workers: usize,
    /// Client connections open at the same time; more wait to be accepted.
    pub connections_max: usize,
    /// Time for a request's headers to arrive, counted from the first wait for them; also how
    /// long an idle connection is kept.
    pub header_read_timeout: Timeout,
    /// Size of a request's headers together; more is answered 431.
    pub header_bytes_max: Size,
    /// Number of a request's headers; more is answered 431.
    pub headers_max: usize,
    /// Size of a request's body; more is answered 413.
    pub body_bytes_max: Size,
    /// Time for a request's body to arrive; longer is answered 408.
    pub body_read_timeout: Timeout,
    /// How long a client may take nothing of its answer before its connection is closed.
    pub stall_timeout: Timeout,
    /// Size of a message that an upstream may answer with; more is answered 502.
    pub response_bytes_max: Size,
    /// Deadline of requests that bring none and whose route has none.
    pub request_timeout: Timeout,
    /// The longest deadline that a request may ask for.
    pub request_timeout_max: Timeout,
    /// Request headers that are passed on to upstreams as metadata, lower case.
    pub forward_headers: Vec<String>,
    /// Path of the gateway's own health answer; empty for none.
    pub health_path: String,
    /// Full name of a boolean extension of `google.protobuf.FieldOptions` that marks `bytes`
    /// fields which hold text: those are plain strings in JSON. Empty for none.
    pub text_bytes_option: String,
    /// Further such fields, as `package.Message.field`.
    pub text_bytes_fields: Vec<String>,
    /// JSON rules.
    pub json: JsonConfig,
    /// The token bucket that all requests share; more are answered 429.
    pub limit: LimitConfig,
    /// A token bucket for each client; more are answered 429.
    pub client_limit: ClientLimitConfig,
    /// Breaker of every upstream that has none of its own.
    pub breaker: BreakerConfig,
    /// How endpoints take turns, in every upstream that says nothing of it.
    pub balance: BalanceConfig,
    /// When an endpoint is passed over, in every upstream that says nothing of it.
    pub health: HealthConfig,
    /// How calls are tried again, in every upstream that says nothing of it.
    pub retry: RetryConfig,
    /// Rules for rpcs that answer with a stream of messages.
    pub stream: StreamConfig,
    /// Whether identical reads under way share one call, on routes that say nothing of it.
    pub coalesce: CoalesceConfig,
    /// Bounds of the answers kept for `fallback.stale`, of all routes together.
    pub stale: StaleConfig,
    /// The services behind the gateway.
    pub upstreams: Vec<UpstreamConfig>,
    /// Routes beside those that the descriptors declare.
    pub routes: Vec<RouteConfig>,
}

/// JSON rules.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct JsonConfig {
    /// What happens to JSON fields and parameters that the message does not have.
    pub unknown_fields: UnknownFieldsConfig,
    /// Whether responses show fields that hold their default (0, "", false, empty lists).
    pub emit_defaults: bool,
    /// Names of fields in responses; requests may use both.
    pub names: NamesConfig,
    /// How deeply objects and lists of a request may be nested. At most 100.
    pub depth_max: usize,
}

/// Rules for rpcs that answer with a stream of messages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct StreamConfig {
    /// How long a stream may last; it ends with an error that says so.
    pub time_max: Timeout,
    /// How long the answer is held back for a first message, so that a call which fails at once
    /// gets the HTTP status of its failure.
    pub open_wait: Timeout,
    /// Silence after which a sign of life is sent.
    pub ping_interval: Timeout,
}

/// How the messages of a stream are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StreamForm {
    /// Server-sent events.
    Sse,
    /// One JSON document a line.
    Ndjson,
    /// One JSON array.
    Array,
}

/// What happens to JSON fields and parameters that the message does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UnknownFieldsConfig {
    /// The request is answered 400 naming the field.
    Reject,
    /// They are left out.
    Ignore,
}

/// Names of fields in responses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NamesConfig {
    /// lowerCamelCase, the protobuf JSON convention.
    Json,
    /// As in the `.proto` file.
    Proto,
}

/// A set of endpoints that serve the same services.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct UpstreamConfig {
    /// How routes and logs call it.
    pub name: String,
    /// `host:port` of each endpoint; they take turns.
    pub endpoints: Vec<String>,
    /// Instead of `endpoints`: the full name of a service, whose endpoints the registry tells.
    pub service: String,
    /// Full names of the services to expose; empty for all that the descriptors have, except the
    /// reflection service.
    pub services: Vec<String>,
    /// Where the descriptors of its services come from.
    pub descriptors: DescriptorSource,
    /// How often descriptors are asked for again by reflection.
    pub refresh: Timeout,
    /// Time to establish a connection.
    pub connect_timeout: Timeout,
    /// Calls in flight at the same time over the whole gateway; more are answered 429.
    pub in_flight_max: usize,
    /// Its breaker, if it is not the gateway's.
    pub breaker: Option<BreakerConfig>,
    /// Metadata of every call, reflection included, unless the request brings its own under that
    /// name: `{ authorization = "Bearer …" }` for services that want a password.
    pub metadata: BTreeMap<String, String>,
    /// How its endpoints take turns, if not as the gateway has it.
    pub balance: Option<BalanceConfig>,
    /// When an endpoint is passed over, if not as the gateway has it.
    pub health: Option<HealthConfig>,
    /// How calls are tried again, if not as the gateway has it.
    pub retry: Option<RetryConfig>,
}

/// Where descriptors come from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DescriptorSource {
    /// The upstream tells by gRPC server reflection (v1, else v1alpha).
    #[default]
    Reflection,
    /// A file holding an encoded `google.protobuf.FileDescriptorSet`, as
    /// `protoc --descriptor_set_out --include_imports` writes it.
    Set(String),
    /// `.proto` files, compiled at start.
    Proto(ProtoSource),
    /// An encoded `FileDescriptorSet` handed over by the program that embeds the gateway.
    #[serde(skip)]
    Embedded(Bytes),
}

/// `.proto` files and where their imports are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ProtoSource {
    /// The files, relative to one of `includes`.
    pub files: Vec<String>,
    /// Directories in which files and imports are searched.
    pub includes: Vec<String>,
}

/// One route: method and path to an rpc.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct RouteConfig {
    /// Method and path template, as in `GET /v1/things/{name}`.
    pub http: String,
    /// The rpc that answers, as `package.Service/Method`.
    pub rpc: String,
    /// The upstream that has it; empty if only one does.
    pub upstream: String,
    /// What the body holds: `*` the whole request message, a field's name that field, empty
    /// nothing. Without this key: `*` for POST, PUT and PATCH.
    pub body: Option<String>,
    /// The field of the response message that is the response body; empty for the whole message.
    pub response_body: String,
    /// Deadline of requests that bring none.
    pub timeout: Option<Timeout>,
    /// Fields of the request message that the request must give; it is answered 400 otherwise.
    pub required: Vec<String>,
    /// How a stream is written for callers who do not say; `array` without this key.
    pub stream: Option<StreamForm>,
    /// The field of a streamed message that is the `id:` of its server-sent event.
    pub sse_id: String,
    /// The field of a streamed message that is the `event:` of its server-sent event.
    pub sse_event: String,
    /// The field of the request message that the header `Last-Event-ID` fills, whatever the query
    /// says.
    pub last_event_id: String,
    /// Fields that the request message has before the request is read, as JSON.
    pub defaults: serde_json::Map<String, serde_json::Value>,
    /// The response object, if it is not simply the message.
    pub response: Option<ResponseConfig>,
    /// A token bucket that the requests of this route share, beside the gateway's.
    pub limit: LimitConfig,
    /// A token bucket for each client on this route, beside the gateway's.
    pub client_limit: ClientLimitConfig,
    /// Calls in flight at the same time on this route; more are answered 429. Without it only the
    /// upstream's bound holds.
    pub in_flight_max: Option<usize>,
    /// Its breaker, if it is not the upstream's.
    pub breaker: Option<BreakerConfig>,
    /// Whether identical reads under way share one call, if not as the gateway has it.
    pub coalesce: Option<CoalesceConfig>,
    /// What is answered in place of a failure of the upstream.
    pub fallback: Option<FallbackConfig>,
}

/// A response object put together from constants and fields of the response message.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ResponseConfig {
    /// Keys and values written as they are, first.
    pub constants: serde_json::Map<String, serde_json::Value>,
    /// Fields that are always shown, with their default if the upstream left them out.
    pub fields: Vec<String>,
    /// Fields shown only if the request sets the boolean field named on the right.
    pub on_request: BTreeMap<String, String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080),
            workers: 0,
            connections_max: 20_000,
            header_read_timeout: Timeout::seconds(10),
            header_bytes_max: Size::bytes(32 << 10),
            headers_max: 100,
            body_bytes_max: Size::bytes(10 << 20),
            body_read_timeout: Timeout::seconds(30),
            stall_timeout: Timeout::seconds(60),
            response_bytes_max: Size::bytes(66 << 20),
            request_timeout: Timeout::seconds(2),
            request_timeout_max: Timeout::seconds(60),
            forward_headers: [
                "authorization",
                "traceparent",
                "tracestate",
                "baggage",
                "x-request-id",
            ]
            .map(str::to_owned)
            .to_vec(),
            health_path: "/health".to_owned(),
            text_bytes_option: String::new(),
            text_bytes_fields: Vec::new(),
            json: JsonConfig::default(),
            limit: LimitConfig::default(),
            client_limit: ClientLimitConfig::default(),
            breaker: BreakerConfig::default(),
            balance: BalanceConfig::default(),
            health: HealthConfig::default(),
            retry: RetryConfig::default(),
            stream: StreamConfig::default(),
            coalesce: CoalesceConfig::default(),
            stale: StaleConfig::default(),
            upstreams: Vec::new(),
            routes: Vec::new(),
        }
    }
}

impl Default for JsonConfig {
    fn default() -> Self {
        Self {
            unknown_fields: UnknownFieldsConfig::Reject,
            emit_defaults: true,
            names: NamesConfig::Json,
            depth_max: 64,
        }
    }
}

impl Default for StreamConfig {
    fn default() -> Self {
        Self {
            time_max: Timeout::seconds(3_600),
            open_wait: Timeout::millis(250),
            ping_interval: Timeout::seconds(15),
        }
    }
}

impl Default for UpstreamConfig {
    fn default() -> Self {
        Self {
            name: "default".to_owned(),
            endpoints: Vec::new(),
            service: String::new(),
            services: Vec::new(),
            descriptors: DescriptorSource::Reflection,
            refresh: Timeout::seconds(30),
            connect_timeout: Timeout::seconds(1),
            in_flight_max: 10_000,
            breaker: None,
            metadata: BTreeMap::new(),
            balance: None,
            health: None,
            retry: None,
        }
    }
}

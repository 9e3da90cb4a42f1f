//! Logs, metrics and trace context, the same for every room that runs.
//!
//! [`logs`] sets up `tracing` once per process; [`metrics`] is a Prometheus registry whose counters
//! and histograms are cheap enough for the hot path; [`trace`] makes spans of the requests that are
//! sampled and hands them to a collector; [`context`] reads and writes W3C `traceparent` headers;
//! [`process`] reports on the process itself; [`checks`] says whether it is ready, and what is
//! missing if not.
//!
//! Nothing here knows what is measured, and nothing here reads a clock: durations come in as
//! arguments. The process is configured by the binary alone, so no environment variable is read.

pub mod checks;
pub mod context;
pub mod logs;
pub mod metrics;
pub mod process;
pub mod trace;

pub use checks::Checks;
pub use context::TraceContext;
pub use metrics::{
    Counter, Counters, Family, Gauge, Gauges, Histogram, Histograms, Kind, Labels, Registry,
    Samples, Scale, Value,
};

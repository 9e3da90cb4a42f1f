//! Logs, Prometheus registry, trace context.

//! A KV node: listeners, sessions, command execution, gRPC services, admin HTTP, shutdown.

mod admin;
mod clients;
mod execute;
mod flux_session;
mod groups;
mod grpc;
mod http_listener;
mod metrics;
mod readiness;

//! A KV node: listeners, sessions, command execution, gRPC services, admin HTTP, shutdown.

mod admin;
mod execute;
mod grpc;
mod http_listener;
mod metrics;
mod readiness;

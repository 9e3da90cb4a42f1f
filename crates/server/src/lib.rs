//! A KV node: listeners, sessions, command execution, gRPC services, admin HTTP, shutdown.

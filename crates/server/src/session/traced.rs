//! The trace of a turn: one SERVER span for the commands that arrived together, if it is sampled.
//!
//! RESP has no place for a caller's context, so every trace begins here. Hot path: one branch per
//! turn without a tracer, one draw with one.

use flux_telemetry::trace::{self, Kind, Service, Span};
use flux_wire::resp::Spec;

/// Begins the span of a turn.
pub(super) fn begin() -> Option<Span> {
    trace::begin(Service::Node, Kind::Server, || "RESP")
}

/// Says what the turn was. `last` is its last command.
pub(super) fn describe(span: &Span, last: Option<&'static Spec>, commands: usize) {
    span.set("db.system.name", "redis");
    span.set("db.namespace", "0");
    let operation = match last {
        Some(spec) if commands == 1 => {
            let name = spec.name.to_ascii_uppercase();
            spec.container.map_or_else(
                || name.clone(),
                |container| format!("{} {name}", container.to_ascii_uppercase()),
            )
        }
        Some(_) | None => "PIPELINE".to_owned(),
    };
    if commands > 1 {
        span.set("db.operation.batch.size", commands);
    }
    span.set("db.operation.name", operation.clone());
    span.rename(operation);
}

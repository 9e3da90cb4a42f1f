//! The trace of a change on its way through the broker: a PRODUCER span below the request that
//! caused the change, from publishing to the confirm.

use flux_telemetry::TraceContext;
use flux_telemetry::trace::{Kind, Service, Span, child_of};
use flux_types::TraceParent;

use crate::event::Event;

/// Begins the span of an event, if the request that caused it is recorded.
pub(super) fn begin(event: &Event, exchange: &str) -> Option<Span> {
    let parent = event.trace?;
    let parent = TraceContext::new(parent.trace_id(), parent.span_id(), parent.is_sampled())?;
    let name = || format!("send {exchange}");
    let span = child_of(parent, Service::Node, Kind::Producer, name)?;
    span.set("messaging.system", "rabbitmq");
    span.set("messaging.operation.type", "send");
    span.set("messaging.operation.name", "send");
    span.set("messaging.destination.name", exchange.to_owned());
    span.set("messaging.message.id", event.id());
    span.set("flux.shard", event.position.shard.get());
    Some(span)
}

/// What the message carries.
pub(super) fn parent(span: &Span) -> Option<TraceParent> {
    let context = span.context();
    TraceParent::new(context.trace_id(), context.span_id(), context.is_sampled())
}

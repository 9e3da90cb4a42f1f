//! The trace of a message that is processed: a CONSUMER span, linked to the one that sent it, because
//! many messages are processed together and long after.

use flux_telemetry::TraceContext;
use flux_telemetry::context::TRACEPARENT;
use flux_telemetry::trace::{Kind, Service, Span, begin_linked};
use lapin::message::Delivery;
use lapin::types::AMQPValue;

/// Begins the span of a delivery, if its sender is recorded.
pub(super) fn begin(delivery: &Delivery, queue: &str) -> Option<Span> {
    let sender = sender(delivery)?;
    let name = || format!("process {queue}");
    let span = begin_linked(sender, Service::Consumer, Kind::Consumer, name)?;
    span.set("messaging.system", "rabbitmq");
    span.set("messaging.operation.type", "process");
    span.set("messaging.operation.name", "process");
    span.set("messaging.destination.name", queue.to_owned());
    if let Some(id) = delivery.properties.message_id() {
        span.set("messaging.message.id", id.to_string());
    }
    Some(span)
}

fn sender(delivery: &Delivery) -> Option<TraceContext> {
    let headers = delivery.properties.headers().as_ref()?;
    let AMQPValue::LongString(text) = headers.inner().get(TRACEPARENT)? else {
        return None;
    };
    TraceContext::parse(std::str::from_utf8(text.as_bytes()).ok()?)
}

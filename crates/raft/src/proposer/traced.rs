//! What recorded requests see of their batch: a `log.commit` span for each, from the proposal to
//! the moment when the batch is applied. Hot path: without a recorded request in the batch, one
//! look at each submission.

use flux_telemetry::TraceContext;
use flux_telemetry::trace::{self, Kind, Service, Span};
use flux_types::{ShardId, Term, TraceParent};

use super::pending::Pending;

/// Spans of one batch; further requests of it get none.
const SPANS_MAX: usize = 32;

/// Begins the spans of a batch of so many bytes.
pub(super) fn begin(asked: &[Pending], shard: ShardId, term: Term, bytes: usize) -> Vec<Span> {
    if !trace::is_on() {
        return Vec::new();
    }
    let mut last = None;
    let mut spans = Vec::new();
    for parent in asked.iter().flat_map(Pending::traces) {
        // The commands of one request come together.
        if last.replace(parent) == Some(parent) {
            continue;
        }
        if spans.len() == SPANS_MAX {
            break;
        }
        let Some(span) = context(parent).and_then(begin_below) else {
            continue;
        };
        span.set("flux.shard", shard.get());
        span.set("flux.term", term.get());
        span.set("flux.batch.submissions", asked.len());
        span.set("flux.batch.bytes", bytes);
        spans.push(span);
    }
    spans
}

fn begin_below(parent: TraceContext) -> Option<Span> {
    trace::child_of(parent, Service::Node, Kind::Internal, || "log.commit")
}

fn context(parent: TraceParent) -> Option<TraceContext> {
    TraceContext::new(parent.trace_id(), parent.span_id(), parent.is_sampled())
}

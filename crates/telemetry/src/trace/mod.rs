//! Spans: what a request did and for how long, for a collector to show.
//!
//! One tracer per process, set up by the binary as logs are; until then, and for every request
//! that is not sampled, no span exists and asking costs one branch ([`enter`]). Only the rooms that
//! call this module make spans: libraries that are traced by `tracing` (h2, tonic, hyper) cannot
//! reach a collector through here, so nothing has to be filtered out.
//!
//! Sampling is decided once, at the head of a trace, from the trace's identifier as every
//! OpenTelemetry SDK does it ([`Sampling`]), and travels with the context ([`TraceContext`]).
//! A finished span goes to a [`Sink`], which must not block: a full queue drops, and counts.
//!
//! Time and the seed of identifiers come in as arguments ([`Setup`]).

#[cfg(feature = "otel")]
pub mod otlp;
mod sampling;
mod span;
#[cfg(test)]
mod tests;
mod within;

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, OnceLock};

pub use sampling::Sampling;
pub use span::{Finished, Kind, Service, Span, Value};
pub use within::{Within, current, during, within};

use crate::context::TraceContext;

/// Takes finished spans.
pub trait Sink: fmt::Debug + Send + Sync {
    /// Takes a span. Must not block and must not fail: what finds no room is dropped and counted.
    fn take(&self, span: Finished);
}

/// Nanoseconds since the Unix epoch.
pub type Now = fn() -> u64;

/// What a tracer is made of.
#[derive(Debug)]
pub struct Setup {
    /// Which traces are recorded.
    pub sampling: Sampling,
    /// Where finished spans go.
    pub sink: Arc<dyn Sink>,
    /// The wall clock: spans of several machines are laid side by side.
    pub now: Now,
    /// Begins the sequence of identifiers; from the kernel's entropy in a real process.
    pub seed: u64,
}

/// Makes spans. One per process ([`install`]); tests make their own.
#[derive(Debug)]
pub struct Tracer {
    setup: Setup,
}

/// Traces have already been set up in this process.
#[derive(Debug, thiserror::Error)]
#[error("traces are already set up")]
pub struct Installed;

static TRACER: OnceLock<Arc<Tracer>> = OnceLock::new();

/// Makes the process's tracer.
///
/// # Errors
/// If there is one already.
pub fn install(setup: Setup) -> Result<(), Installed> {
    TRACER
        .set(Arc::new(Tracer::new(setup)))
        .map_err(|_| Installed)
}

/// Whether this process makes spans at all.
#[must_use]
pub fn is_on() -> bool {
    TRACER.get().is_some()
}

/// What a request that has just arrived is to tracing.
#[derive(Debug)]
pub enum Entered {
    /// There is no tracer: whatever context came along is passed on as it is.
    Off,
    /// Not recorded, and neither is what it causes elsewhere: this context says so.
    Unsampled(TraceContext),
    /// Recorded.
    Sampled(Span),
}

impl Entered {
    /// The span, if there is one.
    #[must_use]
    pub const fn span(&self) -> Option<&Span> {
        match self {
            Self::Sampled(span) => Some(span),
            Self::Off | Self::Unsampled(_) => None,
        }
    }

    /// The span, if there is one.
    #[must_use]
    pub fn into_span(self) -> Option<Span> {
        match self {
            Self::Sampled(span) => Some(span),
            Self::Off | Self::Unsampled(_) => None,
        }
    }

    /// The context to send on; `None` without a tracer.
    #[must_use]
    pub const fn context(&self) -> Option<TraceContext> {
        match self {
            Self::Off => None,
            Self::Unsampled(context) => Some(*context),
            Self::Sampled(span) => Some(span.context()),
        }
    }
}

/// Takes a request in: continues `parent`, the context that it brought, or begins a trace.
/// `name` is asked only if there is to be a span.
pub fn enter<N: Into<Cow<'static, str>>>(
    service: Service,
    kind: Kind,
    parent: Option<TraceContext>,
    name: impl FnOnce() -> N,
) -> Entered {
    match TRACER.get() {
        None => Entered::Off,
        Some(tracer) => tracer.enter(service, kind, parent, name),
    }
}

/// Begins a trace that no caller has begun, if it is to be recorded. The cheapest way in: whoever
/// cannot be told a decision need not have an unrecorded context.
pub fn begin<N: Into<Cow<'static, str>>>(
    service: Service,
    kind: Kind,
    name: impl FnOnce() -> N,
) -> Option<Span> {
    TRACER.get()?.begin_trace(service, kind, name)
}

/// Begins a trace because of something that another trace has left behind, a message for example,
/// if that one is recorded: the new span has no parent and is linked to `to`.
pub fn begin_linked<N: Into<Cow<'static, str>>>(
    to: TraceContext,
    service: Service,
    kind: Kind,
    name: impl FnOnce() -> N,
) -> Option<Span> {
    let tracer = TRACER.get().filter(|_| to.is_sampled())?;
    Some(tracer.begin_linked(to, service, kind, name))
}

/// A span of this process below `parent`, if that is recorded and there is a tracer.
pub fn child_of<N: Into<Cow<'static, str>>>(
    parent: TraceContext,
    service: Service,
    kind: Kind,
    name: impl FnOnce() -> N,
) -> Option<Span> {
    let tracer = TRACER.get().filter(|_| parent.is_sampled())?;
    Some(tracer.child_of(parent, service, kind, name))
}

/// By whom a span is made, and because of what.
struct Made {
    service: Service,
    kind: Kind,
    parent: Option<TraceContext>,
    parent_is_remote: bool,
}

impl Tracer {
    /// A tracer of its own.
    #[must_use]
    pub const fn new(setup: Setup) -> Self {
        Self { setup }
    }

    /// See [`enter`].
    pub fn enter<N: Into<Cow<'static, str>>>(
        self: &Arc<Self>,
        service: Service,
        kind: Kind,
        parent: Option<TraceContext>,
        name: impl FnOnce() -> N,
    ) -> Entered {
        let seed = self.setup.seed;
        let (trace_id, is_sampled) = match parent {
            Some(parent) => self.setup.sampling.of_child(parent),
            None => self.setup.sampling.of_root(seed),
        };
        if !is_sampled {
            // A caller that decided not to record is passed on itself.
            let passed = parent.filter(|parent| !parent.is_sampled());
            let context = passed.unwrap_or_else(|| sampling::context(trace_id, seed, is_sampled));
            return Entered::Unsampled(context);
        }
        let made = Made {
            service,
            kind,
            parent,
            parent_is_remote: parent.is_some(),
        };
        let context = sampling::context(trace_id, seed, is_sampled);
        Entered::Sampled(self.begin(made, name().into(), context))
    }

    /// See [`begin`].
    pub fn begin_trace<N: Into<Cow<'static, str>>>(
        self: &Arc<Self>,
        service: Service,
        kind: Kind,
        name: impl FnOnce() -> N,
    ) -> Option<Span> {
        let trace_id = self.setup.sampling.of_recorded_root(self.setup.seed)?;
        let made = Made {
            service,
            kind,
            parent: None,
            parent_is_remote: false,
        };
        let context = sampling::context(trace_id, self.setup.seed, true);
        Some(self.begin(made, name().into(), context))
    }

    /// See [`begin_linked`]; `to` is taken as recorded.
    pub fn begin_linked<N: Into<Cow<'static, str>>>(
        self: &Arc<Self>,
        to: TraceContext,
        service: Service,
        kind: Kind,
        name: impl FnOnce() -> N,
    ) -> Span {
        let made = Made {
            service,
            kind,
            parent: None,
            parent_is_remote: false,
        };
        let seed = self.setup.seed;
        let context = sampling::context(sampling::trace_id(seed), seed, true);
        let span = self.begin(made, name().into(), context);
        span.link(to);
        span
    }

    /// See [`child_of`]; `parent` is taken as recorded.
    pub fn child_of<N: Into<Cow<'static, str>>>(
        self: &Arc<Self>,
        parent: TraceContext,
        service: Service,
        kind: Kind,
        name: impl FnOnce() -> N,
    ) -> Span {
        let made = Made {
            service,
            kind,
            parent: Some(parent),
            parent_is_remote: false,
        };
        let context = sampling::context(parent.trace_id(), self.setup.seed, true);
        self.begin(made, name().into(), context)
    }

    fn begin(self: &Arc<Self>, made: Made, name: Cow<'static, str>, context: TraceContext) -> Span {
        let begun_at = (self.setup.now)();
        let Made {
            service,
            kind,
            parent,
            parent_is_remote,
        } = made;
        Span::new(
            Arc::clone(self),
            Finished {
                service,
                name,
                kind,
                context,
                parent: parent.map(TraceContext::span_id),
                parent_is_remote,
                begun_at,
                ended_at: begun_at,
                attributes: Vec::new(),
                links: Vec::new(),
                error: None,
            },
        )
    }

    /// Takes a span whose guard has been dropped.
    fn finish(&self, mut span: Finished) {
        // The wall clock may have been stepped back meanwhile.
        span.ended_at = (self.setup.now)().max(span.begun_at);
        self.setup.sink.take(span);
    }
}

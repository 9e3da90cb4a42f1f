//! The trace of a call: a SERVER span for every sampled one, below the span of the caller.
//!
//! One layer around all services, so that none has to know of it; what a service wants for spans of
//! its own is the context in the request's extensions. Hot path: a call that is not sampled passes
//! through, with nothing allocated.

use std::pin::Pin;
use std::task::{Context, Poll};

use flux_telemetry::context::{TRACEPARENT, TraceContext};
use flux_telemetry::trace::{self, Kind, Service, Span};
use futures_util::future::Either;
use http::{HeaderMap, Request, Response};
use tower::Layer;

/// Services of gRPC's own, which are asked by machines all the time.
const INFRASTRUCTURE: &str = "/grpc.";

/// Puts [`Traced`] around services.
#[derive(Clone, Copy, Debug)]
pub(super) struct TraceLayer;

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Traced<S> {
    inner: S,
}

impl<S> Layer<S> for TraceLayer {
    type Service = Traced<S>;

    fn layer(&self, inner: S) -> Traced<S> {
        Traced { inner }
    }
}

impl<S, B, R> tower::Service<Request<B>> for Traced<S>
where
    S: tower::Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Either<
        S::Future,
        Pin<Box<dyn Future<Output = Result<Response<R>, S::Error>> + Send + 'static>>,
    >;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let Some(span) = begin(&request) else {
            return Either::Left(self.inner.call(request));
        };
        let context = span.context();
        request.extensions_mut().insert(context);
        let call = Box::pin(self.inner.call(request));
        Either::Right(Box::pin(async move {
            let answer = trace::within(Some(context), call).await;
            match &answer {
                Ok(response) => describe(&span, response.headers()),
                Err(_) => span.fail("INTERNAL"),
            }
            answer
        }))
    }
}

/// The span of a call, if it is sampled.
fn begin<B>(request: &Request<B>) -> Option<Span> {
    if !trace::is_on() || request.uri().path().starts_with(INFRASTRUCTURE) {
        return None;
    }
    let parent = parent(request.headers());
    let rpc = || request.uri().path().trim_start_matches('/').to_owned();
    let span = trace::enter(Service::Node, Kind::Server, parent, rpc).into_span()?;
    span.set("rpc.system.name", "grpc");
    span.set("rpc.method", rpc());
    Some(span)
}

/// The context that a call brought. Two entries are no context: nobody knows which is meant.
fn parent(headers: &HeaderMap) -> Option<TraceContext> {
    let mut values = headers.get_all(TRACEPARENT).iter();
    let (first, second) = (values.next()?, values.next());
    if second.is_some() {
        return None;
    }
    TraceContext::parse(first.to_str().ok()?)
}

/// A call that fails says so in the headers, because it has no body; one without is answered well,
/// or is a stream that has begun well.
fn describe(span: &Span, headers: &HeaderMap) {
    let status = headers.get("grpc-status");
    let number = status.and_then(|status| status.to_str().ok()?.parse().ok());
    let code = tonic::Code::from_i32(number.unwrap_or(0));
    let name = code_name(code);
    span.set("rpc.response.status_code", name);
    // A status that is the caller's doing is no failure of the node.
    if matches!(
        code,
        tonic::Code::Unknown
            | tonic::Code::DeadlineExceeded
            | tonic::Code::Unimplemented
            | tonic::Code::Internal
            | tonic::Code::Unavailable
            | tonic::Code::DataLoss
    ) {
        span.fail(name);
    }
}

/// A status code as gRPC writes it.
const fn code_name(code: tonic::Code) -> &'static str {
    match code {
        tonic::Code::Ok => "OK",
        tonic::Code::Cancelled => "CANCELLED",
        tonic::Code::Unknown => "UNKNOWN",
        tonic::Code::InvalidArgument => "INVALID_ARGUMENT",
        tonic::Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        tonic::Code::NotFound => "NOT_FOUND",
        tonic::Code::AlreadyExists => "ALREADY_EXISTS",
        tonic::Code::PermissionDenied => "PERMISSION_DENIED",
        tonic::Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        tonic::Code::FailedPrecondition => "FAILED_PRECONDITION",
        tonic::Code::Aborted => "ABORTED",
        tonic::Code::OutOfRange => "OUT_OF_RANGE",
        tonic::Code::Unimplemented => "UNIMPLEMENTED",
        tonic::Code::Internal => "INTERNAL",
        tonic::Code::Unavailable => "UNAVAILABLE",
        tonic::Code::DataLoss => "DATA_LOSS",
        tonic::Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

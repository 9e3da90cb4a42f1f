//! The trace of one request: a SERVER span for the request, a CLIENT span for the call that it
//! causes, and the contexts that go between.
//!
//! Hot path: without a tracer this is one branch; a request that is not sampled costs two random
//! numbers and the header that tells the upstream so. Names and attributes are those of
//! OpenTelemetry's semantic conventions for HTTP and RPC.

use flux_telemetry::context::{TRACEPARENT, TraceContext};
use flux_telemetry::trace::{self, Entered, Kind, Service, Span};
use http::header::{HOST, USER_AGENT};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Response, Version};

use super::reply::Body;
use crate::descriptor::route::RpcRoute;
use crate::status::Failure;

/// The header of a response by which the caller finds the trace of the request.
const TRACE_ID: HeaderName = HeaderName::from_static("x-trace-id");
const PARENT: HeaderName = HeaderName::from_static(TRACEPARENT);

/// See the module. One for each request, made when its headers are there.
#[derive(Debug)]
pub(crate) struct Traced {
    entered: Entered,
}

impl Traced {
    /// Begins the span of a request, if it is to have one.
    pub(crate) fn begin(request: &Parts) -> Self {
        if !trace::is_on() {
            return Self {
                entered: Entered::Off,
            };
        }
        let parent = context_of(&request.headers);
        let entered = trace::enter(Service::Gateway, Kind::Server, parent, || {
            method(request).to_owned()
        });
        if let Some(span) = entered.span() {
            describe(span, request);
        }
        Self { entered }
    }

    /// What log lines of this request belong to.
    pub(crate) fn context(&self) -> Option<TraceContext> {
        self.entered.span().map(Span::context)
    }

    /// The request has a route.
    pub(crate) fn route(&self, route: &RpcRoute) {
        if let Some(span) = self.entered.span() {
            span.rename(route.http.to_string());
            let path = route.http.split_once(' ').map_or("", |(_, path)| path);
            span.set("http.route", path.to_owned());
        }
    }

    /// Begins the span of a call, if it is to have one, and puts the context into its metadata.
    pub(crate) fn call(&self, rpc: &PathAndQuery, metadata: &mut HeaderMap) -> Option<Span> {
        let rpc = rpc.path().trim_start_matches('/');
        let span = self.entered.span().map(|request| {
            let span = request.child(Service::Gateway, Kind::Client, || rpc.to_owned());
            span.set("rpc.system.name", "grpc");
            span.set("rpc.method", rpc.to_owned());
            span
        });
        let context = span.as_ref().map(Span::context);
        if let Some(context) = context.or_else(|| self.entered.context())
            && let Ok(value) = HeaderValue::try_from(context.to_string())
        {
            metadata.insert(PARENT, value);
        }
        span
    }

    /// The request is answered: says so in its span, which ends with `self`, and tells the caller
    /// which trace it was.
    pub(crate) fn answered(&self, response: &mut Response<Body>) {
        let Some(span) = self.entered.span() else {
            return;
        };
        let status = response.status();
        span.set("http.response.status_code", status.as_u16());
        if status.is_server_error() {
            span.fail(status.as_str().to_owned());
        }
        let trace_id = format!("{:032x}", span.context().trace_id());
        if let Ok(value) = HeaderValue::try_from(trace_id) {
            response.headers_mut().insert(TRACE_ID, value);
        }
    }
}

/// A call has been answered.
pub(crate) fn answered<T>(span: Option<&Span>, result: &Result<T, Failure>) {
    let Some(span) = span else {
        return;
    };
    match result {
        Ok(_) => span.set("rpc.response.status_code", "OK"),
        Err(failure) => {
            span.set("rpc.response.status_code", failure.code.name());
            span.fail(failure.code.name());
        }
    }
}

/// The context that a request brought. Two headers are no context: nobody knows which is meant.
fn context_of(headers: &HeaderMap) -> Option<TraceContext> {
    let mut values = headers.get_all(&PARENT).iter();
    let (first, second) = (values.next()?, values.next());
    if second.is_some() {
        return None;
    }
    TraceContext::parse(first.to_str().ok()?)
}

/// A method that HTTP does not define must not become the name of a span: anybody can invent one.
fn method(request: &Parts) -> &'static str {
    match request.method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "DELETE" => "DELETE",
        "PATCH" => "PATCH",
        "OPTIONS" => "OPTIONS",
        _ => "HTTP",
    }
}

fn describe(span: &Span, request: &Parts) {
    let text = |name: HeaderName| {
        let value = request.headers.get(name)?;
        value.to_str().ok().map(str::to_owned)
    };
    let method = method(request);
    span.set(
        "http.request.method",
        if method == "HTTP" { "_OTHER" } else { method },
    );
    // The query may hold keys and values.
    span.set("url.path", request.uri.path().to_owned());
    span.set("url.scheme", "http");
    span.set(
        "network.protocol.version",
        match request.version {
            Version::HTTP_2 => "2",
            Version::HTTP_10 => "1.0",
            _ => "1.1",
        },
    );
    let host = request.uri.authority().map(ToString::to_string);
    if let Some(host) = host.or_else(|| text(HOST)) {
        let (name, port) = match host.rsplit_once(':') {
            Some((name, port)) if !port.ends_with(']') => (name, port.parse::<u16>().ok()),
            _ => (host.as_str(), None),
        };
        span.set("server.address", name.to_owned());
        if let Some(port) = port {
            span.set("server.port", port);
        }
    }
    if let Some(agent) = text(USER_AGENT) {
        span.set("user_agent.original", agent);
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue, Request};

    use super::{context_of, method};

    const EXAMPLE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn one_header_is_a_context_and_two_are_none() {
        let mut headers = HeaderMap::new();
        assert_eq!(context_of(&headers), None);
        headers.append("traceparent", HeaderValue::from_static(EXAMPLE));
        assert_eq!(context_of(&headers).unwrap().to_string(), EXAMPLE);
        headers.append("traceparent", HeaderValue::from_static(EXAMPLE));
        assert_eq!(context_of(&headers), None);
    }

    #[test]
    fn an_invented_method_names_no_span() {
        let of = |name: &str| {
            let request = Request::builder().method(name).body(()).unwrap();
            method(&request.into_parts().0)
        };
        assert_eq!((of("POST"), of("BREW")), ("POST", "HTTP"));
    }
}

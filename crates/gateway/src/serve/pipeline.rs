//! The one pipeline that every request passes, in the order in which it is written in
//! [`Pipeline::answer`]: vet, route, limit, read, bind, call, render.
//!
//! Hot path. A stage is a function of this file or a neighbour that either passes on or returns a
//! [`Failure`]; whoever adds one (authentication, a limit, a breaker) adds a line there. No stage
//! knows a service.

use std::net::IpAddr;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use flux_env::Clock;
use flux_telemetry::trace;
use http::header::{ALLOW, HeaderMap, HeaderName};
use http::{Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::debug;

use super::form::Form;
use super::render::{HTTP_BODY, Render, is_http_body};
use super::reply::{self, Body};
use super::stream::{FailureRule, Stream, StreamTimes};
use super::traced::{self, Traced};
use super::vet::MediaType;
use super::worker::Phase;
use super::{body, guard, vet};
use crate::config::{NamesConfig, UnknownFieldsConfig, is_reserved};
use crate::descriptor::catalog::Route;
use crate::descriptor::route::{BodyBinding, RpcRoute, Streams};
use crate::live::Live;
use crate::metrics::{Metrics, RouteCounts};
use crate::policy::gcra::Quota;
use crate::route::path;
use crate::route::trie::Match;
use crate::status::{Code, Failure};
use crate::surroundings::Surroundings;
use crate::transcode::bind::Parameters;
use crate::transcode::json_in::{JsonIn, Positions, UnknownFields};
use crate::transcode::json_out::Names;
use crate::transcode::plan::FieldPlan;
use crate::transcode::reader::FieldError;
use crate::transcode::scalar::{Moment, format_timestamp};
use crate::transcode::wire::{WireType, put_bytes, put_tag};
use crate::upstream::client::{Answer, Call, Client};

/// What every request of one worker shares.
#[derive(Debug)]
pub(crate) struct Pipeline {
    limits: Limits,
    forward_headers: Vec<HeaderName>,
    health_path: String,
    /// The configuration in effect when it was made, and everything that comes of it.
    pub(super) live: Arc<Live>,
    clients: Vec<Arc<Client>>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) clock: Arc<dyn Clock>,
    phase: watch::Receiver<Phase>,
}

#[derive(Debug)]
struct Limits {
    header_bytes_max: usize,
    headers_max: usize,
    body_bytes_max: usize,
    body_read_timeout: Duration,
    request_timeout: Duration,
    request_timeout_max: Duration,
    depth_max: usize,
    unknown: UnknownFields,
    names: Names,
    emit_defaults: bool,
    stream: StreamTimes,
}

/// What all workers share.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    /// What is in effect now.
    pub(crate) live: Arc<ArcSwap<Live>>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) surroundings: Surroundings,
}

/// A request without its body.
pub(super) struct Head {
    pub(super) method: Method,
    path: String,
    query: String,
    pub(super) headers: HeaderMap,
    traced: Traced,
    /// What is counted of its route, once it has one.
    counts: OnceLock<Arc<RouteCounts>>,
}

impl Pipeline {
    /// For what is in effect now. Connections of `previous` to upstreams that stay are kept.
    pub(crate) fn new(
        shared: &Shared,
        phase: watch::Receiver<Phase>,
        previous: Option<&Self>,
    ) -> Self {
        let live = shared.live.load_full();
        let config = &live.config;
        Self {
            limits: Limits {
                header_bytes_max: config.header_bytes_max.get(),
                headers_max: config.headers_max,
                body_bytes_max: config.body_bytes_max.get(),
                body_read_timeout: config.body_read_timeout.get(),
                request_timeout: config.request_timeout.get(),
                request_timeout_max: config.request_timeout_max.get(),
                depth_max: config.json.depth_max,
                unknown: match config.json.unknown_fields {
                    UnknownFieldsConfig::Reject => UnknownFields::Reject,
                    UnknownFieldsConfig::Ignore => UnknownFields::Ignore,
                },
                names: match config.json.names {
                    NamesConfig::Json => Names::Json,
                    NamesConfig::Proto => Names::Proto,
                },
                emit_defaults: config.json.emit_defaults,
                stream: StreamTimes::new(config),
            },
            forward_headers: config
                .forward_headers
                .iter()
                .filter_map(|n| n.parse().ok())
                .collect(),
            health_path: config.health_path.clone(),
            clients: live
                .upstreams
                .iter()
                .map(|upstream| {
                    let mut known = previous.into_iter().flat_map(|previous| &previous.clients);
                    let same = known.find(|client| client.is_of(upstream));
                    let new = || Arc::new(Client::new(Arc::clone(upstream)));
                    same.map_or_else(new, Arc::clone)
                })
                .collect(),
            live,
            metrics: Arc::clone(&shared.metrics),
            clock: Arc::clone(&shared.clock),
            phase,
        }
    }

    /// Whether it is for this configuration.
    pub(crate) fn is_of(&self, live: &Arc<Live>) -> bool {
        Arc::ptr_eq(&self.live, live)
    }

    /// Answers a request; failures are answers too.
    pub(crate) async fn handle(&self, request: Request<Incoming>, peer: IpAddr) -> Response<Body> {
        let started = Instant::now();
        let entered = self.metrics.enter();
        let is_http1 = request.version() <= Version::HTTP_11;
        let (parts, incoming) = request.into_parts();
        let traced = Traced::begin(&parts);
        let head = Head {
            method: parts.method,
            path: parts.uri.path().to_owned(),
            query: parts.uri.query().unwrap_or_default().to_owned(),
            headers: parts.headers,
            traced,
            counts: OnceLock::new(),
        };
        let mut quota = None;
        let answered = {
            let answer = pin!(self.answer(&head, incoming, peer, &mut quota));
            trace::within(head.traced.context(), answer).await
        };
        let mut response = match answered {
            Ok(response) => response,
            Err(failure) => reply::failure(&failure, &self.live.catalog.error_details),
        };
        if let Some(quota) = &quota {
            guard::put_quota(quota, response.headers_mut());
        }
        if is_http1 {
            reply::close_after_unread_body(&mut response);
        }
        drop(entered);
        head.traced.answered(&mut response);
        let trace = head.traced.context();
        self.metrics.answered(
            response.status(),
            started.elapsed(),
            head.counts.get().map(Arc::as_ref),
            trace,
        );
        trace::during(trace, || {
            debug!(
                method = %head.method,
                status = response.status().as_u16(),
                micros = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
                "request"
            );
        });
        response
    }

    async fn answer(
        &self,
        head: &Head,
        incoming: Incoming,
        peer: IpAddr,
        quota: &mut Option<Quota>,
    ) -> Result<Response<Body>, Failure> {
        vet::headers(
            &head.headers,
            self.limits.header_bytes_max,
            self.limits.headers_max,
        )?;
        if !self.health_path.is_empty() && head.path == self.health_path {
            return self.health(&head.method);
        }
        let segments = path::segments(&head.path)
            .map_err(|problem| Failure::new(Code::InvalidArgument, problem).reason("BAD_PATH"))?;
        let snapshot = self.live.catalog.current();
        let route = match snapshot.routes.find(&head.method, &segments) {
            Match::Found(Route::Rpc(route)) => route,
            Match::Found(Route::Unusable(problem)) => {
                return Err(Failure::new(Code::Unimplemented, problem.clone()).reason("BAD_ROUTE"));
            }
            Match::Found(Route::Pending) => return Err(descriptors_missing()),
            Match::OtherMethods(methods) => return Err(method_not_allowed(&methods)),
            Match::Nothing if snapshot.is_incomplete => return Err(descriptors_missing()),
            Match::Nothing => {
                let message = "there is no route to this path";
                return Err(Failure::new(Code::NotFound, message).reason("NO_ROUTE"));
            }
        };
        head.traced.route(route);
        let counts = route.counts.get_or_init(|| self.metrics.route(&route.http));
        // It has no other route yet.
        drop(head.counts.set(Arc::clone(counts)));
        *quota = self.limit(route, head, peer)?;
        let (timeout, is_impatient) = self.timeout(head, route)?;
        let limits = &self.limits;
        let body = body::read(incoming, limits.body_bytes_max, limits.body_read_timeout).await?;
        let message = self.bind(route, head, &segments, body)?;
        let render = Render {
            route: Arc::clone(route),
            names: limits.names,
            emit_defaults: limits.emit_defaults,
            asked: route.response.asked(&message),
        };
        let mut metadata = self.metadata(&head.headers);
        let call = Call {
            span: head.traced.call(&route.rpc.path, &mut metadata),
            path: route.rpc.path.clone(),
            metadata,
            message: message.into(),
            deadline: Instant::now() + timeout,
            is_impatient,
            is_idempotent: is_harmless(head, route),
        };
        match route.rpc.streams {
            Streams::Neither => self.unary(head, render, &call).await,
            Streams::Server => self.stream(head, render, call).await,
            Streams::Client => {
                let message = "rpcs that take a stream are not served over this path";
                Err(Failure::new(Code::Unimplemented, message).reason("STREAMING"))
            }
        }
    }

    async fn unary(
        &self,
        head: &Head,
        render: Render,
        call: &Call,
    ) -> Result<Response<Body>, Failure> {
        let answer = match self.call(&render.route, head, call).await {
            Ok(answer) => answer,
            Err(failure) => return self.fall_back(&render.route, failure),
        };
        let mut response = render.response(&answer.message)?;
        pass_metadata(&answer.headers, response.headers_mut());
        Ok(response)
    }

    async fn stream(
        &self,
        head: &Head,
        render: Render,
        call: Call,
    ) -> Result<Response<Body>, Failure> {
        let client = self.client(&render.route)?;
        let admission = self.admit(head, &render.route)?;
        let failures = FailureRule {
            types: Arc::clone(&render.route.rpc.plans),
            is_harmless: is_harmless(head, &render.route),
            is_impatient: call.is_impatient,
            metrics: Arc::clone(&self.metrics),
        };
        let (mut response, metadata) = Stream {
            form: Form::negotiate(&head.headers, &render),
            client: Arc::clone(client),
            call,
            render,
            failures,
            admission,
            catalog: Arc::clone(&self.live.catalog),
            times: self.limits.stream,
            phase: self.phase.clone(),
        }
        .begin()
        .await?;
        pass_metadata(&metadata, response.headers_mut());
        Ok(response)
    }

    fn health(&self, method: &Method) -> Result<Response<Body>, Failure> {
        if *method != Method::GET && *method != Method::HEAD {
            return Err(method_not_allowed(&[Method::GET]));
        }
        let millis = i64::try_from(self.clock.unix_millis()).unwrap_or_default();
        let nanos = i32::try_from(millis % 1_000).unwrap_or_default() * 1_000_000;
        let time = format_timestamp(Moment {
            seconds: millis / 1_000,
            nanos,
        })
        .unwrap_or_default();
        let body = format!("{{\"status\":\"ok\",\"time\":\"{time}\"}}");
        Ok(reply::json(body.into_bytes()))
    }

    /// How long the call may take: what the caller asks for, else the route's, else the default;
    /// and whether the caller asks for less than the others would give.
    fn timeout(&self, head: &Head, route: &RpcRoute) -> Result<(Duration, bool), Failure> {
        let limits = &self.limits;
        let (default, longest) = match route.rpc.streams {
            Streams::Neither => (limits.request_timeout, limits.request_timeout_max),
            Streams::Server | Streams::Client => (limits.stream.time_max, limits.stream.time_max),
        };
        let usual = route.timeout.unwrap_or(default);
        let timeout = vet::requested_timeout(&head.headers)?.unwrap_or(usual);
        let timeout = timeout.min(longest);
        Ok((timeout, timeout < usual))
    }

    /// Encodes the request message: defaults, body, query, path, the later winning.
    fn bind(
        &self,
        route: &RpcRoute,
        head: &Head,
        segments: &[&str],
        body: Bytes,
    ) -> Result<Vec<u8>, Failure> {
        let mut message = Vec::with_capacity(route.defaults.len() + body.len() + 64);
        message.extend_from_slice(&route.defaults);
        let given = self.bind_body(route, head, &body, &mut message)?;
        let plans = &route.rpc.plans;
        let mut parameters = Parameters::new(plans, route.rpc.input, self.limits.unknown, given);
        if route.takes_query {
            parameters
                .read(head.query.as_bytes(), &mut message)
                .map_err(Failure::bad_field)?;
        } else if !head.query.is_empty() && self.limits.unknown == UnknownFields::Reject {
            let error = FieldError::new("this route takes no query parameters");
            return Err(Failure::bad_field(error));
        }
        if let Some(path) = &route.stream.last_event_id
            && let Some(value) = head.headers.get("last-event-id").filter(|v| !v.is_empty())
        {
            parameters.given.insert(path.top());
            path.put(plans, None, value.as_bytes(), &mut message)
                .map_err(|error| Failure::bad_field(error.within("Last-Event-ID")))?;
        }
        let segments = route.without_verb(segments);
        for (variable, path) in &route.variables {
            parameters.given.insert(path.top());
            let value = variable.value(&segments);
            path.put(plans, None, &value, &mut message)
                .map_err(|error| Failure::bad_field(error.within(&variable.field)))?;
        }
        let missing: Vec<FieldError> = route
            .required
            .iter()
            .filter(|(_, position)| !parameters.given.contains(*position))
            .map(|(name, _)| FieldError::at(name, "is required"))
            .collect();
        match missing.first() {
            None => Ok(message),
            Some(first) => {
                let mut failure = Failure::new(Code::InvalidArgument, first.to_string());
                failure.fields = missing;
                Err(failure)
            }
        }
    }

    /// Encodes the body; returns which fields of the request message it gave.
    fn bind_body(
        &self,
        route: &RpcRoute,
        head: &Head,
        body: &Bytes,
        out: &mut Vec<u8>,
    ) -> Result<Positions, Failure> {
        let rpc = &route.rpc;
        let plan = rpc.plans.message(rpc.input);
        let mut given = Positions::default();
        let field = match route.body {
            BodyBinding::Nothing if body.is_empty() => return Ok(given),
            BodyBinding::Nothing => {
                let message = "this route takes no request body";
                return Err(Failure::new(Code::InvalidArgument, message).reason("UNEXPECTED_BODY"));
            }
            BodyBinding::Message => None,
            BodyBinding::Field(position) => {
                given.insert(position);
                plan.fields.get(position)
            }
        };
        let kind = vet::media_type(&head.headers);
        let is_raw = match field {
            Some(field) => is_http_body(route, field.kind),
            None => plan.full_name() == HTTP_BODY,
        };
        if is_raw {
            put_http_body(head, field, body, out);
            return Ok(given);
        }
        if body.is_empty() {
            return Ok(Positions::default());
        }
        let json = JsonIn {
            plans: &rpc.plans,
            unknown: self.limits.unknown,
        };
        let depth_max = self.limits.depth_max;
        match (kind, field) {
            (MediaType::Form, None) => {
                let unknown = self.limits.unknown;
                let mut form = Parameters::new(&rpc.plans, rpc.input, unknown, given);
                form.read(body, out)
                    .map_err(|error| form_failure(error, body))?;
                Ok(form.given)
            }
            (MediaType::Json, None) => json
                .document(utf8(body)?, depth_max, rpc.input, out)
                .map_err(Failure::bad_field),
            (MediaType::Json, Some(field)) => {
                let is_given = json
                    .field_document(utf8(body)?, depth_max, field, out)
                    .map_err(Failure::bad_field)?;
                Ok(if is_given {
                    given
                } else {
                    Positions::default()
                })
            }
            (MediaType::Form, Some(_)) | (MediaType::Other, _) => {
                let message = "the body is neither JSON nor a form that this route takes";
                Err(Failure::new(Code::InvalidArgument, message)
                    .http(StatusCode::UNSUPPORTED_MEDIA_TYPE)
                    .reason("UNSUPPORTED_MEDIA_TYPE"))
            }
        }
    }

    fn metadata(&self, headers: &HeaderMap) -> HeaderMap {
        let mut metadata = HeaderMap::new();
        for name in &self.forward_headers {
            for value in headers.get_all(name) {
                metadata.append(name, value.clone());
            }
        }
        metadata
    }

    fn client(&self, route: &RpcRoute) -> Result<&Arc<Client>, Failure> {
        let client = self.clients.get(route.rpc.upstream);
        client.ok_or_else(|| Failure::new(Code::Unavailable, "the upstream is gone"))
    }

    /// Calls the upstream if what guards it allows.
    pub(super) async fn guarded(
        &self,
        route: &RpcRoute,
        head: &Head,
        call: &Call,
    ) -> Result<Answer, Failure> {
        let client = self.client(route)?;
        let admission = self.admit(head, route)?;
        let result = client.unary(call).await;
        traced::answered(call.span.as_ref(), &result);
        admission.settle(&result, call.is_impatient);
        result.map_err(|mut failure| {
            self.metrics.upstream_failed(failure.code);
            failure.types = Some(Arc::clone(&route.rpc.plans));
            if is_harmless(head, route) {
                failure.outcome = None;
            }
            failure
        })
    }
}

/// Whether nothing can have happened that matters: the rpc only reads, or may be repeated.
fn is_harmless(head: &Head, route: &RpcRoute) -> bool {
    matches!(head.method, Method::GET | Method::HEAD) || route.rpc.is_idempotent
}

/// Encodes `content_type` (1) and `data` (2) of a `google.api.HttpBody`.
fn put_http_body(head: &Head, field: Option<&FieldPlan>, body: &[u8], out: &mut Vec<u8>) {
    let mut message = Vec::with_capacity(body.len() + 64);
    if let Some(kind) = head.headers.get(http::header::CONTENT_TYPE) {
        put_tag(&mut message, 1, WireType::Bytes);
        put_bytes(&mut message, kind.as_bytes());
    }
    put_tag(&mut message, 2, WireType::Bytes);
    put_bytes(&mut message, body);
    match field {
        Some(field) => {
            put_tag(out, field.number, WireType::Bytes);
            put_bytes(out, &message);
        }
        None => out.extend_from_slice(&message),
    }
}

/// Passes the upstream's own metadata on as response headers; what belongs to the connection, to
/// gRPC or to the body stays behind, and so does binary metadata, which HTTP has no form for.
fn pass_metadata(from: &HeaderMap, to: &mut HeaderMap) {
    for (name, value) in from {
        if !is_reserved(name.as_str()) && !name.as_str().ends_with("-bin") {
            to.append(name, value.clone());
        }
    }
}

fn utf8(body: &[u8]) -> Result<&str, Failure> {
    std::str::from_utf8(body)
        .map_err(|_| Failure::new(Code::InvalidArgument, "the JSON body is not UTF-8"))
}

/// A form error, with a hint for the JSON that `curl -d` sends as a form.
fn form_failure(error: FieldError, body: &[u8]) -> Failure {
    let mut failure = Failure::bad_field(error);
    if body.trim_ascii_start().starts_with(b"{") {
        failure = Failure::new(
            Code::InvalidArgument,
            "the body is sent as a form but looks like JSON: add content-type: application/json",
        );
    }
    failure
}

fn descriptors_missing() -> Failure {
    Failure::new(
        Code::Unavailable,
        "the upstream has not told its services yet",
    )
    .reason("NO_DESCRIPTORS")
    .outcome(crate::status::Outcome::NotDone)
}

fn method_not_allowed(methods: &[Method]) -> Failure {
    let allow = methods
        .iter()
        .map(Method::as_str)
        .collect::<Vec<_>>()
        .join(", ");
    let mut failure = Failure::new(Code::Unimplemented, format!("this path takes {allow}"))
        .http(StatusCode::METHOD_NOT_ALLOWED)
        .reason("METHOD_NOT_ALLOWED");
    failure.set_header(ALLOW, &allow);
    failure
}

//! A route resolved against descriptors: everything a request needs, found out beforehand.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::uri::PathAndQuery;
use prost_reflect::MethodDescriptor;

use crate::config::{RouteConfig, StreamForm};
use crate::metrics::RouteCounts;
use crate::route::template::{Template, Variable};
use crate::transcode::bind::FieldPath;
use crate::transcode::json_in::{JsonIn, UnknownFields};
use crate::transcode::plan::{Kind, Label, MessageId, Plans};
use crate::transcode::shape::{RequestedField, ResponseShape};

/// Nesting of the `defaults` of a route.
const DEFAULTS_DEPTH_MAX: usize = 64;

/// One rpc of an upstream.
#[derive(Clone, Debug)]
pub(crate) struct Rpc {
    /// Position of the upstream in the configuration.
    pub(crate) upstream: usize,
    /// `/package.Service/Method`
    pub(crate) path: PathAndQuery,
    pub(crate) plans: Arc<Plans>,
    pub(crate) input: MessageId,
    pub(crate) output: MessageId,
    /// Whether calling it twice is the same as once, by its `idempotency_level`.
    pub(crate) is_idempotent: bool,
    /// Whether calling it changes nothing, by its `idempotency_level`.
    pub(crate) has_no_side_effects: bool,
    pub(crate) streams: Streams,
}

/// Which side of an rpc sends many messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Streams {
    Neither,
    Server,
    /// The client, or both.
    Client,
}

/// What the request body holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BodyBinding {
    Nothing,
    Message,
    /// The field at this position of the request message.
    Field(usize),
}

/// What the response body shows.
#[derive(Clone, Debug)]
pub(crate) enum ResponseBinding {
    Message,
    /// The field at this position of the response message.
    Field(usize),
    Shape(ResponseShape),
}

impl ResponseBinding {
    /// Which optional parts of the response this encoded request asks for.
    pub(crate) fn asked(&self, request: &[u8]) -> Vec<bool> {
        match self {
            Self::Shape(shape) => shape.asked(request),
            Self::Message | Self::Field(_) => Vec::new(),
        }
    }
}

/// A route to an rpc.
#[derive(Debug)]
pub(crate) struct RpcRoute {
    /// Method and path template as they were written, for people: `GET /v1/things/{name}`.
    pub(crate) http: Box<str>,
    /// What is counted of it, once it was asked for.
    pub(crate) counts: OnceLock<Arc<RouteCounts>>,
    pub(crate) rpc: Rpc,
    pub(crate) body: BodyBinding,
    /// Whether fields may come as query parameters.
    pub(crate) takes_query: bool,
    pub(crate) variables: Vec<(Variable, FieldPath)>,
    /// The `:verb` at the end of the path, which is no part of a variable.
    pub(crate) verb: Option<String>,
    /// Encoded fields that every request begins with.
    pub(crate) defaults: Vec<u8>,
    /// Name and position of fields that must be given.
    pub(crate) required: Vec<(String, usize)>,
    pub(crate) response: ResponseBinding,
    pub(crate) timeout: Option<Duration>,
    /// Position in the configuration, if it is declared there.
    pub(crate) configured: Option<usize>,
    pub(crate) stream: StreamRule,
}

/// What a route says about the stream that its rpc answers with.
#[derive(Clone, Debug, Default)]
pub(crate) struct StreamRule {
    /// How it is written for callers who do not say.
    pub(crate) form: Option<StreamForm>,
    /// Position of the field that is the `id:` of an event.
    pub(crate) id: Option<usize>,
    /// Position of the field that is the `event:` of an event.
    pub(crate) event: Option<usize>,
    /// The field of the request that `Last-Event-ID` fills.
    pub(crate) last_event_id: Option<FieldPath>,
}

impl Rpc {
    /// # Errors
    /// Why the method cannot be called.
    pub(crate) fn new(
        upstream: usize,
        plans: &Arc<Plans>,
        method: &MethodDescriptor,
    ) -> Result<Self, String> {
        let service = method.parent_service();
        let path = format!("/{}/{}", service.full_name(), method.name());
        let find = |name: &str| {
            plans
                .find(name)
                .ok_or_else(|| format!("unknown type {name}"))
        };
        // NO_SIDE_EFFECTS (1) and IDEMPOTENT (2) of google.protobuf.MethodOptions.
        let level = method.method_descriptor_proto().options.as_ref();
        let level = level.map_or(0, |options| options.idempotency_level.unwrap_or_default());
        Ok(Self {
            upstream,
            path: path.parse().map_err(|_| format!("{path} is not a path"))?,
            plans: Arc::clone(plans),
            input: find(method.input().full_name())?,
            output: find(method.output().full_name())?,
            is_idempotent: level != 0,
            has_no_side_effects: level == 1,
            streams: match (method.is_client_streaming(), method.is_server_streaming()) {
                (false, false) => Streams::Neither,
                (false, true) => Streams::Server,
                (true, _) => Streams::Client,
            },
        })
    }

    fn input_field(&self, name: &str) -> Result<usize, String> {
        position(&self.plans, self.input, name)
    }

    fn output_field(&self, name: &str) -> Result<usize, String> {
        position(&self.plans, self.output, name)
    }

    fn body_binding(&self, body: &str) -> Result<BodyBinding, String> {
        match body {
            "" => Ok(BodyBinding::Nothing),
            "*" => Ok(BodyBinding::Message),
            field => self.input_field(field).map(BodyBinding::Field),
        }
    }
}

impl RpcRoute {
    /// The segments that variables are taken from: those of the path, without the verb.
    pub(crate) fn without_verb<'s>(&self, segments: &[&'s str]) -> Vec<&'s str> {
        let mut segments = segments.to_vec();
        if let (Some(verb), Some(last)) = (&self.verb, segments.last_mut()) {
            let tail = last
                .strip_suffix(verb.as_str())
                .and_then(|last| last.strip_suffix(':'));
            *last = tail.unwrap_or(last);
        }
        segments
    }

    /// `POST /package.Service/Method`, which every rpc has.
    pub(crate) fn direct(rpc: Rpc) -> Self {
        Self {
            http: format!("POST {}", rpc.path).into(),
            counts: OnceLock::new(),
            rpc,
            body: BodyBinding::Message,
            takes_query: false,
            variables: Vec::new(),
            verb: None,
            defaults: Vec::new(),
            required: Vec::new(),
            response: ResponseBinding::Message,
            timeout: None,
            configured: None,
            stream: StreamRule {
                form: None,
                id: None,
                event: None,
                last_event_id: None,
            },
        }
    }

    /// A route from an annotation.
    ///
    /// # Errors
    /// What in it does not fit the rpc.
    pub(crate) fn annotated(
        rpc: Rpc,
        template: &Template,
        body: &str,
        response_body: &str,
    ) -> Result<Self, String> {
        let response = match response_body {
            "" => ResponseBinding::Message,
            field => ResponseBinding::Field(rpc.output_field(field)?),
        };
        Ok(Self {
            http: Box::default(),
            counts: OnceLock::new(),
            body: rpc.body_binding(body)?,
            // With `*` every field that is not in the path is in the body: http.proto says so.
            takes_query: body != "*",
            variables: variables(&rpc, template)?,
            verb: template.verb.clone(),
            defaults: Vec::new(),
            required: Vec::new(),
            response,
            timeout: None,
            configured: None,
            stream: StreamRule::default(),
            rpc,
        })
    }

    /// A route from configuration.
    ///
    /// # Errors
    /// What in it does not fit the rpc.
    pub(crate) fn configured(
        rpc: Rpc,
        template: &Template,
        method: &http::Method,
        config: &RouteConfig,
    ) -> Result<Self, String> {
        let has_body = matches!(method.as_str(), "POST" | "PUT" | "PATCH");
        let body = config
            .body
            .as_deref()
            .unwrap_or(if has_body { "*" } else { "" });
        let mut route = Self::annotated(rpc, template, body, &config.response_body)?;
        route.http = config.http.as_str().into();
        route.takes_query = true;
        route.timeout = config.timeout.map(crate::config::Timeout::get);
        for name in &config.required {
            route
                .required
                .push((name.clone(), route.rpc.input_field(name)?));
        }
        if !config.defaults.is_empty() {
            let text = serde_json::Value::Object(config.defaults.clone()).to_string();
            let json = JsonIn {
                plans: &route.rpc.plans,
                unknown: UnknownFields::Reject,
            };
            json.document(
                &text,
                DEFAULTS_DEPTH_MAX,
                route.rpc.input,
                &mut route.defaults,
            )
            .map_err(|error| format!("defaults: {error}"))?;
        }
        if let Some(response) = &config.response {
            route.response = ResponseBinding::Shape(shape(&route.rpc, response)?);
        }
        route.stream = stream_rule(&route.rpc, config)?;
        Ok(route)
    }
}

fn stream_rule(rpc: &Rpc, config: &RouteConfig) -> Result<StreamRule, String> {
    let label = |name: &str| -> Result<Option<usize>, String> {
        if name.is_empty() {
            return Ok(None);
        }
        let position = rpc.output_field(name)?;
        let field = rpc.plans.message(rpc.output).fields.get(position);
        let has_text = field.is_some_and(|field| {
            let is_single = matches!(field.label, Label::Implicit | Label::Explicit);
            is_single && !matches!(field.kind, Kind::Message(_) | Kind::Group(_))
        });
        if has_text {
            Ok(Some(position))
        } else {
            Err(format!("{name} is no single value"))
        }
    };
    let rule = StreamRule {
        form: config.stream,
        id: label(&config.sse_id)?,
        event: label(&config.sse_event)?,
        last_event_id: match config.last_event_id.as_str() {
            "" => None,
            name => Some(single_field(rpc, name)?),
        },
    };
    let is_asked = rule.form.is_some() || rule.id.is_some() || rule.event.is_some();
    if is_asked && rpc.streams != Streams::Server {
        return Err(format!("{} does not answer with a stream", rpc.path));
    }
    Ok(rule)
}

/// A field of the request that one text fills.
fn single_field(rpc: &Rpc, name: &str) -> Result<FieldPath, String> {
    let path =
        FieldPath::resolve(&rpc.plans, rpc.input, name).map_err(|error| error.to_string())?;
    if path.is_single(&rpc.plans) {
        Ok(path)
    } else {
        Err(format!("{name} cannot be filled by one text"))
    }
}

fn variables(rpc: &Rpc, template: &Template) -> Result<Vec<(Variable, FieldPath)>, String> {
    let mut resolved = Vec::with_capacity(template.variables.len());
    for variable in &template.variables {
        resolved.push((variable.clone(), single_field(rpc, &variable.field)?));
    }
    Ok(resolved)
}

fn shape(rpc: &Rpc, config: &crate::config::ResponseConfig) -> Result<ResponseShape, String> {
    let mut shape = ResponseShape::default();
    for (key, value) in &config.constants {
        shape.constants.push((key.clone(), value.to_string()));
    }
    for name in &config.fields {
        shape.fields.push((name.clone(), rpc.output_field(name)?));
    }
    for (name, flag) in &config.on_request {
        let input = rpc.plans.message(rpc.input);
        let (_, field) = input
            .field(flag)
            .filter(|(_, field)| {
                field.kind == Kind::Bool && matches!(field.label, Label::Implicit | Label::Explicit)
            })
            .ok_or_else(|| format!("{flag} is not a boolean field of {}", input.full_name()))?;
        shape.on_request.push(RequestedField {
            key: name.clone(),
            field: rpc.output_field(name)?,
            flag_number: field.number,
        });
    }
    Ok(shape)
}

fn position(plans: &Plans, message: MessageId, name: &str) -> Result<usize, String> {
    let plan = plans.message(message);
    match plan.field(name) {
        Some((position, _)) => Ok(position),
        None => Err(format!("{} has no field {name}", plan.full_name())),
    }
}

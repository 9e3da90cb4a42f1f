//! What a response message looks like to the caller: JSON by the route's rule, or a raw body.

use std::sync::Arc;

use bytes::Bytes;
use http::header::HeaderValue;
use http::{Response, StatusCode};

use super::reply::{self, Body};
use crate::descriptor::route::{ResponseBinding, RpcRoute};
use crate::status::{Code, Failure};
use crate::transcode::json_out::{JsonOut, Names, OutError};
use crate::transcode::plan::{FieldPlan, Kind};
use crate::transcode::wire::{Cursor, WireType};
use crate::transcode::{reorder, to_json};

/// A message whose content is the body itself.
pub(crate) const HTTP_BODY: &str = "google.api.HttpBody";

/// How the messages that answer one request are written.
#[derive(Clone, Debug)]
pub(crate) struct Render {
    pub(crate) route: Arc<RpcRoute>,
    pub(crate) names: Names,
    pub(crate) emit_defaults: bool,
    /// Which optional parts of the response the request asked for.
    pub(crate) asked: Vec<bool>,
}

/// The content of a `google.api.HttpBody`.
#[derive(Debug)]
pub(crate) struct Raw {
    pub(crate) kind: HeaderValue,
    pub(crate) data: Bytes,
}

impl Render {
    /// The whole answer of an rpc that answers with one message.
    ///
    /// # Errors
    /// If the message is not of the announced type.
    pub(crate) fn response(&self, message: &[u8]) -> Result<Response<Body>, Failure> {
        if self.is_raw() {
            let raw = self.raw(message)?;
            return Ok(reply::with_type(StatusCode::OK, raw.kind, raw.data));
        }
        let mut out = Vec::with_capacity(message.len() + message.len() / 2 + 64);
        self.json(message, &mut out)?;
        Ok(reply::json(out))
    }

    /// Whether messages are bodies as they are, rather than JSON.
    pub(crate) fn is_raw(&self) -> bool {
        match self.field() {
            Some(field) => is_http_body(&self.route, field.kind),
            None => self.plan().full_name() == HTTP_BODY,
        }
    }

    /// Appends the JSON of a message.
    ///
    /// # Errors
    /// If the message is not of the announced type.
    pub(crate) fn json(&self, message: &[u8], out: &mut Vec<u8>) -> Result<(), Failure> {
        let json = self.writer();
        let id = self.route.rpc.output;
        let written = match (&self.route.response, self.field()) {
            (ResponseBinding::Shape(shape), _) => shape.write(&json, id, message, &self.asked, out),
            (_, None) => to_json(&json, id, message, out),
            (_, Some(field)) => self.field_json(field, message, out),
        };
        written.map_err(malformed)
    }

    /// The text of a scalar field, by its position in the message.
    ///
    /// # Errors
    /// If the message is not of the announced type.
    pub(crate) fn text(&self, position: usize, message: &[u8]) -> Result<String, Failure> {
        let Some(field) = self.plan().fields.get(position) else {
            return Ok(String::new());
        };
        let mut out = Vec::new();
        self.last_value(field, message, &mut out)
            .map_err(malformed)?;
        let text = String::from_utf8(out).unwrap_or_default();
        if text.starts_with('"') {
            Ok(serde_json::from_str(&text).unwrap_or_default())
        } else {
            Ok(text)
        }
    }

    /// The content of a message that is a body.
    ///
    /// # Errors
    /// If the message is not of the announced type.
    pub(crate) fn raw(&self, message: &[u8]) -> Result<Raw, Failure> {
        let raw = match self.field() {
            Some(field) => self.raw_field(field, message),
            None => raw_body(message),
        };
        raw.map_err(malformed)
    }

    fn plan(&self) -> &crate::transcode::plan::MessagePlan {
        self.route.rpc.plans.message(self.route.rpc.output)
    }

    /// The field that is the response body, if it is not the whole message.
    fn field(&self) -> Option<&FieldPlan> {
        match &self.route.response {
            ResponseBinding::Field(position) => self.plan().fields.get(*position),
            ResponseBinding::Message | ResponseBinding::Shape(_) => None,
        }
    }

    fn writer(&self) -> JsonOut<'_> {
        JsonOut {
            plans: &self.route.rpc.plans,
            names: self.names,
            emit_defaults: self.emit_defaults,
        }
    }

    /// Writes one field of the response as the whole body.
    fn field_json(
        &self,
        field: &FieldPlan,
        message: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), OutError> {
        let rpc = &self.route.rpc;
        let ordered = reorder(&rpc.plans, rpc.output, message)?;
        let mut cursor = Cursor::new(&ordered);
        while !cursor.is_empty() {
            let (number, wire_type) = cursor.tag()?;
            if number == field.number {
                return self.writer().value(field, wire_type, &mut cursor, out, 1);
            }
            cursor.skip(number, wire_type)?;
        }
        self.writer().default_value(field, out);
        Ok(())
    }

    /// Writes a scalar field without bringing the message into order: the last value counts.
    fn last_value(
        &self,
        field: &FieldPlan,
        message: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), OutError> {
        let mut cursor = Cursor::new(message);
        while !cursor.is_empty() {
            let (number, wire_type) = cursor.tag()?;
            if number == field.number {
                out.clear();
                self.writer().value(field, wire_type, &mut cursor, out, 1)?;
            } else {
                cursor.skip(number, wire_type)?;
            }
        }
        Ok(())
    }

    fn raw_field(&self, field: &FieldPlan, message: &[u8]) -> Result<Raw, OutError> {
        let rpc = &self.route.rpc;
        let ordered = reorder(&rpc.plans, rpc.output, message)?;
        let mut cursor = Cursor::new(&ordered);
        while !cursor.is_empty() {
            let (number, wire_type) = cursor.tag()?;
            if number == field.number && wire_type == WireType::Bytes {
                return raw_body(cursor.bytes()?);
            }
            cursor.skip(number, wire_type)?;
        }
        raw_body(&[])
    }
}

pub(crate) fn is_http_body(route: &RpcRoute, kind: Kind) -> bool {
    matches!(kind, Kind::Message(id) if route.rpc.plans.message(id).full_name() == HTTP_BODY)
}

fn raw_body(message: &[u8]) -> Result<Raw, OutError> {
    let mut raw = Raw {
        kind: HeaderValue::from_static("application/octet-stream"),
        data: Bytes::new(),
    };
    let mut cursor = Cursor::new(message);
    while !cursor.is_empty() {
        match cursor.tag()? {
            (1, WireType::Bytes) => {
                let parsed = HeaderValue::from_bytes(cursor.bytes()?);
                let not_text = |_| OutError::Malformed("its content type is not text");
                raw.kind = parsed.map_err(not_text)?;
            }
            (2, WireType::Bytes) => raw.data = Bytes::copy_from_slice(cursor.bytes()?),
            (number, wire_type) => cursor.skip(number, wire_type)?,
        }
    }
    Ok(raw)
}

fn malformed(error: OutError) -> Failure {
    let problem = match error {
        OutError::Malformed(problem) => problem,
        OutError::Unordered => "its fields cannot be brought into order",
    };
    Failure::new(
        Code::Internal,
        format!("the upstream's answer is not usable: {problem}"),
    )
    .http(StatusCode::BAD_GATEWAY)
    .reason("UPSTREAM_ANSWER")
}

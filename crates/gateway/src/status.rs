//! Failures as every caller sees them: a `google.rpc.Status` as JSON, under the right HTTP status.
//!
//! Both what upstreams answer and what the gateway itself refuses end here, so that a caller needs
//! one way to read an error. The table of codes is that of `docs/gateway.md`.

use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use prost::Message;

use crate::transcode::json_out::{JsonOut, put_json_string};
use crate::transcode::plan::Plans;
use crate::transcode::reader::FieldError;
use crate::transcode::scalar::base64_decode;

/// Type of the detail by which the gateway says what became of a call.
const FAILURE_TYPE: &str = "type.googleapis.com/flux.gateway.v1.Failure";
/// Never shown to callers: stack traces are the upstream's business.
const DEBUG_INFO: &str = "google.rpc.DebugInfo";

/// The gRPC status codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Code {
    Ok,
    Cancelled,
    Unknown,
    InvalidArgument,
    DeadlineExceeded,
    NotFound,
    AlreadyExists,
    PermissionDenied,
    ResourceExhausted,
    FailedPrecondition,
    Aborted,
    OutOfRange,
    Unimplemented,
    Internal,
    Unavailable,
    DataLoss,
    Unauthenticated,
}

impl Code {
    const ALL: [Self; 17] = [
        Self::Ok,
        Self::Cancelled,
        Self::Unknown,
        Self::InvalidArgument,
        Self::DeadlineExceeded,
        Self::NotFound,
        Self::AlreadyExists,
        Self::PermissionDenied,
        Self::ResourceExhausted,
        Self::FailedPrecondition,
        Self::Aborted,
        Self::OutOfRange,
        Self::Unimplemented,
        Self::Internal,
        Self::Unavailable,
        Self::DataLoss,
        Self::Unauthenticated,
    ];

    /// Its name, as gRPC writes it.
    pub(crate) fn name(self) -> &'static str {
        Self::NAMES.get(self.number()).copied().unwrap_or("UNKNOWN")
    }

    /// The code of this number; numbers that gRPC does not define are `Unknown`.
    pub(crate) fn from_number(number: usize) -> Self {
        Self::ALL.get(number).copied().unwrap_or(Self::Unknown)
    }

    pub(crate) fn number(self) -> usize {
        Self::ALL.iter().position(|code| *code == self).unwrap_or(2)
    }

    /// The names, in the order of the numbers.
    pub(crate) const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];

    /// The code of this name, as gRPC writes it.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        let number = Self::NAMES.iter().position(|known| *known == name)?;
        Self::ALL.get(number).copied()
    }

    /// The HTTP status that stands for it, as grpc-gateway maps them.
    pub(crate) const fn http(self) -> StatusCode {
        match self {
            Self::Ok => StatusCode::OK,
            Self::Cancelled => match StatusCode::from_u16(499) {
                Ok(status) => status,
                Err(_) => StatusCode::BAD_REQUEST,
            },
            Self::Unknown | Self::Internal | Self::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
            Self::InvalidArgument | Self::FailedPrecondition | Self::OutOfRange => {
                StatusCode::BAD_REQUEST
            }
            Self::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::AlreadyExists | Self::Aborted => StatusCode::CONFLICT,
            Self::PermissionDenied => StatusCode::FORBIDDEN,
            Self::Unauthenticated => StatusCode::UNAUTHORIZED,
            Self::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
            Self::Unimplemented => StatusCode::NOT_IMPLEMENTED,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The code that an HTTP status without a gRPC status means, by gRPC's own table.
    pub(crate) const fn from_http(status: StatusCode) -> Self {
        match status.as_u16() {
            400 => Self::Internal,
            401 => Self::Unauthenticated,
            403 => Self::PermissionDenied,
            404 => Self::Unimplemented,
            429 | 502..=504 => Self::Unavailable,
            _ => Self::Unknown,
        }
    }
}

/// What became of the operation when the call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It did not happen: the same request may be sent again.
    NotDone,
    /// Nobody here can know.
    Unknown,
}

/// A failure on its way to the caller.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) code: Code,
    /// Where it differs from the table.
    pub(crate) http: StatusCode,
    pub(crate) message: String,
    /// Encoded `google.protobuf.Any` messages.
    pub(crate) details: Vec<Bytes>,
    /// The types of the upstream that sent them.
    pub(crate) types: Option<Arc<Plans>>,
    /// The fields at fault.
    pub(crate) fields: Vec<FieldError>,
    /// A short constant word for programs, for what the gateway found itself.
    pub(crate) reason: Option<&'static str>,
    pub(crate) outcome: Option<Outcome>,
    /// Headers that tell a caller more, such as `Allow` or `Retry-After`.
    pub(crate) headers: Option<Box<http::HeaderMap>>,
}

impl Failure {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            http: code.http(),
            message: message.into(),
            details: Vec::new(),
            types: None,
            fields: Vec::new(),
            reason: None,
            outcome: None,
            headers: None,
        }
    }

    #[must_use]
    pub(crate) const fn http(mut self, status: StatusCode) -> Self {
        self.http = status;
        self
    }

    #[must_use]
    pub(crate) const fn reason(mut self, reason: &'static str) -> Self {
        self.reason = Some(reason);
        self
    }

    #[must_use]
    pub(crate) const fn outcome(mut self, outcome: Outcome) -> Self {
        self.outcome = Some(outcome);
        self
    }

    /// Adds a header to the answer; a value that cannot be one is left out.
    pub(crate) fn set_header(&mut self, name: http::HeaderName, value: &str) {
        if let Ok(value) = value.parse() {
            let headers = self.headers.get_or_insert_with(Box::default);
            headers.insert(name, value);
        }
    }

    /// A request that a field makes unusable: 400 naming it.
    pub(crate) fn bad_field(error: FieldError) -> Self {
        let mut failure = Self::new(Code::InvalidArgument, error.to_string());
        if !error.path.is_empty() {
            failure.fields.push(error);
        }
        failure
    }

    /// The JSON body. Details are decoded with the upstream's types first, then with the well-known
    /// error types.
    pub(crate) fn to_json(&self, error_details: &Plans) -> Vec<u8> {
        let mut out = format!("{{\"code\":{},\"message\":", self.code.number()).into_bytes();
        put_json_string(&mut out, &self.message);
        out.extend_from_slice(b",\"details\":[");
        let mut first = true;
        let mut separate = |out: &mut Vec<u8>| {
            if !first {
                out.push(b',');
            }
            first = false;
        };
        if !self.fields.is_empty() {
            separate(&mut out);
            self.put_field_violations(&mut out);
        }
        if self.reason.is_some() || self.outcome.is_some() {
            separate(&mut out);
            self.put_failure(&mut out);
        }
        for detail in &self.details {
            if let Some(json) = detail_json(detail, self.types.as_deref(), error_details) {
                separate(&mut out);
                out.extend_from_slice(&json);
            }
        }
        out.extend_from_slice(b"]}");
        out
    }

    fn put_field_violations(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"@type\":\"type.googleapis.com/google.rpc.BadRequest\",");
        out.extend_from_slice(b"\"fieldViolations\":[");
        for (index, error) in self.fields.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            out.extend_from_slice(b"{\"field\":");
            put_json_string(out, &error.path);
            out.extend_from_slice(b",\"description\":");
            put_json_string(out, &error.message);
            out.push(b'}');
        }
        out.extend_from_slice(b"]}");
    }

    fn put_failure(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"@type\":");
        put_json_string(out, FAILURE_TYPE);
        if let Some(reason) = self.reason {
            out.extend_from_slice(b",\"reason\":");
            put_json_string(out, reason);
        }
        if let Some(outcome) = self.outcome {
            out.extend_from_slice(b",\"outcome\":");
            put_json_string(
                out,
                match outcome {
                    Outcome::NotDone => "not-done",
                    Outcome::Unknown => "unknown",
                },
            );
        }
        out.push(b'}');
    }
}

/// One detail as JSON; nothing for those that are not for callers or not well-formed.
fn detail_json(any: &[u8], own: Option<&Plans>, error_details: &Plans) -> Option<Vec<u8>> {
    let parsed = prost_types::Any::decode(any).ok()?;
    let name = parsed
        .type_url
        .rsplit_once('/')
        .map_or(parsed.type_url.as_str(), |(_, name)| name);
    if name == DEBUG_INFO {
        return None;
    }
    let plans = own
        .filter(|plans| plans.find(name).is_some())
        .unwrap_or(error_details);
    let json = JsonOut {
        plans,
        names: crate::transcode::json_out::Names::Json,
        emit_defaults: false,
    };
    let mut out = Vec::new();
    json.any(any, &mut out, 0).ok()?;
    Some(out)
}

/// `google.rpc.Status` as it comes in `grpc-status-details-bin`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct RpcStatus {
    #[prost(int32, tag = "1")]
    pub(crate) code: i32,
    #[prost(string, tag = "2")]
    pub(crate) message: String,
    #[prost(bytes = "bytes", repeated, tag = "3")]
    pub(crate) details: Vec<Bytes>,
}

/// The failure that response trailers (or headers, if there is no body) announce; `None` is OK.
pub(crate) fn from_trailers(trailers: &http::HeaderMap) -> Option<Result<(), Failure>> {
    let number = trailers
        .get("grpc-status")?
        .to_str()
        .ok()
        .and_then(|text| text.parse().ok());
    let code = number.map_or(Code::Unknown, Code::from_number);
    if code == Code::Ok {
        return Some(Ok(()));
    }
    let message = trailers
        .get("grpc-message")
        .map_or_else(String::new, |value| {
            percent_encoding::percent_decode(value.as_bytes())
                .decode_utf8_lossy()
                .into_owned()
        });
    let mut failure = Failure::new(code, message);
    let details = trailers
        .get("grpc-status-details-bin")
        .and_then(decode_trailer);
    if let Some(status) = details.and_then(|bytes| RpcStatus::decode(bytes.as_slice()).ok()) {
        failure.details = status.details;
    }
    Some(Err(failure))
}

/// Binary metadata is base64, padded or not.
fn decode_trailer(value: &http::HeaderValue) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    base64_decode(value.as_bytes(), &mut out).ok()?;
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_number_and_its_http_status() {
        let table: Vec<(usize, u16)> = Code::ALL
            .iter()
            .map(|code| (code.number(), code.http().as_u16()))
            .collect();
        assert_eq!(
            table,
            [
                (0, 200),
                (1, 499),
                (2, 500),
                (3, 400),
                (4, 504),
                (5, 404),
                (6, 409),
                (7, 403),
                (8, 429),
                (9, 400),
                (10, 409),
                (11, 400),
                (12, 501),
                (13, 500),
                (14, 503),
                (15, 500),
                (16, 401),
            ]
        );
        assert_eq!(Code::from_number(99), Code::Unknown);
    }

    #[test]
    fn messages_of_trailers_are_percent_decoded() {
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", "5".parse().unwrap());
        trailers.insert("grpc-message", "no%20such%20%C3%A9".parse().unwrap());
        let failure = from_trailers(&trailers).unwrap().unwrap_err();
        assert_eq!(
            (failure.code, failure.message.as_str()),
            (Code::NotFound, "no such é")
        );
        trailers.insert("grpc-status", "0".parse().unwrap());
        assert!(from_trailers(&trailers).unwrap().is_ok());
        trailers.insert("grpc-status", "nonsense".parse().unwrap());
        assert_eq!(
            from_trailers(&trailers).unwrap().unwrap_err().code,
            Code::Unknown
        );
        assert!(from_trailers(&http::HeaderMap::new()).is_none());
    }
}

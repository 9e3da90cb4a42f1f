//! `GET /api/v1/cdc`: changes over plain HTTP, as server-sent events or as lines of JSON.
//!
//! A browser's `EventSource` resumes by itself: each event's id is its cursor, and it sends the last
//! one back. Values are shown here, so that this asks for the password, unlike the rest of the port.

use std::fmt::Write as _;
use std::time::Duration;

use axum::body::Body;
use axum::extract;
use axum::extract::Query;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use flux_cdc::CdcError;
use flux_cdc::envelope::to_json;
use flux_proto::cdc::WatchResponse;
use futures_util::stream;
use serde::Deserialize;
use serde_json::json;

use crate::changes::{Asked, Changes, Told, WatchError, Watcher, cursor_failure};
use crate::grpc::Password;

/// After how long without anything to say a comment shows that the stream lives.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// What has been read is sent when it makes so many bytes.
const CHUNK_BYTES: usize = 64 * 1024;
const EVENT_STREAM: &str = "text/event-stream";
const LINES: &str = "application/x-ndjson";

/// What answering needs.
#[derive(Clone, Debug)]
pub(super) struct State {
    pub(super) changes: Changes,
    pub(super) password: Password,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Parameters {
    prefix: String,
    from: String,
    cursor: String,
}

/// How events are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    EventStream,
    Lines,
}

pub(super) async fn watch(
    extract::State(state): extract::State<State>,
    Query(parameters): Query<Parameters>,
    headers: HeaderMap,
) -> Response {
    if !is_allowed(&state.password, &headers) {
        let challenge = [(header::WWW_AUTHENTICATE, "Basic realm=\"flux\"")];
        let body = axum::Json(json!({ "error": "a password is required" }));
        return (StatusCode::UNAUTHORIZED, challenge, body).into_response();
    }
    let form = if text_of(&headers, header::ACCEPT).contains(LINES) {
        Form::Lines
    } else {
        Form::EventStream
    };
    let mut asked = Asked {
        prefix: parameters.prefix,
        from: parameters.from,
        cursor: parameters.cursor,
    };
    if let Some(last) = headers.get("last-event-id").filter(|last| !last.is_empty()) {
        // What is no text is no cursor either, and is refused as such.
        asked.cursor = String::from_utf8_lossy(last.as_bytes()).into_owned();
    }
    match state.changes.watch(&asked).await {
        Ok(watcher) => respond(watcher, form),
        Err(error) => refuse(&error),
    }
}

fn respond(watcher: Watcher, form: Form) -> Response {
    let content_type = match form {
        Form::EventStream => EVENT_STREAM,
        Form::Lines => LINES,
    };
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(content_type)),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        // Proxies that gather answers would hold events back.
        (
            header::HeaderName::from_static("x-accel-buffering"),
            HeaderValue::from_static("no"),
        ),
    ];
    let chunks = stream::unfold(Some(watcher), move |watcher| chunk(watcher, form));
    (headers, Body::from_stream(chunks)).into_response()
}

/// The next bytes, and the watcher unless it has ended.
async fn chunk(
    watcher: Option<Watcher>,
    form: Form,
) -> Option<(Result<Bytes, CdcError>, Option<Watcher>)> {
    let mut watcher = watcher?;
    let told = match form {
        Form::Lines => Ok(watcher.next().await),
        Form::EventStream => tokio::time::timeout(HEARTBEAT, watcher.next()).await,
    };
    let mut out = String::new();
    let watcher = match told {
        Err(_silence) => {
            out.push_str(":\n\n");
            Some(watcher)
        }
        Ok(Err(error)) => return Some((Err(error), None)),
        Ok(Ok(Told::Last(last))) => {
            write(&mut out, &last, form);
            None
        }
        Ok(Ok(Told::Event(event))) => {
            write(&mut out, &event, form);
            while out.len() < CHUNK_BYTES
                && let Some(event) = watcher.waiting()
            {
                write(&mut out, &event, form);
            }
            Some(watcher)
        }
    };
    Some((Ok(out.into()), watcher))
}

fn write(out: &mut String, response: &WatchResponse, form: Form) {
    let Some(event) = &response.event else {
        return;
    };
    let json = to_json(event);
    // JSON escapes line ends, so that it is one line.
    let json = String::from_utf8_lossy(&json);
    // Writing to a string cannot fail.
    let written = match form {
        Form::EventStream => write!(out, "id: {}\ndata: {json}\n\n", response.cursor),
        Form::Lines => writeln!(out, "{json}"),
    };
    debug_assert!(written.is_ok());
}

fn refuse(error: &WatchError) -> Response {
    let status = match error {
        WatchError::Busy | WatchError::Draining => StatusCode::SERVICE_UNAVAILABLE,
        WatchError::LongPrefix | WatchError::Cdc(CdcError::Cursor(_)) => StatusCode::BAD_REQUEST,
        WatchError::Cdc(CdcError::Compacted { .. }) => StatusCode::GONE,
        WatchError::Cdc(CdcError::Diverged { .. }) => StatusCode::CONFLICT,
        WatchError::Cdc(
            CdcError::Log { .. } | CdcError::Batch { .. } | CdcError::Stopped { .. },
        ) => StatusCode::SERVICE_UNAVAILABLE,
    };
    let mut body = json!({ "error": error.to_string() });
    if let WatchError::Cdc(error) = error
        && let Some((reason, oldest)) = cursor_failure(error)
        && let Some(fields) = body.as_object_mut()
    {
        fields.insert("reason".to_owned(), reason.into());
        if let Some(oldest) = oldest {
            fields.insert("oldest".to_owned(), oldest.to_string().into());
        }
    }
    (status, axum::Json(body)).into_response()
}

/// Whether the request presents the password, as a bearer token or with any user name.
fn is_allowed(password: &Password, headers: &HeaderMap) -> bool {
    let presented = text_of(headers, header::AUTHORIZATION);
    let (scheme, rest) = presented.split_once(' ').unwrap_or_default();
    if scheme.eq_ignore_ascii_case("basic") {
        let decoded = STANDARD.decode(rest.trim()).unwrap_or_default();
        let colon = decoded.iter().position(|byte| *byte == b':');
        let presented = colon.and_then(|colon| decoded.get(colon + 1..));
        return password.allows(Some(presented.unwrap_or_default()));
    }
    let presented = (!presented.is_empty()).then_some(presented.as_bytes());
    password.allows(presented)
}

fn text_of(headers: &HeaderMap, name: header::HeaderName) -> &str {
    let value = headers.get(name).and_then(|value| value.to_str().ok());
    value.unwrap_or_default()
}

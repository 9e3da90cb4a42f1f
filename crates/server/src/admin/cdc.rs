//! `GET /api/v1/cdc`: changes over plain HTTP, as server-sent events or as lines of JSON.
//!
//! A browser's `EventSource` resumes by itself: each event's id is its cursor, and it sends the last
//! one back. Values are shown here, so that this asks for the password, unlike the rest of the port.

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
use futures_util::stream;
use serde::Deserialize;
use serde_json::json;

use crate::changes::{Asked, Changes, Form, Ready, WatchError, Watcher, cursor_failure, metered};
use crate::grpc::Password;

/// After how long without anything to say a comment shows that the stream lives.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// What has been read is sent when it makes so many bytes.
const CHUNK_BYTES: usize = 64 * 1024;
/// From here on a chunk is taken for one that will be full.
const CHUNK_BEGUN_BYTES: usize = 4 * 1024;
/// How often the cost of writing, in tenths, it costs to write and send.
const COST_FACTOR_TENTHS: u32 = 15;
/// What sending a chunk costs however small it is, wakes included: it makes a watcher that has to give
/// way take fewer and larger ones.
const SEND_COST: Duration = Duration::from_micros(20);
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
    let chunks = stream::unfold(Some(watcher), move |watcher| async move {
        let (mut chunk, cost) = metered(chunk(watcher?, form)).await;
        if let (_, Some(watcher)) = &mut chunk {
            watcher.spent(cost * COST_FACTOR_TENTHS / 10 + SEND_COST);
        }
        Some(chunk)
    });
    (headers, Body::from_stream(chunks)).into_response()
}

/// The next bytes, and the watcher unless it has ended.
async fn chunk(mut watcher: Watcher, form: Form) -> (Result<Bytes, CdcError>, Option<Watcher>) {
    let ready = match form {
        Form::Lines => Ok(watcher.ready().await),
        Form::EventStream => tokio::time::timeout(HEARTBEAT, watcher.ready()).await,
    };
    let mut out = Vec::new();
    let goes_on = match ready {
        Err(_silence) => {
            out.extend_from_slice(b":\n\n");
            true
        }
        Ok(Err(error)) => return (Err(error), None),
        Ok(Ok(ready)) => {
            while out.len() < CHUNK_BYTES && watcher.write_json(form, &mut out) {
                if out.capacity() < CHUNK_BYTES && CHUNK_BEGUN_BYTES < out.len() {
                    out.reserve(CHUNK_BYTES + CHUNK_BEGUN_BYTES);
                }
            }
            ready == Ready::Events
        }
    };
    (Ok(out.into()), goes_on.then_some(watcher))
}

fn refuse(error: &WatchError) -> Response {
    let status = match error {
        WatchError::Busy | WatchError::Draining => StatusCode::SERVICE_UNAVAILABLE,
        WatchError::LongPrefix | WatchError::Cdc(CdcError::Cursor(_)) => StatusCode::BAD_REQUEST,
        WatchError::Cdc(CdcError::Compacted { .. }) => StatusCode::GONE,
        WatchError::Cdc(CdcError::Diverged { .. }) => StatusCode::CONFLICT,
        WatchError::Cdc(
            CdcError::Behind { .. }
            | CdcError::Log { .. }
            | CdcError::Batch { .. }
            | CdcError::Stopped { .. },
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

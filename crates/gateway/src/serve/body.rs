//! Reading a request's body within its limits.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http_body::Body as _;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::timeout;

use crate::status::{Code, Failure, Outcome};

/// Reads the whole body. A body that arrives in one piece is not copied.
///
/// # Errors
/// 413 when it is longer than `bytes_max` (at once if it says so), 408 when it takes too long, 400
/// when it breaks off.
///
/// # Cancellation
/// Safe to drop.
pub(crate) async fn read(
    body: Incoming,
    bytes_max: usize,
    time_max: Duration,
) -> Result<Bytes, Failure> {
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if announced > bytes_max {
        return Err(too_large(bytes_max));
    }
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    match timeout(time_max, collect(body, bytes_max)).await {
        Ok(read) => read,
        Err(_) => Err(
            Failure::new(Code::DeadlineExceeded, "the request body took too long")
                .http(StatusCode::REQUEST_TIMEOUT)
                .reason("BODY_TIMEOUT")
                .outcome(Outcome::NotDone),
        ),
    }
}

async fn collect(mut body: Incoming, bytes_max: usize) -> Result<Bytes, Failure> {
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| {
            Failure::new(Code::InvalidArgument, "the request body broke off").reason("BODY_BROKEN")
        })?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if first.len() + all.len() + data.len() > bytes_max {
            return Err(too_large(bytes_max));
        }
        if first.is_empty() && all.is_empty() {
            first = data;
            continue;
        }
        if !first.is_empty() {
            all.extend_from_slice(&first);
            first = Bytes::new();
        }
        all.extend_from_slice(&data);
    }
    Ok(if all.is_empty() { first } else { all.freeze() })
}

fn too_large(bytes_max: usize) -> Failure {
    let message = format!("the request body is longer than {bytes_max} bytes");
    Failure::new(Code::ResourceExhausted, message)
        .http(StatusCode::PAYLOAD_TOO_LARGE)
        .reason("BODY_TOO_LARGE")
}

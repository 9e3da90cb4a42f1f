//! Responses: the JSON of an answer or of a failure, with the headers they need.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use http_body::{Frame, SizeHint};
use http_body_util::Full;

use super::stream::{Broken, StreamBody};
use crate::status::Failure;
use crate::transcode::plan::Plans;

/// A response body: whole, or as it comes.
#[derive(Debug)]
pub(crate) enum Body {
    Whole(Full<Bytes>),
    Stream(StreamBody),
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match self.get_mut() {
            Self::Whole(whole) => Pin::new(whole)
                .poll_frame(context)
                .map_err(|never| match never {}),
            Self::Stream(stream) => Pin::new(stream).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(whole) => whole.is_end_stream(),
            Self::Stream(stream) => stream.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(whole) => whole.size_hint(),
            Self::Stream(stream) => stream.size_hint(),
        }
    }
}

/// 200 with a JSON body.
pub(crate) fn json(body: Vec<u8>) -> Response<Body> {
    with_type(
        StatusCode::OK,
        HeaderValue::from_static("application/json"),
        body.into(),
    )
}

/// Any body.
pub(crate) fn with_type(status: StatusCode, kind: HeaderValue, body: Bytes) -> Response<Body> {
    let mut response = Response::new(Body::Whole(Full::new(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// A failure as a `google.rpc.Status`.
pub(crate) fn failure(failure: &Failure, error_details: &Plans) -> Response<Body> {
    let body = failure.to_json(error_details);
    let kind = HeaderValue::from_static("application/json");
    let mut response = with_type(failure.http, kind, body.into());
    if let Some(headers) = &failure.headers {
        let more = headers.iter();
        response
            .headers_mut()
            .extend(more.map(|(name, value)| (name.clone(), value.clone())));
    }
    response
}

/// Says that the connection ends after an answer that was given before the request was read, since
/// what still comes of it cannot be told from a next request.
pub(crate) fn close_after_unread_body(response: &mut Response<Body>) {
    let is_unread = matches!(
        response.status(),
        StatusCode::PAYLOAD_TOO_LARGE
            | StatusCode::REQUEST_TIMEOUT
            | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
    );
    if is_unread {
        response
            .headers_mut()
            .insert(CONNECTION, HeaderValue::from_static("close"));
    }
}

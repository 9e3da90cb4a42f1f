//! The messages that an upstream answers with, one after the other.
//!
//! Nothing is read ahead: a message that nobody asks for stays in the window of its HTTP/2 stream,
//! and when that is full the upstream has to wait.

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tracing::debug;

use super::client::{Seat, answer_too_large, broken, unavailable};
use super::frame::{FrameError, Unframer};
use crate::status::{Code, Failure, Outcome, from_trailers};

/// An answer under way. Dropping it resets the stream, so that the upstream stops.
#[derive(Debug)]
pub(crate) struct Messages {
    headers: HeaderMap,
    body: Incoming,
    unframer: Unframer,
    status: Option<Result<(), Failure>>,
    /// The place on the connection.
    _seat: Seat,
}

impl Messages {
    /// Looks at the head of an answer.
    ///
    /// # Errors
    /// If it is no gRPC, or says already that the call failed.
    pub(crate) fn new(
        response: Response<Incoming>,
        message_bytes_max: usize,
        seat: Seat,
    ) -> Result<Self, Failure> {
        let (head, body) = response.into_parts();
        if head.status != StatusCode::OK {
            let code = Code::from_http(head.status);
            let message = format!(
                "the upstream answered with HTTP status {}",
                head.status.as_u16()
            );
            return Err(Failure::new(code, message).outcome(Outcome::Unknown));
        }
        let is_grpc = head
            .headers
            .get(CONTENT_TYPE)
            .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
        if !is_grpc {
            return Err(broken("the upstream does not speak gRPC"));
        }
        let status = from_trailers(&head.headers);
        if let Some(Err(failure)) = status {
            return Err(failure);
        }
        Ok(Self {
            headers: head.headers,
            body,
            unframer: Unframer::new(message_bytes_max),
            status,
            _seat: seat,
        })
    }

    pub(crate) const fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    pub(crate) fn into_headers(self) -> HeaderMap {
        self.headers
    }

    /// The next message; `None` when the upstream has ended the call well.
    ///
    /// # Errors
    /// The status of a call that failed, or what was wrong with the answer.
    ///
    /// # Cancellation
    /// Safe to drop: nothing is lost, the next call goes on.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            if let Some(message) = self.arrived()? {
                return Ok(Some(message));
            }
            let Some(piece) = self.body.frame().await else {
                return self.end().map(|()| None);
            };
            let piece = piece.map_err(|error| {
                debug!(%error, "answer broke off");
                unavailable("the connection to the upstream was lost").outcome(Outcome::Unknown)
            })?;
            match piece.into_data() {
                Ok(data) => self.unframer.push(data),
                Err(other) => {
                    let trailers = other.into_trailers().unwrap_or_default();
                    self.status = from_trailers(&trailers).or_else(|| self.status.take());
                }
            }
        }
    }

    /// A message that is here already.
    ///
    /// # Errors
    /// If what is here is no message.
    pub(crate) fn arrived(&mut self) -> Result<Option<Bytes>, Failure> {
        self.unframer.next().map_err(|error| match error {
            FrameError::Compressed => {
                broken("the upstream compressed its answer without being asked")
            }
            FrameError::TooLarge => answer_too_large(),
        })
    }

    fn end(&mut self) -> Result<(), Failure> {
        match self.status.take() {
            Some(Err(failure)) => Err(failure),
            Some(Ok(())) if self.unframer.is_empty() => Ok(()),
            Some(Ok(())) => Err(broken("the upstream's answer ends inside a message")),
            None => Err(broken("the upstream's answer has no status")),
        }
    }
}

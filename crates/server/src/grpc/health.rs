//! `grpc.health.v1.Health`: serving while every shard takes writes.
//!
//! The state is read when it is asked for, so there is no task that could lag behind or die. Watch
//! looks again in short intervals and reports changes.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use flux_proto::{KV_SERVICE, ORIGINAL_SERVICE, WATCH_SERVICE};
use futures_util::stream::{self, Stream};
use tonic::{Request, Response, Status};
use tonic_health::ServingStatus;
use tonic_health::pb::health_check_response::ServingStatus as Word;
use tonic_health::pb::health_server::Health;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::readiness::Readiness;

/// How often a watcher looks.
const WATCH_INTERVAL: Duration = Duration::from_millis(250);
/// The services that have a health; the empty name is the node as a whole.
const SERVICES: [&str; 4] = ["", KV_SERVICE, ORIGINAL_SERVICE, WATCH_SERVICE];

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct HealthService {
    readiness: Arc<dyn Readiness>,
}

impl HealthService {
    pub(super) fn new(readiness: Arc<dyn Readiness>) -> Self {
        Self { readiness }
    }

    /// `None` for a service that is not here.
    fn status(&self, service: &str) -> Option<Word> {
        if !SERVICES.contains(&service) {
            return None;
        }
        let status = if self.readiness.is_ready() {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        };
        Some(status.into())
    }
}

fn response(word: Word) -> HealthCheckResponse {
    HealthCheckResponse {
        status: word.into(),
    }
}

#[tonic::async_trait]
impl Health for HealthService {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        match self.status(&request.get_ref().service) {
            Some(word) => Ok(Response::new(response(word))),
            None => Err(Status::not_found("no such service")),
        }
    }

    type WatchStream =
        Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send + 'static>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let service = request.into_inner().service;
        let watched = self.clone();
        let interval = tokio::time::interval(WATCH_INTERVAL);
        // A service that is not here may come with a later version: the protocol asks to report
        // it as unknown and go on watching. A draining node ends the stream with its last word, or
        // watchers would hold its connections open.
        let state = Some((watched, service, interval, None));
        let changes = stream::unfold(state, |state| async move {
            let (watched, service, mut interval, last) = state?;
            loop {
                interval.tick().await;
                let is_last = watched.readiness.is_draining();
                let word = watched.status(&service).unwrap_or(Word::ServiceUnknown);
                if last != Some(word) || is_last {
                    let next = (watched, service, interval, Some(word));
                    return Some((Ok(response(word)), (!is_last).then_some(next)));
                }
            }
        });
        Ok(Response::new(Box::pin(changes)))
    }
}

//! gRPC: `flux.kv.v1.Kv`, the original `service.KVService`, health and reflection.
//!
//! A request is converted by `flux_proto::convert`, run by an [`Execute`], and its answer converted
//! back; every error leaves with its outcome (`flux_proto::status`). No state is held here.

mod auth;
mod batch;
mod cluster;
mod deadline;
mod health;
mod kv;
mod original;
mod request_id;
mod scan;
#[cfg(test)]
mod tests;
mod traced;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use flux_env::{Clock, Instant};
use flux_proto::admin::cluster_server::ClusterServer;
use flux_proto::cdc::watch_server::WatchServer;
use flux_proto::convert::{Call, Limits};
use flux_proto::kv::kv_server::KvServer;
use flux_proto::original::kv_service_server::KvServiceServer;
use flux_proto::{FILE_DESCRIPTOR_SET, status};
use flux_types::limits::FRAME_OVERHEAD_BYTES;
use flux_types::{Answer, Command, Error};
use tonic::metadata::MetadataMap;
use tonic::service::Routes;
use tonic::service::interceptor::InterceptedService;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_server::HealthServer;

use crate::changes::Changes;
use crate::execute::Execute;
use crate::metrics::{CommandCount, Metrics, Protocol};
use crate::readiness::Readiness;
use auth::Authorization;

pub(crate) use auth::Password;
pub(crate) use cluster::ClusterApi;
use health::HealthService;
use watch::WatchApi;

/// What the services are made of.
#[derive(Debug)]
pub(crate) struct Parts<E> {
    /// Runs commands.
    pub(crate) executor: E,
    /// For deadlines and latencies.
    pub(crate) clock: Arc<dyn Clock>,
    /// Counts.
    pub(crate) metrics: Metrics,
    /// For the health service.
    pub(crate) readiness: Arc<dyn Readiness>,
    /// Deadline of a call that brings none.
    pub(crate) request_timeout: Duration,
    /// Longest value, in bytes; a message may be 1 MiB longer.
    pub(crate) value_bytes_max: usize,
    /// What clients must present.
    pub(crate) password: Password,
    /// The change stream; without it the port has no such service.
    pub(crate) changes: Option<Changes>,
    /// What is known of the cluster; without it the port has no such service.
    pub(crate) cluster: Option<ClusterApi>,
}

/// All services of the gRPC port. Keys and reflection ask for the password; health does not, because
/// those who check it have none.
///
/// # Panics
/// If the descriptors that were compiled in cannot be read, which a test excludes.
pub(crate) fn router<E: Execute>(parts: Parts<E>) -> Router {
    let message_bytes_max = parts.value_bytes_max + FRAME_OVERHEAD_BYTES;
    let authorization = Authorization::new(parts.password);
    let service = KvApi {
        executor: parts.executor,
        clock: parts.clock,
        metrics: parts.metrics,
        request_timeout: parts.request_timeout,
        limits: Limits {
            value_bytes_max: parts.value_bytes_max,
        },
        message_bytes_max,
    };
    let kv = KvServer::new(service.clone())
        .max_decoding_message_size(message_bytes_max)
        .max_encoding_message_size(message_bytes_max);
    let original = KvServiceServer::new(service)
        .max_decoding_message_size(message_bytes_max)
        .max_encoding_message_size(message_bytes_max);
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let reflection_v1 = reflection()
        .build_v1()
        .expect("compiled-in descriptors are read back by a test");
    let reflection_v1alpha = reflection()
        .build_v1alpha()
        .expect("compiled-in descriptors are read back by a test");
    let watch = parts.changes.map(|changes| {
        // A request is a prefix and a cursor; a message is an event, whose value has a limit of its
        // own.
        WatchServer::new(WatchApi { changes }).max_encoding_message_size(usize::MAX)
    });
    let routes = Routes::new(HealthServer::new(HealthService::new(parts.readiness)))
        .add_service(InterceptedService::new(kv, authorization.clone()))
        .add_service(InterceptedService::new(original, authorization.clone()))
        .add_service(InterceptedService::new(
            reflection_v1,
            authorization.clone(),
        ))
        .add_service(InterceptedService::new(
            reflection_v1alpha,
            authorization.clone(),
        ));
    let routes = match watch {
        Some(watch) => routes.add_service(InterceptedService::new(watch, authorization.clone())),
        None => routes,
    };
    let routes = match parts.cluster.map(ClusterServer::new) {
        Some(cluster) => routes.add_service(InterceptedService::new(cluster, authorization)),
        None => routes,
    };
    routes
        .prepare()
        .into_axum_router()
        .layer(traced::TraceLayer)
}

/// Both interfaces to keys: they differ in messages only.
#[derive(Clone, Debug)]
struct KvApi<E> {
    executor: E,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    request_timeout: Duration,
    limits: Limits,
    message_bytes_max: usize,
}

impl<E: Execute> KvApi<E> {
    /// One call from request to response.
    async fn call<C: Call>(&self, request: Request<C>) -> Result<Response<C::Response>, Status> {
        let deadline = self.deadline(request.metadata())?;
        let id = request_id::of(request.metadata())?;
        let (command, asked) = request
            .into_inner()
            .command(self.limits)
            .map_err(|invalid| status::to_tonic(&status::from_invalid_field(&invalid)))?;
        let command = match id {
            Some(id) => command.once(id),
            None => command,
        };
        let answer = if asked.stale {
            self.read_stale(command)
        } else {
            self.execute(command, deadline).await
        };
        C::response(asked, answer)
            .map(Response::new)
            .map_err(|error| to_status(&error))
    }

    /// Runs a command and counts it.
    async fn execute(&self, command: Command, deadline: Instant) -> Answer {
        let counted = CommandCount::of(&command);
        let begun = self.clock.now();
        let answer = self.executor.execute(command, deadline).await;
        let took = self.clock.now().saturating_since(begun);
        self.metrics.latency(Protocol::Grpc, counted, took);
        self.metrics.command(counted, &answer.reply);
        answer
    }

    /// Answers a read from this node's own replicas, and counts it.
    fn read_stale(&self, command: Command) -> Answer {
        let counted = CommandCount::of(&command);
        let begun = self.clock.now();
        let answer = self.executor.read_stale(command);
        let took = self.clock.now().saturating_since(begun);
        self.metrics.latency(Protocol::Grpc, counted, took);
        self.metrics.command(counted, &answer.reply);
        answer
    }

    fn deadline(&self, metadata: &MetadataMap) -> Result<Instant, Status> {
        let timeout = deadline::timeout(metadata)?.unwrap_or(self.request_timeout);
        Ok(self.clock.now() + timeout)
    }
}

/// An error as a status with its details.
fn to_status(error: &Error) -> Status {
    status::to_tonic(&status::from_error(error))
}

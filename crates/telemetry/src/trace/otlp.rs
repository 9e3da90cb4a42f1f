//! Spans to an OTLP collector over gRPC.
//!
//! One thread with a runtime of its own gathers finished spans into batches and sends them. The
//! queue before it is bounded: when a collector is slow or away, spans are dropped and counted, and
//! neither a request nor the end of the process waits for it.
//!
//! Each [`Service`] is a resource of its own, so that one process with a gateway and a node looks
//! to a collector like two services, as it does where they run apart.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::mpsc as std_mpsc;
use std::thread;
use std::time::Duration;

use opentelemetry::trace::{
    Link, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _, SpanLinks};
use tokio::sync::{mpsc, oneshot};
use tracing::{info, warn};

use super::{Finished, Kind, Service, Sink, Value};
use crate::context::TraceContext;
use crate::metrics::{Counters, Labels, Registry};

/// Spans that wait to be sent; more are dropped.
const QUEUE_SPANS_MAX: usize = 8_192;
/// Spans sent in one message.
const BATCH_SPANS_MAX: usize = 512;
/// How long the first span of a batch waits for others.
const GATHER: Duration = Duration::from_millis(500);
/// How long one message may take.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// Rows of the metric.
const FATES: [&str; 3] = ["exported", "dropped", "failed"];
const EXPORTED: usize = 0;
const DROPPED: usize = 1;
const FAILED: usize = 2;

/// Where spans go, and how the process describes itself there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `http://HOST:PORT` of a collector's gRPC port.
    pub endpoint: String,
    /// `service.name` of all spans; `None`: each service its own.
    pub service_name: Option<String>,
    /// `service.instance.id`, and whatever else is to be said of the process.
    pub attributes: Vec<(String, String)>,
}

/// Why spans cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The endpoint cannot be used.
    #[error("the OTLP endpoint {endpoint:?} cannot be used")]
    Endpoint {
        /// What was given.
        endpoint: String,
        /// What is wrong with it.
        #[source]
        source: ExporterBuildError,
    },
    /// The thread cannot be made.
    #[error("no thread for traces")]
    Thread(#[source] io::Error),
    /// The thread ended before it had begun.
    #[error("the thread for traces ended at once")]
    Ended,
}

/// The queue before the exporter.
#[derive(Debug)]
pub struct Queue {
    spans: mpsc::Sender<Finished>,
    fates: Counters,
}

impl Sink for Queue {
    fn take(&self, span: Finished) {
        if self.spans.try_send(span).is_err() {
            self.fates.increment(DROPPED);
        }
    }
}

/// The thread that sends. Dropping it gives up what waits; [`Exporter::shutdown`] sends it.
#[derive(Debug)]
pub struct Exporter {
    stop: oneshot::Sender<()>,
    ended: oneshot::Receiver<()>,
}

/// Begins to export; spans are put into the queue.
///
/// # Errors
/// If the endpoint is no `http://HOST:PORT`, or no thread can be had. A collector that is away is
/// no error.
///
/// # Panics
/// If `registry` has an exporter's metrics already.
pub fn start(config: Config, registry: &Registry) -> Result<(Queue, Exporter), Error> {
    let fates = registry.counters(
        "flux_telemetry_spans",
        "Finished spans by what became of them: dropped for want of room, failed at the collector",
        Labels::one("fate", FATES),
    );
    let (spans, waiting) = mpsc::channel(QUEUE_SPANS_MAX);
    let (stop, stopped) = oneshot::channel();
    let (end, ended) = oneshot::channel();
    let (begun, begins) = std_mpsc::sync_channel(1);
    let counted = fates.clone();
    thread::Builder::new()
        .name("traces".to_owned())
        .spawn(move || {
            let run = || -> Result<(), Error> {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .map_err(Error::Thread)?;
                // The channel to the collector belongs to this runtime.
                let entered = runtime.enter();
                let endpoint = config.endpoint.clone();
                let sender = Sender {
                    exporters: exporters(&config)?,
                    fates: counted,
                    endpoint,
                    is_reached: None,
                };
                drop(entered);
                drop(begun.send(Ok(())));
                runtime.block_on(sender.run(waiting, stopped));
                // Not to wait for a look-up of the collector's name.
                runtime.shutdown_background();
                Ok(())
            };
            if let Err(error) = run() {
                drop(begun.send(Err(error)));
            }
            // Nobody may be waiting any more.
            let _ = end.send(());
        })
        .map_err(Error::Thread)?;
    begins.recv().map_err(|_| Error::Ended)??;
    Ok((Queue { spans, fates }, Exporter { stop, ended }))
}

impl Exporter {
    /// Sends what waits, for at most `limit`; then the process need not wait any longer.
    ///
    /// # Cancellation
    /// Safe to drop; what waits is then not sent.
    pub async fn shutdown(self, limit: Duration) {
        // Whether it has ended already, or does not in time, the process ends.
        let _ = self.stop.send(());
        drop(tokio::time::timeout(limit, self.ended).await);
    }
}

fn exporters(config: &Config) -> Result<BTreeMap<Service, SpanExporter>, Error> {
    let mut exporters = BTreeMap::new();
    for service in Service::ALL {
        let mut exporter = SpanExporter::builder()
            .with_tonic()
            .with_endpoint(&config.endpoint)
            .with_timeout(EXPORT_TIMEOUT)
            .build()
            .map_err(|source| Error::Endpoint {
                endpoint: config.endpoint.clone(),
                source,
            })?;
        let name = config.service_name.clone();
        let name = name.unwrap_or_else(|| service.name().to_owned());
        let attributes = config.attributes.iter();
        let attributes = attributes.map(|(name, value)| KeyValue::new(name.clone(), value.clone()));
        let resource = Resource::builder_empty()
            .with_attributes(attributes)
            .with_service_name(name)
            .build();
        exporter.set_resource(&resource);
        exporters.insert(service, exporter);
    }
    Ok(exporters)
}

/// What the thread works with.
struct Sender {
    exporters: BTreeMap<Service, SpanExporter>,
    fates: Counters,
    endpoint: String,
    /// Whether the last message arrived; `None` before the first.
    is_reached: Option<bool>,
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").finish_non_exhaustive()
    }
}

impl Sender {
    /// Sends until it is stopped or the queue is gone.
    async fn run(
        mut self,
        mut waiting: mpsc::Receiver<Finished>,
        mut stopped: oneshot::Receiver<()>,
    ) {
        let mut batch = Vec::with_capacity(BATCH_SPANS_MAX);
        let mut is_stopped = false;
        while !is_stopped {
            tokio::select! {
                first = waiting.recv() => match first {
                    Some(first) => batch.push(first),
                    None => break,
                },
                _ = &mut stopped => is_stopped = true,
            }
            if !is_stopped {
                tokio::select! {
                    () = gather(&mut waiting, &mut batch) => {}
                    _ = &mut stopped => is_stopped = true,
                }
            }
            self.send(&mut batch).await;
        }
        waiting.close();
        while waiting.recv_many(&mut batch, BATCH_SPANS_MAX).await > 0 {
            self.send(&mut batch).await;
        }
    }

    async fn send(&mut self, batch: &mut Vec<Finished>) {
        let mut by_service: BTreeMap<Service, Vec<SpanData>> = BTreeMap::new();
        for span in batch.drain(..) {
            by_service
                .entry(span.service)
                .or_default()
                .push(span_data(span));
        }
        for (service, spans) in by_service {
            let Some(exporter) = self.exporters.get(&service) else {
                continue;
            };
            let count = spans.len() as u64;
            let sent = tokio::time::timeout(EXPORT_TIMEOUT, exporter.export(spans)).await;
            let problem = match sent {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some("it did not answer in time".to_owned()),
            };
            let fate = if problem.is_none() { EXPORTED } else { FAILED };
            self.fates.add(fate, count);
            self.tell(problem);
        }
    }

    /// Says once that the collector is away, and once that it is back.
    fn tell(&mut self, problem: Option<String>) {
        let is_reached = problem.is_none();
        let endpoint = &self.endpoint;
        match (self.is_reached, problem) {
            (None | Some(true), Some(problem)) => {
                warn!(%endpoint, problem, "traces do not reach the collector");
            }
            (Some(false), None) => info!(%endpoint, "traces reach the collector again"),
            (None | Some(true), None) | (Some(false), Some(_)) => {}
        }
        self.is_reached = Some(is_reached);
    }
}

/// Waits a moment for more of a batch.
async fn gather(waiting: &mut mpsc::Receiver<Finished>, batch: &mut Vec<Finished>) {
    let more = async {
        while batch.len() < BATCH_SPANS_MAX {
            let Some(span) = waiting.recv().await else {
                return;
            };
            batch.push(span);
        }
    };
    // When the time is over, what has come is the batch.
    drop(tokio::time::timeout(GATHER, more).await);
}

fn span_data(span: Finished) -> SpanData {
    let mut links = SpanLinks::default();
    let linked = span.links.into_iter();
    links.links = linked
        .map(|to| Link::new(span_context(to, true), Vec::new(), 0))
        .collect();
    let attributes = span.attributes.into_iter();
    let attributes = attributes.map(|(name, value)| match value {
        Value::Text(text) => KeyValue::new(name, text),
        Value::Whole(number) => KeyValue::new(name, number),
        Value::Flag(flag) => KeyValue::new(name, flag),
    });
    SpanData {
        span_context: span_context(span.context, false),
        parent_span_id: SpanId::from(span.parent.unwrap_or(0)),
        parent_span_is_remote: span.parent_is_remote,
        span_kind: match span.kind {
            Kind::Internal => SpanKind::Internal,
            Kind::Server => SpanKind::Server,
            Kind::Client => SpanKind::Client,
            Kind::Producer => SpanKind::Producer,
            Kind::Consumer => SpanKind::Consumer,
        },
        name: span.name,
        start_time: std::time::UNIX_EPOCH + Duration::from_nanos(span.begun_at),
        end_time: std::time::UNIX_EPOCH + Duration::from_nanos(span.ended_at),
        attributes: attributes.collect(),
        dropped_attributes_count: 0,
        events: opentelemetry_sdk::trace::SpanEvents::default(),
        links,
        status: span.error.map_or(Status::Unset, Status::error),
        instrumentation_scope: InstrumentationScope::builder("flux")
            .with_version(env!("CARGO_PKG_VERSION"))
            .build(),
    }
}

fn span_context(context: TraceContext, is_remote: bool) -> SpanContext {
    SpanContext::new(
        TraceId::from(context.trace_id()),
        SpanId::from(context.span_id()),
        TraceFlags::new(u8::from(context.is_sampled())),
        is_remote,
        TraceState::NONE,
    )
}

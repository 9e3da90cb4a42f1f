//! Traces: the process's tracer and its exporter, from the settings.

use std::time::Duration;

use flux_telemetry::Registry;

use crate::Failure;
use crate::settings::Telemetry;

/// How long the end of the process waits for the last spans.
const SHUTDOWN_MAX: Duration = Duration::from_secs(2);

/// The running exporter, if there is one.
#[derive(Debug, Default)]
pub(crate) struct Traces {
    #[cfg(feature = "otel")]
    exporter: Option<flux_telemetry::trace::otlp::Exporter>,
}

impl Traces {
    /// Begins to make spans, if a collector is configured. A collector that is away is no failure.
    ///
    /// # Errors
    /// When the collector's address cannot be used, or this program was built without traces.
    pub(crate) fn start(settings: &Telemetry, registry: &Registry) -> Result<Self, Failure> {
        let Some(endpoint) = settings.otlp.as_ref().filter(|_| !settings.is_disabled) else {
            return Ok(Self::default());
        };
        Self::export(endpoint.clone(), settings, registry)
    }

    #[cfg(not(feature = "otel"))]
    fn export(_: String, _: &Telemetry, _: &Registry) -> Result<Self, Failure> {
        let message = "--otlp: this program was built without the feature otel";
        Err(Failure::Mistake(message.to_owned()))
    }

    #[cfg(feature = "otel")]
    fn export(
        endpoint: String,
        settings: &Telemetry,
        registry: &Registry,
    ) -> Result<Self, Failure> {
        use std::sync::Arc;

        use flux_telemetry::trace::{self, Sampling, Setup, otlp};

        let failed = |error: &dyn std::fmt::Display| Failure::Failed(format!("traces: {error}"));
        let config = otlp::Config {
            endpoint,
            service_name: settings.service_name.clone(),
            attributes: attributes(settings),
        };
        let (queue, exporter) =
            otlp::start(config, registry).map_err(|error| Failure::Mistake(error.to_string()))?;
        let ratio = settings.trace_sample;
        trace::install(Setup {
            sampling: if settings.follows_parent {
                Sampling::parent_based(ratio)
            } else {
                Sampling::by_ratio(ratio)
            },
            sink: Arc::new(queue),
            now: flux_env::wall_nanos,
            seed: flux_env::entropy_u64().map_err(|error| failed(&error))?,
        })
        .map_err(|error| failed(&error))?;
        Ok(Self {
            exporter: Some(exporter),
        })
    }

    /// Sends the last spans, for a limited time.
    pub(crate) async fn shutdown(self) {
        #[cfg(feature = "otel")]
        if let Some(exporter) = self.exporter {
            exporter.shutdown(SHUTDOWN_MAX).await;
        }
    }
}

/// What the process says of itself; what the settings say wins.
#[cfg(feature = "otel")]
fn attributes(settings: &Telemetry) -> Vec<(String, String)> {
    let host = rustix::system::uname();
    let host = host.nodename().to_string_lossy().into_owned();
    let process = std::process::id();
    let mut attributes = settings.attributes.clone();
    for (name, value) in [
        ("service.instance.id", format!("{host}:{process}")),
        ("service.namespace", "flux".to_owned()),
        ("service.version", env!("CARGO_PKG_VERSION").to_owned()),
        ("process.pid", process.to_string()),
        ("host.name", host),
    ] {
        attributes.entry(name.to_owned()).or_insert(value);
    }
    attributes.into_iter().collect()
}

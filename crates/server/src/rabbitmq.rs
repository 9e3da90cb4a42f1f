//! RabbitMQ: what can be set about the sink, and the thread it runs on.
//!
//! The sink has a thread of its own, and gives way to those who serve: while they want the processor,
//! changes wait in the log and reach the broker a little later.

use std::fmt;
#[cfg(not(feature = "rabbitmq"))]
use std::io;
use std::sync::Arc;

use flux_env::Clock;
use flux_telemetry::{Checks, Registry};
use flux_types::ClusterId;
use serde::{Deserialize, Serialize};

use crate::changes::Changes;
use crate::config::Mistake;
use crate::units;

/// How events look in RabbitMQ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventFormat {
    /// The whole event as JSON in the body.
    #[default]
    Structured,
    /// The bare value in the body, the rest in headers.
    Binary,
}

impl EventFormat {
    /// The word for it in configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Structured => "structured",
            Self::Binary => "binary",
        }
    }
}

/// Settings of the sink.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct RabbitConfig {
    /// The broker, as `amqp://USER:PASSWORD@HOST:PORT/VHOST`; empty: changes go to no broker.
    /// Default empty.
    pub url: String,
    /// The topic exchange that events are published to. Default `flux.cdc`.
    pub exchange: String,
    /// The quorum queue for the consumer. Default `flux.cdc.default`.
    pub queue: String,
    /// Whether to declare exchange and queues; otherwise the exchange must be there. Default true.
    pub declare: bool,
    /// How events look. Default `structured`.
    pub format: EventFormat,
    /// Events published and not yet confirmed, at most. Default 512, 1 to 16384.
    pub window: usize,
    /// Events published each second, at most; 0: no cap. Default 0.
    pub rate_max: u32,
    /// Bytes that a declared queue holds before it refuses more. Default 1 GiB, at least 1 MiB.
    #[serde(with = "units::size")]
    pub queue_size_max: u64,
    /// Where a sink begins that has no cursor yet: `earliest`, `now` or `snapshot`. Default
    /// `earliest`.
    pub from: String,
}

impl Default for RabbitConfig {
    fn default() -> Self {
        Self {
            url: String::new(),
            exchange: "flux.cdc".to_owned(),
            queue: "flux.cdc.default".to_owned(),
            declare: true,
            format: EventFormat::Structured,
            window: 512,
            rate_max: 0,
            queue_size_max: 1 << 30,
            from: "earliest".to_owned(),
        }
    }
}

impl fmt::Debug for RabbitConfig {
    /// Shows everything but the URL, which holds a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitConfig")
            .field("is_on", &!self.url.is_empty())
            .field("exchange", &self.exchange)
            .field("queue", &self.queue)
            .finish_non_exhaustive()
    }
}

fn mistake(key: &'static str, problem: impl Into<String>) -> Mistake {
    Mistake {
        key,
        problem: problem.into(),
    }
}

/// What a publisher needs.
#[cfg_attr(
    not(feature = "rabbitmq"),
    expect(dead_code, reason = "a build without RabbitMQ publishes nothing")
)]
pub(crate) struct PublisherParts<'a> {
    pub(crate) config: &'a RabbitConfig,
    pub(crate) cluster: ClusterId,
    pub(crate) changes: &'a Changes,
    pub(crate) clock: &'a Arc<dyn Clock>,
    pub(crate) registry: &'a Registry,
    pub(crate) checks: &'a Checks,
}

#[cfg(not(feature = "rabbitmq"))]
impl RabbitConfig {
    /// Judges the settings.
    pub(crate) fn mistakes(&self) -> Vec<Mistake> {
        if self.url.is_empty() {
            return Vec::new();
        }
        vec![mistake("amqp", "this flux was built without RabbitMQ")]
    }
}

/// The sink of a build that has none.
#[cfg(not(feature = "rabbitmq"))]
#[derive(Debug)]
pub(crate) enum Publisher {}

#[cfg(not(feature = "rabbitmq"))]
impl Publisher {
    /// There is nothing to start.
    #[expect(clippy::unnecessary_wraps, reason = "as with RabbitMQ")]
    pub(crate) const fn start(_: &PublisherParts<'_>) -> io::Result<Option<Self>> {
        Ok(None)
    }

    /// Nor to stop.
    #[expect(clippy::unused_async, reason = "as with RabbitMQ")]
    pub(crate) async fn stop(self) {
        match self {}
    }
}

#[cfg(feature = "rabbitmq")]
pub(crate) use sink::Publisher;

#[cfg(feature = "rabbitmq")]
mod sink {
    use std::io;
    use std::sync::Arc;
    use std::thread;
    use std::time::Duration;

    use flux_cdc::cursor::Start;
    use flux_cdc::rabbitmq::{
        Address, Shape, Sink, SinkConfig, SinkParts, State, Status, Topology, WINDOW_EVENTS_MAX,
    };
    use flux_env::SeededRng;
    use flux_telemetry::checks::{Finding, Need};
    use tokio_util::sync::CancellationToken;
    use tracing::error;

    use super::{EventFormat, Mistake, PublisherParts, RabbitConfig, mistake};
    use crate::metrics::register_rabbitmq;

    /// How nice the sink is. What keeps it from taking the processor from those who serve is its
    /// share (`flux_cdc::Share`); this only lets them go first. More would starve it on a host that is
    /// busy with other things.
    const NICENESS: i32 = 5;
    /// How long the end of the sink may take: a cursor to commit, a farewell to the broker.
    const GRACE: Duration = Duration::from_secs(5);
    const QUEUE_BYTES_MIN: u64 = 1 << 20;

    impl RabbitConfig {
        /// Judges the settings.
        pub(crate) fn mistakes(&self) -> Vec<Mistake> {
            self.sink().err().unwrap_or_default()
        }

        /// What the sink is to do; `None`: there is to be none.
        pub(crate) fn sink(&self) -> Result<Option<SinkConfig>, Vec<Mistake>> {
            if self.url.is_empty() {
                return Ok(None);
            }
            let mut mistakes = Vec::new();
            let topology = Topology {
                exchange: self.exchange.clone(),
                queue: self.queue.clone(),
                queue_bytes_max: self.queue_size_max,
                declare: self.declare,
                ..Topology::default()
            };
            if let Err(problem) = topology.validate() {
                mistakes.push(mistake("amqp-exchange", problem));
            }
            if !(1..=WINDOW_EVENTS_MAX).contains(&self.window) {
                mistakes.push(mistake("amqp-window", "must be 1 to 16384"));
            }
            if self.queue_size_max < QUEUE_BYTES_MIN {
                mistakes.push(mistake("amqp-queue-size-max", "must be at least 1MiB"));
            }
            let start = match self.from.as_str() {
                "earliest" => Start::Earliest,
                "now" => Start::Now,
                "snapshot" => Start::Snapshot,
                _ => {
                    mistakes.push(mistake("amqp-from", "must be earliest, now or snapshot"));
                    Start::Earliest
                }
            };
            let address = match Address::parse(&self.url) {
                Ok(address) if mistakes.is_empty() => address,
                Ok(_) => return Err(mistakes),
                Err(problem) => {
                    mistakes.push(mistake("amqp", problem));
                    return Err(mistakes);
                }
            };
            Ok(Some(SinkConfig {
                topology,
                shape: match self.format {
                    EventFormat::Structured => Shape::Structured,
                    EventFormat::Binary => Shape::Binary,
                },
                window: self.window,
                rate_max: self.rate_max,
                start,
                ..SinkConfig::new(address)
            }))
        }
    }

    /// The running sink. Dropping it ends it without waiting.
    #[derive(Debug)]
    pub(crate) struct Publisher {
        stop: CancellationToken,
        thread: Option<thread::JoinHandle<()>>,
    }

    impl Publisher {
        /// Adds the metrics and, if there is a broker to publish to, the check `cdc-rabbitmq`, and
        /// starts the thread.
        ///
        /// # Errors
        /// If the machine refuses what it needs.
        pub(crate) fn start(parts: &PublisherParts<'_>) -> io::Result<Option<Self>> {
            let status = Arc::new(Status::default());
            register_rabbitmq(parts.registry, &status, parts.clock);
            // A configuration that is not sound starts no node.
            let Ok(Some(config)) = parts.config.sink() else {
                return Ok(None);
            };
            let rng = SeededRng::new(flux_env::entropy_u64()?);
            let sink = Sink::new(SinkParts {
                config,
                cluster: parts.cluster,
                origins: Arc::clone(parts.changes.origins()),
                envelope: parts.changes.envelope().clone(),
                clock: Arc::clone(parts.clock),
                share: Arc::clone(parts.changes.share()),
                rng: Box::new(rng),
                status: Arc::clone(&status),
            });
            let read = move || finding(&status);
            parts.checks.add("cdc-rabbitmq", Need::Optional, read);
            Self::spawn(sink).map(Some)
        }

        fn spawn(sink: Sink) -> io::Result<Self> {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let stop = CancellationToken::new();
            let stopped = stop.clone();
            let thread = thread::Builder::new().name("flux-rabbitmq".to_owned());
            let thread = thread.spawn(move || {
                // Threads that the client library starts inherit it.
                if let Err(error) = flux_env::lower_priority(NICENESS) {
                    tracing::debug!(%error, "the RabbitMQ sink has the priority of everybody");
                }
                runtime.block_on(sink.run(stopped.cancelled_owned()));
                // Looking up the broker's name may block for long, and matters to nobody any more.
                runtime.shutdown_background();
            })?;
            Ok(Self {
                stop,
                thread: Some(thread),
            })
        }

        /// Ends the sink: its cursor is committed, if the shards still take it.
        pub(crate) async fn stop(mut self) {
            self.stop.cancel();
            let Some(thread) = self.thread.take() else {
                return;
            };
            let joined = tokio::task::spawn_blocking(move || thread.join());
            match tokio::time::timeout(GRACE, joined).await {
                Ok(Ok(Ok(()))) => {}
                Ok(Ok(Err(_)) | Err(_)) => error!("the RabbitMQ sink ended by a panic"),
                Err(_) => error!("the RabbitMQ sink did not end in time"),
            }
        }
    }

    impl Drop for Publisher {
        fn drop(&mut self) {
            self.stop.cancel();
        }
    }

    fn finding(status: &Status) -> Finding {
        let state = status.state();
        let text = format!("{state}, {} changes behind", status.lag_events());
        match state {
            State::Off | State::Flowing | State::Stopped => Finding::Ok(text),
            State::Connecting | State::Blocked(_) | State::Troubled(_) => Finding::Failed(text),
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        fn keys(config: &RabbitConfig) -> Vec<&'static str> {
            let mistakes = config.mistakes();
            mistakes.iter().map(|mistake| mistake.key).collect()
        }

        #[test]
        fn without_a_url_there_is_no_sink_and_nothing_is_wrong() {
            assert_eq!(RabbitConfig::default().sink().unwrap(), None);
        }

        #[test]
        fn every_mistake_is_told_and_no_password() {
            let config = RabbitConfig {
                url: "amqp://u:s3cret@h:x/".to_owned(),
                exchange: String::new(),
                window: 0,
                queue_size_max: 1,
                from: "never".to_owned(),
                ..RabbitConfig::default()
            };
            let all = [
                "amqp-exchange",
                "amqp-window",
                "amqp-queue-size-max",
                "amqp-from",
                "amqp",
            ];
            assert_eq!(keys(&config), all);
            let text = format!("{config:?} {:?}", config.mistakes());
            assert!(!text.contains("s3cret"), "{text}");
        }

        #[test]
        fn what_is_set_reaches_the_sink() {
            let config = RabbitConfig {
                url: "amqp://u:p@h/".to_owned(),
                declare: false,
                format: EventFormat::Binary,
                window: 7,
                rate_max: 100,
                from: "now".to_owned(),
                ..RabbitConfig::default()
            };
            let sink = config.sink().unwrap().unwrap();
            assert_eq!(
                (sink.window, sink.rate_max, sink.shape),
                (7, 100, Shape::Binary)
            );
            assert!(!sink.topology.declare);
            assert_eq!(sink.start, Start::Now);
        }
    }
}

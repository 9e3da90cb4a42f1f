//! The exchange, queues and bindings that events go through: declared idempotently, or only checked.

use std::time::Duration;

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, ExchangeKind};

use super::{Trouble, TroubleKind};

/// How long the broker may take to declare or check one thing.
const PATIENCE: Duration = Duration::from_secs(15);
/// Deliveries of one message after which it goes to the dead-letter queue.
const DELIVERIES_MAX: i32 = 20;
/// Longest name in AMQP.
const NAME_BYTES_MAX: usize = 255;

/// What there is to be on the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    /// The topic exchange that events are published to.
    pub exchange: String,
    /// The quorum queue that the consumer reads.
    pub queue: String,
    /// Patterns by which the queue is bound to the exchange.
    pub bindings: Vec<String>,
    /// Bytes that the queue holds before it refuses more.
    pub queue_bytes_max: u64,
    /// Whether to declare what is missing; otherwise it is only checked that all is there.
    pub declare: bool,
}

impl Default for Topology {
    fn default() -> Self {
        Self {
            exchange: "flux.cdc".to_owned(),
            queue: "flux.cdc.default".to_owned(),
            bindings: vec!["kv.#".to_owned(), "ctl.#".to_owned()],
            queue_bytes_max: 1 << 30,
            declare: true,
        }
    }
}

impl Topology {
    /// Where messages go that were delivered too often.
    #[must_use]
    pub fn dead_exchange(&self) -> String {
        format!("{}.dlx", self.exchange)
    }

    /// The queue behind [`Topology::dead_exchange`].
    #[must_use]
    pub fn dead_queue(&self) -> String {
        format!("{}.dead", self.exchange)
    }

    /// Judges the names.
    ///
    /// # Errors
    /// Which name cannot stand, and why.
    pub fn validate(&self) -> Result<(), String> {
        for (what, name) in [("exchange", &self.exchange), ("queue", &self.queue)] {
            // Room for the suffix of the dead-letter names.
            if name.is_empty() || name.len() > NAME_BYTES_MAX - 8 {
                return Err(format!("the name of the {what} must have 1 to 247 bytes"));
            }
            if name.starts_with("amq.") {
                return Err(format!(
                    "the {what}: names that begin with amq. are the broker's"
                ));
            }
        }
        if self.bindings.is_empty() {
            return Err("at least one binding is needed".to_owned());
        }
        let is_sound = |binding: &String| (1..=NAME_BYTES_MAX).contains(&binding.len());
        if !self.bindings.iter().all(is_sound) {
            return Err("a binding must have 1 to 255 bytes".to_owned());
        }
        Ok(())
    }

    /// Sees to it that everything is there.
    ///
    /// # Errors
    /// What is missing or different.
    ///
    /// # Cancellation
    /// Safe to drop; part of it may then have been declared.
    pub async fn prepare(&self, channel: &Channel) -> Result<(), Trouble> {
        let work = async {
            if self.declare {
                self.declare_all(channel).await
            } else {
                self.check_all(channel).await
            }
        };
        tokio::time::timeout(PATIENCE, work)
            .await
            .map_err(|_| Trouble::silent("the declaration of exchange and queues"))?
    }

    async fn declare_all(&self, channel: &Channel) -> Result<(), Trouble> {
        let durable = ExchangeDeclareOptions {
            durable: true,
            ..ExchangeDeclareOptions::default()
        };
        let (exchange, queue) = (name(&self.exchange)?, name(&self.queue)?);
        let dead_exchange = name(&self.dead_exchange())?;
        let dead_queue = name(&self.dead_queue())?;
        for exchange in [&exchange, &dead_exchange] {
            let kind = ExchangeKind::Topic;
            let declared =
                channel.exchange_declare(exchange.clone(), kind, durable, FieldTable::default());
            declared.await?;
        }
        let options = QueueDeclareOptions {
            durable: true,
            ..QueueDeclareOptions::default()
        };
        let dead = dead_arguments();
        channel
            .queue_declare(dead_queue.clone(), options, dead)
            .await?;
        let all = QueueBindOptions::default();
        channel
            .queue_bind(
                dead_queue,
                dead_exchange,
                "#".into(),
                all,
                FieldTable::default(),
            )
            .await?;
        channel
            .queue_declare(queue.clone(), options, self.arguments())
            .await?;
        for binding in &self.bindings {
            let binding = name(binding)?;
            channel
                .queue_bind(
                    queue.clone(),
                    exchange.clone(),
                    binding,
                    all,
                    FieldTable::default(),
                )
                .await?;
        }
        Ok(())
    }

    async fn check_all(&self, channel: &Channel) -> Result<(), Trouble> {
        let passive = ExchangeDeclareOptions {
            passive: true,
            durable: true,
            ..ExchangeDeclareOptions::default()
        };
        let exchange = name(&self.exchange)?;
        channel
            .exchange_declare(
                exchange,
                ExchangeKind::Topic,
                passive,
                FieldTable::default(),
            )
            .await?;
        Ok(())
    }

    /// Checks that the queue is there, as whoever only consumes needs it.
    ///
    /// # Errors
    /// When it is not.
    ///
    /// # Cancellation
    /// Safe to drop.
    pub async fn check_queue(&self, channel: &Channel) -> Result<(), Trouble> {
        let passive = QueueDeclareOptions {
            passive: true,
            durable: true,
            ..QueueDeclareOptions::default()
        };
        let checked = channel.queue_declare(name(&self.queue)?, passive, FieldTable::default());
        tokio::time::timeout(PATIENCE, checked)
            .await
            .map_err(|_| Trouble::silent("the check of the queue"))??;
        Ok(())
    }

    /// Of the queue: what it refuses it says so, and what it cannot deliver it keeps elsewhere.
    fn arguments(&self) -> FieldTable {
        let text = |text: &str| AMQPValue::LongString(text.into());
        let bytes = i64::try_from(self.queue_bytes_max).unwrap_or(i64::MAX);
        let mut arguments = FieldTable::default();
        for (name, value) in [
            ("x-queue-type", text("quorum")),
            ("x-single-active-consumer", AMQPValue::Boolean(true)),
            ("x-delivery-limit", AMQPValue::LongInt(DELIVERIES_MAX)),
            ("x-dead-letter-exchange", text(&self.dead_exchange())),
            ("x-dead-letter-strategy", text("at-least-once")),
            ("x-overflow", text("reject-publish")),
            ("x-max-length-bytes", AMQPValue::LongLongInt(bytes)),
        ] {
            arguments.insert(name.into(), value);
        }
        arguments
    }
}

fn dead_arguments() -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert(
        "x-queue-type".into(),
        AMQPValue::LongString("quorum".into()),
    );
    arguments
}

/// A name for the library, which would rather panic than take one that is too long.
fn name(text: &str) -> Result<lapin::types::ShortString, Trouble> {
    lapin::types::ShortString::try_new(text)
        .map_err(|_| Trouble::new(TroubleKind::Topology, "a name is longer than 255 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_judged_before_they_reach_the_broker() {
        assert_eq!(Topology::default().validate(), Ok(()));
        let with = |exchange: &str, queue: &str, bindings: &[&str]| {
            let topology = Topology {
                exchange: exchange.to_owned(),
                queue: queue.to_owned(),
                bindings: bindings.iter().map(|&text| text.to_owned()).collect(),
                ..Topology::default()
            };
            topology.validate()
        };
        let long = "x".repeat(248);
        for bad in [
            with("", "q", &["#"]),
            with("amq.topic", "q", &["#"]),
            with("x", &long, &["#"]),
            with("x", "q", &[]),
            with("x", "q", &["#", ""]),
        ] {
            assert!(bad.is_err());
        }
    }

    #[test]
    fn dead_letters_are_named_after_the_exchange() {
        let topology = Topology::default();
        assert_eq!(topology.dead_exchange(), "flux.cdc.dlx");
        assert_eq!(topology.dead_queue(), "flux.cdc.dead");
    }
}

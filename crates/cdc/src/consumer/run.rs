//! The consumer's loop: connect, read, settle, acknowledge, and all of it again.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::time::Duration;

use flux_env::Rng;
use futures_util::{FutureExt, StreamExt};
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions,
};
use lapin::types::FieldTable;
use tokio::time::Instant;

use super::traced;
use super::{Arrival, Checkpoint, Output, Progress};
use crate::rabbitmq::{Address, Backoff, Link, Topology, Trouble};

/// How long the broker may take to answer a request about consuming.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long deliveries on their way may take after the consumer was cancelled.
const DRAIN: Duration = Duration::from_secs(5);

/// What a consumer does.
#[derive(Clone, Debug)]
pub struct ConsumerConfig {
    /// The broker.
    pub address: Address,
    /// What is read, and what it hangs on.
    pub topology: Topology,
    /// Messages that the broker sends ahead.
    pub prefetch: u16,
    /// Events after which they are settled and acknowledged.
    pub ack_every: u64,
    /// Time after which they are, however few.
    pub ack_interval: Duration,
    /// Events after which the consumer ends by itself.
    pub max: Option<u64>,
    /// Silence after which it does.
    pub idle_exit: Option<Duration>,
    /// Whether a broker that is away is waited for.
    pub retry: bool,
}

/// What was done in this run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Events handed to the output and acknowledged.
    pub events: u64,
    /// Events that had been before.
    pub duplicates: u64,
    /// Messages that are no events, given to the dead-letter queue.
    pub rejected: u64,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            events,
            duplicates,
            rejected,
        } = self;
        write!(f, "{events} events, {duplicates} duplicates skipped")?;
        if *rejected > 0 {
            write!(f, ", {rejected} unreadable messages set aside")?;
        }
        Ok(())
    }
}

/// What somebody who watches should know.
#[derive(Debug)]
pub enum Notice<'a> {
    /// Events can come.
    Connected,
    /// They cannot.
    Lost {
        /// Why.
        trouble: &'a Trouble,
        /// Failed attempts in a row.
        attempt: u32,
        /// Until the next one.
        wait: Duration,
    },
    /// What was done so far: all that had come is with the output.
    Read(Summary),
    /// A message is no event.
    Rejected {
        /// Why.
        problem: &'static str,
        /// How many there were.
        count: u64,
    },
}

/// Why a consumer ended.
#[derive(Debug, thiserror::Error)]
pub enum ConsumerError {
    /// The broker is away, and nobody wants to wait.
    #[error("{0}")]
    Broker(Trouble),
    /// The output takes nothing any more.
    #[error("failed to write events: {0}")]
    Output(#[source] io::Error),
    /// The checkpoint cannot be written.
    #[error("failed to write the checkpoint: {0}")]
    Checkpoint(#[source] io::Error),
}

/// Reads events. See the module.
pub struct Consumer<'a> {
    /// What to do.
    pub config: ConsumerConfig,
    /// Where events go.
    pub output: &'a mut dyn Output,
    /// Where progress is kept; without it only this run remembers.
    pub checkpoint: Option<Checkpoint>,
    /// What was processed before.
    pub progress: Progress,
    /// For the jitter of attempts.
    pub rng: &'a mut dyn Rng,
    /// Told what happens.
    pub notice: &'a mut (dyn FnMut(Notice<'_>) + Send),
    /// What was done so far.
    pub summary: Summary,
}

impl fmt::Debug for Consumer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer")
            .field("config", &self.config)
            .field("summary", &self.summary)
            .finish_non_exhaustive()
    }
}

/// What is accepted and not yet acknowledged.
#[derive(Debug, Default)]
struct Open {
    /// The last delivery, if any.
    tag: Option<u64>,
    count: u64,
    due: Option<Instant>,
}

/// Why a connection was left in good order, or not.
enum Left {
    Done,
    Lost(Trouble),
}

impl Consumer<'_> {
    /// Runs until `stop` resolves, or until there is nothing more to do.
    ///
    /// # Errors
    /// When the output or the checkpoint fails, or the broker does and nobody wants to wait.
    ///
    /// # Cancellation
    /// Safe to drop: what is not acknowledged comes again.
    pub async fn run(&mut self, stop: impl Future<Output = ()>) -> Result<Summary, ConsumerError> {
        let mut stop = pin!(stop);
        let mut backoff = Backoff::default();
        loop {
            let opened = tokio::select! {
                biased;
                () = &mut stop => return Ok(self.summary),
                opened = self.open() => opened,
            };
            let trouble = match opened {
                Ok((link, deliveries)) => {
                    (self.notice)(Notice::Connected);
                    let left = self.consume(link, deliveries, &mut backoff, stop.as_mut());
                    match left.await? {
                        Left::Done => return Ok(self.summary),
                        Left::Lost(trouble) => trouble,
                    }
                }
                Err(trouble) => trouble,
            };
            if !self.config.retry {
                return Err(ConsumerError::Broker(trouble));
            }
            let wait = backoff.fail(self.rng);
            (self.notice)(Notice::Lost {
                trouble: &trouble,
                attempt: backoff.failures(),
                wait,
            });
            tokio::select! {
                biased;
                () = &mut stop => return Ok(self.summary),
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    async fn open(&self) -> Result<(Link, lapin::Consumer), Trouble> {
        let config = &self.config;
        let link = Link::open(&config.address, "flux cdc-consumer").await?;
        if config.topology.declare {
            config.topology.prepare(&link.channel).await?;
        } else {
            config.topology.check_queue(&link.channel).await?;
        }
        let consuming = async {
            let qos = BasicQosOptions::default();
            link.channel.basic_qos(config.prefetch, qos).await?;
            let queue = config.topology.queue.as_str().into();
            let options = BasicConsumeOptions::default();
            let channel = &link.channel;
            let consumer = channel.basic_consume(queue, "".into(), options, FieldTable::default());
            consumer.await
        };
        let deliveries = tokio::time::timeout(PATIENCE, consuming)
            .await
            .map_err(|_| Trouble::silent("the request to consume"))??;
        Ok((link, deliveries))
    }

    async fn consume(
        &mut self,
        link: Link,
        mut deliveries: lapin::Consumer,
        backoff: &mut Backoff,
        mut stop: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Left, ConsumerError> {
        let mut open = Open::default();
        let mut idle_since = Instant::now();
        loop {
            let idle_at = self.config.idle_exit.map(|span| idle_since + span);
            let item = tokio::select! {
                biased;
                () = stop.as_mut() => return self.finish(link, deliveries, open).await,
                () = at(open.due) => {
                    if let Err(trouble) = self.settle(&link, &mut open).await? {
                        return Ok(Left::Lost(trouble));
                    }
                    continue;
                }
                item = deliveries.next() => item,
                () = at(idle_at) => return self.leave(link, open).await,
            };
            let mut next = Some(item);
            while let Some(item) = next {
                let delivery = match item {
                    Some(Ok(delivery)) => delivery,
                    Some(Err(error)) => return Ok(Left::Lost(error.into())),
                    None => return Ok(Left::Lost(Trouble::silent("anything: reading was ended"))),
                };
                backoff.succeed();
                let taken = self.take(&link, &delivery, &mut open).await?;
                if let Err(trouble) = taken {
                    return Ok(Left::Lost(trouble));
                }
                if self
                    .config
                    .max
                    .is_some_and(|max| self.summary.events >= max)
                {
                    return self.leave(link, open).await;
                }
                if open.count >= self.config.ack_every
                    && let Err(trouble) = self.settle(&link, &mut open).await?
                {
                    return Ok(Left::Lost(trouble));
                }
                next = deliveries.next().now_or_never();
            }
            self.output.nudge().map_err(ConsumerError::Output)?;
            (self.notice)(Notice::Read(self.summary));
            idle_since = Instant::now();
        }
    }

    /// Hands one delivery to the output, unless it was there before or is no event.
    async fn take(
        &mut self,
        link: &Link,
        delivery: &Delivery,
        open: &mut Open,
    ) -> Result<Result<(), Trouble>, ConsumerError> {
        let arrival = match Arrival::read(delivery) {
            Ok(arrival) => arrival,
            Err(problem) => return Ok(self.reject(link, delivery, problem).await),
        };
        let was_before = arrival
            .id
            .as_ref()
            .is_some_and(|id| self.progress.marks.contains(id));
        if was_before {
            self.summary.duplicates += 1;
        } else {
            let span = traced::begin(delivery, &self.config.topology.queue);
            self.output
                .accept(&arrival)
                .map_err(ConsumerError::Output)?;
            drop(span);
            if let Some(id) = &arrival.id {
                self.progress.marks.insert(id);
            }
            self.progress.events += 1;
            self.summary.events += 1;
        }
        open.tag = Some(delivery.delivery_tag);
        open.count += 1;
        open.due
            .get_or_insert_with(|| Instant::now() + self.config.ack_interval);
        Ok(Ok(()))
    }

    /// Sends what cannot be read to the dead-letter queue, so that it is in nobody's way.
    async fn reject(
        &mut self,
        link: &Link,
        delivery: &Delivery,
        problem: &'static str,
    ) -> Result<(), Trouble> {
        self.summary.rejected += 1;
        (self.notice)(Notice::Rejected {
            problem,
            count: self.summary.rejected,
        });
        let options = BasicNackOptions {
            requeue: false,
            ..BasicNackOptions::default()
        };
        let nack = link.channel.basic_nack(delivery.delivery_tag, options);
        nack.await.map_err(Trouble::from)
    }

    /// Settles the output, then notes it, then tells the broker.
    async fn settle(
        &mut self,
        link: &Link,
        open: &mut Open,
    ) -> Result<Result<(), Trouble>, ConsumerError> {
        let sink_bytes = self.output.settle().map_err(ConsumerError::Output)?;
        let Some(tag) = open.tag else {
            return Ok(Ok(()));
        };
        self.progress.sink_bytes = sink_bytes;
        if let Some(checkpoint) = &self.checkpoint {
            checkpoint
                .write(&self.progress)
                .map_err(ConsumerError::Checkpoint)?;
        }
        *open = Open::default();
        let all_up_to_it = BasicAckOptions { multiple: true };
        let ack = link.channel.basic_ack(tag, all_up_to_it).await;
        Ok(ack.map_err(Trouble::from))
    }

    /// Reads to the end what is on its way, and leaves.
    async fn finish(
        &mut self,
        link: Link,
        mut deliveries: lapin::Consumer,
        mut open: Open,
    ) -> Result<Left, ConsumerError> {
        let cancel = link
            .channel
            .basic_cancel(deliveries.tag(), BasicCancelOptions::default());
        let is_cancelled = tokio::time::timeout(DRAIN, cancel).await;
        if matches!(is_cancelled, Ok(Ok(()))) {
            let deadline = Instant::now() + DRAIN;
            while let Ok(Some(Ok(delivery))) =
                tokio::time::timeout_at(deadline, deliveries.next()).await
            {
                if self.take(&link, &delivery, &mut open).await?.is_err() {
                    break;
                }
            }
        }
        self.leave(link, open).await
    }

    /// Settles and closes. An acknowledgement that does not get through brings events again.
    async fn leave(&mut self, link: Link, mut open: Open) -> Result<Left, ConsumerError> {
        drop(self.settle(&link, &mut open).await?);
        link.close().await;
        Ok(Left::Done)
    }
}

/// Resolves at an instant, or never.
async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

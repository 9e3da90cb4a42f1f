//! One connection of the sink: reads, publishes, takes confirms, commits cursors.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use flux_telemetry::trace::Span;
use flux_types::{ShardId, UnixMillis};
use futures_util::future::{BoxFuture, select_all};
use futures_util::{FutureExt as _, poll};
use lapin::Confirmation;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::ShortString;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};
use tracing::warn;

use super::config::WINDOW_BYTES_MAX;
use super::message::Message;
use super::sink::{Followed, Sink, ended};
use super::status::Count;
use super::traced;
use super::{Link, LinkEvent, Pace, State, Trouble, TroubleKind, Window};
use crate::cursor::Place;
use crate::error::CdcError;
use crate::event::{Change, Control, Event};
use crate::feed::Batch;

/// How often cursors are committed, if anything has settled.
const COMMIT_INTERVAL: Duration = Duration::from_secs(1);
/// Events after which they are committed sooner.
const COMMIT_EVENTS: u64 = 4096;
/// How long the broker may confirm nothing while something is in flight.
const CONFIRM_PATIENCE: Duration = Duration::from_secs(30);
/// How long the broker may take to switch confirms on.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a session ended.
#[derive(Debug)]
pub(super) enum End {
    /// The node stops.
    Stopped,
    /// Other shards are led here now.
    Moved,
    /// Something is wrong; the next session begins after a pause.
    Troubled(Trouble),
}

/// What was sent, until it is settled.
#[derive(Clone, Copy, Debug)]
struct Sent {
    shard: ShardId,
    place: Place,
}

/// A message on its way: it is written, then confirmed.
type Confirming = BoxFuture<'static, lapin::Result<Confirmation>>;

/// What a session waits for.
enum Step {
    Stop,
    Link(LinkEvent),
    Confirm(Box<lapin::Result<Confirmation>>),
    Silence,
    Tick,
    Batch(usize, Result<Batch, CdcError>),
    /// More may go.
    Go,
}

/// See the module.
pub(super) struct Session {
    link: Link,
    exchange: ShortString,
    followed: Vec<Followed>,
    /// Which shard is asked first.
    turn: usize,
    /// The events being published, and how many of them were.
    batch: Option<(Batch, usize)>,
    window: Window<Sent>,
    /// What becomes of each message in flight, oldest first.
    confirms: VecDeque<Confirming>,
    /// When each message in flight was decided, oldest first.
    times: VecDeque<UnixMillis>,
    pace: Pace,
    /// Until when the pace, or those who serve, let nothing go.
    wait_until: Option<Instant>,
    /// What this thread had used when it was last noted.
    cpu_time: Duration,
    is_blocked: bool,
    heard_at: Instant,
    tick: Interval,
    /// Settled and not yet committed.
    uncommitted: BTreeMap<ShardId, Place>,
    settled_since_commit: u64,
}

impl Session {
    /// Connects, sees to exchange and queues, and finds where each shard goes on.
    pub(super) async fn open(sink: &mut Sink) -> Result<Self, End> {
        let link = Self::connect(sink).await.map_err(End::Troubled)?;
        sink.status.add(Count::Connections);
        sink.wait_led().await;
        let followed = sink.follow().await?;
        let exchange = ShortString::try_new(sink.config.topology.exchange.as_str());
        let exchange = exchange.unwrap_or_default();
        let mut tick = interval(COMMIT_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // A queue that refused or was missing may still: only a confirm shows that it is mended.
        let stays = matches!(
            sink.status.trouble(),
            Some(TroubleKind::Unroutable | TroubleKind::Rejected)
        );
        if !stays {
            sink.flows();
        }
        Ok(Self {
            link,
            exchange,
            followed,
            turn: 0,
            batch: None,
            window: Window::new(sink.config.window, WINDOW_BYTES_MAX),
            confirms: VecDeque::new(),
            times: VecDeque::new(),
            pace: Pace::new(sink.config.rate_max),
            wait_until: None,
            cpu_time: flux_env::thread_cpu_time(),
            is_blocked: false,
            heard_at: Instant::now(),
            tick,
            uncommitted: BTreeMap::new(),
            settled_since_commit: 0,
        })
    }

    async fn connect(sink: &Sink) -> Result<Link, Trouble> {
        let name = format!("flux node {}", sink.envelope.cluster());
        let link = Link::open(&sink.config.address, &name).await?;
        sink.config.topology.prepare(&link.channel).await?;
        let confirms = link.channel.confirm_select(ConfirmSelectOptions::default());
        tokio::time::timeout(PATIENCE, confirms)
            .await
            .map_err(|_| Trouble::silent("the request for confirms"))??;
        Ok(link)
    }

    /// Publishes until something ends it.
    pub(super) async fn run(
        &mut self,
        sink: &mut Sink,
        mut stop: Pin<&mut impl Future<Output = ()>>,
    ) -> End {
        loop {
            let step = self.step(stop.as_mut()).await;
            if let Err(end) = self.take(sink, step).await {
                return end;
            }
            self.publish(sink).await;
            sink.status.set_in_flight(self.window.in_flight());
            self.give_way(sink);
        }
    }

    /// Rests if those who serve want the processor and the sink has had its share of it.
    fn give_way(&mut self, sink: &Sink) {
        let cpu_time = flux_env::thread_cpu_time();
        let cost = cpu_time.saturating_sub(self.cpu_time);
        self.cpu_time = cpu_time;
        let rest = sink.share.spend(cost, sink.behind(self.oldest()));
        if !rest.is_zero() {
            let until = Instant::now() + rest;
            self.wait_until = Some(self.wait_until.map_or(until, |other| other.max(until)));
        }
    }

    async fn step(&mut self, stop: Pin<&mut impl Future<Output = ()>>) -> Step {
        let may_read = self.batch.is_none()
            && !self.is_blocked
            && self.wait_until.is_none()
            && self.window.has_room();
        let silent_at = self.heard_at + CONFIRM_PATIENCE;
        let waits_for_confirm = !self.confirms.is_empty();
        let go_at = self.wait_until.unwrap_or(silent_at);
        let Self {
            link,
            followed,
            turn,
            confirms,
            tick,
            ..
        } = self;
        tokio::select! {
            biased;
            () = stop => Step::Stop,
            event = link.event() => Step::Link(event),
            confirm = first(confirms) => Step::Confirm(Box::new(confirm)),
            _ = tick.tick() => Step::Tick,
            () = tokio::time::sleep_until(silent_at), if waits_for_confirm && !self.is_blocked => {
                Step::Silence
            }
            () = tokio::time::sleep_until(go_at), if self.wait_until.is_some() => Step::Go,
            (index, batch) = next_batch(followed, *turn), if may_read => Step::Batch(index, batch),
        }
    }

    async fn take(&mut self, sink: &mut Sink, step: Step) -> Result<(), End> {
        match step {
            Step::Stop => return Err(End::Stopped),
            Step::Silence => {
                let silent = Trouble::silent("published messages");
                return Err(End::Troubled(silent));
            }
            Step::Link(event) => self.take_link_event(sink, event).map_err(End::Troubled)?,
            Step::Confirm(confirm) => {
                self.take_confirm(sink, *confirm).map_err(End::Troubled)?;
                while let Some(confirm) = first(&mut self.confirms).now_or_never() {
                    self.take_confirm(sink, confirm).map_err(End::Troubled)?;
                }
                self.settle(sink);
                if self.settled_since_commit >= COMMIT_EVENTS {
                    self.commit(sink).await;
                }
            }
            Step::Tick => {
                self.commit(sink).await;
                sink.note_lag(Some(self));
                let followed: BTreeSet<_> = self.followed.iter().map(|one| one.shard).collect();
                if followed != sink.led().collect() {
                    return Err(End::Moved);
                }
            }
            Step::Go => self.wait_until = None,
            Step::Batch(index, batch) => {
                self.turn = index + 1;
                self.batch = Some((batch.map_err(ended)?, 0));
            }
        }
        Ok(())
    }

    fn take_link_event(&mut self, sink: &Sink, event: LinkEvent) -> Result<(), Trouble> {
        match event {
            LinkEvent::Blocked(reason) => {
                self.is_blocked = true;
                warn!(
                    reason,
                    "RabbitMQ takes nothing for now; changes wait in the log"
                );
                sink.status.set(State::Blocked(reason));
            }
            LinkEvent::Unblocked => {
                self.is_blocked = false;
                self.heard_at = Instant::now();
                sink.flows();
            }
            LinkEvent::Ended(trouble) => return Err(trouble),
        }
        Ok(())
    }

    /// Takes the confirm of the oldest message in flight. Only a plain acknowledgement is one: a
    /// returned message is acknowledged too, and is lost all the same.
    fn take_confirm(
        &mut self,
        sink: &Sink,
        confirm: lapin::Result<Confirmation>,
    ) -> Result<(), Trouble> {
        self.confirms.pop_front();
        self.heard_at = Instant::now();
        match confirm? {
            Confirmation::Ack(None) => {
                self.times.pop_front();
                self.window.confirmed();
                sink.status.add(Count::Confirmed);
                if !self.is_blocked {
                    sink.flows();
                }
                Ok(())
            }
            Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned)) => {
                sink.status.add(Count::Returned);
                let routing_key = returned.delivery.routing_key.as_str();
                Err(Trouble::new(
                    TroubleKind::Unroutable,
                    format!(
                        "{} for {} at exchange {}",
                        returned.reply_text,
                        routing_key.split('.').take(3).collect::<Vec<_>>().join("."),
                        self.exchange
                    ),
                ))
            }
            Confirmation::Nack(None) => {
                sink.status.add(Count::Refused);
                let detail = "the broker refused it, as a full queue does";
                Err(Trouble::new(TroubleKind::Rejected, detail))
            }
            Confirmation::NotRequested => Err(Trouble::silent("the request for confirms")),
        }
    }

    fn settle(&mut self, sink: &mut Sink) {
        while let Some(Sent { shard, place }) = self.window.settle() {
            sink.settled.insert(shard, place);
            self.uncommitted.insert(shard, place);
            self.settled_since_commit += 1;
        }
    }

    /// Commits what has settled. What fails is committed with what settles later.
    pub(super) async fn commit(&mut self, sink: &Sink) {
        self.settled_since_commit = 0;
        for (shard, place) in std::mem::take(&mut self.uncommitted) {
            if !sink.commit(shard, place).await {
                self.uncommitted.insert(shard, place);
            }
        }
    }

    /// Publishes as much of the batch at hand as may go now.
    async fn publish(&mut self, sink: &mut Sink) {
        if self.wait_until.is_some() || self.is_blocked {
            return;
        }
        while self.window.has_room() {
            let Some((batch, done)) = &mut self.batch else {
                return;
            };
            let Some(event) = batch.events.get(*done) else {
                self.batch = None;
                return;
            };
            if matches!(event.change, Change::Control(Control::Progress)) {
                *done += 1;
                continue;
            }
            if let Err(wait) = self.pace.take(sink.clock.now()) {
                self.wait_until = Some(Instant::now() + wait);
                return;
            }
            note_gap(sink, event);
            let span = traced::begin(event, self.exchange.as_str());
            let sender = span.as_ref().and_then(traced::parent);
            let message = Message::of(event, sender, &sink.envelope, sink.config.shape);
            let place = batch.place_at(event).unwrap_or(Place::BEGINNING);
            let (shard, at) = (batch.shard, event.at);
            *done += 1;
            self.send(message, Sent { shard, place }, at, span).await;
            sink.status.add(Count::Published);
        }
    }

    async fn send(&mut self, message: Message, sent: Sent, at: UnixMillis, span: Option<Span>) {
        let options = BasicPublishOptions {
            mandatory: true,
            ..BasicPublishOptions::default()
        };
        if self.confirms.is_empty() {
            self.heard_at = Instant::now();
        }
        let bytes = message.body.len();
        let (channel, exchange) = (self.link.channel.clone(), self.exchange.clone());
        let mut confirming: Confirming = async move {
            let Message {
                routing_key,
                body,
                properties,
            } = message;
            let published =
                channel.basic_publish(exchange, routing_key, options, &body, properties);
            let confirmed = async { published.await?.await }.await;
            if let (Some(span), Err(_)) = (&span, &confirmed) {
                span.fail("UNCONFIRMED");
            }
            confirmed
        }
        .boxed();
        // The first poll hands the message to the library, in this order. It is not waited for: a
        // broker that blocks us lets nothing be written, and must not keep us from hearing so.
        if let Poll::Ready(confirm) = poll!(&mut confirming) {
            confirming = std::future::ready(confirm).boxed();
        }
        self.confirms.push_back(confirming);
        self.times.push_back(at);
        self.window.sent(bytes, sent);
    }

    /// The revision up to which there is nothing left to publish, if that is more than has settled:
    /// what is not published at all, as system data, is nobody's lag.
    pub(super) fn reached(&self, shard: ShardId) -> Option<u64> {
        if self.batch.is_some() || self.window.in_flight() > 0 {
            return None;
        }
        let followed = self.followed.iter().find(|one| one.shard == shard)?;
        match followed.feed.cursor().place(shard)? {
            Place::After { revision, .. } => Some(revision.get()),
            Place::Snapshot => None,
        }
    }

    /// When the oldest message in flight, or the next to be sent, was decided.
    pub(super) fn oldest(&self) -> Option<UnixMillis> {
        let next = || {
            let (batch, done) = self.batch.as_ref()?;
            batch.events.get(*done).map(|event| event.at)
        };
        self.times.front().copied().or_else(next)
    }

    /// Says farewell.
    pub(super) async fn close(self) {
        self.link.close().await;
    }
}

/// The confirm of the oldest message in flight; waits for ever if there is none. It stays in its
/// place until it is taken.
async fn first(confirms: &mut VecDeque<Confirming>) -> lapin::Result<Confirmation> {
    match confirms.front_mut() {
        Some(confirm) => confirm.await,
        None => std::future::pending().await,
    }
}

/// The next events of any shard, with its index; the one at `turn` is asked first.
async fn next_batch(followed: &mut [Followed], turn: usize) -> (usize, Result<Batch, CdcError>) {
    if followed.is_empty() {
        return std::future::pending().await;
    }
    let count = followed.len();
    let (before, behind) = followed.split_at_mut(turn % count);
    let first = before.len();
    let rotated = behind.iter_mut().chain(before.iter_mut());
    let waits = rotated.map(|one| one.feed.next().boxed());
    let (batch, index, _) = select_all(waits).await;
    ((first + index) % count, batch)
}

fn note_gap(sink: &Sink, event: &Event) {
    if let Change::Control(Control::Gap { after, next }) = event.change {
        sink.status.add(Count::Gaps);
        warn!(
            shard = event.position.shard.get(),
            after = after.get(),
            next = next.get(),
            "changes were not published while they were kept: they are missing in RabbitMQ"
        );
    }
}

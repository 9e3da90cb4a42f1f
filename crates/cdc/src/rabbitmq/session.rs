//! One connection of the sink: reads, publishes, takes confirms, commits cursors.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use flux_telemetry::trace::Span;
use flux_types::{Revision, ShardId, UnixMillis};
use futures_util::FutureExt as _;
use futures_util::future::select_all;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};
use tracing::warn;

use super::commits::Commits;
use super::config::WINDOW_BYTES_MAX;
use super::follow::Followed;
use super::message::Message;
use super::outlet::{Outlet, Told};
use super::sink::{Sink, ended};
use super::status::Count;
use super::traced;
use super::{Link, Pace, State, Trouble, TroubleKind, Window};
use crate::cursor::Place;
use crate::error::CdcError;
use crate::event::{Change, Control, Event};
use crate::feed::Batch;
use crate::share::Reader;

/// How often cursors are committed, if anything has settled.
const COMMIT_INTERVAL: Duration = Duration::from_secs(1);
/// Events after which they are committed sooner.
const COMMIT_EVENTS: u64 = 4096;
/// How long the broker may confirm nothing while something is in flight.
const CONFIRM_PATIENCE: Duration = Duration::from_secs(30);

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

/// A message on its way, until it is settled.
struct Flight {
    shard: ShardId,
    /// The place in the change stream behind it.
    place: Place,
    /// When its event was decided.
    at: UnixMillis,
    span: Option<Span>,
    is_confirmed: bool,
}

/// What a session waits for.
enum Step {
    Stop,
    Told(Result<Told, Trouble>),
    Silence,
    Tick,
    Batch(usize, Result<Batch, CdcError>),
    /// A commit has ended.
    Committed,
    /// More may go.
    Go,
}

/// See the module.
pub(super) struct Session {
    outlet: Outlet,
    followed: Vec<Followed>,
    /// Which shard is asked first.
    turn: usize,
    /// The events being published, and how many of them were.
    batch: Option<(Batch, usize)>,
    /// What is in flight, and the number of the oldest.
    window: Window<Flight>,
    oldest_tag: u64,
    /// The message that is being published.
    message: Message,
    pace: Pace,
    /// Until when the pace, or those who serve, let nothing go.
    wait_until: Option<Instant>,
    /// Its place among the readers of the node.
    reader: Reader,
    /// What this thread had used when it was last noted.
    cpu_time: Duration,
    is_blocked: bool,
    heard_at: Instant,
    tick: Interval,
    commits: Commits,
}

impl Session {
    /// Connects, sees to exchange and queues, and finds where each shard goes on.
    pub(super) async fn open(sink: &mut Sink) -> Result<Self, End> {
        let outlet = Self::connect(sink).await.map_err(End::Troubled)?;
        sink.status.add(Count::Connections);
        sink.wait_led().await;
        let followed = sink.follow().await?;
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
            outlet,
            followed,
            turn: 0,
            batch: None,
            window: Window::new(sink.config.window, WINDOW_BYTES_MAX),
            oldest_tag: 1,
            message: Message::default(),
            pace: Pace::new(sink.config.rate_max),
            wait_until: None,
            reader: sink.share.reader(),
            cpu_time: flux_env::thread_cpu_time(),
            is_blocked: false,
            heard_at: Instant::now(),
            tick,
            commits: Commits::default(),
        })
    }

    /// Sees to exchange and queues on a connection for that, then opens one to publish.
    async fn connect(sink: &Sink) -> Result<Outlet, Trouble> {
        let config = &sink.config;
        let name = format!("flux node {}", sink.envelope.cluster());
        let link = Link::open(&config.address, &name).await?;
        let prepared = config.topology.prepare(&link.channel).await;
        link.close().await;
        prepared?;
        Outlet::open(&config.address, &name, &config.topology.exchange).await
    }

    /// Publishes until something ends it.
    pub(super) async fn run(
        &mut self,
        sink: &mut Sink,
        mut stop: Pin<&mut impl Future<Output = ()>>,
    ) -> End {
        loop {
            Followed::release(&mut self.followed);
            let step = self.step(stop.as_mut()).await;
            if let Err(end) = self.take(sink, step) {
                return end;
            }
            self.publish(sink);
            sink.status.set_in_flight(self.window.in_flight());
            self.give_way(sink);
        }
    }

    /// Rests if those who serve want the processor and the sink has had its share of it.
    fn give_way(&mut self, sink: &Sink) {
        let cpu_time = flux_env::thread_cpu_time();
        let cost = cpu_time.saturating_sub(self.cpu_time);
        self.cpu_time = cpu_time;
        self.reader.spend(cost, sink.behind(self.oldest()));
        self.rest(sink);
    }

    fn rest(&mut self, sink: &Sink) {
        let rest = self.reader.rest(sink.behind(self.oldest()));
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
        let waits_for_confirm = self.window.in_flight() > 0;
        let go_at = self.wait_until.unwrap_or(silent_at);
        let Self {
            outlet,
            followed,
            turn,
            tick,
            commits,
            ..
        } = self;
        tokio::select! {
            biased;
            () = stop => Step::Stop,
            told = outlet.hear() => Step::Told(told),
            _ = tick.tick() => Step::Tick,
            Some(()) = commits.next() => Step::Committed,
            () = tokio::time::sleep_until(silent_at), if waits_for_confirm && !self.is_blocked => {
                Step::Silence
            }
            () = tokio::time::sleep_until(go_at), if self.wait_until.is_some() => Step::Go,
            (index, batch) = next_batch(followed, *turn), if may_read => Step::Batch(index, batch),
        }
    }

    fn take(&mut self, sink: &mut Sink, step: Step) -> Result<(), End> {
        match step {
            Step::Stop => return Err(End::Stopped),
            Step::Silence => {
                let silent = Trouble::silent("published messages");
                return Err(End::Troubled(silent));
            }
            Step::Told(told) => {
                self.take_told(sink, told).map_err(End::Troubled)?;
                if self.commits.settled() >= COMMIT_EVENTS {
                    self.begin_commits(sink);
                }
            }
            Step::Tick => {
                self.outlet.beat(Instant::now()).map_err(End::Troubled)?;
                self.begin_commits(sink);
                sink.take_in();
                self.note_births(sink);
                sink.note_lag(Some(self));
                let followed: BTreeSet<_> = self.followed.iter().map(|one| one.shard).collect();
                if followed != sink.led() {
                    return Err(End::Moved);
                }
            }
            Step::Committed => {}
            Step::Go => {
                self.wait_until = None;
                self.rest(sink);
            }
            Step::Batch(index, batch) => {
                self.turn = index + 1;
                self.batch = Some((batch.map_err(ended)?, 0));
            }
        }
        Ok(())
    }

    /// Takes in what the broker says, all that has come.
    fn take_told(&mut self, sink: &mut Sink, told: Result<Told, Trouble>) -> Result<(), Trouble> {
        let mut next = told.map(Some);
        loop {
            let told = next.inspect_err(|trouble| {
                if trouble.kind == TroubleKind::Unroutable {
                    sink.status.add(Count::Returned);
                } else if trouble.kind == TroubleKind::Rejected {
                    sink.status.add(Count::Refused);
                }
            })?;
            match told {
                None => return Ok(()),
                Some(Told::Confirmed { tag, is_multiple }) => {
                    self.take_confirm(sink, tag, is_multiple);
                }
                Some(Told::Blocked(reason)) => {
                    self.is_blocked = true;
                    warn!(
                        reason,
                        "RabbitMQ takes nothing for now; changes wait in the log"
                    );
                    sink.status.set(State::Blocked(reason));
                }
                Some(Told::Unblocked) => {
                    self.is_blocked = false;
                    self.heard_at = Instant::now();
                    sink.flows();
                }
            }
            next = self.outlet.heard();
        }
    }

    /// Takes a confirm, which may come in any order. That a message was returned is told before its
    /// confirm, and ends the session.
    fn take_confirm(&mut self, sink: &mut Sink, tag: u64, is_multiple: bool) {
        self.heard_at = Instant::now();
        let Some(place) = tag.checked_sub(self.oldest_tag) else {
            return;
        };
        let place = usize::try_from(place).unwrap_or(usize::MAX);
        let first = if is_multiple { 0 } else { place };
        let confirmed = self.window.iter_mut().take(place.saturating_add(1));
        for flight in confirmed.skip(first) {
            flight.is_confirmed = true;
        }
        let is_settled =
            |window: &Window<Flight>| window.oldest().is_some_and(|it| it.is_confirmed);
        while is_settled(&self.window)
            && let Some(Flight { shard, place, .. }) = self.window.confirmed()
        {
            self.oldest_tag += 1;
            sink.status.add(Count::Confirmed);
            sink.settled.insert(shard, place);
            self.commits.settle(shard, place);
        }
        if !self.is_blocked {
            sink.flows();
        }
    }

    /// Notes what was split off the shards that are followed.
    pub(super) fn note_births(&self, sink: &mut Sink) {
        sink.births.note(&self.followed);
    }

    fn begin_commits(&mut self, sink: &Sink) {
        self.commits.begin(|shard, place| sink.commit(shard, place));
    }

    /// Commits what has settled and waits for it.
    pub(super) async fn commit(&mut self, sink: &Sink) {
        self.commits
            .finish(|shard, place| sink.commit(shard, place))
            .await;
    }

    /// Publishes as much of the batch at hand as may go now.
    fn publish(&mut self, sink: &Sink) {
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
            let span = traced::begin(event, &sink.config.topology.exchange);
            let sender = span.as_ref().and_then(traced::parent);
            let message = &mut self.message;
            message.set(event, sender, &sink.envelope, sink.config.shape);
            let place = batch.place_at(event).unwrap_or(Place::BEGINNING);
            let (shard, at) = (batch.shard, event.at);
            *done += 1;
            self.outlet
                .publish(&message.routing_key, &message.properties, &message.body);
            if self.window.in_flight() == 0 {
                self.heard_at = Instant::now();
            }
            let flight = Flight {
                shard,
                place,
                at,
                span,
                is_confirmed: false,
            };
            self.window.sent(message.body.len(), flight);
            sink.status.add(Count::Published);
        }
    }

    /// The revision up to which there is nothing left to publish, if that is more than has settled:
    /// what is not published at all, as system data, is nobody's lag.
    pub(super) fn reached(&self, shard: ShardId) -> Option<u64> {
        if self.batch.is_some() || self.window.in_flight() > 0 {
            return None;
        }
        let followed = self.followed.iter().find(|one| one.shard == shard)?;
        let revision = followed.feed.revision(shard).filter(|_| followed.is_free());
        revision.map(Revision::get)
    }

    /// When the oldest message in flight, or the next to be sent, was decided.
    pub(super) fn oldest(&self) -> Option<UnixMillis> {
        let next = || {
            let (batch, done) = self.batch.as_ref()?;
            batch.events.get(*done).map(|event| event.at)
        };
        let oldest = self.window.oldest().map(|flight| flight.at);
        oldest.or_else(next)
    }

    /// Says farewell.
    pub(super) async fn close(self) {
        for flight in self.window.iter() {
            if let Some(span) = &flight.span {
                span.fail("UNCONFIRMED");
            }
        }
        self.outlet.close().await;
    }
}

/// The next events of any shard that may be read, with its index; the one at `turn` is asked first.
async fn next_batch(followed: &mut [Followed], turn: usize) -> (usize, Result<Batch, CdcError>) {
    let count = followed.len().max(1);
    let (before, behind) = followed.split_at_mut(turn % count);
    let first = before.len();
    let rotated = behind.iter_mut().chain(before.iter_mut()).enumerate();
    let free = rotated.filter(|(_, one)| one.is_free());
    let waits: Vec<_> = free
        .map(|(place, one)| {
            let index = (first + place) % count;
            one.feed.next().map(move |batch| (index, batch)).boxed()
        })
        .collect();
    if waits.is_empty() {
        return std::future::pending().await;
    }
    select_all(waits).await.0
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

//! The node's change stream: what `flux_cdc` needs of the shards, and feeds for whoever asks.
//!
//! A watcher pulls. While its connection is full nothing is read for it, and when it is gone its
//! feed is dropped; no commit waits for it. When the node shuts down each watcher gets a last event
//! with its cursor.

mod metered;
mod origin;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use flux_cdc::envelope::to_json;
use flux_cdc::{
    Batch, CdcError, Change, Control, Cursor, CursorError, Envelope, Event, Feed, Origins, Reader,
    Request, Share, Start,
};
use flux_env::{Clock, Instant, ThreadMeter};
use flux_proto::cdc::WatchResponse;
use flux_telemetry::metrics::Entered;
use flux_types::{ClusterId, NodeId, UnixMillis};
use tokio_util::sync::CancellationToken;

use crate::exec::Home;
use crate::metrics::{ChangesMetrics, EventKind};
use crate::peer::{Historian, Peers};
pub(crate) use metered::metered;
use origin::NodeOrigins;

/// Most watchers at one time.
const WATCHERS_MAX: usize = 1024;
/// Longest prefix: longer than any key.
const PREFIX_BYTES_MAX: usize = flux_types::limits::KEY_BYTES_MAX;

/// See the module. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Changes {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    cluster: ClusterId,
    origins: Arc<dyn Origins>,
    envelope: Envelope,
    /// Cancelled when the node wants no new work.
    draining: CancellationToken,
    watchers: AtomicUsize,
    metrics: ChangesMetrics,
    clock: Arc<dyn Clock>,
    share: Arc<Share>,
}

/// What a [`Changes`] is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    /// Whose history it is.
    pub(crate) cluster: ClusterId,
    /// Who tells it.
    pub(crate) node: NodeId,
    /// Whose changes.
    pub(crate) home: Arc<Home>,
    /// How many shards there were when it all began; those beyond were split off.
    pub(crate) founding: u32,
    /// Longest value that is put into an event, in bytes.
    pub(crate) value_bytes_max: usize,
    /// For commits of system data.
    pub(crate) clock: Arc<dyn Clock>,
    /// Of the threads that serve, which readers of changes give way to.
    pub(crate) meters: Vec<ThreadMeter>,
    /// Who is asked for what the log here holds no more, if there are others.
    pub(crate) peers: Option<Arc<Peers>>,
    /// Counts.
    pub(crate) metrics: ChangesMetrics,
    /// Cancelled when the node wants no new work.
    pub(crate) draining: CancellationToken,
}

/// How events are written as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// As server-sent events, each with its cursor as id.
    EventStream,
    /// As lines of JSON.
    Lines,
}

/// Why a watch does not begin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WatchError {
    /// Too many watch already.
    #[error("{WATCHERS_MAX} watchers are connected already")]
    Busy,
    /// The node wants no new work.
    #[error("the node is shutting down")]
    Draining,
    /// The prefix is longer than any key.
    #[error("the prefix is longer than {PREFIX_BYTES_MAX} bytes")]
    LongPrefix,
    /// The change stream refuses.
    #[error(transparent)]
    Cdc(#[from] CdcError),
}

impl From<CursorError> for WatchError {
    fn from(error: CursorError) -> Self {
        Self::Cdc(error.into())
    }
}

/// What a watcher asks for, as texts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Asked {
    /// What keys begin with.
    pub(crate) prefix: String,
    /// Where to begin: a word or a cursor.
    pub(crate) from: String,
    /// A cursor that counts before `from`.
    pub(crate) cursor: String,
}

impl Changes {
    pub(crate) fn new(parts: Parts) -> Self {
        let historian = Historian::new(parts.peers.as_ref(), parts.metrics.clone());
        let clock = Arc::clone(&parts.clock);
        let origins = NodeOrigins::new(parts.home, parts.founding, clock, historian);
        Self {
            inner: Arc::new(Inner {
                cluster: parts.cluster,
                envelope: Envelope::new(parts.cluster, parts.node, parts.value_bytes_max),
                origins: Arc::new(origins),
                draining: parts.draining,
                watchers: AtomicUsize::new(0),
                metrics: parts.metrics,
                share: Arc::new(Share::new(Arc::clone(&parts.clock), parts.meters)),
                clock: parts.clock,
            }),
        }
    }

    /// The shards, for sinks.
    #[cfg(feature = "rabbitmq")]
    pub(crate) fn origins(&self) -> &Arc<dyn Origins> {
        &self.inner.origins
    }

    /// How events look, for sinks.
    #[cfg(feature = "rabbitmq")]
    pub(crate) fn envelope(&self) -> &Envelope {
        &self.inner.envelope
    }

    /// How readers give way to those who serve, for sinks.
    #[cfg(feature = "rabbitmq")]
    pub(crate) fn share(&self) -> &Arc<Share> {
        &self.inner.share
    }

    /// Cancelled when the node wants no new work.
    pub(crate) fn draining(&self) -> &CancellationToken {
        &self.inner.draining
    }

    /// Begins a watch.
    ///
    /// # Errors
    /// See [`WatchError`].
    ///
    /// # Cancellation
    /// Safe to drop.
    pub(crate) async fn watch(&self, asked: &Asked) -> Result<Watcher, WatchError> {
        let inner = &self.inner;
        if inner.draining.is_cancelled() {
            return Err(WatchError::Draining);
        }
        if PREFIX_BYTES_MAX < asked.prefix.len() {
            return Err(WatchError::LongPrefix);
        }
        let start: Start = match asked.cursor.as_str() {
            "" => asked.from.parse()?,
            cursor => Start::At(cursor.parse()?),
        };
        let Some(place) = Place::take(inner) else {
            return Err(WatchError::Busy);
        };
        let request = Request {
            prefix: asked.prefix.clone().into_bytes(),
            ..Request::from(start)
        };
        let feed = Feed::open(inner.cluster, &inner.origins, request).await?;
        inner.metrics.follow(feed.reach());
        Ok(Watcher {
            feed,
            place,
            read: None,
            begun_at: inner.clock.now(),
            reader: inner.share.reader(),
            told_until: UnixMillis::new(inner.clock.unix_millis()),
        })
    }
}

/// One of the places for watchers.
#[derive(Debug)]
struct Place {
    inner: Arc<Inner>,
    _counted: Entered,
}

impl Place {
    fn take(inner: &Arc<Inner>) -> Option<Self> {
        let before = inner.watchers.fetch_add(1, Ordering::Relaxed);
        let place = Self {
            inner: Arc::clone(inner),
            _counted: inner.metrics.watcher(),
        };
        (before < WATCHERS_MAX).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.inner.watchers.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A watch under way.
#[derive(Debug)]
pub(crate) struct Watcher {
    feed: Feed,
    place: Place,
    /// What was read and not told yet. Events become messages one by one: messages are large.
    read: Option<(Batch, usize)>,
    begun_at: Instant,
    /// Its place among the readers of the node.
    reader: Reader,
    /// When what it has told last was decided.
    told_until: UnixMillis,
}

/// What there is to tell a watcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ready {
    /// Events, and there will be more.
    Events,
    /// The node is shutting down; an event with the cursor to go on from.
    Last,
}

impl Watcher {
    /// Returns once there is an event to tell.
    ///
    /// # Errors
    /// If the log cannot be read or a shard has stopped.
    ///
    /// # Cancellation
    /// Safe to drop: nothing is lost.
    pub(crate) async fn ready(&mut self) -> Result<Ready, CdcError> {
        if self.at_hand().is_some() {
            return Ok(Ready::Events);
        }
        let behind = self.behind();
        let (feed, reader) = (&mut self.feed, &mut self.reader);
        let next = async {
            loop {
                let rest = reader.rest(behind);
                if rest.is_zero() {
                    return feed.next().await;
                }
                tokio::time::sleep(rest).await;
            }
        };
        tokio::select! {
            biased;
            () = self.place.inner.draining.cancelled() => {
                self.read = Some((self.feed.last_progress(), 0));
                Ok(Ready::Last)
            }
            batch = next => {
                self.read = Some((batch?, 0));
                Ok(Ready::Events)
            }
        }
    }

    /// The event at hand, if one was read already.
    fn at_hand(&self) -> Option<(&Batch, &Event)> {
        let (batch, at) = self.read.as_ref()?;
        Some((batch, batch.events.get(*at)?))
    }

    /// Goes on to the event behind the one at hand.
    fn step(&mut self) {
        let Some((batch, at)) = &mut self.read else {
            return;
        };
        if let Some(event) = batch.events.get(*at) {
            self.place.inner.metrics.event(kind(&event.change));
            self.told_until = event.at;
        }
        *at += 1;
        if batch.events.len() <= *at {
            self.read = None;
        }
    }

    /// The next event as a message, if it was read already.
    pub(crate) fn message(&mut self) -> Option<WatchResponse> {
        let (batch, event) = self.at_hand()?;
        let cursor = batch.cursor_at(event).to_string();
        let is_control = event.change.is_control();
        let message = self.place.inner.envelope.wrap(event);
        self.step();
        Some(response(cursor, message, is_control))
    }

    /// Writes the next event as JSON, behind its cursor if that is asked for; says whether there was one that was read already.
    pub(crate) fn write_json(&mut self, form: Form, out: &mut Vec<u8>) -> bool {
        let Some((batch, event)) = self.at_hand() else {
            return false;
        };
        let is_control = event.change.is_control();
        if form == Form::EventStream {
            out.extend_from_slice(b"id: ");
            out.extend_from_slice(batch.cursor_at(event).to_string().as_bytes());
            out.extend_from_slice(b"\ndata: ");
        }
        // JSON escapes line ends, so that it is one line.
        if is_control {
            let cursor = batch.cursor_at(event).to_string();
            let message = self.place.inner.envelope.wrap(event);
            let response = response(cursor, message, true);
            let json = response.event.as_ref().map(to_json);
            out.extend_from_slice(&json.unwrap_or_default());
        } else {
            self.place.inner.envelope.write_json(event, out);
        }
        let end: &[u8] = match form {
            Form::EventStream => b"\n\n",
            Form::Lines => b"\n",
        };
        out.extend_from_slice(end);
        self.step();
        true
    }

    /// Notes processor time that was spent on this watch: it may have to rest before it reads on.
    pub(crate) fn spent(&mut self, cost: Duration) {
        let behind = self.behind();
        self.reader.spend(cost, behind);
    }

    /// For how long it has not caught up.
    fn behind(&self) -> Duration {
        let inner = &self.place.inner;
        let now = inner.clock.unix_millis();
        let age = now.saturating_sub(self.told_until.get());
        let watched = inner.clock.now().saturating_since(self.begun_at);
        Duration::from_millis(age).min(watched)
    }
}

/// Control events say their cursor in their data too, for readers that see nothing else.
fn response(
    cursor: String,
    mut event: flux_proto::cdc::CloudEvent,
    is_control: bool,
) -> WatchResponse {
    if let Some(data) = event.data.as_mut().filter(|_| is_control) {
        data.cursor = Some(cursor.clone());
    }
    WatchResponse {
        cursor,
        event: Some(event),
    }
}

/// Whether an error is about a cursor, in one word, and from where changes can be had now.
pub(crate) fn cursor_failure(error: &CdcError) -> Option<(&'static str, Option<&Cursor>)> {
    match error {
        CdcError::Cursor(_) => Some(("malformed", None)),
        CdcError::Compacted { oldest } => Some(("compacted", Some(oldest))),
        CdcError::Diverged { oldest, .. } => Some(("diverged", Some(oldest))),
        CdcError::Behind { .. }
        | CdcError::Log { .. }
        | CdcError::Batch { .. }
        | CdcError::Stopped { .. } => None,
    }
}

const fn kind(change: &Change) -> EventKind {
    match change {
        Change::Control(Control::Gap { .. }) => EventKind::Gap,
        Change::Control(_) => EventKind::Control,
        Change::Item { .. } => EventKind::Snapshot,
        Change::Set { .. }
        | Change::Patch { .. }
        | Change::Delete { .. }
        | Change::Expire { .. }
        | Change::Flush => EventKind::Change,
    }
}

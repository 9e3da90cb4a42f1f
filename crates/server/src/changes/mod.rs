//! The node's change stream: what `flux_cdc` needs of the shards, and feeds for whoever asks.
//!
//! A watcher pulls. While its connection is full nothing is read for it, and when it is gone its
//! feed is dropped; no commit waits for it. When the node shuts down each watcher gets a last event
//! with its cursor.

mod origin;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use flux_cdc::{
    Batch, CdcError, Change, Control, Cursor, CursorError, Envelope, Feed, Origin, Request, Start,
};
use flux_proto::cdc::WatchResponse;
use flux_raft::Shard;
use flux_telemetry::metrics::Entered;
use flux_types::{ClusterId, NodeId};
use tokio_util::sync::CancellationToken;

use crate::metrics::{ChangesMetrics, EventKind};
use origin::ShardOrigin;

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
    origins: Vec<Arc<dyn Origin>>,
    envelope: Envelope,
    /// Cancelled when the node wants no new work.
    draining: CancellationToken,
    watchers: AtomicUsize,
    metrics: ChangesMetrics,
}

/// What a [`Changes`] is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    /// Whose history it is.
    pub(crate) cluster: ClusterId,
    /// Who tells it.
    pub(crate) node: NodeId,
    /// Whose changes.
    pub(crate) shards: Vec<Shard>,
    /// Longest value that is put into an event, in bytes.
    pub(crate) value_bytes_max: usize,
    /// For commits of system data.
    pub(crate) clock: Arc<dyn flux_env::Clock>,
    /// Counts.
    pub(crate) metrics: ChangesMetrics,
    /// Cancelled when the node wants no new work.
    pub(crate) draining: CancellationToken,
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
        let origin = |shard| -> Arc<dyn Origin> {
            Arc::new(ShardOrigin {
                shard,
                clock: Arc::clone(&parts.clock),
            })
        };
        Self {
            inner: Arc::new(Inner {
                cluster: parts.cluster,
                envelope: Envelope::new(parts.cluster, parts.node, parts.value_bytes_max),
                origins: parts.shards.into_iter().map(origin).collect(),
                draining: parts.draining,
                watchers: AtomicUsize::new(0),
                metrics: parts.metrics,
            }),
        }
    }

    /// The shards, for sinks.
    #[cfg(feature = "rabbitmq")]
    pub(crate) fn origins(&self) -> &[Arc<dyn Origin>] {
        &self.inner.origins
    }

    /// How events look, for sinks.
    #[cfg(feature = "rabbitmq")]
    pub(crate) fn envelope(&self) -> &Envelope {
        &self.inner.envelope
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
        Ok(Watcher {
            feed,
            place,
            read: None,
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
}

/// What a watcher is told.
#[derive(Debug)]
pub(crate) enum Told {
    /// An event, and there will be more.
    Event(Box<WatchResponse>),
    /// The node is shutting down; an event with the cursor to go on from.
    Last(Box<WatchResponse>),
}

impl Watcher {
    /// The next event.
    ///
    /// # Errors
    /// If the log cannot be read or a shard has stopped.
    ///
    /// # Cancellation
    /// Safe to drop: nothing is lost.
    pub(crate) async fn next(&mut self) -> Result<Told, CdcError> {
        loop {
            if let Some(event) = self.waiting() {
                return Ok(Told::Event(event));
            }
            let inner = &self.place.inner;
            tokio::select! {
                biased;
                () = inner.draining.cancelled() => {
                    self.read = Some((self.feed.last_progress(), 0));
                    if let Some(last) = self.waiting() {
                        return Ok(Told::Last(last));
                    }
                    let cursor = self.feed.cursor().to_string();
                    return Ok(Told::Last(Box::new(response(cursor, None, true))));
                }
                batch = self.feed.next() => self.read = Some((batch?, 0)),
            }
        }
    }

    /// The next event, if it was read already.
    pub(crate) fn waiting(&mut self) -> Option<Box<WatchResponse>> {
        let (batch, at) = self.read.as_mut()?;
        let Some(event) = batch.events.get(*at) else {
            self.read = None;
            return None;
        };
        *at += 1;
        let inner = &self.place.inner;
        inner.metrics.event(kind(&event.change));
        let cursor = batch.cursor_at(event).to_string();
        let is_control = event.change.is_control();
        let message = inner.envelope.wrap(event);
        Some(Box::new(response(cursor, Some(message), is_control)))
    }
}

/// Control events say their cursor in their data too, for readers that see nothing else.
fn response(
    cursor: String,
    mut event: Option<flux_proto::cdc::CloudEvent>,
    is_control: bool,
) -> WatchResponse {
    let data = event.as_mut().and_then(|event| event.data.as_mut());
    if let Some(data) = data.filter(|_| is_control) {
        data.cursor = Some(cursor.clone());
    }
    WatchResponse { cursor, event }
}

/// Whether an error is about a cursor, in one word, and from where changes can be had now.
pub(crate) fn cursor_failure(error: &CdcError) -> Option<(&'static str, Option<&Cursor>)> {
    match error {
        CdcError::Cursor(_) => Some(("malformed", None)),
        CdcError::Compacted { oldest } => Some(("compacted", Some(oldest))),
        CdcError::Diverged { oldest, .. } => Some(("diverged", Some(oldest))),
        CdcError::Log { .. } | CdcError::Batch { .. } | CdcError::Stopped { .. } => None,
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

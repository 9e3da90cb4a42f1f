//! The sink: publishes every committed change of the shards that are led here.
//!
//! Nothing is queued. A session reads the log from the committed cursor on, publishes as far as the
//! window allows, and commits the cursor behind what has settled. Whatever goes wrong (a nack, a
//! return, a lost connection) ends the session; the next one, after a pause, begins at the cursor
//! again. So events come at least once, in order of revision, and writes never wait for a broker.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flux_env::{Clock, Instant, Rng};
use flux_types::{ClusterId, ShardId, UnixMillis};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tracing::{debug, info, warn};

use super::commits::Committed;
use super::follow::{Births, pin};
use super::session::{End, Session};
use super::status::Count;
use super::{Backoff, SinkConfig, State, Status, Trouble, TroubleKind};
use crate::cursor::{Cursor, Place};
use crate::envelope::Envelope;
use crate::error::CdcError;
use crate::origin::{Origin, Origins};
use crate::share::Share;

/// Name of the cursor in the system data of each shard.
pub const CURSOR_NAME: &[u8] = b"cdc/rabbitmq";
/// How often, and how many times, it is looked whether a shard is led here.
const LED_CHECK: Duration = Duration::from_millis(20);
const LED_CHECKS: u32 = 100;
/// How long a commit of a cursor may take.
const COMMIT_PATIENCE: Duration = Duration::from_secs(5);

/// See the module.
pub struct Sink {
    pub(super) config: SinkConfig,
    pub(super) envelope: Envelope,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) status: Arc<Status>,
    pub(super) share: Arc<Share>,
    /// How far each shard has got: settled, whether or not it is committed.
    pub(super) settled: BTreeMap<ShardId, Place>,
    /// What is known of shards that have no cursor.
    pub(super) births: Births,
    pub(super) cluster: ClusterId,
    pub(super) origins: Arc<dyn Origins>,
    rng: Box<dyn Rng>,
    begun_at: Instant,
}

impl fmt::Debug for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sink")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// What a sink is made of.
#[derive(Debug)]
pub struct SinkParts {
    /// What to do.
    pub config: SinkConfig,
    /// Whose changes they are.
    pub cluster: ClusterId,
    /// All shards with a replica here.
    pub origins: Arc<dyn Origins>,
    /// How events look.
    pub envelope: Envelope,
    /// For the pace.
    pub clock: Arc<dyn Clock>,
    /// How it gives way to those who serve.
    pub share: Arc<Share>,
    /// For the jitter of attempts.
    pub rng: Box<dyn Rng>,
    /// Told what happens.
    pub status: Arc<Status>,
}

impl Sink {
    /// A sink that has not begun.
    #[must_use]
    pub fn new(parts: SinkParts) -> Self {
        Self {
            config: parts.config,
            cluster: parts.cluster,
            origins: parts.origins,
            envelope: parts.envelope,
            begun_at: parts.clock.now(),
            clock: parts.clock,
            share: parts.share,
            rng: parts.rng,
            status: parts.status,
            settled: BTreeMap::new(),
            births: Births::default(),
        }
    }

    /// Publishes until `stop` resolves or the shards stop.
    ///
    /// # Cancellation
    /// Safe to drop: what is not committed is published again by the next run.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        let mut stop = pin!(stop);
        let mut backoff = Backoff::default();
        self.status.set(State::Connecting);
        tokio::select! {
            biased;
            () = &mut stop => return,
            () = self.pin_all() => {}
        }
        loop {
            self.take_in();
            let confirmed = self.status.count(Count::Confirmed);
            let end = self.session(stop.as_mut()).await;
            if self.status.count(Count::Confirmed) > confirmed {
                backoff.succeed();
            }
            let trouble = match end {
                End::Stopped => break,
                // Another set of shards is led here now.
                End::Moved => continue,
                End::Troubled(trouble) => trouble,
            };
            self.status.add(Count::Troubles);
            let wait = backoff.fail(&mut *self.rng);
            self.tell(trouble);
            self.note_lag(None);
            tokio::select! {
                biased;
                () = &mut stop => break,
                () = tokio::time::sleep(wait) => {}
            }
        }
        self.status.set(State::Stopped);
    }

    /// One connection, from its opening to its end.
    async fn session(&mut self, mut stop: Pin<&mut impl Future<Output = ()>>) -> End {
        let opened = tokio::select! {
            biased;
            () = stop.as_mut() => return End::Stopped,
            opened = Session::open(self) => opened,
        };
        let mut session = match opened {
            Ok(session) => session,
            Err(end) => return end,
        };
        let end = session.run(self, stop).await;
        session.note_births(self);
        // What has settled need not be sent again.
        session.commit(self).await;
        session.close().await;
        end
    }

    /// Notes a trouble, and logs it unless it is the one before.
    fn tell(&self, trouble: Trouble) {
        let text = trouble.to_string();
        if self.status.set(State::Troubled(trouble)) {
            warn!(
                broker = %self.config.address,
                problem = text,
                "changes do not reach RabbitMQ; they wait in the log"
            );
        }
    }

    /// Commits how far a shard has got into its own replicated state, within a limit of its own.
    pub(super) fn commit(&self, shard: ShardId, place: Place) -> BoxFuture<'static, Committed> {
        let cursor = Cursor::new(self.cluster).with(shard, place);
        let (origin, status) = (self.origin(shard), Arc::clone(&self.status));
        async move {
            let is_done = match origin {
                Some(origin) => put_cursor(&origin, &cursor, place, &status).await,
                None => false,
            };
            Committed {
                shard,
                place,
                is_done,
            }
        }
        .boxed()
    }

    pub(super) fn origin(&self, shard: ShardId) -> Option<Arc<dyn Origin>> {
        let list = self.origins.list();
        let mut found = list.iter().filter(|origin| origin.log().id() == shard);
        found.next().cloned()
    }

    /// The shards that are led here.
    pub(super) fn led(&self) -> BTreeSet<ShardId> {
        let list = self.origins.list();
        let led = list.iter().filter(|origin| origin.is_leading());
        led.map(|origin| origin.log().id()).collect()
    }

    /// Waits a little for a first shard to be led here, as none is just after a start.
    pub(super) async fn wait_led(&self) {
        for _ in 0..LED_CHECKS {
            if !self.led().is_empty() {
                return;
            }
            tokio::time::sleep(LED_CHECK).await;
        }
    }

    /// Notes how far the sink is behind. `reached` tells the revision up to which there is nothing
    /// left to publish, where a session knows better than the settled places.
    pub(super) fn note_lag(&self, session: Option<&Session>) {
        let mut events = 0;
        for shard in self.led() {
            let Some(origin) = self.origin(shard) else {
                continue;
            };
            let reached = session.and_then(|session| session.reached(shard));
            let reached = reached.or_else(|| self.settled_revision(&origin, shard));
            let reached = reached.or_else(|| self.births.least_of(shard));
            let head = origin.store().revision().get();
            events += head.saturating_sub(reached.unwrap_or(0));
        }
        let now = self.now();
        let oldest = session.and_then(Session::oldest);
        self.status.set_lag(events, oldest, now);
    }

    fn settled_revision(&self, origin: &Arc<dyn Origin>, shard: ShardId) -> Option<u64> {
        match self.saved(origin, shard)?.place(shard)? {
            Place::After { revision, .. } => Some(revision.get()),
            Place::Snapshot => None,
        }
    }

    /// For how long it has been behind, if this is the oldest change that is left to it.
    pub(super) fn behind(&self, oldest: Option<UnixMillis>) -> Duration {
        let now = self.now().get();
        let age = oldest.map_or(0, |oldest| now.saturating_sub(oldest.get()));
        let run = self.clock.now().saturating_since(self.begun_at);
        Duration::from_millis(age).min(run)
    }

    fn now(&self) -> UnixMillis {
        UnixMillis::new(self.clock.unix_millis())
    }

    /// Says that events flow, if that is news.
    pub(super) fn flows(&self) {
        if self.status.set(State::Flowing) {
            info!(broker = %self.config.address, "changes flow to RabbitMQ");
        }
    }
}

/// Whether a cursor is committed now. If not, the older one stands, which only repeats events.
async fn put_cursor(
    origin: &Arc<dyn Origin>,
    cursor: &Cursor,
    place: Place,
    status: &Status,
) -> bool {
    let shard = origin.log().id();
    let name = Bytes::from_static(CURSOR_NAME);
    let put = origin.put_system(name, Some(Bytes::from(cursor.encode())));
    match tokio::time::timeout(COMMIT_PATIENCE, put).await {
        Ok(Ok(())) => {
            status.add(Count::Commits);
            pin(origin, place);
            true
        }
        Ok(Err(error)) => {
            debug!(shard = shard.get(), %error, "a cursor was not committed");
            false
        }
        Err(_) => {
            debug!(shard = shard.get(), "a cursor was not committed in time");
            false
        }
    }
}

/// How a session ends when changes cannot be read.
pub(super) fn ended(error: CdcError) -> End {
    if matches!(error, CdcError::Stopped { .. }) {
        return End::Stopped;
    }
    End::Troubled(Trouble::new(TroubleKind::Source, error.to_string()))
}

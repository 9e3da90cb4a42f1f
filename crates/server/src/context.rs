//! What the parts of a node share: settings, clocks, counters, and the lists of who is connected.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use flux_env::{Clock, Instant};
use flux_log::Identity;
use parking_lot::RwLock;
use tokio::sync::Notify;

use crate::clients::Clients;
use crate::config::Config;
use crate::exec::{Executor, Home};
use crate::metrics::Metrics;
use crate::peer::Peers;
use crate::ports::Addresses;
use crate::statistics::Statistics;
use crate::topology::TopologyHandle;

/// Shared by everything that runs on a node.
#[derive(Debug)]
pub(crate) struct Context {
    /// As the node was started.
    pub(crate) config: Config,
    pub(crate) addresses: Addresses,
    pub(crate) identity: Identity,
    /// Who leads, who votes and where everybody is.
    pub(crate) topology: TopologyHandle,
    /// Other nodes; none if this one is alone.
    pub(crate) peers: Option<Arc<Peers>>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) home: Arc<Home>,
    pub(crate) log: flux_log::Log,
    pub(crate) clients: Clients,
    pub(crate) metrics: Metrics,
    pub(crate) switches: Switches,
    pub(crate) pause: Pause,
    pub(crate) lookups: Lookups,
    pub(crate) statistics: Statistics,
    pub(crate) started_at: Instant,
    /// Whether the node is shutting down and wants no new work.
    pub(crate) is_draining: AtomicBool,
}

/// What `CONFIG SET` can change while the node runs.
#[derive(Debug)]
pub(crate) struct Switches {
    password: RwLock<Arc<str>>,
    /// Milliseconds; 0: never.
    idle_timeout_millis: AtomicU64,
    connections_max: AtomicUsize,
    max_memory: AtomicU64,
}

impl Switches {
    pub(crate) fn new(config: &Config) -> Self {
        let idle = u64::try_from(config.idle_timeout.as_millis()).unwrap_or(u64::MAX);
        Self {
            password: RwLock::new(Arc::from(config.password.as_str())),
            idle_timeout_millis: AtomicU64::new(idle),
            connections_max: AtomicUsize::new(config.connections_max),
            max_memory: AtomicU64::new(config.max_memory),
        }
    }

    /// What clients must give; empty: nothing.
    pub(crate) fn password(&self) -> Arc<str> {
        Arc::clone(&self.password.read())
    }

    pub(crate) fn set_password(&self, password: &str) {
        *self.password.write() = Arc::from(password);
    }

    /// Whether a client must authenticate.
    pub(crate) fn wants_password(&self) -> bool {
        !self.password.read().is_empty()
    }

    /// Whether this is the password. Takes the same time for every wrong one of a length.
    pub(crate) fn is_password(&self, given: &[u8]) -> bool {
        let password = self.password();
        same_bytes(password.as_bytes(), given)
    }

    /// Silence after which a connection is closed.
    pub(crate) fn idle_timeout(&self) -> Option<Duration> {
        match self.idle_timeout_millis.load(Ordering::Relaxed) {
            0 => None,
            millis => Some(Duration::from_millis(millis)),
        }
    }

    pub(crate) fn set_idle_timeout(&self, timeout: Duration) {
        let millis = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        self.idle_timeout_millis.store(millis, Ordering::Relaxed);
    }

    pub(crate) fn connections_max(&self) -> usize {
        self.connections_max.load(Ordering::Relaxed)
    }

    pub(crate) fn set_connections_max(&self, count: usize) {
        self.connections_max.store(count, Ordering::Relaxed);
    }

    /// Bytes of data of all shards after which writes are refused; 0: no limit.
    pub(crate) fn max_memory(&self) -> u64 {
        self.max_memory.load(Ordering::Relaxed)
    }

    pub(crate) fn set_max_memory(&self, bytes: u64) {
        self.max_memory.store(bytes, Ordering::Relaxed);
    }
}

/// Compares without stopping at the first difference, so that the time taken tells nothing but
/// whether the lengths differ.
pub(crate) fn same_bytes(left: &[u8], right: &[u8]) -> bool {
    if left.len() != right.len() {
        return false;
    }
    let difference = left
        .iter()
        .zip(right)
        .fold(0_u8, |difference, (left, right)| {
            std::hint::black_box(difference | (left ^ right))
        });
    difference == 0
}

/// CLIENT PAUSE: until when commands of clients are held back.
#[derive(Debug, Default)]
pub(crate) struct Pause {
    /// Nanoseconds of the boot clock; 0: no pause.
    until_nanos: AtomicU64,
    holds_reads: AtomicBool,
    changed: Notify,
}

impl Pause {
    /// Holds back writes, or everything, until `until`.
    pub(crate) fn begin(&self, until: Instant, holds_reads: bool) {
        self.holds_reads.store(holds_reads, Ordering::SeqCst);
        self.until_nanos.store(until.as_nanos(), Ordering::SeqCst);
        self.changed.notify_waiters();
    }

    /// Lets everything go on.
    pub(crate) fn end(&self) {
        self.until_nanos.store(0, Ordering::SeqCst);
        self.changed.notify_waiters();
    }

    /// Whether a pause may be on. One load: commands ask it one by one.
    pub(crate) fn may_hold(&self) -> bool {
        self.until_nanos.load(Ordering::Relaxed) != 0
    }

    /// Waits while a pause holds this kind of command back.
    ///
    /// # Cancellation
    /// Safe to drop.
    pub(crate) async fn wait(&self, is_write: bool, clock: &dyn Clock) {
        loop {
            let changed = self.changed.notified();
            let mut changed = std::pin::pin!(changed);
            changed.as_mut().enable();
            let until = Instant::from_nanos(self.until_nanos.load(Ordering::SeqCst));
            let left = until.saturating_since(clock.now());
            let is_held = is_write || self.holds_reads.load(Ordering::SeqCst);
            if left.is_zero() || !is_held {
                if left.is_zero() {
                    // Over: back to the cheap path, unless another pause has begun meanwhile.
                    let _ = self
                        .until_nanos
                        .compare_exchange(until.as_nanos(), 0, Ordering::SeqCst, Ordering::SeqCst)
                        .is_ok();
                }
                return;
            }
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep(left) => {}
            }
        }
    }
}

/// GETs that found their key, and that did not, of all sessions.
#[derive(Debug, Default)]
pub(crate) struct Lookups {
    hits: AtomicU64,
    misses: AtomicU64,
}

impl Lookups {
    /// Hits and misses.
    pub(crate) fn read(&self) -> (u64, u64) {
        (
            self.hits.load(Ordering::Relaxed),
            self.misses.load(Ordering::Relaxed),
        )
    }
}

/// The same of one session's turn, so that the shared counters are touched once a turn.
#[derive(Debug, Default)]
pub(crate) struct Hits {
    hits: u64,
    misses: u64,
}

impl Hits {
    pub(crate) const fn note(&mut self, is_hit: bool) {
        if is_hit {
            self.hits += 1;
        } else {
            self.misses += 1;
        }
    }

    pub(crate) fn flush(&mut self, lookups: &Lookups) {
        if self.hits > 0 {
            lookups.hits.fetch_add(self.hits, Ordering::Relaxed);
        }
        if self.misses > 0 {
            lookups.misses.fetch_add(self.misses, Ordering::Relaxed);
        }
        *self = Self::default();
    }
}

impl Context {
    /// Milliseconds of the node's clock.
    pub(crate) fn now_millis(&self) -> u64 {
        self.clock.unix_millis()
    }

    /// Time since the node was started.
    pub(crate) fn uptime(&self) -> Duration {
        self.clock.now().saturating_since(self.started_at)
    }
}

/// What a session is given: the node, and the ways from its thread to the shards.
#[derive(Clone, Debug)]
pub(crate) struct SessionContext {
    pub(crate) node: Arc<Context>,
    pub(crate) executor: Executor,
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use flux_env::SimClock;

    use super::*;

    #[test]
    fn only_the_same_bytes_are_the_password() {
        let switches = Switches::new(&Config {
            password: "secret".to_owned(),
            ..Config::default()
        });
        assert!(switches.is_password(b"secret"));
        for wrong in [&b""[..], b"secre", b"secrets", b"Secret", b"secreT"] {
            assert!(!switches.is_password(wrong));
        }
        switches.set_password("");
        assert!(!switches.wants_password());
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_of_writes_lets_reads_pass_and_ends_early_when_told() {
        let clock = Arc::new(SimClock::new(0));
        let pause = Arc::new(Pause::default());
        assert!(!pause.may_hold());
        pause.begin(clock.now() + Duration::from_secs(60), false);
        assert!(pause.may_hold());
        pause.wait(false, &*clock).await;
        let writer = tokio::spawn({
            let (pause, clock) = (Arc::clone(&pause), Arc::clone(&clock));
            async move { pause.wait(true, &*clock).await }
        });
        tokio::task::yield_now().await;
        assert!(!writer.is_finished());
        pause.end();
        writer.await.unwrap();
        assert!(!pause.may_hold());
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_ends_by_itself() {
        let clock = Arc::new(SimClock::new(0));
        let pause = Pause::default();
        pause.begin(clock.now() + Duration::from_millis(10), true);
        clock.advance(Duration::from_millis(10));
        pause.wait(true, &*clock).await;
        assert!(!pause.may_hold());
    }
}

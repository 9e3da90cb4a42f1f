//! The threads that carry connections and shards: one current-thread runtime for each core.
//!
//! A shard's proposer and consensus live on one of them, beside the connections they serve, so
//! that a command on the shard's own thread never waits for a wake across threads
//! (`docs/design/`, write path). Nothing that blocks may run here.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

/// How long the end of a runtime waits for blocking work that was begun on it.
const BLOCKING_GRACE: Duration = Duration::from_secs(5);

/// Tasks polled between two looks at the sockets. Larger than tokio's 61, so that a batch holds
/// what more connections have sent.
const EVENT_INTERVAL: u32 = 127;

/// All cores of a node. Dropping them ends their tasks wherever they are.
#[derive(Debug)]
pub(crate) struct Cores {
    cores: Vec<Core>,
}

/// One thread and its runtime.
#[derive(Debug)]
pub(crate) struct Core {
    handle: Handle,
    stop: CancellationToken,
    thread: Option<thread::JoinHandle<()>>,
    sessions: Arc<AtomicUsize>,
}

/// One session counted on a core, until it is dropped.
#[derive(Debug)]
pub(crate) struct Seat(Arc<AtomicUsize>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Cores {
    /// Starts `count` threads.
    ///
    /// # Errors
    /// If the machine refuses a thread or a runtime.
    pub(crate) fn start(count: usize) -> std::io::Result<Self> {
        let cores = (0..count.max(1))
            .map(Core::start)
            .collect::<std::io::Result<_>>()?;
        Ok(Self { cores })
    }

    /// Number of cores; at least one.
    pub(crate) fn count(&self) -> usize {
        self.cores.len()
    }

    /// The core on which a shard lives.
    pub(crate) fn of_shard(&self, shard: u32) -> usize {
        shard as usize % self.cores.len()
    }

    /// Where to spawn on a core.
    ///
    /// # Panics
    /// If there is no such core.
    pub(crate) fn handle(&self, core: usize) -> &Handle {
        let core = self
            .cores
            .get(core)
            .expect("cores are addressed below their count");
        &core.handle
    }

    /// Picks the core with the fewest sessions and takes a seat there.
    pub(crate) fn seat(&self) -> (usize, Seat) {
        let load = |core: &Core| core.sessions.load(Ordering::Relaxed);
        let (index, core) = self
            .cores
            .iter()
            .enumerate()
            .min_by_key(|(_, core)| load(core))
            .expect("there is at least one core");
        core.sessions.fetch_add(1, Ordering::Relaxed);
        (index, Seat(Arc::clone(&core.sessions)))
    }

    /// Ends all runtimes and waits for their threads. What runs there is dropped.
    pub(crate) fn stop(&mut self) {
        for core in &self.cores {
            core.stop.cancel();
        }
        for core in &mut self.cores {
            if let Some(thread) = core.thread.take()
                && thread.join().is_err()
            {
                tracing::error!("a core thread ended by a panic");
            }
        }
    }
}

impl Drop for Cores {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Core {
    fn start(index: usize) -> std::io::Result<Self> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .event_interval(EVENT_INTERVAL)
            .build()?;
        let handle = runtime.handle().clone();
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let thread = thread::Builder::new()
            .name(format!("flux-core-{index}"))
            .spawn(move || {
                runtime.block_on(stopped.cancelled());
                runtime.shutdown_timeout(BLOCKING_GRACE);
            })?;
        Ok(Self {
            handle,
            stop,
            thread: Some(thread),
            sessions: Arc::new(AtomicUsize::new(0)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_go_where_the_fewest_are() {
        let cores = Cores::start(2).unwrap();
        let (first, seat) = cores.seat();
        let (second, _held) = cores.seat();
        assert_ne!(first, second);
        drop(seat);
        assert_eq!(cores.seat().0, first);
        assert_eq!(cores.of_shard(3), 1);
    }

    #[test]
    fn dropping_the_cores_drops_their_tasks() {
        let cores = Cores::start(1).unwrap();
        let held = Arc::new(());
        let inside = Arc::clone(&held);
        cores.handle(0).spawn(async move {
            std::future::pending::<()>().await;
            drop(inside);
        });
        drop(cores);
        assert_eq!(Arc::strong_count(&held), 1);
    }
}

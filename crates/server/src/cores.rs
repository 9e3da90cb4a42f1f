//! The threads that carry connections and shards: one current-thread runtime for each core.
//!
//! A shard's proposer and consensus live on one of them, beside the connections they serve, so
//! that a command on the shard's own thread never waits for a wake across threads
//! (`docs/design/`, write path). Nothing that blocks may run here.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use flux_env::ThreadMeter;
use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

/// How long the end of a runtime waits for blocking work that was begun on it.
const BLOCKING_GRACE: Duration = Duration::from_secs(5);

/// Tasks polled between two looks at the sockets. Larger than tokio's 61, so that a batch holds
/// what more connections have sent.
const EVENT_INTERVAL: u32 = 127;

/// The threads of a node. Dropping them ends their tasks wherever they are; a task of theirs must
/// therefore not hold them, but only the [`Places`].
#[derive(Debug)]
pub(crate) struct Cores {
    places: Arc<Places>,
    stop: CancellationToken,
    threads: Vec<thread::JoinHandle<()>>,
    meters: Vec<ThreadMeter>,
}

/// Where to spawn on each core.
#[derive(Debug)]
pub(crate) struct Places(Vec<Place>);

#[derive(Debug)]
struct Place {
    handle: Handle,
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

impl Places {
    /// Number of cores; at least one.
    pub(crate) const fn count(&self) -> usize {
        self.0.len()
    }

    /// The core on which a shard lives.
    pub(crate) const fn of_shard(&self, shard: u32) -> usize {
        shard as usize % self.0.len()
    }

    /// Where to spawn on a core.
    ///
    /// # Panics
    /// If there is no such core.
    pub(crate) fn handle(&self, core: usize) -> &Handle {
        let place = self.0.get(core);
        &place.expect("cores are addressed below their count").handle
    }

    /// Picks the core with the fewest sessions and takes a seat there.
    pub(crate) fn seat(&self) -> (usize, Seat) {
        let load = |place: &Place| place.sessions.load(Ordering::Relaxed);
        let (index, place) = self
            .0
            .iter()
            .enumerate()
            .min_by_key(|(_, place)| load(place))
            .expect("there is at least one core");
        place.sessions.fetch_add(1, Ordering::Relaxed);
        (index, Seat(Arc::clone(&place.sessions)))
    }
}

impl Cores {
    /// Starts `count` threads, at least one.
    ///
    /// # Errors
    /// If the machine refuses a thread or a runtime.
    pub(crate) fn start(count: usize) -> std::io::Result<Self> {
        let stop = CancellationToken::new();
        let mut places = Vec::new();
        let mut threads = Vec::new();
        let (told, meters) = mpsc::channel();
        for index in 0..count.max(1) {
            let runtime = Builder::new_current_thread()
                .enable_all()
                .event_interval(EVENT_INTERVAL)
                .build()?;
            places.push(Place {
                handle: runtime.handle().clone(),
                sessions: Arc::new(AtomicUsize::new(0)),
            });
            let stopped = stop.clone();
            let thread = thread::Builder::new().name(format!("flux-core-{index}"));
            let told = told.clone();
            threads.push(thread.spawn(move || {
                // Nobody listens any more if another thread could not be started.
                drop(told.send(ThreadMeter::of_this_thread()));
                drop(told);
                runtime.block_on(stopped.cancelled());
                runtime.shutdown_timeout(BLOCKING_GRACE);
            })?);
        }
        drop(told);
        // On a machine that keeps no account of its threads nobody can give way to them.
        let meters = meters.into_iter().filter_map(Result::ok).collect();
        Ok(Self {
            places: Arc::new(Places(places)),
            stop,
            threads,
            meters,
        })
    }

    /// Hands out what tells how long these threads have run and waited, to the first that asks.
    pub(crate) fn take_meters(&mut self) -> Vec<ThreadMeter> {
        std::mem::take(&mut self.meters)
    }

    /// Where to spawn.
    pub(crate) const fn places(&self) -> &Arc<Places> {
        &self.places
    }
}

impl Drop for Cores {
    fn drop(&mut self) {
        self.stop.cancel();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a core thread ended by a panic");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_go_where_the_fewest_are() {
        let cores = Cores::start(2).unwrap();
        let places = cores.places();
        let (first, seat) = places.seat();
        let (second, _held) = places.seat();
        assert_ne!(first, second);
        drop(seat);
        assert_eq!(places.seat().0, first);
        assert_eq!(places.of_shard(3), 1);
    }

    #[test]
    fn each_core_tells_how_long_it_has_run() {
        let mut cores = Cores::start(2).unwrap();
        let meters = cores.take_meters();
        assert_eq!(meters.len(), 2);
        assert!(meters.iter().all(|meter| meter.read().is_ok()));
    }

    #[test]
    fn dropping_the_cores_drops_their_tasks() {
        let cores = Cores::start(1).unwrap();
        let held = Arc::new(());
        let inside = Arc::clone(&held);
        cores.places().handle(0).spawn(async move {
            std::future::pending::<()>().await;
            drop(inside);
        });
        drop(cores);
        assert_eq!(Arc::strong_count(&held), 1);
    }
}

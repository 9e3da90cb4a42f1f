//! The SDK against real nodes that are stopped, restarted and killed under it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use flux_client::{Client, Config, Error, Outcome};
use parking_lot::Mutex;
use tokio::runtime::Runtime;

use super::FAILOVER;
use super::nodes::Nodes;
use crate::harness::wait_until;

const CALLERS: u64 = 8;
/// Keys of all shards.
const KEYS: u64 = 40;

/// What callers have counted, and what they were told.
#[derive(Default)]
struct Tally {
    done: AtomicU64,
    unknown: AtomicU64,
    not_done: AtomicU64,
    problems: Mutex<Vec<String>>,
}

impl Tally {
    fn note(&self, result: Result<i64, Error>) {
        let error = match result {
            Ok(_) => {
                self.done.fetch_add(1, Ordering::Relaxed);
                return;
            }
            Err(error) => error,
        };
        self.problems.lock().push(error.to_string());
        match error.outcome() {
            Outcome::Unknown => &self.unknown,
            Outcome::NotDone | Outcome::Done => &self.not_done,
        }
        .fetch_add(1, Ordering::Relaxed);
    }

    fn problems(&self) -> Vec<String> {
        self.problems.lock().clone()
    }

    fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Waits until so many more are done.
    fn wait_done(&self, more: u64) {
        let enough = self.done() + more;
        wait_until("writes go on", || self.done() >= enough);
    }
}

/// Callers that increment, each request with a deadline long enough for a failover.
struct Callers {
    runtime: Runtime,
    client: Client,
    tally: Arc<Tally>,
    stop: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Callers {
    fn start(nodes: &Nodes) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let addresses: Vec<String> = nodes.addresses().iter().map(ToString::to_string).collect();
        let config = Config {
            address: addresses.join(","),
            request_timeout: FAILOVER,
            connect_timeout: Duration::from_secs(2),
            ..Config::default()
        };
        let client = runtime
            .block_on(Client::connect(config))
            .expect("a node is up");
        let tally = Arc::new(Tally::default());
        let stop = Arc::new(AtomicBool::new(false));
        let tasks = (0..CALLERS).map(|caller| {
            let (client, tally, stop) = (client.clone(), Arc::clone(&tally), Arc::clone(&stop));
            runtime.spawn(async move {
                let mut number = caller;
                while !stop.load(Ordering::Relaxed) {
                    number += 1;
                    let key = format!("n{}", number % KEYS);
                    tally.note(client.increment(key, 1).await);
                }
            })
        });
        let tasks = tasks.collect();
        Self {
            runtime,
            client,
            tally,
            stop,
            tasks,
        }
    }

    /// Ends, and answers how often was counted, by what is there.
    fn count(self) -> (u64, Arc<Tally>) {
        self.stop.store(true, Ordering::Relaxed);
        let client = self.client;
        let tasks = self.tasks;
        let sum = self.runtime.block_on(async move {
            for task in tasks {
                task.await.expect("a caller ends");
            }
            let mut sum = 0;
            for key in 0..KEYS {
                let value = client.get(format!("n{key}")).await.expect("a read");
                let text = value.map_or_else(
                    || "0".to_owned(),
                    |value| String::from_utf8_lossy(&value).into_owned(),
                );
                sum += text.parse::<u64>().expect("a number");
            }
            sum
        });
        (sum, self.tally)
    }
}

#[test]
fn a_rolling_restart_under_load_fails_no_request_of_the_sdk() {
    let mut nodes = Nodes::started(3, &[]);
    let callers = Callers::start(&nodes);
    callers.tally.wait_done(300);
    for index in 0..3 {
        nodes.stop(index);
        callers.tally.wait_done(100);
        nodes.spawn(index);
        nodes.wait_node(index);
        callers.tally.wait_done(100);
    }
    let (sum, tally) = callers.count();
    assert_eq!(tally.problems(), Vec::<String>::new());
    assert_eq!(sum, tally.done(), "each is counted once");
}

#[test]
fn a_killed_leader_costs_the_sdk_time_and_no_write_twice() {
    let mut nodes = Nodes::started(3, &["--shards", "2"]);
    let callers = Callers::start(&nodes);
    callers.tally.wait_done(300);
    for _ in 0..2 {
        let leader = nodes.leader(0);
        nodes.kill(leader);
        callers.tally.wait_done(200);
        nodes.spawn(leader);
        nodes.wait_node(leader);
        callers.tally.wait_done(100);
    }
    let (sum, tally) = callers.count();
    let unknown = tally.unknown.load(Ordering::Relaxed);
    assert!(
        tally.done() <= sum && sum <= tally.done() + unknown,
        "{sum} counted, {} done, {unknown} unknown: {:?}",
        tally.done(),
        tally.problems()
    );
    assert_eq!(
        tally.not_done.load(Ordering::Relaxed),
        0,
        "{:?}",
        tally.problems()
    );
}

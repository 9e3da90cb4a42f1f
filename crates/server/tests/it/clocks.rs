//! Three nodes, of which the clock of one goes wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use flux_env::{Clock, Instant, RealClock};
use flux_server::{Config, Given, Node, PeerPort};
use flux_telemetry::{Checks, Registry};
use tempfile::TempDir;

use crate::admin::fetch;
use crate::harness::{PATIENCE, config};

const NODES: usize = 3;
const SHARDS: u32 = 6;

/// The machine's clock, so many milliseconds ahead.
#[derive(Debug)]
struct Ahead {
    real: RealClock,
    millis: AtomicU64,
}

impl Clock for Ahead {
    fn now(&self) -> Instant {
        self.real.now()
    }

    fn unix_millis(&self) -> u64 {
        self.real.unix_millis() + self.millis.load(Ordering::SeqCst)
    }

    fn step_millis(&self) -> i64 {
        0
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(
        tokio::time::timeout(PATIENCE, waiting).await.is_ok(),
        "{what}"
    );
}

#[tokio::test]
async fn rule_6_a_node_whose_clock_is_far_from_the_others_leads_nothing_and_says_so() {
    let reserve = || PeerPort::reserve([127, 0, 0, 1].into()).expect("a free port");
    let ports: Vec<PeerPort> = std::iter::repeat_with(reserve).take(NODES).collect();
    let join: Vec<String> = ports
        .iter()
        .map(|port| port.address().to_string())
        .collect();
    let folders: Vec<TempDir> = (0..NODES)
        .map(|_| tempfile::tempdir().expect("a folder"))
        .collect();
    let clocks: Vec<Arc<Ahead>> = (0..NODES)
        .map(|_| {
            Arc::new(Ahead {
                real: RealClock::new(),
                millis: AtomicU64::new(0),
            })
        })
        .collect();
    let starting = (1..).zip(ports).zip(&folders).zip(&clocks);
    let starting = starting.map(|(((number, port), folder), clock)| {
        let config = Config {
            node_id: number,
            join: join.clone(),
            shards: Some(SHARDS),
            threads: 1,
            ..config(folder.path())
        };
        let given = Given {
            clock: Arc::clone(clock) as Arc<dyn Clock>,
            peer_port: Some(port),
        };
        async move { Node::start_given(given, config, &Registry::new(), &Checks::new()).await }
    });
    let nodes = futures_util::future::try_join_all(starting).await;
    let nodes = nodes.expect("they form a cluster");
    for node in &nodes {
        node.wait_ready(PATIENCE).await.expect("it serves");
    }
    let led = |at: usize| nodes[at].leaderships().count();
    let leader = (0..NODES).max_by_key(|at| led(*at)).expect("three");
    assert!(0 < led(leader));
    let report = fetch(nodes[leader].addresses().admin, "/readyz?verbose").await;
    assert!(
        report.1.contains("[+]clock ok: within 500 ms"),
        "{report:?}"
    );

    clocks[leader].millis.store(9_000, Ordering::SeqCst);
    until("the others lead all shards", || {
        let others = (0..NODES).filter(|at| *at != leader).map(led);
        led(leader) == 0 && others.sum::<usize>() == SHARDS as usize
    })
    .await;
    let admin = nodes[leader].addresses().admin;
    let (head, report) = fetch(admin, "/readyz?verbose").await;
    assert!(
        head.starts_with("HTTP/1.1 200"),
        "it serves all the same: {head}"
    );
    let line = report.lines().find(|line| line.contains("clock"));
    let line = line.expect("the clock is told");
    assert!(line.contains("ahead of a majority"), "{line}");
    let (_, metrics) = fetch(admin, "/metrics").await;
    let ahead = metrics
        .lines()
        .find_map(|line| line.strip_prefix("flux_raft_clock_ahead_seconds "));
    let ahead: f64 = ahead.expect("a gauge").parse().expect("a number");
    assert!((8.0..10.0).contains(&ahead), "{ahead}");
    for node in nodes {
        node.kill().await;
    }
}

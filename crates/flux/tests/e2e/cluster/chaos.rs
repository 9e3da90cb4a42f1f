//! Random failures for a while: kills, pauses, all killed at once, and networks that are cut in
//! parts, under load and judged. The length is [`SECONDS`] seconds, or what `FLUX_CHAOS_SECONDS` says;
//! the seed is printed and can be given as `FLUX_CHAOS_SEED`.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use flux_history::Demands;
use rustix::process::Signal;

use super::load::Load;
use super::nodes::{Nodes, fixed_port};
use crate::harness::Random;

/// Length of a run in the suite.
const SECONDS: u64 = 20;
/// How long a healed cluster may take to serve everybody.
const HEALING: Duration = Duration::from_secs(30);
const NODES: usize = 3;
/// Where in a connection's first bytes the caller's number is: behind a header of 24 bytes the
/// greeting's magic, version, lane, shard and cluster, then the upper half of its id
/// (`docs/replication.md`).
const NUMBER_AT: usize = 24 + 4 + 2 + 1 + 4 + 8 + 4;

/// The network between the nodes: every connection passes a proxy that knows who calls.
struct Network {
    /// `cuts[from][to]`: nothing passes.
    cuts: Arc<[[AtomicBool; NODES]; NODES]>,
    ports: Vec<u16>,
}

impl Network {
    /// Proxies in front of the peer ports of nodes.
    fn before(targets: Vec<u16>) -> Self {
        let cuts: Arc<[[AtomicBool; NODES]; NODES]> = Arc::default();
        let ports = targets
            .into_iter()
            .enumerate()
            .map(|(to, target)| {
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
                let port = listener.local_addr().expect("bound").port();
                let cuts = Arc::clone(&cuts);
                std::thread::spawn(move || {
                    for stream in listener.incoming().flatten() {
                        let cuts = Arc::clone(&cuts);
                        std::thread::spawn(move || carry(stream, to, target, &cuts));
                    }
                });
                port
            })
            .collect();
        Self { cuts, ports }
    }

    fn cut(&self, from: usize, to: usize) {
        self.cuts[from][to].store(true, Ordering::SeqCst);
    }

    fn heal(&self) {
        let links = self.cuts.iter().flatten();
        links.for_each(|link| link.store(false, Ordering::SeqCst));
    }
}

/// Carries one connection to its target, for as long as the link is whole: on a cut one bytes
/// stand still, as on a network that loses every packet.
fn carry(mut caller: TcpStream, to: usize, target: u16, cuts: &Arc<[[AtomicBool; NODES]; NODES]>) {
    let mut first = [0; NUMBER_AT + 4];
    if caller.read_exact(&mut first).is_err() {
        return;
    }
    let number = first
        .last_chunk::<4>()
        .map_or(0, |bytes| u32::from_le_bytes(*bytes));
    let Some(from) = (number as usize)
        .checked_sub(1)
        .filter(|from| *from < NODES)
    else {
        return;
    };
    let Ok(mut called) = TcpStream::connect((Ipv4Addr::LOCALHOST, target)) else {
        return;
    };
    // A node reaches itself whatever is cut.
    let way = |from: usize, to: usize| {
        let cuts = Arc::clone(cuts);
        move || from != to && cuts[from][to].load(Ordering::SeqCst)
    };
    let (there, back) = (way(from, to), way(to, from));
    let (Ok(from_called), Ok(to_caller)) = (called.try_clone(), caller.try_clone()) else {
        return;
    };
    std::thread::spawn(move || copy(from_called, to_caller, &back));
    while there() {
        std::thread::park_timeout(Duration::from_millis(5));
    }
    if called.write_all(&first).is_ok() {
        copy(caller, called, &there);
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream, is_cut: &dyn Fn() -> bool) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(count) => count,
        };
        while is_cut() {
            std::thread::park_timeout(Duration::from_millis(5));
        }
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    // Both ways end together.
    drop(from.shutdown(std::net::Shutdown::Both));
    drop(to.shutdown(std::net::Shutdown::Both));
}

/// Any of the nodes.
fn any_node(random: &mut Random) -> usize {
    usize::try_from(random.below(NODES as u64)).unwrap_or(0)
}

fn number_of(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// One failure and its end.
fn fail(random: &mut Random, nodes: &mut Nodes, network: &Network) -> &'static str {
    let pause = |random: &mut Random, most: u64| {
        let end = Instant::now() + Duration::from_millis(200 + random.below(most));
        while Instant::now() < end {
            std::thread::park_timeout(end.saturating_duration_since(Instant::now()));
        }
    };
    match random.below(6) {
        0 => {
            let leader = nodes.leader(0);
            nodes.kill(leader);
            pause(random, 1500);
            nodes.spawn(leader);
            nodes.wait_node(leader);
            "a leader killed"
        }
        1 => {
            let node = any_node(random);
            nodes.kill(node);
            pause(random, 500);
            nodes.spawn(node);
            nodes.wait_node(node);
            "a node killed"
        }
        2 => {
            let leader = nodes.leader(0);
            nodes.process(leader).signal(Signal::STOP);
            pause(random, 2000);
            nodes.process(leader).signal(Signal::CONT);
            "a leader paused"
        }
        3 => {
            for node in 0..NODES {
                nodes.process(node).signal(Signal::KILL);
            }
            for node in 0..NODES {
                nodes.kill(node);
            }
            for node in 0..NODES {
                nodes.spawn(node);
            }
            nodes.wait_ready();
            "all killed at once"
        }
        4 => {
            let leader = nodes.leader(0);
            for other in (0..NODES).filter(|other| *other != leader) {
                network.cut(leader, other);
                network.cut(other, leader);
            }
            pause(random, 2000);
            network.heal();
            "a leader cut off"
        }
        _ => {
            let (from, to) = (any_node(random), any_node(random));
            network.cut(from, to);
            pause(random, 2000);
            network.heal();
            "one way of a link cut"
        }
    }
}

#[test]
fn whatever_fails_nothing_acknowledged_is_lost_and_nothing_stale_is_read() {
    let seconds = number_of("FLUX_CHAOS_SECONDS").unwrap_or(SECONDS);
    let seed = number_of("FLUX_CHAOS_SEED").unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        now.map_or(1, |since| {
            u64::from(since.subsec_nanos()) << 20 | since.as_secs() & 0xf_ffff
        })
    });
    eprintln!("FLUX_CHAOS_SEED={seed} FLUX_CHAOS_SECONDS={seconds}");
    let mut random = Random::new(seed);
    let targets: Vec<u16> = (0..NODES).map(|_| fixed_port()).collect();
    let network = Network::before(targets.clone());
    let mut nodes = Nodes::behind(&targets, &network.ports, &["--shards", "2"]);
    for node in 0..NODES {
        nodes.spawn(node);
    }
    nodes.wait_ready();
    let load = Load::start(nodes.addresses(), 6);
    load.wait_done(100, HEALING);
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut failures = Vec::new();
    while Instant::now() < end {
        failures.push(fail(&mut random, &mut nodes, &network));
        load.wait_done(20, HEALING);
    }
    eprintln!("{failures:?}");
    load.wait_done(100, HEALING);
    load.judge(&Demands {
        completed_min: 300,
        values_read_min: 60,
        overlapping_min: 10,
        unknown_percent_max: 20,
    });
    nodes.assert_equal();
}

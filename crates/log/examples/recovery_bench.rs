//! Times an open of a log and a read of everything in it.
//!
//! `cargo run --release -p flux-log --example recovery_bench -- DIR MEGABYTES PAYLOAD_BYTES`
#![expect(clippy::print_stdout, reason = "a benchmark prints")]

use std::sync::Arc;

use bytes::Bytes;
use flux_env::{Clock, RealClock, RealDisk};
use flux_log::{FsyncPolicy, Log, LogConfig, LogEntry, LogId, Seeds};
use flux_types::{ClusterId, LogIndex, NodeId, ShardId, Term, UnixMillis};

fn open(dir: &str, clock: &Arc<RealClock>) -> Log {
    let config = LogConfig {
        fsync: FsyncPolicy::Never,
        ..LogConfig::new(dir, 1)
    };
    let seeds = Seeds {
        cluster: ClusterId::new(1),
        node: NodeId::new(1),
        boot_id: 1,
        draw: Box::new(|| 42),
    };
    let clock = Arc::<RealClock>::clone(clock);
    Log::open(Arc::new(RealDisk), clock, config, seeds)
        .expect("the log opens")
        .0
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let dir = arguments.next().expect("a directory");
    let megabytes: u64 = arguments.next().and_then(|n| n.parse().ok()).unwrap_or(600);
    let payload: usize = arguments
        .next()
        .and_then(|n| n.parse().ok())
        .unwrap_or(10_000);
    let clock = Arc::new(RealClock::new());
    let log = open(&dir, &clock);
    let shard = log.shard(ShardId::new(0));
    let bytes = Bytes::from(vec![7; payload]);
    let mut written = 0;
    let mut index = shard.state().last.map_or(0, |id| id.index.get());
    while written < megabytes * 1_000_000 {
        index += 1;
        let id = LogId {
            term: Term::new(1),
            index: LogIndex::new(index),
        };
        let entry = LogEntry {
            id,
            timestamp: UnixMillis::new(1),
            payload: bytes.clone(),
        };
        let told = Box::new(|result: Result<_, _>| result.expect("a healthy disk"));
        shard.append(vec![entry], told).expect("a healthy disk");
        written += bytes.len() as u64;
    }
    log.close();
    drop((log, shard));
    let begun = clock.now();
    let log = open(&dir, &clock);
    let opened = clock.now();
    let shard = log.shard(ShardId::new(0));
    let (mut from, mut read) = (1, 0);
    while from <= index {
        let entries = shard.entries(LogIndex::new(from), LogIndex::new(index + 1), 1 << 20);
        let entries = entries.expect("a healthy disk");
        from += entries.len() as u64;
        read += entries
            .iter()
            .map(|entry| entry.payload.len() as u64)
            .sum::<u64>();
    }
    let done = clock.now();
    println!("{index} entries, {read} bytes");
    println!("open  {:?}", opened.saturating_since(begun));
    println!("read  {:?}", done.saturating_since(opened));
    log.close();
}

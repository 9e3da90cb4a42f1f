//! What a SET costs through a whole shard: queue, evaluation, openraft, log (`everysec`), apply.
//!
//! Fifty submitters on the shard's own runtime submit 1, 16 or 64 commands at a time and wait for
//! the answers, as fifty connections with a pipeline of that depth would. Prints processor time per
//! operation and per batch, the submitters' own share measured apart.
//!
//! `cargo run --profile dist -p flux-raft --example propose_bench [seconds [depth...]]`
#![expect(clippy::print_stdout, reason = "printing is what it is for")]

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use flux_env::{Clock, RealClock, RealDisk, Rng, SeededRng};
use flux_log::{FsyncPolicy, Log, LogConfig, Seeds};
use flux_raft::{Formation, NoNetwork, Shard, ShardConfig, ShardParts, Submission};
use flux_store::{Store, StoreConfig};
use flux_types::{Answer, ClusterId, Command, NodeId, Reply, Revision, Set, ShardId, WriteCommand};
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::oneshot;
use tokio::task::LocalSet;

const SUBMITTERS: usize = 50;
const KEYS: u64 = 1_000_000;
const KEY_BYTES: usize = 16;
const VALUE: &[u8] = &[b'x'; 64];

/// Processor time of this process so far, in nanoseconds.
fn cpu_nanos() -> u64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

/// Commands whose keys, of 16 bytes, share one buffer, as those read from a connection do.
fn commands(rng: &mut SeededRng, depth: usize) -> Vec<Command> {
    let mut buffer = BytesMut::with_capacity(depth * KEY_BYTES);
    for _ in 0..depth {
        let number = rng.below(KEYS).to_be_bytes();
        buffer.extend_from_slice(b"key:key:");
        buffer.extend_from_slice(&number);
    }
    let buffer = buffer.freeze();
    (0..depth)
        .map(|at| {
            let key = buffer.slice(at * KEY_BYTES..(at + 1) * KEY_BYTES);
            Command::Write(WriteCommand::Set(Set::plain(
                key,
                Bytes::from_static(VALUE),
            )))
        })
        .collect()
}

fn start_log(dir: &std::path::Path, clock: &Arc<dyn Clock>) -> Log {
    let config = LogConfig {
        fsync: FsyncPolicy::EverySecond,
        ..LogConfig::new(dir, 1)
    };
    let mut rng = SeededRng::new(1);
    let seeds = Seeds {
        cluster: ClusterId::new(1),
        node: NodeId::new(1),
        boot_id: 1,
        draw: Box::new(move || rng.next_u64()),
    };
    let disk = Arc::new(RealDisk);
    let opened = Log::open(disk, Arc::clone(clock), config, seeds);
    opened.expect("the log opens").0
}

async fn start_shard(log: Log, clock: &Arc<dyn Clock>) -> Shard {
    let parts = ShardParts {
        id: ShardId::new(0),
        node: NodeId::new(1),
        store: Arc::new(Store::new(StoreConfig::default())),
        log,
        clock: Arc::clone(clock),
        network: Arc::new(NoNetwork),
        forward: None,
        births: None,
        formation: Formation::Found,
        config: ShardConfig {
            snapshot_log_bytes: u64::MAX,
            ..ShardConfig::default()
        },
    };
    let shard = Shard::start(parts).await.expect("the shard starts");
    let deadline = clock.now() + Duration::from_secs(10);
    shard.wait_writable(deadline).await.expect("writable");
    shard
}

/// What a measurement counts.
struct Line {
    operations: u64,
    nanos: u64,
    seconds: f64,
}

/// Runs submitters for a while; `submit` hands over one submission.
async fn measure(
    clock: &Arc<dyn Clock>,
    depth: usize,
    seconds: u64,
    submit: impl Fn(Submission) + Clone + 'static,
) -> Line {
    let operations = Rc::new(Cell::new(0_u64));
    let begun = clock.now();
    let until = begun + Duration::from_secs(seconds);
    let cpu = cpu_nanos();
    let mut tasks = Vec::new();
    for number in 0..SUBMITTERS {
        let operations = Rc::clone(&operations);
        let (clock, submit) = (Arc::clone(clock), submit.clone());
        tasks.push(tokio::task::spawn_local(async move {
            let mut rng = SeededRng::new(number as u64);
            while clock.now() < until {
                let (reply, answers) = oneshot::channel();
                submit(Submission::new(
                    commands(&mut rng, depth),
                    until + Duration::from_secs(10),
                    reply,
                ));
                let answers = answers.await.expect("an answer");
                assert!(answers.iter().all(|answer| answer.reply == Reply::Ok));
                operations.set(operations.get() + answers.len() as u64);
            }
        }));
    }
    for task in tasks {
        task.await.expect("no panic");
    }
    Line {
        operations: operations.get(),
        nanos: cpu_nanos() - cpu,
        seconds: clock.now().saturating_since(begun).as_secs_f64(),
    }
}

/// Answers at once: what is left is the submitters' own cost.
fn answer_at_once(submission: Submission) {
    let ok = Answer {
        reply: Reply::Ok,
        revision: Revision::new(1),
    };
    let answers = vec![ok; submission.commands.len()];
    drop(submission.reply.send(answers));
}

#[expect(clippy::cast_precision_loss, reason = "for a table")]
async fn run(seconds: u64, depths: &[usize]) {
    let dir = tempfile::tempdir().expect("a directory");
    let clock: Arc<dyn Clock> = Arc::new(RealClock::new());
    let log = start_log(dir.path(), &clock);
    let shard = start_shard(log.clone(), &clock).await;
    println!("pipeline  k ops/s  us cpu/op  of it submitters  ops/batch  us cpu/batch");
    for &depth in depths {
        let idle = measure(&clock, depth, 1, answer_at_once).await;
        let own = idle.nanos as f64 / idle.operations as f64 / 1000.0;
        let batches = shard.status().batches;
        let to = shard.clone();
        let submit = move |submission| to.submit(submission).expect("room");
        let line = measure(&clock, depth, seconds, submit).await;
        let batches = (shard.status().batches - batches) as f64;
        let operations = line.operations as f64;
        println!(
            "{depth:8}  {:7.0}  {:9.3}  {own:16.3}  {:9.1}  {:12.2}",
            operations / line.seconds / 1000.0,
            line.nanos as f64 / operations / 1000.0,
            operations / batches,
            line.nanos as f64 / batches / 1000.0,
        );
    }
    shard.shutdown().await;
    log.close();
}

fn main() {
    let mut numbers = std::env::args()
        .skip(1)
        .filter_map(|text| text.parse().ok());
    let seconds = numbers.next().unwrap_or(3);
    let mut depths: Vec<usize> = numbers
        .filter_map(|depth: u64| usize::try_from(depth).ok())
        .collect();
    if depths.is_empty() {
        // The first line warms up: it creates the keys.
        depths = vec![64, 1, 16, 64];
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    LocalSet::new().block_on(&runtime, run(seconds, &depths));
}

//! Times the hot paths of the store in process: evaluate, apply, read; and bytes per key.
//!
//! `cargo run --profile dist -p flux-store --example exec_bench -- [KEYS]` (5,000,000 by default,
//! 16-byte keys, 64-byte values). Prints nanoseconds of processor time per operation and resident memory.
#![expect(clippy::print_stdout, reason = "a program that measures and prints")]

use std::hint::black_box;

use bytes::Bytes;
use flux_store::{BatchView, Lookup, Store, StoreConfig};
use flux_types::{Command, Set, Term, UnixMillis, WriteCommand};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const NOW: UnixMillis = UnixMillis::new(1_700_000_000_000);
const BATCH: usize = 1024;

/// A fixed sequence of numbers (splitmix64).
struct Numbers(u64);

impl Numbers {
    const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

fn key(number: u64) -> Bytes {
    Bytes::from(format!("key:{number:012}"))
}

/// Resident memory of this process, in bytes.
fn resident_bytes() -> u64 {
    let Ok(status) = std::fs::read_to_string("/proc/self/statm") else {
        return 0;
    };
    let pages = status
        .split(' ')
        .nth(1)
        .and_then(|field| field.parse().ok());
    pages.unwrap_or(0_u64) * 4096
}

/// Processor time of this thread, so that other programs disturb less.
struct Instant(u64);

impl Instant {
    fn now() -> Self {
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
        let first = text.split(' ').next().and_then(|field| field.parse().ok());
        Self(first.unwrap_or(0))
    }

    fn nanos(&self) -> u64 {
        Self::now().0 - self.0
    }
}

fn report(name: &str, operations: usize, since: &Instant) {
    let nanos = since.nanos() as f64 / operations as f64;
    println!("{name:<34} {nanos:>8.1} ns/op");
}

fn sets(numbers: impl Iterator<Item = u64>, value: &Bytes) -> Vec<Command> {
    numbers
        .map(|number| Command::Write(WriteCommand::Set(Set::plain(key(number), value.clone()))))
        .collect()
}

/// Evaluates and applies in batches; gives back the nanoseconds of each part.
fn write(store: &Store, commands: &[Command], ahead: usize) -> (u64, u64) {
    let (mut evaluated, mut applied) = (0, 0);
    for chunk in commands.chunks(BATCH) {
        let start = Instant::now();
        let mut evaluation = store.evaluation(NOW, Term::new(1));
        for (index, command) in chunk.iter().enumerate() {
            if ahead != 0 && index % ahead == 0 {
                let end = (index + ahead).min(chunk.len());
                evaluation.prefetch_all(chunk.get(index..end).unwrap_or(&[]));
            }
            black_box(evaluation.command(command));
        }
        let batch = evaluation.finish();
        evaluated += start.nanos();
        let start = Instant::now();
        if let Some(batch) = batch
            && let Ok(view) = BatchView::parse(&batch)
        {
            store.apply(&view);
        }
        applied += start.nanos();
    }
    (evaluated, applied)
}

fn report_write(name: &str, count: usize, (evaluated, applied): (u64, u64)) {
    println!(
        "{name:<34} {:>8.1} ns/op evaluate {:>8.1} ns/op parse and apply",
        evaluated as f64 / count as f64,
        applied as f64 / count as f64
    );
}

/// Reads the keys one by one, and sixteen at a time.
fn read(store: &Store, picked: &[u64]) {
    let keys: Vec<Bytes> = picked.iter().copied().map(key).collect();
    let seen = |found: Lookup<'_>| match found {
        Lookup::Live(entry) => entry.value.len(),
        Lookup::Absent | Lookup::Expired => 0,
    };
    let start = Instant::now();
    for key in &keys {
        black_box(store.get(key, NOW, seen));
    }
    report("GET of random keys", keys.len(), &start);
    let start = Instant::now();
    for chunk in keys.chunks(16) {
        let mut hashes = [store.hash(b""); 16];
        for (hash, key) in hashes.iter_mut().zip(chunk) {
            *hash = store.hash(key);
            store.prefetch(*hash);
        }
        for (hash, _) in hashes.iter().zip(chunk) {
            store.prefetch_entry(*hash);
        }
        for (hash, key) in hashes.iter().zip(chunk) {
            black_box(store.get_hashed(*hash, key, NOW, seen));
        }
    }
    report("GET of random keys, ahead 16", keys.len(), &start);
}

fn main() {
    let count: u64 = std::env::args()
        .nth(1)
        .and_then(|text| text.parse().ok())
        .unwrap_or(5_000_000);
    let store = Store::new(StoreConfig {
        hash_seed: 0x1234_5678,
        ..StoreConfig::default()
    });
    let value = Bytes::from(vec![b'v'; 64]);
    let before = resident_bytes();
    let mut spent = (0, 0);
    let mut number = 0;
    while number < count {
        let end = (number + 4096).min(count);
        let part = write(&store, &sets(number..end, &value), 16);
        spent = (spent.0 + part.0, spent.1 + part.1);
        number = end;
    }
    let keys = usize::try_from(count).unwrap_or(usize::MAX);
    report_write("SET of new keys", keys, spent);
    println!(
        "{:<34} {:>8.1} bytes/key resident, {:.1} accounted",
        "memory",
        (resident_bytes() - before) as f64 / count as f64,
        store.memory_bytes() as f64 / count as f64
    );

    let mut numbers = Numbers(1);
    let operations = 1_000_000;
    let picked: Vec<u64> = (0..operations).map(|_| numbers.next() % count).collect();
    for (name, ahead) in [
        ("SET of random keys", 0),
        ("SET of random keys, ahead 16", 16),
    ] {
        let commands = sets(picked.iter().copied(), &value);
        report_write(name, operations, write(&store, &commands, ahead));
    }
    read(&store, &picked);
    let increment = Command::Write(WriteCommand::Increment {
        key: Bytes::from_static(b"counter"),
        by: 1,
    });
    let commands = vec![increment; operations];
    report_write("INCR of one key", operations, write(&store, &commands, 0));
    let start = Instant::now();
    drop(store);
    println!("{:<34} {:>8.1} ms", "drop", start.nanos() as f64 / 1e6);
}

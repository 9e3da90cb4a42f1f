//! Readers beside the applier: nobody sees half of a group.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use flux_types::{Command, ReadCommand, Reply, ScanPage, Transaction, UnixMillis, WriteCommand};

use super::{bytes, run};
use crate::{Read, Store, StoreConfig};

const KEYS: usize = 5;
const ROUNDS: usize = 3000;

fn keys() -> Vec<Bytes> {
    (0..KEYS).map(|n| Bytes::from(format!("key{n}"))).collect()
}

fn set_all(round: usize) -> Command {
    Command::Write(WriteCommand::SetMany {
        pairs: keys()
            .into_iter()
            .map(|key| (key, Bytes::from(round.to_string())))
            .collect(),
        if_none_exists: false,
    })
}

/// Reads all keys again and again until told to stop; counts the reads.
fn read_whole_groups(store: &Store, stop: &AtomicBool, reads: &AtomicUsize) {
    let get = ReadCommand::GetMany { keys: keys() };
    let exists = ReadCommand::Exists { keys: keys() };
    let list = ReadCommand::Keys {
        pattern: bytes("key*"),
    };
    let now = UnixMillis::new(2000);
    while !stop.load(Ordering::Relaxed) {
        let Read::Reply(Reply::Array(values)) = store.read(&get, now) else {
            panic!("no array");
        };
        let first = &values[0];
        assert!(values.iter().all(|value| value == first), "{values:?}");
        match store.read(&exists, now) {
            Read::Reply(Reply::Integer(0 | 5)) => {}
            other => panic!("{other:?}"),
        }
        match store.read(&list, now) {
            Read::Reply(Reply::Array(found)) => assert!(matches!(found.len(), 0 | KEYS)),
            other => panic!("{other:?}"),
        }
        match store.read(&ReadCommand::Count, now) {
            Read::Reply(Reply::Integer(0 | 5)) => {}
            other => panic!("{other:?}"),
        }
        reads.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn no_reader_sees_half_of_a_group() {
    let store = Arc::new(Store::new(StoreConfig {
        stripes: 16,
        hash_seed: 9,
        ..StoreConfig::default()
    }));
    let stop = AtomicBool::new(false);
    let reads = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| read_whole_groups(&store, &stop, &reads));
        }
        let mut round = 0;
        // On a busy machine the readers may start late; go on until they have read.
        while round < ROUNDS || reads.load(Ordering::Relaxed) < 200 {
            round += 1;
            let commands = match round % 5 {
                // Deleted and written back as one.
                0 => vec![Command::Write(WriteCommand::Transaction(Transaction {
                    watches: Vec::new(),
                    commands: vec![
                        Command::Write(WriteCommand::Delete { keys: keys() }),
                        set_all(round),
                    ],
                }))],
                1 => vec![Command::Write(WriteCommand::Delete { keys: keys() })],
                2 => vec![Command::Write(WriteCommand::Transaction(Transaction {
                    watches: Vec::new(),
                    commands: vec![Command::Write(WriteCommand::Clear), set_all(round)],
                }))],
                _ => vec![set_all(round)],
            };
            run(&store, 1000, &commands);
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(reads.load(Ordering::Relaxed) >= 200);
}

#[test]
fn readers_and_walks_go_on_while_the_table_grows() {
    let store = Arc::new(Store::new(StoreConfig {
        stripes: 4,
        hash_seed: 11,
        ..StoreConfig::default()
    }));
    run(&store, 1000, &[set_all(7)]);
    let stop = AtomicBool::new(false);
    let walks = AtomicUsize::new(0);
    let now = UnixMillis::new(2000);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let mut walk = store.walk();
                let mut loader = store.loader();
                while let Some(block) = walk.next_block(4096).unwrap() {
                    loader.load_block(&block).unwrap();
                }
                assert!(loader.entries() >= 5);
                let page = ReadCommand::Scan(ScanPage {
                    cursor: 0,
                    pattern: Some(bytes("key*")),
                    count: 1_000_000,
                    type_matches: true,
                });
                match store.read(&page, now) {
                    Read::Reply(Reply::Page { keys, .. }) => assert_eq!(keys.len(), KEYS),
                    other => panic!("{other:?}"),
                }
                walks.fetch_add(1, Ordering::Relaxed);
            }
        });
        let mut round = 0_u32;
        while round < 40 || walks.load(Ordering::Relaxed) < 10 {
            round += 1;
            let keys: Vec<Bytes> = (0..500)
                .map(|n| Bytes::from(format!("other{n}.{}", round / 2)))
                .collect();
            let command = if round % 20 > 16 {
                Command::Write(WriteCommand::Delete { keys })
            } else {
                Command::Write(WriteCommand::SetMany {
                    pairs: keys.into_iter().map(|key| (key, bytes("x"))).collect(),
                    if_none_exists: false,
                })
            };
            run(&store, 1000, &[command]);
        }
        stop.store(true, Ordering::Relaxed);
    });
}

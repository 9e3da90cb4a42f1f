//! Tests of scans, walks and the table under them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use flux_types::{
    Command, ReadCommand, Reply, Revision, ScanPage, Set, Term, UnixMillis, WriteCommand,
};
use proptest::prelude::*;

use super::{bytes, run};
use crate::{BatchView, Dropped, Read, Store, StoreConfig, WalkAborted};

const NOW: UnixMillis = UnixMillis::new(1000);

fn store(stripes: usize, seed: u64) -> Arc<Store> {
    Arc::new(Store::new(StoreConfig {
        stripes,
        hash_seed: seed,
        ..StoreConfig::default()
    }))
}

fn key(number: usize) -> Bytes {
    Bytes::from(format!("key:{number}"))
}

fn put(store: &Store, numbers: impl Iterator<Item = usize>) {
    let commands: Vec<Command> = numbers
        .map(|number| Command::Write(WriteCommand::Set(Set::plain(key(number), bytes("v")))))
        .collect();
    run(store, 1000, &commands);
}

fn delete(store: &Store, numbers: impl Iterator<Item = usize>) {
    let keys = numbers.map(key).collect();
    run(
        store,
        1000,
        &[Command::Write(WriteCommand::Delete { keys })],
    );
}

fn page(store: &Store, cursor: u64, count: usize) -> (u64, Vec<Bytes>) {
    let page = ScanPage {
        cursor,
        pattern: None,
        count,
        type_matches: true,
    };
    match store.read(&ReadCommand::Scan(page), NOW) {
        Read::Reply(Reply::Page { cursor, keys }) => (cursor, keys),
        other => panic!("{other:?}"),
    }
}

#[derive(Clone, Copy, Debug)]
enum Change {
    Grow(usize),
    Shrink(usize),
    Page(usize),
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let change = prop_oneof![
        (1..3000_usize).prop_map(Change::Grow),
        (1..3000_usize).prop_map(Change::Shrink),
        (1..80_usize).prop_map(Change::Page),
    ];
    proptest::collection::vec(change, 1..25)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    /// Keys 0..50 stay; thousands of others come and go between the pages.
    #[test]
    fn a_scan_meets_every_key_present_throughout_exactly_once(
        stripe_bits in 0..4_u32,
        seed in any::<u64>(),
        changes in changes(),
    ) {
        let store = store(1 << stripe_bits, seed);
        put(&store, 0..50);
        let (mut extra, mut cursor, mut done) = (50, 0, false);
        let mut met: BTreeMap<Bytes, usize> = BTreeMap::new();
        let mut walk = store.walk();
        let mut blocks = Vec::new();
        let finish = std::iter::repeat_n(Change::Page(500), 100);
        for change in changes.into_iter().chain(finish) {
            match change {
                Change::Grow(count) => {
                    put(&store, extra..extra + count);
                    extra += count;
                }
                Change::Shrink(count) => {
                    let from = extra.saturating_sub(count).max(50);
                    delete(&store, from..extra);
                    extra = from;
                }
                Change::Page(count) => {
                    blocks.extend(walk.next_block(count * 30).unwrap());
                    if !done {
                        let (next, keys) = page(&store, cursor, count);
                        for key in keys {
                            *met.entry(key).or_default() += 1;
                        }
                        cursor = next;
                        done = next == 0;
                    }
                }
            }
        }
        prop_assert!(done);
        while let Some(block) = walk.next_block(100_000).unwrap() {
            blocks.push(block);
        }
        let copy = super::scan::store(2, 1);
        let mut loader = copy.loader();
        for block in &blocks {
            loader.load_block(block).unwrap();
        }
        copy.install(loader, Revision::new(1), NOW);
        for number in 0..50 {
            prop_assert_eq!(met.get(&key(number)), Some(&1));
            prop_assert!(copy.get(&key(number), NOW, |found| matches!(found, crate::Lookup::Live(_))));
        }
    }

    /// Memory and counts follow the contents through growth, spills and shrinking.
    #[test]
    fn totals_are_those_of_the_contents(
        changes in proptest::collection::vec((any::<bool>(), 0..2000_usize, 0..2000_usize), 1..12),
    ) {
        let store = store(1, 5);
        let empty = store.memory_bytes();
        let mut model = BTreeSet::new();
        for (grow, from, count) in changes {
            if grow {
                put(&store, from..from + count);
                model.extend(from..from + count);
            } else {
                delete(&store, from..from + count);
                model.retain(|number| !(from..from + count).contains(number));
            }
            prop_assert_eq!(store.len(), model.len());
            let sizes = model.iter().map(|number| 8 + key(*number).len() as u64 + 1);
            prop_assert_eq!(store.stats().entry_bytes, sizes.sum::<u64>());
            for number in 0..4000 {
                let found = store.get(&key(number), NOW, |f| matches!(f, crate::Lookup::Live(_)));
                prop_assert_eq!(found, model.contains(&number));
            }
        }
        delete(&store, model.into_iter());
        prop_assert_eq!(store.memory_bytes() - empty, store.stats().table_bytes - 64);
        prop_assert_eq!(store.stats().entry_bytes, 0);
    }
}

#[test]
fn a_scan_with_a_pattern_shows_only_what_matches() {
    let store = store(4, 1);
    put(&store, 0..100);
    let page = |pattern: &str, type_matches| {
        let page = ScanPage {
            cursor: 0,
            pattern: Some(bytes(pattern)),
            count: 1000,
            type_matches,
        };
        match store.read(&ReadCommand::Scan(page), NOW) {
            Read::Reply(Reply::Page { cursor: 0, keys }) => keys.len(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(page("key:?", true), 10);
    assert_eq!(page("*", true), 100);
    assert_eq!(page("*", false), 0);
}

#[test]
fn a_scan_inside_a_batch_sees_the_batch() {
    let store = store(4, 1);
    put(&store, 0..200);
    let mut evaluation = store.evaluation(NOW, Term::new(1));
    evaluation.command(&Command::Write(WriteCommand::Delete {
        keys: (0..100).map(key).collect(),
    }));
    for number in 200..300 {
        evaluation.command(&Command::Write(WriteCommand::Set(Set::plain(
            key(number),
            bytes("v"),
        ))));
    }
    let (mut cursor, mut met) = (0, Vec::new());
    loop {
        let page = ScanPage {
            cursor,
            pattern: None,
            count: 10,
            type_matches: true,
        };
        let Reply::Page { cursor: next, keys } = evaluation
            .command(&Command::Read(ReadCommand::Scan(page)))
            .reply
        else {
            panic!("not a page");
        };
        met.extend(keys);
        cursor = next;
        if next == 0 {
            break;
        }
    }
    met.sort();
    let mut expected: Vec<Bytes> = (100..300).map(key).collect();
    expected.sort();
    assert_eq!(met, expected);
    assert_eq!(
        evaluation.command(&Command::Read(ReadCommand::Count)).reply,
        Reply::Integer(200)
    );
}

#[test]
fn an_expired_key_sends_a_scan_through_the_proposer_and_is_not_shown() {
    let store = store(4, 1);
    put(&store, 0..10);
    let expire = Command::Write(WriteCommand::Expire {
        key: key(3),
        expiry: flux_types::Expiry::At(1500),
        condition: flux_types::ExpireCondition::default(),
    });
    run(&store, 1000, &[expire]);
    let scan = ReadCommand::Scan(ScanPage {
        cursor: 0,
        pattern: None,
        count: 1000,
        type_matches: true,
    });
    let keys = ReadCommand::Keys {
        pattern: bytes("*"),
    };
    let later = UnixMillis::new(1500);
    assert_eq!(store.read(&scan, later), Read::Expired);
    assert_eq!(store.read(&keys, later), Read::Expired);
    let replies = run(&store, 1500, &[Command::Read(scan), Command::Read(keys)]);
    let (Reply::Page { keys: page, .. }, Reply::Array(keys)) = (&replies[0], &replies[1]) else {
        panic!("{replies:?}");
    };
    assert_eq!((page.len(), keys.len()), (9, 9));
    assert!(!page.contains(&key(3)));
    assert_eq!((store.len(), store.stats().expired), (9, 1));
}

#[test]
fn random_keys_are_drawn_from_all_keys() {
    let store = store(8, 3);
    let random = ReadCommand::RandomKey;
    assert_eq!(store.read(&random, NOW), Read::Reply(Reply::Nil));
    put(&store, 0..40);
    let mut drawn = BTreeSet::new();
    for _ in 0..2000 {
        match store.read(&random, NOW) {
            Read::Reply(Reply::Bulk(key)) => drawn.insert(key),
            other => panic!("{other:?}"),
        };
    }
    assert_eq!(drawn.len(), 40);
}

#[test]
fn a_random_key_inside_a_batch_is_one_the_batch_left() {
    let store = store(8, 3);
    put(&store, 0..40);
    let delete = Command::Write(WriteCommand::Delete {
        keys: (0..39).map(key).collect(),
    });
    let replies = run(
        &store,
        1000,
        &[delete, Command::Read(ReadCommand::RandomKey)],
    );
    assert_eq!(replies[1], Reply::Bulk(key(39)));
    let set = Command::Write(WriteCommand::Set(Set::plain(bytes("new"), bytes("v"))));
    let replies = run(
        &store,
        1000,
        &[
            Command::Write(WriteCommand::Clear),
            set,
            Command::Read(ReadCommand::RandomKey),
        ],
    );
    assert_eq!(replies[2], Reply::Bulk(bytes("new")));
    let replies = run(
        &store,
        1000,
        &[
            Command::Write(WriteCommand::Clear),
            Command::Read(ReadCommand::RandomKey),
        ],
    );
    assert_eq!(replies[1], Reply::Nil);
}

#[test]
fn installing_a_store_aborts_a_walk() {
    let store = store(4, 1);
    put(&store, 0..100);
    let mut walk = store.walk();
    assert!(walk.next_block(100).unwrap().is_some());
    store.install(store.loader(), Revision::new(7), NOW);
    assert_eq!(walk.next_block(100), Err(WalkAborted));
    assert_eq!((store.len(), store.revision()), (0, Revision::new(7)));
    assert_eq!(store.walk().next_block(100), Ok(None));
}

#[test]
fn a_damaged_block_is_refused() {
    let store = store(1, 1);
    put(&store, 0..3);
    let block = store.walk().next_block(10_000).unwrap().unwrap();
    for len in 0..block.len() {
        assert!(store.loader().load_block(&block[..len]).is_err(), "{len}");
    }
    for (offset, byte) in [(0, 4), (1, 1), (8, 3), (11, 0xff), (15, 0xff)] {
        let mut bad = block.clone();
        bad[offset] = byte;
        assert!(store.loader().load_block(&bad).is_err(), "{offset}");
    }
    let mut long = block.clone();
    long.push(0);
    assert!(store.loader().load_block(&long).is_err());
    let mut loader = store.loader();
    loader.load_block(&block).unwrap();
    assert_eq!(loader.entries(), 3);
}

#[test]
fn a_cleared_table_goes_to_the_reclaimer() {
    let store = store(4, 1);
    let (sender, receiver) = std::sync::mpsc::sync_channel::<Dropped>(4);
    store.set_reclaimer(move |dropped| drop(sender.try_send(dropped)));
    put(&store, 0..100);
    run(&store, 1000, &[Command::Write(WriteCommand::Clear)]);
    assert!(receiver.try_recv().is_ok());
    assert!(store.is_empty());
}

#[test]
fn a_clear_applied_again_leaves_what_came_after_it() {
    let store = store(4, 1);
    put(&store, 0..10);
    let mut evaluation = store.evaluation(NOW, Term::new(1));
    evaluation.command(&Command::Write(WriteCommand::Clear));
    let clear = evaluation.finish().unwrap();
    let clear = BatchView::parse(&clear).unwrap();
    store.apply(&clear);
    put(&store, 20..30);
    let expire = Command::Write(WriteCommand::Expire {
        key: key(25),
        expiry: flux_types::Expiry::At(2000),
        condition: flux_types::ExpireCondition::default(),
    });
    run(&store, 1000, &[expire]);
    let digest = store.digest();
    store.apply(&clear);
    assert_eq!((store.len(), store.digest()), (10, digest));
    assert_eq!(store.due(UnixMillis::new(2000), 10), [key(25)]);
}

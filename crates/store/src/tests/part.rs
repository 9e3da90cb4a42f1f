//! Parting a store: a part is walked over, and taken out.

use std::collections::BTreeSet;
use std::sync::Arc;

use flux_types::{
    Command, Expiry, Reply, RequestId, Revision, SessionId, Set, UnixMillis, WriteCommand,
};

use super::{bytes, run};
use crate::{About, KeyFilter, Store, StoreConfig, block_entries};

const AT: u64 = 1_000_000_000;

fn set(key: &str, expiry: Expiry) -> Command {
    Command::Write(WriteCommand::Set(Set {
        expiry,
        ..Set::plain(bytes(key), bytes("value"))
    }))
}

fn filled() -> Arc<Store> {
    let store = Arc::new(Store::new(StoreConfig::default()));
    for number in 0..3000 {
        let expiry = if number % 3 == 0 {
            Expiry::In(60_000)
        } else {
            Expiry::Clear
        };
        run(&store, AT, &[set(&format!("key {number}"), expiry)]);
    }
    let request = RequestId {
        session: SessionId::draw(UnixMillis::new(AT), 7),
        sequence: 1,
        lowest_unanswered: 1,
    };
    let put = Command::Write(WriteCommand::PutSystem {
        name: bytes("system"),
        value: Some(bytes("data")),
    });
    run(&store, AT, &[set("once", Expiry::Clear).once(request), put]);
    store
}

fn odd() -> KeyFilter {
    KeyFilter::new(|key| key.last().is_some_and(|last| last % 2 == 1))
}

#[test]
fn a_walk_over_a_part_meets_its_keys_and_what_is_known_of_requests_and_no_system_data() {
    let store = filled();
    let mut walk = store.walk_part(odd());
    let (mut keys, mut sessions) = (BTreeSet::new(), 0);
    while let Some(block) = walk.next_block(4096).unwrap() {
        for entry in block_entries(&block).unwrap() {
            match entry.about {
                About::Key => assert!(keys.insert(entry.key.to_vec()), "met once"),
                About::Session => sessions += 1,
                About::System => panic!("system data stay"),
            }
        }
    }
    assert_eq!((keys.len(), sessions), (1500 + 1, 1));
    assert!(keys.iter().all(|key| odd().picks(key)));
}

#[test]
fn what_is_taken_out_is_gone_from_every_count_and_the_rest_is_as_it_was() {
    let store = filled();
    let (revision, before) = (store.revision(), store.stats());
    let taken: usize = (0..store.stripe_count())
        .map(|stripe| store.take_out(stripe, &odd()))
        .sum();
    assert_eq!(taken, 1500 + 1);
    let after = store.stats();
    assert_eq!(after.keys, before.keys - 1501);
    assert_eq!(after.keys_with_deadline, 500);
    assert!(after.entry_bytes < before.entry_bytes);
    assert_eq!(
        (after.deletes, after.expired),
        (0, 0),
        "nothing was deleted"
    );
    assert_eq!(store.revision(), revision);
    let get = |key: &str| run(&store, AT, &[get(key)]).remove(0);
    assert_eq!(get("key 8"), Reply::Bulk(bytes("value")));
    assert_eq!(get("key 7"), Reply::Nil);
    // Deadlines of what is gone meet nothing, those of what stays are met.
    let due = store.due(UnixMillis::new(AT + 120_000), usize::MAX);
    assert_eq!(due.len(), 500);
    assert_eq!(run(&store, AT, &[set("key 7", Expiry::Clear)]), [Reply::Ok]);
    assert_eq!(store.revision(), Revision::new(revision.get() + 1));
}

fn get(key: &str) -> Command {
    Command::Read(flux_types::ReadCommand::Get { key: bytes(key) })
}

//! Tests of system data: they live beside the keys, and nobody who asks for keys meets them.

use std::sync::Arc;

use bytes::Bytes;
use flux_types::limits::{SYSTEM_ENTRIES_MAX, SYSTEM_NAME_BYTES_MAX, SYSTEM_VALUE_BYTES_MAX};
use flux_types::{
    Command, ErrorCode, ReadCommand, Reply, Revision, ScanPage, Set, UnixMillis, WriteCommand,
};

use super::{bytes, run};
use crate::snapshot::{About, BlockEntry, block_entries};
use crate::{BlockError, Read, Store, StoreConfig};

const NOW: UnixMillis = UnixMillis::new(2);

fn put(name: impl Into<Bytes>, value: impl Into<Bytes>) -> Command {
    Command::Write(WriteCommand::PutSystem {
        name: name.into(),
        value: Some(value.into()),
    })
}

fn remove(name: &str) -> Command {
    Command::Write(WriteCommand::PutSystem {
        name: bytes(name),
        value: None,
    })
}

fn set(key: &str) -> Command {
    Command::Write(WriteCommand::Set(Set::plain(bytes(key), bytes("v"))))
}

fn store() -> Arc<Store> {
    Arc::new(Store::new(StoreConfig::default()))
}

fn blocks(store: &Arc<Store>) -> Vec<Vec<u8>> {
    let mut walk = store.walk();
    std::iter::from_fn(|| walk.next_block(64).unwrap()).collect()
}

#[test]
fn a_clear_spares_system_data_and_no_reader_of_keys_meets_them() {
    let store = store();
    let clear = Command::Write(WriteCommand::Clear);
    let replies = run(&store, 1, &[put("cdc/a", "1"), set("k"), clear]);
    assert_eq!(replies, [Reply::Ok, Reply::Ok, Reply::Ok]);
    assert_eq!(store.system(b"cdc/a"), Some(bytes("1")));
    assert_eq!((store.len(), store.system_len()), (0, 1));
    let page = ScanPage {
        cursor: 0,
        pattern: None,
        count: 1000,
        type_matches: true,
    };
    let nothing = Reply::Page {
        cursor: 0,
        keys: Vec::new(),
    };
    let keys = ReadCommand::Keys {
        pattern: bytes("*"),
    };
    let get = ReadCommand::Get {
        key: bytes("cdc/a"),
    };
    assert_eq!(
        store.read(&ReadCommand::Scan(page), NOW),
        Read::Reply(nothing)
    );
    assert_eq!(
        store.read(&keys, NOW),
        Read::Reply(Reply::Array(Vec::new()))
    );
    assert_eq!(store.read(&get, NOW), Read::Reply(Reply::Nil));
    assert_eq!(
        store.read(&ReadCommand::Count, NOW),
        Read::Reply(Reply::Integer(0))
    );
}

#[test]
fn a_snapshot_holds_system_data_and_loading_it_brings_them_back() {
    let (from, to) = (store(), store());
    run(
        &from,
        1,
        &[
            put("cdc/a", "1"),
            set("k"),
            put("cdc/b", "2"),
            remove("cdc/a"),
        ],
    );
    run(&to, 1, &[put("cdc/old", "0")]);
    let mut loader = to.loader();
    for block in blocks(&from) {
        loader.load_block(&block).unwrap();
    }
    to.install(loader, from.revision(), from.last_batch_at());
    assert_eq!(to.system(b"cdc/b"), Some(bytes("2")));
    assert_eq!((to.system(b"cdc/old"), to.system_len()), (None, 1));
    assert_eq!(to.digest(), from.digest());
    run(&to, 2, &[put("cdc/b", "3")]);
    assert_ne!(to.digest(), from.digest(), "they are part of the digest");
}

#[test]
fn a_walk_that_begins_without_keys_still_meets_system_data() {
    let store = store();
    run(&store, 1, &[put("cdc/a", "1")]);
    let blocks = blocks(&store);
    let entries: Vec<BlockEntry<'_>> = blocks
        .iter()
        .flat_map(|block| block_entries(block).unwrap())
        .collect();
    let expected = BlockEntry {
        key: b"cdc/a",
        value: b"1",
        revision: Revision::new(1),
        deadline: None,
        about: About::System,
    };
    assert_eq!(entries, [expected]);
}

#[test]
fn a_block_of_version_1_is_read_and_has_no_system_data() {
    let store = store();
    run(&store, 1, &[set("k")]);
    let mut block = blocks(&store).remove(0);
    block[0] = 1;
    assert_eq!(block_entries(&block).unwrap().len(), 1);
    block[8] |= 2;
    assert_eq!(
        block_entries(&block),
        Err(BlockError::Malformed { index: 0 })
    );
    block[0] = 4;
    assert_eq!(
        block_entries(&block),
        Err(BlockError::Version { version: 4 })
    );
}

#[test]
fn system_data_are_bounded_in_length_and_number() {
    let store = store();
    let long_name = vec![b'n'; SYSTEM_NAME_BYTES_MAX + 1];
    let long_value = vec![b'v'; SYSTEM_VALUE_BYTES_MAX + 1];
    for refused in [put(long_name, "v"), put("n", long_value), put("", "v")] {
        let replies = run(&store, 1, &[refused]);
        let [Reply::Error(error)] = replies.as_slice() else {
            panic!("{replies:?}");
        };
        assert_eq!(error.code, ErrorCode::TooLarge);
    }
    for number in 0..SYSTEM_ENTRIES_MAX {
        assert_eq!(run(&store, 1, &[put(number.to_string(), "v")]), [Reply::Ok]);
    }
    assert!(matches!(
        run(&store, 1, &[put("one more", "v")])[..],
        [Reply::Error(_)]
    ));
    assert_eq!(run(&store, 1, &[put("0", "another")]), [Reply::Ok]);
    assert_eq!(store.system_len(), SYSTEM_ENTRIES_MAX);
}

#[test]
fn of_two_who_replace_the_same_system_data_one_does_and_the_other_is_told_what_is_there() {
    let replace = |expected: Option<&str>, value: &str| {
        Command::Write(WriteCommand::ReplaceSystem {
            name: bytes("map"),
            expected: expected.map(bytes),
            value: bytes(value),
        })
    };
    let found = |value: &str| Reply::Bulk(bytes(value));
    let store = store();
    // In one batch each sees what those before it did.
    let batch = [
        replace(Some("0"), "1"),
        replace(None, "1"),
        replace(None, "2"),
        replace(Some("1"), "3"),
    ];
    let expected = [Reply::Nil, Reply::Ok, found("1"), Reply::Ok];
    assert_eq!(run(&store, 1, &batch), expected);
    assert_eq!(store.system(b"map"), Some(bytes("3")));
    let later = [
        replace(Some("1"), "4"),
        remove("map"),
        replace(Some("3"), "4"),
        replace(None, "5"),
    ];
    let expected = [found("3"), Reply::Ok, Reply::Nil, Reply::Ok];
    assert_eq!(run(&store, 2, &later), expected);
    assert_eq!(store.system(b"map"), Some(bytes("5")));
}

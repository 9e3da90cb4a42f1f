//! Tests of the store as a whole.

mod concurrency;
mod model;
mod part;
mod random;
mod requests;
mod scan;
mod system;

use bytes::Bytes;
use flux_types::{Command, ReadCommand, Reply, Set, Term, UnixMillis, WriteCommand};

use crate::{BatchView, Lookup, Store, StoreConfig};

pub(crate) fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// Evaluates commands as one batch and applies it.
pub(crate) fn run(store: &Store, at: u64, commands: &[Command]) -> Vec<Reply> {
    let mut evaluation = store.evaluation(UnixMillis::new(at), Term::new(1));
    let replies = commands
        .iter()
        .map(|command| evaluation.command(command).reply)
        .collect();
    if let Some(batch) = evaluation.finish() {
        store.apply(&BatchView::parse(&batch).unwrap());
    }
    replies
}

#[test]
fn a_value_that_was_set_is_read_back() {
    let store = Store::new(StoreConfig::default());
    let set = Command::Write(WriteCommand::Set(Set::plain(bytes("k"), bytes("v"))));
    assert_eq!(run(&store, 1, &[set]), [Reply::Ok]);
    store.get(b"k", UnixMillis::new(2), |found| {
        assert!(matches!(found, Lookup::Live(entry) if entry.value == b"v"));
    });
}

#[test]
fn a_thousand_increments_in_one_batch_count_to_a_thousand() {
    let store = Store::new(StoreConfig::default());
    let increment = Command::Write(WriteCommand::Increment {
        key: bytes("n"),
        by: 1,
    });
    let replies = run(&store, 1, &vec![increment; 1000]);
    assert_eq!(replies.last(), Some(&Reply::Integer(1000)));
    let get = ReadCommand::Get { key: bytes("n") };
    let read = store.read(&get, UnixMillis::new(2));
    assert_eq!(read, crate::Read::Reply(Reply::Bulk(bytes("1000"))));
}

//! Rules 2, 5 and 6 as the log shows them: which facts there are, in which order, and which count.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use flux_log::{Log, LogEntry, LogId};
use flux_store::batch::effective;
use flux_store::{BatchWriter, FactRef, Read};
use flux_types::{DeleteCause, Fact, LogIndex, ReadCommand, Reply, Revision, Term, UnixMillis};

use crate::harness::*;

/// Payloads of a log that hold facts: neither blank nor a membership, as `docs/file-format.md` tells
/// them apart.
fn batches(log: &Log) -> Vec<LogEntry> {
    let log = log.shard(SHARD);
    let until = log.state().last.map_or(LogIndex::new(0), |last| last.index);
    let entries = log.entries(LogIndex::new(1), until.next(), usize::MAX);
    let entries = entries.expect("the log is readable").into_iter();
    entries
        .filter(|entry| entry.payload.first() == Some(&flux_store::batch::VERSION))
        .collect()
}

fn facts_of(entry: &LogEntry) -> Vec<Fact> {
    let batch = effective(entry.id.term, &entry.payload).expect("well-formed");
    let batch = batch.expect("not void");
    batch.facts().map(|(_, fact)| fact.to_fact()).collect()
}

#[test]
fn rule_6_a_write_over_an_expired_key_says_expired_then_put() {
    let (setup, clock) = Setup::with_sim_clock();
    on_runtime(async {
        let node = setup.start_writable().await;
        // The sweeper must not be first.
        clock.set_step_millis(10_000);
        node.run_one(set_for("k", "old", 100)).await;
        clock.advance(Duration::from_millis(100));
        node.run_one(set("k", "new")).await;
        let last = batches(&node.log).pop().expect("a batch");
        let expected = [
            Fact::Delete {
                key: bytes("k"),
                cause: DeleteCause::Expired,
            },
            Fact::Put {
                key: bytes("k"),
                value: bytes("new"),
                deadline: None,
            },
        ];
        assert_eq!(facts_of(&last), expected);
        node.stop().await;
    });
}

#[test]
fn rule_2_every_batch_names_the_term_of_its_log_id() {
    let setup = Setup::new();
    for _ in 0..3 {
        on_runtime(async {
            let node = setup.start_writable().await;
            node.run_one(increment("n")).await;
            for entry in batches(&node.log) {
                let batch = effective(entry.id.term, &entry.payload);
                assert!(batch.expect("well-formed").is_some(), "{:?}", entry.id);
            }
            node.stop().await;
        });
    }
}

/// A batch that puts `k`, of the leader of a term, with a revision that would win.
fn batch_of(term: Term) -> Bytes {
    let at = UnixMillis::new(EPOCH_MILLIS);
    let mut batch = BatchWriter::new(term, at, Revision::new(1000));
    batch.push(FactRef::Put {
        key: b"k",
        value: b"void",
        deadline: None,
    });
    batch.finish().expect("a fact")
}

#[test]
fn rule_2_a_batch_of_another_term_than_its_entry_is_skipped_by_replay() {
    let (setup, _clock) = Setup::with_sim_clock();
    on_runtime(async {
        let node = setup.start_writable().await;
        node.run_one(set("k", "kept")).await;
        node.stop().await;
    });
    let (before, log) = (setup.disk.duplicate(), setup.open_log());
    let shard = log.shard(SHARD);
    let last = shard.state().last.expect("entries");
    let entry = LogEntry {
        id: LogId {
            term: last.term,
            index: last.index.next(),
        },
        timestamp: UnixMillis::new(EPOCH_MILLIS),
        payload: batch_of(Term::new(last.term.get() + 1)),
    };
    let (done, flushed) = std::sync::mpsc::channel();
    let told = Box::new(move |result: Result<_, _>| assert!(done.send(result.is_ok()).is_ok()));
    shard.append(vec![entry], told).expect("the log takes it");
    assert_eq!(flushed.recv(), Ok(true));
    log.close();
    let revision = |setup: &Setup| {
        on_runtime(async {
            let node = setup.start_writable().await;
            assert_eq!(node.get("k").await, bulk("kept"));
            let revision = node.shard.store().revision();
            node.stop().await;
            revision
        })
    };
    let with_void = revision(&setup);
    let mut without = setup;
    without.disk = before;
    assert_eq!(with_void, revision(&without), "it takes no revision");
}

#[test]
fn rule_5_a_transaction_is_never_half_visible() {
    let setup = Setup::new();
    on_runtime(async {
        let node = setup.start_writable().await;
        let keys: Vec<String> = (0..24).map(|number| format!("key {number}")).collect();
        let write = |value: &str| transaction(keys.iter().map(|key| set(key, value)).collect());
        node.run_one(write("0")).await;
        let stop = Arc::new(AtomicBool::new(false));
        let reader = {
            let (store, stop) = (Arc::clone(node.shard.store()), Arc::clone(&stop));
            let keys = keys.iter().map(|key| bytes(key)).collect();
            let read = ReadCommand::GetMany { keys };
            std::thread::spawn(move || {
                let mut reads = 0_u64;
                while !stop.load(Ordering::SeqCst) {
                    match store.read(&read, UnixMillis::ZERO) {
                        Read::Reply(Reply::Array(values)) => {
                            let first = values.first();
                            assert!(values.iter().all(|value| Some(value) == first));
                        }
                        other => panic!("{other:?}"),
                    }
                    reads += 1;
                }
                reads
            })
        };
        for round in 0..300 {
            let reply = node.run_one(write(&round.to_string())).await;
            assert!(matches!(reply, Reply::Array(replies) if replies.len() == 24));
        }
        stop.store(true, Ordering::SeqCst);
        assert!(reader.join().expect("no half of a transaction was seen") > 0);
        node.stop().await;
    });
}

#[test]
fn rule_5_a_transaction_that_only_reads_sees_one_moment() {
    let setup = Setup::new();
    on_runtime(async {
        let node = setup.start_writable().await;
        node.run_one(transaction(vec![set("a", "1"), set("b", "1")]))
            .await;
        let batches = node.shard.status().batches;
        let reply = node.run_one(transaction(vec![get("a"), get("b")])).await;
        assert_eq!(reply, Reply::Array(vec![bulk("1"), bulk("1")]));
        let status = node.shard.status();
        assert_eq!(status.batches, batches, "nothing to propose");
        node.stop().await;
    });
}

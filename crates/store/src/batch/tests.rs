//! Tests of the batch format.

use bytes::Bytes;
use flux_types::{DeleteCause, Fact, Revision, Term, UnixMillis};
use proptest::prelude::*;

use super::{BatchError, BatchView, BatchWriter, FactRef};

const GOLDEN: &[u8] = include_bytes!("../../testdata/batch-v1.bin");

/// One fact of every kind, in groups of 1, 3 and 2.
fn example() -> Vec<Vec<Fact>> {
    let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    vec![
        vec![Fact::Put {
            key: bytes("key"),
            value: bytes("value"),
            deadline: None,
        }],
        vec![
            Fact::Delete {
                key: bytes("gone"),
                cause: DeleteCause::Expired,
            },
            Fact::Put {
                key: bytes("gone"),
                value: bytes(""),
                deadline: Some(UnixMillis::new(0x0102_0304_0506)),
            },
            Fact::Delete {
                key: bytes(""),
                cause: DeleteCause::Evicted,
            },
        ],
        vec![
            Fact::SetDeadline {
                key: bytes("key"),
                deadline: Some(UnixMillis::new(99)),
            },
            Fact::SetDeadline {
                key: bytes("key"),
                deadline: None,
            },
        ],
        vec![Fact::Patch {
            key: bytes("key"),
            offset: 5,
            bytes: bytes("-and-more"),
        }],
        vec![Fact::Clear],
    ]
}

fn write(groups: &[Vec<Fact>]) -> Bytes {
    let mut writer = BatchWriter::new(Term::new(7), UnixMillis::new(1000), Revision::new(42));
    for group in groups {
        writer.begin_group();
        for fact in group {
            writer.push(FactRef::from(fact));
        }
        writer.end_group();
    }
    writer.finish().unwrap()
}

fn read(batch: &BatchView<'_>) -> Vec<Vec<Fact>> {
    batch
        .groups()
        .map(|group| group.iter().map(|(_, fact)| fact.to_fact()).collect())
        .collect()
}

#[test]
fn the_golden_batch_is_written_and_read_byte_for_byte() {
    assert_eq!(write(&example()), GOLDEN);
    let view = BatchView::parse(GOLDEN).unwrap();
    assert_eq!(view.term(), Term::new(7));
    assert_eq!(view.at(), UnixMillis::new(1000));
    assert_eq!(view.first_revision(), Revision::new(42));
    assert_eq!(view.last_revision(), Revision::new(49));
    assert_eq!(view.fact_count(), 8);
    assert_eq!(read(&view), example());
    let revisions: Vec<u64> = view.facts().map(|(revision, _)| revision.get()).collect();
    assert_eq!(revisions, (42..50).collect::<Vec<u64>>());
}

#[test]
fn every_truncation_of_a_batch_is_refused() {
    for len in 0..GOLDEN.len() {
        let error = BatchView::parse(&GOLDEN[..len]).unwrap_err();
        assert!(matches!(error, BatchError::Short { .. }), "{len}: {error}");
    }
}

#[test]
fn bytes_after_the_last_fact_are_refused() {
    let mut long = GOLDEN.to_vec();
    long.push(0);
    let error = BatchView::parse(&long).unwrap_err();
    assert_eq!(
        error,
        BatchError::Trailing {
            offset: GOLDEN.len()
        }
    );
}

#[test]
fn a_batch_without_facts_is_none() {
    let writer = BatchWriter::new(Term::new(1), UnixMillis::ZERO, Revision::new(1));
    assert_eq!(writer.last_revision(), Revision::new(0));
    assert_eq!(writer.finish(), None);
}

#[test]
fn each_malformed_field_has_its_error() {
    let check = |offset: usize, byte: u8, expected: &str| {
        let mut bytes = GOLDEN.to_vec();
        bytes[offset] = byte;
        let error = BatchView::parse(&bytes).unwrap_err();
        assert_eq!(error.to_string(), expected);
    };
    check(0, 2, "batch has version 2, this program reads 1");
    check(1, 1, "batch has a reserved field set at offset 1");
    check(3, 1, "batch has a reserved field set at offset 1");
    check(4, 9, "batch ends early: 4 bytes wanted at offset 150");
    check(24, 0, "batch of 8 facts from revision 0");
    check(32, 0x0f, "batch has an unknown kind 15 at offset 32");
    check(32, 0x21, "batch has a reserved field set at offset 32");
    check(
        35,
        9,
        "batch has a key or value beyond its limit at offset 32",
    );
    check(
        39,
        9,
        "batch has a key or value beyond its limit at offset 32",
    );
    check(142, 0x85, "the last group of the batch is not complete");
}

fn any_fact() -> impl Strategy<Value = Fact> {
    let key = || proptest::collection::vec(any::<u8>(), 0..20).prop_map(Bytes::from);
    let deadline = || proptest::option::of(any::<u64>().prop_map(UnixMillis::new));
    let cause = prop_oneof![
        Just(DeleteCause::Deleted),
        Just(DeleteCause::Expired),
        Just(DeleteCause::Evicted)
    ];
    prop_oneof![
        (key(), key(), deadline()).prop_map(|(key, value, deadline)| Fact::Put {
            key,
            value,
            deadline
        }),
        (key(), cause).prop_map(|(key, cause)| Fact::Delete { key, cause }),
        (key(), deadline()).prop_map(|(key, deadline)| Fact::SetDeadline { key, deadline }),
        (key(), 0..1000_u32, key()).prop_map(|(key, offset, bytes)| Fact::Patch {
            key,
            offset,
            bytes
        }),
        Just(Fact::Clear),
    ]
}

fn any_groups() -> impl Strategy<Value = Vec<Vec<Fact>>> {
    proptest::collection::vec(proptest::collection::vec(any_fact(), 1..5), 1..8)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_was_written_is_read(groups in any_groups()) {
        let bytes = write(&groups);
        prop_assert_eq!(read(&BatchView::parse(&bytes).unwrap()), groups);
    }

    /// Parsing is strict: whatever parses is what the writer would have written.
    #[test]
    fn a_changed_batch_is_refused_or_means_something_else(
        groups in any_groups(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = write(&groups).to_vec();
        for (index, byte) in changes {
            let index = index.index(bytes.len());
            bytes[index] = byte;
        }
        if let Ok(view) = BatchView::parse(&bytes) {
            let mut writer = BatchWriter::new(view.term(), view.at(), view.first_revision());
            for group in view.groups() {
                writer.begin_group();
                for (_, fact) in group {
                    writer.push(fact);
                }
                writer.end_group();
            }
            prop_assert_eq!(writer.finish().unwrap(), bytes);
        }
    }

    #[test]
    fn random_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut bytes = bytes;
        if let Some(first) = bytes.first_mut() {
            *first = 1;
        }
        if let Some(reserved) = bytes.get_mut(1..4) {
            reserved.fill(0);
        }
        drop(BatchView::parse(&bytes));
    }
}

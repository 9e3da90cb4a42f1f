//! Tests of the batch format.

use bytes::Bytes;
use flux_types::{
    DeleteCause, Fact, Reply, RequestId, Revision, SessionId, Term, TraceParent, UnixMillis,
};
use proptest::prelude::*;

use super::{BatchError, BatchView, BatchWriter, FactRef, VERSION};
use crate::kept::Kept;

const GOLDEN: &[u8] = include_bytes!("../../testdata/batch-v3.bin");
const GOLDEN_2: &[u8] = include_bytes!("../../testdata/batch-v2.bin");
const GOLDEN_1: &[u8] = include_bytes!("../../testdata/batch-v1.bin");

/// One fact of every kind, in groups of 1, 3, 2, 1, 1, 2, 2, 1 and 1.
fn example() -> Vec<Vec<Fact>> {
    let mut groups = example_2();
    let request = |sequence, lowest_unanswered, outcome| Fact::Request {
        request: RequestId {
            session: SessionId::new(0x0190_a6d4_7c2e_7d3f_8a1b_2c3d_4e5f_6071).unwrap(),
            sequence,
            lowest_unanswered,
        },
        expires_at: UnixMillis::new(601_000),
        outcome: Bytes::from(outcome),
    };
    groups.push(vec![
        Fact::Put {
            key: Bytes::from_static(b"n"),
            value: Bytes::from_static(b"41"),
            deadline: None,
        },
        request(
            7,
            5,
            Kept::encode_done(Revision::new(52), &Reply::Integer(41)),
        ),
    ]);
    groups.push(vec![request(6, 5, Kept::encode_not_done())]);
    groups.push(vec![Fact::ForgetSessions {
        until: UnixMillis::new(1000),
    }]);
    groups
}

/// What version 2 could say, in groups of 1, 3, 2, 1, 1 and 2.
fn example_2() -> Vec<Vec<Fact>> {
    let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    let mut groups = example_1();
    groups.push(vec![
        Fact::SystemPut {
            name: bytes("cdc/sink"),
            value: bytes("cursor"),
        },
        Fact::SystemDelete {
            name: bytes("cdc/old"),
        },
    ]);
    groups
}

fn example_trace() -> Option<TraceParent> {
    let trace_id = 0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10;
    TraceParent::new(trace_id, 0x1112_1314_1516_1718, true)
}

/// What version 1 could say.
fn example_1() -> Vec<Vec<Fact>> {
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

/// Each group has the trace at its place, if there is one.
fn write_traced(groups: &[Vec<Fact>], traces: &[Option<TraceParent>]) -> Bytes {
    let mut writer = BatchWriter::new(Term::new(7), UnixMillis::new(1000), Revision::new(42));
    for (at, group) in groups.iter().enumerate() {
        writer.begin_traced_group(traces.get(at).copied().flatten());
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

/// The traces of the groups of a batch.
fn traces(batch: &BatchView<'_>) -> Vec<Option<TraceParent>> {
    let mut traces = Vec::new();
    let mut facts = batch.facts();
    while let Some((_, _, more)) = facts.step() {
        if !more {
            traces.push(facts.trace());
        }
    }
    traces
}

#[test]
fn a_batch_of_version_1_is_still_read() {
    let view = BatchView::parse(GOLDEN_1).unwrap();
    assert_eq!(view.version(), 1);
    assert_eq!(read(&view), example_1());
    assert_eq!(traces(&view), [None; 5]);
}

#[test]
fn a_batch_of_version_2_is_still_read() {
    let view = BatchView::parse(GOLDEN_2).unwrap();
    assert_eq!(view.version(), 2);
    assert_eq!(read(&view), example_2());
    assert_eq!(traces(&view)[..2], [example_trace(), None]);
}

#[test]
fn version_2_knows_no_requests() {
    let mut bytes = GOLDEN.to_vec();
    bytes[0] = 2;
    let error = BatchView::parse(&bytes).unwrap_err();
    let (offset, since) = (GOLDEN_2.len() + 11, 3);
    assert_eq!(error, BatchError::Newer { offset, since });
}

#[test]
fn version_1_knows_neither_system_data_nor_traces() {
    for (at, error) in [(32, "trace"), (58, "version 2")] {
        let mut bytes = GOLDEN.to_vec();
        bytes[0] = 1;
        if at == 58 {
            bytes.drain(32..58);
        }
        let refused = BatchView::parse(&bytes).unwrap_err().to_string();
        assert!(refused.contains(error), "{refused}");
    }
}

#[test]
fn a_trace_stands_before_a_group_and_takes_no_revision() {
    let view = BatchView::parse(GOLDEN).unwrap();
    let mut expected = vec![None; 9];
    expected[0] = example_trace();
    assert_eq!(traces(&view), expected);
    // Cut out of its place and put into a group: after the first of the three facts of the second.
    let mut moved = GOLDEN.to_vec();
    let trace: Vec<u8> = moved.drain(32..58).collect();
    let second_fact = 32 + 16 + 12;
    moved.splice(second_fact..second_fact, trace);
    let error = BatchView::parse(&moved).unwrap_err();
    assert_eq!(
        error,
        BatchError::Trace {
            offset: second_fact
        }
    );
    for (offset, byte) in [(57, 2), (57, 0xff)] {
        let mut bytes = GOLDEN.to_vec();
        bytes[offset] = byte;
        let error = BatchView::parse(&bytes).unwrap_err();
        assert_eq!(error, BatchError::Trace { offset: 32 });
    }
    let mut zero = GOLDEN.to_vec();
    zero[49..57].fill(0);
    assert_eq!(
        BatchView::parse(&zero).unwrap_err(),
        BatchError::Trace { offset: 32 }
    );
}

#[test]
fn the_golden_batch_is_written_and_read_byte_for_byte() {
    assert_eq!(write_traced(&example(), &[example_trace()]), GOLDEN);
    let view = BatchView::parse(GOLDEN).unwrap();
    assert_eq!(view.term(), Term::new(7));
    assert_eq!(view.at(), UnixMillis::new(1000));
    assert_eq!(view.first_revision(), Revision::new(42));
    assert_eq!(view.last_revision(), Revision::new(55));
    assert_eq!(view.fact_count(), 14);
    assert_eq!(read(&view), example());
    let revisions: Vec<u64> = view.facts().map(|(revision, _)| revision.get()).collect();
    assert_eq!(revisions, (42..56).collect::<Vec<u64>>());
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
    check(0, 4, "batch has version 4, this program reads 1 to 3");
    check(1, 1, "batch has a reserved field set at offset 1");
    check(3, 1, "batch has a reserved field set at offset 1");
    check(4, 15, "batch ends early: 4 bytes wanted at offset 355");
    check(24, 0, "batch of 14 facts from revision 0");
    check(58, 0x0f, "batch has an unknown kind 15 at offset 58");
    check(58, 0x21, "batch has a reserved field set at offset 58");
    check(
        61,
        9,
        "batch has a key or value beyond its limit at offset 58",
    );
    check(
        65,
        9,
        "batch has a key or value beyond its limit at offset 58",
    );
    check(339, 0xca, "the last group of the batch is not complete");
    // The outcome of a request: its kind, and the kind of the reply in it.
    check(272, 3, "batch has a reserved field set at offset 224");
    check(281, 99, "batch has a reserved field set at offset 224");
    // No UUID of version 7, and a lowest sequence of 0.
    check(249, 0x4d, "batch has a reserved field set at offset 224");
    check(264, 0, "batch has a reserved field set at offset 224");
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
        (key(), key()).prop_map(|(name, value)| Fact::SystemPut { name, value }),
        key().prop_map(|name| Fact::SystemDelete { name }),
        (
            any::<u128>(),
            1..9_u64,
            0..9_u64,
            any::<u64>(),
            any::<i64>()
        )
            .prop_map(|(session, lowest_unanswered, above, expires_at, number)| {
                Fact::Request {
                    request: RequestId {
                        session: SessionId::draw(UnixMillis::new(expires_at), session),
                        sequence: lowest_unanswered + above,
                        lowest_unanswered,
                    },
                    expires_at: UnixMillis::new(expires_at),
                    outcome: Kept::encode_done(Revision::new(above), &Reply::Integer(number))
                        .into(),
                }
            }),
        any::<u64>().prop_map(|until| Fact::ForgetSessions {
            until: UnixMillis::new(until)
        }),
    ]
}

fn any_groups() -> impl Strategy<Value = Vec<Vec<Fact>>> {
    proptest::collection::vec(proptest::collection::vec(any_fact(), 1..5), 1..8)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_was_written_is_read(
        groups in any_groups(), drawn in proptest::collection::vec(any::<(u64, u64, bool)>(), 8)
    ) {
        let drawn = drawn.into_iter().take(groups.len());
        let written: Vec<Option<TraceParent>> = drawn
            .map(|(trace, span, sampled)| TraceParent::new((trace % 3).into(), span, sampled))
            .collect();
        let bytes = write_traced(&groups, &written);
        let view = BatchView::parse(&bytes).unwrap();
        prop_assert_eq!(traces(&view), written);
        prop_assert_eq!(read(&view), groups);
    }

    /// Parsing is strict: whatever parses is what the writer would have written.
    #[test]
    fn a_changed_batch_is_refused_or_means_something_else(
        groups in any_groups(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let written: Vec<Option<TraceParent>> =
            (0..8).map(|at: u128| TraceParent::new(at % 3, 7, false)).collect();
        let mut bytes = write_traced(&groups, &written).to_vec();
        for (index, byte) in changes {
            let index = index.index(bytes.len());
            bytes[index] = byte;
        }
        if let Ok(view) = BatchView::parse(&bytes) {
            let mut writer = BatchWriter::new(view.term(), view.at(), view.first_revision());
            for (group, trace) in view.groups().zip(traces(&view)) {
                writer.begin_traced_group(trace);
                for (_, fact) in group {
                    writer.push(fact);
                }
                writer.end_group();
            }
            let mut written = writer.finish().unwrap().to_vec();
            // What earlier versions could say, this one says in the same bytes.
            written[0] = view.version();
            prop_assert_eq!(written, bytes);
        }
    }

    #[test]
    fn random_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut bytes = bytes;
        if let Some(first) = bytes.first_mut() {
            *first = VERSION;
        }
        if let Some(reserved) = bytes.get_mut(1..4) {
            reserved.fill(0);
        }
        drop(BatchView::parse(&bytes));
    }
}

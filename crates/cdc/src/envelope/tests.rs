//! Tests of the outer form of events.

use expect_test::{Expect, expect};
use flux_proto::FILE_DESCRIPTOR_SET;
use flux_types::{LogIndex, Term};
use proptest::prelude::*;
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage};

use super::*;
use crate::event::Group;

fn envelope() -> Envelope {
    Envelope::new(ClusterId::new(0xc1), NodeId::new(0x11), 16)
}

fn event(change: Change) -> Event {
    let is_fact = !change.is_control() && !matches!(change, Change::Item { .. });
    Event {
        position: Position {
            shard: ShardId::new(7),
            term: Term::new(3),
            index: LogIndex::new(40),
            revision: Revision::new(482_991),
        },
        at: UnixMillis::new(1_763_861_603_241),
        change,
        group: is_fact.then_some(Group {
            first: Revision::new(482_990),
            order: 1,
            count: 2,
        }),
        trace: None,
    }
}

fn bytes(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

fn check(change: Change, expected: &Expect) {
    let json = to_json(&envelope().wrap(&event(change)));
    let value: serde_json::Value = serde_json::from_slice(&json).unwrap();
    expected.assert_eq(&serde_json::to_string_pretty(&value).unwrap());
}

#[test]
fn a_set_looks_as_documented() {
    let set = Change::Set {
        key: bytes("hello"),
        value: bytes("world"),
        deadline: Some(UnixMillis::new(1_763_861_700_000)),
    };
    check(
        set,
        &expect![[r#"
        {
          "data": {
            "after": {
              "encoding": "utf8",
              "expires_at_ms": "1763861700000",
              "key": "hello",
              "kind": "string",
              "revision": "482991",
              "value": "world"
            },
            "op": "c",
            "reason": "client",
            "source": {
              "connector": "flux",
              "db": 0,
              "name": "00000000000000c1",
              "node": "0000000000000011",
              "revision": "482991",
              "shard": 7,
              "snapshot": "false",
              "term": "3",
              "ts_ms": "1763861603241",
              "version": "0.1.0"
            },
            "transaction": {
              "count": 2,
              "id": "7:3:482990",
              "total_order": 1
            },
            "ts_ms": "1763861603241"
          },
          "datacontenttype": "application/json",
          "id": "7:3:482991",
          "partitionkey": "866",
          "sequence": "00000000000000482991",
          "source": "/flux/00000000000000c1/shards/7",
          "specversion": "1.0",
          "subject": "hello",
          "time": "2025-11-23T01:33:23.241Z",
          "type": "io.fluxkv.kv.set.v1"
        }"#]],
    );
}

#[test]
fn a_deletion_names_the_key_that_is_gone_and_why() {
    let key = Bytes::from_static(&[0xff, 0xfe, 0xfb]);
    let cause = DeleteCause::Expired;
    check(
        Change::Delete { key, cause },
        &expect![[r#"
        {
          "data": {
            "before": {
              "key": "//77",
              "key_encoding": "base64"
            },
            "op": "d",
            "reason": "expired",
            "source": {
              "connector": "flux",
              "db": 0,
              "name": "00000000000000c1",
              "node": "0000000000000011",
              "revision": "482991",
              "shard": 7,
              "snapshot": "false",
              "term": "3",
              "ts_ms": "1763861603241",
              "version": "0.1.0"
            },
            "transaction": {
              "count": 2,
              "id": "7:3:482990",
              "total_order": 1
            },
            "ts_ms": "1763861603241"
          },
          "datacontenttype": "application/json",
          "id": "7:3:482991",
          "partitionkey": "8665",
          "sequence": "00000000000000482991",
          "source": "/flux/00000000000000c1/shards/7",
          "specversion": "1.0",
          "subject": "__77",
          "time": "2025-11-23T01:33:23.241Z",
          "type": "io.fluxkv.kv.expired.v1"
        }"#]],
    );
}

#[test]
fn a_value_that_is_too_long_leaves_its_size_and_checksum() {
    let long = Change::Set {
        key: bytes("k"),
        value: bytes("seventeen bytes.."),
        deadline: None,
    };
    check(
        long,
        &expect![[r#"
        {
          "data": {
            "after": {
              "crc32c": "dcdab3f1",
              "key": "k",
              "kind": "string",
              "revision": "482991",
              "size": 17,
              "truncated": true
            },
            "op": "c",
            "reason": "client",
            "source": {
              "connector": "flux",
              "db": 0,
              "name": "00000000000000c1",
              "node": "0000000000000011",
              "revision": "482991",
              "shard": 7,
              "snapshot": "false",
              "term": "3",
              "ts_ms": "1763861603241",
              "version": "0.1.0"
            },
            "transaction": {
              "count": 2,
              "id": "7:3:482990",
              "total_order": 1
            },
            "ts_ms": "1763861603241"
          },
          "datacontenttype": "application/json",
          "id": "7:3:482991",
          "partitionkey": "7629",
          "sequence": "00000000000000482991",
          "source": "/flux/00000000000000c1/shards/7",
          "specversion": "1.0",
          "subject": "k",
          "time": "2025-11-23T01:33:23.241Z",
          "type": "io.fluxkv.kv.set.v1"
        }"#]],
    );
}

#[test]
fn a_gap_says_what_is_missing() {
    let gap = Change::Control(Control::Gap {
        after: Revision::new(5),
        next: Revision::new(482_992),
    });
    check(
        gap,
        &expect![[r#"
        {
          "data": {
            "gap": {
              "after_revision": "5",
              "next_revision": "482992"
            },
            "source": {
              "connector": "flux",
              "db": 0,
              "name": "00000000000000c1",
              "node": "0000000000000011",
              "revision": "482991",
              "shard": 7,
              "snapshot": "false",
              "term": "3",
              "ts_ms": "1763861603241",
              "version": "0.1.0"
            },
            "ts_ms": "1763861603241"
          },
          "datacontenttype": "application/json",
          "id": "7:3:482991:gap",
          "sequence": "00000000000000482991",
          "source": "/flux/00000000000000c1/shards/7",
          "specversion": "1.0",
          "time": "2025-11-23T01:33:23.241Z",
          "type": "io.fluxkv.cdc.gap.v1"
        }"#]],
    );
}

/// One change of each kind.
fn each_kind() -> [Change; 11] {
    let key = bytes("k");
    let deadline = None;
    let value = bytes("v");
    let deleted = |cause| Change::Delete {
        key: bytes("k"),
        cause,
    };
    [
        Change::Set {
            key: key.clone(),
            value: value.clone(),
            deadline,
        },
        Change::Patch {
            key: key.clone(),
            offset: 1,
            bytes: value.clone(),
        },
        deleted(DeleteCause::Deleted),
        deleted(DeleteCause::Expired),
        deleted(DeleteCause::Evicted),
        Change::Expire {
            key: key.clone(),
            deadline,
        },
        Change::Flush,
        Change::Item {
            key,
            value,
            deadline,
        },
        Change::Control(Control::SnapshotComplete { items: 1 }),
        Change::Control(Control::Progress),
        Change::Control(Control::Gap {
            after: Revision::new(1),
            next: Revision::new(2),
        }),
    ]
}

#[test]
fn types_and_words_belong_together() {
    let changes = each_kind();
    let types: Vec<String> = changes.iter().map(event_type).collect();
    expect![[r#"
        io.fluxkv.kv.set.v1
        io.fluxkv.kv.patch.v1
        io.fluxkv.kv.delete.v1
        io.fluxkv.kv.expired.v1
        io.fluxkv.kv.evicted.v1
        io.fluxkv.kv.expire.v1
        io.fluxkv.kv.flush.v1
        io.fluxkv.kv.snapshot.v1
        io.fluxkv.cdc.snapshot-complete.v1
        io.fluxkv.cdc.progress.v1
        io.fluxkv.cdc.gap.v1"#]]
    .assert_eq(&types.join("\n"));
    let ids: Vec<String> = changes
        .iter()
        .map(|change| event(change.clone()).id())
        .collect();
    expect![[r#"
        7:3:482991
        7:3:482991
        7:3:482991
        7:3:482991
        7:3:482991
        7:3:482991
        7:3:482991
        7:snapshot:482991
        7:3:482991:snapshot-complete
        7:3:482991:progress:1763861603241
        7:3:482991:gap"#]]
    .assert_eq(&ids.join("\n"));
    for (change, event_type) in changes.iter().zip(&types) {
        assert_eq!(word_of_type(event_type), Some(change.word()));
    }
    assert_eq!(word_of_type("io.debezium.connector.set.v1"), None);
}

#[test]
fn the_slot_of_a_key_is_its_partition() {
    let set = Change::Expire {
        key: bytes("hello"),
        deadline: None,
    };
    assert_eq!(partition_key(&set).as_deref(), Some("866"));
    assert_eq!(partition_key(&Change::Flush), None);
}

#[test]
fn binary_mode_has_the_bare_value_and_everything_else_beside_it() {
    let mut set = event(Change::Set {
        key: bytes("hello"),
        value: bytes("world"),
        deadline: Some(UnixMillis::new(1_763_861_700_000)),
    });
    set.trace = TraceParent::new(0xabc, 0xdef, true);
    let attributes = envelope().attributes(&set);
    let lines: Vec<String> = attributes
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    expect![[r#"
        specversion=1.0
        id=7:3:482991
        source=/flux/00000000000000c1/shards/7
        type=io.fluxkv.kv.set.v1
        time=2025-11-23T01:33:23.241Z
        sequence=00000000000000482991
        subject=hello
        partitionkey=866
        traceparent=00-00000000000000000000000000000abc-0000000000000def-01
        expiresatms=1763861700000
        txid=7:3:482990
        txorder=1
        txcount=2"#]]
    .assert_eq(&lines.join("\n"));
    assert_eq!(
        envelope().body(&set),
        (b"world".to_vec(), "application/octet-stream")
    );
    let named = attributes
        .iter()
        .map(|(name, value)| (*name, value.as_str()));
    let (read, wrapped) = (from_attributes(named), envelope().wrap(&set));
    assert_eq!(
        read,
        CloudEvent {
            data: None,
            datacontenttype: None,
            ..wrapped
        }
    );
}

#[test]
fn attribute_names_are_what_the_specification_allows() {
    let mut patch = event(Change::Patch {
        key: Bytes::from_static(&[0xff]),
        offset: 1,
        bytes: bytes("v"),
    });
    patch.trace = TraceParent::new(1, 1, false);
    for (name, value) in envelope().attributes(&patch) {
        assert!(
            name.bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()),
            "{name}"
        );
        assert!(!value.is_empty(), "{name}");
    }
}

fn any_change() -> impl Strategy<Value = Change> {
    let any_bytes = || {
        prop_oneof![
            "\\PC{0,12}".prop_map(Bytes::from),
            proptest::collection::vec(any::<u8>(), 0..24).prop_map(Bytes::from)
        ]
    };
    let deadline = || proptest::option::of(any::<u64>().prop_map(UnixMillis::new));
    prop_oneof![
        (any_bytes(), any_bytes(), deadline()).prop_map(|(key, value, deadline)| Change::Set {
            key,
            value,
            deadline
        }),
        (any_bytes(), any_bytes(), deadline()).prop_map(|(key, value, deadline)| Change::Item {
            key,
            value,
            deadline
        }),
        (any_bytes(), any::<u32>(), any_bytes()).prop_map(|(key, offset, bytes)| Change::Patch {
            key,
            offset,
            bytes
        }),
        (any_bytes(), deadline()).prop_map(|(key, deadline)| Change::Expire { key, deadline }),
        any_bytes().prop_map(|key| Change::Delete {
            key,
            cause: DeleteCause::Evicted
        }),
        Just(Change::Flush),
        any::<u64>().prop_map(|items| Change::Control(Control::SnapshotComplete { items })),
        Just(Change::Control(Control::Progress)),
        (any::<u64>(), any::<u64>()).prop_map(|(after, next)| Change::Control(Control::Gap {
            after: Revision::new(after),
            next: Revision::new(next),
        })),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// What the program writes without descriptors is what anyone who has them would write: so a
    /// gateway that knows nothing of this service shows the same.
    #[test]
    fn our_json_is_the_json_of_the_message(change in any_change(), trace: Option<(u64, u64, bool)>) {
        let mut event = event(change);
        event.trace = trace.and_then(|(trace, span, sampled)| TraceParent::new(trace.into(), span, sampled));
        let message = envelope().wrap(&event);
        let ours: serde_json::Value = serde_json::from_slice(&to_json(&message)).unwrap();
        let pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET).unwrap();
        let descriptor = pool.get_message_by_name("flux.cdc.v1.CloudEvent").unwrap();
        let dynamic = DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice()).unwrap();
        let theirs = serde_json::to_value(&dynamic).unwrap();
        prop_assert_eq!(&ours, &theirs);
        prop_assert_eq!(from_json(&to_json(&message)).unwrap(), message);
    }

    #[test]
    fn what_is_written_straight_away_is_what_is_made_of_the_message(change in any_change(), trace: Option<(u64, u64, bool)>, grouped: bool) {
        let mut event = event(change);
        event.trace = trace.and_then(|(trace, span, sampled)| TraceParent::new(trace.into(), span, sampled));
        event.group = event.group.filter(|_| grouped);
        let mut written = b"before".to_vec();
        envelope().write_json(&event, &mut written);
        let made = [b"before".to_vec(), to_json(&envelope().wrap(&event))].concat();
        prop_assert_eq!(String::from_utf8(written), String::from_utf8(made));
    }

    #[test]
    fn values_come_back_from_their_text(value in proptest::collection::vec(any::<u8>(), 0..16)) {
        let value = Bytes::from(value);
        let set = event(Change::Set { key: bytes("k"), value: value.clone(), deadline: None });
        let state = envelope().wrap(&set).data.unwrap().after.unwrap();
        prop_assert_eq!(decode_value(&state), Some(value));
    }
}

//! Frames, operations and responses survive their bytes, and damage is noticed.

use bytes::{Bytes, BytesMut};
use flux_types::{
    Answer, Command, Compare, Condition, Entry, Error, ErrorCode, ExpireCondition, Expiry, Outcome,
    ReadCommand, Reply, Revision, Set, SetReply, UnixMillis, WriteCommand, Written, limits,
};
use proptest::prelude::*;

use super::frame::write_frame;
use super::preface::PAYLOAD_BYTES_MIN;
use super::response::{write_answer, write_authenticated, write_entry, write_error, write_value};
use super::*;
use crate::Limits;
use crate::resp::Value;

const MAX: usize = 1 << 20;

fn some_bytes() -> impl Strategy<Value = Bytes> {
    proptest::collection::vec(any::<u8>(), 0..20).prop_map(Bytes::from)
}

fn some_expiry() -> impl Strategy<Value = Expiry> {
    prop_oneof![
        Just(Expiry::Keep),
        Just(Expiry::Clear),
        any::<i64>().prop_map(Expiry::In),
        any::<i64>().prop_map(Expiry::At),
    ]
}

fn some_compare() -> impl Strategy<Value = Compare> {
    prop_oneof![
        Just(Compare::Anything),
        Just(Compare::Absent),
        Just(Compare::Exists),
        some_bytes().prop_map(Compare::ValueIs),
        any::<u64>().prop_map(|revision| Compare::RevisionIs(Revision::new(revision))),
    ]
}

fn some_condition() -> impl Strategy<Value = Condition> {
    prop_oneof![
        Just(Condition::Always),
        Just(Condition::Absent),
        Just(Condition::Exists),
        some_bytes().prop_map(Condition::ValueIs),
    ]
}

fn some_expire_condition() -> impl Strategy<Value = ExpireCondition> {
    any::<[bool; 4]>().prop_map(|[if_none, if_some, if_later, if_earlier]| ExpireCondition {
        if_none,
        if_some,
        if_later,
        if_earlier,
    })
}

fn some_operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        some_bytes().prop_map(|key| Operation::Get { key }),
        (
            some_bytes(),
            some_bytes(),
            some_condition(),
            some_expiry(),
            any::<bool>()
        )
            .prop_map(|(key, value, condition, expiry, return_previous)| {
                Operation::Set {
                    key,
                    value,
                    condition,
                    expiry,
                    return_previous,
                }
            }),
        (some_bytes(), some_compare(), any::<bool>()).prop_map(
            |(key, expected, return_previous)| Operation::Delete {
                key,
                expected,
                return_previous,
            }
        ),
        (some_bytes(), some_compare(), some_bytes(), some_expiry()).prop_map(
            |(key, expected, value, expiry)| Operation::CompareAndSet {
                key,
                expected,
                value,
                expiry,
            }
        ),
        (some_bytes(), any::<i64>()).prop_map(|(key, by)| Operation::Increment { key, by }),
        (some_bytes(), some_expiry(), some_expire_condition()).prop_map(
            |(key, expiry, condition)| Operation::Expire {
                key,
                expiry,
                condition,
            }
        ),
        some_bytes().prop_map(|payload| Operation::Ping { payload }),
        proptest::collection::vec(some_bytes(), 0..5).prop_map(|argv| Operation::Command { argv }),
    ]
}

fn some_entry() -> impl Strategy<Value = Entry> {
    (
        some_bytes(),
        any::<u64>(),
        proptest::option::of(1..u64::MAX),
    )
        .prop_map(|(value, revision, deadline)| Entry {
            value,
            revision: Revision::new(revision),
            deadline: deadline.map(UnixMillis::new),
        })
}

/// An operation, a reply it may have, and what a client reads.
fn some_answer() -> impl Strategy<Value = (Op, Reply, Body)> {
    prop_oneof![
        proptest::option::of(some_entry()).prop_map(|entry| {
            let reply = Reply::Entry(entry.clone().map(Box::new));
            (Op::Get, reply, Body::Entry(entry))
        }),
        (
            prop_oneof![Just(Op::Set), Just(Op::Delete), Just(Op::CompareAndSet)],
            any::<bool>(),
            proptest::option::of(some_entry())
        )
            .prop_map(|(op, applied, previous)| {
                let written = Written { applied, previous };
                (
                    op,
                    Reply::Written(Box::new(written.clone())),
                    Body::Written(written),
                )
            }),
        any::<i64>().prop_map(|n| (Op::Increment, Reply::Integer(n), Body::Integer(n))),
        any::<bool>().prop_map(|changed| {
            let reply = Reply::Integer(i64::from(changed));
            (Op::Expire, reply, Body::Flag(changed))
        }),
        some_bytes().prop_map(|echo| (Op::Ping, Reply::Bulk(echo.clone()), Body::Echo(echo))),
        some_bytes().prop_map(|bytes| {
            let reply = Reply::Array(vec![Reply::Bulk(bytes.clone()), Reply::Nil]);
            let value = Value::Array(vec![Value::Bulk(bytes), Value::Null]);
            (Op::Command, reply, Body::Value(value))
        }),
    ]
}

/// Takes the one frame in `bytes`.
fn only_frame(bytes: &[u8]) -> Frame {
    let mut buffer = BytesMut::from(bytes);
    let frame = FrameDecoder::new(MAX).next(&mut buffer);
    assert!(buffer.is_empty(), "one frame, and all of it");
    frame.expect("it is a frame").expect("it is whole")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn operations_survive_every_split(
        pipeline in proptest::collection::vec((some_operation(), any::<u64>(), any::<u32>()), 1..4),
    ) {
        let mut bytes = BytesMut::new();
        for (operation, correlation, deadline_ms) in &pipeline {
            operation.write(&mut bytes, *correlation, *deadline_ms, MAX).unwrap();
        }
        for split in 0..=bytes.len() {
            let mut decoder = FrameDecoder::new(MAX);
            let mut buffer = BytesMut::from(&bytes[..split]);
            let mut decoded = Vec::new();
            for rest in [&bytes[split..], &[]] {
                while let Some(frame) = decoder.next(&mut buffer).unwrap() {
                    prop_assert_eq!(frame.header.kind, Kind::Request);
                    let operation = Operation::decode(frame.header.op, frame.payload).unwrap();
                    decoded.push((operation, frame.header.correlation, frame.header.word));
                }
                prop_assert!(decoded.len() <= pipeline.len());
                buffer.extend_from_slice(rest);
            }
            prop_assert_eq!(&decoded, &pipeline);
        }
    }

    #[test]
    fn a_truncated_payload_is_malformed_and_no_panic(operation in some_operation()) {
        let mut bytes = BytesMut::new();
        operation.write(&mut bytes, 1, 0, MAX).unwrap();
        let op = operation.op();
        for end in HEADER_BYTES..bytes.len() {
            let payload = Bytes::copy_from_slice(&bytes[HEADER_BYTES..end]);
            let decoded = Operation::decode(op.number(), payload);
            // A ping is any bytes; of every other payload no beginning is one.
            prop_assert!(decoded.is_err() || op == Op::Ping);
        }
        if op != Op::Ping {
            let mut longer = bytes[HEADER_BYTES..].to_vec();
            longer.push(0);
            let decoded = Operation::decode(op.number(), Bytes::from(longer));
            prop_assert_eq!(decoded.unwrap_err().code, ErrorCode::Invalid);
        }
    }

    #[test]
    fn answers_survive_the_wire(
        (op, reply, body) in some_answer(),
        revision: u64,
        correlation: u64,
    ) {
        let revision = Revision::new(revision);
        let mut bytes = BytesMut::new();
        write_answer(&mut bytes, correlation, op, &Answer { reply, revision }, MAX);
        let frame = only_frame(&bytes);
        prop_assert_eq!(frame.header.kind, Kind::Response);
        prop_assert_eq!(frame.header.op, op.number());
        prop_assert_eq!(frame.header.correlation, correlation);
        prop_assert_eq!(Response::decode(frame.clone()), Ok(Ok(Response { revision, body })));
        if op != Op::Ping {
            for end in 0..frame.payload.len() {
                let payload = frame.payload.slice(..end);
                let truncated = Response::decode(Frame { header: frame.header, payload });
                prop_assert!(truncated.is_err());
            }
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed(operation in some_operation(), bit in any::<prop::sample::Index>()) {
        let mut bytes = BytesMut::new();
        operation.write(&mut bytes, 1, 0, MAX).unwrap();
        let bit = bit.index(bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        // A longer length only makes the decoder wait; whatever comes then has a wrong checksum.
        bytes.extend_from_slice(&[0; 64]);
        let decoded = FrameDecoder::new(MAX).next(&mut bytes);
        prop_assert!(!matches!(decoded, Ok(Some(_))), "{decoded:?}");
    }
}

#[test]
fn operations_become_the_commands_of_the_store() {
    let key = Bytes::from_static(b"k");
    let value = Bytes::from_static(b"v");
    let limits = Limits::default();
    let command = |operation: Operation| match operation.into_request(limits) {
        Ok(Request::Data(command)) => command,
        other => panic!("{other:?} is no data command"),
    };
    let set = |return_previous| Operation::Set {
        key: key.clone(),
        value: value.clone(),
        condition: Condition::Absent,
        expiry: Expiry::In(5),
        return_previous,
    };
    let expected = |reply| {
        Command::Write(WriteCommand::Set(Set {
            key: key.clone(),
            value: value.clone(),
            condition: Condition::Absent,
            expiry: Expiry::In(5),
            reply,
        }))
    };
    assert_eq!(command(set(false)), expected(SetReply::Status));
    assert_eq!(command(set(true)), expected(SetReply::Written));
    let delete = |expected, return_previous| Operation::Delete {
        key: key.clone(),
        expected,
        return_previous,
    };
    assert_eq!(
        command(delete(Compare::Anything, false)),
        Command::Write(WriteCommand::Delete {
            keys: vec![key.clone()]
        })
    );
    for (compare, return_previous) in [(Compare::Anything, true), (Compare::Exists, false)] {
        assert_eq!(
            command(delete(compare.clone(), return_previous)),
            Command::Write(WriteCommand::CompareAndDelete {
                key: key.clone(),
                expected: compare
            })
        );
    }
    let persist = Operation::Expire {
        key: key.clone(),
        expiry: Expiry::Clear,
        condition: ExpireCondition::default(),
    };
    assert_eq!(
        command(persist),
        Command::Write(WriteCommand::Persist { key: key.clone() })
    );
    let get = Operation::Get { key: key.clone() };
    assert_eq!(command(get), Command::Read(ReadCommand::GetEntry { key }));
}

#[test]
fn a_command_operation_is_parsed_as_over_resp() {
    let argv = vec![Bytes::from_static(b"get"), Bytes::from_static(b"k")];
    let request = Operation::Command { argv }.into_request(Limits::default());
    let Ok(Request::Command(decoded)) = request else {
        panic!("it is a command");
    };
    let get = Command::Read(ReadCommand::Get {
        key: Bytes::from_static(b"k"),
    });
    assert_eq!(decoded.request, crate::resp::Request::Data(get));
    let request = Operation::Command { argv: Vec::new() }.into_request(Limits::default());
    assert!(matches!(request, Ok(Request::Command(_))));
}

#[test]
fn what_cannot_be_is_refused_with_its_reason() {
    let long_key = Bytes::from(vec![b'k'; limits::KEY_BYTES_MAX + 1]);
    let limits = Limits { value_bytes_max: 3 };
    let key = Bytes::from_static(b"k");
    let long_value = Bytes::from_static(b"four");
    let too_large = [
        Operation::Get {
            key: long_key.clone(),
        },
        Operation::Increment {
            key: long_key,
            by: 1,
        },
        Operation::Set {
            key: key.clone(),
            value: long_value.clone(),
            condition: Condition::Always,
            expiry: Expiry::Clear,
            return_previous: false,
        },
        Operation::CompareAndSet {
            key: key.clone(),
            expected: Compare::Anything,
            value: long_value,
            expiry: Expiry::Clear,
        },
    ];
    for operation in too_large {
        let error = operation.into_request(limits).unwrap_err();
        assert_eq!(error.code, ErrorCode::TooLarge);
    }
    let if_none = ExpireCondition {
        if_none: true,
        ..ExpireCondition::default()
    };
    for (expiry, condition) in [
        (Expiry::Keep, ExpireCondition::default()),
        (Expiry::Clear, if_none),
        (
            Expiry::In(1),
            ExpireCondition {
                if_some: true,
                ..if_none
            },
        ),
    ] {
        let key = key.clone();
        let operation = Operation::Expire {
            key,
            expiry,
            condition,
        };
        let error = operation.into_request(limits).unwrap_err();
        assert_eq!(error.code, ErrorCode::Invalid);
    }
}

#[test]
fn an_unknown_operation_is_an_error_that_does_not_close() {
    let header = Header {
        kind: Kind::Request,
        op: 77,
        correlation: 5,
        carries_request_id: false,
        is_stale: false,
        word: 0,
    };
    let mut bytes = BytesMut::new();
    write_frame(&mut bytes, header, MAX, |_| {}).unwrap();
    let frame = only_frame(&bytes);
    let error = Operation::decode(frame.header.op, frame.payload).unwrap_err();
    assert_eq!(error.code, ErrorCode::UnknownCommand);
    let mut out = BytesMut::new();
    write_error(&mut out, 5, 77, &error);
    let frame = only_frame(&out);
    assert_eq!(frame.header.op, 77);
    assert_eq!(frame.header.word, 2);
    assert_eq!(Response::decode(frame), Ok(Err(error)));
}

/// A header with one field replaced, and its frame's checksum made right again.
fn header_with(at: usize, byte: u8) -> BytesMut {
    let mut bytes = BytesMut::new();
    let get = Operation::Get {
        key: Bytes::from_static(b"k"),
    };
    get.write(&mut bytes, 1, 0, MAX).unwrap();
    bytes[at] = byte;
    bytes[20..24].fill(0);
    let sum = crc32c::crc32c(&bytes);
    bytes[20..24].copy_from_slice(&sum.to_le_bytes());
    bytes
}

#[test]
fn headers_are_judged_before_their_payload_is_waited_for() {
    let judge = |mut bytes: BytesMut| {
        bytes.truncate(HEADER_BYTES);
        FrameDecoder::new(100).next(&mut bytes)
    };
    assert_eq!(judge(header_with(4, 2)), Err(FrameError::UnknownVersion(2)));
    assert_eq!(judge(header_with(5, 0)), Err(FrameError::UnknownKind(0)));
    assert_eq!(judge(header_with(5, 10)), Err(FrameError::UnknownKind(10)));
    assert_eq!(
        judge(header_with(7, 0x80)),
        Err(FrameError::UnknownFlags(0x80))
    );
    let too_long = FrameError::TooLong {
        length: 101,
        bytes_max: 100,
    };
    assert_eq!(judge(header_with(0, 101)), Err(too_long));
    assert_eq!(judge(header_with(0, 100)), Ok(None));
    let mut damaged = header_with(0, 5);
    damaged[23] ^= 1;
    let decoded = FrameDecoder::new(100).next(&mut damaged);
    assert_eq!(decoded, Err(FrameError::BadChecksum));
}

#[test]
fn a_header_allocates_nothing_and_says_what_is_missing() {
    let mut buffer = BytesMut::with_capacity(64);
    let mut bytes = header_with(2, 0x10);
    bytes.truncate(HEADER_BYTES);
    buffer.extend_from_slice(&bytes);
    let mut decoder = FrameDecoder::new(limits::FRAME_BYTES_MAX);
    assert_eq!(decoder.next(&mut buffer), Ok(None));
    assert_eq!(buffer.capacity(), 64);
    assert_eq!(decoder.wanted(), 0x10_0005);
    let mut nothing = BytesMut::new();
    assert_eq!(decoder.next(&mut nothing), Ok(None));
    assert_eq!(decoder.wanted(), HEADER_BYTES);
}

#[test]
fn a_count_is_not_believed() {
    let payload = Bytes::from_static(&[0xff, 0xff, 0x0f, 0, 1, 0, 0, 0, b'a']);
    let error = Operation::decode(Op::Command.number(), payload).unwrap_err();
    assert_eq!(error.code, ErrorCode::Invalid);
}

#[test]
fn payloads_are_slices_of_the_read_buffer() {
    let mut buffer = BytesMut::new();
    let get = Operation::Get {
        key: Bytes::from_static(b"key"),
    };
    get.write(&mut buffer, 1, 0, MAX).unwrap();
    get.write(&mut buffer, 2, 0, MAX).unwrap();
    let range = buffer.as_ptr_range();
    let mut decoder = FrameDecoder::new(MAX);
    while let Some(frame) = decoder.next(&mut buffer).unwrap() {
        let Ok(Operation::Get { key }) = Operation::decode(frame.header.op, frame.payload) else {
            panic!("it is a GET");
        };
        assert!(range.contains(&key.as_ptr()));
    }
}

#[test]
fn a_request_too_long_for_the_server_is_not_written() {
    let mut out = BytesMut::from(&b"before"[..]);
    let ping = Operation::Ping {
        payload: Bytes::from_static(&[0; 101]),
    };
    let too_long = TooLong {
        length: 101,
        bytes_max: 100,
    };
    assert_eq!(ping.write(&mut out, 1, 0, 100), Err(too_long));
    assert_eq!(out, b"before"[..]);
    assert_eq!(ping.write(&mut out, 1, 0, 101), Ok(()));
}

#[test]
fn an_answer_too_long_for_the_client_becomes_an_error() {
    let entry = EntryRef {
        value: &[0; 5000],
        revision: Revision::new(1),
        deadline: None,
    };
    let mut out = BytesMut::new();
    write_entry(&mut out, 3, Revision::new(9), Some(entry), 4096);
    let frame = only_frame(&out);
    assert_eq!(frame.header.correlation, 3);
    let error = Response::decode(frame).unwrap().unwrap_err();
    assert_eq!(error.code, ErrorCode::TooLarge);
    assert_eq!(error.outcome, Outcome::Done);
}

#[test]
fn errors_keep_their_outcome_and_fit_every_client() {
    let error = Error::unknown(ErrorCode::Timeout, "x".repeat(10_000));
    let mut out = BytesMut::new();
    write_error(&mut out, 1, 2, &error);
    assert!(out.len() - HEADER_BYTES <= PAYLOAD_BYTES_MIN as usize);
    let read = Response::decode(only_frame(&out)).unwrap().unwrap_err();
    assert_eq!(read.outcome, Outcome::Unknown);
    assert_eq!(read.code, ErrorCode::Timeout);
    assert!(error.message.starts_with(read.message.as_ref()));
}

#[test]
fn every_code_has_its_number_and_back() {
    for number in 1..=22 {
        assert_eq!(number_of_code(code_of_number(number)), number);
    }
    assert_eq!(code_of_number(0), ErrorCode::Internal);
    assert_eq!(code_of_number(999), ErrorCode::Internal);
    for op in Op::ALL {
        assert_eq!(Op::of_number(op.number()), Some(op));
    }
    assert_eq!(Op::of_number(0), None);
    for number in 0..=20 {
        if let Some(kind) = Kind::of_number(number) {
            assert_eq!(kind.number(), number);
        }
        assert_eq!(GoawayCode::of_number(number.into()).number(), number.into());
    }
}

#[test]
fn an_error_inside_a_command_reaches_the_client_as_one() {
    let busy = Error::not_done(ErrorCode::Busy, "the queue is full");
    let mut out = BytesMut::new();
    write_value(&mut out, 1, MAX, |writer| writer.error(&busy));
    assert_eq!(Response::decode(only_frame(&out)), Ok(Err(busy)));
}

#[test]
fn a_reply_that_does_not_fit_is_reported_not_sent() {
    let answer = Answer {
        reply: Reply::Integer(1),
        revision: Revision::new(1),
    };
    let mut out = BytesMut::new();
    write_answer(&mut out, 1, Op::Get, &answer, MAX);
    let error = Response::decode(only_frame(&out)).unwrap().unwrap_err();
    assert_eq!(error.code, ErrorCode::Internal);
}

#[test]
fn control_frames_survive() {
    let credentials = Credentials {
        user: Bytes::new(),
        password: Bytes::from_static(b"secret"),
    };
    let mut out = BytesMut::new();
    credentials.write(&mut out, 7).unwrap();
    let frame = only_frame(&out);
    assert_eq!(frame.header.kind, Kind::Auth);
    assert_eq!(Credentials::decode(frame.payload), Ok(credentials.clone()));
    assert!(!format!("{credentials:?}").contains("secret"));

    let mut out = BytesMut::new();
    write_authenticated(&mut out, 7);
    let response = Response::decode(only_frame(&out)).unwrap().unwrap();
    assert_eq!(response.body, Body::Nothing);

    let goaway = Goaway::of_error(FrameError::BadChecksum);
    assert_eq!(goaway.code, GoawayCode::BadChecksum);
    let mut out = BytesMut::new();
    goaway.write(&mut out);
    assert_eq!(Goaway::decode(only_frame(&out).payload), Ok(goaway));

    let mut out = BytesMut::new();
    control::write_ping(&mut out, 1, &[7; 100]);
    assert_eq!(only_frame(&out).payload.len(), control::PING_BYTES_MAX);
    let mut out = BytesMut::new();
    control::write_cancel(&mut out, 9);
    assert_eq!(only_frame(&out).header.correlation, 9);
}

#[test]
fn prefaces_agree_or_say_why_not() {
    let client = Preface::announce(limits::FRAME_BYTES_DEFAULT);
    let bytes = client.encode();
    assert_eq!(Preface::decode(&bytes), Ok(client));
    assert_eq!(Preface::answer(&client, MAX), Ok(Preface::announce(MAX)));
    let with = |at: usize, byte: u8| {
        let mut bytes = bytes;
        bytes[at] = byte;
        Preface::decode(&bytes)
    };
    assert_eq!(with(0, b'f'), Err(PrefaceError::BadMagic));
    assert_eq!(
        with(4, 0),
        Err(PrefaceError::BadVersions { min: 0, max: 1 })
    );
    assert_eq!(
        with(4, 2),
        Err(PrefaceError::BadVersions { min: 2, max: 1 })
    );
    assert_eq!(with(6, 1), Err(PrefaceError::UnknownFlags(1)));
    assert!(with(12, 0xff).is_ok(), "unknown capabilities are ignored");
    let later = Preface {
        version_min: 2,
        version_max: 3,
        ..client
    };
    assert_eq!(
        Preface::answer(&later, MAX),
        Err(PrefaceError::NoCommonVersion { min: 2, max: 3 })
    );
    let tiny = Preface {
        payload_bytes_max: PAYLOAD_BYTES_MIN - 1,
        ..client
    };
    assert_eq!(
        Preface::decode(&tiny.encode()),
        Err(PrefaceError::PayloadTooShort(PAYLOAD_BYTES_MIN - 1))
    );
}

//! Golden vectors of FLUX version 1: bytes that must never change their meaning. They are checked
//! in both directions, and `docs/wire.md` prints exactly them.

use std::fmt::Write;
use std::path::Path;

use bytes::{Bytes, BytesMut};
use expect_test::expect_file;
use flux_types::{
    Answer, Compare, Condition, Entry, Error, ErrorCode, ExpireCondition, Expiry, Reply, RequestId,
    Revision, SessionId, UnixMillis, Written,
};
use flux_wire::flux::control::{write_cancel, write_ping, write_pong};
use flux_wire::flux::response::{
    write_answer, write_authenticated, write_echo, write_error, write_value,
};
use flux_wire::flux::{
    Asking, Body, Credentials, Frame, FrameDecoder, Goaway, GoawayCode, Kind, Op, Operation,
    Preface, Response, take_request_id,
};
use flux_wire::resp::Value;

const MAX: usize = 9 * 1024 * 1024;

fn bytes(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

/// Requests, each with its correlation id and deadline.
#[expect(clippy::too_many_lines, reason = "a flat list")]
fn requests() -> Vec<(&'static str, u64, u32, Operation)> {
    let key = || bytes("hello");
    vec![
        (
            "GET hello, answer of use for 2,000 ms",
            1,
            2000,
            Operation::Get { key: key() },
        ),
        (
            "SET hello world",
            2,
            0,
            Operation::Set {
                key: key(),
                value: bytes("world"),
                condition: Condition::Always,
                expiry: Expiry::Clear,
                return_previous: false,
            },
        ),
        (
            "SET hello world if absent, expiring in 10,000 ms, returning the previous entry",
            3,
            0,
            Operation::Set {
                key: key(),
                value: bytes("world"),
                condition: Condition::Absent,
                expiry: Expiry::In(10_000),
                return_previous: true,
            },
        ),
        (
            "SET hello world if the value is old, keeping the deadline",
            4,
            0,
            Operation::Set {
                key: key(),
                value: bytes("world"),
                condition: Condition::ValueIs(bytes("old")),
                expiry: Expiry::Keep,
                return_previous: false,
            },
        ),
        (
            "DELETE hello",
            5,
            0,
            Operation::Delete {
                key: key(),
                expected: Compare::Anything,
                return_previous: false,
            },
        ),
        (
            "CAS hello from revision 7 to world, expiring at 1,767,225,600,000",
            6,
            0,
            Operation::CompareAndSet {
                key: key(),
                expected: Compare::RevisionIs(Revision::new(7)),
                value: bytes("world"),
                expiry: Expiry::At(1_767_225_600_000),
            },
        ),
        (
            "INCR hello by -1",
            7,
            0,
            Operation::Increment { key: key(), by: -1 },
        ),
        (
            "EXPIRE hello in 10,000 ms if that is later (GT)",
            8,
            0,
            Operation::Expire {
                key: key(),
                expiry: Expiry::In(10_000),
                condition: ExpireCondition {
                    if_later: true,
                    ..ExpireCondition::default()
                },
            },
        ),
        (
            "PING abc",
            9,
            0,
            Operation::Ping {
                payload: bytes("abc"),
            },
        ),
        (
            "COMMAND MGET a b",
            10,
            0,
            Operation::Command {
                argv: vec![bytes("MGET"), bytes("a"), bytes("b")],
            },
        ),
    ]
}

/// Responses, each with its correlation id, operation and what a client reads.
fn responses() -> Vec<(&'static str, u64, Op, Answer, Body)> {
    let entry = Entry {
        value: bytes("world"),
        revision: Revision::new(7),
        deadline: Some(UnixMillis::new(1_767_225_600_000)),
    };
    let answer = |reply| Answer {
        reply,
        revision: Revision::new(9),
    };
    let written = Written {
        applied: false,
        previous: Some(entry.clone()),
    };
    let applied = Written {
        applied: true,
        previous: None,
    };
    let array = Value::Array(vec![Value::Bulk(bytes("world")), Value::Null]);
    vec![
        (
            "answer to GET: world, of revision 7, expiring; the shard is at revision 9",
            1,
            Op::Get,
            answer(Reply::Entry(Some(Box::new(entry.clone())))),
            Body::Entry(Some(entry)),
        ),
        (
            "answer to GET: absent",
            1,
            Op::Get,
            answer(Reply::Entry(None)),
            Body::Entry(None),
        ),
        (
            "answer to SET: written",
            2,
            Op::Set,
            answer(Reply::Ok),
            Body::Written(applied),
        ),
        (
            "answer to CAS: not written, for the entry was another",
            6,
            Op::CompareAndSet,
            answer(Reply::Written(Box::new(written.clone()))),
            Body::Written(written),
        ),
        (
            "answer to INCR: 41",
            7,
            Op::Increment,
            answer(Reply::Integer(41)),
            Body::Integer(41),
        ),
        (
            "answer to EXPIRE: done",
            8,
            Op::Expire,
            answer(Reply::Integer(1)),
            Body::Flag(true),
        ),
        (
            "answer to COMMAND MGET a b: world and nothing, in RESP3",
            10,
            Op::Command,
            answer(Reply::Array(vec![Reply::Bulk(bytes("world")), Reply::Nil])),
            Body::Value(array),
        ),
    ]
}

fn write(fill: impl FnOnce(&mut BytesMut)) -> BytesMut {
    let mut out = BytesMut::new();
    fill(&mut out);
    out
}

fn errors() -> Vec<(&'static str, BytesMut, Error)> {
    let unsupported = Error::not_done(ErrorCode::UnknownCommand, "operation 77 is not supported");
    let timeout = Error::unknown(ErrorCode::Timeout, "the deadline passed");
    vec![
        (
            "answer to an unknown operation",
            write(|out| write_error(out, 11, 77, &unsupported)),
            unsupported,
        ),
        (
            "answer to SET: the deadline passed, whether it was written is unknown",
            write(|out| write_error(out, 2, Op::Set.number(), &timeout)),
            timeout,
        ),
    ]
}

const ONCE: &str =
    "INCR hello by -1, once: write 7 of its session, of which 5 is the lowest unanswered";

fn request_id() -> RequestId {
    RequestId {
        session: SessionId::parse(b"0190a6d4-7c2e-7d3f-8a1b-2c3d4e5f6071").expect("it is a UUID"),
        sequence: 7,
        lowest_unanswered: 5,
    }
}

fn write_once(out: &mut BytesMut) {
    let increment = Operation::Increment {
        key: bytes("hello"),
        by: -1,
    };
    let asking = Asking {
        correlation: 14,
        deadline_ms: 0,
        request: Some(request_id()),
        is_stale: false,
    };
    let written = increment.write_asking(out, &asking, MAX);
    written.expect("it is short");
}

const STALE: &str = "GET hello, of the node's own replica, which may be behind";

fn write_stale(out: &mut BytesMut) {
    let get = Operation::Get {
        key: bytes("hello"),
    };
    let asking = Asking {
        correlation: 15,
        deadline_ms: 0,
        request: None,
        is_stale: true,
    };
    let written = get.write_asking(out, &asking, MAX);
    written.expect("it is short");
}

fn goaway() -> Goaway {
    Goaway {
        code: GoawayCode::Shutdown,
        drain_ms: 10_000,
        message: "shutting down".to_owned(),
    }
}

fn credentials() -> Credentials {
    Credentials {
        user: Bytes::new(),
        password: bytes("secret"),
    }
}

/// All vectors as text.
fn vectors() -> String {
    let mut text = String::new();
    let mut add = |name: &str, bytes: &[u8]| {
        writeln!(text, "# {name}").expect("a string takes every text");
        for line in bytes.chunks(16) {
            let hex: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
            writeln!(text, "{}", hex.join(" ")).expect("a string takes every text");
        }
    };
    add("preface", &Preface::announce(MAX).encode());
    for (name, correlation, deadline_ms, operation) in requests() {
        let frame = write(|out| {
            operation
                .write(out, correlation, deadline_ms, MAX)
                .expect("it is short");
        });
        add(name, &frame);
    }
    add(ONCE, &write(write_once));
    add(STALE, &write(write_stale));
    for (name, correlation, op, answer, _) in responses() {
        add(
            name,
            &write(|out| write_answer(out, correlation, op, &answer, MAX)),
        );
    }
    add(
        "answer to PING abc",
        &write(|out| write_echo(out, 9, b"abc", MAX)),
    );
    for (name, frame, _) in errors() {
        add(name, &frame);
    }
    add(
        "AUTH of the default user with the password secret",
        &write(|out| credentials().write(out, 12).expect("it is short")),
    );
    add(
        "answer to AUTH: welcome",
        &write(|out| write_authenticated(out, 12)),
    );
    add("CANCEL of request 4", &write(|out| write_cancel(out, 4)));
    add("PING frame", &write(|out| write_ping(out, 13, b"?")));
    add("PONG frame", &write(|out| write_pong(out, 13, b"?")));
    add("GOAWAY", &write(|out| goaway().write(out)));
    text
}

/// Reads vectors back from their text: name and bytes.
fn parse(text: &str) -> Vec<(String, Vec<u8>)> {
    let mut vectors: Vec<(String, Vec<u8>)> = Vec::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("# ") {
            vectors.push((name.to_owned(), Vec::new()));
        } else if let Some((_, bytes)) = vectors.last_mut() {
            let hex = line.split(' ').map(|hex| u8::from_str_radix(hex, 16));
            bytes.extend(hex.map(|byte| byte.expect("a vector is written in hex")));
        }
    }
    vectors
}

fn file() -> String {
    read("testdata/flux-v1.txt")
}

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(path).expect("the file is in the repository")
}

fn frame(vectors: &[(String, Vec<u8>)], name: &str) -> Frame {
    let (_, bytes) = vectors
        .iter()
        .find(|(known, _)| known == name)
        .expect("the vector is in the file");
    let mut buffer = BytesMut::from(bytes.as_slice());
    let frame = FrameDecoder::new(MAX).next(&mut buffer);
    assert!(buffer.is_empty(), "{name} is one frame");
    frame.expect("it is a frame").expect("it is whole")
}

#[test]
fn what_is_encoded_is_what_was_always_encoded() {
    expect_file!["../../testdata/flux-v1.txt"].assert_eq(&vectors());
}

#[test]
fn what_was_encoded_is_still_understood() {
    let vectors = parse(&file());
    let (_, preface) = &vectors[0];
    let preface = preface.as_slice().try_into().expect("it is 16 bytes long");
    assert_eq!(Preface::decode(preface), Ok(Preface::announce(MAX)));
    for (name, correlation, deadline_ms, operation) in requests() {
        let frame = frame(&vectors, name);
        assert_eq!(frame.header.kind, Kind::Request, "{name}");
        assert_eq!(frame.header.correlation, correlation, "{name}");
        assert_eq!(frame.header.word, deadline_ms, "{name}");
        let decoded = Operation::decode(frame.header.op, frame.payload);
        assert_eq!(decoded, Ok(operation), "{name}");
    }
    let mut once = frame(&vectors, ONCE);
    assert!(once.header.carries_request_id);
    assert_eq!(take_request_id(&mut once.payload), Ok(request_id()));
    let by = Operation::decode(once.header.op, once.payload);
    assert!(
        matches!(by, Ok(Operation::Increment { by: -1, .. })),
        "{by:?}"
    );
    let stale = frame(&vectors, STALE);
    assert!(stale.header.is_stale && !stale.header.carries_request_id);
    let get = Operation::decode(stale.header.op, stale.payload);
    assert!(matches!(get, Ok(Operation::Get { .. })), "{get:?}");
    for (name, correlation, _, answer, body) in responses() {
        let frame = frame(&vectors, name);
        assert_eq!(frame.header.correlation, correlation, "{name}");
        let revision = answer.revision;
        let response = Response { revision, body };
        assert_eq!(Response::decode(frame), Ok(Ok(response)), "{name}");
    }
    for (name, _, error) in errors() {
        let decoded = Response::decode(frame(&vectors, name));
        assert_eq!(decoded, Ok(Err(error)), "{name}");
    }
    let name = "AUTH of the default user with the password secret";
    let decoded = Credentials::decode(frame(&vectors, name).payload);
    assert_eq!(decoded, Ok(credentials()));
    let decoded = Goaway::decode(frame(&vectors, "GOAWAY").payload);
    assert_eq!(decoded, Ok(goaway()));
    assert_eq!(
        frame(&vectors, "CANCEL of request 4").header.kind,
        Kind::Cancel
    );
    assert_eq!(frame(&vectors, "PONG frame").header.kind, Kind::Pong);
}

#[test]
fn the_document_prints_the_vectors() {
    const BEGIN: &str = "<!-- golden vectors: written by the tests of flux-wire -->\n```text\n";
    const END: &str = "```\n<!-- end of golden vectors -->";
    let document = read("../../docs/wire.md");
    let (before, rest) = document.split_once(BEGIN).expect("the vectors begin");
    let (_, after) = rest.split_once(END).expect("the vectors end");
    let expected = format!("{before}{BEGIN}{}{END}{after}", vectors());
    expect_file!["../../../../docs/wire.md"].assert_eq(&expected);
}

#[test]
fn an_error_written_as_a_value_is_read_as_an_error() {
    let error = Error::not_done(ErrorCode::Forbidden, "this user may not");
    let out = write(|out| write_value(out, 1, MAX, |writer| writer.error(&error)));
    let mut buffer = out;
    let frame = FrameDecoder::new(MAX).next(&mut buffer);
    let frame = frame.expect("it is a frame").expect("it is whole");
    assert_eq!(Response::decode(frame), Ok(Err(error)));
}

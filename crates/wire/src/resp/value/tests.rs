//! Reading replies back.

use expect_test::{Expect, expect};
use flux_types::{
    Entry, Error, ErrorCode, Outcome, Reply, RequestOutcome, Revision, UnixMillis, Written,
};
use proptest::prelude::*;

use super::*;
use crate::resp::error::{code_word, parse_error};
use crate::resp::{Version, Writer};

fn decode(input: &[u8], piece: usize) -> String {
    let mut decoder = ValueDecoder::new(100);
    let mut buffer = BytesMut::new();
    let mut text = String::new();
    for chunk in input.chunks(piece) {
        buffer.extend_from_slice(chunk);
        loop {
            match decoder.next(&mut buffer) {
                Ok(Some(value)) => text.push_str(&format!("{value:?}\n")),
                Ok(None) => break,
                Err(error) => {
                    text.push_str(&format!("{error}\n"));
                    return text;
                }
            }
        }
    }
    text
}

fn check(input: &[u8], expected: &Expect) {
    let whole = decode(input, input.len().max(1));
    expected.assert_eq(&whole);
    for piece in 1..input.len() {
        assert_eq!(decode(input, piece), whole);
    }
}

#[test]
fn every_type_is_read() {
    check(
        b"+OK\r\n-ERR no\r\n:-5\r\n$2\r\nab\r\n$-1\r\n*-1\r\n_\r\n*0\r\n*2\r\n:1\r\n*1\r\n+a\r\n",
        &expect![[r#"
            Simple(b"OK")
            Error(b"ERR no")
            Integer(-5)
            Bulk(b"ab")
            Null
            Null
            Null
            Array([])
            Array([Integer(1), Array([Simple(b"a")])])
        "#]],
    );
    check(
        b"%1\r\n+a\r\n:1\r\n~1\r\n:1\r\n>2\r\n+m\r\n:1\r\n,1.5\r\n,inf\r\n,nan\r\n#t\r\n#f\r\n(12\r\n=6\r\ntxt:hi\r\n!3\r\nERR\r\n",
        &expect![[r#"
            Map([(Simple(b"a"), Integer(1))])
            Set([Integer(1)])
            Push([Simple(b"m"), Integer(1)])
            Double(1.5)
            Double(inf)
            Double(NaN)
            Boolean(true)
            Boolean(false)
            BigNumber(b"12")
            Verbatim { format: b"txt", text: b"hi" }
            Error(b"ERR")
        "#]],
    );
    check(
        b"|1\r\n+ttl\r\n:9\r\n*2\r\n|0\r\n:1\r\n:2\r\n",
        &expect![[r#"
            Array([Integer(1), Integer(2)])
        "#]],
    );
}

#[test]
fn malformed_replies_are_refused() {
    check(
        b"?\r\n",
        &expect![[r#"
        no reply begins with '?'
    "#]],
    );
    check(
        b":x\r\n",
        &expect![[r#"
        malformed number in a reply
    "#]],
    );
    check(
        b"$-2\r\n",
        &expect![[r#"
        invalid length in a reply
    "#]],
    );
    check(
        b"$101\r\n",
        &expect![[r#"
        invalid length in a reply
    "#]],
    );
    check(
        b"$2\r\nabc\r\n",
        &expect![[r#"
        expected CRLF in a reply
    "#]],
    );
    check(
        b"*-2\r\n",
        &expect![[r#"
        invalid length in a reply
    "#]],
    );
    check(
        b"+a\rb",
        &expect![[r#"
        expected CRLF in a reply
    "#]],
    );
    check(
        b"#x\r\n",
        &expect![[r#"
        malformed number in a reply
    "#]],
    );
    check(
        b"=3\r\nabc\r\n",
        &expect![[r#"
        invalid length in a reply
    "#]],
    );
}

#[test]
fn nesting_is_limited_and_costs_no_stack() {
    let deepest = "*1\r\n".repeat(limits::NESTING_MAX);
    assert_eq!(decode(deepest.as_bytes(), 4096), "");
    let deeper = "*1\r\n".repeat(limits::NESTING_MAX + 1);
    check(
        deeper.as_bytes(),
        &expect![[r#"
        reply nested more than 32 deep
    "#]],
    );
}

#[test]
fn a_header_allocates_nothing() {
    let mut decoder = ValueDecoder::new(limits::FRAME_BYTES_MAX);
    let mut buffer = BytesMut::with_capacity(64);
    buffer.extend_from_slice(b"*1000000000\r\n$60000000\r\n");
    assert_eq!(decoder.next(&mut buffer), Ok(None));
    assert_eq!(decoder.open[0].elements.capacity(), 0);
    assert!(buffer.capacity() <= 64);
    assert!(decoder.wanted() > 59_000_000);
}

#[test]
fn a_length_near_the_end_of_all_numbers_is_refused() {
    let mut buffer = BytesMut::from(&b"$9223372036854775807\r\n"[..]);
    assert_eq!(
        ValueDecoder::new(usize::MAX).next(&mut buffer),
        Err(ValueError::InvalidLength)
    );
}

#[test]
fn an_endless_line_is_refused() {
    let line = vec![b'+'; LINE_BYTES_MAX + 2];
    let mut buffer = BytesMut::from(line.as_slice());
    assert_eq!(
        ValueDecoder::new(100).next(&mut buffer),
        Err(ValueError::TooLongLine)
    );
}

/// What a reply is as a value, in RESP3.
fn value_of(reply: &Reply) -> Value {
    match reply {
        Reply::Ok => Value::Simple(Bytes::from_static(b"OK")),
        Reply::Simple(text) => Value::Simple(Bytes::from_static(text.as_bytes())),
        Reply::Nil | Reply::Aborted | Reply::Entry(None) => Value::Null,
        Reply::Integer(number) => Value::Integer(*number),
        Reply::Bulk(bytes) => Value::Bulk(bytes.clone()),
        Reply::Array(replies) => Value::Array(replies.iter().map(value_of).collect()),
        Reply::Page { cursor, keys } => Value::Array(vec![
            Value::Bulk(Bytes::from(cursor.to_string())),
            Value::Array(keys.iter().cloned().map(Value::Bulk).collect()),
        ]),
        Reply::Entry(Some(entry)) => value_of_entry(entry),
        Reply::Written(written) => Value::Map(vec![
            (bulk("applied"), Value::Boolean(written.applied)),
            (
                bulk("previous"),
                written
                    .previous
                    .as_ref()
                    .map_or(Value::Null, value_of_entry),
            ),
        ]),
        Reply::Outcome(outcome) => {
            let word = outcome.outcome.as_str();
            let word = Value::Simple(Bytes::from_static(word.as_bytes()));
            let reply = outcome.reply.as_ref().map(value_of);
            Value::Array(std::iter::once(word).chain(reply).collect())
        }
        Reply::Error(error) => Value::Error(Bytes::from(format!("{} {}", code_word(error), error))),
    }
}

fn value_of_entry(entry: &Entry) -> Value {
    let integer = |number: u64| Value::Integer(i64::try_from(number).unwrap());
    Value::Map(vec![
        (bulk("value"), Value::Bulk(entry.value.clone())),
        (bulk("revision"), integer(entry.revision.get())),
        (
            bulk("deadline"),
            entry.deadline.map_or(Value::Null, |d| integer(d.get())),
        ),
    ])
}

fn bulk(text: &'static str) -> Value {
    Value::Bulk(Bytes::from_static(text.as_bytes()))
}

fn some_bytes() -> impl Strategy<Value = Bytes> {
    proptest::collection::vec(any::<u8>(), 0..20).prop_map(Bytes::from)
}

fn some_entry() -> impl Strategy<Value = Entry> {
    (
        some_bytes(),
        0..1_u64 << 60,
        proptest::option::of(0..1_u64 << 60),
    )
        .prop_map(|(value, revision, deadline)| Entry {
            value,
            revision: Revision::new(revision),
            deadline: deadline.map(UnixMillis::new),
        })
}

fn some_reply() -> impl Strategy<Value = Reply> {
    let leaf = prop_oneof![
        Just(Reply::Ok),
        Just(Reply::Simple("string")),
        Just(Reply::Nil),
        Just(Reply::Aborted),
        any::<i64>().prop_map(Reply::Integer),
        some_bytes().prop_map(Reply::Bulk),
        (any::<u64>(), proptest::collection::vec(some_bytes(), 0..4))
            .prop_map(|(cursor, keys)| Reply::Page { cursor, keys }),
        proptest::option::of(some_entry()).prop_map(|entry| Reply::Entry(entry.map(Box::new))),
        (any::<bool>(), proptest::option::of(some_entry())).prop_map(|(applied, previous)| {
            Reply::Written(Box::new(Written { applied, previous }))
        }),
        "[a-z ]{1,20}".prop_map(|text| { Reply::Error(Error::not_done(ErrorCode::Busy, text)) }),
        proptest::option::of(some_bytes()).prop_map(|kept| {
            Reply::Outcome(Box::new(RequestOutcome {
                outcome: Outcome::Done,
                reply: kept.map(Reply::Bulk),
            }))
        }),
    ];
    leaf.prop_recursive(3, 20, 5, |inner| {
        proptest::collection::vec(inner, 0..5).prop_map(Reply::Array)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn replies_survive_every_split(reply in some_reply()) {
        let mut bytes = BytesMut::new();
        Writer::new(&mut bytes, Version::Resp3).reply(&reply);
        let expected = value_of(&reply);
        for split in 0..bytes.len() {
            let mut decoder = ValueDecoder::new(100);
            let mut buffer = BytesMut::from(&bytes[..split]);
            prop_assert_eq!(decoder.next(&mut buffer), Ok(None));
            buffer.extend_from_slice(&bytes[split..]);
            prop_assert_eq!(decoder.next(&mut buffer), Ok(Some(expected.clone())));
            prop_assert!(buffer.is_empty());
        }
    }

    #[test]
    fn any_bytes_mean_the_same_in_any_pieces(
        input in proptest::collection::vec(
            prop_oneof![
                1 => any::<u8>(),
                4 => proptest::sample::select(b"*$+-:_%~>|,#(!=\r\n0123tfa".to_vec()),
            ],
            0..40,
        ),
        piece in 1_usize..40,
    ) {
        prop_assert_eq!(decode(&input, 40), decode(&input, piece));
    }
}

#[test]
fn errors_survive_their_text() {
    let all = [
        ErrorCode::CrossShard,
        ErrorCode::TransactionAborted,
        ErrorCode::Unauthenticated,
        ErrorCode::WrongPassword,
        ErrorCode::Forbidden,
        ErrorCode::Busy,
        ErrorCode::Timeout,
        ErrorCode::OutOfMemory,
        ErrorCode::NoSpace,
        ErrorCode::NotLeader,
        ErrorCode::Unavailable,
        ErrorCode::ShuttingDown,
        ErrorCode::Invalid,
    ];
    for code in all {
        let error = Error::not_done(code, "what was wrong");
        let text = format!("{} {error}", code_word(&error));
        assert_eq!(parse_error(&text), error);
    }
    let not_kept = Error {
        code: ErrorCode::ReplyNotKept,
        message: "it was long".into(),
        outcome: Outcome::Done,
    };
    assert_eq!(parse_error("NOTKEPT it was long"), not_kept);
    let uncertain = Error::unknown(ErrorCode::Timeout, "it may have happened");
    assert_eq!(parse_error("UNCERTAIN it may have happened"), uncertain);
    for (text, code) in [
        ("ERR unknown command 'x'", ErrorCode::UnknownCommand),
        (
            "ERR wrong number of arguments for 'get' command",
            ErrorCode::WrongArity,
        ),
        (
            "ERR value is not an integer or out of range",
            ErrorCode::NotAnInteger,
        ),
        ("ERR value is not a valid float", ErrorCode::NotAFloat),
        ("ERR no such key", ErrorCode::NoSuchKey),
    ] {
        assert_eq!(parse_error(text).code, code, "{text}");
    }
    let foreign = parse_error("WRONGTYPE Operation against a key");
    assert_eq!(foreign.code, ErrorCode::Invalid);
    assert_eq!(foreign.message, "WRONGTYPE Operation against a key");
}

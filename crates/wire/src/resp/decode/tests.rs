//! What the decoder makes of bytes, however they are split.

use std::fmt::Write;

use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;
use crate::resp::encode_command;

const SMALL: Limits = Limits {
    value_bytes_max: 64,
};

fn decoder(is_authenticated: bool) -> Decoder {
    let mut decoder = Decoder::new(SMALL);
    decoder.set_authenticated(is_authenticated);
    decoder
}

/// All commands of `input`, arriving in pieces, and how it ended.
fn argvs(input: &[u8], piece: usize, is_authenticated: bool) -> String {
    let mut decoder = decoder(is_authenticated);
    let mut buffer = BytesMut::new();
    let mut text = String::new();
    for chunk in input.chunks(piece) {
        buffer.extend_from_slice(chunk);
        loop {
            match decoder.next_argv(&mut buffer) {
                Ok(Some(argv)) => {
                    let words: Vec<_> = argv.iter().map(|a| a.escape_ascii().to_string()).collect();
                    writeln!(text, "[{}]", words.join("|")).unwrap();
                }
                Ok(None) => break,
                Err(error) => {
                    writeln!(text, "{error}").unwrap();
                    let again = decoder.next_argv(&mut buffer);
                    assert_eq!(again, Err(error), "an error is for ever");
                    return text;
                }
            }
        }
    }
    if !buffer.is_empty() {
        writeln!(text, "({} bytes wait)", buffer.len()).unwrap();
    }
    text
}

/// Asserts what `input` means, whole and in pieces of every size.
fn check(input: &[u8], expected: &Expect) {
    check_as(input, true, expected);
}

fn check_as(input: &[u8], is_authenticated: bool, expected: &Expect) {
    let whole = argvs(input, input.len().max(1), is_authenticated);
    expected.assert_eq(&whole);
    // The longest inputs are tried in fewer pieces, to stay quick.
    let step = input.len() / 64 + 1;
    for piece in (1..input.len()).step_by(step) {
        assert_eq!(argvs(input, piece, is_authenticated), whole);
    }
}

#[test]
fn commands_are_arrays_or_lines_and_nothing_is_skipped() {
    check(b"", &expect![""]);
    check(
        b"*1\r\n$4\r\nPING\r\nGET k\r\n\r\n \r\n*0\r\n*-1\r\n*2\r\n$3\r\nGET\r\n$0\r\n\r\nPING\n",
        &expect![[r"
            [PING]
            [GET|k]
            [GET|]
            [PING]
        "]],
    );
    check(
        b"*2\r\n$4\r\nECHO\r\n$6\r\na\r\n$1\0\r\n",
        &expect![[r"
        [ECHO|a\r\n$1\x00]
    "]],
    );
    check(
        b"SET k \"a b\" 'c'\r\n",
        &expect![[r"
        [SET|k|a b|c]
    "]],
    );
}

#[test]
fn partial_commands_wait() {
    check(
        b"*",
        &expect![[r"
        (1 bytes wait)
    "]],
    );
    check(
        b"*2\r\n$3\r\nGET\r\n$3\r\nab",
        &expect![[r"
        (19 bytes wait)
    "]],
    );
    check(
        b"*1\r\n$4\r\nPING\r",
        &expect![[r"
        (13 bytes wait)
    "]],
    );
    check(
        b"GET k",
        &expect![[r"
        (5 bytes wait)
    "]],
    );
    check(
        b"*1000000\r\n",
        &expect![[r"
        (10 bytes wait)
    "]],
    );
}

#[test]
fn malformed_counts_are_refused() {
    for header in [
        "*a\r\n",
        "*\r\n",
        "*1.5\r\n",
        "* 1\r\n",
        "*01\r\n",
        "*1048577\r\n",
    ] {
        check(
            header.as_bytes(),
            &expect![[r"
            Protocol error: invalid multibulk length
        "]],
        );
    }
    check(
        b"*99999999999999999999\r\n",
        &expect![[r"
        Protocol error: invalid multibulk length
    "]],
    );
    check(
        &[b'*'; 64],
        &expect![[r"
        Protocol error: too big mbulk count string
    "]],
    );
    check(
        b"*1\rx",
        &expect![[r"
        Protocol error: expected CRLF
    "]],
    );
}

#[test]
fn malformed_arguments_are_refused() {
    check(
        b"*1\r\nxPING\r\n",
        &expect![[r"
        Protocol error: expected '$', got 'x'
    "]],
    );
    check(
        b"*1\r\n\x80",
        &expect![[r"
        Protocol error: expected '$', got '\x80'
    "]],
    );
    for bulk in ["$-1\r\n", "$x\r\n", "$\r\n", "$1048641\r\n"] {
        let input = format!("*1\r\n{bulk}");
        check(
            input.as_bytes(),
            &expect![[r"
            Protocol error: invalid bulk length
        "]],
        );
    }
    check(
        b"*1\r\n$4\r\nPINGxx",
        &expect![[r"
        Protocol error: expected CRLF
    "]],
    );
    check(
        b"*1\r\n$4\r\nPING\rx",
        &expect![[r"
        Protocol error: expected CRLF
    "]],
    );
    let mut endless = b"*1\r\n$".to_vec();
    endless.resize(64, b'1');
    check(
        &endless,
        &expect![[r"
        Protocol error: too big bulk count string
    "]],
    );
}

#[test]
fn inline_commands_end_and_are_balanced() {
    check(
        b"GET \"k\r\n",
        &expect![[r"
        Protocol error: unbalanced quotes in request
    "]],
    );
    let line = vec![b'a'; limits::INLINE_BYTES_MAX + 1];
    check(
        &line,
        &expect![[r"
        Protocol error: too big inline request
    "]],
    );
    let mut line = vec![b'a'; limits::INLINE_BYTES_MAX];
    line.push(b'\n');
    assert!(argvs(&line, 4096, true).starts_with("[aaa"));
    line.insert(0, b'a');
    assert_eq!(
        argvs(&line, 4096, true),
        "Protocol error: too big inline request\n"
    );
}

#[test]
fn little_is_accepted_before_authentication() {
    check_as(
        b"*10\r\n",
        false,
        &expect![[r"
        (5 bytes wait)
    "]],
    );
    check_as(
        b"*11\r\n",
        false,
        &expect![[r"
        Protocol error: unauthenticated multibulk length
    "]],
    );
    check_as(
        b"*1\r\n$16384\r\n",
        false,
        &expect![[r"
        (12 bytes wait)
    "]],
    );
    check_as(
        b"*1\r\n$16385\r\n",
        false,
        &expect![[r"
        Protocol error: unauthenticated bulk length
    "]],
    );
    check_as(
        b"a b c d e f g h i j k\r\n",
        false,
        &expect![[r"
        Protocol error: unauthenticated multibulk length
    "]],
    );
    check_as(
        &[b'a'; 16385],
        false,
        &expect![[r"
        Protocol error: too big inline request
    "]],
    );
}

#[test]
fn all_arguments_together_are_limited() {
    // Half a gigabyte of zeros that no page of memory stands behind: the decoder is put where it
    // would be after having read them.
    let mut decoder = Decoder::new(Limits::default());
    decoder.set_authenticated(true);
    decoder.arguments = 2;
    decoder.seen = limits::COMMAND_BYTES_MAX - 20;
    let mut buffer = BytesMut::zeroed(limits::COMMAND_BYTES_MAX);
    buffer[decoder.seen..][..6].copy_from_slice(b"$100\r\n");
    let refused = decoder.next_argv(&mut buffer);
    assert_eq!(refused, Err(ProtocolError::TooBigCommand));
}

#[test]
fn a_header_allocates_nothing() {
    let mut decoder = decoder(true);
    let mut buffer = BytesMut::with_capacity(64);
    buffer.extend_from_slice(b"*1000000\r\n$60\r\nab");
    assert_eq!(decoder.next_argv(&mut buffer), Ok(None));
    assert_eq!(decoder.spans.capacity(), 0);
    assert_eq!(buffer.capacity(), 64);
}

#[test]
fn a_partial_command_costs_few_bytes_for_each_argument_received() {
    let mut decoder = decoder(true);
    let mut buffer = BytesMut::from(&b"*1000000\r\n"[..]);
    for _ in 0..100_000 {
        buffer.extend_from_slice(b"$0\r\n\r\n");
    }
    assert_eq!(decoder.next_argv(&mut buffer), Ok(None));
    let spent = decoder.spans.capacity() * size_of::<Span>();
    assert!(
        spent <= 4 * buffer.len(),
        "{spent} bytes for {}",
        buffer.len()
    );
    assert_eq!(decoder.wanted(), 900_000 * SMALLEST_BULK_BYTES);
}

#[test]
fn spans_are_given_back_after_a_large_command() {
    let mut decoder = decoder(true);
    let mut buffer = BytesMut::new();
    encode_command(&mut buffer, &vec!["a"; 100_000]);
    assert_eq!(
        decoder.next_argv(&mut buffer).unwrap().unwrap().len(),
        100_000
    );
    assert!(decoder.spans.capacity() <= SPANS_KEPT);
}

#[test]
fn arguments_are_slices_of_the_read_buffer() {
    let mut buffer = BytesMut::new();
    for _ in 0..64 {
        encode_command(&mut buffer, &["SET", "key", "value"]);
        encode_command(&mut buffer, &["INCRBY", "key", "17"]);
    }
    let range = buffer.as_ptr_range();
    let mut decoder = decoder(true);
    let mut count = 0;
    while let Some(decoded) = decoder.next(&mut buffer).unwrap() {
        let Request::Data(command) = decoded.request else {
            unreachable!("all are data commands");
        };
        command.for_each_key(&mut |key| assert!(range.contains(&key.as_ptr())));
        count += 1;
    }
    assert_eq!(count, 128);
}

#[test]
fn room_for_a_read_grows_with_what_has_arrived() {
    let mut buffer = BytesMut::new();
    crate::reserve_for_read(&mut buffer, 0);
    assert!(buffer.capacity() >= crate::READ_BYTES_MIN);
    let mut buffer = BytesMut::new();
    crate::reserve_for_read(&mut buffer, limits::VALUE_BYTES_MAX);
    assert!(buffer.capacity() <= 2 * crate::READ_BYTES_MIN);
    buffer.resize(1 << 20, 0);
    crate::reserve_for_read(&mut buffer, limits::VALUE_BYTES_MAX);
    assert!(buffer.capacity() <= 4 << 20);
    assert!(buffer.capacity() >= 2 << 20);
}

#[test]
fn wanted_is_what_the_command_in_hand_lacks() {
    let mut decoder = decoder(true);
    let mut buffer = BytesMut::from(&b"*2\r\n$3\r\nGET\r\n$10\r\nabc"[..]);
    assert_eq!(decoder.next_argv(&mut buffer), Ok(None));
    assert_eq!(decoder.wanted(), 9);
    buffer.extend_from_slice(b"defghij\r\n");
    assert!(decoder.next_argv(&mut buffer).unwrap().is_some());
    assert_eq!(decoder.wanted(), 0);
}

/// What the direct way and the general way make of `input`; they must agree.
fn both_ways(input: &[u8]) -> (String, String) {
    let mut direct = decoder(true);
    let mut buffer = BytesMut::from(input);
    let direct = match direct.next(&mut buffer) {
        Ok(decoded) => format!("{:?} {:?}", decoded.map(|d| d.request), buffer),
        Err(error) => error.to_string(),
    };
    let mut general = decoder(true);
    let mut buffer = BytesMut::from(input);
    let general = match general.next_argv(&mut buffer) {
        Ok(argv) => {
            let request = argv.map(|argv| parse(argv, SMALL).request);
            format!("{request:?} {buffer:?}")
        }
        Err(error) => error.to_string(),
    };
    (direct, general)
}

#[test]
fn the_direct_way_agrees_with_the_general_one() {
    for input in [
        "*2\r\n$3\r\nGET\r\n$1\r\nk\r\nrest",
        "*2\r\n$3\r\nget\r\n$0\r\n\r\n",
        "*3\r\n$3\r\nSeT\r\n$1\r\nk\r\n$2\r\nvv\r\nrest",
        "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$64\r\n0123456789012345678901234567890123456789012345678901234567890123\r\n",
        "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$65\r\n01234567890123456789012345678901234567890123456789012345678901234\r\n",
        "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$01\r\nv\r\n",
        "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$-1\r\n",
        "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$2\r\nvvv\r\n",
        "*3\r\n$3\r\nGET\r\n$1\r\nk\r\n$1\r\nv\r\n",
        "*2\r\n$3\r\nSET\r\n$1\r\nk\r\n",
        "*2\r\n$3\r\nTTL\r\n$1\r\nk\r\n",
        "*3\r\n$3\r\nTTL\r\n$1\r\nk\r\n$1\r\nv\r\n",
        "*2\r\n$3\r\nGET\r\n:1\r\nk\r\n",
        "*2\r\n$3\r\nGET\r\n$\r\nk\r\n",
        "*2\r\n$3\r\nGET\r\n$999999999\r\nk\r\n",
    ] {
        for end in 0..=input.len() {
            let (direct, general) = both_ways(&input.as_bytes()[..end]);
            assert_eq!(direct, general, "{end} bytes of {input:?}");
        }
    }
}

#[test]
fn keys_too_long_are_answered_and_the_connection_lives() {
    let key = vec![b'k'; limits::KEY_BYTES_MAX + 1];
    let mut buffer = BytesMut::new();
    encode_command(&mut buffer, &[b"GET", key.as_slice()]);
    encode_command(&mut buffer, &["PING"]);
    let mut decoder = decoder(true);
    let first = decoder.next(&mut buffer).unwrap().unwrap();
    let Request::Invalid(error) = first.request else {
        panic!("the key is too long");
    };
    assert_eq!(error.code, ErrorCode::TooLarge);
    assert!(decoder.next(&mut buffer).unwrap().is_some());
}

fn some_argv() -> impl Strategy<Value = Vec<Vec<u8>>> {
    proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..20), 1..8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn pipelines_survive_every_split(pipeline in proptest::collection::vec(some_argv(), 1..5)) {
        let mut bytes = BytesMut::new();
        for argv in &pipeline {
            encode_command(&mut bytes, argv);
        }
        for split in 0..=bytes.len() {
            let mut decoder = decoder(true);
            let mut buffer = BytesMut::from(&bytes[..split]);
            let mut decoded: Vec<Vec<Bytes>> = Vec::new();
            while let Some(argv) = decoder.next_argv(&mut buffer).unwrap() {
                decoded.push(argv);
            }
            // Every truncation is a beginning of the pipeline and no error.
            prop_assert!(decoded.len() <= pipeline.len());
            buffer.extend_from_slice(&bytes[split..]);
            while let Some(argv) = decoder.next_argv(&mut buffer).unwrap() {
                decoded.push(argv);
            }
            prop_assert_eq!(&decoded, &pipeline);
            prop_assert!(buffer.is_empty());
        }
    }

    #[test]
    fn any_bytes_mean_the_same_in_any_pieces(
        input in proptest::collection::vec(
            prop_oneof![any::<u8>(), proptest::sample::select(b"*$\r\n0123-\"'\\x ".to_vec())],
            0..60,
        ),
        piece in 1_usize..60,
    ) {
        prop_assert_eq!(argvs(&input, 60, true), argvs(&input, piece, true));
        prop_assert_eq!(argvs(&input, 60, false), argvs(&input, piece, false));
    }

    #[test]
    fn the_direct_way_agrees_on_damaged_requests(
        at in 0_usize..36,
        byte in any::<u8>(),
        value in "[a-z]{0,5}",
    ) {
        let mut input = BytesMut::new();
        encode_command(&mut input, &["SET", "key", &value]);
        if let Some(target) = input.get_mut(at) {
            *target = byte;
        }
        let (direct, general) = both_ways(&input);
        prop_assert_eq!(direct, general);
    }
}

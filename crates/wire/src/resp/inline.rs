//! Commands written as one line, with the quotes and escapes of `redis-cli`.

use bytes::{BufMut, Bytes, BytesMut};

use super::decode::ProtocolError;

/// Splits a line (without its line feed) into arguments: words between white space; `"…"` with
/// `\n \r \t \b \a \xHH` and `\` before any other byte for that byte; `'…'` with `\'` only. A
/// closing quote must end its argument.
///
/// # Errors
/// A quote does not end, or something follows its end.
pub(super) fn split(line: &[u8]) -> Result<Vec<Bytes>, ProtocolError> {
    let mut argv = Vec::new();
    let mut rest = line;
    loop {
        rest = skip_space(rest);
        if rest.is_empty() {
            return Ok(argv);
        }
        let mut argument = BytesMut::new();
        rest = word(rest, &mut argument)?;
        argv.push(argument.freeze());
    }
}

/// What C's `isspace` holds for space.
const fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c)
}

fn skip_space(bytes: &[u8]) -> &[u8] {
    let start = bytes.iter().position(|&byte| !is_space(byte));
    start
        .and_then(|start| bytes.get(start..))
        .unwrap_or_default()
}

/// Reads one argument into `argument`; answers what follows it.
fn word<'a>(mut rest: &'a [u8], argument: &mut BytesMut) -> Result<&'a [u8], ProtocolError> {
    while let Some((&byte, tail)) = rest.split_first() {
        match byte {
            b'"' => return double_quoted(tail, argument),
            b'\'' => return single_quoted(tail, argument),
            b' ' | b'\n' | b'\r' | b'\t' | 0 => return Ok(tail),
            _ => argument.put_u8(byte),
        }
        rest = tail;
    }
    Ok(rest)
}

fn double_quoted<'a>(
    mut rest: &'a [u8],
    argument: &mut BytesMut,
) -> Result<&'a [u8], ProtocolError> {
    loop {
        rest = match rest {
            [] | [b'\\'] => return Err(ProtocolError::UnbalancedQuotes),
            [b'"', tail @ ..] => return end_of_quote(tail),
            [b'\\', b'x', high, low, tail @ ..]
                if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() =>
            {
                argument.put_u8(hex_digit(*high) * 16 + hex_digit(*low));
                tail
            }
            [b'\\', escaped, tail @ ..] => {
                argument.put_u8(match escaped {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 0x08,
                    b'a' => 0x07,
                    other => *other,
                });
                tail
            }
            [byte, tail @ ..] => {
                argument.put_u8(*byte);
                tail
            }
        };
    }
}

fn single_quoted<'a>(
    mut rest: &'a [u8],
    argument: &mut BytesMut,
) -> Result<&'a [u8], ProtocolError> {
    loop {
        rest = match rest {
            [] => return Err(ProtocolError::UnbalancedQuotes),
            [b'\\', b'\'', tail @ ..] => {
                argument.put_u8(b'\'');
                tail
            }
            [b'\'', tail @ ..] => return end_of_quote(tail),
            [byte, tail @ ..] => {
                argument.put_u8(*byte);
                tail
            }
        };
    }
}

fn end_of_quote(rest: &[u8]) -> Result<&[u8], ProtocolError> {
    match rest.first() {
        Some(&byte) if !is_space(byte) => Err(ProtocolError::UnbalancedQuotes),
        _ => Ok(rest),
    }
}

/// The value of a hexadecimal digit, which the caller has seen to be one.
const fn hex_digit(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        b'a'..=b'f' => digit - b'a' + 10,
        _ => digit.wrapping_sub(b'A').wrapping_add(10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &[u8], argv: &[&[u8]]) {
        let split = split(line).expect("the line is balanced");
        assert_eq!(split, argv, "{}", line.escape_ascii());
    }

    #[test]
    fn words_are_split_at_any_white_space() {
        check(b"", &[]);
        check(b"  \t\r", &[]);
        check(b"PING", &[b"PING"]);
        check(b" SET\tk  v \r", &[b"SET", b"k", b"v"]);
    }

    #[test]
    fn quotes_and_escapes_are_those_of_redis_cli() {
        check(br#"SET "a b" 'c d'"#, &[b"SET", b"a b", b"c d"]);
        check(
            br#"ECHO "\n\r\t\b\a\\\"\q""#,
            &[b"ECHO", b"\n\r\t\x08\x07\\\"q"],
        );
        check(br#"ECHO "\x00\xfF\xAb\x4""#, &[b"ECHO", b"\x00\xff\xabx4"]);
        check(br"ECHO 'it\'s \n raw'", &[b"ECHO", br"it's \n raw"]);
        check(br#"ECHO "" ''"#, &[b"ECHO", b"", b""]);
        check(br#"ECHO pre"fix" end"#, &[b"ECHO", b"prefix", b"end"]);
    }

    #[test]
    fn unbalanced_quotes_are_refused() {
        for line in [
            br#"ECHO "a"#.as_slice(),
            br#"ECHO "a\"#,
            br#"ECHO "a\""#,
            b"ECHO 'a",
            b"ECHO 'a\\'",
            br#"ECHO "a"b"#,
            b"ECHO 'a'b",
        ] {
            let refused = split(line);
            assert_eq!(
                refused,
                Err(ProtocolError::UnbalancedQuotes),
                "{}",
                line.escape_ascii()
            );
        }
    }
}

//! Splitting a line into words as redis-cli does: quotes, and escapes within double quotes.

/// Splits a line into words; `None` if a quote is left open or is followed by something else than
/// a space.
///
/// Within `"…"`: `\n \r \t \b \a \\ \" \xHH`. Within `'…'`: `\'` only. Elsewhere a backslash is
/// itself.
pub(crate) fn split(line: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut words = Vec::new();
    let mut rest = line;
    loop {
        rest = rest.trim_ascii_start();
        if rest.is_empty() {
            return Some(words);
        }
        let mut word = Vec::new();
        loop {
            match rest.split_first() {
                None => break,
                Some((b'"', after)) => {
                    rest = double_quoted(after, &mut word)?;
                    ends_word(rest)?;
                    break;
                }
                Some((b'\'', after)) => {
                    rest = single_quoted(after, &mut word)?;
                    ends_word(rest)?;
                    break;
                }
                Some((byte, after)) => {
                    if byte.is_ascii_whitespace() || *byte == 0 {
                        break;
                    }
                    word.push(*byte);
                    rest = after;
                }
            }
        }
        words.push(word);
    }
}

/// After a closing quote a word must be over.
fn ends_word(rest: &[u8]) -> Option<()> {
    rest.first()
        .is_none_or(u8::is_ascii_whitespace)
        .then_some(())
}

fn double_quoted<'a>(mut rest: &'a [u8], word: &mut Vec<u8>) -> Option<&'a [u8]> {
    loop {
        rest = match rest {
            [b'"', after @ ..] => return Some(after),
            [b'\\', b'x', high, low, after @ ..]
                if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() =>
            {
                word.push(hex(*high) << 4 | hex(*low));
                after
            }
            [b'\\', escaped, after @ ..] => {
                word.push(match escaped {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 0x08,
                    b'a' => 0x07,
                    other => *other,
                });
                after
            }
            [byte, after @ ..] => {
                word.push(*byte);
                after
            }
            [] => return None,
        };
    }
}

fn single_quoted<'a>(mut rest: &'a [u8], word: &mut Vec<u8>) -> Option<&'a [u8]> {
    loop {
        rest = match rest {
            [b'\'', after @ ..] => return Some(after),
            [b'\\', b'\'', after @ ..] => {
                word.push(b'\'');
                after
            }
            [byte, after @ ..] => {
                word.push(*byte);
                after
            }
            [] => return None,
        };
    }
}

fn hex(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        b'a'..=b'f' => digit - b'a' + 10,
        _ => digit.wrapping_sub(b'A').wrapping_add(10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, expected: &[&[u8]]) {
        let words = split(line.as_bytes()).unwrap_or_else(|| panic!("{line}"));
        assert_eq!(words, expected, "{line}");
    }

    #[test]
    fn words_are_split_at_spaces_and_kept_together_by_quotes() {
        check("", &[]);
        check("  set  a\tb ", &[b"set", b"a", b"b"]);
        check(
            r#"set "two words" 'and more'"#,
            &[b"set", b"two words", b"and more"],
        );
        check(r#"set a """#, &[b"set", b"a", b""]);
        check(r"set a\nb c", &[b"set", br"a\nb", b"c"]);
        check("set ключ", &[b"set", "ключ".as_bytes()]);
        check(r#"a"b c""#, &[b"ab c"]);
    }

    #[test]
    fn escapes_are_those_of_redis_cli() {
        check(
            r#""\x00\xfF\n\r\t\b\a\"\\\q\xz""#,
            &[b"\x00\xff\n\r\t\x08\x07\"\\qxz"],
        );
        check(r"'it\'s \n'", &[br"it's \n"]);
    }

    #[test]
    fn an_open_quote_or_one_within_a_word_is_refused() {
        for line in [
            r#"get "a"#,
            "get 'a",
            r#"get "a"b"#,
            "get 'a'b",
            r#"get "a\"#,
        ] {
            assert_eq!(split(line.as_bytes()), None, "{line}");
        }
    }
}

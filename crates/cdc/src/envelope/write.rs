//! Numbers and texts as bytes at the end of a buffer, without a detour.

use std::borrow::Cow;

/// Digits of the largest number.
const DIGITS_MAX: usize = 20;

/// A number in decimal, with leading zeros up to `width`.
pub(crate) fn decimal(out: &mut Vec<u8>, mut number: u64, width: usize) {
    let mut digits = [b'0'; DIGITS_MAX];
    let mut length = 0;
    for digit in digits.iter_mut().rev() {
        *digit += u8::try_from(number % 10).unwrap_or(0);
        number /= 10;
        length += 1;
        if number == 0 {
            break;
        }
    }
    let from = DIGITS_MAX.saturating_sub(length.max(width));
    out.extend_from_slice(digits.get(from..).unwrap_or_default());
}

/// The `id` of a change.
pub(crate) fn id(out: &mut Vec<u8>, shard: u32, term: u64, revision: u64) {
    decimal(out, u64::from(shard), 0);
    out.push(b':');
    decimal(out, term, 0);
    out.push(b':');
    decimal(out, revision, 0);
}

/// Bytes as they stand in an event: the text that they are, or base64 of them.
pub(super) fn text(bytes: &[u8], base64: impl base64::Engine) -> (Cow<'_, str>, bool) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Cow::Borrowed(text), false),
        Err(_) => (Cow::Owned(base64.encode(bytes)), true),
    }
}

/// A text in JSON, with its quotes.
pub(super) fn json_text(out: &mut Vec<u8>, text: &str) {
    let is_plain = |byte: u8| byte >= 0x20 && byte != b'"' && byte != b'\\';
    if text.bytes().all(is_plain) {
        out.push(b'"');
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
        return;
    }
    // Writing to memory cannot fail, nor can a text.
    let written = serde_json::to_writer(out, text);
    debug_assert!(written.is_ok());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn numbers_are_written_as_the_standard_library_writes_them(number: u64, width in 0_usize..=20) {
            let mut out = b"x".to_vec();
            decimal(&mut out, number, width);
            prop_assert_eq!(String::from_utf8(out).unwrap(), format!("x{number:0width$}"));
        }

        #[test]
        fn texts_are_written_as_serde_writes_them(text: String) {
            let mut out = Vec::new();
            json_text(&mut out, &text);
            prop_assert_eq!(out, serde_json::to_vec(&text).unwrap());
        }
    }

    #[test]
    fn the_smallest_and_the_largest_number_are_written() {
        for number in [0, 9, 10, u64::MAX] {
            let mut out = Vec::new();
            decimal(&mut out, number, 0);
            assert_eq!(out, number.to_string().into_bytes());
        }
    }
}

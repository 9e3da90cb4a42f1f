//! Numbers as text, exactly as strictly as Redis reads them.

/// Reads a signed 64-bit integer: digits with an optional `-`, no `+`, no space, no leading zero,
/// no `-0`.
#[must_use]
pub fn parse_i64(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text.split_first()? {
        (b'-', rest) => (true, rest),
        _ => (false, text),
    };
    let magnitude = parse_u64(digits)?;
    if negative {
        if magnitude == 0 {
            return None;
        }
        0_i64.checked_sub_unsigned(magnitude)
    } else {
        i64::try_from(magnitude).ok()
    }
}

/// Reads an unsigned 64-bit integer: digits, no sign, no space, no leading zero.
#[must_use]
pub fn parse_u64(text: &[u8]) -> Option<u64> {
    match text {
        [] | [b'0', _, ..] => return None,
        _ => {}
    }
    let mut number = 0_u64;
    for &byte in text {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        number = number.checked_mul(10)?.checked_add(u64::from(digit))?;
    }
    Some(number)
}

/// Reads a float in decimal or scientific form, or `inf`; no space, not NaN.
#[must_use]
pub fn parse_f64(text: &[u8]) -> Option<f64> {
    let number: f64 = std::str::from_utf8(text).ok()?.parse().ok()?;
    if number.is_nan() { None } else { Some(number) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn integers_are_read_as_strictly_as_redis_does() {
        for (text, number) in [
            ("0", Some(0)),
            ("-1", Some(-1)),
            ("9223372036854775807", Some(i64::MAX)),
            ("-9223372036854775808", Some(i64::MIN)),
            ("9223372036854775808", None),
            ("-9223372036854775809", None),
            ("", None),
            ("-", None),
            ("-0", None),
            ("+1", None),
            ("01", None),
            ("-01", None),
            (" 1", None),
            ("1 ", None),
            ("1.0", None),
            ("99999999999999999999999", None),
        ] {
            assert_eq!(parse_i64(text.as_bytes()), number, "{text:?}");
        }
    }

    #[test]
    fn floats_are_finite_or_infinite_but_never_nan() {
        assert_eq!(parse_f64(b"1.5e3"), Some(1500.0));
        assert_eq!(parse_f64(b"-inf"), Some(f64::NEG_INFINITY));
        for text in ["nan", "", " 1", "1 ", "0x10", "1,5", "abc"] {
            assert_eq!(parse_f64(text.as_bytes()), None, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn every_integer_survives_its_text(number: i64) {
            prop_assert_eq!(parse_i64(number.to_string().as_bytes()), Some(number));
        }
    }
}

//! Text forms of protobuf scalars: numbers, base64, timestamps, durations and field masks.
//!
//! Pure functions over text; the same ones serve JSON, query parameters, forms, path variables and
//! map keys, so that a value means the same wherever it is written.

use super::plan::Kind;
use super::reader::{FieldError, is_json_number};
use super::wire::{low32, put_varint, zigzag};

/// Seconds of 9999-12-31T23:59:59Z, the last that a timestamp may hold.
const TIMESTAMP_SECONDS_MAX: i64 = 253_402_300_799;
/// Seconds of 0001-01-01T00:00:00Z, the first.
const TIMESTAMP_SECONDS_MIN: i64 = -62_135_596_800;
/// The longest duration, about 10,000 years either way.
const DURATION_SECONDS_MAX: i64 = 315_576_000_000;
const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Seconds and nanoseconds, as timestamps and durations hold them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moment {
    pub(crate) seconds: i64,
    pub(crate) nanos: i32,
}

/// Writes a number without its tag. The text is a JSON number, or what was inside quotes.
pub(crate) fn put_number(out: &mut Vec<u8>, kind: Kind, text: &str) -> Result<(), FieldError> {
    match kind {
        Kind::Double => out.extend_from_slice(&double(text)?.to_le_bytes()),
        Kind::Float => out.extend_from_slice(&float(text)?.to_le_bytes()),
        Kind::Int32 | Kind::Enum(_) => {
            put_varint(out, i64::from(ranged::<i32>(text)?).cast_unsigned());
        }
        Kind::Int64 => put_varint(out, ranged::<i64>(text)?.cast_unsigned()),
        Kind::Uint32 => put_varint(out, u64::from(ranged::<u32>(text)?)),
        Kind::Uint64 => put_varint(out, ranged::<u64>(text)?),
        Kind::Sint32 => {
            put_varint(
                out,
                u64::from(low32(zigzag(i64::from(ranged::<i32>(text)?)))),
            );
        }
        Kind::Sint64 => put_varint(out, zigzag(ranged::<i64>(text)?)),
        Kind::Fixed32 => out.extend_from_slice(&ranged::<u32>(text)?.to_le_bytes()),
        Kind::Fixed64 => out.extend_from_slice(&ranged::<u64>(text)?.to_le_bytes()),
        Kind::Sfixed32 => out.extend_from_slice(&ranged::<i32>(text)?.to_le_bytes()),
        Kind::Sfixed64 => out.extend_from_slice(&ranged::<i64>(text)?.to_le_bytes()),
        Kind::Bool
        | Kind::String
        | Kind::Bytes
        | Kind::TextBytes
        | Kind::Message(_)
        | Kind::Group(_) => return Err(FieldError::new("not a number")),
    }
    Ok(())
}

fn ranged<T: TryFrom<i128>>(text: &str) -> Result<T, FieldError> {
    let value = integer(text).ok_or_else(|| FieldError::new("not an integer"))?;
    T::try_from(value).map_err(|_| FieldError::new("out of the range of its type"))
}

/// The exact integer that a JSON number denotes, also as `1e3` or `2.0`.
pub(crate) fn integer(text: &str) -> Option<i128> {
    if !is_json_number(text) {
        return None;
    }
    if let Ok(value) = text.parse::<i128>() {
        return Some(value);
    }
    let (sign, unsigned) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text),
    };
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
        None => (unsigned, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    let digits = digits.trim_start_matches('0');
    if digits.is_empty() {
        return Some(0);
    }
    let shift = exponent.checked_sub(i32::try_from(fraction.len()).ok()?)?;
    let places = usize::try_from(shift.unsigned_abs()).ok()?;
    let value = if shift >= 0 {
        // More digits than an i128 has cannot fit any field.
        if digits.len() + places.min(64) > 38 {
            return None;
        }
        format!("{digits}{}", "0".repeat(places))
            .parse::<i128>()
            .ok()?
    } else {
        let kept = digits.len().checked_sub(places)?;
        let (kept, cut) = digits.split_at_checked(kept)?;
        if cut.bytes().any(|b| b != b'0') {
            return None;
        }
        kept.parse::<i128>().ok()?
    };
    Some(sign * value)
}

fn double(text: &str) -> Result<f64, FieldError> {
    match text {
        "NaN" => Ok(f64::NAN),
        "Infinity" => Ok(f64::INFINITY),
        "-Infinity" => Ok(f64::NEG_INFINITY),
        _ if !is_json_number(text) => Err(FieldError::new("not a number")),
        _ => match text.parse::<f64>() {
            Ok(value) if value.is_finite() => Ok(value),
            _ => Err(FieldError::new("out of the range of its type")),
        },
    }
}

fn float(text: &str) -> Result<f32, FieldError> {
    match text {
        "NaN" => Ok(f32::NAN),
        "Infinity" => Ok(f32::INFINITY),
        "-Infinity" => Ok(f32::NEG_INFINITY),
        _ if !is_json_number(text) => Err(FieldError::new("not a number")),
        _ => match text.parse::<f32>() {
            Ok(value) if value.is_finite() => Ok(value),
            _ => Err(FieldError::new("out of the range of its type")),
        },
    }
}

/// Decodes base64 in the standard or the URL-safe alphabet, padded or not.
pub(crate) fn base64_decode(text: &[u8], out: &mut Vec<u8>) -> Result<(), FieldError> {
    let bad = || FieldError::new("not base64");
    let unpadded = match text {
        [head @ .., b'=', b'='] | [head @ .., b'='] => head,
        whole => whole,
    };
    if unpadded.len() != text.len() && !text.len().is_multiple_of(4) {
        return Err(bad());
    }
    out.reserve(unpadded.len() / 4 * 3 + 2);
    for chunk in unpadded.chunks(4) {
        let mut bits = 0_u32;
        for byte in chunk {
            bits = bits << 6 | sextet(*byte).ok_or_else(bad)?;
        }
        let [_, a, b, c] = match chunk.len() {
            4 => bits,
            3 => bits << 6,
            2 => bits << 12,
            _ => return Err(bad()),
        }
        .to_be_bytes();
        out.extend_from_slice([a, b, c].get(..chunk.len() - 1).unwrap_or_default());
    }
    Ok(())
}

fn sextet(byte: u8) -> Option<u32> {
    Some(u32::from(match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' | b'-' => 62,
        b'/' | b'_' => 63,
        _ => return None,
    }))
}

/// Appends padded standard base64.
pub(crate) fn base64_encode(bytes: &[u8], out: &mut Vec<u8>) {
    out.reserve(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let (a, b, c) = match *chunk {
            [a, b, c] => (a, b, c),
            [a, b] => (a, b, 0),
            [a] => (a, 0, 0),
            _ => (0, 0, 0),
        };
        let bits = u32::from_be_bytes([0, a, b, c]);
        for position in 0..4_usize {
            let sextet = usize::try_from(bits >> (18 - 6 * position) & 63).unwrap_or_default();
            let digit = BASE64.get(sextet).copied().unwrap_or(b'=');
            out.push(if position <= chunk.len() { digit } else { b'=' });
        }
    }
}

/// Parses RFC 3339, as in `2026-01-31T10:00:00.5+02:00`.
pub(crate) fn timestamp(text: &str) -> Result<Moment, FieldError> {
    parse_timestamp(text)
        .ok_or_else(|| FieldError::new("not an RFC 3339 timestamp between the years 0001 and 9999"))
}

fn parse_timestamp(text: &str) -> Option<Moment> {
    let number = |from: usize, to: usize| -> Option<i64> {
        let part = text.get(from..to)?;
        part.bytes()
            .all(|b| b.is_ascii_digit())
            .then(|| part.parse().ok())?
    };
    let is = |at: usize, wanted: &[u8]| text.as_bytes().get(at).is_some_and(|b| wanted.contains(b));
    if !(is(4, b"-") && is(7, b"-") && is(10, b"Tt") && is(13, b":") && is(16, b":")) {
        return None;
    }
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let in_range = (1..=12).contains(&month)
        && (1..=days_in_month(year, month)).contains(&day)
        && hour < 24
        && minute < 60
        && second < 60;
    if !in_range {
        return None;
    }
    let mut rest = text.get(19..)?;
    let mut nanos = 0;
    if let Some(fraction) = rest.strip_prefix('.') {
        let digits = fraction.bytes().take_while(u8::is_ascii_digit).count();
        nanos = nanos_of(fraction.get(..digits)?)?;
        rest = fraction.get(digits..)?;
    }
    let offset = match rest {
        "Z" | "z" => 0,
        _ => offset_seconds(rest)?,
    };
    let days = days_from_epoch(year, month, day);
    let seconds = days * 86_400 + hour * 3_600 + minute * 60 + second - offset;
    (TIMESTAMP_SECONDS_MIN..=TIMESTAMP_SECONDS_MAX)
        .contains(&seconds)
        .then_some(Moment { seconds, nanos })
}

fn offset_seconds(text: &str) -> Option<i64> {
    let sign = match text.as_bytes().first()? {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let (hours, minutes) = text.get(1..)?.split_once(':')?;
    let two = |part: &str| -> Option<i64> {
        (part.len() == 2 && part.bytes().all(|b| b.is_ascii_digit())).then(|| part.parse().ok())?
    };
    let (hours, minutes) = (two(hours)?, two(minutes)?);
    (hours < 24 && minutes < 60).then_some(sign * (hours * 3_600 + minutes * 60))
}

/// Formats RFC 3339 in UTC with 0, 3, 6 or 9 fractional digits; `None` when out of range.
pub(crate) fn format_timestamp(moment: Moment) -> Option<String> {
    let Moment { seconds, nanos } = moment;
    if !(TIMESTAMP_SECONDS_MIN..=TIMESTAMP_SECONDS_MAX).contains(&seconds)
        || !(0..1_000_000_000).contains(&nanos)
    {
        return None;
    }
    let (year, month, day) = date_from_epoch(seconds.div_euclid(86_400));
    let of_day = seconds.rem_euclid(86_400);
    let (hour, minute, second) = (of_day / 3_600, of_day / 60 % 60, of_day % 60);
    let fraction = fraction_of(nanos.unsigned_abs());
    Some(format!(
        "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}Z"
    ))
}

/// Parses a duration such as `1.5s` or `-3s`.
pub(crate) fn duration(text: &str) -> Result<Moment, FieldError> {
    parse_duration(text)
        .ok_or_else(|| FieldError::new("not a duration in seconds such as \"1.5s\""))
}

fn parse_duration(text: &str) -> Option<Moment> {
    let number = text.strip_suffix('s')?;
    let (sign, unsigned) = match number.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, number),
    };
    let (whole, nanos) = match unsigned.split_once('.') {
        Some((whole, fraction)) => (whole, nanos_of(fraction)?),
        None => (unsigned, 0),
    };
    if whole.is_empty() || !whole.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let seconds = whole.parse::<i64>().ok()?;
    (seconds <= DURATION_SECONDS_MAX).then_some(Moment {
        seconds: sign * seconds,
        nanos: if sign < 0 { -nanos } else { nanos },
    })
}

/// Formats a duration with 0, 3, 6 or 9 fractional digits; `None` when out of range.
pub(crate) fn format_duration(moment: Moment) -> Option<String> {
    let Moment { seconds, nanos } = moment;
    let signs_differ = (seconds < 0 && nanos > 0) || (seconds > 0 && nanos < 0);
    if seconds.abs() > DURATION_SECONDS_MAX || nanos.abs() > 999_999_999 || signs_differ {
        return None;
    }
    let sign = if seconds < 0 || nanos < 0 { "-" } else { "" };
    Some(format!(
        "{sign}{}{}s",
        seconds.unsigned_abs(),
        fraction_of(nanos.unsigned_abs())
    ))
}

fn nanos_of(fraction: &str) -> Option<i32> {
    let plausible =
        (1..=9).contains(&fraction.len()) && fraction.bytes().all(|b| b.is_ascii_digit());
    if !plausible {
        return None;
    }
    format!("{fraction:0<9}").parse().ok()
}

fn fraction_of(nanos: u32) -> String {
    if nanos == 0 {
        String::new()
    } else if nanos.is_multiple_of(1_000_000) {
        format!(".{:03}", nanos / 1_000_000)
    } else if nanos.is_multiple_of(1_000) {
        format!(".{:06}", nanos / 1_000)
    } else {
        format!(".{nanos:09}")
    }
}

const fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970-01-01 in the proleptic Gregorian calendar; the year starts in March so that
/// the leap day comes last.
const fn days_from_epoch(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// The inverse of [`days_from_epoch`]: year, month, day.
const fn date_from_epoch(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + if month <= 2 { 1 } else { 0 };
    (year, month, day)
}

/// `fooBar.baz` to `foo_bar.baz`; an underscore or a space in the input cannot be meant, nor a path
/// of nothing.
pub(crate) fn field_mask_path(text: &str) -> Result<String, FieldError> {
    if text.is_empty() {
        return Err(FieldError::new("a field mask with an empty path"));
    }
    let mut path = String::with_capacity(text.len() + 4);
    for character in text.chars() {
        match character {
            'A'..='Z' => {
                path.push('_');
                path.push(character.to_ascii_lowercase());
            }
            'a'..='z' | '0'..='9' | '.' => path.push(character),
            _ => return Err(FieldError::new("not a field mask path in lowerCamelCase")),
        }
    }
    Ok(path)
}

/// `foo_bar.baz` to `fooBar.baz`; `None` if the path would not come back the same.
pub(crate) fn format_field_mask_path(path: &str) -> Option<String> {
    let mut text = String::with_capacity(path.len());
    let mut characters = path.chars();
    while let Some(character) = characters.next() {
        match character {
            '_' => match characters.next() {
                Some(next @ 'a'..='z') => text.push(next.to_ascii_uppercase()),
                _ => return None,
            },
            'A'..='Z' => return None,
            other => text.push(other),
        }
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_exact_in_every_notation() {
        for (text, value) in [
            ("0", Some(0)),
            ("-0", Some(0)),
            ("1e1", Some(10)),
            ("1.0", Some(1)),
            ("12.50e1", Some(125)),
            ("-9223372036854775808", Some(i128::from(i64::MIN))),
            ("9007199254740993", Some(9_007_199_254_740_993)),
            ("9007199254740993.0", Some(9_007_199_254_740_993)),
            ("100e-2", Some(1)),
            ("1.5", None),
            ("15e-1", None),
            ("1e400", None),
            ("0e999999", Some(0)),
            ("1e-999999", None),
            ("", None),
            ("+1", None),
            (" 1", None),
            ("0x1", None),
        ] {
            assert_eq!(integer(text), value, "{text}");
        }
    }

    #[test]
    fn base64_reads_both_alphabets_and_refuses_the_rest() {
        let decode = |text: &str| {
            let mut out = Vec::new();
            base64_decode(text.as_bytes(), &mut out).map(|()| out)
        };
        assert_eq!(decode("-_8").unwrap(), [0xfb, 0xff]);
        assert_eq!(decode("+/8=").unwrap(), [0xfb, 0xff]);
        assert_eq!(decode("").unwrap(), [0_u8; 0]);
        for bad in ["a", "a===", "ab=c", "a b=", "YQ=", "====", "é"] {
            assert!(decode(bad).is_err(), "{bad}");
        }
        for length in 0..20_u8 {
            let bytes: Vec<u8> = (0..length).map(|b| b.wrapping_mul(37)).collect();
            let mut text = Vec::new();
            base64_encode(&bytes, &mut text);
            assert_eq!(text.len() % 4, 0);
            assert_eq!(decode(std::str::from_utf8(&text).unwrap()).unwrap(), bytes);
        }
    }

    #[test]
    fn timestamps_come_back_normalized() {
        let round = |text: &str| timestamp(text).ok().and_then(format_timestamp);
        for (text, expected) in [
            ("1970-01-01T00:00:00Z", Some("1970-01-01T00:00:00Z")),
            (
                "2026-01-31T10:00:00.5+02:00",
                Some("2026-01-31T08:00:00.500Z"),
            ),
            (
                "2024-02-29T23:59:59.123456789Z",
                Some("2024-02-29T23:59:59.123456789Z"),
            ),
            ("2023-02-29T00:00:00Z", None),
            ("0001-01-01T00:00:00Z", Some("0001-01-01T00:00:00Z")),
            (
                "9999-12-31T23:59:59.999999999Z",
                Some("9999-12-31T23:59:59.999999999Z"),
            ),
            ("9999-12-31T23:59:59-01:00", None),
            ("0000-01-01T00:00:00Z", None),
            ("2026-01-31 10:00:00Z", None),
            ("2026-01-31T10:00:00", None),
            ("2026-1-31T10:00:00Z", None),
            ("2026-01-31T24:00:00Z", None),
            ("2026-01-31T10:00:00.Z", None),
            ("2026-01-31T10:00:00é", None),
        ] {
            assert_eq!(round(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn durations_come_back_normalized() {
        let round = |text: &str| duration(text).ok().and_then(format_duration);
        for (text, expected) in [
            ("1s", Some("1s")),
            ("1.5s", Some("1.500s")),
            ("-0.000001s", Some("-0.000001s")),
            ("315576000000s", Some("315576000000s")),
            ("315576000001s", None),
            ("1", None),
            ("s", None),
            ("1.s", None),
            ("1.0000000001s", None),
            ("+1s", None),
        ] {
            assert_eq!(round(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn field_masks_change_their_case() {
        assert_eq!(field_mask_path("fooBar.baz").unwrap(), "foo_bar.baz");
        assert!(field_mask_path("").is_err(), "as in a,,b");
        assert!(field_mask_path("foo_bar").is_err());
        assert_eq!(
            format_field_mask_path("foo_bar.baz").as_deref(),
            Some("fooBar.baz")
        );
        assert_eq!(format_field_mask_path("fooBar"), None);
        assert_eq!(format_field_mask_path("foo__bar"), None);
    }
}

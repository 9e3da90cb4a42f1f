//! Durations and sizes as people write them: `"150ms"`, `"2s"`, `"64MiB"`.
//!
//! For serde's `with`, so that every field of a configuration reads the same.

use std::time::Duration;

/// A duration as a number and one of `ms`, `s`, `m`, `h`.
pub(crate) mod duration {
    use super::{Duration, parse_duration, show_duration};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(crate) fn serialize<S: Serializer>(
        value: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&show_duration(*value))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_duration(&text)
            .ok_or_else(|| D::Error::custom(format!("{text:?} is not a duration such as 150ms")))
    }
}

/// A size in bytes as a number and, optionally, one of `KiB`, `MiB`, `GiB`, `TiB`.
pub(crate) mod size {
    use super::{parse_size, show_size};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    #[expect(
        clippy::trivially_copy_pass_by_ref,
        reason = "serde's `with` prescribes the signature"
    )]
    pub(crate) fn serialize<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&show_size(*value))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_size(&text)
            .ok_or_else(|| D::Error::custom(format!("{text:?} is not a size such as 64MiB")))
    }
}

/// The number at the start of a text, and the rest.
fn split(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    Some((number.parse().ok()?, unit.trim_start()))
}

fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = split(text.trim())?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    number.checked_mul(millis).map(Duration::from_millis)
}

fn show_duration(value: Duration) -> String {
    let millis = value.as_millis();
    if millis.is_multiple_of(1000) {
        format!("{}s", millis / 1000)
    } else {
        format!("{millis}ms")
    }
}

const SIZES: [(&str, u64); 4] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
];

fn parse_size(text: &str) -> Option<u64> {
    let (number, unit) = split(text.trim())?;
    if unit.is_empty() || unit == "B" {
        return Some(number);
    }
    let (_, factor) = SIZES.iter().find(|(name, _)| *name == unit)?;
    number.checked_mul(*factor)
}

fn show_size(value: u64) -> String {
    SIZES
        .iter()
        .find(|(_, factor)| value > 0 && value.is_multiple_of(*factor))
        .map_or_else(
            || value.to_string(),
            |(name, factor)| format!("{}{name}", value / factor),
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_read_back() {
        for millis in [0, 1, 150, 1000, 2500, 10_000, 3_600_000] {
            let duration = Duration::from_millis(millis);
            assert_eq!(parse_duration(&show_duration(duration)), Some(duration));
        }
        for size in [0, 1, 1023, 1024, 64 << 20, 3 << 30, 5 << 40] {
            assert_eq!(parse_size(&show_size(size)), Some(size));
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "ms",
            "1",
            "-1s",
            "1 hour",
            "99999999999999999999ms",
            "18446744073709551615h",
        ] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
        for text in ["", "MiB", "-1", "1mb", "18446744073709551615KiB"] {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }
}

//! Durations and sizes as people write them: `"150ms"`, `"10s"`, `"64KiB"`, `"4MiB"`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A number of bytes. In configuration a string with a unit: `B`, `KiB`, `MiB`, `GiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(usize);

impl Size {
    /// So many bytes.
    #[must_use]
    pub const fn bytes(bytes: usize) -> Self {
        Self(bytes)
    }

    /// How many bytes.
    #[must_use]
    pub const fn get(self) -> usize {
        self.0
    }
}

const SIZE_UNITS: [(&str, usize); 4] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];
const DURATION_UNITS: [(&str, u64); 4] = [("ms", 1), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)];

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = SIZE_UNITS.iter().find_map(|(unit, factor)| {
            let count: usize = text.strip_suffix(unit)?.trim_end().parse().ok()?;
            count.checked_mul(*factor)
        });
        parsed.map(Self).ok_or_else(|| {
            format!("{text:?} is not a size: write a number and B, KiB, MiB or GiB, as in \"4MiB\"")
        })
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |factor: usize| factor == 1 || (self.0 > 0 && self.0.is_multiple_of(factor));
        let (unit, factor) = SIZE_UNITS
            .into_iter()
            .find(|(_, factor)| fits(*factor))
            .unwrap_or(("B", 1));
        write!(f, "{}{unit}", self.0 / factor)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A span of time. In configuration a string with a unit: `ms`, `s`, `m`, `h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timeout(Duration);

impl Timeout {
    /// So many milliseconds.
    #[must_use]
    pub const fn millis(millis: u64) -> Self {
        Self(Duration::from_millis(millis))
    }

    /// So many seconds.
    #[must_use]
    pub const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// As the standard library has it.
    #[must_use]
    pub const fn get(self) -> Duration {
        self.0
    }
}

impl From<Duration> for Timeout {
    fn from(duration: Duration) -> Self {
        Self(duration)
    }
}

impl FromStr for Timeout {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = DURATION_UNITS.iter().find_map(|(unit, factor)| {
            let count: u64 = text.strip_suffix(unit)?.trim_end().parse().ok()?;
            count.checked_mul(*factor)
        });
        parsed.map(Self::millis).ok_or_else(|| {
            format!("{text:?} is not a duration: write a number and ms, s, m or h, as in \"150ms\"")
        })
    }
}

impl fmt::Display for Timeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        if millis.is_multiple_of(1_000) {
            write!(f, "{}s", millis / 1_000)
        } else {
            write!(f, "{millis}ms")
        }
    }
}

impl<'de> Deserialize<'de> for Timeout {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for Timeout {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_durations_come_back_as_written() {
        for text in ["4MiB", "64KiB", "1GiB", "100B", "0B"] {
            assert_eq!(text.parse::<Size>().unwrap().to_string(), text);
        }
        for text in ["150ms", "10s", "0s", "7200s"] {
            assert_eq!(text.parse::<Timeout>().unwrap().to_string(), text);
        }
        assert_eq!(
            "2h".parse::<Timeout>().unwrap().get(),
            Duration::from_secs(7_200)
        );
        assert_eq!(
            "3m".parse::<Timeout>().unwrap().get(),
            Duration::from_secs(180)
        );
        for text in [
            "",
            "4",
            "4 parsecs",
            "-1s",
            "1.5s",
            "MiB",
            "99999999999999999999B",
        ] {
            assert!(text.parse::<Size>().is_err(), "{text}");
            assert!(text.parse::<Timeout>().is_err(), "{text}");
        }
    }
}

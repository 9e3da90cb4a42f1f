//! What can be configured about limits, breakers, retries, balancing and sharing of calls.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Size, Timeout};

/// How many requests in how long a time. In configuration `"100/s"`, `"6000/m"` or `"10/h"`; empty
/// for no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate(Option<(u64, Unit)>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Second,
    Minute,
    Hour,
}

/// More requests per second than anything here can serve.
const RATE_MAX: u64 = 10_000_000;

impl Unit {
    const ALL: [(Self, &str, Duration); 3] = [
        (Self::Second, "s", Duration::from_secs(1)),
        (Self::Minute, "m", Duration::from_secs(60)),
        (Self::Hour, "h", Duration::from_secs(3_600)),
    ];
}

impl Rate {
    /// No limit.
    pub const NONE: Self = Self(None);

    /// So many a second; none if it is 0.
    #[must_use]
    pub const fn per_second(count: u64) -> Self {
        match count {
            0 => Self(None),
            count => Self(Some((count, Unit::Second))),
        }
    }

    /// The count, and the time in which so many may come; `None` for no limit.
    pub(crate) fn get(self) -> Option<(u64, Duration)> {
        let (count, unit) = self.0?;
        let (_, _, per) = Unit::ALL.into_iter().find(|(one, ..)| *one == unit)?;
        Some((count, per))
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self::NONE);
        }
        let parsed = text.split_once('/').and_then(|(count, unit)| {
            let (unit, ..) = Unit::ALL.into_iter().find(|(_, name, _)| *name == unit)?;
            let count: u64 = count.parse().ok()?;
            (1..=RATE_MAX)
                .contains(&count)
                .then_some(Self(Some((count, unit))))
        });
        parsed.ok_or_else(|| {
            format!(
                "{text:?} is not a rate: write a count from 1 to {RATE_MAX} and /s, /m or /h, as in \
                 \"100/s\"; empty for none"
            )
        })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((count, unit)) = self.0 else {
            return Ok(());
        };
        let name = Unit::ALL.iter().find(|(one, ..)| *one == unit);
        write!(f, "{count}/{}", name.map_or("s", |(_, name, _)| name))
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for Rate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A token bucket that all requests share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct LimitConfig {
    /// How fast tokens come back; empty for no limit.
    pub rate: Rate,
    /// Requests that may come at once; 0 for as many as the rate gives in a second, at least one.
    pub burst: u64,
}

/// A token bucket for each client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ClientLimitConfig {
    /// How fast tokens come back; empty for no limit.
    pub rate: Rate,
    /// Requests that may come at once; 0 for as many as the rate gives in a second, at least one.
    pub burst: u64,
    /// What tells clients apart: `ip` or `header:NAME`, or several with `|`, of which the first
    /// that a request has counts.
    pub key: String,
    /// Clients remembered at the same time; those longest forgotten give way.
    pub clients_max: usize,
}

impl Default for ClientLimitConfig {
    fn default() -> Self {
        Self {
            rate: Rate::NONE,
            burst: 0,
            key: "ip".to_owned(),
            clients_max: 100_000,
        }
    }
}

/// Whether a breaker decides by what it sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BreakerMode {
    /// It opens and closes by what calls come to.
    #[default]
    On,
    /// There is none.
    Off,
    /// It is open whatever happens: every call is refused.
    ForcedOpen,
    /// It is closed whatever happens, and still counts.
    ForcedClosed,
}

/// A circuit breaker with the semantics of Hystrix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct BreakerConfig {
    /// Whether it decides by what it sees.
    pub mode: BreakerMode,
    /// How far back calls are counted, in ten buckets.
    pub window: Timeout,
    /// Calls in the window below which it never opens.
    pub volume: u64,
    /// Percentage of failed calls in the window from which it opens.
    pub error_percent: u64,
    /// How long it stays open before one call is let through on trial.
    pub sleep: Timeout,
    /// gRPC statuses that are failures; others are neither failures nor successes.
    pub failures: Vec<String>,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self {
            mode: BreakerMode::On,
            window: Timeout::seconds(10),
            volume: 20,
            error_percent: 50,
            sleep: Timeout::seconds(5),
            failures: [
                "UNAVAILABLE",
                "DEADLINE_EXCEEDED",
                "INTERNAL",
                "UNKNOWN",
                "DATA_LOSS",
            ]
            .map(str::to_owned)
            .to_vec(),
        }
    }
}

/// What is answered in place of a failure of the upstream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct FallbackConfig {
    /// How old the last good answer to the same read may be to be given again; `"0s"`: never.
    pub stale: Timeout,
    /// HTTP status of the fixed answer.
    pub status: u16,
    /// Body of the fixed answer; without it there is none and the failure is told.
    pub json: Option<serde_json::Value>,
}

impl Default for FallbackConfig {
    fn default() -> Self {
        Self {
            stale: Timeout::seconds(0),
            status: 503,
            json: None,
        }
    }
}

/// Bounds of the last good answers that are kept for `fallback.stale`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct StaleConfig {
    /// How many.
    pub entries_max: usize,
    /// How many bytes of requests and answers together.
    pub bytes_max: Size,
}

impl Default for StaleConfig {
    fn default() -> Self {
        Self {
            entries_max: 10_000,
            bytes_max: Size::bytes(64 << 20),
        }
    }
}

/// How calls are tried again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct RetryConfig {
    /// Times a call is tried, the first included; 1 for no retries.
    pub attempts_max: usize,
    /// Retries allowed for every hundred calls of the last ten seconds.
    pub budget_percent: u64,
    /// Retries a second that are allowed beside.
    pub budget_per_second: u64,
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self {
            attempts_max: 3,
            budget_percent: 20,
            budget_per_second: 10,
        }
    }
}

/// Which endpoint a call goes to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BalanceConfig {
    /// They take turns, by weight.
    #[default]
    RoundRobin,
    /// The less loaded of two drawn at random; load is the latency of late times the calls under
    /// way.
    P2c,
}

/// When an endpoint is passed over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct HealthConfig {
    /// Failed calls in a row after which it is; one that cannot be connected to is at once.
    pub failures: u32,
    /// How long at first; then one call is let through on trial. Doubles with each failed trial.
    pub backoff: Timeout,
    /// How long at most.
    pub backoff_max: Timeout,
}

impl Default for HealthConfig {
    fn default() -> Self {
        Self {
            failures: 5,
            backoff: Timeout::millis(50),
            backoff_max: Timeout::seconds(2),
        }
    }
}

/// Whether identical reads under way share one call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CoalesceConfig {
    /// Each has its own.
    #[default]
    Off,
    /// A read joins only a call that starts after the read arrived.
    Strict,
    /// A read also joins a call under way if no write went to the upstream through this gateway
    /// since before that call started.
    Shared,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_come_back_as_written() {
        for text in ["100/s", "6000/m", "1/h", ""] {
            assert_eq!(text.parse::<Rate>().unwrap().to_string(), text);
        }
        assert_eq!(
            "90/m".parse::<Rate>().unwrap().get(),
            Some((90, Duration::from_secs(60)))
        );
        assert_eq!(Rate::per_second(0).get(), None);
        for text in [
            "0/s",
            "100",
            "/s",
            "1/d",
            "-1/s",
            "1.5/s",
            "99999999/s",
            "1/",
        ] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
    }
}

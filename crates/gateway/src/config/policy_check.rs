//! Mistakes in what is configured about limits and breakers.

use super::validate::Mistakes;
use super::{
    BreakerConfig, ClientLimitConfig, FallbackConfig, HealthConfig, LimitConfig, RetryConfig,
    StaleConfig,
};
use crate::policy::limit::ClientKey;
use crate::status::Code;

/// Largest burst of a token bucket.
const BURST_MAX: u64 = 1_000_000;
/// Most clients for which buckets are kept: 16 MiB.
const CLIENTS_MAX: usize = 1_000_000;

impl LimitConfig {
    pub(super) fn check(&self, key: &str, mistakes: &mut Mistakes) {
        check_burst(key, self.burst, mistakes);
    }
}

impl ClientLimitConfig {
    pub(super) fn check(&self, key: &str, mistakes: &mut Mistakes) {
        check_burst(key, self.burst, mistakes);
        if let Err(problem) = ClientKey::parse(&self.key) {
            let remedy = "write \"ip\", \"header:x-api-key\" or both with |";
            mistakes.add(format!("{key}.key"), problem, remedy);
        }
        if !(1..=CLIENTS_MAX).contains(&self.clients_max) {
            let problem = format!("{} is out of range", self.clients_max);
            let remedy = format!("choose 1 to {CLIENTS_MAX}");
            mistakes.add(format!("{key}.clients-max"), problem, &remedy);
        }
    }
}

impl BreakerConfig {
    pub(super) fn check(&self, key: &str, mistakes: &mut Mistakes) {
        let mut range = |field: &str, value: u64, most: u64| {
            if !(1..=most).contains(&value) {
                let problem = format!("{value} is out of range");
                let remedy = format!("choose 1 to {most}");
                mistakes.add(format!("{key}.{field}"), problem, &remedy);
            }
        };
        range("volume", self.volume, 1_000_000);
        range("error-percent", self.error_percent, 100);
        for (field, time) in [("window", self.window), ("sleep", self.sleep)] {
            if time.get().as_millis() < 10 || time.get().as_secs() > 3_600 {
                let problem = format!("{time} is out of range");
                mistakes.add(format!("{key}.{field}"), problem, "choose 10ms to 1h");
            }
        }
        for (index, name) in self.failures.iter().enumerate() {
            if Code::from_name(name).is_none_or(|code| code == Code::Ok) {
                let problem = format!("{name:?} is not a gRPC status that is a failure");
                let key = format!("{key}.failures[{index}]");
                mistakes.add(key, problem, "write it as in \"UNAVAILABLE\"");
            }
        }
    }
}

impl HealthConfig {
    pub(super) fn check(&self, key: &str, mistakes: &mut Mistakes) {
        if self.failures == 0 {
            let key = format!("{key}.failures");
            mistakes.add(key, "is zero".to_owned(), "choose at least 1");
        }
        if self.backoff.get().is_zero() || self.backoff > self.backoff_max {
            let problem = format!("{} is not from 1ms to backoff-max", self.backoff);
            let key = format!("{key}.backoff");
            mistakes.add(key, problem, "raise the one or lower the other");
        }
        if self.backoff_max.get().as_secs() > 3_600 {
            let problem = format!("{} is out of range", self.backoff_max);
            mistakes.add(format!("{key}.backoff-max"), problem, "choose at most 1h");
        }
    }
}

impl RetryConfig {
    pub(super) fn check(&self, key: &str, mistakes: &mut Mistakes) {
        let attempts = u64::try_from(self.attempts_max).unwrap_or(u64::MAX);
        for (field, value, least, most) in [
            ("attempts-max", attempts, 1, 10),
            ("budget-percent", self.budget_percent, 0, 1_000),
            ("budget-per-second", self.budget_per_second, 0, 1_000_000),
        ] {
            if !(least..=most).contains(&value) {
                let problem = format!("{value} is out of range");
                let remedy = format!("choose {least} to {most}");
                mistakes.add(format!("{key}.{field}"), problem, &remedy);
            }
        }
    }
}

impl StaleConfig {
    pub(super) fn check(&self, key: &str, mistakes: &mut Mistakes) {
        if self.entries_max > 10_000_000 {
            let problem = format!("{} is out of range", self.entries_max);
            let key = format!("{key}.entries-max");
            mistakes.add(key, problem, "choose 0 to 10000000");
        }
    }
}

impl FallbackConfig {
    pub(super) fn check(&self, key: &str, mistakes: &mut Mistakes) {
        if !(200..=599).contains(&self.status) {
            let problem = format!("{} is not the status of an answer", self.status);
            mistakes.add(format!("{key}.status"), problem, "choose 200 to 599");
        }
        if self.json.is_none() && self.stale.get().is_zero() {
            let problem = "has neither stale nor json".to_owned();
            mistakes.add(key.to_owned(), problem, "set one of them or leave it out");
        }
    }
}

fn check_burst(key: &str, burst: u64, mistakes: &mut Mistakes) {
    if burst > BURST_MAX {
        let problem = format!("{burst} is out of range");
        let remedy = format!("choose 0 to {BURST_MAX}");
        mistakes.add(format!("{key}.burst"), problem, &remedy);
    }
}

//! Mistakes in what is configured about limits and breakers.

use super::validate::Mistakes;
use super::{BreakerConfig, ClientLimitConfig, LimitConfig};
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

fn check_burst(key: &str, burst: u64, mistakes: &mut Mistakes) {
    if burst > BURST_MAX {
        let problem = format!("{burst} is out of range");
        let remedy = format!("choose 0 to {BURST_MAX}");
        mistakes.add(format!("{key}.burst"), problem, &remedy);
    }
}

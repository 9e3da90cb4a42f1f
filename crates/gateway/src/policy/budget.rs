//! A budget for retries (as Finagle's), so that retries cannot become the load that keeps an
//! upstream down: a share of the calls of the last ten seconds, and a few a second beside.

use flux_env::Instant;

use crate::config::RetryConfig;

/// Seconds that are looked back on.
const SECONDS: usize = 10;

/// How many retries there may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    percent: u64,
    per_second: u64,
    slots: [Slot; SECONDS],
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    second: u64,
    calls: u64,
    retries: u64,
}

impl Budget {
    pub(crate) fn new(config: &RetryConfig) -> Self {
        Self {
            percent: config.budget_percent,
            per_second: config.budget_per_second,
            slots: [Slot::default(); SECONDS],
        }
    }

    /// Notes a call, which earns its share of a retry.
    pub(crate) fn deposit(&mut self, now: Instant) {
        if let Some(slot) = self.slot(now) {
            slot.calls += 1;
        }
    }

    /// Takes a retry if there is one.
    pub(crate) fn try_withdraw(&mut self, now: Instant) -> bool {
        let second = second(now);
        let recent = self.slots.iter();
        let recent = recent.filter(|slot| slot.second + SECONDS as u64 > second);
        let (calls, retries) = recent.fold((0_u64, 0_u64), |(calls, retries), slot| {
            (calls + slot.calls, retries + slot.retries)
        });
        let earned = calls.saturating_mul(self.percent) / 100;
        let allowed = earned.saturating_add(self.per_second.saturating_mul(SECONDS as u64));
        if retries >= allowed {
            return false;
        }
        if let Some(slot) = self.slot(now) {
            slot.retries += 1;
        }
        true
    }

    fn slot(&mut self, now: Instant) -> Option<&mut Slot> {
        let second = second(now);
        let place = usize::try_from(second % SECONDS as u64).ok()?;
        let slot = self.slots.get_mut(place)?;
        if slot.second < second {
            *slot = Slot {
                second,
                ..Slot::default()
            };
        }
        Some(slot)
    }
}

const fn second(now: Instant) -> u64 {
    now.as_nanos() / 1_000_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::from_nanos((1_000 + seconds) * 1_000_000_000)
    }

    fn budget(percent: u64, per_second: u64) -> Budget {
        Budget::new(&RetryConfig {
            budget_percent: percent,
            budget_per_second: per_second,
            ..RetryConfig::default()
        })
    }

    fn withdraw_all(budget: &mut Budget, seconds: u64) -> usize {
        (0..10_000)
            .take_while(|_| budget.try_withdraw(at(seconds)))
            .count()
    }

    #[test]
    fn retries_are_a_share_of_the_calls_and_a_few_beside() {
        let mut budget = budget(20, 10);
        assert_eq!(withdraw_all(&mut budget, 0), 100);
        for _ in 0..1_000 {
            budget.deposit(at(1));
        }
        assert_eq!(withdraw_all(&mut budget, 1), 200);
        assert_eq!(withdraw_all(&mut budget, 9), 0);
        // The first hundred are ten seconds ago, and no longer count against it.
        assert_eq!(withdraw_all(&mut budget, 10), 100);
        // So are the calls, and what they earned.
        assert_eq!(withdraw_all(&mut budget, 11), 0);
        assert_eq!(withdraw_all(&mut budget, 20), 100);
    }

    #[test]
    fn an_empty_budget_allows_none() {
        let mut budget = budget(0, 0);
        budget.deposit(at(0));
        assert!(!budget.try_withdraw(at(0)));
    }
}

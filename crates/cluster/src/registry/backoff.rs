//! Pauses between attempts, and how often a lasting problem is told.

use std::time::Duration;

use flux_env::{Instant, Rng, SeededRng};

const PAUSE_MIN: Duration = Duration::from_millis(50);
/// How often a problem that lasts is logged.
const REMIND_INTERVAL: Duration = Duration::from_secs(60);

/// Growing pauses with full jitter, so that many who lost the same thing do not come back at once.
#[derive(Debug)]
pub(crate) struct Backoff {
    rng: SeededRng,
    next: Duration,
}

impl Backoff {
    pub(crate) const fn new(seed: u64) -> Self {
        Self {
            rng: SeededRng::new(seed),
            next: PAUSE_MIN,
        }
    }

    pub(crate) const fn reset(&mut self) {
        self.next = PAUSE_MIN;
    }

    /// Whether there was a pause since it was reset.
    pub(crate) fn has_grown(&self) -> bool {
        PAUSE_MIN < self.next
    }

    /// Between half and the whole of a pause that doubles up to `max`.
    pub(crate) fn pause(&mut self, max: Duration) -> Duration {
        let whole = self.next.min(max);
        self.next = (whole * 2).min(max);
        whole / 2 + self.up_to(whole / 2)
    }

    /// A random time from nothing to `max`.
    pub(crate) fn up_to(&mut self, max: Duration) -> Duration {
        let nanos = u64::try_from(max.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(self.rng.below(nanos.saturating_add(1)))
    }
}

/// Decides when a problem is worth a line in the log: at once, then once a minute.
#[derive(Debug, Default)]
pub(crate) struct Complaint {
    told_at: Option<Instant>,
}

impl Complaint {
    /// The problem is there; whether to say so now.
    pub(crate) fn is_due(&mut self, now: Instant) -> bool {
        let is_due = self
            .told_at
            .is_none_or(|told| now.saturating_since(told) >= REMIND_INTERVAL);
        if is_due {
            self.told_at = Some(now);
        }
        is_due
    }

    /// The problem is gone; whether there was one that had been told.
    pub(crate) fn is_over(&mut self) -> bool {
        self.told_at.take().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_limit_and_start_again() {
        let max = Duration::from_secs(1);
        let mut backoff = Backoff::new(1);
        let mut whole = PAUSE_MIN;
        for _ in 0..10 {
            let pause = backoff.pause(max);
            assert!(
                whole / 2 <= pause && pause <= whole,
                "{pause:?} of {whole:?}"
            );
            whole = (whole * 2).min(max);
        }
        backoff.reset();
        assert!(backoff.pause(max) <= PAUSE_MIN);
        assert!((0..100).all(|_| backoff.up_to(max) <= max));
    }

    #[test]
    fn a_lasting_problem_is_told_once_a_minute() {
        let mut complaint = Complaint::default();
        assert!(!complaint.is_over());
        let told = (0..3600)
            .filter(|second| complaint.is_due(Instant::default() + Duration::from_secs(*second)))
            .count();
        assert_eq!(told, 60);
        assert!(complaint.is_over() && !complaint.is_over());
    }
}

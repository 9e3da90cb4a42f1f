//! The last good answer to each read, bounded by number and by bytes, to be given again when the
//! upstream fails.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::time::Duration;

use flux_env::Instant;

use crate::config::StaleConfig;

/// Bytes that an entry costs beside its content, roughly.
const OVERHEAD: usize = 200;

/// The answers, of which those kept longest ago go first.
#[derive(Debug)]
pub(crate) struct LastGood<K, T> {
    entries_max: usize,
    bytes_max: usize,
    bytes: usize,
    entries: HashMap<K, Entry<T>>,
    /// By age.
    order: BTreeMap<u64, K>,
    next: u64,
}

#[derive(Debug)]
struct Entry<T> {
    answer: T,
    bytes: usize,
    at: Instant,
    number: u64,
}

impl<K: Eq + Hash + Clone, T: Clone> LastGood<K, T> {
    pub(crate) fn new(config: &StaleConfig) -> Self {
        Self {
            entries_max: config.entries_max,
            bytes_max: config.bytes_max.get(),
            bytes: 0,
            entries: HashMap::new(),
            order: BTreeMap::new(),
            next: 0,
        }
    }

    /// Keeps an answer in place of the one before.
    pub(crate) fn keep(&mut self, key: K, answer: T, bytes: usize, now: Instant) {
        self.forget(&key);
        let bytes = bytes.saturating_add(OVERHEAD);
        if bytes > self.bytes_max || self.entries_max == 0 {
            return;
        }
        while self.entries.len() >= self.entries_max || self.bytes + bytes > self.bytes_max {
            let Some((_, oldest)) = self.order.pop_first() else {
                break;
            };
            self.forget(&oldest);
        }
        let number = self.next;
        self.next += 1;
        self.bytes += bytes;
        self.order.insert(number, key.clone());
        let entry = Entry {
            answer,
            bytes,
            at: now,
            number,
        };
        self.entries.insert(key, entry);
    }

    /// The answer with its age, if it is not older than that.
    pub(crate) fn find(&self, key: &K, age_max: Duration, now: Instant) -> Option<(T, Duration)> {
        let entry = self.entries.get(key)?;
        let age = now.saturating_since(entry.at);
        (age <= age_max).then(|| (entry.answer.clone(), age))
    }

    fn forget(&mut self, key: &K) {
        if let Some(entry) = self.entries.remove(key) {
            self.bytes -= entry.bytes;
            self.order.remove(&entry.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::Size;

    fn at(seconds: u64) -> Instant {
        Instant::from_nanos(seconds * 1_000_000_000)
    }

    fn kept(entries_max: usize, bytes_max: usize) -> LastGood<u32, u32> {
        LastGood::new(&StaleConfig {
            entries_max,
            bytes_max: Size::bytes(bytes_max),
        })
    }

    #[test]
    fn the_last_answer_is_found_until_it_is_too_old() {
        let mut kept = kept(10, 10_000);
        kept.keep(1, 10, 5, at(0));
        kept.keep(1, 11, 5, at(5));
        let age_max = Duration::from_secs(30);
        let expected = Some((11, Duration::from_secs(30)));
        assert_eq!(kept.find(&1, age_max, at(35)), expected);
        assert_eq!(kept.find(&1, age_max, at(36)), None);
        assert_eq!(kept.find(&2, age_max, at(5)), None);
    }

    proptest! {
        #[test]
        fn its_bounds_hold_and_the_latest_stays(
            steps in prop::collection::vec((0_u32..30, 0_usize..2_000), 1..300),
        ) {
            let mut kept = kept(8, 4_000);
            for (number, (key, bytes)) in steps.into_iter().enumerate() {
                kept.keep(key, 1, bytes, at(number as u64));
                prop_assert!(kept.entries.len() <= 8 && kept.bytes <= 4_000);
                prop_assert_eq!(kept.entries.len(), kept.order.len());
                let sum: usize = kept.entries.values().map(|entry| entry.bytes).sum();
                prop_assert_eq!(sum, kept.bytes);
                prop_assert!(kept.entries.contains_key(&key));
            }
        }

        #[test]
        fn what_fits_nowhere_is_not_kept(bytes in 3_801_usize..1_000_000) {
            let mut kept = kept(8, 4_000);
            kept.keep(1, 1, bytes, at(0));
            prop_assert_eq!((kept.entries.len(), kept.bytes), (0, 0));
        }
    }
}

//! The endpoints that are handed out: the last known ones, and never suddenly none.
//!
//! A registry that tells of no endpoint at all is more often wiped, restored or misread than right:
//! an update that would empty a set which was not empty is held back for a while.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use flux_env::Instant;

use super::endpoint::Endpoint;

/// The set of one service as it is handed out.
#[derive(Debug)]
pub(crate) struct Held {
    grace: Duration,
    shown: Arc<[Endpoint]>,
    /// Since when the registry has said that there are none, while we show some.
    empty_since: Option<Instant>,
}

impl Held {
    pub(crate) fn new(grace: Duration) -> Self {
        Self {
            grace,
            shown: Arc::new([]),
            empty_since: None,
        }
    }

    /// The registry tells of these now. Returns the set to show if that changes.
    pub(crate) fn offer(
        &mut self,
        found: impl IntoIterator<Item = Endpoint>,
        now: Instant,
    ) -> Option<Arc<[Endpoint]>> {
        // One endpoint for each address, in an order that does not depend on ids.
        let by_address: BTreeMap<String, Endpoint> = found
            .into_iter()
            .map(|endpoint| (endpoint.address.clone(), endpoint))
            .collect();
        if by_address.is_empty() && !self.shown.is_empty() {
            self.empty_since.get_or_insert(now);
            return self.expire(now);
        }
        self.empty_since = None;
        let found: Arc<[Endpoint]> = by_address.into_values().collect();
        if found == self.shown {
            return None;
        }
        self.shown = Arc::clone(&found);
        Some(found)
    }

    /// When [`Held::expire`] has something to do.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.empty_since.map(|since| since + self.grace)
    }

    /// Time has passed: a set that has been empty for long enough is shown as that.
    pub(crate) fn expire(&mut self, now: Instant) -> Option<Arc<[Endpoint]>> {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return None;
        }
        self.empty_since = None;
        self.shown = Arc::new([]);
        Some(Arc::clone(&self.shown))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(30);

    fn at(seconds: u64) -> Instant {
        Instant::default() + Duration::from_secs(seconds)
    }

    fn names(set: Option<Arc<[Endpoint]>>) -> Option<Vec<String>> {
        set.map(|set| {
            set.iter()
                .map(|endpoint| endpoint.address.clone())
                .collect()
        })
    }

    fn set(addresses: &[&str]) -> Vec<Endpoint> {
        addresses
            .iter()
            .map(|address| Endpoint::at(*address))
            .collect()
    }

    #[test]
    fn a_change_is_shown_once_sorted_and_without_doubles() {
        let mut held = Held::new(GRACE);
        assert_eq!(held.offer(set(&[]), at(0)), None);
        let shown = names(held.offer(set(&["b:1", "a:1", "b:1"]), at(0)));
        assert_eq!(shown, Some(vec!["a:1".to_owned(), "b:1".to_owned()]));
        assert_eq!(held.offer(set(&["a:1", "b:1"]), at(0)), None);
        assert_eq!(
            names(held.offer(set(&["b:1"]), at(1))),
            Some(vec!["b:1".to_owned()])
        );
    }

    #[test]
    fn the_last_endpoints_stay_for_the_grace_time_and_no_longer() {
        let mut held = Held::new(GRACE);
        assert!(held.offer(set(&["a:1"]), at(0)).is_some());
        assert_eq!(held.offer(set(&[]), at(10)), None);
        assert_eq!(held.deadline(), Some(at(40)));
        // Said again, it does not last longer.
        assert_eq!(held.offer(set(&[]), at(30)), None);
        assert_eq!(held.expire(at(39)), None);
        assert_eq!(names(held.expire(at(40))), Some(vec![]));
        assert_eq!((held.deadline(), held.expire(at(100))), (None, None));
    }

    #[test]
    fn endpoints_that_come_back_in_time_were_never_gone() {
        let mut held = Held::new(GRACE);
        assert!(held.offer(set(&["a:1"]), at(0)).is_some());
        assert_eq!(held.offer(set(&[]), at(10)), None);
        assert_eq!(held.offer(set(&["a:1"]), at(20)), None);
        assert_eq!((held.deadline(), held.expire(at(100))), (None, None));
        assert_eq!(held.offer(set(&[]), at(110)), None);
        let shown = names(held.offer(set(&["b:1"]), at(120)));
        assert_eq!(shown, Some(vec!["b:1".to_owned()]));
    }
}

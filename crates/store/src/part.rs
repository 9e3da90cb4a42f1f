//! Parting a store: the keys that go to another shard are walked over, and then taken out.

use std::fmt;
use std::sync::Arc;

use crate::snapshot::Walk;
use crate::store::Store;

type Picks = dyn Fn(&[u8]) -> bool + Send + Sync;

/// Picks keys.
#[derive(Clone)]
pub struct KeyFilter(Arc<Picks>);

impl fmt::Debug for KeyFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyFilter").finish_non_exhaustive()
    }
}

impl KeyFilter {
    /// Picks the keys of which this is true. It must be the same at every call, quick, and must not
    /// call the store.
    #[must_use]
    pub fn new(picks: impl Fn(&[u8]) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(picks))
    }

    /// Whether a key is picked.
    #[must_use]
    pub fn picks(&self, key: &[u8]) -> bool {
        (self.0)(key)
    }
}

impl Store {
    /// As [`Store::walk`], but over the keys that are picked, and without system data, which stay.
    /// What is known of requests is met whole: a retry may come to either part.
    #[must_use]
    pub fn walk_part(self: &Arc<Self>, only: KeyFilter) -> Walk {
        self.walk().over(only)
    }

    /// Number of lock stripes, for [`Store::take_out`].
    #[must_use]
    pub const fn stripe_count(&self) -> usize {
        self.stripes().len()
    }

    /// Takes the keys that are picked out of a stripe; answers how many. No fact says so: whoever
    /// calls this for every stripe does it at one place of the shard's order, as all replicas do.
    /// Only for the one who applies.
    pub fn take_out(&self, stripe: usize, picked: &KeyFilter) -> usize {
        let _applier = self.applier.lock();
        let mut gone = Vec::new();
        let picks = |key: &[u8]| picked.picks(key);
        let mut locked = self.lock_stripes(vec![stripe]);
        for (number, table) in locked.iter_mut() {
            let before = table.totals();
            gone = table.extract(&picks, &self.hasher);
            self.totals.adjust(before, table.totals());
            self.stripe(number).publish(table);
        }
        // Freed when nobody waits for the stripe any more.
        drop(locked);
        gone.len()
    }
}

//! Which keys are due. Only asked on the leader; deleting them is a fact like any other.

use bytes::Bytes;
use flux_types::UnixMillis;

use crate::store::Store;
use crate::wheel::Item;

impl Store {
    /// Keys whose deadline is not after `now`, oldest deadline first, at most `limit`. They are
    /// given again until their deletion has been applied, so a proposal that fails loses nothing.
    #[must_use]
    pub fn due(&self, now: UnixMillis, limit: usize) -> Vec<Bytes> {
        let mut wheel = self.wheel.lock();
        let items = wheel.due(now, limit, |item| self.item_is_current(item));
        drop(wheel);
        let mut keys = Vec::with_capacity(items.len());
        for item in items {
            self.for_each_current(item, &mut |key| keys.push(Bytes::copy_from_slice(key)));
        }
        keys
    }

    /// When [`Self::due`] should be asked again: not later than the next deadline; now and then
    /// earlier, when nothing is due yet. `None` while no key has a deadline.
    #[must_use]
    pub fn next_due(&self) -> Option<UnixMillis> {
        self.wheel.lock().next_due()
    }

    /// How long the oldest key that should be gone has been overdue, in milliseconds.
    #[must_use]
    pub fn expiry_lag(&self, now: UnixMillis) -> u64 {
        let mut wheel = self.wheel.lock();
        wheel
            .due(now, 1, |item| self.item_is_current(item))
            .first()
            .map_or(0, |item| now.saturating_since(item.deadline()))
    }

    /// Whether the item stands for some key's present deadline.
    pub(crate) fn item_is_current(&self, item: Item) -> bool {
        let mut current = false;
        self.for_each_current(item, &mut |_| current = true);
        current
    }

    fn for_each_current(&self, item: Item, visit: &mut dyn FnMut(&[u8])) {
        let table = self.lock_hash(item.hash());
        table.for_each_of_hash(item.hash(), &self.hasher, &mut |entry| {
            if entry.deadline() == Some(item.deadline()) && entry.stamp() == item.stamp() {
                visit(entry.key());
            }
        });
    }
}

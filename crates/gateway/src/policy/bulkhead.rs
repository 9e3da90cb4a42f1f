//! A bound on calls under way, so that one slow upstream or route cannot take everything.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// So many places. Clones are one bulkhead.
#[derive(Clone, Debug)]
pub(crate) struct Bulkhead {
    taken: Arc<AtomicUsize>,
    places: usize,
}

impl Bulkhead {
    pub(crate) fn new(places: usize) -> Self {
        Self {
            taken: Arc::default(),
            places,
        }
    }

    /// Takes a place; `None` if there is none.
    pub(crate) fn try_acquire(&self) -> Option<Place> {
        let before = self.taken.fetch_add(1, Ordering::Relaxed);
        let place = Place(Arc::clone(&self.taken));
        // Dropping the place gives it back.
        (before < self.places).then_some(place)
    }

    /// Calls under way.
    pub(crate) fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }
}

/// A place, given back on drop.
#[derive(Debug)]
pub(crate) struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_come_back_when_calls_end_however_they_end() {
        let bulkhead = Bulkhead::new(2);
        let first = bulkhead.try_acquire().unwrap();
        let _second = bulkhead.try_acquire().unwrap();
        assert!(bulkhead.try_acquire().is_none());
        assert_eq!(bulkhead.taken(), 2);
        let panicked = std::panic::catch_unwind(move || {
            let _place = first;
            panic!("a call dies");
        });
        assert!(panicked.is_err());
        assert_eq!(bulkhead.taken(), 1);
        assert!(bulkhead.try_acquire().is_some());
    }
}

//! What was published and not yet settled: the bound on it, and how far everything is safe.
//!
//! The broker confirms in any order and several at once; confirms are looked at here in the order of
//! publishing, so what is confirmed is always a prefix. Being confirmed is not yet being settled: the
//! client library hands a *returned* message to whichever confirm of the same frame comes first, so
//! a later confirm may still tell that an earlier message had no queue to go to. A frame never covers
//! what was sent after it, hence a place is settled once everything is confirmed that had been sent
//! by the time the place itself was. Only settled places may be committed.

use std::collections::VecDeque;

/// Messages in flight; `P` is the place in the change stream behind each of them.
#[derive(Debug)]
pub struct Window<P> {
    count_max: usize,
    bytes_max: usize,
    in_flight: VecDeque<(usize, P)>,
    bytes: usize,
    /// Messages sent and confirmed since the window was made or cleared.
    sent: u64,
    confirmed: u64,
    /// Confirmed places, each with how many must be confirmed before it is settled.
    waiting: VecDeque<(u64, P)>,
}

impl<P> Window<P> {
    /// A window of at most `count_max` messages and `bytes_max` bytes; one message always fits.
    #[must_use]
    pub const fn new(count_max: usize, bytes_max: usize) -> Self {
        Self {
            count_max,
            bytes_max,
            in_flight: VecDeque::new(),
            bytes: 0,
            sent: 0,
            confirmed: 0,
            waiting: VecDeque::new(),
        }
    }

    /// Whether a further message may be sent.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.in_flight.is_empty()
            || (self.in_flight.len() < self.count_max && self.bytes < self.bytes_max)
    }

    /// Messages sent and not confirmed.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Notes a message of `bytes` that was sent; `place` is how far the stream is with it.
    pub fn sent(&mut self, bytes: usize, place: P) {
        self.in_flight.push_back((bytes, place));
        self.bytes = self.bytes.saturating_add(bytes);
        self.sent += 1;
    }

    /// Notes that the oldest message in flight was confirmed.
    pub fn confirmed(&mut self) {
        let Some((bytes, place)) = self.in_flight.pop_front() else {
            return;
        };
        self.bytes = self.bytes.saturating_sub(bytes);
        self.confirmed += 1;
        self.waiting.push_back((self.sent, place));
    }

    /// The next place that has become settled, oldest first.
    pub fn settle(&mut self) -> Option<P> {
        let (until, _) = self.waiting.front()?;
        if *until > self.confirmed {
            return None;
        }
        self.waiting.pop_front().map(|(_, place)| place)
    }

    /// Forgets everything that is not settled: it will be sent again.
    pub fn clear(&mut self) {
        *self = Self::new(self.count_max, self.bytes_max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settled(window: &mut Window<u32>) -> Vec<u32> {
        std::iter::from_fn(|| window.settle()).collect()
    }

    #[test]
    fn room_is_bounded_by_count_and_by_bytes_but_one_message_always_fits() {
        let mut window = Window::new(3, 100);
        window.sent(1_000, 1);
        assert!(!window.has_room());
        window.confirmed();
        assert!(window.has_room());
        for place in 2..5 {
            assert!(window.has_room());
            window.sent(10, place);
        }
        assert!(!window.has_room());
        assert_eq!(window.in_flight(), 3);
    }

    #[test]
    fn a_confirmed_place_is_settled_only_with_what_was_sent_before_its_confirm() {
        let mut window = Window::new(10, 1_000);
        window.sent(1, 1);
        window.sent(1, 2);
        window.sent(1, 3);
        window.confirmed();
        // 2 and 3 may have been confirmed by the same frame, and carry a return that belongs to 1.
        assert!(settled(&mut window).is_empty());
        window.sent(1, 4);
        window.confirmed();
        assert!(settled(&mut window).is_empty());
        window.confirmed();
        assert_eq!(settled(&mut window), [1]);
        window.confirmed();
        assert_eq!(settled(&mut window), [2, 3, 4]);
        assert_eq!(window.in_flight(), 0);
    }

    #[test]
    fn what_is_cleared_is_never_settled() {
        let mut window = Window::new(10, 1_000);
        window.sent(1, 1);
        window.sent(1, 2);
        window.confirmed();
        window.clear();
        assert!(settled(&mut window).is_empty());
        window.confirmed();
        window.sent(1, 1);
        window.confirmed();
        assert_eq!(settled(&mut window), [1]);
    }

    #[test]
    fn places_are_settled_in_order_and_none_is_lost() {
        let mut window = Window::new(64, 1 << 20);
        let (mut next, mut seen) = (0, Vec::new());
        let mut state = 88_172_645_463_325_252_u64;
        while seen.len() < 10_000 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            if state.is_multiple_of(2) && window.has_room() {
                window.sent(1, next);
                next += 1;
            } else {
                window.confirmed();
            }
            seen.extend(settled(&mut window));
        }
        assert!(
            seen.iter()
                .copied()
                .eq(0..u32::try_from(seen.len()).unwrap())
        );
    }
}

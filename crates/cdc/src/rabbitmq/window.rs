//! What was published and not yet confirmed: the bound on it, and how far everything is safe.
//!
//! The broker confirms in any order and several at once; whoever holds the window tells confirms in
//! the order of publishing, so what is confirmed is always a prefix, and its places may be committed.
//! That a message came back because no queue is bound for it is told before its confirm.

use std::collections::VecDeque;

/// Messages in flight; `P` is what is known of each, such as its place in the change stream.
#[derive(Debug)]
pub struct Window<P> {
    count_max: usize,
    bytes_max: usize,
    in_flight: VecDeque<(usize, P)>,
    bytes: usize,
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

    /// The oldest message in flight.
    #[must_use]
    pub fn oldest(&self) -> Option<&P> {
        self.in_flight.front().map(|(_, place)| place)
    }

    /// The messages in flight, the oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &P> {
        self.in_flight.iter().map(|(_, place)| place)
    }

    /// The messages in flight, the oldest first, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut P> {
        self.in_flight.iter_mut().map(|(_, place)| place)
    }

    /// Notes a message of `bytes` that was sent; `place` is how far the stream is with it.
    pub fn sent(&mut self, bytes: usize, place: P) {
        self.in_flight.push_back((bytes, place));
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// Notes that the oldest message in flight was confirmed, and tells its place.
    pub fn confirmed(&mut self) -> Option<P> {
        let (bytes, place) = self.in_flight.pop_front()?;
        self.bytes = self.bytes.saturating_sub(bytes);
        Some(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_bounded_by_count_and_by_bytes_but_one_message_always_fits() {
        let mut window = Window::new(3, 100);
        window.sent(1_000, 1);
        assert!(!window.has_room());
        assert_eq!(window.confirmed(), Some(1));
        assert!(window.has_room());
        for place in 2..5 {
            assert!(window.has_room());
            window.sent(10, place);
        }
        assert!(!window.has_room());
        assert_eq!(window.in_flight(), 3);
    }

    #[test]
    fn places_are_told_in_the_order_of_publishing_and_none_is_lost() {
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
                seen.extend(window.confirmed());
            }
        }
        assert!(
            seen.iter()
                .copied()
                .eq(0..u32::try_from(seen.len()).unwrap())
        );
    }
}

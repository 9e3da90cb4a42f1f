//! Where a shard's entries lie: four bytes for each, since neighbors nearly always share their
//! segment and term, and records begin at multiples of eight.

use std::collections::VecDeque;

use flux_types::Term;

use crate::fields::{narrow, widen};
use crate::record::{RECORD_ALIGNMENT, durable_field};

/// Where an entry lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) term: Term,
    pub(crate) segment: u64,
    pub(crate) offset: u64,
}

/// Neighbors with the same segment and term.
#[derive(Clone, Copy, Debug)]
struct Run {
    /// Number of its first position, counted from the first one ever pushed.
    first: u64,
    term: Term,
    segment: u64,
}

impl Run {
    fn position(&self, offset: u32) -> Position {
        Position {
            term: self.term,
            segment: self.segment,
            offset: u64::from(offset) * widen(RECORD_ALIGNMENT),
        }
    }
}

/// Positions in the order of the log; both ends move.
#[derive(Clone, Debug, Default)]
pub(crate) struct Positions {
    /// In units of [`RECORD_ALIGNMENT`].
    offsets: VecDeque<u32>,
    /// Never empty while there are positions; rising in `first`.
    runs: VecDeque<Run>,
    /// Number of the front position.
    front: u64,
}

impl Positions {
    pub(crate) fn len(&self) -> usize {
        self.offsets.len()
    }

    fn end(&self) -> u64 {
        self.front + widen(self.offsets.len())
    }

    pub(crate) fn push_back(&mut self, position: Position) {
        let Position {
            term,
            segment,
            offset,
        } = position;
        let same = |run: &Run| run.term == term && run.segment == segment;
        if !self.runs.back().is_some_and(same) {
            let first = self.end();
            self.runs.push_back(Run {
                first,
                term,
                segment,
            });
        }
        self.offsets.push_back(durable_field(offset));
    }

    pub(crate) fn get(&self, at: usize) -> Option<Position> {
        let offset = self.offsets.get(at)?;
        let number = self.front + widen(at);
        let after = self.runs.partition_point(|run| run.first <= number);
        let run = self.runs.get(after.checked_sub(1)?)?;
        Some(run.position(*offset))
    }

    /// The positions from one on, to the last.
    pub(crate) fn iter_from(&self, at: usize) -> impl Iterator<Item = Position> {
        let at = at.min(self.len());
        let number = self.front + widen(at);
        let after = self.runs.partition_point(|run| run.first <= number);
        let mut runs = self.runs.range(after..).peekable();
        let mut run = self.runs.get(after.saturating_sub(1)).copied();
        let offsets = self.offsets.range(at..);
        (number..).zip(offsets).map_while(move |(number, offset)| {
            run = runs.next_if(|next| next.first == number).copied().or(run);
            Some(run?.position(*offset))
        })
    }

    pub(crate) fn front(&self) -> Option<Position> {
        self.get(0)
    }

    pub(crate) fn back(&self) -> Option<Position> {
        self.get(self.len().checked_sub(1)?)
    }

    pub(crate) fn pop_back(&mut self) -> Option<Position> {
        let position = self.back()?;
        self.offsets.pop_back();
        let end = self.end();
        if self.runs.back().is_some_and(|run| run.first == end) {
            self.runs.pop_back();
        }
        Some(position)
    }

    /// Drops up to `count` positions from the front.
    pub(crate) fn drop_front(&mut self, count: u64) {
        let count = count.min(widen(self.len()));
        self.offsets.drain(..narrow(count));
        self.front += count;
        if self.offsets.is_empty() {
            self.runs.clear();
        }
        while self
            .runs
            .get(1)
            .is_some_and(|next| next.first <= self.front)
        {
            self.runs.pop_front();
        }
    }

    /// Moves up to `count` positions from the front to the back of another queue.
    pub(crate) fn move_front(&mut self, count: u64, to: &mut Self) {
        let count = count.min(widen(self.len()));
        for position in self.iter_from(0).take(narrow(count)) {
            to.push_back(position);
        }
        self.drop_front(count);
    }

    /// Drops the positions in segments before one; segments rise from front to back.
    pub(crate) fn drop_before(&mut self, segment: u64) {
        let first_kept = self.runs.iter().find(|run| segment <= run.segment);
        let kept_from = first_kept.map_or_else(|| self.end(), |run| run.first);
        self.drop_front(kept_from.saturating_sub(self.front));
    }

    pub(crate) fn clear(&mut self) {
        self.offsets.clear();
        self.runs.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn position(seed: u64) -> Position {
        Position {
            term: Term::new(seed / 7 % 3),
            segment: seed / 5 % 4,
            offset: seed % 100 * 8,
        }
    }

    proptest! {
        #[test]
        fn it_holds_what_a_plain_queue_holds(steps: Vec<(u8, u64)>) {
            let mut packed = Positions::default();
            let mut plain: VecDeque<Position> = VecDeque::new();
            for (action, number) in steps {
                match action % 8 {
                    0 => prop_assert_eq!(packed.pop_back(), plain.pop_back()),
                    1 => {
                        let count = number % 4;
                        packed.drop_front(count);
                        plain.drain(..plain.len().min(narrow(count)));
                    }
                    2 if number % 16 < 4 => {
                        let mut moved = Positions::default();
                        packed.move_front(number % 4, &mut moved);
                        let count = plain.len().min(narrow(number % 4));
                        let expected: Vec<Position> = plain.drain(..count).collect();
                        prop_assert!(moved.iter_from(0).eq(expected));
                    }
                    2 if number % 16 == 5 => {
                        packed.clear();
                        plain.clear();
                    }
                    _ => {
                        packed.push_back(position(number));
                        plain.push_back(position(number));
                    }
                }
                prop_assert_eq!(packed.len(), plain.len());
                prop_assert_eq!(packed.front(), plain.front().copied());
                prop_assert_eq!(packed.back(), plain.back().copied());
                for at in 0..=plain.len() {
                    prop_assert_eq!(packed.get(at), plain.get(at).copied());
                    let rest = plain.iter().skip(at).copied();
                    prop_assert!(packed.iter_from(at).eq(rest));
                }
            }
        }
    }
}

//! The search for an order: depth first, and never twice through the same place.
//!
//! A place is the set of operations that are in the order already, and the state they lead to. Of
//! the definite ones almost always all up to some point are in it, so their set is a number and a few
//! bits beyond. Open ones may come at any later time or never; a place that uses fewer of them and is
//! otherwise the same can do whatever the other can, so one that failed rules out all that use more
//! ([`Seen`]). Open ones are used only right before a definite one, and as few of them as will do,
//! which makes that happen early.

use std::collections::HashMap;

use crate::model::{Event, Model, State};

/// What a search found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Order,
    None,
    /// It was given up after so many steps.
    GivenUp,
}

/// A set of numbers, most of which are below some number.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Prefix {
    /// All before are in the set.
    base: usize,
    /// Those at and after the base; the last word is not empty.
    beyond: Vec<u64>,
}

impl Prefix {
    fn contains(&self, number: usize) -> bool {
        number
            .checked_sub(self.base)
            .is_none_or(|bit| has_bit(&self.beyond, bit))
    }

    fn with(&self, number: usize) -> Self {
        let mut set = self.clone();
        set_bit(&mut set.beyond, number - set.base);
        let full = |words: &[u64]| words.first().is_some_and(|word| word & 1 == 1);
        while full(&set.beyond) {
            set.base += 1;
            let mut carry = 0;
            for word in set.beyond.iter_mut().rev() {
                let low = *word & 1;
                *word = (*word >> 1) | (carry << 63);
                carry = low;
            }
            while set.beyond.last() == Some(&0) {
                set.beyond.pop();
            }
        }
        set
    }
}

fn has_bit(words: &[u64], bit: usize) -> bool {
    let word = words.get(bit / 64).copied().unwrap_or(0);
    word >> (bit % 64) & 1 == 1
}

fn set_bit(words: &mut Vec<u64>, bit: usize) {
    if words.len() <= bit / 64 {
        words.resize(bit / 64 + 1, 0);
    }
    if let Some(word) = words.get_mut(bit / 64) {
        *word |= 1 << (bit % 64);
    }
}

fn is_subset(small: &[u64], large: &[u64]) -> bool {
    let large = large.iter().copied().chain(std::iter::repeat(0));
    small
        .iter()
        .zip(large)
        .all(|(small, large)| small & !large == 0)
}

/// Places that were entered, by what is in the order and the state, with the open ones used.
#[derive(Default)]
struct Seen(HashMap<(Prefix, State), Vec<Vec<u64>>>);

impl Seen {
    /// Notes a place; whether it is worth entering.
    fn enter(&mut self, done: &Prefix, state: State, used: &[u64]) -> bool {
        let known = self.0.entry((done.clone(), state)).or_default();
        if known.iter().any(|known| is_subset(known, used)) {
            return false;
        }
        known.retain(|known| !is_subset(used, known));
        known.push(used.to_vec());
        true
    }
}

/// A place in the search, and where one can go from it.
struct Place {
    ways: std::vec::IntoIter<Way>,
}

struct Way {
    done: Prefix,
    used: Vec<u64>,
    state: State,
}

/// The events of one key.
pub(crate) struct Search<'a> {
    model: &'a Model,
    /// Those with an answer, in the order of their calls.
    definite: Vec<Event>,
    /// Those that are open, in the order of their calls.
    open: Vec<Event>,
    steps_max: u64,
    /// Steps taken so far.
    pub(crate) steps: u64,
}

impl<'a> Search<'a> {
    pub(crate) fn new(model: &'a Model, events: &[Event], steps_max: u64) -> Self {
        let mut events = events.to_vec();
        events.sort_by_key(|event| event.called);
        let (open, definite) = events
            .into_iter()
            .partition(|event| event.returned == u64::MAX);
        Self {
            model,
            definite,
            open,
            steps_max,
            steps: 0,
        }
    }

    /// Looks for an order that begins with this state.
    pub(crate) fn run(&mut self, begin: State) -> Found {
        let mut seen = Seen::default();
        let begin = Way {
            done: Prefix::default(),
            used: Vec::new(),
            state: begin,
        };
        let mut places = vec![self.place(&begin)];
        while let Some(place) = places.last_mut() {
            let Some(way) = place.ways.next() else {
                places.pop();
                continue;
            };
            self.steps += 1;
            if self.steps_max < self.steps {
                return Found::GivenUp;
            }
            if way.done.base == self.definite.len() {
                return Found::Order;
            }
            if seen.enter(&way.done, way.state, &way.used) {
                let place = self.place(&way);
                places.push(place);
            }
        }
        if self.definite.is_empty() {
            Found::Order
        } else {
            Found::None
        }
    }

    /// Everything that may come next: whatever was called before the first return that is still
    /// missing. Those that must return first are tried first.
    fn place(&self, at: &Way) -> Place {
        let mut first_return = u64::MAX;
        let mut next = Vec::new();
        let from = at.done.base;
        let rest = self.definite.iter().enumerate().skip(from);
        for (number, event) in rest.filter(|(number, _)| !at.done.contains(*number)) {
            if first_return < event.called {
                break;
            }
            first_return = first_return.min(event.returned);
            next.push((number, event));
        }
        next.retain(|(_, event)| event.called <= first_return);
        next.sort_by_key(|(_, event)| event.returned);
        let reachable = self.reachable(at, first_return);
        let mut ways: Vec<Way> = Vec::new();
        for (number, event) in next {
            let done = at.done.with(number);
            let first = ways.len();
            for (used, state) in &reachable {
                self.model.after(*state, event, |state| {
                    let mut first_ways = ways.iter().skip(first).take(2);
                    // Mostly it leads there without any open operation too.
                    let is_needless = |way: &Way| way.state == state && is_subset(&way.used, used);
                    if !first_ways.any(is_needless) {
                        ways.push(Way {
                            done: done.clone(),
                            used: used.clone(),
                            state,
                        });
                    }
                });
            }
        }
        Place {
            ways: ways.into_iter(),
        }
    }

    /// The states that open operations can make of this one before the next definite operation, each
    /// with the open operations used; itself first, and then by their number.
    fn reachable(&self, at: &Way, first_return: u64) -> Vec<(Vec<u64>, State)> {
        let mut reachable = vec![(at.used.clone(), at.state)];
        let mut next = 0;
        while let Some((used, state)) = reachable.get(next).cloned() {
            let is_first = next == 0;
            next += 1;
            let mut tried = Vec::new();
            let open = self.open.iter().enumerate();
            for (number, event) in open.take_while(|(_, event)| event.called <= first_return) {
                // One that does not look at the state makes needless whatever open one came before
                // it. Of several that do the same the earliest will do.
                if has_bit(&used, number)
                    || (!is_first && !event.depends_on_state())
                    || tried.contains(&event.kind())
                {
                    continue;
                }
                tried.push(event.kind());
                self.model.after(state, event, |state| {
                    let mut used = used.clone();
                    set_bit(&mut used, number);
                    let is_known = reachable
                        .iter()
                        .any(|(known, other)| *other == state && is_subset(known, &used));
                    if !is_known {
                        reachable.push((used, state));
                    }
                });
            }
        }
        reachable
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_set_is_the_same_whatever_the_order_it_was_made_in() {
        let up = (0..200).fold(Prefix::default(), |set, number| set.with(number));
        let down = (0..200)
            .rev()
            .fold(Prefix::default(), |set, number| set.with(number));
        assert_eq!(up, down);
        assert_eq!((up.base, up.beyond.len()), (200, 0));
        let gap = (0..200).filter(|number| *number != 3);
        let gap = gap.fold(Prefix::default(), |set, number| set.with(number));
        assert_eq!(gap.base, 3);
        assert!(!gap.contains(3) && gap.contains(2) && gap.contains(199) && !gap.contains(200));
    }
}

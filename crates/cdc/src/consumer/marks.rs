//! Which events were processed: exact near the head of each shard, a low-water mark below it.
//!
//! Remembering every id would grow for ever; remembering only the highest would drop an event that
//! the broker delivers late. So for each source (a shard) and term the processed revisions are kept
//! as ranges, and what lies more than [`REORDER`] revisions below the highest is taken for
//! processed. A publisher resends what it has no confirm for, and a broker what it has no
//! acknowledgement for: both windows are far smaller.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// How far below the highest revision an event may come late.
const REORDER: u64 = 65_536;
/// Terms of a source that are told apart; what comes from an older one was processed.
const TERMS_MAX: usize = 8;
/// Sources that are remembered; beyond, the one that was silent longest is forgotten.
const SOURCES_MAX: usize = 4_096;

/// What identifies an event: where it comes from, and its place there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventId {
    /// The source of the event, which names cluster and shard.
    pub source: String,
    /// Term of the shard.
    pub term: u64,
    /// Revision within the shard.
    pub revision: u64,
}

impl EventId {
    /// Reads an id of the form `shard:term:revision`; `None` for every other.
    #[must_use]
    pub fn parse(source: &str, id: &str) -> Option<Self> {
        let mut parts = id.split(':');
        let mut number = || {
            let part = parts.next()?;
            let is_plain = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
            part.parse::<u64>().ok().filter(|_| is_plain)
        };
        let (shard, term, revision) = (number()?, number()?, number()?);
        parts.next().is_none().then(|| Self {
            source: format!("{source}#{shard}"),
            term,
            revision,
        })
    }
}

/// The processed revisions of a term: everything up to `below`, and `ranges` above it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Revisions {
    /// Everything up to here is taken for processed.
    below: u64,
    /// First revision of each range to its last; they neither touch nor overlap.
    ranges: BTreeMap<u64, u64>,
}

impl Revisions {
    fn contains(&self, revision: u64) -> bool {
        revision <= self.below
            || self
                .ranges
                .range(..=revision)
                .next_back()
                .is_some_and(|(_, last)| *last >= revision)
    }

    fn insert(&mut self, revision: u64) {
        let mut first = revision;
        let mut last = revision;
        if let Some((before, end)) = self.ranges.range(..revision).next_back()
            && end.saturating_add(1) == revision
        {
            first = *before;
        }
        if let Some(after) = revision.checked_add(1)
            && let Some(end) = self.ranges.remove(&after)
        {
            last = end;
        }
        self.ranges.insert(first, last);
        self.absorb();
    }

    /// Moves the low-water mark up behind the head.
    fn absorb(&mut self) {
        let highest = self.ranges.last_key_value().map_or(0, |(_, last)| *last);
        self.below = self.below.max(highest.saturating_sub(REORDER));
        while let Some(entry) = self.ranges.first_entry() {
            // A range that lies wholly below says nothing more; one that crosses stays.
            if *entry.get() > self.below {
                break;
            }
            entry.remove();
        }
    }
}

/// One source with its terms.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Source {
    /// Counts uses of all sources; tells who was silent longest.
    used: u64,
    terms: BTreeMap<u64, Revisions>,
}

/// What was processed, of all sources.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Marks {
    sources: BTreeMap<String, Source>,
    uses: u64,
}

impl Marks {
    /// Whether an event was processed.
    #[must_use]
    pub fn contains(&self, id: &EventId) -> bool {
        let Some(source) = self.sources.get(&id.source) else {
            return false;
        };
        if let Some(revisions) = source.terms.get(&id.term) {
            return revisions.contains(id.revision);
        }
        let oldest = source.terms.first_key_value().map_or(0, |(term, _)| *term);
        source.terms.len() >= TERMS_MAX && id.term < oldest
    }

    /// Notes that an event was processed.
    pub fn insert(&mut self, id: &EventId) {
        self.uses += 1;
        if !self.sources.contains_key(&id.source) && self.sources.len() >= SOURCES_MAX {
            self.forget_one();
        }
        let source = self.sources.entry(id.source.clone()).or_default();
        source.used = self.uses;
        source.terms.entry(id.term).or_default().insert(id.revision);
        if source.terms.len() > TERMS_MAX {
            source.terms.pop_first();
        }
    }

    fn forget_one(&mut self) {
        let silent = self.sources.iter().min_by_key(|(_, source)| source.used);
        if let Some(name) = silent.map(|(name, _)| name.clone()) {
            self.sources.remove(&name);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn id(term: u64, revision: u64) -> EventId {
        EventId {
            source: "s".to_owned(),
            term,
            revision,
        }
    }

    /// Processes an event unless it was processed; whether it was new.
    fn process(marks: &mut Marks, id: &EventId) -> bool {
        let is_new = !marks.contains(id);
        if is_new {
            marks.insert(id);
        }
        is_new
    }

    #[test]
    fn ids_have_three_numbers_and_nothing_else() {
        let read = |text: &str| EventId::parse("/flux/a", text);
        let id = read("0:3:482991").unwrap();
        assert_eq!((id.term, id.revision), (3, 482_991));
        assert_ne!(id.source, read("1:3:482991").unwrap().source);
        assert_eq!(
            read(&format!("0:1:{}", u64::MAX)).unwrap().revision,
            u64::MAX
        );
        for text in [
            "",
            "0:1",
            "0:1:2:3",
            "0:1:x",
            "0:+1:2",
            "0::2",
            "0:1:18446744073709551616",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn a_resent_run_is_skipped_and_a_late_event_is_not() {
        let mut marks = Marks::default();
        for revision in (100..600).filter(|revision| *revision != 104) {
            assert!(process(&mut marks, &id(1, revision)));
        }
        for revision in 100..600 {
            assert_eq!(
                process(&mut marks, &id(1, revision)),
                revision == 104,
                "{revision}"
            );
        }
        assert!(process(&mut marks, &id(1, 99)));
    }

    #[test]
    fn state_does_not_grow_with_the_number_of_events() {
        let mut marks = Marks::default();
        for revision in 1..=300_000 {
            assert!(process(&mut marks, &id(1, revision)));
        }
        let revisions = &marks.sources["s"].terms[&1];
        assert_eq!(revisions.ranges, BTreeMap::from([(1, 300_000)]));
        // Only every second revision: as when most of a shard's facts are filtered out.
        for revision in (300_002..900_000).step_by(2) {
            assert!(process(&mut marks, &id(1, revision)));
        }
        let revisions = &marks.sources["s"].terms[&1];
        assert!(
            revisions.ranges.len() <= 32_769,
            "{}",
            revisions.ranges.len()
        );
        assert!(
            !process(&mut marks, &id(1, 300_001)),
            "beyond the reorder window"
        );
    }

    #[test]
    fn a_new_term_may_count_again_and_an_old_one_may_come_late() {
        let mut marks = Marks::default();
        assert!(process(&mut marks, &id(1, 10)));
        assert!(
            process(&mut marks, &id(2, 10)),
            "the same revision of another term is another event"
        );
        assert!(process(&mut marks, &id(1, 9)));
        for term in 3..20 {
            assert!(process(&mut marks, &id(term, 10)));
        }
        assert!(!process(&mut marks, &id(1, 11)), "of a term long gone");
        assert_eq!(marks.sources["s"].terms.len(), TERMS_MAX);
    }

    #[test]
    fn sources_are_bounded_and_the_silent_one_goes_first() {
        let mut marks = Marks::default();
        for number in 0..SOURCES_MAX + 10 {
            let source = format!("{number}");
            marks.insert(&EventId { source, ..id(1, 1) });
            marks.insert(&id(1, number as u64 + 1));
        }
        assert_eq!(marks.sources.len(), SOURCES_MAX);
        assert!(marks.contains(&id(1, 1)), "it was never silent");
    }

    #[test]
    fn within_the_window_the_marks_agree_with_a_set_of_all_ids() {
        let (mut marks, mut model) = (Marks::default(), BTreeSet::new());
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        for round in 0..200_000_u64 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let revision = 1 + round / 2 + state % 2_000;
            assert_eq!(
                process(&mut marks, &id(1, revision)),
                model.insert(revision),
                "{revision}"
            );
        }
    }
}

//! Following a prefix of a registry that counts revisions: what to ask next, decided from what was
//! seen.
//!
//! No I/O: [`WatchLoop::need`] says what is needed, whoever asks feeds in what comes
//! ([`WatchLoop::seen`]). A snapshot at revision R, then every change from R + 1 on. A stream that
//! ends is resumed after the last change that was seen. If that is not possible (compacted), or the
//! registry is not the one it was (its revision went back: wiped or restored), there is a new
//! snapshot, and what differs is the change. Now and then there is one in any case, so that nothing
//! that was missed is missed for ever.

use std::collections::BTreeMap;
use std::time::Duration;

use flux_env::Instant;

use super::backoff::Backoff;

const PAUSE_MAX: Duration = Duration::from_secs(1);
/// How often everything is read anew.
const RESYNC_INTERVAL: Duration = Duration::from_secs(60);

/// A position in the registry's history.
pub(crate) type Revision = i64;

/// What to ask next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// Nothing, until then.
    Wait(Instant),
    /// All keys, and the revision at which they are read.
    Snapshot,
    /// Changes from this revision on.
    Watch(Revision),
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) revision: Revision,
    pub(crate) key: String,
    /// `None`: the key is deleted.
    pub(crate) value: Option<Vec<u8>>,
}

/// What came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Snapshot {
        revision: Revision,
        entries: Vec<(String, Vec<u8>)>,
    },
    /// The watch has begun; the registry is at this revision.
    Begun(Revision),
    Changes(Vec<Change>),
    /// No change up to here.
    Progress(Revision),
    /// The revision to watch from is not there anymore.
    Compacted,
    /// The watch was ended by the registry, for a reason of its own.
    Cancelled,
    /// The stream ended, or an answer did not come.
    Ended,
}

/// What follows for whoever feeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Go on.
    Nothing,
    /// The table has changed.
    Changed,
    /// The stream is of no use anymore: ask [`WatchLoop::need`].
    Restart,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Unknown,
    /// Everything before this revision is in the table.
    Known(Revision),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct WatchLoop {
    state: State,
    table: BTreeMap<String, Vec<u8>>,
    backoff: Backoff,
    due: Instant,
    resync_at: Instant,
    /// Snapshots that were needed because the history was not there anymore.
    resnapshots: u64,
}

impl WatchLoop {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            state: State::Unknown,
            table: BTreeMap::new(),
            backoff: Backoff::new(seed),
            due: Instant::default(),
            resync_at: Instant::default(),
            resnapshots: 0,
        }
    }

    /// Every key with its value, as last seen.
    pub(crate) const fn table(&self) -> &BTreeMap<String, Vec<u8>> {
        &self.table
    }

    pub(crate) const fn resnapshots(&self) -> u64 {
        self.resnapshots
    }

    /// When a stream is to be left for a new snapshot.
    pub(crate) const fn resync_at(&self) -> Instant {
        self.resync_at
    }

    /// What to ask now.
    pub(crate) fn need(&self, now: Instant) -> Need {
        if now < self.due {
            return Need::Wait(self.due);
        }
        match self.state {
            State::Known(next) if now < self.resync_at => Need::Watch(next),
            State::Known(_) | State::Unknown => Need::Snapshot,
        }
    }

    /// Takes in what came.
    pub(crate) fn seen(&mut self, now: Instant, seen: Seen) -> Effect {
        match (seen, self.state) {
            (Seen::Snapshot { revision, entries }, _) => {
                self.backoff.reset();
                self.state = State::Known(revision.saturating_add(1));
                self.resync_at = now + RESYNC_INTERVAL;
                let table = entries.into_iter().collect();
                if self.table == table {
                    return Effect::Nothing;
                }
                self.table = table;
                Effect::Changed
            }
            (Seen::Begun(revision), State::Known(next)) if revision < next.saturating_sub(1) => {
                self.start_over()
            }
            (Seen::Begun(_), _) => {
                self.backoff.reset();
                Effect::Nothing
            }
            (Seen::Progress(revision), State::Known(next)) => {
                self.state = State::Known(next.max(revision.saturating_add(1)));
                Effect::Nothing
            }
            (Seen::Changes(changes), State::Known(next)) => self.apply(changes, next),
            (Seen::Changes(_) | Seen::Progress(_), State::Unknown) => Effect::Restart,
            (Seen::Compacted, _) => self.start_over(),
            (Seen::Cancelled, _) => {
                // Asking for everything shows whether we may look at all, and is the way to a new
                // token if etcd has forgotten ours.
                self.state = State::Unknown;
                self.due = now + self.backoff.pause(PAUSE_MAX);
                Effect::Restart
            }
            (Seen::Ended, _) => {
                self.due = now + self.backoff.pause(PAUSE_MAX);
                Effect::Restart
            }
        }
    }

    fn start_over(&mut self) -> Effect {
        self.state = State::Unknown;
        self.resnapshots += 1;
        Effect::Restart
    }

    fn apply(&mut self, changes: Vec<Change>, next: Revision) -> Effect {
        let mut effect = Effect::Nothing;
        let mut after = next;
        for change in changes {
            // A stream may begin with what is known already.
            if change.revision < next {
                continue;
            }
            after = after.max(change.revision.saturating_add(1));
            let has_changed = match change.value {
                Some(value) => {
                    self.table.get(&change.key) != Some(&value) && {
                        self.table.insert(change.key, value);
                        true
                    }
                }
                None => self.table.remove(&change.key).is_some(),
            };
            if has_changed {
                effect = Effect::Changed;
            }
        }
        self.state = State::Known(after);
        effect
    }
}

#[cfg(test)]
mod tests {
    use flux_env::{Rng, SeededRng};

    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::default() + Duration::from_millis(millis)
    }

    fn snapshot(revision: Revision, entries: &[(&str, &str)]) -> Seen {
        let entry = |(key, value): &(&str, &str)| ((*key).to_owned(), value.as_bytes().to_vec());
        Seen::Snapshot {
            revision,
            entries: entries.iter().map(entry).collect(),
        }
    }

    fn change(revision: Revision, key: &str, value: Option<&str>) -> Change {
        Change {
            revision,
            key: key.to_owned(),
            value: value.map(|value| value.as_bytes().to_vec()),
        }
    }

    #[test]
    fn after_a_snapshot_every_change_is_followed_from_the_next_revision() {
        let mut watch = WatchLoop::new(1);
        assert_eq!(watch.need(at(0)), Need::Snapshot);
        assert_eq!(
            watch.seen(at(0), snapshot(5, &[("a", "1")])),
            Effect::Changed
        );
        assert_eq!(watch.need(at(0)), Need::Watch(6));
        assert_eq!(watch.seen(at(0), Seen::Begun(5)), Effect::Nothing);
        let changes = Seen::Changes(vec![change(6, "b", Some("2")), change(7, "a", None)]);
        assert_eq!(watch.seen(at(1), changes), Effect::Changed);
        assert_eq!(watch.table().keys().collect::<Vec<_>>(), ["b"]);
        // What was seen already changes nothing, and neither does what is the same.
        let again = Seen::Changes(vec![change(6, "a", Some("1")), change(8, "b", Some("2"))]);
        assert_eq!(watch.seen(at(1), again), Effect::Nothing);
        assert_eq!(watch.need(at(1)), Need::Watch(9));
    }

    #[test]
    fn a_stream_that_ends_is_resumed_after_a_pause() {
        let mut watch = WatchLoop::new(1);
        watch.seen(at(0), snapshot(5, &[("a", "1")]));
        watch.seen(at(0), Seen::Progress(9));
        assert_eq!(watch.seen(at(10), Seen::Ended), Effect::Restart);
        let Need::Wait(until) = watch.need(at(10)) else {
            panic!("no pause");
        };
        assert!(until <= at(60));
        assert_eq!(watch.need(until), Need::Watch(10));
        assert_eq!(watch.table().len(), 1);
    }

    #[test]
    fn a_watch_that_the_registry_ended_begins_with_a_snapshot() {
        let mut watch = WatchLoop::new(1);
        watch.seen(at(0), snapshot(5, &[("a", "1")]));
        assert_eq!(watch.seen(at(0), Seen::Cancelled), Effect::Restart);
        assert!(matches!(watch.need(at(0)), Need::Wait(_)));
        assert_eq!(watch.need(at(60)), Need::Snapshot);
        assert_eq!((watch.resnapshots(), watch.table().len()), (0, 1));
    }

    #[test]
    fn compaction_and_a_history_that_went_back_need_a_new_snapshot() {
        let mut watch = WatchLoop::new(1);
        watch.seen(at(0), snapshot(5, &[("a", "1")]));
        assert_eq!(watch.seen(at(0), Seen::Begun(5)), Effect::Nothing);
        assert_eq!(watch.seen(at(0), Seen::Compacted), Effect::Restart);
        assert_eq!(watch.need(at(0)), Need::Snapshot);
        // The last known table stays until there is a new one, and only the difference counts.
        assert_eq!(watch.table().len(), 1);
        assert_eq!(
            watch.seen(at(0), snapshot(50, &[("a", "1")])),
            Effect::Nothing
        );
        assert_eq!(watch.seen(at(0), Seen::Begun(3)), Effect::Restart);
        assert_eq!(watch.need(at(0)), Need::Snapshot);
        assert_eq!(watch.resnapshots(), 2);
    }

    #[test]
    fn everything_is_read_anew_now_and_then() {
        let mut watch = WatchLoop::new(1);
        watch.seen(at(0), snapshot(5, &[]));
        assert_eq!(watch.need(at(59_999)), Need::Watch(6));
        assert_eq!(watch.need(at(60_000)), Need::Snapshot);
        watch.seen(at(60_000), snapshot(5, &[]));
        assert_eq!(watch.need(at(60_000)), Need::Watch(6));
        assert_eq!(watch.resnapshots(), 0);
    }

    #[test]
    fn changes_before_any_snapshot_are_not_believed() {
        let mut watch = WatchLoop::new(1);
        let early = Seen::Changes(vec![change(6, "b", Some("2"))]);
        assert_eq!(watch.seen(at(0), early), Effect::Restart);
        assert!(watch.table().is_empty());
    }

    /// A history of puts and deletes with compactions and wipes; the loop must end with its state.
    #[test]
    fn whatever_happens_the_table_ends_as_the_registry_is() {
        for seed in 0..300 {
            let mut rng = SeededRng::new(seed);
            let mut watch = WatchLoop::new(seed);
            let mut history: Vec<Change> = Vec::new();
            let (mut compacted, mut now) = (0, 0);
            let last = |history: &[Change]| history.last().map_or(1, |change| change.revision);
            for round in 0..60 {
                now += rng.below(500);
                if rng.one_in(20) {
                    (history, compacted) = (Vec::new(), 0);
                }
                for _ in 0..rng.below(4) {
                    let key = format!("k{}", rng.below(3));
                    let value = rng.below(4).to_string();
                    let value = Some(value.as_str()).filter(|_| !rng.one_in(3));
                    history.push(change(last(&history) + 1, &key, value));
                }
                if rng.one_in(5) {
                    compacted = last(&history);
                }
                let is_down = rng.one_in(3) && round < 59;
                // A few questions and answers, the stream broken at any of them.
                let calm = if round == 59 { now + 120_000 } else { now };
                for _ in 0..6 {
                    match watch.need(at(calm)) {
                        Need::Wait(_) => break,
                        _ if is_down => {
                            watch.seen(at(calm), Seen::Ended);
                        }
                        Need::Snapshot => {
                            let entries = state(&history).into_iter().collect();
                            let revision = last(&history);
                            watch.seen(at(calm), Seen::Snapshot { revision, entries });
                        }
                        Need::Watch(from) => {
                            let effect = watch.seen(at(calm), Seen::Begun(last(&history)));
                            if effect == Effect::Restart {
                                continue;
                            }
                            if from <= compacted {
                                watch.seen(at(calm), Seen::Compacted);
                                continue;
                            }
                            let changes = history.iter().filter(|c| c.revision >= from);
                            let changes = changes.cloned().collect();
                            watch.seen(at(calm), Seen::Changes(changes));
                            break;
                        }
                    }
                }
            }
            assert_eq!(watch.table(), &state(&history), "seed {seed}");
        }
    }

    fn state(history: &[Change]) -> BTreeMap<String, Vec<u8>> {
        let mut table = BTreeMap::new();
        for change in history {
            match &change.value {
                Some(value) => table.insert(change.key.clone(), value.clone()),
                None => table.remove(&change.key),
            };
        }
        table
    }
}

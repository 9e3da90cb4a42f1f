//! Keeping a cluster's map shown: what to do next, decided from what has happened.
//!
//! No I/O: [`MapKeeper::step`] says what to do, whoever does it tells how it ended
//! ([`MapKeeper::done`]). What stands in the registry is looked at, and replaced only as long as it is
//! what was seen, and older than ours. Afterward it is looked at again and again: a registry that
//! was wiped gets it again. While the registry is away it is asked at most a second apart.

use std::time::Duration;

use flux_env::Instant;

use super::backoff::Backoff;
use super::map_hint::Rank;

/// Longest pause between attempts while the registry does not answer, or refuses.
const AWAY_PAUSE_MAX: Duration = Duration::from_secs(1);
const REFUSED_PAUSE_MAX: Duration = Duration::from_secs(5);

/// Which writing of a key stands there, as the registry counts; 0: none.
pub(crate) type Writing = i64;

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing, until then or until there is another map.
    Wait(Instant),
    /// Look what stands there.
    Look,
    /// Write, if still that writing stands there.
    Write(Writing),
}

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Done {
    /// This stands there, with this rank if it is readable.
    Found(Writing, Option<Rank>),
    /// Ours stands there now.
    Written,
    /// Somebody else has written meanwhile.
    Changed,
    /// No answer: the step may have happened or not.
    Away,
    /// The registry answered that it will not.
    Refused,
}

/// What is worth telling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Note {
    /// Nothing has changed.
    Nothing,
    /// Ours was written.
    Written,
    /// Ours is there.
    Shown,
    /// A newer one is there.
    Newer,
    /// The registry does not answer, or refuses.
    Failing,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct MapKeeper {
    rank: Rank,
    /// What was seen there, if it is older.
    older: Option<Writing>,
    due: Instant,
    /// Pause between two looks.
    interval: Duration,
    backoff: Backoff,
}

impl MapKeeper {
    /// `seed` spreads the attempts of many.
    pub(crate) fn new(interval: Duration, seed: u64) -> Self {
        Self {
            rank: Rank::default(),
            older: None,
            due: Instant::default(),
            interval,
            backoff: Backoff::new(seed),
        }
    }

    /// From now on a map of this rank is to be shown.
    pub(crate) fn show(&mut self, rank: Rank) {
        if self.rank != rank {
            self.rank = rank;
            self.older = None;
            // A registry that is away is not asked sooner for that.
            if !self.backoff.has_grown() {
                self.due = Instant::default();
            }
        }
    }

    /// What to do now.
    pub(crate) fn step(&self, now: Instant) -> Step {
        if now < self.due {
            return Step::Wait(self.due);
        }
        self.older.map_or(Step::Look, Step::Write)
    }

    /// How the step ended.
    pub(crate) fn done(&mut self, now: Instant, done: Done) -> Note {
        self.older = None;
        self.due = now;
        match done {
            Done::Found(writing, found) => {
                self.backoff.reset();
                if found < Some(self.rank) {
                    self.older = Some(writing);
                    return Note::Nothing;
                }
                self.due = now + self.interval;
                if found == Some(self.rank) {
                    Note::Shown
                } else {
                    Note::Newer
                }
            }
            Done::Written => {
                self.backoff.reset();
                self.due = now + self.interval;
                Note::Written
            }
            Done::Changed => Note::Nothing,
            Done::Away => {
                self.due = now + self.backoff.pause(AWAY_PAUSE_MAX);
                Note::Failing
            }
            Done::Refused => {
                self.due = now + self.backoff.pause(REFUSED_PAUSE_MAX);
                Note::Failing
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use flux_env::{Rng, SeededRng};

    use super::*;

    const INTERVAL: Duration = Duration::from_secs(3);

    fn at(millis: u64) -> Instant {
        Instant::default() + Duration::from_millis(millis)
    }

    fn rank(version: u64, term: u64, count: u64) -> Rank {
        Rank {
            version,
            term,
            count,
        }
    }

    /// One key of a registry.
    #[derive(Default)]
    struct Model {
        is_away: bool,
        writings: Writing,
        stands: Option<(Writing, Option<Rank>)>,
    }

    impl Model {
        fn answer(&mut self, keeper: &MapKeeper, step: Step) -> Done {
            if self.is_away {
                return Done::Away;
            }
            let (writing, found) = self.stands.unwrap_or_default();
            match step {
                Step::Wait(_) => unreachable!("nobody asks"),
                Step::Look => Done::Found(writing, found),
                Step::Write(seen) if seen == writing => {
                    self.put(Some(keeper.rank));
                    Done::Written
                }
                Step::Write(_) => Done::Changed,
            }
        }

        fn put(&mut self, rank: Option<Rank>) {
            self.writings += 1;
            self.stands = Some((self.writings, rank));
        }

        fn rank(&self) -> Option<Rank> {
            self.stands?.1
        }
    }

    /// Takes one step if there is one to take.
    fn step(keeper: &mut MapKeeper, model: &mut Model, now: Instant) -> Option<Note> {
        match keeper.step(now) {
            Step::Wait(_) => None,
            step @ (Step::Look | Step::Write(_)) => {
                let done = model.answer(keeper, step);
                Some(keeper.done(now, done))
            }
        }
    }

    #[test]
    fn a_map_is_shown_at_once_replaced_at_once_and_shown_again_after_a_wipe() {
        let (mut keeper, mut model) = (MapKeeper::new(INTERVAL, 1), Model::default());
        keeper.show(rank(1, 1, 1));
        assert_eq!(step(&mut keeper, &mut model, at(0)), Some(Note::Nothing));
        assert_eq!(step(&mut keeper, &mut model, at(0)), Some(Note::Written));
        assert_eq!(step(&mut keeper, &mut model, at(2999)), None);
        assert_eq!(step(&mut keeper, &mut model, at(3000)), Some(Note::Shown));
        keeper.show(rank(1, 1, 1));
        assert_eq!(step(&mut keeper, &mut model, at(3001)), None);
        keeper.show(rank(2, 1, 2));
        assert_eq!(step(&mut keeper, &mut model, at(3001)), Some(Note::Nothing));
        assert_eq!(step(&mut keeper, &mut model, at(3001)), Some(Note::Written));
        assert_eq!(model.rank(), Some(rank(2, 1, 2)));
        model.stands = None;
        assert_eq!(step(&mut keeper, &mut model, at(7000)), Some(Note::Nothing));
        assert_eq!(step(&mut keeper, &mut model, at(7000)), Some(Note::Written));
        // What cannot be read is nobody's.
        model.put(None);
        assert_eq!(
            step(&mut keeper, &mut model, at(11_000)),
            Some(Note::Nothing)
        );
        assert_eq!(
            step(&mut keeper, &mut model, at(11_000)),
            Some(Note::Written)
        );
        assert_eq!(model.rank(), Some(rank(2, 1, 2)));
    }

    #[test]
    fn a_newer_map_stays_even_if_it_comes_between_look_and_write() {
        let (mut keeper, mut model) = (MapKeeper::new(INTERVAL, 1), Model::default());
        keeper.show(rank(3, 1, 1));
        assert_eq!(step(&mut keeper, &mut model, at(0)), Some(Note::Nothing));
        model.put(Some(rank(4, 2, 1)));
        assert_eq!(step(&mut keeper, &mut model, at(0)), Some(Note::Nothing));
        assert_eq!(step(&mut keeper, &mut model, at(0)), Some(Note::Newer));
        assert_eq!(step(&mut keeper, &mut model, at(100)), None);
        assert_eq!(model.rank(), Some(rank(4, 2, 1)));
        // The same version of a later term is newer, too.
        keeper.show(rank(4, 1, 2));
        assert_eq!(step(&mut keeper, &mut model, at(100)), Some(Note::Newer));
        assert_eq!(model.rank(), Some(rank(4, 2, 1)));
    }

    #[test]
    fn a_registry_that_is_away_is_asked_at_most_a_second_apart_however_often_the_map_changes() {
        let (mut keeper, mut model) = (MapKeeper::new(INTERVAL, 1), Model::default());
        model.is_away = true;
        let mut asked = 0;
        for millis in 0..20_000 {
            keeper.show(rank(1, 1, millis / 100));
            asked += usize::from(step(&mut keeper, &mut model, at(millis)).is_some());
        }
        assert!((20..60).contains(&asked), "{asked}");
        model.is_away = false;
        for millis in 20_000..21_002 {
            step(&mut keeper, &mut model, at(millis));
        }
        assert_eq!(model.rank(), Some(rank(1, 1, 199)));
    }

    #[test]
    fn whatever_happens_in_between_no_older_map_takes_the_place_of_a_newer_one() {
        for seed in 0..200 {
            let mut random = SeededRng::new(seed);
            let mut model = Model::default();
            let mut keepers = [1, 2, 3].map(|term| {
                let mut keeper = MapKeeper::new(INTERVAL, term);
                keeper.show(rank(term / 2, term, 1));
                keeper
            });
            // What each is about to do, decided a while ago.
            let mut pending: [Option<Step>; 3] = [None; 3];
            for millis in (0..60_000).step_by(50) {
                let now = at(millis);
                let which = usize::try_from(random.below(3)).unwrap();
                match random.below(40) {
                    0 => model.is_away = !model.is_away,
                    1 => model.stands = None,
                    _ => {}
                }
                let (keeper, pending) = (&mut keepers[which], &mut pending[which]);
                let before = model.rank();
                match pending.take() {
                    None => {
                        let next = keeper.step(now);
                        *pending = (!matches!(next, Step::Wait(_))).then_some(next);
                    }
                    Some(step) => {
                        let done = model.answer(keeper, step);
                        keeper.done(now, done);
                    }
                }
                assert!(before <= model.rank(), "seed {seed}");
            }
            model.is_away = false;
            for millis in 60_000..70_000 {
                for keeper in &mut keepers {
                    step(keeper, &mut model, at(millis));
                }
            }
            assert_eq!(model.rank(), Some(rank(1, 3, 1)), "seed {seed}");
        }
    }
}

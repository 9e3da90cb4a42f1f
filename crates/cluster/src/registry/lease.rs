//! Keeping a registration alive under a lease: what to do next, decided from what has happened.
//!
//! No I/O: [`LeaseKeeper::step`] says what to do, whoever does it tells how it ended
//! ([`LeaseKeeper::done`]). Everything ends well by itself: a lease that expired, that was revoked or
//! that a wiped registry never heard of is replaced, and everything is written again under the new
//! one; keys that somebody removed are written again under the old one; while the registry is away
//! it is asked again and again, at most a second apart.

use std::time::Duration;

use flux_env::Instant;

use super::backoff::Backoff;

/// A lease is kept alive this many times in its time to live.
const RENEWALS_PER_TTL: u32 = 3;
/// Longest pause between attempts while the registry does not answer, or refuses.
const AWAY_PAUSE_MAX: Duration = Duration::from_secs(1);
const REFUSED_PAUSE_MAX: Duration = Duration::from_secs(5);
/// After a loss, everybody who lost something together comes back within this time.
const REGRANT_SPREAD: Duration = Duration::from_secs(1);

/// A lease as the registry numbers it.
pub(crate) type LeaseId = i64;

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing, until then.
    Wait(Instant),
    /// Ask for a lease.
    Grant,
    /// Write everything under it, in one transaction.
    Register(LeaseId),
    /// Keep it alive.
    Renew(LeaseId),
    /// Look whether what was written under it is still there.
    Verify(LeaseId),
}

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Done {
    /// There is a lease, that lives this long without being renewed.
    Granted(LeaseId, Duration),
    /// Everything is written.
    Registered,
    /// The lease lives on.
    Renewed,
    /// All keys are there, under this lease.
    Intact,
    /// Some keys are not there, or belong to another lease.
    Missing,
    /// The registry does not know the lease (a keepalive that answers `ttl = 0`, or "not found").
    Lost,
    /// No answer: the step may have happened or not.
    Away,
    /// The registry answered that it will not: wrong password, no permission.
    Refused,
}

/// What is worth telling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Note {
    /// Nothing has changed.
    Nothing,
    /// It is registered now.
    Registered,
    /// The lease was lost.
    Lost,
    /// Keys were gone and will be written again.
    Missing,
    /// The registry does not answer, or refuses.
    Failing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    WithoutLease,
    /// Nothing is written under it yet.
    Granted(LeaseId),
    Registered(LeaseId),
    /// Renewed, not yet looked at.
    Renewed(LeaseId),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct LeaseKeeper {
    state: State,
    ttl: Duration,
    due: Instant,
    renew_at: Instant,
    backoff: Backoff,
}

impl LeaseKeeper {
    /// `ttl` is what will be asked for; `seed` spreads the attempts of many.
    pub(crate) fn new(ttl: Duration, seed: u64) -> Self {
        Self {
            state: State::WithoutLease,
            ttl,
            due: Instant::default(),
            renew_at: Instant::default(),
            backoff: Backoff::new(seed),
        }
    }

    /// What to do now.
    pub(crate) fn step(&self, now: Instant) -> Step {
        if now < self.due {
            return Step::Wait(self.due);
        }
        match self.state {
            State::WithoutLease => Step::Grant,
            State::Granted(lease) => Step::Register(lease),
            State::Registered(lease) => Step::Renew(lease),
            State::Renewed(lease) => Step::Verify(lease),
        }
    }

    /// The lease, if there is one, for whoever wants to end it.
    pub(crate) const fn lease(&self) -> Option<LeaseId> {
        match self.state {
            State::WithoutLease => None,
            State::Granted(lease) | State::Registered(lease) | State::Renewed(lease) => Some(lease),
        }
    }

    /// How the step ended.
    pub(crate) fn done(&mut self, now: Instant, done: Done) -> Note {
        self.due = now;
        match (done, self.lease()) {
            (Done::Granted(lease, ttl), _) => {
                self.ttl = ttl;
                self.state = State::Granted(lease);
                self.renew_at = now + self.interval();
                Note::Nothing
            }
            (Done::Registered, Some(lease)) => {
                self.backoff.reset();
                self.state = State::Registered(lease);
                self.due = self.renew_at;
                Note::Registered
            }
            (Done::Renewed, Some(lease)) => {
                self.backoff.reset();
                self.state = State::Renewed(lease);
                self.renew_at = now + self.interval();
                Note::Nothing
            }
            (Done::Intact, Some(lease)) => {
                self.backoff.reset();
                self.state = State::Registered(lease);
                self.due = self.renew_at;
                Note::Nothing
            }
            (Done::Missing, Some(lease)) => {
                self.state = State::Granted(lease);
                Note::Missing
            }
            (Done::Lost, _) => {
                self.state = State::WithoutLease;
                self.due = now + self.backoff.up_to(REGRANT_SPREAD);
                Note::Lost
            }
            (Done::Refused, _) => {
                self.due = now + self.backoff.pause(REFUSED_PAUSE_MAX);
                Note::Failing
            }
            // An answer to what was not asked is as good as none.
            (Done::Away | Done::Registered | Done::Renewed | Done::Intact | Done::Missing, _) => {
                self.due = now + self.backoff.pause(AWAY_PAUSE_MAX);
                Note::Failing
            }
        }
    }

    fn interval(&self) -> Duration {
        self.ttl / RENEWALS_PER_TTL
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use flux_env::{Rng, SeededRng};

    use super::*;

    const TTL: Duration = Duration::from_secs(10);

    fn at(millis: u64) -> Instant {
        Instant::default() + Duration::from_millis(millis)
    }

    /// A registry in memory: leases with their ends, and one key under a lease.
    #[derive(Default)]
    struct Model {
        is_away: bool,
        last: LeaseId,
        leases: BTreeMap<LeaseId, Instant>,
        key: Option<LeaseId>,
    }

    impl Model {
        fn expire(&mut self, now: Instant) {
            self.leases.retain(|_, end| now < *end);
            self.key = self.key.filter(|lease| self.leases.contains_key(lease));
        }

        fn answer(&mut self, now: Instant, step: Step) -> Done {
            if self.is_away {
                return Done::Away;
            }
            self.expire(now);
            match step {
                Step::Wait(_) => unreachable!("nobody asks"),
                Step::Grant => {
                    self.last += 1;
                    self.leases.insert(self.last, now + TTL);
                    Done::Granted(self.last, TTL)
                }
                Step::Register(lease) if self.leases.contains_key(&lease) => {
                    self.key = Some(lease);
                    Done::Registered
                }
                Step::Renew(lease) if self.leases.contains_key(&lease) => {
                    self.leases.insert(lease, now + TTL);
                    Done::Renewed
                }
                Step::Register(_) | Step::Renew(_) => Done::Lost,
                Step::Verify(lease) if self.key == Some(lease) => Done::Intact,
                Step::Verify(_) => Done::Missing,
            }
        }
    }

    /// Runs from `from` until `until`, both in milliseconds; returns the notes with their times.
    fn run(keeper: &mut LeaseKeeper, model: &mut Model, from: u64, until: u64) -> Vec<(u64, Note)> {
        let mut notes = Vec::new();
        for millis in from..until {
            let now = at(millis);
            model.expire(now);
            // Each call takes no time: at most three follow one another.
            for _ in 0..4 {
                let step = keeper.step(now);
                if matches!(step, Step::Wait(_)) {
                    break;
                }
                let done = model.answer(now, step);
                match keeper.done(now, done) {
                    Note::Nothing => {}
                    note @ (Note::Registered | Note::Lost | Note::Missing | Note::Failing) => {
                        notes.push((millis, note));
                    }
                }
            }
        }
        notes
    }

    #[test]
    fn a_lease_is_granted_filled_and_renewed_three_times_in_its_life() {
        let mut keeper = LeaseKeeper::new(TTL, 1);
        assert_eq!(keeper.step(at(0)), Step::Grant);
        assert_eq!(keeper.done(at(0), Done::Granted(7, TTL)), Note::Nothing);
        assert_eq!(keeper.step(at(0)), Step::Register(7));
        assert_eq!(keeper.done(at(5), Done::Registered), Note::Registered);
        let due = Instant::default() + TTL / 3;
        assert_eq!(keeper.step(at(3000)), Step::Wait(due));
        assert_eq!(keeper.step(due), Step::Renew(7));
        assert_eq!(keeper.done(due, Done::Renewed), Note::Nothing);
        assert_eq!(keeper.step(due), Step::Verify(7));
        assert_eq!(keeper.done(due, Done::Intact), Note::Nothing);
        assert_eq!(keeper.step(due), Step::Wait(due + TTL / 3));
    }

    #[test]
    fn a_registration_stays_for_as_long_as_the_registry_is_there() {
        let (mut keeper, mut model) = (LeaseKeeper::new(TTL, 1), Model::default());
        let notes = run(&mut keeper, &mut model, 0, 600_000);
        assert_eq!(notes, [(0, Note::Registered)]);
        assert_eq!(model.key, Some(1));
    }

    #[test]
    fn after_an_hour_away_it_is_registered_again_within_two_seconds() {
        for seed in 0..20 {
            let (mut keeper, mut model) = (LeaseKeeper::new(TTL, seed), Model::default());
            run(&mut keeper, &mut model, 0, 20_000);
            model.is_away = true;
            let away = run(&mut keeper, &mut model, 20_000, 3_620_000);
            assert!(away.iter().all(|(_, note)| *note == Note::Failing));
            // Asked on and on, but not more than about twice a second.
            assert!((3_600..9_000).contains(&away.len()), "{}", away.len());
            assert_eq!(model.key, None);
            model.is_away = false;
            let back = run(&mut keeper, &mut model, 3_620_000, 3_622_100);
            let registered = back.iter().any(|(_, note)| *note == Note::Registered);
            assert!(registered, "{back:?}");
            assert_eq!(model.key, Some(2));
        }
    }

    #[test]
    fn wiped_data_are_noticed_at_the_next_renewal() {
        let (mut keeper, mut model) = (LeaseKeeper::new(TTL, 3), Model::default());
        run(&mut keeper, &mut model, 0, 1_000);
        model = Model::default();
        let notes = run(&mut keeper, &mut model, 1_000, 5_500);
        let kinds: Vec<Note> = notes.iter().map(|(_, note)| *note).collect();
        assert_eq!(kinds, [Note::Lost, Note::Registered], "{notes:?}");
        assert_eq!(model.key, Some(1));
    }

    #[test]
    fn a_process_that_slept_beyond_its_lease_registers_again() {
        let (mut keeper, mut model) = (LeaseKeeper::new(TTL, 3), Model::default());
        run(&mut keeper, &mut model, 0, 1_000);
        // Nobody runs for 30 seconds.
        model.expire(at(31_000));
        assert_eq!(model.key, None);
        let notes = run(&mut keeper, &mut model, 31_000, 32_100);
        assert_eq!(notes.last().map(|(_, note)| *note), Some(Note::Registered));
    }

    #[test]
    fn removed_keys_are_written_again_under_the_same_lease() {
        let (mut keeper, mut model) = (LeaseKeeper::new(TTL, 3), Model::default());
        run(&mut keeper, &mut model, 0, 1_000);
        model.key = None;
        let notes = run(&mut keeper, &mut model, 1_000, 4_000);
        let kinds: Vec<Note> = notes.iter().map(|(_, note)| *note).collect();
        assert_eq!(kinds, [Note::Missing, Note::Registered]);
        assert_eq!((model.key, model.last), (Some(1), 1));
    }

    #[test]
    fn a_refusal_is_asked_again_less_often() {
        let mut keeper = LeaseKeeper::new(TTL, 3);
        let mut asked = 0;
        for millis in 0..60_000 {
            if keeper.step(at(millis)) == Step::Grant {
                asked += 1;
                assert_eq!(keeper.done(at(millis), Done::Refused), Note::Failing);
            }
        }
        assert!((12..40).contains(&asked), "{asked}");
    }

    #[test]
    fn whatever_happens_it_ends_registered() {
        for seed in 0..200 {
            let mut rng = SeededRng::new(seed);
            let (mut keeper, mut model) = (LeaseKeeper::new(TTL, seed), Model::default());
            let mut now = 0;
            for _ in 0..20 {
                match rng.below(5) {
                    0 => model.is_away = true,
                    1 => model.is_away = false,
                    2 => {
                        model = Model {
                            is_away: model.is_away,
                            ..Model::default()
                        }
                    }
                    3 => model.key = None,
                    _ => now += rng.below(20_000),
                }
                let until = now + rng.below(8_000);
                run(&mut keeper, &mut model, now, until);
                now = until;
            }
            model.is_away = false;
            run(&mut keeper, &mut model, now, now + 15_000);
            assert!(
                model.key.is_some() && model.key == keeper.lease(),
                "seed {seed}"
            );
        }
    }
}

//! The breaker against a plain model, by a simulated clock, and between threads.

use std::sync::atomic::{AtomicUsize, Ordering};

use flux_env::SimClock;
use proptest::prelude::*;

use super::*;
use crate::config::Timeout;

const START: u64 = 1_000_000;

fn at(millis: u64) -> Instant {
    Instant::from_nanos((START + millis) * 1_000_000)
}

fn rule() -> Rule {
    Rule::new(&BreakerConfig::default()).unwrap()
}

fn pass(circuit: &mut Circuit, millis: u64) -> Ticket {
    match circuit.try_acquire(at(millis)) {
        Decision::Pass(ticket) => ticket,
        Decision::Refused { .. } => panic!("refused at {millis}"),
    }
}

fn is_refused(circuit: &mut Circuit, millis: u64) -> bool {
    matches!(circuit.try_acquire(at(millis)), Decision::Refused { .. })
}

/// A call at a moment, that ends in the same moment.
fn call(circuit: &mut Circuit, millis: u64, verdict: Verdict) -> Option<Standing> {
    let ticket = pass(circuit, millis);
    circuit.record(ticket, verdict, at(millis))
}

fn open(circuit: &mut Circuit, millis: u64) {
    for _ in 0..19 {
        assert_eq!(call(circuit, millis, Verdict::Failure), None);
    }
    assert_eq!(
        call(circuit, millis, Verdict::Failure),
        Some(Standing::Open)
    );
}

#[test]
fn it_opens_with_the_record_that_reaches_volume_and_share() {
    let mut circuit = Circuit::new(rule());
    for n in 0..19 {
        let verdict = if n % 2 == 0 {
            Verdict::Failure
        } else {
            Verdict::Success
        };
        assert_eq!(call(&mut circuit, n * 10, verdict), None);
    }
    // Ten of twenty failed: half is enough.
    assert_eq!(
        call(&mut circuit, 200, Verdict::Success),
        Some(Standing::Open)
    );
    let mut circuit = Circuit::new(rule());
    for _ in 0..11 {
        assert_eq!(call(&mut circuit, 0, Verdict::Success), None);
    }
    for _ in 0..10 {
        assert_eq!(call(&mut circuit, 0, Verdict::Failure), None);
    }
    // Eleven of twenty-two.
    assert_eq!(
        call(&mut circuit, 0, Verdict::Failure),
        Some(Standing::Open)
    );
}

#[test]
fn what_is_older_than_the_window_no_longer_counts() {
    let mut circuit = Circuit::new(rule());
    for _ in 0..19 {
        assert_eq!(call(&mut circuit, 0, Verdict::Failure), None);
    }
    // The bucket of the first second is the tenth until 9.999 s.
    let mut late = Circuit::new(rule());
    for _ in 0..19 {
        assert_eq!(call(&mut late, 0, Verdict::Failure), None);
    }
    assert_eq!(
        call(&mut circuit, 9_999, Verdict::Failure),
        Some(Standing::Open)
    );
    assert_eq!(call(&mut late, 10_000, Verdict::Failure), None);
}

#[test]
fn one_trial_goes_after_the_sleep_and_its_success_empties_the_window() {
    let mut circuit = Circuit::new(rule());
    open(&mut circuit, 0);
    assert!(is_refused(&mut circuit, 1));
    // Later than the sleep, not as late.
    assert!(is_refused(&mut circuit, 5_000));
    let trial = pass(&mut circuit, 5_001);
    assert_eq!(circuit.standing(), Standing::HalfOpen);
    for millis in [5_001, 6_000, 100_000] {
        assert!(is_refused(&mut circuit, millis));
    }
    let closed = circuit.record(trial, Verdict::Success, at(5_100));
    assert_eq!(closed, Some(Standing::Closed));
    for _ in 0..19 {
        assert_eq!(call(&mut circuit, 5_100, Verdict::Failure), None);
    }
    assert_eq!(
        call(&mut circuit, 5_100, Verdict::Failure),
        Some(Standing::Open)
    );
}

#[test]
fn a_trial_that_fails_or_is_given_up_opens_it_for_another_sleep() {
    for verdict in [Verdict::Failure, Verdict::GivenUp] {
        let mut circuit = Circuit::new(rule());
        open(&mut circuit, 0);
        let trial = pass(&mut circuit, 6_000);
        let opened = circuit.record(trial, verdict, at(7_000));
        assert_eq!(opened, Some(Standing::Open), "{verdict:?}");
        assert!(is_refused(&mut circuit, 12_000));
        pass(&mut circuit, 12_001);
    }
}

#[test]
fn a_trial_that_is_answered_about_its_request_closes_it() {
    let mut circuit = Circuit::new(rule());
    open(&mut circuit, 0);
    let trial = pass(&mut circuit, 6_000);
    let closed = circuit.record(trial, Verdict::Answered, at(6_001));
    assert_eq!(closed, Some(Standing::Closed));
}

#[test]
fn bad_requests_and_calls_given_up_do_not_count() {
    let mut circuit = Circuit::new(rule());
    for verdict in [Verdict::Answered, Verdict::GivenUp] {
        for _ in 0..1_000 {
            assert_eq!(call(&mut circuit, 0, verdict), None);
        }
    }
    for _ in 0..19 {
        assert_eq!(call(&mut circuit, 0, Verdict::Failure), None);
    }
    assert_eq!(
        call(&mut circuit, 0, Verdict::Failure),
        Some(Standing::Open)
    );
}

#[test]
fn stragglers_of_before_a_change_decide_nothing() {
    let mut circuit = Circuit::new(rule());
    let straggler = pass(&mut circuit, 0);
    let another = pass(&mut circuit, 0);
    open(&mut circuit, 0);
    let trial = pass(&mut circuit, 6_000);
    assert_eq!(circuit.record(straggler, Verdict::Failure, at(6_001)), None);
    assert_eq!(circuit.standing(), Standing::HalfOpen);
    let closed = circuit.record(trial, Verdict::Success, at(6_002));
    assert_eq!(closed, Some(Standing::Closed));
    assert_eq!(circuit.record(another, Verdict::Failure, at(6_003)), None);
    assert_eq!(
        circuit.window.buckets.iter().map(|b| b.total).sum::<u64>(),
        0
    );
}

#[test]
fn a_forced_breaker_does_as_it_is_told_whatever_happens() {
    let forced = |mode| {
        let config = BreakerConfig {
            mode,
            ..BreakerConfig::default()
        };
        Rule::new(&config).map(Circuit::new)
    };
    let mut open = forced(BreakerMode::ForcedOpen).unwrap();
    assert!(is_refused(&mut open, 0) && is_refused(&mut open, 100_000));
    assert_eq!(open.standing(), Standing::Open);
    let mut closed = forced(BreakerMode::ForcedClosed).unwrap();
    for _ in 0..1_000 {
        assert_eq!(call(&mut closed, 0, Verdict::Failure), None);
    }
    assert_eq!(closed.standing(), Standing::Closed);
    assert!(forced(BreakerMode::Off).is_none());
}

/// What happens next in a random history.
#[derive(Clone, Copy, Debug)]
enum Step {
    Wait(u64),
    Call(Verdict),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        2 => (0_u64..1_500).prop_map(Step::Wait),
        1 => (4_000_u64..12_000).prop_map(Step::Wait),
        20 => prop::sample::select(vec![
            Verdict::Success,
            Verdict::Failure,
            Verdict::Failure,
            Verdict::Answered,
            Verdict::GivenUp,
        ])
        .prop_map(Step::Call),
    ];
    prop::collection::vec(step, 1..400)
}

/// A model that keeps every record and counts them all each time.
struct Model {
    /// Second and whether it failed, since the window was last emptied.
    records: Vec<(u64, bool)>,
    opened: Option<u64>,
}

impl Model {
    /// Whether the call passes; and if so, what it does.
    fn call(&mut self, millis: u64, verdict: Verdict) -> bool {
        let second = (START + millis) / 1_000;
        if let Some(opened) = self.opened {
            if millis - opened <= 5_000 {
                return false;
            }
            if matches!(verdict, Verdict::Success | Verdict::Answered) {
                self.opened = None;
                self.records.clear();
            } else {
                self.opened = Some(millis);
            }
            return true;
        }
        if matches!(verdict, Verdict::Success | Verdict::Failure) {
            self.records.push((second, verdict == Verdict::Failure));
            let recent = self.records.iter().filter(|(at, _)| at + 10 > second);
            let total = recent.clone().count();
            let failed = recent.filter(|(_, failed)| *failed).count();
            if total >= 20 && failed * 2 >= total {
                self.opened = Some(millis);
            }
        }
        true
    }
}

proptest! {
    #[test]
    fn it_lets_pass_exactly_what_the_model_lets_pass(steps in steps()) {
        let mut circuit = Circuit::new(rule());
        let mut model = Model { records: Vec::new(), opened: None };
        let mut millis = 0;
        for step in steps {
            match step {
                Step::Wait(time) => millis += time,
                Step::Call(verdict) => {
                    let expected = model.call(millis, verdict);
                    match circuit.try_acquire(at(millis)) {
                        Decision::Pass(ticket) => {
                            prop_assert!(expected);
                            circuit.record(ticket, verdict, at(millis));
                        }
                        Decision::Refused { .. } => prop_assert!(!expected),
                    }
                    prop_assert_eq!(model.opened.is_some(), circuit.standing() == Standing::Open);
                }
            }
        }
    }
}

fn shared(sleep: Timeout) -> (Arc<SimClock>, Arc<Breaker>) {
    let sim = Arc::new(SimClock::new(0));
    sim.advance(Duration::from_secs(1_000));
    let clock: Arc<dyn Clock> = Arc::<SimClock>::clone(&sim);
    let config = BreakerConfig {
        sleep,
        ..BreakerConfig::default()
    };
    (sim, Arc::new(Breaker::new("x", &config, &clock).unwrap()))
}

#[test]
fn of_many_threads_exactly_one_gets_the_trial() {
    let (clock, breaker) = shared(Timeout::seconds(5));
    for _ in 0..20 {
        breaker.try_acquire().unwrap().record(Verdict::Failure);
    }
    for round in 1..=20_usize {
        clock.advance(Duration::from_secs(6));
        let trials = AtomicUsize::new(0);
        let kept = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        if let Ok(permit) = breaker.try_acquire() {
                            trials.fetch_add(1, Ordering::Relaxed);
                            kept.lock().push(permit);
                        }
                    }
                });
            }
        });
        assert_eq!(trials.into_inner(), 1, "round {round}");
        // The client goes away: open again.
        drop(kept);
        assert_eq!(breaker.standing(), Standing::Open);
    }
}

#[test]
fn a_permit_that_is_lost_in_a_panic_is_given_up() {
    let (clock, breaker) = shared(Timeout::seconds(5));
    for _ in 0..20 {
        breaker.try_acquire().unwrap().record(Verdict::Failure);
    }
    clock.advance(Duration::from_secs(6));
    let permit = breaker.try_acquire().unwrap();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let _permit = permit;
        panic!("a call dies");
    }));
    assert!(panicked.is_err());
    assert_eq!(breaker.standing(), Standing::Open);
    assert_eq!(breaker.try_acquire().unwrap_err(), Duration::from_secs(5));
}

//! The checker against one that tries everything, against known bad histories, and for size.

use proptest::prelude::*;

use crate::{
    Action, Demands, Fault, History, Operation, Options, Outcome, Recorder, Vacuous, Value, check,
};

fn value(text: &str) -> Value {
    text.as_bytes().into()
}

fn set(text: &str) -> Action {
    Action::Set {
        value: value(text),
        ttl_millis: None,
    }
}

fn set_for(text: &str, millis: u64) -> Action {
    Action::Set {
        value: value(text),
        ttl_millis: Some(millis),
    }
}

fn cas(expected: Option<&str>, text: &str) -> Action {
    Action::CompareAndSet {
        expected: expected.map(value),
        value: value(text),
    }
}

fn got(text: Option<&str>) -> Outcome {
    Outcome::Value(text.map(value))
}

/// Operations of one key with their calls and returns; the times are milliseconds as well.
fn history(operations: &[(u64, u64, Action, Outcome)]) -> History {
    let operations = operations.iter().enumerate().map(|(client, operation)| {
        let (called, returned, action, outcome) = operation.clone();
        Operation {
            client: client as u64,
            key: value("k"),
            action,
            outcome,
            called,
            returned,
            called_nanos: called * 1_000_000,
            returned_nanos: returned.saturating_mul(1_000_000),
        }
    });
    History::new(operations.collect())
}

fn is_good(history: &History) -> bool {
    check(history, &Options::default()).is_ok()
}

/// What one order leads to, in the plainest words; nothing of the checker's own model.
fn plain(state: &mut Option<String>, action: &Action, outcome: &Outcome) -> bool {
    let text = |value: &Value| String::from_utf8(value.to_vec()).unwrap();
    match action {
        Action::Get => *outcome == Outcome::Value(state.as_deref().map(value)),
        Action::Set { value, .. } => {
            *state = Some(text(value));
            true
        }
        Action::CompareAndSet { expected, value } => {
            let holds = *state == expected.as_ref().map(text);
            if holds {
                *state = Some(text(value));
            }
            matches!(outcome, Outcome::Unknown) || *outcome == Outcome::Applied(holds)
        }
        Action::Increment { by } => {
            let Ok(number) = state.as_deref().unwrap_or("0").parse::<i64>() else {
                return matches!(outcome, Outcome::Unknown);
            };
            *state = Some((number + by).to_string());
            matches!(outcome, Outcome::Unknown) || *outcome == Outcome::Number(number + by)
        }
        Action::Delete => {
            let found = state.take().is_some();
            matches!(outcome, Outcome::Unknown) || *outcome == Outcome::Applied(found)
        }
    }
}

/// Tries every order of every choice of the open operations.
fn brute(left: &[Operation], state: &Option<String>) -> bool {
    if left
        .iter()
        .all(|operation| operation.outcome == Outcome::Unknown)
    {
        return true;
    }
    let first_return = left
        .iter()
        .filter(|operation| operation.outcome != Outcome::Unknown)
        .map(|operation| operation.returned)
        .min()
        .unwrap_or(u64::MAX);
    (0..left.len()).any(|at| {
        let mut left = left.to_vec();
        let next = left.remove(at);
        let mut state = state.clone();
        next.called <= first_return
            && plain(&mut state, &next.action, &next.outcome)
            && brute(&left, &state)
    })
}

fn any_operation() -> impl Strategy<Value = (Action, Outcome)> {
    let text = || prop::sample::select(vec!["a", "b", "1"]);
    let maybe = || prop::option::of(text());
    prop_oneof![
        3 => maybe().prop_map(|found| (Action::Get, got(found))),
        2 => (text(), any::<bool>()).prop_map(|(text, known)| {
            (set(text), if known { Outcome::Done } else { Outcome::Unknown })
        }),
        2 => (maybe(), text(), 0..3).prop_map(|(expected, text, answer)| {
            let outcome = match answer {
                0 => Outcome::Unknown,
                answer => Outcome::Applied(answer == 1),
            };
            (cas(expected, text), outcome)
        }),
        1 => (1..3_i64, 0..4_i64).prop_map(|(by, answer)| {
            let outcome = match answer {
                0 => Outcome::Unknown,
                number => Outcome::Number(number),
            };
            (Action::Increment { by }, outcome)
        }),
        1 => (0..3).prop_map(|answer| {
            let outcome = match answer {
                0 => Outcome::Unknown,
                answer => Outcome::Applied(answer == 1),
            };
            (Action::Delete, outcome)
        }),
    ]
}

fn any_history() -> impl Strategy<Value = History> {
    let operation = (any_operation(), 0..100_u64, 1..40_u64);
    prop::collection::vec(operation, 1..7).prop_map(|operations| {
        let operations = operations.into_iter().enumerate();
        let operations: Vec<_> = operations
            .map(|(at, ((action, outcome), called, length))| {
                // No two events at one place: twice the time, and the number of the operation.
                let place = |time: u64| time * 16 + at as u64;
                (place(called), place(called + length), action, outcome)
            })
            .collect();
        history(&operations)
    })
}

/// A history that some order explains: clients whose operations take effect between call and return.
fn good_history(choices: &[(u8, u8, u8)], clients: usize) -> History {
    let mut recorder = Recorder::new();
    let mut state: Option<String> = None;
    let mut running: Vec<Option<(crate::OperationId, Option<Outcome>, Action)>> =
        vec![None; clients];
    for (now, (who, what, text)) in choices.iter().enumerate() {
        let client = usize::from(*who) % clients;
        let slot = &mut running[client];
        match slot.take() {
            None => {
                let action = match what % 8 {
                    0..=2 => Action::Get,
                    3..=4 => set(&now.to_string()),
                    5 => cas(state.as_deref(), &text.to_string()),
                    6 => Action::Increment { by: 1 },
                    _ => Action::Delete,
                };
                let id = recorder.call(client as u64, *b"k", action.clone(), now as u64);
                *slot = Some((id, None, action));
            }
            Some((id, None, action)) => {
                let outcome = take_effect(&mut state, &action);
                *slot = Some((id, Some(outcome), action));
            }
            Some((id, Some(outcome), _)) => {
                // One in eight answers gets lost.
                let outcome = if what % 8 == 0 {
                    Outcome::Unknown
                } else {
                    outcome
                };
                recorder.finish(id, outcome, now as u64);
            }
        }
    }
    recorder.history()
}

fn take_effect(state: &mut Option<String>, action: &Action) -> Outcome {
    let outcomes = [
        Outcome::Value(state.as_deref().map(value)),
        Outcome::Done,
        Outcome::Applied(true),
        Outcome::Applied(false),
    ];
    let before = state.as_deref().unwrap_or("0").parse::<i64>();
    let candidates = match action {
        Action::Get => vec![outcomes[0].clone()],
        Action::Set { .. } => vec![Outcome::Done],
        Action::CompareAndSet { .. } | Action::Delete => outcomes[2..].to_vec(),
        Action::Increment { by } => {
            vec![before.map_or(Outcome::Failed, |number| Outcome::Number(number + by))]
        }
    };
    for outcome in candidates {
        let mut next = state.clone();
        if plain(&mut next, action, &outcome) {
            *state = next;
            return outcome;
        }
    }
    Outcome::Failed
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn the_checker_agrees_with_one_that_tries_everything(history in any_history()) {
        let expected = brute(history.operations(), &None);
        let checked = check(&history, &Options::default());
        prop_assert_eq!(checked.is_ok(), expected, "{}\n{:?}", history, checked.err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn what_took_effect_between_call_and_return_is_found_good(
        choices in prop::collection::vec(any::<(u8, u8, u8)>(), 200..1200),
        clients in 1..12_usize,
    ) {
        let history = good_history(&choices, clients);
        let checked = check(&history, &Options::default());
        prop_assert!(checked.is_ok(), "{}", checked.unwrap_err());
    }

    #[test]
    fn one_read_of_a_value_that_was_never_written_is_found_among_many(
        choices in prop::collection::vec(any::<(u8, u8, u8)>(), 200..600),
        at in any::<prop::sample::Index>(),
    ) {
        let history = good_history(&choices, 6);
        let mut operations = history.operations().to_vec();
        let reads: Vec<usize> = (0..operations.len())
            .filter(|at| matches!(operations[*at].outcome, Outcome::Value(_)))
            .collect();
        prop_assume!(!reads.is_empty());
        let victim = reads[at.index(reads.len())];
        operations[victim].outcome = got(Some("never written"));
        let place = operations[victim].called;
        // Some of them take minutes to decide: enough are left without.
        let options = Options {
            steps_max: 100_000,
            ..Options::default()
        };
        let fault = check(&History::new(operations), &options).unwrap_err();
        prop_assume!(!matches!(fault, Fault::Undecided { .. }));
        let Fault::Violation(violation) = fault else {
            panic!("{fault}");
        };
        prop_assert_eq!(violation.last.called, place);
        prop_assert!(violation.window.contains(&violation.last), "{}", violation);
    }
}

#[test]
fn a_stale_read_is_found_and_named() {
    let history = history(&[
        (1, 2, set("old"), Outcome::Done),
        (3, 4, Action::Get, got(Some("old"))),
        (5, 6, set("new"), Outcome::Done),
        (7, 8, Action::Get, got(Some("new"))),
        (9, 10, Action::Get, got(Some("old"))),
        (11, 12, Action::Get, got(Some("new"))),
    ]);
    let fault = check(&history, &Options::default()).unwrap_err();
    let Fault::Violation(violation) = fault else {
        panic!("{fault}");
    };
    assert_eq!(violation.last.called, 9);
    let window: Vec<u64> = violation
        .window
        .iter()
        .map(|operation| operation.called)
        .collect();
    assert_eq!(window, [7, 9]);
    let shown = violation.to_string();
    assert!(shown.contains("=> client 4"), "{shown}");
}

#[test]
fn a_lost_write_is_found() {
    assert!(!is_good(&history(&[
        (1, 2, set("a"), Outcome::Done),
        (3, 4, Action::Get, got(None)),
    ])));
}

#[test]
fn a_write_applied_twice_is_found() {
    assert!(!is_good(&history(&[
        (1, 2, Action::Increment { by: 1 }, Outcome::Number(1)),
        (3, 4, Action::Get, got(Some("2"))),
    ])));
}

#[test]
fn two_winners_of_one_compare_and_set_are_found() {
    assert!(!is_good(&history(&[
        (1, 10, cas(None, "a"), Outcome::Applied(true)),
        (2, 9, cas(None, "b"), Outcome::Applied(true)),
    ])));
}

#[test]
fn an_unknown_write_may_take_effect_late_but_not_twice() {
    let late = [
        (1, 2, set("a"), Outcome::Done),
        (3, u64::MAX, set("b"), Outcome::Unknown),
        (4, 5, Action::Get, got(Some("a"))),
        (6, 7, Action::Get, got(Some("b"))),
    ];
    assert!(is_good(&history(&late)));
    let mut twice = late.to_vec();
    twice.push((8, 9, set("a"), Outcome::Done));
    twice.push((10, 11, Action::Get, got(Some("b"))));
    assert!(!is_good(&history(&twice)));
}

#[test]
fn what_was_not_done_must_never_be_seen() {
    assert!(!is_good(&history(&[
        (1, 2, set("a"), Outcome::Failed),
        (3, 4, Action::Get, got(Some("a"))),
    ])));
}

#[test]
fn a_torn_group_is_never_good() {
    let torn = Outcome::Torn(vec![Some(value("a")), None]);
    assert!(!is_good(&history(&[
        (1, 9, set("a"), Outcome::Done),
        (2, 8, Action::Get, torn),
    ])));
}

#[test]
fn a_deadline_ends_a_value_neither_early_nor_late_and_for_good() {
    let with_error = |millis: u64| Options {
        clock_error_nanos: millis * 1_000_000,
        ..Options::default()
    };
    let read_at = |at: u64, found: Option<&str>| {
        let read = (at, at + 1, Action::Get, got(found));
        history(&[(10, 20, set_for("a", 100), Outcome::Done), read])
    };
    for (at, found, good) in [
        (50, Some("a"), true),
        (50, None, false),
        (112, None, true),
        (112, Some("a"), true),
        (119, Some("a"), true),
        (121, Some("a"), false),
        (121, None, true),
    ] {
        let history = read_at(at, found);
        assert_eq!(is_good(&history), good, "{at} {found:?}");
    }
    assert!(check(&read_at(125, Some("a")), &with_error(10)).is_ok());
    assert!(check(&read_at(104, None), &with_error(10)).is_ok());
    // Seen gone, it does not come back.
    assert!(!is_good(&history(&[
        (10, 20, set_for("a", 100), Outcome::Done),
        (112, 113, Action::Get, got(None)),
        (114, 115, Action::Get, got(Some("a"))),
    ])));
}

#[test]
fn many_unknown_writes_do_not_blow_up_the_search() {
    let mut operations = Vec::new();
    for number in 0..400_u64 {
        let at = number * 10;
        operations.push((
            at + 1,
            u64::MAX,
            set(&format!("lost {number}")),
            Outcome::Unknown,
        ));
        operations.push((
            at + 2,
            at + 3,
            set(&format!("kept {number}")),
            Outcome::Done,
        ));
        let kept = format!("kept {number}");
        operations.push((at + 4, at + 5, Action::Get, got(Some(&kept))));
    }
    let good = check(&history(&operations), &Options::default()).unwrap();
    assert!(good.steps < 10_000, "{}", good.steps);
    operations.push((9_000, 9_001, Action::Get, got(Some("kept 7"))));
    let fault = check(&history(&operations), &Options::default()).unwrap_err();
    assert!(matches!(fault, Fault::Violation(_)), "{fault}");
}

#[test]
fn a_search_that_is_given_up_is_not_called_good() {
    let writes = (0..12_u64).map(|number| (number, 100, set(&number.to_string()), Outcome::Done));
    let mut operations: Vec<_> = writes.collect();
    operations.push((101, 102, Action::Get, got(Some("none of them"))));
    let options = Options {
        steps_max: 1000,
        ..Options::default()
    };
    let fault = check(&history(&operations), &options).unwrap_err();
    assert!(matches!(fault, Fault::Undecided { .. }), "{fault}");
}

#[test]
fn a_history_in_which_little_happened_is_refused() {
    let history = history(&[
        (1, 2, set("a"), Outcome::Done),
        (3, 4, Action::Get, got(Some("a"))),
        (5, 6, Action::Get, got(None)),
        (7, u64::MAX, set("b"), Outcome::Unknown),
        (8, 9, set("c"), Outcome::Failed),
    ]);
    let demands = Demands {
        completed_min: 3,
        values_read_min: 1,
        overlapping_min: 0,
        unknown_percent_max: 20,
    };
    let summary = history.meets(&demands).unwrap();
    assert_eq!((summary.called, summary.completed), (5, 3));
    assert_eq!((summary.failed, summary.unknown), (1, 1));
    let refused = |demands| history.meets(&demands).unwrap_err();
    assert!(matches!(
        refused(Demands {
            completed_min: 4,
            ..demands
        }),
        Vacuous::Completed { completed: 3, .. }
    ));
    assert!(matches!(
        refused(Demands {
            values_read_min: 2,
            ..demands
        }),
        Vacuous::ValuesRead { values_read: 1, .. }
    ));
    assert!(matches!(
        refused(Demands {
            overlapping_min: 1,
            ..demands
        }),
        Vacuous::Overlapping { overlapping: 0, .. }
    ));
    assert!(matches!(
        refused(Demands {
            unknown_percent_max: 19,
            ..demands
        }),
        Vacuous::Unknown {
            unknown: 1,
            allowed: 0
        }
    ));
}

#[test]
fn operations_overlap_that_are_under_way_at_once_on_a_key_with_a_write_among_them() {
    let overlapping = |operations: &[_]| history(operations).summary().overlapping;
    let (read, write) = ((Action::Get, got(None)), (set("a"), Outcome::Done));
    let at = |called, returned, (action, outcome): &(Action, Outcome)| {
        (called, returned, action.clone(), outcome.clone())
    };
    assert_eq!(overlapping(&[at(1, 2, &write), at(3, 4, &read)]), 0);
    assert_eq!(overlapping(&[at(1, 3, &read), at(2, 4, &read)]), 0);
    assert_eq!(overlapping(&[at(1, 3, &write), at(2, 4, &read)]), 2);
    // One long write meets two reads, of which the second begins after the first has ended.
    let operations = [at(1, 6, &write), at(2, 3, &read), at(4, 5, &read)];
    assert_eq!(overlapping(&operations), 3);
    // What may have happened at any time overlaps nothing in particular.
    let open = (set("a"), Outcome::Unknown);
    assert_eq!(overlapping(&[at(1, u64::MAX, &open), at(2, 3, &read)]), 0);
    let other_key = |mut operation: Operation| {
        operation.key = value("other");
        operation
    };
    let both = history(&[at(1, 3, &write), at(2, 4, &read)]);
    let operations = both.operations().iter().cloned();
    let apart = operations
        .enumerate()
        .map(|(place, operation)| match place {
            0 => other_key(operation),
            _ => operation,
        });
    assert_eq!(History::new(apart.collect()).summary().overlapping, 0);
}

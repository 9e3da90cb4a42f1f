//! Tests of the timing wheel.

use std::collections::BTreeSet;

use flux_types::UnixMillis;
use proptest::prelude::*;

use super::{Item, Wheel};
use crate::hash::KeyHash;

fn item(hash: u64, deadline: u64) -> Item {
    Item::new(KeyHash::from_raw(hash), UnixMillis::new(deadline), 0).unwrap()
}

#[derive(Clone, Debug)]
enum Step {
    Add(u64),
    Advance(u64),
    Forget(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let ahead = prop_oneof![
        0_u64..300,
        0_u64..20_000,
        0_u64..2_000_000,
        0_u64..200_000_000,
        0_u64..20_000_000_000
    ];
    let step = prop_oneof![
        4 => ahead.clone().prop_map(Step::Add),
        2 => ahead.prop_map(Step::Advance),
        1 => (0_usize..8).prop_map(Step::Forget),
    ];
    proptest::collection::vec(step, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_item_fires_once_its_time_has_come_and_not_before(steps in steps()) {
        let start = 1_700_000_000_000_u64;
        let mut wheel = Wheel::default();
        let mut model: BTreeSet<(u64, u64)> = BTreeSet::new();
        let mut now = start;
        for (hash, step) in (0_u64..).zip(steps) {
            match step {
                Step::Add(ahead) => {
                    wheel.add(item(hash, now + ahead));
                    model.insert((now + ahead, hash));
                }
                Step::Advance(ahead) => now += ahead,
                Step::Forget(index) => {
                    // A stale item: the wheel must drop it when it fires.
                    if let Some(found) = model.iter().nth(index).copied() {
                        model.remove(&found);
                    }
                }
            }
            if let (Some(next), Some((deadline, _))) = (wheel.next_due(), model.first()) {
                prop_assert!(next.get() <= *deadline);
            }
            let due = wheel.due(UnixMillis::new(now), usize::MAX, |item| {
                model.contains(&(item.deadline().get(), item.hash().get()))
            });
            let mut found: Vec<_> = due
                .iter()
                .map(|item| (item.deadline().get(), item.hash().get()))
                .collect();
            prop_assert!(found.is_sorted_by_key(|(deadline, _)| *deadline));
            found.sort_unstable();
            let expected: Vec<_> = model.range(..=(now, u64::MAX)).copied().collect();
            prop_assert_eq!(found, expected);
            // They are given again until the check refuses them.
            model.retain(|(deadline, _)| now < *deadline);
        }
        prop_assert!(wheel.len() >= model.len());
    }
}

#[test]
fn a_limit_gives_the_oldest_first_and_the_rest_later() {
    let mut wheel = Wheel::default();
    for deadline in [30, 10, 20] {
        wheel.add(item(deadline, deadline));
    }
    let now = UnixMillis::new(100);
    let first = wheel.due(now, 2, |_| true);
    assert_eq!(
        first.iter().map(|i| i.deadline().get()).collect::<Vec<_>>(),
        [10, 20]
    );
    let rest = wheel.due(now, 2, |item| item.deadline().get() > 20);
    assert_eq!(
        rest.iter().map(|i| i.deadline().get()).collect::<Vec<_>>(),
        [30]
    );
    assert_eq!(wheel.len(), 1);
}

#[test]
fn an_idle_wheel_says_when_to_look_again() {
    let mut wheel = Wheel::default();
    assert_eq!(wheel.next_due(), None);
    let start = 1_700_000_000_000;
    wheel.advance(start);
    wheel.add(item(1, start + 5_000_000));
    let mut wakes = 0;
    while wheel.due(wheel.next_due().unwrap(), 1, |_| true).is_empty() {
        wakes += 1;
    }
    assert!(wakes <= 4, "{wakes} wakes");
}

#[test]
fn items_made_stale_again_and_again_do_not_pile_up() {
    let mut wheel = Wheel::default();
    let start = 1_700_000_000_000_u64;
    wheel.advance(start);
    // One key, refreshed: only its last item is current. Deadlines reach into every level and far
    // into the overflow.
    for ahead in [100_u64, 10_000, 1_000_000, 50_000_000, 900_000_000_000] {
        for round in 0..50_000 {
            let deadline = start + ahead + round % 977 * (ahead / 50);
            let current = item(round, deadline);
            wheel.add(current);
            wheel.scrub(1, 1, |item| item == current);
        }
        assert!(wheel.len() < 10_000, "{} items at {ahead}", wheel.len());
    }
}

#[test]
fn a_deadline_beyond_all_time_has_no_item() {
    assert_eq!(
        Item::new(KeyHash::from_raw(1), UnixMillis::new(1 << 52), 0),
        None
    );
}

//! Twenty seeds, each run twice.

use std::time::Duration;

use flux_sim::{Plan, run};

/// A short run: the suite has little time.
pub(crate) fn short(seed: u64) -> Plan {
    Plan {
        lasting: Duration::from_secs(5),
        expiring: Duration::from_secs(2),
        ..Plan::new(seed, if seed.is_multiple_of(4) { 5 } else { 3 })
    }
}

/// Runs seeds twice; each must be good, and the same again.
fn are_good_and_repeat(seeds: std::ops::Range<u64>) {
    for seed in seeds {
        let first = run(short(seed));
        let failure = first.failure.as_ref().map(ToString::to_string);
        assert_eq!(failure, None, "{first}");
        let second = run(short(seed));
        assert_eq!(first.hash, second.hash, "seed {seed} did not repeat");
        assert_eq!(
            first.histories, second.histories,
            "seed {seed} did not repeat"
        );
    }
}

// Two tests, so that two processors share them.

#[test]
fn seeds_are_linearizable_and_repeat_bit_by_bit() {
    are_good_and_repeat(1..11);
}

#[test]
fn more_seeds_are_linearizable_and_repeat_bit_by_bit() {
    are_good_and_repeat(11..21);
}

#[test]
fn different_seeds_are_different_runs() {
    let hashes: std::collections::BTreeSet<u64> =
        (1..4).map(|seed| run(short(seed)).hash).collect();
    assert_eq!(hashes.len(), 3);
}

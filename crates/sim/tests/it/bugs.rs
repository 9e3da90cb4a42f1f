//! Planted bugs, each with a seed that finds it; `cargo run --profile ci -p flux-sim -- --all-bugs`
//! looks for all of them.

use flux_sim::{Plan, run};
use flux_types::bug::Bug;

use crate::seeds::short;

/// Whether one of the first few seeds finds a bug.
fn is_found(bug: Bug, seeds: u64) {
    let found = (1..=seeds).any(|seed| {
        let report = run(Plan {
            bug: Some(bug),
            ..short(seed)
        });
        report.failure.is_some_and(|failure| failure.is_violation())
    });
    assert!(found, "{bug} was not found by {seeds} seeds");
}

#[test]
fn replicas_that_apply_in_different_orders_are_found() {
    is_found(Bug::ApplyOutOfOrder, 20);
}

#[test]
fn commands_that_do_not_see_those_before_them_are_found() {
    is_found(Bug::OverlayOff, 20);
}

#[test]
fn acknowledging_before_the_sync_is_found() {
    is_found(Bug::AckBeforeSync, 20);
}

#[test]
fn a_group_that_is_seen_in_part_is_found() {
    is_found(Bug::GroupNotAtomic, 20);
}

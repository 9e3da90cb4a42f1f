//! Random commands, restarts, power cuts and snapshots against a simple model.

use std::collections::BTreeMap;
use std::time::Duration;

use flux_env::{Clock, CrashLoss, SeededRng, SimClock};
use flux_types::{Command, Reply};
use proptest::prelude::*;

use crate::harness::*;

#[derive(Clone, Debug)]
enum Step {
    Set(u8, u8),
    SetFor(u8, u8, u16),
    Delete(u8),
    Increment(u8),
    Get(u8),
    Pipeline(Vec<Step>),
    Advance(u16),
    Snapshot,
    Restart,
    CutPower(u64),
}

fn command_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..6_u8, any::<u8>()).prop_map(|(key, value)| Step::Set(key, value)),
        (0..6_u8, any::<u8>(), 1..500_u16).prop_map(|(k, v, ttl)| Step::SetFor(k, v, ttl)),
        (0..6_u8).prop_map(Step::Delete),
        (0..6_u8).prop_map(Step::Increment),
        (0..6_u8).prop_map(Step::Get),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => command_step(),
        4 => proptest::collection::vec(command_step(), 1..8).prop_map(Step::Pipeline),
        2 => (1..400_u16).prop_map(Step::Advance),
        1 => Just(Step::Snapshot),
        1 => Just(Step::Restart),
        1 => any::<u64>().prop_map(Step::CutPower),
    ]
}

/// What there should be: key → value and deadline.
#[derive(Default)]
struct Model {
    entries: BTreeMap<u8, (i64, Option<u64>)>,
}

impl Model {
    fn live(&mut self, key: u8, now: u64) -> Option<(i64, Option<u64>)> {
        let entry = *self.entries.get(&key)?;
        if entry.1.is_some_and(|deadline| deadline <= now) {
            self.entries.remove(&key);
            return None;
        }
        Some(entry)
    }

    /// Applies a step and answers the command and the reply that it must get.
    fn step(&mut self, step: &Step, now: u64) -> (Command, Reply) {
        match *step {
            Step::Set(key, value) => {
                self.entries.insert(key, (i64::from(value), None));
                (set(&name(key), &value.to_string()), Reply::Ok)
            }
            Step::SetFor(key, value, ttl) => {
                let deadline = Some(now + u64::from(ttl));
                self.entries.insert(key, (i64::from(value), deadline));
                let command = set_for(&name(key), &value.to_string(), i64::from(ttl));
                (command, Reply::Ok)
            }
            Step::Delete(key) => {
                let was_there = self.live(key, now).is_some();
                self.entries.remove(&key);
                (delete(&name(key)), Reply::Integer(i64::from(was_there)))
            }
            Step::Increment(key) => {
                let (value, deadline) = self.live(key, now).unwrap_or((0, None));
                self.entries.insert(key, (value + 1, deadline));
                (increment(&name(key)), Reply::Integer(value + 1))
            }
            Step::Get(key) => {
                let reply = match self.live(key, now) {
                    Some((value, _)) => bulk(&value.to_string()),
                    None => Reply::Nil,
                };
                (get(&name(key)), reply)
            }
            Step::Pipeline(_)
            | Step::Advance(_)
            | Step::Snapshot
            | Step::Restart
            | Step::CutPower(_) => unreachable!("not a command"),
        }
    }
}

fn name(key: u8) -> String {
    format!("key {key}")
}

/// Runs steps from `from` on until one of them ends the process; answers where it was.
async fn run_until_restart(
    setup: &Setup,
    clock: &SimClock,
    model: &mut Model,
    steps: &[Step],
    from: usize,
) -> usize {
    let node = setup.start_writable().await;
    for (at, step) in steps.iter().enumerate().skip(from) {
        let now = clock.unix_millis();
        match step {
            Step::Advance(millis) => clock.advance(Duration::from_millis(u64::from(*millis))),
            Step::Snapshot => drop(node.shard.snapshot().await.expect("a snapshot")),
            Step::Restart => {
                node.stop().await;
                return at + 1;
            }
            Step::CutPower(seed) => {
                let loss = if seed % 2 == 0 {
                    CrashLoss::Everything
                } else {
                    CrashLoss::Random
                };
                setup.disk.crash(loss, &mut SeededRng::new(*seed));
                return at + 1;
            }
            Step::Pipeline(steps) => {
                let expected: Vec<_> = steps.iter().map(|step| model.step(step, now)).collect();
                let (commands, expected): (Vec<_>, Vec<_>) = expected.into_iter().unzip();
                assert_eq!(node.run(commands).await, expected);
            }
            Step::Set(..)
            | Step::SetFor(..)
            | Step::Delete(_)
            | Step::Increment(_)
            | Step::Get(_) => {
                let (command, expected) = model.step(step, now);
                assert_eq!(node.run_one(command).await, expected);
            }
        }
    }
    node.stop().await;
    steps.len()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn a_shard_agrees_with_the_model_over_restarts(
        steps in proptest::collection::vec(step(), 1..60),
    ) {
        let (mut setup, clock) = Setup::with_sim_clock();
        setup.config.sweep_keys_max = 2;
        let mut model = Model::default();
        let mut from = 0;
        while from < steps.len() {
            let run = run_until_restart(&setup, &clock, &mut model, &steps, from);
            from = on_runtime(run);
        }
    }
}

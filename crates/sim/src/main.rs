//! Runs simulated clusters by seed, and bugs that they must find.
#![expect(clippy::print_stdout, reason = "a campaign reports on standard output")]

use std::io::Write as _;
use std::time::Duration;

use anyhow::{bail, ensure};
use clap::Parser;
use flux_sim::{Plan, Report, run};
use flux_types::bug::Bug;

/// Runs clusters of simulated machines, each from one seed, and judges them.
#[derive(Debug, Parser)]
struct Arguments {
    /// How many seeds.
    #[arg(long, default_value_t = 20)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    start: u64,
    /// Machines; 3 and 5 by turns unless given.
    #[arg(long, value_parser = ["3", "5"])]
    nodes: Option<String>,
    /// Switches a bug on and stops at the seed that finds it.
    #[arg(long)]
    bug: Option<String>,
    /// Does that for every bug there is.
    #[arg(long)]
    all_bugs: bool,
    /// How long things break, in simulated seconds.
    #[arg(long, default_value_t = 12)]
    seconds: u64,
    /// Prints the history of a run that fails.
    #[arg(long)]
    history: bool,
    /// Prints a line for every seed.
    #[arg(long)]
    verbose: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    if arguments.all_bugs {
        let mut missed = Vec::new();
        for bug in Bug::ALL {
            if !find(*bug, &arguments)? {
                missed.push(bug.name());
            }
        }
        ensure!(missed.is_empty(), "not found: {}", missed.join(", "));
        return Ok(());
    }
    if let Some(name) = &arguments.bug {
        let bug = Bug::ALL.iter().find(|bug| bug.name() == name);
        let Some(bug) = bug else {
            let names: Vec<_> = Bug::ALL.iter().map(|bug| bug.name()).collect();
            bail!("there is no bug {name}; there are {}", names.join(", "));
        };
        ensure!(find(*bug, &arguments)?, "{name} was not found");
        return Ok(());
    }
    campaign(&arguments)
}

fn plan(arguments: &Arguments, seed: u64) -> Plan {
    let nodes = match arguments.nodes.as_deref() {
        Some("3") => 3,
        Some(_) => 5,
        None if seed.is_multiple_of(4) => 5,
        None => 3,
    };
    Plan {
        lasting: Duration::from_secs(arguments.seconds),
        ..Plan::new(seed, nodes)
    }
}

/// Runs seeds until one of them finds a bug; whether one does.
fn find(bug: Bug, arguments: &Arguments) -> anyhow::Result<bool> {
    ensure!(
        cfg!(debug_assertions),
        "this build has no bugs to switch on: it has no debug assertions"
    );
    for seed in arguments.start..arguments.start + arguments.seeds {
        let report = run(Plan {
            bug: Some(bug),
            ..plan(arguments, seed)
        });
        if let Some(failure) = &report.failure {
            let text = failure.to_string();
            let first = text.lines().next().unwrap_or_default();
            println!("{bug}: found by seed {seed}: {first}");
            if arguments.history {
                println!("{text}");
            }
            std::io::stdout().flush()?;
            return Ok(true);
        }
    }
    println!("{bug}: not found by {} seeds", arguments.seeds);
    Ok(false)
}

fn campaign(arguments: &Arguments) -> anyhow::Result<()> {
    let mut failed = 0_u64;
    let mut totals = Totals::default();
    for seed in arguments.start..arguments.start + arguments.seeds {
        let report = run(plan(arguments, seed));
        totals.add(&report);
        if arguments.verbose || report.failure.is_some() {
            println!("{report}");
        }
        if let Some(failure) = &report.failure {
            failed += 1;
            println!("FAILED: {failure}");
            for replica in &report.replicas {
                println!("{replica}");
            }
            println!(
                "reproduce: cargo run --profile ci -p flux-sim -- --start {seed} --seeds 1 --nodes {} \
                 --seconds {} --history",
                report.plan.nodes, arguments.seconds
            );
            if arguments.history {
                for history in &report.histories {
                    println!("{history}");
                }
            }
        }
        std::io::stdout().flush()?;
    }
    println!("{} seeds, {failed} failed; {totals}", arguments.seeds);
    ensure!(failed == 0, "{failed} seeds failed");
    Ok(())
}

#[derive(Debug, Default)]
struct Totals {
    called: usize,
    completed: usize,
    faults: u64,
    leaders: usize,
    simulated_millis: u64,
}

impl Totals {
    fn add(&mut self, report: &Report) {
        self.called += report.called;
        self.completed += report.completed;
        self.faults += report.faults.values().sum::<u64>();
        self.leaders += report.leaders;
        self.simulated_millis += report.simulated_millis;
    }
}

impl std::fmt::Display for Totals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} operations, {} completed, {} faults, {} leaders, {} s simulated",
            self.called,
            self.completed,
            self.faults,
            self.leaders,
            self.simulated_millis / 1000
        )
    }
}

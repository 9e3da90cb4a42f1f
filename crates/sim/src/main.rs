//! Runs simulated clusters by seed, and bugs that they must find.
#![expect(clippy::print_stdout, reason = "a campaign reports on standard output")]

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use anyhow::{bail, ensure};
use clap::Parser;
use flux_env::ThreadMeter;
use flux_sim::{Fault, Plan, Report, run};
use flux_types::bug::Bug;
use parking_lot::Mutex;

/// Seconds of a processor after which a run hangs where simulated time cannot see it: in the middle
/// of one step. Some hundred times what a run takes.
const SECONDS_MAX: u64 = 300;
/// Seconds after which a run that neither ran nor waited for a processor waits for itself.
const STILL_MAX: u32 = 600;

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
    /// Only runs whose shards move: among five machines, and with `--splits` are split as well.
    #[arg(long)]
    moves: bool,
    /// Only runs whose shards are split; with `--moves` they move as well, else never.
    #[arg(long)]
    splits: bool,
    /// Switches a bug on and stops at the seed that finds it.
    #[arg(long)]
    bug: Option<String>,
    /// Does that for every bug there is.
    #[arg(long)]
    all_bugs: bool,
    /// How long things break, in simulated seconds.
    #[arg(long, default_value_t = 12)]
    seconds: u64,
    /// How many runs at the same time.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    jobs: u16,
    /// Prints the history of a run that fails.
    #[arg(long)]
    history: bool,
    /// Prints a line for every seed.
    #[arg(long)]
    verbose: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    ensure!(arguments.seeds > 0, "no seeds are no proof");
    ensure!(
        arguments.start.checked_add(arguments.seeds).is_some(),
        "there are no seeds beyond {}",
        u64::MAX
    );
    if arguments.all_bugs {
        return hunt(Bug::ALL, &arguments);
    }
    if let Some(name) = &arguments.bug {
        let bug = Bug::ALL.iter().find(|bug| bug.name() == name);
        let Some(bug) = bug else {
            let names: Vec<_> = Bug::ALL.iter().map(|bug| bug.name()).collect();
            bail!("there is no bug {name}; there are {}", names.join(", "));
        };
        return hunt(&[*bug], &arguments);
    }
    campaign(&arguments)
}

fn plan(arguments: &Arguments, moves: bool, seed: u64) -> Plan {
    let nodes = match arguments.nodes.as_deref() {
        _ if moves => 5,
        Some("3") => 3,
        Some(_) => 5,
        None if seed.is_multiple_of(4) => 5,
        None => 3,
    };
    let is_said = moves || arguments.splits;
    Plan {
        lasting: Duration::from_secs(arguments.seconds),
        moves: is_said.then_some(moves),
        splits: is_said.then_some(arguments.splits),
        ..Plan::new(seed, nodes)
    }
}

/// Does something with each of `items`, several at a time.
fn each<T: Sync>(items: &[T], jobs: u16, work: impl Fn(&T) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    work(item);
                }
            });
        }
    });
}

/// Runs a plan; a panic that no task of the simulation caught, and a run that does not come back, end
/// the process with its seed.
fn guarded(plan: Plan) -> Report {
    std::thread::scope(|scope| {
        let (done, ended) = mpsc::channel::<()>();
        if let Ok(meter) = ThreadMeter::of_this_thread() {
            scope.spawn(move || watch(plan, &meter, &ended));
        }
        let report = catch_unwind(AssertUnwindSafe(|| run(plan)));
        drop(done);
        report.unwrap_or_else(|_| lost(plan, "the simulation itself panicked"))
    })
}

/// Waits for the end of a run: for so much time of a processor as no run takes, or for so long that it
/// must stand still. That a machine has no processor left for it is no hang.
fn watch(plan: Plan, meter: &ThreadMeter, ended: &mpsc::Receiver<()>) {
    let began = meter.read().unwrap_or_default();
    let (mut last, mut still) = (began, 0);
    while ended.recv_timeout(Duration::from_secs(1)) == Err(RecvTimeoutError::Timeout) {
        let Ok(now) = meter.read() else {
            return;
        };
        still = if now == last { still + 1 } else { 0 };
        last = now;
        if SECONDS_MAX < (now.ran.saturating_sub(began.ran)).as_secs() || STILL_MAX < still {
            lost(plan, "one step does not end");
        }
    }
}

fn lost(plan: Plan, what: &str) -> ! {
    let bug = plan
        .bug
        .map_or_else(String::new, |bug| format!(" with {bug}"));
    println!("FAILED: seed {}{bug}: {what}\n{}", plan.seed, again(plan));
    // Neither the thread that hangs nor a scope that waits for it can be left another way.
    std::process::abort()
}

/// The command that repeats a run.
fn again(plan: Plan) -> String {
    format!(
        "reproduce: cargo run --profile ci -p flux-sim -- --start {} --seeds 1 --nodes {} --seconds {}{}{} --history",
        plan.seed,
        plan.nodes,
        plan.lasting.as_secs(),
        if plan.moves == Some(true) {
            " --moves"
        } else {
            ""
        },
        if plan.splits == Some(true) {
            " --splits"
        } else {
            ""
        }
    )
}

/// Looks for a seed that finds each bug: by a rule that is broken, not by a run that proves nothing.
fn hunt(bugs: &[Bug], arguments: &Arguments) -> anyhow::Result<()> {
    ensure!(
        cfg!(debug_assertions),
        "this build has no bugs to switch on: it has no debug assertions"
    );
    let missed = Mutex::new(Vec::new());
    each(bugs, arguments.jobs, |bug| {
        if !find(*bug, arguments) {
            missed.lock().push(bug.name());
        }
    });
    let missed = missed.into_inner();
    ensure!(missed.is_empty(), "not found: {}", missed.join(", "));
    Ok(())
}

/// Whether a bug is in what happens only where shards move, which few runs of the ordinary draw do.
const fn needs_moves(bug: Bug) -> bool {
    matches!(bug, Bug::RetiredVotes)
}

/// Runs seeds until one of them finds a bug; whether one does.
fn find(bug: Bug, arguments: &Arguments) -> bool {
    let mut unsound = Vec::new();
    let moves = arguments.moves || needs_moves(bug);
    for seed in arguments.start..arguments.start + arguments.seeds {
        let report = guarded(Plan {
            bug: Some(bug),
            ..plan(arguments, moves, seed)
        });
        let Some(failure) = &report.failure else {
            continue;
        };
        let text = failure.to_string();
        let first = text.lines().next().unwrap_or_default();
        if failure.is_violation() {
            let of_moves = if moves { " of those with --moves" } else { "" };
            println!("{bug}: found by seed {seed}{of_moves}: {first}");
            if arguments.history {
                println!("{text}");
            }
            return true;
        }
        unsound.push(format!("seed {seed}: {first}"));
    }
    println!(
        "{bug}: not found by {} seeds; {} of them say nothing {unsound:?}",
        arguments.seeds,
        unsound.len()
    );
    false
}

fn campaign(arguments: &Arguments) -> anyhow::Result<()> {
    let began = flux_env::boot_now();
    let totals = Mutex::new(Totals::default());
    let seeds: Vec<u64> = (arguments.start..arguments.start + arguments.seeds).collect();
    each(&seeds, arguments.jobs, |seed| {
        let report = guarded(plan(arguments, arguments.moves, *seed));
        let mut totals = totals.lock();
        totals.add(&report);
        tell(&report, arguments);
    });
    let totals = totals.into_inner();
    let took = flux_env::boot_now().saturating_since(began);
    println!("{totals}, {} s", took.as_secs());
    ensure!(totals.failed == 0, "{} seeds failed", totals.failed);
    Ok(())
}

fn tell(report: &Report, arguments: &Arguments) {
    if arguments.verbose || report.failure.is_some() {
        println!("{report}");
    }
    if let Some(failure) = &report.failure {
        println!("FAILED: {failure}");
        for replica in &report.replicas {
            println!("{replica}");
        }
        println!("{}", again(report.plan));
        if arguments.history {
            for history in &report.histories {
                println!("{history}");
            }
        }
    }
    // Whoever watches wants to see it; whoever has gone does not.
    let _ = std::io::stdout().flush().is_ok();
}

#[derive(Debug, Default)]
struct Totals {
    seeds: u64,
    failed: u64,
    called: usize,
    completed: usize,
    unknown: usize,
    events: u64,
    forgotten: u64,
    faults: BTreeMap<Fault, u64>,
    leaders: usize,
    simulated_millis: u64,
}

impl Totals {
    fn add(&mut self, report: &Report) {
        self.seeds += 1;
        self.failed += u64::from(report.failure.is_some());
        self.called += report.called;
        self.completed += report.completed;
        self.unknown += report.unknown;
        self.events += report.events;
        self.forgotten += report.forgotten;
        for (fault, count) in &report.faults {
            *self.faults.entry(*fault).or_default() += count;
        }
        self.leaders += report.leaders;
        self.simulated_millis += report.simulated_millis;
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} seeds, {} failed; {} operations, {} completed, {} unknown, {} events, {} forgotten, {} leaders, {} s simulated, {} faults (",
            self.seeds,
            self.failed,
            self.called,
            self.completed,
            self.unknown,
            self.events,
            self.forgotten,
            self.leaders,
            self.simulated_millis / 1000,
            self.faults.values().sum::<u64>(),
        )?;
        for (at, (fault, count)) in self.faults.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}{fault} {count}")?;
        }
        f.write_str(")")
    }
}

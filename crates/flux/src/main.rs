//! `flux`, the one binary: arguments, configuration, subcommands, exit codes.
//!
//! Everything that a person or a script meets first is here, and nothing that serves a request:
//! parts are started from typed settings and told to stop. Exit codes: 0 done, 1 failed, 2 a
//! mistake in flags, files, folders or ports, 3 damage in the log, 69 a service that is needed is
//! away, 130 stopped by a second signal.

mod admin;
mod args;
mod banner;
mod cmd;
mod out;
mod panics;
mod ports;
mod ready;
mod settings;
mod signals;
mod traces;

use std::process::ExitCode;

use args::Task;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Why a subcommand did not succeed; its exit code and what standard error says.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It failed: exit code 1.
    Failed(String),
    /// A mistake in flags, files, folders or ports: exit code 2.
    Mistake(String),
    /// Damage in the log: exit code 3.
    Damage(String),
    /// A service that is needed is away, and nobody wants to wait: exit code 69.
    Unavailable(String),
    /// It failed, and standard output has said so already: exit code 1.
    Said,
    /// A program that we ran ended so, and has said why itself.
    Status(u8),
}

impl From<settings::Mistakes> for Failure {
    fn from(mistakes: settings::Mistakes) -> Self {
        Self::Mistake(mistakes.to_string())
    }
}

fn main() -> ExitCode {
    let task = match args::read(std::env::args_os()) {
        Ok(task) => task,
        Err(error) => return usage(&error),
    };
    let outcome = match task {
        Task::Run(run) => cmd::run::run(run),
        Task::Cli(cli) => cmd::cli::run(cli),
        Task::Admin(admin) => cmd::admin::run(admin),
        Task::Log(task, dir) => cmd::log::run(task, &dir),
        Task::Config(run, view) => cmd::config::run(run, view),
        Task::CdcConsumer(matches) => cmd::cdc_consumer::run(&matches),
        Task::Health(run) => cmd::health::run(run),
        Task::Register(task) => cmd::register::run(task),
        Task::Version => {
            out::line(&format!("flux {}", env!("CARGO_PKG_VERSION")));
            Ok(())
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Failed(message)) => exit(1, &message),
        Err(Failure::Mistake(message)) => exit(2, &message),
        Err(Failure::Damage(message)) => exit(3, &message),
        Err(Failure::Unavailable(message)) => exit(69, &message),
        Err(Failure::Said) => ExitCode::FAILURE,
        Err(Failure::Status(code)) => ExitCode::from(code),
    }
}

fn exit(code: u8, message: &str) -> ExitCode {
    out::problem(message);
    ExitCode::from(code)
}

/// Help and version go to standard output; a mistake is one line.
fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        out::text(&error.render().ansi().to_string());
        return ExitCode::SUCCESS;
    }
    let text = error.render().to_string();
    // The first paragraph says what is wrong, in one line or as a list; a hint begins with `tip:`.
    let mut lines = text.lines().map(str::trim);
    let first: Vec<&str> = lines.by_ref().take_while(|line| !line.is_empty()).collect();
    let first = first.join(" ");
    let first = first.strip_prefix("error: ").unwrap_or(&first);
    let tip = lines.find_map(|line| line.strip_prefix("tip: "));
    let tip = tip.map_or_else(String::new, |tip| format!("; {tip}"));
    exit(2, &format!("{first}{tip} (see flux --help)"))
}

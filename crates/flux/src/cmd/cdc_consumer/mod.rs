//! `flux cdc-consumer`: prints every change, or appends it to a file.
//!
//! Events go to standard output, everything else to standard error. An outage is told once and
//! then every half minute, not at every attempt.

mod flags;
mod watched;

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use flux_cdc::consumer::{
    Checkpoint, CheckpointError, Consumer, ConsumerError, FileOutput, Format, Notice, Output,
    Progress, StreamOutput, Summary,
};
use flux_env::{Clock, Disk, Instant, RealClock, RealDisk, SeededRng};
use flux_telemetry::Registry;

pub(crate) use flags::command;
use flags::{Flags, FormatFlag};
use watched::Watched;

use crate::cmd::finish;
use crate::settings::{of_environment, reason};
use crate::signals::Signals;
use crate::traces::Traces;
use crate::{Failure, out};

/// How often an outage that goes on is told.
const REMINDER: Duration = Duration::from_secs(30);

/// What the consumer registers, for the document that lists it.
#[cfg(test)]
pub(super) fn families() -> Vec<flux_telemetry::Family> {
    Watched::new().families()
}

/// Runs until a signal, or until there is nothing more to do.
///
/// # Errors
/// Mistakes in flags and files; outputs that fail; a broker that is away, if nobody waits for it.
pub(crate) fn run(matches: &clap::ArgMatches) -> Result<(), Failure> {
    let flags = flags::read(matches)?;
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let (checkpoint, mut progress) = open_checkpoint(&flags, &disk)?;
    let mut output = open_output(&flags, &*disk, &mut progress)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|error| Failure::Failed(format!("the runtime: {error}")))?;
    let telemetry = of_environment()?;
    let traces = Traces::start(&telemetry, &Registry::new())?;
    let seed = flux_env::entropy_u64()
        .map_err(|error| Failure::Failed(format!("failed to draw random bits: {error}")))?;
    let mut teller = Teller::new(&flags);
    let mut watched = Watched::new();
    let admin = runtime.block_on(watched.serve(flags.listen))?;
    let mut notice = |notice: Notice<'_>| {
        watched.note(&notice);
        teller.tell(&notice);
    };
    let mut consumer = Consumer {
        config: flags.config.clone(),
        output: &mut *output,
        checkpoint,
        progress,
        rng: &mut SeededRng::new(seed),
        notice: &mut notice,
        summary: Summary::default(),
    };
    let outcome = finish(runtime, async {
        let stop = Signals::listen()
            .map_err(|error| Failure::Failed(format!("cannot listen for signals: {error}")))?
            .first();
        let outcome = consumer.run(stop).await;
        traces.shutdown().await;
        Ok::<_, Failure>(outcome)
    });
    drop(admin);
    let outcome = outcome?;
    let summary = consumer.summary;
    if !flags.is_quiet {
        out::problem(&summary.to_string());
    }
    outcome.map(|_| ()).map_err(|error| match error {
        ConsumerError::Broker(trouble) => Failure::Unavailable(trouble.to_string()),
        ConsumerError::Output(_) | ConsumerError::Checkpoint(_) => {
            Failure::Failed(error.to_string())
        }
    })
}

fn open_checkpoint(
    flags: &Flags,
    disk: &Arc<dyn Disk>,
) -> Result<(Option<Checkpoint>, Progress), Failure> {
    let Some(path) = &flags.checkpoint else {
        return Ok((None, Progress::default()));
    };
    match Checkpoint::open(Arc::clone(disk), path) {
        Ok((checkpoint, progress)) => Ok((Some(checkpoint), progress)),
        Err(CheckpointError::Io { path, source }) => Err(Failure::Mistake(format!(
            "--checkpoint {}: {}",
            path.display(),
            reason(&source)
        ))),
        Err(error) => Err(Failure::Mistake(format!("--checkpoint: {error}"))),
    }
}

fn open_output(
    flags: &Flags,
    disk: &dyn Disk,
    progress: &mut Progress,
) -> Result<Box<dyn Output>, Failure> {
    let stdout = std::io::stdout();
    let is_terminal = stdout.is_terminal();
    let Some(path) = &flags.file else {
        let format = match flags.format {
            Some(FormatFlag::Json) => Format::Json,
            None if !is_terminal => Format::Json,
            None | Some(FormatFlag::Pretty) => Format::Pretty {
                color: is_terminal && !out::is_plain(),
            },
        };
        return Ok(Box::new(StreamOutput::new(stdout, format)));
    };
    let format = match flags.format {
        Some(FormatFlag::Pretty) => Format::Pretty { color: false },
        None | Some(FormatFlag::Json) => Format::Json,
    };
    let output = FileOutput::open(disk, path, format, progress).map_err(|error| {
        Failure::Mistake(format!(
            "--sink file:{}: {}",
            path.display(),
            reason(&error)
        ))
    })?;
    Ok(Box::new(output))
}

/// Says what happens, on standard error.
struct Teller {
    is_quiet: bool,
    what: String,
    clock: RealClock,
    /// What was told last of an outage, and when.
    told: Option<(String, Instant)>,
}

impl Teller {
    fn new(flags: &Flags) -> Self {
        let config = &flags.config;
        Self {
            is_quiet: flags.is_quiet,
            what: format!("{} of {}", config.topology.queue, config.address),
            clock: RealClock::new(),
            told: None,
        }
    }

    fn tell(&mut self, notice: &Notice<'_>) {
        if self.is_quiet {
            return;
        }
        match notice {
            Notice::Connected => {
                self.told = None;
                out::problem(&format!("reading {}", self.what));
            }
            Notice::Lost {
                trouble,
                attempt,
                wait,
            } => {
                let text = trouble.to_string();
                let now = self.clock.now();
                let is_known = self.told.as_ref().is_some_and(|(told, at)| {
                    *told == text && now.saturating_since(*at) < REMINDER
                });
                if is_known {
                    return;
                }
                out::problem(&format!(
                    "{text}; reconnecting (attempt {attempt}, next in {} ms)",
                    wait.as_millis()
                ));
                self.told = Some((text, now));
            }
            // The first few tell what is wrong; after that their count in the summary does.
            Notice::Rejected { problem, count } if *count <= 10 => {
                out::problem(&format!(
                    "a message is no event and was set aside: {problem}"
                ));
            }
            Notice::Rejected { .. } | Notice::Read(_) => {}
        }
    }
}

//! Logs: `tracing` events to standard error, as text for people or JSON for machines.
//!
//! Standard output belongs to what a command answers; logs never go there. The level can change
//! while the process runs ([`set_level`]). What is logged while a recorded request is worked on
//! carries the request's trace, and an error that repeats itself is cut short ([`repeats`]).

mod line;
mod repeats;
#[cfg(test)]
mod tests;

use std::io::{self, IsTerminal as _};
use std::sync::OnceLock;

use parking_lot::Mutex;
use serde::Deserialize;
use tracing::Subscriber;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::reload;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};
use tracing_subscriber::{EnvFilter, Registry};

use self::line::Line;
use self::repeats::Repeats;
use crate::trace::Now;

/// How logs are written.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// A level (`error`, `warn`, `info`, `debug`, `trace`, `off`), or a list of `target=level` as
    /// in `info,flux_raft=debug`. Default `info`.
    pub level: String,
    /// Default `auto`.
    pub format: Format,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            level: "info".to_owned(),
            format: Format::Auto,
        }
    }
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// `Pretty` on a terminal, else `Json`.
    #[default]
    Auto,
    /// One JSON object per line.
    Json,
    /// One line of text for each event; colored on a terminal.
    Pretty,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Auto, Self::Json, Self::Pretty];

    /// Its name in settings.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Json => "json",
            Self::Pretty => "pretty",
        }
    }
}

/// Why logs could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The level is neither a level nor a list of targets with levels.
    #[error("log level {level:?} is not a level or a list of target=level")]
    Level {
        /// What was given.
        level: String,
        /// What is wrong with it, where more than that can be told.
        #[source]
        source: Option<ParseError>,
    },
    /// Logs have already been set up in this process.
    #[error("logs are already set up")]
    Installed(#[from] TryInitError),
    /// Logs have not been set up in this process.
    #[error("logs are not set up")]
    Missing,
}

/// What the level is now, and how it is changed.
#[derive(Debug)]
struct Installed {
    filter: reload::Handle<EnvFilter, Registry>,
    /// Always in force beside what is asked for.
    base: String,
    level: Mutex<String>,
}

static INSTALLED: OnceLock<Installed> = OnceLock::new();

/// Sends the process's logs to standard error from now on. `base` are parts in the form of
/// [`Config::level`] that hold where the level does not say otherwise; they stay when it changes.
/// `now` is the clock by which repetitions are judged.
///
/// # Errors
/// If the level cannot be read, or logs were set up before.
pub fn install(config: &Config, base: &str, now: Now) -> Result<(), Error> {
    let is_terminal = io::stderr().is_terminal();
    let filter = filter(&joined(base, &config.level))?;
    let (subscriber, handle) = subscriber(filter, config.format, is_terminal, now, io::stderr);
    subscriber.try_init()?;
    let installed = Installed {
        filter: handle,
        base: base.to_owned(),
        level: Mutex::new(config.level.clone()),
    };
    // Only one subscriber can have been set, so this is the first.
    drop(INSTALLED.set(installed));
    Ok(())
}

/// The level as it was set last; `None` before [`install`].
#[must_use]
pub fn level() -> Option<String> {
    INSTALLED.get().map(|logs| logs.level.lock().clone())
}

/// Changes the level of this process's logs.
///
/// # Errors
/// If the level cannot be read, or logs are not set up.
pub fn set_level(level: &str) -> Result<(), Error> {
    check_level(level)?;
    let logs = INSTALLED.get().ok_or(Error::Missing)?;
    let filter = filter(&joined(&logs.base, level))?;
    let mut current = logs.level.lock();
    logs.filter.reload(filter).map_err(|_| Error::Missing)?;
    level.clone_into(&mut current);
    Ok(())
}

/// Checks a level without setting anything up, so that a start can refuse it early.
///
/// # Errors
/// If it is neither a level nor a list of targets with levels.
pub fn check_level(level: &str) -> Result<(), Error> {
    filter(level).map(drop)
}

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

fn joined(base: &str, level: &str) -> String {
    if base.is_empty() {
        return level.to_owned();
    }
    format!("{base},{level}")
}

fn filter(level: &str) -> Result<EnvFilter, Error> {
    // An empty text would silently mean *errors only*, and a word that is no level would be
    // taken for the name of a target: both are far more often mistakes.
    let is_level = |part: &str| LEVELS.iter().any(|level| part.eq_ignore_ascii_case(level));
    let is_directive = |part: &str| part.contains(['=', '[']) || is_level(part);
    if !level.split(',').map(str::trim).all(is_directive) {
        return Err(Error::Level {
            level: level.to_owned(),
            source: None,
        });
    }
    EnvFilter::builder()
        .parse(level)
        .map_err(|source| Error::Level {
            level: level.to_owned(),
            source: Some(source),
        })
}

fn subscriber<W>(
    filter: EnvFilter,
    format: Format,
    is_terminal: bool,
    now: Now,
    writer: W,
) -> (
    impl Subscriber + Send + Sync + 'static,
    reload::Handle<EnvFilter, Registry>,
)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let is_json = match format {
        Format::Auto => !is_terminal,
        Format::Json => true,
        Format::Pretty => false,
    };
    let line = Line::new(is_json, Repeats::new(now));
    let (filter, handle) = reload::Layer::new(filter);
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(writer)
        .with_ansi(is_terminal && !is_json)
        .event_format(line);
    let subscriber = tracing_subscriber::registry().with(filter).with(lines);
    (subscriber, handle)
}

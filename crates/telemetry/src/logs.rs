//! Logs: `tracing` events to standard error, as text for people or JSON for machines.
//!
//! Standard output belongs to what a command answers; logs never go there.

use std::io::{self, IsTerminal as _};

use serde::Deserialize;
use tracing::Subscriber;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};

/// How logs are written.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// A level (`error`, `warn`, `info`, `debug`, `trace`, `off`), or a list of `target=level` as
    /// in `info,flux_raft=debug`. Default `info`.
    pub level: String,
    /// `text` or `json`. Default `text`.
    pub format: Format,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            level: "info".to_owned(),
            format: Format::Text,
        }
    }
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// One line of text for each event; colored on a terminal.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
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
}

/// Sends the process's logs to standard error from now on.
///
/// # Errors
/// If the level cannot be read, or logs were set up before.
pub fn install(config: &Config) -> Result<(), Error> {
    let is_terminal = io::stderr().is_terminal();
    subscriber(config, is_terminal, io::stderr)?.try_init()?;
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
    config: &Config,
    is_terminal: bool,
    writer: W,
) -> Result<Box<dyn Subscriber + Send + Sync>, Error>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter(&config.level)?)
        .with_writer(writer);
    Ok(match config.format {
        Format::Text => Box::new(builder.with_ansi(is_terminal).finish()),
        Format::Json => Box::new(builder.json().flatten_event(true).finish()),
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::{Config, Format, check_level, subscriber};

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(level: &str, format: Format) -> String {
        let buffer = Buffer::default();
        let config = Config {
            level: level.to_owned(),
            format,
        };
        let writer = buffer.clone();
        let subscriber = subscriber(&config, false, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(shard = 3, "became leader");
            tracing::debug!("not at info");
            tracing::debug!(target: "flux_raft", "of one target");
        });
        let bytes = buffer.0.lock().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn text_lines_carry_message_and_fields_and_respect_the_level() {
        let text = logged("info", Format::Text);
        assert!(text.contains("INFO") && text.contains("became leader shard=3"));
        assert!(!text.contains("not at info"));
        assert!(
            !text.contains('\u{1b}'),
            "no colors away from a terminal: {text:?}"
        );
    }

    #[test]
    fn one_target_can_be_louder_than_the_rest() {
        let text = logged("info,flux_raft=debug", Format::Text);
        assert!(text.contains("of one target") && !text.contains("not at info"));
    }

    #[test]
    fn json_lines_are_objects_with_the_fields_at_top_level() {
        let text = logged("info", Format::Json);
        assert!(text.starts_with('{') && text.ends_with("}\n"), "{text}");
        assert!(text.contains(r#""message":"became leader""#) && text.contains(r#""shard":3"#));
    }

    #[test]
    fn what_is_no_level_is_refused_by_name() {
        for level in ["", "loud", "info,", "flux_raft=loud", "infos"] {
            let error = check_level(level).unwrap_err();
            assert!(
                error.to_string().contains(&format!("{level:?}")),
                "{level}: {error}"
            );
        }
        for level in ["off", "ERROR", "warn,flux_log=trace", "debug"] {
            check_level(level).unwrap();
        }
    }
}

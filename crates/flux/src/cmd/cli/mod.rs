//! `flux cli`: one command, commands from a pipe, a prompt, the demonstration, or changes.
//!
//! It speaks FLUX through the SDK. Commands are words that the node interprets, so whatever a node
//! knows can be asked; nothing here knows their meaning but for hints.

mod demo;
mod prompt;
mod show;
mod syntax;
mod watch;
mod words;

use std::ffi::OsString;
use std::io::{BufRead, IsTerminal};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use flux_client::{Client, Config, Error, Outcome, Value as Answer};
use flux_wire::resp::error::code_word;
use tokio::runtime::Runtime;

use crate::args::Cli;
use crate::cmd::runtime;
use crate::{Failure, out};
use prompt::{Input, Prompt};
use show::{Form, Value};

pub(crate) use show::quoted;

/// A person at a prompt waits longer than a program.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Runs the client.
///
/// # Errors
/// When the node cannot be reached, or a command was answered with an error.
pub(crate) fn run(cli: Cli) -> Result<(), Failure> {
    let runtime = runtime()?;
    let form = form(&cli);
    let host = if cli.host.contains(':') {
        format!("[{}]", cli.host)
    } else {
        cli.host.clone()
    };
    if let Some((word, rest)) = cli.words.split_first()
        && word == "watch"
    {
        let watch = watch::Watch::parse(rest)?;
        let password = cli.password.or_else(password);
        return runtime.block_on(watch::run(&host, password, watch));
    }
    let config = Config {
        password: cli.password.or_else(password),
        request_timeout: REQUEST_TIMEOUT,
        frame_bytes_max: flux_types::limits::FRAME_BYTES_MAX,
        ..Config::new(format!("{host}:{}", cli.port))
    };
    let client = runtime
        .block_on(Client::connect(config))
        .map_err(|error| said(&error))?;
    let client = if cli.stale {
        client.stale_reads()
    } else {
        client
    };
    let session = Session {
        runtime,
        client,
        form,
    };
    match cli.words.as_slice() {
        [] if std::io::stdin().is_terminal() => session.prompt(),
        [] => session.pipe(&mut std::io::stdin().lock()),
        [word] if word == "demo" => session.runtime.block_on(demo::run(&session.client)),
        words => session.one(
            words
                .iter()
                .cloned()
                .map(OsString::into_vec)
                .map(Bytes::from),
        ),
    }
}

/// The environment is read in one place, but for the password of a client that no settings concern.
pub(crate) fn password() -> Option<String> {
    std::env::var_os("FLUX_PASSWORD")?
        .into_string()
        .ok()
        .filter(|password| !password.is_empty())
}

fn form(cli: &Cli) -> Form {
    if cli.json {
        Form::Json
    } else if cli.raw.unwrap_or_else(|| !std::io::stdout().is_terminal()) {
        Form::Raw
    } else {
        Form::Typed
    }
}

/// One line about a request without an answer; a write that may have happened is named so.
fn said(error: &Error) -> Failure {
    let uncertain = match error.outcome() {
        Outcome::Unknown => "; whether it was done is unknown",
        Outcome::NotDone | Outcome::Done => "",
    };
    Failure::Failed(format!("{error}{uncertain}"))
}

struct Session {
    runtime: Runtime,
    client: Client,
    form: Form,
}

impl Session {
    /// One command from the command line.
    fn one(&self, words: impl Iterator<Item = Bytes>) -> Result<(), Failure> {
        let is_error = self
            .execute(words.collect())
            .map_err(|error| said(&error))?;
        if is_error { Err(Failure::Said) } else { Ok(()) }
    }

    /// One command for each line, each after the answer of the one before. Empty lines and those
    /// that begin with `#` are skipped.
    fn pipe(&self, input: &mut impl BufRead) -> Result<(), Failure> {
        let mut has_errors = false;
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = input
                .read_until(b'\n', &mut line)
                .map_err(|error| Failure::Failed(format!("standard input: {error}")))?;
            if read == 0 {
                break;
            }
            let text = line.trim_ascii();
            if text.is_empty() || text.starts_with(b"#") {
                continue;
            }
            match words::split(text) {
                Some(words) => {
                    let words = words.into_iter().map(Bytes::from).collect();
                    has_errors |= self.execute(words).map_err(|error| said(&error))?;
                }
                None => {
                    self.show(&Value::Error("ERR unbalanced quotes".to_owned()));
                    has_errors = true;
                }
            }
        }
        if has_errors {
            Err(Failure::Said)
        } else {
            Ok(())
        }
    }

    /// Reads lines from a person until that person has enough.
    fn prompt(&self) -> Result<(), Failure> {
        let failed = |error| Failure::Failed(format!("the terminal: {error}"));
        let mut prompt = Prompt::open(history()).map_err(failed)?;
        let greeting = format!("{}> ", self.client.config().address);
        loop {
            let line = match prompt.read(&greeting).map_err(failed)? {
                Input::Line(line) => line,
                Input::Forgotten => continue,
                Input::End => return Ok(()),
            };
            let Some(words) = words::split(line.as_bytes()) else {
                out::line("Invalid argument(s)");
                continue;
            };
            let Some(first) = words.first() else { continue };
            match first.to_ascii_lowercase().as_slice() {
                b"exit" | b"quit" => return Ok(()),
                b"help" => out::text(&syntax::help()),
                b"clear" => out::text("\x1b[H\x1b[2J"),
                _ => {
                    // The connection comes back by itself, so a failure ends nothing.
                    if let Err(error) = self.execute(words.into_iter().map(Bytes::from).collect()) {
                        let Failure::Failed(message) = said(&error) else {
                            continue;
                        };
                        out::problem(&message);
                    }
                }
            }
        }
    }

    /// Sends a command and shows the answer; true if that is an error.
    fn execute(&self, words: Vec<Bytes>) -> Result<bool, Error> {
        let value = match self.runtime.block_on(self.client.command(words)) {
            Ok(answer) => value(answer),
            Err(Error::Node(error)) => {
                Value::Error(format!("{} {}", code_word(&error), error.message))
            }
            Err(error) => return Err(error),
        };
        self.show(&value);
        Ok(matches!(value, Value::Error(_)))
    }

    fn show(&self, value: &Value) {
        out::bytes(&show::show(value, self.form));
    }
}

/// `~/.flux_history`.
fn history() -> Option<PathBuf> {
    Some(PathBuf::from(std::env::var_os("HOME")?).join(".flux_history"))
}

/// What a person is shown of an answer.
fn value(answer: Answer) -> Value {
    let text = |bytes: Bytes| String::from_utf8_lossy(&bytes).into_owned();
    let all = |answers: Vec<Answer>| answers.into_iter().map(value).collect();
    match answer {
        Answer::Simple(word) => Value::Status(text(word)),
        Answer::Error(error) => Value::Error(text(error)),
        Answer::Integer(number) => Value::Integer(number),
        Answer::Bulk(bytes) => Value::Bulk(bytes),
        Answer::Null => Value::Nil,
        Answer::Array(answers) | Answer::Set(answers) | Answer::Push(answers) => {
            Value::Array(all(answers))
        }
        Answer::Map(pairs) => Value::Map(
            pairs
                .into_iter()
                .map(|(name, answer)| (value(name), value(answer)))
                .collect(),
        ),
        Answer::Double(number) => Value::Status(format!("(double) {number}")),
        Answer::Boolean(is_true) => Value::Status(format!("({is_true})")),
        Answer::BigNumber(digits) => Value::Status(text(digits)),
        Answer::Verbatim { text: bytes, .. } => Value::Text(text(bytes)),
    }
}

//! The prompt's editor: history that outlives the session, completion of names, hints of arguments.

use std::borrow::Cow;
use std::path::PathBuf;

use rustyline::completion::{Completer, Pair};
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::Validator;
use rustyline::{CompletionType, Config, Context, Editor, Helper};

use super::syntax;

/// Most lines kept in the history.
const HISTORY_LINES_MAX: usize = 1_000;

/// What a person did at the prompt.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Input {
    /// A line.
    Line(String),
    /// Ctrl-C: the line is forgotten.
    Forgotten,
    /// Ctrl-D.
    End,
}

/// A prompt on the terminal.
#[derive(Debug)]
pub(crate) struct Prompt {
    editor: Editor<Assistant, FileHistory>,
    history: Option<PathBuf>,
}

impl Prompt {
    /// Opens the terminal and reads the history.
    ///
    /// # Errors
    /// When the terminal cannot be had.
    pub(crate) fn open(history: Option<PathBuf>) -> Result<Self, ReadlineError> {
        let config = Config::builder()
            .max_history_size(HISTORY_LINES_MAX)?
            .history_ignore_dups(true)?
            .history_ignore_space(true)
            .completion_type(CompletionType::List)
            .build();
        let mut editor = Editor::with_config(config)?;
        editor.set_helper(Some(Assistant));
        if let Some(path) = &history {
            // The first session has none.
            drop(editor.load_history(path));
        }
        Ok(Self { editor, history })
    }

    /// Reads one line.
    ///
    /// # Errors
    /// When the terminal fails.
    pub(crate) fn read(&mut self, prompt: &str) -> Result<Input, ReadlineError> {
        match self.editor.readline(prompt) {
            Ok(line) => {
                if !is_secret(&line) {
                    self.editor.add_history_entry(line.as_str())?;
                    self.save();
                }
                Ok(Input::Line(line))
            }
            Err(ReadlineError::Interrupted) => Ok(Input::Forgotten),
            Err(ReadlineError::Eof) => Ok(Input::End),
            Err(error) => Err(error),
        }
    }

    /// Line by line, so that a killed session is remembered as well. A home that cannot be written
    /// costs the history and nothing else.
    fn save(&mut self) {
        if let Some(path) = &self.history {
            drop(self.editor.save_history(path));
        }
    }
}

/// Lines that hold a password are not remembered.
fn is_secret(line: &str) -> bool {
    let first = line.split_ascii_whitespace().next().unwrap_or_default();
    first.eq_ignore_ascii_case("auth") || first.eq_ignore_ascii_case("hello")
}

#[derive(Debug)]
struct Assistant;

impl Helper for Assistant {}
impl Validator for Assistant {}

impl Completer for Assistant {
    type Candidate = Pair;

    fn complete(
        &self,
        line: &str,
        position: usize,
        _context: &Context<'_>,
    ) -> Result<(usize, Vec<Pair>), ReadlineError> {
        let typed = line.get(..position).unwrap_or(line);
        if typed.contains(' ') {
            return Ok((position, Vec::new()));
        }
        let pairs = syntax::complete(typed)
            .into_iter()
            .map(|name| Pair {
                display: name.clone(),
                replacement: format!("{name} "),
            })
            .collect();
        Ok((0, pairs))
    }
}

impl Hinter for Assistant {
    type Hint = String;

    fn hint(&self, line: &str, position: usize, _context: &Context<'_>) -> Option<String> {
        if position < line.len() {
            return None;
        }
        syntax::hint(line)
    }
}

impl Highlighter for Assistant {
    fn highlight_hint<'h>(&self, hint: &'h str) -> Cow<'h, str> {
        Cow::Owned(format!("\x1b[90m{hint}\x1b[0m"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_stay_out_of_the_history() {
        assert!(is_secret("auth secret") && is_secret("  HELLO 3 AUTH default secret"));
        assert!(!is_secret("set author x"));
    }
}

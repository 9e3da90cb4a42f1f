//! The configuration file: TOML, read so that every mistake comes with its line and none hides another.

use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{Form, KEYS, Key, Origin, Resolved};

/// Sections besides the top of the file.
const SECTIONS: &[&str] = &["node", "gateway"];
/// Tables under `[gateway]` that the gateway reads by itself.
const GATEWAY_TABLES: &[&str] = &["routes", "upstreams", "descriptors"];

/// Lays a file over `resolved`.
pub(super) fn read(path: &Path, text: &str, resolved: &mut Resolved, mistakes: &mut Vec<String>) {
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let line = error.span().map_or(1, |span| line_of(text, span.start));
        let message = error.message().lines().collect::<Vec<_>>().join(", ");
        mistakes.push(format!("{}:{line}: {message}", path.display()));
    }
    if !errors.is_empty() {
        return;
    }
    let mut reader = Reader {
        path,
        text,
        resolved,
        mistakes,
    };
    let mut entries: Vec<_> = document.get_ref().iter().collect();
    entries.sort_by_key(|(name, _)| name.span().start);
    for (name, value) in entries {
        reader.entry("", name, value);
    }
}

struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
    resolved: &'a mut Resolved,
    mistakes: &'a mut Vec<String>,
}

impl Reader<'_> {
    fn entry<'i>(
        &mut self,
        section: &str,
        name: &Spanned<std::borrow::Cow<'i, str>>,
        value: &Spanned<DeValue<'i>>,
    ) {
        let word: &str = name.get_ref();
        if section.is_empty() && SECTIONS.contains(&word) {
            match value.get_ref() {
                DeValue::Table(table) => {
                    let mut entries: Vec<_> = table.iter().collect();
                    entries.sort_by_key(|(name, _)| name.span().start);
                    for (name, value) in entries {
                        self.entry(word, name, value);
                    }
                }
                _ => self.mistake(name, &format!("{word} is a section: write [{word}]")),
            }
            return;
        }
        let full = if section.is_empty() {
            word.to_owned()
        } else {
            format!("{section}.{word}")
        };
        if section == "gateway" && GATEWAY_TABLES.contains(&word) {
            self.gateway_table(word, name, value);
            return;
        }
        let Some(key) = KEYS.iter().find(|key| key.name == full) else {
            let nearest = nearest(&full);
            self.mistake(name, &format!("{full} is not a setting{nearest}"));
            return;
        };
        let origin = Origin::File(
            self.path.to_path_buf(),
            line_of(self.text, name.span().start),
        );
        let outcome = plain(key, value.get_ref())
            .and_then(|text| (key.set)(&mut self.resolved.settings, &text));
        match outcome {
            Ok(()) => {
                self.resolved.origins.insert(key.name, origin);
            }
            Err(problem) => self.mistakes.push(format!("{origin}: {full}: {problem}")),
        }
    }

    /// Keeps a table for the gateway, whose own types judge it.
    fn gateway_table<'i>(
        &mut self,
        word: &str,
        name: &Spanned<std::borrow::Cow<'i, str>>,
        value: &Spanned<DeValue<'i>>,
    ) {
        let span = value.span();
        let deserializer = toml::de::ValueDeserializer::from(value.clone());
        match <toml::Value as serde::Deserialize>::deserialize(deserializer) {
            Ok(value) => {
                self.resolved
                    .settings
                    .gateway_tables
                    .insert(word.to_owned(), value);
            }
            Err(error) => {
                let at = error.span().map_or(span.start, |span| span.start);
                let line = line_of(self.text, at);
                let message = error.message();
                self.mistakes.push(format!(
                    "{}:{line}: gateway.{}: {message}",
                    self.path.display(),
                    name.get_ref()
                ));
            }
        }
    }

    fn mistake(&mut self, name: &Spanned<std::borrow::Cow<'_, str>>, problem: &str) {
        let line = line_of(self.text, name.span().start);
        self.mistakes
            .push(format!("{}:{line}: {problem}", self.path.display()));
    }
}

/// The value as the text that a flag would bring, if its type fits.
fn plain(key: &Key, value: &DeValue<'_>) -> Result<String, String> {
    match (key.form, value) {
        (Form::Text, DeValue::String(text)) => Ok(text.to_string()),
        (Form::Number, DeValue::Integer(number)) if number.radix() == 10 => {
            Ok(number.as_str().to_owned())
        }
        (Form::Switch, DeValue::Boolean(on)) => Ok(on.to_string()),
        (form, _) => {
            let expected = match form {
                Form::Text => "a string in quotes",
                Form::Number => "a decimal number without quotes",
                Form::Switch => "true or false",
            };
            Err(format!("must be {expected}"))
        }
    }
}

/// Line number of a byte, from 1.
fn line_of(text: &str, offset: usize) -> usize {
    text.bytes()
        .take(offset)
        .filter(|byte| *byte == b'\n')
        .count()
        + 1
}

/// `; did you mean …?`, where some setting's name is near.
fn nearest(name: &str) -> String {
    let last = name.rsplit('.').next().unwrap_or(name);
    KEYS.iter()
        .map(|key| {
            let own = key.name.rsplit('.').next().unwrap_or(key.name);
            (distance(last, own), key.name)
        })
        .min()
        .filter(|(distance, _)| *distance <= 2)
        .map_or_else(String::new, |(_, name)| format!("; did you mean {name}?"))
}

/// Edits (insert, delete, replace) from one word to the other.
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (index, from) in from.chars().enumerate() {
        let mut above_left = index;
        let mut left = index + 1;
        if let Some(first) = row.first_mut() {
            *first = left;
        }
        for (cell, to) in row.iter_mut().skip(1).zip(&to) {
            let replaced = above_left + usize::from(from != *to);
            above_left = *cell;
            left = replaced.min(left + 1).min(*cell + 1);
            *cell = left;
        }
    }
    row.last().copied().unwrap_or(0)
}

//! The configuration file: TOML, read so that every mistake comes with its line and none hides another.

use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{Form, KEYS, Key, Origin, Resolved, gateway};

/// Sections besides the top of the file.
const SECTIONS: &[&str] = &[
    "node",
    "cdc",
    "cdc.rabbitmq",
    "registry",
    "gateway",
    "telemetry",
];

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
        let full = if section.is_empty() {
            word.to_owned()
        } else {
            format!("{section}.{word}")
        };
        if SECTIONS.contains(&full.as_str()) {
            let Some(table) = value.get_ref().as_table() else {
                self.mistake(name, &format!("{full} is a section: write [{full}]"));
                return;
            };
            let mut entries: Vec<_> = table.iter().collect();
            entries.sort_by_key(|(name, _)| name.span().start);
            for (name, value) in entries {
                self.entry(&full, name, value);
            }
            return;
        }
        let Some(key) = KEYS.iter().find(|key| key.name == full) else {
            if section == "gateway" && gateway::is_key(word) {
                self.gateway_key(word, name.span().start, value);
                return;
            }
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

    /// A key that the gateway's own types judge; each element of an array of tables by itself, so
    /// that the mistakes of all are seen.
    fn gateway_key(&mut self, word: &str, start: usize, value: &Spanned<DeValue<'_>>) {
        let lines = &mut self.resolved.gateway_lines;
        lines.insert(word.to_owned(), line_of(self.text, start));
        let mut parts = vec![value.clone()];
        let mut are_elements = false;
        if let DeValue::Array(elements) = value.get_ref()
            && elements.iter().all(|element| element.get_ref().is_table())
        {
            parts = elements.iter().cloned().collect();
            are_elements = true;
            for (index, element) in parts.iter().enumerate() {
                let key = format!("{word}[{index}]");
                for (name, _) in element.get_ref().as_table().into_iter().flatten() {
                    let line = line_of(self.text, name.span().start);
                    lines.insert(format!("{key}.{}", name.get_ref()), line);
                }
                lines.insert(key, line_of(self.text, element.span().start));
            }
        }
        let mut is_sound = true;
        for part in &parts {
            if let Err((problem, at)) = gateway::check(word, part, are_elements) {
                let line = line_of(self.text, at.unwrap_or(start));
                let path = self.path.display();
                self.mistakes
                    .push(format!("{path}:{line}: gateway.{word}: {problem}"));
                is_sound = false;
            }
        }
        if is_sound && let Ok(value) = gateway::plain(value.clone()) {
            self.resolved
                .settings
                .gateway_tables
                .insert(word.to_owned(), value);
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
        (Form::Switch | Form::Truth, DeValue::Boolean(on)) => Ok(on.to_string()),
        (form, _) => {
            let expected = match form {
                Form::Text => "a string in quotes",
                Form::Number => "a decimal number without quotes",
                Form::Switch | Form::Truth => "true or false",
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
    let of_gateway = gateway::keys().map(|key| format!("gateway.{key}"));
    KEYS.iter()
        .map(|key| key.name.to_owned())
        .chain(of_gateway)
        .map(|full| {
            let edits = distance(last, full.rsplit('.').next().unwrap_or(&full));
            // Of two that are as near, the one of the same section was meant.
            (edits, section(name) != section(&full), full)
        })
        .min()
        .filter(|(edits, ..)| *edits <= 2)
        .map_or_else(String::new, |(.., name)| format!("; did you mean {name}?"))
}

fn section(name: &str) -> &str {
    name.rsplit_once('.').map_or("", |(section, _)| section)
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

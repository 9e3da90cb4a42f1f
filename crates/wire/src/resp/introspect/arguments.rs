//! The arguments of a command as COMMAND DOCS lists them, read from the notation of its usage in
//! the table: `key [NX | XX] [EX seconds | KEEPTTL]`. Interactive clients make their hints of them.
//!
//! Words in capitals are tokens, others are values; `[…]` may be left out, `a | b` are choices,
//! `<…>` holds choices together, and `[x ...]` behind `x` says that there may be more of it. The
//! notation comes from the table alone, never from a peer.

use super::super::encode::Writer;

/// One argument, or several that belong together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Argument {
    /// The word that announces it.
    token: Option<&'static str>,
    shape: Shape,
    is_optional: bool,
    is_multiple: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Shape {
    /// Something to be filled in, by its name.
    Value(&'static str),
    /// The token alone.
    Token,
    /// One of these.
    OneOf(Vec<Argument>),
    /// All of these, in this order.
    Block(Vec<Argument>),
}

impl Argument {
    const fn new(shape: Shape) -> Self {
        Self {
            token: None,
            shape,
            is_optional: false,
            is_multiple: false,
        }
    }

    /// Several as one.
    fn group(mut arguments: Vec<Self>) -> Self {
        match (arguments.len(), arguments.pop()) {
            (1, Some(only)) => only,
            (_, last) => {
                arguments.extend(last);
                Self::new(Shape::Block(arguments))
            }
        }
    }

    /// What it is called: its own name, or those of its parts.
    fn name(&self) -> String {
        let join = |parts: &[Self], between: &str| {
            let names: Vec<_> = parts.iter().map(Self::name).collect();
            names.join(between)
        };
        match (&self.shape, self.token) {
            (Shape::Value(name), _) => (*name).to_owned(),
            (Shape::Token | Shape::Block(_), Some(token)) => token.to_ascii_lowercase(),
            (Shape::OneOf(choices), _) => join(choices, "-or-"),
            (Shape::Block(parts), None) => join(parts, "-"),
            (Shape::Token, None) => String::new(),
        }
    }

    const fn kind(&self) -> &'static str {
        match &self.shape {
            Shape::Token => "pure-token",
            Shape::OneOf(_) => "oneof",
            Shape::Block(_) => "block",
            Shape::Value(name) => kind_of(name),
        }
    }
}

/// What may be filled in for a value of that name.
const fn kind_of(name: &str) -> &'static str {
    match name.as_bytes() {
        b"key" | b"newkey" | b"source" | b"destination" => "key",
        b"unix-seconds" | b"unix-milliseconds" => "unix-time",
        b"pattern" => "pattern",
        b"seconds" | b"milliseconds" | b"offset" | b"start" | b"end" | b"count" | b"cursor"
        | b"index" | b"protover" | b"timeout" | b"numreplicas" | b"client-id" | b"increment"
        | b"decrement" | b"0" => "integer",
        _ => "string",
    }
}

/// Reads the notation.
pub(super) fn parse(usage: &'static str) -> Vec<Argument> {
    let mut words = Words { rest: usage };
    sequence_or_choice(&mut words)
}

/// The notation cut into words and brackets.
struct Words {
    rest: &'static str,
}

impl Words {
    fn peek(&self) -> Option<&'static str> {
        let rest = self.rest.trim_start();
        let first = rest.chars().next()?;
        let is_mark = |c: char| "[]<>|".contains(c);
        let len = if is_mark(first) {
            first.len_utf8()
        } else {
            rest.find(|c: char| c.is_whitespace() || is_mark(c))
                .unwrap_or(rest.len())
        };
        rest.get(..len)
    }

    fn take(&mut self, word: &str) {
        let rest = self.rest.trim_start();
        self.rest = rest.strip_prefix(word).unwrap_or_default();
    }
}

/// Everything up to a closing bracket or the end.
fn sequence_or_choice(words: &mut Words) -> Vec<Argument> {
    let mut choices = vec![Vec::new()];
    while let Some(word) = words.peek() {
        if word == "]" || word == ">" {
            break;
        }
        words.take(word);
        let Some(sequence) = choices.last_mut() else {
            break;
        };
        match word {
            "|" => choices.push(Vec::new()),
            "[" => optional(words, sequence),
            "<" => {
                sequence.push(Argument::group(sequence_or_choice(words)));
                words.take(">");
            }
            "..." => {}
            _ if is_token(word) => sequence.push(announced(word, words)),
            _ => sequence.push(Argument::new(Shape::Value(word))),
        }
    }
    if choices.len() == 1 {
        return choices.pop().unwrap_or_default();
    }
    let choices = choices.into_iter().map(Argument::group).collect();
    vec![Argument::new(Shape::OneOf(choices))]
}

fn is_token(word: &str) -> bool {
    word.bytes().any(|byte| byte.is_ascii_uppercase())
}

/// What a token announces: the values behind it.
fn announced(token: &'static str, words: &mut Words) -> Argument {
    let mut parts = Vec::new();
    while let Some(word) = words.peek() {
        if word == "<" {
            words.take(word);
            parts.push(Argument::group(sequence_or_choice(words)));
            words.take(">");
        } else if "[]>|".contains(word) || is_token(word) {
            break;
        } else {
            words.take(word);
            parts.push(Argument::new(Shape::Value(word)));
        }
    }
    let mut argument = if parts.is_empty() {
        Argument::new(Shape::Token)
    } else {
        Argument::group(parts)
    };
    argument.token = Some(token);
    argument
}

/// What is in `[…]`: more of what came before, or something that may be left out.
fn optional(words: &mut Words, sequence: &mut Vec<Argument>) {
    let before = words.rest;
    let inner = sequence_or_choice(words);
    let len = before.len().saturating_sub(words.rest.len());
    let repeats = before
        .get(..len)
        .is_some_and(|text| text.trim_end().ends_with("..."));
    words.take("]");
    let at = sequence.len().saturating_sub(inner.len());
    let is_more = repeats
        && sequence.get(at..).is_some_and(|last| {
            last.iter()
                .map(Argument::name)
                .eq(inner.iter().map(Argument::name))
        });
    let mut argument = if is_more {
        Argument::group(sequence.split_off(at))
    } else {
        Argument::group(inner)
    };
    argument.is_multiple |= repeats;
    argument.is_optional |= !is_more;
    sequence.push(argument);
}

/// Writes arguments as COMMAND DOCS has them.
pub(super) fn write(arguments: &[Argument], writer: &mut Writer<'_>) {
    write_from(arguments, &mut 0, writer);
}

/// `keys` counts the arguments that are keys: each belongs to the key specification of that index.
fn write_from(arguments: &[Argument], keys: &mut i64, writer: &mut Writer<'_>) {
    writer.array(arguments.len());
    for argument in arguments {
        let is_key = argument.kind() == "key";
        let flags: Vec<&str> = [
            (argument.is_optional, "optional"),
            (argument.is_multiple, "multiple"),
        ]
        .into_iter()
        .filter_map(|(is_set, word)| is_set.then_some(word))
        .collect();
        let parts = match &argument.shape {
            Shape::OneOf(parts) | Shape::Block(parts) => Some(parts),
            Shape::Value(_) | Shape::Token => None,
        };
        let name = argument.name();
        writer.map(
            2 + usize::from(parts.is_none())
                + usize::from(is_key)
                + usize::from(argument.token.is_some())
                + usize::from(!flags.is_empty())
                + usize::from(parts.is_some()),
        );
        field("name", &name, writer);
        field("type", argument.kind(), writer);
        if parts.is_none() {
            field("display_text", &name, writer);
        }
        if is_key {
            writer.bulk(b"key_spec_index");
            writer.integer(*keys);
            *keys += 1;
        }
        if let Some(token) = argument.token {
            field("token", token, writer);
        }
        if !flags.is_empty() {
            writer.bulk(b"flags");
            writer.set(flags.len());
            flags.iter().for_each(|flag| writer.simple(flag));
        }
        if let Some(parts) = parts {
            writer.bulk(b"arguments");
            write_from(parts, keys, writer);
        }
    }
}

fn field(name: &str, value: &str, writer: &mut Writer<'_>) {
    writer.bulk(name.as_bytes());
    writer.bulk(value.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::super::super::table;
    use super::*;

    /// The notation of arguments, from which nothing may have been lost.
    fn shown(arguments: &[Argument]) -> String {
        let all: Vec<_> = arguments
            .iter()
            .map(|argument| one(argument, true))
            .collect();
        all.join(" ")
    }

    fn one(argument: &Argument, is_alone: bool) -> String {
        let bare = match &argument.shape {
            Shape::Value(name) => (*name).to_owned(),
            Shape::Token => String::new(),
            Shape::Block(parts) => shown(parts),
            Shape::OneOf(choices) => {
                let choices: Vec<_> = choices.iter().map(|choice| one(choice, true)).collect();
                choices.join(" | ")
            }
        };
        let is_choice = matches!(argument.shape, Shape::OneOf(_));
        let bare = match argument.token {
            Some(token) if bare.is_empty() => token.to_owned(),
            Some(token) if is_choice => format!("{token} <{bare}>"),
            Some(token) => format!("{token} {bare}"),
            None if is_choice && !is_alone && !argument.is_optional => format!("<{bare}>"),
            None => bare,
        };
        let again = bare
            .strip_prefix(argument.token.unwrap_or_default())
            .unwrap_or_default()
            .trim_start();
        match (argument.is_optional, argument.is_multiple) {
            (false, false) => bare,
            (true, false) => format!("[{bare}]"),
            (false, true) => format!("{bare} [{again} ...]"),
            (true, true) if argument.token.is_some() => format!("[{bare} [{again} ...]]"),
            // `[x [x ...]]` and `[x ...]` say the same.
            (true, true) => format!("[{bare} ...]"),
        }
    }

    #[test]
    fn nothing_of_any_usage_is_lost() {
        let all = table::commands().flat_map(|spec| std::iter::once(spec).chain(spec.subcommands));
        for spec in all {
            let usage = shown(&parse(spec.usage));
            let expected = spec
                .usage
                .replace("[section [section ...]]", "[section ...]")
                .replace("[event [event ...]]", "[event ...]")
                .replace("[command-name [command-name ...]]", "[command-name ...]");
            assert_eq!(usage, expected, "{}", spec.full_name());
        }
    }

    #[test]
    fn kinds_tokens_and_flags_are_told() {
        let arguments = parse("key value [NX | IFEQ value] [GET] [EX seconds | KEEPTTL]");
        let [key, value, condition, get, expiry] = arguments.as_slice() else {
            panic!("{arguments:?}");
        };
        assert_eq!((key.kind(), value.kind()), ("key", "string"));
        assert_eq!((condition.kind(), condition.is_optional), ("oneof", true));
        assert_eq!(
            (get.kind(), get.token, get.is_optional),
            ("pure-token", Some("GET"), true)
        );
        let Shape::OneOf(choices) = &expiry.shape else {
            panic!("{expiry:?}");
        };
        let choices: Vec<_> = choices
            .iter()
            .map(|c| (c.name(), c.kind(), c.token))
            .collect();
        assert_eq!(
            choices,
            [
                ("seconds".to_owned(), "integer", Some("EX")),
                ("keepttl".to_owned(), "pure-token", Some("KEEPTTL")),
            ]
        );
        let arguments = parse("key value [key value ...]");
        assert_eq!(arguments.len(), 1, "{arguments:?}");
        assert!(
            arguments
                .iter()
                .all(|a| a.is_multiple && a.kind() == "block")
        );
    }
}

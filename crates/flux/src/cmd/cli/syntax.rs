//! How commands are written: what the prompt completes and hints at, from the table of commands
//! that the node itself uses.

use flux_wire::resp::{Spec, table};

/// Names that begin with `prefix`, whatever its case, in the case in which it is typed; sorted.
pub(crate) fn complete(prefix: &str) -> Vec<String> {
    if prefix.is_empty() {
        return Vec::new();
    }
    let lower = prefix.to_ascii_lowercase();
    let is_lower = prefix.chars().any(|c| c.is_ascii_lowercase());
    let mut names: Vec<String> = table::commands()
        .filter(|spec| spec.name.starts_with(&lower))
        .map(|spec| {
            if is_lower {
                spec.name.to_owned()
            } else {
                spec.name.to_ascii_uppercase()
            }
        })
        .collect();
    names.sort();
    names
}

/// What is still to be written after `line`: the arguments that have not been begun.
pub(crate) fn hint(line: &str) -> Option<String> {
    let mut words = line.split_ascii_whitespace();
    let mut spec = table::find(words.next()?.as_bytes())?;
    let mut begun: Vec<&str> = words.collect();
    if let Some(name) = begun.first()
        && let Some(inner) = table::find_in(spec.subcommands, name.as_bytes())
    {
        spec = inner;
        begun.remove(0);
    }
    let usage = usage(spec);
    let rest = skip(&usage, begun.len());
    if rest.is_empty() {
        return None;
    }
    let space = if line.ends_with(' ') { "" } else { " " };
    Some(format!("{space}{rest}"))
}

/// The arguments of a command; of one with subcommands, their names.
fn usage(spec: &Spec) -> String {
    if !spec.subcommands.is_empty() {
        let names: Vec<String> = spec
            .subcommands
            .iter()
            .map(|inner| inner.name.to_ascii_uppercase())
            .collect();
        return names.join("|");
    }
    spec.usage.to_owned()
}

/// Every command with its arguments and what it does, two lines for each.
pub(crate) fn help() -> String {
    let mut lines: Vec<String> = table::commands()
        .map(|spec| {
            let name = spec.name.to_ascii_uppercase();
            format!("{name} {}\n    {}\n", usage(spec), spec.summary)
        })
        .collect();
    lines.sort();
    lines.concat()
}

/// `arguments` without its first `count` plain words; what is in brackets is optional and stays.
fn skip(arguments: &str, count: usize) -> &str {
    let mut rest = arguments;
    for _ in 0..count {
        if rest.starts_with('[') {
            return rest;
        }
        rest = rest.split_once(' ').map_or("", |(_, after)| after);
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_complete_in_the_case_in_which_they_are_typed() {
        assert_eq!(complete("PEXPIRET"), ["PEXPIRETIME"]);
        assert_eq!(complete("getr"), ["getrange"]);
        assert_eq!(complete("ms"), ["mset", "msetnx"]);
        assert_eq!(complete("").len() + complete("nonsense").len(), 0);
    }

    #[test]
    fn the_hint_is_what_is_still_to_be_written() {
        assert_eq!(hint("getrange").as_deref(), Some(" key start end"));
        assert_eq!(hint("getrange ").as_deref(), Some("key start end"));
        assert_eq!(hint("GETRANGE k").as_deref(), Some(" start end"));
        assert_eq!(hint("GETRANGE k 0 ").as_deref(), Some("end"));
        assert_eq!(hint("getrange k 0 1"), None);
        assert_eq!(hint("mget a b c").as_deref(), Some(" [key ...]"));
        assert!(hint("set k v ").is_some_and(|hint| hint.starts_with("[NX | XX")));
        assert!(hint("client ").is_some_and(|hint| hint.contains("SETNAME")));
        assert_eq!(
            (hint("nonsense "), hint(""), hint("dbsize")),
            (None, None, None)
        );
    }

    #[test]
    fn help_names_every_command() {
        let help = help();
        assert!(table::commands().all(|spec| help.contains(&spec.name.to_ascii_uppercase())));
    }
}

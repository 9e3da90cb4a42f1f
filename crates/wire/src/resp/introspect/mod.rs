//! COMMAND and its subcommands, answered from the table alone.

use bytes::Bytes;
use flux_types::{Error, ErrorCode};

mod arguments;
mod key_use;

use super::encode::Writer;
use super::error;
use super::spec::{Flags, Group, SessionCommand, Spec};
use super::table;
use key_use::KeyUse;

/// Writes the answer to one of `Command…`, given its arguments. Answers `false`, and writes
/// nothing, for any other command.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "asks which of a few, whatever else there is"
)]
pub fn answer(command: SessionCommand, arguments: &[Bytes], writer: &mut Writer<'_>) -> bool {
    match command {
        SessionCommand::Command => {
            writer.array(table::commands().count());
            table::commands().for_each(|spec| describe(spec, writer));
        }
        SessionCommand::CommandCount => writer.integer(count()),
        SessionCommand::CommandInfo => info(arguments, writer),
        SessionCommand::CommandDocs => docs(arguments, writer),
        SessionCommand::CommandList => list(arguments, writer),
        SessionCommand::CommandGetKeys => get_keys(arguments, false, writer),
        SessionCommand::CommandGetKeysAndFlags => get_keys(arguments, true, writer),
        SessionCommand::CommandHelp => help("command", writer),
        _ => return false,
    }
    true
}

/// Writes the answer to `HELP` of a container: its subcommands with what they do. Nothing is
/// listed for a name that is no container.
pub fn help(container: &str, writer: &mut Writer<'_>) {
    let subcommands = table::find(container.as_bytes()).map_or(&[][..], |spec| spec.subcommands);
    writer.array(1 + 2 * subcommands.len());
    writer.simple(&format!(
        "{} <subcommand> [<arg> ...]. Subcommands are:",
        container.to_ascii_uppercase()
    ));
    for spec in subcommands {
        let line = format!("{} {}", spec.name.to_ascii_uppercase(), spec.usage);
        writer.simple(line.trim_end());
        writer.simple(&format!("    {}", spec.summary));
    }
}

/// Where the keys of a command are among its arguments (the name first), for authorization and
/// COMMAND GETKEYS. A subcommand is found in its container.
pub fn key_positions(argv: &[Bytes]) -> Option<impl Iterator<Item = usize>> {
    let spec = resolve(argv)?;
    Some(spec.keys.positions(argv.len()))
}

/// The row that `argv` names, be it of a subcommand.
fn resolve(argv: &[Bytes]) -> Option<&'static Spec> {
    let spec = table::find(argv.first()?)?;
    let subcommand = argv
        .get(1)
        .and_then(|name| table::find_in(spec.subcommands, name));
    Some(subcommand.unwrap_or(spec))
}

fn count() -> i64 {
    i64::try_from(table::commands().count()).unwrap_or(i64::MAX)
}

/// One command as ten elements: name, arity, flags, first key, last key, step, categories, tips,
/// key specifications, subcommands.
fn describe(spec: &Spec, writer: &mut Writer<'_>) {
    writer.array(10);
    writer.bulk(spec.full_name().to_string().as_bytes());
    writer.integer(spec.arity);
    writer.set(spec.flags.names().count());
    spec.flags.names().for_each(|name| writer.simple(name));
    writer.integer(spec.keys.first);
    writer.integer(spec.keys.last);
    writer.integer(spec.keys.step);
    let categories = categories(spec);
    writer.set(categories.len());
    for category in categories {
        writer.simple(&format!("@{category}"));
    }
    let tips = tips(spec);
    writer.set(tips.len());
    tips.iter().for_each(|tip| writer.bulk(tip.as_bytes()));
    describe_keys(spec, writer);
    writer.set(spec.subcommands.len());
    for subcommand in spec.subcommands {
        describe(subcommand, writer);
    }
}

/// The key specifications: each begins at an index, and ranges to its last key by steps.
fn describe_keys(spec: &Spec, writer: &mut Writer<'_>) {
    let uses = key_use::key_uses(spec);
    writer.set(uses.len());
    for KeyUse { keys, flags } in uses {
        writer.map(3);
        writer.bulk(b"flags");
        writer.set(flags.len());
        flags.iter().for_each(|flag| writer.simple(flag));
        writer.bulk(b"begin_search");
        writer.map(2);
        writer.bulk(b"type");
        writer.bulk(b"index");
        writer.bulk(b"spec");
        writer.map(1);
        writer.bulk(b"index");
        writer.integer(keys.first);
        writer.bulk(b"find_keys");
        writer.map(2);
        writer.bulk(b"type");
        writer.bulk(b"range");
        writer.bulk(b"spec");
        writer.map(3);
        writer.bulk(b"lastkey");
        // Counted from the first key, except where it counts from the end.
        writer.integer(if keys.last < 0 {
            keys.last
        } else {
            keys.last - keys.first
        });
        writer.bulk(b"keystep");
        writer.integer(keys.step);
        writer.bulk(b"limit");
        writer.integer(0);
    }
}

/// What a proxy may do with a command, and what it may expect of its reply.
fn tips(spec: &Spec) -> &'static [&'static str] {
    match (spec.container, spec.name) {
        (None, "mget") => &["request_policy:multi_shard"],
        (None, "mset") => &[
            "request_policy:multi_shard",
            "response_policy:all_succeeded",
        ],
        (None, "del" | "unlink" | "exists" | "touch") => {
            &["request_policy:multi_shard", "response_policy:agg_sum"]
        }
        (None, "ttl" | "pttl" | "time") => &["nondeterministic_output"],
        _ => &[],
    }
}

/// The categories a command is in, which follow from its flags and chapter.
fn categories(spec: &Spec) -> Vec<&'static str> {
    let mut names = Vec::new();
    if spec.flags.contains(Flags::WRITE) {
        names.push("write");
    }
    if spec.flags.contains(Flags::READONLY) {
        names.push("read");
    }
    match spec.group {
        Group::String => names.push("string"),
        Group::Generic => names.push("keyspace"),
        Group::Transactions => names.push("transaction"),
        Group::Connection => names.push("connection"),
        Group::Server | Group::Cluster => {}
    }
    if matches!(spec.name, "dbsize" | "flushall" | "flushdb") {
        names.push("keyspace");
    }
    if spec.flags.contains(Flags::ADMIN) {
        names.push("admin");
        names.push("dangerous");
    } else if matches!(spec.name, "keys" | "flushall" | "flushdb" | "info") {
        names.push("dangerous");
    }
    names.push(if spec.flags.contains(Flags::FAST) {
        "fast"
    } else {
        "slow"
    });
    names
}

/// A command or `container|subcommand` by name.
fn find_full(name: &[u8]) -> Option<&'static Spec> {
    match name.iter().position(|&byte| byte == b'|') {
        None => table::find(name),
        Some(bar) => {
            let (container, subcommand) = name.split_at_checked(bar)?;
            let spec = table::find(container)?;
            table::find_in(spec.subcommands, subcommand.get(1..)?)
        }
    }
}

fn info(names: &[Bytes], writer: &mut Writer<'_>) {
    if names.is_empty() {
        answer(SessionCommand::Command, &[], writer);
        return;
    }
    writer.array(names.len());
    for name in names {
        match find_full(name) {
            Some(spec) => describe(spec, writer),
            None => writer.nil(),
        }
    }
}

/// Documents the named commands, or all; unknown names are left out.
fn docs(names: &[Bytes], writer: &mut Writer<'_>) {
    let specs: Vec<&Spec> = if names.is_empty() {
        table::commands().collect()
    } else {
        names.iter().filter_map(|name| find_full(name)).collect()
    };
    writer.map(specs.len());
    for spec in specs {
        document(spec, writer);
    }
}

fn document(spec: &Spec, writer: &mut Writer<'_>) {
    writer.bulk(spec.full_name().to_string().as_bytes());
    let has_subcommands = !spec.subcommands.is_empty();
    // A container has no arguments but those of its subcommands.
    let arguments = if has_subcommands {
        Vec::new()
    } else {
        arguments::parse(spec.usage)
    };
    writer.map(4 + usize::from(has_subcommands) + usize::from(!arguments.is_empty()));
    for (name, text) in [
        ("summary", spec.summary),
        ("since", spec.since),
        ("group", spec.group.name()),
        ("complexity", spec.complexity),
    ] {
        writer.bulk(name.as_bytes());
        writer.bulk(text.as_bytes());
    }
    if !arguments.is_empty() {
        writer.bulk(b"arguments");
        arguments::write(&arguments, writer);
    }
    if has_subcommands {
        writer.bulk(b"subcommands");
        writer.map(spec.subcommands.len());
        for subcommand in spec.subcommands {
            document(subcommand, writer);
        }
    }
}

fn list(arguments: &[Bytes], writer: &mut Writer<'_>) {
    let specs = table::commands().flat_map(|spec| std::iter::once(spec).chain(spec.subcommands));
    let all: Vec<&Spec> = match arguments {
        [] => table::commands().collect(),
        [filter, kind, argument] if is(filter, "FILTERBY") => {
            if is(kind, "MODULE") {
                Vec::new()
            } else if is(kind, "ACLCAT") {
                let wanted = String::from_utf8_lossy(argument).to_ascii_lowercase();
                specs
                    .filter(|spec| categories(spec).contains(&wanted.as_str()))
                    .collect()
            } else if is(kind, "PATTERN") {
                specs
                    .filter(|spec| {
                        matches_pattern(argument, spec.full_name().to_string().as_bytes())
                    })
                    .collect()
            } else {
                return writer.error(&error::syntax());
            }
        }
        _ => return writer.error(&error::syntax()),
    };
    writer.array(all.len());
    for spec in all {
        writer.bulk(spec.full_name().to_string().as_bytes());
    }
}

/// Whether `name` has the form of `pattern`, in which `*` is any text and `?` any byte. There
/// is no recursion: a `*` never goes back further than the last one.
fn matches_pattern(pattern: &[u8], name: &[u8]) -> bool {
    let (mut at, mut next) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while let Some(byte) = name.get(at) {
        match pattern.get(next) {
            Some(b'*') => {
                star = Some((at, next + 1));
                next += 1;
            }
            Some(wanted) if *wanted == b'?' || wanted.eq_ignore_ascii_case(byte) => {
                at += 1;
                next += 1;
            }
            _ => {
                let Some((start, after)) = star else {
                    return false;
                };
                star = Some((start + 1, after));
                at = start + 1;
                next = after;
            }
        }
    }
    pattern
        .get(next..)
        .unwrap_or_default()
        .iter()
        .all(|&byte| byte == b'*')
}

fn get_keys(argv: &[Bytes], with_flags: bool, writer: &mut Writer<'_>) {
    let refuse = |writer: &mut Writer<'_>, message: &'static str| {
        writer.error(&Error::not_done(ErrorCode::Invalid, message));
    };
    let Some(spec) = resolve(argv) else {
        return refuse(writer, "Invalid command specified");
    };
    if !spec.accepts(argv.len()) {
        return refuse(writer, "Invalid number of arguments specified for command");
    }
    let keys: Vec<(&Bytes, KeyUse)> = key_use::key_uses_of(spec, argv)
        .into_iter()
        .flat_map(|each| {
            let positions = each.keys.positions(argv.len());
            positions.filter_map(move |at| Some((argv.get(at)?, each)))
        })
        .collect();
    if keys.is_empty() {
        return refuse(writer, "The command has no key arguments");
    }
    writer.array(keys.len());
    for (key, KeyUse { flags, .. }) in keys {
        if with_flags {
            writer.array(2);
            writer.bulk(key);
            writer.set(flags.len());
            flags.iter().for_each(|flag| writer.simple(flag));
        } else {
            writer.bulk(key);
        }
    }
}

fn is(argument: &[u8], word: &str) -> bool {
    argument.eq_ignore_ascii_case(word.as_bytes())
}

#[cfg(test)]
mod tests;

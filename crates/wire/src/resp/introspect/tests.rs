//! What COMMAND answers.

use bytes::BytesMut;
use expect_test::{Expect, expect};

use super::super::encode::Version;
use super::super::value::{Value, ValueDecoder};
use super::*;

fn ask(command: SessionCommand, arguments: &[&str]) -> Value {
    let arguments: Vec<Bytes> = arguments
        .iter()
        .map(|argument| Bytes::copy_from_slice(argument.as_bytes()))
        .collect();
    let mut out = BytesMut::new();
    let answered = answer(
        command,
        &arguments,
        &mut Writer::new(&mut out, Version::Resp3),
    );
    assert!(answered);
    let value = ValueDecoder::new(4096).next(&mut out);
    assert!(out.is_empty(), "one reply, and all of it");
    value.expect("it is RESP").expect("it is whole")
}

fn check(command: SessionCommand, arguments: &[&str], expected: &Expect) {
    expected.assert_eq(&format!("{:?}", ask(command, arguments)));
}

#[test]
fn every_command_has_ten_elements() {
    let Value::Array(rows) = ask(SessionCommand::Command, &[]) else {
        panic!("COMMAND answers an array");
    };
    for row in &rows {
        let Value::Array(elements) = row else {
            panic!("a command is an array");
        };
        assert_eq!(elements.len(), 10);
    }
    let count = ask(SessionCommand::CommandCount, &[]);
    assert_eq!(count, Value::Integer(i64::try_from(rows.len()).unwrap()));
}

#[test]
fn commands_are_described_by_name() {
    check(
        SessionCommand::CommandInfo,
        &["get", "nosuch", "client|id"],
        &expect![[
            r#"Array([Array([Bulk(b"get"), Integer(2), Set([Simple(b"readonly"), Simple(b"fast")]), Integer(1), Integer(1), Integer(1), Set([Simple(b"@read"), Simple(b"@string"), Simple(b"@fast")]), Set([]), Set([Map([(Bulk(b"flags"), Set([Simple(b"RO"), Simple(b"access")])), (Bulk(b"begin_search"), Map([(Bulk(b"type"), Bulk(b"index")), (Bulk(b"spec"), Map([(Bulk(b"index"), Integer(1))]))])), (Bulk(b"find_keys"), Map([(Bulk(b"type"), Bulk(b"range")), (Bulk(b"spec"), Map([(Bulk(b"lastkey"), Integer(0)), (Bulk(b"keystep"), Integer(1)), (Bulk(b"limit"), Integer(0))]))]))])]), Set([])]), Null, Array([Bulk(b"client|id"), Integer(2), Set([Simple(b"noscript"), Simple(b"loading"), Simple(b"stale")]), Integer(0), Integer(0), Integer(0), Set([Simple(b"@connection"), Simple(b"@slow")]), Set([]), Set([]), Set([])])])"#
        ]],
    );
    check(
        SessionCommand::CommandDocs,
        &["GET", "nosuch"],
        &expect![[
            r#"Map([(Bulk(b"get"), Map([(Bulk(b"summary"), Bulk(b"Returns the value of a key.")), (Bulk(b"since"), Bulk(b"1.0.0")), (Bulk(b"group"), Bulk(b"string")), (Bulk(b"complexity"), Bulk(b"O(1)")), (Bulk(b"arguments"), Array([Map([(Bulk(b"name"), Bulk(b"key")), (Bulk(b"type"), Bulk(b"key")), (Bulk(b"display_text"), Bulk(b"key")), (Bulk(b"key_spec_index"), Integer(0))])]))]))])"#
        ]],
    );
}

#[test]
fn names_are_listed_by_filter() {
    check(
        SessionCommand::CommandList,
        &["FILTERBY", "PATTERN", "*expire*"],
        &expect![[
            r#"Array([Bulk(b"expire"), Bulk(b"pexpire"), Bulk(b"expireat"), Bulk(b"pexpireat"), Bulk(b"expiretime"), Bulk(b"pexpiretime")])"#
        ]],
    );
    check(
        SessionCommand::CommandList,
        &["FILTERBY", "ACLCAT", "transaction"],
        &expect![[
            r#"Array([Bulk(b"multi"), Bulk(b"exec"), Bulk(b"discard"), Bulk(b"watch"), Bulk(b"unwatch"), Bulk(b"flux.session"), Bulk(b"flux.request"), Bulk(b"flux.outcome")])"#
        ]],
    );
    check(
        SessionCommand::CommandList,
        &["FILTERBY", "MODULE", "json"],
        &expect!["Array([])"],
    );
    check(
        SessionCommand::CommandList,
        &["FILTERBY", "x", "y"],
        &expect![[r#"Error(b"ERR syntax error")"#]],
    );
    check(
        SessionCommand::CommandList,
        &["x"],
        &expect![[r#"Error(b"ERR syntax error")"#]],
    );
}

#[test]
fn keys_are_extracted() {
    check(
        SessionCommand::CommandGetKeys,
        &["MSET", "a", "1", "b", "2"],
        &expect![[r#"Array([Bulk(b"a"), Bulk(b"b")])"#]],
    );
    check(
        SessionCommand::CommandGetKeys,
        &["OBJECT", "ENCODING", "k"],
        &expect![[r#"Array([Bulk(b"k")])"#]],
    );
    check(
        SessionCommand::CommandGetKeysAndFlags,
        &["SET", "a", "1"],
        &expect![[r#"Array([Array([Bulk(b"a"), Set([Simple(b"OW"), Simple(b"update")])])])"#]],
    );
    check(
        SessionCommand::CommandGetKeys,
        &["PING", "x"],
        &expect![[r#"Error(b"ERR The command has no key arguments")"#]],
    );
    check(
        SessionCommand::CommandGetKeys,
        &["GET", "a", "b"],
        &expect![[r#"Error(b"ERR Invalid number of arguments specified for command")"#]],
    );
    check(
        SessionCommand::CommandGetKeys,
        &["nosuch", "a"],
        &expect![[r#"Error(b"ERR Invalid command specified")"#]],
    );
}

#[test]
fn help_lists_the_subcommands() {
    check(
        SessionCommand::CommandHelp,
        &[],
        &expect![[
            r#"Array([Simple(b"COMMAND <subcommand> [<arg> ...]. Subcommands are:"), Simple(b"COUNT"), Simple(b"    Returns the number of commands."), Simple(b"DOCS [command-name [command-name ...]]"), Simple(b"    Documents commands."), Simple(b"INFO [command-name [command-name ...]]"), Simple(b"    Describes commands."), Simple(b"LIST [FILTERBY <MODULE module-name | ACLCAT category | PATTERN pattern>]"), Simple(b"    Returns the names of commands."), Simple(b"GETKEYS command [arg ...]"), Simple(b"    Returns the keys of a command."), Simple(b"GETKEYSANDFLAGS command [arg ...]"), Simple(b"    Returns the keys of a command and how it uses them."), Simple(b"HELP"), Simple(b"    Lists the subcommands.")])"#
        ]],
    );
}

#[test]
fn other_commands_are_not_answered_here() {
    let mut out = BytesMut::new();
    let mut writer = Writer::new(&mut out, Version::Resp2);
    assert!(!answer(SessionCommand::Ping, &[], &mut writer));
    assert!(out.is_empty());
}

#[test]
fn patterns_match_as_globs() {
    for (pattern, name, matches) in [
        ("*", "get", true),
        ("g?t", "get", true),
        ("g?t", "gt", false),
        ("*e*", "get", true),
        ("*x*", "get", false),
        ("GET", "get", true),
        ("get*", "get", true),
        ("", "", true),
        ("", "a", false),
        ("*a*b*c", "xaxbxc", true),
        ("*a*b*c", "xaxbx", false),
    ] {
        let matched = matches_pattern(pattern.as_bytes(), name.as_bytes());
        assert_eq!(matched, matches, "{pattern} {name}");
    }
}

//! What each command line becomes, and the errors Redis's clients know.

use std::fmt::Write;

use expect_test::{Expect, expect};

use super::*;
use crate::resp::Decoder;

const LIMITS: Limits = Limits {
    value_bytes_max: 100,
};

fn decode(line: &str) -> Decoded {
    let mut decoder = Decoder::new(LIMITS);
    decoder.set_authenticated(true);
    let mut buffer = bytes::BytesMut::from(format!("{line}\r\n").as_bytes());
    decoder
        .next(&mut buffer)
        .expect("the line is balanced")
        .expect("the line is whole")
}

fn check(lines: &[&str], expected: &Expect) {
    let mut text = String::new();
    for line in lines {
        match decode(line).request {
            Request::Data(command) => writeln!(text, "{line} => {command:?}").unwrap(),
            Request::Session(command, arguments) => {
                writeln!(text, "{line} => {command:?} {arguments:?}").unwrap();
            }
            Request::Invalid(error) => {
                let word = error::code_word(&error);
                writeln!(text, "{line} => {word} {}", error.message).unwrap();
            }
        }
    }
    expected.assert_eq(&text);
}

#[test]
fn set_and_its_options() {
    check(
        &[
            "SET k v",
            "set k v nx",
            "SET k v XX GET",
            "SET k v IFEQ old",
            "SET k v EX 10",
            "SET k v PX 10",
            "SET k v EXAT 10",
            "SET k v PXAT 10",
            "SET k v KEEPTTL",
            "SET k v GET NX PX 5",
        ],
        &expect![[r#"
            SET k v => Set(Set { key: b"k", value: b"v", condition: Always, expiry: Clear, reply: Status })
            set k v nx => Set(Set { key: b"k", value: b"v", condition: Absent, expiry: Clear, reply: Status })
            SET k v XX GET => Set(Set { key: b"k", value: b"v", condition: Exists, expiry: Clear, reply: Previous })
            SET k v IFEQ old => Set(Set { key: b"k", value: b"v", condition: ValueIs(b"old"), expiry: Clear, reply: Status })
            SET k v EX 10 => Set(Set { key: b"k", value: b"v", condition: Always, expiry: In(10000), reply: Status })
            SET k v PX 10 => Set(Set { key: b"k", value: b"v", condition: Always, expiry: In(10), reply: Status })
            SET k v EXAT 10 => Set(Set { key: b"k", value: b"v", condition: Always, expiry: At(10000), reply: Status })
            SET k v PXAT 10 => Set(Set { key: b"k", value: b"v", condition: Always, expiry: At(10), reply: Status })
            SET k v KEEPTTL => Set(Set { key: b"k", value: b"v", condition: Always, expiry: Keep, reply: Status })
            SET k v GET NX PX 5 => Set(Set { key: b"k", value: b"v", condition: Absent, expiry: In(5), reply: Previous })
        "#]],
    );
}

#[test]
fn set_refuses_what_does_not_fit_together() {
    check(
        &[
            "SET k",
            "SET",
            "SET k v BOGUS",
            "SET k v NX XX",
            "SET k v IFEQ a NX",
            "SET k v EX 1 PX 1",
            "SET k v EX 1 KEEPTTL",
            "SET k v EX",
            "SET k v IFEQ",
            "SET k v EX 0",
            "SET k v PX -1",
            "SET k v EX abc",
            "SET k v EX abc BOGUS",
            "SET k v EX 9223372036854775807",
            "SET k v PX 9223372036854775807",
            "SET k v EXAT 9223372036854775807",
            "SET k v PXAT 9223372036854775807",
        ],
        &expect![[r#"
            SET k => ERR wrong number of arguments for 'set' command
            SET => ERR wrong number of arguments for 'set' command
            SET k v BOGUS => ERR syntax error
            SET k v NX XX => ERR syntax error
            SET k v IFEQ a NX => ERR syntax error
            SET k v EX 1 PX 1 => ERR syntax error
            SET k v EX 1 KEEPTTL => ERR syntax error
            SET k v EX => ERR syntax error
            SET k v IFEQ => ERR syntax error
            SET k v EX 0 => ERR invalid expire time in 'set' command
            SET k v PX -1 => ERR invalid expire time in 'set' command
            SET k v EX abc => ERR value is not an integer or out of range
            SET k v EX abc BOGUS => ERR syntax error
            SET k v EX 9223372036854775807 => ERR invalid expire time in 'set' command
            SET k v PX 9223372036854775807 => ERR invalid expire time in 'set' command
            SET k v EXAT 9223372036854775807 => ERR invalid expire time in 'set' command
            SET k v PXAT 9223372036854775807 => Set(Set { key: b"k", value: b"v", condition: Always, expiry: At(9223372036854775807), reply: Status })
        "#]],
    );
}

#[test]
fn spellings_of_set_and_get() {
    check(
        &[
            "SETNX k v",
            "SETEX k 10 v",
            "SETEX k 0 v",
            "SETEX k x v",
            "PSETEX k 10 v",
            "PSETEX k -1 v",
            "GETSET k v",
            "GET k",
            "GETDEL k",
            "GETEX k",
            "GETEX k EX 5",
            "GETEX k PERSIST",
            "GETEX k PERSIST EX 5",
            "GETEX k KEEPTTL",
            "GETEX k EX 0",
            "MGET a b a",
            "MSET a 1 b 2",
            "MSET a 1 b",
            "MSETNX a 1",
            "GET",
            "GET a b",
        ],
        &expect![[r#"
            SETNX k v => Set(Set { key: b"k", value: b"v", condition: Absent, expiry: Clear, reply: Flag })
            SETEX k 10 v => Set(Set { key: b"k", value: b"v", condition: Always, expiry: In(10000), reply: Status })
            SETEX k 0 v => ERR invalid expire time in 'setex' command
            SETEX k x v => ERR value is not an integer or out of range
            PSETEX k 10 v => Set(Set { key: b"k", value: b"v", condition: Always, expiry: In(10), reply: Status })
            PSETEX k -1 v => ERR invalid expire time in 'psetex' command
            GETSET k v => Set(Set { key: b"k", value: b"v", condition: Always, expiry: Clear, reply: Previous })
            GET k => Get { key: b"k" }
            GETDEL k => GetDelete { key: b"k" }
            GETEX k => Get { key: b"k" }
            GETEX k EX 5 => GetExpire { key: b"k", expiry: In(5000) }
            GETEX k PERSIST => GetExpire { key: b"k", expiry: Clear }
            GETEX k PERSIST EX 5 => ERR syntax error
            GETEX k KEEPTTL => ERR syntax error
            GETEX k EX 0 => ERR invalid expire time in 'getex' command
            MGET a b a => GetMany { keys: [b"a", b"b", b"a"] }
            MSET a 1 b 2 => SetMany { pairs: [(b"a", b"1"), (b"b", b"2")], if_none_exists: false }
            MSET a 1 b => ERR wrong number of arguments for 'mset' command
            MSETNX a 1 => SetMany { pairs: [(b"a", b"1")], if_none_exists: true }
            GET => ERR wrong number of arguments for 'get' command
            GET a b => ERR wrong number of arguments for 'get' command
        "#]],
    );
}

#[test]
fn parts_of_values_and_numbers() {
    check(
        &[
            "APPEND k v",
            "STRLEN k",
            "GETRANGE k 0 -1",
            "SUBSTR k 0 -1",
            "GETRANGE k a b",
            "SETRANGE k 5 v",
            "SETRANGE k -1 v",
            "INCR k",
            "DECR k",
            "INCRBY k -5",
            "DECRBY k 5",
            "DECRBY k -9223372036854775808",
            "INCRBY k 1.5",
            "INCRBYFLOAT k 1.5e2",
            "INCRBYFLOAT k abc",
            "INCRBYFLOAT k inf",
        ],
        &expect![[r#"
            APPEND k v => Append { key: b"k", value: b"v" }
            STRLEN k => Length { key: b"k" }
            GETRANGE k 0 -1 => GetRange { key: b"k", start: 0, end: -1 }
            SUBSTR k 0 -1 => GetRange { key: b"k", start: 0, end: -1 }
            GETRANGE k a b => ERR value is not an integer or out of range
            SETRANGE k 5 v => SetRange { key: b"k", offset: 5, value: b"v" }
            SETRANGE k -1 v => ERR offset is out of range
            INCR k => Increment { key: b"k", by: 1 }
            DECR k => Increment { key: b"k", by: -1 }
            INCRBY k -5 => Increment { key: b"k", by: -5 }
            DECRBY k 5 => Increment { key: b"k", by: -5 }
            DECRBY k -9223372036854775808 => ERR decrement would overflow
            INCRBY k 1.5 => ERR value is not an integer or out of range
            INCRBYFLOAT k 1.5e2 => IncrementFloat { key: b"k", by: 150.0 }
            INCRBYFLOAT k abc => ERR value is not a valid float
            INCRBYFLOAT k inf => ERR increment would produce NaN or Infinity
        "#]],
    );
}

#[test]
fn keys_and_their_deadlines() {
    check(
        &[
            "DEL a b",
            "UNLINK a",
            "EXISTS a a",
            "TOUCH a",
            "TYPE a",
            "EXPIRE k 10",
            "PEXPIRE k -10",
            "EXPIREAT k 10 NX",
            "PEXPIREAT k 10 XX GT",
            "EXPIRE k 10 LT",
            "EXPIRE k 10 NX XX",
            "EXPIRE k 10 GT LT",
            "EXPIRE k 10 BOGUS",
            "EXPIRE k x",
            "EXPIRE k 9223372036854775807",
            "EXPIRE k -9223372036854775808",
            "PEXPIRE k 9223372036854775807",
            "TTL k",
            "PTTL k",
            "EXPIRETIME k",
            "PEXPIRETIME k",
            "PERSIST k",
            "RENAME a b",
            "RENAMENX a b",
            "COPY a b",
            "COPY a b DB 0 REPLACE",
            "COPY a b DB 1",
            "COPY a a",
            "COPY a b BOGUS",
        ],
        &expect![[r#"
            DEL a b => Delete { keys: [b"a", b"b"] }
            UNLINK a => Delete { keys: [b"a"] }
            EXISTS a a => Exists { keys: [b"a", b"a"] }
            TOUCH a => Touch { keys: [b"a"] }
            TYPE a => Type { key: b"a" }
            EXPIRE k 10 => Expire { key: b"k", expiry: In(10000), condition: ExpireCondition { if_none: false, if_some: false, if_later: false, if_earlier: false } }
            PEXPIRE k -10 => Expire { key: b"k", expiry: In(-10), condition: ExpireCondition { if_none: false, if_some: false, if_later: false, if_earlier: false } }
            EXPIREAT k 10 NX => Expire { key: b"k", expiry: At(10000), condition: ExpireCondition { if_none: true, if_some: false, if_later: false, if_earlier: false } }
            PEXPIREAT k 10 XX GT => Expire { key: b"k", expiry: At(10), condition: ExpireCondition { if_none: false, if_some: true, if_later: true, if_earlier: false } }
            EXPIRE k 10 LT => Expire { key: b"k", expiry: In(10000), condition: ExpireCondition { if_none: false, if_some: false, if_later: false, if_earlier: true } }
            EXPIRE k 10 NX XX => ERR NX and XX, GT or LT options at the same time are not compatible
            EXPIRE k 10 GT LT => ERR GT and LT options at the same time are not compatible
            EXPIRE k 10 BOGUS => ERR Unsupported option BOGUS
            EXPIRE k x => ERR value is not an integer or out of range
            EXPIRE k 9223372036854775807 => ERR invalid expire time in 'expire' command
            EXPIRE k -9223372036854775808 => ERR invalid expire time in 'expire' command
            PEXPIRE k 9223372036854775807 => ERR invalid expire time in 'pexpire' command
            TTL k => Ttl { key: b"k", form: Seconds }
            PTTL k => Ttl { key: b"k", form: Millis }
            EXPIRETIME k => Ttl { key: b"k", form: AbsoluteSeconds }
            PEXPIRETIME k => Ttl { key: b"k", form: AbsoluteMillis }
            PERSIST k => Persist { key: b"k" }
            RENAME a b => Rename { source: b"a", target: b"b", if_absent: false }
            RENAMENX a b => Rename { source: b"a", target: b"b", if_absent: true }
            COPY a b => Copy { source: b"a", target: b"b", replace: false }
            COPY a b DB 0 REPLACE => Copy { source: b"a", target: b"b", replace: true }
            COPY a b DB 1 => ERR DB index is out of range
            COPY a a => ERR source and destination objects are the same
            COPY a b BOGUS => ERR syntax error
        "#]],
    );
}

#[test]
fn the_whole_keyspace() {
    check(
        &[
            "SCAN 0",
            "SCAN 5 MATCH a* COUNT 100 TYPE string",
            "SCAN 0 MATCH * TYPE hash",
            "SCAN x",
            "SCAN -1",
            "SCAN 0 COUNT 0",
            "SCAN 0 COUNT x",
            "SCAN 0 COUNT",
            "SCAN 0 BOGUS 1",
            "KEYS *",
            "RANDOMKEY",
            "DBSIZE",
            "DBSIZE x",
            "FLUSHALL",
            "FLUSHDB async",
            "FLUSHALL SYNC x",
            "FLUSHALL now",
        ],
        &expect![[r#"
            SCAN 0 => Scan(ScanPage { cursor: 0, pattern: None, count: 10, type_matches: true })
            SCAN 5 MATCH a* COUNT 100 TYPE string => Scan(ScanPage { cursor: 5, pattern: Some(b"a*"), count: 100, type_matches: true })
            SCAN 0 MATCH * TYPE hash => Scan(ScanPage { cursor: 0, pattern: None, count: 10, type_matches: false })
            SCAN x => ERR invalid cursor
            SCAN -1 => ERR invalid cursor
            SCAN 0 COUNT 0 => ERR syntax error
            SCAN 0 COUNT x => ERR value is not an integer or out of range
            SCAN 0 COUNT => ERR syntax error
            SCAN 0 BOGUS 1 => ERR syntax error
            KEYS * => Keys { pattern: b"*" }
            RANDOMKEY => RandomKey
            DBSIZE => Count
            DBSIZE x => ERR wrong number of arguments for 'dbsize' command
            FLUSHALL => Clear
            FLUSHDB async => Clear
            FLUSHALL SYNC x => ERR syntax error
            FLUSHALL now => ERR syntax error
        "#]],
    );
}

#[test]
fn sessions_get_their_commands_without_names() {
    check(
        &[
            "PING",
            "ping hello",
            "HELLO 3 AUTH u p",
            "MULTI",
            "EXEC x",
            "CLIENT",
            "CLIENT ID",
            "client setname me",
            "CLIENT SETNAME",
            "CLIENT BOGUS",
            "COMMAND",
            "COMMAND DOCS get",
            "COMMAND COUNT x",
            "CONFIG GET save appendonly",
            "CONFIG GET",
            "CONFIG SET a",
            "OBJECT ENCODING k",
            "MEMORY USAGE k SAMPLES 5",
            "WATCH",
            "SELECT 0",
            "QUIT",
        ],
        &expect![[r#"
            PING => Ping []
            ping hello => Ping [b"hello"]
            HELLO 3 AUTH u p => Hello [b"3", b"AUTH", b"u", b"p"]
            MULTI => Multi []
            EXEC x => ERR wrong number of arguments for 'exec' command
            CLIENT => ERR wrong number of arguments for 'client' command
            CLIENT ID => ClientId []
            client setname me => ClientSetName [b"me"]
            CLIENT SETNAME => ERR wrong number of arguments for 'client|setname' command
            CLIENT BOGUS => ERR unknown subcommand 'BOGUS'. Try CLIENT HELP.
            COMMAND => Command []
            COMMAND DOCS get => CommandDocs [b"get"]
            COMMAND COUNT x => ERR wrong number of arguments for 'command|count' command
            CONFIG GET save appendonly => ConfigGet [b"save", b"appendonly"]
            CONFIG GET => ERR wrong number of arguments for 'config|get' command
            CONFIG SET a => ERR wrong number of arguments for 'config|set' command
            OBJECT ENCODING k => ObjectEncoding [b"k"]
            MEMORY USAGE k SAMPLES 5 => MemoryUsage [b"k", b"SAMPLES", b"5"]
            WATCH => ERR wrong number of arguments for 'watch' command
            SELECT 0 => Select [b"0"]
            QUIT => Quit []
        "#]],
    );
}

#[test]
fn unknown_commands_are_quoted_but_not_at_length() {
    check(
        &["FOO", "foo a b", "FOO \"a\\r\\nb\"", "\"\""],
        &expect![[r#"
            FOO => ERR unknown command 'FOO', with args beginning with: 
            foo a b => ERR unknown command 'foo', with args beginning with: 'a' 'b' 
            FOO "a\r\nb" => ERR unknown command 'FOO', with args beginning with: 'a  b' 
            "" => ERR unknown command '', with args beginning with: 
        "#]],
    );
    let long = decode(&format!("{} {}", "x".repeat(5000), "y ".repeat(5000)));
    let Request::Invalid(error) = long.request else {
        panic!("there is no such command");
    };
    assert!(error.message.len() < 1000);
    assert!(long.spec.is_none());
}

#[test]
fn long_keys_and_values_are_refused_by_name() {
    let key = "k".repeat(limits::KEY_BYTES_MAX + 1);
    let value = "v".repeat(LIMITS.value_bytes_max + 1);
    for argv in [
        vec!["GET", &key],
        vec!["SET", &key, "v"],
        vec!["MGET", "a", &key],
        vec!["MSET", &key, "v"],
        vec!["DEL", &key],
        vec!["RENAME", "a", &key],
        vec!["SET", "k", &value],
        vec!["MSET", "a", "1", "b", &value],
        vec!["APPEND", "k", &value],
        vec!["SETRANGE", "k", "0", &value],
        vec!["GETSET", "k", &value],
        vec!["SET", "k", "v", "IFEQ", &value],
    ] {
        let name = argv[0];
        let argv = argv
            .iter()
            .map(|argument| Bytes::copy_from_slice(argument.as_bytes()))
            .collect();
        let Request::Invalid(error) = parse(argv, LIMITS).request else {
            panic!("{name} accepts what is too long");
        };
        assert_eq!(error.code, ErrorCode::TooLarge, "{name}");
    }
}

#[test]
fn nothing_at_all_is_an_unknown_command() {
    let decoded = parse(Vec::new(), LIMITS);
    assert!(matches!(decoded.request, Request::Invalid(_)));
}

#[test]
fn the_row_is_that_of_the_subcommand() {
    let spec = decode("CLIENT ID").spec.expect("it is in the table");
    assert_eq!(spec.full_name().to_string(), "client|id");
    let spec = decode("GET k").spec.expect("it is in the table");
    assert_eq!(spec.full_name().to_string(), "get");
}

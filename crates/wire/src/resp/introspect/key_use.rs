//! How commands use their keys, in the words of Redis's key specifications: RO, RW, OW (written
//! without being read), RM (removed), and what is done with the value.

use super::super::spec::{Flags, KeyRange, Spec};

/// Keys of a command that are used in one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KeyUse {
    /// Which keys.
    pub(super) keys: KeyRange,
    /// How they are used.
    pub(super) flags: &'static [&'static str],
}

type Words = &'static [&'static str];

const LOOK: Words = &["RO"];
const READ: Words = &["RO", "access"];
const OVERWRITE: Words = &["OW", "update"];
const CREATE: Words = &["OW", "insert"];
const EXCHANGE: Words = &["RW", "access", "update"];
const CHANGE: Words = &["RW", "update"];
const EXTEND: Words = &["RW", "insert"];
const TAKE: Words = &["RW", "access", "delete"];
const REMOVE: Words = &["RM", "delete"];
/// SET reads only where it is told GET.
const SET: Words = &["RW", "access", "update", "variable_flags"];

/// How a command uses its keys, whatever its options; nothing if it has none.
pub(super) fn key_uses(spec: &Spec) -> Vec<KeyUse> {
    if spec.keys.first == 0 {
        return Vec::new();
    }
    let name = if spec.container.is_none() {
        spec.name
    } else {
        ""
    };
    match name {
        "rename" => pair(TAKE, OVERWRITE),
        "renamenx" => pair(TAKE, CREATE),
        "copy" => pair(READ, OVERWRITE),
        _ => vec![KeyUse {
            keys: spec.keys,
            flags: words(name, spec.flags),
        }],
    }
}

/// How this very call uses its keys.
pub(super) fn key_uses_of(spec: &Spec, argv: &[bytes::Bytes]) -> Vec<KeyUse> {
    let mut uses = key_uses(spec);
    for each in &mut uses {
        if each.flags == SET {
            let reads = argv.iter().skip(3).any(|word| super::is(word, "GET"));
            each.flags = if reads { EXCHANGE } else { OVERWRITE };
        }
    }
    uses
}

/// A command of two keys, which it uses in two ways.
fn pair(first: Words, second: Words) -> Vec<KeyUse> {
    [(1, first), (2, second)]
        .into_iter()
        .map(|(at, flags)| KeyUse {
            keys: KeyRange {
                first: at,
                last: at,
                step: 1,
            },
            flags,
        })
        .collect()
}

fn words(name: &str, flags: Flags) -> Words {
    match name {
        "set" => SET,
        "setex" | "psetex" | "mset" => OVERWRITE,
        "setnx" | "msetnx" => CREATE,
        "getdel" => TAKE,
        "append" => EXTEND,
        "setrange" | "expire" | "pexpire" | "expireat" | "pexpireat" | "persist" => CHANGE,
        "del" | "unlink" => REMOVE,
        "strlen" | "exists" | "type" | "touch" => LOOK,
        _ if flags.contains(Flags::WRITE) => EXCHANGE,
        // What a subcommand or WATCH wants to know of a key is not its value.
        "" | "watch" => LOOK,
        _ => READ,
    }
}

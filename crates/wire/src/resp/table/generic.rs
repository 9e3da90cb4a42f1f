//! Rows of the commands on keys.

use super::super::parse;
use super::super::spec::{
    Action::{Container, Data, Session},
    Group, SessionCommand as Command, Spec,
};
use super::row;

const GROUP: Group = Group::Generic;
const CONTAINER: Option<&str> = None;

pub(super) const ROWS: &[Spec] = &[
    row!("del" "key [key ...]", -2, [WRITE], (1 -1 1), "1.0.0", "O(N) in the number of keys",
        "Deletes keys and returns how many there were.", Data(parse::delete)),
    row!("unlink" "key [key ...]", -2, [WRITE FAST], (1 -1 1), "4.0.0", "O(N) in the number of keys",
        "The same as DEL.", Data(parse::delete)),
    row!("exists" "key [key ...]", -2, [READONLY FAST], (1 -1 1), "1.0.0", "O(N) in the number of keys",
        "Returns how many of the keys exist, counting repetitions.", Data(parse::exists)),
    row!("type" "key", 2, [READONLY FAST], (1 1 1), "1.0.0", "O(1)",
        "Returns the type of a key: string or none.", Data(parse::type_of)),
    row!("touch" "key [key ...]", -2, [READONLY FAST], (1 -1 1), "3.2.1", "O(N) in the number of keys",
        "Marks keys as used and returns how many exist.", Data(parse::touch)),
    row!("expire" "key seconds [NX | XX | GT | LT]", -3, [WRITE FAST], (1 1 1), "1.0.0", "O(1)",
        "Sets the expiry of a key in seconds from now.", Data(parse::expire)),
    row!("pexpire" "key milliseconds [NX | XX | GT | LT]", -3, [WRITE FAST], (1 1 1), "2.6.0", "O(1)",
        "Sets the expiry of a key in milliseconds from now.", Data(parse::pexpire)),
    row!("expireat" "key unix-seconds [NX | XX | GT | LT]", -3, [WRITE FAST], (1 1 1), "1.2.0", "O(1)",
        "Sets the expiry of a key to a Unix time in seconds.", Data(parse::expire_at)),
    row!("pexpireat" "key unix-milliseconds [NX | XX | GT | LT]", -3, [WRITE FAST], (1 1 1), "2.6.0", "O(1)",
        "Sets the expiry of a key to a Unix time in milliseconds.", Data(parse::pexpire_at)),
    row!("ttl" "key", 2, [READONLY FAST], (1 1 1), "1.0.0", "O(1)",
        "Returns the seconds until a key expires, -1 without expiry, -2 without key.", Data(parse::ttl)),
    row!("pttl" "key", 2, [READONLY FAST], (1 1 1), "2.6.0", "O(1)",
        "Returns the milliseconds until a key expires, -1 without expiry, -2 without key.", Data(parse::pttl)),
    row!("expiretime" "key", 2, [READONLY FAST], (1 1 1), "7.0.0", "O(1)",
        "Returns the Unix time in seconds at which a key expires.", Data(parse::expire_time)),
    row!("pexpiretime" "key", 2, [READONLY FAST], (1 1 1), "7.0.0", "O(1)",
        "Returns the Unix time in milliseconds at which a key expires.", Data(parse::pexpire_time)),
    row!("persist" "key", 2, [WRITE FAST], (1 1 1), "2.2.0", "O(1)",
        "Removes the expiry of a key.", Data(parse::persist)),
    row!("rename" "key newkey", 3, [WRITE], (1 2 1), "1.0.0", "O(1)",
        "Gives a key another name, replacing what has it. Both must be in one shard.", Data(parse::rename)),
    row!("renamenx" "key newkey", 3, [WRITE FAST], (1 2 1), "1.0.0", "O(1)",
        "Gives a key a name that no other has. Both must be in one shard.", Data(parse::rename_if_absent)),
    row!("copy" "source destination [DB 0] [REPLACE]", -3, [WRITE DENYOOM], (1 2 1), "6.2.0", "O(N) in the length of the value",
        "Copies a key with its expiry. Both must be in one shard.", Data(parse::copy)),
    row!("randomkey" "", 1, [READONLY], (0 0 0), "1.0.0", "O(1)",
        "Returns some key.", Data(parse::random_key)),
    row!("scan" "cursor [MATCH pattern] [COUNT count] [TYPE type]", -2, [READONLY], (0 0 0), "2.8.0", "O(1) for a call, O(N) for all keys",
        "Returns a page of keys and the cursor of the next, which is 0 at the end.", Data(parse::scan)),
    row!("keys" "pattern", 2, [READONLY], (0 0 0), "1.0.0", "O(N) in the number of keys in the store",
        "Returns all keys that match a pattern.", Data(parse::keys)),
    row!("object" "subcommand", -2, [NONE], (0 0 0), "2.2.3", "Depends on the subcommand.",
        "Tells about how a key is kept.", Container, object::ROWS),
    row!("wait" "numreplicas timeout", 3, [NOSCRIPT], (0 0 0), "3.0.0", "O(1)",
        "Returns how many replicas have the writes of this connection: a reply comes after a majority has them.", Session(Command::Wait)),
];

mod object {
    use super::super::super::spec::{Action::Session, Group, SessionCommand as Command, Spec};
    use super::super::row;

    const GROUP: Group = Group::Generic;
    const CONTAINER: Option<&str> = Some("object");

    pub(super) const ROWS: &[Spec] = &[
        row!("encoding" "key", 3, [READONLY], (2 2 1), "2.2.3", "O(1)",
            "Returns how a value is encoded.", Session(Command::ObjectEncoding)),
        row!("freq" "key", 3, [READONLY], (2 2 1), "4.0.0", "O(1)",
            "Returns how often a key is used.", Session(Command::ObjectFreq)),
        row!("idletime" "key", 3, [READONLY], (2 2 1), "2.2.3", "O(1)",
            "Returns for how many seconds a key has not been used.", Session(Command::ObjectIdleTime)),
        row!("refcount" "key", 3, [READONLY], (2 2 1), "2.2.3", "O(1)",
            "Returns how many references a value has.", Session(Command::ObjectRefCount)),
        row!("help" "", 2, [LOADING STALE], (0 0 0), "6.2.0", "O(1)",
            "Lists the subcommands.", Session(Command::ObjectHelp)),
    ];
}

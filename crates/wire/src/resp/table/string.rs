//! Rows of the commands on values.

use super::super::parse;
use super::super::spec::{Action::Data, Group, Spec};
use super::row;

const GROUP: Group = Group::String;
const CONTAINER: Option<&str> = None;

pub(super) const ROWS: &[Spec] = &[
    row!("get" "key", 2, [READONLY FAST], (1 1 1), "1.0.0", "O(1)",
        "Returns the value of a key.", Data(parse::get)),
    row!("set" "key value [NX | XX | IFEQ value] [GET] [EX seconds | PX milliseconds | EXAT unix-seconds | PXAT unix-milliseconds | KEEPTTL]",
        -3, [WRITE DENYOOM], (1 1 1), "1.0.0", "O(1)",
        "Sets the value of a key, on a condition and with an expiry if given.", Data(parse::set)),
    row!("setnx" "key value", 3, [WRITE DENYOOM FAST], (1 1 1), "1.0.0", "O(1)",
        "Sets the value of a key that does not exist.", Data(parse::set_if_absent)),
    row!("setex" "key seconds value", 4, [WRITE DENYOOM], (1 1 1), "2.0.0", "O(1)",
        "Sets the value of a key and its expiry in seconds.", Data(parse::set_expire)),
    row!("psetex" "key milliseconds value", 4, [WRITE DENYOOM], (1 1 1), "2.6.0", "O(1)",
        "Sets the value of a key and its expiry in milliseconds.", Data(parse::pset_expire)),
    row!("getset" "key value", 3, [WRITE DENYOOM FAST], (1 1 1), "1.0.0", "O(1)",
        "Sets the value of a key and returns the one before.", Data(parse::get_set)),
    row!("getdel" "key", 2, [WRITE FAST], (1 1 1), "6.2.0", "O(1)",
        "Returns the value of a key and deletes it.", Data(parse::get_delete)),
    row!("getex" "key [EX seconds | PX milliseconds | EXAT unix-seconds | PXAT unix-milliseconds | PERSIST]",
        -2, [WRITE FAST], (1 1 1), "6.2.0", "O(1)",
        "Returns the value of a key and changes its expiry.", Data(parse::get_expire)),
    row!("mget" "key [key ...]", -2, [READONLY FAST], (1 -1 1), "1.0.0", "O(N) in the number of keys",
        "Returns the values of keys, of one moment if they are in one shard.", Data(parse::get_many)),
    row!("mset" "key value [key value ...]", -3, [WRITE DENYOOM], (1 -1 2), "1.0.1", "O(N) in the number of keys",
        "Sets the values of keys, all at once if they are in one shard.", Data(parse::set_many)),
    row!("msetnx" "key value [key value ...]", -3, [WRITE DENYOOM], (1 -1 2), "1.0.1", "O(N) in the number of keys",
        "Sets the values of keys if none of them exists. They must be in one shard.", Data(parse::set_many_if_absent)),
    row!("append" "key value", 3, [WRITE DENYOOM FAST], (1 1 1), "2.0.0", "O(1)",
        "Appends to the value of a key and returns its new length.", Data(parse::append)),
    row!("strlen" "key", 2, [READONLY FAST], (1 1 1), "2.2.0", "O(1)",
        "Returns the length of a value in bytes.", Data(parse::length)),
    row!("getrange" "key start end", 4, [READONLY], (1 1 1), "2.4.0", "O(N) in the length returned",
        "Returns a part of a value; negative offsets count from its end.", Data(parse::get_range)),
    row!("substr" "key start end", 4, [READONLY], (1 1 1), "1.0.0", "O(N) in the length returned",
        "The old name of GETRANGE.", Data(parse::get_range)),
    row!("setrange" "key offset value", 4, [WRITE DENYOOM], (1 1 1), "2.2.0", "O(N) in the length of the value",
        "Overwrites a part of a value, padding it with zeros, and returns its new length.", Data(parse::set_range)),
    row!("incr" "key", 2, [WRITE DENYOOM FAST], (1 1 1), "1.0.0", "O(1)",
        "Adds one to the integer at a key.", Data(parse::increment)),
    row!("decr" "key", 2, [WRITE DENYOOM FAST], (1 1 1), "1.0.0", "O(1)",
        "Subtracts one from the integer at a key.", Data(parse::decrement)),
    row!("incrby" "key increment", 3, [WRITE DENYOOM FAST], (1 1 1), "1.0.0", "O(1)",
        "Adds to the integer at a key.", Data(parse::increment_by)),
    row!("decrby" "key decrement", 3, [WRITE DENYOOM FAST], (1 1 1), "1.0.0", "O(1)",
        "Subtracts from the integer at a key.", Data(parse::decrement_by)),
    row!("incrbyfloat" "key increment", 3, [WRITE DENYOOM FAST], (1 1 1), "2.6.0", "O(1)",
        "Adds to the float at a key.", Data(parse::increment_float)),
];

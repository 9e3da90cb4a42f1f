//! Rows of the commands of transactions.

use super::super::spec::{Action::Session, Group, SessionCommand as Command, Spec};
use super::row;

const GROUP: Group = Group::Transactions;
const CONTAINER: Option<&str> = None;

pub(super) const ROWS: &[Spec] = &[
    row!("multi" "", 1, [NOSCRIPT LOADING STALE FAST], (0 0 0), "1.2.0", "O(1)",
        "Begins a transaction: what follows is queued.", Session(Command::Multi)),
    row!("exec" "", 1, [NOSCRIPT LOADING STALE], (0 0 0), "1.2.0", "O(N) in the commands queued",
        "Runs the queued commands as one, unless a watched key has changed.", Session(Command::Exec)),
    row!("discard" "", 1, [NOSCRIPT LOADING STALE FAST], (0 0 0), "2.0.0", "O(N) in the commands queued",
        "Forgets the queued commands.", Session(Command::Discard)),
    row!("watch" "key [key ...]", -2, [NOSCRIPT LOADING STALE FAST], (1 -1 1), "2.2.0", "O(N) in the number of keys",
        "Makes the next transaction depend on keys being unchanged.", Session(Command::Watch)),
    row!("unwatch" "", 1, [NOSCRIPT LOADING STALE FAST], (0 0 0), "2.2.0", "O(N) in the number of watched keys",
        "Forgets the watched keys.", Session(Command::Unwatch)),
];

//! Rows of the commands of transactions.

use super::super::parse;
use super::super::spec::{
    Action::{Data, Once, Session},
    Group, SessionCommand as Command, Spec,
};
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
    row!("flux.session" "", 1, [NOSCRIPT LOADING STALE FAST], (0 0 0), "–", "O(1)",
        "Draws a session for request ids, by the node's clock.", Session(Command::FluxSession)),
    row!("flux.request" "session sequence lowest-unanswered command [arg ...]", -5, [WRITE], (5 5 1), "–", "That of the command.",
        "Runs a write, or EXEC, once, however often it is sent: see retries.md.", Once),
    row!("flux.outcome" "session sequence lowest-unanswered [key]", -4, [WRITE FAST], (4 4 1), "–", "O(1) for each shard",
        "Tells what became of a write with a request id; one not done until now never will be.", Data(parse::outcome)),
];

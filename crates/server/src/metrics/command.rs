//! The names under which commands are counted: a closed set, one for each kind of command.

use flux_types::{Command, ReadCommand, WriteCommand};

/// By [`command_row`] our name, and what Redis calls the command, for INFO: where it has several names
/// for one meaning (SETEX, INCR, UNLINK …), the plainest.
pub(crate) const COMMANDS: [(&str, &str); 32] = [
    ("get", "get"),
    ("get_entry", "get_entry"),
    ("set", "set"),
    ("compare_and_set", "compare_and_set"),
    ("compare_and_delete", "compare_and_delete"),
    ("get_delete", "getdel"),
    ("get_expire", "getex"),
    ("get_many", "mget"),
    ("set_many", "mset"),
    ("append", "append"),
    ("length", "strlen"),
    ("get_range", "getrange"),
    ("set_range", "setrange"),
    ("increment", "incrby"),
    ("increment_float", "incrbyfloat"),
    ("delete", "del"),
    ("exists", "exists"),
    ("touch", "touch"),
    ("type", "type"),
    ("expire", "expire"),
    ("ttl", "ttl"),
    ("persist", "persist"),
    ("rename", "rename"),
    ("copy", "copy"),
    ("scan", "scan"),
    ("count", "dbsize"),
    ("clear", "flushall"),
    ("transaction", "exec"),
    ("sweep_expired", "sweep_expired"),
    ("put_system", "put_system"),
    ("outcome", "flux.outcome"),
    ("forget_sessions", "forget_sessions"),
];

/// Our names by [`command_row`].
pub(super) fn command_names() -> [&'static str; COMMANDS.len()] {
    COMMANDS.map(|(name, _)| name)
}

/// The row in which a command is counted.
pub(super) fn command_row(command: &Command) -> usize {
    match command {
        Command::Read(ReadCommand::Get { .. }) => 0,
        Command::Read(ReadCommand::GetEntry { .. }) => 1,
        Command::Write(WriteCommand::Set(_)) => 2,
        Command::Write(WriteCommand::CompareAndSet { .. }) => 3,
        Command::Write(WriteCommand::CompareAndDelete { .. }) => 4,
        Command::Write(WriteCommand::GetDelete { .. }) => 5,
        Command::Write(WriteCommand::GetExpire { .. }) => 6,
        Command::Read(ReadCommand::GetMany { .. }) => 7,
        Command::Write(WriteCommand::SetMany { .. }) => 8,
        Command::Write(WriteCommand::Append { .. }) => 9,
        Command::Read(ReadCommand::Length { .. }) => 10,
        Command::Read(ReadCommand::GetRange { .. }) => 11,
        Command::Write(WriteCommand::SetRange { .. }) => 12,
        Command::Write(WriteCommand::Increment { .. }) => 13,
        Command::Write(WriteCommand::IncrementFloat { .. }) => 14,
        Command::Write(WriteCommand::Delete { .. }) => 15,
        Command::Read(ReadCommand::Exists { .. }) => 16,
        Command::Read(ReadCommand::Touch { .. }) => 17,
        Command::Read(ReadCommand::Type { .. }) => 18,
        Command::Write(WriteCommand::Expire { .. }) => 19,
        Command::Read(ReadCommand::Ttl { .. }) => 20,
        Command::Write(WriteCommand::Persist { .. }) => 21,
        Command::Write(WriteCommand::Rename { .. }) => 22,
        Command::Write(WriteCommand::Copy { .. }) => 23,
        // All three walk the keyspace.
        Command::Read(ReadCommand::Scan(_) | ReadCommand::Keys { .. } | ReadCommand::RandomKey) => {
            24
        }
        Command::Read(ReadCommand::Count) => 25,
        Command::Write(WriteCommand::Clear) => 26,
        Command::Write(WriteCommand::Transaction(_)) => 27,
        Command::Write(WriteCommand::SweepExpired { .. }) => 28,
        Command::Write(WriteCommand::PutSystem { .. } | WriteCommand::ReplaceSystem { .. }) => 29,
        Command::Write(WriteCommand::QueryOutcome { .. }) => 30,
        Command::Write(WriteCommand::ForgetSessions) => 31,
        // Counted as what it is, whether that is done now or was before.
        Command::Write(WriteCommand::Once(once)) => command_row(once.command()),
    }
}

//! The names under which commands are counted: a closed set, one for each kind of command.

use flux_types::{Command, ReadCommand, WriteCommand};

/// Names by [`command_row`].
pub(crate) const COMMAND_NAMES: [&str; 32] = [
    "get",
    "get_entry",
    "set",
    "compare_and_set",
    "compare_and_delete",
    "get_delete",
    "get_expire",
    "get_many",
    "set_many",
    "append",
    "length",
    "get_range",
    "set_range",
    "increment",
    "increment_float",
    "delete",
    "exists",
    "touch",
    "type",
    "expire",
    "ttl",
    "persist",
    "rename",
    "copy",
    "scan",
    "count",
    "clear",
    "transaction",
    "sweep_expired",
    "put_system",
    "outcome",
    "forget_sessions",
];

/// What Redis calls the commands of [`COMMAND_NAMES`], for INFO: where it has several names for one
/// meaning (SETEX, INCR, UNLINK …), the plainest.
pub(crate) const REDIS_NAMES: [&str; COMMAND_NAMES.len()] = [
    "get",
    "get_entry",
    "set",
    "compare_and_set",
    "compare_and_delete",
    "getdel",
    "getex",
    "mget",
    "mset",
    "append",
    "strlen",
    "getrange",
    "setrange",
    "incrby",
    "incrbyfloat",
    "del",
    "exists",
    "touch",
    "type",
    "expire",
    "ttl",
    "persist",
    "rename",
    "copy",
    "scan",
    "dbsize",
    "flushall",
    "exec",
    "sweep_expired",
    "put_system",
    "flux.outcome",
    "forget_sessions",
];

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
        Command::Write(WriteCommand::PutSystem { .. }) => 29,
        Command::Write(WriteCommand::QueryOutcome { .. }) => 30,
        Command::Write(WriteCommand::ForgetSessions) => 31,
        // Counted as what it is, whether that is done now or was before.
        Command::Write(WriteCommand::Once(once)) => command_row(once.command()),
    }
}

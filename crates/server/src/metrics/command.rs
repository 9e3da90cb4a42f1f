//! The names under which commands are counted: a closed set, one for each kind of command.

use flux_types::Command;

/// Names by [`command_row`].
pub(crate) const COMMAND_NAMES: [&str; 29] = [
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
];

/// The row in which a command is counted.
pub(super) const fn command_row(command: &Command) -> usize {
    match command {
        Command::Get { .. } => 0,
        Command::GetEntry { .. } => 1,
        Command::Set(_) => 2,
        Command::CompareAndSet { .. } => 3,
        Command::CompareAndDelete { .. } => 4,
        Command::GetDelete { .. } => 5,
        Command::GetExpire { .. } => 6,
        Command::GetMany { .. } => 7,
        Command::SetMany { .. } => 8,
        Command::Append { .. } => 9,
        Command::Length { .. } => 10,
        Command::GetRange { .. } => 11,
        Command::SetRange { .. } => 12,
        Command::Increment { .. } => 13,
        Command::IncrementFloat { .. } => 14,
        Command::Delete { .. } => 15,
        Command::Exists { .. } => 16,
        Command::Touch { .. } => 17,
        Command::Type { .. } => 18,
        Command::Expire { .. } => 19,
        Command::Ttl { .. } => 20,
        Command::Persist { .. } => 21,
        Command::Rename { .. } => 22,
        Command::Copy { .. } => 23,
        // All three walk the keyspace.
        Command::Scan(_) | Command::Keys { .. } | Command::RandomKey => 24,
        Command::Count => 25,
        Command::Clear => 26,
        Command::Transaction(_) => 27,
        Command::SweepExpired { .. } => 28,
    }
}

//! What a command is likely to add to a batch, known before it is evaluated.

use flux_types::limits::REQUEST_REPLY_BYTES_MAX;
use flux_types::{Command, Set, WriteCommand};

/// Bytes that any fact costs beside its key and value.
const FACT_OVERHEAD: usize = 32;

/// About how many bytes of facts a command makes at most, as far as its arguments tell. Commands
/// that copy stored values (RENAME, COPY) can make more: the batch then ends after them.
pub(super) fn weight(command: &Command) -> usize {
    let bytes = match command {
        // A read may say that a key has expired.
        Command::Read(_) => 0,
        Command::Write(write) => write_weight(write),
    };
    bytes.saturating_add(FACT_OVERHEAD)
}

fn write_weight(write: &WriteCommand) -> usize {
    match write {
        WriteCommand::Set(Set { key, value, .. })
        | WriteCommand::CompareAndSet { key, value, .. }
        | WriteCommand::Append { key, value }
        | WriteCommand::SetRange { key, value, .. } => key.len() + value.len(),
        WriteCommand::SetMany { pairs, .. } => pairs
            .iter()
            .map(|(key, value)| key.len() + value.len() + FACT_OVERHEAD)
            .sum(),
        WriteCommand::Delete { keys } | WriteCommand::SweepExpired { keys } => {
            keys.iter().map(|key| key.len() + FACT_OVERHEAD).sum()
        }
        WriteCommand::Transaction(transaction) => transaction.commands.iter().map(weight).sum(),
        WriteCommand::CompareAndDelete { key, .. }
        | WriteCommand::GetDelete { key }
        | WriteCommand::GetExpire { key, .. }
        | WriteCommand::Increment { key, .. }
        | WriteCommand::IncrementFloat { key, .. }
        | WriteCommand::Expire { key, .. }
        | WriteCommand::Persist { key } => key.len(),
        WriteCommand::Rename { source, target, .. } | WriteCommand::Copy { source, target, .. } => {
            source.len() + target.len()
        }
        WriteCommand::PutSystem { name, value } => {
            name.len() + value.as_ref().map_or(0, bytes::Bytes::len)
        }
        WriteCommand::ReplaceSystem {
            name,
            expected,
            value,
        } => name.len() + value.len() + expected.as_ref().map_or(0, bytes::Bytes::len),
        // What is kept of it may be as long as the longest reply that is kept.
        WriteCommand::Once(once) => weight(once.command()) + REQUEST_REPLY_BYTES_MAX,
        WriteCommand::QueryOutcome { .. } | WriteCommand::ForgetSessions | WriteCommand::Clear => 0,
    }
}

/// Whether a write only removes data, and so goes on when the disk is full: it is what an operator
/// needs to get out of that state.
pub(super) fn frees_space(write: &WriteCommand) -> bool {
    match write {
        WriteCommand::Delete { .. }
        | WriteCommand::CompareAndDelete { .. }
        | WriteCommand::GetDelete { .. }
        | WriteCommand::Clear
        | WriteCommand::SweepExpired { .. }
        | WriteCommand::ForgetSessions => true,
        WriteCommand::Once(once) => match once.command() {
            Command::Read(_) => true,
            Command::Write(write) => frees_space(write),
        },
        WriteCommand::Transaction(transaction) => {
            transaction.commands.iter().all(|command| match command {
                Command::Read(_) => true,
                Command::Write(write) => frees_space(write),
            })
        }
        WriteCommand::Set(_)
        | WriteCommand::CompareAndSet { .. }
        | WriteCommand::Append { .. }
        | WriteCommand::SetRange { .. }
        | WriteCommand::SetMany { .. }
        | WriteCommand::GetExpire { .. }
        | WriteCommand::Increment { .. }
        | WriteCommand::IncrementFloat { .. }
        | WriteCommand::Expire { .. }
        | WriteCommand::Persist { .. }
        | WriteCommand::Rename { .. }
        | WriteCommand::Copy { .. }
        | WriteCommand::PutSystem { .. }
        | WriteCommand::ReplaceSystem { .. }
        | WriteCommand::QueryOutcome { .. } => false,
    }
}

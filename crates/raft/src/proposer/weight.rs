//! What a command is likely to add to a batch, known before it is evaluated.

use flux_types::{Command, Set};

/// Bytes that any fact costs beside its key and value.
const FACT_OVERHEAD: usize = 32;

/// About how many bytes of facts a command makes at most, as far as its arguments tell. Commands
/// that copy stored values (RENAME, COPY) can make more: the batch then ends after them.
pub(super) fn weight(command: &Command) -> usize {
    let bytes = match command {
        Command::Set(Set { key, value, .. })
        | Command::CompareAndSet { key, value, .. }
        | Command::Append { key, value }
        | Command::SetRange { key, value, .. } => key.len() + value.len(),
        Command::SetMany { pairs, .. } => pairs
            .iter()
            .map(|(key, value)| key.len() + value.len() + FACT_OVERHEAD)
            .sum(),
        Command::Delete { keys } | Command::SweepExpired { keys } => {
            keys.iter().map(|key| key.len() + FACT_OVERHEAD).sum()
        }
        Command::Transaction(transaction) => transaction.commands.iter().map(weight).sum(),
        Command::CompareAndDelete { key, .. }
        | Command::GetDelete { key }
        | Command::GetExpire { key, .. }
        | Command::Increment { key, .. }
        | Command::IncrementFloat { key, .. }
        | Command::Expire { key, .. }
        | Command::Persist { key } => key.len(),
        Command::Rename { source, target, .. } | Command::Copy { source, target, .. } => {
            source.len() + target.len()
        }
        Command::Clear
        | Command::Get { .. }
        | Command::GetEntry { .. }
        | Command::GetMany { .. }
        | Command::Length { .. }
        | Command::GetRange { .. }
        | Command::Exists { .. }
        | Command::Touch { .. }
        | Command::Type { .. }
        | Command::Ttl { .. }
        | Command::RandomKey
        | Command::Scan(_)
        | Command::Keys { .. }
        | Command::Count => 0,
    };
    bytes.saturating_add(FACT_OVERHEAD)
}

/// Whether a write only removes data, and so goes on when the disk is full: it is what an operator
/// needs to get out of that state.
pub(super) fn frees_space(command: &Command) -> bool {
    match command {
        Command::Delete { .. }
        | Command::CompareAndDelete { .. }
        | Command::GetDelete { .. }
        | Command::Clear
        | Command::SweepExpired { .. } => true,
        Command::Transaction(transaction) => transaction
            .commands
            .iter()
            .all(|command| !command.is_write() || frees_space(command)),
        Command::Set(_)
        | Command::CompareAndSet { .. }
        | Command::Append { .. }
        | Command::SetRange { .. }
        | Command::SetMany { .. }
        | Command::GetExpire { .. }
        | Command::Increment { .. }
        | Command::IncrementFloat { .. }
        | Command::Expire { .. }
        | Command::Persist { .. }
        | Command::Rename { .. }
        | Command::Copy { .. }
        | Command::Get { .. }
        | Command::GetEntry { .. }
        | Command::GetMany { .. }
        | Command::Length { .. }
        | Command::GetRange { .. }
        | Command::Exists { .. }
        | Command::Touch { .. }
        | Command::Type { .. }
        | Command::Ttl { .. }
        | Command::RandomKey
        | Command::Scan(_)
        | Command::Keys { .. }
        | Command::Count => false,
    }
}

//! What changes in a node's data, counted, whoever changes it.

use std::sync::Arc;

use flux_raft::Shard;

use crate::exec::Home;

/// Counts what changes in a node's data, for who shares answers that were read from it. Entries
/// count, of whatever kind: more than there are changes, never less.
#[derive(Clone, Debug)]
pub struct Activity(pub(super) Arc<Home>);

impl Activity {
    /// Entries applied or being applied, of all shards: an entry counts before anybody sees it.
    #[must_use]
    pub fn begun(&self) -> u64 {
        let shards = self.0.shards();
        let applying = shards.iter().filter_map(Shard::applying);
        applying.map(|id| id.index.get()).sum()
    }

    /// Entries applied, of all shards.
    #[must_use]
    pub fn ended(&self) -> u64 {
        let shards = self.0.shards();
        let applied = shards.iter().filter_map(Shard::applied);
        applied.map(|id| id.index.get()).sum()
    }
}

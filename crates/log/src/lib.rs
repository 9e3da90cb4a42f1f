//! Segmented append-only log shared by all shards of a node: group commit, recovery, snapshot files.

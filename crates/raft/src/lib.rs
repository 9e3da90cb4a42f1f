//! Replication of a shard: openraft bound to log and store; proposer, lease gate, membership.

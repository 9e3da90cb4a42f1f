//! The deterministic in-memory state of a shard: evaluate, apply, expiry, snapshot walk.

//! The change stream: what was committed, read from the log, for whoever wants to follow it.
//!
//! Emits only committed changes, in order of revision within a shard, at least once; never slows a
//! commit. Nothing is queued in memory: whoever is slow reads later, from the log.

//! The deterministic in-memory state of a shard: evaluate, apply, expiry, snapshot walk.
//!
//! A [`Store`] is one shard's data on one replica. On the leader an [`Evaluation`] turns commands
//! into replies and a batch of facts; on every replica [`Store::apply`] takes a committed batch in.
//! Both are plain functions of their arguments: this room reads no clock, draws no entropy, does
//! no I/O, writes no log and knows no runtime; time and seeds come in from above. Reads go
//! [`Store::get`] (one key, formatted in place) or [`Store::read`] (any reading command).
//!
//! Reading order: `raw` (the entry, one allocation; all unsafe code), `table` (one stripe),
//! `store` (stripes and locks), `batch` (the bytes of facts), `apply`, `evaluate`, `wheel` and
//! `expiry`, `snapshot`.
//!
//! **Locks.** In this order, each optional: applier, then wheel, then stripes by rising number.
//! Whoever holds a stripe takes nothing else but a stripe with a higher number, or the system data. There is one
//! applier at a time; an [`Evaluation`] must not live across an [`Store::apply`].

mod apply;
pub mod batch;
mod error;
mod evaluate;
mod expiry;
#[doc(hidden)]
pub mod fuzzing;
mod glob;
mod hash;
mod kept;
mod number;
mod part;
mod raw;
mod read;
mod replay;
mod requests;
mod snapshot;
mod store;
mod system;
mod table;
mod wheel;

#[cfg(test)]
#[expect(
    clippy::wildcard_enum_match_arm,
    clippy::too_many_lines,
    reason = "a test names the outcome it wants and refuses all others; tables are long"
)]
mod tests;

pub use batch::{BatchError, BatchView, BatchWriter, FactRef};
pub use evaluate::Evaluation;
pub use hash::KeyHash;
pub use kept::Kept;
pub use part::KeyFilter;
pub use read::Read;
pub use replay::Replayer;
pub use snapshot::{About, BlockEntry, BlockError, Loader, Walk, WalkAborted, block_entries};
pub use store::{Dropped, EntryRef, Lookup, Stats, Store, StoreConfig};

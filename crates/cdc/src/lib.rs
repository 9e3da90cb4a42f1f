//! The change stream: what was committed, read from the log, for whoever wants to follow it.
//!
//! Emits only committed changes that are on this disk, in order of revision within a shard, at
//! least once; never slows a commit. Nothing is queued in memory: whoever is slow reads later, from
//! the log. Read in this order: [`event`] is what there is to tell, [`cursor`] how far somebody has
//! got, [`origin`] what a shard must offer, `tail` one shard's changes, `family` those of shards that
//! are split off, [`feed`] all of them together, [`envelope`] how an event looks outside, [`share`] how readers give way to writers. `rabbitmq` publishes events, `consumer` reads
//! them again.

#[cfg(feature = "rabbitmq")]
pub mod consumer;
pub mod cursor;
pub mod envelope;
pub mod error;
pub mod event;
mod family;
pub mod feed;
pub mod origin;
#[cfg(feature = "rabbitmq")]
pub mod rabbitmq;
pub mod share;
mod tail;
#[cfg(test)]
mod tests;

pub use cursor::{Cursor, CursorError, Place, Start};
pub use envelope::Envelope;
pub use error::CdcError;
pub use event::{Change, Control, Event, Group, Position};
pub use feed::{Batch, Feed, OnGap, Reach, Request};
pub use origin::{Fetched, Origin, Origins, Wanted};
pub use share::{Reader, Share};

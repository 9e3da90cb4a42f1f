//! The consumer: reads events from a queue, hands each to an output once, and acknowledges it.
//!
//! The order is what makes it safe: the output settles, then the checkpoint is written, then the
//! broker is told. A death in between brings events a second time, and [`Marks`] knows them. Read
//! [`Consumer`] first.

pub mod pretty;

mod arrival;
mod checkpoint;
mod marks;
mod output;
mod run;
mod traced;

pub use arrival::Arrival;
pub use checkpoint::{Checkpoint, CheckpointError, Progress};
pub use marks::{EventId, Marks};
pub use output::{FileOutput, Format, Output, StreamOutput};
pub use run::{Consumer, ConsumerConfig, ConsumerError, Notice, Summary};

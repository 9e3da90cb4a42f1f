//! End to end: the real binary, real sockets, real programs against it.
//!
//! Every process listens on free ports and says where in its ready file, works in its own
//! temporary folder, and is waited for by what it says or by its end, never by a pause. What a
//! machine lacks is reported as skipped, by name, to `scripts/test`.
#![expect(
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::wildcard_enum_match_arm,
    reason = "these tests run outside of the product, against real clocks, files and processes"
)]

mod harness;

mod attack;
mod cdc_consumer;
mod cdc_document;
mod changes;
mod cli;
mod cluster;
mod compose;
mod crash;
mod damage;
mod discovery;
mod discovery_guide;
mod examples;
mod failing_disk;
mod founding;
mod gateway_changes;
mod grpc;
mod hostile;
mod libraries;
mod mistakes;
mod observability;
mod rabbitmq;
mod readme;
mod redis_crate;
mod redis_differential;
mod redis_tools;
mod resilience;
mod retries;
mod shutdown;
mod traces;

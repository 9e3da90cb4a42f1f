//! A whole cluster in one seeded process: fault plans, client histories, linearizability check.
//!
//! Nodes are the real shards on the real log and store; the disk, the clocks, the network and who runs
//! when are simulated, and follow from one seed. A run works on a cluster while things break, heals it,
//! and judges what clients saw and what replicas hold (`docs/simulation.md`). It must never be green
//! because little happened, and it must find the bugs of `flux_types::bug`.

mod changes;
mod client;
mod clock;
mod executor;
mod failure;
mod faults;
mod machine;
mod moves;
mod network;
mod run;
mod splits;
mod watched;

pub use executor::{Bounds, Executor, Stuck};
pub use failure::Failure;
pub use faults::Fault;
pub use run::{Plan, Report, run};

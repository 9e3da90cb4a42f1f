//! Runs of the simulation: the suite's seeds, that they repeat, and that planted bugs are found.

mod bugs;
mod seeds;

//! Rust SDK: FLUX frames over TCP, pipelined, honest about unknown outcomes.

//! Any bytes as commands and answers between nodes.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| flux_wire::fuzzing::forward(input));

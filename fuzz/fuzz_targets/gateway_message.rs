//! Any bytes as a message to be written as JSON.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| flux_gateway::fuzzing::message(input));

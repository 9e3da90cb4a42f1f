//! Any bytes as the JSON of a request.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| flux_gateway::fuzzing::json(input));

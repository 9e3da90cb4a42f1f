//! Any bytes as a path, a path template and an HTTP/1.1 connection.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| flux_gateway::fuzzing::route(input));

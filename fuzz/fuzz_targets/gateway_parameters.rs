//! Any bytes as a query or a form.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| flux_gateway::fuzzing::parameters(input));

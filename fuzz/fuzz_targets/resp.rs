//! Any bytes as RESP requests and replies.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| flux_wire::fuzzing::resp(input));

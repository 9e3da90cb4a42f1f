//! Any bytes as a batch of facts.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| flux_store::fuzzing::batch(input));

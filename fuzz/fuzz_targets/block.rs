//! Any bytes as a block of a snapshot.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| flux_store::fuzzing::block(input));

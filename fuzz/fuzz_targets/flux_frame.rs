//! Any bytes as a FLUX preface, frames and payloads.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| flux_wire::fuzzing::flux_frame(input));

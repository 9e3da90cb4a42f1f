//! Any bytes as the records of a log segment.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| flux_log::fuzzing::log_record(input));

//! Any bytes as frames and messages of replication.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| flux_raft::network::message::fuzz_peer_messages(input));

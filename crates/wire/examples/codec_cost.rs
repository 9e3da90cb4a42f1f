//! Measures what decoding and encoding cost: `cargo run --profile dist -p flux-wire --example
//! codec_cost`. One line for each case, in nanoseconds per request.

#![expect(clippy::print_stdout, reason = "a measurement is printed")]
#![expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]

use std::hint::black_box;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use flux_types::{Compare, Expiry, Revision};
use flux_wire::Limits;
use flux_wire::flux::{EntryRef, FrameDecoder, Operation, response};
use flux_wire::resp::{Decoder, Version, Writer, encode_command};

const PIPELINE: usize = 64;
const ROUNDS: usize = 20_000;
const VALUE: [u8; 64] = [b'v'; 64];

fn main() {
    let set: [&[u8]; 3] = [b"SET", b"key:000000000001", &VALUE];
    resp("resp get", &[b"GET", b"key:000000000001"]);
    resp("resp set", &set);
    resp("resp incr", &[b"INCR", b"key:000000000001"]);
    resp("resp set ex", &[&set[..], &[b"EX", b"10"]].concat());
    flux();
    replies();
}

/// Runs `round` many times and prints what one of its requests costs.
fn measure(name: &str, mut round: impl FnMut()) {
    for _ in 0..ROUNDS / 10 {
        round();
    }
    let begin = Instant::now();
    for _ in 0..ROUNDS {
        round();
    }
    let requests = (ROUNDS * PIPELINE) as f64;
    let nanos = begin.elapsed().as_secs_f64() * 1e9;
    println!("{name:<16} {:6.1} ns", nanos / requests);
}

fn resp(name: &str, argv: &[&[u8]]) {
    let mut pipeline = BytesMut::new();
    for _ in 0..PIPELINE {
        encode_command(&mut pipeline, argv);
    }
    let mut decoder = Decoder::new(Limits::default());
    decoder.set_authenticated(true);
    let mut buffer = BytesMut::new();
    measure(name, || {
        buffer.reserve(pipeline.len());
        buffer.extend_from_slice(&pipeline);
        while let Ok(Some(decoded)) = decoder.next(&mut buffer) {
            black_box(decoded);
        }
    });
}

fn flux() {
    let mut pipeline = BytesMut::new();
    let operation = Operation::CompareAndSet {
        key: Bytes::from_static(b"key:000000000001"),
        expected: Compare::RevisionIs(Revision::new(7)),
        value: Bytes::from_static(&VALUE),
        expiry: Expiry::Clear,
    };
    for correlation in 0..PIPELINE as u64 {
        let written = operation.write(&mut pipeline, correlation, 0, 4096);
        assert!(written.is_ok(), "the operation is short");
    }
    let mut decoder = FrameDecoder::new(4096);
    let mut buffer = BytesMut::new();
    measure("flux cas", || {
        buffer.reserve(pipeline.len());
        buffer.extend_from_slice(&pipeline);
        while let Ok(Some(frame)) = decoder.next(&mut buffer) {
            let operation = Operation::decode(frame.header.op, frame.payload);
            black_box(operation.and_then(|operation| operation.into_request(Limits::default())))
                .ok();
        }
    });
}

fn replies() {
    let mut out = BytesMut::with_capacity(64 * 1024);
    measure("resp bulk reply", || {
        out.clear();
        for _ in 0..PIPELINE {
            Writer::new(&mut out, Version::Resp2).bulk(black_box(&VALUE));
        }
    });
    measure("flux entry reply", || {
        out.clear();
        for correlation in 0..PIPELINE as u64 {
            let entry = EntryRef {
                value: black_box(&VALUE),
                revision: Revision::new(7),
                deadline: None,
            };
            response::write_entry(&mut out, correlation, Revision::new(9), Some(entry), 4096);
        }
    });
}

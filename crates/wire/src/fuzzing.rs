//! What the fuzz targets run, and what the suite replays their corpora through.
//!
//! Each function takes any bytes, decodes them whole and in pieces, and asserts what must hold of
//! every input: no panic, the same result however the bytes are split, and that what was decoded
//! and can be encoded decodes to itself.

use bytes::{Bytes, BytesMut};
use flux_types::Error;

use crate::flux::{Credentials, PREFACE_BYTES};
use crate::flux::{FrameDecoder, Goaway, Kind, Operation, Preface, Response};
use crate::forward::{Forwarded, read_answers, write_answers};
use crate::resp::{Decoder, ValueDecoder, encode_command};
use crate::{Limits, sniff};

/// A limit small enough that a fuzzer meets it.
const LIMITS: Limits = Limits {
    value_bytes_max: 4096,
};

/// Any bytes as RESP requests, and as RESP replies.
///
/// # Panics
/// If splitting the input changes what it means, or an argument vector does not survive encoding.
pub fn resp(input: &[u8]) {
    let _sniffed = sniff(input);
    for is_authenticated in [false, true] {
        let whole = requests(input, input.len().max(1), is_authenticated);
        for piece in [1, 7] {
            assert_eq!(whole, requests(input, piece, is_authenticated));
        }
        for argv in &whole.0 {
            assert_eq!(round_trip(argv).as_ref(), Some(argv));
        }
        parsed(input, is_authenticated);
    }
    let whole = values(input, input.len().max(1));
    assert_eq!(whole, values(input, 1));
}

/// All commands in `input`, given in pieces, and how it ended.
fn requests(input: &[u8], piece: usize, is_authenticated: bool) -> (Vec<Vec<Bytes>>, String) {
    let mut decoder = Decoder::new(LIMITS);
    decoder.set_authenticated(is_authenticated);
    let mut buffer = BytesMut::new();
    let mut argvs = Vec::new();
    for chunk in input.chunks(piece) {
        buffer.extend_from_slice(chunk);
        loop {
            match decoder.next_argv(&mut buffer) {
                Ok(Some(argv)) => {
                    assert!(!argv.is_empty(), "a command has a name");
                    argvs.push(argv);
                }
                Ok(None) => break,
                Err(error) => return (argvs, error.to_string()),
            }
        }
    }
    (argvs, String::new())
}

/// Decodes as a server does, which must find as many requests as [`requests`].
fn parsed(input: &[u8], is_authenticated: bool) {
    let mut decoder = Decoder::new(LIMITS);
    decoder.set_authenticated(is_authenticated);
    let mut buffer = BytesMut::from(input);
    let mut count = 0_usize;
    while let Ok(Some(_)) = decoder.next(&mut buffer) {
        count += 1;
    }
    let (argvs, _) = requests(input, input.len().max(1), is_authenticated);
    assert_eq!(count, argvs.len());
}

fn round_trip(argv: &[Bytes]) -> Option<Vec<Bytes>> {
    let mut buffer = BytesMut::new();
    encode_command(&mut buffer, argv);
    // The limits differ so that an inline command of any length is accepted again.
    let mut decoder = Decoder::new(Limits::default());
    decoder.set_authenticated(true);
    decoder.next_argv(&mut buffer).ok().flatten()
}

/// All replies in `input`, given in pieces, and how it ended, as text: NaN is not equal to itself.
fn values(input: &[u8], piece: usize) -> String {
    let mut decoder = ValueDecoder::new(LIMITS.value_bytes_max);
    let mut buffer = BytesMut::new();
    let mut found = Vec::new();
    for chunk in input.chunks(piece) {
        buffer.extend_from_slice(chunk);
        loop {
            match decoder.next(&mut buffer) {
                Ok(Some(value)) => found.push(value),
                Ok(None) => break,
                Err(error) => return format!("{found:?} {error}"),
            }
        }
    }
    format!("{found:?}")
}

/// Any bytes as a FLUX preface, and as FLUX frames with what they carry.
///
/// # Panics
/// If splitting the input changes what it means, or an operation does not survive encoding.
pub fn flux_frame(input: &[u8]) {
    let _sniffed = sniff(input);
    if let Some(preface) = input.first_chunk::<PREFACE_BYTES>()
        && let Ok(preface) = Preface::decode(preface)
    {
        assert_eq!(Preface::decode(&preface.encode()), Ok(preface));
        let _answer = Preface::answer(&preface, LIMITS.frame_bytes_max());
    }
    let whole = frames(input, input.len().max(1));
    assert_eq!(whole, frames(input, 1));
    // Most random frames have a wrong checksum, so payloads are also tried by themselves.
    if let Some((&op, payload)) = input.split_first() {
        let payload = Bytes::copy_from_slice(payload);
        let _credentials = Credentials::decode(payload.clone());
        let _goaway = Goaway::decode(payload.clone());
        operation(op, payload);
    }
}

/// All frames in `input`, given in pieces, and how it ended.
fn frames(input: &[u8], piece: usize) -> String {
    let mut decoder = FrameDecoder::new(LIMITS.frame_bytes_max());
    let mut buffer = BytesMut::new();
    let mut found = String::new();
    for chunk in input.chunks(piece) {
        buffer.extend_from_slice(chunk);
        loop {
            match decoder.next(&mut buffer) {
                Ok(Some(frame)) => {
                    found.push_str(&format!("{frame:?}\n"));
                    if frame.header.kind == Kind::Request {
                        operation(frame.header.op, frame.payload);
                    } else {
                        let _response = Response::decode(frame);
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    found.push_str(&error.to_string());
                    return found;
                }
            }
        }
    }
    found
}

fn operation(op: u8, payload: Bytes) {
    let Ok(operation) = Operation::decode(op, payload.clone()) else {
        return;
    };
    assert_eq!(operation.op().number(), op);
    let mut out = BytesMut::new();
    operation
        .write(&mut out, 1, 0, payload.len())
        .expect("an operation is as long as it was");
    let frame = FrameDecoder::new(payload.len()).next(&mut out);
    let again = frame.expect("what is written is a frame");
    assert_eq!(again.map(|frame| frame.payload), Some(payload));
    let _request: Result<_, Error> = operation.into_request(LIMITS);
}

/// Any bytes as commands and answers between nodes.
///
/// # Panics
/// If what was read and written again is read differently.
pub fn forward(input: &[u8]) {
    let payload = Bytes::copy_from_slice(input);
    if let Ok(forwarded) = Forwarded::read(payload.clone()) {
        let mut out = BytesMut::new();
        forwarded.write(&mut out);
        // Compared as bytes: NaN is not equal to itself.
        assert_eq!(out.freeze(), payload);
    }
    if let Ok(answers) = read_answers(payload) {
        let mut out = BytesMut::new();
        write_answers(&mut out, &answers);
        let again = read_answers(out.freeze()).expect("what is written can be read");
        assert_eq!(answers, again);
    }
}

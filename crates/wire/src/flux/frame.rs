//! Frames: a header of 24 bytes, little-endian, and a payload (`docs/wire.md`, "Frames").
//!
//! Hot path: a payload is a slice of the read buffer, never a copy; a frame is written in place
//! behind what is already in the buffer.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flux_types::limits;

use super::VERSION;

/// The flag of a request frame before whose payload stands a request id.
const CARRIES_REQUEST_ID: u8 = 1;
/// The flag of a request that any replica may answer.
const IS_STALE: u8 = 2;

/// Length of a header.
pub const HEADER_BYTES: usize = 24;

/// What a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A client asks for an operation.
    Request,
    /// A server answers a request or an authentication.
    Response,
    /// A server tells of a change.
    Event,
    /// A client allows more events.
    Credit,
    /// Either side asks whether the other lives.
    Ping,
    /// The answer, with the same correlation id and payload.
    Pong,
    /// A side says why it is about to close.
    Goaway,
    /// A client no longer waits for an answer.
    Cancel,
    /// A client authenticates.
    Auth,
}

impl Kind {
    /// Its number in a header.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Request => 1,
            Self::Response => 2,
            Self::Event => 3,
            Self::Credit => 4,
            Self::Ping => 5,
            Self::Pong => 6,
            Self::Goaway => 7,
            Self::Cancel => 8,
            Self::Auth => 9,
        }
    }

    /// The kind of a number, if it is assigned.
    #[must_use]
    pub const fn of_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Event,
            4 => Self::Credit,
            5 => Self::Ping,
            6 => Self::Pong,
            7 => Self::Goaway,
            8 => Self::Cancel,
            9 => Self::Auth,
            _ => return None,
        })
    }
}

/// What a header says beside length and checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the frame is for.
    pub kind: Kind,
    /// The number of the operation in requests and their responses, which may be one that is not
    /// known here; else 0. See [`super::Op`].
    pub op: u8,
    /// Chosen by the client, repeated in the response.
    pub correlation: u64,
    /// Of a request: whether a request id stands before what the operation carries; else false.
    /// See [`super::take_request_id`].
    pub carries_request_id: bool,
    /// Of a request: whether the node that is asked answers a read from its own replica, which may
    /// be behind; else false.
    pub is_stale: bool,
    /// Of a request: milliseconds in which an answer is of use, 0 for the server's default. Of a
    /// response: 0, or the number of its error code. Else 0.
    pub word: u32,
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it says about itself.
    pub header: Header,
    /// What it carries.
    pub payload: Bytes,
}

/// Bytes that are no frame. Fatal: where the next one begins is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The header's version is not the one agreed on.
    #[error("frame of version {0}, expected {VERSION}")]
    UnknownVersion(u8),
    /// The kind is not assigned.
    #[error("frame of unknown kind {0}")]
    UnknownKind(u8),
    /// A flag is not assigned to this kind of frame.
    #[error("frame flags {0:#04x} are not assigned")]
    UnknownFlags(u8),
    /// The payload is longer than this side accepts.
    #[error("frame of {length} bytes, the limit is {bytes_max}")]
    TooLong {
        /// Its length in bytes.
        length: u32,
        /// The limit in bytes.
        bytes_max: usize,
    },
    /// The checksum does not fit the bytes.
    #[error("frame with a wrong checksum")]
    BadChecksum,
}

/// A frame that was not written because the other side would not accept it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("frame of {length} bytes, the other side accepts {bytes_max}")]
pub struct TooLong {
    /// Its length in bytes.
    pub length: usize,
    /// The limit in bytes.
    pub bytes_max: usize,
}

/// The frame decoder of one connection.
#[derive(Clone, Debug)]
pub struct FrameDecoder {
    payload_bytes_max: usize,
    wanted: usize,
}

/// A header as it was read.
struct Announced {
    header: Header,
    length: usize,
    checksum: u32,
}

impl FrameDecoder {
    /// A decoder that refuses longer payloads. A server begins with
    /// [`limits::UNAUTHENTICATED_BULK_BYTES_MAX`] where it asks for a password.
    #[must_use]
    pub const fn new(payload_bytes_max: usize) -> Self {
        Self {
            payload_bytes_max,
            wanted: 0,
        }
    }

    /// Changes the limit, for the frames not yet begun and the one that is.
    pub const fn set_payload_bytes_max(&mut self, payload_bytes_max: usize) {
        self.payload_bytes_max = payload_bytes_max;
    }

    /// How many more bytes the frame in hand is known to need; for [`crate::reserve_for_read`].
    #[must_use]
    pub const fn wanted(&self) -> usize {
        self.wanted
    }

    /// Takes the next frame from the front of `buffer`, or `None` if it is not all there yet. The
    /// header is judged as soon as it is there, before the payload is waited for.
    ///
    /// # Errors
    /// The bytes are no frame: say why with a GOAWAY and close.
    pub fn next(&mut self, buffer: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        let Some(bytes) = buffer.first_chunk::<HEADER_BYTES>() else {
            self.wanted = HEADER_BYTES - buffer.len();
            return Ok(None);
        };
        let announced = self.header(bytes)?;
        let end = HEADER_BYTES + announced.length;
        let Some(payload) = buffer.get(HEADER_BYTES..end) else {
            self.wanted = end - buffer.len();
            return Ok(None);
        };
        if checksum(bytes, payload) != announced.checksum {
            return Err(FrameError::BadChecksum);
        }
        self.wanted = 0;
        buffer.advance(HEADER_BYTES);
        Ok(Some(Frame {
            header: announced.header,
            payload: buffer.split_to(announced.length).freeze(),
        }))
    }

    fn header(&self, bytes: &[u8; HEADER_BYTES]) -> Result<Announced, FrameError> {
        let [
            l0,
            l1,
            l2,
            l3,
            version,
            kind,
            op,
            flags,
            r0,
            r1,
            r2,
            r3,
            r4,
            r5,
            r6,
            r7,
            w0,
            w1,
            w2,
            w3,
            c0,
            c1,
            c2,
            c3,
        ] = *bytes;
        if version != VERSION {
            return Err(FrameError::UnknownVersion(version));
        }
        let kind = Kind::of_number(kind).ok_or(FrameError::UnknownKind(kind))?;
        let assigned = if kind == Kind::Request {
            CARRIES_REQUEST_ID | IS_STALE
        } else {
            0
        };
        if flags & !assigned != 0 {
            return Err(FrameError::UnknownFlags(flags));
        }
        let length = u32::from_le_bytes([l0, l1, l2, l3]);
        if length as usize > self.payload_bytes_max {
            return Err(FrameError::TooLong {
                length,
                bytes_max: self.payload_bytes_max,
            });
        }
        Ok(Announced {
            header: Header {
                kind,
                op,
                correlation: u64::from_le_bytes([r0, r1, r2, r3, r4, r5, r6, r7]),
                carries_request_id: flags & CARRIES_REQUEST_ID != 0,
                is_stale: flags & IS_STALE != 0,
                word: u32::from_le_bytes([w0, w1, w2, w3]),
            },
            length: length as usize,
            checksum: u32::from_le_bytes([c0, c1, c2, c3]),
        })
    }
}

/// Appends a frame whose payload `fill` appends.
///
/// # Errors
/// The payload is longer than `payload_bytes_max`; the buffer is as before.
pub fn write_frame(
    out: &mut BytesMut,
    header: Header,
    payload_bytes_max: usize,
    fill: impl FnOnce(&mut BytesMut),
) -> Result<(), TooLong> {
    let start = out.len();
    out.put_bytes(0, HEADER_BYTES);
    fill(out);
    let length = out.len() - start - HEADER_BYTES;
    let bytes_max = payload_bytes_max.min(limits::FRAME_BYTES_MAX);
    let announced = u32::try_from(length).ok().filter(|_| length <= bytes_max);
    let frame = out.get_mut(start..).unwrap_or_default();
    let (Some(announced), Some((head, payload))) =
        (announced, frame.split_first_chunk_mut::<HEADER_BYTES>())
    else {
        out.truncate(start);
        return Err(TooLong { length, bytes_max });
    };
    let mut rest = head.as_mut_slice();
    rest.put_u32_le(announced);
    rest.put_u8(VERSION);
    rest.put_u8(header.kind.number());
    rest.put_u8(header.op);
    let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
    rest.put_u8(
        flag(header.carries_request_id, CARRIES_REQUEST_ID) | flag(header.is_stale, IS_STALE),
    );
    rest.put_u64_le(header.correlation);
    rest.put_u32_le(header.word);
    let sum = checksum(head, payload);
    if let Some(last) = head.last_chunk_mut::<4>() {
        *last = sum.to_le_bytes();
    }
    Ok(())
}

/// CRC32C of the header, its checksum counted as zeros, and the payload.
fn checksum(header: &[u8; HEADER_BYTES], payload: &[u8]) -> u32 {
    let (head, _) = header.split_at(HEADER_BYTES - 4);
    let sum = crc32c::crc32c(head);
    let sum = crc32c::crc32c_append(sum, &[0; 4]);
    crc32c::crc32c_append(sum, payload)
}

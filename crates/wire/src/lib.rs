//! Bytes to commands and replies to bytes: FLUX frames and RESP2/RESP3, without I/O.
//!
//! Nothing here reads a socket or a clock: decoders take the bytes that have arrived and say what
//! they mean or that more are needed; encoders append to a buffer that the caller sends. Lengths
//! announced by a peer are checked against [`flux_types::limits`] before anything is allocated,
//! and buffers grow with the bytes received, never with the bytes announced.
//!
//! Read in this order: [`mod@sniff`] tells the two protocols of the port apart; [`resp`] decodes
//! Redis's protocol, holds the command table and encodes replies; [`flux`] is the framed protocol
//! of `docs/wire.md`; [`forward`] is how commands go from node to node. [`fuzzing`] holds the entry points of the fuzz targets.

pub mod flux;
pub mod forward;
pub mod fuzzing;
pub mod number;
pub mod resp;
pub mod sniff;

pub use sniff::{HTTP_ANSWER, Sniffed, sniff};

use flux_types::limits;

/// What a connection may send, as configured. Everything else is a constant of
/// [`flux_types::limits`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest value, in bytes; at most [`limits::VALUE_BYTES_MAX`].
    pub value_bytes_max: usize,
}

impl Limits {
    /// Longest RESP bulk and longest FLUX payload, in bytes: one value and what surrounds it.
    #[must_use]
    pub const fn frame_bytes_max(self) -> usize {
        if self.value_bytes_max < limits::VALUE_BYTES_MAX {
            self.value_bytes_max + limits::FRAME_OVERHEAD_BYTES
        } else {
            limits::FRAME_BYTES_MAX
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            value_bytes_max: limits::VALUE_BYTES_DEFAULT,
        }
    }
}

/// Free space that a read buffer should offer before every read, in bytes.
pub const READ_BYTES_MIN: usize = 16 * 1024;

/// Makes room in `buffer` for the next read, when `wanted` more bytes are known to follow (0: not
/// known). At least [`READ_BYTES_MIN`] bytes; towards a large request it doubles what has
/// arrived, so that a peer who announces much and sends little costs little.
pub fn reserve_for_read(buffer: &mut bytes::BytesMut, wanted: usize) {
    let earned = buffer.len().max(READ_BYTES_MIN);
    let room = wanted.clamp(READ_BYTES_MIN, earned);
    if buffer.capacity() - buffer.len() < room {
        buffer.reserve(room);
    }
}

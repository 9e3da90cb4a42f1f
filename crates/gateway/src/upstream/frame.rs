//! gRPC's message framing: one byte of flags, four of length, the message.

use bytes::{BufMut, Bytes, BytesMut};

/// Flags and length.
const HEADER: usize = 5;

/// Why the bytes are not messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FrameError {
    /// The message is compressed, which was not offered.
    Compressed,
    /// The length is beyond the limit.
    TooLarge,
}

/// One message with its frame.
pub(crate) fn frame(message: &[u8]) -> Option<Bytes> {
    let length = u32::try_from(message.len()).ok()?;
    let mut framed = BytesMut::with_capacity(HEADER + message.len());
    framed.put_u8(0);
    framed.put_u32(length);
    framed.extend_from_slice(message);
    Some(framed.freeze())
}

/// Puts messages together from the pieces in which they arrive.
#[derive(Debug)]
pub(crate) struct Unframer {
    buffer: Buffer,
    message_bytes_max: usize,
}

/// One piece is kept as it came, so that a message that arrives whole is not copied.
#[derive(Debug)]
enum Buffer {
    One(Bytes),
    Many(BytesMut),
}

impl Unframer {
    pub(crate) const fn new(message_bytes_max: usize) -> Self {
        Self {
            buffer: Buffer::One(Bytes::new()),
            message_bytes_max,
        }
    }

    pub(crate) fn push(&mut self, piece: Bytes) {
        match &mut self.buffer {
            Buffer::One(one) if one.is_empty() => *one = piece,
            Buffer::One(one) => {
                let mut many = BytesMut::with_capacity(one.len() + piece.len());
                many.extend_from_slice(one);
                many.extend_from_slice(&piece);
                self.buffer = Buffer::Many(many);
            }
            Buffer::Many(many) => many.extend_from_slice(&piece),
        }
    }

    /// Whether everything pushed was taken.
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes().is_empty()
    }

    /// The next whole message; `None` until it has arrived.
    pub(crate) fn next(&mut self) -> Result<Option<Bytes>, FrameError> {
        let Some((header, rest)) = self.bytes().split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let [flags, a, b, c, d] = *header;
        if flags != 0 {
            return Err(FrameError::Compressed);
        }
        let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        if length > self.message_bytes_max {
            return Err(FrameError::TooLarge);
        }
        if rest.len() < length {
            return Ok(None);
        }
        let mut framed = match &mut self.buffer {
            Buffer::One(one) => one.split_to(HEADER + length),
            Buffer::Many(many) => many.split_to(HEADER + length).freeze(),
        };
        Ok(Some(framed.split_off(HEADER)))
    }

    fn bytes(&self) -> &[u8] {
        match &self.buffer {
            Buffer::One(one) => one,
            Buffer::Many(many) => many,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_out_whole_at_every_split() {
        let mut stream = BytesMut::new();
        for message in [&b"hello"[..], b"", b"world!"] {
            stream.extend_from_slice(&frame(message).unwrap());
        }
        let stream = stream.freeze();
        for first in 0..stream.len() {
            for second in first..stream.len() {
                let mut unframer = Unframer::new(10);
                let mut messages = Vec::new();
                for piece in [
                    stream.slice(..first),
                    stream.slice(first..second),
                    stream.slice(second..),
                ] {
                    unframer.push(piece);
                    while let Some(message) = unframer.next().unwrap() {
                        messages.push(message);
                    }
                }
                assert_eq!(
                    messages,
                    [&b"hello"[..], b"", b"world!"],
                    "{first} {second}"
                );
                assert!(unframer.is_empty());
            }
        }
    }

    #[test]
    fn a_length_is_not_believed() {
        let mut unframer = Unframer::new(10);
        unframer.push(Bytes::from_static(&[0, 0xff, 0xff, 0xff, 0xff]));
        assert_eq!(unframer.next(), Err(FrameError::TooLarge));
        let mut unframer = Unframer::new(10);
        unframer.push(Bytes::from_static(&[1, 0, 0, 0, 0]));
        assert_eq!(unframer.next(), Err(FrameError::Compressed));
    }
}

//! Frames between nodes: a header of 24 bytes and a payload (`docs/replication.md`, "Frames").
//!
//! ```text
//! offset size field
//!      0    4 length of the payload in bytes
//!      4    1 kind
//!      5    3 zero
//!      8    4 shard
//!     12    8 call: a reply repeats that of its request
//!     20    4 CRC32C of bytes 0..20 and the payload
//! ```
//!
//! Little-endian. A length is judged before anything is kept for it, and a buffer grows with what
//! has arrived, never with what was announced. After any error nothing on the connection can be
//! relied on: it must be closed.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Bytes of a header.
pub const PEER_HEADER_BYTES: usize = 24;
const CRC_AT: usize = 20;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FrameKind {
    /// Who calls, and what for.
    Greeting,
    /// What the caller has to answer.
    Challenge,
    /// The caller's answer.
    Proof,
    /// The caller is let in; who answers.
    Welcome,
    /// The caller is not let in.
    Refused,
    /// A leader's entries or heartbeat.
    Append,
    /// A candidate asks for a vote.
    Vote,
    /// A candidate asks whether it would get one.
    PreVote,
    /// A leader hands over.
    Transfer,
    /// A snapshot begins.
    SnapshotBegin,
    /// A block of it.
    SnapshotBlock,
    /// All of it was sent.
    SnapshotEnd,
    /// Commands for the leader.
    Forward,
    /// What a node knows of the cluster.
    News,
    /// Nothing: the other end shall show that it lives.
    Ping,
    /// The answer to a request.
    Reply,
    /// A request could not be answered.
    Failed,
    /// No further requests, please: this end will close.
    Goodbye,
    /// Old entries that the caller's log does not hold any more.
    History,
}

impl FrameKind {
    /// All, in the order of their numbers, which begin with 1.
    const ALL: [Self; 19] = [
        Self::Greeting,
        Self::Challenge,
        Self::Proof,
        Self::Welcome,
        Self::Refused,
        Self::Append,
        Self::Vote,
        Self::PreVote,
        Self::Transfer,
        Self::SnapshotBegin,
        Self::SnapshotBlock,
        Self::SnapshotEnd,
        Self::Forward,
        Self::News,
        Self::Ping,
        Self::Reply,
        Self::Failed,
        Self::Goodbye,
        Self::History,
    ];

    /// Its number in a header.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8 + 1
    }

    /// The kind of a number, if it is assigned.
    #[must_use]
    pub fn of_number(number: u8) -> Option<Self> {
        let index = usize::from(number).checked_sub(1)?;
        Self::ALL.get(index).copied()
    }
}

/// A frame that has arrived whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerFrame {
    /// What it is.
    pub kind: FrameKind,
    /// The shard it concerns; 0 where it concerns none.
    pub shard: u32,
    /// Which call it belongs to.
    pub call: u64,
    /// What it carries.
    pub payload: Bytes,
}

/// Why the bytes of a connection are no frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerFrameError {
    /// Longer than allowed.
    #[error("a frame of {length} bytes where at most {bytes_max} are allowed")]
    TooLong {
        /// Announced.
        length: usize,
        /// Allowed.
        bytes_max: usize,
    },
    /// A kind that this version does not know.
    #[error("a frame of unknown kind {0}")]
    UnknownKind(u8),
    /// Bytes that must be zero are not.
    #[error("a frame with a header that is not of this version")]
    Reserved,
    /// The checksum does not match.
    #[error("a frame that does not match its checksum")]
    Checksum,
}

/// Appends a frame whose payload `fill` writes.
pub fn write_peer_frame(
    out: &mut BytesMut,
    kind: FrameKind,
    shard: u32,
    call: u64,
    fill: impl FnOnce(&mut BytesMut),
) {
    let start = out.len();
    out.put_u32_le(0);
    out.put_u8(kind.number());
    out.put_slice(&[0; 3]);
    out.put_u32_le(shard);
    out.put_u64_le(call);
    out.put_u32_le(0);
    fill(out);
    let (_, frame) = out.split_at_mut(start);
    let (header, payload) = frame.split_at_mut(PEER_HEADER_BYTES);
    // A longer one is refused by whoever reads it; nothing of ours is.
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let (length_field, _) = header.split_at_mut(4);
    length_field.copy_from_slice(&length.to_le_bytes());
    let (covered, crc) = header.split_at_mut(CRC_AT);
    let sum = crc32c::crc32c_append(crc32c::crc32c(covered), payload);
    crc.copy_from_slice(&sum.to_le_bytes());
}

/// Cuts frames out of what has arrived.
#[derive(Clone, Copy, Debug)]
pub struct PeerDecoder {
    /// Longest payload.
    bytes_max: usize,
}

impl PeerDecoder {
    /// A decoder that takes payloads of at most so many bytes.
    #[must_use]
    pub const fn new(bytes_max: usize) -> Self {
        Self { bytes_max }
    }

    /// The next frame, if all of it is there.
    ///
    /// # Errors
    /// What arrives is no frame.
    pub fn next(&self, buffer: &mut BytesMut) -> Result<Option<PeerFrame>, PeerFrameError> {
        let Some(header) = buffer.first_chunk::<PEER_HEADER_BYTES>() else {
            return Ok(None);
        };
        let mut fields = &header[..];
        let length = fields.get_u32_le() as usize;
        if self.bytes_max < length {
            let bytes_max = self.bytes_max;
            return Err(PeerFrameError::TooLong { length, bytes_max });
        }
        let number = fields.get_u8();
        let kind = FrameKind::of_number(number).ok_or(PeerFrameError::UnknownKind(number))?;
        let mut reserved = [0; 3];
        fields.copy_to_slice(&mut reserved);
        if reserved != [0; 3] {
            return Err(PeerFrameError::Reserved);
        }
        let (shard, call) = (fields.get_u32_le(), fields.get_u64_le());
        let expected = fields.get_u32_le();
        let Some(whole) = buffer.get(..PEER_HEADER_BYTES + length) else {
            return Ok(None);
        };
        let (header, payload) = whole.split_at(PEER_HEADER_BYTES);
        let (covered, _) = header.split_at(CRC_AT);
        if crc32c::crc32c_append(crc32c::crc32c(covered), payload) != expected {
            return Err(PeerFrameError::Checksum);
        }
        buffer.advance(PEER_HEADER_BYTES);
        Ok(Some(PeerFrame {
            kind,
            shard,
            call,
            payload: buffer.split_to(length).freeze(),
        }))
    }

    /// How many more bytes the frame that has begun to arrive needs, as far as that is known.
    #[must_use]
    pub fn wanted(&self, buffer: &[u8]) -> usize {
        let Some(length) = buffer.first_chunk::<4>() else {
            return PEER_HEADER_BYTES;
        };
        let length = u32::from_le_bytes(*length) as usize;
        (PEER_HEADER_BYTES + length.min(self.bytes_max)).saturating_sub(buffer.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(payload: &'static [u8]) -> BytesMut {
        let mut out = BytesMut::new();
        write_peer_frame(&mut out, FrameKind::Vote, 3, 9, |out| {
            out.put_slice(payload)
        });
        out
    }

    #[test]
    fn numbers_and_kinds_match() {
        for (index, kind) in FrameKind::ALL.iter().enumerate() {
            assert_eq!(usize::from(kind.number()), index + 1);
            assert_eq!(FrameKind::of_number(kind.number()), Some(*kind));
        }
        assert_eq!(FrameKind::of_number(0), None);
        assert_eq!(FrameKind::of_number(20), None);
    }

    #[test]
    fn a_frame_arrives_whole_however_it_is_cut() {
        let whole = [&frame(b"one")[..], &frame(b"")[..]].concat();
        let decoder = PeerDecoder::new(16);
        let mut buffer = BytesMut::new();
        let mut found = Vec::new();
        for byte in whole {
            buffer.put_u8(byte);
            found.extend(decoder.next(&mut buffer).expect("frames"));
        }
        assert!(buffer.is_empty());
        let payloads: Vec<_> = found.iter().map(|frame| frame.payload.clone()).collect();
        assert_eq!(payloads, [&b"one"[..], b""]);
        assert!(
            found
                .iter()
                .all(|frame| (frame.shard, frame.call) == (3, 9))
        );
    }

    #[test]
    fn no_changed_bit_passes() {
        let whole = frame(b"payload");
        let decoder = PeerDecoder::new(64);
        for bit in 0..whole.len() * 8 {
            let mut changed = whole.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            // A longer length waits for bytes that do not come; all else is an error.
            let found = decoder.next(&mut changed);
            assert!(!matches!(found, Ok(Some(_))), "bit {bit}");
        }
    }

    #[test]
    fn a_length_is_judged_before_its_bytes_arrive() {
        let mut header = frame(b"0123456789").split_to(PEER_HEADER_BYTES);
        let (length, bytes_max) = (10, 9);
        assert_eq!(
            PeerDecoder::new(9).next(&mut header),
            Err(PeerFrameError::TooLong { length, bytes_max })
        );
        assert_eq!(PeerDecoder::new(64).wanted(&header), 10);
    }

    /// The bytes of version 1: what is written today must be read for ever.
    #[test]
    fn the_layout_is_the_documented_one() {
        let whole = frame(b"ab");
        let header = [2, 0, 0, 0, 7, 0, 0, 0, 3, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(whole[..CRC_AT], header);
        let sum = crc32c::crc32c(&[&header[..], b"ab"].concat());
        assert_eq!(whole[CRC_AT..PEER_HEADER_BYTES], sum.to_le_bytes());
        assert_eq!(whole[PEER_HEADER_BYTES..], *b"ab");
    }
}

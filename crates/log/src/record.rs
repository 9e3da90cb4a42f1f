//! Records: what an entry, a vote or a marker is as bytes. See `docs/file-format.md`.

use bytes::Bytes;
use flux_types::bug::{self, Bug};
use flux_types::{LogIndex, NodeId, ShardId, Term, UnixMillis};

use crate::fields::{Fields, length_u32, narrow, widen};

/// Size of a record's fixed header, in bytes.
pub const RECORD_HEADER_BYTES: usize = 56;
/// Records begin at multiples of this.
pub const RECORD_ALIGNMENT: usize = 8;
const FLAG_EARLIER_DURABLE: u8 = 1;
/// The shard number of records that concern the whole node.
pub const NODE_WIDE: u32 = u32::MAX;

/// Position of an entry: the term in which it was proposed, and its index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogId {
    /// The term.
    pub term: Term,
    /// The index, 1-based.
    pub index: LogIndex,
}

/// What a replica has promised: the highest term it saw and whom it voted for in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vote {
    /// The term.
    pub term: Term,
    /// The candidate or leader.
    pub node: NodeId,
    /// Whether that node is known to have won.
    pub committed: bool,
}

/// What is left of a replica that was let go and has forgotten everything but its vote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tombstone {
    /// The last entry it ever had; index 0 for none. Until its log reaches it again, the replica
    /// must judge candidates as if it were still there.
    pub last: LogId,
    /// The committed membership without this node that allowed it to forget.
    pub gone_at: LogId,
}

impl Tombstone {
    /// Size of a tombstone as a record's payload.
    pub(crate) const PAYLOAD_BYTES: usize = 16;

    /// As the payload of its record, whose position is `last`.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(Self::PAYLOAD_BYTES);
        out.extend_from_slice(&self.gone_at.term.get().to_le_bytes());
        out.extend_from_slice(&self.gone_at.index.get().to_le_bytes());
        out
    }

    /// The reverse; `None` if the payload is cut short.
    fn decode(last: LogId, payload: &[u8]) -> Option<Self> {
        let mut fields = Fields::new(payload);
        let term = Term::new(fields.u64()?);
        let index = LogIndex::new(fields.u64()?);
        let gone_at = LogId { term, index };
        Some(Self { last, gone_at })
    }
}

/// One entry of a shard's log. The payload means nothing to this room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// Where it stands.
    pub id: LogId,
    /// When it was proposed.
    pub timestamp: UnixMillis,
    /// What it carries.
    pub payload: Bytes,
}

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RecordKind {
    /// The state of all shards when the segment began; the first record of each segment.
    SegmentStart = 1,
    /// An entry of a shard's log.
    Entry = 2,
    /// A vote.
    Vote = 3,
    /// Entries after this index are void.
    TruncateAfter = 4,
    /// Entries up to this id are not needed anymore.
    PurgeTo = 5,
    /// Entries up to this id are committed. A hint, written with what comes next.
    Committed = 6,
    /// A snapshot up to this id took the place of everything before it.
    SnapshotInstalled = 7,
    /// A process opened the log; the payload holds the machine's boot id.
    Opened = 8,
    /// The log was closed in order.
    Closed = 9,
    /// The replica was let go: everything before is forgotten but the vote, and this id is the
    /// last that it ever had. The payload holds the membership that allowed it.
    Retired = 10,
}

impl RecordKind {
    /// The kind of a byte, if it is one.
    #[must_use]
    pub const fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::SegmentStart,
            2 => Self::Entry,
            3 => Self::Vote,
            4 => Self::TruncateAfter,
            5 => Self::PurgeTo,
            6 => Self::Committed,
            7 => Self::SnapshotInstalled,
            8 => Self::Opened,
            9 => Self::Closed,
            10 => Self::Retired,
            _ => return None,
        })
    }

    /// The byte of a kind.
    #[must_use]
    pub const fn to_byte(self) -> u8 {
        match self {
            Self::SegmentStart => 1,
            Self::Entry => 2,
            Self::Vote => 3,
            Self::TruncateAfter => 4,
            Self::PurgeTo => 5,
            Self::Committed => 6,
            Self::SnapshotInstalled => 7,
            Self::Opened => 8,
            Self::Closed => 9,
            Self::Retired => 10,
        }
    }
}

/// A record's header, in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// What the record is.
    pub kind: RecordKind,
    /// Checksum of the record before this one in the stream.
    pub chain: u32,
    /// The shard, or [`NODE_WIDE`].
    pub shard: u32,
    /// Where in this segment the part known to be durable ended when the record was written, in
    /// units of [`RECORD_ALIGNMENT`]. What lies before it can not be a torn write.
    pub durable: u32,
    /// Whether every earlier segment was known to be durable when the record was written.
    pub earlier_durable: bool,
    /// Counts the shard's records of every kind, without gaps.
    pub sequence: u64,
    /// Term of the entry, vote or position.
    pub term: Term,
    /// Index of the entry or position; the node of a vote.
    pub index: u64,
    /// When it was written.
    pub timestamp: UnixMillis,
}

impl RecordHeader {
    /// The position that the record is about.
    #[must_use]
    pub const fn log_id(&self) -> LogId {
        LogId {
            term: self.term,
            index: LogIndex::new(self.index),
        }
    }

    /// The shard, unless the record concerns the whole node.
    #[must_use]
    pub fn shard_id(&self) -> Option<ShardId> {
        (self.shard != NODE_WIDE).then(|| ShardId::new(self.shard))
    }
}

/// A whole record as read, its payload borrowed.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// The header.
    pub header: RecordHeader,
    /// Its checksum.
    pub crc: u32,
    /// What it carries.
    pub payload: &'a [u8],
}

impl Record<'_> {
    /// What a [`RecordKind::Retired`] says; `None` if it is another record or cut short.
    #[must_use]
    pub fn tombstone(&self) -> Option<Tombstone> {
        let is_one = self.header.kind == RecordKind::Retired;
        is_one.then(|| Tombstone::decode(self.header.log_id(), self.payload))?
    }

    /// Size with header and padding, in bytes.
    #[must_use]
    pub const fn size(&self) -> usize {
        record_size(self.payload.len())
    }
}

/// Why bytes are not a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The bytes end before the record does.
    #[error("record cut short")]
    Short,
    /// The checksum does not match.
    #[error("checksum does not match")]
    Checksum,
    /// The checksum matches, but the kind is not known: written by a newer program.
    #[error("record kind {0} is not known")]
    Kind(u8),
}

/// Size of a record with a payload of `payload_bytes`, padding included.
#[must_use]
pub const fn record_size(payload_bytes: usize) -> usize {
    (RECORD_HEADER_BYTES + payload_bytes).next_multiple_of(RECORD_ALIGNMENT)
}

/// Size of the record at the front of `bytes`, if its length is to be believed.
pub(crate) fn size_at(bytes: &[u8]) -> usize {
    let length = Fields::new(bytes).u32().unwrap_or(0);
    record_size(narrow(u64::from(length)))
}

/// Appends a record to `out` and returns its checksum.
///
/// # Panics
/// If the payload is 4 GiB or longer.
pub fn encode(out: &mut Vec<u8>, salt: u64, header: &RecordHeader, payload: &[u8]) -> u32 {
    let begin = out.len();
    out.reserve(record_size(payload.len()));
    out.extend_from_slice(&length_u32(payload).to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.push(header.kind.to_byte());
    out.push(if header.earlier_durable {
        FLAG_EARLIER_DURABLE
    } else {
        0
    });
    out.extend_from_slice(&[0; 2]);
    out.extend_from_slice(&header.chain.to_le_bytes());
    out.extend_from_slice(&header.shard.to_le_bytes());
    out.extend_from_slice(&header.durable.to_le_bytes());
    out.extend_from_slice(&header.sequence.to_le_bytes());
    out.extend_from_slice(&header.term.get().to_le_bytes());
    out.extend_from_slice(&header.index.to_le_bytes());
    out.extend_from_slice(&header.timestamp.get().to_le_bytes());
    assert_eq!(out.len() - begin, RECORD_HEADER_BYTES);
    out.extend_from_slice(payload);
    out.resize(begin + record_size(payload.len()), 0);
    let crc = checksum(salt, out.get(begin..).unwrap_or_default());
    if let Some(field) = out.get_mut(begin + 4..begin + 8) {
        field.copy_from_slice(&crc.to_le_bytes());
    }
    crc
}

/// CRC32C over the salt and every byte of a record but the checksum's own four.
fn checksum(salt: u64, record: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&salt.to_le_bytes());
    let crc = crc32c::crc32c_append(crc, record.get(..4).unwrap_or_default());
    crc32c::crc32c_append(crc, record.get(8..).unwrap_or_default())
}

/// Reads the record at the front of `bytes`.
///
/// # Errors
/// If the bytes are not a whole record with a matching checksum.
pub fn decode(bytes: &[u8], salt: u64) -> Result<Record<'_>, RecordError> {
    let mut fields = Fields::new(bytes);
    let payload_bytes = fields.u32().ok_or(RecordError::Short)?;
    let crc = fields.u32().ok_or(RecordError::Short)?;
    let payload_bytes = narrow(u64::from(payload_bytes));
    let record = bytes
        .get(..record_size(payload_bytes))
        .ok_or(RecordError::Short)?;
    if checksum(salt, record) != crc && !bug::is_on(Bug::ChecksumIgnored) {
        return Err(RecordError::Checksum);
    }
    decode_checked(record, crc, payload_bytes)
}

/// Reads the fields of a record whose checksum matched.
fn decode_checked(
    record: &[u8],
    crc: u32,
    payload_bytes: usize,
) -> Result<Record<'_>, RecordError> {
    let mut fields = Fields::new(record.get(8..).unwrap_or_default());
    let byte = fields.u8().ok_or(RecordError::Short)?;
    let kind = RecordKind::from_byte(byte).ok_or(RecordError::Kind(byte))?;
    let flags = fields.u8().ok_or(RecordError::Short)?;
    fields.take(2).ok_or(RecordError::Short)?;
    let header = RecordHeader {
        kind,
        earlier_durable: flags & FLAG_EARLIER_DURABLE != 0,
        chain: fields.u32().ok_or(RecordError::Short)?,
        shard: fields.u32().ok_or(RecordError::Short)?,
        durable: fields.u32().ok_or(RecordError::Short)?,
        sequence: fields.u64().ok_or(RecordError::Short)?,
        term: Term::new(fields.u64().ok_or(RecordError::Short)?),
        index: fields.u64().ok_or(RecordError::Short)?,
        timestamp: UnixMillis::new(fields.u64().ok_or(RecordError::Short)?),
    };
    let payload = fields.take(payload_bytes).ok_or(RecordError::Short)?;
    Ok(Record {
        header,
        crc,
        payload,
    })
}

/// An offset in a segment in units of [`RECORD_ALIGNMENT`], as the `durable` field holds it.
///
/// # Panics
/// If the offset is beyond 32 GiB, which no segment reaches.
#[must_use]
pub fn durable_field(offset: u64) -> u32 {
    u32::try_from(offset / widen(RECORD_ALIGNMENT)).expect("segments stay far below 32 GiB")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header() -> RecordHeader {
        RecordHeader {
            kind: RecordKind::Entry,
            chain: 7,
            shard: 3,
            durable: 9,
            earlier_durable: true,
            sequence: 11,
            term: Term::new(2),
            index: 5,
            timestamp: UnixMillis::new(1234),
        }
    }

    proptest! {
        #[test]
        fn decode_gives_back_what_encode_was_given(payload: Vec<u8>, salt: u64, before: Vec<u8>) {
            let mut out = before.clone();
            let crc = encode(&mut out, salt, &header(), &payload);
            let record = decode(&out[before.len()..], salt).unwrap();
            prop_assert_eq!(record.header, header());
            prop_assert_eq!(record.payload, &payload[..]);
            prop_assert_eq!(record.crc, crc);
            prop_assert_eq!(record.size(), out.len() - before.len());
            prop_assert_eq!(record.size() % RECORD_ALIGNMENT, 0);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>, salt: u64) {
            let _ = decode(&bytes, salt).is_ok();
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let mut out = Vec::new();
        encode(&mut out, 42, &header(), b"some payload bytes");
        for cut in 0..out.len() {
            assert!(decode(&out[..cut], 42).is_err());
        }
        for bit in 0..out.len() * 8 {
            let mut damaged = out.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&damaged, 42).is_err(), "bit {bit}");
        }
        assert_eq!(decode(&out, 43).unwrap_err(), RecordError::Checksum);
    }
}

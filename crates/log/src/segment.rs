//! Segments: the files of the log, their header, and the state that each one repeats at its start.

use flux_types::{ClusterId, LogIndex, NodeId, ShardId, Term, UnixMillis};

use crate::fields::Fields;
use crate::record::{LogId, Tombstone, Vote};

/// Size of the header at the front of a segment file, in bytes.
pub const SEGMENT_HEADER_BYTES: usize = 64;
/// First bytes of a segment file.
pub const SEGMENT_MAGIC: [u8; 8] = *b"FLUXLOG1";
/// Version of segments and records that this program writes.
pub const FORMAT_VERSION: u32 = 2;
/// Oldest version of segments and records that this program reads: it has no tombstones.
pub const FORMAT_VERSION_OLDEST: u32 = 1;
/// In the flags of a shard in a segment's start: there is a vote, it is committed, there is a
/// tombstone.
const FLAG_VOTE: u8 = 1;
const FLAG_VOTE_COMMITTED: u8 = 2;
const FLAG_TOMBSTONE: u8 = 4;
/// How the names of preallocated files end: of those that become segments, and of the one that
/// becomes the next snapshot.
pub(crate) const PREPARED_SUFFIX: &str = ".prepared";
const SEGMENT_SUFFIX: &str = ".flog";

/// What a segment file says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Counted from 1, without gaps.
    pub number: u64,
    /// Drawn at random; part of every checksum, so that bytes of other segments never match.
    pub salt: u64,
    /// The node that wrote it.
    pub node: NodeId,
    /// The cluster that the node belonged to.
    pub cluster: ClusterId,
    /// When the file was prepared.
    pub created: UnixMillis,
}

/// Why bytes are not a segment header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SegmentHeaderError {
    /// Too short, wrong magic or wrong checksum.
    #[error("segment header damaged")]
    Damaged,
    /// Written in a version that this program does not know.
    #[error("segment format version {0} is not known")]
    Version(u32),
}

/// File name of a segment.
#[must_use]
pub fn segment_name(number: u64) -> String {
    format!("{number:016x}{SEGMENT_SUFFIX}")
}

/// Number of a segment by its file name.
#[must_use]
pub fn segment_number(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(SEGMENT_SUFFIX)?;
    if digits.len() != 16 {
        return None;
    }
    u64::from_str_radix(digits, 16).ok()
}

impl SegmentHeader {
    /// The header as bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(SEGMENT_HEADER_BYTES);
        out.extend_from_slice(&SEGMENT_MAGIC);
        out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.salt.to_le_bytes());
        out.extend_from_slice(&self.number.to_le_bytes());
        out.extend_from_slice(&self.node.get().to_le_bytes());
        out.extend_from_slice(&self.cluster.get().to_le_bytes());
        out.extend_from_slice(&self.created.get().to_le_bytes());
        out.extend_from_slice(&[0; 8]);
        let crc = crc32c::crc32c(&out);
        if let Some(field) = out.get_mut(12..16) {
            field.copy_from_slice(&crc.to_le_bytes());
        }
        out
    }

    /// Reads a header.
    ///
    /// # Errors
    /// If the bytes are not a header of a known version.
    pub fn decode(bytes: &[u8]) -> Result<Self, SegmentHeaderError> {
        Self::decode_fields(bytes).ok_or(SegmentHeaderError::Damaged)?
    }

    fn decode_fields(bytes: &[u8]) -> Option<Result<Self, SegmentHeaderError>> {
        let bytes = bytes.get(..SEGMENT_HEADER_BYTES)?;
        let mut fields = Fields::new(bytes);
        let magic = fields.take(8)?;
        let version = fields.u32()?;
        let crc = fields.u32()?;
        let mut zeroed = bytes.to_vec();
        zeroed.get_mut(12..16)?.fill(0);
        if magic != SEGMENT_MAGIC || crc32c::crc32c(&zeroed) != crc {
            return None;
        }
        if !(FORMAT_VERSION_OLDEST..=FORMAT_VERSION).contains(&version) {
            return Some(Err(SegmentHeaderError::Version(version)));
        }
        let salt = fields.u64()?;
        Some(Ok(Self {
            number: fields.u64()?,
            salt,
            node: NodeId::new(fields.u64()?),
            cluster: ClusterId::new(fields.u64()?),
            created: UnixMillis::new(fields.u64()?),
        }))
    }
}

/// What a segment repeats of one shard at its start, so that older segments can be deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShardStart {
    /// The shard.
    pub shard: ShardId,
    /// Sequence of the shard's last record before this segment.
    pub sequence: u64,
    /// Its last vote.
    pub vote: Option<Vote>,
    /// The last entry, if there ever was one.
    pub last: Option<LogId>,
    /// Up to where entries were not needed.
    pub purged: Option<LogId>,
    /// Up to where entries were known to be committed.
    pub committed: Option<LogId>,
    /// The last installed snapshot.
    pub installed: Option<LogId>,
    /// What is left of a former life here.
    pub tombstone: Option<Tombstone>,
}

/// Payload of the first record of a segment: the boot under which it was begun, and every shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SegmentStart {
    /// Boot id of the machine.
    pub boot_id: u128,
    /// One item for each shard, by number.
    pub shards: Vec<ShardStart>,
}

fn put_log_id(out: &mut Vec<u8>, id: Option<LogId>) {
    // Index 0 is before the first entry, so it stands for "none".
    let id = id.unwrap_or_default();
    out.extend_from_slice(&id.term.get().to_le_bytes());
    out.extend_from_slice(&id.index.get().to_le_bytes());
}

fn take_log_id(fields: &mut Fields<'_>) -> Option<Option<LogId>> {
    let term = Term::new(fields.u64()?);
    let index = LogIndex::new(fields.u64()?);
    Some((index.get() != 0).then_some(LogId { term, index }))
}

impl SegmentStart {
    /// The payload as bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(&self.boot_id.to_le_bytes());
        out.extend_from_slice(
            &u32::try_from(self.shards.len())
                .unwrap_or(u32::MAX)
                .to_le_bytes(),
        );
        for shard in &self.shards {
            out.extend_from_slice(&shard.shard.get().to_le_bytes());
            out.extend_from_slice(&shard.sequence.to_le_bytes());
            let vote = shard.vote.unwrap_or_default();
            let flags = [
                (shard.vote.is_some(), FLAG_VOTE),
                (vote.committed, FLAG_VOTE_COMMITTED),
                (shard.tombstone.is_some(), FLAG_TOMBSTONE),
            ];
            let set = flags.into_iter().filter(|(is_set, _)| *is_set);
            out.push(set.map(|(_, flag)| flag).sum());
            out.extend_from_slice(&vote.term.get().to_le_bytes());
            out.extend_from_slice(&vote.node.get().to_le_bytes());
            for id in [shard.last, shard.purged, shard.committed, shard.installed] {
                put_log_id(&mut out, id);
            }
            if let Some(tombstone) = shard.tombstone {
                put_log_id(&mut out, Some(tombstone.last));
                put_log_id(&mut out, Some(tombstone.gone_at));
            }
        }
        out
    }

    /// Reads the payload; `None` if it is cut short.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields::new(bytes);
        let boot_id = fields.u128()?;
        let count = fields.u32()?;
        let mut shards = Vec::new();
        for _ in 0..count {
            let shard = ShardId::new(fields.u32()?);
            let sequence = fields.u64()?;
            let flags = fields.u8()?;
            let term = Term::new(fields.u64()?);
            let node = NodeId::new(fields.u64()?);
            let vote = Vote {
                term,
                node,
                committed: flags & FLAG_VOTE_COMMITTED != 0,
            };
            shards.push(ShardStart {
                shard,
                sequence,
                vote: (flags & FLAG_VOTE != 0).then_some(vote),
                last: take_log_id(&mut fields)?,
                purged: take_log_id(&mut fields)?,
                committed: take_log_id(&mut fields)?,
                installed: take_log_id(&mut fields)?,
                tombstone: if flags & FLAG_TOMBSTONE == 0 {
                    None
                } else {
                    Some(Tombstone {
                        last: take_log_id(&mut fields)?.unwrap_or_default(),
                        gone_at: take_log_id(&mut fields)?.unwrap_or_default(),
                    })
                },
            });
        }
        Some(Self { boot_id, shards })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_survives_a_round_trip_and_no_flipped_bit() {
        let header = SegmentHeader {
            number: 7,
            salt: 99,
            node: NodeId::new(3),
            cluster: ClusterId::new(4),
            created: UnixMillis::new(5),
        };
        let bytes = header.encode();
        assert_eq!(bytes.len(), SEGMENT_HEADER_BYTES);
        assert_eq!(SegmentHeader::decode(&bytes), Ok(header));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(SegmentHeader::decode(&damaged).is_err());
        }
    }

    #[test]
    fn start_payload_survives_a_round_trip_and_refuses_every_cut() {
        let start = SegmentStart {
            boot_id: 12,
            shards: vec![ShardStart {
                shard: ShardId::new(1),
                sequence: 2,
                vote: Some(Vote {
                    term: Term::new(3),
                    node: NodeId::new(4),
                    committed: true,
                }),
                last: Some(LogId {
                    term: Term::new(5),
                    index: LogIndex::new(6),
                }),
                tombstone: Some(Tombstone {
                    last: LogId {
                        term: Term::new(7),
                        index: LogIndex::new(8),
                    },
                    gone_at: LogId {
                        term: Term::new(9),
                        index: LogIndex::new(10),
                    },
                }),
                ..ShardStart::default()
            }],
        };
        let bytes = start.encode();
        assert_eq!(SegmentStart::decode(&bytes), Some(start));
        assert!((0..bytes.len()).all(|cut| SegmentStart::decode(&bytes[..cut]).is_none()));
    }

    #[test]
    fn names_sort_like_numbers() {
        assert_eq!(segment_number(&segment_name(0x1f)), Some(0x1f));
        assert!(segment_name(9) < segment_name(10));
        assert_eq!(segment_number("1.flog"), None);
    }
}

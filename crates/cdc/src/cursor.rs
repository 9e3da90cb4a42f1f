//! Cursors: up to where a consumer has got, in every shard, as a text that means nothing to it.
//!
//! A cursor belongs to one history: it names the cluster and, for each shard, the entry of the log
//! that held the last change (its term shows whether that entry is still the one it was). A shard
//! that it does not name was split off after it. The text is base64url of version, cluster, places
//! and a checksum, all little-endian.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use flux_types::limits::SHARDS_MAX;
use flux_types::{ClusterId, LogIndex, Revision, ShardId, Term};

const VERSION: u8 = 1;
const HEADER_BYTES: usize = 11;
const PLACE_BYTES: usize = 29;
const CHECKSUM_BYTES: usize = 4;
const PLACES_MAX: usize = SHARDS_MAX as usize;
const BYTES_MAX: usize = HEADER_BYTES + PLACES_MAX * PLACE_BYTES + CHECKSUM_BYTES;
/// Longest text of a cursor.
pub const TEXT_BYTES_MAX: usize = BYTES_MAX.div_ceil(3) * 4;

/// How far somebody has got in one shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// All changes up to a revision.
    After {
        /// The term of the entry that holds that revision.
        term: Term,
        /// That entry; 0: before the first.
        index: LogIndex,
        /// The revision.
        revision: Revision,
    },
    /// Within a snapshot, which begins anew.
    Snapshot,
}

impl Place {
    /// Before the first change there ever was.
    pub const BEGINNING: Self = Self::After {
        term: Term::new(0),
        index: LogIndex::new(0),
        revision: Revision::new(0),
    };

    /// Before the first change of a shard that was split off another one, at a revision that is not
    /// known: its log begins with the second entry.
    pub const BIRTH: Self = Self::After {
        term: Term::new(0),
        index: LogIndex::new(1),
        revision: Revision::new(0),
    };
}

/// How far somebody has got in all shards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// The cluster whose history it is.
    pub cluster: ClusterId,
    /// A place for each shard.
    pub places: BTreeMap<ShardId, Place>,
}

/// Why a text is no cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CursorError {
    /// It was cut, changed, or never was one.
    #[error("not a cursor: it is incomplete or was changed")]
    Malformed,
    /// Written by a later version of the program.
    #[error("the cursor has version {version}, this program reads {VERSION}")]
    Version {
        /// What it says.
        version: u8,
    },
}

/// Where a consumer wants to begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// With what is committed from now on.
    Now,
    /// With the oldest change that is still kept.
    Earliest,
    /// With all keys, and then what is committed after.
    Snapshot,
    /// After a cursor.
    At(Cursor),
}

impl FromStr for Start {
    type Err = CursorError;

    /// Reads `now`, `earliest`, `snapshot`, a cursor, or nothing, which means `now`.
    fn from_str(text: &str) -> Result<Self, CursorError> {
        Ok(match text {
            "" | "now" => Self::Now,
            "earliest" => Self::Earliest,
            "snapshot" => Self::Snapshot,
            cursor => Self::At(cursor.parse()?),
        })
    }
}

impl Cursor {
    /// A cursor without places.
    #[must_use]
    pub const fn new(cluster: ClusterId) -> Self {
        Self {
            cluster,
            places: BTreeMap::new(),
        }
    }

    /// The place in a shard.
    #[must_use]
    pub fn place(&self, shard: ShardId) -> Option<Place> {
        self.places.get(&shard).copied()
    }

    /// The same, but with another place in one shard.
    #[must_use]
    pub fn with(&self, shard: ShardId, place: Place) -> Self {
        let mut cursor = self.clone();
        cursor.places.insert(shard, place);
        cursor
    }

    /// The bytes behind the text.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(BYTES_MAX.min(HEADER_BYTES + 4 * PLACE_BYTES));
        bytes.push(VERSION);
        bytes.extend_from_slice(&self.cluster.get().to_le_bytes());
        let count = u16::try_from(self.places.len()).unwrap_or(u16::MAX);
        bytes.extend_from_slice(&count.to_le_bytes());
        for (shard, place) in &self.places {
            bytes.extend_from_slice(&shard.get().to_le_bytes());
            let (kind, numbers) = match place {
                Place::After {
                    term,
                    index,
                    revision,
                } => (0, [term.get(), index.get(), revision.get()]),
                Place::Snapshot => (1, [0; 3]),
            };
            bytes.push(kind);
            for number in numbers {
                bytes.extend_from_slice(&number.to_le_bytes());
            }
        }
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        bytes
    }

    /// Reads what [`Self::encode`] wrote.
    ///
    /// # Errors
    /// See [`CursorError`]. Never panics.
    pub fn decode(bytes: &[u8]) -> Result<Self, CursorError> {
        let malformed = CursorError::Malformed;
        let (body, checksum) = bytes
            .split_last_chunk::<CHECKSUM_BYTES>()
            .ok_or(malformed)?;
        if BYTES_MAX < bytes.len() || crc32c::crc32c(body).to_le_bytes() != *checksum {
            return Err(malformed);
        }
        let (header, places) = body.split_first_chunk::<HEADER_BYTES>().ok_or(malformed)?;
        let [version, c0, c1, c2, c3, c4, c5, c6, c7, n0, n1] = *header;
        if version != VERSION {
            return Err(CursorError::Version { version });
        }
        let cluster = u64::from_le_bytes([c0, c1, c2, c3, c4, c5, c6, c7]);
        let (places, rest) = places.as_chunks::<PLACE_BYTES>();
        if places.len() != usize::from(u16::from_le_bytes([n0, n1])) || !rest.is_empty() {
            return Err(malformed);
        }
        let mut cursor = Self::new(ClusterId::new(cluster));
        for bytes in places {
            let (shard, place) = read_place(bytes).ok_or(malformed)?;
            let is_rising = cursor
                .places
                .keys()
                .next_back()
                .is_none_or(|last| *last < shard);
            if !is_rising || SHARDS_MAX <= shard.get() {
                return Err(malformed);
            }
            cursor.places.insert(shard, place);
        }
        Ok(cursor)
    }
}

fn read_place(bytes: &[u8; PLACE_BYTES]) -> Option<(ShardId, Place)> {
    let (shard, rest) = bytes.split_first_chunk::<4>()?;
    let (kind, numbers) = rest.split_first()?;
    let (numbers, _) = numbers.as_chunks::<8>();
    let [term, index, revision] = *numbers else {
        return None;
    };
    let [term, index, revision] = [term, index, revision].map(u64::from_le_bytes);
    let place = match kind {
        0 => Place::After {
            term: Term::new(term),
            index: LogIndex::new(index),
            revision: Revision::new(revision),
        },
        1 if [term, index, revision] == [0; 3] => Place::Snapshot,
        _ => return None,
    };
    Some((ShardId::new(u32::from_le_bytes(*shard)), place))
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.encode()))
    }
}

impl FromStr for Cursor {
    type Err = CursorError;

    fn from_str(text: &str) -> Result<Self, CursorError> {
        if TEXT_BYTES_MAX < text.len() {
            return Err(CursorError::Malformed);
        }
        let bytes = URL_SAFE_NO_PAD.decode(text);
        Self::decode(&bytes.map_err(|_| CursorError::Malformed)?)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn example() -> Cursor {
        let after = |term, index, revision| Place::After {
            term: Term::new(term),
            index: LogIndex::new(index),
            revision: Revision::new(revision),
        };
        Cursor::new(ClusterId::new(0x0102_0304_0506_0708))
            .with(ShardId::new(0), after(3, 40, 482_991))
            .with(ShardId::new(2), Place::Snapshot)
    }

    #[test]
    fn the_golden_cursor_is_written_and_read() {
        let written = example().to_string();
        assert_eq!(written.parse(), Ok(example()));
        assert_eq!(written, GOLDEN);
    }

    const GOLDEN: &str = "AQgHBgUEAwIBAgAAAAAAAAMAAAAAAAAAKAAAAAAAAACvXgcAAAAAAAIAAAABAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAABoy9_A";

    #[test]
    fn words_name_where_to_start_and_everything_else_must_be_a_cursor() {
        assert_eq!("".parse(), Ok(Start::Now));
        assert_eq!("now".parse(), Ok(Start::Now));
        assert_eq!("earliest".parse(), Ok(Start::Earliest));
        assert_eq!("snapshot".parse(), Ok(Start::Snapshot));
        assert_eq!(GOLDEN.parse(), Ok(Start::At(example())));
        assert_eq!("yesterday".parse::<Start>(), Err(CursorError::Malformed));
    }

    #[test]
    fn a_cursor_of_a_later_version_is_told_apart_from_a_broken_one() {
        let mut bytes = example().encode();
        bytes.truncate(bytes.len() - CHECKSUM_BYTES);
        bytes[0] = 2;
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        let error = Cursor::decode(&bytes).unwrap_err();
        assert_eq!(error, CursorError::Version { version: 2 });
    }

    #[test]
    fn every_changed_character_and_every_cut_is_noticed() {
        let text = GOLDEN.as_bytes();
        for at in 0..text.len() {
            let mut changed = text.to_vec();
            changed[at] = if changed[at] == b'x' { b'y' } else { b'x' };
            let changed = String::from_utf8(changed).unwrap();
            assert!(changed.parse::<Cursor>().is_err(), "{at}");
            let cut = String::from_utf8(text[..at].to_vec()).unwrap();
            assert!(cut.parse::<Cursor>().is_err(), "{at}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_was_written_is_read(cluster: u64, places in proptest::collection::btree_map(0..SHARDS_MAX, any::<Option<(u64, u64, u64)>>(), 0..64)) {
            let places = places.into_iter().map(|(shard, place)| {
                let place = place.map_or(Place::Snapshot, |(term, index, revision)| Place::After {
                    term: Term::new(term),
                    index: LogIndex::new(index),
                    revision: Revision::new(revision),
                });
                (ShardId::new(shard), place)
            });
            let cursor = Cursor { cluster: ClusterId::new(cluster), places: places.collect() };
            let text = cursor.to_string();
            prop_assert!(text.len() <= TEXT_BYTES_MAX);
            prop_assert_eq!(text.parse(), Ok(cursor));
        }

        #[test]
        fn no_bytes_make_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), valid: bool) {
            if valid {
                if let Some(first) = bytes.first_mut() { *first = VERSION; }
                bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
            }
            if let Ok(cursor) = Cursor::decode(&bytes) {
                prop_assert_eq!(cursor.encode(), bytes);
            }
        }
    }
}

//! The encoding of a cluster map: JSON, as `docs/placement.md` describes it, for registries and for
//! people. Whatever is not exactly that is refused, and the error says where.

use std::str::FromStr;

use flux_types::ids::SLOT_COUNT;
use flux_types::limits::CLUSTER_MAP_BYTES_MAX;
use flux_types::{NodeId, NodeNumber, ShardId, Slot, SlotMap, SlotMapError};
use serde::{Deserialize, Serialize};

use super::{ClusterMap, GONE_MAX, MapProblem};
use crate::placement::{Member, MemberState, ShardPlacement, Zone, ZoneError};
use crate::ring::{RING_FORMAT, Weight, WeightError};

/// Of the encoding.
const FORMAT: u32 = 1;

/// Why a text is no map.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// Larger than any map.
    #[error("{size_bytes} bytes: a cluster map has at most {CLUSTER_MAP_BYTES_MAX}")]
    Size {
        /// How large it is.
        size_bytes: usize,
    },
    /// Not JSON, or not of a map's fields.
    #[error("not a cluster map: {0}")]
    Json(#[from] serde_json::Error),
    /// Written by another version.
    #[error(
        "a cluster map of format {format} with ring {ring}: known are {FORMAT} and {RING_FORMAT}"
    )]
    Format {
        /// Its encoding.
        format: u32,
        /// Its ring.
        ring: u32,
    },
    /// Not a range of slots.
    #[error("shard {shard}: {given:?} are no slots; wanted is \"0-4095\" or \"7,9-12\"")]
    Slots {
        /// Which.
        shard: ShardId,
        /// What stands there, cut if it is long.
        given: String,
    },
    /// Slots without an owner, or with two.
    #[error(transparent)]
    SlotMap(#[from] SlotMapError),
    /// A node's weight.
    #[error("node {node}: {source}")]
    Weight {
        /// Which.
        node: NodeNumber,
        /// What is wrong with it.
        source: WeightError,
    },
    /// A node's zone.
    #[error("node {node}: {source}")]
    Zone {
        /// Which.
        node: NodeNumber,
        /// What is wrong with it.
        source: ZoneError,
    },
    /// Not the id of a node.
    #[error("gone: {given:?} is not the id of a node: wanted are 16 hexadecimal digits")]
    Gone {
        /// What stands there, cut if it is long.
        given: String,
    },
    /// Its parts do not hold together.
    #[error(transparent)]
    Problem(#[from] MapProblem),
}

#[derive(Deserialize)]
struct Formats {
    format: u32,
    ring: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MapText {
    format: u32,
    ring: u32,
    version: u64,
    replicas: usize,
    #[serde(default, skip_serializing_if = "is_false")]
    paused: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    splitting: Option<u32>,
    nodes: Vec<NodeText>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    gone: Vec<String>,
    shards: Vec<ShardText>,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the signature is the serializer's"
)]
const fn is_false(value: &bool) -> bool {
    !*value
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeText {
    number: u32,
    weight: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    zone: Option<String>,
    state: StateText,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum StateText {
    Active,
    Draining,
    Leaving,
    Away,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ShardText {
    slots: String,
    replicas: Vec<u32>,
    leader: u32,
}

impl ClusterMap {
    /// The map as JSON. The same map is always the same text.
    ///
    /// # Errors
    /// Never, as far as is known: every part of a map can be written.
    pub fn encode(&self) -> Result<String, MapError> {
        Ok(serde_json::to_string(&self.text())?)
    }

    /// Reads a map.
    ///
    /// # Errors
    /// See [`MapError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, MapError> {
        let size_bytes = bytes.len();
        if size_bytes > CLUSTER_MAP_BYTES_MAX {
            return Err(MapError::Size { size_bytes });
        }
        // First of all whether this is for us: the fields of another format may be others.
        let Formats { format, ring } = serde_json::from_slice(bytes)?;
        if (format, ring) != (FORMAT, RING_FORMAT) {
            return Err(MapError::Format { format, ring });
        }
        let text: MapText = serde_json::from_slice(bytes)?;
        let members: Result<Vec<Member>, MapError> = text.nodes.iter().map(member).collect();
        let mut ranges = Vec::new();
        for (shard, placed) in (0..).map(ShardId::new).zip(&text.shards) {
            let read = read_slots(shard, &placed.slots);
            ranges.extend(read.ok_or_else(|| MapError::Slots {
                shard,
                given: placed.slots.chars().take(64).collect(),
            })?);
        }
        let slots = SlotMap::from_ranges(ranges)?;
        let placement = |placed: &ShardText| ShardPlacement {
            replicas: placed
                .replicas
                .iter()
                .copied()
                .map(NodeNumber::new)
                .collect(),
            leader: Some(NodeNumber::new(placed.leader)),
        };
        let shards = text.shards.iter().map(placement).collect();
        let map = Self::new(text.version, members?, text.replicas, slots, shards);
        let map = Self {
            is_paused: text.paused,
            gone: read_gone(&text.gone)?,
            ..map?
        };
        match text.splitting.map(ShardId::new) {
            Some(shard) => Ok(map.with_split(shard)?),
            None => Ok(map),
        }
    }

    fn text(&self) -> MapText {
        let node = |member: &Member| NodeText {
            number: member.node.get(),
            weight: u32::from(member.weight.get()),
            zone: member.zone.as_ref().map(ToString::to_string),
            state: match member.state {
                MemberState::Active => StateText::Active,
                MemberState::Draining => StateText::Draining,
                MemberState::Leaving => StateText::Leaving,
                MemberState::Away => StateText::Away,
            },
        };
        let ranges = self.slots.ranges();
        let slots = |shard| {
            let own = ranges.iter().filter(|(_, _, owner)| *owner == shard);
            let words = own.map(|(first, last, _)| {
                if first == last {
                    first.to_string()
                } else {
                    format!("{first}-{last}")
                }
            });
            words.collect::<Vec<_>>().join(",")
        };
        let shard = |(shard, placed): (ShardId, &ShardPlacement)| ShardText {
            slots: slots(shard),
            replicas: placed.replicas.iter().map(|node| node.get()).collect(),
            leader: placed.leader.map_or(0, NodeNumber::get),
        };
        MapText {
            format: FORMAT,
            ring: RING_FORMAT,
            version: self.version,
            replicas: self.replicas,
            paused: self.is_paused,
            splitting: self.splitting.map(ShardId::get),
            gone: self
                .gone
                .iter()
                .map(|node| format!("{:016x}", node.get()))
                .collect(),
            nodes: self.members.iter().map(node).collect(),
            shards: (0..)
                .map(ShardId::new)
                .zip(&self.shards)
                .map(shard)
                .collect(),
        }
    }
}

fn member(text: &NodeText) -> Result<Member, MapError> {
    let node = NodeNumber::new(text.number);
    let weight = Weight::new(text.weight).map_err(|source| MapError::Weight { node, source })?;
    let zone = text.zone.as_deref().map(Zone::new).transpose();
    Ok(Member {
        node,
        weight,
        zone: zone.map_err(|source| MapError::Zone { node, source })?,
        state: match text.state {
            StateText::Active => MemberState::Active,
            StateText::Draining => MemberState::Draining,
            StateText::Leaving => MemberState::Leaving,
            StateText::Away => MemberState::Away,
        },
    })
}

/// Ids of nodes, sixteen hexadecimal digits each.
fn read_gone(texts: &[String]) -> Result<Vec<NodeId>, MapError> {
    let read = |text: &String| {
        let id = (text.len() == 16).then(|| u64::from_str_radix(text, 16).ok());
        id.flatten().map(NodeId::new).ok_or_else(|| MapError::Gone {
            given: text.chars().take(64).collect(),
        })
    };
    if GONE_MAX < texts.len() {
        return Err(MapProblem::TooManyGone(texts.len()).into());
    }
    texts.iter().map(read).collect()
}

/// Slots and ranges of slots, with commas between them.
fn read_slots(shard: ShardId, text: &str) -> Option<Vec<(Slot, Slot, ShardId)>> {
    let slot = |word: &str| {
        let is_plain = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
        let number = u16::from_str(word).ok()?;
        (is_plain && number < SLOT_COUNT).then(|| Slot::from_crc16(number))
    };
    let range = |word: &str| {
        let (first, last) = word.split_once('-').unwrap_or((word, word));
        Some((slot(first)?, slot(last)?, shard))
    };
    text.split(',').map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"format":1,"ring":1,"version":3,"replicas":1,"nodes":[{"number":1,"weight":100,"zone":"a","state":"active"},{"number":2,"weight":50,"state":"draining"}],"shards":[{"slots":"0-8191,8193-16383","replicas":[1],"leader":1},{"slots":"8192","replicas":[2],"leader":2}]}"#;

    fn refused(from: &str, to: &str) -> String {
        assert!(GOOD.contains(from), "{from}");
        let text = GOOD.replacen(from, to, 1);
        let error = ClusterMap::decode(text.as_bytes()).expect_err(&text);
        error.to_string()
    }

    #[test]
    fn a_map_is_the_same_after_its_encoding() {
        let map = ClusterMap::decode(GOOD.as_bytes()).expect("a map");
        assert_eq!(map.encode().expect("it can be written"), GOOD);
        assert_eq!((map.version(), map.replicas()), (3, 1));
        assert_eq!(
            map.slots().shard_of(Slot::from_crc16(8192)),
            ShardId::new(1)
        );
        let two = map.member(NodeNumber::new(2)).expect("known");
        assert_eq!((two.weight.get(), two.state), (50, MemberState::Draining));
    }

    #[test]
    fn what_is_rare_in_a_map_survives_its_encoding_too() {
        for state in ["leaving", "away"] {
            let text = GOOD
                .replacen("\"draining\"", &format!("\"{state}\""), 1)
                .replacen("\"nodes\"", "\"paused\":true,\"nodes\"", 1)
                .replacen(
                    "\"shards\"",
                    "\"gone\":[\"000000020000002a\"],\"shards\"",
                    1,
                );
            let map = ClusterMap::decode(text.as_bytes()).expect("a map");
            assert_eq!(map.encode().expect("it can be written"), text);
            assert!(map.is_paused());
            assert!(map.is_gone(NodeId::of_incarnation(2, 42)));
            assert!(!map.is_gone(NodeId::of_incarnation(2, 43)));
        }
    }

    #[test]
    fn what_is_malformed_is_refused_and_named() {
        let cases = [
            (
                "\"format\":1",
                "\"format\":2",
                "format 2 with ring 1: known are 1 and 1",
            ),
            ("\"ring\":1", "\"ring\":9", "format 1 with ring 9"),
            (
                "\"version\":3",
                "\"version\":-3",
                "invalid value: integer `-3`",
            ),
            ("\"version\":3,", "", "missing field `version`"),
            (
                "\"version\":3",
                "\"version\":3,\"more\":1",
                "unknown field `more`",
            ),
            (
                "\"replicas\":1,",
                "\"replicas\":2,",
                "2 replicas: must be 1 to 7, and odd",
            ),
            ("\"replicas\":1,", "\"replicas\":0,", "0 replicas"),
            (
                "\"weight\":100",
                "\"weight\":0",
                "node 1: weight 0: must be 1 to 1000",
            ),
            ("\"zone\":\"a\"", "\"zone\":\"a b\"", "node 1: zone \"a b\""),
            ("\"active\"", "\"asleep\"", "unknown variant `asleep`"),
            (
                "\"number\":1",
                "\"number\":0",
                "node 0: a number must be 1 to 65535",
            ),
            ("\"number\":2", "\"number\":1", "two nodes have number 1"),
            ("8193-16383", "8193-16384", "are no slots"),
            ("8193-16383", "8193-", "are no slots"),
            ("8193-16383", "+8193-16383", "are no slots"),
            ("8193-16383", "8194-16383", "slot 8193 has no owner"),
            ("8193-16383", "8192-16383", "have another owner as well"),
            (
                "\"replicas\":[1]",
                "\"replicas\":[3]",
                "shard 0 is on node 3, which the map does not know",
            ),
            (
                "\"replicas\":[1]",
                "\"replicas\":[1,2]",
                "shard 0 is on 2 nodes instead of 1",
            ),
            (
                "\"replicas\":[2],\"leader\":2",
                "\"replicas\":[2],\"leader\":1",
                "shard 1: its leader",
            ),
            ("]}", "]", "EOF"),
            (
                "\"shards\":[",
                "\"gone\":[\"12\"],\"shards\":[",
                "\"12\" is not the id of a node",
            ),
        ];
        for (from, to, expected) in cases {
            let message = refused(from, to);
            assert!(message.contains(expected), "{from} → {to}: {message}");
        }
    }

    #[test]
    fn what_is_larger_than_any_map_is_refused() {
        let long = vec![b' '; CLUSTER_MAP_BYTES_MAX + 1];
        let error = ClusterMap::decode(&long).expect_err("too long");
        assert!(error.to_string().contains("1048577 bytes"), "{error}");
    }

    #[test]
    fn no_changed_byte_makes_a_map_panic() {
        for at in 0..GOOD.len() {
            for flip in [1, 4, 16, 64] {
                let mut bytes = GOOD.as_bytes().to_vec();
                bytes[at] ^= flip;
                drop(ClusterMap::decode(&bytes));
                drop(ClusterMap::decode(&GOOD.as_bytes()[..at]));
            }
        }
    }
}

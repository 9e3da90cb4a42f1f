//! A cluster map as the registry shows it to whoever is interested: a hint, which nobody obeys. The
//! log of shard 0 has the map, and each shard's own log says who its members are.
//!
//! ```json
//! {"cluster":"3f1c07b8a2d95e64","version":7,"term":4,"count":2,"controller":1,"leaders":[1,null],"map":{}}
//! ```
//!
//! `map` is the whole map (`docs/placement.md`), `leaders` who leads each shard as far as the
//! controller knows. Of two the greater rank is newer; an older one never takes a newer one's place.

use std::sync::Arc;

use flux_types::{ClusterId, NodeNumber};
use serde::{Deserialize, Serialize};

use crate::map::{ClusterMap, MapError};

/// Which of two maps shown is newer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Rank {
    /// The map's version.
    pub version: u64,
    /// The term of shard 0 in which whoever shows it leads: every controller has its own.
    pub term: u64,
    /// Counts what this controller has shown.
    pub count: u64,
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapHint {
    /// Whose map.
    pub cluster: ClusterId,
    /// How new it is; its version is the map's.
    pub rank: Rank,
    /// Who shows it: the leader of shard 0.
    pub controller: NodeNumber,
    /// Who leads each shard, if that is known.
    pub leaders: Vec<Option<NodeNumber>>,
    /// What is to be.
    pub map: Arc<ClusterMap>,
}

#[derive(Serialize)]
struct Head {
    cluster: String,
    #[serde(flatten)]
    rank: Rank,
    controller: u32,
    leaders: Vec<Option<u32>>,
}

impl MapHint {
    /// The key under which it stands: clusters that share a registry do not share it.
    pub(crate) fn key(&self, prefix: &str) -> String {
        map_key(prefix, self.cluster)
    }

    /// What stands there.
    ///
    /// # Errors
    /// Never, as far as is known: every part of it can be written.
    pub(crate) fn text(&self) -> Result<String, MapError> {
        let head = serde_json::to_string(&Head {
            cluster: format!("{:016x}", self.cluster.get()),
            rank: self.rank,
            controller: self.controller.get(),
            leaders: self
                .leaders
                .iter()
                .map(|leader| leader.map(NodeNumber::get))
                .collect(),
        })?;
        let map = self.map.encode()?;
        // Both are objects; the first ends with the brace that the second stands before.
        let head = head.strip_suffix('}').unwrap_or(&head);
        Ok(format!("{head},\"map\":{map}}}"))
    }
}

/// `<prefix>/clusters/<cluster>/map`.
pub(crate) fn map_key(prefix: &str, cluster: ClusterId) -> String {
    format!("{prefix}/clusters/{:016x}/map", cluster.get())
}

/// How new what stands in the registry is; what nobody of ours wrote is older than everything.
pub(crate) fn rank_of(text: &[u8]) -> Option<Rank> {
    serde_json::from_slice(text).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::SlotMap;
    use crate::placement::Member;

    #[test]
    fn it_says_whose_it_is_how_new_who_leads_and_the_whole_map() {
        let members = [1, 2, 3].map(|number| Member::new(NodeNumber::new(number)));
        let slots = SlotMap::even(2).unwrap();
        let map = ClusterMap::found(members.to_vec(), 3, slots, Vec::new()).unwrap();
        let rank = Rank {
            version: map.version(),
            term: 4,
            count: 2,
        };
        let hint = MapHint {
            cluster: ClusterId::new(0x3f1c),
            rank,
            controller: NodeNumber::new(2),
            leaders: vec![Some(NodeNumber::new(2)), None],
            map: Arc::new(map.clone()),
        };
        assert_eq!(hint.key("flux"), "flux/clusters/0000000000003f1c/map");
        let text = hint.text().unwrap();
        assert_eq!(rank_of(text.as_bytes()), Some(rank));
        let read: Value = serde_json::from_str(&text).unwrap();
        let expected = json!({
            "cluster": "0000000000003f1c",
            "version": map.version(),
            "term": 4,
            "count": 2,
            "controller": 2,
            "leaders": [2, null],
        });
        for (name, value) in expected.as_object().unwrap() {
            assert_eq!(read[name], *value, "{name}");
        }
        let shown = read["map"].to_string();
        assert_eq!(ClusterMap::decode(shown.as_bytes()).unwrap(), map);
    }

    #[test]
    fn a_later_version_is_newer_then_a_later_term_then_what_was_shown_later() {
        let rank = |version, term, count| Rank {
            version,
            term,
            count,
        };
        let ascending = [
            rank(1, 9, 9),
            rank(2, 1, 1),
            rank(2, 1, 2),
            rank(2, 3, 1),
            rank(3, 3, 2),
        ];
        assert!(ascending.is_sorted() && ascending[0] < ascending[1]);
        for text in ["", "{", "[]", r#"{"version":1}"#, r#"{"version":"x"}"#] {
            assert_eq!(rank_of(text.as_bytes()), None, "{text}");
        }
    }
}

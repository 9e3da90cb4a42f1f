//! A node as placement sees it.

use std::fmt;
use std::sync::Arc;

use flux_types::NodeNumber;
use flux_types::limits::ZONE_BYTES_MAX;

use crate::ring::Weight;

/// One node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The number that the operator gave it. Never an incarnation: a node that has lost its disk
    /// comes back to what it carried.
    pub node: NodeNumber,
    /// How much it can carry beside others.
    pub weight: Weight,
    /// What it shares its fate with; none: nothing that is known.
    pub zone: Option<Zone>,
    /// Whether it may carry something.
    pub state: MemberState,
}

impl Member {
    /// One of standard weight, in no zone.
    #[must_use]
    pub const fn new(node: NodeNumber) -> Self {
        Self {
            node,
            weight: Weight::STANDARD,
            zone: None,
            state: MemberState::Active,
        }
    }
}

/// Whether a node may carry something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemberState {
    /// It carries its share.
    #[default]
    Active,
    /// It is to give away all that it carries.
    Draining,
    /// The same, and then it is not to belong to the cluster any more.
    Leaving,
    /// It has not been heard of for so long that others carry what it did. It carries its share
    /// again once it is back.
    Away,
}

/// What fails together: a rack, a building. Letters, digits, `-`, `_` and `.`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Zone(Arc<str>);

/// A name that no zone can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("zone {given:?}: must be 1 to {ZONE_BYTES_MAX} letters, digits, '-', '_' or '.'")]
pub struct ZoneError {
    /// What was asked for, cut if it is long.
    pub given: String,
}

impl Zone {
    /// Checks a name.
    ///
    /// # Errors
    /// It is empty, too long, or has other characters in it.
    pub fn new(name: &str) -> Result<Self, ZoneError> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if name.is_empty() || name.len() > ZONE_BYTES_MAX || !name.bytes().all(is_plain) {
            let given = name.chars().take(ZONE_BYTES_MAX).collect();
            return Err(ZoneError { given });
        }
        Ok(Self(name.into()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zone_has_a_plain_name() {
        assert_eq!(
            Zone::new("eu-1.rack_7").map(|zone| zone.to_string()),
            Ok("eu-1.rack_7".to_owned())
        );
        for bad in ["", "a b", "ü", &"z".repeat(ZONE_BYTES_MAX + 1)] {
            assert!(Zone::new(bad).is_err(), "{bad}");
        }
        assert!(Zone::new(&"z".repeat(ZONE_BYTES_MAX)).is_ok());
    }
}

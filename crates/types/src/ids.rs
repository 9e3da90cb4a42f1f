//! Ids and counters. Each is its own type, so that none can stand in for another.

use std::fmt;

macro_rules! id {
    ($(#[$meta:meta])* $name:ident($inner:ty)) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name($inner);

        impl $name {
            /// Wraps a raw number.
            #[must_use]
            pub const fn new(raw: $inner) -> Self {
                Self(raw)
            }

            /// The raw number.
            #[must_use]
            pub const fn get(self) -> $inner {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

id! {
    /// One running `flux` node, chosen at its first start and kept in its data directory.
    NodeId(u64)
}
id! {
    /// The number that the operator chose for a node: what stays when its data directory is lost
    /// and it comes back as another [`NodeId`].
    NodeNumber(u32)
}
id! {
    /// The cluster a data directory belongs to; drawn once, at the first start.
    ClusterId(u64)
}
id! {
    /// One replication group: its own log, its own revision counter. Counted from 0.
    ShardId(u32)
}
id! {
    /// Raft's term: a logical epoch with at most one leader (Raft §5.1).
    Term(u64)
}
id! {
    /// Position of an entry in one shard's log, 1-based; 0 means "before the first entry".
    LogIndex(u64)
}
id! {
    /// Per-shard counter in replicated state, one step per fact. A key's revision is that of the
    /// fact that last changed it; 0 is given to no fact.
    Revision(u64)
}

impl NodeId {
    /// The id of a node of a cluster: the number that the operator chose, and which life of it
    /// this is. A data directory that was lost comes back as another incarnation, and so as
    /// another node.
    #[must_use]
    pub const fn of_incarnation(physical: u32, incarnation: u32) -> Self {
        Self((physical as u64) << 32 | incarnation as u64)
    }

    /// The number that the operator chose.
    #[must_use]
    pub const fn physical(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Which life of that node this is; 0 for none.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the lower half is what is asked for"
    )]
    pub const fn incarnation(self) -> u32 {
        self.0 as u32
    }
}

impl LogIndex {
    /// The position after this one.
    ///
    /// # Panics
    /// After 2^64 entries, which no disk holds.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl Revision {
    /// The revision of the fact after this one.
    ///
    /// # Panics
    /// After 2^64 facts.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// Number of hash slots, as in Redis Cluster.
pub const SLOT_COUNT: u16 = 16_384;

/// A hash slot, `0..=16383`: CRC16 of the hash tag or key, modulo [`SLOT_COUNT`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u16);

impl Slot {
    /// Reduces a CRC16 to a slot.
    #[must_use]
    pub const fn from_crc16(crc: u16) -> Self {
        Self(crc % SLOT_COUNT)
    }

    /// The slot's number.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_of_a_cluster_is_its_number_and_its_life() {
        let node = NodeId::of_incarnation(7, 0xfeed_beef);
        assert_eq!((node.physical(), node.incarnation()), (7, 0xfeed_beef));
        assert_eq!(node.get(), 0x7_feed_beef);
    }
}

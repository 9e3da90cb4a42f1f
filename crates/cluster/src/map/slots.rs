//! Which shard owns a slot.

use flux_types::ids::SLOT_COUNT;
use flux_types::limits::SHARDS_MAX;
use flux_types::{ShardId, Slot};

/// The owner of every slot. Exactly one shard owns a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotMap {
    /// Owner of slot `i`. Always [`SLOT_COUNT`] long; every value is below `shards`.
    owners: Box<[u8]>,
    shards: u32,
}

const _: () = assert!(SHARDS_MAX <= 256, "an owner is kept in one byte");

/// A number of shards that no map can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{count} shards: must be 1 to {SHARDS_MAX}")]
pub struct ShardCountError {
    /// The number asked for.
    pub count: u32,
}

/// Ranges of slots that are no map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SlotMapError {
    /// No map can have so many shards.
    #[error(transparent)]
    Count(#[from] ShardCountError),
    /// A range that ends before it begins.
    #[error("slots {first}-{last}: the range ends before it begins")]
    Backward {
        /// Its first slot.
        first: Slot,
        /// Its last slot.
        last: Slot,
    },
    /// A range of which something belongs to another shard already.
    #[error("slots {first}-{last}: some of them have another owner as well")]
    TwoOwners {
        /// Its first slot.
        first: Slot,
        /// Its last slot.
        last: Slot,
    },
    /// A slot of no shard.
    #[error("slot {0} has no owner")]
    NoOwner(Slot),
    /// A shard without slots.
    #[error("shard {0} owns no slots")]
    NoSlots(ShardId),
}

impl SlotMap {
    /// Contiguous ranges, in order of the shards, whose lengths differ by at most one.
    ///
    /// # Errors
    /// For no shard, and for more than [`SHARDS_MAX`].
    ///
    /// # Panics
    /// Never: the number of a shard fits, because their count has been checked.
    pub fn even(shards: u32) -> Result<Self, ShardCountError> {
        if !(1..=SHARDS_MAX).contains(&shards) {
            return Err(ShardCountError { count: shards });
        }
        let owners = (0..u32::from(SLOT_COUNT))
            .map(|slot| {
                let owner = slot * shards / u32::from(SLOT_COUNT);
                u8::try_from(owner).expect("below the count of shards, which fits")
            })
            .collect();
        Ok(Self { owners, shards })
    }

    /// The owner of each slot by ranges, ends included, in any order.
    ///
    /// # Errors
    /// A slot has two owners or none, or there are no shards or too many.
    pub fn from_ranges(
        ranges: impl IntoIterator<Item = (Slot, Slot, ShardId)>,
    ) -> Result<Self, SlotMapError> {
        let mut owners: Vec<Option<u8>> = vec![None; usize::from(SLOT_COUNT)];
        let mut shards = 0;
        for (first, last, shard) in ranges {
            let count = ShardCountError {
                count: shard.get().saturating_add(1),
            };
            let owner = u8::try_from(shard.get()).ok();
            let owner = owner.filter(|_| shard.get() < SHARDS_MAX).ok_or(count)?;
            shards = shards.max(count.count);
            let range = usize::from(first.get())..=usize::from(last.get());
            let Some(range) = owners.get_mut(range).filter(|range| !range.is_empty()) else {
                return Err(SlotMapError::Backward { first, last });
            };
            if range.iter().any(Option::is_some) {
                return Err(SlotMapError::TwoOwners { first, last });
            }
            range.fill(Some(owner));
        }
        if shards == 0 {
            return Err(ShardCountError { count: 0 }.into());
        }
        let missing = (0..SLOT_COUNT)
            .zip(&owners)
            .find(|(_, owner)| owner.is_none());
        if let Some((slot, _)) = missing {
            return Err(SlotMapError::NoOwner(Slot::from_crc16(slot)));
        }
        let owners: Box<[u8]> = owners.into_iter().flatten().collect();
        let idle =
            (0..shards).find(|shard| !owners.iter().any(|owner| u32::from(*owner) == *shard));
        if let Some(shard) = idle {
            return Err(SlotMapError::NoSlots(ShardId::new(shard)));
        }
        Ok(Self { owners, shards })
    }

    /// The shard that owns a slot.
    #[must_use]
    pub fn shard_of(&self, slot: Slot) -> ShardId {
        let owner = self.owners.get(usize::from(slot.get()));
        // A slot is below SLOT_COUNT by its type; the fallback keeps the look-up free of panics.
        ShardId::new(u32::from(owner.copied().unwrap_or(0)))
    }

    /// The shard that owns a key.
    #[must_use]
    pub fn shard_of_key(&self, key: &[u8]) -> ShardId {
        if self.shards == 1 {
            // The slot cannot matter: save the CRC.
            return ShardId::new(0);
        }
        self.shard_of(crate::slot_of_key(key))
    }

    /// Number of shards.
    #[must_use]
    pub const fn shard_count(&self) -> u32 {
        self.shards
    }

    /// The ranges of slots in order, ends included, each with its owner.
    #[must_use]
    pub fn ranges(&self) -> Vec<(Slot, Slot, ShardId)> {
        let mut ranges: Vec<(Slot, Slot, ShardId)> = Vec::new();
        for slot in (0..SLOT_COUNT).map(Slot::from_crc16) {
            let owner = self.shard_of(slot);
            match ranges.last_mut() {
                Some((_, last, current)) if *current == owner => *last = slot,
                _ => ranges.push((slot, slot, owner)),
            }
        }
        ranges
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn four_shards_share_the_slots_in_quarters() {
        let map = SlotMap::even(4).unwrap();
        let ranges: Vec<_> = map
            .ranges()
            .into_iter()
            .map(|(first, last, shard)| (first.get(), last.get(), shard.get()))
            .collect();
        assert_eq!(
            ranges,
            [
                (0, 4095, 0),
                (4096, 8191, 1),
                (8192, 12287, 2),
                (12288, 16383, 3)
            ]
        );
        assert_eq!(map.shard_of_key(b"foo"), ShardId::new(2));
        assert_eq!(map.shard_of_key(b"{foo}bar"), ShardId::new(2));
    }

    #[test]
    fn no_shard_and_too_many_are_refused() {
        assert_eq!(SlotMap::even(0), Err(ShardCountError { count: 0 }));
        assert!(SlotMap::even(SHARDS_MAX).is_ok());
        assert!(SlotMap::even(SHARDS_MAX + 1).is_err());
    }

    #[test]
    fn one_shard_owns_every_key_without_looking() {
        let map = SlotMap::even(1).unwrap();
        assert_eq!(map.shard_of_key(b"anything"), ShardId::new(0));
        assert_eq!(map.ranges().len(), 1);
    }

    #[test]
    fn ranges_that_are_no_map_are_refused() {
        let of = |ranges: &[(u16, u16, u32)]| {
            let range = |(first, last, shard): &(u16, u16, u32)| {
                let (first, last) = (Slot::from_crc16(*first), Slot::from_crc16(*last));
                (first, last, ShardId::new(*shard))
            };
            SlotMap::from_ranges(ranges.iter().map(range)).map_err(|error| error.to_string())
        };
        let refused = |ranges: &[(u16, u16, u32)]| of(ranges).expect_err("no map");
        assert_eq!(refused(&[]), "0 shards: must be 1 to 64");
        assert_eq!(refused(&[(0, 16383, 64)]), "65 shards: must be 1 to 64");
        assert_eq!(refused(&[(0, 16382, 0)]), "slot 16383 has no owner");
        assert_eq!(refused(&[(0, 16383, 1)]), "shard 0 owns no slots");
        assert!(refused(&[(0, 16383, 0), (7, 7, 1)]).contains("slots 7-7: some"));
        assert!(refused(&[(9, 8, 0)]).contains("before it begins"));
        assert_eq!(of(&[(0, 16383, 0)]), Ok(SlotMap::even(1).unwrap()));
    }

    proptest! {
        #[test]
        fn a_map_is_made_again_from_its_ranges(shards in 1..=SHARDS_MAX) {
            let map = SlotMap::even(shards).unwrap();
            let mut ranges = map.ranges();
            ranges.reverse();
            prop_assert_eq!(SlotMap::from_ranges(ranges), Ok(map));
        }

        #[test]
        fn ranges_are_even_contiguous_and_cover_everything(shards in 1..=SHARDS_MAX) {
            let map = SlotMap::even(shards).unwrap();
            let ranges = map.ranges();
            prop_assert_eq!(ranges.len(), shards as usize);
            let mut next = 0;
            let (mut shortest, mut longest) = (u16::MAX, 0);
            for (index, (first, last, shard)) in ranges.iter().enumerate() {
                prop_assert_eq!(first.get(), next);
                prop_assert_eq!(shard.get() as usize, index);
                let length = last.get() - first.get() + 1;
                shortest = shortest.min(length);
                longest = longest.max(length);
                next = last.get() + 1;
            }
            prop_assert_eq!(next, SLOT_COUNT);
            prop_assert!(longest - shortest <= 1);
        }
    }
}

//! Which shard owns a slot.

use std::fmt;
use std::str::FromStr;

use crate::ids::SLOT_COUNT;
use crate::limits::SHARDS_MAX;
use crate::slot::slot_of_key;
use crate::{ShardId, Slot};

/// Under this name a shard that was split keeps, as system data, the map after its last split as
/// text. The fact that puts it there is the split.
pub const SLOTS_NAME: &[u8] = b"shard/slots";

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
        self.shard_of(slot_of_key(key))
    }

    /// The map after a shard's split: the upper half of its slots, in their order, belongs to a new
    /// shard, whose number is the count of shards before. `None` if there is no such shard, it has
    /// one slot only, or there can be no more shards.
    #[must_use]
    pub fn divided(&self, shard: ShardId) -> Option<Self> {
        let child = u8::try_from(self.shards).ok()?;
        if SHARDS_MAX <= self.shards {
            return None;
        }
        let slots = (0..).zip(&self.owners);
        let own: Vec<usize> = slots
            .filter(|(_, owner)| u32::from(**owner) == shard.get())
            .map(|(slot, _)| slot)
            .collect();
        let upper = own.get(own.len().div_ceil(2)..)?;
        if upper.is_empty() {
            return None;
        }
        let mut owners = self.owners.clone();
        for slot in upper {
            *owners.get_mut(*slot)? = child;
        }
        Some(Self {
            owners,
            shards: self.shards + 1,
        })
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

/// As ranges with their owners, in order: `0-8191=0 8192-16383=1`.
impl fmt::Display for SlotMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut gap = "";
        for (first, last, shard) in self.ranges() {
            write!(f, "{gap}{first}-{last}={shard}")?;
            gap = " ";
        }
        Ok(())
    }
}

/// Why a text is no map.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SlotTextError {
    /// A word that is no range with its owner.
    #[error("{0:?} is no range of slots with its shard, such as 0-8191=0")]
    Word(String),
    /// The ranges are no map.
    #[error(transparent)]
    Map(#[from] SlotMapError),
}

impl FromStr for SlotMap {
    type Err = SlotTextError;

    fn from_str(text: &str) -> Result<Self, SlotTextError> {
        let slot = |number: &str| {
            let number: u16 = number.parse().ok()?;
            (number < SLOT_COUNT).then(|| Slot::from_crc16(number))
        };
        let range = |word: &str| {
            let (range, shard) = word.split_once('=')?;
            let (first, last) = range.split_once('-')?;
            let shard = ShardId::new(shard.parse().ok()?);
            Some((slot(first)?, slot(last)?, shard))
        };
        let wrong = |word: &str| SlotTextError::Word(word.chars().take(64).collect());
        let ranges: Result<Vec<_>, _> = text
            .split_ascii_whitespace()
            .map(|word| range(word).ok_or_else(|| wrong(word)))
            .collect();
        Ok(Self::from_ranges(ranges?)?)
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

    #[test]
    fn a_split_gives_the_upper_half_to_a_new_shard() {
        let one = SlotMap::even(1).unwrap();
        let two = one.divided(ShardId::new(0)).unwrap();
        assert_eq!(two, SlotMap::even(2).unwrap());
        assert_eq!(two.to_string(), "0-8191=0 8192-16383=1");
        let three = two.divided(ShardId::new(0)).unwrap();
        assert_eq!(three.to_string(), "0-4095=0 4096-8191=2 8192-16383=1");
        assert_eq!(three.divided(ShardId::new(3)), None, "no such shard");
    }

    #[test]
    fn a_shard_is_divided_until_it_has_one_slot_and_there_are_so_many_shards() {
        let mut map = SlotMap::even(1).unwrap();
        let mut splits = 0;
        while let Some(next) = map.divided(ShardId::new(0)) {
            map = next;
            splits += 1;
        }
        assert_eq!(splits, 14, "16384 slots are 2^14");
        while let Some(next) = map.divided(ShardId::new(1)) {
            map = next;
        }
        assert!(map.shard_count() <= SHARDS_MAX);
    }

    #[test]
    fn a_text_that_is_no_map_is_refused_by_name() {
        let refused = |text: &str| text.parse::<SlotMap>().unwrap_err().to_string();
        assert!(refused("0-16383").contains("\"0-16383\" is no range"));
        assert!(refused("0-16384=0").contains("is no range"));
        assert!(refused("").contains("0 shards"));
        assert!(refused("0-16382=0").contains("slot 16383 has no owner"));
    }

    proptest! {
        #[test]
        fn a_map_survives_its_text(splits in prop::collection::vec(0_u32..64, 0..40)) {
            let mut map = SlotMap::even(1).unwrap();
            for shard in splits {
                map = map.divided(ShardId::new(shard)).unwrap_or(map);
            }
            prop_assert_eq!(map.to_string().parse::<SlotMap>(), Ok(map));
        }
    }
}

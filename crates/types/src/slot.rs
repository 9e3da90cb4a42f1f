//! From a key to its slot: CRC16 of the hash tag, or of the whole key.
//!
//! Hot path: one table look-up for each byte of the key, no allocation.

use crate::Slot;

/// CRC16-XMODEM (polynomial 0x1021, initially 0, nothing reflected), as the Redis Cluster
/// specification prescribes.
#[must_use]
pub fn crc16(bytes: &[u8]) -> u16 {
    let mut crc: u16 = 0;
    for byte in bytes {
        let [high, low] = crc.to_be_bytes();
        let row = TABLE.get(usize::from(high ^ byte));
        // Every `u8` has its row; `unwrap_or` keeps the indexing free of panics.
        crc = u16::from_be_bytes([low, 0]) ^ row.copied().unwrap_or(0);
    }
    crc
}

/// The part of a key that decides its slot: what stands between the first `{` and the first `}`
/// after it, unless that is empty; else the whole key. Keys with one tag live in one slot.
#[must_use]
pub fn hash_tag(key: &[u8]) -> &[u8] {
    let Some(open) = key.iter().position(|byte| *byte == b'{') else {
        return key;
    };
    let after = key.get(open + 1..).unwrap_or_default();
    match after.iter().position(|byte| *byte == b'}') {
        None | Some(0) => key,
        Some(close) => after.get(..close).unwrap_or(key),
    }
}

/// The slot of a key.
#[must_use]
pub fn slot_of_key(key: &[u8]) -> Slot {
    Slot::from_crc16(crc16(hash_tag(key)))
}

/// Row `i` is the CRC of the byte `i`.
static TABLE: [u16; 256] = table();

const fn table() -> [u16; 256] {
    let mut table = [0_u16; 256];
    let mut row = 0;
    while row < 256 {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the row is below 256, and `const fn` has no `try_from`"
        )]
        let mut crc = (row as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 == 0 {
                crc << 1
            } else {
                (crc << 1) ^ 0x1021
            };
            bit += 1;
        }
        #[expect(clippy::indexing_slicing, reason = "the row is below 256")]
        {
            table[row] = crc;
        }
        row += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use crate::ids::SLOT_COUNT;
    use proptest::prelude::*;

    use super::*;

    /// The definition, bit by bit, as an oracle for the table.
    fn crc16_by_definition(bytes: &[u8]) -> u16 {
        let mut crc: u16 = 0;
        for byte in bytes {
            crc ^= u16::from(*byte) << 8;
            for _ in 0..8 {
                crc = if crc & 0x8000 == 0 {
                    crc << 1
                } else {
                    (crc << 1) ^ 0x1021
                };
            }
        }
        crc
    }

    #[test]
    fn crc_matches_the_published_check_value() {
        assert_eq!(crc16(b"123456789"), 0x31C3);
        assert_eq!(crc16(b""), 0);
    }

    #[test]
    fn slots_match_those_of_redis() {
        // `CLUSTER KEYSLOT` of Redis 7 answers these.
        for (key, slot) in [
            ("", 0),
            ("foo", 12182),
            ("bar", 5061),
            ("hello", 866),
            ("123456789", 12739),
            ("foo{hash_tag}", 2515),
            ("somekey", 11058),
        ] {
            assert_eq!(slot_of_key(key.as_bytes()).get(), slot, "{key}");
        }
    }

    #[test]
    fn hash_tags_are_cut_as_the_specification_says() {
        for (key, tag) in [
            ("{user1000}.following", "user1000"),
            ("{user1000}.followers", "user1000"),
            ("foo{}{bar}", "foo{}{bar}"),
            ("foo{{bar}}zap", "{bar"),
            ("foo{bar}{zap}", "bar"),
            ("foo{bar", "foo{bar"),
            ("foo}bar{", "foo}bar{"),
            ("}{a}", "a"),
            ("{}", "{}"),
        ] {
            assert_eq!(hash_tag(key.as_bytes()), tag.as_bytes(), "{key}");
        }
        assert_eq!(
            slot_of_key(b"{user1000}.following"),
            slot_of_key(b"{user1000}.followers")
        );
    }

    proptest! {
        #[test]
        fn table_agrees_with_the_definition(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(crc16(&bytes), crc16_by_definition(&bytes));
        }

        #[test]
        fn every_key_has_a_slot_in_range(key in prop::collection::vec(any::<u8>(), 0..80)) {
            prop_assert!(slot_of_key(&key).get() < SLOT_COUNT);
        }

        #[test]
        fn what_surrounds_a_tag_does_not_matter(
            before in "[^{}]{0,10}", tag in "[^{}]{1,10}", after in "[^{]{0,10}"
        ) {
            let key = format!("{before}{{{tag}}}{after}");
            prop_assert_eq!(slot_of_key(key.as_bytes()), slot_of_key(tag.as_bytes()));
        }
    }
}

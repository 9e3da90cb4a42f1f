//! The one hash of a key, from which stripe, bucket, tag and scan position all follow.
//!
//! Seeded per store and with derived secrets: an unseeded hash lets a client choose keys that
//! collide. The seed is not in any format; two replicas may differ.

use rapidhash::v3::{RapidSecrets, rapidhash_v3_inline};

/// The hash of a key under one store's seed. Compute it once and pass it along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyHash(u64);

impl KeyHash {
    #[inline]
    pub(crate) const fn get(self) -> u64 {
        self.0
    }

    /// Rebuilds a hash from one that [`KeyHash::get`] gave.
    pub(crate) const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// The tag of an occupied slot: never 0.
    #[inline]
    pub(crate) const fn tag(self) -> u8 {
        ((self.0 >> 57) as u8) | 0x80
    }

    /// The key's place in scan order (see `table`).
    #[inline]
    pub(crate) const fn position(self) -> u64 {
        self.0.reverse_bits()
    }

    pub(crate) const fn from_position(position: u64) -> Self {
        Self(position.reverse_bits())
    }
}

/// A seeded hash function.
#[derive(Clone)]
pub(crate) struct Hasher(RapidSecrets);

impl Hasher {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(RapidSecrets::seed(seed))
    }

    #[inline]
    pub(crate) fn hash(&self, key: &[u8]) -> KeyHash {
        KeyHash(rapidhash_v3_inline::<true, false, true>(key, &self.0))
    }
}

impl std::fmt::Debug for Hasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The seed is a secret against chosen collisions.
        f.write_str("Hasher")
    }
}

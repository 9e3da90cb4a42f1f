//! What each node should carry: its weight's share of all replicas, as far as distinct nodes and
//! zones allow.
//!
//! Every shard has at most one replica on a node and at most so many in a zone. A node or zone that
//! would have more by its weight is filled as far as that goes, and the others share the rest by
//! their weights ("water filling"). Everything is exact: fractions, no floating point, because all
//! nodes must come to the same result.

use std::cmp::Ordering;

/// A fraction; what a node should carry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    part: u64,
    whole: u64,
}

impl PartialEq for Share {
    fn eq(&self, other: &Self) -> bool {
        let cross = |a: u64, b: u64| u128::from(a) * u128::from(b);
        cross(self.part, other.whole) == cross(other.part, self.whole)
    }
}

impl Share {
    /// `part` of `whole`; nothing of nothing is nothing.
    pub(super) const fn new(part: u64, whole: u64) -> Self {
        let whole = if whole == 0 { 1 } else { whole };
        Self { part, whole }
    }

    /// Rounded up.
    pub(super) const fn ceiling(self) -> u64 {
        self.part.div_ceil(self.whole)
    }

    /// This share and so many thousandths more, rounded up.
    pub(super) fn ceiling_with(self, permille: u64) -> u64 {
        let part = u128::from(self.part) * u128::from(1000 + permille);
        let bound = part.div_ceil(u128::from(self.whole) * 1000);
        u64::try_from(bound).unwrap_or(u64::MAX)
    }

    /// Whether `load` is short of this share by a whole replica and by so many thousandths of it.
    pub(super) fn misses(self, load: u64, permille: u64) -> bool {
        let scaled = |count: u64| u128::from(count) * u128::from(self.whole) * 1000;
        let part = u128::from(self.part);
        scaled(load + 1) <= part * 1000 && scaled(load) <= part * u128::from(1000 - permille)
    }

    /// Whether a further one would still be within the share.
    pub(super) fn has_room(self, load: u64) -> bool {
        u128::from(load + 1) * u128::from(self.whole) <= u128::from(self.part)
    }

    /// Whether `load` is more than the share.
    pub(super) fn is_exceeded(self, load: u64) -> bool {
        u128::from(load) * u128::from(self.whole) > u128::from(self.part)
    }

    /// In millionths, rounded down.
    #[cfg(test)]
    pub(super) const fn millionths(self) -> u64 {
        self.part * 1_000_000 / self.whole
    }

    /// Compares by how much two loads are beyond their shares.
    pub(super) fn compare_excess(a: (Self, u64), b: (Self, u64)) -> Ordering {
        let excess = |(share, load): (Self, u64)| {
            i128::from(load) * i128::from(share.whole) - i128::from(share.part)
        };
        let left = excess(a) * i128::from(b.0.whole);
        let right = excess(b) * i128::from(a.0.whole);
        left.cmp(&right)
    }
}

/// Who can carry how much.
#[derive(Clone, Copy, Debug)]
pub(super) struct Claim {
    pub(super) weight: u64,
    /// Its zone; a node that is in none is a zone by itself.
    pub(super) zone: usize,
}

/// The fewest replicas of one shard that some zone must hold, or `None` if there are fewer nodes
/// than replicas: 1 wherever there are zones enough.
pub(super) fn zone_limit(claims: &[Claim], replicas: usize) -> Option<usize> {
    let zones = claims.iter().map(|claim| claim.zone + 1).max().unwrap_or(0);
    let mut counts = vec![0_usize; zones];
    for claim in claims {
        if let Some(count) = counts.get_mut(claim.zone) {
            *count += 1;
        }
    }
    let room = |limit: usize| {
        counts
            .iter()
            .map(|count| (*count).min(limit))
            .sum::<usize>()
    };
    (1..=replicas).find(|limit| room(*limit) >= replicas)
}

/// The share of each node, in the order of the claims, of `replicas` copies of `shards` shards.
/// Needs as many nodes as replicas, and the [`zone_limit`] that goes with them.
pub(super) fn shares(claims: &[Claim], shards: u64, replicas: u64, limit: u64) -> Vec<Share> {
    let zones = claims.iter().map(|claim| claim.zone + 1).max().unwrap_or(0);
    let zone_room = shards * limit;
    let mut is_full = vec![false; zones];
    loop {
        let full = is_full.iter().filter(|full| **full).count() as u64;
        let left = (shards * replicas).saturating_sub(full * zone_room);
        let is_free = |claim: &Claim| !is_full.get(claim.zone).copied().unwrap_or(false);
        let level = Level::of(claims.iter().filter(|claim| is_free(claim)), left, shards);
        let overflowing: Vec<usize> = (0..zones)
            .filter(|zone| !is_full.get(*zone).copied().unwrap_or(false))
            .filter(|zone| {
                let inside = claims.iter().filter(|claim| claim.zone == *zone);
                level.is_beyond(inside, zone_room)
            })
            .collect();
        if overflowing.is_empty() {
            let in_zones: Vec<Level> = (0..zones)
                .map(|zone| {
                    let inside = claims.iter().filter(|claim| claim.zone == zone);
                    Level::of(inside, zone_room, shards)
                })
                .collect();
            let share = |claim: &Claim| match in_zones.get(claim.zone) {
                Some(in_zone) if !is_free(claim) => in_zone.share(claim.weight),
                _ => level.share(claim.weight),
            };
            return claims.iter().map(share).collect();
        }
        for zone in overflowing {
            if let Some(full) = is_full.get_mut(zone) {
                *full = true;
            }
        }
    }
}

/// How much a unit of weight gets: `part / whole`, but no node more than `most`.
#[derive(Clone, Copy, Debug)]
struct Level {
    part: u64,
    whole: u64,
    most: u64,
}

impl Level {
    /// That at which these carry `total` together.
    fn of<'a>(claims: impl Iterator<Item = &'a Claim>, total: u64, most: u64) -> Self {
        let mut weights: Vec<u64> = claims.map(|claim| claim.weight).collect();
        weights.sort_unstable();
        let (mut part, mut whole) = (total, weights.iter().sum::<u64>());
        while let Some(heaviest) = weights.pop() {
            if u128::from(heaviest) * u128::from(part) <= u128::from(most) * u128::from(whole) {
                break;
            }
            part = part.saturating_sub(most);
            whole -= heaviest;
        }
        Self { part, whole, most }
    }

    fn share(&self, weight: u64) -> Share {
        let own = u128::from(weight) * u128::from(self.part);
        if self.whole == 0 || own >= u128::from(self.most) * u128::from(self.whole) {
            return Share::new(self.most, 1);
        }
        // Below `most * whole`, which the limits of shards, nodes and weights keep within 64 bits.
        Share::new(u64::try_from(own).unwrap_or(u64::MAX), self.whole)
    }

    /// Whether these carry more than `room` together.
    fn is_beyond<'a>(&self, claims: impl Iterator<Item = &'a Claim>, room: u64) -> bool {
        let whole = u128::from(self.whole.max(1));
        let most = u128::from(self.most) * whole;
        let carried: u128 = claims
            .map(|claim| {
                if self.whole == 0 {
                    most
                } else {
                    most.min(u128::from(claim.weight) * u128::from(self.part))
                }
            })
            .sum();
        carried > u128::from(room) * whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(nodes: &[(u64, usize)]) -> Vec<Claim> {
        let claim = |(weight, zone): &(u64, usize)| Claim {
            weight: *weight,
            zone: *zone,
        };
        nodes.iter().map(claim).collect()
    }

    fn of(nodes: &[(u64, usize)], shards: u64, replicas: usize) -> Vec<Share> {
        let claims = claims(nodes);
        let limit = zone_limit(&claims, replicas).unwrap();
        shares(&claims, shards, replicas as u64, limit as u64)
    }

    #[test]
    fn weights_share_what_there_is() {
        let shared = of(&[(100, 0), (100, 1), (200, 2)], 10, 1);
        assert_eq!(
            shared,
            [(5, 2), (5, 2), (5, 1)].map(|(a, b)| Share::new(a, b))
        );
    }

    #[test]
    fn nobody_has_two_replicas_of_a_shard_however_heavy() {
        let shared = of(&[(1, 0), (1, 1), (1000, 2)], 10, 2);
        assert_eq!(shared, [5, 5, 10].map(|part| Share::new(part, 1)));
    }

    #[test]
    fn a_zone_of_one_node_carries_every_shard_where_there_are_just_zones_enough() {
        let nodes = [(1, 0), (1, 1), (1, 1), (1, 2), (1, 2), (1, 2)];
        let shared = of(&nodes, 6, 3);
        let expected = [(6, 1), (3, 1), (3, 1), (2, 1), (2, 1), (2, 1)];
        assert_eq!(shared, expected.map(|(a, b)| Share::new(a, b)));
    }

    #[test]
    fn a_heavy_node_of_a_full_zone_shares_with_its_neighbors() {
        // By weight alone the first would carry all six, and its zone eight.
        let shared = of(&[(4, 0), (2, 0), (1, 1), (1, 2)], 6, 3);
        assert_eq!(shared, [4, 2, 6, 6].map(|part| Share::new(part, 1)));
    }

    #[test]
    fn zones_that_are_too_few_hold_as_few_replicas_of_a_shard_as_they_can() {
        assert_eq!(zone_limit(&claims(&[(1, 0), (1, 1), (1, 2)]), 3), Some(1));
        assert_eq!(zone_limit(&claims(&[(1, 0), (1, 0), (1, 1)]), 3), Some(2));
        assert_eq!(zone_limit(&claims(&[(1, 0), (1, 0), (1, 0)]), 3), Some(3));
        assert_eq!(zone_limit(&claims(&[(1, 0), (1, 1)]), 3), None);
    }

    #[test]
    fn a_node_is_hungry_only_if_it_misses_a_whole_replica_and_a_tenth() {
        assert!(Share::new(1, 1).misses(0, 100));
        assert!(!Share::new(3, 4).misses(0, 100));
        assert!(Share::new(20, 1).misses(18, 100));
        assert!(!Share::new(20, 1).misses(19, 100));
    }

    #[test]
    fn excess_is_compared_whatever_the_fractions() {
        let (third, half) = (Share::new(1, 3), Share::new(1, 2));
        assert_eq!(
            Share::compare_excess((third, 1), (half, 1)),
            Ordering::Greater
        );
        assert_eq!(
            Share::compare_excess((third, 0), (half, 0)),
            Ordering::Greater
        );
        assert_eq!(
            Share::compare_excess((half, 2), (third, 1)),
            Ordering::Greater
        );
    }
}

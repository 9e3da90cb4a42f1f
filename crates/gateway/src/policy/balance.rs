//! Which endpoint a call goes to: taking turns, or the less loaded of two drawn at random.
//!
//! The turn is one number for the whole gateway, not for each worker, so that over any number of
//! calls the shares of endpoints of the same weight differ by at most one.

use std::time::Duration;

use flux_env::Instant;

use super::health::Standing;

/// Most places in the order of turns; heavier weights are scaled down to fit.
const PLACES_MAX: u64 = 1_000;
/// How fast a peak of latency is forgotten: to a third in this time.
const DECAY_NANOS: f64 = 10e9;
/// Latency that is assumed of an endpoint that was never called, so that it is not flooded.
const LATENCY_UNKNOWN_NANOS: f64 = 1e6;

/// What a choice depends on, for each endpoint.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate {
    pub(crate) standing: Standing,
    /// Whether this call was there already.
    pub(crate) is_tried: bool,
    /// Latency of late times the calls under way, divided by the weight.
    pub(crate) load: f64,
}

/// The order of turns: positions of endpoints, each as often as its weight says, spread evenly
/// (the smooth weighted round robin of nginx).
#[derive(Clone, Debug, Default)]
pub(crate) struct Turns(Vec<usize>);

impl Turns {
    pub(crate) fn new(weights: &[u32]) -> Self {
        let divisor = weights.iter().copied().fold(0, gcd).max(1);
        let mut weights: Vec<u64> = weights
            .iter()
            .map(|weight| u64::from((*weight).max(1) / divisor).max(1))
            .collect();
        let total: u64 = weights.iter().sum();
        if total > PLACES_MAX {
            for weight in &mut weights {
                *weight = (*weight * PLACES_MAX / total).max(1);
            }
        }
        let total: u64 = weights.iter().sum();
        let mut owed: Vec<i64> = vec![0; weights.len()];
        let mut turns = Vec::new();
        for _ in 0..total {
            for (owed, weight) in owed.iter_mut().zip(&weights) {
                *owed += i64::try_from(*weight).unwrap_or(i64::MAX);
            }
            let most = owed
                .iter()
                .enumerate()
                .max_by_key(|(at, owed)| (**owed, usize::MAX - at));
            let Some((position, _)) = most else { break };
            if let Some(owed) = owed.get_mut(position) {
                *owed -= i64::try_from(total).unwrap_or(i64::MAX);
            }
            turns.push(position);
        }
        Self(turns)
    }

    /// The position whose turn it is among those that stand as well as any.
    pub(crate) fn pick(&self, candidates: &[Candidate], turn: usize) -> Option<usize> {
        for eligible in ELIGIBLE {
            let is_eligible = |at: &&usize| candidates.get(**at).is_some_and(eligible);
            let count = self.0.iter().filter(is_eligible).count();
            if let Some(nth) = turn.checked_rem(count) {
                return self.0.iter().filter(is_eligible).nth(nth).copied();
            }
        }
        None
    }
}

/// Who may be chosen, the best first: endpoints that are in, and when all are out (or tried), any.
/// It is better to try one that is thought dead than to refuse.
const ELIGIBLE: [fn(&Candidate) -> bool; 4] = [
    |one| one.standing == Standing::In && !one.is_tried,
    |one| one.standing == Standing::In,
    |one| !one.is_tried,
    |_| true,
];

/// The less loaded of two drawn at random among those that stand as well as any.
pub(crate) fn pick_of_two(
    candidates: &[Candidate],
    mut random: impl FnMut() -> u64,
) -> Option<usize> {
    let eligible = ELIGIBLE.iter().find_map(|eligible| {
        let found = candidates.iter().enumerate();
        let found: Vec<(usize, f64)> = found
            .filter(|(_, one)| eligible(one))
            .map(|(at, one)| (at, one.load))
            .collect();
        (!found.is_empty()).then_some(found)
    })?;
    let mut draw = |count: usize| {
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        usize::try_from(random().checked_rem(count).unwrap_or_default()).unwrap_or_default()
    };
    let first = draw(eligible.len());
    let mut second = draw(eligible.len().saturating_sub(1).max(1));
    if second >= first && eligible.len() > 1 {
        second += 1;
    }
    let (first, second) = (eligible.get(first)?, eligible.get(second)?);
    Some(if second.1 < first.1 {
        second.0
    } else {
        first.0
    })
}

const fn gcd(a: u32, b: u32) -> u32 {
    let (mut a, mut b) = (a, b);
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// A moving average of latency that jumps to a peak at once and forgets it slowly.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PeakLatency {
    nanos: f64,
    at: Instant,
}

impl Default for PeakLatency {
    fn default() -> Self {
        Self {
            nanos: LATENCY_UNKNOWN_NANOS,
            at: Instant::default(),
        }
    }
}

impl PeakLatency {
    pub(crate) fn observe(&mut self, latency: Duration, now: Instant) {
        let seen = latency.as_secs_f64() * 1e9;
        if seen > self.nanos {
            self.nanos = seen;
        } else {
            let kept = self.kept(now);
            self.nanos = self.nanos * kept + seen * (1.0 - kept);
        }
        self.at = now;
    }

    /// The load of an endpoint: an idle one is forgiven with time, so that it is tried again.
    pub(crate) fn load(&self, under_way: usize, weight: u32, now: Instant) -> f64 {
        let calls = f64::from(u32::try_from(under_way).unwrap_or(u32::MAX)) + 1.0;
        (self.nanos * self.kept(now)).max(1.0) * calls / f64::from(weight.max(1))
    }

    fn kept(&self, now: Instant) -> f64 {
        let elapsed = now.saturating_since(self.at).as_secs_f64() * 1e9;
        (-elapsed / DECAY_NANOS).exp()
    }
}

#[cfg(test)]
mod tests {
    use flux_env::{Rng, SeededRng};
    use proptest::prelude::*;

    use super::*;

    fn all_in(count: usize) -> Vec<Candidate> {
        vec![
            Candidate {
                standing: Standing::In,
                is_tried: false,
                load: 1.0
            };
            count
        ]
    }

    fn shares(turns: &Turns, candidates: &[Candidate], calls: usize) -> Vec<usize> {
        let mut shares = vec![0; candidates.len()];
        for turn in 0..calls {
            shares[turns.pick(candidates, turn).unwrap()] += 1;
        }
        shares
    }

    proptest! {
        #[test]
        fn shares_of_equals_differ_by_at_most_one(
            standings in prop::collection::vec(prop::bool::ANY, 1..12),
            calls in 0_usize..500,
        ) {
            let mut candidates = all_in(standings.len());
            for (candidate, is_in) in candidates.iter_mut().zip(&standings) {
                if !is_in {
                    candidate.standing = Standing::Out;
                }
            }
            let turns = Turns::new(&vec![7; standings.len()]);
            let shares = shares(&turns, &candidates, calls);
            let is_panic = standings.iter().all(|is_in| !is_in);
            let used: Vec<usize> = shares
                .iter()
                .zip(&standings)
                .filter(|(_, is_in)| **is_in || is_panic)
                .map(|(share, _)| *share)
                .collect();
            prop_assert_eq!(used.iter().sum::<usize>(), calls);
            prop_assert!(used.iter().max().unwrap() - used.iter().min().unwrap() <= 1);
        }
    }

    #[test]
    fn weights_are_kept_and_spread() {
        let turns = Turns::new(&[50, 10, 10]);
        assert_eq!(turns.0, [0, 0, 1, 0, 2, 0, 0]);
        assert_eq!(shares(&turns, &all_in(3), 70), [50, 10, 10]);
        // Weights beyond all measure do not make a list beyond all measure.
        assert!(Turns::new(&[u32::MAX, 1, 0]).0.len() <= 1_003);
        assert_eq!(Turns::new(&[]).pick(&[], 3), None);
    }

    #[test]
    fn a_second_attempt_goes_elsewhere_while_there_is_an_elsewhere() {
        let turns = Turns::new(&[1, 1, 1]);
        let mut candidates = all_in(3);
        candidates[1].is_tried = true;
        candidates[2].standing = Standing::Out;
        for turn in 0..10 {
            assert_eq!(turns.pick(&candidates, turn), Some(0));
            assert_eq!(pick_of_two(&candidates, || turn as u64), Some(0));
        }
        candidates[0].is_tried = true;
        // Better again to one that is in than to one that is out.
        assert!(matches!(turns.pick(&candidates, 5), Some(0 | 1)));
    }

    #[test]
    fn of_two_the_less_loaded_is_taken_and_the_worst_of_all_never() {
        let mut rng = SeededRng::new(1);
        let mut candidates = all_in(5);
        for (load, candidate) in candidates.iter_mut().enumerate() {
            candidate.load = load as f64;
        }
        let mut shares = [0; 5];
        for _ in 0..10_000 {
            shares[pick_of_two(&candidates, || rng.next_u64()).unwrap()] += 1;
        }
        assert_eq!(shares[4], 0);
        // The best of five is among two with 40 %.
        assert!((3_800..4_200).contains(&shares[0]), "{shares:?}");
        assert!(shares.is_sorted_by(|a, b| a > b), "{shares:?}");
        assert_eq!(pick_of_two(&all_in(1), || 7), Some(0));
        assert_eq!(pick_of_two(&[], || 7), None);
    }

    #[test]
    fn latency_jumps_up_and_comes_down_slowly() {
        let at = |seconds: u64| Instant::from_nanos(seconds * 1_000_000_000);
        let mut latency = PeakLatency::default();
        latency.observe(Duration::from_millis(100), at(100));
        assert!(latency.nanos > 99e6);
        latency.observe(Duration::from_millis(1), at(101));
        assert!((89e6..92e6).contains(&latency.nanos), "{latency:?}");
        let busy = latency.load(3, 1, at(101));
        assert!((busy / latency.load(0, 1, at(101)) - 4.0).abs() < 0.01);
        assert!((busy / latency.load(3, 2, at(101)) - 2.0).abs() < 0.01);
        assert!(latency.load(0, 1, at(141)) < 2e6);
    }
}

//! The endpoints of an upstream as the whole gateway sees them: who is in, who is busy, whose turn
//! it is. Each worker has its own connections to them (`upstream::client`).
//!
//! Lock order: the source before the state of a member; never two members at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use flux_cluster::registry::{self, Endpoints};
use flux_env::{Clock, Instant, Rng, SeededRng};
use http::uri::Authority;
use parking_lot::Mutex;
use tracing::{info, warn};

use crate::config::{BalanceConfig, HealthConfig};
use crate::policy::balance::{Candidate, PeakLatency, Turns, pick_of_two};
use crate::policy::health::{Health, Rule, Standing, Verdict};

/// The endpoints, now and after every change.
#[derive(Debug)]
pub(crate) struct Members {
    upstream: Arc<str>,
    source: Mutex<Endpoints>,
    current: ArcSwap<Set>,
    turn: AtomicUsize,
    /// State of the random numbers that the balancer draws.
    random: AtomicU64,
    balance: BalanceConfig,
    rule: Rule,
    clock: Arc<dyn Clock>,
}

/// The endpoints at one time.
#[derive(Debug, Default)]
pub(crate) struct Set {
    pub(crate) all: Vec<Arc<Member>>,
    turns: Turns,
}

/// One endpoint.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) address: String,
    pub(crate) authority: Authority,
    weight: u32,
    under_way: AtomicUsize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    health: Health,
    latency: PeakLatency,
}

impl Members {
    pub(crate) fn new(
        upstream: &str,
        source: Endpoints,
        balance: BalanceConfig,
        health: &HealthConfig,
        clock: &Arc<dyn Clock>,
    ) -> Self {
        let mut source = source;
        let found = Arc::clone(&source.borrow_and_update());
        Self {
            upstream: upstream.into(),
            source: Mutex::new(source),
            current: ArcSwap::from_pointee(Set::new(&found, &Set::default())),
            turn: AtomicUsize::new(0),
            random: AtomicU64::new(clock.now().as_nanos()),
            balance,
            rule: Rule::new(health),
            clock: Arc::clone(clock),
        }
    }

    /// The endpoints as discovery has them now; what is known of those that stay is kept.
    pub(crate) fn current(&self) -> Arc<Set> {
        let mut source = self.source.lock();
        if source.has_changed().unwrap_or(false) {
            let found = Arc::clone(&source.borrow_and_update());
            let set = Set::new(&found, &self.current.load());
            info!(upstream = %self.upstream, endpoints = set.all.len(), "endpoints have changed");
            self.current.store(Arc::new(set));
        }
        drop(source);
        self.current.load_full()
    }

    /// How many endpoints are in, and how many are not.
    pub(crate) fn count(&self) -> (usize, usize) {
        let now = self.clock.now();
        let set = self.current();
        let used = set.all.iter().filter(|member| member.is_in(now)).count();
        (used, set.all.len() - used)
    }

    /// The next turn. One call takes one, however often it is tried.
    pub(crate) fn next_turn(&self) -> usize {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }

    /// Chooses the endpoint for an attempt, given those that were tried before.
    pub(crate) fn choose(
        &self,
        set: &Set,
        tried: &[usize],
        turn: usize,
    ) -> Option<(usize, Attempt)> {
        let now = self.clock.now();
        if let [only] = set.all.as_slice() {
            let is_trial = only.state.lock().health.try_acquire(now);
            return Some((0, self.attempt(only, is_trial, now)));
        }
        let due = set.all.iter().enumerate().find(|(position, member)| {
            !tried.contains(position) && member.state.lock().health.try_acquire(now)
        });
        if let Some((position, member)) = due {
            return Some((position, self.attempt(member, true, now)));
        }
        let candidates: Vec<Candidate> = set
            .all
            .iter()
            .enumerate()
            .map(|(position, member)| {
                let state = member.state.lock();
                let under_way = member.under_way.load(Ordering::Relaxed);
                Candidate {
                    standing: state.health.standing(now),
                    is_tried: tried.contains(&position),
                    load: state.latency.load(under_way, member.weight, now),
                }
            })
            .collect();
        let position = match self.balance {
            BalanceConfig::RoundRobin => set.turns.pick(&candidates, turn)?,
            BalanceConfig::P2c => pick_of_two(&candidates, || self.random())?,
        };
        let member = set.all.get(position)?;
        Some((position, self.attempt(member, false, now)))
    }

    fn attempt(&self, member: &Arc<Member>, is_trial: bool, now: Instant) -> Attempt {
        member.under_way.fetch_add(1, Ordering::Relaxed);
        Attempt {
            upstream: Arc::clone(&self.upstream),
            member: Arc::clone(member),
            rule: self.rule,
            clock: Arc::clone(&self.clock),
            is_trial,
            begun: now,
            verdict: Verdict::GivenUp,
        }
    }

    fn random(&self) -> u64 {
        // Each draw is the first number of a sequence of its own.
        SeededRng::new(self.random.fetch_add(1, Ordering::Relaxed)).next_u64()
    }
}

impl Set {
    fn new(found: &[registry::Endpoint], old: &Self) -> Self {
        let all: Vec<Arc<Member>> = found
            .iter()
            .filter_map(|found| {
                let mut same = old.all.iter();
                let kept = same.find(|member| {
                    member.address == found.address && member.weight == found.weight
                });
                kept.cloned().or_else(|| Member::new(found))
            })
            .collect();
        let weights: Vec<u32> = all.iter().map(|member| member.weight).collect();
        Self {
            turns: Turns::new(&weights),
            all,
        }
    }
}

impl Member {
    fn new(found: &registry::Endpoint) -> Option<Arc<Self>> {
        // Configuration has checked it; a registry may still hold nonsense, which is left out.
        let authority = found.address.parse().ok()?;
        Some(Arc::new(Self {
            address: found.address.clone(),
            authority,
            weight: found.weight.max(1),
            under_way: AtomicUsize::new(0),
            state: Mutex::default(),
        }))
    }

    fn is_in(&self, now: Instant) -> bool {
        self.state.lock().health.standing(now) == Standing::In
    }
}

/// One attempt of a call at an endpoint. What it came to is to be recorded; one that is dropped
/// without was given up.
#[derive(Debug)]
pub(crate) struct Attempt {
    upstream: Arc<str>,
    member: Arc<Member>,
    rule: Rule,
    clock: Arc<dyn Clock>,
    is_trial: bool,
    begun: Instant,
    verdict: Verdict,
}

impl Attempt {
    /// Whether a connection may be made for it: not to an endpoint that could not be connected to a
    /// moment ago, except on trial.
    pub(crate) fn may_connect(&self) -> bool {
        self.is_trial || !self.member.state.lock().health.is_unreachable()
    }

    /// Takes the endpoint out before the attempt has ended, so that those who wait to connect to it
    /// know.
    pub(crate) fn cannot_connect(&self) {
        if !self.is_trial {
            let now = self.clock.now();
            let mut state = self.member.state.lock();
            let verdict = Verdict::NoConnection;
            if state.health.record(&self.rule, verdict, false, now) {
                warn!(upstream = %self.upstream, endpoint = %self.member.address, "endpoint cannot be connected to");
            }
        }
    }

    /// Records what it came to.
    pub(crate) fn end(mut self, verdict: Verdict) {
        self.verdict = verdict;
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let now = self.clock.now();
        self.member.under_way.fetch_sub(1, Ordering::Relaxed);
        let mut state = self.member.state.lock();
        let before = state.health.standing(now) == Standing::In;
        let has_turned = state
            .health
            .record(&self.rule, self.verdict, self.is_trial, now);
        let elapsed = now.saturating_since(self.begun);
        match self.verdict {
            Verdict::Good => state.latency.observe(elapsed, now),
            // A quick failure must not look like a quick answer.
            Verdict::Failed | Verdict::NoConnection => {
                let penalty = std::time::Duration::from_secs(1);
                state.latency.observe(elapsed.max(penalty), now);
            }
            Verdict::GivenUp => {}
        }
        drop(state);
        match (has_turned, before) {
            (true, true) => {
                warn!(upstream = %self.upstream, endpoint = %self.member.address, "endpoint is passed over");
            }
            (true, false) => {
                info!(upstream = %self.upstream, endpoint = %self.member.address, "endpoint is back");
            }
            (false, _) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use flux_env::SimClock;
    use registry::Endpoint;
    use tokio::sync::watch;

    use super::*;

    struct Lab {
        clock: Arc<SimClock>,
        sender: watch::Sender<Arc<[Endpoint]>>,
        members: Members,
    }

    fn endpoints(ports: &[u16]) -> Arc<[Endpoint]> {
        let at = |port: &u16| Endpoint::at(format!("127.0.0.1:{port}"));
        ports.iter().map(at).collect()
    }

    fn lab(ports: &[u16], balance: BalanceConfig) -> Lab {
        let clock = Arc::new(SimClock::new(0));
        clock.advance(Duration::from_secs(100));
        let sender = watch::Sender::new(endpoints(ports));
        let shared: Arc<dyn Clock> = Arc::<SimClock>::clone(&clock);
        let health = HealthConfig::default();
        let members = Members::new("x", sender.subscribe(), balance, &health, &shared);
        Lab {
            clock,
            sender,
            members,
        }
    }

    impl Lab {
        fn call(&self, verdict: Verdict) -> String {
            let set = self.members.current();
            let turn = self.members.next_turn();
            let (_, attempt) = self.members.choose(&set, &[], turn).unwrap();
            let address = attempt.member.address.clone();
            attempt.end(verdict);
            address
        }

        fn shares(&self, calls: usize) -> Vec<(String, usize)> {
            let mut shares = std::collections::BTreeMap::new();
            for _ in 0..calls {
                *shares.entry(self.call(Verdict::Good)).or_insert(0) += 1;
            }
            shares.into_iter().collect()
        }
    }

    #[test]
    fn threads_together_take_turns_exactly() {
        let lab = lab(&[1, 2, 3, 4, 5], BalanceConfig::RoundRobin);
        let counts = Mutex::new(std::collections::BTreeMap::new());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..251 {
                        *counts.lock().entry(lab.call(Verdict::Good)).or_insert(0) += 1;
                    }
                });
            }
        });
        let counts: Vec<usize> = counts.into_inner().into_values().collect();
        assert_eq!(counts.iter().sum::<usize>(), 1_004);
        assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1);
    }

    #[test]
    fn endpoints_come_and_go_and_those_that_stay_keep_their_standing() {
        let lab = lab(&[1, 2], BalanceConfig::RoundRobin);
        let dead = lab.call(Verdict::NoConnection);
        assert_eq!(lab.shares(10).len(), 1);
        lab.sender.send_replace(endpoints(&[1, 2, 3]));
        let shares = lab.shares(10);
        assert_eq!(shares.len(), 2, "{shares:?}");
        assert!(
            shares
                .iter()
                .all(|(address, share)| *address != dead && *share == 5)
        );
        // On trial once its time has come, and taken back when that goes well.
        lab.clock.advance(Duration::from_millis(60));
        assert_eq!(lab.call(Verdict::Good), dead);
        assert_eq!(lab.shares(9).len(), 3);
        lab.sender.send_replace(endpoints(&[]));
        assert!(lab.members.choose(&lab.members.current(), &[], 0).is_none());
    }

    #[test]
    fn when_all_are_out_all_are_tried_and_none_is_connected_to_in_vain() {
        let lab = lab(&[1, 2], BalanceConfig::RoundRobin);
        lab.call(Verdict::NoConnection);
        lab.call(Verdict::NoConnection);
        let set = lab.members.current();
        let (first, attempt) = lab.members.choose(&set, &[], 0).unwrap();
        assert!(!attempt.may_connect());
        let (second, _) = lab.members.choose(&set, &[first], 0).unwrap();
        assert_ne!(first, second);
        lab.clock.advance(Duration::from_millis(60));
        let (due, trial) = lab.members.choose(&set, &[], 0).unwrap();
        assert!(trial.may_connect());
        let (other, also) = lab.members.choose(&set, &[], 0).unwrap();
        assert!(also.may_connect());
        assert_ne!(due, other);
        let (_, third) = lab.members.choose(&set, &[], 0).unwrap();
        assert!(!third.may_connect(), "one trial each");
    }

    #[test]
    fn the_slow_and_the_failing_get_little_by_load() {
        let lab = lab(&[1, 2, 3], BalanceConfig::P2c);
        let mut shares = [0; 3];
        for _ in 0..300 {
            let set = lab.members.current();
            let (position, attempt) = lab.members.choose(&set, &[], 0).unwrap();
            shares[position] += 1;
            let (millis, verdict) = match position {
                0 => (2, Verdict::Good),
                1 => (50, Verdict::Good),
                _ => (2, Verdict::Failed),
            };
            lab.clock.advance(Duration::from_millis(millis));
            attempt.end(verdict);
            lab.clock.advance(Duration::from_millis(2));
        }
        assert!(shares[0] > 150, "{shares:?}");
        assert!(shares.is_sorted_by(|more, less| more > less), "{shares:?}");
    }
}

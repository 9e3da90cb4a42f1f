//! Rate limits of a request: the gateway's and the route's, for all clients and for each.
//!
//! A request needs a token of every bucket that concerns it. If one refuses, those that were taken
//! before are given back, so that what one client is refused costs the others nothing.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::time::Duration;

use flux_env::Instant;
use http::{HeaderMap, HeaderName};
use parking_lot::Mutex;

use super::gcra::{Decision, Gcra, Quota, Rule};
use crate::config::{ClientLimitConfig, LimitConfig};

/// Tables of clients, each with its own lock.
const STRIPES: usize = 16;
/// Clients looked at to find one that may be forgotten.
const EVICTION_TRIES: usize = 8;

/// The limits of the gateway or of a route.
#[derive(Debug)]
pub(crate) struct Limits {
    all: Option<Gcra>,
    client: Option<(ClientKey, Clients)>,
}

/// Whose limit refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    Gateway,
    Route,
    Client,
}

/// A request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) scope: Scope,
    pub(crate) quota: Quota,
    pub(crate) retry_after: Duration,
}

impl Limits {
    pub(crate) fn new(all: &LimitConfig, client: &ClientLimitConfig) -> Self {
        let clients = Rule::new(client.rate, client.burst).and_then(|rule| {
            // A key that cannot be read was refused by validation.
            let key = ClientKey::parse(&client.key).ok()?;
            Some((key, Clients::new(rule, client.clients_max)))
        });
        Self {
            all: Rule::new(all.rate, all.burst).map(Gcra::new),
            client: clients,
        }
    }

    /// Takes a token of each bucket of `route` and `gateway`; returns how the scarcest stands, or
    /// nothing if there is no limit.
    pub(crate) fn try_acquire(
        gateway: &Self,
        route: Option<&Self>,
        headers: &HeaderMap,
        peer: IpAddr,
        now: Instant,
    ) -> Result<Option<Quota>, Refusal> {
        let clients = [route, Some(gateway)].into_iter().flatten();
        let clients = clients.filter_map(|limits| limits.client.as_ref());
        let buckets = clients
            .map(|(key, clients)| Bucket::Client(clients, clients.hash(key, headers, peer)))
            .chain(
                route
                    .and_then(|limits| limits.all.as_ref())
                    .map(|gcra| Bucket::Shared(Scope::Route, gcra)),
            )
            .chain(
                gateway
                    .all
                    .as_ref()
                    .map(|gcra| Bucket::Shared(Scope::Gateway, gcra)),
            );
        let mut taken: [Option<Bucket<'_>>; 4] = [None, None, None, None];
        let mut scarcest: Option<Quota> = None;
        for (bucket, place) in buckets.zip(0..) {
            match bucket.try_acquire(now) {
                Decision::Admitted(quota) => {
                    if scarcest.is_none_or(|other| quota.remaining < other.remaining) {
                        scarcest = Some(quota);
                    }
                    if let Some(slot) = taken.get_mut(place) {
                        *slot = Some(bucket);
                    }
                }
                Decision::Refused { quota, retry_after } => {
                    taken.iter().flatten().for_each(Bucket::refund);
                    return Err(Refusal {
                        scope: bucket.scope(),
                        quota,
                        retry_after,
                    });
                }
            }
        }
        Ok(scarcest)
    }
}

enum Bucket<'a> {
    Client(&'a Clients, u64),
    Shared(Scope, &'a Gcra),
}

impl Bucket<'_> {
    fn try_acquire(&self, now: Instant) -> Decision {
        match self {
            Self::Client(clients, client) => clients.try_acquire(*client, now),
            Self::Shared(_, gcra) => gcra.try_acquire(now),
        }
    }

    fn refund(&self) {
        match self {
            Self::Client(clients, client) => clients.refund(*client),
            Self::Shared(_, gcra) => gcra.refund(),
        }
    }

    const fn scope(&self) -> Scope {
        match self {
            Self::Client(..) => Scope::Client,
            Self::Shared(scope, _) => *scope,
        }
    }
}

/// What tells clients apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ClientKey(Vec<KeyPart>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum KeyPart {
    Ip,
    Header(HeaderName),
}

impl ClientKey {
    /// Reads `ip`, `header:NAME`, or several with `|`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let parts = text.split('|').map(|part| match part.split_once(':') {
            None if part == "ip" => Ok(KeyPart::Ip),
            Some(("header", name)) => match HeaderName::from_lowercase(name.as_bytes()) {
                Ok(name) => Ok(KeyPart::Header(name)),
                Err(_) => Err(format!("{name:?} is not a header name in lower case")),
            },
            _ => Err(format!("{part:?} does not name a client")),
        });
        parts.collect::<Result<_, _>>().map(Self)
    }
}

/// A bucket for each client, at most so many.
#[derive(Debug)]
struct Clients {
    rule: Rule,
    hasher: RandomState,
    stripes: Vec<Mutex<Stripe>>,
    stripe_max: usize,
}

/// Clients by the hash of their key: a key may be long, and two that collide share a bucket.
#[derive(Debug, Default)]
struct Stripe {
    full_at: HashMap<u64, u64>,
    /// The same clients, longest known first.
    order: VecDeque<u64>,
}

impl Clients {
    fn new(rule: Rule, clients_max: usize) -> Self {
        Self {
            rule,
            hasher: RandomState::new(),
            stripes: (0..STRIPES).map(|_| Mutex::default()).collect(),
            stripe_max: clients_max.div_ceil(STRIPES),
        }
    }

    /// The first part of the key that the request has; those that have none are one client.
    fn hash(&self, key: &ClientKey, headers: &HeaderMap, peer: IpAddr) -> u64 {
        for (position, part) in key.0.iter().enumerate() {
            match part {
                KeyPart::Ip => return self.hasher.hash_one((position, network(peer))),
                KeyPart::Header(name) => {
                    if let Some(value) = headers.get(name) {
                        return self.hasher.hash_one((position, value.as_bytes()));
                    }
                }
            }
        }
        self.hasher.hash_one(usize::MAX)
    }

    fn stripe(&self, client: u64) -> Option<&Mutex<Stripe>> {
        let place = usize::try_from(client >> 32).unwrap_or_default();
        self.stripes.get(place.checked_rem(self.stripes.len())?)
    }

    fn try_acquire(&self, client: u64, now: Instant) -> Decision {
        let now = now.as_nanos();
        let Some(stripe) = self.stripe(client) else {
            return self.rule.decide(0, now).0;
        };
        let mut stripe = stripe.lock();
        let full_at = stripe.full_at.get(&client).copied();
        let (decision, next) = self.rule.decide(full_at.unwrap_or_default(), now);
        if let Some(next) = next {
            if full_at.is_none() {
                stripe.make_room(self.stripe_max, now);
                stripe.order.push_back(client);
            }
            stripe.full_at.insert(client, next);
        }
        decision
    }

    fn refund(&self, client: u64) {
        let Some(stripe) = self.stripe(client) else {
            return;
        };
        if let Some(full_at) = stripe.lock().full_at.get_mut(&client) {
            *full_at = full_at.saturating_sub(self.rule.interval_nanos());
        }
    }
}

impl Stripe {
    /// Forgets one client if there is no room: one whose bucket is full, which is as good as
    /// unknown, or else the nearest to it of a few.
    fn make_room(&mut self, clients_max: usize, now: u64) {
        if self.order.len() < clients_max {
            return;
        }
        let mut fullest: Option<(u64, u64)> = None;
        for _ in 0..EVICTION_TRIES.min(self.order.len()) {
            let Some(client) = self.order.pop_front() else {
                break;
            };
            let full_at = self.full_at.get(&client).copied().unwrap_or_default();
            let Some((other, other_full_at)) = fullest else {
                fullest = Some((client, full_at));
                continue;
            };
            // Of two the one with the fuller bucket goes on as the one to be forgotten.
            if full_at < other_full_at {
                self.order.push_back(other);
                fullest = Some((client, full_at));
            } else {
                self.order.push_back(client);
            }
            if full_at <= now {
                break;
            }
        }
        if let Some((client, _)) = fullest {
            self.full_at.remove(&client);
        }
    }
}

/// An address, or for IPv6 its first half: one host may use the whole other half.
const fn network(peer: IpAddr) -> u128 {
    match peer {
        IpAddr::V4(v4) => v4.to_bits() as u128,
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => v4.to_bits() as u128,
            None => v6.to_bits() >> 64 << 64,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn at(seconds: u64) -> Instant {
        Instant::from_nanos((1_000 + seconds) * SECOND)
    }

    fn limits(all: &str, burst: u64, client: &str, key: &str) -> Limits {
        let all = LimitConfig {
            rate: all.parse().unwrap(),
            burst,
        };
        let client = ClientLimitConfig {
            rate: client.parse().unwrap(),
            key: key.to_owned(),
            ..ClientLimitConfig::default()
        };
        Limits::new(&all, &client)
    }

    fn who(name: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if !name.is_empty() {
            headers.insert("x-api-key", name.parse().unwrap());
        }
        headers
    }

    fn peer(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[test]
    fn each_client_has_its_own_bucket_and_all_share_one() {
        let gateway = limits("5/h", 5, "2/h", "header:x-api-key|ip");
        let gateway = Limits {
            client: limits("", 0, "7200/h", "header:x-api-key|ip").client,
            ..gateway
        };
        let ask = |name: &str, last: u8| {
            Limits::try_acquire(&gateway, None, &who(name), peer(last), at(0))
                .map_err(|refusal| refusal.scope)
                .map(|quota| quota.unwrap().remaining)
        };
        // 7200 an hour are two at once for each.
        assert_eq!(ask("a", 1), Ok(1));
        assert_eq!(ask("a", 2), Ok(0));
        assert_eq!(ask("a", 3), Err(Scope::Client));
        // What "a" was refused cost nobody a token: three of five are left, by key or by address.
        assert_eq!(ask("b", 1), Ok(1));
        assert_eq!(ask("", 1), Ok(1));
        assert_eq!(ask("", 2), Ok(0));
        assert_eq!(ask("c", 1), Err(Scope::Gateway));
    }

    #[test]
    fn a_route_has_its_own_limit_and_a_refusal_says_when_to_return() {
        let gateway = limits("100/s", 0, "", "ip");
        let route = limits("1/m", 2, "", "ip");
        let ask = |second| {
            let at = at(second);
            Limits::try_acquire(&gateway, Some(&route), &HeaderMap::new(), peer(1), at)
        };
        assert_eq!(ask(0).unwrap().unwrap().remaining, 1);
        assert_eq!(ask(0).unwrap().unwrap().remaining, 0);
        let refusal = ask(30).unwrap_err();
        assert_eq!(refusal.scope, Scope::Route);
        assert_eq!(refusal.retry_after, Duration::from_secs(30));
        assert_eq!(refusal.quota.reset, Duration::from_secs(90));
        assert!(ask(60).is_ok());
        assert!(ask(60).is_err());
        // Without limits there is nothing to tell.
        let none = limits("", 0, "", "ip");
        let free = Limits::try_acquire(&none, None, &HeaderMap::new(), peer(1), at(0));
        assert_eq!(free, Ok(None));
    }

    #[test]
    fn the_table_of_clients_is_bounded_and_forgets_those_at_rest_first() {
        let rule = Rule::new("1/h".parse().unwrap(), 1).unwrap();
        let clients = Clients::new(rule, 160);
        let busy: Vec<u64> = (0..40_u64).map(|n| clients.hasher.hash_one(n)).collect();
        for client in &busy {
            assert!(matches!(
                clients.try_acquire(*client, at(0)),
                Decision::Admitted(_)
            ));
        }
        for n in 0..100_000_u64 {
            let stranger = clients.hasher.hash_one(("stranger", n));
            clients.try_acquire(stranger, at(0));
        }
        let count = |stripe: &Mutex<Stripe>| {
            let stripe = stripe.lock();
            assert_eq!(stripe.full_at.len(), stripe.order.len());
            stripe.order.len()
        };
        assert_eq!(clients.stripes.iter().map(count).sum::<usize>(), 160);
        // An hour later all of them are at rest: newcomers push them out, not each other.
        let late = at(3_601);
        let newcomers: Vec<u64> = (0..40_u64)
            .map(|n| clients.hasher.hash_one(("new", n)))
            .collect();
        for client in &newcomers {
            clients.try_acquire(*client, late);
        }
        let refused = |client: &&u64| {
            matches!(
                clients.try_acquire(**client, late),
                Decision::Refused { .. }
            )
        };
        // A stripe holds ten; more newcomers than that may meet in one.
        assert!(newcomers.iter().filter(refused).count() >= 35);
    }

    #[test]
    fn a_client_key_names_headers_and_addresses() {
        assert!(ClientKey::parse("ip").is_ok());
        assert!(ClientKey::parse("header:x-api-key|header:authorization|ip").is_ok());
        for wrong in ["", "IP", "header:", "header:X-Upper", "cookie:a", "ip|"] {
            assert!(ClientKey::parse(wrong).is_err(), "{wrong}");
        }
        let of = |text: &str| network(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
    }
}

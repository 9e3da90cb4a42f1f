//! The stage that lets identical reads share one call, and the answers that stand in for a call
//! that failed. What may be shared is decided in `policy::flight`, what is kept in `policy::stale`.

use std::sync::Arc;
use std::time::Duration;

use http::header::{AGE, HeaderMap, HeaderName, HeaderValue, WARNING};
use http::{Method, Response};
use tokio::time::{Instant, timeout_at};

use super::pipeline::{Head, Pipeline};
use super::reply::{self, Body};
use crate::config::CoalesceConfig;
use crate::descriptor::route::RpcRoute;
use crate::policy::flight::{Boarding, Passenger, Rule};
use crate::policy::route::{CallKey, UpstreamPolicy};
use crate::status::{Code, Failure, Outcome};
use crate::upstream::client::{Answer, Call};

const STALE: HeaderName = HeaderName::from_static("x-flux-stale");
const FALLBACK: HeaderName = HeaderName::from_static("x-flux-fallback");
/// Forwarded headers that differ from request to request and say nothing of who asks.
const NOT_OF_THE_PRINCIPAL: [&str; 3] = ["traceparent", "tracestate", "x-request-id"];

type Shared = Result<Answer, Failure>;

impl Pipeline {
    /// The answer of the upstream, or of an identical read under way, or the last good one.
    pub(super) async fn call(
        &self,
        route: &RpcRoute,
        head: &Head,
        call: &Call,
    ) -> Result<Answer, Failure> {
        let policy = self.live.policies.route(route);
        let is_read = is_read(&head.method, route);
        let stale_max = policy.map_or(Duration::ZERO, |policy| policy.stale_max);
        let coalesce = policy.and_then(|policy| policy.coalesce);
        let coalesce = coalesce.unwrap_or(self.live.policies.coalesce);
        if !is_read || (coalesce == CoalesceConfig::Off && stale_max.is_zero()) {
            return self.guarded(route, head, call).await;
        }
        let key = key(route, call);
        let upstream = self.live.policies.upstreams.get(route.rpc.upstream);
        let result = match upstream.filter(|_| coalesce != CoalesceConfig::Off) {
            Some(upstream) => {
                let read = Read {
                    route,
                    head,
                    call,
                    key: &key,
                    upstream,
                    is_strict: coalesce == CoalesceConfig::Strict,
                };
                self.coalesced(read).await
            }
            None => self.guarded(route, head, call).await,
        };
        if stale_max.is_zero() {
            return result;
        }
        self.last_good(key, stale_max, result)
    }

    /// Flies or joins. Whoever joined a flight that was lost, or that flew for a caller with less
    /// time, tries again.
    async fn coalesced(&self, read: Read<'_>) -> Shared {
        loop {
            match read.upstream.flights.board(read.key, read.rule()) {
                Boarding::Fly(mut pilot) => {
                    self.metrics.flew();
                    pilot.depart(&read.upstream.writes).await;
                    let result = self.guarded(read.route, read.head, read.call).await;
                    pilot.land(result.clone());
                    return result;
                }
                Boarding::Join(passenger) => {
                    self.metrics.joined_flight();
                    if let Some(result) = wait(passenger, read.call.deadline).await {
                        return result;
                    }
                }
            }
        }
    }

    /// Keeps a good answer, or finds the last one in place of a failure.
    fn last_good(&self, key: CallKey, age_max: Duration, result: Shared) -> Shared {
        let now = self.clock.now();
        match result {
            Ok(answer) => {
                let bytes = key.len() + answer.message.len() + header_bytes(&answer.headers);
                let mut kept = self.live.policies.last_good.lock();
                kept.keep(key, answer.clone(), bytes, now);
                Ok(answer)
            }
            Err(failure) if is_degraded(&failure) => {
                let found = self.live.policies.last_good.lock().find(&key, age_max, now);
                let Some((mut answer, age)) = found else {
                    return Err(failure);
                };
                self.metrics.answered_stale();
                let stale = "110 flux \"response is stale\"";
                answer.headers.insert(AGE, age.as_secs().into());
                answer.headers.insert(STALE, age.as_secs().into());
                answer
                    .headers
                    .insert(WARNING, HeaderValue::from_static(stale));
                Ok(answer)
            }
            Err(failure) => Err(failure),
        }
    }

    /// The route's fixed answer in place of a failure of the upstream, if it has one.
    pub(super) fn fall_back(
        &self,
        route: &RpcRoute,
        failure: Failure,
    ) -> Result<Response<Body>, Failure> {
        let policy = self.live.policies.route(route);
        let fixed = policy.and_then(|policy| policy.fixed.as_ref());
        match fixed {
            Some((status, body)) if is_degraded(&failure) => {
                self.metrics.answered_fixed();
                let kind = HeaderValue::from_static("application/json");
                let mut response = reply::with_type(*status, kind, body.clone());
                let fixed = HeaderValue::from_static("fixed");
                response.headers_mut().insert(FALLBACK, fixed);
                Ok(response)
            }
            _ => Err(failure),
        }
    }
}

/// A read that may share a call.
struct Read<'a> {
    route: &'a RpcRoute,
    head: &'a Head,
    call: &'a Call,
    key: &'a CallKey,
    upstream: &'a UpstreamPolicy,
    is_strict: bool,
}

impl Read<'_> {
    fn rule(&self) -> Rule {
        if self.is_strict {
            return Rule::Strict;
        }
        Rule::Shared {
            begun: self.upstream.writes.begun(),
        }
    }
}

/// Waits for a flight; nothing if another is to be looked for.
async fn wait(passenger: Passenger<Shared>, deadline: Instant) -> Option<Shared> {
    match timeout_at(deadline, passenger.landed()).await {
        Err(_) => {
            let message = "the deadline passed before the upstream answered";
            Some(Err(Failure::new(Code::DeadlineExceeded, message)
                .reason("DEADLINE_EXCEEDED")
                .outcome(Outcome::NotDone)))
        }
        Ok(Err(_)) => None,
        // The pilot's time was up, not ours: our own deadline would have been met first.
        Ok(Ok(Err(failure))) if failure.code == Code::DeadlineExceeded => None,
        Ok(Ok(result)) => Some(result),
    }
}

/// Whether a call changes nothing: by its HTTP method or by the rpc's own word.
pub(super) fn is_read(method: &Method, route: &RpcRoute) -> bool {
    matches!(*method, Method::GET | Method::HEAD) || route.rpc.has_no_side_effects
}

/// What two calls must have in common to have the same answer: rpc, request, and who asks.
fn key(route: &RpcRoute, call: &Call) -> CallKey {
    let mut key = Vec::with_capacity(call.message.len() + 128);
    let mut part = |bytes: &[u8]| {
        key.extend_from_slice(&bytes.len().to_le_bytes());
        key.extend_from_slice(bytes);
    };
    part(&route.rpc.upstream.to_le_bytes());
    part(call.path.as_str().as_bytes());
    part(&call.message);
    for (name, value) in &call.metadata {
        if !NOT_OF_THE_PRINCIPAL.contains(&name.as_str()) {
            part(name.as_str().as_bytes());
            part(value.as_bytes());
        }
    }
    Arc::from(key)
}

fn header_bytes(headers: &HeaderMap) -> usize {
    let bytes = headers.iter();
    bytes
        .map(|(name, value)| name.as_str().len() + value.len() + 64)
        .sum()
}

/// Whether a failure is the upstream's, or of what guards it, rather than about the request.
fn is_degraded(failure: &Failure) -> bool {
    matches!(
        failure.code,
        Code::Unavailable
            | Code::DeadlineExceeded
            | Code::Internal
            | Code::Unknown
            | Code::DataLoss
    ) || failure.reason == Some("IN_FLIGHT_LIMIT")
}

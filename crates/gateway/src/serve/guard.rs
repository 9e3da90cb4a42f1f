//! The stages that keep an upstream from too much and callers from waiting in vain: rate limits,
//! bulkheads, the breaker. What they decide is in `policy`; here it becomes an answer.

use std::net::IpAddr;
use std::time::Duration;

use http::header::{HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};

use super::pipeline::{Head, Pipeline};
use super::share::is_read;
use crate::descriptor::route::RpcRoute;
use crate::policy::breaker::{Permit, Verdict};
use crate::policy::bulkhead::{Bulkhead, Place};
use crate::policy::flight::Write;
use crate::policy::gcra::Quota;
use crate::policy::limit::{Limits, Scope};
use crate::status::{Code, Failure, Outcome};

const RATELIMIT_LIMIT: HeaderName = HeaderName::from_static("ratelimit-limit");
const RATELIMIT_REMAINING: HeaderName = HeaderName::from_static("ratelimit-remaining");
const RATELIMIT_RESET: HeaderName = HeaderName::from_static("ratelimit-reset");

/// Allows one call. What became of it is to be said with [`Admission::settle`]; one that is dropped
/// without was given up.
#[derive(Debug)]
pub(crate) struct Admission {
    permit: Option<Permit>,
    write: Option<Write>,
    _places: [Option<Place>; 2],
}

impl Pipeline {
    /// Takes a token of each bucket; returns how the scarcest stands.
    pub(super) fn limit(
        &self,
        route: &RpcRoute,
        head: &Head,
        peer: IpAddr,
    ) -> Result<Option<Quota>, Failure> {
        let of_route = self
            .live
            .policies
            .route(route)
            .map(|policy| &*policy.limits);
        let now = self.clock.now();
        let gateway = &self.live.policies.limits;
        Limits::try_acquire(gateway, of_route, &head.headers, peer, now).map_err(|refusal| {
            self.metrics.rate_limited(refusal.scope);
            let message = match refusal.scope {
                Scope::Gateway => "the gateway takes no more requests now",
                Scope::Route => "this route takes no more requests now",
                Scope::Client => "this client may send no more requests now",
            };
            let mut failure = Failure::new(Code::ResourceExhausted, message)
                .reason("RATE_LIMIT")
                .outcome(Outcome::NotDone);
            let mut headers = HeaderMap::new();
            put_quota(&refusal.quota, &mut headers);
            headers.insert(
                RETRY_AFTER,
                whole_seconds(refusal.retry_after).max(1).into(),
            );
            failure.headers = Some(Box::new(headers));
            failure
        })
    }

    /// Takes a place in each bulkhead and asks the breaker. The bulkheads come first: a trial must
    /// not be lost to a place that is not there.
    pub(super) fn admit(&self, head: &Head, route: &RpcRoute) -> Result<Admission, Failure> {
        let of_route = self.live.policies.route(route);
        let Some(upstream) = self.live.policies.upstreams.get(route.rpc.upstream) else {
            return Err(Failure::new(Code::Unavailable, "the upstream is gone"));
        };
        let own = of_route.and_then(|policy| policy.bulkhead.as_ref());
        let places = [
            own.map(|bulkhead| self.place(bulkhead)).transpose()?,
            Some(self.place(&upstream.bulkhead)?),
        ];
        let breaker = match of_route {
            Some(policy) if policy.has_own_breaker => policy.breaker.as_ref(),
            _ => upstream.breaker.as_ref(),
        };
        let permit = breaker.map(crate::policy::breaker::Breaker::try_acquire);
        let permit = permit.transpose().map_err(|retry_after| {
            self.metrics.refused_by_breaker();
            let message = format!("calls of the upstream {:?} are suspended", upstream.name);
            let mut failure = Failure::new(Code::Unavailable, message)
                .reason("BREAKER_OPEN")
                .outcome(Outcome::NotDone);
            let seconds = whole_seconds(retry_after).max(1);
            failure.set_header(RETRY_AFTER, &seconds.to_string());
            failure
        })?;
        let is_write = !is_read(&head.method, route);
        Ok(Admission {
            permit,
            write: is_write.then(|| upstream.writes.begin()),
            _places: places,
        })
    }

    fn place(&self, bulkhead: &Bulkhead) -> Result<Place, Failure> {
        bulkhead.try_acquire().ok_or_else(|| {
            self.metrics.refused_by_bulkhead();
            Failure::new(Code::ResourceExhausted, "too many calls are in flight")
                .reason("IN_FLIGHT_LIMIT")
                .outcome(Outcome::NotDone)
        })
    }
}

impl Admission {
    /// Says what the call came to. A caller that was less patient than the configuration says
    /// nothing about the upstream by not waiting for it.
    pub(super) fn settle<T>(mut self, result: &Result<T, Failure>, is_impatient: bool) {
        let result = result.as_ref().map(|_| ());
        self.record(result, is_impatient);
        if let (Some(write), true) = (self.write, is_outcome_known(result)) {
            write.end_known();
        }
    }

    /// As [`Self::settle`], for a call that goes on and keeps its places. Only the first time
    /// counts.
    pub(super) fn record(&mut self, result: Result<(), &Failure>, is_impatient: bool) {
        let Some(permit) = self.permit.take() else {
            return;
        };
        let verdict = match result {
            Ok(()) => Verdict::Success,
            Err(failure) if failure.code == Code::DeadlineExceeded && is_impatient => {
                Verdict::GivenUp
            }
            Err(failure) if permit.breaker().is_failure(failure.code) => Verdict::Failure,
            Err(_) => Verdict::Answered,
        };
        permit.record(verdict);
    }
}

/// Whether a write that came to this has taken effect, or never will.
fn is_outcome_known(result: Result<(), &Failure>) -> bool {
    let Err(failure) = result else {
        return true;
    };
    // Nothing was done, or the upstream says that it did not want to do it.
    let is_refusal = matches!(
        failure.code,
        Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::ResourceExhausted
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::Unauthenticated
    );
    failure.outcome == Some(Outcome::NotDone) || (failure.outcome.is_none() && is_refusal)
}

/// Tells how a bucket stands.
pub(super) fn put_quota(quota: &Quota, headers: &mut HeaderMap) {
    headers.insert(RATELIMIT_LIMIT, HeaderValue::from(quota.limit));
    headers.insert(RATELIMIT_REMAINING, HeaderValue::from(quota.remaining));
    headers.insert(
        RATELIMIT_RESET,
        HeaderValue::from(whole_seconds(quota.reset)),
    );
}

/// Seconds, rounded up.
fn whole_seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

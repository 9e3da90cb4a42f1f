//! Which traces are recorded, and the identifiers of spans.
//!
//! The decision is a function of the trace's identifier, the same as in the `TraceIdRatioBased`
//! sampler of the OpenTelemetry SDKs, so that processes which decide by themselves agree.
//!
//! Hot path: an unsampled root costs one draw from a sequence of this thread.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::context::TraceContext;

/// Which traces are recorded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// A trace is recorded if the low 63 bits of its identifier's lower half are below this.
    bound: u64,
    /// Whether a caller's decision is followed.
    follows_parent: bool,
}

/// 2^63, which is above every value that is compared with a bound.
const ALL: u64 = 1 << 63;

impl Sampling {
    /// Follows the caller's decision; of traces that begin here, records this share.
    ///
    /// # Panics
    /// If the ratio is not from 0 to 1.
    #[must_use]
    pub fn parent_based(ratio: f64) -> Self {
        Self {
            bound: bound(ratio),
            follows_parent: true,
        }
    }

    /// Records this share of all traces, whatever the caller has decided.
    ///
    /// # Panics
    /// If the ratio is not from 0 to 1.
    #[must_use]
    pub fn by_ratio(ratio: f64) -> Self {
        Self {
            bound: bound(ratio),
            follows_parent: false,
        }
    }

    /// The trace of a request that brought a context, and whether it is recorded.
    pub(super) const fn of_child(self, parent: TraceContext) -> (u128, bool) {
        let is_sampled = if self.follows_parent {
            parent.is_sampled()
        } else {
            self.is_below(low_half(parent.trace_id()))
        };
        (parent.trace_id(), is_sampled)
    }

    /// A new trace, and whether it is recorded.
    pub(super) fn of_root(self, seed: u64) -> (u128, bool) {
        let low = draw(seed);
        let trace_id = u128::from(draw(seed)) << 64 | u128::from(low);
        (trace_id, self.is_below(low))
    }

    /// A new trace, if it is recorded.
    pub(super) fn of_recorded_root(self, seed: u64) -> Option<u128> {
        let low = draw(seed);
        let trace_id = || u128::from(draw(seed)) << 64 | u128::from(low);
        self.is_below(low).then(trace_id)
    }

    const fn is_below(self, low: u64) -> bool {
        low >> 1 < self.bound
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the lower half is what is wanted"
)]
const fn low_half(trace_id: u128) -> u64 {
    trace_id as u64
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "from 0 to 2^63, and the last bits of a ratio do not matter"
)]
fn bound(ratio: f64) -> u64 {
    assert!((0.0..=1.0).contains(&ratio), "a ratio is from 0 to 1");
    if ratio >= 1.0 {
        return ALL;
    }
    (ratio * ALL as f64) as u64
}

/// The identifier of a new trace.
pub(super) fn trace_id(seed: u64) -> u128 {
    u128::from(draw(seed)) << 64 | u128::from(draw(seed))
}

/// A context of this trace with a new span identifier. A trace identifier of 0, which stands for
/// none, becomes 1: it comes up once in 2^128 draws.
pub(super) fn context(trace_id: u128, seed: u64, is_sampled: bool) -> TraceContext {
    let span_id = draw(seed).max(1);
    TraceContext::new(trace_id.max(1), span_id, is_sampled).expect("neither of the two is 0")
}

/// Numbers the threads, each of which draws from a sequence of its own.
static THREADS: AtomicU64 = AtomicU64::new(1);

thread_local! {
    /// The state of this thread's sequence; 0: not begun.
    static STATE: Cell<u64> = const { Cell::new(0) };
}

const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// The next 64 bits of this thread's sequence (`SplitMix64`), which the first seed begins.
fn draw(seed: u64) -> u64 {
    STATE.with(|state| {
        let mut at = state.get();
        if at == 0 {
            let thread = THREADS.fetch_add(1, Ordering::Relaxed);
            at = mixed(seed ^ mixed(thread));
        }
        at = at.wrapping_add(GOLDEN);
        state.set(at);
        mixed(at)
    })
}

const fn mixed(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::{Sampling, context, draw};
    use crate::context::TraceContext;

    fn share(sampling: Sampling) -> f64 {
        let count = 100_000_u32;
        let recorded = (0..count).filter(|_| sampling.of_root(7).1).count();
        f64::from(u32::try_from(recorded).unwrap()) / f64::from(count)
    }

    #[test]
    fn all_none_or_the_share_asked_for_is_recorded() {
        assert!(share(Sampling::parent_based(0.0)) == 0.0);
        assert!(share(Sampling::parent_based(1.0)) == 1.0);
        let tenth = share(Sampling::parent_based(0.1));
        assert!((0.09..0.11).contains(&tenth), "{tenth}");
    }

    #[test]
    fn the_callers_decision_is_followed_unless_told_otherwise() {
        for is_sampled in [false, true] {
            let parent = TraceContext::new(u128::MAX, 9, is_sampled).unwrap();
            let (trace, sampled) = Sampling::parent_based(0.5).of_child(parent);
            assert_eq!((trace, sampled), (u128::MAX, is_sampled));
            // The identifier's value is above every bound below 1.
            assert!(!Sampling::by_ratio(0.5).of_child(parent).1);
            assert!(Sampling::by_ratio(1.0).of_child(parent).1);
        }
    }

    #[test]
    fn identifiers_differ_on_one_thread_and_between_threads() {
        let drawn = || (0..1000).map(|_| draw(1)).collect::<Vec<u64>>();
        let threads: Vec<_> = (0..4).map(|_| std::thread::spawn(drawn)).collect();
        let mut all = drawn();
        for thread in threads {
            all.extend(thread.join().unwrap());
        }
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len());
    }

    #[test]
    fn a_context_never_has_the_identifier_that_stands_for_none() {
        assert_eq!(context(0, 1, true).trace_id(), 1);
    }
}

//! A node's clock: a monotonic one that runs at its own pace, and a wall clock that is off by some.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use flux_env::{Clock, Instant};

use crate::executor::Executor;

/// What the wall shows at true time zero, in Unix milliseconds.
pub(crate) const EPOCH_MILLIS: i64 = 1_700_000_000_000;

/// See the module.
#[derive(Debug)]
pub(crate) struct NodeClock {
    executor: Arc<Executor>,
    node: usize,
    /// By how much this node's wall clock is off.
    offset_millis: i64,
    /// By how much somebody has stepped it since.
    step_millis: AtomicI64,
}

impl NodeClock {
    pub(crate) fn new(executor: Arc<Executor>, node: usize, offset_millis: i64) -> Self {
        Self {
            executor,
            node,
            offset_millis,
            step_millis: AtomicI64::new(0),
        }
    }

    /// Pretends that somebody stepped the wall clock.
    pub(crate) fn set_step_millis(&self, millis: i64) {
        self.step_millis.store(millis, Ordering::SeqCst);
    }
}

impl Clock for NodeClock {
    fn now(&self) -> Instant {
        self.executor.node_now(self.node)
    }

    fn unix_millis(&self) -> u64 {
        // Slewed toward true time, as that of a machine that asks others for it; only the offset stays.
        let elapsed = i64::try_from(self.executor.true_nanos() / 1_000_000).unwrap_or(i64::MAX);
        u64::try_from(EPOCH_MILLIS + self.offset_millis + elapsed).unwrap_or(0)
    }

    fn step_millis(&self) -> i64 {
        self.step_millis.load(Ordering::SeqCst)
    }
}

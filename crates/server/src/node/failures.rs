//! The first failure of anything that a node cannot go on without.

use std::sync::Arc;

use flux_log::Log;
use flux_raft::Shard;
use tokio::sync::watch;
use tracing::error;

use crate::cores::Places;
use crate::error::NodeFailure;

/// See the module. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Failures {
    first: Arc<watch::Sender<Option<NodeFailure>>>,
}

impl Failures {
    pub(super) fn new() -> Self {
        Self {
            first: Arc::new(watch::Sender::new(None)),
        }
    }

    /// What was told first.
    pub(super) fn first(&self) -> watch::Receiver<Option<NodeFailure>> {
        self.first.subscribe()
    }

    /// Notes a failure, unless there was one before.
    pub(super) fn tell(&self, shard: Option<u32>, problem: String) {
        self.first.send_if_modified(|first| {
            let is_first = first.is_none();
            if is_first {
                *first = Some(NodeFailure { shard, problem });
            }
            is_first
        });
    }

    /// Waits for a shard's failure, on its core.
    pub(super) fn watch(&self, shard: &Shard, places: &Places) {
        let (shard, failures) = (shard.clone(), self.clone());
        let core = places.of_shard(shard.id().get());
        places.handle(core).spawn(async move {
            let problem = shard.failed().await.to_string();
            let id = shard.id().get();
            error!(shard = id, problem, "a shard cannot go on");
            failures.tell(Some(id), problem);
        });
    }

    /// Waits for the log's failure.
    pub(super) fn watch_log(&self, log: &Log) {
        let failures = self.clone();
        log.on_poison(Box::new(move |reason| {
            error!(reason, "the log cannot be written anymore");
            failures.tell(None, reason.to_owned());
        }));
    }
}

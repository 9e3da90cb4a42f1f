//! A shard as the change stream sees it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flux_cdc::{Fetched, Origin, Wanted};
use flux_env::Clock;
use flux_log::{LogId, ShardLog};
use flux_raft::Shard;
use flux_store::Store;
use flux_types::{Error, LogIndex, UnixMillis};
use futures_util::future::BoxFuture;
use tokio::sync::oneshot;

use crate::peer::Historian;

/// How long a commit of system data may wait.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug)]
pub(super) struct ShardOrigin {
    pub(super) shard: Shard,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) historian: Arc<Historian>,
}

impl Origin for ShardOrigin {
    fn log(&self) -> &ShardLog {
        self.shard.log()
    }

    fn store(&self) -> &Arc<Store> {
        self.shard.store()
    }

    fn now(&self) -> UnixMillis {
        self.shard.now()
    }

    fn applied(&self) -> Option<LogId> {
        self.shard.applied()
    }

    fn applying(&self) -> Option<LogId> {
        self.shard.applying()
    }

    fn wait_applied(&self, index: LogIndex) -> BoxFuture<'_, ()> {
        Box::pin(self.shard.wait_applied(index))
    }

    fn wait_whole(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.shard.wait_whole())
    }

    fn fetch(&self, wanted: Wanted) -> oneshot::Receiver<Fetched> {
        self.historian.fetch(&self.shard, wanted)
    }

    fn is_leading(&self) -> bool {
        self.shard.is_writable()
    }

    fn put_system(&self, name: Bytes, value: Option<Bytes>) -> BoxFuture<'_, Result<(), Error>> {
        let deadline = self.clock.now() + COMMIT_TIMEOUT;
        Box::pin(self.shard.put_system(name, value, deadline))
    }
}

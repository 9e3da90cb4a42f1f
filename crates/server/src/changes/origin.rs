//! The shards of the node as the change stream sees them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flux_cdc::{Fetched, Origin, Origins, Wanted};
use flux_env::Clock;
use flux_log::{LogId, ShardLog};
use flux_raft::Shard;
use flux_store::Store;
use flux_types::{Error, LogIndex, UnixMillis};
use futures_util::future::{BoxFuture, pending};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::exec::Home;
use crate::peer::Historian;

/// How long a commit of system data may wait.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(5);

/// All of them, those that are split off while the node runs included.
#[derive(Debug)]
pub(super) struct NodeOrigins {
    home: Arc<Home>,
    /// How many shards there were when it all began.
    founding: u32,
    clock: Arc<dyn Clock>,
    /// Who asks for what the logs here hold no more, of every shard.
    historian: Arc<Historian>,
    /// Those that somebody has asked for. Lock order: a leaf.
    known: Mutex<Arc<[Arc<dyn Origin>]>>,
}

impl NodeOrigins {
    pub(super) fn new(
        home: Arc<Home>,
        founding: u32,
        clock: Arc<dyn Clock>,
        historian: Historian,
    ) -> Self {
        Self {
            home,
            founding,
            clock,
            historian: Arc::new(historian),
            known: Mutex::new(Arc::new([])),
        }
    }

    fn origin(&self, shard: &Shard) -> Arc<dyn Origin> {
        Arc::new(ShardOrigin {
            was_split_off: self.founding <= shard.id().get(),
            shard: shard.clone(),
            clock: Arc::clone(&self.clock),
            historian: Arc::clone(&self.historian),
        })
    }
}

impl Origins for NodeOrigins {
    fn list(&self) -> Arc<[Arc<dyn Origin>]> {
        let shards = self.home.shards();
        let mut known = self.known.lock();
        if known.len() < shards.len() {
            let further = shards.iter().skip(known.len());
            let further = further.map(|shard| self.origin(shard));
            *known = known.iter().cloned().chain(further).collect();
        }
        Arc::clone(&known)
    }

    fn wait_more(&self, than: usize) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            // Before the look: a shard is there before the map that leads to it.
            let mut changes = self.home.changes();
            while self.home.shards().len() <= than {
                if changes.changed().await.is_err() {
                    return pending().await;
                }
            }
        })
    }
}

/// One of them.
#[derive(Debug)]
struct ShardOrigin {
    shard: Shard,
    was_split_off: bool,
    clock: Arc<dyn Clock>,
    historian: Arc<Historian>,
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

    fn was_split_off(&self) -> bool {
        self.was_split_off
    }

    fn is_leading(&self) -> bool {
        self.shard.is_writable()
    }

    fn put_system(&self, name: Bytes, value: Option<Bytes>) -> BoxFuture<'_, Result<(), Error>> {
        let deadline = self.clock.now() + COMMIT_TIMEOUT;
        Box::pin(self.shard.put_system(name, value, deadline))
    }
}

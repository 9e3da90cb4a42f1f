//! A shard as the change stream sees it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flux_cdc::Origin;
use flux_env::Clock;
use flux_log::{LogId, ShardLog};
use flux_raft::{Shard, Submission};
use flux_store::Store;
use flux_types::{Command, Error, ErrorCode, LogIndex, Reply, UnixMillis, WriteCommand};
use futures_util::future::BoxFuture;
use tokio::sync::oneshot;

/// How long a commit of system data may wait.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug)]
pub(super) struct ShardOrigin {
    pub(super) shard: Shard,
    pub(super) clock: Arc<dyn Clock>,
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

    fn is_leading(&self) -> bool {
        self.shard.is_writable()
    }

    fn put_system(&self, name: Bytes, value: Option<Bytes>) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            let (reply, answers) = oneshot::channel();
            let commands = vec![Command::Write(WriteCommand::PutSystem { name, value })];
            let deadline = self.clock.now() + COMMIT_TIMEOUT;
            // A cursor is the leader's to keep: behind a new leader's own it would be a step back.
            let submission = Submission {
                is_forwarded: true,
                ..Submission::new(commands, deadline, reply)
            };
            if self.shard.submit(submission).is_err() {
                return Err(Error::not_done(
                    ErrorCode::Busy,
                    "the shard's queue is full",
                ));
            }
            let stopped = || Error::not_done(ErrorCode::ShuttingDown, "the shard has stopped");
            let answers = answers.await.map_err(|_| stopped())?;
            match answers.into_iter().next().map(|answer| answer.reply) {
                Some(Reply::Error(error)) => Err(error),
                Some(_) => Ok(()),
                None => Err(stopped()),
            }
        })
    }
}

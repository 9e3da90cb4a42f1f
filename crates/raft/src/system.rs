//! System data of a shard: written by the node itself, through the proposer like everything else.

use bytes::Bytes;
use flux_env::Instant;
use flux_types::{Command, Error, ErrorCode, Reply, WriteCommand};
use tokio::sync::oneshot;

use crate::queue::Submission;
use crate::shard::Shard;

/// What became of an exchange of system data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Replaced {
    /// The new data are there.
    Done,
    /// Something else was there than expected; these are the data.
    Present(Option<Bytes>),
}

impl Shard {
    /// Commits system data under a name, or their removal, if this replica leads: what a reader of
    /// changes keeps is its leader's to keep, and behind a new leader's own it would be a step back.
    ///
    /// # Errors
    /// As any write; a failure may have an unknown outcome, and is safe to repeat.
    ///
    /// # Cancellation
    /// Safe to drop; what was handed over may be done.
    pub async fn put_system(
        &self,
        name: Bytes,
        value: Option<Bytes>,
        deadline: Instant,
    ) -> Result<(), Error> {
        let put = WriteCommand::PutSystem { name, value };
        self.write_system(put, true, deadline).await.map(drop)
    }

    /// Commits system data under a name if those that are there are as expected (none: nothing),
    /// at whatever node leads.
    ///
    /// # Errors
    /// As any write. If the outcome is unknown, a further call tells what is there.
    ///
    /// # Cancellation
    /// Safe to drop; what was handed over may be done.
    pub async fn replace_system(
        &self,
        name: Bytes,
        expected: Option<Bytes>,
        value: Bytes,
        deadline: Instant,
    ) -> Result<Replaced, Error> {
        let replace = WriteCommand::ReplaceSystem {
            name,
            expected,
            value,
        };
        let reply = self.write_system(replace, false, deadline).await?;
        Ok(if let Reply::Bulk(present) = reply {
            Replaced::Present(Some(present))
        } else if reply == Reply::Nil {
            Replaced::Present(None)
        } else {
            Replaced::Done
        })
    }

    async fn write_system(
        &self,
        write: WriteCommand,
        is_only_here: bool,
        deadline: Instant,
    ) -> Result<Reply, Error> {
        let (reply, answers) = oneshot::channel();
        let submission = Submission {
            is_forwarded: is_only_here,
            ..Submission::new(vec![Command::Write(write)], deadline, reply)
        };
        if self.submit(submission).is_err() {
            let message = "the shard's queue is full";
            return Err(Error::not_done(ErrorCode::Busy, message));
        }
        let answers = answers.await.unwrap_or_default();
        match answers.into_iter().next().map(|answer| answer.reply) {
            Some(Reply::Error(error)) => Err(error),
            Some(reply) => Ok(reply),
            None => {
                let message = "the shard stopped before it answered; the outcome is unknown";
                Err(Error::unknown(ErrorCode::ShuttingDown, message))
            }
        }
    }
}

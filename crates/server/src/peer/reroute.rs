//! Commands that belong to another shard since a split: they are planned again, by a later map.
//!
//! Nothing of them was done. Each goes where its keys are by then; what had keys of one shard and has
//! them of two now is split or refused as any other. They wait for the map until their deadline.

use std::sync::Arc;

use flux_raft::Submission;
use flux_types::{Answer, Command, Error, ErrorCode};

use super::Peers;
use crate::exec::is_on_every_key;

const REFUSED: &str = "the shard was split meanwhile, and its keys may belong to another one";

/// Answers a submission of which nothing was done because the map by which it was sent is older than
/// the shard's last split.
pub(super) async fn run(peers: Arc<Peers>, submission: Submission) {
    let Some(executor) = peers.executor() else {
        return refuse(submission);
    };
    let Submission {
        commands,
        deadline,
        reply,
        routing,
        ..
    } = submission;
    let left = deadline.saturating_since(peers.clock().now());
    let mut maps = executor.home().changes();
    let later = maps.wait_for(|count| routing < *count);
    let is_known = matches!(tokio::time::timeout(left, later).await, Ok(Ok(_)));
    // A part of a command on every key has parts elsewhere that knew the former shards.
    let is_part = |command: &Command| 1 < routing && is_on_every_key(command);
    let answers = if !is_known || commands.iter().any(is_part) {
        vec![refused(); commands.len()]
    } else {
        executor.execute_all(commands, deadline).await
    };
    // A session that is gone needs no answer.
    drop(reply.send(answers));
}

/// Answers that nothing was done, and can be asked again.
pub(super) fn refuse(submission: Submission) {
    let answers = vec![refused(); submission.commands.len()];
    // A session that is gone needs no answer.
    drop(submission.reply.send(answers));
}

fn refused() -> Answer {
    Answer::error(Error::not_done(ErrorCode::Resharded, REFUSED))
}

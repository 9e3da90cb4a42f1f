//! Forwarding: commands that reached a node which does not lead go to the one that does.
//!
//! A submission leaves its own shard's queue when that replica knows that another leads, and goes
//! over the data lane, marked, so that whoever receives it executes or refuses it and never sends
//! it on. What comes back refused as "not the leader" was not done, so it returns to the queue and
//! finds the new leader from there, until its deadline. What was sent and never answered may have
//! been done: a write then has an unknown outcome and is not sent again; reads are.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use flux_raft::network::frame::FrameKind;
use flux_raft::{Forward, PeerError, Submission};
use flux_types::{Answer, Command, Error, ErrorCode, NodeId, Outcome, Reply, ShardId, Term};
use flux_wire::forward::{Forwarded, read_answers};
use tokio::sync::oneshot;

use super::handshake::Lane;
use super::{Peers, reroute};

/// Pause before commands that found no leader where one was expected are tried again.
const PAUSE: Duration = Duration::from_millis(10);
/// How much longer than the request's deadline an answer is waited for: the other node answers at
/// the deadline what became of it.
const GRACE: Duration = Duration::from_millis(100);

/// See the module.
pub(crate) struct Forwarder(pub(crate) Weak<Peers>);

impl fmt::Debug for Forwarder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Forwarder").finish_non_exhaustive()
    }
}

impl Forward for Forwarder {
    fn forward(&self, shard: ShardId, leader: NodeId, submission: Submission) {
        if let Some(peers) = self.0.upgrade() {
            let known = peers.shard(shard.get());
            let known = known.and_then(|shard| peers.leader_of(&shard));
            let own = peers.book.node();
            let leader = known.filter(|known| *known != own).unwrap_or(leader);
            // Owned by the shard's runtime; ends at the submission's deadline.
            drop(tokio::spawn(carry(peers, shard, leader, submission)));
        }
    }

    fn reroute(&self, _shard: ShardId, submission: Submission) {
        match self.0.upgrade() {
            // Owned by the shard's runtime; ends at the submission's deadline.
            Some(peers) => drop(tokio::spawn(reroute::run(peers, submission))),
            None => reroute::refuse(submission),
        }
    }

    fn leader(&self, shard: ShardId, term: Term) -> Option<NodeId> {
        let (leader, _) = self.0.upgrade()?.book.leader(shard, term)?;
        Some(leader)
    }
}

async fn carry(peers: Arc<Peers>, shard: ShardId, leader: NodeId, submission: Submission) {
    let Submission {
        commands,
        traces,
        deadline,
        reply,
        routing,
        is_forwarded: _,
    } = submission;
    let left = deadline.saturating_since(peers.clock.now());
    if left.is_zero() {
        refuse_late(commands.len(), reply);
        return;
    }
    let forwarded = Forwarded {
        timeout_ms: u32::try_from(left.as_millis()).unwrap_or(u32::MAX),
        routing,
        commands,
        traces,
    };
    let link = peers.link(leader, shard, Lane::Data);
    let asking = link.ask(FrameKind::Forward, shard.get(), |out| forwarded.write(out));
    let asked = tokio::time::timeout(left + GRACE, asking).await;
    let submission = Submission {
        traces: forwarded.traces,
        routing,
        ..Submission::new(forwarded.commands, deadline, reply)
    };
    match asked {
        Ok(Ok(payload)) => match read_answers(payload) {
            Ok(answers) if answers.len() == submission.commands.len() => {
                settle(&peers, shard, submission, answers).await;
            }
            Ok(_) | Err(_) => {
                answer_all(
                    submission,
                    ErrorCode::Internal,
                    "the leader answered nonsense",
                );
            }
        },
        Ok(Err(PeerError::Unreachable(_))) => requeue(&peers, shard, submission).await,
        // A read can be asked again whatever became of it.
        Ok(Err(PeerError::Broken(_))) if !submission.commands.iter().any(Command::is_write) => {
            requeue(&peers, shard, submission).await;
        }
        Ok(Err(PeerError::Broken(_))) => {
            answer_all(submission, ErrorCode::Unavailable, LOST);
        }
        Err(_) => answer_all(submission, ErrorCode::Timeout, LATE),
    }
}

const LOST: &str = "the leader went away before it answered; the outcome is unknown";
const LATE: &str = "the leader did not answer in time; the outcome is unknown";

/// Answers every command with an error: writes may have been done.
fn answer_all(submission: Submission, code: ErrorCode, message: &'static str) {
    let answer = |command: &Command| {
        let mut error = Error::not_done(code, message);
        if command.is_write() {
            error.outcome = Outcome::Unknown;
        }
        Answer::error(error)
    };
    let answers = submission.commands.iter().map(answer).collect();
    // A session that is gone needs no answer.
    drop(submission.reply.send(answers));
}

/// Whether an answer says that nothing was done because the other node does not lead.
fn is_elsewhere(answer: &Answer) -> bool {
    matches!(
        &answer.reply,
        Reply::Error(error) if error.outcome == Outcome::NotDone
            && matches!(
                error.code,
                ErrorCode::NotLeader | ErrorCode::Resharded | ErrorCode::ShuttingDown
            )
    )
}

/// Passes answers on; commands at the end that were refused for want of leadership are asked
/// again, behind the same reply.
async fn settle(
    peers: &Arc<Peers>,
    shard: ShardId,
    mut submission: Submission,
    mut answers: Vec<Answer>,
) {
    let refused = answers
        .iter()
        .rev()
        .take_while(|answer| is_elsewhere(answer));
    let kept = answers.len() - refused.count();
    let first = answers.get(kept).map(|answer| &answer.reply);
    let is_resharded =
        matches!(first, Some(Reply::Error(error)) if error.code == ErrorCode::Resharded);
    if kept == answers.len() {
        // A session that is gone needs no answer.
        drop(submission.reply.send(answers));
        return;
    }
    let again = async |submission| {
        if is_resharded {
            reroute::run(Arc::clone(peers), submission).await;
        } else {
            requeue(peers, shard, submission).await;
        }
    };
    if kept == 0 {
        again(submission).await;
        return;
    }
    answers.truncate(kept);
    let commands = submission.commands.split_off(kept);
    let (reply, rest) = oneshot::channel();
    let traces = flux_raft::queue::from_number(&submission.traces, kept);
    let behind = Submission {
        traces,
        routing: submission.routing,
        ..Submission::new(commands, submission.deadline, reply)
    };
    let count = behind.commands.len();
    again(behind).await;
    let rest = rest.await.unwrap_or_default();
    let lost = Error::unknown(ErrorCode::Unavailable, LOST);
    answers.extend(
        rest.into_iter()
            .chain(std::iter::repeat(Answer::error(lost)))
            .take(count),
    );
    drop(submission.reply.send(answers));
}

const NO_LEADER: &str = "no leader of the shard could be reached before the deadline passed";

/// Answers what found no leader in time: none of it was done.
fn refuse_late(count: usize, reply: oneshot::Sender<Vec<Answer>>) {
    let answer = Answer::error(Error::not_done(ErrorCode::Unavailable, NO_LEADER));
    // A session that is gone needs no answer.
    drop(reply.send(vec![answer; count]));
}

/// Gives a submission of which nothing was done back to this node's own queue. A replica may
/// believe in a leader that is gone for as long as no other is elected, so that the way leads back
/// here until the deadline.
async fn requeue(peers: &Arc<Peers>, shard: ShardId, submission: Submission) {
    tokio::time::sleep(PAUSE).await;
    if submission.deadline <= peers.clock.now() {
        refuse_late(submission.commands.len(), submission.reply);
        return;
    }
    let Some(handle) = peers.shard(shard.get()) else {
        return;
    };
    if let Err(refused) = handle.submit(submission) {
        let answers = vec![crate::exec::busy(); refused.commands.len()];
        drop(refused.reply.send(answers));
    }
}

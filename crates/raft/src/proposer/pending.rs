//! One submission on its way through batches, and what can be said of its commands at each point.
//!
//! A submission longer than a batch goes through several. Its answers are then of three kinds:
//! settled (their batch is applied), provisional (evaluated in the batch in flight: if that batch
//! is not appended they are forgotten, if its fate is unknown so is theirs), and not yet asked.

use flux_env::Instant;
use flux_types::{Answer, Command, Error, ErrorCode, Outcome, TraceParent};
use tokio::sync::oneshot;

use crate::queue::{Submission, from_number};
use crate::runtime::spawn;
use crate::split;

/// See the module.
#[derive(Debug)]
pub(super) struct Pending {
    commands: Vec<Command>,
    traces: Vec<(usize, TraceParent)>,
    answers: Vec<Answer>,
    /// How many of the answers are final.
    settled: usize,
    deadline: Instant,
    is_forwarded: bool,
    routing: u32,
    reply: oneshot::Sender<Vec<Answer>>,
}

impl From<Submission> for Pending {
    fn from(submission: Submission) -> Self {
        Self {
            answers: Vec::with_capacity(submission.commands.len()),
            commands: submission.commands,
            traces: submission.traces,
            settled: 0,
            deadline: submission.deadline,
            is_forwarded: submission.is_forwarded,
            routing: submission.routing,
            reply: submission.reply,
        }
    }
}

impl Pending {
    /// The next command without an answer.
    pub(super) fn next(&self) -> Option<&Command> {
        self.commands.get(self.answers.len())
    }

    /// The requests that commands of it belong to.
    pub(super) fn traces(&self) -> impl Iterator<Item = TraceParent> + '_ {
        self.traces.iter().map(|(_, trace)| *trace)
    }

    /// The request that the next command belongs to.
    pub(super) fn trace(&self) -> Option<TraceParent> {
        let next = self.answers.len();
        let found = self
            .traces
            .binary_search_by_key(&next, |(number, _)| *number);
        let (_, trace) = self.traces.get(found.ok()?)?;
        Some(*trace)
    }

    /// Every `count` commands of a long submission: the next so many.
    pub(super) fn begins(&self, count: usize) -> Option<&[Command]> {
        let at = self.answers.len();
        if self.commands.len() < count / 2 || !at.is_multiple_of(count) {
            return None;
        }
        self.commands.get(at..self.commands.len().min(at + count))
    }

    /// How many commands have no answer yet.
    pub(super) fn unasked(&self) -> usize {
        self.commands.len() - self.answers.len()
    }

    /// Whether it came from another node.
    pub(super) const fn is_forwarded(&self) -> bool {
        self.is_forwarded
    }

    /// How many shards there will be after the split that it asks for, if it does.
    pub(super) fn splits(&self) -> Option<u32> {
        let slots = split::of_command(self.commands.first()?)?;
        Some(slots.shard_count())
    }

    /// By a map of how many shards it came here.
    pub(super) const fn routing(&self) -> u32 {
        self.routing
    }

    /// What of it has no answer yet, as a submission of its own for the leader. The answers that it
    /// has are kept by a task that adds the rest.
    pub(super) fn into_rest(mut self) -> Submission {
        assert_eq!(
            self.settled,
            self.answers.len(),
            "provisional answers were rewound"
        );
        let asked = self.answers.len();
        let traces = from_number(&self.traces, asked);
        if asked == 0 {
            return Submission {
                traces,
                routing: self.routing,
                ..Submission::new(self.commands, self.deadline, self.reply)
            };
        }
        let commands = self.commands.split_off(asked);
        let count = commands.len();
        let (reply, rest) = oneshot::channel();
        let (mut answers, whole) = (self.answers, self.reply);
        // Owned by the shard's runtime; ends when the rest is answered, at its deadline at the latest.
        drop(spawn(async move {
            let rest: Vec<Answer> = rest.await.unwrap_or_default();
            let lost = Error::unknown(ErrorCode::Unavailable, "the answer was lost");
            let lost = std::iter::repeat_with(|| Answer::error(lost.clone()));
            answers.extend(rest.into_iter().chain(lost).take(count));
            // A session that is gone needs no answer.
            drop(whole.send(answers));
        }));
        Submission {
            traces,
            routing: self.routing,
            ..Submission::new(commands, self.deadline, reply)
        }
    }

    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The provisional answer of the command [`Pending::next`] named.
    pub(super) fn answer(&mut self, answer: Answer) {
        assert!(self.answers.len() < self.commands.len(), "one answer each");
        self.answers.push(answer);
    }

    /// The batch of the provisional answers is applied.
    pub(super) fn settle(&mut self) {
        self.settled = self.answers.len();
    }

    /// The batch of the provisional answers was not appended: those commands are asked again.
    /// Answers how many.
    pub(super) fn rewind(&mut self) -> usize {
        let forgotten = self.answers.len() - self.settled;
        self.answers.truncate(self.settled);
        forgotten
    }

    /// Replaces provisional answers: whether their batch happened is not known.
    pub(super) fn lose(&mut self, code: ErrorCode, message: &'static str) {
        for (command, answer) in self
            .commands
            .iter()
            .zip(&mut self.answers)
            .skip(self.settled)
        {
            *answer = Answer::error(uncertain(command, code, message));
        }
        self.settle();
    }

    /// Replaces provisional answers: their batch was dropped and will not be proposed.
    pub(super) fn void(&mut self, code: ErrorCode, message: &'static str) {
        for answer in self.answers.iter_mut().skip(self.settled) {
            *answer = Answer::error(Error::not_done(code, message));
        }
        self.settle();
    }

    /// Answers every command that has no answer with an error, nothing of them having been done.
    pub(super) fn refuse(&mut self, code: ErrorCode, message: &'static str) {
        while self.answers.len() < self.commands.len() {
            self.answers
                .push(Answer::error(Error::not_done(code, message)));
        }
    }

    /// Sends the answers, which must be complete and final.
    pub(super) fn send(self) {
        assert_eq!(self.answers.len(), self.commands.len(), "one answer each");
        assert_eq!(self.settled, self.answers.len(), "all of them final");
        // The connection may be gone; what was asked is done all the same.
        drop(self.reply.send(self.answers));
    }

    /// Refuses what has no answer yet and sends the rest as it is.
    pub(super) fn refuse_and_send(mut self, code: ErrorCode, message: &'static str) {
        self.refuse(code, message);
        self.settle();
        self.send();
    }
}

/// The error of a command whose batch may or may not have happened. A read changes nothing, so
/// nothing of it can have happened.
fn uncertain(command: &Command, code: ErrorCode, message: &'static str) -> Error {
    let mut error = Error::not_done(code, message);
    if command.is_write() {
        error.outcome = Outcome::Unknown;
    }
    error
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use flux_types::{ReadCommand, Reply, Revision, Set, WriteCommand};

    use super::*;

    fn pending(commands: Vec<Command>) -> (Pending, oneshot::Receiver<Vec<Answer>>) {
        let (reply, answers) = oneshot::channel();
        let deadline = Instant::from_nanos(1);
        let submission = Submission::new(commands, deadline, reply);
        (Pending::from(submission), answers)
    }

    fn set() -> Command {
        let value = Bytes::from_static(b"x");
        Command::Write(WriteCommand::Set(Set::plain(value.clone(), value)))
    }

    fn ok() -> Answer {
        Answer {
            reply: Reply::Ok,
            revision: Revision::new(1),
        }
    }

    #[test]
    fn a_lost_batch_makes_its_writes_unknown_and_leaves_settled_answers_alone() {
        let (mut pending, mut answers) =
            pending(vec![set(), set(), Command::Read(ReadCommand::Count), set()]);
        pending.answer(ok());
        pending.settle();
        pending.answer(ok());
        pending.answer(ok());
        pending.lose(ErrorCode::Timeout, "late");
        pending.refuse_and_send(ErrorCode::Unavailable, "gone");
        let answers = answers.try_recv().expect("sent");
        let outcomes: Vec<_> = answers
            .iter()
            .map(|answer| {
                let Reply::Error(error) = &answer.reply else {
                    return None;
                };
                Some(error.outcome)
            })
            .collect();
        let (unknown, not_done) = (Some(Outcome::Unknown), Some(Outcome::NotDone));
        assert_eq!(outcomes, [None, unknown, not_done, not_done]);
    }

    #[test]
    fn a_batch_that_was_not_appended_is_asked_again() {
        let (mut pending, _answers) = pending(vec![set(), set(), set()]);
        pending.answer(ok());
        pending.settle();
        pending.answer(ok());
        assert_eq!(pending.rewind(), 1);
        assert_eq!(pending.unasked(), 2);
    }
}

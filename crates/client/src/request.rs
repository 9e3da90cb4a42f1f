//! What passes between a caller and the task of a connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use flux_types::RequestId;
use flux_wire::flux::{Operation, Response, TooLong};
use flux_wire::resp::introspect::key_positions;
use flux_wire::resp::{Flags, table};
use tokio::sync::oneshot;
use tokio::time::Instant;

/// What a node answered: a response, or the error it reports.
pub(crate) type Answer = Result<Response, flux_types::Error>;

/// One attempt at an operation on one connection.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) operation: Operation,
    pub(crate) request_id: Option<RequestId>,
    pub(crate) is_stale: bool,
    pub(crate) deadline: Instant,
    pub(crate) progress: Arc<Progress>,
    pub(crate) reply: oneshot::Sender<Result<Answer, Failure>>,
}

/// Why a connection gave a request back.
#[derive(Clone, Debug)]
pub(crate) enum Failure {
    /// The connection was lost, after the request was sent.
    Lost(String),
    /// The node cannot be sent it; nothing was.
    NotSent(String),
    /// The request is longer than the node accepts; nothing was sent.
    TooLong(TooLong),
}

/// Whether an operation may change data. Of words that no table knows the worst is assumed.
pub(crate) fn may_write(operation: &Operation) -> bool {
    match operation {
        Operation::Get { .. } | Operation::Ping { .. } => false,
        Operation::Set { .. }
        | Operation::Delete { .. }
        | Operation::CompareAndSet { .. }
        | Operation::Increment { .. }
        | Operation::Expire { .. } => true,
        Operation::Command { argv } => argv
            .first()
            .and_then(|name| table::find(name))
            .is_none_or(|spec| !spec.flags.contains(Flags::READONLY)),
    }
}

/// Whether an operation may be sent with a request id: a write of one key, for an id belongs to one
/// shard. Of several keys it is not known here whether they are in one.
pub(crate) fn takes_request_id(operation: &Operation) -> bool {
    let Operation::Command { argv } = operation else {
        return may_write(operation);
    };
    let spec = argv.first().and_then(|name| table::find(name));
    let is_write = spec
        .is_some_and(|spec| spec.flags.contains(Flags::WRITE) && !spec.name.starts_with("flux."));
    is_write && key_positions(argv).is_some_and(|keys| keys.count() == 1)
}

/// How far a request has come. Caller and connection race for it when a deadline passes, and the
/// one who changes it first decides: what has been given up is never sent, and what is sent counts
/// as sent.
#[derive(Debug, Default)]
pub(crate) struct Progress(AtomicU8);

const WAITING: u8 = 0;
const SENT: u8 = 1;
const GIVEN_UP: u8 = 2;

impl Progress {
    /// Marks the request as sent; false if its caller has given it up.
    pub(crate) fn send(&self) -> bool {
        self.0
            .compare_exchange(WAITING, SENT, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    /// Gives the request up; false if it may have been sent already.
    pub(crate) fn give_up(&self) -> bool {
        self.0
            .compare_exchange(WAITING, GIVEN_UP, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_surely_reads_is_taken_for_a_read() {
        let words = |line: &str| Operation::Command {
            argv: line.split(' ').map(|word| word.to_owned().into()).collect(),
        };
        assert!(!may_write(&words("GET k")) && !may_write(&words("mget a b")));
        assert!(may_write(&words("SET k v")) && may_write(&words("nonsense")));
        assert!(may_write(&Operation::Increment {
            key: "k".into(),
            by: 1
        }));
        assert!(!may_write(&Operation::Get { key: "k".into() }));
    }

    #[test]
    fn a_write_of_one_key_takes_a_request_id() {
        let words = |line: &str| Operation::Command {
            argv: line.split(' ').map(|word| word.to_owned().into()).collect(),
        };
        for line in ["SET k v", "incr k", "DEL k", "MSET k v"] {
            assert!(takes_request_id(&words(line)), "{line}");
        }
        for line in [
            "GET k",
            "MSET k v l w",
            "DEL k l",
            "FLUSHALL",
            "EXEC",
            "nonsense k",
            "FLUX.OUTCOME s 1 1 k",
            "CONFIG SET maxmemory 1",
        ] {
            assert!(!takes_request_id(&words(line)), "{line}");
        }
        assert!(!takes_request_id(&Operation::Get { key: "k".into() }));
    }

    #[test]
    fn what_was_given_up_is_never_sent_and_what_was_sent_stays_sent() {
        let progress = Progress::default();
        assert!(progress.give_up() && !progress.send());
        let progress = Progress::default();
        assert!(progress.send() && !progress.give_up() && !progress.send());
    }
}

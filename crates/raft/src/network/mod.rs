//! How replicas of a shard reach one another: messages of our own, and a trait that carries them.
//!
//! The adapter ([`adapter`]) turns openraft's calls into these messages; [`PeerHandler`] answers
//! them on the receiving side. Between the two may stand a function call ([`memory`]) or sockets
//! that multiplex all shards of a node pair, with the bytes of [`message`] in the frames of
//! [`frame`]. Messages own their data, so that a carrier can encode
//! them however it likes; their log ids, votes and entries are the log's, 1-based.
//!
//! A carrier that cannot reach its peer answers with an error. It never makes up an answer: a
//! pre-vote that nobody was asked for would count as granted.

pub(crate) mod adapter;
pub mod frame;
mod handler;
mod memory;
pub mod message;
mod none;

use std::fmt;

use bytes::Bytes;
use flux_log::{LogEntry, LogId, Vote};
use flux_types::{NodeId, ShardId};
use futures_util::future::BoxFuture;

pub use handler::PeerHandler;
pub use memory::MemoryNetwork;
pub use none::NoNetwork;

/// Where other nodes are.
pub trait Network: fmt::Debug + Send + Sync + 'static {
    /// A way to one replica. Connecting happens when the first message is sent.
    fn peer(&self, shard: ShardId, target: NodeId) -> Box<dyn Peer>;
}

/// A way to one replica of one shard. Calls may overlap.
pub trait Peer: fmt::Debug + Send + Sync + 'static {
    /// Appends entries, or proves the leader alive when there are none.
    fn append(&self, request: AppendRequest) -> BoxFuture<'_, Result<AppendReply, PeerError>>;

    /// Asks for a vote.
    fn vote(&self, request: VoteRequest) -> BoxFuture<'_, Result<VoteReply, PeerError>>;

    /// Asks whether a vote would be granted, changing nothing.
    fn pre_vote(&self, request: VoteRequest) -> BoxFuture<'_, Result<VoteReply, PeerError>>;

    /// Sends a whole snapshot.
    fn snapshot(&self, snapshot: SnapshotTransfer) -> BoxFuture<'_, Result<Vote, PeerError>>;

    /// Tells the target that it shall become leader.
    fn transfer(&self, request: TransferRequest)
    -> BoxFuture<'_, Result<TransferReply, PeerError>>;
}

/// Why a peer did not answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// There is no way to it now: wait before trying again.
    #[error("the peer is unreachable: {0}")]
    Unreachable(String),
    /// The message or its answer got lost.
    #[error("the exchange with the peer broke: {0}")]
    Broken(String),
}

/// Leader to follower: these entries follow that one.
#[derive(Clone, Debug, PartialEq)]
pub struct AppendRequest {
    /// The leader's vote.
    pub vote: Vote,
    /// The entry before the first; `None` at the log's beginning.
    pub previous: Option<LogId>,
    /// What to append. Empty is a heartbeat.
    pub entries: Vec<LogEntry>,
    /// How far the leader has committed.
    pub committed: Option<LogId>,
}

impl AppendRequest {
    /// Bytes of all payloads: what the deadline of the call grows with.
    #[must_use]
    pub fn payload_bytes(&self) -> usize {
        self.entries.iter().map(|entry| entry.payload.len()).sum()
    }
}

/// Follower to leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AppendReply {
    /// All of it is in the follower's log, flushed.
    Success,
    /// The log is flushed up to here only.
    Partial(Option<LogId>),
    /// `previous` is not in the follower's log.
    Conflict,
    /// The follower has seen a higher vote.
    HigherVote(Vote),
    /// The follower cannot take entries now (its disk is full); votes and heartbeats still pass.
    NoSpace,
}

/// Candidate to voter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VoteRequest {
    /// What is asked for.
    pub vote: Vote,
    /// The candidate's last entry.
    pub last: Option<LogId>,
    /// The leader has asked for this election: leases do not stand in its way.
    pub is_transfer: bool,
}

/// Voter to candidate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VoteReply {
    /// The voter's vote after the request.
    pub vote: Vote,
    /// Whether it was granted.
    pub is_granted: bool,
    /// The voter's last entry.
    pub last: Option<LogId>,
}

/// Leader to follower: become leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransferRequest {
    /// The leader's vote.
    pub from: Vote,
    /// Who shall lead.
    pub to: NodeId,
    /// What its log must hold first.
    pub last: Option<LogId>,
}

/// Whether the target takes over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TransferReply {
    /// It starts an election.
    Accepted,
    /// It follows another vote by now.
    VoteChanged(Vote),
    /// Its log is not flushed so far.
    LogNotFlushed(Option<LogId>),
}

/// What a snapshot stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// S: the last entry applied when the walk began. The log goes on after it.
    pub start: LogId,
    /// E: the last entry applied, or being applied, when the walk ended. Until a replica has
    /// applied it, what it loaded is no state that ever was.
    pub end: LogId,
    /// What else must be known to load it (`docs/file-format.md`).
    pub meta: Bytes,
}

/// A snapshot on its way to another replica.
pub struct SnapshotTransfer {
    /// The leader's vote.
    pub vote: Vote,
    /// What it stands for.
    pub info: SnapshotInfo,
    /// Its blocks in order; reading one may block on the disk.
    pub blocks: Box<dyn Iterator<Item = std::io::Result<Bytes>> + Send>,
}

impl fmt::Debug for SnapshotTransfer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotTransfer")
            .field("vote", &self.vote)
            .field("info", &self.info)
            .finish_non_exhaustive()
    }
}

//! What openraft is instantiated with. No type of this file leaves the room.

use std::fmt;

use bytes::Bytes;
use flux_types::UnixMillis;
use openraft::entry::EntryPayload;
use openraft::impls::{BoxedErrorSource, EmptyNode, InlineBatch, OneshotResponder, leader_id_std};
use openraft::vote::RaftLeaderId;
use openraft::{OptionalSend, RaftTypeConfig, alias};

use crate::runtime::CoreRuntime;
use crate::state_machine::StateMachine;

/// One encoded batch of facts, as `flux_store::batch` writes it, on its way through the log.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Batch {
    /// The batch's bytes, header included.
    pub(crate) bytes: Bytes,
    /// The time the batch was evaluated at, repeated in the record's header.
    pub(crate) at: UnixMillis,
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "batch of {} bytes", self.bytes.len())
    }
}

/// What apply answers for one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Applied {
    /// Its facts are in the store, or it had none.
    Effective,
    /// A batch whose header names another term than its log id: skipped by everyone (rule 2).
    Void,
}

/// openraft's parameters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TypeConfig;

impl RaftTypeConfig for TypeConfig {
    type D = Batch;
    type R = Applied;
    type NodeId = u64;
    // Addresses are the cluster map's business: a node that moves is the same voter.
    type Node = EmptyNode;
    type Term = u64;
    // One leader per term, as in the Raft paper: a log id is (term, index) and nothing else.
    type LeaderId = leader_id_std::LeaderId<u64, u64>;
    type Vote = openraft::impls::Vote<Self::LeaderId>;
    type Payload = EntryPayload<Batch, u64, EmptyNode>;
    type Entry = openraft::Entry<<Self::LeaderId as RaftLeaderId>::Committed, Self::Payload>;
    type AsyncRuntime = CoreRuntime;
    type Responder<T>
        = OneshotResponder<Self, T>
    where
        T: OptionalSend + 'static;
    type Batch<T>
        = InlineBatch<T>
    where
        T: OptionalSend + 'static;
    type ErrorSource = BoxedErrorSource;
}

pub(crate) type Raft = openraft::Raft<TypeConfig, StateMachine>;
pub(crate) type RaftLogId = alias::LogIdOf<TypeConfig>;
pub(crate) type RaftVote = alias::VoteOf<TypeConfig>;
pub(crate) type RaftEntry = alias::EntryOf<TypeConfig>;
pub(crate) type RaftMembership = openraft::Membership<u64, EmptyNode>;
pub(crate) type StoredMembership = alias::StoredMembershipOf<TypeConfig>;
pub(crate) type SnapshotMeta = alias::SnapshotMetaOf<TypeConfig>;
pub(crate) type CommittedLeaderId = alias::CommittedLeaderIdOf<TypeConfig>;
pub(crate) type Payload = alias::PayloadOf<TypeConfig>;

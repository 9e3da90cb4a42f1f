//! Between openraft's values and the log's: log ids, votes, entries, membership.
//!
//! Two things are decided here and nowhere else. Indexes: ours count from 1 and 0 means "none";
//! openraft counts from 0 and says `None`. Payloads: an entry's payload is empty for a blank entry
//! (a new leader's no-op), begins with [`MEMBERSHIP_MARK`] for a membership, and is a batch of
//! facts otherwise; a batch begins with its format version, which is never that mark
//! (`docs/file-format.md`).

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use bytes::{BufMut, Bytes, BytesMut};
use flux_log::{LogEntry, LogId, Vote};
use flux_store::batch::MEMBERSHIP_MARK;
use flux_types::{LogIndex, NodeId, Revision, Term, UnixMillis};
use openraft::entry::{EntryPayload, RaftEntry as _};
use openraft::impls::EmptyNode;
use openraft::vote::{RaftLeaderId, RaftVote as _};

use crate::type_config::{
    Batch, CommittedLeaderId, RaftEntry, RaftLogId, RaftMembership, RaftVote, StoredMembership,
    TypeConfig,
};

/// Version of the membership encoding.
const MEMBERSHIP_VERSION: u8 = 1;
/// Version of a snapshot's meta.
const SNAPSHOT_META_VERSION: u8 = 1;
/// More voters or learners than this are not a membership of ours.
const MEMBERS_MAX: usize = 1024;
/// More voter sets than this are not a membership of ours: a joint one has two.
const CONFIGURATIONS_MAX: usize = 8;

type LeaderId = <TypeConfig as openraft::RaftTypeConfig>::LeaderId;

/// The leader of a term, as openraft names it in log ids.
pub(crate) fn committed_leader(term: Term) -> CommittedLeaderId {
    // With one leader per term the node is no part of a committed leader id.
    LeaderId::new(term.get(), 0).to_committed()
}

pub(crate) fn to_raft_id(id: LogId) -> RaftLogId {
    let index = id.index.get();
    assert!(index > 0, "index 0 names no entry");
    RaftLogId::new(committed_leader(id.term), index - 1)
}

pub(crate) fn from_raft_id(id: &RaftLogId) -> LogId {
    LogId {
        term: Term::new(id.committed_leader_id().term),
        index: LogIndex::new(id.index() + 1),
    }
}

pub(crate) fn to_raft_vote(vote: Vote) -> RaftVote {
    RaftVote::from_leader_id(
        LeaderId::new(vote.term.get(), vote.node.get()),
        vote.committed,
    )
}

pub(crate) fn from_raft_vote(vote: &RaftVote) -> Vote {
    let leader = vote.leader_id();
    Vote {
        term: Term::new(leader.term),
        node: NodeId::new(leader.voted_for),
        committed: vote.is_committed(),
    }
}

/// An entry as the log keeps it. Entries that carry no batch, and so no time, get `now`.
pub(crate) fn from_raft_entry(entry: RaftEntry, now: UnixMillis) -> LogEntry {
    let id = from_raft_id(&entry.log_id());
    let (timestamp, payload) = match entry.payload {
        EntryPayload::Blank => (now, Bytes::new()),
        EntryPayload::Normal(batch) => (batch.at, batch.bytes),
        EntryPayload::Membership(membership) => (now, encode_membership(None, &membership)),
    };
    LogEntry {
        id,
        timestamp,
        payload,
    }
}

/// An entry as openraft sees it.
///
/// # Errors
/// A membership that cannot be decoded: checksums have passed, so it was written by something else.
pub(crate) fn to_raft_entry(entry: LogEntry) -> io::Result<RaftEntry> {
    let id = to_raft_id(entry.id);
    let payload = match entry.payload.first() {
        None => EntryPayload::Blank,
        Some(&MEMBERSHIP_MARK) => {
            EntryPayload::Membership(decode_membership(&entry.payload)?.membership().clone())
        }
        Some(_) => EntryPayload::Normal(Batch {
            bytes: entry.payload,
            at: entry.timestamp,
        }),
    };
    Ok(RaftEntry::new(id, payload))
}

/// Mark, version, the log id it was stored at (term and index, index 0 for none), the number of
/// voter sets, each as count and node ids, then all nodes as count and ids; little-endian.
pub(crate) fn encode_membership(at: Option<LogId>, membership: &RaftMembership) -> Bytes {
    let mut out = BytesMut::with_capacity(64);
    out.put_u8(MEMBERSHIP_MARK);
    out.put_u8(MEMBERSHIP_VERSION);
    out.put_u64_le(at.map_or(0, |id| id.term.get()));
    out.put_u64_le(at.map_or(0, |id| id.index.get()));
    let configurations = membership.get_joint_config();
    put_count(&mut out, configurations.len());
    for voters in configurations {
        put_count(&mut out, voters.len());
        voters.iter().for_each(|node| out.put_u64_le(*node));
    }
    put_count(&mut out, membership.nodes().count());
    membership
        .nodes()
        .for_each(|(node, _)| out.put_u64_le(*node));
    out.freeze()
}

fn put_count(out: &mut BytesMut, count: usize) {
    out.put_u32_le(u32::try_from(count).expect("a membership has at most MEMBERS_MAX nodes"));
}

/// The reverse of [`encode_membership`].
///
/// # Errors
/// Anything that function does not write.
pub(crate) fn decode_membership(bytes: &[u8]) -> io::Result<StoredMembership> {
    parse_membership(bytes)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "malformed membership"))
}

fn parse_membership(bytes: &[u8]) -> Option<StoredMembership> {
    let mut rest = bytes;
    let mark = take::<1>(&mut rest)?;
    let version = take::<1>(&mut rest)?;
    if mark != [MEMBERSHIP_MARK] || version != [MEMBERSHIP_VERSION] {
        return None;
    }
    let term = u64::from_le_bytes(take(&mut rest)?);
    let index = u64::from_le_bytes(take(&mut rest)?);
    let count = take_count(&mut rest, CONFIGURATIONS_MAX)?;
    let mut configurations = Vec::with_capacity(count);
    for _ in 0..count {
        configurations.push(take_nodes(&mut rest)?);
    }
    let nodes: BTreeMap<u64, EmptyNode> = take_nodes(&mut rest)?
        .into_iter()
        .map(|node| (node, EmptyNode::new()))
        .collect();
    if !rest.is_empty() {
        return None;
    }
    let at = (index > 0).then(|| {
        to_raft_id(LogId {
            term: Term::new(term),
            index: LogIndex::new(index),
        })
    });
    if configurations.is_empty() && nodes.is_empty() {
        return Some(StoredMembership::new(at, RaftMembership::default()));
    }
    let membership = RaftMembership::new(configurations, nodes).ok()?;
    Some(StoredMembership::new(at, membership))
}

/// What a snapshot says beside its blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SnapshotExtra {
    /// The store's revision when the walk began or later; replay makes it right by E.
    pub(crate) revision: Revision,
    /// The time of the last batch then.
    pub(crate) last_batch_at: UnixMillis,
    /// The membership at S.
    pub(crate) membership: StoredMembership,
}

impl SnapshotExtra {
    /// Version, revision, time of the last batch, membership; little-endian.
    pub(crate) fn encode(&self) -> Bytes {
        let at = self.membership.log_id().as_ref().map(from_raft_id);
        let mut out = BytesMut::with_capacity(96);
        out.put_u8(SNAPSHOT_META_VERSION);
        out.put_u64_le(self.revision.get());
        out.put_u64_le(self.last_batch_at.get());
        out.put_slice(&encode_membership(at, self.membership.membership()));
        out.freeze()
    }

    /// The reverse of [`SnapshotExtra::encode`].
    ///
    /// # Errors
    /// Anything that function does not write.
    pub(crate) fn decode(bytes: &[u8]) -> io::Result<Self> {
        let malformed =
            || io::Error::new(io::ErrorKind::InvalidData, "malformed meta of a snapshot");
        let mut rest = bytes;
        let version = take::<1>(&mut rest).ok_or_else(malformed)?;
        if version != [SNAPSHOT_META_VERSION] {
            return Err(malformed());
        }
        let revision = take(&mut rest).ok_or_else(malformed)?;
        let last_batch_at = take(&mut rest).ok_or_else(malformed)?;
        Ok(Self {
            revision: Revision::new(u64::from_le_bytes(revision)),
            last_batch_at: UnixMillis::new(u64::from_le_bytes(last_batch_at)),
            membership: decode_membership(rest)?,
        })
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk::<N>()?;
    *rest = tail;
    Some(*head)
}

fn take_count(rest: &mut &[u8], max: usize) -> Option<usize> {
    let count = usize::try_from(u32::from_le_bytes(take(rest)?)).ok()?;
    (count <= max).then_some(count)
}

fn take_nodes(rest: &mut &[u8]) -> Option<BTreeSet<u64>> {
    let count = take_count(rest, MEMBERS_MAX)?;
    let mut nodes = BTreeSet::new();
    for _ in 0..count {
        if !nodes.insert(u64::from_le_bytes(take(rest)?)) {
            return None;
        }
    }
    Some(nodes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joint() -> RaftMembership {
        let nodes: BTreeMap<u64, EmptyNode> = (1..=4).map(|n| (n, EmptyNode::new())).collect();
        RaftMembership::new(vec![BTreeSet::from([1]), BTreeSet::from([1, 2, 3])], nodes)
            .expect("valid")
    }

    #[test]
    fn a_membership_survives_its_encoding() {
        let at = LogId {
            term: Term::new(3),
            index: LogIndex::new(7),
        };
        let stored = decode_membership(&encode_membership(Some(at), &joint())).expect("decodes");
        assert_eq!(stored.membership(), &joint());
        assert_eq!(stored.log_id().as_ref().map(from_raft_id), Some(at));
        let stored = decode_membership(&encode_membership(None, &RaftMembership::default()));
        assert_eq!(stored.expect("decodes"), StoredMembership::default());
    }

    #[test]
    fn a_cut_or_lengthened_membership_is_refused() {
        let bytes = encode_membership(None, &joint());
        for cut in 0..bytes.len() {
            assert!(decode_membership(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        let longer = [&bytes[..], &[0]].concat();
        assert!(decode_membership(&longer).is_err());
    }

    #[test]
    fn the_first_entry_is_one_here_and_zero_there() {
        let id = LogId {
            term: Term::new(2),
            index: LogIndex::new(1),
        };
        let theirs = to_raft_id(id);
        assert_eq!(theirs.index(), 0);
        assert_eq!(from_raft_id(&theirs), id);
    }
}

//! The messages of replication as bytes (`docs/replication.md`, "Messages"), without I/O.
//!
//! Whoever sends is a node that has authenticated itself, and yet what is read here goes into the
//! consensus engine, which trusts its input: so that what no leader sends (gaps, index 0, an
//! append under a vote that no quorum gave) ends here.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flux_log::{LogEntry, LogId, Vote};
use flux_types::{LogIndex, NodeId, Term, UnixMillis};

use super::{
    AppendReply, AppendRequest, SnapshotInfo, TransferReply, TransferRequest, VoteReply,
    VoteRequest,
};

/// Most entries in one append: far more than any leader of ours sends.
const ENTRIES_MAX: usize = 65_536;
/// Bytes of an entry without its payload.
const ENTRY_BYTES: usize = 28;
/// Longest meta of a snapshot, in bytes.
const META_BYTES_MAX: usize = 64 * 1024;

/// A payload that is not what its kind carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed {0}")]
pub struct MalformedMessage(&'static str);

type Read<T> = Result<T, MalformedMessage>;

/// What travels between replicas, and how.
pub trait Message: Sized {
    /// Appends it.
    fn write(&self, out: &mut BytesMut);

    /// The reverse of [`Message::write`].
    ///
    /// # Errors
    /// Anything that no replica sends.
    fn read(payload: Bytes) -> Result<Self, MalformedMessage>;
}

struct Reader {
    rest: Bytes,
    what: &'static str,
}

impl Reader {
    const fn new(rest: Bytes, what: &'static str) -> Self {
        Self { rest, what }
    }

    const fn malformed(&self) -> MalformedMessage {
        MalformedMessage(self.what)
    }

    fn need(&self, count: usize) -> Read<()> {
        if self.rest.len() < count {
            return Err(self.malformed());
        }
        Ok(())
    }

    fn u8(&mut self) -> Read<u8> {
        self.need(1)?;
        Ok(self.rest.get_u8())
    }

    fn u32(&mut self) -> Read<usize> {
        self.need(4)?;
        Ok(self.rest.get_u32_le() as usize)
    }

    fn u64(&mut self) -> Read<u64> {
        self.need(8)?;
        Ok(self.rest.get_u64_le())
    }

    fn flag(&mut self) -> Read<bool> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.malformed()),
        }
    }

    fn bytes(&mut self, bytes_max: usize) -> Read<Bytes> {
        let length = self.u32()?;
        if bytes_max < length {
            return Err(self.malformed());
        }
        self.need(length)?;
        Ok(self.rest.split_to(length))
    }

    fn vote(&mut self) -> Read<Vote> {
        Ok(Vote {
            term: Term::new(self.u64()?),
            node: NodeId::new(self.u64()?),
            committed: self.flag()?,
        })
    }

    /// A log id; index 0 says that there is none.
    fn id(&mut self) -> Read<Option<LogId>> {
        let (term, index) = (self.u64()?, self.u64()?);
        if index == 0 && term != 0 {
            return Err(self.malformed());
        }
        Ok((index != 0).then(|| LogId {
            term: Term::new(term),
            index: LogIndex::new(index),
        }))
    }

    fn some_id(&mut self) -> Read<LogId> {
        self.id()?.ok_or_else(|| self.malformed())
    }

    fn end<T>(self, value: T) -> Read<T> {
        if self.rest.is_empty() {
            Ok(value)
        } else {
            Err(self.malformed())
        }
    }
}

fn put_vote(out: &mut BytesMut, vote: Vote) {
    out.put_u64_le(vote.term.get());
    out.put_u64_le(vote.node.get());
    out.put_u8(u8::from(vote.committed));
}

fn put_id(out: &mut BytesMut, id: Option<LogId>) {
    out.put_u64_le(id.map_or(0, |id| id.term.get()));
    out.put_u64_le(id.map_or(0, |id| id.index.get()));
}

fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    // A length beyond 32 bits makes a frame that is refused as too long, whatever this says.
    out.put_u32_le(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    out.put_slice(bytes);
}

impl Message for AppendRequest {
    fn write(&self, out: &mut BytesMut) {
        out.reserve(64 + self.payload_bytes() + self.entries.len() * ENTRY_BYTES);
        put_vote(out, self.vote);
        put_id(out, self.previous);
        put_id(out, self.committed);
        out.put_u32_le(u32::try_from(self.entries.len()).unwrap_or(u32::MAX));
        for entry in &self.entries {
            put_id(out, Some(entry.id));
            out.put_u64_le(entry.timestamp.get());
            put_bytes(out, &entry.payload);
        }
    }

    fn read(payload: Bytes) -> Read<Self> {
        let mut reader = Reader::new(payload, "append");
        let vote = reader.vote()?;
        let previous = reader.id()?;
        let committed = reader.id()?;
        let count = reader.u32()?;
        if !vote.committed || ENTRIES_MAX < count || reader.rest.len() / ENTRY_BYTES < count {
            return Err(reader.malformed());
        }
        let mut entries: Vec<LogEntry> = Vec::with_capacity(count);
        let mut last = previous;
        for _ in 0..count {
            let id = reader.some_id()?;
            let timestamp = UnixMillis::new(reader.u64()?);
            let payload = reader.bytes(usize::MAX)?;
            let follows = id.index.get() - 1 == last.map_or(0, |last| last.index.get())
                && last.is_none_or(|last| last.term <= id.term)
                && id.term <= vote.term;
            if !follows {
                return Err(reader.malformed());
            }
            last = Some(id);
            entries.push(LogEntry {
                id,
                timestamp,
                payload,
            });
        }
        reader.end(Self {
            vote,
            previous,
            entries,
            committed,
        })
    }
}

impl Message for AppendReply {
    fn write(&self, out: &mut BytesMut) {
        match self {
            Self::Success => out.put_u8(0),
            Self::Partial(id) => {
                out.put_u8(1);
                put_id(out, *id);
            }
            Self::Conflict => out.put_u8(2),
            Self::HigherVote(vote) => {
                out.put_u8(3);
                put_vote(out, *vote);
            }
            Self::NoSpace => out.put_u8(4),
        }
    }

    fn read(payload: Bytes) -> Read<Self> {
        let mut reader = Reader::new(payload, "reply to an append");
        let reply = match reader.u8()? {
            0 => Self::Success,
            1 => Self::Partial(reader.id()?),
            2 => Self::Conflict,
            3 => Self::HigherVote(reader.vote()?),
            4 => Self::NoSpace,
            _ => return Err(reader.malformed()),
        };
        reader.end(reply)
    }
}

impl Message for VoteRequest {
    fn write(&self, out: &mut BytesMut) {
        put_vote(out, self.vote);
        put_id(out, self.last);
        out.put_u8(u8::from(self.is_transfer));
    }

    fn read(payload: Bytes) -> Read<Self> {
        let mut reader = Reader::new(payload, "request for a vote");
        let request = Self {
            vote: reader.vote()?,
            last: reader.id()?,
            is_transfer: reader.flag()?,
        };
        if request.vote.committed {
            return Err(reader.malformed());
        }
        reader.end(request)
    }
}

impl Message for VoteReply {
    fn write(&self, out: &mut BytesMut) {
        put_vote(out, self.vote);
        out.put_u8(u8::from(self.is_granted));
        put_id(out, self.last);
    }

    fn read(payload: Bytes) -> Read<Self> {
        let mut reader = Reader::new(payload, "vote");
        let reply = Self {
            vote: reader.vote()?,
            is_granted: reader.flag()?,
            last: reader.id()?,
        };
        reader.end(reply)
    }
}

impl Message for TransferRequest {
    fn write(&self, out: &mut BytesMut) {
        put_vote(out, self.from);
        out.put_u64_le(self.to.get());
        put_id(out, self.last);
    }

    fn read(payload: Bytes) -> Read<Self> {
        let mut reader = Reader::new(payload, "transfer");
        let request = Self {
            from: reader.vote()?,
            to: NodeId::new(reader.u64()?),
            last: reader.id()?,
        };
        if !request.from.committed {
            return Err(reader.malformed());
        }
        reader.end(request)
    }
}

impl Message for TransferReply {
    fn write(&self, out: &mut BytesMut) {
        match self {
            Self::Accepted => out.put_u8(0),
            Self::VoteChanged(vote) => {
                out.put_u8(1);
                put_vote(out, *vote);
            }
            Self::LogNotFlushed(id) => {
                out.put_u8(2);
                put_id(out, *id);
            }
        }
    }

    fn read(payload: Bytes) -> Read<Self> {
        let mut reader = Reader::new(payload, "reply to a transfer");
        let reply = match reader.u8()? {
            0 => Self::Accepted,
            1 => Self::VoteChanged(reader.vote()?),
            2 => Self::LogNotFlushed(reader.id()?),
            _ => return Err(reader.malformed()),
        };
        reader.end(reply)
    }
}

/// The beginning of a snapshot: the leader's vote and what it stands for. The reply to the whole
/// is the receiver's vote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotBegin {
    /// The leader's vote.
    pub vote: Vote,
    /// What it stands for.
    pub info: SnapshotInfo,
}

impl Message for SnapshotBegin {
    fn write(&self, out: &mut BytesMut) {
        put_vote(out, self.vote);
        put_id(out, Some(self.info.start));
        put_id(out, Some(self.info.end));
        put_bytes(out, &self.info.meta);
    }

    fn read(payload: Bytes) -> Read<Self> {
        let mut reader = Reader::new(payload, "snapshot");
        let vote = reader.vote()?;
        let info = SnapshotInfo {
            start: reader.some_id()?,
            end: reader.some_id()?,
            meta: reader.bytes(META_BYTES_MAX)?,
        };
        let is_ordered = info.start.index <= info.end.index
            && info.start.term <= info.end.term
            && info.end.term <= vote.term;
        if !vote.committed || !is_ordered {
            return Err(reader.malformed());
        }
        reader.end(Self { vote, info })
    }
}

impl Message for Vote {
    fn write(&self, out: &mut BytesMut) {
        put_vote(out, *self);
    }

    fn read(payload: Bytes) -> Read<Self> {
        let mut reader = Reader::new(payload, "vote");
        let vote = reader.vote()?;
        reader.end(vote)
    }
}

/// Any bytes as every message: what the fuzz target runs.
///
/// # Panics
/// If what was read is written differently.
pub fn fuzz_peer_messages(input: &[u8]) {
    fn check<M: Message>(input: &[u8]) {
        let payload = Bytes::copy_from_slice(input);
        if let Ok(message) = M::read(payload.clone()) {
            let mut out = BytesMut::new();
            message.write(&mut out);
            assert_eq!(out.freeze(), payload);
        }
    }
    let mut buffer = BytesMut::from(input);
    let decoder = super::frame::PeerDecoder::new(4096);
    while let Ok(Some(frame)) = decoder.next(&mut buffer) {
        assert!(frame.payload.len() <= 4096);
    }
    check::<AppendRequest>(input);
    check::<AppendReply>(input);
    check::<VoteRequest>(input);
    check::<VoteReply>(input);
    check::<TransferRequest>(input);
    check::<TransferReply>(input);
    check::<SnapshotBegin>(input);
    check::<Vote>(input);
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use proptest::prelude::*;

    use super::*;

    const VOTE: Vote = Vote {
        term: Term::new(5),
        node: NodeId::new(0x2_0000_0007),
        committed: true,
    };

    fn id(term: u64, index: u64) -> LogId {
        LogId {
            term: Term::new(term),
            index: LogIndex::new(index),
        }
    }

    fn entry(term: u64, index: u64, payload: &'static [u8]) -> LogEntry {
        LogEntry {
            id: id(term, index),
            timestamp: UnixMillis::new(12),
            payload: Bytes::from_static(payload),
        }
    }

    fn bytes_of(message: &impl Message) -> Bytes {
        let mut out = BytesMut::new();
        message.write(&mut out);
        out.freeze()
    }

    /// It survives, and no part of it passes for the whole.
    fn check<M: Message + PartialEq + Debug>(message: &M) {
        let whole = bytes_of(message);
        assert_eq!(M::read(whole.clone()).as_ref(), Ok(message));
        for cut in 0..whole.len() {
            assert!(
                M::read(whole.slice(..cut)).is_err(),
                "{message:?} cut at {cut}"
            );
        }
        let longer = [&whole[..], &[0]].concat();
        assert!(M::read(longer.into()).is_err(), "{message:?} lengthened");
    }

    fn append() -> AppendRequest {
        AppendRequest {
            vote: VOTE,
            previous: Some(id(2, 6)),
            entries: vec![entry(2, 7, b""), entry(5, 8, b"facts")],
            committed: Some(id(2, 5)),
        }
    }

    #[test]
    fn every_message_survives_the_wire() {
        let uncommitted = Vote {
            committed: false,
            ..VOTE
        };
        check(&append());
        check(&AppendRequest {
            previous: None,
            entries: Vec::new(),
            committed: None,
            ..append()
        });
        for reply in [
            AppendReply::Success,
            AppendReply::Partial(Some(id(1, 2))),
            AppendReply::Partial(None),
            AppendReply::Conflict,
            AppendReply::HigherVote(VOTE),
            AppendReply::NoSpace,
        ] {
            check(&reply);
        }
        check(&VoteRequest {
            vote: uncommitted,
            last: Some(id(1, 2)),
            is_transfer: true,
        });
        check(&VoteReply {
            vote: uncommitted,
            is_granted: true,
            last: None,
        });
        check(&TransferRequest {
            from: VOTE,
            to: NodeId::new(3),
            last: Some(id(1, 2)),
        });
        for reply in [
            TransferReply::Accepted,
            TransferReply::VoteChanged(VOTE),
            TransferReply::LogNotFlushed(None),
        ] {
            check(&reply);
        }
        check(&SnapshotBegin {
            vote: VOTE,
            info: SnapshotInfo {
                start: id(1, 2),
                end: id(2, 9),
                meta: Bytes::from_static(b"meta"),
            },
        });
        check(&VOTE);
    }

    #[test]
    fn what_no_leader_sends_is_refused() {
        let refused = |request: AppendRequest| {
            assert!(
                AppendRequest::read(bytes_of(&request)).is_err(),
                "{request:?}"
            );
        };
        let with = |entries| AppendRequest {
            entries,
            ..append()
        };
        let later = SnapshotBegin {
            vote: VOTE,
            info: SnapshotInfo {
                start: id(1, 2),
                end: id(6, 9),
                meta: Bytes::new(),
            },
        };
        assert!(SnapshotBegin::read(bytes_of(&later)).is_err());
        refused(with(vec![entry(2, 8, b"")]));
        refused(with(vec![entry(2, 7, b""), entry(2, 9, b"")]));
        refused(with(vec![entry(1, 7, b"")]));
        refused(with(vec![entry(6, 7, b"")]));
        refused(AppendRequest {
            vote: Vote {
                committed: false,
                ..VOTE
            },
            ..append()
        });
        let request = VoteRequest {
            vote: VOTE,
            last: None,
            is_transfer: false,
        };
        assert!(VoteRequest::read(bytes_of(&request)).is_err());
    }

    #[test]
    fn the_corpus_of_the_fuzz_target_holds() {
        let corpus =
            std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/peer_message");
        let disk = flux_env::RealDisk;
        let names = flux_env::Disk::read_dir(&disk, &corpus).expect("it is in the repository");
        assert!(10 < names.len());
        for name in names {
            let path = corpus.join(name);
            let file = flux_env::Disk::open(&disk, &path, flux_env::OpenMode::Read);
            let file = file.expect("it can be opened");
            let size = file.size_bytes().expect("it has a size");
            let mut input = vec![0; usize::try_from(size).expect("small")];
            file.read_at(&mut input, 0).expect("it can be read");
            fuzz_peer_messages(&input);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            fuzz_peer_messages(&bytes);
        }

        #[test]
        fn a_changed_byte_is_read_without_a_panic(at in any::<prop::sample::Index>(), with in any::<u8>()) {
            let mut bytes = bytes_of(&append()).to_vec();
            let at = at.index(bytes.len());
            bytes[at] = with;
            fuzz_peer_messages(&bytes);
        }
    }
}

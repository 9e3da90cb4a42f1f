//! Old log: what this node's replica of a shard holds no more, from other nodes (rule 15 of the
//! design), for readers of changes.
//!
//! Any node may have it: members of the shard and those that once were. Those that have been heard
//! of lately are asked one after the other, first the one that gave something last. A node answers
//! only what is committed and synced there and what its log holds without a hole; how large an
//! answer may be and how many are made at once is bounded on both sides.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use flux_cdc::{Fetched, Wanted};
use flux_log::{LogEntry, LogError, LogId, ShardLog};
use flux_raft::network::frame::FrameKind;
use flux_raft::{PeerError, Shard};
use flux_types::{LogIndex, NodeId, ShardId, Term, UnixMillis};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, oneshot};

use super::Peers;
use super::field::{Malformed, Reader};
use super::handshake::Lane;
use crate::metrics::{ChangesMetrics, FetchResult};

/// Most bytes of payloads in one answer, unless one entry alone is longer.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;
/// Most entries in one answer.
const ENTRIES_MAX: usize = 65_536;
/// Bytes of an entry without its payload.
const ENTRY_BYTES: usize = 28;
/// How many answers this node may wait for at once.
const FETCHES_MAX: usize = 4;
/// How many answers this node may read at once for others.
pub(super) const READINGS_MAX: usize = 4;
/// How long one node's answer may take. A node that has died is known as such sooner.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long all of them together may take.
const FETCH_TIMEOUT: Duration = Duration::from_secs(15);

/// Asks other nodes; see the module.
pub(crate) struct Historian {
    peers: Option<Weak<Peers>>,
    fetches: Semaphore,
    metrics: ChangesMetrics,
    /// Who gave something last. Lock order: a leaf.
    generous: Mutex<Option<NodeId>>,
}

impl fmt::Debug for Historian {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Historian").finish_non_exhaustive()
    }
}

impl Historian {
    /// One that asks nobody if there are no others.
    pub(crate) fn new(peers: Option<&Arc<Peers>>, metrics: ChangesMetrics) -> Self {
        Self {
            peers: peers.map(Arc::downgrade),
            fetches: Semaphore::new(FETCHES_MAX),
            metrics,
            generous: Mutex::new(None),
        }
    }

    /// See [`flux_cdc::Origin::fetch`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub(crate) fn fetch(
        self: &Arc<Self>,
        shard: &Shard,
        wanted: Wanted,
    ) -> oneshot::Receiver<Fetched> {
        let (mut tell, answer) = oneshot::channel();
        let (historian, shard) = (Arc::clone(self), shard.clone());
        // Owned by whoever holds the answer: it ends when that is dropped, or by its own limit.
        drop(tokio::spawn(async move {
            let asking = historian.ask_all(&shard, wanted);
            let fetched = tokio::select! {
                () = tell.closed() => return,
                fetched = asking => fetched,
            };
            // Who has gone meanwhile needs no answer.
            drop(tell.send(fetched));
        }));
        answer
    }

    async fn ask_all(&self, shard: &Shard, wanted: Wanted) -> Fetched {
        let Some(peers) = &self.peers else {
            return Fetched {
                entries: Vec::new(),
                is_complete: true,
            };
        };
        let (Ok(_place), Some(peers)) = (self.fetches.acquire().await, peers.upgrade()) else {
            return Fetched::default();
        };
        let mut search = Search {
            wanted,
            found: Fetched::default(),
            giver: None,
            members: Vec::new(),
        };
        let asking = self.search(&peers, shard, &mut search);
        let is_over = tokio::time::timeout(FETCH_TIMEOUT, asking).await.is_ok();
        let Search {
            mut found, giver, ..
        } = search;
        found.is_complete &= is_over;
        if giver.is_some() {
            *self.generous.lock() = giver;
        }
        let result = match (found.entries.is_empty(), found.is_complete) {
            (false, _) => FetchResult::Found,
            (true, true) => FetchResult::Missing,
            (true, false) => FetchResult::Unknown,
        };
        self.metrics.fetched(result, found.entries.len());
        tracing::debug!(
            shard = %shard.id(),
            from = wanted.from.get(),
            entries = found.entries.len(),
            giver = giver.map(NodeId::physical),
            is_complete = found.is_complete,
            "asked other nodes for old log"
        );
        found
    }

    /// Asks one node after the other until one has what is wanted.
    async fn search(&self, peers: &Arc<Peers>, shard: &Shard, search: &mut Search) {
        let living = peers.book.all_living();
        let members = shard.members();
        let own = peers.book.node();
        search.members = members.voters;
        search.members.extend(members.learners);
        let is_there = |node: &NodeId| *node == own || living.contains(node);
        search.found.is_complete = search.members.iter().all(is_there);
        let generous = *self.generous.lock();
        let first = generous.filter(|node| living.contains(node));
        let others = living.iter().filter(|node| Some(**node) != first);
        for node in first.iter().chain(others) {
            let asking = ask(peers, *node, shard.id(), search.wanted);
            let answer = match tokio::time::timeout(ANSWER_TIMEOUT, asking).await {
                Ok(answer) => answer,
                Err(_) => Err(PeerError::Broken("no answer in time".to_owned())),
            };
            match answer {
                Ok(answer) => {
                    if search.take(*node, answer) {
                        return;
                    }
                }
                Err(error) => {
                    search.found.is_complete = false;
                    tracing::debug!(node = node.physical(), %error, "a node gave no old log");
                }
            }
        }
    }
}

/// What was found so far.
#[derive(Debug)]
struct Search {
    wanted: Wanted,
    found: Fetched,
    giver: Option<NodeId>,
    /// Of the shard: who may have what nobody else has.
    members: Vec<NodeId>,
}

impl Search {
    /// Takes in what a node has answered; says whether that is all one can wish for.
    fn take(&mut self, node: NodeId, answer: Answer) -> bool {
        // A member that is still catching up may come to have it; others have it or do not.
        if answer.end <= self.wanted.from && self.members.contains(&node) {
            self.found.is_complete = false;
        }
        let first = |entries: &[LogEntry]| entries.first().map(|entry| entry.id.index);
        let Some(begins) = first(&answer.entries) else {
            return false;
        };
        if first(&self.found.entries).is_none_or(|best| begins < best) {
            self.found.entries = answer.entries;
            self.giver = Some(node);
        }
        begins == self.wanted.from
    }
}

async fn ask(
    peers: &Arc<Peers>,
    node: NodeId,
    shard: ShardId,
    wanted: Wanted,
) -> Result<Answer, PeerError> {
    let link = peers.link(node, shard, Lane::Data);
    let asking = link.ask(FrameKind::History, shard.get(), |out| {
        write_wanted(&wanted, out)
    });
    Answer::read(asking.await?, &wanted).map_err(broken)
}

/// Answers another node.
pub(super) async fn answer(
    peers: &Peers,
    shard: &Shard,
    payload: Bytes,
) -> Result<Bytes, PeerError> {
    let wanted = read_wanted(payload).map_err(broken)?;
    let _place = peers.readings.acquire().await.map_err(broken)?;
    let log = shard.log();
    let committed = shard.applied().map_or(LogIndex::new(0), |id| id.index);
    let last = wanted.until.min(committed.next());
    if log.durable().next() < last {
        sync(log).await?;
    }
    let end = committed.min(log.durable()).next();
    // In this order: what is read is at least as new as what is said to be the oldest.
    let (entries, oldest) = read(log, &wanted, end).await?;
    let answer = Answer {
        oldest,
        end,
        entries,
    };
    let mut out = BytesMut::new();
    answer.write(&mut out);
    Ok(out.freeze())
}

/// What the log holds of what is wanted, before an end.
async fn read(
    log: &ShardLog,
    wanted: &Wanted,
    end: LogIndex,
) -> Result<(Vec<LogEntry>, LogIndex), PeerError> {
    let oldest = log.oldest();
    let (from, until) = (wanted.from.max(oldest), wanted.until.min(end));
    if until <= from {
        return Ok((Vec::new(), oldest));
    }
    let bytes_max = wanted.bytes_max.min(ANSWER_BYTES_MAX);
    let reader = log.clone();
    let read = move || reader.history(from, until, bytes_max);
    let entries = if log.is_recent(from) {
        read()
    } else {
        tokio::task::spawn_blocking(read).await.map_err(broken)?
    };
    match entries {
        Ok(mut entries) => {
            entries.truncate(ENTRIES_MAX);
            Ok((entries, oldest))
        }
        // Deleted while it was being read.
        Err(_) if from < log.oldest() => Ok((Vec::new(), log.oldest())),
        Err(error) => Err(broken(error)),
    }
}

async fn sync(log: &ShardLog) -> Result<(), PeerError> {
    let (done, synced) = oneshot::channel();
    let callback = move |result: Result<(), LogError>| drop(done.send(result));
    log.sync(Box::new(callback));
    synced.await.map_err(broken)?.map_err(broken)
}

fn broken(error: impl ToString) -> PeerError {
    PeerError::Broken(error.to_string())
}

fn write_wanted(wanted: &Wanted, out: &mut BytesMut) {
    out.put_u64_le(wanted.from.get());
    out.put_u64_le(wanted.until.get());
    out.put_u32_le(u32::try_from(wanted.bytes_max).unwrap_or(u32::MAX));
}

fn read_wanted(payload: Bytes) -> Result<Wanted, Malformed> {
    let mut reader = Reader::new(payload);
    let wanted = Wanted {
        from: LogIndex::new(reader.u64("from")?),
        until: LogIndex::new(reader.u64("until")?),
        bytes_max: reader.u32("bytes")? as usize,
    };
    reader.end()?;
    if wanted.from.get() == 0 || wanted.until <= wanted.from {
        return Err(Malformed("range"));
    }
    Ok(wanted)
}

/// What a node answers.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Answer {
    /// The first entry that its log holds.
    oldest: LogIndex,
    /// Behind the last that it may give.
    end: LogIndex,
    /// What is wanted of those between, from the first that it has.
    entries: Vec<LogEntry>,
}

impl Answer {
    fn write(&self, out: &mut BytesMut) {
        let payloads: usize = self.entries.iter().map(|entry| entry.payload.len()).sum();
        out.reserve(20 + payloads + self.entries.len() * ENTRY_BYTES);
        out.put_u64_le(self.oldest.get());
        out.put_u64_le(self.end.get());
        out.put_u32_le(u32::try_from(self.entries.len()).unwrap_or(u32::MAX));
        for entry in &self.entries {
            out.put_u64_le(entry.id.term.get());
            out.put_u64_le(entry.id.index.get());
            out.put_u64_le(entry.timestamp.get());
            // A longer one makes a frame that is refused as too long, whatever this says.
            out.put_u32_le(u32::try_from(entry.payload.len()).unwrap_or(u32::MAX));
            out.put_slice(&entry.payload);
        }
    }

    /// Reads an answer, if it can be one to what was wanted.
    fn read(payload: Bytes, wanted: &Wanted) -> Result<Self, Malformed> {
        let mut reader = Reader::new(payload);
        let oldest = LogIndex::new(reader.u64("oldest")?);
        let end = LogIndex::new(reader.u64("end")?);
        let count = reader.u32("count")? as usize;
        if ENTRIES_MAX < count || reader.rest_bytes() / ENTRY_BYTES < count {
            return Err(Malformed("count"));
        }
        let mut entries = Vec::with_capacity(count);
        for _ in 0..count {
            let (term, index) = (reader.u64("term")?, reader.u64("index")?);
            entries.push(LogEntry {
                id: LogId {
                    term: Term::new(term),
                    index: LogIndex::new(index),
                },
                timestamp: UnixMillis::new(reader.u64("time")?),
                payload: reader.bytes("payload")?,
            });
        }
        reader.end()?;
        let answer = Self {
            oldest,
            end,
            entries,
        };
        if !answer.fits(wanted) {
            return Err(Malformed("entries"));
        }
        Ok(answer)
    }

    /// Whether its entries are as it says itself, and as many as were asked for.
    fn fits(&self, wanted: &Wanted) -> bool {
        let bytes: usize = self.entries.iter().map(|entry| entry.payload.len()).sum();
        let is_bounded = bytes <= wanted.bytes_max || self.entries.len() == 1;
        let begins = self.entries.first().map(|first| first.id.index);
        let ends = self.entries.last().map(|last| last.id.index);
        is_bounded
            && wanted.is_met_by(&self.entries)
            && begins.is_none_or(|first| first == wanted.from.max(self.oldest))
            && ends.is_none_or(|last| last < self.end)
    }
}

#[cfg(test)]
mod tests {
    use flux_env::{Rng as _, SeededRng};

    use super::*;

    const WANTED: Wanted = Wanted {
        from: LogIndex::new(5),
        until: LogIndex::new(20),
        bytes_max: 64,
    };

    fn entry(term: u64, index: u64, payload: &'static [u8]) -> LogEntry {
        LogEntry {
            id: LogId {
                term: Term::new(term),
                index: LogIndex::new(index),
            },
            timestamp: UnixMillis::new(9),
            payload: Bytes::from_static(payload),
        }
    }

    fn answer(oldest: u64, end: u64, entries: Vec<LogEntry>) -> Answer {
        Answer {
            oldest: LogIndex::new(oldest),
            end: LogIndex::new(end),
            entries,
        }
    }

    fn bytes(answer: &Answer) -> Bytes {
        let mut out = BytesMut::new();
        answer.write(&mut out);
        out.freeze()
    }

    fn three() -> Answer {
        let entries = vec![entry(2, 5, b"a"), entry(2, 6, b""), entry(3, 7, b"ccc")];
        answer(1, 30, entries)
    }

    #[test]
    fn what_is_written_is_read_and_nothing_that_is_cut_or_longer() {
        let mut out = BytesMut::new();
        write_wanted(&WANTED, &mut out);
        let asked = out.freeze();
        assert_eq!(read_wanted(asked.clone()), Ok(WANTED));
        for cut in 0..asked.len() {
            assert!(read_wanted(asked.slice(..cut)).is_err(), "{cut}");
        }
        let given = bytes(&three());
        assert_eq!(Answer::read(given.clone(), &WANTED), Ok(three()));
        for cut in 0..given.len() {
            assert!(Answer::read(given.slice(..cut), &WANTED).is_err(), "{cut}");
        }
        let longer = Bytes::from([&given[..], b"x"].concat());
        assert_eq!(Answer::read(longer, &WANTED), Err(Malformed("end")));
    }

    /// The bytes of version 1.
    #[test]
    fn the_layout_is_the_documented_one() {
        let given = bytes(&answer(1, 30, vec![entry(2, 5, b"ab")]));
        let mut expected = Vec::new();
        for number in [1_u64, 30] {
            expected.extend(number.to_le_bytes());
        }
        expected.extend(1_u32.to_le_bytes());
        for number in [2_u64, 5, 9] {
            expected.extend(number.to_le_bytes());
        }
        expected.extend(2_u32.to_le_bytes());
        expected.extend(b"ab");
        assert_eq!(given, expected);
    }

    #[test]
    fn garbled_answers_are_errors_and_never_more_than_was_sent() {
        let given = bytes(&three());
        let mut rng = SeededRng::new(1);
        for _ in 0..20_000 {
            let mut changed = given.to_vec();
            for _ in 0..=rng.next_u64() % 4 {
                let [at, byte, ..] = rng.next_u64().to_le_bytes();
                let at = usize::from(at) % changed.len();
                changed[at] = byte;
            }
            let changed = Bytes::from(changed);
            if let Ok(wanted) = read_wanted(changed.slice(..20)) {
                assert!(wanted.from < wanted.until);
            }
            if let Ok(read) = Answer::read(changed, &WANTED) {
                assert!(read.fits(&WANTED));
            }
        }
    }

    #[test]
    fn an_answer_to_something_else_is_refused() {
        let refused = [
            answer(1, 30, vec![entry(2, 6, b"")]),
            answer(1, 30, vec![entry(2, 5, b""), entry(2, 7, b"")]),
            answer(1, 30, vec![entry(2, 5, b""), entry(1, 6, b"")]),
            answer(1, 30, vec![entry(2, 4, b""), entry(2, 5, b"")]),
            answer(1, 5, vec![entry(2, 5, b"")]),
            answer(21, 30, vec![entry(2, 21, b"")]),
            answer(1, 30, vec![entry(2, 5, &[0; 64]), entry(2, 6, b"x")]),
        ];
        for answer in refused {
            let read = Answer::read(bytes(&answer), &WANTED);
            assert_eq!(read, Err(Malformed("entries")), "{answer:?}");
        }
        let behind = answer(8, 30, vec![entry(2, 8, &[0; 65])]);
        assert_eq!(
            Answer::read(bytes(&behind), &WANTED),
            Ok(behind),
            "one is never too long"
        );
        for (from, until) in [(0, 5), (5, 5), (6, 5)] {
            let wanted = Wanted {
                from: LogIndex::new(from),
                until: LogIndex::new(until),
                ..WANTED
            };
            let mut out = BytesMut::new();
            write_wanted(&wanted, &mut out);
            assert_eq!(read_wanted(out.freeze()), Err(Malformed("range")));
        }
    }

    #[test]
    fn the_node_that_goes_back_furthest_is_believed_and_one_that_is_behind_says_nothing() {
        let [one, two, three] = [1, 2, 3].map(|number| NodeId::of_incarnation(number, 1));
        let begun = || Search {
            wanted: WANTED,
            found: Fetched {
                entries: Vec::new(),
                is_complete: true,
            },
            giver: None,
            members: vec![one, two],
        };
        let mut search = begun();
        assert!(!search.take(one, answer(9, 30, vec![entry(2, 9, b"")])));
        assert!(!search.take(two, answer(8, 30, vec![entry(2, 8, b"")])));
        assert!(!search.take(one, answer(40, 50, vec![])));
        assert_eq!((search.giver, search.found.is_complete), (Some(two), true));
        assert!(search.take(three, answer(1, 6, vec![entry(2, 5, b"")])));
        assert_eq!(search.giver, Some(three));
        let mut search = begun();
        assert!(!search.take(three, answer(1, 1, vec![])));
        assert!(search.found.is_complete, "it does not belong to the shard");
        assert!(!search.take(one, answer(1, 5, vec![])));
        assert!(!search.found.is_complete, "it may come to have it");
    }
}

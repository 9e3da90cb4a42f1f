//! Tests of writes with request ids: against a model, with restarts, replays and snapshots.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use flux_types::limits::{
    REQUEST_REPLY_BYTES_MAX, REQUEST_SESSION_AHEAD_MS, REQUEST_SESSION_BEGIN_MS,
    REQUEST_SESSION_IDLE_MS, REQUEST_WINDOW,
};
use flux_types::{
    Command, Condition, Error, ErrorCode, Expiry, Outcome, ReadCommand, Reply, RequestId,
    RequestOutcome, Revision, SessionId, Set, SetReply, Term, Transaction, UnixMillis,
    WriteCommand,
};
use proptest::prelude::*;

use super::{bytes, run};
use crate::snapshot::{About, block_entries};
use crate::{BatchView, BlockError, Store, StoreConfig, Walk};

const START: u64 = 1_700_000_000_000;
const MINUTE: u64 = 60_000;

fn store() -> Arc<Store> {
    Arc::new(Store::new(StoreConfig {
        stripes: 4,
        ..StoreConfig::default()
    }))
}

fn session(began_at: u64, number: u128) -> SessionId {
    SessionId::draw(UnixMillis::new(began_at), number)
}

fn request(session: SessionId, sequence: u64, lowest_unanswered: u64) -> RequestId {
    RequestId {
        session,
        sequence,
        lowest_unanswered,
    }
}

fn increment(key: &str) -> Command {
    Command::Write(WriteCommand::Increment {
        key: bytes(key),
        by: 1,
    })
}

fn query(request: RequestId) -> Command {
    Command::Write(WriteCommand::QueryOutcome { request, key: None })
}

fn forget() -> Command {
    Command::Write(WriteCommand::ForgetSessions)
}

fn get(store: &Store, key: &str) -> Option<String> {
    store.get(key.as_bytes(), UnixMillis::ZERO, |found| match found {
        crate::Lookup::Live(entry) => Some(String::from_utf8(entry.value.to_vec()).unwrap()),
        crate::Lookup::Absent | crate::Lookup::Expired => None,
    })
}

fn outcome(outcome: Outcome, reply: Option<Reply>) -> Reply {
    Reply::Outcome(Box::new(RequestOutcome { outcome, reply }))
}

fn error_of(reply: &Reply) -> &Error {
    let Reply::Error(error) = reply else {
        panic!("an error was expected, not {reply:?}");
    };
    error
}

#[test]
fn two_attempts_in_one_batch_are_applied_once_and_answered_alike() {
    let store = store();
    let id = request(session(START, 1), 1, 1);
    let attempt = increment("n").once(id);
    let replies = run(&store, START, &[attempt.clone(), increment("n"), attempt]);
    let number = Reply::Integer;
    assert_eq!(replies, [number(1), number(2), number(1)]);
    assert_eq!(get(&store, "n").as_deref(), Some("2"));
}

#[test]
fn an_attempt_in_a_later_batch_is_answered_as_the_first_with_its_revision() {
    let store = store();
    let id = request(session(START, 1), 1, 1);
    let set = Command::Write(WriteCommand::Set(Set {
        condition: Condition::Absent,
        expiry: Expiry::Clear,
        reply: SetReply::Written,
        ..Set::plain(bytes("k"), bytes("v"))
    }));
    let answers = [START, START + 1].map(|at| {
        let mut evaluation = store.evaluation(UnixMillis::new(at), Term::new(1));
        let answer = evaluation.command(&set.clone().once(id));
        if let Some(batch) = evaluation.finish() {
            store.apply(&BatchView::parse(&batch).unwrap());
        }
        answer
    });
    assert_eq!(answers[0], answers[1]);
    // The key's revision is that of its put, and the fact about the request comes behind it.
    assert_eq!(answers[0].revision, Revision::new(1));
    assert_eq!(store.revision(), Revision::new(2));
}

#[test]
fn a_write_that_changed_nothing_is_answered_the_same_way_when_it_could_change_something() {
    let store = store();
    let set = |key| Command::Write(WriteCommand::Set(Set::plain(bytes(key), bytes("v"))));
    let set_if_absent = Command::Write(WriteCommand::Set(Set {
        condition: Condition::Absent,
        ..Set::plain(bytes("k"), bytes("new"))
    }));
    let attempt = set_if_absent.once(request(session(START, 1), 1, 1));
    let delete = Command::Write(WriteCommand::Delete {
        keys: vec![bytes("k")],
    });
    let replies = run(&store, START, &[set("k"), attempt.clone(), delete, attempt]);
    assert_eq!(
        replies,
        [Reply::Ok, Reply::Nil, Reply::Integer(1), Reply::Nil]
    );
    assert_eq!(get(&store, "k"), None);
}

#[test]
fn a_write_that_failed_was_not_done_and_may_be_tried_again() {
    let store = store();
    let set = |value| Command::Write(WriteCommand::Set(Set::plain(bytes("n"), bytes(value))));
    let attempt = increment("n").once(request(session(START, 1), 1, 1));
    let replies = run(&store, START, &[set("text"), attempt.clone()]);
    assert_eq!(error_of(&replies[1]).code, ErrorCode::NotAnInteger);
    assert_eq!(error_of(&replies[1]).outcome, Outcome::NotDone);
    let replies = run(&store, START, &[set("1"), attempt]);
    assert_eq!(replies[1], Reply::Integer(2));
}

#[test]
fn a_transaction_is_done_once_and_its_parts_take_no_request_id() {
    let store = store();
    let transaction = |commands| {
        Command::Write(WriteCommand::Transaction(Transaction {
            watches: Vec::new(),
            commands,
        }))
    };
    let id = request(session(START, 1), 1, 1);
    let read = Command::Read(ReadCommand::Get { key: bytes("n") });
    let attempt = transaction(vec![increment("n"), read]).once(id);
    let replies = run(&store, START, &[attempt.clone(), increment("n"), attempt]);
    let expected = Reply::Array(vec![Reply::Integer(1), Reply::Bulk(bytes("1"))]);
    assert_eq!(replies, [expected.clone(), Reply::Integer(2), expected]);
    let nested = transaction(vec![increment("n").once(request(session(START, 1), 2, 1))]);
    let replies = run(&store, START, &[nested]);
    let Reply::Array(replies) = &replies[0] else {
        panic!("{replies:?}");
    };
    assert_eq!(error_of(&replies[0]).code, ErrorCode::Invalid);
    assert_eq!(get(&store, "n").as_deref(), Some("2"));
}

#[test]
fn a_reply_too_long_to_keep_is_said_to_have_been_done() {
    let store = store();
    let value = "x".repeat(REQUEST_REPLY_BYTES_MAX);
    let set = Command::Write(WriteCommand::Set(Set::plain(bytes("k"), bytes(&value))));
    let id = request(session(START, 1), 1, 1);
    let attempt = Command::Write(WriteCommand::GetDelete { key: bytes("k") }).once(id);
    let again = Command::Write(WriteCommand::Set(Set::plain(bytes("k"), bytes("new"))));
    let replies = run(&store, START, &[set, attempt.clone(), again, attempt]);
    assert_eq!(replies[1], Reply::Bulk(bytes(&value)));
    let error = error_of(&replies[3]);
    assert_eq!(error.code, ErrorCode::ReplyNotKept);
    assert_eq!(error.outcome, Outcome::Done);
    assert_eq!(get(&store, "k").as_deref(), Some("new"));
    let replies = run(&store, START, &[query(id)]);
    assert_eq!(replies, [outcome(Outcome::Done, None)]);
}

#[test]
fn whoever_asks_for_the_outcome_first_ends_the_request() {
    let store = store();
    let (asked, done) = (
        request(session(START, 1), 1, 1),
        request(session(START, 1), 2, 1),
    );
    let replies = run(&store, START, &[query(asked), increment("n").once(done)]);
    assert_eq!(replies[0], outcome(Outcome::NotDone, None));
    let late = increment("n").once(asked);
    let replies = run(&store, START + 1, &[late, query(asked), query(done)]);
    let error = error_of(&replies[0]);
    assert_eq!(error.code, ErrorCode::Conflict);
    assert_eq!(error.outcome, Outcome::NotDone);
    assert_eq!(replies[1], outcome(Outcome::NotDone, None));
    let kept = Some(Reply::Integer(1));
    assert_eq!(replies[2], outcome(Outcome::Done, kept));
    assert_eq!(get(&store, "n").as_deref(), Some("1"));
}

#[test]
fn below_the_window_nothing_is_done_and_the_outcome_is_unknown() {
    let store = store();
    let id = session(START, 1);
    let newer = increment("n").once(request(id, 5, 5));
    let older = increment("n").once(request(id, 4, 1));
    let replies = run(&store, START, &[newer, older.clone()]);
    for replies in [replies, run(&store, START, &[older.clone(), older])] {
        let error = error_of(&replies[1]);
        assert_eq!(error.code, ErrorCode::RequestUnknown);
        assert_eq!(error.outcome, Outcome::Unknown);
    }
    let replies = run(&store, START, &[query(request(id, 4, 4))]);
    assert_eq!(replies, [outcome(Outcome::Unknown, None)]);
    assert_eq!(get(&store, "n").as_deref(), Some("1"));
}

#[test]
fn request_ids_that_make_no_sense_are_refused() {
    let store = store();
    let id = session(START, 1);
    for (sequence, lowest) in [(0, 0), (1, 0), (1, 2), (REQUEST_WINDOW + 1, 1)] {
        let attempt = increment("n").once(request(id, sequence, lowest));
        let replies = run(&store, START, &[attempt]);
        let error = error_of(&replies[0]);
        assert_eq!(error.code, ErrorCode::Invalid, "{sequence} {lowest}");
        assert_eq!(error.outcome, Outcome::NotDone);
    }
    assert_eq!(store.request_sessions(), 0);
    let attempt = increment("n").once(request(id, REQUEST_WINDOW, 1));
    assert_eq!(run(&store, START, &[attempt]), [Reply::Integer(1)]);
}

#[test]
fn a_session_that_began_too_long_ago_or_too_far_ahead_is_not_begun() {
    let store = store();
    let now = START + 60 * MINUTE;
    for (began_at, may) in [
        (now - REQUEST_SESSION_BEGIN_MS, true),
        (now - REQUEST_SESSION_BEGIN_MS - 1, false),
        (now + REQUEST_SESSION_AHEAD_MS, true),
        (now + REQUEST_SESSION_AHEAD_MS + 1, false),
    ] {
        let id = request(session(began_at, 1), 1, 1);
        let replies = run(&store, now, &[increment("n").once(id)]);
        if may {
            assert!(matches!(replies[0], Reply::Integer(_)), "{replies:?}");
        } else {
            assert_eq!(error_of(&replies[0]).outcome, Outcome::Unknown);
            let replies = run(&store, now, &[query(id)]);
            assert_eq!(replies, [outcome(Outcome::Unknown, None)]);
        }
    }
    assert_eq!(store.request_sessions(), 2);
}

#[test]
fn an_idle_session_is_forgotten_by_a_fact_and_never_begins_again() {
    let store = store();
    // As late as it may seem to have begun: the worst case for telling new from forgotten.
    let id = request(session(START + REQUEST_SESSION_AHEAD_MS, 1), 1, 1);
    let attempt = increment("n").once(id);
    assert_eq!(
        run(&store, START, std::slice::from_ref(&attempt)),
        [Reply::Integer(1)]
    );
    let last = START + REQUEST_SESSION_IDLE_MS - 1;
    assert_eq!(run(&store, last, &[forget()]), [Reply::Integer(0)]);
    assert_eq!(
        store.next_session_expiry(),
        Some(UnixMillis::new(last + 1)),
        "nothing was said, so nothing came of it"
    );
    // Forgotten and asked for in one batch.
    let replies = run(&store, last + 1, &[forget(), attempt.clone()]);
    assert_eq!(replies[0], Reply::Integer(1));
    assert_eq!(error_of(&replies[1]).outcome, Outcome::Unknown);
    assert_eq!((store.request_sessions(), store.request_bytes()), (0, 0));
    let replies = run(&store, last + 2, &[attempt]);
    assert_eq!(error_of(&replies[0]).outcome, Outcome::Unknown);
    assert_eq!(get(&store, "n").as_deref(), Some("1"));
}

#[test]
fn a_clear_spares_what_is_known_of_requests() {
    let store = store();
    let attempt = increment("n").once(request(session(START, 1), 1, 1));
    let clear = Command::Write(WriteCommand::Clear);
    let replies = run(&store, START, &[attempt.clone(), clear, attempt.clone()]);
    assert_eq!(replies[2], Reply::Integer(1));
    assert_eq!(run(&store, START, &[attempt]), [Reply::Integer(1)]);
    assert_eq!((store.len(), store.request_sessions()), (0, 1));
}

#[test]
fn sessions_come_in_slices_of_a_walk_and_blocks_of_version_2_have_none() {
    let store = store();
    for number in 0..50 {
        let attempt = increment("n").once(request(session(START, number), 1, 1));
        run(&store, START, &[attempt]);
    }
    let mut walk = store.walk();
    let blocks: Vec<Vec<u8>> = std::iter::from_fn(|| walk.next_block(200).unwrap()).collect();
    assert!(blocks.len() > 10, "{} blocks", blocks.len());
    let sessions = blocks
        .iter()
        .flat_map(|block| block_entries(block).unwrap());
    let sessions = sessions.filter(|entry| entry.about == About::Session);
    assert_eq!(sessions.count(), 50);
    let mut first = blocks[0].clone();
    first[0] = 2;
    assert_eq!(
        block_entries(&first),
        Err(BlockError::Malformed { index: 0 })
    );
    // The version of the first session's UUID, and the kind of the first outcome.
    for offset in [8 + 24 + 9, 8 + 24 + 16 + 8 + 12] {
        let mut malformed = blocks[0].clone();
        malformed[offset] ^= 0xf0;
        assert_eq!(
            block_entries(&malformed),
            Err(BlockError::Malformed { index: 0 }),
            "{offset}"
        );
    }
}

#[derive(Clone, Debug)]
enum Ask {
    Write(RequestId),
    Query(RequestId),
}

#[derive(Clone, Debug)]
enum Step {
    Batch(Vec<Ask>),
    Forget,
    Clear,
    Advance(u64),
    Restart,
    Replay(prop::sample::Index),
    BeginWalk,
    Walk,
    EndWalk,
}

/// Four clients, of which one is slow, one's clock is ahead, and one begins late.
fn any_session() -> impl Strategy<Value = SessionId> {
    prop::sample::select(vec![
        session(START, 1),
        session(START + MINUTE / 2, 2),
        session(START + 7 * MINUTE, 3),
        session(START + 12 * MINUTE, 4),
    ])
}

fn any_request() -> impl Strategy<Value = RequestId> {
    let numbers = (1..8_u64, 0..3_u64);
    (any_session(), numbers)
        .prop_map(|(session, (lowest, above))| request(session, lowest + above, lowest))
}

fn any_step() -> impl Strategy<Value = Step> {
    let ask = prop_oneof![
        6 => any_request().prop_map(Ask::Write),
        1 => any_request().prop_map(Ask::Query),
    ];
    prop_oneof![
        10 => prop::collection::vec(ask, 1..8).prop_map(Step::Batch),
        2 => Just(Step::Forget),
        1 => Just(Step::Clear),
        4 => (0..6 * MINUTE).prop_map(Step::Advance),
        1 => Just(Step::Restart),
        2 => any::<prop::sample::Index>().prop_map(Step::Replay),
        2 => Just(Step::BeginWalk),
        4 => Just(Step::Walk),
        2 => Just(Step::EndWalk),
    ]
}

/// What a shard must know, in its simplest form.
#[derive(Debug, Default)]
struct Model {
    sessions: BTreeMap<SessionId, ModelSession>,
    /// How often each write was carried out.
    carried_out: BTreeMap<(SessionId, u64), u64>,
    /// The writes of which it was said that they never will be.
    given_up: Vec<(SessionId, u64)>,
}

#[derive(Debug)]
struct ModelSession {
    lowest: u64,
    expires_at: u64,
    /// The reply, or none if it never will be done.
    known: BTreeMap<u64, Option<Reply>>,
}

/// What an ask must be answered.
#[derive(Debug)]
enum Expected {
    Reply(Reply),
    Unknown,
    GivenUp,
}

impl Model {
    fn ask(&mut self, ask: &Ask, now: u64) -> Expected {
        let (Ask::Write(id) | Ask::Query(id)) = ask;
        let began = id.session.began_at().get();
        let may_begin =
            now <= began + REQUEST_SESSION_BEGIN_MS && began <= now + REQUEST_SESSION_AHEAD_MS;
        let session = self.sessions.get(&id.session);
        let is_forgotten = session.map_or(!may_begin, |session| id.sequence < session.lowest);
        let known = session.and_then(|session| session.known.get(&id.sequence));
        match (ask, known.cloned()) {
            _ if is_forgotten => match ask {
                Ask::Write(_) => Expected::Unknown,
                Ask::Query(_) => Expected::Reply(outcome(Outcome::Unknown, None)),
            },
            (Ask::Write(_), Some(Some(reply))) => Expected::Reply(reply),
            (Ask::Write(_), Some(None)) => Expected::GivenUp,
            (Ask::Query(_), Some(Some(reply))) => {
                Expected::Reply(outcome(Outcome::Done, Some(reply)))
            }
            (Ask::Query(_), Some(None)) => Expected::Reply(outcome(Outcome::NotDone, None)),
            (Ask::Write(_), None) => {
                *self
                    .carried_out
                    .entry((id.session, id.sequence))
                    .or_default() += 1;
                self.note(id, Some(Reply::Integer(1)), now);
                Expected::Reply(Reply::Integer(1))
            }
            (Ask::Query(_), None) => {
                self.given_up.push((id.session, id.sequence));
                self.note(id, None, now);
                Expected::Reply(outcome(Outcome::NotDone, None))
            }
        }
    }

    fn note(&mut self, id: &RequestId, reply: Option<Reply>, now: u64) {
        let session = self.sessions.entry(id.session).or_insert(ModelSession {
            lowest: 1,
            expires_at: 0,
            known: BTreeMap::new(),
        });
        session.lowest = session.lowest.max(id.lowest_unanswered);
        session.expires_at = now + REQUEST_SESSION_IDLE_MS;
        session.known.insert(id.sequence, reply);
        let lowest = session.lowest;
        session.known.retain(|sequence, _| lowest <= *sequence);
    }
}

struct World {
    store: Arc<Store>,
    model: Model,
    log: Vec<Bytes>,
    now: u64,
    walking: Option<Walking>,
}

/// A walk under way: its blocks, and where log, revision and time were when it began.
type Walking = (Walk, Vec<Vec<u8>>, usize, Revision, UnixMillis);

fn key_of(id: &RequestId) -> String {
    format!("{}/{}", id.session, id.sequence)
}

fn replay(store: &Store, log: &[Bytes]) {
    for batch in log {
        store.apply(&BatchView::parse(batch).unwrap());
    }
}

impl World {
    fn batch(&mut self, commands: &[Command]) -> Vec<Reply> {
        let mut evaluation = self
            .store
            .evaluation(UnixMillis::new(self.now), Term::new(1));
        let replies = commands
            .iter()
            .map(|command| evaluation.command(command).reply)
            .collect();
        if let Some(batch) = evaluation.finish() {
            self.store.apply(&BatchView::parse(&batch).unwrap());
            self.log.push(batch);
        }
        replies
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Batch(asks) => {
                let commands = asks.iter().map(|ask| match ask {
                    Ask::Write(id) => increment(&key_of(id)).once(*id),
                    Ask::Query(id) => query(*id),
                });
                let replies = self.batch(&commands.collect::<Vec<_>>());
                for (ask, reply) in asks.iter().zip(replies) {
                    match self.model.ask(ask, self.now) {
                        Expected::Reply(expected) => assert_eq!(reply, expected, "{ask:?}"),
                        Expected::Unknown => {
                            assert_eq!(error_of(&reply).code, ErrorCode::RequestUnknown);
                        }
                        Expected::GivenUp => {
                            assert_eq!(error_of(&reply).code, ErrorCode::Conflict);
                        }
                    }
                }
            }
            Step::Forget => {
                self.batch(&[forget()]);
                let now = self.now;
                let sessions = &mut self.model.sessions;
                sessions.retain(|_, session| now < session.expires_at);
            }
            // The counters begin anew; that a write is done once is then seen in its replies.
            Step::Clear => {
                self.batch(&[Command::Write(WriteCommand::Clear)]);
            }
            Step::Advance(millis) => self.now += millis,
            Step::Restart => {
                self.walking = None;
                let fresh = store();
                replay(&fresh, &self.log);
                assert_eq!(fresh.digest(), self.store.digest());
                self.store = fresh;
            }
            Step::Replay(index) => {
                let digest = self.store.digest();
                let from = index.index(self.log.len() + 1);
                replay(&self.store, &self.log[from..]);
                replay(&self.store, &self.log[from..]);
                assert_eq!(self.store.digest(), digest);
            }
            Step::BeginWalk => {
                let (revision, at) = (self.store.revision(), self.store.last_batch_at());
                let walk = self.store.walk();
                self.walking = Some((walk, Vec::new(), self.log.len(), revision, at));
            }
            Step::Walk => {
                if let Some((walk, blocks, ..)) = &mut self.walking {
                    blocks.extend(walk.next_block(100).unwrap());
                }
            }
            Step::EndWalk => self.end_walk(),
        }
    }

    fn end_walk(&mut self) {
        let Some((mut walk, mut blocks, log_len, revision, at)) = self.walking.take() else {
            return;
        };
        blocks.extend(std::iter::from_fn(|| walk.next_block(100).unwrap()));
        let restored = store();
        let mut loader = restored.loader();
        for block in &blocks {
            loader.load_block(block).unwrap();
        }
        restored.install(loader, revision, at);
        replay(&restored, &self.log[log_len..]);
        assert_eq!(restored.digest(), self.store.digest());
        self.store = restored;
    }

    fn check(&self) {
        assert_eq!(self.store.request_sessions(), self.model.sessions.len());
        let kept: usize = self.model.sessions.values().map(|s| s.known.len()).sum();
        let requests = self.store.requests.lock();
        let held: usize = requests.after(None).map(|(_, s)| s.iter().len()).sum();
        assert_eq!(held, kept);
        for (write, count) in &self.model.carried_out {
            assert_eq!(*count, 1, "{write:?} was carried out more than once");
            assert!(!self.model.given_up.contains(write), "{write:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 800, failure_persistence: None, max_shrink_iters: 4000, ..ProptestConfig::default() })]

    #[test]
    fn no_write_is_carried_out_twice_whatever_happens_in_between(
        steps in prop::collection::vec(any_step(), 1..60)
    ) {
        let mut world = World {
            store: store(),
            model: Model::default(),
            log: Vec::new(),
            now: START,
            walking: None,
        };
        for step in steps {
            world.run(step);
            world.check();
        }
        world.run(Step::BeginWalk);
        world.end_walk();
        world.check();
    }
}

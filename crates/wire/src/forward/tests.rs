//! Everything survives the way to another node, and nothing else is believed.

use bytes::{Bytes, BytesMut};
use flux_types::{
    Answer, Command, Compare, Condition, Entry, Error, ErrorCode, ExpireCondition, Expiry, Outcome,
    ReadCommand, Reply, RequestId, RequestOutcome, Revision, ScanPage, SessionId, Set, SetReply,
    TraceParent, Transaction, TtlForm, UnixMillis, Watch, WriteCommand, Written,
};
use proptest::prelude::*;

use super::{Forwarded, read_answers, write_answers};

fn b(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

fn reads() -> Vec<ReadCommand> {
    vec![
        ReadCommand::Get { key: b("k") },
        ReadCommand::GetEntry { key: b("") },
        ReadCommand::GetMany {
            keys: vec![b("a"), b("b")],
        },
        ReadCommand::Length { key: b("k") },
        ReadCommand::GetRange {
            key: b("k"),
            start: -3,
            end: i64::MAX,
        },
        ReadCommand::Exists { keys: vec![] },
        ReadCommand::Touch { keys: vec![b("a")] },
        ReadCommand::Type { key: b("k") },
        ReadCommand::Ttl {
            key: b("k"),
            form: TtlForm::Seconds,
        },
        ReadCommand::Ttl {
            key: b("k"),
            form: TtlForm::Millis,
        },
        ReadCommand::Ttl {
            key: b("k"),
            form: TtlForm::AbsoluteSeconds,
        },
        ReadCommand::Ttl {
            key: b("k"),
            form: TtlForm::AbsoluteMillis,
        },
        ReadCommand::RandomKey,
        ReadCommand::Scan(ScanPage {
            cursor: 9,
            pattern: Some(b("a*")),
            count: 10,
            type_matches: false,
        }),
        ReadCommand::Scan(ScanPage {
            cursor: 0,
            pattern: None,
            count: 1,
            type_matches: true,
        }),
        ReadCommand::Keys { pattern: b("*") },
        ReadCommand::Count,
    ]
}

fn set(condition: Condition, expiry: Expiry, reply: SetReply) -> WriteCommand {
    WriteCommand::Set(Set {
        key: b("k"),
        value: b("v"),
        condition,
        expiry,
        reply,
    })
}

#[expect(clippy::too_many_lines, reason = "one line for each command")]
fn writes() -> Vec<WriteCommand> {
    let condition = ExpireCondition {
        if_none: true,
        if_later: true,
        ..ExpireCondition::default()
    };
    vec![
        set(Condition::Always, Expiry::Clear, SetReply::Status),
        set(Condition::Absent, Expiry::Keep, SetReply::Flag),
        set(Condition::Exists, Expiry::In(-5), SetReply::Previous),
        set(Condition::ValueIs(b("w")), Expiry::At(7), SetReply::Written),
        WriteCommand::CompareAndSet {
            key: b("k"),
            expected: Compare::RevisionIs(Revision::new(4)),
            value: b("v"),
            expiry: Expiry::Clear,
        },
        WriteCommand::CompareAndDelete {
            key: b("k"),
            expected: Compare::ValueIs(b("x")),
        },
        WriteCommand::GetDelete { key: b("k") },
        WriteCommand::GetExpire {
            key: b("k"),
            expiry: Expiry::At(1),
        },
        WriteCommand::SetMany {
            pairs: vec![(b("a"), b("1")), (b("b"), b("2"))],
            if_none_exists: true,
        },
        WriteCommand::Append {
            key: b("k"),
            value: b("v"),
        },
        WriteCommand::SetRange {
            key: b("k"),
            offset: 1 << 40,
            value: b("v"),
        },
        WriteCommand::Increment {
            key: b("k"),
            by: i64::MIN,
        },
        WriteCommand::IncrementFloat {
            key: b("k"),
            by: -0.25,
        },
        WriteCommand::Delete {
            keys: vec![b("a"), b("b")],
        },
        WriteCommand::Expire {
            key: b("k"),
            expiry: Expiry::In(3),
            condition,
        },
        WriteCommand::Persist { key: b("k") },
        WriteCommand::Rename {
            source: b("a"),
            target: b("b"),
            if_absent: true,
        },
        WriteCommand::Copy {
            source: b("a"),
            target: b("b"),
            replace: false,
        },
        WriteCommand::Clear,
        WriteCommand::SweepExpired { keys: vec![b("a")] },
        WriteCommand::PutSystem {
            name: b("n"),
            value: None,
        },
        WriteCommand::PutSystem {
            name: b("n"),
            value: Some(b("v")),
        },
        WriteCommand::ReplaceSystem {
            name: b("n"),
            expected: None,
            value: b("v"),
        },
        WriteCommand::ReplaceSystem {
            name: b("n"),
            expected: Some(b("u")),
            value: b("v"),
        },
    ]
}

fn all() -> Vec<Command> {
    let mut commands: Vec<Command> = reads().into_iter().map(Command::Read).collect();
    commands.extend(writes().into_iter().map(Command::Write));
    let session = SessionId::draw(UnixMillis::new(7), 9);
    let request = RequestId {
        session,
        sequence: 3,
        lowest_unanswered: 2,
    };
    commands.push(Command::Write(WriteCommand::ForgetSessions));
    for key in [None, Some(b("k"))] {
        commands.push(Command::Write(WriteCommand::QueryOutcome { request, key }));
    }
    let watch = |revision| Watch {
        key: b("w"),
        revision,
        since: UnixMillis::new(8),
    };
    commands.push(Command::Write(WriteCommand::Transaction(Transaction {
        watches: vec![watch(None), watch(Some(Revision::new(3)))],
        commands: commands.clone(),
    })));
    let once: Vec<Command> = commands
        .iter()
        .filter(|command| command.is_write())
        .map(|command| command.clone().once(request))
        .collect();
    commands.extend(once);
    commands
}

fn forwarded() -> Forwarded {
    Forwarded {
        timeout_ms: 1500,
        routing: 3,
        commands: all(),
        traces: vec![(1, TraceParent::new(5, 6, true).expect("not zero"))],
    }
}

fn bytes_of(forwarded: &Forwarded) -> Bytes {
    let mut out = BytesMut::new();
    forwarded.write(&mut out);
    out.freeze()
}

fn answers() -> Vec<Answer> {
    let entry = Entry {
        value: b("v"),
        revision: Revision::new(3),
        deadline: Some(UnixMillis::new(4)),
    };
    let replies = vec![
        Reply::Ok,
        Reply::Simple("string"),
        Reply::Simple("none"),
        Reply::Nil,
        Reply::Integer(-1),
        Reply::Bulk(b("")),
        Reply::Array(vec![Reply::Nil, Reply::Array(vec![Reply::Ok])]),
        Reply::Aborted,
        Reply::Page {
            cursor: 3,
            keys: vec![b("a")],
        },
        Reply::Entry(None),
        Reply::Entry(Some(Box::new(entry.clone()))),
        Reply::Written(Box::new(Written {
            applied: true,
            previous: Some(entry),
        })),
        Reply::Outcome(Box::new(RequestOutcome {
            outcome: Outcome::Done,
            reply: Some(Reply::Ok),
        })),
        Reply::Outcome(Box::new(RequestOutcome {
            outcome: Outcome::NotDone,
            reply: None,
        })),
        Reply::Error(Error::unknown(ErrorCode::Timeout, "late")),
    ];
    let answer = |reply| Answer {
        reply,
        revision: Revision::new(9),
    };
    replies.into_iter().map(answer).collect()
}

#[test]
fn every_command_arrives_as_it_was() {
    let sent = forwarded();
    assert_eq!(Forwarded::read(bytes_of(&sent)), Ok(sent));
}

#[test]
fn every_answer_arrives_as_it_was() {
    let mut out = BytesMut::new();
    write_answers(&mut out, &answers());
    assert_eq!(read_answers(out.freeze()), Ok(answers()));
}

#[test]
fn what_is_cut_or_lengthened_is_refused() {
    let whole = bytes_of(&forwarded());
    for cut in 0..whole.len() {
        assert!(Forwarded::read(whole.slice(..cut)).is_err(), "cut at {cut}");
    }
    let longer = [&whole[..], &[0]].concat();
    assert!(Forwarded::read(longer.into()).is_err());
    let mut out = BytesMut::new();
    write_answers(&mut out, &answers());
    let whole = out.freeze();
    for cut in 0..whole.len() {
        assert!(read_answers(whole.slice(..cut)).is_err(), "cut at {cut}");
    }
}

#[test]
fn a_transaction_in_a_transaction_is_refused() {
    let inner = Command::Write(WriteCommand::Transaction(Transaction {
        watches: vec![],
        commands: vec![],
    }));
    let outer = Command::Write(WriteCommand::Transaction(Transaction {
        watches: vec![],
        commands: vec![inner],
    }));
    let sent = Forwarded {
        commands: vec![outer],
        ..Forwarded::default()
    };
    assert!(Forwarded::read(bytes_of(&sent)).is_err());
}

#[test]
fn answers_nested_without_end_are_refused() {
    let nested = (0..64).fold(Reply::Nil, |inner, _| Reply::Array(vec![inner]));
    let mut out = BytesMut::new();
    write_answers(
        &mut out,
        &[Answer {
            reply: nested,
            revision: Revision::new(0),
        }],
    );
    assert!(read_answers(out.freeze()).is_err());
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        crate::fuzzing::forward(&bytes);
    }

    #[test]
    fn any_change_of_a_byte_is_read_without_a_panic(at in any::<prop::sample::Index>(), with in any::<u8>()) {
        let mut bytes = bytes_of(&forwarded()).to_vec();
        let at = at.index(bytes.len());
        bytes[at] = with;
        crate::fuzzing::forward(&bytes);
    }
}

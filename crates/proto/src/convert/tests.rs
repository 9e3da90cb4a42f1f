//! Conversions in both directions, and the messages that are refused.

use bytes::Bytes;
use flux_types::limits::KEY_BYTES_MAX;
use flux_types::{
    Answer, Command, Compare, Condition, Entry, Error, ErrorCode, ExpireCondition, Expiry, Outcome,
    ReadCommand, Reply, Revision, Set, SetReply, UnixMillis, WriteCommand, Written,
};

use super::{Asked, Call, InvalidField, Limits, plan_operation, scan_entry, scan_pattern};
use crate::kv::operation_result::Result as Done;
use crate::{kv, original, status};

const LIMITS: Limits = Limits { value_bytes_max: 8 };

fn answer(reply: Reply) -> Answer {
    Answer {
        reply,
        revision: Revision::new(9),
    }
}

fn stored() -> Entry {
    Entry {
        value: Bytes::from_static(b"old"),
        revision: Revision::new(4),
        deadline: Some(UnixMillis::new(77)),
    }
}

fn written(applied: bool, previous: Option<Entry>) -> Answer {
    answer(Reply::Written(Box::new(Written { applied, previous })))
}

fn command<C: Call>(call: C) -> (Command, Asked) {
    call.command(LIMITS).unwrap()
}

fn refused<C: Call>(call: C) -> String {
    let InvalidField { field, .. } = call.command(LIMITS).map(drop).unwrap_err();
    field.into_owned()
}

fn set(key: &'static str, value: Option<&'static str>) -> kv::SetRequest {
    kv::SetRequest {
        key: key.into(),
        value: value.map(Bytes::from),
        ..kv::SetRequest::default()
    }
}

fn get(return_revision: bool) -> kv::GetRequest {
    kv::GetRequest {
        key: "k".into(),
        return_revision,
        ..kv::GetRequest::default()
    }
}

#[test]
fn a_get_answers_value_and_found_and_nothing_else() {
    let (made, asked) = command(get(false));
    assert_eq!(made, Command::Read(ReadCommand::Get { key: "k".into() }));
    let found = kv::GetRequest::response(asked, answer(Reply::Bulk("world".into()))).unwrap();
    assert_eq!(
        found,
        kv::GetResponse {
            value: "world".into(),
            found: true,
            revision: None,
            expires_at_ms: None
        }
    );
    let absent = kv::GetRequest::response(asked, answer(Reply::Nil)).unwrap();
    assert_eq!(absent, kv::GetResponse::default());
}

#[test]
fn a_get_that_asks_for_the_revision_gets_the_deadline_too() {
    let (made, asked) = command(get(true));
    assert_eq!(
        made,
        Command::Read(ReadCommand::GetEntry { key: "k".into() })
    );
    let reply = Reply::Entry(Some(Box::new(stored())));
    let found = kv::GetRequest::response(asked, answer(reply)).unwrap();
    assert_eq!((found.revision, found.expires_at_ms), (Some(4), Some(77)));
    let absent = kv::GetRequest::response(asked, answer(Reply::Entry(None))).unwrap();
    assert!(!absent.found && absent.revision.is_none());
}

#[test]
fn a_plain_set_answers_success_and_nothing_else() {
    let (made, asked) = command(set("k", Some("")));
    assert_eq!(
        made,
        Command::Write(WriteCommand::Set(Set::plain("k".into(), Bytes::new())))
    );
    let done = kv::SetRequest::response(asked, answer(Reply::Ok)).unwrap();
    assert_eq!(
        done,
        kv::SetResponse {
            success: true,
            revision: None,
            previous: None
        }
    );
}

#[test]
fn a_set_carries_condition_expiry_and_what_it_asks_for() {
    use kv::set_request::Expiry as Given;
    for (given, expected) in [
        (None, Expiry::Clear),
        (Some(Given::TtlMs(5)), Expiry::In(5)),
        (Some(Given::ExpiresAtMs(6)), Expiry::At(6)),
        (Some(Given::KeepTtl(true)), Expiry::Keep),
        (Some(Given::KeepTtl(false)), Expiry::Clear),
    ] {
        let mut request = set("k", Some("v"));
        request.expiry = given;
        request.condition = kv::SetCondition::Absent.into();
        request.return_previous = true;
        request.return_revision = true;
        let (made, asked) = command(request);
        assert_eq!(
            made,
            Command::Write(WriteCommand::Set(Set {
                key: "k".into(),
                value: "v".into(),
                condition: Condition::Absent,
                expiry: expected,
                reply: SetReply::Written,
            }))
        );
        let done = kv::SetRequest::response(asked, written(true, None)).unwrap();
        assert_eq!(
            (done.success, done.revision, done.previous),
            (true, Some(9), None)
        );
        let refused = kv::SetRequest::response(asked, written(false, Some(stored()))).unwrap();
        assert_eq!(
            (refused.success, refused.revision),
            (false, None),
            "no write, no revision"
        );
        let previous = refused.previous.unwrap();
        assert_eq!((&previous.value[..], previous.revision), (&b"old"[..], 4));
    }
}

#[test]
fn a_delete_succeeds_whether_or_not_the_key_was_there() {
    let request = kv::DeleteRequest {
        key: "k".into(),
        ..kv::DeleteRequest::default()
    };
    let (made, asked) = command(request.clone());
    assert_eq!(
        made,
        Command::Write(WriteCommand::Delete {
            keys: vec!["k".into()]
        })
    );
    for count in [0, 1] {
        let done = kv::DeleteRequest::response(asked, answer(Reply::Integer(count))).unwrap();
        assert_eq!(
            done,
            kv::DeleteResponse {
                success: true,
                ..kv::DeleteResponse::default()
            }
        );
    }
    let (made, asked) = command(kv::DeleteRequest {
        return_previous: true,
        ..request
    });
    assert_eq!(
        made,
        Command::Write(WriteCommand::CompareAndDelete {
            key: "k".into(),
            expected: Compare::Anything
        })
    );
    let absent = kv::DeleteRequest::response(asked, written(false, None)).unwrap();
    assert_eq!((absent.success, absent.deleted), (true, Some(false)));
    let gone = kv::DeleteRequest::response(asked, written(true, Some(stored()))).unwrap();
    assert_eq!((gone.success, gone.deleted), (true, Some(true)));
    assert!(gone.previous.is_some());
}

#[test]
fn a_conditional_delete_fails_if_the_key_is_not_as_expected() {
    let (made, asked) = command(kv::DeleteRequest {
        key: "k".into(),
        expected: Some(kv::Compare {
            is: Some(kv::compare::Is::Revision(3)),
        }),
        return_revision: true,
        ..kv::DeleteRequest::default()
    });
    assert_eq!(
        made,
        Command::Write(WriteCommand::CompareAndDelete {
            key: "k".into(),
            expected: Compare::RevisionIs(Revision::new(3))
        })
    );
    let kept = kv::DeleteRequest::response(asked, written(false, Some(stored()))).unwrap();
    assert_eq!(
        (kept.success, kept.deleted, kept.revision, kept.previous),
        (false, Some(false), None, None),
        "the previous value was not asked for"
    );
}

#[test]
fn a_compare_and_set_names_what_it_expects() {
    use kv::compare::Is;
    for (is, expected) in [
        (Is::Absent(true), Compare::Absent),
        (Is::Exists(true), Compare::Exists),
        (Is::Revision(0), Compare::RevisionIs(Revision::new(0))),
        (Is::Value("x".into()), Compare::ValueIs("x".into())),
    ] {
        let (made, asked) = command(kv::CompareAndSetRequest {
            key: "k".into(),
            expected: Some(kv::Compare { is: Some(is) }),
            value: Some("v".into()),
            ..kv::CompareAndSetRequest::default()
        });
        assert_eq!(
            made,
            Command::Write(WriteCommand::CompareAndSet {
                key: "k".into(),
                expected,
                value: "v".into(),
                expiry: Expiry::Clear,
            })
        );
        let done = kv::CompareAndSetRequest::response(asked, written(true, None)).unwrap();
        assert!(done.success && done.revision.is_none());
    }
}

#[test]
fn an_increment_without_a_step_adds_one() {
    let (made, asked) = command(kv::IncrementRequest {
        key: "k".into(),
        by: None,
        return_revision: true,
    });
    assert_eq!(
        made,
        Command::Write(WriteCommand::Increment {
            key: "k".into(),
            by: 1
        })
    );
    let done = kv::IncrementRequest::response(asked, answer(Reply::Integer(-3))).unwrap();
    assert_eq!((done.value, done.revision), (-3, Some(9)));
}

#[test]
fn an_expire_sets_moves_or_removes_the_deadline() {
    use kv::expire_request::Expiry as Given;
    let request = |expiry, condition: kv::ExpireCondition| kv::ExpireRequest {
        key: "k".into(),
        expiry,
        condition: condition.into(),
        return_revision: false,
    };
    let (made, asked) = command(request(Some(Given::TtlMs(0)), kv::ExpireCondition::Later));
    assert_eq!(
        made,
        Command::Write(WriteCommand::Expire {
            key: "k".into(),
            expiry: Expiry::In(0),
            condition: ExpireCondition {
                if_later: true,
                ..ExpireCondition::default()
            },
        })
    );
    let done = kv::ExpireRequest::response(asked, answer(Reply::Integer(0))).unwrap();
    assert!(!done.success);
    let unset = kv::ExpireCondition::Unspecified;
    let (made, _) = command(request(Some(Given::Persist(true)), unset));
    assert_eq!(
        made,
        Command::Write(WriteCommand::Persist { key: "k".into() })
    );
    assert_eq!(refused(request(None, unset)), "expiry");
    assert_eq!(
        refused(request(
            Some(Given::Persist(true)),
            kv::ExpireCondition::None
        )),
        "condition"
    );
}

#[test]
fn a_field_that_cannot_be_used_is_named() {
    use kv::set_request::Expiry as Given;
    assert_eq!(refused(kv::GetRequest::default()), "key");
    assert_eq!(refused(set("", Some("v"))), "key");
    assert_eq!(refused(set("k", None)), "value");
    assert_eq!(refused(set("k", Some("123456789"))), "value");
    assert_eq!(refused(kv::DeleteRequest::default()), "key");
    assert_eq!(refused(original::SetRequest::default()), "key");
    assert_eq!(refused(original::DelRequest::default()), "key");
    let long = kv::GetRequest {
        key: vec![b'k'; KEY_BYTES_MAX + 1].into(),
        ..kv::GetRequest::default()
    };
    assert_eq!(refused(long), "key");
    for (expiry, field) in [
        (Given::TtlMs(0), "ttl_ms"),
        (Given::TtlMs(u64::MAX), "ttl_ms"),
        (Given::ExpiresAtMs(u64::MAX), "expires_at_ms"),
    ] {
        let mut request = set("k", Some("v"));
        request.expiry = Some(expiry);
        assert_eq!(refused(request), field);
    }
    let mut request = set("k", Some("v"));
    request.condition = 99;
    assert_eq!(refused(request), "condition");
    let compare = |is| kv::CompareAndSetRequest {
        key: "k".into(),
        expected: Some(kv::Compare { is }),
        value: Some("v".into()),
        ..kv::CompareAndSetRequest::default()
    };
    assert_eq!(refused(compare(None)), "expected");
    assert_eq!(
        refused(compare(Some(kv::compare::Is::Absent(false)))),
        "expected.absent"
    );
    let long = Some(kv::compare::Is::Value("123456789".into()));
    assert_eq!(refused(compare(long)), "expected.value");
}

#[test]
fn an_error_keeps_its_outcome_and_a_foreign_answer_is_unknown() {
    let full = Error::not_done(ErrorCode::Busy, "the queue is full");
    let asked = command(set("k", Some("v"))).1;
    let failed = kv::SetRequest::response(asked, Answer::error(full.clone()));
    assert_eq!(failed, Err(full));
    let foreign = kv::SetRequest::response(asked, answer(Reply::Integer(1))).unwrap_err();
    assert_eq!(
        (foreign.code, foreign.outcome),
        (ErrorCode::Internal, Outcome::Unknown)
    );
}

#[test]
fn the_original_interface_speaks_text() {
    let (made, asked) = command(original::SetRequest {
        key: "k".to_owned(),
        value: String::new(),
    });
    assert_eq!(
        made,
        Command::Write(WriteCommand::Set(Set::plain("k".into(), Bytes::new()))),
        "an empty value is stored"
    );
    assert!(
        original::SetRequest::response(asked, answer(Reply::Ok))
            .unwrap()
            .success
    );
    let found = original::GetRequest::response(asked, answer(Reply::Bulk("é".into()))).unwrap();
    assert_eq!((found.value.as_str(), found.found), ("é", true));
    let absent = original::GetRequest::response(asked, answer(Reply::Nil)).unwrap();
    assert_eq!(absent, original::GetResponse::default());
    let bytes = Reply::Bulk(Bytes::from_static(b"\xff"));
    let error = original::GetRequest::response(asked, answer(bytes)).unwrap_err();
    assert!(error.message.contains("flux.kv.v1.Kv"), "{error}");
    let gone = original::DelRequest::response(asked, answer(Reply::Integer(0))).unwrap();
    assert!(gone.success);
}

#[test]
fn each_operation_of_a_batch_has_its_own_result() {
    use kv::operation::Operation as Given;
    let operation = |given| kv::Operation {
        operation: Some(given),
    };
    let (made, planned) = plan_operation(operation(Given::Get(get(false))), LIMITS).unwrap();
    assert_eq!(made, Command::Read(ReadCommand::Get { key: "k".into() }));
    let result = planned.result(answer(Reply::Nil)).result.unwrap();
    assert_eq!(result, Done::Get(kv::GetResponse::default()));
    let failed = planned
        .result(Answer::error(Error::unknown(ErrorCode::Timeout, "late")))
        .result
        .unwrap();
    let Done::Error(failed) = failed else {
        panic!("{failed:?}");
    };
    assert_eq!(status::flux_error(&failed).unwrap().outcome, "unknown");

    let invalid = plan_operation(operation(Given::Set(set("k", None))), LIMITS).unwrap_err();
    assert_eq!(invalid.field, "set.value");
    assert_eq!(
        invalid.within("operations[3]").field,
        "operations[3].set.value"
    );
    let empty = plan_operation(kv::Operation::default(), LIMITS).unwrap_err();
    assert_eq!(empty.field, "operation");
}

#[test]
fn a_prefix_is_taken_literally() {
    assert_eq!(scan_pattern(b"").unwrap(), None);
    let pattern = scan_pattern(b"a*[b]?\\c").unwrap().unwrap();
    assert_eq!(&pattern[..], br"a\*\[b\]\?\\c*");
    let long = vec![b'p'; KEY_BYTES_MAX + 1];
    assert_eq!(scan_pattern(&long).unwrap_err().field, "prefix");
}

#[test]
fn a_key_that_has_gone_since_it_was_scanned_is_left_out() {
    let reply = Reply::Entry(Some(Box::new(stored())));
    let found = scan_entry("k".into(), answer(reply)).unwrap().unwrap();
    assert_eq!((&found.key[..], found.revision), (&b"k"[..], 4));
    assert_eq!(
        scan_entry("k".into(), answer(Reply::Entry(None))).unwrap(),
        None
    );
}

//! Tests of evaluate: error texts, limits, groups, and what only a batch can show.

use bytes::Bytes;
use flux_types::{
    Command, Condition, DeleteCause, ErrorCode, ExpireCondition, Expiry, Fact, ReadCommand, Reply,
    Set, SetReply, Term, Transaction, UnixMillis, Watch, WriteCommand,
};

use crate::tests::{bytes, run};
use crate::{BatchView, Store, StoreConfig};

fn store() -> Store {
    Store::new(StoreConfig {
        stripes: 4,
        hash_seed: 3,
        value_bytes_max: 100,
        ..StoreConfig::default()
    })
}

fn set(key: &str, value: &str) -> Command {
    Command::Write(WriteCommand::Set(Set::plain(bytes(key), bytes(value))))
}

fn get(key: &str) -> Command {
    Command::Read(ReadCommand::Get { key: bytes(key) })
}

fn expire_at(key: &str, deadline: i64) -> Command {
    Command::Write(WriteCommand::Expire {
        key: bytes(key),
        expiry: Expiry::At(deadline),
        condition: ExpireCondition::default(),
    })
}

/// The facts of a batch of these commands, by groups; the batch is applied.
fn facts(store: &Store, at: u64, commands: &[Command]) -> Vec<Vec<Fact>> {
    let mut evaluation = store.evaluation(UnixMillis::new(at), Term::new(1));
    for command in commands {
        evaluation.command(command);
    }
    let Some(batch) = evaluation.finish() else {
        return Vec::new();
    };
    let view = BatchView::parse(&batch).unwrap();
    store.apply(&view);
    view.groups()
        .map(|group| group.iter().map(|(_, fact)| fact.to_fact()).collect())
        .collect()
}

fn put(key: &str, value: &str) -> Fact {
    Fact::Put {
        key: bytes(key),
        value: bytes(value),
        deadline: None,
    }
}

fn deleted(key: &str, cause: DeleteCause) -> Fact {
    Fact::Delete {
        key: bytes(key),
        cause,
    }
}

fn error_of(reply: &Reply) -> (ErrorCode, String) {
    match reply {
        Reply::Error(error) => (error.code, error.message.to_string()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn commands_fail_with_the_words_of_redis() {
    let store = store();
    let text = |n: usize| Bytes::from(vec![b'x'; n]);
    run(
        &store,
        1,
        &[set("text", "abc"), set("big", "9223372036854775807")],
    );
    let check = |command: Command, code: ErrorCode, message: &str| {
        let replies = run(&store, 1, std::slice::from_ref(&command));
        let expected = (code, message.to_owned());
        assert_eq!(error_of(&replies[0]), expected, "{command:?}");
    };
    let increment = |key: &str, by| {
        Command::Write(WriteCommand::Increment {
            key: bytes(key),
            by,
        })
    };
    let float = |key: &str, by| {
        Command::Write(WriteCommand::IncrementFloat {
            key: bytes(key),
            by,
        })
    };
    let not_integer = "value is not an integer or out of range";
    check(increment("text", 1), ErrorCode::NotAnInteger, not_integer);
    let overflow = "increment or decrement would overflow";
    check(increment("big", 1), ErrorCode::Overflow, overflow);
    check(
        float("text", 1.0),
        ErrorCode::NotAFloat,
        "value is not a valid float",
    );
    let infinite = "increment would produce NaN or Infinity";
    check(float("new", f64::INFINITY), ErrorCode::Overflow, infinite);
    check(float("new", f64::NAN), ErrorCode::Overflow, infinite);
    let rename = Command::Write(WriteCommand::Rename {
        source: bytes("absent"),
        target: bytes("absent"),
        if_absent: false,
    });
    check(rename, ErrorCode::NoSuchKey, "no such key");
    let copy = Command::Write(WriteCommand::Copy {
        source: bytes("text"),
        target: bytes("text"),
        replace: true,
    });
    let same = "source and destination objects are the same";
    check(copy, ErrorCode::Invalid, same);
    let too_long = "string exceeds maximum allowed size (proto-max-bulk-len)";
    let plain = Command::Write(WriteCommand::Set(Set::plain(bytes("k"), text(101))));
    check(plain, ErrorCode::TooLarge, too_long);
    let append = Command::Write(WriteCommand::Append {
        key: bytes("text"),
        value: text(98),
    });
    check(append, ErrorCode::TooLarge, too_long);
    let set_range = |offset| {
        Command::Write(WriteCommand::SetRange {
            key: bytes("text"),
            offset,
            value: text(1),
        })
    };
    check(set_range(100), ErrorCode::TooLarge, too_long);
    check(set_range(u64::MAX), ErrorCode::TooLarge, too_long);
    let many = Command::Write(WriteCommand::SetMany {
        pairs: vec![(bytes("ok"), text(1)), (bytes("long"), text(101))],
        if_none_exists: false,
    });
    check(many, ErrorCode::TooLarge, too_long);
    let get_expire = Command::Write(WriteCommand::GetExpire {
        key: bytes("text"),
        expiry: Expiry::In(0),
    });
    let invalid = "invalid expire time in 'getex' command";
    check(get_expire, ErrorCode::Invalid, invalid);
    check(
        Command::Write(WriteCommand::Expire {
            key: bytes("text"),
            expiry: Expiry::In(i64::MAX),
            condition: ExpireCondition::default(),
        }),
        ErrorCode::Invalid,
        "invalid expire time in 'expire' command",
    );
    let long_key = Command::Write(WriteCommand::Set(Set::plain(text(65_537), text(1))));
    check(
        long_key,
        ErrorCode::TooLarge,
        "key exceeds maximum allowed size",
    );
    assert_eq!(store.revision().get(), 2, "a refused command has no facts");
}

#[test]
fn a_key_of_the_greatest_length_and_an_empty_one_are_kept() {
    let store = store();
    let long = Bytes::from(vec![b'k'; 65_536]);
    let set_long = Command::Write(WriteCommand::Set(Set::plain(long.clone(), bytes("v"))));
    run(&store, 1, &[set_long, set("", "")]);
    let replies = run(
        &store,
        1,
        &[Command::Read(ReadCommand::Get { key: long }), get("")],
    );
    assert_eq!(replies, [Reply::Bulk(bytes("v")), Reply::Bulk(bytes(""))]);
}

#[test]
fn of_two_set_nx_in_one_batch_one_wins() {
    let store = store();
    let set = |value: &str| {
        Command::Write(WriteCommand::Set(Set {
            condition: Condition::Absent,
            reply: SetReply::Flag,
            ..Set::plain(bytes("lock"), bytes(value))
        }))
    };
    let replies = run(&store, 1, &[set("a"), set("b"), get("lock")]);
    assert_eq!(
        replies,
        [
            Reply::Integer(1),
            Reply::Integer(0),
            Reply::Bulk(bytes("a"))
        ]
    );
}

#[test]
fn a_write_over_an_expired_key_says_expired_and_then_put() {
    let store = store();
    run(&store, 1000, &[set("k", "old"), expire_at("k", 1500)]);
    assert_eq!(
        facts(&store, 1500, &[set("k", "new")]),
        [vec![deleted("k", DeleteCause::Expired), put("k", "new")]]
    );
    assert_eq!(store.stats().expired_lazy, 1);
}

#[test]
fn a_set_in_the_same_batch_wins_over_the_sweeper() {
    let store = store();
    run(&store, 1000, &[set("k", "old"), expire_at("k", 1500)]);
    let sweep = Command::Write(WriteCommand::SweepExpired {
        keys: vec![bytes("k"), bytes("absent")],
    });
    let replies = run(&store, 1500, &[set("k", "new"), sweep, get("k")]);
    assert_eq!(replies[1..], [Reply::Integer(0), Reply::Bulk(bytes("new"))]);
}

#[test]
fn the_sweeper_makes_one_group_for_each_key() {
    let store = store();
    let keys = ["a", "b", "c"];
    for key in keys {
        run(&store, 1000, &[set(key, "v"), expire_at(key, 1500)]);
    }
    run(&store, 1000, &[set("d", "v"), expire_at("d", 9500)]);
    assert!(store.next_due().is_some_and(|at| at.get() <= 1500));
    let due = store.due(UnixMillis::new(1600), 10);
    assert_eq!(due.len(), 3);
    assert_eq!(store.expiry_lag(UnixMillis::new(1600)), 100);
    let groups = facts(
        &store,
        1600,
        &[Command::Write(WriteCommand::SweepExpired { keys: due })],
    );
    assert!(groups.iter().all(|group| group.len() == 1) && groups.len() == 3);
    assert_eq!(store.stats().expired_active, 3);
    assert_eq!(store.expiry_lag(UnixMillis::new(1600)), 0);
    assert_eq!((store.len(), store.deadlines()), (1, 1));
}

#[test]
fn a_deadline_in_the_past_deletes() {
    let store = store();
    let set_past = Command::Write(WriteCommand::Set(Set {
        expiry: Expiry::At(999),
        ..Set::plain(bytes("k"), bytes("v"))
    }));
    assert_eq!(
        facts(&store, 1000, std::slice::from_ref(&set_past)),
        Vec::<Vec<Fact>>::new()
    );
    run(&store, 1000, &[set("k", "v")]);
    assert_eq!(
        facts(&store, 1000, &[expire_at("k", -5)]),
        [[deleted("k", DeleteCause::Deleted)]]
    );
    run(&store, 1000, &[set("k", "v")]);
    assert_eq!(
        facts(&store, 1000, &[set_past]),
        [[deleted("k", DeleteCause::Deleted)]]
    );
}

#[test]
fn appends_and_ranges_are_patches_that_keep_the_deadline() {
    let store = store();
    run(&store, 1000, &[set("k", "ab"), expire_at("k", 5000)]);
    let append = Command::Write(WriteCommand::Append {
        key: bytes("k"),
        value: bytes("cd"),
    });
    let set_range = Command::Write(WriteCommand::SetRange {
        key: bytes("k"),
        offset: 6,
        value: bytes("x"),
    });
    let patch = |offset, text: &str| Fact::Patch {
        key: bytes("k"),
        offset,
        bytes: bytes(text),
    };
    assert_eq!(
        facts(&store, 1000, &[append, get("k"), set_range]),
        [[patch(2, "cd")], [patch(6, "x")]]
    );
    let replies = run(&store, 1000, &[get("k")]);
    assert_eq!(replies, [Reply::Bulk(bytes("abcd\0\0x"))]);
    assert_eq!(store.deadlines(), 1);
}

#[test]
fn a_long_row_of_appends_reads_back_whole() {
    let store = Store::new(StoreConfig::default());
    let mut expected = Vec::new();
    for round in 0..300_u32 {
        let commands: Vec<Command> = (0..10_u32)
            .map(|n| {
                Command::Write(WriteCommand::Append {
                    key: bytes("k"),
                    value: Bytes::from(format!("{round}.{n},")),
                })
            })
            .collect();
        for n in 0..10_u32 {
            expected.extend_from_slice(format!("{round}.{n},").as_bytes());
        }
        run(&store, 1, &commands);
    }
    assert_eq!(
        run(&store, 1, &[get("k")]),
        [Reply::Bulk(Bytes::from(expected))]
    );
    run(
        &store,
        1,
        &[Command::Write(WriteCommand::Delete {
            keys: vec![bytes("k")],
        })],
    );
    assert_eq!(store.stats().entry_bytes, 0);
}

#[test]
fn a_transaction_is_one_group_and_goes_on_after_an_error() {
    let store = store();
    run(&store, 1, &[set("text", "abc")]);
    let increment = |key: &str| {
        Command::Write(WriteCommand::Increment {
            key: bytes(key),
            by: 1,
        })
    };
    let transaction = Command::Write(WriteCommand::Transaction(Transaction {
        watches: Vec::new(),
        commands: vec![set("a", "1"), increment("text"), increment("a"), get("a")],
    }));
    let mut evaluation = store.evaluation(UnixMillis::new(1), Term::new(1));
    let reply = evaluation.command(&transaction).reply;
    let Reply::Array(replies) = reply else {
        panic!("{reply:?}");
    };
    assert_eq!(replies[0], Reply::Ok);
    assert_eq!(error_of(&replies[1]).0, ErrorCode::NotAnInteger);
    assert_eq!(replies[2..], [Reply::Integer(2), Reply::Bulk(bytes("2"))]);
    let batch = evaluation.finish().unwrap();
    assert_eq!(BatchView::parse(&batch).unwrap().groups().count(), 1);
}

fn exec(store: &Store, at: u64, watch: Watch) -> Reply {
    let transaction = Command::Write(WriteCommand::Transaction(Transaction {
        watches: vec![watch],
        commands: vec![set("done", "1")],
    }));
    run(store, at, &[transaction]).remove(0)
}

#[test]
fn a_watched_key_aborts_when_it_was_written_deleted_or_expired() {
    let store = store();
    let watch = |store: &Store, key: &str, since: u64| {
        let revision = store.get(
            key.as_bytes(),
            UnixMillis::new(since),
            |found| match found {
                crate::Lookup::Live(entry) => Some(entry.revision),
                _ => None,
            },
        );
        Watch {
            key: bytes(key),
            revision,
            since: UnixMillis::new(since),
        }
    };
    let ran = Reply::Array(vec![Reply::Ok]);
    // Untouched, absent and absent again.
    run(&store, 1000, &[set("k", "v")]);
    let unchanged = watch(&store, "k", 1000);
    assert_eq!(exec(&store, 1000, unchanged), ran);
    let absent = watch(&store, "absent", 1000);
    assert_eq!(exec(&store, 1000, absent.clone()), ran);
    run(&store, 1000, &[set("absent", "v")]);
    assert_eq!(exec(&store, 1000, absent), Reply::Aborted);
    // Written with the same value; deleted.
    let before = watch(&store, "k", 1000);
    run(&store, 1000, &[set("k", "v")]);
    assert_eq!(exec(&store, 1000, before), Reply::Aborted);
    let before = watch(&store, "k", 1000);
    run(
        &store,
        1000,
        &[Command::Write(WriteCommand::Delete {
            keys: vec![bytes("k")],
        })],
    );
    assert_eq!(exec(&store, 1000, before), Reply::Aborted);
    // Expired since it was watched: aborts. Watched when already expired: does not.
    run(&store, 1000, &[set("k", "v"), expire_at("k", 2000)]);
    let before = watch(&store, "k", 1500);
    assert_eq!(exec(&store, 2000, before), Reply::Aborted);
    let after = watch(&store, "k", 2500);
    assert_eq!(exec(&store, 2600, after.clone()), ran);
    let sweep = Command::Write(WriteCommand::SweepExpired {
        keys: vec![bytes("k")],
    });
    run(&store, 2600, &[sweep]);
    assert_eq!(exec(&store, 2600, after), ran);
}

#[test]
fn when_memory_is_full_growth_is_refused_and_deletes_go_on() {
    let empty = Store::new(StoreConfig::default()).memory_bytes();
    let store = Store::new(StoreConfig {
        memory_bytes_max: Some(empty + 2000),
        ..StoreConfig::default()
    });
    let mut stored = 0_u32;
    let value = "v".repeat(100);
    // In one batch: the batch counts what it adds itself.
    let commands: Vec<Command> = (0..100).map(|n| set(&format!("k{n}"), &value)).collect();
    for reply in run(&store, 1, &commands) {
        match reply {
            Reply::Ok => stored += 1,
            other => assert_eq!(error_of(&other).0, ErrorCode::OutOfMemory),
        }
    }
    assert!((17..=19).contains(&stored), "{stored}");
    let transaction = Command::Write(WriteCommand::Transaction(Transaction {
        watches: Vec::new(),
        commands: vec![get("k1"), set("k1", "v")],
    }));
    let replies = run(&store, 1, &[transaction, get("k1"), expire_at("k1", 5000)]);
    assert_eq!(error_of(&replies[0]).0, ErrorCode::OutOfMemory);
    assert_eq!(
        replies[1..],
        [Reply::Bulk(bytes(&value)), Reply::Integer(1)]
    );
    let delete = Command::Write(WriteCommand::Delete {
        keys: vec![bytes("k1"), bytes("k2")],
    });
    let replies = run(&store, 1, &[delete, set("new", "v")]);
    assert_eq!(replies, [Reply::Integer(2), Reply::Ok]);
    assert!(store.stats().refused_memory > 80);
}

#[test]
fn the_float_of_a_decimal_is_the_decimal() {
    let store = store();
    let float = |by| {
        Command::Write(WriteCommand::IncrementFloat {
            key: bytes("f"),
            by,
        })
    };
    let replies = run(
        &store,
        1,
        &[set("f", "10.50"), float(0.1), float(-5.0), float(-5.5)],
    );
    assert_eq!(
        replies[1..],
        [
            Reply::Bulk(bytes("10.6")),
            Reply::Bulk(bytes("5.6")),
            Reply::Bulk(bytes("0.1"))
        ]
    );
}

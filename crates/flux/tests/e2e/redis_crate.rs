//! The Rust `redis` crate, unmodified: a client library that shares nothing with the Python ones.

use std::collections::{BTreeMap, BTreeSet};

use redis::{
    Client, Commands, Connection, CopyOptions, ErrorKind, ExistenceCheck, Expiry,
    IntegerReplyOrNoOp, ServerErrorKind, SetExpiry, SetOptions, pipe, transaction,
};

use crate::harness::{Process, Start};

fn open(process: &Process, query: &str) -> Connection {
    let url = format!("redis://{}/{query}", process.resp());
    let client = Client::open(url).expect("a proper address");
    client.get_connection().expect("the node accepts")
}

/// Runs a part of the test over both protocols, on one shard and on four.
fn over_everything(part: impl Fn(&mut Connection, &Process)) {
    for shards in ["1", "4"] {
        let process = Start::node().args(&["--shards", shards]).ready();
        for query in ["", "?protocol=resp3"] {
            let mut connection = open(&process, query);
            part(&mut connection, &process);
            let _done: () = connection.flushall().expect("emptied");
        }
    }
}

#[test]
fn the_redis_crate_sets_gets_counts_and_expires() {
    over_everything(|connection, _| {
        let pong: String = redis::cmd("PING").query(connection).unwrap();
        assert_eq!(pong, "PONG");
        let nothing: Option<String> = connection.get("absent").unwrap();
        assert_eq!(nothing, None);
        let binary: Vec<u8> = (0..=255).cycle().take(100_000).collect();
        let _done: () = connection.set("\r\n\0binary", &binary).unwrap();
        assert_eq!(
            connection.get::<_, Vec<u8>>("\r\n\0binary").unwrap(),
            binary
        );

        let once = SetOptions::default().conditional_set(ExistenceCheck::NX);
        let with_ttl = once.with_expiration(SetExpiry::EX(100));
        let first: bool = connection.set_options("k", "1", with_ttl.clone()).unwrap();
        let second: bool = connection.set_options("k", "2", with_ttl).unwrap();
        assert_eq!((first, second), (true, false));
        assert_eq!(
            connection.ttl::<_, IntegerReplyOrNoOp>("k").unwrap(),
            IntegerReplyOrNoOp::IntegerReply(100)
        );
        assert_eq!(connection.incr::<_, _, i64>("k", 41).unwrap(), 42);
        assert_eq!(connection.append::<_, _, usize>("k", "!").unwrap(), 3);
        let read: String = connection.get_ex("k", Expiry::PERSIST).unwrap();
        assert_eq!(read, "42!");
        assert_eq!(
            connection.ttl::<_, IntegerReplyOrNoOp>("k").unwrap(),
            IntegerReplyOrNoOp::ExistsButNotRelevant
        );
        let _done: () = connection.set_ex("short", "v", 1000).unwrap();
        assert!(connection.pexpire_at::<_, bool>("short", 1).unwrap());
        assert!(!connection.exists::<_, bool>("short").unwrap());

        let _done: () = connection.mset(&[("a", "1"), ("b", "2")]).unwrap();
        let many: (String, Option<String>, String) =
            connection.mget(&["a", "nothing", "b"]).unwrap();
        assert_eq!(many, ("1".to_owned(), None, "2".to_owned()));
        assert_eq!(connection.del::<_, i64>(&["a", "b", "c"]).unwrap(), 2);

        let _done: () = connection.set("{t}x", "moved").unwrap();
        let _done: () = connection.rename("{t}x", "{t}y").unwrap();
        let copied: bool = connection
            .copy("{t}y", "{t}z", CopyOptions::default())
            .unwrap();
        assert!(copied);
        assert_eq!(
            connection.get_del::<_, Option<String>>("{t}z").unwrap(),
            Some("moved".to_owned())
        );
    });
}

#[test]
fn the_redis_crate_pipelines_and_scans() {
    over_everything(|connection, _| {
        let mut writes = pipe();
        for number in 0..500 {
            writes.set(format!("scan:{number}"), number).ignore();
            writes.incr("sum", number);
        }
        let sums: Vec<i64> = writes.query(connection).unwrap();
        assert_eq!(sums.len(), 500);
        assert_eq!(sums.last(), Some(&(499 * 500 / 2)));

        let scanned: BTreeSet<String> = connection
            .scan_match::<_, String>("scan:*")
            .unwrap()
            .map(|key| key.expect("a key"))
            .collect();
        let expected: BTreeSet<String> = (0..500).map(|number| format!("scan:{number}")).collect();
        assert_eq!(scanned, expected);
        assert_eq!(connection.scan::<String>().unwrap().count(), 501);
    });
}

#[test]
fn the_redis_crate_runs_transactions_and_is_told_of_watched_changes() {
    over_everything(|connection, process| {
        let (old, new): (Option<i64>, i64) = pipe()
            .atomic()
            .cmd("GET")
            .arg("{t}n")
            .incr("{t}n", 5)
            .set("{t}m", "beside")
            .ignore()
            .query(connection)
            .unwrap();
        assert_eq!((old, new), (None, 5));

        // Somebody else writes the watched key the first two times.
        let mut other = open(process, "");
        let mut attempts = 0;
        let (result,): (i64,) = transaction(connection, &["{t}n"], |connection, pipe| {
            let seen: i64 = connection.get("{t}n")?;
            attempts += 1;
            if attempts <= 2 {
                let _other: i64 = other.incr("{t}n", 100)?;
            }
            pipe.set("{t}n", seen + 1)
                .ignore()
                .get("{t}n")
                .query(connection)
        })
        .unwrap();
        assert_eq!((result, attempts), (206, 3));
    });
}

#[test]
fn many_transactions_of_the_redis_crate_lose_no_update() {
    let process = Start::node().args(&["--fsync", "never"]).ready();
    let writers: Vec<_> = (0..4)
        .map(|_| {
            let mut connection = open(&process, "");
            std::thread::spawn(move || {
                for _ in 0..50 {
                    let (_new,): (i64,) =
                        transaction(&mut connection, &["counter"], |connection, pipe| {
                            let seen: Option<i64> = connection.get("counter")?;
                            pipe.set("counter", seen.unwrap_or(0) + 1)
                                .ignore()
                                .get("counter")
                                .query(connection)
                        })
                        .unwrap();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.join().expect("no writer fails");
    }
    let total: i64 = open(&process, "").get("counter").unwrap();
    assert_eq!(total, 200);
}

#[test]
fn the_redis_crate_understands_our_errors() {
    over_everything(|connection, _| {
        let _done: () = connection.set("text", "abc").unwrap();
        let error = connection.incr::<_, _, i64>("text", 1).unwrap_err();
        assert_eq!(
            error.kind(),
            ErrorKind::Server(ServerErrorKind::ResponseError)
        );
        assert!(error.to_string().contains("not an integer"), "{error}");
        let error = redis::cmd("NONSENSE").query::<()>(connection).unwrap_err();
        assert!(error.to_string().contains("unknown command"), "{error}");
        let error = pipe()
            .atomic()
            .cmd("SET")
            .arg("only a key")
            .query::<()>(connection)
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Server(ServerErrorKind::ExecAbort));
        // The connection is as good as before.
        assert_eq!(connection.get::<_, String>("text").unwrap(), "abc");
        let info: redis::InfoDict = redis::cmd("INFO").query(connection).unwrap();
        assert_eq!(info.get::<String>("redis_mode").unwrap(), "standalone");
        let config: BTreeMap<String, String> = redis::cmd("CONFIG")
            .arg(&["GET", "*"])
            .query(connection)
            .unwrap();
        assert!(config.contains_key("maxmemory"), "{config:?}");
    });
}

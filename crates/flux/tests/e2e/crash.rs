//! `kill -9` at random moments under load: what was acknowledged is there afterwards, with its exact
//! deadline, and nothing was done twice.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::harness::resp::{Connection, Value, encode};
use crate::harness::{Random, Start, wait_until};

const WRITERS: u64 = 4;

/// What one writer knows about its own keys. Nobody else writes them.
#[derive(Clone, Debug, Default)]
struct Known {
    /// Keys that must be there: value and deadline (-1: none).
    present: BTreeMap<String, (String, i64)>,
    /// Keys that must not.
    absent: Vec<String>,
    /// Keys whose last write was not answered: absent, or with this value and deadline.
    open: BTreeMap<String, (String, i64)>,
    /// Keys whose deletion was not answered.
    maybe_absent: BTreeMap<String, (String, i64)>,
    /// INCRs sent and acknowledged, over all rounds.
    increments: (i64, i64),
    /// APPENDs sent and acknowledged, over all rounds.
    appends: (u64, u64),
    next_key: u64,
}

/// One request of a pipeline, and what becomes of it.
enum Sent {
    Set(String, String, i64),
    Delete(String),
    Increment,
    Append,
}

impl Known {
    fn set(&mut self, writer: u64, random: &mut Random, now_ms: i64, batch: &mut Vec<u8>) -> Sent {
        let key = format!("w{writer}:{}", self.next_key);
        self.next_key += 1;
        let value = format!(
            "{key}={}",
            "x".repeat(usize::try_from(random.below(300)).unwrap_or(0))
        );
        let deadline = if random.below(2) == 0 {
            -1
        } else {
            now_ms + 3_600_000 + random.below(1_000_000).cast_signed()
        };
        if deadline < 0 {
            batch.extend(encode(&["SET", &key, &value]));
        } else {
            batch.extend(encode(&[
                "SET",
                &key,
                &value,
                "PXAT",
                &deadline.to_string(),
            ]));
        }
        self.open.insert(key.clone(), (value.clone(), deadline));
        Sent::Set(key, value, deadline)
    }

    /// Sends one pipeline and reads its replies; an error is the end of the connection.
    fn pipeline(
        &mut self,
        writer: u64,
        random: &mut Random,
        connection: &mut Connection,
        acknowledged: &AtomicU64,
    ) -> io::Result<()> {
        let now_ms = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_millis());
        let now_ms = i64::try_from(now_ms).unwrap_or(0);
        let mut batch = Vec::new();
        let mut sent = Vec::new();
        for _ in 0..=random.below(24) {
            sent.push(match random.below(8) {
                0 => {
                    self.increments.0 += 1;
                    batch.extend(encode(&["INCR", &format!("w{writer}:counter")]));
                    Sent::Increment
                }
                1 => {
                    self.appends.0 += 1;
                    let token = format!("{};", self.appends.0);
                    batch.extend(encode(&["APPEND", &format!("w{writer}:journal"), &token]));
                    Sent::Append
                }
                2 if self.present.len() > 10 => {
                    let position = usize::try_from(random.below(10)).unwrap_or(0);
                    let key = self
                        .present
                        .keys()
                        .nth(position)
                        .cloned()
                        .expect("more than ten");
                    let was = self.present.remove(&key).expect("it was just there");
                    batch.extend(encode(&["DEL", &key]));
                    self.maybe_absent.insert(key.clone(), was);
                    Sent::Delete(key)
                }
                _ => self.set(writer, random, now_ms, &mut batch),
            });
        }
        connection.send(&batch)?;
        for sent in sent {
            let reply = connection.reply()?;
            match sent {
                Sent::Set(key, value, deadline) => {
                    assert_eq!(reply, Value::ok());
                    self.open.remove(&key);
                    self.present.insert(key, (value, deadline));
                }
                Sent::Delete(key) => {
                    assert_eq!(reply, Value::Integer(1));
                    self.maybe_absent.remove(&key);
                    self.absent.push(key);
                }
                Sent::Increment => {
                    // Nobody else counts here, so a reply tells how often it was applied.
                    self.increments.1 += 1;
                    assert_eq!(reply, Value::Integer(self.increments.1));
                }
                Sent::Append => {
                    self.appends.1 += 1;
                    assert_eq!(
                        reply,
                        Value::Integer(journal(self.appends.1).len().cast_signed() as i64)
                    );
                }
            }
            acknowledged.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Compares with what the node holds after a restart, and learns how the open requests ended.
    fn check(&mut self, writer: u64, connection: &mut Connection) {
        for (key, expected) in &self.present {
            assert_eq!(
                look(connection, key).as_ref(),
                Some(expected),
                "{key} was acknowledged"
            );
        }
        for key in self.absent.drain(..) {
            assert_eq!(
                look(connection, &key),
                None,
                "the deletion of {key} was acknowledged"
            );
        }
        let open = std::mem::take(&mut self.open);
        for (key, expected) in open
            .into_iter()
            .chain(std::mem::take(&mut self.maybe_absent))
        {
            if let Some(found) = look(connection, &key) {
                assert_eq!(found, expected, "{key} is whole or absent");
                self.present.insert(key, found);
            }
        }
        let counter = match connection.line(&format!("GET w{writer}:counter")) {
            Value::Nil => 0,
            Value::Bulk(digits) => String::from_utf8_lossy(&digits).parse().expect("a number"),
            other => panic!("{other:?}"),
        };
        let (sent, acknowledged) = self.increments;
        assert!(
            (acknowledged..=sent).contains(&counter),
            "{acknowledged} <= {counter} <= {sent}"
        );
        self.increments = (counter, counter);
        let found = match connection.line(&format!("GET w{writer}:journal")) {
            Value::Nil => String::new(),
            Value::Bulk(bytes) => String::from_utf8(bytes).expect("digits"),
            other => panic!("{other:?}"),
        };
        let (sent, acknowledged) = self.appends;
        let count = found.matches(';').count() as u64;
        assert_eq!(found, journal(count), "every token once and in order");
        assert!(
            (acknowledged..=sent).contains(&count),
            "{acknowledged} <= {count} <= {sent}"
        );
        self.appends = (count, count);
    }
}

/// What `count` APPENDs leave behind.
fn journal(count: u64) -> String {
    (1..=count).map(|number| format!("{number};")).collect()
}

/// Value and deadline of a key.
fn look(connection: &mut Connection, key: &str) -> Option<(String, i64)> {
    let both = [encode(&["GET", key]), encode(&["PEXPIRETIME", key])].concat();
    connection.send(&both).expect("the node is up");
    let value = connection.reply().expect("the node is up");
    let deadline = connection.reply().expect("the node is up");
    match (value, deadline) {
        (Value::Nil, Value::Integer(-2)) => None,
        (Value::Bulk(value), Value::Integer(deadline)) => {
            Some((String::from_utf8(value).expect("text"), deadline))
        }
        other => panic!("{key}: {other:?}"),
    }
}

fn rounds(fsync: &str, shards: &str, rounds: u64) {
    let seed = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(1, |since| u64::from(since.subsec_nanos()) + since.as_secs())
        | 1;
    eprintln!("seed {seed}");
    let mut random = Random::new(seed);
    let mut known: Vec<Known> = (0..WRITERS).map(|_| Known::default()).collect();
    let mut folder = None;
    for round in 0..rounds {
        let mut start = Start::node().args(&["--shards", shards, "--fsync", fsync]);
        if let Some(folder) = folder.take() {
            start = start.over(folder);
        }
        let process = start.ready();
        let mut connection = process.connect();
        for (writer, known) in (0..).zip(&mut known) {
            known.check(writer, &mut connection);
        }
        let acknowledged = Arc::new(AtomicU64::new(0));
        let threads: Vec<JoinHandle<Known>> = (0..WRITERS)
            .zip(known.drain(..))
            .map(|(writer, mut known)| {
                let mut connection = process.connect();
                let acknowledged = Arc::clone(&acknowledged);
                let mut random = Random::new(seed.wrapping_add(round * WRITERS + writer));
                std::thread::spawn(move || {
                    while known
                        .pipeline(writer, &mut random, &mut connection, &acknowledged)
                        .is_ok()
                    {}
                    known
                })
            })
            .collect();
        let moment = 20 + random.below(2_000);
        wait_until("some load", || {
            acknowledged.load(Ordering::Relaxed) >= moment
                || threads.iter().any(JoinHandle::is_finished)
        });
        folder = Some(process.kill());
        known = threads
            .into_iter()
            .map(|thread| thread.join().expect("a writer's assertions"))
            .collect();
    }
    let process = Start::node()
        .over(folder.expect("at least one round"))
        .ready();
    let mut connection = process.connect();
    for (writer, known) in (0..).zip(&mut known) {
        known.check(writer, &mut connection);
        assert!(known.next_key > 0, "there was a load");
    }
    process.stop();
}

#[test]
fn killed_with_fsync_always_nothing_acknowledged_is_lost() {
    rounds("always", "1", 4);
    rounds("always", "4", 4);
}

#[test]
fn killed_with_fsync_everysec_nothing_acknowledged_is_lost() {
    rounds("everysec", "1", 3);
    rounds("everysec", "4", 3);
}

#[test]
fn killed_with_fsync_never_nothing_acknowledged_is_lost() {
    rounds("never", "1", 3);
    rounds("never", "4", 3);
}

#[test]
fn a_thousand_increments_at_once_make_a_thousand() {
    for shards in ["1", "4"] {
        let process = Start::node().args(&["--shards", shards]).ready();
        let threads: Vec<_> = (0..50)
            .map(|_| {
                let mut connection = process.connect();
                std::thread::spawn(move || {
                    for _ in 0..10 {
                        connection
                            .send(&encode(&["INCR", "n"]).repeat(2))
                            .expect("the node is up");
                        for _ in 0..2 {
                            assert!(matches!(connection.reply(), Ok(Value::Integer(_))));
                        }
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().expect("its assertions");
        }
        assert_eq!(process.connect().line("GET n"), Value::bulk("1000"));
    }
}

#[test]
fn of_two_set_nx_in_one_pipeline_one_wins() {
    let process = Start::node().ready();
    let mut connection = process.connect();
    let pipeline = [
        "SET k first NX",
        "SET k second NX",
        "GET k",
        "DEL k",
        "GET k",
        "SET k third NX",
    ];
    let bytes: Vec<u8> = pipeline
        .iter()
        .flat_map(|line| encode(&line.split(' ').collect::<Vec<_>>()))
        .collect();
    connection.send(&bytes).expect("the node is up");
    let replies: Vec<_> = pipeline
        .iter()
        .map(|_| connection.reply().expect("the node is up"))
        .collect();
    assert_eq!(
        replies,
        [
            Value::ok(),
            Value::Nil,
            Value::bulk("first"),
            Value::Integer(1),
            Value::Nil,
            Value::ok()
        ]
    );
}

#[test]
fn a_deadline_survives_restarts_to_the_millisecond() {
    let process = Start::node().ready();
    let mut connection = process.connect();
    assert_eq!(connection.line("SET soon v PX 1500"), Value::ok());
    assert_eq!(connection.line("SET late v PX 3600000"), Value::ok());
    let deadlines = ["PEXPIRETIME soon", "PEXPIRETIME late"].map(|line| connection.line(line));
    let process = Start::node().over(process.kill()).ready();
    let mut connection = process.connect();
    assert_eq!(connection.line("PEXPIRETIME late"), deadlines[1]);
    wait_until("the first deadline passes", || {
        connection.line("GET soon") == Value::Nil
    });
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis());
    let Value::Integer(deadline) = deadlines[0] else {
        panic!("{deadlines:?}")
    };
    assert!(
        i64::try_from(now).unwrap_or(0) >= deadline,
        "never gone before its deadline"
    );
    let process = Start::node().over(process.stop()).ready();
    let mut connection = process.connect();
    assert_eq!(connection.line("GET soon"), Value::Nil);
    assert_eq!(connection.line("PEXPIRETIME late"), deadlines[1]);
}

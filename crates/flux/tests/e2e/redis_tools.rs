//! redis-cli and redis-benchmark, unmodified.

use std::process::Command;

use crate::harness::{Process, Start, command, have, run, stdout};

fn redis_cli(process: &Process, args: &[&str]) -> Command {
    let mut command = command("redis-cli");
    command
        .args(["-p", &process.resp().port().to_string()])
        .args(args);
    command
}

/// Feeds commands to redis-cli, which answers as on a terminal, and compares the whole transcript.
fn transcript(process: &Process, flags: &[&str], expected: &str) {
    let mut input = String::new();
    let mut answers = String::new();
    for line in expected.lines().map(str::trim_end) {
        if let Some(line) = line.strip_prefix("> ") {
            input.push_str(line);
            input.push('\n');
        } else {
            answers.push_str(line);
            answers.push('\n');
        }
    }
    let args = [flags, &["--no-raw"]].concat();
    let output = stdout(&run(&mut redis_cli(process, &args), input.as_bytes()));
    let output: String = output
        .lines()
        .map(|line| format!("{}\n", line.trim_end()))
        .collect();
    assert_eq!(output, answers, "for\n{input}");
}

const STRINGS: &str = r#"> set greeting hello
OK
> get greeting
"hello"
> SET greeting other NX
(nil)
> set greeting other xx get
"hello"
> append greeting " world"
(integer) 11
> strlen greeting
(integer) 11
> getrange greeting 0 4
"other"
> setex short 100 v
OK
> ttl short
(integer) 100
> persist short
(integer) 1
> ttl short
(integer) -1
> ttl absent
(integer) -2
> incr n
(integer) 1
> incrby n 41
(integer) 42
> decr n
(integer) 41
> incrbyfloat n 0.5
"41.5"
> incr n
(error) ERR value is not an integer or out of range
> type n
string
> type absent
none
> getdel greeting
"other world"
> get greeting
(nil)
> nonsense
(error) ERR unknown command 'nonsense', with args beginning with:
> get
(error) ERR wrong number of arguments for 'get' command
> ping
PONG
> ping hello
"hello"
> echo "two words"
"two words"
> set binary "\x00\xff\r\n"
OK
> get binary
"\x00\xff\r\n"
> strlen binary
(integer) 4
> select 0
OK
> expire n 100
(integer) 1
> pexpire absent 100
(integer) 0
> expire n 10 GT
(integer) 0
> del n short binary absent
(integer) 3
> dbsize
(integer) 0
"#;

const MULTIPLE: &str = r#"> mset {t}a 1 {t}b 2
OK
> mget {t}a {t}b {t}c
1) "1"
2) "2"
3) (nil)
> exists {t}a {t}b {t}c {t}a
(integer) 3
> multi
OK
> incr {t}a
QUEUED
> get {t}b
QUEUED
> exec
1) (integer) 2
2) "2"
> multi
OK
> set {t}a x
QUEUED
> discard
OK
> get {t}a
"2"
> multi
OK
> get
(error) ERR wrong number of arguments for 'get' command
> exec
(error) EXECABORT Transaction discarded because of previous errors.
> exec
(error) ERR EXEC without MULTI
> watch {t}a
OK
> set {t}a other
OK
> multi
OK
> get {t}a
QUEUED
> exec
(nil)
> rename {t}a {t}z
OK
> get {t}z
"other"
> copy {t}z {t}y
(integer) 1
> get {t}y
"other"
> rename {t}absent {t}y
(error) ERR no such key
> flushall
OK
> keys *
(empty array)
"#;

#[test]
fn redis_cli_sees_what_it_sees_elsewhere() {
    if !have("redis-cli", "redis-cli transcripts") {
        return;
    }
    for shards in ["1", "4"] {
        let process = Start::node().args(&["--shards", shards]).ready();
        transcript(&process, &[], STRINGS);
        transcript(&process, &[], MULTIPLE);
        transcript(&process, &["-3"], STRINGS);
        transcript(&process, &["-3"], MULTIPLE);
    }
}

#[test]
fn keys_of_several_shards_scatter_where_that_is_harmless() {
    if !have("redis-cli", "redis-cli transcripts") {
        return;
    }
    let process = Start::node().args(&["--shards", "4"]).ready();
    // Slots 15495, 3300, 7365 and 11298: one for each quarter.
    transcript(
        &process,
        &[],
        r#"> mset a 1 b 2 c 3 d 4
OK
> mget a b c d e
1) "1"
2) "2"
3) "3"
4) "4"
5) (nil)
> exists a b c d e
(integer) 4
> rename a b
(error) CROSSSLOT keys belong to different shards; give them one hash tag, such as {tag}key
> copy a b
(error) CROSSSLOT keys belong to different shards; give them one hash tag, such as {tag}key
> dbsize
(integer) 4
> del a b c d e
(integer) 4
"#,
    );
    let output = run(
        &mut redis_cli(&process, &[]),
        b"multi\nset a 1\nset b 2\nexec\nget a\n",
    );
    let text = stdout(&output);
    assert!(text.contains("CROSSSLOT"), "{text}");
    assert_eq!(text.lines().last(), Some(""), "nothing was written: {text}");
}

#[test]
fn redis_cli_scans_pipes_and_inspects() {
    if !have("redis-cli", "redis-cli transcripts") {
        return;
    }
    for shards in ["1", "4"] {
        let process = Start::node().args(&["--shards", shards]).ready();
        let mut load = Vec::new();
        for number in 0..1000 {
            let key = format!("key:{number}");
            load.extend(crate::harness::resp::encode(&[
                "SET",
                key.as_str(),
                "value",
            ]));
        }
        let output = stdout(&run(&mut redis_cli(&process, &["--pipe"]), &load));
        assert!(output.contains("errors: 0, replies: 1000"), "{output}");
        let scanned = stdout(&run(
            &mut redis_cli(&process, &["--scan", "--pattern", "key:*7"]),
            b"",
        ));
        assert_eq!(scanned.lines().count(), 100);
        let info = stdout(&run(&mut redis_cli(&process, &["info"]), b""));
        for field in [
            "redis_version:7.2.4",
            "role:master",
            "loading:0",
            "db0:keys=1000",
        ] {
            assert!(info.contains(field), "no {field} in\n{info}");
        }
        let config = stdout(&run(
            &mut redis_cli(&process, &["config", "get", "appendonly"]),
            b"",
        ));
        assert_eq!(config, "appendonly\nyes\n");
        let docs = stdout(&run(
            &mut redis_cli(&process, &["command", "docs", "get"]),
            b"",
        ));
        assert!(docs.contains("summary"), "{docs}");
        let count: u32 = stdout(&run(&mut redis_cli(&process, &["command", "count"]), b""))
            .trim()
            .parse()
            .expect("a number");
        assert!(count > 60, "{count}");
    }
}

#[test]
fn a_password_is_asked_for() {
    if !have("redis-cli", "redis-cli transcripts") {
        return;
    }
    let process = Start::all().variable("FLUX_PASSWORD", "s3cret").ready();
    let answer = |args: &[&str]| {
        let output = run(&mut redis_cli(&process, args), b"");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    assert_eq!(answer(&["get", "a"]), "NOAUTH Authentication required.");
    assert_eq!(
        answer(&["--no-auth-warning", "-a", "s3cret", "set", "a", "1"]),
        "OK"
    );
    assert_eq!(
        answer(&["--no-auth-warning", "-a", "s3cret", "-3", "get", "a"]),
        "1"
    );
    let wrong = answer(&["--no-auth-warning", "-a", "wrong", "get", "a"]);
    assert!(wrong.contains("NOAUTH"), "{wrong}");
}

#[test]
fn redis_benchmark_finishes_without_an_error() {
    if !have("redis-benchmark", "redis-benchmark") {
        return;
    }
    for (shards, fsync) in [("1", "always"), ("4", "everysec")] {
        let process = Start::node()
            .args(&["--shards", shards, "--fsync", fsync])
            .ready();
        for (pipeline, requests) in [("1", "2000"), ("64", "50000")] {
            let mut command = command("redis-benchmark");
            command.args([
                "-p",
                &process.resp().port().to_string(),
                "-t",
                "ping,set,get,incr,mset",
            ]);
            command.args([
                "-n", requests, "-P", pipeline, "-c", "20", "-r", "1000", "--csv",
            ]);
            let output = run(&mut command, b"");
            let stderr = String::from_utf8_lossy(&output.stderr);
            let text = stdout(&output);
            assert!(stderr.is_empty(), "{stderr}");
            let tests: Vec<_> = text.lines().skip(1).collect();
            assert_eq!(tests.len(), 6, "{text}");
            for line in tests {
                let rate = line.split(',').nth(1).map(|rate| rate.trim_matches('"'));
                let rate: f64 = rate.and_then(|rate| rate.parse().ok()).expect("a rate");
                assert!(rate > 0.0, "{line}");
            }
        }
    }
}

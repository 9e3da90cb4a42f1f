//! `flux cli`: one command, a pipe, the prompt, the demonstration.

use crate::harness::resp::Value;
use crate::harness::{FLUX, Process, Start, command, python, repository, run, stdout};

fn cli(process: &Process, args: &[&str], input: &str) -> std::process::Output {
    let mut command = command(FLUX);
    command
        .args(["cli", "-p", &process.resp().port().to_string()])
        .args(args);
    run(&mut command, input.as_bytes())
}

#[test]
fn one_command_is_answered_and_its_error_is_an_exit_code() {
    let process = Start::node().ready();
    for (args, expected) in [
        (&["set", "a", "b"][..], "OK\n"),
        (&["get", "a"], "b\n"),
        (&["GET", "absent"], "\n"),
        (&["incr", "n"], "1\n"),
        (&["mget", "a", "absent", "n"], "b\n\n1\n"),
        (&["--no-raw", "get", "a"], "\"b\"\n"),
        (&["--no-raw", "get", "absent"], "(nil)\n"),
        (&["--no-raw", "incr", "n"], "(integer) 2\n"),
        (&["--no-raw", "mget", "a", "absent"], "1) \"b\"\n2) (nil)\n"),
        (&["--json", "mget", "a", "absent"], "[\"b\",null]\n"),
        (&["-3", "-n", "0", "set", "k", "-1", "px", "100000"], "OK\n"),
        (&["--no-raw", "ttl", "k"], "(integer) 100\n"),
        (&["ping"], "PONG\n"),
        (&["keys", "k"], "k\n"),
        (&["del", "a", "k", "n"], "3\n"),
    ] {
        assert_eq!(stdout(&cli(&process, args, "")), expected, "{args:?}");
    }
    let failed = cli(&process, &["--no-raw", "get"], "");
    assert_eq!(failed.status.code(), Some(1), "{failed:?}");
    let text = String::from_utf8_lossy(&failed.stdout);
    assert_eq!(
        text,
        "(error) ERR wrong number of arguments for 'get' command\n"
    );
}

#[test]
fn commands_from_a_pipe_are_answered_in_order() {
    let process = Start::node()
        .args(&["--shards", "4", "--fsync", "never"])
        .ready();
    let input = "set a 1\nincr a\n\n# not a command\nget a\nset b \"two words\\x21\"\nget b\n";
    assert_eq!(
        stdout(&cli(&process, &[], input)),
        "OK\n2\n2\nOK\ntwo words!\n"
    );
    let many: String = (0..5000)
        .map(|number| format!("set key:{number} {number}\n"))
        .collect();
    assert_eq!(stdout(&cli(&process, &[], &many)), "OK\n".repeat(5000));
    assert_eq!(process.connect().line("GET key:4999"), Value::bulk("4999"));
    let failed = cli(&process, &[], "set a x\nincr a\nget a\n");
    assert_eq!(failed.status.code(), Some(1));
    let text = String::from_utf8_lossy(&failed.stdout);
    assert_eq!(text, "OK\nERR value is not an integer or out of range\nx\n");
}

#[test]
fn the_demonstration_says_what_it_sees() {
    for shards in ["1", "4"] {
        let process = Start::node().args(&["--shards", shards]).ready();
        let text = stdout(&cli(&process, &["demo"], ""));
        for word in ["connected", "wrote", "read", "expired", "deleted"] {
            assert!(text.contains(word), "no {word} in:\n{text}");
        }
        assert_eq!(
            process.connect().line("DBSIZE"),
            Value::Integer(0),
            "it tidies up"
        );
    }
}

#[test]
fn without_a_node_one_line_says_so() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("some port is free");
    let port = listener
        .local_addr()
        .expect("a bound address")
        .port()
        .to_string();
    drop(listener);
    for args in [&["get", "a"][..], &["demo"]] {
        let mut command = command(FLUX);
        let output = run(command.args(["cli", "-p", &port]).args(args), b"");
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(
            text.starts_with("flux: ") && text.contains(&format!("127.0.0.1:{port}")),
            "{text}"
        );
    }
}

#[test]
fn the_password_comes_from_flag_or_environment() {
    let process = Start::node().variable("FLUX_PASSWORD", "s3cret").ready();
    assert_eq!(
        stdout(&cli(&process, &["-a", "s3cret", "set", "a", "1"], "")),
        "OK\n"
    );
    let mut with_variable = command(FLUX);
    with_variable.args(["cli", "-p", &process.resp().port().to_string(), "get", "a"]);
    with_variable.env("FLUX_PASSWORD", "s3cret");
    assert_eq!(stdout(&run(&mut with_variable, b"")), "1\n");
    for args in [&["get", "a"][..], &["-a", "wrong", "get", "a"]] {
        let refused = cli(&process, args, "");
        assert_eq!(refused.status.code(), Some(1), "{refused:?}");
        let all = [refused.stdout, refused.stderr].concat();
        let text = String::from_utf8_lossy(&all);
        assert!(
            text.contains("NOAUTH") || text.contains("password is wrong"),
            "{text}"
        );
    }
}

#[test]
fn the_prompt_completes_hints_and_remembers() {
    let Some(python) = python("prompt of flux cli") else {
        return;
    };
    let process = Start::node().ready();
    let mut command = command(python);
    command.arg(repository().join("crates/flux/tests/e2e/python/repl.py"));
    command
        .args([FLUX, &process.resp().port().to_string()])
        .arg(process.folder());
    assert_eq!(stdout(&run(&mut command, b"")), "passed\n");
}

#[test]
fn health_is_an_exit_code() {
    let process = Start::all().ready();
    let port = process.admin().port().to_string();
    let healthy = crate::harness::flux(process.folder(), &["health", "--admin-port", &port]);
    assert_eq!(healthy.status.code(), Some(0), "{healthy:?}");
    let folder = process.stop();
    let gone = crate::harness::flux(folder.path(), &["health", "--admin-port", &port]);
    assert_eq!(gone.status.code(), Some(1), "{gone:?}");
    assert_eq!(String::from_utf8_lossy(&gone.stderr).lines().count(), 1);
}

#[test]
fn version_and_help_are_answers() {
    let folder = tempfile::tempdir().expect("a folder");
    let version = format!("flux {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(
        stdout(&crate::harness::flux(folder.path(), &["version"])),
        version
    );
    assert_eq!(
        stdout(&crate::harness::flux(folder.path(), &["--version"])),
        version
    );
    let help = stdout(&crate::harness::flux(folder.path(), &["--help"]));
    for word in [
        "server",
        "gateway",
        "cli",
        "log",
        "--fsync",
        "FLUX_FSYNC",
        "./flux-data",
    ] {
        assert!(help.contains(word), "no {word} in\n{help}");
    }
}

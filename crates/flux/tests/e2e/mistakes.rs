//! Mistakes at start: one clear line each, exit code 2, nothing created.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;

use crate::harness::resp::Value;
use crate::harness::{FLUX, Start, command, flux, run};

const FREE: &[&str] = &[
    "start",
    "--port",
    "0",
    "--grpc-port",
    "0",
    "--http-port",
    "0",
    "--admin-port",
    "0",
];

/// Runs `flux start` on free ports with more arguments; it must refuse.
fn refused(folder: &Path, args: &[&str]) -> Vec<String> {
    let output = flux(folder, &[FREE, args].concat());
    problems(&output, 2)
}

fn problems(output: &Output, code: i32) -> Vec<String> {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(
        output.stdout.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    let lines: Vec<_> = stderr
        .lines()
        .map(|line| {
            line.strip_prefix("flux: ")
                .unwrap_or_else(|| panic!("{stderr}"))
                .to_owned()
        })
        .collect();
    assert!(!lines.is_empty());
    lines
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(folder)
        .expect("the folder is readable")
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    names.sort();
    names
}

#[test]
fn a_taken_port_of_any_part_is_named_with_its_flag_before_anything_is_created() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("some port is free");
    let port = taken
        .local_addr()
        .expect("a bound address")
        .port()
        .to_string();
    for flag in ["--port", "--grpc-port", "--http-port", "--admin-port"] {
        let folder = tempfile::tempdir().expect("a folder");
        let mut args = FREE.to_vec();
        let position = args
            .iter()
            .position(|arg| *arg == flag)
            .expect("the flag is there");
        args[position + 1] = &port;
        args.extend(["--ready-file", "ready.json"]);
        let lines = problems(&flux(folder.path(), &args), 2);
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(
            lines[0].starts_with(&format!("{flag} {port}: ")),
            "{lines:?}"
        );
        assert!(lines[0].contains("in use"), "{lines:?}");
        assert_eq!(names(folder.path()), [""; 0]);
    }
}

#[test]
fn two_listeners_may_not_be_given_one_port() {
    let folder = tempfile::tempdir().expect("a folder");
    let lines = problems(
        &flux(folder.path(), &["--port", "4711", "--http-port", "4711"]),
        2,
    );
    assert_eq!(
        lines,
        ["--port and --http-port are both 4711: change one of them"]
    );
    assert_eq!(names(folder.path()), [""; 0]);
}

#[test]
fn a_second_process_is_refused_its_ports_and_a_successor_is_not() {
    let first = Start::all().ready();
    let port = first.resp().port().to_string();
    // A connection that is open while the server dies leaves its port in a waiting state.
    let mut connection = first.connect();
    assert_eq!(connection.line("SET a 1"), Value::ok());
    let folder = tempfile::tempdir().expect("a folder");
    let args = [
        "start",
        "--port",
        &port,
        "--grpc-port",
        "0",
        "--http-port",
        "0",
        "--admin-port",
        "0",
    ];
    let lines = problems(&flux(folder.path(), &args), 2);
    assert!(
        lines[0].starts_with(&format!("--port {port}: ")),
        "{lines:?}"
    );
    let folder = first.kill();
    let again = Start::all()
        .over(folder)
        .args(&["--config", "/dev/null"])
        .variable("FLUX_CONFIG", "");
    let again = again.ready();
    assert_eq!(again.connect().line("GET a"), Value::bulk("1"));
    let folder = again.stop();
    let args = [
        "start",
        "--port",
        &port,
        "--grpc-port",
        "0",
        "--http-port",
        "0",
        "--admin-port",
        "0",
        "--ready-file",
        "absent/ready.json",
    ];
    // The port is no longer among the mistakes.
    let lines = problems(&flux(folder.path(), &args), 2);
    assert!(
        lines[0].starts_with("--ready-file absent/ready.json: "),
        "{lines:?}"
    );
}

#[test]
fn a_data_directory_that_cannot_be_written_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("file"), "x").expect("a file");
    let lines = refused(folder.path(), &["--data-dir", "file"]);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("file"), "{lines:?}");
    let lines = refused(folder.path(), &["--data-dir", "file/below"]);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(names(folder.path()), ["file"]);

    // Permissions do not bind root, who runs the suite in containers.
    let locked = folder.path().join("locked");
    std::fs::create_dir(&locked).expect("a folder");
    std::fs::set_permissions(&locked, PermissionsExt::from_mode(0o555)).expect("its own folder");
    let binds = std::fs::write(locked.join("probe"), "").is_err();
    if binds {
        let lines = refused(folder.path(), &["--data-dir", "locked/data"]);
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(
            lines[0].contains("locked/data") && lines[0].contains("denied"),
            "{lines:?}"
        );
        assert_eq!(names(&locked), [""; 0]);
    }
    std::fs::set_permissions(&locked, PermissionsExt::from_mode(0o755)).expect("its own folder");
}

#[test]
fn a_data_directory_in_use_is_refused_until_its_process_is_gone() {
    let first = Start::all().ready();
    let data = first.folder().join("flux-data");
    let before = names(&data);
    let folder = tempfile::tempdir().expect("a folder");
    let text = data.to_str().expect("a plain path").to_owned();
    let lines = refused(folder.path(), &["--data-dir", &text]);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(
        lines[0].contains(&text) && lines[0].contains("use"),
        "{lines:?}"
    );
    assert_eq!(names(&data), before);
    // The lock dies with the process, however that dies.
    let folder = first.kill();
    Start::all().over(folder).ready().stop();
}

#[test]
fn a_folder_with_foreign_files_is_refused_and_an_empty_one_is_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    std::fs::create_dir(&data).expect("a folder");
    std::fs::write(data.join("thesis.txt"), "years of work").expect("a file");
    let lines = refused(folder.path(), &["--data-dir", "data"]);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(
        lines[0].contains("data") && lines[0].contains("thesis.txt"),
        "{lines:?}"
    );
    assert_eq!(names(&data), ["thesis.txt"]);
    std::fs::remove_file(data.join("thesis.txt")).expect("a file");
    // What the root of a file system has is no file of anybody's.
    std::fs::create_dir(data.join("lost+found")).expect("a folder");
    let path = data.to_str().expect("a plain path").to_owned();
    Start::all().args(&["--data-dir", &path]).ready().stop();
}

#[test]
fn another_count_of_shards_is_refused_and_none_is_remembered() {
    let first = Start::all().args(&["--shards", "4"]).ready();
    assert_eq!(first.connect().line("SET a 1"), Value::ok());
    let folder = first.stop();
    let lines = refused(folder.path(), &["--shards", "2"]);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(
        lines[0].contains('4') && lines[0].contains('2') && lines[0].contains("shards"),
        "{lines:?}"
    );
    let again = Start::all().over(folder).ready();
    assert_eq!(again.connect().line("GET a"), Value::bulk("1"));
    let folder = again.stop();
    Start::all()
        .over(folder)
        .args(&["--shards", "4"])
        .ready()
        .stop();
}

#[test]
fn a_bad_flag_is_one_line() {
    let folder = tempfile::tempdir().expect("a folder");
    for (args, expected) in [
        (&["--prot", "1"][..], "--prot"),
        (&["start", "--fsync"], "--fsync"),
        (&["nonsense"], "nonsense"),
        (&["server", "--http-port", "1"], "--http-port"),
        (&["gateway"], "--upstream HOST:PORT is required"),
        (
            &["gateway", "--upstream", "nowhere"],
            "--upstream: \"nowhere\" is not HOST:PORT",
        ),
        (
            &["--fsync", "sometimes"],
            "--fsync: \"sometimes\" is not always, everysec or never",
        ),
        (&["--port", "99999"], "--port: \"99999\" is not a port"),
        (
            &["--shards", "65"],
            "--shards: \"65\" is not a count from 1 to 64",
        ),
        (
            &["--bind", "0.0.0.0"],
            "--bind 0.0.0.0: beyond loopback a --password",
        ),
        (
            &["--config", "absent.toml"],
            "--config absent.toml: no such file",
        ),
        (&["log", "verify"], "DIR"),
    ] {
        let lines = problems(&flux(folder.path(), args), 2);
        assert_eq!(lines.len(), 1, "{args:?}: {lines:?}");
        assert!(lines[0].contains(expected), "{args:?}: {lines:?}");
        assert_eq!(names(folder.path()), [""; 0], "{args:?}");
    }
}

#[test]
fn every_mistake_in_file_and_environment_is_reported_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = "[node]\nprot = 1\nfsync = 3\n\n[gateway]\nhttp-port = \"x\"\n";
    std::fs::write(folder.path().join("my.toml"), text).expect("a file");
    let mut command = command(FLUX);
    command.args(["--port", "x"]).current_dir(folder.path());
    command
        .env("FLUX_CONFIG", "my.toml")
        .env("FLUX_DRAIN_TIMEOUT", "soon");
    let lines = problems(&run(&mut command, b""), 2);
    assert_eq!(
        lines,
        [
            "my.toml:2: node.prot is not a setting; did you mean node.port?",
            "my.toml:3: node.fsync: must be a string in quotes",
            "my.toml:6: gateway.http-port: must be a decimal number without quotes",
            "FLUX_DRAIN_TIMEOUT: \"soon\" is not a duration such as 150ms, 10s, 5m or 1h",
            "--port: \"x\" is not a port from 0 to 65535 (0: any free one)",
        ]
    );
    assert_eq!(names(folder.path()), ["my.toml"]);
}

#[test]
fn a_mistake_in_a_route_names_its_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = "[gateway]\nhttp-port = 0\n\n[[gateway.routes]]\nnonsense = 1\n";
    std::fs::write(folder.path().join("my.toml"), text).expect("a file");
    let lines = refused(folder.path(), &["--config", "my.toml"]);
    assert!(
        lines[0].starts_with("my.toml:") && lines[0].contains("nonsense"),
        "{lines:?}"
    );
    assert_eq!(names(folder.path()), ["my.toml"]);
}

#[test]
fn the_ready_file_of_an_earlier_process_is_gone_at_once() {
    let first = Start::all().ready();
    let ready = first.ready_file().to_path_buf();
    assert!(ready.exists());
    let folder = first.kill();
    assert!(ready.exists(), "nobody could remove it");
    let mut second = Start::all().over(folder).args(&["--shards", "9"]).spawn();
    assert_eq!(second.wait().code(), Some(2), "{}", second.stderr());
    assert!(!ready.exists());
}

#[test]
fn settings_are_shown_with_their_origins() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("my.toml"), "[node]\nfsync = \"never\"\n").expect("a file");
    let mut command = command(FLUX);
    command
        .args(["config", "--config", "my.toml", "--port", "1"])
        .current_dir(folder.path());
    command
        .env("FLUX_GRPC_PORT", "2")
        .env("FLUX_PASSWORD", "secret");
    let output = run(&mut command, b"");
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0));
    for (line, origin) in [
        ("port = 1", "--port"),
        ("grpc-port = 2", "FLUX_GRPC_PORT"),
        ("fsync = \"never\"", "my.toml:2"),
        ("http-port = 8080", "default"),
    ] {
        let found = text
            .lines()
            .find(|have| have.starts_with(line))
            .unwrap_or_else(|| panic!("{text}"));
        assert!(found.ends_with(&format!("# {origin}")), "{found}");
    }
    assert!(!text.contains("secret"));
    let defaults = flux(folder.path(), &["config", "--defaults"]);
    std::fs::write(folder.path().join("defaults.toml"), &defaults.stdout).expect("a file");
    let check = flux(
        folder.path(),
        &["config", "--check", "--config", "defaults.toml"],
    );
    assert_eq!(
        (check.status.code(), check.stdout.len()),
        (Some(0), 0),
        "{check:?}"
    );
}

#[test]
fn a_ready_file_in_an_absent_folder_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let lines = refused(folder.path(), &["--ready-file", "absent/ready.json"]);
    assert_eq!(
        lines,
        ["--ready-file absent/ready.json: no such file or directory"]
    );
    assert_eq!(names(folder.path()), [""; 0]);
}

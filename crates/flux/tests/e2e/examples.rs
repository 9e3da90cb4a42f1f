//! The programs under `examples/`, and every command of the pages that introduce them.

use std::path::Path;

use crate::harness::document::{Step, steps};
use crate::harness::weather::Weather;
use crate::harness::{FLUX, Process, Start, command, have, python, repository, run, shell, stdout};
use crate::harness::{skip, wait_until};

#[expect(dead_code, reason = "its main is for `cargo run --example kv_client`")]
#[path = "../../../../examples/kv-clients/rust/main.rs"]
mod kv_client;

/// What each client says, with its name in place of NAME.
const SAID: &str = "NAME = hello\nNAME:count = 3\nfound NAME\nfound NAME:count\n";

/// The oldest Go that the client's dependencies build with.
const GO_MINOR_MIN: u32 = 23;

fn said(name: &str, code: &str) -> String {
    format!("{}without a key: {code}\n", SAID.replace("NAME", name))
}

fn grpc(process: &Process) -> String {
    let address = process.addresses().grpc.expect("a node speaks gRPC");
    address.to_string()
}

#[test]
fn the_rust_client_speaks_to_the_service() {
    let process = Start::node().ready();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let lines = runtime.block_on(kv_client::run(&grpc(&process)));
    let lines = lines.expect("every call is answered");
    assert_eq!(lines.join("\n") + "\n", said("rust", "InvalidArgument"));
}

#[test]
fn the_python_client_speaks_to_the_service() {
    let Some(python) = python("the Python client of the service") else {
        return;
    };
    let process = Start::node().args(&["--shards", "4"]).ready();
    let mut command = command(python);
    command
        .arg(repository().join("examples/kv-clients/python/client.py"))
        .arg(grpc(&process));
    let output = stdout(&run(&mut command, b""));
    assert_eq!(output, said("python", "INVALID_ARGUMENT"));
}

/// Whether there is a Go that is young enough. Go is no part of the project and is not installed for
/// this one example: without it the test does not apply, which is no test skipped.
fn have_go() -> bool {
    let version = std::process::Command::new("go")
        .args(["env", "GOVERSION"])
        .output();
    let text = version.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let minor = text.ok().and_then(|text| {
        let numbers = text.trim().strip_prefix("go1.")?.to_owned();
        let minor = numbers.split(|c: char| !c.is_ascii_digit()).next()?;
        minor.parse::<u32>().ok()
    });
    let is_there = minor.is_some_and(|minor| minor >= GO_MINOR_MIN);
    if !is_there {
        eprintln!("NOT APPLICABLE the Go client: no Go 1.{GO_MINOR_MIN} or later here");
    }
    is_there
}

#[test]
fn the_go_client_speaks_to_the_service() {
    if !have_go() {
        return;
    }
    let Some(python) = python("the Go client of the service") else {
        return;
    };
    let folder = repository().join("examples/kv-clients/go");
    let mut fetch = std::process::Command::new("go");
    fetch.args(["mod", "download"]).current_dir(&folder);
    let fetched = fetch.output().expect("go runs");
    if !fetched.status.success() {
        let reason = String::from_utf8_lossy(&fetched.stderr).into_owned();
        skip(
            "the Go client of the service",
            &format!("its modules cannot be had: {reason}"),
        );
        return;
    }
    let process = Start::node().ready();
    // Building takes longer than anything else may.
    let output = std::process::Command::new(folder.join("run"))
        .arg(grpc(&process))
        .env("PYTHON", python)
        .output()
        .expect("the script runs");
    assert_eq!(stdout(&output), said("go", "InvalidArgument"));
}

/// A gateway and a node that know of the weather service by their configuration alone.
fn with_weather(weather: &Weather) -> Process {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shipped = repository().join("examples/weather/gateway.toml");
    let text = std::fs::read_to_string(shipped).expect("the example has a configuration");
    let text = text.replace(":50060", &format!(":{}", weather.port));
    let config = folder.path().join("gateway.toml");
    std::fs::write(&config, text).expect("it is writable");
    let config = config.to_str().expect("a path is text").to_owned();
    let process = Start::all()
        .args(&["--config", &config])
        .over(folder)
        .ready();
    wait_until("the gateway to know the service", || {
        let url = format!("http://{}/v1/cities/none/report", process.http());
        let output = run(command("curl").arg("-sS").arg(url), b"");
        stdout(&output).contains("nobody has reported")
    });
    process
}

/// The command with the addresses of this test in place of the usual ones.
fn addressed(step: &Step, process: &Process, weather: &Weather) -> String {
    let line = step
        .command
        .replace("localhost:8080", &process.http().to_string());
    let line = line.replace("localhost:9180", &process.admin().to_string());
    let line = line.replace("localhost:50060", &format!("localhost:{}", weather.port));
    let line = line.replace("localhost:50052", &grpc(process));
    let line = line.replace(
        "flux cli",
        &format!("{FLUX} cli -p {}", process.resp().port()),
    );
    let words = line
        .split(" | ")
        .map(|part| match part.strip_prefix("curl ") {
            Some(rest) => format!("curl -sS {rest}"),
            None => part.to_owned(),
        });
    words.collect::<Vec<_>>().join(" | ")
}

/// Runs every command of a page; each must succeed and answer what the page says.
fn walk(page: &str, least: usize) {
    let Some(python) = python(page) else { return };
    if !have("curl", page) {
        return;
    }
    let text = std::fs::read_to_string(repository().join(page)).expect("the page is there");
    let steps = steps(&text, "sh test");
    assert!(steps.len() >= least, "{steps:?}");
    let weather = Weather::start(&python);
    let process = with_weather(&weather);
    for step in &steps {
        let line = addressed(step, &process, &weather);
        for left in [":8080", ":9180", ":50052", ":50060"] {
            assert!(!line.contains(left), "not addressed: {line}");
        }
        let output = in_folder(&python, &line);
        if let Some(promise) = &step.promise {
            assert_eq!(output.trim_end(), promise, "{}", step.command);
        }
    }
}

/// Runs a line in the repository's root, with the Python that has the libraries.
fn in_folder(python: &Path, line: &str) -> String {
    let root = repository();
    let line = line.replace("python3 ", &format!("{} ", python.display()));
    shell(&format!("cd {}; {line}", root.display()))
}

#[test]
fn every_command_of_the_gateways_page_does_what_it_says() {
    walk("docs/gateway.md", 12);
}

#[test]
fn every_command_of_the_examples_page_does_what_it_says() {
    walk("examples/README.md", 3);
}

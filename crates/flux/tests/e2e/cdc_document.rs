//! The commands of `docs/cdc.md`, as they stand there, in their order.

use crate::harness::document::steps;
use crate::harness::{FLUX, Process, Start, command, have, repository, run};

/// The command with the addresses of the process under test instead of the default ones.
fn addressed(command: &str, process: &Process) -> String {
    let port = |address: std::net::SocketAddr| address.port();
    let grpc = port(process.addresses().grpc.expect("a node has gRPC"));
    command
        .replace(
            "localhost:8080",
            &format!("localhost:{}", port(process.http())),
        )
        .replace(
            "localhost:9180",
            &format!("localhost:{}", port(process.admin())),
        )
        .replace(
            "target/release/flux cli watch",
            &format!("{FLUX} cli watch --grpc-port {grpc}"),
        )
        .replace(
            "target/release/flux cli",
            &format!("{FLUX} cli -p {}", port(process.resp())),
        )
}

#[test]
fn every_command_of_the_page_about_changes_does_what_it_says() {
    if !have("curl", "commands of docs/cdc.md") {
        return;
    }
    let text = std::fs::read_to_string(repository().join("docs/cdc.md"));
    let commands = steps(&text.expect("there is a page about changes"), "sh test");
    assert!(commands.len() > 10, "{commands:?}");
    let process = Start::all().ready();
    for step in &commands {
        let line = &step.command;
        // A stream that is cut by `--max-time` is a failure to curl, so pipes may fail.
        let mut bash = command("bash");
        bash.args(["-c", &addressed(line, &process)])
            .current_dir(process.folder());
        let output = run(&mut bash, b"");
        let said = String::from_utf8_lossy(&output.stdout);
        let promise = step.promise.as_deref();
        assert_eq!(Some(said.trim_end()), promise, "{line}\n{output:?}");
    }
}

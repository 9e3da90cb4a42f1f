//! The commands of `docs/cdc.md`, as they stand there, in their order.

use crate::harness::{FLUX, Process, Start, command, have, repository, run};

/// The lines of the blocks marked `sh test`, with what the comment behind each promises.
fn commands() -> Vec<(String, String)> {
    let path = repository().join("docs/cdc.md");
    let text = std::fs::read_to_string(path).expect("there is a page about changes");
    let mut commands = Vec::new();
    let mut is_inside = false;
    for line in text.lines() {
        if let Some(info) = line.strip_prefix("```") {
            is_inside = info.trim() == "sh test";
        } else if is_inside {
            let (command, promise) = line
                .rsplit_once(" # ")
                .expect("each line promises something");
            commands.push((command.trim().to_owned(), promise.trim().to_owned()));
        }
    }
    commands
}

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
    let commands = commands();
    assert!(commands.len() > 10, "{commands:?}");
    let process = Start::all().ready();
    for (line, promise) in &commands {
        // A stream that is cut by `--max-time` is a failure to curl, so pipes may fail.
        let mut bash = command("bash");
        bash.args(["-c", &addressed(line, &process)])
            .current_dir(process.folder());
        let output = run(&mut bash, b"");
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(said.trim_end(), promise, "{line}\n{output:?}");
    }
}

//! The commands of README.md, as they stand there, in their order.

use std::process::{Child, Stdio};

use crate::harness::document::{Step, steps};
use crate::harness::etcd::Etcd;
use crate::harness::rabbit::Broker;
use crate::harness::{FLUX, Process, Start, command, have, repository, run, shell, wait_until};

/// The commands of the blocks so marked.
fn commands(mark: &str) -> Vec<Step> {
    let text = std::fs::read_to_string(repository().join("README.md")).expect("there is a README");
    steps(&text, mark)
}

/// The command with the addresses of the process under test instead of the default ones.
fn addressed(command: &str, process: &Process) -> String {
    let resp = process.resp().port();
    let grpc = process.addresses().grpc.map_or(0, |grpc| grpc.port());
    command
        .replace(
            "localhost:8080",
            &format!("localhost:{}", process.http().port()),
        )
        .replace(
            "localhost:9180",
            &format!("localhost:{}", process.admin().port()),
        )
        .replace("-p 7379", &format!("-p {resp}"))
        .replace(
            "target/release/flux cli watch",
            &format!("{FLUX} cli watch --grpc-port {grpc}"),
        )
        .replace("target/release/flux cli", &format!("{FLUX} cli -p {resp}"))
        .replace("curl ", "curl -sS --fail-with-body ")
}

#[test]
fn every_command_of_the_readme_does_what_it_says() {
    if !have("curl", "README commands") || !have("redis-cli", "README commands") {
        return;
    }
    let commands = commands("sh test");
    assert!(commands.len() > 10, "{commands:?}");
    let process = Start::all().ready();
    for Step { command, promise } in &commands {
        let line = addressed(command, &process);
        assert!(
            !line.contains("7379") && !line.contains(":8080"),
            "not addressed: {line}"
        );
        let output = shell(&line);
        if let Some(promise) = promise {
            assert_eq!(output.trim_end(), promise, "{command}");
        }
    }
}

#[test]
fn after_a_kill_the_first_answers_come_again() {
    if !have("curl", "README commands") || !have("redis-cli", "README commands") {
        return;
    }
    let mut process = Start::all().ready();
    let commands: Vec<_> = commands("sh test").into_iter().take(4).collect();
    for _ in 0..2 {
        for Step { command, promise } in &commands {
            let output = shell(&addressed(command, &process));
            assert_eq!(Some(output.trim_end()), promise.as_deref(), "{command}");
        }
        process = Start::all().over(process.kill()).ready();
    }
    // Reading alone, without the write of the first line.
    for Step { command, promise } in commands.iter().skip(1) {
        let output = shell(&addressed(command, &process));
        assert_eq!(Some(output.trim_end()), promise.as_deref(), "{command}");
    }
}

#[test]
fn the_banner_suggests_three_commands_that_work() {
    if !have("curl", "README commands") || !have("redis-cli", "README commands") {
        return;
    }
    let process = Start::all().ready();
    let suggestions = process.suggestions();
    assert_eq!(suggestions.len(), 3, "{suggestions:?}");
    let folder = process.folder().display();
    let answers: Vec<_> = suggestions
        .iter()
        .map(|line| shell(&format!("cd {folder}; {line}")))
        .collect();
    assert_eq!(
        answers,
        ["{\"success\":true}", "world\n", "world\n"],
        "{suggestions:?}"
    );
}

fn borrowed(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

/// The consumer of the quick start; killed when dropped.
struct Terminal(Child);

impl Drop for Terminal {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn the_quick_start_with_etcd_and_rabbitmq_does_what_it_says() {
    const NAME: &str = "README by hand";
    if !have("curl", NAME) {
        return;
    }
    let (Some(etcd), Some(broker)) = (Etcd::start(NAME), Broker::start(NAME)) else {
        return;
    };
    let commands = commands("sh test by hand");
    let words = |program: &str| -> Vec<String> {
        let start = format!("target/release/flux {program} ");
        let line = commands
            .iter()
            .find_map(|step| step.command.strip_prefix(&start));
        line.expect("it is one of the lines")
            .replace("127.0.0.1:2379", &etcd.address())
            .replace("amqp://guest:guest@127.0.0.1:5672/%2f", &broker.url("%2f"))
            .split_whitespace()
            .map(str::to_owned)
            .collect()
    };
    let (server, gateway, consumer) = (words("server"), words("gateway"), words("cdc-consumer"));
    let node = Start::node().args(&borrowed(&server)).ready();
    let gateway = Start::discovering(&borrowed(&gateway)).ready();
    let folder = tempfile::tempdir().expect("a folder");
    let printed = folder.path().join("printed");
    let output = std::fs::File::create(&printed).expect("a file");
    let _terminal = Terminal(
        command(FLUX)
            .arg("cdc-consumer")
            .args(consumer)
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary starts"),
    );
    // Whoever types the last line has waited for as long as that takes.
    let known = format!("http://{}/api/v1/kv?key=none", gateway.http());
    wait_until("the gateway to find the node", || {
        run(command("curl").args(["-fsS", &known]), b"")
            .status
            .success()
    });
    let last = commands.last().expect("the block has lines");
    let curl = last
        .command
        .replace("localhost:8080", &gateway.http().to_string())
        .replace("curl ", "curl -sS --fail-with-body ");
    assert_eq!(Some(shell(&curl).trim_end()), last.promise.as_deref());
    wait_until("the change to arrive", || {
        let text = std::fs::read_to_string(&printed).expect("it was created");
        text.contains("SET     hello = \"world\"")
    });
    drop(node);
}

//! The commands of README.md, as they stand there, in their order.

use crate::harness::{FLUX, Process, Start, have, repository, shell};

/// The lines of the blocks marked `sh test`, with what the comment behind each promises.
fn commands() -> Vec<(String, Option<String>)> {
    let text = std::fs::read_to_string(repository().join("README.md")).expect("there is a README");
    let mut commands = Vec::new();
    let mut is_inside = false;
    for line in text.lines() {
        if let Some(info) = line.strip_prefix("```") {
            is_inside = info.trim() == "sh test";
        } else if is_inside && !line.trim().is_empty() {
            let (command, promise) = match line.split_once(" # ") {
                Some((command, promise)) => (command, Some(promise.trim().to_owned())),
                None => (line, None),
            };
            commands.push((command.trim().to_owned(), promise));
        }
    }
    commands
}

/// The command with the addresses of the process under test instead of the default ones.
fn addressed(command: &str, process: &Process) -> String {
    let resp = process.resp().port();
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
        .replace("target/release/flux cli", &format!("{FLUX} cli -p {resp}"))
        .replace("curl ", "curl -sS --fail-with-body ")
}

#[test]
fn every_command_of_the_readme_does_what_it_says() {
    if !have("curl", "README commands") || !have("redis-cli", "README commands") {
        return;
    }
    let commands = commands();
    assert!(commands.len() > 10, "{commands:?}");
    let process = Start::all().ready();
    for (command, promise) in &commands {
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
    let commands: Vec<_> = commands().into_iter().take(4).collect();
    for _ in 0..2 {
        for (command, promise) in &commands {
            let output = shell(&addressed(command, &process));
            assert_eq!(Some(output.trim_end()), promise.as_deref(), "{command}");
        }
        process = Start::all().over(process.kill()).ready();
    }
    // Reading alone, without the write of the first line.
    for (command, promise) in commands.iter().skip(1) {
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

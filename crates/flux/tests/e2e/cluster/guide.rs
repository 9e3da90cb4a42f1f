//! The walk-through of docs/replication.md, as it stands there.

use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt as _;
use std::process::Stdio;

use crate::harness::document::steps;
use crate::harness::{FLUX, command, repository, wait_until};

/// Beginnings of the ports that the document names; a node's number follows.
const PORTS: [&str; 4] = ["738", "516", "919", "739"];

/// A beginning of ports that are free for the numbers 1 to 3, from `first` on.
fn free_beginning(first: u16) -> u16 {
    (first..3000)
        .find(|beginning| {
            let is_free =
                |number| TcpListener::bind((Ipv4Addr::LOCALHOST, beginning * 10 + number));
            (1..=3).all(|number| is_free(number).is_ok())
        })
        .expect("some ports below the ephemeral ones are free")
}

#[test]
fn the_walk_through_of_three_nodes_works_as_it_is_written() {
    let path = repository().join("docs/replication.md");
    let mut text = std::fs::read_to_string(path).expect("the document is there");
    // In two steps, because a free port may hold the digits of another.
    for (index, port) in PORTS.iter().enumerate() {
        text = text.replace(port, &format!("<port {index}>"));
    }
    // Not those of another run of this test at the same time.
    let mut first = 1000 + u16::try_from(std::process::id() % 1500).unwrap_or(0);
    for index in 0..PORTS.len() {
        first = free_beginning(first) + 1;
        text = text.replace(&format!("<port {index}>"), &(first - 1).to_string());
    }
    let text = text.replace("target/release/flux", FLUX);
    let mut script = String::from("mkdir flux-data\n");
    for step in steps(&text) {
        let command = step.command;
        script.push_str(&match step.promise {
            Some(promise) => format!(
                "found=$({command}); [ \"$found\" = '{promise}' ] || {{ echo '{command}': \"$found\"; exit 1; }}\n"
            ),
            None => format!("{command}\n"),
        });
    }
    script.push_str("wait\necho walked\n");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let output = folder.path().join("output.txt");
    let file = std::fs::File::create(&output).expect("a file for what it says");
    let mut shell = command("bash");
    shell
        .args(["-c", &script])
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .stderr(file.try_clone().expect("one file for both"))
        .stdout(file)
        .process_group(0);
    let mut shell = shell.spawn().expect("a shell");
    let group = rustix::process::Pid::from_raw(shell.id().cast_signed()).expect("a pid is not 0");
    let mut ended = None;
    let walked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        wait_until("the walk-through ends", || {
            ended = shell.try_wait().expect("a child can be waited for");
            ended.is_some()
        });
    }));
    // Whatever it has left behind.
    let signal = rustix::process::Signal::KILL;
    let _was_there = rustix::process::kill_process_group(group, signal).is_ok();
    let said = std::fs::read_to_string(&output).unwrap_or_default();
    assert!(
        walked.is_ok() && said.ends_with("walked\n"),
        "{script}\n{said}"
    );
}

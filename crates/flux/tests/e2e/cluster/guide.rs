//! The commands of docs/cluster.md, in one shell, as somebody types them.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process_group};

use crate::harness::document::{Step, steps};
use crate::harness::{FLUX, command, free_port, have, repository, wait_until};

/// The documented ports; each is replaced by a free one.
const PORTS: [u16; 4] = [7370, 9170, 7390, 50_050];
/// Stands between what two lines have printed.
const MARK: &str = "<<<";

/// The line with looked up ports, those that end in a variable included, and the binary under test.
fn addressed(line: &str) -> String {
    let mut line = line.replace("target/release/flux", FLUX);
    for port in PORTS {
        let tens = port / 10;
        for variable in ["1", "n", "first", "second"] {
            let written = format!("{tens}${variable}");
            line = line.replace(&written, &format!("${{P[{port}+${variable}]}}"));
        }
        for number in port + 1..=port + 3 {
            line = line.replace(&number.to_string(), &format!("${{P[{number}]}}"));
        }
    }
    line
}

/// One script that runs all lines, in a folder, and leaves no process behind.
fn script(lines: &[Step], folder: &Path) -> String {
    let folder = folder.display();
    // An indexed array of ports: its subscripts are arithmetic.
    let mut script =
        format!("set -u\ncd {folder}\ntrap 'kill -9 $(jobs -p) 2>/dev/null' EXIT\ndeclare -a P\n");
    let mut taken = BTreeMap::new();
    for number in PORTS.iter().flat_map(|port| port + 1..=port + 3) {
        let free = std::iter::repeat_with(free_port)
            .find(|port| !taken.values().any(|other| other == port));
        taken.insert(number, free.expect("there are free ports"));
    }
    for (number, free) in &taken {
        writeln!(script, "P[{number}]={free}").expect("into memory");
    }
    for (number, step) in lines.iter().enumerate() {
        writeln!(
            script,
            "{}\necho '{MARK}{number}'",
            addressed(&step.command)
        )
        .expect("into memory");
    }
    script
}

#[test]
fn every_command_of_the_page_about_three_nodes_does_what_it_says() {
    const NAME: &str = "docs/cluster.md";
    if !have("curl", NAME) || !have("redis-cli", NAME) {
        return;
    }
    let text = std::fs::read_to_string(repository().join("docs/cluster.md"));
    let lines = steps(&text.expect("there is a page"), "sh test cluster");
    assert!(lines.len() > 15, "{lines:?}");
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str| File::create(folder.path().join(name)).expect("a file");
    let mut shell = command("bash");
    shell
        .args(["-c", &script(&lines, folder.path())])
        .stdin(Stdio::null())
        .stdout(file("printed"))
        .stderr(file("said"))
        .process_group(0);
    let mut shell = shell.spawn().expect("a shell");
    let group = Pid::from_raw(shell.id().cast_signed()).expect("a process has a number");
    let ended = catch_unwind(AssertUnwindSafe(|| {
        wait_until("the page's commands to end", || {
            shell
                .try_wait()
                .expect("a child can be waited for")
                .is_some()
        });
    }));
    // Whatever it has left behind.
    let _was_there = kill_process_group(group, Signal::KILL).is_ok();
    let text = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap_or_default();
    let (printed, said) = (text("printed"), text("said"));
    assert!(ended.is_ok(), "{printed}\n{said}");
    let mut rest = printed.as_str();
    for (number, step) in lines.iter().enumerate() {
        let line = &step.command;
        let mark = format!("{MARK}{number}\n");
        let Some((seen, after)) = rest.split_once(&mark) else {
            panic!("{line} did not end\n{printed}\n{said}");
        };
        rest = after;
        if let Some(promise) = &step.promise {
            assert_eq!(seen.trim_end(), promise, "{line}\n{said}");
        }
        if line.contains("SET from-") {
            assert_eq!(seen, "OK\nOK\n", "{line}\n{said}");
        }
    }
}

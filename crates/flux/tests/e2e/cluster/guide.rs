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

/// A page whose commands are followed.
struct Page {
    name: &'static str,
    /// The mark of the blocks with commands.
    mark: &'static str,
    /// Ports that end in the number of a node, without that; each is replaced by a free one.
    by_node: &'static [u16],
    /// How many nodes there are.
    nodes: u16,
    /// Other ports.
    others: &'static [u16],
    /// What must be installed.
    programs: &'static [&'static str],
}

/// Stands between what two lines have printed.
const MARK: &str = "<<<";

/// The line with looked up ports, those that end in a variable included, and the binary under test.
fn addressed(page: &Page, line: &str) -> String {
    let mut line = line.replace("target/release/flux", FLUX);
    for port in page.by_node {
        let tens = port / 10;
        for variable in ["1", "n", "first", "second"] {
            let written = format!("{tens}${variable}");
            line = line.replace(&written, &format!("${{P[{port}+${variable}]}}"));
        }
    }
    for number in page.ports() {
        line = line.replace(&number.to_string(), &format!("${{P[{number}]}}"));
    }
    line
}

impl Page {
    fn ports(&self) -> impl Iterator<Item = u16> {
        let of_nodes = self.by_node.iter();
        let of_nodes = of_nodes.flat_map(|port| port + 1..=port + self.nodes);
        of_nodes.chain(self.others.iter().copied())
    }
}

/// One script that runs all lines, in a folder, and leaves no process behind.
fn script(page: &Page, lines: &[Step], folder: &Path) -> String {
    let folder = folder.display();
    // An indexed array of ports: its subscripts are arithmetic.
    let mut script =
        format!("set -u\ncd {folder}\ntrap 'kill -9 $(jobs -p) 2>/dev/null' EXIT\ndeclare -a P\n");
    let mut taken = BTreeMap::new();
    for number in page.ports() {
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
            addressed(page, &step.command)
        )
        .expect("into memory");
    }
    script
}

#[test]
fn every_command_of_the_page_about_three_nodes_does_what_it_says() {
    let page = Page {
        name: "docs/cluster.md",
        mark: "sh test cluster",
        by_node: &[7370, 9170, 7390, 50_050],
        nodes: 3,
        others: &[],
        programs: &["curl", "redis-cli"],
    };
    for (line, seen) in follow(&page) {
        if line.contains("SET from-") {
            assert_eq!(seen, "OK\nOK\n", "{line}");
        }
    }
}

#[test]
fn every_command_of_the_page_about_growing_does_what_it_says() {
    follow(&Page {
        name: "docs/growing.md",
        mark: "sh test growth",
        by_node: &[7370, 9170, 7390, 50_050],
        nodes: 5,
        others: &[2379, 2380, 8080, 9180],
        programs: &["curl", "redis-cli", "etcd", "etcdctl"],
    });
}

#[test]
fn every_command_about_a_node_that_gets_company_does_what_it_says() {
    follow(&Page {
        name: "docs/growing.md",
        mark: "sh test alone",
        by_node: &[7370, 9170, 7390, 50_050],
        nodes: 3,
        others: &[8080],
        programs: &["redis-cli"],
    });
}

/// Does what a page says; answers each line with what it printed, after it was compared with what
/// the page promises.
fn follow(page: &Page) -> Vec<(String, String)> {
    if !page.programs.iter().all(|program| have(program, page.name)) {
        return Vec::new();
    }
    let text = std::fs::read_to_string(repository().join(page.name));
    let lines = steps(&text.expect("there is a page"), page.mark);
    assert!(lines.len() > 15, "{lines:?}");
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str| File::create(folder.path().join(name)).expect("a file");
    let mut shell = command("bash");
    shell
        .args(["-c", &script(page, &lines, folder.path())])
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
    let mut all = Vec::new();
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
        all.push((line.clone(), seen.to_owned()));
    }
    all
}

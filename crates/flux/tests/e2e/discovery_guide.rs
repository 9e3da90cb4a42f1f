//! The commands of docs/discovery.md, as they stand there, in their order.

use std::os::unix::process::CommandExt as _;
use std::process::{Child, Stdio};

use crate::harness::etcd::Etcd;
use crate::harness::{FLUX, command, flux, free_port, have, repository, run, stdout, wait_until};

/// The ports that the document names; each stands for a free one.
const PORTS: [&str; 7] = ["2379", "7401", "50101", "9201", "8401", "9401", "50201"];

/// The blocks of a document with their info strings.
fn blocks(text: &str) -> Vec<(String, Vec<String>)> {
    let mut blocks = Vec::new();
    let mut open: Option<(String, Vec<String>)> = None;
    for line in text.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(info)) => open = Some((info.trim().to_owned(), Vec::new())),
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some((_, lines)), None) => lines.push(line.to_owned()),
            (None, None) => {}
        }
    }
    blocks
}

/// What runs in the background; killed when dropped.
struct Background(Vec<Child>);

impl Drop for Background {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // Each leads a group of its own: the shell and what it started.
            let pid = rustix::process::Pid::from_raw(child.id().cast_signed());
            let signal = rustix::process::Signal::KILL;
            let _was_there =
                pid.is_some_and(|pid| rustix::process::kill_process_group(pid, signal).is_ok());
            drop(child.wait());
        }
    }
}

/// Where the guide is followed: a folder, an etcd, and free ports instead of those it names.
struct Desk {
    client: String,
    folder: tempfile::TempDir,
    ports: Vec<(&'static str, String)>,
    background: Background,
}

impl Desk {
    fn new(etcd: &Etcd) -> Self {
        let client = etcd.address();
        let mut ports: Vec<_> = PORTS
            .iter()
            .map(|port| (*port, free_port().to_string()))
            .collect();
        ports[0].1 = client.rsplit(':').next().expect("a port").to_owned();
        Self {
            client,
            folder: tempfile::tempdir().expect("a temporary folder"),
            ports,
            background: Background(Vec::new()),
        }
    }

    /// The text as it is right here.
    fn here(&self, text: &str) -> String {
        // In two steps, because a free port may hold the digits of another.
        let mut moved = text.to_owned();
        for (index, (port, _)) in self.ports.iter().enumerate() {
            moved = moved.replace(port, &format!("<port {index}>"));
        }
        for (index, (_, free)) in self.ports.iter().enumerate() {
            moved = moved.replace(&format!("<port {index}>"), free);
        }
        moved
            .replace("target/release/flux", FLUX)
            .replace("curl ", "curl -sS --fail-with-body ")
            .replace("etcdctl ", &format!("etcdctl --endpoints {} ", self.client))
    }

    fn shell(&self, line: &str) -> std::process::Command {
        let mut bash = command("bash");
        bash.args(["-euo", "pipefail", "-c", line]);
        bash.current_dir(self.folder.path()).env("ETCDCTL_API", "3");
        bash
    }

    /// Types one line.
    fn command(&mut self, line: &str) {
        if line.starts_with("etcd ") {
            // It runs already.
            return;
        }
        if let Some(line) = line.strip_suffix(" &") {
            let mut bash = self.shell(&format!("exec {}", self.here(line)));
            bash.stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .process_group(0);
            self.background.0.push(bash.spawn().expect("it starts"));
            return;
        }
        // A person types more slowly than a process starts.
        let (line, promise) = line
            .split_once(" # ")
            .expect("a command promises something");
        let (line, promise) = (self.here(line), self.here(promise));
        wait_until(&format!("{line}\n  to answer {promise}"), || {
            let output = run(&mut self.shell(&line), b"");
            String::from_utf8_lossy(&output.stdout).trim_end() == promise
        });
    }

    /// Lets flux judge a configuration file.
    fn config(&self, lines: &[String]) {
        let text = self.here(&lines.join("\n"));
        std::fs::write(self.folder.path().join("guide.toml"), text).expect("a file");
        let args = ["config", "--check", "--config", "guide.toml"];
        stdout(&flux(self.folder.path(), &args));
    }
}

#[test]
fn every_command_of_the_guide_does_what_it_says() {
    let test = "commands of docs/discovery.md";
    if !have("curl", test) || !have("python3", test) {
        return;
    }
    let Some(etcd) = Etcd::start(test) else {
        return;
    };
    let text = std::fs::read_to_string(repository().join("docs/discovery.md"));
    let mut desk = Desk::new(&etcd);
    let (mut commands, mut files) = (0, 0);
    for (info, lines) in &blocks(&text.expect("there is a guide")) {
        match info.as_str() {
            "toml" => {
                desk.config(lines);
                files += 1;
            }
            "sh test" => {
                lines.iter().for_each(|line| desk.command(line));
                commands += lines.len();
            }
            _ => {}
        }
    }
    assert!(
        commands >= 10 && files >= 1,
        "{commands} commands, {files} files"
    );
}

//! A real etcd: started on free ports, killed, wiped and started again on the same ones.

use std::os::unix::process::CommandExt as _;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::{PATIENCE, command, free_port, have, run, stdout};

/// One member that is a cluster; killed when dropped.
pub(crate) struct Etcd {
    folder: TempDir,
    client: u16,
    peer: u16,
    child: Option<Child>,
}

impl Etcd {
    /// Starts one; `None` if there is no etcd here, which is reported for `test`.
    pub(crate) fn start(test: &str) -> Option<Self> {
        if !have("etcd", test) || !have("etcdctl", test) {
            return None;
        }
        // Somebody may take a port between its choice and its use: then with others.
        for _ in 0..5 {
            let mut etcd = Self {
                folder: tempfile::tempdir().expect("a temporary folder"),
                client: free_port(),
                peer: free_port(),
                child: None,
            };
            if etcd.spawn() {
                return Some(etcd);
            }
        }
        panic!("etcd does not start");
    }

    /// `host:port` for clients.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.client)
    }

    /// Whether it answers in time.
    fn spawn(&mut self) -> bool {
        let client = format!("http://{}", self.address());
        let peer = format!("http://127.0.0.1:{}", self.peer);
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.folder.path().join("etcd.log"))
            .expect("a log file");
        let mut etcd = command("etcd");
        etcd.args(["--name", "e0", "--data-dir"])
            .arg(self.folder.path().join("data"))
            .args([
                "--listen-client-urls",
                &client,
                "--advertise-client-urls",
                &client,
            ])
            .args([
                "--listen-peer-urls",
                &peer,
                "--initial-advertise-peer-urls",
                &peer,
            ])
            .args(["--initial-cluster", &format!("e0={peer}")])
            .args(["--logger", "zap", "--log-outputs", "stderr"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .process_group(0);
        self.child = Some(etcd.spawn().expect("etcd starts"));
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let child = self.child.as_mut().expect("it was started");
            if child.try_wait().expect("a child can be asked").is_some() {
                return false;
            }
            let mut health = self.etcdctl(&["endpoint", "health", "--command-timeout", "2s"]);
            let health = run(&mut health, b"");
            // One that asks for a password answers, too.
            let told = String::from_utf8_lossy(&health.stderr);
            if health.status.success() || told.contains("user name is empty") {
                return true;
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
        false
    }

    fn etcdctl(&self, args: &[&str]) -> std::process::Command {
        let mut etcdctl = command("etcdctl");
        etcdctl
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.address()])
            .args(args);
        etcdctl
    }

    /// Runs etcdctl; answers its standard output.
    pub(crate) fn ctl(&self, args: &[&str]) -> String {
        // A busy machine needs longer than the five seconds that are etcdctl's patience.
        let args = [args, &["--command-timeout", "50s"]].concat();
        stdout(&run(&mut self.etcdctl(&args), b""))
    }

    /// Runs etcdctl, whatever it says.
    pub(crate) fn try_ctl(&self, args: &[&str]) -> String {
        let output = run(&mut self.etcdctl(args), b"");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The keys below a prefix.
    pub(crate) fn keys(&self, prefix: &str) -> Vec<String> {
        let keys = self.try_ctl(&["get", "--prefix", "--keys-only", prefix]);
        keys.lines()
            .filter(|line| !line.is_empty())
            .map(str::to_owned)
            .collect()
    }

    /// The first pair below a prefix as etcdctl's JSON has it: lease, revisions.
    pub(crate) fn json(&self, prefix: &str) -> serde_json::Value {
        let text = self.ctl(&["get", "--prefix", "--write-out", "json", prefix]);
        serde_json::from_str(&text).expect("etcdctl writes JSON")
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let pid = Pid::from_raw(child.id().cast_signed()).expect("a pid is not 0");
            let _was_there = kill_process(pid, Signal::KILL).is_ok();
            child.wait().expect("a child can be waited for");
        }
    }

    /// Removes everything it knows; it must have been killed.
    pub(crate) fn wipe(&mut self) {
        assert!(self.child.is_none(), "it still runs");
        std::fs::remove_dir_all(self.folder.path().join("data")).expect("its data are there");
    }

    /// Starts again on the same ports.
    pub(crate) fn restart(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.spawn() {
            self.kill();
            assert!(Instant::now() < deadline, "etcd does not come back");
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

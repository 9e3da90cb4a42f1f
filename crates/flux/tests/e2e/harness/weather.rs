//! The weather service of `examples/`, as a process of its own.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};

use super::{command, repository};

/// The running service; killed when dropped.
pub(crate) struct Weather {
    child: Child,
    /// Where it listens.
    pub(crate) port: u16,
}

impl Weather {
    /// Starts it on a free port and waits until it says where.
    pub(crate) fn start(python: &Path) -> Self {
        let mut command = command(repository().join("examples/weather/run"));
        command
            .arg("127.0.0.1:0")
            .env("PYTHON", python)
            .stdout(Stdio::piped());
        let mut child = command.spawn().expect("the service starts");
        let stdout = child.stdout.take().expect("standard output is piped");
        let line = BufReader::new(stdout).lines().next();
        let line = line.expect("it says where it listens").expect("text");
        let port = line
            .rsplit_once(':')
            .and_then(|(_, port)| port.parse().ok())
            .expect("HOST:PORT");
        Self { child, port }
    }
}

impl Drop for Weather {
    fn drop(&mut self) {
        let _was_running = self.child.kill().is_ok();
        let _has_ended = self.child.wait().is_ok();
    }
}

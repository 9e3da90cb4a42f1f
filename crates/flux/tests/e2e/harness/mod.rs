//! Processes under test: started on free ports, waited for with deadlines, never left behind.

pub(crate) mod document;
pub(crate) mod etcd;
pub(crate) mod otlp;
pub(crate) mod rabbit;
pub(crate) mod resp;
pub(crate) mod weather;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long anything may take before a test gives up. Far beyond what is normal, because the
/// machine may be busy; no test waits for it when things go right.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The binary under test.
pub(crate) const FLUX: &str = env!("CARGO_BIN_EXE_flux");

/// A command with nothing of the caller's environment but where programs are.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env_clear();
    for name in ["PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command.env("NO_COLOR", "1");
    command
}

/// Numbers that look random; whoever draws them prints the seed when it fails.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// One request on a connection of its own, with a body of JSON; status and body.
pub(crate) fn request(
    address: SocketAddr,
    line: &str,
    body: &str,
) -> std::io::Result<(u16, String)> {
    request_for("*/*", PATIENCE, address, (line, body))
}

/// Status and body of a page.
pub(crate) fn get(address: SocketAddr, path: &str) -> (u16, String) {
    request(address, &format!("GET {path}"), "").expect("it answers")
}

/// The value of a series, if it is exported.
pub(crate) fn metric(process: &Process, series: &str) -> Option<f64> {
    let (_, text) = get(process.admin(), "/metrics");
    text.lines()
        .find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
}

/// The body of a page as JSON, of a process that may be gone or stand still.
pub(crate) fn get_json(address: SocketAddr, path: &str) -> Option<serde_json::Value> {
    let limit = Duration::from_secs(5);
    let line = format!("GET {path}");
    let answer = request_for("application/json", limit, address, (&line, ""));
    serde_json::from_str(&answer.ok()?.1).ok()
}

fn request_for(
    accept: &str,
    limit: Duration,
    address: SocketAddr,
    (line, body): (&str, &str),
) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(limit))?;
    let length = body.len();
    write!(
        stream,
        "{line} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\naccept: {accept}\r\n\
         content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .ok_or_else(|| std::io::Error::other("no status"))?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Ok((status, body.to_owned()))
}

/// The root of the repository.
pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .expect("the crate lies in its repository")
}

/// Reports a test that cannot run here; `scripts/test` lists it.
pub(crate) fn skip(name: &str, reason: &str) {
    eprintln!("SKIPPED {name}: {reason}");
    if let Some(path) = std::env::var_os("FLUX_TEST_SKIPPED") {
        let mut file = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .expect("the list of skipped tests is writable");
        writeln!(file, "{name}: {reason}").expect("the list of skipped tests is writable");
    }
}

/// Whether a program is on the path; if not, `test` is reported as skipped.
pub(crate) fn have(program: &str, test: &str) -> bool {
    let found = std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
    });
    if !found {
        skip(test, &format!("{program} is not installed"));
    }
    found
}

/// The Python with the client libraries; if there is none, `test` is reported as skipped.
pub(crate) fn python(test: &str) -> Option<PathBuf> {
    let local = repository().join("target/test-venv/bin/python");
    let found = std::env::var_os("FLUX_TEST_PYTHON")
        .map(PathBuf::from)
        .or_else(|| local.is_file().then_some(local));
    if found.is_none() {
        skip(
            test,
            "no Python with the client libraries; scripts/test makes one",
        );
    }
    found
}

/// A port that was free a moment ago, for programs that cannot be told to choose one.
pub(crate) fn free_port() -> u16 {
    let listener =
        std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("it is bound").port()
}

/// Waits until `condition` holds.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "still waiting for: {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// Waits until `look` finds nothing wrong; says what it found last if that takes too long.
pub(crate) fn wait_right(what: &str, mut look: impl FnMut() -> Result<(), String>) {
    let deadline = Instant::now() + PATIENCE;
    while let Err(wrong) = look() {
        assert!(
            Instant::now() < deadline,
            "still waiting for: {what}: {wrong}"
        );
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// A process that is told how to start.
pub(crate) struct Start {
    subcommand: &'static str,
    args: Vec<String>,
    variables: BTreeMap<String, String>,
    wrapper: Vec<String>,
    folder: Option<TempDir>,
}

impl Start {
    /// `flux start` on free ports in a new folder.
    pub(crate) fn all() -> Self {
        Self::with(
            "start",
            &["--port", "--grpc-port", "--http-port", "--admin-port"],
        )
    }

    /// `flux server`.
    pub(crate) fn node() -> Self {
        Self::with("server", &["--port", "--grpc-port", "--admin-port"])
    }

    /// `flux gateway` in front of a gRPC address.
    pub(crate) fn gateway(upstream: SocketAddr) -> Self {
        Self::with("gateway", &["--http-port", "--admin-port"])
            .args(&["--upstream", &upstream.to_string()])
    }

    /// `flux gateway` that is told where to look for its upstream.
    pub(crate) fn discovering(args: &[&str]) -> Self {
        Self::with("gateway", &["--http-port", "--admin-port"]).args(args)
    }

    fn with(subcommand: &'static str, ports: &[&str]) -> Self {
        let args = ports
            .iter()
            .flat_map(|flag| [(*flag).to_owned(), "0".to_owned()])
            .collect();
        Self {
            subcommand,
            args,
            variables: BTreeMap::new(),
            wrapper: Vec::new(),
            folder: None,
        }
    }

    /// Starts it by another program, which must become it (or leave it our child).
    pub(crate) fn under(mut self, wrapper: &[&str]) -> Self {
        self.wrapper = wrapper.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    pub(crate) fn args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(|arg| (*arg).to_owned()));
        self
    }

    pub(crate) fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.insert(name.to_owned(), value.to_owned());
        self
    }

    /// On this port instead of any free one.
    pub(crate) fn port(mut self, flag: &str, port: u16) -> Self {
        let at = self.args.iter().position(|arg| arg == flag);
        let value = at.and_then(|at| self.args.get_mut(at + 1));
        *value.expect("the flag of a listener") = port.to_string();
        self
    }

    /// Starts over the folder of a process that has ended.
    pub(crate) fn over(mut self, folder: TempDir) -> Self {
        self.folder = Some(folder);
        self
    }

    /// Starts without waiting.
    pub(crate) fn spawn(self) -> Process {
        let folder = self
            .folder
            .unwrap_or_else(|| tempfile::tempdir().expect("a temporary folder"));
        let ready_file = folder.path().join("ready.json");
        let stderr = std::fs::File::create(folder.path().join("stderr.txt")).expect("a log file");
        let mut words = self.wrapper.iter().map(String::as_str).chain([FLUX]);
        let mut command = command(words.next().unwrap_or(FLUX));
        command
            .args(words)
            .arg(self.subcommand)
            .args(&self.args)
            .arg("--ready-file")
            .arg(&ready_file)
            .current_dir(folder.path())
            .envs(&self.variables)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr);
        let mut child = command.spawn().expect("the binary starts");
        let pid = child.id();
        let stdout = child.stdout.take().expect("standard output is piped");
        let (lines, stdout) = {
            let (sender, receiver) = channel();
            let thread = std::thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    // The test may have stopped listening.
                    drop(sender.send(line));
                }
            });
            (receiver, thread)
        };
        let (ended, status) = channel();
        std::thread::spawn(move || {
            let status = child.wait().expect("a child can be waited for");
            drop(stdout.join());
            // The test may be over.
            let _is_heard = ended.send(status).is_ok();
        });
        Process {
            pid,
            folder: Some(folder),
            ready_file,
            lines,
            banner: Vec::new(),
            status,
            ended: None,
            addresses: Addresses::default(),
        }
    }

    /// Starts and waits until everything is ready.
    pub(crate) fn ready(self) -> Process {
        let mut process = self.spawn();
        process.wait_ready();
        process
    }
}

/// The addresses of a ready file.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Addresses {
    pub(crate) resp: Option<SocketAddr>,
    pub(crate) grpc: Option<SocketAddr>,
    pub(crate) http: Option<SocketAddr>,
    pub(crate) admin: Option<SocketAddr>,
}

/// A process under test; killed when dropped.
pub(crate) struct Process {
    pub(crate) pid: u32,
    folder: Option<TempDir>,
    ready_file: PathBuf,
    lines: Receiver<String>,
    banner: Vec<String>,
    status: Receiver<ExitStatus>,
    ended: Option<ExitStatus>,
    addresses: Addresses,
}

impl Process {
    /// Waits for the banner and reads the ready file.
    pub(crate) fn wait_ready(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) if line.starts_with("Ctrl-C") => break,
                Ok(line) => self.banner.push(line),
                Err(error) => {
                    let stderr = self.stderr();
                    assert_eq!(
                        error,
                        RecvTimeoutError::Disconnected,
                        "not ready in time\n{stderr}"
                    );
                    let status = self.wait();
                    panic!("ended before it was ready: {status}\n{stderr}");
                }
            }
        }
        let text = std::fs::read_to_string(&self.ready_file).expect("ready, so the file is there");
        let json: serde_json::Value = serde_json::from_str(&text).expect("the ready file is JSON");
        assert_eq!(json["pid"], self.pid);
        let address = |name: &str| {
            json[name]
                .as_str()
                .map(|text| text.parse().expect("an address is IP:PORT"))
        };
        self.addresses = Addresses {
            resp: address("resp"),
            grpc: address("grpc"),
            http: address("http"),
            admin: address("admin"),
        };
    }

    /// The next line of standard output after the banner.
    pub(crate) fn line(&mut self, limit: Duration) -> String {
        let line = self.lines.recv_timeout(limit);
        line.unwrap_or_else(|error| panic!("no line: {error}\n{}", self.stderr()))
    }

    pub(crate) fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// The commands that the banner suggests.
    pub(crate) fn suggestions(&self) -> Vec<String> {
        let from = self
            .banner
            .iter()
            .position(|line| line == "Try:")
            .expect("it suggests");
        let lines = self
            .banner
            .iter()
            .skip(from + 1)
            .map(|line| line.trim().to_owned());
        lines.filter(|line| !line.is_empty()).collect()
    }

    pub(crate) fn resp(&self) -> SocketAddr {
        self.addresses.resp.expect("this process has a node")
    }

    pub(crate) fn http(&self) -> SocketAddr {
        self.addresses.http.expect("this process has a gateway")
    }

    pub(crate) fn admin(&self) -> SocketAddr {
        self.addresses
            .admin
            .expect("every process has an admin port")
    }

    /// The folder it was started in; its data is in `flux-data` there.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.as_ref().expect("not yet taken").path()
    }

    pub(crate) fn ready_file(&self) -> &Path {
        &self.ready_file
    }

    /// What it has written to standard error so far.
    pub(crate) fn stderr(&self) -> String {
        std::fs::read_to_string(self.folder().join("stderr.txt")).unwrap_or_default()
    }

    /// A new raw connection to the node.
    pub(crate) fn connect(&self) -> resp::Connection {
        resp::Connection::open(self.resp())
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.pid.cast_signed()).expect("a pid is not 0");
        // It may have ended by itself.
        let _was_there = rustix::process::kill_process(pid, signal).is_ok();
    }

    /// Waits for the end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        if let Some(status) = self.ended {
            return status;
        }
        let status = self
            .status
            .recv_timeout(PATIENCE)
            .expect("the process ends in time");
        self.ended = Some(status);
        status
    }

    /// SIGKILL; the folder remains for a successor.
    pub(crate) fn kill(mut self) -> TempDir {
        self.signal(rustix::process::Signal::KILL);
        self.wait();
        self.folder.take().expect("taken once")
    }

    /// SIGTERM; the folder remains for a successor.
    pub(crate) fn stop(mut self) -> TempDir {
        self.signal(rustix::process::Signal::TERM);
        let status = self.wait();
        assert_eq!(status.code(), Some(0), "{}", self.stderr());
        self.folder.take().expect("taken once")
    }

    /// The folder of a process that has ended.
    pub(crate) fn into_folder(mut self) -> TempDir {
        self.wait();
        self.folder.take().expect("taken once")
    }

    /// Resident memory in bytes.
    pub(crate) fn memory_bytes(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.pid))
            .expect("a living process has a status");
        let line = text
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .expect("it has memory");
        let kib: u64 = line
            .split_whitespace()
            .nth(1)
            .and_then(|number| number.parse().ok())
            .expect("VmRSS is a number of KiB");
        kib * 1024
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let Some(folder) = &self.folder else { return };
        if std::thread::panicking() {
            let stderr = std::fs::read_to_string(folder.path().join("stderr.txt"));
            eprintln!(
                "--- standard error of flux:\n{}",
                stderr.unwrap_or_default()
            );
        }
        if self.ended.is_none() {
            self.signal(rustix::process::Signal::KILL);
            let _has_ended = self.status.recv_timeout(PATIENCE).is_ok();
        }
    }
}

/// Runs a program to its end, with input.
pub(crate) fn run(command: &mut Command, input: &[u8]) -> Output {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child: Child = command.spawn().expect("the program starts");
    let mut stdin = child.stdin.take().expect("standard input is piped");
    let input = input.to_vec();
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let pid = rustix::process::Pid::from_raw(child.id().cast_signed()).expect("a pid is not 0");
    let (sender, receiver) = channel();
    std::thread::spawn(move || drop(sender.send(child.wait_with_output())));
    let Ok(output) = receiver.recv_timeout(PATIENCE) else {
        let _was_there = rustix::process::kill_process(pid, rustix::process::Signal::KILL).is_ok();
        let output = receiver
            .recv()
            .expect("a killed program ends")
            .expect("and is waited for");
        panic!("{command:?} hangs: {output:?}");
    };
    drop(writer.join());
    output.expect("a child can be waited for")
}

/// Runs `flux` to its end in a folder.
pub(crate) fn flux(folder: &Path, args: &[&str]) -> Output {
    run(command(FLUX).args(args).current_dir(folder), b"")
}

/// Standard output as text, of a program that succeeded.
pub(crate) fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).expect("text")
}

/// Runs a line in a shell and returns its standard output.
pub(crate) fn shell(line: &str) -> String {
    stdout(&run(
        command("bash").args(["-euo", "pipefail", "-c", line]),
        b"",
    ))
}

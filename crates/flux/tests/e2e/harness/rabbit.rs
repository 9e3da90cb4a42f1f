//! A real RabbitMQ of one's own: free ports, loopback only, its own epmd, killed when dropped.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::{command, free_port, have, run};

/// The user that the definitions of every broker have, and its password.
pub(crate) const USER: &str = "fluxadmin";
pub(crate) const PASSWORD: &str = "flux2026secure";

/// How long a boot may take: seconds of processor time, which a busy machine may not have.
const BOOT_PATIENCE: Duration = Duration::from_secs(240);

/// A running (or killed) broker over one folder.
pub(crate) struct Broker {
    folder: TempDir,
    ports: Ports,
    epmd: Child,
    wrapper: Option<Child>,
}

struct Ports {
    amqp: u16,
    distribution: u16,
    epmd: u16,
}

/// Debian's wrapper of the same name changes to another user; this is what it runs.
fn program(name: &str) -> PathBuf {
    let bare = Path::new("/usr/lib/rabbitmq/bin").join(name);
    if bare.is_file() {
        bare
    } else {
        PathBuf::from(name)
    }
}

impl Broker {
    /// Starts one and waits until it takes connections; `None`, and the test reported as skipped,
    /// where RabbitMQ is not installed. Needs `/` and the virtual hosts `other` and `split`; nobody may enter
    /// `locked`.
    pub(crate) fn start(test: &str) -> Option<Self> {
        // The wrapper of Debian lies where only root's path goes.
        let is_there = program("rabbitmq-server").is_absolute() || have("rabbitmq-server", test);
        if !is_there || !have("epmd", test) {
            return None;
        }
        let folder = tempfile::tempdir().expect("a temporary folder");
        let ports = Ports {
            amqp: free_port(),
            distribution: free_port(),
            epmd: free_port(),
        };
        for name in ["home", "mnesia", "log"] {
            fs::create_dir(folder.path().join(name)).expect("a new folder");
        }
        write(
            &folder,
            "rabbit.conf",
            &format!(
                "listeners.tcp.default = 127.0.0.1:{}\n\
             load_definitions = {}\n\
             disk_free_limit.absolute = 1MB\n\
             raft.wal_max_size_bytes = 16777216\n\
             log.file.level = warning\n",
                ports.amqp,
                folder.path().join("definitions.json").display(),
            ),
        );
        write(&folder, "definitions.json", &definitions());
        write(&folder, "plugins", "[].\n");
        let epmd = command("epmd")
            .args(["-address", "127.0.0.1", "-port", &ports.epmd.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("epmd starts");
        let mut broker = Self {
            folder,
            ports,
            epmd,
            wrapper: None,
        };
        broker.restart();
        Some(broker)
    }

    /// Starts it over its folder, after [`Broker::kill`].
    pub(crate) fn restart(&mut self) {
        self.boot();
        self.wait_ready();
    }

    /// As [`Broker::restart`], without waiting.
    pub(crate) fn boot(&mut self) {
        assert!(self.wrapper.is_none(), "it runs");
        // It is not there before the first start.
        drop(fs::remove_file(self.path("pid")));
        let log = fs::File::create(self.path("log/console.txt")).expect("a log file");
        let wrapper = self
            .environment(&program("rabbitmq-server"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .expect("the broker starts");
        self.wrapper = Some(wrapper);
    }

    /// Waits until it greets.
    pub(crate) fn wait_ready(&self) {
        let deadline = Instant::now() + BOOT_PATIENCE;
        while !greets(self.address()) {
            assert!(Instant::now() < deadline, "RabbitMQ does not greet");
            std::thread::park_timeout(Duration::from_millis(100));
        }
    }

    /// Everything that keeps it apart from every other broker of the machine.
    fn environment(&self, program: &Path) -> Command {
        let mut command = command(program);
        let path = |name: &str| self.path(name).into_os_string();
        command
            .current_dir(self.folder.path())
            .env("HOME", path("home"))
            .env("RABBITMQ_NODENAME", "flux@localhost")
            .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODE_PORT", self.ports.amqp.to_string())
            .env("RABBITMQ_DIST_PORT", self.ports.distribution.to_string())
            .env("RABBITMQ_MNESIA_BASE", path("mnesia"))
            .env("RABBITMQ_LOG_BASE", path("log"))
            .env("RABBITMQ_CONFIG_FILE", path("rabbit"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", path("plugins"))
            .env("RABBITMQ_PID_FILE", path("pid"))
            .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
            .env("ERL_EPMD_PORT", self.ports.epmd.to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env(
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                "-kernel inet_dist_use_interface {127,0,0,1} +sbwt none +sbwtdcpu none +sbwtdio none",
            );
        command
    }

    /// Runs `rabbitmqctl`.
    pub(crate) fn control(&self, args: &[&str]) -> Output {
        let mut command = self.environment(&program("rabbitmqctl"));
        run(command.args(args), b"")
    }

    pub(crate) fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.ports.amqp))
    }

    /// The URL of a virtual host, as it stands in a path.
    pub(crate) fn url(&self, vhost: &str) -> String {
        self.url_with(PASSWORD, vhost)
    }

    /// The same with a password of one's own.
    pub(crate) fn url_with(&self, password: &str, vhost: &str) -> String {
        format!("amqp://{USER}:{password}@{}/{vhost}", self.address())
    }

    /// Waits until the broker has on disk which quorum queues it has. RabbitMQ writes that some
    /// seconds after a declaration; a queue of a broker that is killed before never elects a leader
    /// again, and takes messages without ever confirming one.
    pub(crate) fn wait_queues_durable(&self) {
        let node = self.folder.path().join("mnesia/flux@localhost");
        let quorum = node.join("quorum/flux@localhost");
        let holds = |file: &str, id: &str| {
            fs::read(quorum.join(file))
                .is_ok_and(|bytes| bytes.windows(id.len()).any(|part| part == id.as_bytes()))
        };
        super::wait_until("the broker to have its queues on disk", || {
            let Ok(entries) = fs::read_dir(&quorum) else {
                return false;
            };
            let ids: Vec<String> = entries
                .filter_map(Result::ok)
                .filter(|entry| entry.path().is_dir())
                .map(|entry| entry.file_name().to_string_lossy().into_owned())
                .collect();
            !ids.is_empty()
                && ids
                    .iter()
                    .all(|id| holds("names.dets", id) && holds("meta.dets", id))
        });
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.signal(Signal::KILL);
        if let Some(mut wrapper) = self.wrapper.take() {
            wrapper.wait().expect("the wrapper ends with what it wraps");
        }
    }

    /// Sends a signal to the Erlang machine itself.
    pub(crate) fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid() {
            // It may have ended by itself.
            let _was_there = kill_process(pid, signal).is_ok();
        }
    }

    fn pid(&self) -> Option<Pid> {
        let text = fs::read_to_string(self.path("pid")).ok()?;
        Pid::from_raw(text.trim().parse().ok()?)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.path("log/console.txt"));
            eprintln!("--- console of RabbitMQ:\n{}", log.unwrap_or_default());
        }
        self.signal(Signal::KILL);
        if let Some(mut wrapper) = self.wrapper.take() {
            // It may not have got as far as writing its pid.
            drop(wrapper.kill());
            drop(wrapper.wait());
        }
        drop(self.epmd.kill());
        drop(self.epmd.wait());
    }
}

fn write(folder: &TempDir, name: &str, text: &str) {
    fs::write(folder.path().join(name), text).expect("a new file");
}

fn definitions() -> String {
    serde_json::json!({
        "users": [{"name": USER, "password": PASSWORD, "tags": "administrator"}],
        "vhosts": [{"name": "/"}, {"name": "other"}, {"name": "split"}, {"name": "locked"}],
        "permissions": [
            {"user": USER, "vhost": "/", "configure": ".*", "write": ".*", "read": ".*"},
            {"user": USER, "vhost": "other", "configure": ".*", "write": ".*", "read": ".*"},
            {"user": USER, "vhost": "split", "configure": ".*", "write": ".*", "read": ".*"},
        ],
    })
    .to_string()
}

/// Whether somebody answers AMQP's greeting with a method frame.
fn greets(address: SocketAddr) -> bool {
    use std::io::{Read, Write};
    let Ok(mut stream) = TcpStream::connect(address) else {
        return false;
    };
    let limit = Some(Duration::from_secs(5));
    let mut first = [0];
    stream.set_read_timeout(limit).is_ok()
        && stream.write_all(b"AMQP\x00\x00\x09\x01").is_ok()
        && stream.read_exact(&mut first).is_ok()
        && first == [1]
}

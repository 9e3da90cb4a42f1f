//! Registration and discovery with a real etcd: what is written, and that it comes back by itself.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::Signal;

use crate::harness::etcd::Etcd;
use crate::harness::resp::Value;
use crate::harness::{
    FLUX, Process, Start, command, free_port, get, have, metric, python, repository, request, run,
    skip, stdout, wait_until,
};

const KV: &str = "flux/services/flux.kv.v1.Kv/";

/// The line of a check in `/readyz?verbose`, which must say that the process is ready.
fn check(process: &Process, name: &str) -> String {
    let (status, text) = get(process.admin(), "/readyz?verbose");
    assert_eq!(status, 200, "{text}");
    let is_it = |line: &&str| line.get(3..).is_some_and(|rest| rest.starts_with(name));
    text.lines().find(is_it).unwrap_or_default().to_owned()
}

/// A node that registers in `etcd` under a short lease.
fn node(etcd: &Etcd, name: &str) -> Start {
    let etcd = etcd.address();
    let args = ["--etcd", &etcd, "--node-name", name, "--registry-ttl", "2s"];
    Start::node().args(&args)
}

fn wait_registered(etcd: &Etcd, name: &str) {
    let key = format!("{KV}{name}");
    wait_until("it is registered", || etcd.keys(KV).contains(&key));
}

/// Writes and reads a key through the gateway.
fn serves(gateway: &Process) -> bool {
    let set = request(
        gateway.http(),
        "POST /api/v1/kv",
        r#"{"key":"a","value":"1"}"#,
    );
    let got = request(gateway.http(), "GET /api/v1/kv?key=a", "");
    matches!(set, Ok((200, _)))
        && matches!(got, Ok((200, body)) if body == r#"{"value":"1","found":true}"#)
}

#[test]
fn a_node_is_written_as_the_official_naming_does_and_withdrawn_before_it_stops() {
    let Some(etcd) = Etcd::start("registration in etcd") else {
        return;
    };
    let mut process = node(&etcd, "n1").args(&["--drain-delay", "1m"]).ready();
    wait_registered(&etcd, "n1");
    let grpc = process.addresses().grpc.expect("a node speaks gRPC");
    let value = format!(r#"{{"Op":0,"Addr":"{grpc}","Metadata":null}}"#);
    assert_eq!(
        etcd.ctl(&["get", "--prefix", KV]),
        format!("{KV}n1\n{value}\n")
    );
    let original = etcd.ctl(&[
        "get",
        "flux/services/service.KVService/n1",
        "--print-value-only",
    ]);
    assert_eq!(original, format!("{value}\n"));
    let about = etcd.ctl(&["get", "flux/nodes/n1", "--print-value-only"]);
    let about: serde_json::Value = serde_json::from_str(&about).expect("it is JSON");
    assert_eq!(about["id"], "n1");
    assert_eq!(about["grpc"], grpc.to_string());
    assert_eq!(about["resp"], process.resp().to_string());
    assert_eq!(
        (&about["shards"], &about["standby"]),
        (&4.into(), &false.into())
    );
    // All in one transaction, under one lease.
    let all = etcd.json("flux/");
    let keys = all["kvs"].as_array().expect("keys");
    assert!(keys.len() >= 3, "{all}");
    let lease = &keys[0]["lease"];
    assert!(lease.as_i64().is_some_and(|lease| lease != 0), "{all}");
    for key in keys {
        assert_eq!(&key["lease"], lease);
        assert_eq!(key["mod_revision"], keys[0]["mod_revision"]);
    }
    // Nobody finds it anymore, and it still serves those who have not heard.
    process.signal(Signal::TERM);
    wait_until("it is withdrawn", || etcd.keys("flux/").is_empty());
    assert_eq!(
        process.connect().line("PING"),
        Value::Simple("PONG".to_owned())
    );
    process.signal(Signal::TERM);
    assert_eq!(process.wait().code(), Some(130));
}

#[test]
fn a_node_on_standby_is_there_and_not_called() {
    let Some(etcd) = Etcd::start("registration in etcd") else {
        return;
    };
    let process = node(&etcd, "n2").args(&["--standby"]).ready();
    wait_until("it is there", || etcd.keys("flux/") == ["flux/nodes/n2"]);
    process.stop();
    assert!(etcd.keys("flux/").is_empty());
}

#[test]
fn registrations_come_back_whatever_happens_to_etcd_and_nobody_notices() {
    let Some(mut etcd) = Etcd::start("registration in etcd") else {
        return;
    };
    let process = node(&etcd, "n1").ready();
    let gateway = Start::discovering(&["--etcd", &etcd.address()]).ready();
    wait_registered(&etcd, "n1");
    wait_until("the gateway finds it", || serves(&gateway));
    assert!(check(&process, "etcd").starts_with("[+]etcd ok: registration of n1"));
    assert_eq!(
        check(&gateway, "etcd"),
        "[+]etcd ok: watch of flux.kv.v1.Kv"
    );
    let series = r#"flux_discovery_endpoints{service="flux.kv.v1.Kv"}"#;
    assert_eq!(metric(&gateway, series), Some(1.0));

    etcd.kill();
    for part in [&process, &gateway] {
        wait_until("it is said that etcd is away", || {
            check(part, "etcd").starts_with("[-]etcd failed (serving goes on)")
        });
        assert_eq!(metric(part, "flux_discovery_connected"), Some(0.0));
    }
    // Longer than the lease would have lived.
    let away = std::time::Instant::now();
    while away.elapsed() < std::time::Duration::from_secs(4) {
        assert!(serves(&gateway));
    }
    etcd.restart();
    wait_registered(&etcd, "n1");
    for part in [&process, &gateway] {
        wait_until("all is well again", || {
            check(part, "etcd").starts_with("[+]etcd ok")
        });
    }

    etcd.kill();
    etcd.wipe();
    etcd.restart();
    wait_registered(&etcd, "n1");
    assert!(metric(&process, "flux_discovery_lease_lost_total") >= Some(1.0));
    assert!(serves(&gateway));

    etcd.ctl(&["del", "--prefix", "flux/"]);
    wait_registered(&etcd, "n1");
    assert!(serves(&gateway));
    let log = process.stderr();
    assert!(log.contains("registering again"), "{log}");
    // A registry that is away for seconds is one line, not one for each attempt.
    let complaints = log.matches("the registry does not do it").count();
    assert!((1..=4).contains(&complaints), "{log}");
    process.stop();
    wait_until("it is withdrawn", || etcd.keys(KV).is_empty());
}

#[test]
fn a_node_that_slept_beyond_its_lease_registers_again() {
    let Some(etcd) = Etcd::start("registration in etcd") else {
        return;
    };
    let process = node(&etcd, "n1").ready();
    wait_registered(&etcd, "n1");
    let before = etcd.json(KV)["kvs"][0]["lease"].clone();
    process.signal(Signal::STOP);
    wait_until("its lease ends", || etcd.keys("flux/").is_empty());
    process.signal(Signal::CONT);
    wait_registered(&etcd, "n1");
    assert_ne!(etcd.json(KV)["kvs"][0]["lease"], before);
    assert_eq!(
        metric(&process, "flux_discovery_lease_lost_total"),
        Some(1.0)
    );
}

/// Asks the gateway from several threads until dropped or ended; every answer must be right.
struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<usize>>,
}

impl Load {
    fn start(gateway: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let ask = |stop: Arc<AtomicBool>| {
            move || {
                let mut count = 0;
                while !stop.load(Ordering::SeqCst) {
                    let answer = request(gateway, "GET /api/v1/kv?key=nothing", "");
                    let answer = answer.expect("the gateway answers");
                    assert_eq!(answer.0, 200, "{}", answer.1);
                    count += 1;
                }
                count
            }
        };
        let threads = (0..4)
            .map(|_| std::thread::spawn(ask(Arc::clone(&stop))))
            .collect();
        Self { stop, threads }
    }

    /// How many were answered.
    fn end(self) -> usize {
        self.stop.store(true, Ordering::SeqCst);
        let counts = self.threads.into_iter().map(|thread| thread.join());
        counts.map(|count| count.expect("no request failed")).sum()
    }
}

#[test]
fn nodes_come_and_go_behind_a_gateway_without_a_failed_request() {
    let Some(etcd) = Etcd::start("discovery in etcd") else {
        return;
    };
    let first = node(&etcd, "n1").ready();
    let second = node(&etcd, "n2").ready();
    let gateway = Start::discovering(&["--etcd", &etcd.address()]).ready();
    let series = r#"flux_discovery_endpoints{service="flux.kv.v1.Kv"}"#;
    let has = |count: f64| {
        wait_until("the gateway has heard", || {
            metric(&gateway, series) == Some(count)
        });
    };
    has(2.0);
    wait_until("the gateway serves", || {
        get(gateway.http(), "/api/v1/kv?key=nothing").0 == 200
    });
    let load = Load::start(gateway.http());
    first.stop();
    has(1.0);
    let third = node(&etcd, "n3").ready();
    has(2.0);
    second.stop();
    has(1.0);
    let answered = load.end();
    assert!(answered > 20, "{answered}");
    // The one that came last answers them now.
    assert!(
        metric(
            &third,
            r#"flux_server_commands_total{command="get",result="ok"}"#
        ) > Some(0.0)
    );
    // When the last one goes, the gateway keeps its address for a while: an empty registry is more
    // often wrong than right.
    third.stop();
    assert!(etcd.keys(KV).is_empty());
    assert_eq!(metric(&gateway, series), Some(1.0));
}

#[test]
fn a_gateway_that_missed_what_was_compacted_reads_everything_anew() {
    let Some(mut etcd) = Etcd::start("discovery in etcd") else {
        return;
    };
    let gateway = Start::discovering(&["--etcd", &etcd.address()]).ready();
    let series = r#"flux_discovery_endpoints{service="flux.kv.v1.Kv"}"#;
    let has = |count: f64| {
        wait_until("the gateway has heard", || {
            metric(&gateway, series) == Some(count)
        });
    };
    etcd.ctl(&["put", &format!("{KV}a"), "127.0.0.1:1"]);
    // What is nonsense is left out, and what is around it is used.
    etcd.ctl(&["put", &format!("{KV}bad"), "{nonsense"]);
    has(1.0);
    // The connection breaks while nobody looks, so that nothing of what follows is in its buffers.
    gateway.signal(Signal::STOP);
    etcd.kill();
    etcd.restart();
    for round in 2..12 {
        let value = format!("{{\"Addr\":\"127.0.0.1:{round}\"}}");
        etcd.ctl(&["put", &format!("{KV}{round}"), &value]);
    }
    etcd.ctl(&["del", &format!("{KV}a")]);
    let revision = etcd.json(KV)["header"]["revision"].to_string();
    etcd.ctl(&["compact", &revision, "--physical"]);
    gateway.signal(Signal::CONT);
    has(10.0);
    assert_eq!(
        metric(&gateway, "flux_discovery_resnapshots_total"),
        Some(1.0)
    );
    assert!(gateway.stderr().contains("not an endpoint"));
    assert!(check(&gateway, "etcd").starts_with("[+]etcd ok"));
}

#[test]
fn a_wrong_password_is_said_everywhere_and_a_right_one_works() {
    let Some(mut etcd) = Etcd::start("passwords of etcd") else {
        return;
    };
    for args in [
        &["user", "add", "root:r00t"][..],
        &["user", "grant-role", "root", "root"],
        &["user", "add", "flux:secret"],
        &["role", "add", "flux"],
        &[
            "role",
            "grant-permission",
            "--prefix=true",
            "flux",
            "readwrite",
            "flux/",
        ],
        &["user", "grant-role", "flux", "flux"],
        &["auth", "enable"],
    ] {
        etcd.ctl(args);
    }
    let wrong = node(&etcd, "n1").variable("FLUX_ETCD_USER", "flux");
    let wrong = wrong.variable("FLUX_ETCD_PASSWORD", "hunter2").ready();
    wait_until("the refusal is said", || {
        check(&wrong, "etcd").contains("etcd refuses: authentication failed")
    });
    assert_eq!(metric(&wrong, "flux_discovery_connected"), Some(0.0));
    let log = wrong.stderr();
    assert!(
        log.contains("authentication failed") && !log.contains("hunter2"),
        "{log}"
    );
    assert_eq!(wrong.connect().line("SET a 1"), Value::ok());
    let nobody = node(&etcd, "n2").ready();
    wait_until("the refusal is said", || {
        check(&nobody, "etcd").contains("etcd refuses: user name is empty")
    });
    let user = ["--etcd-user", "flux", "--etcd-password", "secret"];
    let right = node(&etcd, "n3").args(&user).ready();
    let gateway = Start::discovering(&["--etcd", &etcd.address()]);
    let gateway = gateway.args(&user).ready();
    wait_until("the gateway finds the right one", || serves(&gateway));
    assert!(check(&right, "etcd").starts_with("[+]etcd ok"));
    let keys = etcd.ctl(&["--user", "root:r00t", "get", "--prefix", "--keys-only", KV]);
    assert_eq!(keys.trim(), format!("{KV}n3"));
    // etcd forgets its tokens when it dies; new ones are asked for.
    etcd.kill();
    etcd.restart();
    let fourth = node(&etcd, "n4").args(&user).ready();
    let series = r#"flux_discovery_endpoints{service="flux.kv.v1.Kv"}"#;
    wait_until("the gateway finds both", || {
        metric(&gateway, series) == Some(2.0)
    });
    for part in [&right, &fourth, &gateway] {
        wait_until("all is well", || {
            check(part, "etcd").starts_with("[+]etcd ok")
        });
    }
}

#[test]
fn an_etcd_that_refuses_connections_is_said_and_the_next_member_is_asked() {
    let Some(etcd) = Etcd::start("discovery in etcd") else {
        return;
    };
    let nowhere = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let absent = nowhere.local_addr().expect("an address").to_string();
    drop(nowhere);
    let lonely = Start::node()
        .args(&["--etcd", &absent, "--node-name", "n1"])
        .ready();
    wait_until("it is said", || check(&lonely, "etcd").contains("refused"));
    let line = check(&lonely, "etcd");
    assert!(line.contains(&absent), "{line}");
    let members = format!("{absent},{}", etcd.address());
    let other = Start::node()
        .args(&["--etcd", &members, "--node-name", "n2"])
        .ready();
    wait_registered(&etcd, "n2");
    other.stop();
    assert!(etcd.keys(KV).is_empty());
}

#[test]
fn nodes_and_gateways_of_one_machine_find_each_other_in_a_file() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("registry.json");
    let file = file.to_str().expect("a path in UTF-8");
    let process = Start::node()
        .args(&["--registry-file", file, "--node-name", "n1"])
        .ready();
    let gateway = Start::discovering(&["--registry-file", file]).ready();
    wait_until("the gateway finds it", || serves(&gateway));
    assert_eq!(
        check(&gateway, "registry-file"),
        "[+]registry-file ok: watch of flux.kv.v1.Kv"
    );
    let text = std::fs::read_to_string(file).expect("the file is there");
    assert!(text.contains(r#""n1""#), "{text}");
    process.stop();
    let text = std::fs::read_to_string(file).expect("the file is there");
    assert!(!text.contains("n1"), "{text}");
}

/// A server of somebody else beside `flux register`.
struct Registered {
    child: std::process::Child,
    folder: tempfile::TempDir,
}

impl Registered {
    fn start(etcd: &Etcd, python: &std::path::Path, exit_code: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let port = free_port();
        let address = format!("127.0.0.1:{port}");
        let stdout = std::fs::File::create(folder.path().join("stdout.txt")).expect("a file");
        let stderr = std::fs::File::create(folder.path().join("stderr.txt")).expect("a file");
        let child = command(FLUX)
            .args([
                "register",
                "--etcd",
                &etcd.address(),
                "--service",
                "demo.v1.Echo",
            ])
            .args([
                "--addr",
                &address,
                "--id",
                "echo-1",
                "--drain-delay",
                "500ms",
                "--",
            ])
            .arg(python)
            .arg(repository().join("crates/flux/tests/e2e/python/echo_server.py"))
            .arg(folder.path().join("port"))
            .arg(exit_code)
            .env("ECHO_PORT", port.to_string())
            .stdin(std::process::Stdio::null())
            .stdout(stdout)
            .stderr(stderr)
            .spawn()
            .expect("flux starts");
        Self { child, folder }
    }

    fn signal(&self, signal: Signal) {
        let pid = rustix::process::Pid::from_raw(self.child.id().cast_signed());
        let pid = pid.expect("a pid is not 0");
        rustix::process::kill_process(pid, signal).expect("it runs");
    }

    fn exit_code(&mut self) -> Option<i32> {
        let mut status = None;
        wait_until("it ends", || {
            status = self.child.try_wait().expect("a child can be asked");
            status.is_some()
        });
        status.and_then(|status| status.code())
    }

    fn stdout(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("stdout.txt")).unwrap_or_default()
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        // It has ended, unless the test has failed.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn any_server_is_registered_for_as_long_as_it_runs() {
    let Some(etcd) = Etcd::start("flux register") else {
        return;
    };
    let Some(python) = python("flux register") else {
        return;
    };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let proto = "syntax = \"proto3\"; package demo.v1;\n\
                 service Echo { rpc Say(Words) returns (Words); }\n\
                 message Words { string text = 1; }\n";
    std::fs::write(folder.path().join("echo.proto"), proto).expect("a file");
    let config = folder.path().join("flux.toml");
    let includes = folder.path().display();
    let text = format!(
        "[registry]\netcd = \"{}\"\n[[gateway.upstreams]]\nname = \"echo\"\n\
         service = \"demo.v1.Echo\"\n\
         descriptors = {{ proto = {{ files = [\"echo.proto\"], includes = [\"{includes}\"] }} }}\n",
        etcd.address()
    );
    std::fs::write(&config, text).expect("a file");
    let config = config.to_str().expect("a path in UTF-8");
    let gateway = Start::discovering(&["--config", config]).ready();
    let mut server = Registered::start(&etcd, &python, "7");
    let say = || {
        let body = r#"{"text":"hello"}"#;
        request(gateway.http(), "POST /demo.v1.Echo/Say", body).expect("the gateway answers")
    };
    // Of that call itself: it may be the one that makes up the breaker's volume, and the failures
    // before it then open the breaker for the next.
    let mut answer = String::new();
    wait_until("it can be called", || {
        let (status, body) = say();
        answer = body;
        status == 200
    });
    assert_eq!(answer, r#"{"text":"hello"}"#);
    let key = "flux/services/demo.v1.Echo/echo-1";
    assert_eq!(etcd.keys("flux/"), [key]);
    server.signal(Signal::TERM);
    // Withdrawn before the server is told; then its exit code is ours.
    wait_until("it is withdrawn", || etcd.keys("flux/").is_empty());
    assert_eq!(server.exit_code(), Some(7));
    assert_eq!(server.stdout(), "told to stop\n");

    // A server that dies by itself is withdrawn too, and its end is told as a shell tells it.
    let mut server = Registered::start(&etcd, &python, "0");
    wait_until("it is registered", || etcd.keys("flux/") == [key]);
    let children = format!("/proc/{0}/task/{0}/children", server.child.id());
    let children = std::fs::read_to_string(children).expect("it has a child");
    let pid = children
        .split_whitespace()
        .next()
        .and_then(|pid| pid.parse().ok());
    let pid = pid.and_then(rustix::process::Pid::from_raw).expect("a pid");
    rustix::process::kill_process(pid, Signal::KILL).expect("the server runs");
    assert_eq!(server.exit_code(), Some(137));
    assert!(etcd.keys("flux/").is_empty());
}

#[test]
fn mistakes_of_a_registration_are_told_before_anything_runs() {
    for (args, expected) in [
        (
            &["--service", "a.B", "--addr", "h:1"][..],
            "flux: --etcd HOST:PORT (FLUX_ETCD) or --registry-file PATH is required: where to register\n",
        ),
        (
            &["--service", "a.B", "--addr", "h", "--etcd", "h:1"],
            "flux: --addr: \"h\" is not host:port\n",
        ),
        (
            &["--service", "a/B", "--addr", "h:1", "--etcd", "h:1"],
            "flux: flux register: \"a/B\" is not the full name of a service, as in \"package.Service\"\n",
        ),
        (
            &[
                "--service",
                "a.B",
                "--addr",
                "h:1",
                "--etcd",
                "h:1",
                "--",
                "/nowhere/server",
            ],
            "flux: /nowhere/server: no such file or directory\n",
        ),
    ] {
        let output = run(command(FLUX).arg("register").args(args), b"");
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), expected);
    }
}

/// Builds the Go program of `folder`; `None`, reported for `test`, where Go or its modules cannot be
/// had. The first time it compiles grpc-go, which takes longer than anything else here may.
fn go_program(folder: &str, test: &str) -> Option<std::path::PathBuf> {
    if !have("go", test) {
        return None;
    }
    let program = repository().join("target/test-go").join(folder);
    let log = tempfile::NamedTempFile::new().expect("a file");
    let mut child = command("go")
        .args(["build", "-o"])
        .arg(&program)
        .arg(".")
        .env("GOTOOLCHAIN", "local")
        .current_dir(repository().join("crates/flux/tests/e2e/go").join(folder))
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(log.reopen().expect("the same file"))
        .spawn()
        .expect("go starts");
    let status = child.wait().expect("a child can be waited for");
    if status.success() {
        return Some(program);
    }
    let log = std::fs::read_to_string(log.path()).unwrap_or_default();
    let is_unavailable = [
        "dial tcp",
        "lookup ",
        "timeout",
        "requires go",
        "invalid go version",
    ]
    .iter()
    .any(|part| log.contains(part));
    assert!(is_unavailable, "{log}");
    let reason = log.lines().last().unwrap_or_default().to_owned();
    skip(test, &format!("go cannot build: {reason}"));
    None
}

#[test]
fn a_go_client_finds_a_node_with_the_official_resolver() {
    let test = "Go client with etcd's naming resolver";
    let Some(etcd) = Etcd::start(test) else {
        return;
    };
    let Some(program) = go_program("naming", test) else {
        return;
    };
    let _process = node(&etcd, "n1").ready();
    wait_registered(&etcd, "n1");
    let mut client = command(program);
    client.args([&etcd.address(), "etcd:///flux/services/flux.kv.v1.Kv"]);
    assert_eq!(stdout(&run(&mut client, b"")), "SERVING\n");
}

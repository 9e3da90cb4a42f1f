//! The gateway's resilience as its guide shows it: limits, breaker, fallback, reload, with curl.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::process::Signal;

use crate::harness::resp::Value;
use crate::harness::{Process, Start, command, have, repository, run, shell, stdout, wait_until};

/// What curl got.
#[derive(Debug)]
struct Reply {
    status: u16,
    headers: BTreeMap<String, String>,
    body: String,
}

fn curl(process: &Process, args: &[&str], path: &str) -> Reply {
    let url = format!("http://localhost:{}{path}", process.http().port());
    let output = run(
        command("curl").args(["-sS", "-i"]).args(args).arg(&url),
        b"",
    );
    let text = stdout(&output);
    let (head, body) = text.split_once("\r\n\r\n").expect("headers and a body");
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1));
    let headers = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    Reply {
        status: status.expect("a status").parse().expect("a number"),
        headers,
        body: body.to_owned(),
    }
}

fn get(process: &Process, path: &str) -> Reply {
    curl(process, &[], path)
}

fn admin(process: &Process, path: &str) -> String {
    let url = format!("http://{}{path}", process.admin());
    stdout(&run(command("curl").args(["-sS", &url]), b""))
}

/// A file outside of the folder of any process.
fn file(folder: &Path, text: &str) -> PathBuf {
    let path = folder.join("my.toml");
    std::fs::write(&path, text).expect("a file");
    path
}

const KV: &str = r#"
[[gateway.routes]]
http = "POST /api/v1/kv"
rpc = "flux.kv.v1.Kv/Set"
upstream = "kv"
required = ["key", "value"]
[[gateway.routes]]
http = "GET /api/v1/kv"
rpc = "flux.kv.v1.Kv/Get"
upstream = "kv"
required = ["key"]
coalesce = "shared"
fallback = { stale = "10m", json = { degraded = true } }
"#;

#[test]
fn beyond_the_rate_limit_curl_is_answered_429() {
    if !have("curl", "rate limit") {
        return;
    }
    let process = Start::all().args(&["--rate-limit", "1/h"]).ready();
    let reply = get(&process, "/api/v1/kv?key=a");
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_eq!(reply.headers["ratelimit-limit"], "1");
    assert_eq!(reply.headers["ratelimit-remaining"], "0");
    let reply = get(&process, "/api/v1/kv?key=a");
    assert_eq!(reply.status, 429, "{reply:?}");
    let seconds: u64 = reply.headers["retry-after"].parse().expect("seconds");
    assert!((3_000..=3_600).contains(&seconds), "{reply:?}");
    assert!(reply.body.contains("\"RATE_LIMIT\""), "{reply:?}");
    assert_eq!(get(&process, "/health").status, 200);
    let metrics = admin(&process, "/metrics");
    let counted = "flux_gateway_rate_limited_total{rule=\"gateway\"} 1";
    assert!(metrics.contains(counted), "{metrics}");
    process.stop();
}

#[test]
fn the_breaker_opens_when_the_node_is_killed_falls_back_and_closes_when_it_returns() {
    if !have("curl", "breaker") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let text = format!("[gateway.breaker]\nvolume = 5\nsleep = \"300ms\"\n{KV}");
    let config = file(folder.path(), &text);
    let node = Start::node().ready();
    let grpc = node.addresses().grpc.expect("a node has gRPC");
    let gateway = Start::gateway(grpc)
        .args(&["--config", &config.display().to_string()])
        .ready();
    wait_until("the gateway knows its upstream", || {
        get(&gateway, "/api/v1/kv?key=none").status == 200
    });
    let set = ["-d", "key=hello&value=world"];
    assert_eq!(curl(&gateway, &set, "/api/v1/kv").status, 200);
    let good = get(&gateway, "/api/v1/kv?key=hello");
    assert_eq!(good.body, r#"{"value":"world","found":true}"#);
    assert_eq!(good.headers.get("x-flux-stale"), None);

    let data = node.kill();
    // The last good answer, marked; where there is none, the fixed one.
    let stale = get(&gateway, "/api/v1/kv?key=hello");
    assert_eq!((stale.status, stale.body), (200, good.body));
    assert!(stale.headers["warning"].starts_with("110"));
    assert!(stale.headers.contains_key("x-flux-stale"));
    let fixed = get(&gateway, "/api/v1/kv?key=never-read");
    assert_eq!(
        (fixed.status, fixed.body.as_str()),
        (503, r#"{"degraded":true}"#)
    );
    assert_eq!(fixed.headers["x-flux-fallback"], "fixed");
    // A write has none: first it fails, then the breaker is open.
    wait_until("the breaker is open", || {
        let reply = curl(&gateway, &set, "/api/v1/kv");
        assert_eq!(reply.status, 503, "{reply:?}");
        reply.body.contains("BREAKER_OPEN") && reply.headers.contains_key("retry-after")
    });
    let state = "flux_gateway_breaker_state{upstream=\"kv\"}";
    assert!(admin(&gateway, "/metrics").contains(&format!("{state} 2")));

    let node = Start::node()
        .over(data)
        .port("--grpc-port", grpc.port())
        .ready();
    wait_until("the breaker has closed", || {
        let reply = get(&gateway, "/api/v1/kv?key=hello");
        reply.status == 200 && !reply.headers.contains_key("x-flux-stale")
    });
    assert!(admin(&gateway, "/metrics").contains(&format!("{state} 0")));
    gateway.stop();
    node.stop();
}

#[test]
fn a_changed_file_takes_effect_without_a_failed_request_and_a_wrong_one_does_not() {
    if !have("curl", "reload") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let config = file(folder.path(), KV);
    let process = Start::all()
        .args(&["--config", &config.display().to_string()])
        .ready();
    let ready = |process: &Process| admin(process, "/readyz?verbose");
    assert!(
        ready(&process).contains("[+]config ok"),
        "{}",
        ready(&process)
    );
    assert_eq!(get(&process, "/second?key=a").status, 404);
    let stop = Arc::new(AtomicBool::new(false));
    let load = {
        let stop = Arc::clone(&stop);
        let url = format!("http://localhost:{}/api/v1/kv?key=a", process.http().port());
        std::thread::spawn(move || {
            let mut statuses: BTreeMap<String, usize> = BTreeMap::new();
            while !stop.load(Ordering::SeqCst) {
                let args = ["-sS", "-o", "/dev/null", "-w", "%{http_code}", &url];
                *statuses
                    .entry(stdout(&run(command("curl").args(args), b"")))
                    .or_default() += 1;
            }
            statuses
        })
    };
    let second = "[[gateway.routes]]\nhttp = \"GET /second\"\nrpc = \"flux.kv.v1.Kv/Get\"\n";
    // By a signal, at once.
    std::fs::write(&config, format!("{KV}{second}")).expect("a file");
    process.signal(Signal::HUP);
    wait_until("the new route", || {
        get(&process, "/second?key=a").status == 200
    });
    // With mistakes: all of them are told, and nothing changes.
    let wrong = "[gateway]\nheaders-max = 0\nworker = 1\n[gateway.breaker]\nvolume = 0\n";
    std::fs::write(&config, wrong).expect("a file");
    process.signal(Signal::HUP);
    wait_until("the mistake is shown", || {
        ready(&process).contains("[-]config")
    });
    let shown = ready(&process);
    assert!(shown.starts_with("ready\n"), "{shown}");
    assert!(
        shown.contains("my.toml:3: gateway.worker is not a setting"),
        "{shown}"
    );
    let log = process.stderr();
    assert!(log.contains("gateway.worker is not a setting"), "{log}");
    assert_eq!(get(&process, "/second?key=a").status, 200);
    let metrics = admin(&process, "/metrics");
    let refused = "flux_gateway_reloads_total{result=\"refused\"}";
    assert!(metrics.contains(refused) && !metrics.contains(&format!("{refused} 0")));
    // By itself, once the file has settled.
    let limited = format!("[gateway.limit]\nrate = \"100000/s\"\n{KV}");
    std::fs::write(&config, limited).expect("a file");
    wait_until("the route is gone and the limit there", || {
        let reply = get(&process, "/api/v1/kv?key=a");
        get(&process, "/second?key=a").status == 404
            && reply.headers.contains_key("ratelimit-limit")
    });
    wait_until("the mistake is gone", || {
        ready(&process).contains("[+]config ok")
    });
    stop.store(true, Ordering::SeqCst);
    let statuses = load.join().expect("the load ends");
    assert_eq!(statuses.len(), 1, "{statuses:?}");
    assert!(statuses.contains_key("200"), "{statuses:?}");
    process.stop();
}

/// Reads one answer of a connection that stays open.
fn answer(stream: &mut BufReader<TcpStream>) -> serde_json::Value {
    let mut length = 0;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).expect("an answer arrives");
        assert!(!line.is_empty(), "the gateway closed");
        let line = line.trim_end().to_ascii_lowercase();
        if let Some(text) = line.strip_prefix("content-length:") {
            length = text.trim().parse().expect("a length");
        }
        if line.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).expect("the body arrives");
    serde_json::from_slice(&body).expect("JSON")
}

/// The shipped route shares calls. A write over RESP goes past the gateway, and yet no read that
/// begins after its acknowledgement may be handed what was read before it.
#[test]
fn shared_reads_miss_no_write_that_went_past_the_gateway_of_the_same_process() {
    if !have("curl", "shared reads and writes past the gateway") {
        return;
    }
    let process = Start::all().args(&["--fsync", "never"]).ready();
    let acknowledged = Arc::new(AtomicU64::new(0));
    let is_over = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..12)
        .map(|_| {
            let (acknowledged, is_over) = (Arc::clone(&acknowledged), Arc::clone(&is_over));
            let stream = TcpStream::connect(process.http()).expect("the gateway accepts");
            std::thread::spawn(move || {
                let mut stream = BufReader::new(stream);
                let request = b"GET /api/v1/kv?key=n HTTP/1.1\r\nhost: a\r\n\r\n";
                while !is_over.load(Ordering::SeqCst) {
                    let least = acknowledged.load(Ordering::SeqCst);
                    stream.get_mut().write_all(request).expect("it is taken");
                    let value = answer(&mut stream)["value"].clone();
                    let value = value.as_str().and_then(|text| text.parse().ok());
                    let value: u64 = value.unwrap_or(0);
                    assert!(least <= value, "{value} after {least}");
                }
            })
        })
        .collect();
    let mut writer = process.connect();
    for number in 1..=4_000 {
        assert_eq!(writer.line("INCR n"), Value::Integer(number));
        acknowledged.store(number.unsigned_abs(), Ordering::SeqCst);
    }
    is_over.store(true, Ordering::SeqCst);
    for reader in readers {
        reader.join().expect("no read was too old");
    }
    let metrics = admin(&process, "/metrics");
    let joined = metrics.lines().find_map(|line| {
        let count = line.strip_prefix(r#"flux_gateway_singleflight_total{role="follower"} "#);
        count?.parse::<u64>().ok()
    });
    assert!(joined > Some(0), "no read joined another's call");
    process.stop();
}

/// The lines of the blocks of the guide that are marked so.
fn guide(mark: &str) -> Vec<String> {
    let path = repository().join("docs/gateway.md");
    let text = std::fs::read_to_string(path).expect("there is a guide");
    let mut lines = Vec::new();
    let mut is_inside = false;
    for line in text.lines() {
        if let Some(info) = line.strip_prefix("```") {
            is_inside = info.trim() == mark;
        } else if is_inside {
            lines.push(line.to_owned());
        }
    }
    lines
}

#[test]
fn the_commands_of_the_guide_do_what_they_say() {
    if !have("curl", "the gateway's guide") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let config = file(folder.path(), &guide("toml test").join("\n"));
    let process = Start::all()
        .args(&["--config", &config.display().to_string()])
        .ready();
    let commands = guide("sh test resilience");
    assert!(commands.len() >= 5, "{commands:?}");
    for line in commands {
        let (command, promise) = line.split_once(" # ").expect("a command and its output");
        let http = format!("localhost:{}/", process.http().port());
        let admin = format!("localhost:{}/", process.admin().port());
        let command = command
            .replace("localhost:8080/", &http)
            .replace("localhost:9180/", &admin);
        assert_eq!(shell(&command).trim_end(), promise, "{command}");
    }
    process.stop();
}

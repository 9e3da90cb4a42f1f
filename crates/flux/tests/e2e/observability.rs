//! Metrics as a real Prometheus reads them, and the page that shows a newcomer how.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};

use crate::harness::otlp::Collector;
use crate::harness::{
    FLUX, Start, command, free_port, have, repository, run, shell, stdout, wait_until,
};

/// A running Prometheus; killed when dropped.
struct Prometheus {
    child: Child,
    address: String,
    _folder: tempfile::TempDir,
}

impl Prometheus {
    /// Starts one that scrapes these jobs every second.
    fn start(targets: &[(&str, SocketAddr)]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut config = "global: { scrape_interval: 1s }\nscrape_configs:\n".to_owned();
        for (job, admin) in targets {
            let target = format!("static_configs: [{{ targets: [\"{admin}\"] }}]");
            config.push_str(&format!("  - {{ job_name: {job}, {target} }}\n"));
        }
        let path = folder.path().join("prometheus.yml");
        std::fs::write(&path, config).expect("a configuration");
        let mut child = command("prometheus")
            .arg(format!("--config.file={}", path.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                folder.path().join("data").display()
            ))
            .args([
                "--web.listen-address=127.0.0.1:0",
                "--enable-feature=exemplar-storage",
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("prometheus starts");
        let stderr = child.stderr.take().expect("standard error is piped");
        let mut lines = BufReader::new(stderr).lines().map_while(Result::ok);
        let address = lines
            .by_ref()
            .find(|line| line.contains("msg=\"Listening on\""))
            .and_then(|line| Some(line.split("address=").nth(1)?.trim().to_owned()))
            .expect("it says where it listens");
        // Nobody may fill its pipe.
        std::thread::spawn(move || lines.for_each(drop));
        // It listens before it answers questions.
        let ready = format!("http://{address}/-/ready");
        wait_until("Prometheus to answer", || {
            run(command("curl").args(["-fsS", &ready]), b"")
                .status
                .success()
        });
        Self {
            child,
            address,
            _folder: folder,
        }
    }

    fn get(&self, path: &str, parameters: &[(&str, &str)]) -> serde_json::Value {
        let mut curl = command("curl");
        curl.args(["-sS", "-G", &format!("http://{}{path}", self.address)]);
        for (name, value) in parameters {
            curl.args(["--data-urlencode", &format!("{name}={value}")]);
        }
        let answer: serde_json::Value =
            serde_json::from_str(&stdout(&run(&mut curl, b""))).expect("Prometheus answers JSON");
        assert_eq!(
            answer["status"], "success",
            "{path} {parameters:?}: {answer}"
        );
        answer["data"].clone()
    }

    /// The samples of an expression.
    fn query(&self, expression: &str) -> Vec<serde_json::Value> {
        let data = self.get("/api/v1/query", &[("query", expression)]);
        data["result"].as_array().cloned().unwrap_or_default()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Name and kind of each family that the document lists.
fn listed() -> Vec<(String, String)> {
    let document = std::fs::read_to_string(repository().join("docs/metrics.md"));
    let document = document.expect("there is a list of metrics");
    let rows = document.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| {
        let mut cells = row.split('|').map(str::trim).skip(1);
        let name = cells.next().unwrap_or_default().trim_matches('`');
        let kind = cells.next().unwrap_or_default();
        (name.to_owned(), kind.to_owned())
    })
    .collect()
}

/// A consumer of changes whose broker is away; killed when dropped.
struct Consumer {
    child: Child,
    admin: SocketAddr,
}

impl Consumer {
    fn start() -> Self {
        let port = free_port();
        let child = command(FLUX)
            .args(["cdc-consumer", "--amqp", "amqp://127.0.0.1:9/"])
            .args(["--admin-port", &port.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary starts");
        let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        wait_until("the consumer's admin port", || {
            TcpStream::connect(admin).is_ok()
        });
        Self { child, admin }
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn a_real_prometheus_reads_every_family_of_node_gateway_and_consumer() {
    if !have("prometheus", "metrics") || !have("curl", "metrics") {
        return;
    }
    // A collector that is away is counted, not waited for.
    let traced = ["--otlp", "http://127.0.0.1:9", "--trace-sample", "100%"];
    // A broker that is away too: what it keeps from flowing is told all the same.
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let registry = path("registry");
    let found = ["--registry-file", registry.as_str()];
    let node = Start::node()
        .args(&traced)
        .args(&found)
        .args(&["--amqp", "amqp://127.0.0.1:9/"])
        .ready();
    // With a file, so that there is something to read again.
    let config = path("flux.toml");
    std::fs::write(&config, "[gateway]\n").expect("it is writable");
    let gateway = Start::discovering(&found)
        .args(&traced)
        .args(&["--config", &config])
        .ready();
    let consumer = Consumer::start();
    // Some families are about other nodes.
    let cluster = Start::all().args(&["--nodes", "3"]).ready();
    let url = format!("http://{}/api/v1/kv", gateway.http());
    wait_until("the gateway knows its upstream's services", || {
        shell(&format!("curl -sS '{url}?key=a'")).contains("found")
    });
    let head = shell(&format!("curl -sS -i -d 'key=a&value=b' {url}"));
    let trace = head
        .lines()
        .find_map(|line| line.strip_prefix("x-trace-id: "));
    let trace = trace.expect("it is recorded").trim();
    let prometheus = Prometheus::start(&[
        ("flux-node", node.admin()),
        ("flux-gateway", gateway.admin()),
        ("flux-cdc-consumer", consumer.admin),
        ("flux-cluster", cluster.admin()),
    ]);
    wait_until("all are scraped", || prometheus.query("up == 1").len() == 4);
    let mut missing = Vec::new();
    for (name, kind) in listed() {
        let series = if kind == "histogram" {
            format!("{name}_count")
        } else {
            name.clone()
        };
        if prometheus.query(&series).is_empty() {
            missing.push(name);
        }
    }
    assert!(
        missing.is_empty(),
        "Prometheus has no sample of {missing:?}"
    );
    let written = r#"flux_server_commands_total{command="set",result="ok",job="flux-node"}"#;
    assert_eq!(prometheus.query(written)[0]["value"][1], "1");
    let build = prometheus.query("flux_build_info");
    assert_eq!(build.len(), 3);
    assert_eq!(build[0]["metric"]["version"], env!("CARGO_PKG_VERSION"));
    let buckets = "flux_gateway_request_duration_seconds_bucket";
    wait_until("a bucket names the trace of a request in it", || {
        let range = [("query", buckets), ("start", "0"), ("end", "4000000000")];
        let found = prometheus.get("/api/v1/query_exemplars", &range);
        found.to_string().contains(trace)
    });
    gateway.stop();
    node.stop();
    cluster.stop();
}

#[test]
fn promtool_finds_no_fault_with_metrics_and_rules() {
    if !have("promtool", "metrics") || !have("curl", "metrics") {
        return;
    }
    let process = Start::all().ready();
    let metrics = shell(&format!("curl -sS http://{}/metrics", process.admin()));
    let checked = run(
        command("promtool").args(["check", "metrics"]),
        metrics.as_bytes(),
    );
    assert!(
        checked.status.success() && checked.stderr.is_empty(),
        "{checked:?}"
    );
    process.stop();
    let folder = repository().join("deploy/prometheus");
    let promtool = |words: &[&str]| run(command("promtool").args(words).current_dir(&folder), b"");
    for words in [
        ["check", "rules", "alerts.yml"],
        ["test", "rules", "alerts_test.yml"],
    ] {
        let checked = promtool(&words);
        assert!(checked.status.success(), "promtool {words:?}: {checked:?}");
    }
    if folder.join("prometheus.yml").is_file() {
        let checked = promtool(&["check", "config", "prometheus.yml"]);
        assert!(checked.status.success(), "{checked:?}");
    }
}

#[test]
fn alerts_speak_of_metrics_that_there_are() {
    let listed = listed();
    let text = std::fs::read_to_string(repository().join("deploy/prometheus/alerts.yml"));
    let text = text.expect("there are alerts");
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let named: std::collections::BTreeSet<&str> =
        words.filter(|word| word.starts_with("flux_")).collect();
    assert!(named.len() > 8, "{named:?}");
    for word in named {
        let bare = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|suffix| word.strip_suffix(suffix));
        let is_listed = listed.iter().any(|(name, kind)| {
            name == word || (kind == "histogram" && Some(name.as_str()) == bare)
        });
        assert!(is_listed, "{word} is in no row of docs/metrics.md");
    }
}

/// The lines of a page's blocks marked `sh test`, with what the comment behind each promises.
fn commands(page: &Path) -> Vec<(String, Option<String>)> {
    let text = std::fs::read_to_string(page).expect("there is this page");
    let mut commands = Vec::new();
    let mut is_inside = false;
    for line in text.lines() {
        if let Some(info) = line.strip_prefix("```") {
            is_inside = info.trim() == "sh test";
        } else if is_inside && !line.trim().is_empty() {
            let (command, promise) =
                match line.split_once("    # ").or_else(|| line.split_once(" # ")) {
                    Some((command, promise)) => (command, Some(promise.trim().to_owned())),
                    None => (line, None),
                };
            commands.push((command.trim().to_owned(), promise));
        }
    }
    commands
}

#[test]
fn every_command_of_the_page_on_observability_does_what_it_says() {
    for program in ["curl", "redis-cli", "promtool"] {
        if !have(program, "commands of docs/observability.md") {
            return;
        }
    }
    let Some(collector) = Collector::start("commands of docs/observability.md") else {
        return;
    };
    let commands = commands(&repository().join("docs/observability.md"));
    assert!(commands.len() > 5, "{commands:?}");
    let traced = ["--otlp", &collector.url(), "--trace-sample", "100%"];
    let process = Start::all().args(&traced).ready();
    let port = |address: SocketAddr| format!("localhost:{}", address.port());
    for (command, promise) in &commands {
        let line = command
            .replace("localhost:8080", &port(process.http()))
            .replace("localhost:9180", &port(process.admin()))
            .replace("-p 7379", &format!("-p {}", process.resp().port()))
            .replace("target/release/flux", FLUX)
            .replace("curl ", "curl -sS ");
        let output = shell(&line);
        if let Some(promise) = promise {
            assert_eq!(output.trim_end(), promise, "{command}");
        }
    }
    // The page promises the caller's trace for the second request, which only reads.
    let named = "4bf92f3577b34da6a3ce929d0e0e4736";
    assert_eq!(collector.trace(named, 3).len(), 3);
    process.stop();
}

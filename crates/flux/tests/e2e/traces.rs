//! Traces as a collector that others wrote decodes them, and logs that name them.

use std::time::Instant;

use crate::harness::otlp::{Collector, Link, Span};
use crate::harness::rabbit::Broker;
use crate::harness::resp::Value;
use crate::harness::{FLUX, Process, Start, command, flux, have, run, stdout, wait_until};

/// What curl got: status, headers by lower-case name, body.
struct Curled {
    status: u16,
    headers: String,
    body: String,
}

impl Curled {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    fn trace(&self) -> String {
        let trace = self.header("x-trace-id");
        trace.expect("a recorded request says its trace").to_owned()
    }
}

fn curl(process: &Process, args: &[&str], path: &str) -> Curled {
    let url = format!("http://{}{path}", process.http());
    let args = ["-sS", "-i"].iter().chain(args);
    let text = stdout(&run(command("curl").args(args).arg(url), b""));
    let (head, body) = text.split_once("\r\n\r\n").expect("headers end");
    let status = head.split(' ').nth(1).expect("a status line");
    Curled {
        status: status.parse().expect("a status"),
        headers: head.to_owned(),
        body: body.to_owned(),
    }
}

/// The founding request.
fn founding(process: &Process) -> Curled {
    let curled = curl(
        process,
        &["-X", "POST", "-d", "key=hello&value=world"],
        "/api/v1/kv",
    );
    assert_eq!(curled.body, r#"{"success":true}"#);
    curled
}

/// Asserts the shape of one SET through the gateway; answers its spans.
fn check_set(spans: &[Span], root_parent: &str) {
    let find = |service: &str, kind: &str, name: &str| {
        let mut found = spans
            .iter()
            .filter(|span| span.service() == service && span.kind == kind && span.name == name);
        let one = found.next();
        assert!(found.next().is_none(), "{service} {kind} {name} twice");
        one.unwrap_or_else(|| panic!("no {service} {kind} {name} in {spans:#?}"))
    };
    let request = find("flux-gateway", "SERVER", "POST /api/v1/kv");
    let call = find("flux-gateway", "CLIENT", "flux.kv.v1.Kv/Set");
    let served = find("flux-node", "SERVER", "flux.kv.v1.Kv/Set");
    let propose = find("flux-node", "INTERNAL", "raft.propose");
    let commit = find("flux-node", "INTERNAL", "log.commit");
    assert_eq!(request.parent, root_parent);
    assert_eq!(propose.parent, served.span);
    assert_eq!(commit.parent, propose.span);
    assert!(propose.begun <= commit.begun && commit.ended <= propose.ended);
    assert!(commit.attributes["flux.batch.bytes"].as_u64() > Some(0));
    assert_eq!(call.parent, request.span);
    assert_eq!(served.parent, call.span);
    assert!(request.begun <= call.begun && call.ended <= request.ended);
    for (span, name, value) in [
        (request, "http.request.method", "POST"),
        (request, "http.route", "/api/v1/kv"),
        (request, "url.path", "/api/v1/kv"),
        (call, "rpc.system.name", "grpc"),
        (call, "rpc.method", "flux.kv.v1.Kv/Set"),
        (call, "rpc.response.status_code", "OK"),
        (served, "rpc.method", "flux.kv.v1.Kv/Set"),
        (served, "rpc.response.status_code", "OK"),
    ] {
        assert_eq!(span.attributes[name], value, "{name} of {span:?}");
    }
    assert_eq!(request.attributes["http.response.status_code"], 200);
    for span in spans {
        assert_ne!(span.status, "ERROR", "{span:?}");
        assert_eq!(span.links, [], "{span:?}");
        assert!(span.resource.contains_key("service.instance.id"));
        let text = format!("{span:?}");
        assert!(
            !text.contains("hello") && !text.contains("world"),
            "keys and values are nobody's business: {text}"
        );
    }
}

/// Nothing of the libraries that carry requests, or of the exporter itself, is exported.
fn check_all_ours(collector: &Collector) {
    for span in collector.spans() {
        assert_eq!(span.scope, "flux", "{span:?}");
        let is_named_by_us = [
            "POST ", "GET ", "flux.", "raft.", "log.", "send ", "process ",
        ]
        .iter()
        .any(|start| span.name.starts_with(start))
            // A request to which there is no route yet is named by its method alone.
            || span.name == "GET";
        assert!(is_named_by_us, "a foreign span: {span:?}");
    }
}

#[test]
fn the_founding_curl_is_one_trace_across_gateway_and_node() {
    if !have("curl", "traces") {
        return;
    }
    let Some(collector) = Collector::start("traces") else {
        return;
    };
    let traced = ["--otlp", &collector.url(), "--trace-sample", "100%"];
    let together = Start::all().args(&traced).ready();
    let curled = founding(&together);
    check_set(&collector.trace(&curled.trace(), 5), "");
    together.stop();

    let node = Start::node().args(&traced).ready();
    let grpc = node.addresses().grpc.expect("a node speaks gRPC");
    let gateway = Start::gateway(grpc).args(&traced).ready();
    wait_until("the gateway knows its upstream's services", || {
        curl(&gateway, &[], "/api/v1/kv?key=a").status == 200
    });
    let curled = founding(&gateway);
    let spans = collector.trace(&curled.trace(), 5);
    check_set(&spans, "");
    let instances: std::collections::BTreeSet<String> = spans
        .iter()
        .map(|span| span.resource["service.instance.id"].to_string())
        .collect();
    assert_eq!(instances.len(), 2, "two processes: {instances:?}");
    gateway.stop();
    node.stop();
    check_all_ours(&collector);
}

#[test]
fn a_callers_trace_is_continued_and_its_decision_followed() {
    if !have("curl", "traces") {
        return;
    }
    let Some(collector) = Collector::start("traces") else {
        return;
    };
    // By itself it would record nothing.
    let traced = ["--otlp", &collector.url(), "--trace-sample", "0%"];
    let process = Start::all().args(&traced).ready();
    let (trace, parent) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
    let set = |flags: &str| {
        let header = format!("traceparent: 00-{trace}-{parent}-{flags}");
        let body = "key=hello&value=world";
        curl(&process, &["-H", &header, "-d", body], "/api/v1/kv")
    };
    assert_eq!(set("00").header("x-trace-id"), None);
    assert_eq!(founding(&process).header("x-trace-id"), None);
    assert_eq!(set("01").header("x-trace-id"), Some(trace));
    check_set(&collector.trace(trace, 5), parent);
    process.stop();
    let spans = collector.spans();
    assert!(spans.iter().all(|span| span.trace == trace), "{spans:#?}");
}

#[test]
fn a_failed_request_is_marked_and_says_why() {
    if !have("curl", "traces") {
        return;
    }
    let Some(collector) = Collector::start("traces") else {
        return;
    };
    let process = Start::all()
        .variable("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url())
        .variable("OTEL_TRACES_SAMPLER", "parentbased_always_on")
        .variable("OTEL_SERVICE_NAME", "everything")
        .variable(
            "OTEL_RESOURCE_ATTRIBUTES",
            "deployment.environment.name=test",
        )
        .ready();
    let refused = curl(&process, &["-H", "grpc-timeout: 1n"], "/api/v1/kv?key=a");
    assert_eq!(refused.status, 504, "{}", refused.body);
    let spans = collector.trace(&refused.trace(), 2);
    for span in &spans {
        assert_eq!(span.service(), "everything");
        assert_eq!(span.resource["deployment.environment.name"], "test");
    }
    assert_eq!(spans[0].status, "ERROR");
    assert_eq!(spans[0].attributes["error.type"], "504");
    assert_eq!(spans[1].status, "ERROR");
    assert_eq!(spans[1].attributes["error.type"], "DEADLINE_EXCEEDED");
    let missing = curl(&process, &[], "/nowhere");
    assert_eq!(missing.status, 404);
    let spans = collector.trace(&missing.trace(), 1);
    assert_eq!(
        (spans[0].name.as_str(), spans[0].status.as_str()),
        ("GET", "UNSET"),
        "the caller's mistake is no failure here"
    );
    process.stop();
}

#[test]
fn a_collector_that_is_away_costs_neither_requests_nor_the_end() {
    if !have("curl", "traces") {
        return;
    }
    // One that refuses, and one that takes connections and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let refusing = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let silent_at = silent.local_addr().expect("it has an address");
    let refusing_at = refusing.local_addr().expect("it has an address");
    drop(refusing);
    for address in [silent_at, refusing_at] {
        let url = format!("http://{address}");
        let traced = ["--otlp", &url, "--trace-sample", "100%"];
        let mut process = Start::all().args(&traced).ready();
        for _ in 0..20 {
            assert_eq!(founding(&process).status, 200);
        }
        let begun = Instant::now();
        process.signal(rustix::process::Signal::TERM);
        assert_eq!(process.wait().code(), Some(0), "{}", process.stderr());
        // The spans get two seconds; a test machine may be slow, but not by the 5 s of an export.
        let took = begun.elapsed();
        assert!(
            took.as_secs_f64() < 4.5,
            "{address} held it up for {took:?}"
        );
    }
    drop(silent);
}

#[test]
fn a_log_line_of_a_recorded_request_is_flat_json_with_its_trace() {
    if !have("curl", "traces") {
        return;
    }
    let Some(collector) = Collector::start("traces") else {
        return;
    };
    let traced = ["--otlp", &collector.url(), "--trace-sample", "100%"];
    let process = Start::all()
        .args(&traced)
        .args(&["--log-level", "debug"])
        .ready();
    let trace = founding(&process).trace();
    let mut found = None;
    wait_until("the request is in the log", || {
        let log = process.stderr();
        // The last line may be under way.
        let (whole, _) = log.rsplit_once('\n').unwrap_or_default();
        let lines = whole.lines().map(|line| {
            serde_json::from_str::<serde_json::Value>(line)
                .unwrap_or_else(|error| panic!("{error}: {line}"))
        });
        found = lines.into_iter().find(|line| line["msg"] == "request");
        found.is_some()
    });
    let line = found.expect("just found");
    assert_eq!(line["trace_id"], trace, "{line}");
    assert_eq!(
        (&line["level"], &line["status"]),
        (&"debug".into(), &200.into())
    );
    assert!(
        line["ts"].as_str().is_some_and(|ts| ts.ends_with('Z')),
        "{line}"
    );
    let spans = collector.trace(&trace, 5);
    assert!(
        spans
            .iter()
            .any(|span| line["span_id"] == span.span.as_str())
    );
    process.stop();
}

#[test]
fn commands_of_resp_and_flux_are_traces_of_their_own() {
    let Some(collector) = Collector::start("traces") else {
        return;
    };
    let traced = ["--otlp", &collector.url(), "--trace-sample", "100%"];
    let process = Start::node().args(&traced).ready();
    let mut connection = process.connect();
    assert_eq!(
        connection.line("SET secret-key secret-value"),
        Value::Simple("OK".into())
    );
    let port = process.resp().port().to_string();
    let cli = ["cli", "-p", &port, "SET", "secret-key", "secret-value"];
    assert_eq!(stdout(&flux(process.folder(), &cli)), "OK\n");
    let set = |system: &str| {
        let spans = collector.spans().into_iter();
        spans
            .filter(|span| span.name == "SET" && span.attributes["db.system.name"] == system)
            .collect::<Vec<_>>()
    };
    for system in ["redis", "flux"] {
        wait_until(&format!("the SET over {system}"), || {
            !set(system).is_empty()
        });
        let [span] = <[Span; 1]>::try_from(set(system)).expect("one SET was sent");
        assert_eq!((span.kind.as_str(), span.parent.as_str()), ("SERVER", ""));
        let names: Vec<String> = collector
            .trace(&span.trace, 3)
            .into_iter()
            .map(|span| span.name)
            .collect();
        assert_eq!(names, ["SET", "raft.propose", "log.commit"]);
    }
    process.stop();
    let all = format!("{:?}", collector.spans());
    assert!(!all.contains("secret"), "{all}");
}

#[test]
fn a_change_is_sent_within_the_curls_trace_and_its_consumer_is_linked_to_it() {
    if !have("curl", "traces") {
        return;
    }
    let Some(collector) = Collector::start("traces") else {
        return;
    };
    let Some(broker) = Broker::start("traces") else {
        return;
    };
    let amqp = broker.url("%2f");
    let traced = ["--otlp", &collector.url(), "--trace-sample", "100%"];
    let process = Start::all()
        .args(&traced)
        .variable("FLUX_AMQP", &amqp)
        .ready();
    let trace = founding(&process).trace();
    let consumed = run(
        command(FLUX)
            .args(["cdc-consumer", "--max", "1", "--format", "json"])
            .env("FLUX_AMQP", &amqp)
            .env("FLUX_OTLP", collector.url()),
        b"",
    );
    let event: serde_json::Value = serde_json::from_str(&stdout(&consumed)).expect("an event");
    let spans = collector.trace(&trace, 6);
    let find = |kind: &str, name: &str| {
        let mut found = spans.iter().filter(|span| span.kind == kind);
        found
            .find(|span| span.name == name)
            .unwrap_or_else(|| panic!("no {kind} {name} in {spans:#?}"))
    };
    let propose = find("INTERNAL", "raft.propose");
    let named = event["traceparent"]
        .as_str()
        .expect("the event names its cause");
    assert_eq!(named, format!("00-{trace}-{}-01", propose.span));
    let sent = find("PRODUCER", "send flux.cdc");
    assert_eq!(
        (sent.service(), sent.parent.as_str()),
        ("flux-node", propose.span.as_str())
    );
    let mut processed = Vec::new();
    wait_until("the consumer's span", || {
        processed = collector.spans();
        processed.retain(|span| span.kind == "CONSUMER");
        !processed.is_empty()
    });
    let [processed] = <[Span; 1]>::try_from(processed).expect("one message");
    assert_eq!(processed.service(), "flux-cdc-consumer");
    assert_eq!(processed.name, "process flux.cdc.default");
    let link = Link {
        trace,
        span: sent.span.clone(),
    };
    assert_eq!(
        (processed.parent.as_str(), processed.links.as_slice()),
        ("", &[link][..])
    );
    process.stop();
    check_all_ours(&collector);
}

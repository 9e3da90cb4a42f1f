//! The founding requests, with their exact bodies, and what is wrong around them.

use crate::harness::resp::Value;
use crate::harness::{Process, Start, command, have, run, stdout, wait_until};

/// Runs curl; answers the status code and the body.
fn curl(args: &[&str]) -> (u16, String) {
    let output = run(
        command("curl")
            .args(["-sS", "-w", "\n%{http_code}"])
            .args(args),
        b"",
    );
    let text = stdout(&output);
    let (body, status) = text.rsplit_once('\n').expect("curl ends with the status");
    (status.parse().expect("a status code"), body.to_owned())
}

fn url(process: &Process, rest: &str) -> String {
    format!("http://localhost:{}{rest}", process.http().port())
}

fn check(process: &Process, args: &[&str], path: &str, status: u16, body: &str) {
    let mut all = args.to_vec();
    let url = url(process, path);
    all.push(&url);
    assert_eq!(curl(&all), (status, body.to_owned()), "curl {all:?}");
}

const JSON: &[&str] = &["-X", "POST", "-H", "content-type: application/json", "-d"];

#[test]
fn the_founding_requests_answer_exactly_their_objects() {
    if !have("curl", "founding requests") {
        return;
    }
    for shards in ["1", "4"] {
        let process = Start::all().args(&["--shards", shards]).ready();
        let form = ["-X", "POST", "-d", "key=hello&value=world"];
        check(&process, &form, "/api/v1/kv", 200, r#"{"success":true}"#);
        check(
            &process,
            &[],
            "/api/v1/kv?key=hello",
            200,
            r#"{"value":"world","found":true}"#,
        );
        let json = [JSON, &[r#"{"key":"hello","value":"world 2"}"#]].concat();
        check(&process, &json, "/api/v1/kv", 200, r#"{"success":true}"#);
        check(
            &process,
            &[],
            "/api/v1/kv?key=hello",
            200,
            r#"{"value":"world 2","found":true}"#,
        );
        assert_eq!(process.connect().line("GET hello"), Value::bulk("world 2"));
        check(
            &process,
            &["-X", "DELETE"],
            "/api/v1/kv?key=hello",
            200,
            r#"{"success":true}"#,
        );
        check(
            &process,
            &[],
            "/api/v1/kv?key=hello",
            200,
            r#"{"value":"","found":false}"#,
        );
        check(
            &process,
            &["-X", "DELETE"],
            "/api/v1/kv?key=hello",
            200,
            r#"{"success":true}"#,
        );
        process.stop();
    }
}

#[test]
fn a_missing_field_is_named_and_an_empty_value_is_stored() {
    if !have("curl", "founding requests") {
        return;
    }
    let process = Start::all().ready();
    for (args, path, field) in [
        (vec!["-X", "POST", "-d", "value=world"], "/api/v1/kv", "key"),
        (vec!["-X", "POST", "-d", "key=hello"], "/api/v1/kv", "value"),
        (vec!["-X", "POST", "-d", ""], "/api/v1/kv", "key"),
        (
            [JSON, &[r#"{"value":"world"}"#]].concat(),
            "/api/v1/kv",
            "key",
        ),
        (
            [JSON, &[r#"{"key":"hello"}"#]].concat(),
            "/api/v1/kv",
            "value",
        ),
        (vec![], "/api/v1/kv", "key"),
        (vec!["-X", "DELETE"], "/api/v1/kv", "key"),
    ] {
        let mut all = args.clone();
        let url = url(&process, path);
        all.push(&url);
        let (status, body) = curl(&all);
        assert_eq!(status, 400, "{args:?} {path}: {body}");
        let error: serde_json::Value = serde_json::from_str(&body).expect("an error is JSON");
        assert_eq!(error["code"], 3, "{body}");
        let message = error["message"].as_str().expect("an error has a message");
        assert!(message.contains(field), "{args:?} {path}: {body}");
    }
    check(
        &process,
        &["-X", "POST", "-d", "key=empty&value="],
        "/api/v1/kv",
        200,
        r#"{"success":true}"#,
    );
    check(
        &process,
        &[],
        "/api/v1/kv?key=empty",
        200,
        r#"{"value":"","found":true}"#,
    );
    let json = [JSON, &[r#"{"key":"empty 2","value":""}"#]].concat();
    check(&process, &json, "/api/v1/kv", 200, r#"{"success":true}"#);
    check(
        &process,
        &[],
        "/api/v1/kv?key=empty%202",
        200,
        r#"{"value":"","found":true}"#,
    );
}

#[test]
fn what_is_not_there_says_so() {
    if !have("curl", "founding requests") {
        return;
    }
    let process = Start::all().ready();
    for path in ["/", "/api", "/api/v1", "/api/v1/kv/x", "/api/v2/kv?key=a"] {
        let (status, body) = curl(&[&url(&process, path)]);
        assert_eq!(status, 404, "{path}: {body}");
        let error: serde_json::Value = serde_json::from_str(&body).expect("an error is JSON");
        assert_eq!(error["code"], 5, "{path}: {body}");
    }
    let (status, body) = curl(&[
        "-X",
        "POST",
        "-H",
        "content-type: application/json",
        "-d",
        "{",
        &url(&process, "/api/v1/kv"),
    ]);
    assert_eq!(status, 400, "{body}");
    let (status, body) = curl(&["-X", "PATCH", "-d", "key=a", &url(&process, "/api/v1/kv")]);
    assert!(status == 404 || status == 405, "{status} {body}");
}

#[test]
fn health_says_ok_and_the_time() {
    if !have("curl", "founding requests") {
        return;
    }
    let process = Start::all().ready();
    let (status, body) = curl(&[&url(&process, "/health")]);
    assert_eq!(status, 200);
    let health: serde_json::Value = serde_json::from_str(&body).expect("health is JSON");
    assert_eq!(health["status"], "ok");
    let time = health["time"].as_str().expect("health has a time");
    assert!(time.starts_with("20") && time.contains('T'), "{time}");
    assert_eq!(
        health.as_object().map(serde_json::Map::len),
        Some(2),
        "{body}"
    );
}

#[test]
fn bytes_that_are_not_text_and_long_values_survive_the_gateway() {
    if !have("curl", "founding requests") {
        return;
    }
    let process = Start::all().ready();
    let form = [
        "-X",
        "POST",
        "--data-urlencode",
        "key=ключ 键",
        "--data-urlencode",
        "value=a&b=c+d é\n",
    ];
    check(&process, &form, "/api/v1/kv", 200, r#"{"success":true}"#);
    let path = "/api/v1/kv?key=%D0%BA%D0%BB%D1%8E%D1%87%20%E9%94%AE";
    check(
        &process,
        &[],
        path,
        200,
        r#"{"value":"a&b=c+d é\n","found":true}"#,
    );
    let long = "v".repeat(1_000_000);
    let json = format!(r#"{{"key":"long","value":"{long}"}}"#);
    let args = [
        "-sS",
        "-X",
        "POST",
        "-H",
        "content-type: application/json",
        "--data-binary",
        "@-",
    ];
    let url = url(&process, "/api/v1/kv");
    let output = run(command("curl").args(args).arg(&url), json.as_bytes());
    assert_eq!(stdout(&output), r#"{"success":true}"#);
    assert_eq!(
        process.connect().line("STRLEN long"),
        Value::Integer(1_000_000)
    );
}

#[test]
fn node_and_gateway_run_apart() {
    if !have("curl", "founding requests") {
        return;
    }
    let node = Start::node().ready();
    assert!(node.addresses().http.is_none());
    let gateway = Start::gateway(node.addresses().grpc.expect("a node speaks gRPC")).ready();
    assert!(gateway.addresses().resp.is_none() && gateway.addresses().grpc.is_none());
    // It accepts at once, and says 503 until it has learnt the upstream's services.
    wait_until("the gateway knows its upstream's services", || {
        curl(&[&url(&gateway, "/api/v1/kv?key=a")]).0 == 200
    });
    check(
        &gateway,
        &["-X", "POST", "-d", "key=a&value=b"],
        "/api/v1/kv",
        200,
        r#"{"success":true}"#,
    );
    assert_eq!(node.connect().line("GET a"), Value::bulk("b"));
    for process in [&node, &gateway] {
        let admin = format!("http://{}", process.admin());
        assert_eq!(curl(&[&format!("{admin}/healthz")]).0, 200);
        assert_eq!(curl(&[&format!("{admin}/readyz")]).0, 200);
        let (status, metrics) = curl(&[&format!("{admin}/metrics")]);
        assert_eq!(status, 200);
        assert!(metrics.contains("# TYPE flux_"), "{metrics}");
    }
    node.stop();
    let (status, body) = curl(&[&url(&gateway, "/api/v1/kv?key=a")]);
    assert_eq!(status, 503, "{body}");
    gateway.stop();
}

#[test]
fn a_gateway_with_the_nodes_password_serves_those_who_have_none() {
    if !have("curl", "founding requests") {
        return;
    }
    let node = Start::node().variable("FLUX_PASSWORD", "secret").ready();
    let grpc = node.addresses().grpc.expect("a node speaks gRPC");
    // Its descriptors come by reflection, which wants the password too.
    let gateway = Start::gateway(grpc)
        .variable("FLUX_UPSTREAM_PASSWORD", "secret")
        .ready();
    wait_until("the gateway knows its upstream's services", || {
        curl(&[&url(&gateway, "/api/v1/kv?key=a")]).0 == 200
    });
    let form = ["-X", "POST", "-d", "key=a&value=b"];
    check(&gateway, &form, "/api/v1/kv", 200, r#"{"success":true}"#);
    let wrong = ["-H", "authorization: Bearer guessed"];
    let (status, body) = curl(&[&wrong[..], &[&url(&gateway, "/api/v1/kv?key=a")]].concat());
    assert_eq!(status, 401, "{body}");
}

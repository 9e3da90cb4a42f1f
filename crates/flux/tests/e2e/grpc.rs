//! gRPC services through the gateway, without generated code.

use crate::harness::resp::Value;
use crate::harness::{Process, Start, command, have, run, stdout};

/// Posts JSON to a path of the gateway; answers status and body.
fn post(process: &Process, path: &str, body: &str) -> (u16, serde_json::Value) {
    let url = format!("http://{}{path}", process.http());
    let args = [
        "-sS",
        "-w",
        "\n%{http_code}",
        "-H",
        "content-type: application/json",
        "-d",
        body,
    ];
    let output = run(command("curl").args(args).arg(url), b"");
    let text = stdout(&output);
    let (body, status) = text.rsplit_once('\n').expect("curl ends with the status");
    let body = serde_json::from_str(body).unwrap_or_else(|_| panic!("{path}: {body}"));
    (status.parse().expect("a status code"), body)
}

#[test]
fn every_rpc_can_be_called_by_its_name() {
    if !have("curl", "gRPC through the gateway") {
        return;
    }
    for shards in ["1", "4"] {
        let process = Start::all().args(&["--shards", shards]).ready();
        for (rpc, request, response) in [
            ("Set", r#"{"key":"a","value":"1"}"#, r#"{"success":true}"#),
            ("Get", r#"{"key":"a"}"#, r#"{"value":"1","found":true}"#),
            ("Increment", r#"{"key":"a","by":41}"#, r#"{"value":"42"}"#),
            (
                "CompareAndSet",
                r#"{"key":"a","expected":{"value":"42"},"value":"x"}"#,
                r#"{"success":true}"#,
            ),
            (
                "CompareAndSet",
                r#"{"key":"a","expected":{"absent":true},"value":"y","returnPrevious":true}"#,
                r#"{"success":false,"previous":{"key":"","value":"x"}}"#,
            ),
            (
                "Expire",
                r#"{"key":"a","ttlMs":"100000"}"#,
                r#"{"success":true}"#,
            ),
            ("Delete", r#"{"key":"a"}"#, r#"{"success":true}"#),
            ("Get", r#"{"key":"a"}"#, r#"{"value":"","found":false}"#),
            (
                "Batch",
                r#"{"operations":[{"set":{"key":"b","value":"2"}},{"increment":{"key":"c"}}]}"#,
                r#"{"results":[{"set":{"success":true}},{"increment":{"value":"1"}}]}"#,
            ),
        ] {
            let (status, mut body) = post(&process, &format!("/flux.kv.v1.Kv/{rpc}"), request);
            // A revision depends on what came before.
            if let Some(previous) = body
                .get_mut("previous")
                .and_then(|value| value.as_object_mut())
            {
                previous.remove("revision");
            }
            let expected: serde_json::Value = serde_json::from_str(response).expect("JSON");
            assert_eq!((status, body), (200, expected), "{rpc} {request}");
        }
        assert_eq!(process.connect().line("GET c"), Value::bulk("1"));
    }
}

#[test]
fn the_original_service_answers_as_it_did() {
    if !have("curl", "gRPC through the gateway") {
        return;
    }
    let process = Start::all().ready();
    for (rpc, request, response) in [
        (
            "Set",
            r#"{"key":"hello","value":"world"}"#,
            r#"{"success":true}"#,
        ),
        (
            "Get",
            r#"{"key":"hello"}"#,
            r#"{"value":"world","found":true}"#,
        ),
        ("Del", r#"{"key":"hello"}"#, r#"{"success":true}"#),
        ("Get", r#"{"key":"hello"}"#, r#"{"value":"","found":false}"#),
    ] {
        let (status, body) = post(&process, &format!("/service.KVService/{rpc}"), request);
        let expected: serde_json::Value = serde_json::from_str(response).expect("JSON");
        assert_eq!((status, body), (200, expected), "{rpc} {request}");
    }
}

#[test]
fn more_is_answered_only_when_it_is_asked_for() {
    if !have("curl", "gRPC through the gateway") {
        return;
    }
    let process = Start::all().ready();
    let (_, body) = post(
        &process,
        "/api/v1/kv",
        r#"{"key":"k","value":"1","return_revision":true}"#,
    );
    assert_eq!(body["success"], true);
    let first: u64 = body["revision"]
        .as_str()
        .and_then(|text| text.parse().ok())
        .expect("a revision");
    let request = r#"{"key":"k","value":"2","return_revision":true,"return_previous":true}"#;
    let (_, body) = post(&process, "/api/v1/kv", request);
    assert_eq!(body["revision"], (first + 1).to_string());
    assert_eq!(body["previous"]["value"], "1");
    assert_eq!(body["previous"]["revision"], first.to_string());
}

#[test]
fn errors_carry_status_code_and_outcome() {
    if !have("curl", "gRPC through the gateway") {
        return;
    }
    let process = Start::all().ready();
    let (status, body) = post(&process, "/api/v1/kv", r#"{"key":"text","value":"x"}"#);
    assert_eq!(status, 200, "{body}");
    let (status, body) = post(&process, "/flux.kv.v1.Kv/Increment", r#"{"key":"text"}"#);
    assert_eq!(status, 400, "{body}");
    assert!(
        body["message"]
            .as_str()
            .is_some_and(|text| text.contains("not an integer")),
        "{body}"
    );
    let details = body["details"].as_array().expect("an error has details");
    assert!(
        details.iter().any(|detail| detail["outcome"] == "not-done"),
        "{body}"
    );
    let (status, body) = post(&process, "/flux.kv.v1.Kv/Nonsense", "{}");
    assert_eq!(
        (status, &body["code"]),
        (404, &serde_json::json!(5)),
        "{body}"
    );
    let (status, body) = post(
        &process,
        "/flux.kv.v1.Kv/Get",
        r#"{"key":"a","nonsense":1}"#,
    );
    assert_eq!(status, 400, "{body}");
    assert!(
        body["message"]
            .as_str()
            .is_some_and(|text| text.contains("nonsense")),
        "{body}"
    );
}

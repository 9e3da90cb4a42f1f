//! Finding the rpc and filling its request: annotations, configuration, bodies and parameters.

use std::sync::atomic::Ordering;

use crate::Lab;
use crate::client::{Http2, get, post_json, send};

const JARS: &str = r#"
    [[routes]]
    http = "POST /api/jars"
    rpc = "lab.v1.Lab/Fill"
    required = ["jar", "content"]
    response = { fields = ["success"], on-request = { revision = "return_revision" } }

    [[routes]]
    http = "GET /api/jars"
    rpc = "lab.v1.Lab/Look"
    required = ["jar"]
    response = { fields = ["content", "found"], on-request = { revision = "return_revision" } }

    [[routes]]
    http = "DELETE /api/jars"
    rpc = "lab.v1.Lab/Empty"
    required = ["jar"]
    response = { constants = { success = true } }
"#;

const FORM: &str = "application/x-www-form-urlencoded";

#[tokio::test]
async fn configured_routes_show_exactly_the_fields_they_name() {
    let lab = Lab::start_with(JARS);
    let at = lab.address();
    let reply = send(
        at,
        "POST /api/jars",
        Some((FORM, "jar=hello&content=world+%26+more")),
    )
    .await;
    assert_eq!(reply.line(), r#"200 {"success":true}"#);
    let reply = get(at, "/api/jars?jar=hello").await;
    assert_eq!(
        reply.line(),
        r#"200 {"content":"world & more","found":true}"#
    );
    let reply = post_json(at, "/api/jars", r#"{"jar":"hello","content":""}"#).await;
    assert_eq!(reply.line(), r#"200 {"success":true}"#);
    let reply = get(at, "/api/jars?jar=hello").await;
    assert_eq!(reply.line(), r#"200 {"content":"","found":true}"#);
    let reply = get(at, "/api/jars?jar=nosuch").await;
    assert_eq!(reply.line(), r#"200 {"content":"","found":false}"#);
    let reply = send(at, "DELETE /api/jars?jar=nosuch", None).await;
    assert_eq!(reply.line(), r#"200 {"success":true}"#);
}

#[tokio::test]
async fn fields_on_request_appear_when_asked_for() {
    let lab = Lab::start_with(JARS);
    let at = lab.address();
    let asked = r#"{"jar":"a","content":"b","return_revision":true}"#;
    let reply = post_json(at, "/api/jars", asked).await;
    assert_eq!(
        reply.line(),
        r#"200 {"success":true,"revision":"9007199254740993"}"#
    );
    let form = "jar=a&content=b&returnRevision=true";
    let reply = send(at, "POST /api/jars", Some((FORM, form))).await;
    assert_eq!(
        reply.line(),
        r#"200 {"success":true,"revision":"9007199254740993"}"#
    );
    let reply = send(
        at,
        "POST /api/jars?return_revision=1",
        Some((FORM, "jar=a&content=b")),
    )
    .await;
    assert_eq!(
        reply.line(),
        r#"200 {"success":true,"revision":"9007199254740993"}"#
    );
    let reply = get(at, "/api/jars?jar=nosuch&return_revision=true").await;
    assert_eq!(
        reply.line(),
        r#"200 {"content":"","found":false,"revision":null}"#
    );
    let reply = post_json(
        at,
        "/api/jars",
        r#"{"jar":"a","content":"b","returnRevision":false}"#,
    )
    .await;
    assert_eq!(reply.line(), r#"200 {"success":true}"#);
}

#[tokio::test]
async fn a_required_field_that_is_missing_is_named() {
    let lab = Lab::start_with(JARS);
    let at = lab.address();
    for (request, body, fields) in [
        ("POST /api/jars", Some((FORM, "content=world")), vec!["jar"]),
        ("POST /api/jars", Some((FORM, "jar=hello")), vec!["content"]),
        ("POST /api/jars", Some((FORM, "")), vec!["jar", "content"]),
        (
            "POST /api/jars",
            Some(("application/json", "{}")),
            vec!["jar", "content"],
        ),
        (
            "POST /api/jars",
            Some(("application/json", r#"{"jar":"x","content":null}"#)),
            vec!["content"],
        ),
        ("POST /api/jars", None, vec!["jar", "content"]),
        ("GET /api/jars", None, vec!["jar"]),
        ("DELETE /api/jars", None, vec!["jar"]),
    ] {
        let reply = send(at, request, body).await;
        assert_eq!(reply.status, 400, "{request} {body:?}: {}", reply.body);
        let violations = reply.json()["details"][0]["fieldViolations"].clone();
        let named: Vec<&str> = violations
            .as_array()
            .unwrap()
            .iter()
            .map(|v| v["field"].as_str().unwrap())
            .collect();
        assert_eq!(named, fields, "{request} {body:?}");
    }
    assert_eq!(lab.sample.state.calls.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn text_that_is_not_utf8_goes_both_ways_as_base64() {
    let lab = Lab::start_with(JARS);
    let at = lab.address();
    let reply = send(at, "POST /api/jars", Some((FORM, "jar=b&content=%ff%00"))).await;
    assert_eq!(reply.line(), r#"200 {"success":true}"#);
    let reply = get(at, "/api/jars?jar=b").await;
    assert_eq!(
        reply.line(),
        r#"200 {"content":{"base64":"/wA="},"found":true}"#
    );
    let body = r#"{"jar":"c","content":{"base64":"_wA"}}"#;
    assert_eq!(post_json(at, "/api/jars", body).await.status, 200);
    let reply = get(at, "/api/jars?jar=c").await;
    assert_eq!(
        reply.line(),
        r#"200 {"content":{"base64":"/wA="},"found":true}"#
    );
}

#[tokio::test]
async fn every_unary_rpc_is_at_its_own_name() {
    let lab = Lab::start_with("json = { emit-defaults = false }");
    let at = lab.address();
    let reply = post_json(
        at,
        "/lab.v1.Lab/Echo",
        r#"{"text":"hi","large":"9007199254740993"}"#,
    )
    .await;
    assert_eq!(
        reply.line(),
        r#"200 {"text":"hi","large":"9007199254740993"}"#
    );
    let reply = post_json(at, "/lab.v1.Lab/Echo", "").await;
    assert_eq!(reply.line(), "200 {}");
    let reply = send(
        at,
        "POST /lab.v1.Lab/Echo",
        Some((FORM, "text=a&names=x&names=y")),
    )
    .await;
    assert_eq!(reply.line(), r#"200 {"text":"a","names":["x","y"]}"#);
}

#[tokio::test]
async fn annotations_bind_path_query_and_body() {
    let lab = Lab::start_with("json = { emit-defaults = false }");
    let at = lab.address();
    for (request, body, expected) in [
        (
            "POST /v1/echo",
            Some(r#"{"small":5}"#),
            r#"200 {"small":5}"#,
        ),
        ("REPORT /v1/echo?text=x", None, r#"200 {"text":"x"}"#),
        ("GET /v1/echo/a%2Fb%20c", None, r#"200 {"text":"a/b c"}"#),
        ("HEAD /v1/echo/a", None, "200 "),
        (
            "GET /v1/deep/shelves/1/x%2Fy/z:look",
            None,
            r#"200 {"inner":{"text":"shelves/1/x%2Fy/z"}}"#,
        ),
        (
            "PUT /v1/inner/t?small=7",
            Some(r#"{"text":"in","number":"-1"}"#),
            r#"200 {"text":"in","number":"-1"}"#,
        ),
        (
            "GET /v1/numbers?numbers=1&numbers=-2",
            None,
            r#"200 ["1","-2"]"#,
        ),
        ("GET /v1/numbers", None, "200 []"),
        (
            "GET /v1/echo/t?inner.text=a&inner.inner.number=3&color=RED&colors=1&colors=GREEN",
            None,
            r#"200 {"text":"t","color":"RED","inner":{"text":"a","inner":{"number":"3"}},"colors":["RED","GREEN"]}"#,
        ),
        (
            "GET /v1/echo/t?at=2026-01-31T10:00:00%2B02:00&lasting=1.5s&mask=fooBar,b&wrappedFlag=true",
            None,
            r#"200 {"text":"t","at":"2026-01-31T08:00:00Z","lasting":"1.500s","mask":"fooBar,b","wrappedFlag":true}"#,
        ),
        (
            "GET /v1/echo/t?labels%5Ba.b%5D=c&shelves[1]=",
            None,
            r#"400"#,
        ),
        (
            "GET /v1/echo/t?labels[a]=c&blob=-_8&words=%C3%A9",
            None,
            r#"200 {"text":"t","blob":"+/8=","words":"é","labels":{"a":"c"}}"#,
        ),
    ] {
        let reply = send(at, request, body.map(|body| ("application/json", body))).await;
        let line = reply.line();
        assert!(
            line == expected || (expected.len() == 3 && line.starts_with(expected)),
            "{request}\n{line}\n{expected}"
        );
    }
}

#[tokio::test]
async fn query_parameters_that_cannot_be_meant_are_refused_with_their_name() {
    let lab = Lab::start();
    for (path, field) in [
        ("/v1/echo/t?nosuch=1", "nosuch"),
        ("/v1/echo/t?small=1&small=2", "small"),
        ("/v1/echo/t?small=x", "small"),
        ("/v1/echo/t?small=2147483648", "small"),
        ("/v1/echo/t?small=1.5", "small"),
        ("/v1/echo/t?color=BLUE", "color"),
        ("/v1/echo/t?inner=x", "inner"),
        ("/v1/echo/t?inner.nosuch=x", "inner.nosuch"),
        ("/v1/echo/t?object=x", "object"),
        ("/v1/echo/t?flag=maybe", "flag"),
        ("/v1/echo/t?labels=x", "labels"),
        ("/v1/echo/t?blob=!", "blob"),
    ] {
        let reply = get(lab.address(), path).await;
        assert_eq!(reply.status, 400, "{path}: {}", reply.body);
        let named = reply.json()["details"][0]["fieldViolations"][0]["field"].clone();
        assert_eq!(named, field, "{path}");
    }
    assert_eq!(get(lab.address(), "/v1/echo/t?text=%zz").await.status, 400);
    let reply = send(lab.address(), "POST /v1/echo?text=a", None).await;
    assert_eq!(reply.status, 400, "with body * there are no parameters");
}

#[tokio::test]
async fn an_empty_map_value_comes_back_empty() {
    let lab = Lab::start_with("json = { emit-defaults = false }");
    let reply = post_json(lab.address(), "/v1/echo", r#"{"labels":{"k":""}}"#).await;
    assert_eq!(reply.line(), r#"200 {"labels":{"k":""}}"#);
    let reply = post_json(
        lab.address(),
        "/v1/echo",
        r#"{"shelves":{"1":{}},"switches":{"false":0}}"#,
    )
    .await;
    let expected = r#"200 {"shelves":{"1":{}},"switches":{"false":"COLOR_UNSPECIFIED"}}"#;
    assert_eq!(reply.line(), expected);
    let reply = post_json(lab.address(), "/v1/echo", r#"{"labels":{"k":null}}"#).await;
    assert_eq!(reply.status, 400);
}

#[tokio::test]
async fn raw_bodies_pass_as_they_are() {
    let lab = Lab::start();
    let reply = send(
        lab.address(),
        "POST /v1/raw",
        Some(("text/csv", "a,b\n1,2")),
    )
    .await;
    assert_eq!(reply.line(), "200 a,b\n1,2");
    assert_eq!(reply.headers["content-type"], "text/csv");
}

#[tokio::test]
async fn http2_with_prior_knowledge_is_the_same() {
    let lab = Lab::start_with(JARS);
    let client = Http2::connect(lab.address()).await;
    let reply = client
        .post_json("/api/jars", r#"{"jar":"h2","content":"yes"}"#)
        .await;
    assert_eq!(reply.line(), r#"200 {"success":true}"#);
    let reply = client.post_json("/nosuch", "{}").await;
    assert_eq!(reply.status, 404);
    assert_eq!(reply.json()["code"], 5);
}

#[tokio::test]
async fn configured_metadata_is_added_unless_the_request_brings_its_own() {
    let lab = Lab::start_with(
        "[[upstreams]]\nmetadata = { authorization = \"Bearer mine\", x-team = \"a\" }",
    );
    for (header, expected) in [
        ("", "Bearer mine"),
        ("authorization: Bearer theirs\r\n", "Bearer theirs"),
    ] {
        let request =
            format!("GET /v1/echo/a HTTP/1.1\r\nhost: lab\r\nconnection: close\r\n{header}\r\n");
        let reply = crate::client::raw(lab.address(), request.as_bytes()).await;
        assert_eq!(reply.status, 200);
        let metadata = lab.sample.state.metadata.lock().clone();
        let given: Vec<_> = metadata.get_all("authorization").iter().collect();
        assert_eq!(given, [expected]);
        assert_eq!(metadata["x-team"], "a");
    }
}

#[tokio::test]
async fn metadata_passes_in_both_directions_but_what_is_reserved_does_not() {
    let lab = Lab::start();
    let request = "POST /lab.v1.Lab/Look HTTP/1.1\r\nhost: lab\r\nconnection: close, x-hop\r\n\
        x-hop: 1\r\nauthorization: Bearer t\r\ntraceparent: 00-1-2-01\r\nx-forwarded-for: 1.2.3.4\r\n\
        grpc-encoding: gzip\r\nte: trailers\r\ncookie: a=b\r\ncontent-length: 2\r\n\r\n{}";
    let reply = crate::client::raw(lab.address(), request.as_bytes()).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!(reply.headers["x-lab"], "yes");
    assert!(
        reply.headers.keys().all(|name| !name.starts_with("grpc-")),
        "{:?}",
        reply.headers
    );
    let metadata = lab.sample.state.metadata.lock().clone();
    assert_eq!(metadata["authorization"], "Bearer t");
    assert_eq!(metadata["traceparent"], "00-1-2-01");
    for absent in ["x-hop", "cookie", "x-forwarded-for", "grpc-encoding"] {
        assert!(!metadata.contains_key(absent), "{absent}");
    }
    assert!(metadata.contains_key("grpc-timeout"));
}

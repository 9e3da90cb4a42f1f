//! Failures: every one is a `google.rpc.Status` under the right HTTP status.

use crate::Lab;
use crate::client::{get, post_json, send};

#[tokio::test]
async fn a_grpc_status_becomes_its_http_status_with_the_message_decoded() {
    let lab = Lab::start();
    for (code, http) in [
        (1, 499),
        (2, 500),
        (3, 400),
        (4, 504),
        (5, 404),
        (6, 409),
        (7, 403),
        (8, 429),
        (9, 400),
        (10, 409),
        (11, 400),
        (12, 501),
        (13, 500),
        (14, 503),
        (15, 500),
        (16, 401),
    ] {
        let reply = get(
            lab.address(),
            &format!("/v1/fail/{code}?message=no+such+%C3%A9+50%25"),
        )
        .await;
        let expected =
            format!(r#"{http} {{"code":{code},"message":"no such é 50%","details":[]}}"#);
        assert_eq!(reply.line(), expected);
        assert_eq!(reply.headers["content-type"], "application/json");
    }
}

#[tokio::test]
async fn details_are_decoded_by_the_upstreams_types_and_the_well_known_ones() {
    let lab = Lab::start();
    let path = "/v1/fail/9?message=m&details=reason&details=debug&details=bad-request";
    let reply = get(lab.address(), path).await;
    let details = r#"[{"@type":"type.googleapis.com/lab.v1.Reason","outcome":"unknown","hint":"9223372036854775807"},{"@type":"type.googleapis.com/google.rpc.BadRequest","fieldViolations":[{"field":"size","description":"too big"}]}]"#;
    assert_eq!(
        reply.line(),
        format!(r#"400 {{"code":9,"message":"m","details":{details}}}"#)
    );
}

#[tokio::test]
async fn the_gateways_own_refusals_look_the_same() {
    let lab = Lab::start();
    let at = lab.address();
    for (request, body, status, code) in [
        ("GET /nosuch", None, 404, 5),
        ("GET /", None, 404, 5),
        ("GET /v1/echo/", None, 404, 5),
        ("DELETE /v1/raw", None, 405, 12),
        ("GET /lab.v1.Lab/Echo", None, 405, 12),
        ("POST /v1/echo", Some(("text/plain", "hi")), 415, 3),
        ("POST /v1/echo", Some(("application/json", "{")), 400, 3),
        (
            "POST /v1/echo",
            Some(("application/x-www-form-urlencoded", "{\"text\":\"a\"}")),
            400,
            3,
        ),
        ("GET /v1/echo/a", Some(("application/json", "{}")), 400, 3),
        ("GET /v1/../x", None, 400, 3),
        ("GET /v1//x", None, 400, 3),
        ("GET /v1/%2e%2e/x", None, 400, 3),
        ("GET /v1/echo/a%00", None, 400, 3),
        (
            "POST /lab.v1.Lab/Echo/../Fill",
            Some(("application/json", "{}")),
            400,
            3,
        ),
        ("POST /health", None, 405, 12),
    ] {
        let reply = send(at, request, body).await;
        assert_eq!(reply.status, status, "{request}: {}", reply.body);
        assert_eq!(reply.json()["code"], code, "{request}");
        assert!(!reply.json()["message"].as_str().unwrap().is_empty());
    }
    let reply = send(at, "DELETE /v1/echo", None).await;
    assert_eq!(reply.headers["allow"], "POST, REPORT");
}

#[tokio::test]
async fn json_that_breaks_the_rules_is_refused_with_the_path_of_the_field() {
    let lab = Lab::start();
    for (body, field) in [
        (r#"{"nosuch":1}"#, "nosuch"),
        (r#"{"text":"a","text":"b"}"#, "text"),
        (r#"{"small":1,"small":1}"#, "small"),
        (r#"{"small_unsigned":1,"smallUnsigned":1}"#, "smallUnsigned"),
        (r#"{"small":2147483648}"#, "small"),
        (r#"{"small":1.5}"#, "small"),
        (r#"{"small":"x"}"#, "small"),
        (r#"{"smallUnsigned":-1}"#, "smallUnsigned"),
        (r#"{"large":"9223372036854775808"}"#, "large"),
        (r#"{"color":"BLUE"}"#, "color"),
        (r#"{"flag":"true"}"#, "flag"),
        (r#"{"text":5}"#, "text"),
        (r#"{"inner":[]}"#, "inner"),
        (r#"{"inners":[{},{"number":"z"}]}"#, "inners[1].number"),
        (r#"{"inners":[null]}"#, "inners[0]"),
        (r#"{"numbers":["1",null]}"#, "numbers[1]"),
        (r#"{"labels":{"a":null}}"#, "labels.a"),
        (r#"{"labels":{"a":"1","a":"2"}}"#, "labels.a"),
        (r#"{"switches":{"yes":0}}"#, "switches.yes"),
        (r#"{"left":"a","right":1}"#, "right"),
        (r#"{"blob":"a"}"#, "blob"),
        (r#"{"at":"yesterday"}"#, "at"),
        (r#"{"lasting":"5"}"#, "lasting"),
        (
            r#"{"any":{"@type":"type.googleapis.com/no.Such"}}"#,
            "any.@type",
        ),
        (
            r#"{"any":{"@type":"type.googleapis.com/lab.v1.Inner","number":"q"}}"#,
            "any.number",
        ),
        (r#"{"text":"\ud83d"}"#, "text"),
        (r#"{"single":1e60}"#, "single"),
    ] {
        let reply = post_json(lab.address(), "/v1/echo", body).await;
        assert_eq!(reply.status, 400, "{body}: {}", reply.body);
        let named = reply.json()["details"][0]["fieldViolations"][0]["field"].clone();
        assert_eq!(named, field, "{body}: {}", reply.body);
    }
}

#[tokio::test]
async fn unknown_fields_can_be_ignored() {
    let toml = "json = { unknown-fields = \"ignore\", emit-defaults = false, names = \"proto\" }";
    let lab = Lab::start_with(toml);
    let body = r#"{"nosuch":{"a":[1]},"small_unsigned":1}"#;
    let reply = post_json(lab.address(), "/v1/echo", body).await;
    assert_eq!(reply.line(), r#"200 {"small_unsigned":1}"#);
    let reply = get(lab.address(), "/v1/echo/t?nosuch=1").await;
    assert_eq!(reply.line(), r#"200 {"text":"t"}"#);
}

#[tokio::test]
async fn a_route_whose_rpc_does_not_exist_says_so() {
    let toml = "[[routes]]\nhttp = \"GET /gone\"\nrpc = \"lab.v1.Lab/Gone\"";
    let lab = Lab::start_with(toml);
    let reply = get(lab.address(), "/gone").await;
    assert_eq!(
        (reply.status, reply.json()["code"].clone()),
        (501, 12.into())
    );
}

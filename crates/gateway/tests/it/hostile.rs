//! Attacks: bytes that two readers could cut differently, floods, slowness; each is answered or cut
//! off, none reaches the service, and others are served meanwhile.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::Lab;
use crate::client::{PATIENCE, get, post_json, raw, raw_text};

const SMUGGLED: &str = "GET /v1/echo/smuggled HTTP/1.1\r\nhost: lab\r\n\r\n";

#[tokio::test]
async fn what_is_no_http_is_answered_with_a_status_too() {
    let lab = Lab::start();
    for bytes in [
        "\x16\x03\x01\x02\x00\x01\x00\x01\u{fc}\x03\x03 hello TLS\r\n\r\n",
        "*1\r\n$4\r\nPING\r\n",
        "GET\r\n\r\n",
        "GET /health HTTP/9.9\r\n\r\n",
        "GET /health HTTP/1.1\r\nno colon\r\n\r\n",
        "GET /health HTTP/1.1\r\nhost: lab\r\nx-nul: a\0b\r\n\r\n",
        "GE T /health HTTP/1.1\r\n\r\n",
        "\0\0\0\0\r\n\r\n",
    ] {
        let reply = raw(lab.address(), bytes.as_bytes()).await;
        assert_eq!(reply.status, 400, "{bytes:?}: {}", reply.line());
        let json = reply.json();
        assert_eq!(
            (&json["code"], &json["details"][0]["reason"]),
            (&3.into(), &"BAD_HTTP".into())
        );
        assert_eq!(reply.headers["content-type"], "application/json");
        assert_eq!(reply.headers["connection"], "close");
    }
    // After good requests on the same connection, all of them are answered first.
    let one = "GET /v1/echo/one HTTP/1.1\r\nhost: lab\r\n\r\n";
    let text = raw_text(
        lab.address(),
        format!("{one}{one}nonsense\r\n\r\n").as_bytes(),
    )
    .await;
    assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 2, "{text}");
    assert!(text.ends_with("}") && text.contains("BAD_HTTP"), "{text}");
}

#[tokio::test]
async fn a_request_that_can_be_cut_in_two_ways_is_refused_and_nothing_after_it_is_read() {
    let lab = Lab::start();
    for headers in [
        "content-length: 5\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ncontent-length: 5",
        "Transfer-Encoding: chunked\r\nCONTENT-LENGTH: 5",
        "content-length: 5\r\ncontent-length: 6",
        "content-length: 5, 6",
        "content-length: +5",
        "content-length: 0x5",
        "content-length: 99999999999999999999",
        "content-length: -1",
        "content-length : 5",
        "x-folded: a\r\n content-length: 5",
        "x-folded: a\r\n\ttransfer-encoding: chunked",
        "x-bare: a\ncontent-length: 5",
        "transfer-encoding: chunked\n",
        "x-cr: a\rcontent-length: 5",
    ] {
        let request =
            format!("POST /v1/echo HTTP/1.1\r\nhost: lab\r\n{headers}\r\n\r\n0\r\n\r\n{SMUGGLED}");
        let text = raw_text(lab.address(), request.as_bytes()).await;
        assert!(text.starts_with("HTTP/1.1 400 "), "{headers:?}: {text}");
        assert!(text.contains("BAD_HTTP"), "{headers:?}: {text}");
        assert_eq!(text.matches("HTTP/1.1 ").count(), 1, "{headers:?}: {text}");
    }
    // At once, not when more comes.
    let head = "POST /v1/echo HTTP/1.1\r\nhost: lab\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n";
    assert_eq!(raw(lab.address(), head.as_bytes()).await.status, 400);
    for coding in [
        "gzip",
        "chunked, identity",
        "identity, chunked",
        "xchunked",
        "chunked\r\ntransfer-encoding: chunked",
    ] {
        let request = format!(
            "POST /v1/echo HTTP/1.1\r\nhost: lab\r\ntransfer-encoding: {coding}\r\n\r\n0\r\n\r\n{SMUGGLED}"
        );
        let text = raw_text(lab.address(), request.as_bytes()).await;
        let status = text.get(9..12).unwrap_or_default();
        assert!(["400", "501"].contains(&status), "{coding:?}: {text}");
        assert!(!text.contains("smuggled"), "{coding:?}: {text}");
    }
    let calls = lab.sample.state.calls.load(Ordering::Relaxed);
    assert_eq!(calls, 0, "nothing of it reached the service");
}

#[tokio::test]
async fn chunks_that_are_not_as_they_say_are_refused() {
    let lab = Lab::start();
    for chunks in [
        "+5\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "5 5\r\nhello\r\n0\r\n\r\n",
        "-1\r\nhello\r\n0\r\n\r\n",
        "fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        "5\nhello\n0\n\n",
        "5;a\nb\r\nhello\r\n0\r\n\r\n",
        "5\r\nhelloXX0\r\n\r\n",
        "g\r\nhello\r\n0\r\n\r\n",
        "\r\n5\r\nhello\r\n0\r\n\r\n",
    ] {
        let request = format!(
            "POST /v1/echo HTTP/1.1\r\nhost: lab\r\ntransfer-encoding: chunked\r\n\r\n{chunks}{SMUGGLED}"
        );
        let text = raw_text(lab.address(), request.as_bytes()).await;
        let status = text.get(9..12).unwrap_or_default();
        assert!(["400", "413"].contains(&status), "{chunks:?}: {text}");
        assert!(text.contains("\"code\":"), "{chunks:?}: {text}");
        assert_eq!(text.matches("HTTP/1.1 ").count(), 1, "{chunks:?}: {text}");
    }
    assert_eq!(lab.sample.state.calls.load(Ordering::Relaxed), 0);
    // Extensions and trailers are allowed, and not part of the body.
    let good = "POST /v1/echo HTTP/1.1\r\nhost: lab\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n\
         4;name=value\r\n{\"te\r\n9\r\nxt\":\"a\"} \r\n0\r\nx-trailer: b\r\n\r\n";
    assert_eq!(raw(lab.address(), good.as_bytes()).await.status, 200);
}

#[tokio::test]
async fn paths_that_lead_elsewhere_are_refused() {
    let lab = Lab::start();
    for path in [
        "/lab.v1.Lab/Echo/../Fill",
        "/lab.v1.Lab/%2e%2e/Fill",
        "/lab.v1.Lab/%2E%2E%2FFill",
        "/v1/echo/%2e%2e%2fadmin",
        "/v1/echo/..%5cadmin",
        "//v1/echo/a",
        "/v1//echo/a",
        "/v1/echo/a%00b",
        "/v1/echo/%c0%af",
        "/v1/echo/%c0%ae%c0%ae",
        "/v1/echo/%ff",
        "/v1/echo/%zz",
        "/lab.v1.Lab/Nosuch",
        "/lab.v1.Admin/Echo",
        "/lab.v1.Lab/Echo/",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    ] {
        for method in ["GET", "POST"] {
            let request = format!(
                "{method} {path} HTTP/1.1\r\nhost: lab\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            );
            let reply = raw(lab.address(), request.as_bytes()).await;
            assert!(
                [400, 404, 405].contains(&reply.status),
                "{method} {path}: {}",
                reply.line()
            );
            assert!(reply.json()["code"].is_u64(), "{path}");
        }
    }
    assert_eq!(lab.sample.state.calls.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn what_belongs_to_the_connection_or_to_grpc_is_never_passed_on() {
    let lab = Lab::start();
    let request = "POST /v1/echo HTTP/1.1\r\nhost: evil\r\nconnection: close, x-hop\r\nx-hop: 1\r\nte: trailers\r\n\
         keep-alive: timeout=5\r\nproxy-authorization: secret\r\nupgrade: h2c\r\ngrpc-encoding: gzip\r\n\
         grpc-accept-encoding: gzip\r\ngrpc-trace-bin: AAAA\r\ngrpc-status: 13\r\nx-forwarded-for: 1.2.3.4\r\n\
         cookie: a=b\r\nx-request-id: kept\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
    assert_eq!(raw(lab.address(), request.as_bytes()).await.status, 200);
    let mut names: Vec<String> = lab
        .sample
        .state
        .metadata
        .lock()
        .keys()
        .map(ToString::to_string)
        .collect();
    names.sort();
    let allowed = [
        // Of the gRPC message, not of the body that came.
        "content-length",
        "content-type",
        "grpc-timeout",
        "te",
        "traceparent",
        "tracestate",
        "user-agent",
        "x-request-id",
    ];
    assert!(
        names.iter().all(|name| allowed.contains(&name.as_str())),
        "{names:?}"
    );
    assert!(names.contains(&"x-request-id".to_owned()));
}

#[tokio::test]
async fn two_hundred_slow_clients_end_in_bounded_time_and_hold_up_nobody() {
    let lab = Lab::start_with("header-read-timeout = \"400ms\"");
    let at = lab.address();
    let mut slow = tokio::task::JoinSet::new();
    for number in 0..200_u32 {
        slow.spawn(async move {
            let mut stream = TcpStream::connect(at).await.unwrap();
            let start = if number % 2 == 0 {
                "GET /health HTTP/1.1\r\nx: "
            } else {
                "PRI * HT"
            };
            stream.write_all(start.as_bytes()).await.unwrap();
            let mut answer = [0; 1_024];
            // A byte now and then does not buy time.
            loop {
                let pause = Duration::from_millis(20);
                match timeout(pause, stream.read(&mut answer)).await {
                    Ok(Ok(0) | Err(_)) => return,
                    Ok(Ok(_)) => {}
                    Err(_) if number % 2 == 0 => {
                        if stream.write_all(b"a").await.is_err() {
                            return;
                        }
                    }
                    Err(_) => {}
                }
            }
        });
    }
    for _ in 0..20 {
        assert_eq!(post_json(at, "/v1/echo", "{}").await.status, 200);
    }
    let ended = async { while slow.join_next().await.is_some() {} };
    timeout(PATIENCE, ended)
        .await
        .expect("slow clients are let go");
    assert_eq!(get(at, "/health").await.status, 200);
}

/// An HTTP/2 connection by hand: what follows the preface is up to the test.
async fn http2_by_hand(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await
        .unwrap();
    stream.write_all(&frame(0x4, 0, 0, b"")).await.unwrap();
    stream
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// `POST http://lab/v1/hang`, without indexing and Huffman codes.
fn hang_headers() -> Vec<u8> {
    let mut block = vec![0x83, 0x86];
    for (index, value) in [(0x04, "/v1/hang"), (0x01, "lab")] {
        block.push(index);
        block.push(u8::try_from(value.len()).unwrap());
        block.extend_from_slice(value.as_bytes());
    }
    block
}

/// Sends until the peer has had enough; whether it had.
async fn flood(mut stream: TcpStream, mut piece: impl FnMut(u32) -> Vec<u8>) -> bool {
    let (mut reader, mut writer) = stream.split();
    let reading = async {
        let mut sink = vec![0; 64 << 10];
        while reader.read(&mut sink).await.is_ok_and(|count| count > 0) {}
    };
    let writing = async {
        for number in 0..200_000 {
            if writer.write_all(&piece(number)).await.is_err() {
                return true;
            }
        }
        false
    };
    tokio::select! {
        () = reading => true,
        was_refused = writing => was_refused,
    }
}

#[tokio::test]
async fn rapid_resets_close_the_connection() {
    let lab = Lab::start();
    let stream = http2_by_hand(lab.address()).await;
    let headers = hang_headers();
    let flooding = flood(stream, |number| {
        let id = 2 * number + 1;
        // END_HEADERS and END_STREAM, then CANCEL.
        let mut both = frame(0x1, 0x5, id, &headers);
        both.extend(frame(0x3, 0, id, &8_u32.to_be_bytes()));
        both
    });
    assert!(timeout(PATIENCE, flooding).await.expect("an end in time"));
    assert_eq!(post_json(lab.address(), "/v1/echo", "{}").await.status, 200);
    let calls = lab.sample.state.calls.load(Ordering::Relaxed);
    assert!(calls < 2_000, "{calls} calls were let through");
}

#[tokio::test]
async fn endless_headers_close_the_connection() {
    let lab = Lab::start();
    let stream = http2_by_hand(lab.address()).await;
    // A header of 4 KiB in each CONTINUATION, and never END_HEADERS.
    let mut header = vec![0x00, 0x01, b'x', 0x7f, 0xff - 0x7f, 0x1f];
    header.extend_from_slice(&[b'a'; 4_096]);
    let flooding = flood(stream, |number| match number {
        0 => frame(0x1, 0x1, 1, &hang_headers()),
        _ => frame(0x9, 0, 1, &header),
    });
    assert!(timeout(PATIENCE, flooding).await.expect("an end in time"));
    assert_eq!(post_json(lab.address(), "/v1/echo", "{}").await.status, 200);
    assert_eq!(lab.sample.state.calls.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn floods_of_settings_and_pings_hold_up_nobody() {
    let lab = Lab::start();
    let at = lab.address();
    let mut floods = tokio::task::JoinSet::new();
    for (kind, payload) in [(0x4, &b""[..]), (0x6, &b"12345678"[..])] {
        let stream = http2_by_hand(at).await;
        floods.spawn(async move { flood(stream, |_| frame(kind, 0, 0, payload)).await });
    }
    for _ in 0..20 {
        let reply = timeout(PATIENCE, post_json(at, "/v1/echo", "{}")).await;
        assert_eq!(reply.expect("others are served").status, 200);
    }
    floods.shutdown().await;
}

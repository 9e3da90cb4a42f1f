//! hyper's own answers to what is not HTTP, given a body.
//!
//! Bytes that hyper cannot parse never reach the pipeline: hyper answers 400, 414 or 431 without a
//! body and closes. A caller should have one way to read an error all the same, so such an answer
//! is recognized on its way to the socket and replaced by one with a `google.rpc.Status`. The
//! pipeline never writes such an answer itself: its failures have bodies.

use crate::status::{Code, Failure};
use crate::transcode::plan::Plans;

/// hyper's head is this long at most: a status line, `connection`, `content-length` and `date`.
const HEAD_BYTES_MAX: usize = 200;

/// Where an answer without a body that hyper gave by itself begins, if the bytes end with one.
pub(crate) fn find(bytes: &[u8]) -> Option<(usize, u16)> {
    // All but such answers and the very last chunk of a stream end otherwise.
    let heads = bytes.strip_suffix(b"\r\n\r\n")?;
    let from = heads.len().saturating_sub(HEAD_BYTES_MAX);
    let tail = heads.get(from..).unwrap_or_default();
    let at = tail.windows(10).rposition(|ten| ten == b"HTTP/1.1 4")?;
    let head = std::str::from_utf8(tail.get(at..)?).ok()?;
    let status: u16 = head.get(9..12)?.parse().ok()?;
    let is_bare = matches!(status, 400 | 414 | 431)
        && head
            .split("\r\n")
            .any(|line| line.eq_ignore_ascii_case("content-length: 0"));
    is_bare.then_some((from + at, status))
}

/// The answer that is given in its place.
pub(crate) fn answer(status: u16) -> Vec<u8> {
    let (code, message, reason) = match status {
        431 => (
            Code::ResourceExhausted,
            "the request headers are too large",
            "HEADERS_TOO_LARGE",
        ),
        414 => (
            Code::InvalidArgument,
            "the request's address is too long",
            "ADDRESS_TOO_LONG",
        ),
        _ => (
            Code::InvalidArgument,
            "this is no HTTP request, or one that can be read in two ways",
            "BAD_HTTP",
        ),
    };
    let http = http::StatusCode::from_u16(status).unwrap_or_else(|_| code.http());
    let failure = Failure::new(code, message).http(http).reason(reason);
    let body = failure.to_json(&Plans::none());
    let mut answer = format!(
        "HTTP/1.1 {http}\r\ncontent-type: application/json\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    answer.extend_from_slice(&body);
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    const BARE: &str = "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\
         date: Wed, 25 Nov 2026 19:00:00 GMT\r\n\r\n";

    #[test]
    fn only_a_bare_answer_at_the_end_is_found() {
        assert_eq!(find(BARE.as_bytes()), Some((0, 400)));
        let before = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
        let both = format!("{before}{BARE}");
        assert_eq!(find(both.as_bytes()), Some((before.len(), 400)));
        let too_large = BARE.replace("400 Bad Request", "431 Request Header Fields Too Large");
        assert_eq!(find(too_large.as_bytes()), Some((0, 431)));
        for other in [
            "",
            "\r\n\r\n",
            before,
            &BARE.replace("content-length: 0", "content-length: 10"),
            &BARE.replace("400", "404"),
            &format!("{BARE}body"),
            "0\r\n\r\n",
            "HTTP/1.1 4\r\n\r\n",
        ] {
            assert_eq!(find(other.as_bytes()), None, "{other:?}");
        }
    }

    #[test]
    fn the_answer_in_its_place_is_whole() {
        for status in [400, 414, 431] {
            let text = String::from_utf8(answer(status)).unwrap();
            assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{text}");
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            assert!(head.contains(&format!("content-length: {}", body.len())));
            let json: serde_json::Value = serde_json::from_str(body).unwrap();
            assert!(json["message"].is_string() && json["code"].is_u64());
            assert_eq!(find(text.as_bytes()), None);
        }
    }
}

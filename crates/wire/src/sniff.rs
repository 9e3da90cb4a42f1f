//! Tells from a connection's first bytes which protocol it speaks.
//!
//! RESP and FLUX share a port. A FLUX connection opens with the four bytes `FLX1`, which begin
//! neither a RESP array nor the name of any command; everything else is RESP. HTTP is recognized
//! only to be told where it belongs.

/// What the first bytes of a connection say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sniffed {
    /// The FLUX preface follows (its first four bytes were seen; none is consumed).
    Flux,
    /// RESP: an array, or an inline command.
    Resp,
    /// HTTP/1 or HTTP/2: send [`HTTP_ANSWER`] and close.
    Http,
    /// Too few bytes to tell.
    NeedMore,
}

/// What an HTTP client is told before its connection is closed.
pub const HTTP_ANSWER: &[u8] = b"HTTP/1.1 400 Bad Request\r\n\
content-type: text/plain; charset=utf-8\r\n\
content-length: 66\r\n\
connection: close\r\n\
\r\n\
this port speaks RESP and FLUX; HTTP is served on the gateway port";

/// Bytes of a first line after which it is no longer waited for: no request line of a browser or
/// of curl to the wrong port is longer in practice, and RESP will bound it anyway.
const REQUEST_LINE_BYTES_MAX: usize = 1024;

/// HTTP methods that no Redis command is called. `GET` is one of both: its whole line decides.
const METHODS: [&[u8]; 9] = [
    b"PRI * HTTP/2",
    b"POST /",
    b"PUT /",
    b"HEAD /",
    b"DELETE /",
    b"PATCH /",
    b"TRACE /",
    b"CONNECT ",
    b"OPTIONS ",
];

/// Looks at the first bytes of a connection without consuming them.
#[must_use]
pub fn sniff(bytes: &[u8]) -> Sniffed {
    let magic = crate::flux::MAGIC.as_slice();
    if bytes.starts_with(magic) {
        return Sniffed::Flux;
    }
    if METHODS.iter().any(|method| bytes.starts_with(method)) {
        return Sniffed::Http;
    }
    if bytes.starts_with(b"GET /") {
        return sniff_get(bytes);
    }
    let is_beginning = magic.starts_with(bytes)
        || b"GET /".starts_with(bytes)
        || METHODS.iter().any(|method| method.starts_with(bytes));
    if is_beginning {
        Sniffed::NeedMore
    } else {
        Sniffed::Resp
    }
}

/// Tells `GET /path HTTP/1.1` from an inline `GET /key`.
fn sniff_get(bytes: &[u8]) -> Sniffed {
    match memchr::memchr(b'\n', bytes) {
        Some(end) => {
            let line = bytes.get(..end).unwrap_or_default().trim_ascii_end();
            if line.ends_with(b" HTTP/1.1") || line.ends_with(b" HTTP/1.0") {
                Sniffed::Http
            } else {
                Sniffed::Resp
            }
        }
        None if bytes.len() < REQUEST_LINE_BYTES_MAX => Sniffed::NeedMore,
        None => Sniffed::Resp,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_tell_the_protocol() {
        use Sniffed::{Flux, Http, NeedMore, Resp};
        for (bytes, sniffed) in [
            ("", NeedMore),
            ("F", NeedMore),
            ("FLX", NeedMore),
            ("FLX1", Flux),
            ("FLX1\u{1}\u{1}", Flux),
            ("FLX2", Resp),
            ("FLUSHALL\r\n", Resp),
            ("*1\r\n$4\r\nPING\r\n", Resp),
            ("*", Resp),
            ("P", NeedMore),
            ("PI", Resp),
            ("PING\r\n", Resp),
            ("\r\n", Resp),
            ("GET k\r\n", Resp),
            ("GET ", NeedMore),
            ("GET /k\r\n", Resp),
            ("GET /k HTTP/1.1", NeedMore),
            ("GET /k HTTP/1.1\r\n", Http),
            ("GET / HTTP/1.0\n", Http),
            ("POST /", Http),
            ("POST /api", Http),
            ("PRI * HTTP/2.0\r\n", Http),
            ("DEL k\r\n", Resp),
        ] {
            assert_eq!(sniff(bytes.as_bytes()), sniffed, "{bytes:?}");
        }
    }

    #[test]
    fn an_endless_get_line_is_left_to_resp() {
        let mut line = b"GET /".to_vec();
        line.resize(REQUEST_LINE_BYTES_MAX, b'a');
        assert_eq!(sniff(&line), Sniffed::Resp);
    }

    #[test]
    fn the_answer_to_http_has_the_length_it_says() {
        let answer = std::str::from_utf8(HTTP_ANSWER).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())));
    }
}

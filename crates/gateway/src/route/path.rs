//! Which request paths are looked at at all.
//!
//! Anything that two parties could read differently is refused before routing: empty segments,
//! `.` and `..` in any spelling, NUL and broken escapes. So no proxy in front and no upstream
//! behind can see another resource than the one that was matched here.

use percent_encoding::percent_decode;

use crate::transcode::bind::check_escapes;

/// Cuts a request path into its raw segments, or says what is wrong with it.
pub(crate) fn segments(path: &str) -> Result<Vec<&str>, &'static str> {
    let body = path
        .strip_prefix('/')
        .ok_or("the path does not begin with /")?;
    if body.is_empty() {
        return Ok(Vec::new());
    }
    check_escapes(body.as_bytes()).map_err(|_| "the path has a broken % escape")?;
    let mut segments = Vec::with_capacity(8);
    for segment in body.split('/') {
        if segment.contains('%') {
            let decoded: Vec<u8> = percent_decode(segment.as_bytes()).collect();
            if decoded.contains(&0) {
                return Err("the path holds a NUL");
            }
            if has_dot_part(&decoded) {
                return Err("the path holds a . or .. segment");
            }
        } else if segment == "." || segment == ".." {
            return Err("the path holds a . or .. segment");
        }
        segments.push(segment);
    }
    // A trailing slash is another path, which simply does not match; inside it is a mistake.
    let inner = segments.len() - 1;
    if segments
        .iter()
        .take(inner)
        .any(|segment| segment.is_empty())
    {
        return Err("the path holds an empty segment");
    }
    Ok(segments)
}

/// Whether a decoded segment is, or as a path would contain, `.` or `..`.
fn has_dot_part(decoded: &[u8]) -> bool {
    decoded
        .split(|byte| matches!(byte, b'/' | b'\\'))
        .any(|part| part == b"." || part == b"..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_could_be_read_twice_are_refused() {
        for bad in [
            "a",
            "/a//b",
            "//a",
            "/a/../b",
            "/a/..",
            "/./a",
            "/%2e%2e/a",
            "/a/%2E",
            "/a%00b",
            "/a%2",
            "/a%zz",
            "/a%2F..%2Fb",
            "/..%5ca",
        ] {
            assert!(segments(bad).is_err(), "{bad}");
        }
        for good in [
            "/",
            "/a",
            "/a/b/",
            "/a%2Fb",
            "/a...b",
            "/.well-known/x",
            "/a/%20",
        ] {
            assert!(segments(good).is_ok(), "{good}");
        }
    }
}

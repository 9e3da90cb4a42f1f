//! Routing keys: `kv.<db>.<event>.<namespace>`, so that a queue can bind what it wants to see.

/// Longest namespace; the whole key then stays far below AMQP's 255 bytes.
const NAMESPACE_BYTES_MAX: usize = 64;

/// Appends the routing key of a data event: `kv.0.set.user` for a put of `user:1`.
///
/// The namespace is the key up to the first `:`, in characters that are safe in a pattern; `_` if
/// there is none of it.
pub(super) fn write_of_data(event: &str, key: &[u8], out: &mut Vec<u8>) {
    let end = key.iter().position(|byte| *byte == b':');
    let namespace = end.map_or(key, |end| key.get(..end).unwrap_or_default());
    out.extend_from_slice(b"kv.0.");
    out.extend_from_slice(event.as_bytes());
    out.push(b'.');
    if namespace.is_empty() {
        out.push(b'_');
    }
    out.extend(namespace.iter().take(NAMESPACE_BYTES_MAX).map(|byte| {
        let is_plain = byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        if is_plain { *byte } else { b'_' }
    }));
}

/// The routing key of an event about the stream itself: `ctl.gap`.
#[must_use]
pub fn of_control(event: &str) -> String {
    format!("ctl.{event}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_data(event: &str, key: &[u8]) -> String {
        let mut routing = Vec::new();
        write_of_data(event, key, &mut routing);
        String::from_utf8(routing).expect("letters, digits and signs")
    }

    #[test]
    fn the_namespace_is_the_key_up_to_the_first_colon() {
        assert_eq!(of_data("set", b"user:1:name"), "kv.0.set.user");
        assert_eq!(of_data("delete", b"hello"), "kv.0.delete.hello");
        assert_eq!(of_control("gap"), "ctl.gap");
    }

    #[test]
    fn any_key_makes_one_safe_word() {
        assert_eq!(of_data("set", b""), "kv.0.set._");
        assert_eq!(of_data("set", b":x"), "kv.0.set._");
        assert_eq!(of_data("set", b"a.b#*\xff c"), "kv.0.set.a_b____c");
        let long = of_data("expired", &[b'k'; 70_000]);
        assert_eq!(long.len(), "kv.0.expired.".len() + 64);
    }
}

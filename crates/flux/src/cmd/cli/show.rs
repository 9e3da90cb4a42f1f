//! Replies as people read them: redis-cli's forms with types, bare ones for pipes, and JSON.

use bytes::Bytes;

/// A reply on its way to a screen.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    /// `OK` and its like.
    Status(String),
    /// Text of several lines, for people: shown as it is.
    Text(String),
    /// A code word and a sentence.
    Error(String),
    /// A whole number.
    Integer(i64),
    /// A string of bytes.
    Bulk(Bytes),
    /// Nothing there.
    Nil,
    /// Several, in order.
    Array(Vec<Self>),
    /// Names with values.
    Map(Vec<(Self, Self)>),
}

/// The three ways to show a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// With types, quoted and numbered.
    Typed,
    /// Nothing but the bytes.
    Raw,
    /// One JSON value.
    Json,
}

/// The value with a line break at its end.
pub(crate) fn show(value: &Value, form: Form) -> Vec<u8> {
    let mut out = Vec::new();
    match form {
        Form::Typed => typed(value, "", &mut out),
        Form::Raw => {
            raw(value, &mut out);
            out.push(b'\n');
        }
        Form::Json => {
            out.extend_from_slice(json(value).to_string().as_bytes());
            out.push(b'\n');
        }
    }
    out
}

/// redis-cli's form. Replies nest no deeper than what a transaction can hold.
fn typed(value: &Value, prefix: &str, out: &mut Vec<u8>) {
    match value {
        Value::Status(text) | Value::Text(text) => out.extend_from_slice(text.as_bytes()),
        Value::Error(text) => out.extend_from_slice(format!("(error) {text}").as_bytes()),
        Value::Integer(number) => out.extend_from_slice(format!("(integer) {number}").as_bytes()),
        Value::Bulk(bytes) => out.extend_from_slice(quoted(bytes).as_bytes()),
        Value::Nil => out.extend_from_slice(b"(nil)"),
        Value::Array(values) if values.is_empty() => out.extend_from_slice(b"(empty array)"),
        Value::Map(pairs) if pairs.is_empty() => out.extend_from_slice(b"(empty hash)"),
        Value::Array(values) => {
            let width = values.len().to_string().len();
            let inner = format!("{prefix}{}", " ".repeat(width + 2));
            for (index, value) in values.iter().enumerate() {
                let before = if index == 0 { "" } else { prefix };
                out.extend_from_slice(format!("{before}{:>width$}) ", index + 1).as_bytes());
                typed(value, &inner, out);
            }
            return;
        }
        Value::Map(pairs) => {
            let width = pairs.len().to_string().len();
            let inner = format!("{prefix}{}", " ".repeat(width + 2));
            for (index, (name, value)) in pairs.iter().enumerate() {
                let before = if index == 0 { "" } else { prefix };
                out.extend_from_slice(format!("{before}{:>width$}# ", index + 1).as_bytes());
                typed(name, &inner, out);
                out.pop();
                out.extend_from_slice(b" => ");
                typed(value, &inner, out);
            }
            return;
        }
    }
    out.push(b'\n');
}

fn raw(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Status(text) | Value::Text(text) | Value::Error(text) => {
            out.extend_from_slice(text.as_bytes())
        }
        Value::Integer(number) => out.extend_from_slice(number.to_string().as_bytes()),
        Value::Bulk(bytes) => out.extend_from_slice(bytes),
        Value::Nil => {}
        Value::Array(values) => {
            for (index, value) in values.iter().enumerate() {
                if index > 0 {
                    out.push(b'\n');
                }
                raw(value, out);
            }
        }
        Value::Map(pairs) => {
            for (index, (name, value)) in pairs.iter().enumerate() {
                if index > 0 {
                    out.push(b'\n');
                }
                raw(name, out);
                out.push(b' ');
                raw(value, out);
            }
        }
    }
}

fn json(value: &Value) -> serde_json::Value {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match value {
        Value::Status(text) | Value::Text(text) => serde_json::Value::from(text.as_str()),
        Value::Error(text) => serde_json::json!({ "error": text }),
        Value::Integer(number) => serde_json::Value::from(*number),
        Value::Bulk(bytes) => serde_json::Value::from(text(bytes)),
        Value::Nil => serde_json::Value::Null,
        Value::Array(values) => serde_json::Value::Array(values.iter().map(json).collect()),
        Value::Map(pairs) => pairs
            .iter()
            .map(|(name, value)| {
                let mut bare = Vec::new();
                raw(name, &mut bare);
                (text(&bare), json(value))
            })
            .collect(),
    }
}

/// `"…"` with everything escaped that is not printable ASCII.
pub(crate) fn quoted(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() + 2);
    text.push('"');
    for byte in bytes {
        match byte {
            b'"' => text.push_str("\\\""),
            b'\\' => text.push_str("\\\\"),
            b'\n' => text.push_str("\\n"),
            b'\r' => text.push_str("\\r"),
            b'\t' => text.push_str("\\t"),
            0x07 => text.push_str("\\a"),
            0x08 => text.push_str("\\b"),
            b' '..=b'~' => text.push(char::from(*byte)),
            _ => text.push_str(&format!("\\x{byte:02x}")),
        }
    }
    text.push('"');
    text
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn bulk(text: &'static str) -> Value {
        Value::Bulk(Bytes::from_static(text.as_bytes()))
    }

    fn sample() -> Value {
        Value::Array(vec![
            Value::Integer(-1),
            bulk("a \"b\"\n"),
            Value::Array(vec![Value::Nil, Value::Status("OK".to_owned())]),
            Value::Array(Vec::new()),
            Value::Error("ERR no".to_owned()),
            Value::Map(vec![
                (bulk("name"), Value::Integer(1)),
                (bulk("other"), bulk("v")),
            ]),
        ])
    }

    fn check(form: Form, expected: &Expect) {
        expected.assert_eq(&String::from_utf8(show(&sample(), form)).unwrap());
    }

    #[test]
    fn typed_replies_look_as_in_redis_cli() {
        check(
            Form::Typed,
            &expect![[r#"
            1) (integer) -1
            2) "a \"b\"\n"
            3) 1) (nil)
               2) OK
            4) (empty array)
            5) (error) ERR no
            6) 1# "name" => (integer) 1
               2# "other" => "v"
        "#]],
        );
        let many = Value::Array((1..=10).map(Value::Integer).collect());
        let text = String::from_utf8(show(&many, Form::Typed)).unwrap();
        assert!(text.starts_with(" 1) (integer) 1\n") && text.ends_with("10) (integer) 10\n"));
        assert_eq!(quoted(b"\x00\xff\x07\x08\\"), r#""\x00\xff\a\b\\""#);
    }

    #[test]
    fn raw_replies_are_nothing_but_the_bytes() {
        check(
            Form::Raw,
            &expect![[r#"
            -1
            a "b"


            OK

            ERR no
            name 1
            other v
        "#]],
        );
        assert_eq!(
            show(&Value::Bulk(Bytes::from_static(b"\x00\xff")), Form::Raw),
            b"\x00\xff\n"
        );
        assert_eq!(show(&Value::Nil, Form::Raw), b"\n");
    }

    #[test]
    fn json_replies_are_one_value() {
        check(
            Form::Json,
            &expect![[r#"
            [-1,"a \"b\"\n",[null,"OK"],[],{"error":"ERR no"},{"name":1,"other":"v"}]
        "#]],
        );
    }
}

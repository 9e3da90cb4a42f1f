//! An event as one line for people: `01:33:23.241  SET  hello = "world"  rev=7  shard=0`.

use serde_json::{Map, Value};

/// Characters of a value that are shown.
const VALUE_CHARS_MAX: usize = 120;
/// Characters of a key that are shown.
const KEY_CHARS_MAX: usize = 120;

const PLAIN: &str = "\u{1b}[0m";
const DIM: &str = "\u{1b}[2m";
const GREEN: &str = "\u{1b}[32m";
const RED: &str = "\u{1b}[31m";
const YELLOW: &str = "\u{1b}[33m";

/// The event in one line, without its end. Control characters never reach a terminal.
#[must_use]
pub fn line(event: &Map<String, Value>, color: bool) -> String {
    let text = |name: &str| event.get(name).and_then(Value::as_str).unwrap_or_default();
    let data = event.get("data").unwrap_or(&Value::Null);
    let word = word(text("type"));
    let (paint, dim, plain) = if color {
        (color_of(&word), DIM, PLAIN)
    } else {
        ("", "", "")
    };
    let mut line = format!(
        "{dim}{}{plain}  {paint}{word:<7}{plain}",
        time(text("time"))
    );
    let state = [data.get("after"), data.get("before")];
    let state = state.into_iter().flatten().find(|state| state.is_object());
    if let Some(key) = key(state, text("subject")) {
        line.push_str(&format!(" {key}"));
    }
    if let Some(value) = value(state) {
        line.push_str(&format!(" = {value}"));
    }
    let millis = state
        .and_then(|state| state.get("expires_at_ms"))
        .and_then(number);
    if let (Some(deadline), Some(now)) = (millis, data.get("ts_ms").and_then(number)) {
        line.push_str(&format!("  ttl={}ms", deadline.saturating_sub(now)));
    }
    let source = data.get("source").unwrap_or(&Value::Null);
    for (name, value) in [
        ("rev", source.get("revision")),
        ("shard", source.get("shard")),
    ] {
        if let Some(number) = value.and_then(number) {
            line.push_str(&format!("  {dim}{name}={number}{plain}"));
        }
    }
    if let Some(gap) = data.get("gap").filter(|gap| gap.is_object()) {
        let edge = |name| gap.get(name).and_then(number).unwrap_or(0);
        let (after, next) = (edge("after_revision"), edge("next_revision"));
        line.push_str(&format!(
            "  changes after {after} and before {next} are lost"
        ));
    }
    line
}

/// `io.fluxkv.kv.set.v1` → `SET`.
fn word(kind: &str) -> String {
    let mut parts = kind.rsplit('.');
    let last = parts.next().unwrap_or_default();
    let is_version = last
        .strip_prefix('v')
        .is_some_and(|rest| rest.parse::<u32>().is_ok());
    let name = if is_version {
        parts.next().unwrap_or(last)
    } else {
        last
    };
    let name = if name == "delete" { "del" } else { name };
    clean(&name.to_uppercase(), 20)
}

fn color_of(word: &str) -> &'static str {
    match word {
        "SET" | "PATCH" | "SNAPSHOT" => GREEN,
        "DEL" | "EXPIRED" | "EVICTED" | "FLUSH" | "GAP" => RED,
        _ => YELLOW,
    }
}

/// The clock time of an RFC 3339 instant, to the millisecond.
fn time(text: &str) -> String {
    let clock = text.split_once('T').map_or("", |(_, clock)| clock);
    let clock = clock.strip_suffix('Z').unwrap_or(clock);
    let clock: String = clock.chars().take(12).collect();
    if clock.is_empty() {
        "-".to_owned()
    } else {
        clean(&clock, 12)
    }
}

fn key(state: Option<&Value>, subject: &str) -> Option<String> {
    let key = state
        .and_then(|state| state.get("key"))
        .and_then(Value::as_str);
    let key = key.unwrap_or(subject);
    (!key.is_empty()).then(|| clean(key, KEY_CHARS_MAX))
}

fn value(state: Option<&Value>) -> Option<String> {
    let state = state?;
    if state.get("truncated").and_then(Value::as_bool) == Some(true) {
        let size = state.get("size").and_then(number).unwrap_or(0);
        return Some(format!("({size} bytes)"));
    }
    let value = state.get("value")?.as_str()?;
    let is_base64 = state.get("encoding").and_then(Value::as_str) == Some("base64");
    let shown = clean(value, VALUE_CHARS_MAX);
    Some(if is_base64 {
        format!("base64:{shown}")
    } else {
        format!("\"{shown}\"")
    })
}

/// A number, or one that is written as a string because JavaScript could not hold it.
fn number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

fn clean(text: &str, chars_max: usize) -> String {
    let mut shown = String::new();
    let mut chars = text.chars();
    for character in chars.by_ref().take(chars_max) {
        if character.is_control() || character == '"' {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    if chars.next().is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn shown(event: &Value) -> String {
        line(event.as_object().unwrap(), false)
    }

    fn event(kind: &str, data: &Value) -> Value {
        json!({
            "type": format!("io.fluxkv.{kind}.v1"), "subject": "hello",
            "time": "2026-11-23T01:33:23.241281Z", "data": data,
        })
    }

    #[test]
    fn changes_are_told_in_one_line() {
        let source = json!({"revision": "7", "shard": 2});
        let set = json!({"op": "c", "ts_ms": "1000", "source": source,
            "after": {"key": "hello", "value": "world", "encoding": "utf8", "expires_at_ms": "6000"}});
        assert_eq!(
            shown(&event("kv.set", &set)),
            "01:33:23.241  SET     hello = \"world\"  ttl=5000ms  rev=7  shard=2"
        );
        let delete = json!({"op": "d", "before": {"key": "hello"}, "source": source});
        assert_eq!(
            shown(&event("kv.delete", &delete)),
            "01:33:23.241  DEL     hello  rev=7  shard=2"
        );
        let flush = json!({"op": "t", "source": source});
        let mut flush = event("kv.flush", &flush);
        flush["subject"] = Value::Null;
        assert_eq!(shown(&flush), "01:33:23.241  FLUSH    rev=7  shard=2");
        let gap = json!({"gap": {"after_revision": "7", "next_revision": "9"}});
        let mut gap = event("cdc.gap", &gap);
        gap["subject"] = Value::Null;
        assert!(
            shown(&gap).contains("GAP") && shown(&gap).ends_with("after 7 and before 9 are lost")
        );
    }

    #[test]
    fn long_binary_and_hostile_values_stay_one_harmless_line() {
        let value = |value: &str, encoding: &str| {
            shown(&event(
                "kv.set",
                &json!({"after": {"key": "k\u{1b}[31m\n", "value": value, "encoding": encoding}}),
            ))
        };
        let line = value("a\r\n\"b\u{7f}", "utf8");
        assert!(
            line.contains(r#"k\u{1b}[31m\n = "a\r\n\"b\u{7f}""#),
            "{line}"
        );
        assert!(value("/w==", "base64").ends_with("= base64:/w=="));
        assert!(value(&"é".repeat(200), "utf8").ends_with("é…\""));
        let truncated = json!({"after": {"key": "k", "truncated": true, "size": 300_000}});
        assert!(shown(&event("kv.set", &truncated)).ends_with("k = (300000 bytes)"));
    }

    #[test]
    fn anything_that_is_an_object_makes_a_line() {
        for event in [
            json!({}),
            json!({"type": "a", "data": 7, "time": "T"}),
            json!({"type": "v1", "data": {"after": []}}),
        ] {
            assert!(!shown(&event).contains('\n'));
        }
        let painted = line(event("kv.set", &Value::Null).as_object().unwrap(), true);
        assert!(painted.contains(GREEN) && painted.contains(PLAIN));
    }
}

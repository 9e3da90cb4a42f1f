//! A message as it arrives: a `CloudEvent` in structured or binary mode, or nothing we can read.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lapin::message::Delivery;
use lapin::types::AMQPValue;
use serde_json::{Map, Value};

use super::EventId;

/// Content type of an event whose envelope is in the body.
const STRUCTURED: &str = "application/cloudevents+json";
/// What the names of the envelope begin with in AMQP headers. The binding for AMQP writes
/// `cloudEvents:`, and allows `cloudEvents_` to those who cannot write a colon.
const PREFIXES: [&str; 2] = ["cloudEvents:", "cloudEvents_"];

/// A `CloudEvent`.
#[derive(Clone, Debug, PartialEq)]
pub struct Arrival {
    /// What identifies it, if its id is of a form we know.
    pub id: Option<EventId>,
    /// The whole event.
    pub event: Map<String, Value>,
    /// The event as one line of JSON.
    pub line: String,
}

impl Arrival {
    /// Reads a message.
    ///
    /// # Errors
    /// What makes it no `CloudEvent`.
    pub fn read(delivery: &Delivery) -> Result<Self, &'static str> {
        let content_type = delivery.properties.content_type().as_ref();
        let content_type = content_type.map_or("", |text| text.as_str());
        let headers = delivery.properties.headers().as_ref();
        let envelope = headers.map(|headers| {
            let attributes = headers.inner().iter();
            attributes.filter_map(|(name, value)| attribute(name.as_str(), value))
        });
        let envelope: Map<String, Value> = envelope.into_iter().flatten().collect();
        if content_type.starts_with(STRUCTURED) || envelope.is_empty() {
            Self::structured(&delivery.data)
        } else {
            Self::binary(envelope, content_type, &delivery.data)
        }
    }

    /// Reads the JSON form.
    ///
    /// # Errors
    /// What makes it no `CloudEvent`.
    pub fn structured(body: &[u8]) -> Result<Self, &'static str> {
        let text = std::str::from_utf8(body).map_err(|_| "it is not text")?;
        let event: Map<String, Value> =
            serde_json::from_str(text).map_err(|_| "it is not a JSON object")?;
        let text = text.trim_ascii();
        let line = if text.contains(['\n', '\r']) {
            Value::Object(event.clone()).to_string()
        } else {
            text.to_owned()
        };
        Self::checked(event, line)
    }

    /// Puts the envelope that came in headers around the body.
    fn binary(
        mut event: Map<String, Value>,
        content_type: &str,
        body: &[u8],
    ) -> Result<Self, &'static str> {
        event.entry("specversion").or_insert_with(|| "1.0".into());
        if !content_type.is_empty() {
            event.insert("datacontenttype".to_owned(), content_type.into());
        }
        let json = content_type.contains("json");
        match std::str::from_utf8(body) {
            Ok("") => {}
            Ok(text) => {
                let parsed = json.then(|| serde_json::from_str(text).ok()).flatten();
                let value = parsed.unwrap_or_else(|| Value::from(text));
                event.insert("data".to_owned(), value);
            }
            Err(_) => {
                event.insert("data_base64".to_owned(), STANDARD.encode(body).into());
            }
        }
        let line = Value::Object(event.clone()).to_string();
        Self::checked(event, line)
    }

    fn checked(event: Map<String, Value>, line: String) -> Result<Self, &'static str> {
        let text = |name: &str| event.get(name).and_then(Value::as_str).unwrap_or_default();
        if !text("specversion").starts_with("1.") {
            return Err("it is not a CloudEvent 1.x");
        }
        let (source, id) = (text("source"), text("id"));
        if source.is_empty() || id.is_empty() || text("type").is_empty() {
            return Err("it has no id, source or type");
        }
        Ok(Self {
            id: EventId::parse(source, id),
            event,
            line,
        })
    }
}

/// An attribute of the envelope, if that is what the header holds.
fn attribute(name: &str, value: &AMQPValue) -> Option<(String, Value)> {
    let name = PREFIXES
        .iter()
        .find_map(|prefix| name.strip_prefix(prefix))?;
    let value = if let AMQPValue::LongString(text) = value {
        Value::from(String::from_utf8_lossy(text.as_bytes()))
    } else if let AMQPValue::ShortString(text) = value {
        Value::from(text.as_str())
    } else if let AMQPValue::Boolean(truth) = value {
        Value::from(*truth)
    } else if let AMQPValue::LongInt(number) = value {
        Value::from(*number)
    } else if let AMQPValue::LongLongInt(number) = value {
        Value::from(*number)
    } else {
        return None;
    };
    Some((name.to_owned(), value))
}

#[cfg(test)]
mod tests {
    use lapin::BasicProperties;
    use lapin::types::FieldTable;

    use super::*;

    const EVENT: &str = r#"{"specversion":"1.0","id":"0:1:7","source":"/flux/a/shards/0","type":"io.fluxkv.kv.set.v1","data":{"op":"c"}}"#;

    fn delivery(properties: BasicProperties, body: &[u8]) -> Delivery {
        let mut delivery = Delivery::mock(
            1,
            "flux.cdc".into(),
            "kv.0.set.a".into(),
            false,
            body.to_vec(),
        );
        delivery.properties = properties;
        delivery
    }

    #[test]
    fn a_structured_event_stays_byte_for_byte_if_it_is_one_line() {
        let properties = BasicProperties::default().with_content_type(STRUCTURED.into());
        let arrival = Arrival::read(&delivery(properties, EVENT.as_bytes())).unwrap();
        assert_eq!(arrival.line, EVENT);
        assert_eq!(arrival.id, EventId::parse("/flux/a/shards/0", "0:1:7"));
        let pretty = EVENT.replace(',', ",\n  ");
        let arrival = Arrival::structured(pretty.as_bytes()).unwrap();
        assert!(!arrival.line.contains('\n'));
        assert_eq!(arrival.event["data"]["op"], "c");
    }

    #[test]
    fn a_binary_event_is_put_together_from_headers_and_body() {
        let mut headers = FieldTable::default();
        for (name, value) in [
            ("cloudEvents:id", "0:1:7"),
            ("cloudEvents:source", "/flux/a/shards/0"),
            ("cloudEvents_type", "io.fluxkv.kv.set.v1"),
            ("cloudEvents:subject", "k"),
            ("x-other", "not ours"),
        ] {
            headers.insert(name.into(), AMQPValue::LongString(value.into()));
        }
        let properties = BasicProperties::default()
            .with_headers(headers)
            .with_content_type("text/plain".into());
        let arrival = Arrival::read(&delivery(properties.clone(), b"v")).unwrap();
        assert_eq!(
            arrival.line,
            r#"{"data":"v","datacontenttype":"text/plain","id":"0:1:7","source":"/flux/a/shards/0","specversion":"1.0","subject":"k","type":"io.fluxkv.kv.set.v1"}"#
        );
        let arrival = Arrival::read(&delivery(properties, b"\xff")).unwrap();
        assert_eq!(arrival.event["data_base64"], "/w==");
        assert!(arrival.id.is_some());
    }

    #[test]
    fn what_is_no_event_is_told_apart() {
        let read = |body: &[u8]| Arrival::read(&delivery(BasicProperties::default(), body));
        assert_eq!(read(b"\xff"), Err("it is not text"));
        assert_eq!(read(b"hello"), Err("it is not a JSON object"));
        assert_eq!(read(b"[1]"), Err("it is not a JSON object"));
        assert_eq!(read(b"{}"), Err("it is not a CloudEvent 1.x"));
        let nameless = EVENT.replace("0:1:7", "");
        assert_eq!(
            read(nameless.as_bytes()),
            Err("it has no id, source or type")
        );
        let deep = [vec![b'['; 100_000], vec![b']'; 100_000]].concat();
        assert!(read(&deep).is_err());
    }
}

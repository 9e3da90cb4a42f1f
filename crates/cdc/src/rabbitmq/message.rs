//! An event as an AMQP message: body, properties, headers and routing key.

use flux_cluster::slot_of_key;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};

use super::{Shape, routing};
use crate::envelope::{self, CONTENT_TYPE, Envelope};
use crate::event::Event;
use flux_types::TraceParent;

/// Longest key that is put into a header: a header must fit into one frame, a body need not.
const HEADER_KEY_BYTES_MAX: usize = 4096;
/// What the names of the envelope begin with in headers.
const PREFIX: &str = "cloudEvents:";
/// Messages survive a restart of the broker.
const PERSISTENT: u8 = 2;

/// A message, ready to be published.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) routing_key: ShortString,
    pub(super) body: Vec<u8>,
    pub(super) properties: BasicProperties,
}

impl Message {
    /// Gives an event this form. `sender` is the span that sends it, if it is recorded; otherwise
    /// the message names the one that caused the change.
    pub(super) fn of(
        event: &Event,
        sender: Option<TraceParent>,
        envelope: &Envelope,
        shape: Shape,
    ) -> Self {
        let key = event.change.key();
        let word = event.change.word();
        let routing_key = if event.change.is_control() {
            routing::of_control(word)
        } else {
            routing::of_data(word, key.map_or(b"", |key| key))
        };
        let fits = key.is_none_or(|key| key.len() <= HEADER_KEY_BYTES_MAX);
        let mut headers = FieldTable::default();
        headers.insert(
            "x-flux-shard".into(),
            text(&event.position.shard.to_string()),
        );
        if let Some(key) = key {
            headers.insert("x-flux-slot".into(), text(&slot_of_key(key).to_string()));
        }
        if let Some(trace) = sender.or(event.trace) {
            headers.insert("traceparent".into(), text(&envelope::traceparent(trace)));
        }
        let (body, content_type) = if shape == Shape::Binary && fits {
            envelope.body(event)
        } else {
            (envelope::to_json(&envelope.wrap(event)), CONTENT_TYPE)
        };
        if content_type != CONTENT_TYPE {
            for (name, value) in envelope.attributes(event) {
                headers.insert(short(&format!("{PREFIX}{name}")), text(&value));
            }
        }
        let properties = BasicProperties::default()
            .with_delivery_mode(PERSISTENT)
            .with_message_id(short(&event.id()))
            .with_timestamp(event.at.get() / 1000)
            .with_type(short(&envelope::event_type(&event.change)))
            .with_app_id(short(&format!("flux/{}", envelope.cluster())))
            .with_content_type(content_type.into())
            .with_headers(headers);
        Self {
            routing_key: short(&routing_key),
            body,
            properties,
        }
    }
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

/// A short string; everything that comes here is far below the 255 bytes it may have.
fn short(value: &str) -> ShortString {
    ShortString::try_new(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use flux_types::{ClusterId, LogIndex, NodeId, Revision, ShardId, Term, UnixMillis};

    use super::*;
    use crate::event::{Change, Control, Position};

    fn event(change: Change) -> Event {
        Event {
            position: Position {
                shard: ShardId::new(3),
                term: Term::new(2),
                index: LogIndex::new(9),
                revision: Revision::new(7),
            },
            at: UnixMillis::new(1_795_397_603_241),
            change,
            group: None,
            trace: None,
        }
    }

    fn set(key: &[u8]) -> Event {
        event(Change::Set {
            key: Bytes::copy_from_slice(key),
            value: Bytes::from_static(b"\xffworld"),
            deadline: None,
        })
    }

    fn message(event: &Event, shape: Shape) -> Message {
        let envelope = Envelope::new(ClusterId::new(1), NodeId::new(2), 1024);
        Message::of(event, None, &envelope, shape)
    }

    fn header(message: &Message, name: &str) -> Option<String> {
        let headers = message.properties.headers().as_ref()?;
        let AMQPValue::LongString(text) = headers.inner().get(name)? else {
            panic!("{name} is no text");
        };
        Some(text.to_string())
    }

    #[test]
    fn a_structured_message_holds_the_event_and_tells_what_routing_needs() {
        let message = message(&set(b"user:1"), Shape::Structured);
        assert_eq!(message.routing_key.as_str(), "kv.0.set.user");
        let body: serde_json::Value = serde_json::from_slice(&message.body).unwrap();
        assert_eq!(body["id"], "3:2:7");
        let properties = &message.properties;
        assert_eq!(properties.delivery_mode(), &Some(2));
        assert_eq!(properties.message_id(), &Some("3:2:7".into()));
        assert_eq!(properties.kind(), &Some("io.fluxkv.kv.set.v1".into()));
        assert_eq!(properties.content_type(), &Some(CONTENT_TYPE.into()));
        assert_eq!(properties.timestamp(), &Some(1_795_397_603));
        assert_eq!(header(&message, "x-flux-shard").as_deref(), Some("3"));
        assert_eq!(
            header(&message, "x-flux-slot"),
            Some(slot_of_key(b"user:1").to_string())
        );
        assert_eq!(header(&message, "cloudEvents:id"), None);
    }

    #[test]
    fn a_binary_message_holds_the_value_and_the_envelope_in_headers() {
        let binary = message(&set(b"k"), Shape::Binary);
        assert_eq!(binary.body, b"\xffworld");
        assert_eq!(header(&binary, "cloudEvents:id").as_deref(), Some("3:2:7"));
        assert_eq!(header(&binary, "cloudEvents:subject").as_deref(), Some("k"));
        assert_ne!(binary.properties.content_type(), &Some(CONTENT_TYPE.into()));
        let gap = event(Change::Control(Control::Gap {
            after: Revision::new(1),
            next: Revision::new(3),
        }));
        let gap = message(&gap, Shape::Binary);
        assert_eq!(gap.routing_key.as_str(), "ctl.gap");
        assert_eq!(gap.properties.content_type(), &Some(CONTENT_TYPE.into()));
    }

    #[test]
    fn a_key_too_long_for_a_header_goes_into_the_body() {
        let message = message(&set(&[b'k'; 65_536]), Shape::Binary);
        assert_eq!(
            message.properties.content_type(),
            &Some(CONTENT_TYPE.into())
        );
        assert!(message.routing_key.as_str().len() < 100);
    }
}

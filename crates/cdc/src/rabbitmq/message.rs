//! An event as an AMQP message: body, properties, headers and routing key.

use flux_cluster::slot_of_key;

use super::frames::{counted, short, text_member};
use super::{Shape, routing};
use crate::envelope::write::decimal;
use crate::envelope::{self, CONTENT_TYPE, Envelope};
use crate::event::Event;
use flux_types::TraceParent;

/// Longest key that is put into a header: a header must fit into one frame, a body need not.
const HEADER_KEY_BYTES_MAX: usize = 4096;
/// What the names of the envelope begin with in headers.
const PREFIX: &str = "cloudEvents:";
/// Messages survive a restart of the broker.
const PERSISTENT: u8 = 2;
/// Which properties there are, in this order: content type, headers, delivery mode, message id,
/// timestamp, type, app id.
const FLAGS: u16 = 1 << 15 | 1 << 13 | 1 << 12 | 1 << 7 | 1 << 6 | 1 << 5 | 1 << 3;

/// A message, ready to be published; its memory serves the next one too.
#[derive(Debug, Default)]
pub(super) struct Message {
    pub(super) routing_key: Vec<u8>,
    pub(super) body: Vec<u8>,
    /// As the protocol has them.
    pub(super) properties: Vec<u8>,
}

impl Message {
    /// Gives an event this form. `sender` is the span that sends it, if it is recorded; otherwise
    /// the message names the one that caused the change.
    pub(super) fn set(
        &mut self,
        event: &Event,
        sender: Option<TraceParent>,
        envelope: &Envelope,
        shape: Shape,
    ) {
        self.routing_key.clear();
        self.body.clear();
        self.properties.clear();
        let key = event.change.key();
        let word = event.change.word();
        if event.change.is_control() {
            self.routing_key
                .extend_from_slice(routing::of_control(word).as_bytes());
        } else {
            routing::write_of_data(word, key.map_or(b"", |key| key), &mut self.routing_key);
        }
        let fits = key.is_none_or(|key| key.len() <= HEADER_KEY_BYTES_MAX);
        let content_type = if shape == Shape::Binary && fits {
            let (body, content_type) = envelope.body(event);
            self.body = body;
            content_type
        } else {
            envelope.write_json(event, &mut self.body);
            CONTENT_TYPE
        };
        let out = &mut self.properties;
        out.extend_from_slice(&FLAGS.to_be_bytes());
        short(out, content_type.as_bytes());
        counted(out, |out| {
            headers(event, sender, out);
            if content_type != CONTENT_TYPE {
                for (name, value) in envelope.attributes(event) {
                    text_member(out, format!("{PREFIX}{name}").as_bytes(), value.as_bytes());
                }
            }
        });
        out.push(PERSISTENT);
        measured(out, |out| event.write_id(out));
        out.extend_from_slice(&(event.at.get() / 1000).to_be_bytes());
        measured(out, |out| envelope::write_event_type(&event.change, out));
        measured(out, |out| {
            out.extend_from_slice(b"flux/");
            out.extend_from_slice(envelope.cluster().as_bytes());
        });
    }
}

/// What routing and tracing need without looking into the body.
fn headers(event: &Event, sender: Option<TraceParent>, out: &mut Vec<u8>) {
    number_member(out, b"x-flux-shard", event.position.shard.get());
    if let Some(key) = event.change.key() {
        number_member(out, b"x-flux-slot", slot_of_key(key).get().into());
    }
    if let Some(trace) = sender.or(event.trace) {
        let trace = envelope::traceparent(trace);
        text_member(out, b"traceparent", trace.as_bytes());
    }
}

/// Appends a member of a table with a number as text.
fn number_member(out: &mut Vec<u8>, name: &[u8], number: u32) {
    short(out, name);
    out.push(b'S');
    counted(out, |out| decimal(out, number.into(), 0));
}

/// Appends a short text that `fill` appends; all of them are far below the 255 bytes it may have.
fn measured(out: &mut Vec<u8>, fill: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    out.push(0);
    fill(out);
    let length = out.len().saturating_sub(at + 1);
    debug_assert!(length <= usize::from(u8::MAX));
    if let Some(place) = out.get_mut(at) {
        *place = u8::try_from(length).unwrap_or(u8::MAX);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use flux_types::{ClusterId, LogIndex, NodeId, Revision, ShardId, Term, UnixMillis};
    use lapin::BasicProperties;
    use lapin::protocol::basic::parse_properties;
    use lapin::types::AMQPValue;

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

    /// A message as the client library reads it.
    struct Read {
        routing_key: String,
        body: Vec<u8>,
        properties: BasicProperties,
    }

    fn message(event: &Event, shape: Shape) -> Read {
        let envelope = Envelope::new(ClusterId::new(1), NodeId::new(2), 1024);
        let mut message = Message::default();
        // What was there before does not matter.
        message.set(
            &set(b"before"),
            TraceParent::new(1, 2, true),
            &envelope,
            shape,
        );
        message.set(event, None, &envelope, shape);
        let (rest, properties) = parse_properties(message.properties.as_slice()).unwrap();
        assert!(rest.is_empty());
        Read {
            routing_key: String::from_utf8(message.routing_key).unwrap(),
            body: message.body,
            properties,
        }
    }

    fn header(message: &Read, name: &str) -> Option<String> {
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
        assert_eq!(properties.app_id(), &Some("flux/0000000000000001".into()));
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

//! Binary mode: the attributes of an event beside its bare value, as message brokers like it.

use flux_proto::cdc::CloudEvent;

use super::{CONTENT_TYPE, Text};
use super::{Envelope, event_type, format_time, partition_key, sequence, traceparent};
use crate::event::{Change, Event};

/// An attribute: its name in the specification, and its value.
pub type Attribute = (&'static str, String);

/// What the data of an event in binary mode are, if nobody configured it.
const VALUE_TYPE: &str = "application/octet-stream";

impl Envelope {
    /// The attributes of an event whose data are the bare value ([`Envelope::body`]), without
    /// `datacontenttype`, which brokers have a place for. What the value cannot say stands in
    /// attributes of our own: `keyencoding`, `expiresatms`, `offset`, `txid`, `txorder`, `txcount`.
    #[must_use]
    pub fn attributes(&self, event: &Event) -> Vec<Attribute> {
        let mut attributes: Vec<Attribute> = vec![
            ("specversion", "1.0".to_owned()),
            ("id", event.id()),
            ("source", self.source(event.position.shard)),
            ("type", event_type(&event.change)),
            ("time", format_time(event.at)),
            ("sequence", sequence(event.position.revision)),
        ];
        // An empty subject is none: a key that is empty has no other form.
        if let Some(key) = event.change.key().filter(|key| !key.is_empty()) {
            let subject = Text::of_subject(key);
            if subject.is_base64 {
                attributes.push(("keyencoding", "base64".to_owned()));
            }
            attributes.push(("subject", subject.text));
        }
        attributes.extend(partition_key(&event.change).map(|slot| ("partitionkey", slot)));
        attributes.extend(event.trace.map(|trace| ("traceparent", traceparent(trace))));
        let deadline = match &event.change {
            Change::Set { deadline, .. }
            | Change::Item { deadline, .. }
            | Change::Expire { deadline, .. } => *deadline,
            Change::Patch { offset, .. } => {
                attributes.push(("offset", offset.to_string()));
                None
            }
            Change::Delete { .. } | Change::Flush | Change::Control(_) => None,
        };
        attributes.extend(deadline.map(|at| ("expiresatms", at.get().to_string())));
        if let Some(group) = event.group.filter(|group| group.count > 1) {
            let position = event.position;
            let first = format!("{}:{}:{}", position.shard, position.term, group.first);
            attributes.push(("txid", first));
            attributes.push(("txorder", group.order.to_string()));
            attributes.push(("txcount", group.count.to_string()));
        }
        attributes
    }

    /// The data of an event in binary mode, and their media type: the bare value, or nothing. For
    /// control events, whose data are not a value, and for values that are too long, the event in
    /// structured mode.
    #[must_use]
    pub fn body(&self, event: &Event) -> (Vec<u8>, &'static str) {
        let value = match &event.change {
            Change::Set { value, .. } | Change::Item { value, .. } => Some(value),
            Change::Patch { bytes, .. } => Some(bytes),
            Change::Delete { .. } | Change::Expire { .. } | Change::Flush => None,
            Change::Control(_) => {
                return (super::to_json(&self.wrap(event)), CONTENT_TYPE);
            }
        };
        match value {
            Some(value) if self.value_bytes_max < value.len() => {
                (super::to_json(&self.wrap(event)), CONTENT_TYPE)
            }
            Some(value) => (value.to_vec(), VALUE_TYPE),
            None => (Vec::new(), VALUE_TYPE),
        }
    }
}

/// The event that attributes name, without its data. Unknown attributes are skipped.
#[must_use]
pub fn from_attributes<'a>(attributes: impl IntoIterator<Item = (&'a str, &'a str)>) -> CloudEvent {
    let mut event = CloudEvent::default();
    for (name, value) in attributes {
        let field = match name {
            "specversion" => &mut event.specversion,
            "id" => &mut event.id,
            "source" => &mut event.source,
            "type" => &mut event.r#type,
            "subject" => &mut event.subject,
            "time" => &mut event.time,
            "datacontenttype" => &mut event.datacontenttype,
            "partitionkey" => &mut event.partitionkey,
            "sequence" => &mut event.sequence,
            "traceparent" => &mut event.traceparent,
            _ => continue,
        };
        *field = Some(value.to_owned());
    }
    event
}

//! How an event looks outside: an event of CloudEvents 1.0, either whole as JSON (*structured mode*) or as
//! attributes beside the bare value (*binary mode*). `docs/cdc.md` shows both.

mod attributes;

mod json;
mod text;
mod time;
pub(crate) mod write;

#[cfg(test)]
mod tests;

use bytes::Bytes;
use flux_cluster::slot_of_key;
use flux_proto::cdc::{CloudEvent, EventData, EventGap, EventSource, EventTransaction, KeyState};
use flux_types::{ClusterId, DeleteCause, NodeId, Revision, ShardId, TraceParent, UnixMillis};

pub use self::attributes::{Attribute, from_attributes};
pub use self::text::{Text, decode_value};
pub use self::time::{format_time, parse_time};
use crate::event::{Change, Control, Event, Position};

/// What every event's `type` begins with.
pub const TYPE_PREFIX: &str = "io.fluxkv.";
/// The media type of an event in structured mode.
pub const CONTENT_TYPE: &str = "application/cloudevents+json";
/// Values longer than this are not put into events, unless configured otherwise.
pub const VALUE_BYTES_DEFAULT: usize = 256 * 1024;

/// Gives events their outer form.
#[derive(Clone, Debug)]
pub struct Envelope {
    cluster: String,
    node: String,
    /// Longest value that is put into an event, in bytes.
    value_bytes_max: usize,
}

impl Envelope {
    /// The envelopes that a node of a cluster writes.
    #[must_use]
    pub fn new(cluster: ClusterId, node: NodeId, value_bytes_max: usize) -> Self {
        Self {
            cluster: cluster_name(cluster),
            node: format!("{:016x}", node.get()),
            value_bytes_max,
        }
    }

    /// The event as a message. [`to_json`] makes text of it.
    #[must_use]
    pub fn wrap(&self, event: &Event) -> CloudEvent {
        let key = event.change.key().filter(|key| !key.is_empty());
        let key = key.map(Text::of_subject);
        CloudEvent {
            specversion: Some("1.0".to_owned()),
            id: Some(event.id()),
            source: Some(self.source(event.position.shard)),
            r#type: Some(event_type(&event.change)),
            subject: key.map(|key| key.text),
            time: Some(format_time(event.at)),
            datacontenttype: Some("application/json".to_owned()),
            partitionkey: partition_key(&event.change),
            sequence: Some(sequence(event.position.revision)),
            traceparent: event.trace.map(traceparent),
            data: Some(self.data(event)),
        }
    }

    /// The `source` of the events of a shard.
    #[must_use]
    pub fn source(&self, shard: ShardId) -> String {
        format!("/flux/{}/shards/{shard}", self.cluster)
    }

    /// The cluster as events name it.
    #[must_use]
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    fn data(&self, event: &Event) -> EventData {
        let Position {
            shard,
            term,
            revision,
            ..
        } = event.position;
        let is_item = matches!(event.change, Change::Item { .. });
        let ts_ms = Some(event.at.get());
        let transaction = event.group.map(|group| EventTransaction {
            id: Some(format!("{shard}:{term}:{}", group.first)),
            total_order: Some(group.order),
            count: Some(group.count),
        });
        let mut data = EventData {
            op: op(&event.change).map(str::to_owned),
            reason: reason(&event.change).map(str::to_owned),
            ts_ms,
            source: Some(EventSource {
                connector: Some("flux".to_owned()),
                version: Some(env!("CARGO_PKG_VERSION").to_owned()),
                name: Some(self.cluster.clone()),
                db: Some(0),
                shard: Some(shard.get()),
                term: (!is_item).then_some(term.get()),
                revision: Some(revision.get()),
                node: Some(self.node.clone()),
                snapshot: Some(is_item.to_string()),
                ts_ms,
            }),
            transaction,
            ..EventData::default()
        };
        match &event.change {
            Change::Delete { key, .. } => data.before = Some(key_state(key)),
            Change::Control(Control::SnapshotComplete { items }) => data.items = Some(*items),
            Change::Control(Control::Gap { after, next }) => {
                data.gap = Some(EventGap {
                    after_revision: Some(after.get()),
                    next_revision: Some(next.get()),
                });
            }
            Change::Flush | Change::Control(Control::Progress) => {}
            Change::Set { .. }
            | Change::Patch { .. }
            | Change::Expire { .. }
            | Change::Item { .. } => data.after = self.after(event),
        }
        data
    }

    fn after(&self, event: &Event) -> Option<KeyState> {
        let mut state = KeyState {
            kind: Some("string".to_owned()),
            revision: Some(event.position.revision.get()),
            ..key_state(event.change.key()?)
        };
        match &event.change {
            Change::Set {
                value, deadline, ..
            }
            | Change::Item {
                value, deadline, ..
            } => {
                state.expires_at_ms = deadline.map(UnixMillis::get);
                self.put_value(&mut state, value);
            }
            Change::Patch { offset, bytes, .. } => {
                state.offset = Some(*offset);
                self.put_value(&mut state, bytes);
            }
            Change::Expire { deadline, .. } => state.expires_at_ms = deadline.map(UnixMillis::get),
            Change::Delete { .. } | Change::Flush | Change::Control(_) => {}
        }
        Some(state)
    }

    fn put_value(&self, state: &mut KeyState, value: &Bytes) {
        if self.value_bytes_max < value.len() {
            state.truncated = Some(true);
            state.size = Some(u32::try_from(value.len()).unwrap_or(u32::MAX));
            state.crc32c = Some(format!("{:08x}", crc32c::crc32c(value)));
            return;
        }
        let text = Text::of_value(value);
        state.encoding = Some(text.encoding().to_owned());
        state.value = Some(text.text);
    }
}

/// The event as CloudEvents JSON.
#[must_use]
pub fn to_json(event: &CloudEvent) -> Vec<u8> {
    // Strings, numbers and nothing that could fail.
    serde_json::to_vec(event).unwrap_or_default()
}

/// Reads CloudEvents JSON. Members that are not known are skipped.
///
/// # Errors
/// If it is not JSON, or a known member has another type.
pub fn from_json(json: &[u8]) -> Result<CloudEvent, serde_json::Error> {
    serde_json::from_slice(json)
}

/// A cluster as events name it.
#[must_use]
pub fn cluster_name(cluster: ClusterId) -> String {
    format!("{:016x}", cluster.get())
}

/// The `type` of an event.
#[must_use]
pub fn event_type(change: &Change) -> String {
    let mut out = Vec::new();
    write_event_type(change, &mut out);
    // Letters and signs.
    String::from_utf8(out).unwrap_or_default()
}

/// Appends the `type` of an event.
pub(crate) fn write_event_type(change: &Change, out: &mut Vec<u8>) {
    let family: &[u8] = if change.is_control() { b"cdc." } else { b"kv." };
    out.extend_from_slice(TYPE_PREFIX.as_bytes());
    out.extend_from_slice(family);
    out.extend_from_slice(change.word().as_bytes());
    out.extend_from_slice(b".v1");
}

/// The event's word in its `type`, such as `set`; `None` if the type is not one of ours.
#[must_use]
pub fn word_of_type(event_type: &str) -> Option<&str> {
    let (_, word) = event_type.strip_prefix(TYPE_PREFIX)?.split_once('.')?;
    word.strip_suffix(".v1")
}

/// The `partitionkey`: the slot of the key.
#[must_use]
pub fn partition_key(change: &Change) -> Option<String> {
    let key = change.key()?;
    Some(slot_of_key(key).to_string())
}

/// The `sequence`: revisions as texts that sort as they do.
#[must_use]
pub fn sequence(revision: Revision) -> String {
    format!("{:020}", revision.get())
}

/// The `traceparent`.
#[must_use]
pub fn traceparent(trace: TraceParent) -> String {
    let flags = u8::from(trace.is_sampled());
    format!(
        "00-{:032x}-{:016x}-{flags:02x}",
        trace.trace_id(),
        trace.span_id()
    )
}

fn key_state(key: &Bytes) -> KeyState {
    let text = Text::of_value(key);
    KeyState {
        key_encoding: text.is_base64.then(|| "base64".to_owned()),
        key: Some(text.text),
        ..KeyState::default()
    }
}

const fn op(change: &Change) -> Option<&'static str> {
    Some(match change {
        Change::Set { .. } => "c",
        Change::Patch { .. } | Change::Expire { .. } => "u",
        Change::Delete { .. } => "d",
        Change::Item { .. } => "r",
        Change::Flush => "t",
        Change::Control(_) => return None,
    })
}

const fn reason(change: &Change) -> Option<&'static str> {
    Some(match change {
        Change::Set { .. } | Change::Patch { .. } | Change::Expire { .. } => "client",
        Change::Delete { cause, .. } => match cause {
            DeleteCause::Deleted => "client",
            DeleteCause::Expired => "expired",
            DeleteCause::Evicted => "evicted",
        },
        Change::Item { .. } => "snapshot",
        Change::Flush => "flush",
        Change::Control(_) => return None,
    })
}

//! Events as CloudEvents JSON, written straight into a buffer: the same bytes as [`to_json`] makes of
//! [`Envelope::wrap`], at a fraction of the cost. That one is the reference, and the tests compare.

use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use flux_cluster::slot_of_key;
use flux_types::UnixMillis;

use super::time::write_time;
use super::write::{decimal, id, json_text, text};
use super::{Envelope, op, reason, to_json, traceparent, write_event_type};
use crate::event::{Change, Event};

/// What stands in front of the sequence of most events.
const WIDTH_OF_SEQUENCE: usize = 20;

impl Envelope {
    /// Appends the event as CloudEvents JSON.
    pub fn write_json(&self, event: &Event, out: &mut Vec<u8>) {
        if event.change.is_control() {
            // These are few.
            out.extend_from_slice(&to_json(&self.wrap(event)));
            return;
        }
        let position = event.position;
        out.extend_from_slice(b"{\"specversion\":\"1.0\",\"id\":\"");
        event.write_id(out);
        out.extend_from_slice(b"\",\"source\":\"/flux/");
        out.extend_from_slice(self.cluster.as_bytes());
        out.extend_from_slice(b"/shards/");
        decimal(out, position.shard.get().into(), 0);
        out.extend_from_slice(b"\",\"type\":\"");
        write_event_type(&event.change, out);
        out.push(b'"');
        let key = event.change.key();
        let key_text = key.map(|key| text(key, STANDARD));
        if let (Some(key), Some((text_of_key, is_base64))) = (key, &key_text)
            && !key.is_empty()
        {
            out.extend_from_slice(b",\"subject\":");
            if *is_base64 {
                json_text(out, &text(key, URL_SAFE_NO_PAD).0);
            } else {
                json_text(out, text_of_key);
            }
        }
        out.extend_from_slice(b",\"time\":\"");
        write_time(event.at, out);
        out.extend_from_slice(b"\",\"datacontenttype\":\"application/json\"");
        if let Some(key) = key {
            out.extend_from_slice(b",\"partitionkey\":\"");
            decimal(out, slot_of_key(key).get().into(), 0);
            out.push(b'"');
        }
        out.extend_from_slice(b",\"sequence\":\"");
        decimal(out, position.revision.get(), WIDTH_OF_SEQUENCE);
        out.push(b'"');
        if let Some(trace) = event.trace {
            out.extend_from_slice(b",\"traceparent\":\"");
            out.extend_from_slice(traceparent(trace).as_bytes());
            out.push(b'"');
        }
        out.extend_from_slice(b",\"data\":{");
        if let (Some(op), Some(reason)) = (op(&event.change), reason(&event.change)) {
            out.extend_from_slice(b"\"op\":\"");
            out.extend_from_slice(op.as_bytes());
            out.extend_from_slice(b"\",\"reason\":\"");
            out.extend_from_slice(reason.as_bytes());
            out.extend_from_slice(b"\",");
        }
        if let Some((key, is_base64)) = key_text {
            self.write_key_state(event, (&key, is_base64), out);
        }
        self.write_origin(event, out);
        out.extend_from_slice(b"}}");
    }

    /// The member `before` or `after`.
    fn write_key_state(&self, event: &Event, (key, is_base64): (&str, bool), out: &mut Vec<u8>) {
        let is_gone = matches!(event.change, Change::Delete { .. });
        let name: &[u8] = if is_gone {
            b"\"before\":{"
        } else {
            b"\"after\":{"
        };
        out.extend_from_slice(name);
        out.extend_from_slice(b"\"key\":");
        json_text(out, key);
        if is_base64 {
            out.extend_from_slice(b",\"key_encoding\":\"base64\"");
        }
        if is_gone {
            out.extend_from_slice(b"},");
            return;
        }
        let (value, deadline, offset) = match &event.change {
            Change::Set {
                value, deadline, ..
            }
            | Change::Item {
                value, deadline, ..
            } => (Some(value), *deadline, None),
            Change::Patch { offset, bytes, .. } => (Some(bytes), None, Some(*offset)),
            Change::Expire { deadline, .. } => (None, *deadline, None),
            Change::Delete { .. } | Change::Flush | Change::Control(_) => (None, None, None),
        };
        let truncated = value.filter(|value| self.value_bytes_max < value.len());
        if truncated.is_none()
            && let Some(value) = value
        {
            write_value(value, out);
        }
        out.extend_from_slice(b",\"kind\":\"string\",\"revision\":\"");
        decimal(out, event.position.revision.get(), 0);
        out.push(b'"');
        if let Some(deadline) = deadline {
            out.extend_from_slice(b",\"expires_at_ms\":\"");
            decimal(out, deadline.get(), 0);
            out.push(b'"');
        }
        if let Some(value) = truncated {
            out.extend_from_slice(b",\"truncated\":true,\"size\":");
            decimal(
                out,
                u32::try_from(value.len()).unwrap_or(u32::MAX).into(),
                0,
            );
            out.extend_from_slice(
                format!(",\"crc32c\":\"{:08x}\"", crc32c::crc32c(value)).as_bytes(),
            );
        }
        if let Some(offset) = offset {
            out.extend_from_slice(b",\"offset\":");
            decimal(out, offset.into(), 0);
        }
        out.extend_from_slice(b"},");
    }

    /// When, where and with what else it was decided.
    fn write_origin(&self, event: &Event, out: &mut Vec<u8>) {
        let position = event.position;
        let is_item = matches!(event.change, Change::Item { .. });
        write_millis(event.at, out);
        out.extend_from_slice(b",\"source\":{\"connector\":\"flux\",\"version\":\"");
        out.extend_from_slice(env!("CARGO_PKG_VERSION").as_bytes());
        out.extend_from_slice(b"\",\"name\":\"");
        out.extend_from_slice(self.cluster.as_bytes());
        out.extend_from_slice(b"\",\"db\":0,\"shard\":");
        decimal(out, position.shard.get().into(), 0);
        if !is_item {
            out.extend_from_slice(b",\"term\":\"");
            decimal(out, position.term.get(), 0);
            out.push(b'"');
        }
        out.extend_from_slice(b",\"revision\":\"");
        decimal(out, position.revision.get(), 0);
        out.extend_from_slice(b"\",\"node\":\"");
        out.extend_from_slice(self.node.as_bytes());
        let snapshot: &[u8] = if is_item {
            b"\",\"snapshot\":\"true\","
        } else {
            b"\",\"snapshot\":\"false\","
        };
        out.extend_from_slice(snapshot);
        write_millis(event.at, out);
        out.push(b'}');
        if let Some(group) = event.group {
            out.extend_from_slice(b",\"transaction\":{\"id\":\"");
            let (shard, term) = (position.shard.get(), position.term.get());
            id(out, shard, term, group.first.get());
            out.extend_from_slice(b"\",\"total_order\":");
            decimal(out, group.order.into(), 0);
            out.extend_from_slice(b",\"count\":");
            decimal(out, group.count.into(), 0);
            out.push(b'}');
        }
    }
}

fn write_value(value: &Bytes, out: &mut Vec<u8>) {
    let (text, is_base64) = text(value, STANDARD);
    out.extend_from_slice(b",\"value\":");
    json_text(out, &text);
    let encoding: &[u8] = if is_base64 {
        b",\"encoding\":\"base64\""
    } else {
        b",\"encoding\":\"utf8\""
    };
    out.extend_from_slice(encoding);
}

fn write_millis(at: UnixMillis, out: &mut Vec<u8>) {
    out.extend_from_slice(b"\"ts_ms\":\"");
    decimal(out, at.get(), 0);
    out.push(b'"');
}

//! From the facts of an entry to events.

use bytes::Bytes;
use flux_log::LogEntry;
use flux_store::FactRef;
use flux_store::batch::BatchView;
use flux_types::slots::SLOTS_NAME;
use flux_types::{Revision, ShardId, SlotMap};

use crate::event::{Change, Event, Group, Position};

/// Hands the events of an entry to `found`, those after a revision, in order. Their keys and values
/// are parts of the entry's own memory.
pub(super) fn facts(
    shard: ShardId,
    entry: &LogEntry,
    batch: &BatchView<'_>,
    after: Revision,
    mut found: impl FnMut(Event),
) {
    let mut facts = batch.facts();
    let mut group: Vec<Event> = Vec::new();
    while let Some((revision, fact, more)) = facts.step() {
        let own = |bytes: &[u8]| entry.payload.slice_ref(bytes);
        if let Some(change) = change(&fact, own) {
            group.push(Event {
                position: Position {
                    shard,
                    term: entry.id.term,
                    index: entry.id.index,
                    revision,
                },
                at: batch.at(),
                change,
                group: None,
                trace: facts.trace(),
            });
        }
        if more {
            continue;
        }
        let count = u32::try_from(group.len()).unwrap_or(u32::MAX);
        let first = group.first().map(|event| event.position.revision);
        for (order, mut event) in (0..).zip(group.drain(..)) {
            event.group = first.map(|first| Group {
                first,
                order,
                count,
            });
            if after < event.position.revision {
                found(event);
            }
        }
    }
}

/// The shard that a batch splits off its own.
pub(super) fn split_off(batch: &BatchView<'_>) -> Option<ShardId> {
    if batch.fact_count() != 1 {
        return None;
    }
    match batch.facts().step() {
        Some((_, FactRef::SystemPut { name, value }, _)) if name == SLOTS_NAME => {
            last_of_map(value)
        }
        Some(_) | None => None,
    }
}

/// The last shard of a map of the slots, as a shard that was split keeps it: what was split off it
/// last.
pub(super) fn last_of_map(text: &[u8]) -> Option<ShardId> {
    let map: SlotMap = std::str::from_utf8(text).ok()?.parse().ok()?;
    map.shard_count().checked_sub(1).map(ShardId::new)
}

/// What a fact tells the outside; nothing if it is about system data.
fn change<'a>(fact: &FactRef<'a>, own: impl Fn(&'a [u8]) -> Bytes) -> Option<Change> {
    Some(match *fact {
        FactRef::Put {
            key,
            value,
            deadline,
        } => Change::Set {
            key: own(key),
            value: own(value),
            deadline,
        },
        FactRef::Patch { key, offset, bytes } => Change::Patch {
            key: own(key),
            offset,
            bytes: own(bytes),
        },
        FactRef::Delete { key, cause } => Change::Delete {
            key: own(key),
            cause,
        },
        FactRef::SetDeadline { key, deadline } => Change::Expire {
            key: own(key),
            deadline,
        },
        FactRef::Clear => Change::Flush,
        FactRef::SystemPut { .. }
        | FactRef::SystemDelete { .. }
        | FactRef::Request { .. }
        | FactRef::ForgetSessions { .. } => return None,
    })
}

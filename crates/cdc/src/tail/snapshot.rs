//! The state of a shard as events, while it changes.
//!
//! A walk begins at place S and ends when entry E was the last applied or being applied; each key
//! comes as it was at some moment between. The changes from S on follow, and once E is read the
//! consumer has a state that the shard had: only then the snapshot is said to be complete. If the
//! walk cannot go on it begins anew, which costs the consumer nothing but repeated items.

use bytes::Bytes;
use flux_store::{About, Walk, block_entries};
use flux_types::LogIndex;

use super::{CdcError, Progress, Read, Tail};
use crate::cursor::Place;
use crate::event::{Change, Event, Position};

/// Bytes of one step of a walk.
const BLOCK_BYTES: usize = 128 * 1024;

/// A walk under way.
#[derive(Debug)]
pub(super) struct Walking {
    walk: Walk,
    items: u64,
    /// What was met and is not handed out.
    met: Option<Read>,
    /// The last entry that may have touched what was met so far.
    end: LogIndex,
}

impl Tail {
    /// Begins a walk as soon as somebody waits for it.
    pub(crate) const fn walk_later(&mut self) {
        self.wants_walk = true;
    }

    /// Begins a walk once the state is whole (rule 4 of the design). Safe to drop.
    pub(super) async fn begin_walk(&mut self) {
        self.origin.wait_whole().await;
        self.wants_walk = false;
        self.has_walked = true;
        // The entry, then the revision, then the walk: the tail begins no later than the walk.
        let id = self.origin.applied().unwrap_or_default();
        let revision = self.origin.store().revision();
        self.go_to(Progress { id, revision });
        self.walking = Some(Walking {
            walk: self.origin.store().walk(),
            items: 0,
            met: None,
            end: id.index,
        });
        self.note_children(Place::Snapshot);
    }

    /// One step of the walk. Safe to drop.
    pub(super) async fn walk(&mut self, prefix: &[u8]) -> Result<Read, CdcError> {
        let Some(walking) = self.walking.as_mut() else {
            return Ok(Read::default());
        };
        if walking.met.is_none() {
            let Ok(block) = walking.walk.next_block(BLOCK_BYTES) else {
                self.begin_walk().await;
                return Ok(Read::default());
            };
            let applying = self.origin.applying();
            walking.end = applying.map_or(walking.end, |id| id.index);
            let Some(block) = block else {
                self.completing = Some((walking.end, walking.items));
                self.walking = None;
                return Ok(Read::default());
            };
            let met = self.items(&Bytes::from(block), prefix)?;
            if let Some(walking) = self.walking.as_mut() {
                walking.met = Some(met);
            }
        }
        // What was met may come from an entry that a power cut could still take back (rule 12).
        let end = self.walking.as_ref().map(|walking| walking.end);
        self.wait_durable(end.unwrap_or_default()).await?;
        let Some(walking) = self.walking.as_mut() else {
            return Ok(Read::default());
        };
        let read = walking.met.take().unwrap_or_default();
        walking.items += u64::try_from(read.events.len()).unwrap_or(0);
        Ok(read)
    }

    fn items(&self, block: &Bytes, prefix: &[u8]) -> Result<Read, CdcError> {
        let now = self.origin.now();
        let position = self.position();
        let mut read = Read::default();
        let entries = block_entries(block).map_err(|_| CdcError::Stopped { shard: self.shard })?;
        for entry in entries {
            let is_past = entry.deadline.is_some_and(|deadline| deadline <= now);
            if entry.about != About::Key || is_past || !entry.key.starts_with(prefix) {
                continue;
            }
            read.events.push(Event {
                position: Position {
                    revision: entry.revision,
                    ..position
                },
                at: now,
                change: Change::Item {
                    key: block.slice_ref(entry.key),
                    value: block.slice_ref(entry.value),
                    deadline: entry.deadline,
                },
                group: None,
                trace: None,
            });
        }
        Ok(read)
    }
}
